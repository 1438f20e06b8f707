//! Enrolment tokens. The seed goes out in the token and is kept nowhere.

use adit_ledger::Event;
use adit_protocol::{
    ids::TokenId,
    keys::{SigningKey, random},
    token::{EnrollToken, MAX_TOKEN_LEN, TokenKind},
};
use adit_runtime::{
    cli::CliError,
    time::{format_ms, unix_ms},
};
use serde_json::{Value, json};

use super::handle::{AdminContext, bad_name, event};
use crate::{
    config::host_port,
    names,
    place::store_error,
    store::{StoreError, WriteTx, tenants, tokens},
};

/// Times that one token may be used.
const MAX_USES: u64 = 100_000;
/// Longest life of a token, milliseconds.
const MAX_TTL_MS: u64 = 366 * 24 * 3_600_000;

/// A token for agents of a client.
pub(super) async fn agent(
    context: &AdminContext,
    client: String,
    uses: u64,
    ttl_ms: u64,
) -> Result<Vec<Value>, CliError> {
    let (partner, name) = names::client_path(&client).map_err(bad_name)?;
    let (partner, name) = (partner.to_owned(), name.to_owned());
    let (token, row) = make(context, TokenKind::Agent, "", uses, ttl_ms)?;
    let (id, expires) = (row.id, row.expires_ms);
    context
        .writer
        .write(move |tx| Box::pin(async move { store_agent(tx, row, &partner, &name).await }))
        .await
        .map_err(store_error)?;
    Ok(vec![told(&token, id, expires)])
}

async fn store_agent(
    tx: &mut WriteTx,
    mut row: tokens::TokenRow,
    partner: &str,
    client: &str,
) -> Result<(), StoreError> {
    let client = tenants::client(tx, partner, client).await?;
    row.partner_id = Some(client.partner_id.clone());
    row.client_id = Some(client.id.clone());
    tokens::insert(tx, &row).await?;
    let made = describe(event("token.created", &client.partner), &row);
    tx.append(&client.partner_id, made.client(client.path())).await?;
    Ok(())
}

/// A token for a relay.
pub(super) async fn relay(
    context: &AdminContext,
    region: String,
    uses: u64,
    ttl_ms: u64,
) -> Result<Vec<Value>, CliError> {
    if !region.is_empty() {
        names::check(&region).map_err(bad_name)?;
    }
    let home = context.home().await.map_err(store_error)?;
    let (token, row) = make(context, TokenKind::Relay, &region, uses, ttl_ms)?;
    let (id, expires) = (row.id, row.expires_ms);
    context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                tokens::insert(tx, &row).await?;
                let made = Event::new("token.created", adit_ledger::Level::Significant)
                    .actor(super::handle::ACTOR)
                    .outcome("done");
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
    let kind = if row.kind == TokenKind::Agent as u8 { "agent" } else { "relay" };
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
