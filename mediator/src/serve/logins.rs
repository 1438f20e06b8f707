//! Logging in: passwords checked a few at a time, failures slowed down, all of it recorded.
//!
//! A console with which a user logged in before has failures and delays of its own: guesses from
//! elsewhere do not keep the user out. An unknown user costs what a known one costs and gets the
//! same answer. A second factor is asked for only after a right password, so that the question
//! tells a stranger nothing; a wrong code is answered as a wrong password is, and counted so. Only
//! the hash of a session token is kept, bound to the console's identity.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use adit_ledger::{Event, Level};
use adit_protocol::{
    code::failure,
    keys::{PublicKey, random, sha256},
    wire,
};
use adit_runtime::time::unix_ms;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::{
    half_open::Source,
    second::{self, Judged},
};
use crate::{
    config::AccountSettings,
    core::types::Refusal,
    mfa::{self, Shown},
    password,
    store::{
        Store, StoreError, WriteTx, Writer,
        accounts::{self, AccountRow, LoginId, LoginRow, Proof},
        devices,
        factors::{self, FactorRow},
        locks,
    },
    vault::wrap::WrappingKeys,
};

/// Logins that may wait for a processor.
const MAX_WAITING: usize = 64;
/// The same for consoles with which their user logged in before.
const MAX_WAITING_KNOWN: usize = 64;
/// Of one source.
const MAX_WAITING_PER_SOURCE: usize = 8;
/// Failures in a row without delay.
const FREE_FAILURES: u64 = 10;
/// Longest delay after failures, milliseconds.
const MAX_DELAY_MS: u64 = 15 * 60_000;
/// From so many failures in a row on, a day passes between attempts.
const MANY_FAILURES: u64 = 100;
const MANY_DELAY_MS: u64 = 24 * 3_600_000;
/// Uses closer together than this are not written, milliseconds; less if a login may not be idle
/// for much longer.
const TOUCH_MS: u64 = 60_000;
/// Bytes of a user name that is looked up.
const MAX_USER: usize = 256;
/// Bytes of a one-time or recovery code.
const MAX_CODE: usize = 64;
/// Longest wait for a processor.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);

/// The one answer to everything that is not right.
fn wrong() -> Refusal {
    let text = "wrong user or password; after many failures wait up to 15 minutes";
    Refusal::new(failure::LOGIN_FAILED, text)
}

fn code_asked() -> Refusal {
    let text = "a one-time code or a recovery code is required as well";
    Refusal::new(failure::MFA_REQUIRED, text)
}

fn busy() -> Refusal {
    Refusal::new(failure::BUSY, "too many logins at the moment; try again")
}

fn unavailable(error: &StoreError) -> Refusal {
    tracing::error!(%error, "login not recorded");
    Refusal::new(failure::AUDIT_UNAVAILABLE, "the login could not be recorded")
}

/// Checks passwords and session tokens.
pub(crate) struct Logins {
    store: Store,
    writer: Writer,
    /// Partner whose log tells of unknown users.
    home: String,
    processors: Semaphore,
    waiting: Semaphore,
    waiting_known: Semaphore,
    by_source: Arc<Mutex<HashMap<Source, usize>>>,
    /// Hash of a password that nobody has.
    nobody: String,
    pub(super) settings: AccountSettings,
    pub(super) keys: WrappingKeys,
}

/// Why a login is looked up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// The person wants something.
    Act,
    /// A program keeps up what the person began: that is no sign of the person, and goes on.
    Upkeep,
}

/// Who tries to prove who they are.
struct Attempt {
    account: Option<AccountRow>,
    user: String,
    device: PublicKey,
    source: std::net::SocketAddr,
    now: u64,
    /// Names of the events.
    failed: &'static str,
}

impl Logins {
    pub(super) fn new(
        (store, writer): (Store, Writer),
        home: String,
        at_once: usize,
        settings: AccountSettings,
        keys: WrappingKeys,
    ) -> Option<Self> {
        let nobody = password::hash(&password::generate()?)?;
        Some(Self {
            store,
            writer,
            home,
            processors: Semaphore::new(at_once),
            waiting: Semaphore::new(MAX_WAITING),
            waiting_known: Semaphore::new(MAX_WAITING_KNOWN),
            by_source: Arc::default(),
            nobody,
            settings,
            keys,
        })
    }

    /// Checks password and second factor and makes a session token.
    pub(super) async fn login(
        &self,
        login: wire::Login,
        device: PublicKey,
        source: std::net::SocketAddr,
    ) -> Result<(wire::LoggedIn, LoginId), Refusal> {
        let secret = Zeroizing::new(login.password);
        let code = Zeroizing::new(login.totp);
        let user = login.user;
        if user.len() > MAX_USER || secret.len() > password::MAX_BYTES || code.len() > MAX_CODE {
            return Err(wrong());
        }
        let pool = &self.store.readers;
        let read = |error: StoreError| unavailable(&error);
        let account = accounts::by_name(pool, &user).await.map_err(read)?;
        let id = account.as_ref().map_or("", |account| account.id.as_str()).to_owned();
        let factors = factors::of_account(pool, &id).await.map_err(read)?;
        let mut attempt =
            Attempt { account, user, device, source, now: unix_ms(), failed: "login.failed" };
        // The device proved who it is: this tells nothing of any user.
        if locks::device(pool, device).await.map_err(read)? {
            self.failed(&attempt, failure::DEVICE_DISABLED).await?;
            return Err(device_disabled());
        }
        let hash = attempt.account.as_ref().map(|account| account.password.clone());
        let (right, delayed_until) = self.password(secret, hash, &id, &attempt).await?;
        attempt.now = unix_ms();
        let Some(account) = attempt.account.clone() else {
            self.failed(&attempt, "unknown_user").await?;
            return Err(wrong());
        };
        if let Some(why) = why_not(&account, right, attempt.now < delayed_until) {
            self.failed(&attempt, why).await?;
            return Err(wrong());
        }
        let judged = self.judge(&account, &factors, &Shown::parse(&code), attempt.now)?;
        match judged {
            Judged::Missing => {
                self.asked(&attempt, &account).await?;
                Err(code_asked())
            }
            Judged::Wrong => {
                self.failed(&attempt, "second_factor").await?;
                Err(wrong())
            }
            judged => {
                let why = if judged == Judged::NotNeeded { "changed" } else { "code_used" };
                match self.succeeded(&attempt, account, judged).await? {
                    Some(done) => Ok(done),
                    None => {
                        self.failed(&attempt, why).await?;
                        Err(wrong())
                    }
                }
            }
        }
    }

    /// Whether a password is right, and until when none is accepted. Takes as long whether the
    /// user is known or not.
    async fn password(
        &self,
        secret: Zeroizing<String>,
        hash: Option<String>,
        id: &str,
        attempt: &Attempt,
    ) -> Result<(bool, u64), Refusal> {
        let known = devices::retry_ms(&self.store.readers, id, attempt.device)
            .await
            .map_err(|error| unavailable(&error))?;
        let _place = match known {
            None => Some(self.place(attempt.source.ip()).ok_or_else(busy)?),
            Some(_) => None,
        };
        let waiting = if known.is_some() { &self.waiting_known } else { &self.waiting };
        let _waiting = waiting.try_acquire().map_err(|_| busy())?;
        let processor = tokio::time::timeout(QUEUE_TIMEOUT, self.processors.acquire())
            .await
            .map_err(|_| busy())?
            .map_err(|_| busy())?;
        let hash = hash.unwrap_or_else(|| self.nobody.clone());
        let right = tokio::task::spawn_blocking(move || password::verify(&secret, &hash))
            .await
            .unwrap_or(false);
        drop(processor);
        let retry_ms = known.or(attempt.account.as_ref().map(|account| account.retry_ms));
        Ok((right, retry_ms.unwrap_or(0)))
    }

    fn judge(
        &self,
        account: &AccountRow,
        factors: &[FactorRow],
        shown: &Shown,
        now: u64,
    ) -> Result<Judged, Refusal> {
        second::judge(&self.keys, &account.id, factors, shown, now).map_err(|error| {
            tracing::error!(%error, "a second factor cannot be checked");
            Refusal::new(failure::INTERNAL, "the second factor cannot be checked")
        })
    }

    /// Makes the login; `None` if the code was used up meanwhile.
    async fn succeeded(
        &self,
        attempt: &Attempt,
        account: AccountRow,
        judged: Judged,
    ) -> Result<Option<(wire::LoggedIn, LoginId)>, Refusal> {
        let crypto = |_| Refusal::new(failure::INTERNAL, "the system gives no randomness");
        let secret = Zeroizing::new(random::<32>().map_err(crypto)?);
        let token = token_text(&secret);
        let id = sha256(token.as_bytes());
        let (now, device) = (attempt.now, attempt.device);
        let expires_ms = now.saturating_add(self.settings.life_ms);
        let method = judged.method();
        let mfa_ms = (method != mfa::NONE).then_some(now);
        let proof = Proof { mfa: method.to_owned(), mfa_ms, authenticated_ms: now };
        let events = proved_events("login.succeeded", attempt, &account, method);
        let row = account.clone();
        let done = self.writer.write(move |tx| {
            Box::pin(async move {
                // What changed since the password was checked is not logged in to.
                if !accounts::is_unchanged(tx, &row.id, &row.password).await?
                    || locks::device_in(tx, device, &row.partner_id).await?
                    || !judged.use_up(tx, &row.id).await?
                {
                    return Ok(None);
                }
                accounts::set_failures(tx, &row.id, 0, 0).await?;
                accounts::insert_login(tx, id, &row.id, device, expires_ms).await?;
                accounts::prove(tx, id, &proof, expires_ms).await?;
                devices::note(tx, &row.id, device).await?;
                record(tx, &row, events).await.map(Some)
            })
        });
        let Some(recovery_left) = done.await.map_err(|error| unavailable(&error))? else {
            return Ok(None);
        };
        let told = wire::LoggedIn {
            session_token: token.to_string(),
            expires_ms,
            mfa_setup: mfa_ms.is_none() && account.requires_mfa(self.settings.mfa_required),
            user: account.name,
            partner: account.partner,
            recovery_left,
        };
        Ok(Some((told, id)))
    }

    /// A right password of an account with a second factor, which was not shown yet.
    async fn asked(&self, attempt: &Attempt, account: &AccountRow) -> Result<(), Refusal> {
        let event = login_event("login.second_factor_asked", attempt.device, attempt.source)
            .partner(&account.partner)
            .actor(&account.name)
            .outcome("asked")
            .mfa(mfa::NONE);
        let partner_id = account.partner_id.clone();
        let written = self.writer.write(move |tx| {
            Box::pin(async move { tx.append(&partner_id, event).await.map(|_| ()) })
        });
        written.await.map_err(|error| unavailable(&error))
    }

    async fn failed(&self, attempt: &Attempt, why: &'static str) -> Result<(), Refusal> {
        let mut event = login_event(attempt.failed, attempt.device, attempt.source)
            .actor(&attempt.user)
            .outcome("failed")
            .end_reason(why);
        let mut partner_id = self.home.clone();
        let mut id = String::new();
        if let Some(account) = &attempt.account {
            event = event.partner(&account.partner);
            partner_id.clone_from(&account.partner_id);
            id.clone_from(&account.id);
        }
        // Attempts during a delay do not prolong it: guessing at an account must not keep its
        // owner out for ever.
        let counts = !["delayed", failure::DEVICE_DISABLED].contains(&why);
        let (device, now) = (attempt.device, attempt.now);
        let written = self.writer.write(move |tx| {
            Box::pin(async move {
                // Of an unknown user nothing is counted, in the same time.
                if counts {
                    count_failure(tx, &id, device, now).await?;
                }
                tx.append(&partner_id, event).await.map(|_| ())
            })
        });
        written.await.map_err(|error| unavailable(&error))
    }

    /// Shows password or second factor again on a login. It becomes fresh for what was shown; if
    /// that is all that a login takes, its time begins anew, too.
    pub(super) async fn reauthenticate(
        &self,
        row: &LoginRow,
        shown: wire::Reauthenticate,
        device: PublicKey,
        source: std::net::SocketAddr,
    ) -> Result<(), Refusal> {
        let secret = Zeroizing::new(shown.password);
        let code = Zeroizing::new(shown.totp);
        if secret.len() > password::MAX_BYTES || code.len() > MAX_CODE {
            return Err(wrong());
        }
        let shown = Shown::parse(&code);
        let with_password = !secret.is_empty();
        let account = &row.account;
        let pool = &self.store.readers;
        let read = |error: StoreError| unavailable(&error);
        let factors = factors::of_account(pool, &account.id).await.map_err(read)?;
        if !with_password && (shown == Shown::Nothing || account.factors == 0) {
            let text = "the password is required";
            return Err(Refusal::new(failure::REAUTHENTICATION_REQUIRED, text));
        }
        let mut attempt = Attempt {
            account: Some(account.clone()),
            user: account.name.clone(),
            device,
            source,
            now: unix_ms(),
            failed: "login.reauthentication_failed",
        };
        let (right, delayed_until) = match with_password {
            true => {
                self.password(secret, Some(account.password.clone()), &account.id, &attempt).await?
            }
            false => {
                let known = devices::retry_ms(pool, &account.id, device).await.map_err(read)?;
                (true, known.unwrap_or(account.retry_ms))
            }
        };
        attempt.now = unix_ms();
        if let Some(why) = why_not(account, right, attempt.now < delayed_until) {
            self.failed(&attempt, why).await?;
            return Err(wrong());
        }
        let judged = self.judge(account, &factors, &shown, attempt.now)?;
        if judged == Judged::Wrong {
            self.failed(&attempt, "second_factor").await?;
            return Err(wrong());
        }
        if !self.refreshed(row, &attempt, judged, with_password).await? {
            self.failed(&attempt, "code_used").await?;
            return Err(wrong());
        }
        Ok(())
    }

    async fn refreshed(
        &self,
        row: &LoginRow,
        attempt: &Attempt,
        judged: Judged,
        with_password: bool,
    ) -> Result<bool, Refusal> {
        let now = attempt.now;
        let mut proof = row.proof.clone();
        let method = judged.method();
        if method != mfa::NONE {
            (proof.mfa, proof.mfa_ms) = (method.to_owned(), Some(now));
        }
        if with_password {
            proof.authenticated_ms = now;
        }
        let complete = with_password && judged != Judged::Missing;
        let expires_ms = match complete {
            true => now.saturating_add(self.settings.life_ms),
            false => row.expires_ms,
        };
        let events = proved_events("login.reauthenticated", attempt, &row.account, &proof.mfa);
        // Only what is shown now uses up a recovery code.
        let events = if method == mfa::RECOVERY { events } else { (events.0, None) };
        let (login, account) = (row.id, row.account.clone());
        let done = self.writer.write(move |tx| {
            Box::pin(async move {
                let usable = judged == Judged::Missing || judged.use_up(tx, &account.id).await?;
                if !usable
                    || !accounts::is_unchanged(tx, &account.id, &account.password).await?
                    || !accounts::prove(tx, login, &proof, expires_ms).await?
                {
                    return Err(StoreError::Missing("login"));
                }
                record(tx, &account, events).await.map(|_| ())
            })
        });
        match done.await {
            Ok(()) => Ok(true),
            Err(StoreError::Missing(_)) => Ok(false),
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// The login of a session token, if it may be used now by this device.
    pub(crate) async fn session(
        &self,
        id: LoginId,
        device: PublicKey,
        for_what: Use,
    ) -> Result<LoginRow, Refusal> {
        let gone = || {
            let text = "not logged in, or the login is over; log in again";
            Refusal::new(failure::NOT_LOGGED_IN, text)
        };
        let row = accounts::login(&self.store.readers, id, device)
            .await
            .map_err(|error| {
                tracing::error!(%error, "cannot read logins");
                Refusal::new(failure::INTERNAL, "logins cannot be read")
            })?
            .ok_or_else(gone)?;
        let now = unix_ms();
        if row.account.disabled || now >= row.expires_ms {
            return Err(gone());
        }
        if for_what == Use::Upkeep {
            return Ok(row);
        }
        let idle = now.saturating_sub(row.used_ms);
        if idle >= self.settings.idle_ms {
            return Err(gone());
        }
        if idle >= TOUCH_MS.min(self.settings.idle_ms / 4) {
            // Only postpones the idle limit; a failure shows at the next use.
            let _ = self
                .writer
                .submit(move |tx| Box::pin(async move { accounts::touch_login(tx, id).await }));
        }
        Ok(row)
    }

    /// Ends a login.
    pub(super) async fn logout(
        &self,
        row: &LoginRow,
        device: PublicKey,
        source: std::net::SocketAddr,
    ) -> Result<(), Refusal> {
        let event = login_event("logout", device, source)
            .partner(&row.account.partner)
            .actor(&row.account.name)
            .outcome("done");
        let (id, partner_id) = (row.id, row.account.partner_id.clone());
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    accounts::delete_login(tx, id).await?;
                    tx.append(&partner_id, event).await
                })
            })
            .await
            .map_err(|error| unavailable(&error))?;
        Ok(())
    }

    fn place(&self, ip: IpAddr) -> Option<Place> {
        let source = Source::of(ip);
        let mut table = self.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        let count = table.entry(source).or_default();
        if *count >= MAX_WAITING_PER_SOURCE {
            return None;
        }
        *count += 1;
        Some(Place { table: Arc::clone(&self.by_source), source })
    }
}

/// Why somebody who shows this is not let in, as recorded; the answer is always the same.
fn why_not(account: &AccountRow, right: bool, delayed: bool) -> Option<&'static str> {
    if account.disabled {
        Some("disabled")
    } else if delayed {
        Some("delayed")
    } else {
        (!right).then_some("password")
    }
}

fn device_disabled() -> Refusal {
    Refusal::new(failure::DEVICE_DISABLED, "an administrator disabled this device")
}

/// The event of a proof, and the one of a recovery code that it used up.
fn proved_events(
    name: &'static str,
    attempt: &Attempt,
    account: &AccountRow,
    method: &str,
) -> (Event, Option<Event>) {
    let event = |name: &str| {
        login_event(name, attempt.device, attempt.source)
            .partner(&account.partner)
            .actor(&account.name)
            .mfa(method)
    };
    let recovery = (method == mfa::RECOVERY).then(|| event("mfa.recovery_used").outcome("done"));
    (event(name).outcome("granted"), recovery)
}

/// Records them; gives the number of recovery codes left if one was used, else 0.
async fn record(
    tx: &mut WriteTx,
    account: &AccountRow,
    (event, recovery): (Event, Option<Event>),
) -> Result<u32, StoreError> {
    tx.append(&account.partner_id, event).await?;
    let Some(event) = recovery else { return Ok(0) };
    let left = factors::recovery_left_in(tx, &account.id).await?;
    tx.append(&account.partner_id, event.extra("left", left)).await?;
    Ok(u32::try_from(left).unwrap_or(u32::MAX))
}

/// Counts against the device if the user logged in with it before, else against the account.
async fn count_failure(
    tx: &mut WriteTx,
    account: &str,
    device: PublicKey,
    now: u64,
) -> Result<(), StoreError> {
    let retry = |failures| now.saturating_add(delay_ms(failures));
    if let Some(failures) = devices::add_failure(tx, account, device).await? {
        return devices::set_retry(tx, account, device, retry(failures)).await;
    }
    let failures = accounts::add_failure(tx, account).await?;
    accounts::set_failures(tx, account, failures, retry(failures)).await
}

/// One source's place among those that wait.
struct Place {
    table: Arc<Mutex<HashMap<Source, usize>>>,
    source: Source,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = table.get_mut(&self.source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                table.remove(&self.source);
            }
        }
    }
}

fn login_event(name: &str, device: PublicKey, source: std::net::SocketAddr) -> Event {
    Event::new(name, Level::Significant)
        .device(device.fingerprint().to_string())
        .source(source.to_string())
}

/// Hash of a session token as text.
pub(super) fn token_id(token: &str) -> LoginId {
    sha256(token.as_bytes())
}

fn token_text(secret: &[u8; 32]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(64));
    for byte in secret {
        for nibble in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(nibble.into(), 16));
        }
    }
    text
}

/// Grows from 2 s after the free failures.
fn delay_ms(failures: u64) -> u64 {
    match failures.checked_sub(FREE_FAILURES) {
        None | Some(0) => 0,
        Some(_) if failures >= MANY_FAILURES => MANY_DELAY_MS,
        Some(over) => 1000_u64.saturating_mul(1 << over.min(20)).min(MAX_DELAY_MS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_begin_after_ten_failures_and_grow() {
        let delays: Vec<u64> = [1, 10, 11, 12, 20, 99, 100].map(delay_ms).into();
        assert_eq!(delays, [0, 0, 2000, 4000, MAX_DELAY_MS, MAX_DELAY_MS, MANY_DELAY_MS]);
    }
}
