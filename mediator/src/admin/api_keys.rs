//! API keys: for programs, each bound to a key pair whose private half never comes here.

use adit_protocol::{dpop::from_base64url, keys::PublicKey};
use adit_runtime::{
    cli::CliError,
    time::{format_ms, unix_ms},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    access::{ScopeArg, role},
    actor::{Gift, not_found},
    handle::{Who, bad_name},
};
use crate::{
    http::KEY_PREFIX,
    names,
    place::store_error,
    roles::{
        Conditions, Permission, Rule,
        conditions::{MAX_NETWORKS, Network},
    },
    store::{
        StoreError,
        access::bindings::{self, Binding, Subject},
        api::{self, ApiKeyRow},
        fresh_id, tenants,
    },
};

/// Longest life of a key, milliseconds.
const MAX_LIFE_MS: u64 = 366 * 24 * 3_600_000;
/// Life unless another is asked for.
const DEFAULT_LIFE_MS: u64 = 90 * 24 * 3_600_000;

/// An act on API keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ApiKeyAct {
    /// Lists those that were not revoked.
    List,
    /// Registers one.
    Create(Box<NewKey>),
    /// Revokes one for ever.
    Revoke { key: String },
}

/// A key to be registered, with its first role.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewKey {
    pub(crate) name: String,
    pub(crate) partner: Option<String>,
    /// Ed25519, base64url.
    pub(crate) public_key: String,
    pub(crate) role: String,
    #[serde(default)]
    pub(crate) scope: ScopeArg,
    #[serde(default)]
    pub(crate) networks: Vec<Network>,
    pub(crate) ttl_ms: Option<u64>,
}

const MANAGE: &[Permission] = &[Permission::ManageUsers];

/// Does it.
pub(super) async fn handle(who: Who<'_>, act: ApiKeyAct) -> Result<Vec<Value>, CliError> {
    who.1.may_at_home(who.0, MANAGE).await?;
    match act {
        ApiKeyAct::List => list(who).await,
        ApiKeyAct::Create(new) => create(who, *new).await,
        ApiKeyAct::Revoke { key } => revoke(who, &key).await,
    }
}

async fn list((context, actor): Who<'_>) -> Result<Vec<Value>, CliError> {
    let pool = &context.store.readers;
    let mut told = Vec::new();
    for row in api::list(pool, actor.partner_id()).await.map_err(store_error)? {
        let rules = bindings::rules_of_key(pool, &row.partner_id, &row.id).await;
        let roles: Vec<String> = rules.map_err(store_error)?.iter().map(Rule::name).collect();
        told.push(json_of(&row, roles));
    }
    Ok(told)
}

fn json_of(row: &ApiKeyRow, roles: Vec<String>) -> Value {
    let networks: Value = serde_json::from_str(&row.networks).unwrap_or_default();
    json!({
        "key_id": row.id,
        "name": row.name,
        "partner": row.partner,
        "token": format!("{KEY_PREFIX}{}", row.id),
        "fingerprint": row.key.fingerprint().to_string(),
        "roles": roles,
        "networks": networks,
        "created_by": row.created_by,
        "created": format_ms(row.created_ms),
        "expires": format_ms(row.expires_ms),
    })
}

async fn create((context, actor): Who<'_>, wish: NewKey) -> Result<Vec<Value>, CliError> {
    let usage = |text: &str| CliError::usage("usage", text);
    names::check(&wish.name).map_err(bad_name)?;
    let key = from_base64url(&wish.public_key)
        .ok()
        .and_then(|key| PublicKey::from_slice(&key).ok())
        .ok_or_else(|| usage("public_key: an Ed25519 key in base64url is expected"))?;
    let life = wish.ttl_ms.unwrap_or(DEFAULT_LIFE_MS);
    if !(1..=MAX_LIFE_MS).contains(&life) {
        return Err(usage("ttl: 1ms to 366d is expected"));
    }
    if wish.networks.len() > MAX_NETWORKS {
        return Err(usage("too many networks"));
    }
    let partner = super::access::partner(context, actor, wish.partner.clone()).await?;
    let role = role(context, &partner.id, &wish.role).await?;
    let scope = super::access::scope(context, actor, &partner.id, &wish.scope).await?;
    let conditions = &Conditions::default();
    let gift = Gift { role: &role, scope: &scope, conditions, expires_ms: None, binds: true };
    actor.may_give(context, &gift).await?;
    let now = unix_ms();
    let row = ApiKeyRow {
        id: fresh_id().map_err(store_error)?,
        partner_id: partner.id.clone(),
        partner: partner.name.clone(),
        name: wish.name,
        key,
        networks: serde_json::to_string(&wish.networks).unwrap_or_else(|_| "[]".to_owned()),
        created_by: actor.name().to_owned(),
        created_ms: now,
        expires_ms: now.saturating_add(life),
        revoked: false,
    };
    let binding = Binding {
        id: fresh_id().map_err(store_error)?,
        partner: partner.id.clone(),
        subject: Subject::Key(row.id.clone()),
        role: role.id.clone(),
        scope,
        conditions: Conditions::default(),
        expires_ms: None,
    };
    let (by, new, role_name) = (actor.clone(), row.clone(), role.name.clone());
    let done = context.writer.write(move |tx| {
        Box::pin(async move {
            api::insert(tx, &new).await?;
            bindings::insert(tx, &binding).await?;
            let event = by
                .event("api_key.created", &partner.name)
                .extra("key_id", new.id.as_str())
                .extra("fingerprint", new.key.fingerprint().to_string())
                .extra("role", role_name)
                .extra("scope", binding.scope.kind())
                .extra("expires", format_ms(new.expires_ms))
                .extra_personal("name", new.name.as_str());
            tx.append(&partner.id, event).await
        })
    });
    done.await.map_err(store_error)?;
    Ok(vec![json_of(&row, vec![role.name])])
}

async fn revoke((context, actor): Who<'_>, key: &str) -> Result<Vec<Value>, CliError> {
    let found = api::by_id(&context.store.readers, key).await.map_err(store_error)?;
    let found = found.filter(|row| actor.reaches(&row.partner_id) && !row.revoked);
    let row = found.ok_or_else(|| not_found("API key"))?;
    let (by, id) = (actor.clone(), row.id.clone());
    let done = context.writer.write(move |tx| {
        Box::pin(async move {
            if !api::revoke(tx, &id).await? {
                return Err(StoreError::Missing("API key"));
            }
            let partner = tenants::partner_by_id(tx, &row.partner_id).await?;
            let event = by
                .event("api_key.revoked", &partner.name)
                .extra("key_id", id.as_str())
                .extra_personal("name", row.name.as_str());
            tx.append(&partner.id, event).await
        })
    });
    done.await.map_err(store_error)?;
    Ok(vec![json!({"key_id": key, "revoked": true})])
}
