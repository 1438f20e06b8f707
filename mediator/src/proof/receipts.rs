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

use super::room::{self, Room};
use crate::{
    audit::holds,
    serve::Seldom,
    store::{Columns, StoreError, WriteTx, Writer, bigint},
};

/// Receipts in one message.
pub(crate) const MAX_RECEIPTS: usize = 64;
/// How long after a session's end the other end's receipt is waited for.
pub(crate) const GRACE_MS: u64 = 15 * 60_000;
/// Sessions whose receipts are deleted in one transaction.
const PRUNE: i64 = 64;
/// What is missing of a session's end is counted up to here.
const MAX_COUNTED: i64 = 100_000;
/// Bytes of receipts in one answer.
const MAX_ANSWER: usize = 128 * 1024;

/// Channels of one session whose receipts are kept: as many as its ends can report
/// (`serve/allowance.rs`), and so many for each second of its length. Consoles number channels from
/// 1 on, so the highest number bounds how many rows there are: four for each channel.
const CHANNELS: u64 = 16_384;
const CHANNELS_PER_SECOND: u64 = 100;

pub(super) const WAITED_FOR: i16 = 0;
pub(super) const COMPARED: i16 = 1;
pub(super) const MISSED: i16 = 2;

/// Who sends receipts.
#[derive(Clone)]
pub(crate) struct Sender {
    pub(crate) partner_id: String,
    pub(crate) partner: String,
    pub(crate) identity: PublicKey,
    /// Devices that told of what is none of theirs, or what does not fit together.
    pub(crate) strange: Arc<Seldom>,
    /// How much of what only one end told there is of each partner.
    pub(crate) room: Arc<Room>,
}

/// What the log's session row says.
struct Recorded {
    client: String,
    account: String,
    console: PublicKey,
    agent: PublicKey,
    redirector: String,
    targets: String,
    any_target: bool,
    started_ms: u64,
    /// `None`: it is open.
    ended_ms: Option<u64>,
}

/// What was noted as recorded of a sender: forgotten unless it is known to be on disk.
#[must_use = "what was recorded is recorded again"]
pub(crate) struct Unsure(Option<(Arc<Seldom>, PublicKey)>);

impl Unsure {
    /// It is on disk.
    pub(crate) fn written(mut self) {
        self.0 = None;
    }
}

impl Drop for Unsure {
    fn drop(&mut self) {
        if let Some((seldom, identity)) = self.0.take() {
            seldom.record_again(&identity.0);
        }
    }
}

/// Takes receipts in. What is not a receipt of the sender's own sessions is left out.
pub(crate) async fn take(
    tx: &mut WriteTx,
    sender: Sender,
    lines: Vec<bytes::Bytes>,
) -> Result<Unsure, StoreError> {
    let own = sender.identity.fingerprint();
    let unsure = Unsure(Some((Arc::clone(&sender.strange), sender.identity)));
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
    Ok(unsure)
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
    let counterpart = find(tx, receipt, said.role.other()).await?;
    let signer = recorded.signer(said.role);
    let of_signer = (sender.partner_id.as_str(), signer.as_str());
    if counterpart.is_none() && !sender.room.take(tx, of_signer, receipt).await? {
        return no_room(tx, (sender, client), receipt).await;
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
    let Some((line, state)) = counterpart else { return Ok(()) };
    if state == WAITED_FOR {
        sender.room.found(&sender.partner_id, &recorded.signer(said.role.other()));
    }
    let Ok(counterpart) = Receipt::parse(line.as_bytes()) else { return Ok(()) };
    let same = match said.role {
        Role::Console => compare(receipt, &counterpart),
        Role::Agent => compare(&counterpart, receipt),
    };
    settle(tx, receipt, COMPARED).await?;
    match same {
        Err(mismatch) => {
            differ(tx, (sender, client), receipt, &mismatch.to_string()).await?;
            if state == MISSED {
                settled(tx, (sender, client), receipt, false).await
            } else {
                Ok(())
            }
        }
        Ok(()) if state == MISSED => settled(tx, (sender, client), receipt, true).await,
        Ok(()) => Ok(()),
    }
}

/// It is not kept: recorded now and then, and counted.
async fn no_room(
    tx: &mut WriteTx,
    (sender, client): (&Sender, &str),
    receipt: &Receipt,
) -> Result<(), StoreError> {
    let (session, role) = (SessionId(receipt.statement.session), receipt.statement.role);
    let Some(so_far) = room::turned_away(tx, &session.to_string(), role, 1).await? else {
        return Ok(());
    };
    tracing::error!(session_id = %session, end = role.name(), so_far,
        "no room for receipts without counterpart");
    let names = (sender.partner.as_str(), client);
    let event = room::no_room(names, (&session.to_string(), role), so_far);
    let event = event.extra_personal("sender", sender.identity.fingerprint().to_string());
    tx.append(&sender.partner_id, event).await.map(|_| ())
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

pub(super) async fn settle(
    tx: &mut WriteTx,
    receipt: &Receipt,
    state: i16,
) -> Result<(), StoreError> {
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
        "SELECT client, account_id, console, agent, redirector, target, any_target, started_ms, \
         ended_ms \
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
            account: row.text("account_id")?,
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

    /// Whose word an end's receipts are: the person's, with whatever device; the computer's.
    fn signer(&self, role: Role) -> String {
        match role {
            Role::Console => self.account.clone(),
            Role::Agent => self.agent.fingerprint().to_string(),
        }
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
pub(super) fn event(
    name: &str,
    level: Level,
    (partner, client): (&str, &str),
    receipt: &Receipt,
) -> Event {
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

/// What was said to be missing came. If it fits, one a minute is recorded, as with what differs;
/// and in any case the last one, which tells that nothing is missing any more.
async fn settled(
    tx: &mut WriteTx,
    (sender, client): (&Sender, &str),
    receipt: &Receipt,
    fits: bool,
) -> Result<(), StoreError> {
    if !fits && still_missing(tx, (sender, receipt), 1).await? > 0 {
        return Ok(());
    }
    let noted = seldom(tx, sender, receipt, "settled");
    let missing =
        still_missing(tx, (sender, receipt), if noted.is_some() { MAX_COUNTED } else { 1 });
    let missing = missing.await?;
    if noted.is_none() && missing > 0 {
        return Ok(());
    }
    let names = (sender.partner.as_str(), client);
    let event = event("receipt.settled", Level::Significant, names, receipt)
        .outcome(if fits { "done" } else { "mismatch" })
        .extra("still_missing", missing);
    let others = noted.unwrap_or_default();
    let event = if others > 0 { event.extra("others", others) } else { event };
    tx.append(&sender.partner_id, event).await.map(|_| ())
}

/// Of what the other end of the session told and the sender did not: as many as `most`.
async fn still_missing(
    tx: &mut WriteTx,
    (sender, receipt): (&Sender, &Receipt),
    most: i64,
) -> Result<u64, StoreError> {
    let other = receipt.statement.role.other();
    let row = sqlx::query(
        "SELECT COUNT(*) AS count FROM (SELECT 1 FROM receipt WHERE state = $1 \
         AND partner_id = $2 AND session_id = $3 AND role = $4 LIMIT $5) m",
    )
    .bind(MISSED)
    .bind(sender.partner_id.clone())
    .bind(SessionId(receipt.statement.session).to_string())
    .bind(other.name())
    .bind(most)
    .fetch_one(tx.sql())
    .await?;
    row.number("count")
}

/// Is this recorded? If so: how many were not, since the last that was. What one device does in
/// any number of sessions, and what it does of another kind, takes nobody's place.
fn seldom(tx: &WriteTx, sender: &Sender, receipt: &Receipt, what: &str) -> Option<u64> {
    let group = [sender.identity.0.as_slice(), what.as_bytes()].concat();
    sender.strange.note_of(&group, &receipt.statement.session, tx.now_ms())
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
    let group = [sender.identity.0.as_slice(), b"not kept: ", what.as_bytes()].concat();
    let Some(others) = sender.strange.note_of(&group, b"", tx.now_ms()) else { return Ok(()) };
    let mut event = about("receipt.mismatch", Level::Critical, &sender.partner, receipt)
        .outcome("mismatch")
        .extra("difference", what)
        .extra_personal("sender", sender.identity.fingerprint().to_string());
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
                // One may have come since the policies were read.
                if holds::is_held_in(tx, &partner).await? {
                    return Ok(0);
                }
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
