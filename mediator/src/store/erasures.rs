//! Rows of clients and partners that are erased, and how far that has come.
//!
//! Rows go in one transaction, entries of the log in small steps: of those salt and personal
//! fields are deleted, the hash stays. Each step can be done again.

use adit_ledger::Entry;
use adit_protocol::ids::ComputerId;
use serde::{Deserialize, Serialize};
use sqlx::{AnyPool, any::AnyRow};

use super::{Columns, StoreError, WriteTx, access, audit, bigint, credentials, tenants};

/// Entries looked at in one step.
const STEP: u32 = 500;

/// A client, or a partner with all of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Client,
    Partner,
}

impl Kind {
    /// As stored and told.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Partner => "partner",
        }
    }

    /// The one of that name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        [Self::Client, Self::Partner].into_iter().find(|kind| kind.name() == name)
    }
}

/// What was destroyed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Counts {
    pub(crate) clients: u64,
    pub(crate) computers: u64,
    pub(crate) accounts: u64,
    pub(crate) credentials: u64,
    pub(crate) sessions: u64,
    pub(crate) tenant_keys: u64,
    pub(crate) entries: u64,
    /// Accounts, of an erased client's partner, that may do nothing any more.
    pub(crate) accounts_without_rights: u64,
    /// Whether the database was rewritten without traces of it; `None`: not tried yet.
    pub(crate) rewritten: Option<bool>,
    /// A backup was restored that did not know of it, or not that it is done.
    pub(crate) again: bool,
}

/// An erasure that was begun.
#[derive(Clone, Debug)]
pub(crate) struct Erasure {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) partner_id: String,
    /// Empty for a partner.
    pub(crate) client_id: String,
    /// `partner/client` or `partner`.
    pub(crate) subject: String,
    /// Who began it: an id, never a name.
    pub(crate) begun_by: Option<String>,
    pub(crate) begun_ms: u64,
    pub(crate) finished_ms: Option<u64>,
    pub(crate) counts: Counts,
    pub(crate) certificate: String,
}

const SELECT: &str = "SELECT id, kind, partner_id, client_id, subject, begun_by, begun_ms, \
     finished_ms, counts, certificate FROM erasure";

fn read(row: &AnyRow) -> Result<Erasure, StoreError> {
    let finished: Option<i64> = sqlx::Row::try_get(row, "finished_ms")?;
    Ok(Erasure {
        id: row.text("id")?,
        kind: row.text("kind").and_then(|kind| {
            Kind::of(&kind).ok_or_else(|| StoreError::Corrupt(format!("erasure of a {kind}")))
        })?,
        partner_id: row.text("partner_id")?,
        client_id: row.text("client_id")?,
        subject: row.text("subject")?,
        begun_by: row.opt_text("begun_by")?,
        begun_ms: row.number("begun_ms")?,
        finished_ms: finished.and_then(|ms| u64::try_from(ms).ok()),
        counts: serde_json::from_str(&row.text("counts")?).unwrap_or_default(),
        certificate: row.text("certificate")?,
    })
}

/// Those that can be read: one that cannot, or is of a newer version, keeps no other from its end.
fn readable(rows: &[AnyRow]) -> Vec<Erasure> {
    let one = |row| {
        let read = read(row);
        read.inspect_err(|error| tracing::warn!(%error, "an erasure cannot be read")).ok()
    };
    rows.iter().filter_map(one).collect()
}

/// All of them, newest first.
pub(crate) async fn all(pool: &AnyPool) -> Result<Vec<Erasure>, StoreError> {
    let statement = format!("{SELECT} ORDER BY begun_ms DESC, id");
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement)).fetch_all(pool).await?;
    Ok(readable(&rows))
}

/// Notes that one begins.
pub(crate) async fn begin(tx: &mut WriteTx, new: &Erasure) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO erasure (id, kind, partner_id, client_id, subject, begun_ms, counts, \
         certificate, begun_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(new.id.clone())
    .bind(new.kind.name().to_owned())
    .bind(new.partner_id.clone())
    .bind(new.client_id.clone())
    .bind(new.subject.clone())
    .bind(bigint(new.begun_ms))
    .bind(counts_text(&new.counts))
    .bind(String::new())
    .bind(new.begun_by.clone())
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// Those that nobody has finished, by id, oldest first.
pub(crate) async fn left(pool: &AnyPool) -> Result<Vec<Erasure>, StoreError> {
    let statement = format!("{SELECT} WHERE finished_ms IS NULL ORDER BY begun_ms, id");
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement)).fetch_all(pool).await?;
    Ok(readable(&rows))
}

/// Whether one of the client, or of its whole partner, has begun and is not done.
pub(crate) async fn is_begun(
    tx: &mut WriteTx,
    partner: &str,
    client: &str,
) -> Result<bool, StoreError> {
    let row = sqlx::query(
        "SELECT id FROM erasure WHERE finished_ms IS NULL AND partner_id = $1 \
         AND client_id IN ('', $2)",
    )
    .bind(partner.to_owned())
    .bind(client.to_owned())
    .fetch_optional(tx.sql())
    .await?;
    Ok(row.is_some())
}

/// The one of that id as far as it has come, if nobody has finished it.
pub(crate) async fn unfinished(pool: &AnyPool, id: &str) -> Result<Option<Erasure>, StoreError> {
    let statement = format!("{SELECT} WHERE id = $1 AND finished_ms IS NULL");
    let query = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(id.to_owned());
    query.fetch_optional(pool).await?.as_ref().map(read).transpose()
}

/// Whether the client or partner is still there.
pub(crate) async fn is_there(tx: &mut WriteTx, of: &Erasure) -> Result<bool, StoreError> {
    let (statement, id) = match of.kind {
        Kind::Client => ("SELECT id FROM client WHERE id = $1", &of.client_id),
        Kind::Partner => ("SELECT id FROM partner WHERE id = $1", &of.partner_id),
    };
    let row = sqlx::query(statement).bind(id.clone()).fetch_optional(tx.sql()).await?;
    Ok(row.is_some())
}

/// Notes how far it has come.
pub(crate) async fn note(tx: &mut WriteTx, id: &str, counts: &Counts) -> Result<(), StoreError> {
    sqlx::query("UPDATE erasure SET counts = $1 WHERE id = $2")
        .bind(counts_text(counts))
        .bind(id.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(())
}

/// Notes that it is done.
pub(crate) async fn finish(
    tx: &mut WriteTx,
    id: &str,
    finished_ms: u64,
    certificate: &str,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE erasure SET finished_ms = $1, certificate = $2 WHERE id = $3")
        .bind(bigint(finished_ms))
        .bind(certificate.to_owned())
        .bind(id.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(())
}

fn counts_text(counts: &Counts) -> String {
    serde_json::to_string(counts).unwrap_or_default()
}

/// Puts one that is done into a database that does not know, or did not know that it is done.
pub(crate) async fn keep(tx: &mut WriteTx, done: &Erasure) -> Result<(), StoreError> {
    let known = sqlx::query("SELECT id FROM erasure WHERE id = $1").bind(done.id.clone());
    if known.fetch_optional(tx.sql()).await?.is_none() {
        begin(tx, done).await?;
    }
    note(tx, &done.id, &done.counts).await?;
    finish(tx, &done.id, done.finished_ms.unwrap_or_default(), &done.certificate).await
}

/// Ids of a partner's clients.
pub(crate) async fn clients(pool: &AnyPool, partner: &str) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query("SELECT id FROM client WHERE partner_id = $1 ORDER BY id")
        .bind(partner.to_owned())
        .fetch_all(pool)
        .await?;
    rows.iter().map(|row| row.text("id")).collect()
}

/// Ids of a partner's accounts.
pub(crate) async fn accounts(pool: &AnyPool, partner: &str) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query("SELECT id FROM account WHERE partner_id = $1 ORDER BY id")
        .bind(partner.to_owned())
        .fetch_all(pool)
        .await?;
    rows.iter().map(|row| row.text("id")).collect()
}

/// Nobody of the partner's may log in any more, and what is logged in is not.
pub(crate) async fn close_accounts(tx: &mut WriteTx, partner: &str) -> Result<(), StoreError> {
    for statement in [
        "UPDATE account SET disabled = 1 WHERE partner_id = $1",
        "DELETE FROM login WHERE account_id IN (SELECT id FROM account WHERE partner_id = $1)",
    ] {
        sqlx::query(statement).bind(partner.to_owned()).execute(tx.sql()).await?;
    }
    Ok(())
}

/// Deletes a client's rows; adds to the counts, and gives the computers that are not enrolled any
/// more. Nothing is done a second time.
pub(crate) async fn delete_client(
    tx: &mut WriteTx,
    client: &str,
    counts: &mut Counts,
) -> Result<Vec<ComputerId>, StoreError> {
    let rows = sqlx::query("SELECT id FROM computer WHERE client_id = $1")
        .bind(client.to_owned())
        .fetch_all(tx.sql())
        .await?;
    let computers: Vec<ComputerId> =
        rows.iter().map(|row| row.parsed("id")).collect::<Result<_, _>>()?;
    access::labels::forget_client(tx, client).await?;
    access::requests::forget_client(tx, client).await?;
    counts.accounts_without_rights += access::bindings::forget_client(tx, client).await?;
    counts.credentials += credentials::forget_client(tx, client).await?;
    let mut deleted = async |statement: &'static str| {
        let done = sqlx::query(statement).bind(client.to_owned()).execute(tx.sql()).await?;
        Ok::<u64, StoreError>(done.rows_affected())
    };
    deleted(
        "DELETE FROM receipt WHERE session_id IN (SELECT id FROM session WHERE client_id = $1)",
    )
    .await?;
    deleted(
        "DELETE FROM enrolment WHERE computer_id IN (SELECT id FROM computer WHERE client_id = $1)",
    )
    .await?;
    counts.sessions += deleted("DELETE FROM session WHERE client_id = $1").await?;
    deleted("DELETE FROM enroll_token WHERE client_id = $1").await?;
    deleted("DELETE FROM client_lock WHERE client_id = $1").await?;
    // Answers of the API that are kept to be given again: sealed, so that nobody can tell which are
    // about the client. All of the partner's are emptied, those under way will not be kept; asked
    // again, each says that it is to be looked at what became of it.
    deleted(
        "UPDATE api_reply SET status = 0, body = X'00' \
         WHERE partner_id = (SELECT partner_id FROM client WHERE id = $1)",
    )
    .await?;
    deleted("DELETE FROM removed_computer WHERE client_id = $1").await?;
    counts.computers += deleted("DELETE FROM computer WHERE client_id = $1").await?;
    counts.clients += deleted("DELETE FROM client WHERE id = $1").await?;
    Ok(computers)
}

/// What belongs to accounts of a partner, and then to the partner, in the order in which it goes.
const OF_PARTNER: [&str; 26] = [
    "DELETE FROM login WHERE account_id IN (SELECT id FROM account WHERE partner_id = $1)",
    "DELETE FROM known_device WHERE account_id IN (SELECT id FROM account WHERE partner_id = $1)",
    "DELETE FROM recovery_code WHERE account_id IN (SELECT id FROM account WHERE partner_id = $1)",
    "DELETE FROM factor WHERE partner_id = $1",
    "DELETE FROM oidc_link WHERE partner_id = $1",
    "DELETE FROM oidc_secret WHERE partner_id = $1",
    "DELETE FROM oidc_provider WHERE partner_id = $1",
    "DELETE FROM access_decision WHERE request_id IN \
     (SELECT id FROM access_request WHERE partner_id = $1)",
    "DELETE FROM access_request WHERE partner_id = $1",
    "DELETE FROM access_binding WHERE partner_id = $1",
    "DELETE FROM access_binding WHERE scope_partner_id = $1",
    "DELETE FROM access_role WHERE partner_id = $1",
    "DELETE FROM account_label WHERE partner_id = $1",
    "DELETE FROM computer_label WHERE partner_id = $1",
    "DELETE FROM receipt WHERE partner_id = $1",
    "DELETE FROM enrolment WHERE partner_id = $1",
    "DELETE FROM removed_computer WHERE partner_id = $1",
    "DELETE FROM session WHERE partner_id = $1",
    "DELETE FROM enroll_token WHERE partner_id = $1",
    "DELETE FROM api_reply WHERE partner_id = $1",
    "DELETE FROM api_key WHERE partner_id = $1",
    "DELETE FROM partner_device_block WHERE partner_id = $1",
    "DELETE FROM audit_hold WHERE partner_id = $1",
    "DELETE FROM audit_policy WHERE partner_id = $1",
    "DELETE FROM account WHERE partner_id = $1",
    "DELETE FROM partner WHERE id = $1",
];

/// Deletes a partner's rows; its clients are gone already.
pub(crate) async fn delete_partner(
    tx: &mut WriteTx,
    partner: &str,
    counts: &mut Counts,
) -> Result<(), StoreError> {
    for statement in OF_PARTNER {
        let done = sqlx::query(statement).bind(partner.to_owned()).execute(tx.sql()).await?;
        if statement.starts_with("DELETE FROM account ") {
            counts.accounts += done.rows_affected();
        }
    }
    // They are gone.
    counts.accounts_without_rights = 0;
    Ok(())
}

/// The logs of a partner, former ones too, with their numbers.
pub(crate) async fn logs(pool: &AnyPool, partner: &str) -> Result<Vec<(String, u64)>, StoreError> {
    let rows =
        sqlx::query("SELECT id, number FROM audit_tree WHERE partner_id = $1 ORDER BY number")
            .bind(partner.to_owned())
            .fetch_all(pool)
            .await?;
    rows.iter().map(|row| Ok((row.text("id")?, row.number("number")?))).collect()
}

/// A client that has the name of an erased one.
pub(crate) struct Namesake {
    created_ms: u64,
    /// Tree and entry with which it was added, if that is still there.
    added: Option<(u64, u64)>,
}

impl Namesake {
    /// Whether an entry of that name is the newer client's: by sequence, whatever clocks did, else
    /// by time.
    pub(crate) fn owns(&self, tree_number: u64, seq: u64, time_ms: u64) -> bool {
        match self.added {
            Some(added) => (tree_number, seq) >= added,
            None => time_ms >= self.created_ms,
        }
    }
}

/// The client that is called `path` now, if it is another one than `client`.
pub(crate) async fn namesake(
    pool: &AnyPool,
    partner: &str,
    client: &str,
    path: &str,
) -> Result<Option<Namesake>, StoreError> {
    let name = path.split_once('/').map_or("", |(_, name)| name);
    // Spelled the same: entries of a client that is spelled otherwise name another path, and must
    // not be what keeps the erased one's.
    let row = sqlx::query(
        "SELECT created_ms FROM client WHERE partner_id = $1 AND name = $2 AND id <> $3",
    )
    .bind(partner.to_owned())
    .bind(name.to_owned())
    .bind(client.to_owned())
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let created_ms = row.number("created_ms")?;
    let added = sqlx::query(
        "SELECT t.number AS number, e.seq AS seq, e.line AS line FROM audit_entry e \
         JOIN audit_tree t ON t.id = e.tree WHERE t.partner_id = $1 AND e.event = $2 \
         ORDER BY t.number DESC, e.seq DESC",
    )
    .bind(partner.to_owned())
    .bind("client.added")
    .fetch_all(pool)
    .await?;
    let mut of_path = None;
    for row in added {
        let entry = parsed(&row.text("line")?)?;
        // What is older than the client tells of the erased one.
        let is_its = |entry: Entry| {
            entry.event().client.as_deref() == Some(path) && entry.time_ms() >= created_ms
        };
        if entry.is_some_and(is_its) {
            of_path = Some((row.number("number")?, row.number("seq")?));
            break;
        }
    }
    Ok(Some(Namesake { created_ms, added: of_path }))
}

/// Entries from `from` on that may tell of persons, with their times: of a client, or all. Also
/// where to go on; `None`: there are no more.
pub(crate) async fn telling(
    pool: &AnyPool,
    tree: &str,
    from: u64,
    client: Option<&str>,
) -> Result<(Vec<(u64, u64)>, Option<u64>), StoreError> {
    let pattern = client.map_or_else(
        || "%".to_owned(),
        |path| {
            let text = serde_json::Value::from(path).to_string();
            let mut pattern = String::from("%\"client\":");
            for c in text.chars() {
                if matches!(c, '%' | '_' | '\\') {
                    pattern.push('\\');
                }
                pattern.push(c);
            }
            pattern.push('%');
            pattern
        },
    );
    let rows = sqlx::query(
        "SELECT seq, line FROM audit_entry WHERE tree = $1 AND seq >= $2 \
         AND line LIKE $3 ESCAPE '\\' ORDER BY seq LIMIT $4",
    )
    .bind(tree.to_owned())
    .bind(bigint(from))
    .bind(pattern)
    .bind(i64::from(STEP))
    .fetch_all(pool)
    .await?;
    let mut found = Vec::new();
    let mut last = None;
    for row in &rows {
        let seq = row.number("seq")?;
        last = Some(seq);
        let entry = parsed(&row.text("line")?)?.filter(|entry| tells(entry, client));
        found.extend(entry.map(|entry| (seq, entry.time_ms())));
    }
    let full = rows.len() >= STEP as usize;
    Ok((found, last.filter(|_| full).map(|seq| seq.saturating_add(1))))
}

/// Deletes salt and personal fields of these entries; how many there still were.
pub(crate) async fn forget_entries(
    tx: &mut WriteTx,
    tree: &str,
    entries: &[u64],
    client: Option<&str>,
) -> Result<u64, StoreError> {
    let mut erased = 0;
    for seq in entries {
        let row = sqlx::query("SELECT line FROM audit_entry WHERE tree = $1 AND seq = $2")
            .bind(tree.to_owned())
            .bind(bigint(*seq))
            .fetch_optional(tx.sql())
            .await?;
        let Some(row) = row else { continue };
        // Retention may have been here meanwhile.
        let Some(mut entry) = parsed(&row.text("line")?)? else { continue };
        if tells(&entry, client) {
            entry.erase();
            audit::replace_entry(tx, tree, &entry).await?;
            erased += 1;
        }
    }
    Ok(erased)
}

/// `None` for what retention has emptied.
fn parsed(line: &str) -> Result<Option<Entry>, StoreError> {
    if line.is_empty() {
        return Ok(None);
    }
    Entry::parse(line.as_bytes())
        .map(Some)
        .map_err(|error| StoreError::Corrupt(format!("audit entry: {error}")))
}

fn tells(entry: &Entry, client: Option<&str>) -> bool {
    let event = entry.event();
    // A look at a list has what was asked for, as it was written.
    let asked = |path: &str| match event.extra_personal.get("client") {
        Some(adit_ledger::Value::Text(text)) => tenants::name_key(text) == tenants::name_key(path),
        _ => false,
    };
    let about = |path: &str| event.client.as_deref() == Some(path) || asked(path);
    !entry.is_erased() && client.is_none_or(about)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Mode, Store};

    /// What stays, and why: hashes of the log and what says that it was pruned; erasures
    /// themselves; what a client's own statements delete.
    const KEPT: [&str; 2] = ["audit_tree", "erasure"];
    const OF_CLIENT: [&str; 4] = ["computer", "client", "credential", "client_key"];

    /// Whoever adds a table that belongs to a tenant says what becomes of it when that is erased.
    #[tokio::test]
    async fn every_table_of_a_tenant_is_erased_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("m.db"), Mode::Create).await.unwrap();
        let columns = sqlx::query(
            "SELECT m.name AS t, c.name AS c FROM sqlite_master m, pragma_table_info(m.name) c \
             WHERE m.type = 'table'",
        );
        let rows = columns.fetch_all(&store.readers).await.unwrap();
        for row in rows {
            let (table, column) = (row.text("t").unwrap(), row.text("c").unwrap());
            if !["partner_id", "account_id", "client_id"].contains(&column.as_str()) {
                continue;
            }
            let start = format!("DELETE FROM {table} ");
            let erased = OF_PARTNER.iter().any(|statement| statement.starts_with(&start))
                || OF_CLIENT.contains(&table.as_str())
                || table == "client_lock"
                || KEPT.contains(&table.as_str());
            assert!(erased, "{table} is not erased with its tenant (store/erasures.rs)");
        }
        store.close().await;
    }
}
