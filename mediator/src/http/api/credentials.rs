//! Credentials of clients. Nothing here is repeated by an Idempotency-Key: of a request with a
//! secret not even a hash is kept, and no answer with one.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::{
    Api, Call,
    Method::{Delete, Get, Put},
    Nothing, One, Operation, Page,
};
use crate::{
    admin::{
        AdminRequest, Secret,
        credentials::{Add, CredentialAct, Edit},
    },
    http::Problem,
};

type Answer<T> = Result<One<T>, Problem>;

const ANY: &[&str] =
    &["credentials.use", "credentials.read", "credentials.edit", "credentials.delete"];
const EDIT: &[&str] = &["credentials.edit"];

/// Which credentials.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CredentialQuery {
    /// Only those of this client: PARTNER/CLIENT.
    pub(crate) client: Option<String>,
    /// Items at most: 1 to 1,000; else 100.
    pub(crate) limit: Option<u32>,
    /// `next` of the page before.
    pub(crate) cursor: Option<String>,
}

/// Why a secret is looked at.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RevealQuery {
    /// For the record.
    pub(crate) reason: Option<String>,
    /// Ticket number, for the record.
    pub(crate) ticket: Option<String>,
}

/// A new credential.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewCredential {
    /// Only for this computer of the client: name or id.
    #[serde(default)]
    pub(crate) computer: Option<String>,
    /// password, ssh_key or other.
    #[serde(default)]
    pub(crate) kind: Option<String>,
    /// User at the target.
    #[serde(default)]
    pub(crate) user: Option<String>,
    /// None: a password is made.
    #[serde(default)]
    pub(crate) secret: Option<String>,
    /// Characters of a password that is made: 16 to 127.
    #[serde(default)]
    pub(crate) length: Option<usize>,
    #[serde(default)]
    pub(crate) notes: Option<String>,
    /// Only with these redirectors; none: all that have a viewer.
    #[serde(default)]
    pub(crate) redirectors: Vec<String>,
    /// Used without being named, where it is the only one.
    #[serde(default)]
    pub(crate) automatic: bool,
}

/// What becomes different; the rest stays.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ChangedCredential {
    pub(crate) name: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) secret: Option<String>,
    /// Make a password in place of the secret.
    pub(crate) generate: bool,
    /// Characters of it: 16 to 127.
    pub(crate) length: Option<usize>,
    pub(crate) notes: Option<String>,
    pub(crate) redirectors: Option<Vec<String>>,
    pub(crate) automatic: Option<bool>,
}

/// A credential, without its secret.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Credential {
    pub(crate) credential_id: String,
    pub(crate) name: String,
    /// password, ssh_key or other.
    pub(crate) kind: String,
    /// PARTNER/CLIENT.
    pub(crate) client: String,
    pub(crate) computer_id: Option<String>,
    pub(crate) computer: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) redirectors: Vec<String>,
    pub(crate) automatic: bool,
    pub(crate) version: u64,
    pub(crate) created: String,
    pub(crate) changed: String,
    pub(crate) used: Option<String>,
    /// In lists: what the asker may do with it.
    #[serde(default)]
    pub(crate) may: Vec<String>,
}

/// A credential with its secret.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RevealedCredential {
    pub(crate) credential_id: String,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) client: String,
    pub(crate) computer_id: Option<String>,
    pub(crate) computer: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) redirectors: Vec<String>,
    pub(crate) automatic: bool,
    pub(crate) version: u64,
    pub(crate) created: String,
    pub(crate) changed: String,
    pub(crate) used: Option<String>,
    pub(crate) secret: String,
    pub(crate) notes: String,
}

/// A credential is gone.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeletedCredential {
    pub(crate) credential_id: String,
    pub(crate) deleted: bool,
}

pub(super) fn mount(api: &mut Api) {
    let op = |method, path, id, summary, needs| Operation { method, path, id, summary, needs };
    let text = "List credentials that one may use, see, change or delete";
    api.operation(op(Get, "/credentials", "credentials.list", text, ANY), list);
    let text = "Add a credential; the name must be free";
    let path = "/clients/{partner}/{client}/credentials/{name}";
    api.operation(op(Put, path, "credentials.add", text, EDIT), add);
    let path = "/credentials/{credential}";
    let text = "Change a credential, or give it a new password";
    api.operation(op(Put, path, "credentials.edit", text, EDIT), edit);
    let needs = &["credentials.delete"];
    api.operation(op(Delete, path, "credentials.delete", "Delete a credential", needs), delete);
    let text = "Show a credential with its secret; needs a second factor shown within 10 minutes";
    let needs = &["credentials.read"];
    let path = "/credentials/{credential}/secret";
    api.operation(op(Get, path, "credentials.reveal", text, needs), reveal);
}

fn hidden(text: String) -> Secret {
    Secret::new(Zeroizing::new(text))
}

async fn list(call: Call<CredentialQuery, Nothing>) -> Result<Page<Credential>, Problem> {
    let act = CredentialAct::List { client: call.query.client.clone() };
    let paging = (call.query.limit, call.query.cursor.as_deref());
    call.page(AdminRequest::Credentials(act), paging, "credential_id").await
}

async fn add(call: Call<Nothing, NewCredential>) -> Answer<Credential> {
    let NewCredential { computer, kind, user, secret, length, notes, redirectors, automatic } =
        call.body.clone();
    let add = Add {
        client: call.client(),
        computer,
        name: call.part("name"),
        kind: kind.unwrap_or_else(|| crate::vault::contents::PASSWORD.to_owned()),
        user: hidden(user.unwrap_or_default()),
        secret: secret.map(hidden),
        length,
        notes: hidden(notes.unwrap_or_default()),
        redirectors,
        automatic,
    };
    call.one(AdminRequest::Credentials(CredentialAct::Add(Box::new(add)))).await.map(One)
}

async fn edit(call: Call<Nothing, ChangedCredential>) -> Answer<Credential> {
    let ChangedCredential { name, user, secret, generate, length, notes, redirectors, automatic } =
        call.body.clone();
    let edit = Edit {
        credential: id(&call.part("credential"))?,
        name,
        user: user.map(hidden),
        secret: secret.map(hidden),
        generate,
        length,
        notes: notes.map(hidden),
        redirectors,
        automatic,
    };
    call.one(AdminRequest::Credentials(CredentialAct::Edit(Box::new(edit)))).await.map(One)
}

async fn delete(call: Call<Nothing, Nothing>) -> Answer<DeletedCredential> {
    let act = CredentialAct::Delete { credential: id(&call.part("credential"))? };
    call.one(AdminRequest::Credentials(act)).await.map(One)
}

async fn reveal(call: Call<RevealQuery, Nothing>) -> Answer<RevealedCredential> {
    let RevealQuery { reason, ticket } = call.query.clone();
    let credential = id(&call.part("credential"))?;
    let act = CredentialAct::Reveal { credential, reason, ticket };
    call.one(AdminRequest::Credentials(act)).await.map(One)
}

/// Names with slashes are for the command line.
fn id(text: &str) -> Result<String, Problem> {
    if text.contains('/') { Err(Problem::not_found()) } else { Ok(text.to_owned()) }
}
