//! What keeps guesses few, and processors free for others.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use adit_protocol::keys::PublicKey;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::{Logins, attempt::Attempt, busy, hashing::Hashing, unavailable};
use crate::{
    core::types::Refusal,
    serve::half_open::Source,
    store::{StoreError, WriteTx, accounts, devices},
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
/// Longest wait for a processor.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);

/// Who waits for a processor.
pub(super) struct Guesses {
    hashing: Hashing,
    processors: Arc<Semaphore>,
    waiting: Semaphore,
    waiting_known: Semaphore,
    by_source: Arc<Mutex<HashMap<Source, usize>>>,
}

impl Guesses {
    /// `None` if the system gives no threads.
    pub(super) fn new(at_once: usize) -> Option<Self> {
        Some(Self {
            hashing: Hashing::start(at_once)?,
            processors: Arc::new(Semaphore::new(at_once)),
            waiting: Semaphore::new(MAX_WAITING),
            waiting_known: Semaphore::new(MAX_WAITING_KNOWN),
            by_source: Arc::default(),
        })
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

impl Logins {
    /// Whether a password is right, and until when none is accepted. Takes as long whether the
    /// user is known or not.
    pub(super) async fn password(
        &self,
        secret: Zeroizing<String>,
        hash: Option<String>,
        id: &str,
        attempt: &Attempt,
    ) -> Result<(bool, u64), Refusal> {
        let known = devices::retry_ms(&self.store.readers, id, attempt.from.device)
            .await
            .map_err(|error| unavailable(&error))?;
        let _place = match known {
            None => Some(self.guesses.place(attempt.from.source.ip()).ok_or_else(busy)?),
            Some(_) => None,
        };
        let waiting =
            if known.is_some() { &self.guesses.waiting_known } else { &self.guesses.waiting };
        let _waiting = waiting.try_acquire().map_err(|_| busy())?;
        let processor = Arc::clone(&self.guesses.processors).acquire_owned();
        let processor = tokio::time::timeout(QUEUE_TIMEOUT, processor)
            .await
            .map_err(|_| busy())?
            .map_err(|_| busy())?;
        let hash = hash.unwrap_or_else(|| self.nobody.clone());
        let right = self.guesses.hashing.verify(secret, hash, processor).await.ok_or_else(busy)?;
        let retry_ms = known.or(attempt.account.as_ref().map(|account| account.retry_ms));
        Ok((right, retry_ms.unwrap_or(0)))
    }
}

/// Is there a delay by now? Checked before a password is compared, and again in the transaction
/// that says what came of it: guesses at the same time would all pass a check made before.
pub(super) async fn is_delayed(
    tx: &mut WriteTx,
    account: &str,
    device: PublicKey,
    now: u64,
) -> Result<bool, StoreError> {
    let known = devices::retry_ms_in(tx, account, device).await?;
    let of_account = accounts::retry_ms_in(tx, account).await?;
    Ok(known.or(of_account).is_some_and(|retry_ms| now < retry_ms))
}

/// Counts against the device if the user logged in with it before, else against the account.
pub(super) async fn count_failure(
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
