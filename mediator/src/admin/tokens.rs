//! Enrolment tokens. The seed goes out in the token and is kept nowhere.

use adit_ledger::Event;
use adit_protocol::{
    ids::TokenId,
    keys::{SigningKey, random},
    token::{EnrollToken, MAX_TOKEN_LEN, TokenKind},
};
use adit_runtime::{
    cli::{CliError, Exit},
    time::{format_ms, unix_ms},
};
use serde_json::{Value, json};

use super::{
    actor::{Actor, not_found},
    handle::{AdminContext, bad_name},
};
use crate::{
    config::host_port,
    names,
    place::store_error,
    roles::{Act, Object, Permission},
    store::{StoreError, WriteTx, tenants, tokens},
};

/// Times that one token may be used.
const MAX_USES: u64 = 100_000;
/// Longest life of a token, milliseconds.
const MAX_TTL_MS: u64 = 366 * 24 * 3_600_000;

/// A token for agents of a client.
pub(super) async fn agent(
    (context, actor): (&AdminContext, &Actor),
    client: String,
    uses: u64,
    ttl_ms: u64,
) -> Result<Vec<Value>, CliError> {
    let client = super::handle::client(context, actor, &client).await?;
    actor.may_client(context, &client, &[Permission::ManageTokens]).await?;
    let by = actor.clone();
    let (token, row) = make(context, TokenKind::Agent, "", uses, ttl_ms)?;
    let (id, expires) = (row.id, row.expires_ms);
    context
        .writer
        .write(move |tx| Box::pin(async move { store_agent(tx, row, (&by, &client)).await }))
        .await
        .map_err(store_error)?;
    Ok(vec![told(&token, id, expires)])
}

async fn store_agent(
    tx: &mut WriteTx,
    mut row: tokens::TokenRow,
    (by, client): (&Actor, &tenants::Client),
) -> Result<(), StoreError> {
    let client = tenants::client_by_id(tx, &client.id).await?;
    row.partner_id = Some(client.partner_id.clone());
    row.client_id = Some(client.id.clone());
    tokens::insert(tx, &row).await?;
    let made = describe(by.event("token.created", &client.partner), &row);
    tx.append(&client.partner_id, made.client(client.path())).await?;
    Ok(())
}

/// A token for a relay.
pub(super) async fn relay(
    (context, actor): (&AdminContext, &Actor),
    region: String,
    uses: u64,
    ttl_ms: u64,
) -> Result<Vec<Value>, CliError> {
    actor.may_everywhere(context, &[Permission::ManageRelays]).await?;
    if !region.is_empty() {
        names::check(&region).map_err(bad_name)?;
    }
    let (home, by) = (context.home().await.map_err(store_error)?, actor.clone());
    let (token, row) = make(context, TokenKind::Relay, &region, uses, ttl_ms)?;
    let (id, expires) = (row.id, row.expires_ms);
    context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                tokens::insert(tx, &row).await?;
                let made = Event::new("token.created", adit_ledger::Level::Significant);
                let made = by.sign(made.outcome("done"));
                tx.append(&home, describe(made, &row)).await
            })
        })
        .await
        .map_err(store_error)?;
    Ok(vec![told(&token, id, expires)])
}

fn make(
    context: &AdminContext,
    kind: TokenKind,
    region: &str,
    uses: u64,
    ttl_ms: u64,
) -> Result<(EnrollToken, tokens::TokenRow), CliError> {
    if !(1..=MAX_USES).contains(&uses) {
        return Err(CliError::usage("usage", format!("--uses: 1 to {MAX_USES} is expected")));
    }
    if !(1..=MAX_TTL_MS).contains(&ttl_ms) {
        return Err(CliError::usage("usage", "--ttl: 1ms to 366d is expected"));
    }
    let port = context.port.clone()?;
    let crypto = |_| CliError::failed("crypto_failed", "the system gives no randomness");
    let key = SigningKey::generate().map_err(crypto)?;
    let id = TokenId(random().map_err(crypto)?);
    let hosts = context.hosts.iter().map(|host| host_port(host, port)).collect();
    let token = EnrollToken { kind, id, root: context.root, seed: key.seed().clone(), hosts };
    if token.encode().len() > MAX_TOKEN_LEN {
        return Err(CliError::failed("token_too_long", "too many host names for a token")
            .hint("give fewer or shorter names in server.hosts"));
    }
    let row = tokens::TokenRow {
        id,
        kind: kind as u8,
        partner_id: None,
        client_id: None,
        region: region.to_owned(),
        key: key.public(),
        uses_left: uses,
        expires_ms: unix_ms().saturating_add(ttl_ms),
    };
    Ok((token, row))
}

fn describe(event: Event, row: &tokens::TokenRow) -> Event {
    let kind = kind(row);
    event
        .extra("token", row.id.to_string())
        .extra("kind", kind)
        .extra("uses", row.uses_left)
        .extra("expires", format_ms(row.expires_ms))
}

fn told(token: &EnrollToken, id: TokenId, expires_ms: u64) -> Value {
    json!({
        "token": token.encode().as_str(),
        "expires": format_ms(expires_ms),
        "token_id": id.to_string(),
    })
}

/// Tokens that are still good for something: of the clients whose tokens this one may make, and
/// of relays.
pub(super) async fn list(
    (context, actor): (&AdminContext, &Actor),
) -> Result<Vec<Value>, CliError> {
    let rows = tokens::list(&context.store.readers, unix_ms()).await.map_err(store_error)?;
    let sees = |object: &Object, permission| match actor {
        Actor::Local => true,
        Actor::Remote(remote) => {
            let act = Act::of(permission);
            remote.holder.decide(act, object, remote.facts()).is_allowed()
        }
    };
    let shown = rows.into_iter().filter(|(row, _)| match (&row.partner_id, &row.client_id) {
        (Some(partner), Some(client)) => {
            let object = Object::Client { partner: partner.clone(), client: client.clone() };
            sees(&object, Permission::ManageTokens)
        }
        _ => sees(&Object::Installation, Permission::ManageRelays),
    });
    Ok(shown
        .map(|(row, client)| {
            json!({
                "token_id": row.id.to_string(),
                "kind": kind(&row),
                "client": client,
                "region": (!row.region.is_empty()).then_some(row.region),
                "uses_left": row.uses_left,
                "expires": format_ms(row.expires_ms),
            })
        })
        .collect())
}

/// Makes a token worthless.
pub(super) async fn revoke(
    (context, actor): (&AdminContext, &Actor),
    token: &str,
) -> Result<Vec<Value>, CliError> {
    let id: TokenId = token.parse().map_err(|_| not_found("token"))?;
    let pool = &context.store.readers;
    let found = tokens::list(pool, 0).await.map_err(store_error)?;
    let found = found.into_iter().find(|(row, _)| row.id == id);
    let (row, _) = found
        .filter(|(row, _)| row.partner_id.as_deref().is_none_or(|id| actor.reaches(id)))
        .ok_or_else(|| not_found("token"))?;
    let client = match (&row.partner_id, &row.client_id) {
        (Some(_), Some(client)) => {
            let client = super::handle::client_of_id(context, client).await?;
            let may = actor.may_client(context, &client, &[Permission::ManageTokens]).await;
            may.map_err(|error| match error.exit {
                Exit::NotThere => not_found("token"),
                _ => error,
            })?;
            Some(client.path())
        }
        _ => {
            actor.may_everywhere(context, &[Permission::ManageRelays]).await?;
            None
        }
    };
    let home = context.home().await.map_err(store_error)?;
    let log = row.partner_id.clone().unwrap_or(home);
    let by = actor.clone();
    let done = context.writer.write(move |tx| {
        Box::pin(async move {
            if !tokens::delete(tx, id).await? {
                return Err(StoreError::Missing("token"));
            }
            let partner = tenants::partner_by_id(tx, &log).await?;
            let mut event = by
                .event("token.revoked", &partner.name)
                .extra("token", id.to_string())
                .extra("kind", kind(&row));
            event.client = client;
            tx.append(&log, event).await
        })
    });
    done.await.map_err(store_error)?;
    Ok(vec![json!({"token_id": token, "revoked": true})])
}

fn kind(row: &tokens::TokenRow) -> &'static str {
    if row.kind == TokenKind::Agent as u8 { "agent" } else { "relay" }
}
