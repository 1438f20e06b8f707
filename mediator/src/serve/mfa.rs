//! What consoles say about second factors, and what a login without one is kept from.
//!
//! A change of factors asks for a fresh proof of the person: a stolen session alone must not add
//! a factor of the thief's, nor take one away. Secrets and codes leave here once and are never
//! logged.

use adit_control::{Responder, failure as fail};
use adit_ledger::{Event, Level};
use adit_protocol::{
    code::failure,
    wire::{self, frame::Body},
};
use adit_runtime::time::unix_ms;

use super::{connection::Line, second};
use crate::{
    authz,
    core::types::Refusal,
    mfa::{self, recovery, totp},
    roles::conditions::Facts,
    store::{
        StoreError,
        accounts::{self, LoginRow, Proof},
        factors::{self, FactorRow, NewFactor},
    },
};

/// How long ago the person may have proved itself for a change of factors, milliseconds.
const FRESH_MS: u64 = 10 * 60_000;
/// Bytes of a factor's name.
const MAX_NAME: usize = 64;
/// Bytes of an id or code that is looked at.
const MAX_ID: usize = 64;

/// The circumstances of an act of this person.
pub(super) fn facts(line: &Line, row: &LoginRow) -> Facts {
    Facts { mfa_ms: row.proof.mfa_ms, ..authz::facts_now(Some(line.source.ip()), unix_ms()) }
}

/// Is this sent by a program that keeps up what the person began?
pub(super) fn is_upkeep(body: &Body) -> bool {
    matches!(
        body,
        Body::Renew(_)
            | Body::SessionReport(_)
            | Body::Signal(_)
            | Body::TicketRequest(_)
            | Body::ConsoleRefusal(_)
            // Whoever was idle must be able to say who it is.
            | Body::Reauthenticate(_)
    )
}

/// May a login do this that lacks a second factor where one is required? What goes on may go on.
pub(super) fn is_for_limited(body: &Body) -> bool {
    is_upkeep(body)
        || matches!(
            body,
            Body::WhoAmI(_)
                | Body::Logout(_)
                | Body::EndSession(_)
                | Body::MfaStatus(_)
                | Body::TotpEnroll(_)
                | Body::TotpConfirm(_)
        )
}

/// Records and refuses what a login without a second factor must not do.
pub(super) async fn refuse_limited(line: &Line, row: &LoginRow, responder: Responder) {
    let (code, text) = match row.account.factors {
        0 => (failure::MFA_SETUP_REQUIRED, "set up a second factor first"),
        _ => (failure::MFA_REQUIRED, "log in again with the second factor"),
    };
    let event = event("login.limited", line, row).outcome("refused").end_reason(code);
    let written = record(line, row, event).await;
    match written {
        Ok(()) => responder.fail(fail(code, text)),
        Err(error) => failed(responder, &error.into()),
    }
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
enum MfaError {
    #[error("{}", .0.message)]
    Refused(Refusal),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Secret(#[from] crate::vault::wrap::WrapError),
}

impl From<Refusal> for MfaError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Answers a message about second factors.
pub(super) async fn handle(line: &Line, row: &LoginRow, body: Body, responder: Responder) {
    let done = match body {
        Body::WhoAmI(_) => Ok(Body::Me(me(line, row))),
        Body::Reauthenticate(shown) => reauthenticate(line, row, shown).await,
        Body::MfaStatus(_) => status(line, row).await,
        Body::TotpEnroll(wish) => enroll(line, row, &wish.name).await,
        Body::TotpConfirm(shown) => confirm(line, row, shown).await,
        Body::RecoveryRenew(_) => renew_codes(line, row).await,
        Body::FactorRemove(wish) => remove(line, row, &wish.factor_id).await,
        _ => {
            let text = "this message does not belong here";
            Err(Refusal::new(failure::BAD_REQUEST, text).into())
        }
    };
    match done {
        Ok(body) => responder.reply(body),
        Err(error) => failed(responder, &error),
    }
}

fn failed(responder: Responder, error: &MfaError) {
    match error {
        MfaError::Refused(refusal) => responder.fail(fail(refusal.code, &refusal.message)),
        MfaError::Store(error @ StoreError::Unavailable(_)) => {
            tracing::error!(%error, "a change of second factors was not recorded");
            responder.fail(fail(failure::AUDIT_UNAVAILABLE, "it could not be recorded"));
        }
        error => {
            tracing::error!(%error, "second factors cannot be read");
            responder.fail(fail(failure::INTERNAL, "second factors cannot be read"));
        }
    }
}

fn me(line: &Line, row: &LoginRow) -> wire::Me {
    wire::Me {
        user: row.account.name.clone(),
        partner: row.account.partner.clone(),
        expires_ms: row.expires_ms,
        mfa: row.proof.mfa.clone(),
        mfa_ms: row.proof.mfa_ms.unwrap_or(0),
        authenticated_ms: row.proof.authenticated_ms,
        mfa_setup: row.is_limited(line.shared.logins.settings.mfa_required),
    }
}

async fn reauthenticate(
    line: &Line,
    row: &LoginRow,
    shown: wire::Reauthenticate,
) -> Result<Body, MfaError> {
    let logins = &line.shared.logins;
    logins.reauthenticate(row, shown, line.identity, line.source).await?;
    let row = logins.session(row.id, line.identity, super::logins::Use::Act).await?;
    Ok(Body::Me(me(line, &row)))
}

async fn status(line: &Line, row: &LoginRow) -> Result<Body, MfaError> {
    let pool = &line.shared.store.readers;
    let factors = factors::of_account(pool, &row.account.id).await?;
    let left = factors::recovery_left(pool, &row.account.id).await?;
    let told = factors.into_iter().map(|factor| wire::Factor {
        factor_id: factor.id,
        kind: factor.kind,
        name: factor.name,
        confirmed: factor.confirmed,
        created_ms: factor.created_ms,
        used_ms: factor.used_ms,
    });
    Ok(Body::MfaState(wire::MfaState {
        factors: told.collect(),
        recovery_left: u32::try_from(left).unwrap_or(u32::MAX),
        required: row.account.requires_mfa(line.shared.logins.settings.mfa_required),
    }))
}

/// The person must have shown lately what a login takes.
async fn fresh(line: &Line, row: &LoginRow) -> Result<(), MfaError> {
    if row.is_fresh(FRESH_MS, unix_ms()) {
        return Ok(());
    }
    let code = failure::REAUTHENTICATION_REQUIRED;
    record(line, row, event("mfa.refused", line, row).outcome("refused").end_reason(code)).await?;
    Err(Refusal::new(code, "show password and second factor again first").into())
}

async fn enroll(line: &Line, row: &LoginRow, name: &str) -> Result<Body, MfaError> {
    fresh(line, row).await?;
    if name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Refusal::new(failure::BAD_REQUEST, "the name is too long").into());
    }
    let (shared, account) = (&line.shared, &row.account);
    let there = factors::of_account(&shared.store.readers, &account.id).await?;
    if there.iter().filter(|factor| factor.confirmed).count() >= factors::MAX_PER_ACCOUNT {
        let text = "there are too many second factors; remove one first";
        return Err(Refusal::new(failure::BAD_REQUEST, text).into());
    }
    let secret = totp::TotpSecret::generate().ok_or(StoreError::Random)?;
    let url = secret.url(&account.name, &account.partner).ok_or(StoreError::Random)?;
    let id = NewFactor::fresh_id()?;
    let keys = &shared.logins.keys;
    let new = NewFactor {
        secret: keys.seal(NewFactor::place(&id, &account.id), secret.bytes())?,
        key_name: keys.current(),
        id: id.clone(),
        account_id: account.id.clone(),
        partner_id: account.partner_id.clone(),
        kind: mfa::TOTP,
        name: name.to_owned(),
    };
    let event = of_factor("mfa.enrolment_begun", line, row, mfa::TOTP, name);
    let partner = account.partner_id.clone();
    let written = shared.writer.write(move |tx| {
        Box::pin(async move {
            factors::insert(tx, new).await?;
            tx.append(&partner, event).await.map(|_| ())
        })
    });
    written.await?;
    Ok(Body::TotpSecret(wire::TotpSecret { factor_id: id, url: url.as_str().to_owned() }))
}

async fn confirm(line: &Line, row: &LoginRow, shown: wire::TotpConfirm) -> Result<Body, MfaError> {
    // Wrong codes are not counted here: another login of the account, good for less than this
    // gives, must not try them all while a factor waits for its owner.
    fresh(line, row).await?;
    let (shared, account) = (&line.shared, &row.account);
    let there = factors::of_account(&shared.store.readers, &account.id).await?;
    let known = |factor: &FactorRow| factor.id == shown.factor_id && !factor.confirmed;
    let Some(factor) = there.iter().find(|factor| known(factor)) else {
        return Err(no_such_factor().into());
    };
    let now = unix_ms();
    let step = match totp::digits(&shown.code) {
        Some(code) => second::step(&shared.logins.keys, factor, &code, now)?,
        None => None,
    };
    let Some(step) = step else {
        let event = of_factor("mfa.confirmation_failed", line, row, mfa::TOTP, &factor.name);
        record(line, row, event.outcome("failed")).await?;
        let text = "the code is wrong; check the clock of the device that shows it";
        return Err(Refusal::new(failure::CODE_WRONG, text).into());
    };
    let codes = match factors::recovery_left(&shared.store.readers, &account.id).await? {
        0 => recovery::generate().ok_or(StoreError::Random)?,
        _ => Vec::new(),
    };
    let hashes = hashes(&account.id, &codes);
    let event = of_factor("mfa.added", line, row, mfa::TOTP, &factor.name);
    let proof = Proof { mfa: mfa::TOTP.to_owned(), mfa_ms: Some(now), ..row.proof.clone() };
    let (login, expires_ms, id) = (row.id, row.expires_ms, factor.id.clone());
    let (account_id, partner) = (account.id.clone(), account.partner_id.clone());
    let done = shared.writer.write(move |tx| {
        Box::pin(async move {
            if !factors::confirm(tx, &account_id, &id, step).await? {
                return Ok(false);
            }
            if !hashes.is_empty() {
                factors::set_recovery(tx, &account_id, &hashes).await?;
            }
            // The code just shown is a second factor shown.
            accounts::prove(tx, login, &proof, expires_ms).await?;
            tx.append(&partner, event).await.map(|_| true)
        })
    });
    if !done.await? {
        return Err(no_such_factor().into());
    }
    Ok(told_codes(&codes))
}

async fn renew_codes(line: &Line, row: &LoginRow) -> Result<Body, MfaError> {
    fresh(line, row).await?;
    let account = &row.account;
    if account.factors == 0 {
        let text = "set up a second factor first";
        return Err(Refusal::new(failure::MFA_SETUP_REQUIRED, text).into());
    }
    let codes = recovery::generate().ok_or(StoreError::Random)?;
    let hashes = hashes(&account.id, &codes);
    let event = event("mfa.recovery_renewed", line, row).outcome("done");
    let (id, partner) = (account.id.clone(), account.partner_id.clone());
    let written = line.shared.writer.write(move |tx| {
        Box::pin(async move {
            factors::set_recovery(tx, &id, &hashes).await?;
            tx.append(&partner, event).await.map(|_| ())
        })
    });
    written.await?;
    Ok(told_codes(&codes))
}

async fn remove(line: &Line, row: &LoginRow, factor: &str) -> Result<Body, MfaError> {
    fresh(line, row).await?;
    if factor.len() > MAX_ID {
        return Err(no_such_factor().into());
    }
    let (account, partner) = (row.account.id.clone(), row.account.partner_id.clone());
    let (factor, event) = (factor.to_owned(), event("mfa.removed", line, row).outcome("done"));
    let removed = line.shared.writer.write(move |tx| {
        Box::pin(async move {
            let Some(kind) = factors::remove(tx, &account, &factor).await? else {
                return Ok(false);
            };
            tx.append(&partner, event.extra("kind", kind)).await.map(|_| true)
        })
    });
    match removed.await? {
        true => Ok(Body::Done(wire::Done {})),
        false => Err(no_such_factor().into()),
    }
}

fn no_such_factor() -> Refusal {
    Refusal::new(failure::NO_SUCH_FACTOR, "there is no such second factor to be changed")
}

fn hashes(account: &str, codes: &[zeroize::Zeroizing<String>]) -> Vec<[u8; 32]> {
    let one = |code: &zeroize::Zeroizing<String>| recovery::normalise(code);
    codes.iter().filter_map(one).map(|code| recovery::hash(account, &code)).collect()
}

fn told_codes(codes: &[zeroize::Zeroizing<String>]) -> Body {
    let codes = codes.iter().map(|code| code.as_str().to_owned()).collect();
    Body::RecoveryCodes(wire::RecoveryCodes { codes })
}

fn of_factor(name: &str, line: &Line, row: &LoginRow, kind: &str, factor: &str) -> Event {
    event(name, line, row).outcome("done").extra("kind", kind).extra_personal("factor", factor)
}

fn event(name: &str, line: &Line, row: &LoginRow) -> Event {
    Event::new(name, Level::Significant)
        .partner(&row.account.partner)
        .actor(&row.account.name)
        .device(line.identity.fingerprint().to_string())
        .source(line.source.to_string())
        .mfa(&row.proof.mfa)
}

async fn record(line: &Line, row: &LoginRow, event: Event) -> Result<(), StoreError> {
    let partner = row.account.partner_id.clone();
    let _room = line.shared.writer.room(1).await?;
    let written = line
        .shared
        .writer
        .write(move |tx| Box::pin(async move { tx.append(&partner, event).await.map(|_| ()) }));
    written.await
}
