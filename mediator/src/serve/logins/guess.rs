//! What keeps guesses few, and processors free for others.

use std::{net::IpAddr, sync::Arc};

use adit_protocol::keys::PublicKey;
use zeroize::Zeroizing;

use super::{
    Logins,
    attempt::Attempt,
    busy,
    hashing::Hashing,
    turns::{Asker, Turns},
    unavailable,
};
use crate::{
    core::types::Refusal,
    http::{Begun, UnderWay},
    serve::half_open::Source,
    store::{StoreError, WriteTx, accounts, devices},
};

/// Attempts of one source that are looked at, and of all: the others are sent away before
/// anything is read for them.
const MAX_ATTEMPTS_PER_SOURCE: usize = 24;
const MAX_ATTEMPTS: usize = 512;
/// Failures in a row without delay.
const FREE_FAILURES: u64 = 10;
/// Longest delay after failures, milliseconds.
const MAX_DELAY_MS: u64 = 15 * 60_000;
/// From so many failures in a row on, a day passes between attempts.
const MANY_FAILURES: u64 = 100;
const MANY_DELAY_MS: u64 = 24 * 3_600_000;

/// What attempts share.
pub(super) struct Guesses {
    hashing: Hashing,
    turns: Turns,
    attempts: Arc<UnderWay<Source>>,
}

impl Guesses {
    /// With so many passwords compared at once, but not by more than half of the processors.
    /// `None` if the system gives no threads.
    pub(super) fn new(at_once: usize) -> Option<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let at_once = at_once.min((processors / 2).max(1));
        Some(Self {
            hashing: Hashing::start(at_once)?,
            turns: Turns::new(at_once),
            attempts: Arc::new(UnderWay::new(MAX_ATTEMPTS, [MAX_ATTEMPTS_PER_SOURCE])),
        })
    }

    /// A place for one more attempt, to be held until it is answered.
    pub(super) fn begin(&self, from: IpAddr) -> Result<Begun<Source>, Refusal> {
        self.attempts.begin([Source::of(from)]).map_err(|_| busy())
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
        let (device, source) = (attempt.from.device, attempt.from.source.ip());
        let asker = match known {
            Some(_) => Asker::Known(device),
            None => Asker::Stranger(Source::of(source)),
        };
        let turn = self.guesses.turns.wait(asker).await.ok_or_else(busy)?;
        let hash = hash.unwrap_or_else(|| self.nobody.clone());
        let hashing = &self.guesses.hashing;
        let right = hashing.verify(secret, hash, (turn, known.is_some())).await.ok_or_else(busy)?;
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
