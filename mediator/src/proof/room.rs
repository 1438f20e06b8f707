//! Room for receipts of which only one end told: bounded for each partner.
//!
//! What a partner's devices sign without counterpart takes that partner's room and nobody else's.
//! The fuller it is, the less of it an end of one session may have: one that signs without end is
//! turned away long before those that tell little. What has no room is not kept; how much of each
//! end that was is counted with its session, and recorded each time the number has doubled. Must
//! never turn away what finds its counterpart: that makes room.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use adit_ledger::{Event, Level, Receipt, receipt::Role};
use adit_protocol::ids::SessionId;
use sqlx::AnyPool;

use super::receipts::{MISSED, WAITED_FOR};
use crate::store::{Columns, StoreError, WriteTx, Writer, bigint};

/// Of one partner, waiting for a counterpart: some 160 MB.
const WAITING: u64 = 200_000;
/// Of one partner, said to be missing a counterpart. Their records stay when they go.
const MISSING: u64 = 200_000;
/// From how many eighths on that are taken an end of a session may have how many.
const SHARES: [(u64, u64); 3] = [(7, 4), (6, 64), (4, 1_024)];
/// What waits is counted anew after this long, milliseconds, once room seems to be short.
const COUNT_AGAIN_MS: u64 = 1_000;
/// Deleted in one transaction.
const STEP: u64 = 500;
/// Ends among which those with the most are found.
const ENDS: i64 = 1_000;

/// How much waits of each partner.
#[derive(Debug)]
pub(crate) struct Room {
    waiting: u64,
    counted: Mutex<BTreeMap<String, Counted>>,
}

/// Never less than there is: what is written is added, what finds its counterpart is not taken off.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    at_most: u64,
    counted_ms: u64,
}

impl Default for Room {
    fn default() -> Self {
        Self::of(WAITING)
    }
}

impl Room {
    /// For this many of each partner.
    pub(super) fn of(waiting: u64) -> Self {
        Self { waiting, counted: Mutex::default() }
    }

    /// Is there room for one more of this end? If so, it is taken.
    pub(super) async fn take(
        &self,
        tx: &mut WriteTx,
        partner_id: &str,
        receipt: &Receipt,
    ) -> Result<bool, StoreError> {
        let now = tx.now_ms();
        let mut known = self.known(partner_id);
        let old = known.is_none_or(|known| now.abs_diff(known.counted_ms) >= COUNT_AGAIN_MS);
        if old && known.is_none_or(|known| self.share(known.at_most).is_some()) {
            let at_most = waiting(tx, (partner_id, None), self.waiting).await?;
            known = Some(Counted { at_most, counted_ms: now });
        }
        let mut known = known.unwrap_or_default();
        let fits = match self.share(known.at_most) {
            None => true,
            Some(0) => false,
            Some(share) => waiting(tx, (partner_id, Some(receipt)), share).await? < share,
        };
        known.at_most += u64::from(fits);
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.insert(partner_id.to_owned(), known);
        Ok(fits)
    }

    fn known(&self, partner_id: &str) -> Option<Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).get(partner_id).copied()
    }

    /// How many an end of a session may have when so many are there; `None`: any number.
    fn share(&self, taken: u64) -> Option<u64> {
        if taken >= self.waiting {
            return Some(0);
        }
        let of = SHARES.into_iter().find(|(eighths, _)| taken >= self.waiting * eighths / 8);
        of.map(|(_, share)| share)
    }
}

/// Those of a partner, or of one of its sessions' ends: as many as `most`.
async fn waiting(
    tx: &mut WriteTx,
    (partner_id, end): (&str, Option<&Receipt>),
    most: u64,
) -> Result<u64, StoreError> {
    let all = "SELECT COUNT(*) AS count FROM (SELECT 1 FROM receipt \
               WHERE state = $1 AND partner_id = $2 LIMIT $3) w";
    let of_end = "SELECT COUNT(*) AS count FROM (SELECT 1 FROM receipt \
                  WHERE state = $1 AND partner_id = $2 AND session_id = $4 AND role = $5 \
                  LIMIT $3) w";
    let query = sqlx::query(if end.is_some() { of_end } else { all })
        .bind(WAITED_FOR)
        .bind(partner_id.to_owned())
        .bind(bigint(most));
    let query = match end {
        Some(receipt) => {
            let said = &receipt.statement;
            query.bind(SessionId(said.session).to_string()).bind(said.role.name())
        }
        None => query,
    };
    query.fetch_one(tx.sql()).await?.number("count")
}

/// Counts what had no room with its session. `Some`: it is recorded that so many had none.
pub(super) async fn turned_away(
    tx: &mut WriteTx,
    session: &str,
    role: Role,
    count: u64,
) -> Result<Option<u64>, StoreError> {
    let before = dropped(tx, session, role).await?;
    let after = before.saturating_add(count);
    let update = match role {
        Role::Console => "UPDATE session SET dropped_console = $2 WHERE id = $1",
        Role::Agent => "UPDATE session SET dropped_agent = $2 WHERE id = $1",
    };
    sqlx::query(update).bind(session.to_owned()).bind(bigint(after)).execute(tx.sql()).await?;
    // At 1, 2, 4, …: any number leaves few records.
    Ok((after.checked_ilog2() > before.checked_ilog2()).then_some(after))
}

/// How many of an end's receipts had no room.
pub(super) async fn dropped(
    tx: &mut WriteTx,
    session: &str,
    role: Role,
) -> Result<u64, StoreError> {
    let row = sqlx::query("SELECT dropped_console, dropped_agent FROM session WHERE id = $1")
        .bind(session.to_owned())
        .fetch_optional(tx.sql())
        .await?;
    let column = match role {
        Role::Console => "dropped_console",
        Role::Agent => "dropped_agent",
    };
    row.map_or(Ok(0), |row| row.number(column))
}

/// An end of a session, and how many of its receipts lack their counterpart for good.
struct Hoard {
    session: String,
    role: Role,
    client: String,
    count: u64,
}

/// Makes room among those that were said to be missing a counterpart: of the ends with the most,
/// until all have as much or there is room.
pub(super) async fn trim(
    (pool, writer): (&AnyPool, &Writer),
    (partner_id, partner): &(String, String),
    most: Option<u64>,
) -> Result<u64, StoreError> {
    let (most, mut trimmed) = (most.unwrap_or(MISSING), 0);
    loop {
        let excess = missing(pool, partner_id, most).await?.saturating_sub(most);
        if excess == 0 {
            return Ok(trimmed);
        }
        let hoards = hoards(pool, partner_id).await?;
        let Some(step) = largest(hoards, excess.min(STEP)) else { return Ok(trimmed) };
        let names = (partner_id.clone(), partner.clone());
        let done = writer.write(move |tx| {
            Box::pin(async move {
                let mut done = 0;
                for (hoard, count) in step {
                    done += delete(tx, &names, &hoard, count).await?;
                }
                Ok(done)
            })
        });
        match done.await? {
            0 => return Ok(trimmed),
            some => trimmed += some,
        }
    }
}

/// Counted up to what one step deletes beyond `most`.
async fn missing(pool: &AnyPool, partner_id: &str, most: u64) -> Result<u64, StoreError> {
    let row = sqlx::query(
        "SELECT COUNT(*) AS count FROM (SELECT 1 FROM receipt \
         WHERE state = $1 AND partner_id = $2 LIMIT $3) m",
    )
    .bind(MISSED)
    .bind(partner_id.to_owned())
    .bind(bigint(most.saturating_add(STEP)))
    .fetch_one(pool)
    .await?;
    row.number("count")
}

async fn hoards(pool: &AnyPool, partner_id: &str) -> Result<Vec<Hoard>, StoreError> {
    let rows = sqlx::query(
        "SELECT r.session_id AS session_id, r.role AS role, r.count AS count, \
         COALESCE(s.client, '') AS client \
         FROM (SELECT session_id, role, COUNT(*) AS count FROM receipt \
         WHERE state = $1 AND partner_id = $2 GROUP BY session_id, role \
         ORDER BY COUNT(*) DESC, session_id, role LIMIT $3) r \
         LEFT JOIN session s ON s.id = r.session_id \
         ORDER BY r.count DESC, r.session_id, r.role",
    )
    .bind(MISSED)
    .bind(partner_id.to_owned())
    .bind(ENDS)
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let role = if row.text("role")? == "agent" { Role::Agent } else { Role::Console };
            let (session, client) = (row.text("session_id")?, row.text("client")?);
            Ok(Hoard { session, role, client, count: row.number("count")? })
        })
        .collect()
}

/// What is taken of which: the largest are brought down to one height.
fn largest(hoards: Vec<Hoard>, excess: u64) -> Option<Vec<(Hoard, u64)>> {
    // With this height, how much is above it?
    let above = |height: u64| -> u64 {
        hoards.iter().map(|hoard| hoard.count.saturating_sub(height)).sum()
    };
    let (mut low, mut high) = (0, hoards.first()?.count);
    // The greatest height above which there is enough.
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if above(middle) >= excess { low = middle } else { high = middle - 1 }
    }
    let mut left = excess;
    let mut step = Vec::new();
    for hoard in hoards {
        let count = hoard.count.saturating_sub(low).min(left);
        left -= count;
        if count > 0 {
            step.push((hoard, count));
        }
    }
    Some(step)
}

/// Of one end, those of its latest channels.
async fn delete(
    tx: &mut WriteTx,
    (partner_id, partner): &(String, String),
    hoard: &Hoard,
    count: u64,
) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "DELETE FROM receipt WHERE session_id = $1 AND role = $2 AND state = $3 \
         AND partner_id = $4 AND (channel, kind) IN (SELECT channel, kind FROM receipt \
         WHERE session_id = $1 AND role = $2 AND state = $3 AND partner_id = $4 \
         ORDER BY channel DESC, kind LIMIT $5)",
    )
    .bind(hoard.session.clone())
    .bind(hoard.role.name())
    .bind(MISSED)
    .bind(partner_id.clone())
    .bind(bigint(count))
    .execute(tx.sql())
    .await?;
    let done = done.rows_affected();
    if let Some(so_far) = turned_away(tx, &hoard.session, hoard.role, done).await? {
        let event = no_room((partner, &hoard.client), (&hoard.session, hoard.role), so_far);
        tx.append(partner_id, event).await?;
    }
    Ok(done)
}

/// That so many receipts of an end of a session are not kept here. The end has them.
pub(super) fn no_room(
    (partner, client): (&str, &str),
    (session, role): (&str, Role),
    so_far: u64,
) -> Event {
    let event = Event::new("receipt.dropped", Level::Critical)
        .outcome("no_room")
        .partner(partner)
        .session_id(session)
        .extra("role", role.name())
        .extra("dropped", so_far);
    if client.is_empty() { event } else { event.client(client) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_give_way_first_and_small_ones_not_at_all() {
        let of = |counts: &[u64], excess| {
            let hoards = counts.iter().map(|count| Hoard {
                session: count.to_string(),
                role: Role::Agent,
                client: String::new(),
                count: *count,
            });
            let step = largest(hoards.collect(), excess).unwrap();
            step.iter().map(|(hoard, count)| (hoard.count, *count)).collect::<Vec<_>>()
        };
        assert_eq!(of(&[100, 3, 1], 40), [(100, 40)]);
        assert_eq!(of(&[100, 80, 3], 40), [(100, 30), (80, 10)]);
        assert_eq!(of(&[5, 5, 5], 2).iter().map(|(_, n)| n).sum::<u64>(), 2);
        assert_eq!(of(&[2, 1], 9).iter().map(|(_, n)| n).sum::<u64>(), 3);
    }

    #[test]
    fn shares_shrink_as_room_does() {
        let room = Room::of(800);
        let shares: Vec<_> = (0..=8).map(|eighths| room.share(eighths * 100)).collect();
        let expected = [None, None, None, None, Some(1_024), Some(1_024), Some(64), Some(4)];
        assert_eq!(shares[..8], expected);
        assert_eq!(room.share(800), Some(0));
    }
}
