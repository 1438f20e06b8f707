//! Forwarding: entries go to other systems in the order of their sequence, without a gap.
//!
//! ```text
//! log on disk ── batch ──► receiver ── confirmed ──► cursor on disk ── next batch
//! ```
//!
//! The log itself is the queue, so that an outage of any length costs no memory and no entry. The
//! cursor of a receiver moves only when the receiver confirmed what is before it; after a crash
//! the last batch may come again (at least once: tree and sequence number tell), never does one
//! stay away. The writer is never waited on: a receiver that stands still holds up nothing.
//!
//! Must never follow a redirect, or connect anywhere but where `mediator.toml` says.

pub(crate) mod export;
pub(crate) mod syslog;
mod tls;
pub(crate) mod webhook;

use std::{net::SocketAddr, time::Duration};

use adit_protocol::keys::random;
use adit_runtime::time::unix_ms;
use sqlx::AnyPool;
use tokio_util::sync::CancellationToken;

use crate::store::{Columns, Store, StoreError, WriteTx, Writer, audit, bigint};

/// Name of the syslog receiver's cursors.
pub(crate) const SYSLOG: &str = "syslog";
/// Name of the webhook's cursors.
pub(crate) const WEBHOOK: &str = "webhook";
/// Name of the periodic export's cursors.
pub(crate) const EXPORT: &str = "export";

/// Time for a connection with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for a batch to be delivered and confirmed.
const DELIVER_TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is looked for new entries when none came.
const LOOK: Duration = Duration::from_millis(500);
/// Waits after failures: from, to.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Entries read at once.
const PAGE: u32 = 500;

/// Why a batch was not delivered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    /// The log cannot be read or the cursor not written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No connection.
    #[error("{0}")]
    Dial(#[from] adit_net::proxy::DialError),
    /// Not the receiver, or no TLS.
    #[error("tls: {0}")]
    Tls(String),
    /// The connection broke.
    #[error("connection to the receiver: {0}")]
    Io(#[from] std::io::Error),
    /// It did not take the batch.
    #[error("the receiver answered {0}")]
    Refused(String),
    /// It ended the connection without TLS's close_notify.
    #[error(
        "the receiver closed without close_notify; rsyslog's ossl driver sends it, for its gtls \
         driver set audit.syslog_confirm = \"close\""
    )]
    Unconfirmed,
    /// It took too long.
    #[error("the receiver did not confirm in time")]
    Timeout,
    /// A file that the configuration names cannot be used.
    #[error("{0}")]
    File(String),
}

/// Entries of one log, in sequence.
pub(crate) struct Batch {
    pub(crate) tree: String,
    pub(crate) partner: String,
    pub(crate) entries: Vec<audit::EntryRow>,
    /// After the last of them, and after what retention has deleted before it could be sent.
    next_seq: u64,
}

/// Takes batches somewhere.
pub(crate) trait Receiver: Send {
    /// Its name.
    fn name(&self) -> &'static str;
    /// Bytes of lines in one batch.
    fn max_bytes(&self) -> usize;
    /// Entries in one batch.
    fn max_entries(&self) -> usize;
    /// Delivers; `Ok` only when the receiver has everything.
    fn deliver(&mut self, batch: &Batch) -> impl Future<Output = Result<(), ForwardError>> + Send;
}

/// How far a log was delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) next_seq: u64,
    /// Of the entries before, for exports that go on.
    pub(crate) frontier: Vec<u8>,
}

/// Reads a cursor; one that is not there is at the beginning.
pub(crate) async fn cursor(pool: &AnyPool, target: &str, tree: &str) -> Result<Cursor, StoreError> {
    let row =
        sqlx::query("SELECT next_seq, frontier FROM audit_cursor WHERE target = $1 AND tree = $2")
            .bind(target.to_owned())
            .bind(tree.to_owned())
            .fetch_optional(pool)
            .await?;
    match row {
        Some(row) => {
            Ok(Cursor { next_seq: row.number("next_seq")?, frontier: row.blob("frontier")? })
        }
        None => Ok(Cursor::default()),
    }
}

async fn set_cursor(
    tx: &mut WriteTx,
    target: &str,
    tree: &str,
    cursor: Cursor,
) -> Result<(), StoreError> {
    let now = bigint(tx.now_ms());
    sqlx::query(
        "INSERT INTO audit_cursor (target, tree, next_seq, frontier, updated_ms) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (target, tree) DO UPDATE SET \
         next_seq = excluded.next_seq, frontier = excluded.frontier, \
         updated_ms = excluded.updated_ms",
    )
    .bind(target.to_owned())
    .bind(tree.to_owned())
    .bind(bigint(cursor.next_seq))
    .bind(cursor.frontier)
    .bind(now)
    .execute(tx.sql())
    .await?;
    Ok(())
}

async fn save_cursor(
    writer: &Writer,
    target: &'static str,
    tree: String,
    cursor: Cursor,
) -> Result<(), StoreError> {
    writer
        .write(move |tx| Box::pin(async move { set_cursor(tx, target, &tree, cursor).await }))
        .await
}

/// How far each receiver is, for people.
pub(crate) struct Standing {
    pub(crate) target: String,
    pub(crate) partner: String,
    pub(crate) tree: String,
    pub(crate) delivered: u64,
    pub(crate) entries: u64,
    pub(crate) updated_ms: u64,
}

/// How far each receiver that ever was is.
pub(crate) async fn standings(pool: &AnyPool) -> Result<Vec<Standing>, StoreError> {
    let rows = sqlx::query(
        "SELECT c.target AS target, c.tree AS tree, c.next_seq AS next_seq, \
         c.updated_ms AS updated_ms, COALESCE(p.name, t.partner_id) AS partner, \
         (SELECT COALESCE(MAX(e.seq) + 1, 0) FROM audit_entry e WHERE e.tree = t.id) AS entries \
         FROM audit_cursor c JOIN audit_tree t ON t.id = c.tree \
         LEFT JOIN partner p ON p.id = t.partner_id ORDER BY c.target, partner, t.number",
    )
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Standing {
                target: row.text("target")?,
                partner: row.text("partner")?,
                tree: row.text("tree")?,
                delivered: row.number("next_seq")?,
                entries: row.number("entries")?,
                updated_ms: row.number("updated_ms")?,
            })
        })
        .collect()
}

/// Delivers until told to stop.
pub(crate) async fn run<R: Receiver>(
    store: Store,
    writer: Writer,
    mut receiver: R,
    stop: CancellationToken,
) {
    let mut failures = 0_u32;
    let work = async {
        loop {
            let wait = match round(&store, &writer, &mut receiver).await {
                Ok(true) => {
                    failures = 0;
                    Duration::ZERO
                }
                Ok(false) => LOOK,
                Err(error) => {
                    failures = failures.saturating_add(1);
                    let wait = backoff(failures);
                    let target = receiver.name();
                    tracing::warn!(%error, target, failures, "audit entries not forwarded");
                    wait
                }
            };
            tokio::time::sleep(wait).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// Longer after each failure, and never the same: receivers that come back are not stampeded.
fn backoff(failures: u32) -> Duration {
    let longest = BACKOFF.0.saturating_mul(1 << failures.min(10)).min(BACKOFF.1);
    let [jitter] = random::<1>().unwrap_or([128]);
    longest / 2 + longest.saturating_mul(u32::from(jitter)) / 512
}

/// One batch of each log that has something; false if there was nothing.
async fn round<R: Receiver>(
    store: &Store,
    writer: &Writer,
    receiver: &mut R,
) -> Result<bool, ForwardError> {
    let (mut any, mut failed) = (false, None);
    for (tree, partner, next, end) in pending(&store.readers, receiver.name()).await? {
        let limits = (receiver.max_entries(), receiver.max_bytes());
        let batch = collect(&store.readers, tree, partner, next, end, limits).await?;
        if !batch.entries.is_empty() {
            let sent = tokio::time::timeout(DELIVER_TIMEOUT, receiver.deliver(&batch)).await;
            if let Err(error) = sent.unwrap_or(Err(ForwardError::Timeout)) {
                // What is refused of one partner's log must not hold up the others'.
                failed = Some(error);
                continue;
            }
        }
        let cursor = Cursor { next_seq: batch.next_seq, frontier: Vec::new() };
        save_cursor(writer, receiver.name(), batch.tree, cursor).await?;
        any = true;
    }
    failed.map_or(Ok(any), Err)
}

/// Logs with entries that a receiver has not got: tree, partner, from, to.
async fn pending(
    pool: &AnyPool,
    target: &str,
) -> Result<Vec<(String, String, u64, u64)>, StoreError> {
    let rows = sqlx::query(
        "SELECT x.tree AS tree, x.partner AS partner, x.next_seq AS next_seq, x.last AS last \
         FROM (SELECT t.id AS tree, t.number AS number, COALESCE(p.name, t.partner_id) AS partner, \
         COALESCE(c.next_seq, 0) AS next_seq, \
         (SELECT MAX(e.seq) FROM audit_entry e WHERE e.tree = t.id) AS last \
         FROM audit_tree t LEFT JOIN partner p ON p.id = t.partner_id \
         LEFT JOIN audit_cursor c ON c.target = $1 AND c.tree = t.id) x \
         WHERE x.last >= x.next_seq ORDER BY x.number",
    )
    .bind(target.to_owned())
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let (next, last) = (row.number("next_seq")?, row.number("last")?);
            Ok((row.text("tree")?, row.text("partner")?, next, last.saturating_add(1)))
        })
        .collect()
}

async fn collect(
    pool: &AnyPool,
    tree: String,
    partner: String,
    next: u64,
    end: u64,
    (max_entries, max_bytes): (usize, usize),
) -> Result<Batch, StoreError> {
    let mut batch = Batch { tree, partner, entries: Vec::new(), next_seq: next };
    let (mut bytes, mut pruned) = (0, 0_u64);
    'pages: while batch.next_seq < end {
        let page = audit::entries(pool, &batch.tree, batch.next_seq, end, PAGE).await?;
        if page.is_empty() {
            break;
        }
        for row in page {
            bytes += row.line.len();
            let full = batch.entries.len() >= max_entries || bytes > max_bytes;
            if full && !batch.entries.is_empty() {
                break 'pages;
            }
            batch.next_seq = row.seq.saturating_add(1);
            if row.line.is_empty() {
                pruned += 1;
            } else {
                batch.entries.push(row);
            }
        }
    }
    if pruned > 0 {
        tracing::warn!(pruned, tree = batch.tree, "entries were deleted before they were sent");
    }
    Ok(batch)
}

/// Receivers may be on this machine and in private networks, as the machine's administrator says;
/// link-local addresses (such as those of cloud metadata), multicast and none are no receivers.
fn admits(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let local = match ip {
        std::net::IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        std::net::IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(local || ip.is_multicast() || ip.is_unspecified())
}

/// Milliseconds since 1970, in seconds.
fn unix_seconds() -> u64 {
    unix_ms() / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_differ_and_stay_bounded() {
        for failures in 1..40 {
            let wait = backoff(failures);
            assert!(wait >= BACKOFF.0 / 2 && wait <= BACKOFF.1, "{failures}: {wait:?}");
        }
        let waits: std::collections::BTreeSet<_> = (0..64).map(|_| backoff(9)).collect();
        assert!(waits.len() > 8);
    }

    #[test]
    fn metadata_services_are_no_receivers() {
        for bad in ["169.254.169.254:443", "[fe80::1]:443", "[::ffff:169.254.1.1]:1", "0.0.0.0:1"] {
            assert!(!admits(bad.parse().unwrap()), "{bad}");
        }
        for good in ["127.0.0.1:6514", "10.0.0.5:443", "[fd00::1]:443", "192.0.2.1:443"] {
            assert!(admits(good.parse().unwrap()), "{good}");
        }
    }
}
