//! The installation as a whole: what runs, its database, the keys over stored secrets.

use std::sync::Arc;

use super::{
    Api, Call,
    Method::{Get, Post},
    Nothing, One, Operation,
    kinds::*,
    typed,
};
use crate::{
    admin::{AdminRequest, vault},
    http::Problem,
};

type Answer<T> = Result<One<T>, Problem>;

const POLICY: &[&str] = &["policy.manage"];

pub(super) fn mount(api: &mut Api) {
    let op = |method, path, id, summary, needs| Operation { method, path, id, summary, needs };
    let text = "How much is connected; on the installation";
    let needs = &["policy.manage", "relays.manage"];
    api.operation(op(Get, "/status", "installation.status", text, needs), status);
    let text = "Rewrite the database without traces of what was deleted; on the installation";
    api.operation(op(Post, "/compact", "installation.compact", text, POLICY), compact);
    let text = "How far the rotation of the keys over stored secrets is; on the installation";
    api.operation(op(Get, "/vault/rotation", "vault.rotation", text, POLICY), rotation);
    let text = "Begin to make a new key over stored secrets and to seal them all with it; on the \
                installation, with a fresh login";
    api.operation(op(Post, "/vault/rotation", "vault.rotate", text, POLICY), rotate);
}

async fn status(call: Call<Nothing, Nothing>) -> Answer<Status> {
    call.one(AdminRequest::Status).await.map(One)
}

async fn compact(call: Call<Nothing, Nothing>) -> Answer<Compacted> {
    call.one(AdminRequest::Compact).await.map(One)
}

async fn rotation(call: Call<Nothing, Nothing>) -> Answer<VaultRotation> {
    typed(vault::standing((&*call.web.admin, &call.actor)).await?).map(One)
}

/// Many clients take longer than an answer may: it goes on by itself.
async fn rotate(call: Call<Nothing, NewKeys>) -> Answer<VaultRotation> {
    let (admin, data_keys) = (Arc::clone(&call.web.admin), call.body.data_keys);
    let begun = vault::begin((&*admin, &call.actor), data_keys).await?;
    let told = admin.rotation.tell();
    if let Some(running) = begun {
        let actor = call.actor.clone();
        call.web.exports.tasks().spawn(async move {
            if let Err(error) = vault::run((&*admin, &actor), running, data_keys).await {
                tracing::error!(%error, "the keys over stored secrets were not all rotated");
            }
        });
    }
    typed(told).map(One)
}
