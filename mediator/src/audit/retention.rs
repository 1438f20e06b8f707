//! Retention: contents of old entries are deleted, their hashes stay, the tree still verifies.
//!
//! Deletes in small steps between other writes, whole days at a time, and records what it is
//! about to do first. Never deletes under a legal hold or what later checks need ([`KEPT`]); not what
//! a configured receiver has not got yet, for [`UNDELIVERED_GRACE_MS`].
//!
//! A wrong clock must not delete anything: age is measured by [`ripened`], a time of its own that
//! follows the wall clock, but at most twice as fast as the machine's monotonic clock.

use std::time::{Duration, Instant};

use adit_ledger::{Event, Level};
use adit_runtime::time::{format_ms, unix_ms};
use sqlx::AnyPool;
use tokio_util::sync::CancellationToken;

use super::{
    holds::{self, Hold},
    keys::BLOCK,
};
use crate::{
    proof,
    store::{Columns, Store, StoreError, WriteTx, Writer, bigint, tenants},
};

/// A day, milliseconds.
pub(crate) const DAY_MS: u64 = 24 * 3_600_000;
/// What every log is kept for at least: shorter would be less than was promised.
pub(crate) const MIN_DAYS: u64 = 120;
/// The longest that can be asked for: 100 years.
pub(crate) const MAX_DAYS: u64 = 36_525;
/// How much longer entries are kept that a receiver has not got.
const UNDELIVERED_GRACE_MS: u64 = 30 * DAY_MS;
/// Entries deleted in one transaction.
const STEP: u64 = 128;
/// Pause after each of them: other writes come first.
const STEP_PAUSE: Duration = Duration::from_millis(20);
/// How often it is looked whether anything is due.
const TICK: Duration = Duration::from_secs(600);
/// How far a restart lets the measured time leap.
const RESTART_LEAP_MS: u64 = DAY_MS;
/// Where the measured time is kept.
const CLOCK: &str = "audit_retention_clock";
/// Due time of a block with nothing that may be deleted.
const NEVER: i64 = i64::MAX;

/// Events whose contents stay: what a tree follows, which keys were enrolled, and that contents were
/// deleted by rule. The last would otherwise go by a rule that records it, for ever.
pub(crate) const KEPT: [&str; 4] =
    ["tree.started", "enroll.succeeded", "installation.created", "audit.pruned"];

/// How long a partner's log is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) partner_id: String,
    pub(crate) partner: String,
    /// `None`: as configured.
    pub(crate) retention_ms: Option<u64>,
    /// While there are any, nothing is deleted.
    pub(crate) holds: Vec<Hold>,
}

/// Of all partners.
pub(crate) async fn policies(pool: &AnyPool) -> Result<Vec<Policy>, StoreError> {
    let holds = holds::all(pool).await?;
    let rows = sqlx::query(
        "SELECT p.id AS id, p.name AS name, a.retention_ms AS retention_ms \
         FROM partner p LEFT JOIN audit_policy a ON a.partner_id = p.id ORDER BY p.name_key",
    )
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let retention: Option<i64> = sqlx::Row::try_get(row, "retention_ms")?;
            let partner_id = row.text("id")?;
            let holds = holds.iter().filter(|hold| hold.partner_id == partner_id);
            Ok(Policy {
                holds: holds.cloned().collect(),
                partner_id,
                partner: row.text("name")?,
                retention_ms: retention.and_then(|ms| u64::try_from(ms).ok()),
            })
        })
        .collect()
}

/// Sets how long a partner's log is kept; `None`: as configured.
pub(crate) async fn set_retention(
    tx: &mut WriteTx,
    partner: &str,
    retention_ms: Option<u64>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO audit_policy (partner_id, retention_ms) VALUES ($1, $2) \
         ON CONFLICT (partner_id) DO UPDATE SET retention_ms = excluded.retention_ms",
    )
    .bind(partner.to_owned())
    .bind(retention_ms.map(bigint))
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// Keeps no less of a partner's log than `policy` does, for a database that is older than it: its
/// holds, and the longer of the two times. How much was changed; nothing for a partner that is not
/// there.
pub(crate) async fn keep_no_less(
    tx: &mut WriteTx,
    policy: &Policy,
    configured_ms: u64,
) -> Result<u64, StoreError> {
    sqlx::query(
        "INSERT INTO audit_policy (partner_id, retention_ms) SELECT id, NULL FROM partner WHERE id = $1 ON CONFLICT DO NOTHING",
    )
    .bind(policy.partner_id.clone())
    .execute(tx.sql())
    .await?;
    let longer = sqlx::query(
        "UPDATE audit_policy SET retention_ms = $1 \
         WHERE partner_id = $2 AND COALESCE(retention_ms, $3) < $4",
    )
    .bind(policy.retention_ms.map(bigint))
    .bind(policy.partner_id.clone())
    .bind(bigint(configured_ms))
    .bind(bigint(policy.retention_ms.unwrap_or(configured_ms)));
    let mut changed = longer.execute(tx.sql()).await?.rows_affected();
    for hold in &policy.holds {
        changed = changed.saturating_add(holds::keep(tx, hold).await?);
    }
    Ok(changed)
}

/// The time by which age is measured: the wall clock, if the time that really passed allows it.
pub(crate) fn ripened(stored: Option<u64>, wall_ms: u64, passed_ms: u64) -> u64 {
    match stored {
        None => wall_ms,
        Some(stored) => wall_ms.min(stored.saturating_add(passed_ms.saturating_mul(2))),
    }
}

/// Prunes from time to time until told to stop.
pub(crate) async fn run(
    store: Store,
    writer: Writer,
    retention_ms: u64,
    targets: Vec<&'static str>,
    stop: CancellationToken,
) {
    let mut passed = RESTART_LEAP_MS / 2;
    loop {
        let began = Instant::now();
        let done = tick(&store, &writer, retention_ms, &targets, passed, &stop).await;
        match done {
            Ok(0) => {}
            Ok(entries) => tracing::info!(entries, "contents of old audit entries deleted"),
            Err(error) => tracing::warn!(%error, "retention of the audit log failed"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
        passed = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    }
}

async fn tick(
    store: &Store,
    writer: &Writer,
    retention_ms: u64,
    targets: &[&'static str],
    passed: u64,
    stop: &CancellationToken,
) -> Result<u64, StoreError> {
    let wall = unix_ms();
    let stored = tenants::setting(&store.readers, CLOCK).await?;
    let now = ripened(stored.and_then(|text| text.parse().ok()), wall, passed);
    writer
        .write(move |tx| Box::pin(async move { tenants::set(tx, CLOCK, &now.to_string()).await }))
        .await?;
    if wall.saturating_sub(now) > 7 * DAY_MS {
        tracing::warn!(
            behind_days = (wall - now) / DAY_MS,
            "the clock leapt ahead: the audit log's retention follows it slowly"
        );
    }
    prune(store, writer, retention_ms, targets, now, stop).await
}

/// Deletes what is due at `now_ms`; gives the number of entries.
pub(crate) async fn prune(
    store: &Store,
    writer: &Writer,
    retention_ms: u64,
    targets: &[&'static str],
    now_ms: u64,
    stop: &CancellationToken,
) -> Result<u64, StoreError> {
    let mut pruned = 0;
    for policy in
        policies(&store.readers).await?.into_iter().filter(|policy| policy.holds.is_empty())
    {
        let keep = policy.retention_ms.unwrap_or(retention_ms).max(MIN_DAYS * DAY_MS);
        // Whole days: one pass and one record a day.
        let cutoff = now_ms.saturating_sub(keep) / DAY_MS * DAY_MS;
        // What the ends signed goes with what the log says of it, not before.
        let ends = (&store.readers, writer);
        let receipts = proof::receipts::prune(ends, &policy.partner_id, cutoff).await?;
        if receipts > 0 {
            tracing::info!(receipts, partner = policy.partner, "old receipts deleted");
        }
        let rows = sqlx::query("SELECT id, number FROM audit_tree WHERE partner_id = $1")
            .bind(policy.partner_id.clone())
            .fetch_all(&store.readers)
            .await?;
        for row in rows {
            let (tree, number) = (row.text("id")?, row.number("number")?);
            let delivered = delivered(&store.readers, &tree, targets).await?;
            let log = Log { tree, number, policy: policy.clone(), cutoff, delivered };
            pruned += log.prune(store, writer, stop).await?;
        }
    }
    Ok(pruned)
}

/// Up to where all receivers have a log; everything where there are none.
async fn delivered(
    pool: &AnyPool,
    tree: &str,
    targets: &[&'static str],
) -> Result<u64, StoreError> {
    let mut least = u64::MAX;
    for target in targets {
        least = least.min(super::forward::cursor(pool, target, tree).await?.next_seq);
    }
    Ok(least)
}

#[derive(Clone)]
struct Log {
    tree: String,
    number: u64,
    policy: Policy,
    cutoff: u64,
    delivered: u64,
}

impl Log {
    async fn prune(
        &self,
        store: &Store,
        writer: &Writer,
        stop: &CancellationToken,
    ) -> Result<u64, StoreError> {
        let blocks = self.due(&store.readers).await?;
        let (mut pruned, mut recorded) = (0, false);
        for block in blocks {
            for step in 0..BLOCK / STEP {
                if stop.is_cancelled() {
                    return Ok(pruned);
                }
                let (log, first) = (self.clone(), block * BLOCK + step * STEP);
                let say = !recorded;
                let done = writer
                    .write(move |tx| Box::pin(async move { log.step(tx, first, say).await }))
                    .await?;
                recorded |= done > 0;
                pruned += done;
                tokio::time::sleep(STEP_PAUSE).await;
            }
            let log = self.clone();
            writer.write(move |tx| Box::pin(async move { log.settle(tx, block).await })).await?;
        }
        Ok(pruned)
    }

    /// Blocks with something due.
    async fn due(&self, pool: &AnyPool) -> Result<Vec<u64>, StoreError> {
        let rows = sqlx::query(
            "SELECT block FROM audit_block WHERE log_no = $1 AND due_ms < $2 ORDER BY block",
        )
        .bind(bigint(self.number))
        .bind(bigint(self.cutoff))
        .fetch_all(pool)
        .await?;
        rows.iter().map(|row| row.number("block")).collect()
    }

    /// Deletes some contents; the record of it comes first, in the same transaction.
    async fn step(&self, tx: &mut WriteTx, first: u64, say: bool) -> Result<u64, StoreError> {
        // One may have come since the policies were read.
        if holds::is_held_in(tx, &self.policy.partner_id).await? {
            return Ok(0);
        }
        let undelivered = self.cutoff.saturating_sub(UNDELIVERED_GRACE_MS);
        let done = sqlx::query(sqlx::AssertSqlSafe(format!(
            "UPDATE audit_entry SET line = '', event = '', session_id = NULL, log_no = NULL, \
             actor_key = NULL, subject_key = NULL, computer_key = NULL, computer_id = NULL, \
             client_key = NULL, redirector = NULL WHERE tree = $1 AND seq >= $2 AND seq < $3 \
             AND (time_ms < $4 OR (time_ms < $5 AND seq < $6)) AND line <> '' \
             AND event NOT IN ({})",
            kept()
        )))
        .bind(self.tree.clone())
        .bind(bigint(first))
        .bind(bigint(first + STEP))
        .bind(bigint(undelivered))
        .bind(bigint(self.cutoff))
        .bind(bigint(self.delivered))
        .execute(tx.sql())
        .await?
        .rows_affected();
        if say && done > 0 {
            let event = Event::new("audit.pruned", Level::Significant)
                .partner(self.policy.partner.as_str())
                .actor("mediator")
                .outcome("done")
                .extra("tree", self.tree.as_str())
                .extra("from", first)
                .extra("before", format_ms(self.cutoff));
            tx.append(&self.policy.partner_id, event).await?;
        }
        Ok(done)
    }

    /// What is left in a block decides when it is looked at again.
    async fn settle(&self, tx: &mut WriteTx, block: u64) -> Result<(), StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT MIN(time_ms) AS low, MAX(time_ms) AS high, \
             MIN(CASE WHEN event IN ({}) THEN NULL ELSE time_ms END) AS due FROM audit_entry \
             WHERE tree = $1 AND seq >= $2 AND seq < $3 AND line <> ''",
            kept()
        )))
        .bind(self.tree.clone())
        .bind(bigint(block * BLOCK))
        .bind(bigint((block + 1) * BLOCK))
        .fetch_one(tx.sql())
        .await?;
        let number = |column: &str| -> Result<Option<i64>, StoreError> {
            Ok(sqlx::Row::try_get(&row, column)?)
        };
        let (low, high, due) = (number("low")?, number("high")?, number("due")?);
        match (low, high) {
            (Some(low), Some(high)) => {
                sqlx::query(
                    "UPDATE audit_block SET min_ms = $1, max_ms = $2, due_ms = $3 \
                     WHERE log_no = $4 AND block = $5",
                )
                .bind(low)
                .bind(high)
                .bind(due.unwrap_or(NEVER))
                .bind(bigint(self.number))
                .bind(bigint(block))
                .execute(tx.sql())
                .await?;
            }
            _ => {
                sqlx::query("DELETE FROM audit_block WHERE log_no = $1 AND block = $2")
                    .bind(bigint(self.number))
                    .bind(bigint(block))
                    .execute(tx.sql())
                    .await?;
            }
        }
        Ok(())
    }
}

/// Names of our own, for a statement.
fn kept() -> String {
    KEPT.map(|name| format!("'{name}'")).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_leaps_ahead_ripens_nothing_at_once() {
        let (wall, leap) = (1_000 * DAY_MS, 400 * DAY_MS);
        assert_eq!(ripened(None, wall, 0), wall);
        assert_eq!(ripened(Some(wall), wall + 10, 10), wall + 10);
        let hour = DAY_MS / 24;
        assert_eq!(ripened(Some(wall), wall + leap, hour), wall + 2 * hour);
        // Put right again, it goes on from the true time.
        assert_eq!(ripened(Some(wall + 2 * hour), wall + hour, hour), wall + hour);
        assert_eq!(ripened(Some(u64::MAX), wall, u64::MAX), wall);
    }
}
