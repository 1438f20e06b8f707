//! Who asks: `Authorization: DPoP TOKEN` with a proof by the key that the token is bound to.
//!
//! Nothing else authenticates here, no cookie above all. Whoever fails learns which form was
//! wrong, never whether a token, key or user exists. Failures are recorded, at most one a minute
//! for each source with the number of them.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use adit_ledger::{Event, Level};
use adit_protocol::code::failure;
use adit_runtime::time::unix_ms;
use axum::http::{HeaderMap, StatusCode, header, request::Parts};

use super::{
    Client, Problem, Web,
    dpop::{Checked, Expected, Refused},
    tokens::KEY_PREFIX,
};
use crate::{
    admin::actor::{Actor, Kind, Remote},
    authz::Holder,
    config::is_allowed,
    mfa,
    place::store_error,
    roles::conditions::Network,
    serve::{Source, Use},
    store::{StoreError, access::When, api},
};

/// Failures of one source are recorded this often at most.
const RECORD_EVERY: Duration = Duration::from_secs(60);
/// How long ago a person may have proved itself for what takes evidence or secrets away (R27).
const FRESH_MS: u64 = 10 * 60_000;
/// Sources whose failures are counted.
const MAX_SOURCES: usize = 4_096;
const CHALLENGE: &str = "DPoP algs=\"EdDSA\"";
const CHALLENGE_NONCE: &str = "DPoP algs=\"EdDSA\", error=\"use_dpop_nonce\"";
const CHALLENGE_PROOF: &str = "DPoP algs=\"EdDSA\", error=\"invalid_dpop_proof\"";
const CHALLENGE_TOKEN: &str = "DPoP algs=\"EdDSA\", error=\"invalid_token\"";

/// Failures that were not recorded yet, by source.
#[derive(Default)]
pub(crate) struct Failures(Mutex<HashMap<Source, (Instant, u64)>>);

impl Failures {
    /// Counts one; the number to record, if it is time for that.
    fn count(&self, source: Source) -> Option<u64> {
        let now = Instant::now();
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= MAX_SOURCES && !table.contains_key(&source) {
            table.retain(|_, (at, _)| now.duration_since(*at) < RECORD_EVERY);
            if table.len() >= MAX_SOURCES {
                return None;
            }
        }
        match table.get_mut(&source) {
            Some((at, unrecorded)) if now.duration_since(*at) < RECORD_EVERY => {
                *unrecorded += 1;
                None
            }
            Some((at, unrecorded)) => {
                *at = now;
                Some(std::mem::take(unrecorded) + 1)
            }
            None => {
                table.insert(source, (now, 0));
                Some(1)
            }
        }
    }
}

/// Why somebody is not believed: told, and recorded with the reason.
struct Unproved(Problem, &'static str);

fn unproved(challenge: &'static str, why: &'static str, text: impl Into<String>) -> Unproved {
    let problem = Problem::new(StatusCode::UNAUTHORIZED, failure::NOT_LOGGED_IN, text);
    Unproved(Problem { challenge: Some(challenge), ..problem }, why)
}

/// Authenticates a request for an operation.
pub(super) async fn authenticate(
    web: &Web,
    parts: &Parts,
    operation: &'static str,
) -> Result<Actor, Problem> {
    let client = parts.extensions.get::<Client>().ok_or_else(Problem::internal)?;
    of_allowed_network(web, client.address, operation).await?;
    match prove(web, parts, client.address, operation).await {
        Ok(remote) => {
            client.proved.note();
            Ok(Actor::Remote(Arc::new(remote)))
        }
        Err(Unproved(problem, why)) => {
            // The first try without a nonce is how clients learn it.
            if why != NONCE {
                record(web, client.address, operation, why).await?;
            }
            Err(problem)
        }
    }
}

/// Refuses whoever comes from elsewhere, also to what is open to everybody.
pub(super) async fn of_allowed_network(
    web: &Web,
    source: SocketAddr,
    operation: &'static str,
) -> Result<(), Problem> {
    if is_allowed(&web.shared.sources.web, source.ip()) {
        return Ok(());
    }
    let code = failure::SOURCE_NOT_ALLOWED;
    record(web, source, operation, code).await?;
    Err(Problem::new(StatusCode::FORBIDDEN, code, "not from this network"))
}

/// Recorded as the reason of a proof without a good nonce, which is not recorded.
const NONCE: &str = "nonce";

async fn record(
    web: &Web,
    source: SocketAddr,
    operation: &'static str,
    why: &'static str,
) -> Result<(), Problem> {
    let Some(count) = web.failures.count(Source::of(source.ip())) else { return Ok(()) };
    let event = Event::new("api.authentication_failed", Level::Significant)
        .source(source.to_string())
        .outcome("failed")
        .end_reason(why)
        .extra("operation", operation)
        .extra("count", count);
    web.admin.record(&web.shared.home, event).await.map_err(Problem::from)
}

/// The one value of a header.
fn only<'h>(headers: &'h HeaderMap, name: &header::HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

async fn prove(
    web: &Web,
    parts: &Parts,
    source: SocketAddr,
    operation: &'static str,
) -> Result<Remote, Unproved> {
    let authorization = only(&parts.headers, &header::AUTHORIZATION)
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("DPoP"));
    let Some((_, token)) = authorization else {
        let text = "Authorization: DPoP TOKEN and a DPoP proof are required";
        return Err(unproved(CHALLENGE, "no_token", text));
    };
    let Some(proof) = only(&parts.headers, &header::HeaderName::from_static("dpop")) else {
        return Err(unproved(CHALLENGE_PROOF, "no_proof", "exactly one DPoP header is required"));
    };
    let expected = Expected {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        hosts: &web.admin.hosts,
        token,
        now_s: unix_ms() / 1_000,
    };
    let proof = web.proofs.check(proof, &expected).map_err(refused)?;
    match token.strip_prefix(KEY_PREFIX) {
        Some(id) => of_key(web, id, &proof, source, operation).await,
        None => of_console(web, token, &proof, source, operation).await,
    }
}

fn refused(refused: Refused) -> Unproved {
    match refused {
        Refused::Nonce => unproved(CHALLENGE_NONCE, NONCE, refused.to_string()),
        Refused::Busy => Unproved(Problem::busy(), "busy"),
        Refused::Replayed => unproved(CHALLENGE_PROOF, "proof_replayed", refused.to_string()),
        refused => unproved(CHALLENGE_PROOF, "proof_invalid", refused.to_string()),
    }
}

fn gone() -> Unproved {
    let text = "the token is not good, or not with this key; get another";
    unproved(CHALLENGE_TOKEN, "token", text)
}

fn broken(error: StoreError) -> Unproved {
    Unproved(Problem::from(store_error(error)), "store")
}

/// Whoever asks too much waits; before the proof is remembered, of which there is room for so many.
fn take_turn(web: &Web, principal: &str) -> Result<(), Unproved> {
    web.principals
        .take(principal.to_owned())
        .map_err(|wait| Unproved(Problem::rate_limited(wait.as_secs() + 1), failure::RATE_LIMITED))
}

/// A console's token, and the identity of that console.
async fn of_console(
    web: &Web,
    token: &str,
    proof: &Checked,
    source: SocketAddr,
    operation: &'static str,
) -> Result<Remote, Unproved> {
    let held = web.shared.api_tokens.find(token).ok_or_else(gone)?;
    let device = proof.key;
    if held.device != device {
        return Err(gone());
    }
    let row = web.shared.logins.session(held.login, device, Use::Act).await;
    let row = row.map_err(|refusal| match refusal.code {
        failure::NOT_LOGGED_IN => gone(),
        _ => Unproved(refusal.into(), "login"),
    })?;
    take_turn(web, &row.account.id)?;
    web.proofs.spend(proof).map_err(refused)?;
    if row.is_limited(web.admin.accounts.mfa) {
        let text = "a second factor is required: console-tunnel mfa";
        let problem = Problem::new(StatusCode::FORBIDDEN, failure::MFA_REQUIRED, text);
        return Err(Unproved(problem, failure::MFA_REQUIRED));
    }
    let account = &row.account;
    let pool = &web.admin.store.readers;
    let holder = Holder::load(pool, &account.partner_id, &account.id, When::Now).await;
    Ok(Remote {
        kind: Kind::Console,
        holder: holder.map_err(broken)?,
        name: account.name.clone(),
        partner: account.partner.clone(),
        device,
        source,
        mfa: row.proof.mfa.clone(),
        mfa_ms: row.proof.mfa_ms,
        fresh: row.is_fresh(FRESH_MS, unix_ms()),
        operation,
        denied: Arc::default(),
    })
}

/// An API key's id, and the key pair that was registered for it.
async fn of_key(
    web: &Web,
    id: &str,
    proof: &Checked,
    source: SocketAddr,
    operation: &'static str,
) -> Result<Remote, Unproved> {
    let pool = &web.admin.store.readers;
    let row = api::by_id(pool, id).await.map_err(broken)?.ok_or_else(gone)?;
    let key = proof.key;
    if row.key != key || row.revoked || unix_ms() >= row.expires_ms {
        return Err(gone());
    }
    take_turn(web, &row.id)?;
    web.proofs.spend(proof).map_err(refused)?;
    let networks: Vec<Network> = serde_json::from_str(&row.networks)
        .map_err(|_| broken(StoreError::Corrupt("networks of an API key".into())))?;
    if !networks.is_empty() && !networks.iter().any(|network| network.contains(source.ip())) {
        let code = failure::SOURCE_NOT_ALLOWED;
        let problem = Problem::new(StatusCode::FORBIDDEN, code, "not from this network");
        return Err(Unproved(problem, code));
    }
    let holder = Holder::load_key(pool, &row.partner_id, &row.id).await;
    Ok(Remote {
        kind: Kind::Key,
        holder: holder.map_err(broken)?,
        name: format!("API key {}", row.name),
        partner: row.partner,
        device: key,
        source,
        mfa: mfa::NONE.to_owned(),
        mfa_ms: None,
        // Nobody is there who could show it again: docs/api.md says what that makes of a key.
        fresh: true,
        operation,
        denied: Arc::default(),
    })
}
