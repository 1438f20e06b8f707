//! Logging in through an identity provider, and linking an account with one.
//!
//! The provider sends the browser back from another site, and then our cookies stay away
//! (`SameSite=Strict`): the page that it comes to only sends it on to itself. Each provider comes
//! back to an address of its own; what comes back to another's is not looked at.
//!
//! Where a provider's login page is, its partner says. A link to this mediator must not lead
//! anywhere that some partner chose without a word: only the installation's own are gone to at once.

use adit_net::proxy::format_host_port;
use adit_protocol::{code::failure, keys::fill_random};
use adit_runtime::time::unix_ms;
use axum::{
    extract::{Path, Query},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    account::{limited, page},
    login::{Wish, carried, passed},
    view::Message,
    visitor::{Posted, Visitor},
};
use crate::{
    admin::Secret,
    core::types::Refusal,
    oidc::{
        Begun, Provider, RANDOM_LEN, Why, begin as sent, callback_path, encode, remote::https,
        token::Claims,
    },
    serve::mfa::{self, FRESH_MS, MfaError},
    store::{
        StoreError,
        accounts::{self, LoginRow},
        oidc, tenants,
    },
    vault::wrap::WrapError,
};

/// Bytes of anything that comes back.
const MAX_VALUE: usize = 4 * 1024;

/// What comes back (RFC 6749 §4.1.2, RFC 9207).
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Returned {
    /// The provider whose address it came to.
    at: String,
    code: String,
    state: String,
    iss: String,
    error: String,
}

fn redirect_of(visitor: &Visitor, provider: &Provider) -> String {
    format!("{}{}", visitor.party.origin, callback_path(&provider.name))
}

fn sorry(visitor: &Visitor, status: StatusCode, text: &str) -> Response {
    let page = Message::alert("That did not work", text).link("/login", "To the login page");
    visitor.page(status, &page)
}

/// `GET /login/oidc`.
pub(super) async fn begin(visitor: Visitor, Query(wish): Query<Wish>) -> Response {
    let pool = &visitor.web.shared.store.readers;
    match oidc::by_id(pool, &wish.provider).await {
        Ok(Some(provider)) => {
            send(&visitor, &provider, Why::Login { device: carried(&wish.code) }).await
        }
        Ok(None) => sorry(&visitor, StatusCode::NOT_FOUND, "There is no such identity provider."),
        Err(error) => visitor.refused(&MfaError::from(error).refusal()),
    }
}

async fn send(visitor: &Visitor, provider: &Provider, why: Why) -> Response {
    let pages = &visitor.web.shared.pages;
    let partner = match whose(visitor, provider).await {
        Ok(partner) => partner,
        Err(error) => return visitor.refused(&MfaError::from(error).refusal()),
    };
    let endpoint = match pages.remote.authorization_endpoint(provider).await {
        Ok(endpoint) => endpoint,
        Err(error) => {
            tracing::warn!(provider = %provider.name, %error, "identity provider not usable");
            let text = "The identity provider does not answer as it should. Try again later.";
            return sorry(visitor, StatusCode::BAD_GATEWAY, text);
        }
    };
    let mut random = Zeroizing::new([0; RANDOM_LEN]);
    if fill_random(&mut random[..]).is_err() {
        return sorry(visitor, StatusCode::INTERNAL_SERVER_ERROR, "Something failed here.");
    }
    let (begun, address) =
        sent(provider, (&endpoint, &redirect_of(visitor, provider)), why, &random);
    pages.flows().handle_sent(visitor.from, begun, unix_ms());
    let page = match (partner, host_of(&endpoint)) {
        (None, _) => Message::onward(&address, "You are sent to log in there."),
        (Some(partner), host) => Message::note(
            "You leave this site",
            format!(
                "{partner} lets its people log in at {host}. Go on only if you know both: whatever \
                 you type there goes to {host}, not here."
            ),
        )
        .link(&address, &format!("Go on to {host}")),
    };
    visitor.page(StatusCode::OK, &page)
}

/// The name of the partner that chose this provider, unless it is the installation's own.
async fn whose(visitor: &Visitor, provider: &Provider) -> Result<Option<String>, StoreError> {
    let shared = &visitor.web.shared;
    if provider.partner_id == shared.home {
        return Ok(None);
    }
    tenants::partner_name(&shared.store.readers, &provider.partner_id).await.map(Some)
}

/// As people compare it.
fn host_of(endpoint: &str) -> String {
    match https(endpoint) {
        Ok((_, host, 443)) => host,
        Ok((_, host, port)) => format_host_port(&host, port),
        // Such an address does not come from there.
        Err(_) => endpoint.to_owned(),
    }
}

/// `GET /login/oidc/callback/{provider}`: from another site, without cookies.
pub(super) async fn callback(
    visitor: Visitor,
    Path(at): Path<String>,
    Query(back): Query<Returned>,
) -> Response {
    let values = [&at, &back.code, &back.state, &back.iss, &back.error];
    if values.iter().any(|value| value.len() > MAX_VALUE) {
        return sorry(&visitor, StatusCode::BAD_REQUEST, "The answer cannot be read.");
    }
    let query = encode(&[
        ("at", &at),
        ("code", &back.code),
        ("state", &back.state),
        ("iss", &back.iss),
        ("error", &back.error),
    ]);
    let page = Message::onward(&format!("/login/oidc/finish?{query}"), "You are logged in soon.");
    // The browser's own cookie stayed away: none must take its place.
    visitor.page_only(StatusCode::OK, &page)
}

/// `GET /login/oidc/finish`.
pub(super) async fn finish(visitor: Visitor, Query(back): Query<Returned>) -> Response {
    let begun = visitor.web.shared.pages.flows().take_sent(visitor.from.device, unix_ms());
    let Some(begun) = begun.filter(|begun| begun.fits(&back.state)) else {
        let text = "This login was not begun in this browser, or too long ago. Begin again.";
        return sorry(&visitor, StatusCode::FORBIDDEN, text);
    };
    let text = "The identity provider did not let you in, or its answer is not good. Begin again.";
    match redeemed(&visitor, &begun, &back).await {
        Err(error) => visitor.refused(&error.refusal()),
        Ok(None) => sorry(&visitor, StatusCode::FORBIDDEN, text),
        Ok(Some((provider, claims))) => match begun.why {
            Why::Login { device } => login(&visitor, &provider, &claims, &device).await,
            Why::Link { account } => linked(&visitor, &provider, &claims, &account).await,
        },
    }
}

async fn redeemed(
    visitor: &Visitor,
    begun: &Begun,
    back: &Returned,
) -> Result<Option<(Provider, Claims)>, MfaError> {
    let shared = &visitor.web.shared;
    let Some(mut provider) = oidc::by_id(&shared.store.readers, &begun.provider).await? else {
        return Ok(None);
    };
    if tenants::name_key(&back.at) != tenants::name_key(&provider.name) {
        tracing::warn!(provider = %provider.name, "its answer came to another provider's address");
        shared.logins.failed_there(visitor.from, &provider).await?;
        return Ok(None);
    }
    if back.code.is_empty() {
        tracing::info!(provider = %provider.name, error = ?back.error, "login refused there");
        return Ok(None);
    }
    if let Some(row) = oidc::secret(&shared.store.readers, &provider.id).await? {
        let opened = shared.logins.keys.open(row.place(), &row.sealed)?;
        let text = String::from_utf8(opened.to_vec()).map_err(|_| WrapError::Damaged)?;
        provider.secret = Some(Secret::new(Zeroizing::new(text)));
    }
    let redirect = redirect_of(visitor, &provider);
    let code = (back.code.as_str(), back.iss.as_str());
    let ours = (begun.verifier.as_str(), redirect.as_str());
    let when = (begun.nonce.as_str(), unix_ms() / 1000);
    match shared.pages.remote.redeem(&provider, code, ours, when).await {
        Ok(claims) => Ok(Some((provider, claims))),
        Err(error) => {
            tracing::warn!(provider = %provider.name, %error, "login there not accepted");
            shared.logins.failed_there(visitor.from, &provider).await?;
            Ok(None)
        }
    }
}

async fn login(visitor: &Visitor, provider: &Provider, claims: &Claims, device: &str) -> Response {
    let shared = &visitor.web.shared;
    let pool = &shared.store.readers;
    let account = match linked_account(pool, provider, claims).await {
        Ok(account) => account,
        Err(error) => return visitor.refused(&MfaError::from(error).refusal()),
    };
    let Some(account) = account else {
        if let Err(refusal) = shared.logins.failed_there(visitor.from, provider).await {
            return visitor.refused(&refusal);
        }
        let text = "No account here is linked with that one. Log in with your password once, and \
             link it on your account page.";
        return sorry(visitor, StatusCode::FORBIDDEN, text);
    };
    let shown = provider.mfa.shown(claims);
    match shared.logins.page_oidc(account, shown, visitor.from).await {
        Ok(first) => passed(visitor, first, device),
        Err(refusal) => visitor.refused(&refusal),
    }
}

/// Only the link counts: what the provider says of names and addresses is not looked at.
async fn linked_account(
    pool: &sqlx::AnyPool,
    provider: &Provider,
    claims: &Claims,
) -> Result<Option<accounts::AccountRow>, StoreError> {
    let Some(id) = oidc::account(pool, &provider.id, &claims.sub).await? else { return Ok(None) };
    let account = accounts::by_id(pool, &id).await?;
    // A partner's provider never lets anybody in elsewhere.
    Ok(account.filter(|account| account.partner_id == provider.partner_id))
}

/// `POST /account/link`.
pub(super) async fn link(posted: Posted) -> Response {
    let visitor = &posted.visitor;
    let Some(row) = &visitor.row else { return visitor.to("/login") };
    if let Some(refusal) = may_link(visitor, row) {
        return page(visitor, row, String::new(), Some(&refusal)).await;
    }
    let pool = &visitor.web.shared.store.readers;
    let found = oidc::by_id(pool, posted.field("provider")).await;
    match found {
        Ok(Some(provider)) if provider.partner_id == row.account.partner_id => {
            send(visitor, &provider, Why::Link { account: row.account.id.clone() }).await
        }
        Ok(_) => sorry(visitor, StatusCode::NOT_FOUND, "There is no such identity provider."),
        Err(error) => visitor.refused(&MfaError::from(error).refusal()),
    }
}

fn may_link(visitor: &Visitor, row: &LoginRow) -> Option<Refusal> {
    let stale = || {
        let text = "show password and second factor again first";
        Refusal::new(failure::REAUTHENTICATION_REQUIRED, text)
    };
    limited(visitor, row).or_else(|| (!row.is_fresh(FRESH_MS, unix_ms())).then(stale))
}

async fn linked(visitor: &Visitor, provider: &Provider, claims: &Claims, id: &str) -> Response {
    // Still the same person, still logged in.
    let Some(row) = visitor.row.as_ref().filter(|row| row.account.id == id) else {
        return visitor.to("/login");
    };
    if let Some(refusal) = may_link(visitor, row) {
        return page(visitor, row, String::new(), Some(&refusal)).await;
    }
    let who = visitor.person(row);
    let event = who
        .event("user.linked")
        .outcome("done")
        .extra("provider", provider.name.as_str())
        .extra_personal("subject", claims.sub.as_str());
    let (provider, subject) = (provider.id.clone(), claims.sub.clone());
    let (account, partner) = (row.account.id.clone(), row.account.partner_id.clone());
    let written = visitor.web.shared.writer.write(move |tx| {
        Box::pin(async move {
            oidc::link(tx, (&provider, &subject), (&account, &partner)).await?;
            tx.append(&partner, event).await.map(|_| ())
        })
    });
    match written.await {
        Ok(()) => visitor.to("/account"),
        Err(StoreError::Taken(_)) => {
            let text = "that login is linked with an account already";
            let refusal = Refusal::new(failure::NAME_TAKEN, text);
            page(visitor, row, String::new(), Some(&refusal)).await
        }
        Err(error) => visitor.refused(&MfaError::from(error).refusal()),
    }
}

/// `POST /account/unlink`.
pub(super) async fn unlink(posted: Posted) -> Response {
    let visitor = &posted.visitor;
    let Some(row) = &visitor.row else { return visitor.to("/login") };
    if let Some(refusal) = may_link(visitor, row) {
        return page(visitor, row, String::new(), Some(&refusal)).await;
    }
    match unlinked(visitor, row, posted.field("provider")).await {
        Ok(()) => visitor.to("/account"),
        Err(error) => visitor.refused(&error.refusal()),
    }
}

async fn unlinked(visitor: &Visitor, row: &LoginRow, name: &str) -> Result<(), MfaError> {
    let shared = &visitor.web.shared;
    let Some(provider) = oidc::by_name(&shared.store.readers, name).await? else { return Ok(()) };
    let who: mfa::Person<'_> = visitor.person(row);
    let event =
        who.event("user.unlinked").outcome("done").extra("provider", provider.name.as_str());
    let (account, partner) = (row.account.id.clone(), row.account.partner_id.clone());
    let written = shared.writer.write(move |tx| {
        Box::pin(async move {
            if oidc::unlink(tx, &provider.id, &account).await? > 0 {
                tx.append(&partner, event).await?;
            }
            Ok(())
        })
    });
    Ok(written.await?)
}
