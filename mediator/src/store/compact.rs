//! Takes deleted contents out of the database's files.
//!
//! Deleted cells are overwritten at once (`secure_delete`); what pages that were rearranged still
//! hold of them goes with a rewrite of the file, and what the write-ahead log holds with its
//! truncation.

use std::{sync::Arc, time::Duration};

use sqlx::{AnyConnection, Connection, Row};
use tokio::sync::OwnedSemaphorePermit;

use super::{Store, StoreError};

/// A larger database is not rewritten while others wait for it.
const MAX_REWRITTEN: i64 = 512 * 1024 * 1024;
/// Tries to empty the write-ahead log while others read.
const TRIES: usize = 100;
/// Rest between them.
const PAUSE: Duration = Duration::from_millis(50);

/// The place of the one that may run.
pub(crate) struct Place(OwnedSemaphorePermit);

/// The place, if none runs or waits for it.
pub(crate) fn try_take(store: &Store) -> Option<Place> {
    Arc::clone(&store.compacting).try_acquire_owned().ok().map(Place)
}

/// Does it when no other one runs: each takes a second copy of the file and writes through the
/// log that the next would have to empty.
pub(crate) async fn run(store: &Store, alone: bool) -> Result<bool, StoreError> {
    let place = Arc::clone(&store.compacting).acquire_owned().await;
    let place = place.map_err(|_| StoreError::Unavailable("it stops".to_owned()))?;
    run_in(Place(place), store, alone).await
}

/// Rewrites the file, if it is not too large or nobody waits (`alone`), and empties the write-ahead
/// log; whether both were done.
pub(crate) async fn run_in(place: Place, store: &Store, alone: bool) -> Result<bool, StoreError> {
    let Place(_place) = place;
    let mut connection = store.connect().await?;
    if connection.backend_name() != "SQLite" {
        return Ok(false);
    }
    let small = alone || size(&mut connection).await? <= MAX_REWRITTEN;
    if small {
        sqlx::query("VACUUM").execute(&mut connection).await?;
    }
    let emptied = empty_log(&mut connection).await?;
    connection.close().await?;
    Ok(small && emptied)
}

async fn size(connection: &mut AnyConnection) -> Result<i64, StoreError> {
    let mut number = async |pragma: &'static str| {
        let row = sqlx::query(pragma).fetch_one(&mut *connection).await?;
        Ok::<i64, StoreError>(row.try_get(0)?)
    };
    Ok(number("PRAGMA page_count").await?.saturating_mul(number("PRAGMA page_size").await?))
}

/// Readers of an older state keep the log from being emptied: they are soon done.
async fn empty_log(connection: &mut AnyConnection) -> Result<bool, StoreError> {
    for _ in 0..TRIES {
        let row =
            sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut *connection).await?;
        let busy: i64 = row.try_get(0)?;
        if busy == 0 {
            return Ok(true);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(false)
}
