//! Whose turn it is to erase.
//!
//! One erasure of a partner runs at a time, those of its clients included: who comes second, or
//! goes on with the same one, waits, and then finds out what is left to be done. Must never let two
//! of the same run, as each would record and certify it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::store::StoreError;

/// The turns of partners of which something is erased.
#[derive(Default)]
pub(crate) struct Turns(Mutex<BTreeMap<String, Arc<Semaphore>>>);

impl Turns {
    /// Waits for the turn of a partner.
    pub(super) async fn take(&self, partner: &str) -> Result<OwnedSemaphorePermit, StoreError> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever has one, or waits for one, holds on to it.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            let new = || Arc::new(Semaphore::new(1));
            Arc::clone(turns.entry(partner.to_owned()).or_insert_with(new))
        };
        let stopped = |_| StoreError::Unavailable("it stops".to_owned());
        turn.acquire_owned().await.map_err(stopped)
    }
}
