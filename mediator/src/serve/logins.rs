//! Logging in: passwords checked a few at a time, failures slowed down, all of it recorded.
//!
//! A console with which a user logged in before has failures and delays of its own: guesses from
//! elsewhere do not keep the user out. An unknown user costs what a known one costs and gets the same answer. Only the hash of a
//! session token is kept, bound to the console's identity.

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

use super::half_open::Source;
use crate::{
    core::types::Refusal,
    password,
    store::{
        Store, StoreError, WriteTx, Writer,
        accounts::{self, AccountRow, LoginId, LoginRow},
        devices,
    },
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
/// Life of a login (NIST SP 800-63B-4 §2.2.3), milliseconds.
const LOGIN_LIFE_MS: u64 = 24 * 3_600_000;
/// A login that is not used ends after this long, milliseconds.
const LOGIN_IDLE_MS: u64 = 3_600_000;
/// Uses closer together than this are not written, milliseconds.
const TOUCH_MS: u64 = 60_000;
/// Bytes of a user name that is looked up.
const MAX_USER: usize = 256;
/// Longest wait for a processor.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);

/// The one answer to everything that is not right.
fn wrong() -> Refusal {
    let text = "wrong user or password; after many failures wait up to 15 minutes";
    Refusal::new(failure::LOGIN_FAILED, text)
}

fn busy() -> Refusal {
    Refusal::new(failure::BUSY, "too many logins at the moment; try again")
}

fn unavailable(error: &StoreError) -> Refusal {
    tracing::error!(%error, "login not recorded");
    Refusal::new(failure::AUDIT_UNAVAILABLE, "the login could not be recorded")
}

/// Checks passwords and session tokens.
pub(super) struct Logins {
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
}

impl Logins {
    pub(super) fn new(store: Store, writer: Writer, home: String, at_once: usize) -> Option<Self> {
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
        })
    }

    /// Checks a password and makes a session token.
    pub(super) async fn login(
        &self,
        login: wire::Login,
        device: PublicKey,
        source: std::net::SocketAddr,
    ) -> Result<(wire::LoggedIn, LoginId), Refusal> {
        let secret = Zeroizing::new(login.password);
        let user = login.user;
        if user.len() > MAX_USER || secret.len() > password::MAX_BYTES {
            return Err(wrong());
        }
        let account = accounts::by_name(&self.store.readers, &user)
            .await
            .map_err(|error| unavailable(&error))?;
        let id = account.as_ref().map_or("", |account| account.id.as_str());
        let known = devices::retry_ms(&self.store.readers, id, device)
            .await
            .map_err(|error| unavailable(&error))?;
        let _place = match known {
            None => Some(self.place(source.ip()).ok_or_else(busy)?),
            Some(_) => None,
        };
        let waiting = if known.is_some() { &self.waiting_known } else { &self.waiting };
        let _waiting = waiting.try_acquire().map_err(|_| busy())?;
        let processor = tokio::time::timeout(QUEUE_TIMEOUT, self.processors.acquire())
            .await
            .map_err(|_| busy())?
            .map_err(|_| busy())?;
        let hash = account.as_ref().map_or_else(|| self.nobody.clone(), |a| a.password.clone());
        let right = tokio::task::spawn_blocking(move || password::verify(&secret, &hash))
            .await
            .unwrap_or(false);
        drop(processor);
        let now = unix_ms();
        let retry_ms = known.or(account.as_ref().map(|account| account.retry_ms)).unwrap_or(0);
        match account {
            Some(account) if right && !account.disabled && now >= retry_ms => {
                self.succeeded(account, device, source, now).await
            }
            account => {
                let delayed = now < retry_ms;
                self.failed(account, user, delayed, device, source, now).await?;
                Err(wrong())
            }
        }
    }

    async fn succeeded(
        &self,
        account: AccountRow,
        device: PublicKey,
        source: std::net::SocketAddr,
        now: u64,
    ) -> Result<(wire::LoggedIn, LoginId), Refusal> {
        let crypto = |_| Refusal::new(failure::INTERNAL, "the system gives no randomness");
        let secret = Zeroizing::new(random::<32>().map_err(crypto)?);
        let token = token_text(&secret);
        let id = sha256(token.as_bytes());
        let expires_ms = now.saturating_add(LOGIN_LIFE_MS);
        let event = login_event("login.succeeded", device, source)
            .partner(&account.partner)
            .actor(&account.name)
            .outcome("granted")
            .mfa("none");
        let (row, partner_id) = (account.id.clone(), account.partner_id.clone());
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    accounts::set_failures(tx, &row, 0, 0).await?;
                    accounts::insert_login(tx, id, &row, device, expires_ms).await?;
                    devices::note(tx, &row, device).await?;
                    tx.append(&partner_id, event).await
                })
            })
            .await
            .map_err(|error| unavailable(&error))?;
        let told = wire::LoggedIn {
            session_token: token.to_string(),
            expires_ms,
            user: account.name,
            partner: account.partner,
            ..Default::default()
        };
        Ok((told, id))
    }

    async fn failed(
        &self,
        account: Option<AccountRow>,
        user: String,
        delayed: bool,
        device: PublicKey,
        source: std::net::SocketAddr,
        now: u64,
    ) -> Result<(), Refusal> {
        let mut event = login_event("login.failed", device, source).actor(user).outcome("failed");
        let mut partner_id = self.home.clone();
        let mut update = None;
        if let Some(account) = account {
            let why = if account.disabled {
                "disabled"
            } else if delayed {
                "delayed"
            } else {
                "password"
            };
            event = event.partner(&account.partner).end_reason(why);
            partner_id = account.partner_id.clone();
            // Attempts during a delay do not prolong it: guessing at an account must not keep
            // its owner out for ever.
            update = (!delayed).then_some(account.id);
        } else {
            event = event.end_reason("unknown_user");
        }
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    if let Some(id) = update {
                        count_failure(tx, &id, device, now).await?;
                    }
                    tx.append(&partner_id, event).await
                })
            })
            .await
            .map_err(|error| unavailable(&error))?;
        Ok(())
    }

    /// The login of a session token, if it may be used now by this device.
    pub(super) async fn session(
        &self,
        id: LoginId,
        device: PublicKey,
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
        let idle = now.saturating_sub(row.used_ms);
        if row.account.disabled || now >= row.expires_ms || idle >= LOGIN_IDLE_MS {
            return Err(gone());
        }
        if idle >= TOUCH_MS {
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
