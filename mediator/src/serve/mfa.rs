//! What a person does about second factors, from a console or on the page, and what a login
//! without one is kept from.
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

use super::{
    connection::Line,
    logins::{Origin, Use},
    run::Shared,
    second::{self, Missed},
};
use crate::{
    authz,
    config::MfaRule,
    core::types::Refusal,
    mfa::{
        self, recovery,
        totp::{self, AppClock, Code},
    },
    roles::conditions::Facts,
    store::{
        StoreError,
        accounts::{self, LoginRow, Proof},
        factors::{self, FactorRow, NewFactor},
    },
    webauthn::{RelyingParty, ceremony, ceremony::Registration},
};

/// How long ago the person may have proved itself for a change of factors, milliseconds.
pub(crate) const FRESH_MS: u64 = 10 * 60_000;
/// Bytes of a factor's name.
const MAX_NAME: usize = 64;
/// Bytes of an id or code that is looked at.
const MAX_ID: usize = 64;

/// Somebody who is logged in, wherever they sit.
pub(crate) struct Person<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) from: Origin,
    pub(crate) row: &'a LoginRow,
}

impl<'a> Person<'a> {
    fn at(line: &'a Line, row: &'a LoginRow) -> Self {
        Self { shared: &line.shared, from: line.from(), row }
    }
}

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
    let rule = row.account.mfa_rule(line.shared.logins.settings.mfa);
    let (code, text) = match row.account.factors {
        _ if rule == MfaRule::PhishingResistant => {
            (failure::WEB_LOGIN_REQUIRED, "log in on the web page with a security key")
        }
        0 => (failure::MFA_SETUP_REQUIRED, "set up a second factor first"),
        _ => (failure::MFA_REQUIRED, "log in again with the second factor"),
    };
    let who = Person::at(line, row);
    let event = who.event("login.limited").outcome("refused").end_reason(code);
    let written = record(&who, event).await;
    match written {
        Ok(()) => responder.fail(fail(code, text)),
        Err(error) => failed(responder, &error.into()),
    }
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MfaError {
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
    let who = Person::at(line, row);
    let done = match body {
        Body::WhoAmI(_) => Ok(Body::Me(me(&who))),
        Body::Reauthenticate(shown) => reauthenticate(&who, shown).await,
        Body::MfaStatus(_) => status(&who).await.map(Body::MfaState),
        Body::TotpEnroll(wish) => enroll(&who, &wish.name).await.map(Body::TotpSecret),
        Body::TotpConfirm(shown) => confirm(&who, shown).await.map(|codes| told_codes(&codes)),
        Body::RecoveryRenew(_) => renew_codes(&who).await.map(|codes| told_codes(&codes)),
        Body::FactorRemove(wish) => {
            remove(&who, &wish.factor_id).await.map(|()| Body::Done(wire::Done {}))
        }
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
    let refusal = error.refusal();
    responder.fail(fail(refusal.code, refusal.message));
}

impl MfaError {
    /// What the person is told; the rest is logged.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal.clone(),
            Self::Store(error @ StoreError::Unavailable(_)) => {
                tracing::error!(%error, "a change of second factors was not recorded");
                Refusal::new(failure::AUDIT_UNAVAILABLE, "it could not be recorded")
            }
            error => {
                tracing::error!(%error, "second factors cannot be read");
                Refusal::new(failure::INTERNAL, "second factors cannot be read")
            }
        }
    }
}

/// What a console is told of its login.
pub(super) fn me_of(line: &Line, row: &LoginRow) -> wire::Me {
    me(&Person::at(line, row))
}

fn me(who: &Person<'_>) -> wire::Me {
    let row = who.row;
    wire::Me {
        user: row.account.name.clone(),
        partner: row.account.partner.clone(),
        expires_ms: row.expires_ms,
        mfa: row.proof.mfa.clone(),
        mfa_ms: row.proof.mfa_ms.unwrap_or(0),
        authenticated_ms: row.proof.authenticated_ms,
        mfa_setup: row.is_limited(who.shared.logins.settings.mfa),
    }
}

async fn reauthenticate(who: &Person<'_>, shown: wire::Reauthenticate) -> Result<Body, MfaError> {
    let logins = &who.shared.logins;
    logins.reauthenticate(who.row, shown, who.from).await?;
    let row = logins.session(who.row.id, who.from.device, Use::Act).await?;
    Ok(Body::Me(me(&Person { row: &row, ..*who })))
}

/// The account's second factors.
pub(crate) async fn status(who: &Person<'_>) -> Result<wire::MfaState, MfaError> {
    let (pool, row) = (&who.shared.store.readers, who.row);
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
    Ok(wire::MfaState {
        factors: told.collect(),
        recovery_left: u32::try_from(left).unwrap_or(u32::MAX),
        required: row.account.requires_mfa(who.shared.logins.settings.mfa),
    })
}

/// The person must have shown lately what a login takes.
async fn fresh(who: &Person<'_>) -> Result<(), MfaError> {
    let row = who.row;
    let code = match row.account.mfa_rule(who.shared.logins.settings.mfa) {
        // Where only security keys count, whoever has one shows it before anything is changed.
        MfaRule::PhishingResistant
            if !mfa::resists_phishing(&row.proof.mfa) && has_key(who).await? =>
        {
            failure::WEB_LOGIN_REQUIRED
        }
        _ if row.is_fresh(FRESH_MS, unix_ms()) => return Ok(()),
        _ => failure::REAUTHENTICATION_REQUIRED,
    };
    record(who, who.event("mfa.refused").outcome("refused").end_reason(code)).await?;
    Err(Refusal::new(code, "show password and second factor again first").into())
}

async fn has_key(who: &Person<'_>) -> Result<bool, MfaError> {
    let there = factors::of_account(&who.shared.store.readers, &who.row.account.id).await?;
    Ok(there.iter().any(|factor| factor.confirmed && factor.kind == mfa::WEBAUTHN))
}

/// Checks a factor's name and that there is room for one more.
async fn room_for(who: &Person<'_>, name: &str) -> Result<Vec<FactorRow>, MfaError> {
    if name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Refusal::new(failure::BAD_REQUEST, "the name is too long").into());
    }
    let there = factors::of_account(&who.shared.store.readers, &who.row.account.id).await?;
    if there.iter().filter(|factor| factor.confirmed).count() >= factors::MAX_PER_ACCOUNT {
        let text = "there are too many second factors; remove one first";
        return Err(Refusal::new(failure::BAD_REQUEST, text).into());
    }
    Ok(there)
}

/// Begins to set up an authenticator app.
pub(crate) async fn enroll(who: &Person<'_>, name: &str) -> Result<wire::TotpSecret, MfaError> {
    fresh(who).await?;
    room_for(who, name).await?;
    let (shared, account) = (who.shared, &who.row.account);
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
    let event = who.of_factor("mfa.enrolment_begun", mfa::TOTP, name);
    let partner = account.partner_id.clone();
    let written = shared.writer.write(move |tx| {
        Box::pin(async move {
            factors::insert(tx, new).await?;
            tx.append(&partner, event).await.map(|_| ())
        })
    });
    written.await?;
    Ok(wire::TotpSecret { factor_id: id, url: url.as_str().to_owned() })
}

/// Codes that are shown once.
pub(crate) type Codes = Vec<zeroize::Zeroizing<String>>;

/// Confirms it with one of its codes; the recovery codes that come with the first factor.
pub(crate) async fn confirm(who: &Person<'_>, shown: wire::TotpConfirm) -> Result<Codes, MfaError> {
    // Wrong codes are not counted here: another login of the account, good for less than this
    // gives, must not try them all while a factor waits for its owner.
    fresh(who).await?;
    let (shared, row) = (who.shared, who.row);
    let account = &row.account;
    let there = factors::of_account(&shared.store.readers, &account.id).await?;
    let known = |factor: &FactorRow| factor.id == shown.factor_id && !factor.confirmed;
    let Some(factor) = there.iter().find(|factor| known(factor)) else {
        return Err(no_such_factor().into());
    };
    let now = unix_ms();
    let judged = match totp::digits(&shown.code) {
        Some(code) => second::one_time(&shared.logins.keys, factor, &code, now)?,
        None => Code::Wrong,
    };
    let clock = match judged {
        Code::Right(clock) => clock,
        judged => return Err(unconfirmed(who, factor, judged).await?.into()),
    };
    let codes = first_codes(who).await?;
    let hashes = hashes(&account.id, &codes);
    let event = who.of_factor("mfa.added", mfa::TOTP, &factor.name);
    let proof = Proof { mfa: mfa::TOTP.to_owned(), mfa_ms: Some(now), ..row.proof.clone() };
    let (login, expires_ms, id) = (row.id, row.expires_ms, factor.id.clone());
    let (account_id, partner) = (account.id.clone(), account.partner_id.clone());
    let done = shared.writer.write(move |tx| {
        Box::pin(async move {
            if !factors::confirm(tx, &account_id, &id, &clock).await? {
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
    Ok(codes)
}

/// Records a code that did not confirm a factor, and notes it if it was out of time; what is said.
async fn unconfirmed(
    who: &Person<'_>,
    factor: &FactorRow,
    judged: Code,
) -> Result<Refusal, StoreError> {
    let missed = match judged {
        Code::OutOfTime(clock) => Some(Missed { factor: factor.id.clone(), clock }),
        _ => None,
    };
    let (why, text) = match missed {
        Some(_) => (
            second::OUT_OF_TIME,
            "the code is wrong at this time; enter the next one as soon as the app shows it",
        ),
        None => {
            (second::WRONG_CODE, "the code is wrong; check the clock of the device that shows it")
        }
    };
    let event = who.of_factor("mfa.confirmation_failed", mfa::TOTP, &factor.name);
    let event = event.outcome("failed").end_reason(why);
    let (writer, partner) = (&who.shared.writer, who.row.account.partner_id.clone());
    let _room = writer.room(1).await?;
    let written = writer.write(move |tx| {
        Box::pin(async move {
            if let Some(missed) = missed {
                missed.note(tx).await?;
            }
            tx.append(&partner, event).await.map(|_| ())
        })
    });
    written.await?;
    Ok(Refusal::new(failure::CODE_WRONG, text))
}

async fn first_codes(who: &Person<'_>) -> Result<Codes, MfaError> {
    let left = factors::recovery_left(&who.shared.store.readers, &who.row.account.id).await?;
    Ok(match left {
        0 => recovery::generate().ok_or(StoreError::Random)?,
        _ => Vec::new(),
    })
}

/// Registers a security key that was just touched; recovery codes as with the first app.
pub(crate) async fn add_key(
    who: &Person<'_>,
    name: &str,
    (answer, challenge, party): (&Registration, [u8; 32], &RelyingParty),
) -> Result<Codes, MfaError> {
    fresh(who).await?;
    let there = room_for(who, name).await?;
    let (shared, row) = (who.shared, who.row);
    let (keys, account) = (&shared.logins.keys, &row.account);
    let registered = ceremony::register(answer, &challenge, party);
    let (credential, counter) = match registered {
        Ok(made) => made,
        Err(error) => {
            let event = who.of_factor("mfa.confirmation_failed", mfa::WEBAUTHN, name);
            record(who, event.outcome("failed").end_reason(error.to_string())).await?;
            let text = "the security key's answer does not fit; try again";
            return Err(Refusal::new(failure::CODE_WRONG, text).into());
        }
    };
    for factor in there.iter().filter(|factor| factor.kind == mfa::WEBAUTHN) {
        if second::credential(keys, factor)?.id == credential.id {
            let text = "this security key is registered already";
            return Err(Refusal::new(failure::NAME_TAKEN, text).into());
        }
    }
    let codes = first_codes(who).await?;
    let hashes = hashes(&account.id, &codes);
    let id = NewFactor::fresh_id()?;
    let new = NewFactor {
        secret: keys.seal(NewFactor::place(&id, &account.id), &credential.to_bytes())?,
        key_name: keys.current(),
        id: id.clone(),
        account_id: account.id.clone(),
        partner_id: account.partner_id.clone(),
        kind: mfa::WEBAUTHN,
        name: name.to_owned(),
    };
    let event = who.of_factor("mfa.added", mfa::WEBAUTHN, name);
    let mfa_ms = Some(unix_ms());
    let proof = Proof { mfa: mfa::WEBAUTHN.to_owned(), mfa_ms, ..row.proof.clone() };
    let (login, expires_ms) = (row.id, row.expires_ms);
    let (account_id, partner) = (account.id.clone(), account.partner_id.clone());
    let done = shared.writer.write(move |tx| {
        Box::pin(async move {
            factors::insert(tx, new).await?;
            let clock = AppClock { last_step: u64::from(counter), ..AppClock::default() };
            factors::confirm(tx, &account_id, &id, &clock).await?;
            if !hashes.is_empty() {
                factors::set_recovery(tx, &account_id, &hashes).await?;
            }
            // The key was shown just now.
            accounts::prove(tx, login, &proof, expires_ms).await?;
            tx.append(&partner, event).await.map(|_| ())
        })
    });
    done.await?;
    Ok(codes)
}

/// New recovery codes; those of before are void.
pub(crate) async fn renew_codes(who: &Person<'_>) -> Result<Codes, MfaError> {
    fresh(who).await?;
    let account = &who.row.account;
    if account.factors == 0 {
        let text = "set up a second factor first";
        return Err(Refusal::new(failure::MFA_SETUP_REQUIRED, text).into());
    }
    let codes = recovery::generate().ok_or(StoreError::Random)?;
    let hashes = hashes(&account.id, &codes);
    let event = who.event("mfa.recovery_renewed").outcome("done");
    let (id, partner) = (account.id.clone(), account.partner_id.clone());
    let written = who.shared.writer.write(move |tx| {
        Box::pin(async move {
            factors::set_recovery(tx, &id, &hashes).await?;
            tx.append(&partner, event).await.map(|_| ())
        })
    });
    written.await?;
    Ok(codes)
}

/// Removes a second factor.
pub(crate) async fn remove(who: &Person<'_>, factor: &str) -> Result<(), MfaError> {
    fresh(who).await?;
    let row = who.row;
    if factor.len() > MAX_ID {
        return Err(no_such_factor().into());
    }
    let (account, partner) = (row.account.id.clone(), row.account.partner_id.clone());
    let (factor, event) = (factor.to_owned(), who.event("mfa.removed").outcome("done"));
    let removed = who.shared.writer.write(move |tx| {
        Box::pin(async move {
            let Some(kind) = factors::remove(tx, &account, &factor).await? else {
                return Ok(false);
            };
            tx.append(&partner, event.extra("kind", kind)).await.map(|_| true)
        })
    });
    match removed.await? {
        true => Ok(()),
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

impl Person<'_> {
    fn of_factor(&self, name: &str, kind: &str, factor: &str) -> Event {
        self.event(name).outcome("done").extra("kind", kind).extra_personal("factor", factor)
    }

    /// An event of this person's.
    pub(crate) fn event(&self, name: &str) -> Event {
        Event::new(name, Level::Significant)
            .partner(&self.row.account.partner)
            .actor(&self.row.account.name)
            .device(self.from.device.fingerprint().to_string())
            .source(self.from.source.to_string())
            .mfa(&self.row.proof.mfa)
    }
}

/// Records an event of this person's.
pub(crate) async fn record(who: &Person<'_>, event: Event) -> Result<(), StoreError> {
    let (writer, partner) = (&who.shared.writer, who.row.account.partner_id.clone());
    let _room = writer.room(1).await?;
    let written = writer
        .write(move |tx| Box::pin(async move { tx.append(&partner, event).await.map(|_| ()) }));
    written.await
}
