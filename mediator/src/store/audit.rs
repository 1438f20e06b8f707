//! The audit log on disk: one Merkle tree per partner, its entries, its frontier, its signed head.
//!
//! Only ever adds, inside the transaction of whatever is being recorded. Frontier and head are
//! written once per transaction. When the trees are loaded, head, frontier and last entry must
//! agree, or nothing is written: a log that was tampered with or rolled back is not continued.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use adit_ledger::{Entry, Event, Hash, MerkleTree, RootCert, SignedHead};
use adit_protocol::keys::{KeyCert, Purpose, SigningKey, random};
use sqlx::{AnyConnection, AnyPool};

use super::{Columns, StoreError, bigint};
use crate::audit::keys::{BLOCK, Keys};

/// Signs heads: the log key and the root's certificate of it.
#[derive(Clone)]
pub(crate) struct LogSigner {
    pub(crate) key: Arc<SigningKey>,
    pub(crate) cert: Arc<RwLock<RootCert>>,
}

impl LogSigner {
    fn cert(&self) -> RootCert {
        self.cert.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Where an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Appended {
    /// Its sequence number.
    pub(crate) seq: u64,
    /// Its leaf hash.
    pub(crate) leaf: Hash,
    /// What was written.
    pub(crate) entry: Entry,
}

#[derive(Clone)]
struct TreeState {
    id: String,
    /// Its short name in indexes.
    number: u64,
    tree: MerkleTree,
    touched: bool,
    /// Blocks with entries of this transaction, and the times of these.
    blocks: Vec<(u64, u64, u64)>,
}

impl TreeState {
    fn note_time(&mut self, seq: u64, time_ms: u64) {
        let block = seq / BLOCK;
        match self.blocks.last_mut() {
            Some((last, min, max)) if *last == block => {
                *min = (*min).min(time_ms);
                *max = (*max).max(time_ms);
            }
            _ => self.blocks.push((block, time_ms, time_ms)),
        }
    }
}

/// The trees that are added to, by partner id.
pub(crate) struct Trees {
    signer: LogSigner,
    by_partner: BTreeMap<String, TreeState>,
    /// States before the running job, first change first.
    undo: Vec<(String, Option<TreeState>)>,
}

impl Trees {
    /// Reads and checks all current trees.
    pub(super) async fn load(
        connection: &mut AnyConnection,
        signer: LogSigner,
    ) -> Result<Self, StoreError> {
        let rows = sqlx::query(
            "SELECT id, partner_id, number, frontier, head FROM audit_tree WHERE current = $1",
        )
        .bind(1_i16)
        .fetch_all(&mut *connection)
        .await?;
        let mut by_partner = BTreeMap::new();
        for row in rows {
            let id = row.text("id")?;
            let tree = load_tree(connection, &signer, &id, &row).await?;
            let number = row.number("number")?;
            let state = TreeState { id, number, tree, touched: false, blocks: Vec::new() };
            by_partner.insert(row.text("partner_id")?, state);
        }
        Ok(Self { signer, by_partner, undo: Vec::new() })
    }

    pub(super) fn signer(&self) -> LogSigner {
        self.signer.clone()
    }

    /// The job's changes stay.
    pub(super) fn keep(&mut self) {
        self.undo.clear();
    }

    /// The job's changes are undone.
    pub(super) fn undo(&mut self) {
        while let Some((partner, before)) = self.undo.pop() {
            match before {
                Some(state) => self.by_partner.insert(partner, state),
                None => self.by_partner.remove(&partner),
            };
        }
    }

    pub(super) async fn append(
        &mut self,
        connection: &mut AnyConnection,
        partner: &str,
        event: Event,
        now_ms: u64,
    ) -> Result<Appended, StoreError> {
        let state = self.by_partner.get_mut(partner).ok_or(StoreError::Missing("audit log"))?;
        let salt = random().map_err(|_| StoreError::Random)?;
        let entry = Entry::seal(state.tree.size(), now_ms, event, salt);
        insert(connection, state, &entry).await?;
        self.undo.push((partner.to_owned(), Some(state.clone())));
        state.tree.append(entry.leaf());
        state.note_time(entry.seq(), entry.time_ms());
        state.touched = true;
        Ok(Appended { seq: entry.seq(), leaf: entry.leaf(), entry })
    }

    pub(super) async fn start(
        &mut self,
        connection: &mut AnyConnection,
        partner: &str,
        name: &str,
        previous: Option<&SignedHead>,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE audit_tree SET current = $1 WHERE partner_id = $2")
            .bind(0_i16)
            .bind(partner.to_owned())
            .execute(&mut *connection)
            .await?;
        let id = super::fresh_id()?;
        let number = sqlx::query("SELECT COALESCE(MAX(number), 0) + 1 AS number FROM audit_tree")
            .fetch_one(&mut *connection)
            .await?
            .number("number")?;
        sqlx::query(
            "INSERT INTO audit_tree (id, partner_id, number, current, frontier, head) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(id.clone())
        .bind(partner.to_owned())
        .bind(bigint(number))
        .bind(1_i16)
        .bind(Vec::new())
        .bind(String::new())
        .execute(&mut *connection)
        .await?;
        let (tree, blocks) = (MerkleTree::new(), Vec::new());
        let state = TreeState { id, number, tree, touched: true, blocks };
        let before = self.by_partner.insert(partner.to_owned(), state);
        self.undo.push((partner.to_owned(), before));
        let event = Event::tree_started(previous).partner(name);
        self.append(connection, partner, event, now_ms).await?;
        Ok(())
    }

    /// Writes frontier and signed head of each tree that grew.
    pub(super) async fn sign(
        &mut self,
        connection: &mut AnyConnection,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        for state in self.by_partner.values().filter(|state| state.touched) {
            let (size, root) = (state.tree.size(), state.tree.root());
            let cert = self.signer.cert();
            // A head must verify whatever the clock says: its time is within the certificate's.
            let time = within(&cert, now_ms);
            let head = SignedHead::sign(&self.signer.key, &state.id, size, root, time, Some(cert))
                .map_err(|error| StoreError::Corrupt(error.to_string()))?;
            sqlx::query("UPDATE audit_tree SET frontier = $1, head = $2 WHERE id = $3")
                .bind(state.tree.to_bytes())
                .bind(head.to_line())
                .bind(state.id.clone())
                .execute(&mut *connection)
                .await?;
            for (block, min, max) in &state.blocks {
                widen(connection, state.number, *block, *min, *max).await?;
            }
        }
        Ok(())
    }

    pub(super) fn committed(&mut self) {
        for state in self.by_partner.values_mut() {
            state.touched = false;
            state.blocks.clear();
        }
    }
}

/// A time at which the certificate counts: the clock's, if it does then.
fn within(cert: &RootCert, now_ms: u64) -> u64 {
    match KeyCert::open(cert.root, Purpose::Log, &cert.cert) {
        Ok(key) => now_ms.min(key.not_after_ms.saturating_sub(1)).max(key.not_before_ms),
        Err(_) => now_ms,
    }
}

async fn insert(
    connection: &mut AnyConnection,
    state: &TreeState,
    entry: &Entry,
) -> Result<(), StoreError> {
    let keys = Keys::of(entry.event());
    sqlx::query(
        "INSERT INTO audit_entry (tree, seq, time_ms, event, session_id, leaf, line, log_no, \
         actor_key, subject_key, computer_key, computer_id, client_key, redirector) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    )
    .bind(state.id.clone())
    .bind(bigint(entry.seq()))
    .bind(bigint(entry.time_ms()))
    .bind(entry.event().name.clone())
    .bind(keys.session)
    .bind(entry.leaf().0.to_vec())
    .bind(entry.to_line())
    .bind(bigint(state.number))
    .bind(keys.actor)
    .bind(keys.subject)
    .bind(keys.computer)
    .bind(keys.computer_id)
    .bind(keys.client)
    .bind(keys.redirector)
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that a block has entries of these times.
async fn widen(
    connection: &mut AnyConnection,
    log: u64,
    block: u64,
    min: u64,
    max: u64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO audit_block (log_no, block, min_ms, max_ms, due_ms) \
         VALUES ($1, $2, $3, $4, $3) ON CONFLICT (log_no, block) DO UPDATE SET \
         min_ms = CASE WHEN excluded.min_ms < audit_block.min_ms \
         THEN excluded.min_ms ELSE audit_block.min_ms END, \
         max_ms = CASE WHEN excluded.max_ms > audit_block.max_ms \
         THEN excluded.max_ms ELSE audit_block.max_ms END, \
         due_ms = CASE WHEN excluded.due_ms < audit_block.due_ms \
         THEN excluded.due_ms ELSE audit_block.due_ms END",
    )
    .bind(bigint(log))
    .bind(bigint(block))
    .bind(bigint(min))
    .bind(bigint(max))
    .execute(connection)
    .await?;
    Ok(())
}

/// Puts what is left of an entry in its place, after its personal fields were erased. Line and
/// keys go together; whoever changes a line goes through here.
pub(crate) async fn replace_entry(
    tx: &mut super::WriteTx,
    tree: &str,
    entry: &Entry,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE audit_entry SET line = $1 WHERE tree = $2 AND seq = $3")
        .bind(entry.to_line())
        .bind(tree.to_owned())
        .bind(bigint(entry.seq()))
        .execute(tx.sql())
        .await?;
    refresh_keys(tx, tree, entry).await
}

/// Makes the keys those of the line, if the line is still this one.
pub(crate) async fn refresh_keys(
    tx: &mut super::WriteTx,
    tree: &str,
    entry: &Entry,
) -> Result<(), StoreError> {
    let keys = Keys::of(entry.event());
    sqlx::query(
        "UPDATE audit_entry SET actor_key = $1, subject_key = $2, computer_key = $3, \
         computer_id = $4, client_key = $5, redirector = $6, session_id = $7, \
         log_no = (SELECT t.number FROM audit_tree t WHERE t.id = $8) \
         WHERE tree = $8 AND seq = $9 AND line = $10",
    )
    .bind(keys.actor)
    .bind(keys.subject)
    .bind(keys.computer)
    .bind(keys.computer_id)
    .bind(keys.client)
    .bind(keys.redirector)
    .bind(keys.session)
    .bind(tree.to_owned())
    .bind(bigint(entry.seq()))
    .bind(entry.to_line())
    .execute(tx.sql())
    .await?;
    Ok(())
}

async fn load_tree(
    connection: &mut AnyConnection,
    signer: &LogSigner,
    id: &str,
    row: &sqlx::any::AnyRow,
) -> Result<MerkleTree, StoreError> {
    let wrong = |what: &str| {
        StoreError::Corrupt(format!("audit log {id}: {what}; run mediator audit verify"))
    };
    let tree = MerkleTree::from_bytes(&row.blob("frontier")?)
        .ok_or_else(|| wrong("its frontier cannot be read"))?;
    let head = SignedHead::parse(row.text("head")?.as_bytes())
        .map_err(|_| wrong("its head cannot be read"))?;
    head.verify().map_err(|_| wrong("its head is not signed by the log key"))?;
    if head.key_cert.as_ref().map(|cert| cert.root) != Some(signer.cert().root) {
        return Err(wrong("its head is of another installation"));
    }
    if head.tree != id || head.size != tree.size() || head.root != tree.root() {
        return Err(wrong("head and frontier do not agree"));
    }
    let last = sqlx::query(
        "SELECT seq, leaf, line FROM audit_entry WHERE tree = $1 ORDER BY seq DESC LIMIT 1",
    )
    .bind(id.to_owned())
    .fetch_optional(connection)
    .await?;
    let Some(last) = last else { return Err(wrong("it has no entries")) };
    if last.number("seq")?.checked_add(1) != Some(tree.size()) {
        return Err(wrong("entries are missing at its end, or there are too many"));
    }
    let entry = Entry::parse(last.text("line")?.as_bytes())
        .map_err(|error| wrong(&format!("its last entry: {error}")))?;
    let leaf = Hash::from_slice(&last.blob("leaf")?);
    // The last leaf is a node of the frontier or completes one.
    if leaf != Some(entry.leaf()) {
        return Err(wrong("its last entry does not fit its leaf"));
    }
    Ok(tree)
}

/// A tree's place in the list of logs.
pub(crate) struct TreeRow {
    pub(crate) id: String,
    pub(crate) partner: String,
    pub(crate) head: SignedHead,
}

/// All logs, oldest generation of each partner first.
pub(crate) async fn trees(pool: &AnyPool) -> Result<Vec<TreeRow>, StoreError> {
    let rows = sqlx::query(
        "SELECT t.id AS id, COALESCE(p.name, t.partner_id) AS partner, t.head AS head \
         FROM audit_tree t LEFT JOIN partner p ON p.id = t.partner_id \
         ORDER BY COALESCE(p.created_ms, 0), t.partner_id, t.current, t.id",
    )
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let head = SignedHead::parse(row.text("head")?.as_bytes())
                .map_err(|error| StoreError::Corrupt(format!("head of a log: {error}")))?;
            Ok(TreeRow { id: row.text("id")?, partner: row.text("partner")?, head })
        })
        .collect()
}

/// Partner id, partner and head of each log that is added to.
pub(crate) async fn current(
    pool: &AnyPool,
) -> Result<Vec<(String, String, SignedHead)>, StoreError> {
    let rows = sqlx::query(
        "SELECT t.partner_id AS partner_id, COALESCE(p.name, t.partner_id) AS partner, \
         t.head AS head FROM audit_tree t LEFT JOIN partner p ON p.id = t.partner_id \
         WHERE t.current = $1",
    )
    .bind(1_i16)
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let head = SignedHead::parse(row.text("head")?.as_bytes())
                .map_err(|error| StoreError::Corrupt(format!("head of a log: {error}")))?;
            Ok((row.text("partner_id")?, row.text("partner")?, head))
        })
        .collect()
}

/// Leaves beyond which only the size of a log is compared when the mediator starts: the full
/// comparison is `audit verify`.
const MAX_LEAVES_COMPARED: u64 = 200_000;

/// Does the stored log go on from this head?
pub(crate) async fn extends(pool: &AnyPool, head: &SignedHead) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT frontier FROM audit_tree WHERE id = $1")
        .bind(head.tree.clone())
        .fetch_optional(pool)
        .await?;
    let Some(row) = row else { return Ok(false) };
    let tree = MerkleTree::from_bytes(&row.blob("frontier")?)
        .ok_or_else(|| StoreError::Corrupt("frontier of a log".into()))?;
    if tree.size() < head.size {
        return Ok(false);
    }
    if tree.size() == head.size {
        return Ok(tree.root() == head.root);
    }
    if head.size > MAX_LEAVES_COMPARED {
        return Ok(true);
    }
    let mut before = MerkleTree::new();
    for leaf in leaves(pool, &head.tree, 0, head.size).await? {
        before.append(leaf);
    }
    Ok(before.size() == head.size && before.root() == head.root)
}

/// Leaves of a log from `from` on, none at or beyond `end`; fewer if some are missing.
pub(crate) async fn leaves(
    pool: &AnyPool,
    tree: &str,
    from: u64,
    end: u64,
) -> Result<Vec<Hash>, StoreError> {
    let rows = sqlx::query(
        "SELECT leaf FROM audit_entry WHERE tree = $1 AND seq >= $2 AND seq < $3 ORDER BY seq",
    )
    .bind(tree.to_owned())
    .bind(bigint(from))
    .bind(bigint(end))
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            Hash::from_slice(&row.blob("leaf")?)
                .ok_or_else(|| StoreError::Corrupt("leaf of an entry".into()))
        })
        .collect()
}

/// One stored entry.
pub(crate) struct EntryRow {
    pub(crate) seq: u64,
    pub(crate) time_ms: u64,
    pub(crate) leaf: Hash,
    pub(crate) line: String,
}

/// Lines of a log, one after the other.
pub(crate) struct Lines {
    /// Each ends with a line feed, but for the last one.
    pub(crate) text: String,
    /// Number of the last one.
    pub(crate) last: u64,
    /// Is there nothing among them whose content was deleted?
    pub(crate) whole: bool,
}

/// What [`entries`] gives, where only the lines are wanted: in one piece, because a thousand rows
/// cost several times what it takes to read them. `None`: there are none.
pub(crate) async fn lines(
    pool: &AnyPool,
    tree: &str,
    from: u64,
    end: u64,
    limit: u32,
) -> Result<Option<Lines>, StoreError> {
    let row = sqlx::query(
        "SELECT COUNT(*) AS rows, MAX(seq) AS last, SUM(CASE WHEN line = '' THEN 1 ELSE 0 END) AS \
         pruned, string_agg(line, $5 ORDER BY seq) AS text FROM (SELECT seq, line FROM audit_entry \
         WHERE tree = $1 AND seq >= $2 AND seq < $3 ORDER BY seq LIMIT $4) l",
    )
    .bind(tree.to_owned())
    .bind(bigint(from))
    .bind(bigint(end))
    .bind(i64::from(limit))
    .bind("\n")
    .fetch_one(pool)
    .await?;
    if row.number("rows")? == 0 {
        return Ok(None);
    }
    let (last, whole) = (row.number("last")?, row.number("pruned")? == 0);
    Ok(Some(Lines { text: row.text("text")?, last, whole }))
}

/// Entries of a log from `from` on, at most `limit`, none at or beyond `end`.
pub(crate) async fn entries(
    pool: &AnyPool,
    tree: &str,
    from: u64,
    end: u64,
    limit: u32,
) -> Result<Vec<EntryRow>, StoreError> {
    let rows = sqlx::query(
        "SELECT seq, time_ms, leaf, line FROM audit_entry \
         WHERE tree = $1 AND seq >= $2 AND seq < $3 ORDER BY seq LIMIT $4",
    )
    .bind(tree.to_owned())
    .bind(bigint(from))
    .bind(bigint(end))
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let leaf = Hash::from_slice(&row.blob("leaf")?)
                .ok_or_else(|| StoreError::Corrupt("leaf of an entry".into()))?;
            Ok(EntryRow {
                seq: row.number("seq")?,
                time_ms: row.number("time_ms")?,
                leaf,
                line: row.text("line")?,
            })
        })
        .collect()
}
