//! Whose turn it is to erase.
//!
//! One erasure of a partner runs at a time, those of its clients included: who comes second, or
//! goes on with the same one, waits, and then finds out what is left to be done. Must never let two
//! of the same run, as each would record and certify it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use adit_runtime::cli::CliError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a turn is waited for. Far less than the 30 s after which the API answers that it does not
/// know yet: who is refused here is told that nothing was begun.
const WAIT: Duration = Duration::from_secs(5);

/// The turns of partners of which something is erased.
#[derive(Default)]
pub(crate) struct Turns(Mutex<BTreeMap<String, Arc<Semaphore>>>);

impl Turns {
    /// Waits for the turn of a partner; `erasure_under_way` if it does not come in time.
    pub(super) async fn take(&self, partner: &str) -> Result<OwnedSemaphorePermit, CliError> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever has one, or waits for one, holds on to it.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            let new = || Arc::new(Semaphore::new(1));
            Arc::clone(turns.entry(partner.to_owned()).or_insert_with(new))
        };
        let Ok(Ok(turn)) = tokio::time::timeout(WAIT, turn.acquire_owned()).await else {
            let text = "something of the same partner is being erased; nothing was begun";
            return Err(CliError::failed("erasure_under_way", text)
                .hint("give the same command again when that is done"));
        };
        Ok(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_too_long_is_told_so_and_holds_nobody_up() {
        let turns = Turns::default();
        let first = turns.take("acme").await.unwrap();
        drop(turns.take("other").await.unwrap());
        let asked = tokio::time::Instant::now();
        let refused = turns.take("acme").await.unwrap_err();
        assert_eq!((refused.code, asked.elapsed()), ("erasure_under_way", WAIT));
        drop(first);
        drop(turns.take("acme").await.unwrap());
        drop(turns.take("other").await.unwrap());
        assert_eq!(turns.0.lock().unwrap().len(), 1);
    }
}
