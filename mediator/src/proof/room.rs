//! Room for receipts of which only one end told: bounded for each partner.
//!
//! What a partner's devices sign without counterpart takes that partner's room and nobody else's.
//! The fuller it is, the less of it an end of one session may have: one that signs without end is
//! turned away long before those that tell little. Any number of sessions is one signer's: of the
//! last eighth a person or a computer has a share, so that nobody closes it to the others. What has
//! no room is not kept; how much of each
//! end that was is counted with its session, and recorded each time the number has doubled. Must
//! never turn away what finds its counterpart: that makes room.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use adit_ledger::{Event, Level, Receipt, receipt::Role};
use adit_protocol::ids::SessionId;
use sqlx::AnyPool;

use super::receipts::{GRACE_MS, MISSED, WAITED_FOR};
use crate::store::{Columns, StoreError, WriteTx, Writer, bigint};

/// Of one partner, waiting for a counterpart: some 160 MB.
const WAITING: u64 = 200_000;
/// Of one partner, said to be missing a counterpart. Their records stay when they go.
const MISSING: u64 = 200_000;
/// From how many eighths on that are taken an end of a session may have how many.
const SHARES: [(u64, u64); 3] = [(7, 4), (6, 64), (4, 1_024)];
/// Of the last eighth, an account or a computer may have so many in [`FORGET_MS`], less what found
/// its counterpart. By account, since one person may log in with any number of devices.
const OF_SIGNER: u64 = 256;
/// So long it is remembered who had how many: what waits for longer is of sessions that are open.
const FORGET_MS: u64 = GRACE_MS;
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
    of_signer: u64,
    counted: Mutex<BTreeMap<String, Partner>>,
}

#[derive(Debug, Default)]
struct Partner {
    counted: Option<Counted>,
    signers: Signers,
}

/// Never less than there is: what is written is added, what finds its counterpart is not taken off.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    at_most: u64,
    counted_ms: u64,
}

/// Who had how many of the last eighth; no more signers than it has places.
#[derive(Debug, Default)]
struct Signers {
    since_ms: u64,
    had: BTreeMap<String, u64>,
}

impl Signers {
    fn may_have_one_more(&mut self, signer: &str, now_ms: u64, (each, all): (u64, u64)) -> bool {
        if now_ms.abs_diff(self.since_ms) >= FORGET_MS {
            *self = Self { since_ms: now_ms, had: BTreeMap::new() };
        }
        match self.had.get(signer) {
            Some(had) => *had < each,
            None => (self.had.len() as u64) < all,
        }
    }

    fn took(&mut self, signer: &str) {
        *self.had.entry(signer.to_owned()).or_default() += 1;
    }

    fn gave_back(&mut self, signer: &str) {
        let Some(had) = self.had.get_mut(signer) else { return };
        *had = had.saturating_sub(1);
        if *had == 0 {
            self.had.remove(signer);
        }
    }
}

impl Default for Room {
    fn default() -> Self {
        Self::of(WAITING)
    }
}

impl Room {
    /// For this many of each partner.
    pub(super) fn of(waiting: u64) -> Self {
        Self { waiting, of_signer: OF_SIGNER, counted: Mutex::default() }
    }

    /// With this share of the last eighth.
    #[cfg(test)]
    pub(super) fn for_each_signer(self, of_signer: u64) -> Self {
        Self { of_signer, ..self }
    }

    /// Is there room for one more of this end and signer? If so, it is taken.
    pub(super) async fn take(
        &self,
        tx: &mut WriteTx,
        (partner_id, signer): (&str, &str),
        receipt: &Receipt,
    ) -> Result<bool, StoreError> {
        let now = tx.now_ms();
        let mut known = self.of_partner(partner_id, |partner| partner.counted);
        let old = known.is_none_or(|known| now.abs_diff(known.counted_ms) >= COUNT_AGAIN_MS);
        if old && known.is_none_or(|known| self.share(known.at_most).is_some()) {
            let at_most = waiting(tx, (partner_id, None), self.waiting).await?;
            known = Some(Counted { at_most, counted_ms: now });
        }
        let mut known = known.unwrap_or_default();
        let is_last = known.at_most >= self.waiting * 7 / 8;
        let most = (self.of_signer, self.waiting / 8);
        let may = self.of_partner(partner_id, |partner| {
            if !is_last {
                partner.signers = Signers::default(); // of what they had, nothing is there
                return true;
            }
            partner.signers.may_have_one_more(signer, now, most)
        });
        let fits = match self.share(known.at_most) {
            None => true,
            Some(share) if !may || share == 0 => false,
            Some(share) => waiting(tx, (partner_id, Some(receipt)), share).await? < share,
        };
        known.at_most += u64::from(fits);
        self.of_partner(partner_id, |partner| {
            partner.counted = Some(known);
            if fits && is_last {
                partner.signers.took(signer);
            }
        });
        Ok(fits)
    }

    /// One that waited has found its counterpart.
    pub(super) fn found(&self, partner_id: &str, signer: &str) {
        self.of_partner(partner_id, |partner| partner.signers.gave_back(signer));
    }

    fn of_partner<T>(&self, partner_id: &str, act: impl FnOnce(&mut Partner) -> T) -> T {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        act(counted.entry(partner_id.to_owned()).or_default())
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
    fn what_a_signer_had_counts_until_it_found_its_counterpart_or_is_forgotten() {
        let (mut signers, most) = (Signers::default(), (2, 3));
        let mut take = |who: &str, now| {
            let may = signers.may_have_one_more(who, now, most);
            if may {
                signers.took(who);
            }
            may
        };
        let t = 10 * FORGET_MS;
        assert_eq!([1, 2, 3].map(|n| take("a", t + n)), [true, true, false]);
        assert!(take("b", t + 4) && take("c", t + 5), "of others it is no business");
        assert!(!take("d", t + 6), "there are as many as can be counted");
        signers.gave_back("a");
        signers.gave_back("nobody");
        let mut may = |who: &str, now| signers.may_have_one_more(who, now, most);
        assert!(may("a", t + 7) && !may("d", t + 8));
        signers.gave_back("b");
        assert!(signers.may_have_one_more("d", t + 9, most));
        signers.took("a");
        assert!(!signers.may_have_one_more("a", t + FORGET_MS, most));
        // Since the first look of all.
        assert!(signers.may_have_one_more("a", t + 1 + FORGET_MS, most));
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
