//! The two ends' receipts as they arrive: kept, compared with the session's record and with each
//! other. What differs or does not come becomes an event of the log; receipts are never altered.
//!
//! Only receipts of the two ends of a session that is on record are kept: what a device tells of
//! other sessions is an event, seldom, and nothing else.

use std::sync::Arc;

use adit_ledger::{
    Entry, Event, Level, Receipt,
    evidence::GRANTED,
    receipt::{Role, compare},
};
use adit_protocol::{ids::SessionId, keys::PublicKey, wire};
use bytes::Bytes;
use sqlx::AnyPool;

use crate::{
    serve::Seldom,
    store::{Columns, StoreError, WriteTx, Writer, bigint},
};

/// Receipts in one message.
pub(crate) const MAX_RECEIPTS: usize = 64;
/// How long after a session's end the other end's receipt is waited for.
pub(crate) const GRACE_MS: u64 = 15 * 60_000;
/// Receipts looked at in one go, and of how many sessions' ends.
const SWEEP: i64 = 400;
const SWEEP_ENDS: i64 = 100;
/// Sessions whose receipts are deleted in one transaction.
const PRUNE: i64 = 64;
/// Bytes of receipts in one answer.
const MAX_ANSWER: usize = 128 * 1024;

/// Channels of one session whose receipts are kept: as many as its ends can report
/// (`serve/allowance.rs`), and so many for each second of its length. Consoles number channels from
/// 1 on, so the highest number bounds how many rows there are: four for each channel.
const CHANNELS: u64 = 16_384;
const CHANNELS_PER_SECOND: u64 = 100;

const WAITED_FOR: i16 = 0;
const COMPARED: i16 = 1;
const MISSED: i16 = 2;

/// Who sends receipts.
#[derive(Clone)]
pub(crate) struct Sender {
    pub(crate) partner_id: String,
    pub(crate) partner: String,
    pub(crate) identity: PublicKey,
    /// Devices that told of what is none of theirs, or what does not fit together.
    pub(crate) strange: Arc<Seldom>,
}

/// What the log's session row says.
struct Recorded {
    client: String,
    console: PublicKey,
    agent: PublicKey,
    redirector: String,
    targets: String,
    any_target: bool,
    started_ms: u64,
    /// `None`: it is open.
    ended_ms: Option<u64>,
}

/// Takes receipts in. What is not a receipt of the sender's own sessions is left out.
pub(crate) async fn take(
    tx: &mut WriteTx,
    sender: Sender,
    lines: Vec<bytes::Bytes>,
) -> Result<(), StoreError> {
    let own = sender.identity.fingerprint();
    for line in lines.iter().take(MAX_RECEIPTS) {
        let receipt = Receipt::parse(line).ok().filter(|receipt| receipt.verify().is_ok());
        let Some(receipt) = receipt else {
            tracing::warn!(device = %own, "a device sent what is no receipt");
            continue;
        };
        if ![receipt.statement.console, receipt.statement.agent].contains(&own) {
            tracing::warn!(device = %own, "a device sent a receipt of others");
            continue;
        }
        keep(tx, &sender, &receipt).await?;
    }
    Ok(())
}

async fn keep(tx: &mut WriteTx, sender: &Sender, receipt: &Receipt) -> Result<(), StoreError> {
    let said = &receipt.statement;
    let (session, line) = (SessionId(said.session).to_string(), receipt.to_line());
    let Some(recorded) = recorded(tx, &session, &sender.partner_id).await? else {
        return strange(tx, sender, receipt, "no_such_session", None).await;
    };
    if let Some(what) = recorded.foreign(receipt) {
        return strange(tx, sender, receipt, what, Some(&recorded.client)).await;
    }
    let client = recorded.client.as_str();
    if said.channel > recorded.channels(tx.now_ms()) {
        return strange(tx, sender, receipt, "channel", Some(client)).await;
    }
    if let Some((known, _)) = find(tx, receipt, said.role).await? {
        if known != line {
            return differ(tx, (sender, client), receipt, "two_stories").await;
        }
        return Ok(()); // both ends send both
    }
    let kind = kind(receipt);
    let now = tx.now_ms();
    sqlx::query(
        "INSERT INTO receipt (session_id, channel, kind, role, partner_id, received_ms, state, \
         line) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(session)
    .bind(bigint(said.channel))
    .bind(kind)
    .bind(said.role.name())
    .bind(sender.partner_id.clone())
    .bind(bigint(now))
    .bind(WAITED_FOR)
    .bind(line)
    .execute(tx.sql())
    .await?;
    if let Some(what) = recorded.differs(receipt) {
        differ(tx, (sender, client), receipt, what).await?;
    }
    let other = match said.role {
        Role::Console => Role::Agent,
        Role::Agent => Role::Console,
    };
    let Some((line, state)) = find(tx, receipt, other).await? else { return Ok(()) };
    let Ok(counterpart) = Receipt::parse(line.as_bytes()) else { return Ok(()) };
    let same = match said.role {
        Role::Console => compare(receipt, &counterpart),
        Role::Agent => compare(&counterpart, receipt),
    };
    settle(tx, receipt, COMPARED).await?;
    match same {
        Err(mismatch) => differ(tx, (sender, client), receipt, &mismatch.to_string()).await,
        Ok(()) if state == MISSED => settled(tx, (sender, client), receipt).await,
        Ok(()) => Ok(()),
    }
}

fn kind(receipt: &Receipt) -> &'static str {
    if receipt.statement.close.is_some() { "close" } else { "open" }
}

/// A stored receipt of the same channel and moment by one of the ends.
async fn find(
    tx: &mut WriteTx,
    receipt: &Receipt,
    role: Role,
) -> Result<Option<(String, i16)>, StoreError> {
    let row = sqlx::query(
        "SELECT line, state FROM receipt \
         WHERE session_id = $1 AND channel = $2 AND kind = $3 AND role = $4",
    )
    .bind(SessionId(receipt.statement.session).to_string())
    .bind(bigint(receipt.statement.channel))
    .bind(kind(receipt))
    .bind(role.name())
    .fetch_optional(tx.sql())
    .await?;
    row.map(|row| {
        let state = i16::try_from(row.number("state")?).unwrap_or(WAITED_FOR);
        Ok((row.text("line")?, state))
    })
    .transpose()
}

async fn settle(tx: &mut WriteTx, receipt: &Receipt, state: i16) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE receipt SET state = $1 WHERE session_id = $2 AND channel = $3 AND kind = $4",
    )
    .bind(state)
    .bind(SessionId(receipt.statement.session).to_string())
    .bind(bigint(receipt.statement.channel))
    .bind(kind(receipt))
    .execute(tx.sql())
    .await?;
    Ok(())
}

async fn recorded(
    tx: &mut WriteTx,
    session: &str,
    partner_id: &str,
) -> Result<Option<Recorded>, StoreError> {
    let row = sqlx::query(
        "SELECT client, console, agent, redirector, target, any_target, started_ms, ended_ms \
         FROM session WHERE id = $1 AND partner_id = $2",
    )
    .bind(session.to_owned())
    .bind(partner_id.to_owned())
    .fetch_optional(tx.sql())
    .await?;
    row.map(|row| {
        let corrupt = |_| StoreError::Corrupt("session: key".to_owned());
        Ok(Recorded {
            client: row.text("client")?,
            console: PublicKey::from_slice(&row.blob("console")?).map_err(corrupt)?,
            agent: PublicKey::from_slice(&row.blob("agent")?).map_err(corrupt)?,
            redirector: row.text("redirector")?,
            targets: row.text("target")?,
            any_target: row.flag("any_target")?,
            started_ms: row.number("started_ms")?,
            ended_ms: sqlx::Row::try_get::<Option<i64>, _>(&row, "ended_ms")?
                .and_then(|ms| u64::try_from(ms).ok()),
        })
    })
    .transpose()
}

impl Recorded {
    /// The highest number of a channel that it can have had.
    fn channels(&self, now_ms: u64) -> u64 {
        let length_ms = self.ended_ms.unwrap_or(now_ms).saturating_sub(self.started_ms);
        CHANNELS.saturating_add((length_ms / 1000).saturating_mul(CHANNELS_PER_SECOND))
    }

    /// It speaks of other devices than the session's: of whose keys nobody knows anything.
    fn foreign(&self, receipt: &Receipt) -> Option<&'static str> {
        let said = &receipt.statement;
        let facts = [
            (said.console == self.console.fingerprint(), "console"),
            (said.agent == self.agent.fingerprint(), "agent"),
        ];
        facts.into_iter().find(|(holds, _)| !holds).map(|(_, what)| what)
    }

    fn differs(&self, receipt: &Receipt) -> Option<&'static str> {
        let said = &receipt.statement;
        let target = self.any_target || self.targets.split(',').any(|one| one == said.target);
        let facts = [(said.redirector == self.redirector, "redirector"), (target, "target")];
        facts.into_iter().find(|(holds, _)| !holds).map(|(_, what)| what)
    }
}

/// With the session's client, so that it goes when the client is erased.
fn event(name: &str, level: Level, (partner, client): (&str, &str), receipt: &Receipt) -> Event {
    let said = &receipt.statement;
    let event = about(name, level, partner, receipt)
        .redirector(&said.redirector)
        .target(&said.target)
        .extra("channel", said.channel);
    if client.is_empty() { event } else { event.client(client) }
}

/// No more than ids, hashes and words of ours.
fn about(name: &str, level: Level, partner: &str, receipt: &Receipt) -> Event {
    let said = &receipt.statement;
    Event::new(name, level)
        .partner(partner)
        .session_id(SessionId(said.session).to_string())
        .device(said.console.to_string())
        .extra("agent", said.agent.to_string())
        .extra("receipt", kind(receipt))
        .extra("role", said.role.name())
}

/// What was said to be missing came, and fits. As with what differs, one a minute is recorded.
async fn settled(
    tx: &mut WriteTx,
    (sender, client): (&Sender, &str),
    receipt: &Receipt,
) -> Result<(), StoreError> {
    let Some(others) = seldom(tx, sender, receipt, "settled") else { return Ok(()) };
    let names = (sender.partner.as_str(), client);
    let event = event("receipt.settled", Level::Significant, names, receipt).outcome("done");
    let event = if others > 0 { event.extra("others", others) } else { event };
    tx.append(&sender.partner_id, event).await.map(|_| ())
}

/// Is this recorded? If so: how many were not, since the last that was.
fn seldom(tx: &WriteTx, sender: &Sender, receipt: &Receipt, what: &str) -> Option<u64> {
    let session = SessionId(receipt.statement.session);
    let key = [sender.identity.0.as_slice(), session.0.as_slice(), what.as_bytes()].concat();
    sender.strange.note_of(sender.partner_id.as_bytes(), &key, tx.now_ms())
}

/// What does not fit together. An end can sign any number of those for a session of its own: of
/// each end, session and kind one a minute is recorded, with the number of others.
async fn differ(
    tx: &mut WriteTx,
    (sender, client): (&Sender, &str),
    receipt: &Receipt,
    what: &str,
) -> Result<(), StoreError> {
    let Some(others) = seldom(tx, sender, receipt, what) else { return Ok(()) };
    let session = SessionId(receipt.statement.session);
    let names = (sender.partner.as_str(), client);
    let mut event = event("receipt.mismatch", Level::Critical, names, receipt)
        .outcome("mismatch")
        .extra("difference", what);
    if others > 0 {
        event = event.extra("others", others);
    }
    tracing::error!(session_id = %session, what, others, "receipts do not tell the same story");
    tx.append(&sender.partner_id, event).await.map(|_| ())
}

/// A receipt that is not kept. One a minute of each device and kind is recorded, with the number
/// of others: any device may sign any number of them.
async fn strange(
    tx: &mut WriteTx,
    sender: &Sender,
    receipt: &Receipt,
    what: &str,
    client: Option<&str>,
) -> Result<(), StoreError> {
    let key = [sender.identity.0.as_slice(), what.as_bytes()].concat();
    let Some(others) = sender.strange.note(&key, tx.now_ms()) else { return Ok(()) };
    let mut event = about("receipt.mismatch", Level::Critical, &sender.partner, receipt)
        .outcome("mismatch")
        .extra("difference", what)
        .extra("sender", sender.identity.fingerprint().to_string());
    if let Some(client) = client {
        event = event.client(client);
    }
    if others > 0 {
        event = event.extra("others", others);
    }
    tracing::error!(session_id = %SessionId(receipt.statement.session), what, others,
        "a device sends receipts of what is not its session");
    tx.append(&sender.partner_id, event).await.map(|_| ())
}

/// Close receipts of the other end, for one end of each of these sessions.
pub(crate) async fn counterparts(
    pool: &AnyPool,
    (partner_id, identity): (&str, PublicKey),
    asked: &[wire::ReceiptName],
) -> Result<Vec<Bytes>, StoreError> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    for name in asked.iter().take(MAX_RECEIPTS) {
        let Ok(session) = SessionId::from_slice(&name.session_id) else { continue };
        let rows = sqlx::query(
            "SELECT r.line AS line, r.role AS role, s.console AS console, s.agent AS agent \
             FROM receipt r JOIN session s ON s.id = r.session_id \
             WHERE r.session_id = $1 AND r.channel = $2 AND r.kind = $3 \
             AND r.partner_id = $4 AND s.partner_id = $4",
        )
        .bind(session.to_string())
        .bind(bigint(name.channel))
        .bind("close")
        .bind(partner_id.to_owned())
        .fetch_all(pool)
        .await?;
        for row in rows {
            let end = match row.text("role")?.as_str() {
                "agent" => row.blob("console")?,
                _ => row.blob("agent")?,
            };
            let line = row.text("line")?;
            if end == identity.0 && bytes + line.len() <= MAX_ANSWER {
                bytes += line.len();
                found.push(line.into());
            }
        }
    }
    Ok(found)
}

/// Deletes a partner's receipts that came before `cutoff_ms`, as its log's retention goes: not
/// those whose counterpart is still waited for.
pub(crate) async fn prune(
    (pool, writer): (&AnyPool, &Writer),
    partner_id: &str,
    cutoff_ms: u64,
) -> Result<u64, StoreError> {
    let mut pruned = 0;
    loop {
        let (partner, cutoff) = (partner_id.to_owned(), bigint(cutoff_ms));
        let sessions = sqlx::query(
            "SELECT DISTINCT session_id FROM receipt \
             WHERE partner_id = $1 AND received_ms < $2 AND state <> $3 LIMIT $4",
        )
        .bind(partner.clone())
        .bind(cutoff)
        .bind(WAITED_FOR)
        .bind(PRUNE)
        .fetch_all(pool)
        .await?;
        if sessions.is_empty() {
            return Ok(pruned);
        }
        let sessions: Vec<String> =
            sessions.iter().map(|row| row.text("session_id")).collect::<Result<_, _>>()?;
        let step = writer.write(move |tx| {
            Box::pin(async move {
                let mut deleted = 0;
                for session in sessions {
                    let done = sqlx::query(
                        "DELETE FROM receipt WHERE session_id = $1 AND partner_id = $2 \
                         AND received_ms < $3 AND state <> $4",
                    )
                    .bind(session)
                    .bind(partner.clone())
                    .bind(cutoff)
                    .bind(WAITED_FOR)
                    .execute(tx.sql())
                    .await?;
                    deleted += done.rows_affected();
                }
                Ok(deleted)
            })
        });
        match step.await? {
            0 => return Ok(pruned),
            some => pruned += some,
        }
    }
}

/// An end of a session that told of what the other did not.
#[derive(Clone)]
struct Overdue {
    session: String,
    role: String,
    partner_id: String,
    partner: String,
    client: String,
}

/// Receipts whose counterpart is overdue become events: one for all of a session's end, as far as
/// they are looked at in one go. Whoever told of least comes first: an end that signs without end
/// waits behind itself.
pub(crate) async fn sweep(
    (pool, writer): (&AnyPool, &Writer),
    now_ms: u64,
) -> Result<u64, StoreError> {
    let due = bigint(now_ms.saturating_sub(GRACE_MS));
    let ends = overdue(pool, due).await?;
    if ends.is_empty() {
        return Ok(0);
    }
    let swept = writer.write(move |tx| {
        Box::pin(async move {
            let (mut missing, mut left) = (0, SWEEP);
            for end in &ends {
                if left > 0 {
                    let (looked_at, missed) = sweep_end(tx, end, (due, left)).await?;
                    left -= looked_at;
                    missing += missed;
                }
            }
            Ok(missing)
        })
    });
    swept.await
}

/// Beside the writer: there may be many to count.
async fn overdue(pool: &AnyPool, due: i64) -> Result<Vec<Overdue>, StoreError> {
    let rows = sqlx::query(
        "SELECT r.session_id AS session_id, r.role AS role, r.partner_id AS partner_id, \
         COALESCE(MIN(p.name), r.partner_id) AS partner, COALESCE(MIN(s.client), '') AS client \
         FROM receipt r \
         LEFT JOIN partner p ON p.id = r.partner_id \
         LEFT JOIN session s ON s.id = r.session_id \
         WHERE r.state = $1 AND r.received_ms < $2 \
         AND (s.id IS NULL OR s.ended_ms < $2) \
         GROUP BY r.session_id, r.role, r.partner_id \
         ORDER BY COUNT(*), MIN(r.received_ms) LIMIT $3",
    )
    .bind(WAITED_FOR)
    .bind(due)
    .bind(SWEEP_ENDS)
    .fetch_all(pool)
    .await?;
    let end = |row: &sqlx::any::AnyRow| {
        Ok(Overdue {
            session: row.text("session_id")?,
            role: row.text("role")?,
            partner_id: row.text("partner_id")?,
            partner: row.text("partner")?,
            client: row.text("client")?,
        })
    };
    rows.iter().map(end).collect()
}

/// Looks at so many of an end's; gives how many, and how many of those are missing.
async fn sweep_end(
    tx: &mut WriteTx,
    end: &Overdue,
    (due, most): (i64, i64),
) -> Result<(i64, u64), StoreError> {
    let rows = sqlx::query(
        "SELECT line FROM receipt WHERE session_id = $1 AND role = $2 AND partner_id = $3 \
         AND state = $4 AND received_ms < $5 ORDER BY channel, kind DESC LIMIT $6",
    )
    .bind(end.session.clone())
    .bind(end.role.clone())
    .bind(end.partner_id.clone())
    .bind(WAITED_FOR)
    .bind(due)
    .bind(most)
    .fetch_all(tx.sql())
    .await?;
    let (mut looked_at, mut first, mut missed) = (0, None, 0);
    for row in rows {
        looked_at += 1;
        let line = row.text("line")?;
        let Ok(receipt) = Receipt::parse(line.as_bytes()) else { continue };
        if !moved_bytes(tx, &receipt).await? {
            settle(tx, &receipt, COMPARED).await?;
            continue;
        }
        settle(tx, &receipt, MISSED).await?;
        missed += 1;
        first.get_or_insert(receipt);
    }
    let Some(first) = first else { return Ok((looked_at, missed)) };
    let other = match first.statement.role {
        Role::Console => "agent",
        Role::Agent => "console",
    };
    let event = event("receipt.missing", Level::Critical, (&end.partner, &end.client), &first)
        .outcome("missing")
        .extra("missing_from", other);
    let event = if missed > 1 { event.extra("others", missed - 1) } else { event };
    tx.append(&end.partner_id, event).await?;
    Ok((looked_at, missed))
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

/// The entries by which a session was granted: one, or none.
pub(crate) async fn granted(pool: &AnyPool, session: &str) -> Result<Vec<Entry>, StoreError> {
    let rows = sqlx::query(
        "SELECT line FROM audit_entry WHERE log_no IN (SELECT t.number FROM audit_tree t) \
         AND session_id = $1 AND event = $2",
    )
    .bind(session.to_owned())
    .bind(GRANTED)
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            Entry::parse(row.text("line")?.as_bytes())
                .map_err(|error| StoreError::Corrupt(format!("entry of a log: {error}")))
        })
        .collect()
}
