//! Receipts whose counterpart is overdue become events of the log.
//!
//! No end can keep another's evidence waiting: partners take turns, a partner's sessions are gone
//! through in the order of their ids, and an end of which nothing was told yet does not wait for
//! those that have been told of. Consoles choose ids: what became overdue since a walk began waits
//! for the next, so that each ends. An end that signs without end has one place, as every other
//! has. Must never hold the writer for long: each turn is a transaction.

use std::collections::{BTreeMap, BTreeSet};

use adit_ledger::{Level, Receipt};
use adit_protocol::ids::SessionId;
use sqlx::AnyPool;

use super::{
    receipts::{COMPARED, GRACE_MS, MISSED, WAITED_FOR, event, settle},
    room,
};
use crate::store::{Columns, StoreError, WriteTx, Writer, bigint};

/// Turns of a partner in one sweep: more sessions than a console can open in the meantime.
const TURNS: usize = 16;
/// The same for ends of which something was told already.
const TURNS_OF_TOLD: usize = 8;
/// Ends and receipts looked at in one turn, and receipts of one end.
const ENDS_OF_TURN: usize = 100;
const ROWS_OF_TURN: i64 = 800;
const ROWS_OF_END: i64 = 256;
/// Records of one end in one turn.
const RECORDS_OF_END: usize = 4;
/// Sessions walked over at once, and how often in one turn. They wait, but not for long enough.
const PAGE: i64 = 500;
const PAGES: usize = 40;
/// Bytes of a list in a record, of the 1,024 that fit when escaped.
const MAX_LIST: usize = 1000;

/// Where each partner's turn goes on, for ends that nothing was told of and for the others.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    walks: BTreeMap<(String, bool), Walk>,
    /// Receipts of a partner that stay although they lack their counterpart; `None`: as many as
    /// there is room for.
    missing: Option<u64>,
}

/// Once through a partner's sessions.
#[derive(Debug, Default)]
struct Walk {
    /// The session after which it goes on; empty: it begins anew.
    after: String,
    /// It looks at what was overdue when it began.
    due: i64,
}

/// An end of a session that told of what the other did not.
#[derive(Debug, Clone)]
struct Overdue {
    session: String,
    role: String,
    client: String,
}

/// Of what a session's end told and the other did not: as much as one record names.
struct Missing {
    first: Receipt,
    receipts: u64,
    targets: BTreeSet<String>,
    targets_len: usize,
    /// The ranges that are complete, and the last one.
    channels: String,
    range: (u64, u64),
}

/// What came of a turn.
#[derive(Debug, Default)]
struct Turn {
    missing: u64,
    /// The last session of which all ends were looked at.
    reached: Option<String>,
}

impl Sweep {
    /// With room for so many.
    #[cfg(test)]
    pub(super) fn with_room_for(missing: u64) -> Self {
        Self { missing: Some(missing), ..Self::default() }
    }

    /// Records what is overdue, as far as it is its turn; gives how many receipts are missing.
    pub(crate) async fn sweep(
        &mut self,
        (pool, writer): (&AnyPool, &Writer),
        now_ms: u64,
    ) -> Result<u64, StoreError> {
        let due = bigint(now_ms.saturating_sub(GRACE_MS));
        let partners = waiting(pool).await?;
        self.walks.retain(|(partner, _), _| partners.contains_key(partner));
        let names = partners.clone();
        let mut turns: Vec<_> = partners
            .into_iter()
            .flat_map(|partner| [(partner.clone(), false), (partner, true)])
            .collect();
        let (mut missing, mut failed) = (0, None);
        for round in 1..=TURNS {
            let mut again = Vec::new();
            for (partner, told) in turns {
                match self.turn((pool, writer), &partner, told, due).await {
                    Ok(Some(found)) => {
                        missing += found;
                        if !told || round < TURNS_OF_TOLD {
                            again.push((partner, told));
                        }
                    }
                    Ok(None) => {}
                    Err(error @ StoreError::Unavailable(_)) => return Err(error),
                    // One partner's failure is no other's.
                    Err(error) => failed = Some(error),
                }
            }
            turns = again;
        }
        // Only where something was added to what is missing.
        for partner in names {
            match room::trim((pool, writer), &partner, self.missing).await {
                Ok(0) => {}
                Ok(trimmed) => {
                    tracing::error!(trimmed, partner = partner.1, "no room for receipts")
                }
                Err(error @ StoreError::Unavailable(_)) => return Err(error),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(missing), Err)
    }

    /// `None`: nothing is overdue.
    pub(super) async fn turn(
        &mut self,
        (pool, writer): (&AnyPool, &Writer),
        (id, name): &(String, String),
        told: bool,
        due: i64,
    ) -> Result<Option<u64>, StoreError> {
        let walk = self.walks.entry((id.clone(), told)).or_default();
        if walk.after.is_empty() {
            walk.due = due;
        }
        let (mut ends, mut walked) = overdue(pool, (id, told), &walk.after, walk.due).await?;
        if ends.is_empty() && !walk.after.is_empty() && walked.is_empty() {
            walk.due = due;
            (ends, walked) = overdue(pool, (id, told), "", due).await?;
        }
        walk.after = walked;
        let due = walk.due;
        if ends.is_empty() {
            return Ok(None);
        }
        let names = (id.clone(), name.clone());
        let turn =
            writer.write(move |tx| Box::pin(async move { look(tx, &names, &ends, due).await }));
        let turn = turn.await?;
        if let Some(reached) = turn.reached {
            walk.after = reached;
        }
        Ok(Some(turn.missing))
    }
}

/// Partners of whose receipts some wait, with their names.
async fn waiting(pool: &AnyPool) -> Result<BTreeMap<String, String>, StoreError> {
    let rows = sqlx::query(
        "WITH RECURSIVE w (id) AS ( \
         SELECT MIN(partner_id) FROM receipt WHERE state = $1 \
         UNION ALL \
         SELECT (SELECT MIN(r.partner_id) FROM receipt r \
         WHERE r.state = $1 AND r.partner_id > w.id) FROM w WHERE w.id IS NOT NULL) \
         SELECT w.id AS id, COALESCE(p.name, w.id) AS name \
         FROM w LEFT JOIN partner p ON p.id = w.id WHERE w.id IS NOT NULL",
    )
    .bind(WAITED_FOR)
    .fetch_all(pool)
    .await?;
    rows.iter().map(|row| Ok((row.text("id")?, row.text("name")?))).collect()
}

/// The next ends whose counterparts are overdue, and the session up to which was looked: empty if
/// up to the last. Beside the writer, and from one session to the next by the index: how many
/// receipts an end has makes no difference.
async fn overdue(
    pool: &AnyPool,
    (partner_id, told): (&str, bool),
    after: &str,
    due: i64,
) -> Result<(Vec<Overdue>, String), StoreError> {
    let (mut ends, mut walked) = (Vec::new(), after.to_owned());
    for _ in 0..PAGES {
        let rows = page(pool, (partner_id, told), &walked, due).await?;
        let whole = rows.len() >= usize::try_from(PAGE).unwrap_or_default();
        for row in rows {
            // Both ends of a session, or none.
            if ends.len() >= ENDS_OF_TURN {
                return Ok((ends, walked));
            }
            walked = row.text("session_id")?;
            for role in ["agent", "console"] {
                if row.number(role)? == 1 {
                    let (session, role) = (walked.clone(), role.to_owned());
                    ends.push(Overdue { session, role, client: row.text("client")? });
                }
            }
        }
        if !whole {
            return Ok((ends, String::new()));
        }
    }
    Ok((ends, walked))
}

async fn page(
    pool: &AnyPool,
    (partner_id, told): (&str, bool),
    after: &str,
    due: i64,
) -> Result<Vec<sqlx::any::AnyRow>, StoreError> {
    let rows = sqlx::query(
        "WITH RECURSIVE w (session_id, n) AS ( \
         SELECT MIN(session_id), 1 FROM receipt \
         WHERE state = $1 AND partner_id = $2 AND session_id > $3 \
         UNION ALL \
         SELECT (SELECT MIN(r.session_id) FROM receipt r \
         WHERE r.state = $1 AND r.partner_id = $2 AND r.session_id > w.session_id), w.n + 1 \
         FROM w WHERE w.session_id IS NOT NULL AND w.n < $4) \
         SELECT w.session_id AS session_id, COALESCE(s.client, '') AS client, \
         CASE WHEN (s.id IS NULL OR s.ended_ms < $5) AND EXISTS (SELECT 1 FROM receipt r \
         WHERE r.state = $1 AND r.partner_id = $2 AND r.session_id = w.session_id \
         AND r.role = 'agent' AND r.received_ms < $5) AND $6 = EXISTS (SELECT 1 FROM receipt r \
         WHERE r.state = $7 AND r.partner_id = $2 AND r.session_id = w.session_id \
         AND r.role = 'agent') THEN 1 ELSE 0 END AS agent, \
         CASE WHEN (s.id IS NULL OR s.ended_ms < $5) AND EXISTS (SELECT 1 FROM receipt r \
         WHERE r.state = $1 AND r.partner_id = $2 AND r.session_id = w.session_id \
         AND r.role = 'console' AND r.received_ms < $5) AND $6 = EXISTS (SELECT 1 FROM receipt r \
         WHERE r.state = $7 AND r.partner_id = $2 AND r.session_id = w.session_id \
         AND r.role = 'console') THEN 1 ELSE 0 END AS console \
         FROM w LEFT JOIN session s ON s.id = w.session_id \
         WHERE w.session_id IS NOT NULL ORDER BY w.session_id",
    )
    .bind(WAITED_FOR)
    .bind(partner_id.to_owned())
    .bind(after.to_owned())
    .bind(PAGE)
    .bind(due)
    .bind(i64::from(told))
    .bind(MISSED)
    .fetch_all(pool)
    .await?;
    Ok(rows)
}

async fn look(
    tx: &mut WriteTx,
    partner: &(String, String),
    ends: &[Overdue],
    due: i64,
) -> Result<Turn, StoreError> {
    let (mut turn, mut left) = (Turn::default(), ROWS_OF_TURN);
    for of_session in ends.chunk_by(|a, b| a.session == b.session) {
        if left <= 0 {
            return Ok(turn);
        }
        for end in of_session {
            let (looked_at, missing) = look_at(tx, partner, end, due).await?;
            left -= looked_at;
            turn.missing += missing;
        }
        turn.reached = of_session.first().map(|end| end.session.clone());
    }
    // All of them: it goes on where the walk ended.
    turn.reached = None;
    Ok(turn)
}

/// Looks at some of an end's; gives how many, and how many of those are missing.
async fn look_at(
    tx: &mut WriteTx,
    partner: &(String, String),
    end: &Overdue,
    due: i64,
) -> Result<(i64, u64), StoreError> {
    let rows = sqlx::query(
        "SELECT line FROM receipt WHERE state = $1 AND partner_id = $2 AND session_id = $3 \
         AND role = $4 AND received_ms < $5 ORDER BY channel, kind DESC LIMIT $6",
    )
    .bind(WAITED_FOR)
    .bind(partner.0.clone())
    .bind(end.session.clone())
    .bind(end.role.clone())
    .bind(due)
    .bind(ROWS_OF_END)
    .fetch_all(tx.sql())
    .await?;
    let (mut looked_at, mut missed, mut records) = (0, 0, 0);
    let mut missing: Option<Missing> = None;
    for row in rows {
        looked_at += 1;
        let line = row.text("line")?;
        let Ok(receipt) = Receipt::parse(line.as_bytes()) else { continue };
        if !moved_bytes(tx, &receipt).await? {
            settle(tx, &receipt, COMPARED).await?;
            continue;
        }
        if let Some(full) = missing.take_if(|missing| !missing.has_room(&receipt)) {
            append(tx, partner, &end.client, &full).await?;
            records += 1;
            if records >= RECORDS_OF_END {
                return Ok((looked_at, missed)); // this one waits for the end's next turn
            }
        }
        settle(tx, &receipt, MISSED).await?;
        missed += 1;
        match &mut missing {
            Some(missing) => missing.add(&receipt),
            None => missing = Some(Missing::of(receipt)),
        }
    }
    if let Some(missing) = missing {
        append(tx, partner, &end.client, &missing).await?;
    }
    Ok((looked_at, missed))
}

async fn append(
    tx: &mut WriteTx,
    (partner_id, partner): &(String, String),
    client: &str,
    missing: &Missing,
) -> Result<(), StoreError> {
    let other = missing.first.statement.role.other();
    let session = SessionId(missing.first.statement.session).to_string();
    let mut event = event("receipt.missing", Level::Critical, (partner, client), &missing.first)
        .outcome("missing")
        .extra("missing_from", other.name());
    // It may have come.
    let dropped = room::dropped(tx, &session, other).await?;
    if dropped > 0 {
        event = event.extra("dropped", dropped);
    }
    if missing.receipts > 1 {
        event = event.extra("others", missing.receipts - 1).extra("channels", missing.channels());
    }
    if missing.targets.len() > 1 {
        let targets: Vec<_> = missing.targets.iter().map(String::as_str).collect();
        event = event.extra_personal("targets", targets.join(","));
    }
    tx.append(partner_id, event).await.map(|_| ())
}

impl Missing {
    fn of(first: Receipt) -> Self {
        let target = first.statement.target.clone();
        Self {
            receipts: 1,
            targets_len: room_of(&target),
            targets: BTreeSet::from([target]),
            channels: String::new(),
            range: (first.statement.channel, first.statement.channel),
            first,
        }
    }

    fn add(&mut self, receipt: &Receipt) {
        let said = &receipt.statement;
        self.receipts += 1;
        if self.targets.insert(said.target.clone()) {
            self.targets_len += room_of(&said.target);
        }
        if self.extends(said.channel) {
            self.range.1 = said.channel;
        } else {
            (self.channels, self.range) = (self.channels() + ",", (said.channel, said.channel));
        }
    }

    /// Can a record name this one's channel and target as well?
    fn has_room(&self, receipt: &Receipt) -> bool {
        let said = &receipt.statement;
        let named = self.targets.contains(&said.target)
            || self.targets_len + room_of(&said.target) <= MAX_LIST;
        // The last range, and a new one, with the longest numbers.
        named && (self.extends(said.channel) || self.channels.len() + 72 <= MAX_LIST)
    }

    fn extends(&self, channel: u64) -> bool {
        channel == self.range.1 || channel == self.range.1.saturating_add(1)
    }

    fn channels(&self) -> String {
        match self.range {
            (from, to) if from == to => format!("{}{from}", self.channels),
            (from, to) => format!("{}{from}-{to}", self.channels),
        }
    }
}

/// What it takes in a list at most when escaped.
fn room_of(text: &str) -> usize {
    let plain = |c: char| matches!(c, ' '..='~') && c != '"' && c != '\\';
    1 + text.chars().map(|c| if plain(c) { 1 } else { 6 }).sum::<usize>()
}

/// What was refused or never got through leaves one end without a word: no reason for alarm.
async fn moved_bytes(tx: &mut WriteTx, receipt: &Receipt) -> Result<bool, StoreError> {
    let row = sqlx::query(
        "SELECT line FROM receipt \
         WHERE session_id = $1 AND channel = $2 AND kind = 'close' AND role = $3",
    )
    .bind(SessionId(receipt.statement.session).to_string())
    .bind(bigint(receipt.statement.channel))
    .bind(receipt.statement.role.name())
    .fetch_optional(tx.sql())
    .await?;
    // Without a close nobody can say that nothing was moved.
    let Some(row) = row else { return Ok(true) };
    let close = Receipt::parse(row.text("line")?.as_bytes()).ok();
    let close = close.and_then(|receipt| receipt.statement.close);
    Ok(close.is_none_or(|close| close.delivered > 0 || close.acknowledged > 0))
}
