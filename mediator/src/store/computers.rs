//! Computers with an agent.

use adit_protocol::{ids::ComputerId, keys::PublicKey};
use sqlx::{AnyPool, any::AnyRow};

use super::{Columns, StoreError, WriteTx, access::filter::Clause, bigint, like_contains, tenants};

/// Computers that the machine's administrator sees in one list.
const MAX_FOUND: u32 = 10_000;

/// A computer with its client and partner.
#[derive(Clone, Debug)]
pub(crate) struct ComputerRow {
    pub(crate) id: ComputerId,
    pub(crate) name: String,
    pub(crate) partner_id: String,
    pub(crate) partner: String,
    pub(crate) client_id: String,
    pub(crate) client: String,
    pub(crate) identity: PublicKey,
    /// An encoded `Signed`.
    pub(crate) noise_cert: Vec<u8>,
    pub(crate) os: String,
    pub(crate) last_seen_ms: u64,
}

impl ComputerRow {
    /// `partner/client`.
    pub(crate) fn client_path(&self) -> String {
        format!("{}/{}", self.partner, self.client)
    }

    /// Where a page of a list goes on.
    pub(crate) fn cursor(&self) -> String {
        format!("{}\n{}", tenants::name_key(&self.name), self.id)
    }
}

/// What is known of a new computer.
pub(crate) struct NewComputer {
    pub(crate) client: tenants::Client,
    pub(crate) name: String,
    pub(crate) identity: PublicKey,
    pub(crate) noise_cert: Vec<u8>,
    pub(crate) tags: String,
    pub(crate) os: String,
    pub(crate) version: String,
}

const SELECT: &str = "SELECT k.id AS id, k.name AS name, k.identity AS identity, \
     k.noise_cert AS noise_cert, k.os AS os, k.last_seen_ms AS last_seen_ms, \
     p.id AS partner_id, p.name AS partner, c.id AS client_id, c.name AS client \
     FROM computer k JOIN partner p ON p.id = k.partner_id JOIN client c ON c.id = k.client_id";

fn read(row: &AnyRow) -> Result<ComputerRow, StoreError> {
    let identity = PublicKey::from_slice(&row.blob("identity")?)
        .map_err(|_| StoreError::Corrupt("identity of a computer".into()))?;
    Ok(ComputerRow {
        id: row.parsed("id")?,
        name: row.text("name")?,
        partner_id: row.text("partner_id")?,
        partner: row.text("partner")?,
        client_id: row.text("client_id")?,
        client: row.text("client")?,
        identity,
        noise_cert: row.blob("noise_cert")?,
        os: row.text("os")?,
        last_seen_ms: row.number("last_seen_ms")?,
    })
}

/// Adds a computer.
pub(crate) async fn insert(tx: &mut WriteTx, new: &NewComputer) -> Result<ComputerId, StoreError> {
    let id = super::fresh_id()?;
    let now = bigint(tx.now_ms());
    sqlx::query(
        "INSERT INTO computer (id, partner_id, client_id, name, name_key, identity, noise_cert, \
         tags, os, version, status, enrolled_ms, last_seen_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(id.clone())
    .bind(new.client.partner_id.clone())
    .bind(new.client.id.clone())
    .bind(new.name.clone())
    .bind(tenants::name_key(&new.name))
    .bind(new.identity.0.to_vec())
    .bind(new.noise_cert.clone())
    .bind(new.tags.clone())
    .bind(new.os.clone())
    .bind(new.version.clone())
    .bind(String::new())
    .bind(now)
    .bind(now)
    .execute(tx.sql())
    .await
    .map_err(|error| tenants::taken(error, "name of the computer"))?;
    id.parse().map_err(|_| StoreError::Corrupt("fresh id".into()))
}

/// By its identity, inside a transaction.
pub(crate) async fn by_identity(
    tx: &mut WriteTx,
    identity: PublicKey,
) -> Result<Option<ComputerRow>, StoreError> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("{SELECT} WHERE k.identity = $1")))
        .bind(identity.0.to_vec())
        .fetch_optional(tx.sql())
        .await?;
    row.as_ref().map(read).transpose()
}

/// By its id, whatever the partner: for the agent's own connection.
pub(crate) async fn by_id(
    pool: &AnyPool,
    id: ComputerId,
) -> Result<Option<ComputerRow>, StoreError> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("{SELECT} WHERE k.id = $1")))
        .bind(id.to_string())
        .fetch_optional(pool)
        .await?;
    row.as_ref().map(read).transpose()
}

/// By its id, if it belongs to this partner.
pub(crate) async fn of_partner(
    pool: &AnyPool,
    partner_id: &str,
    id: ComputerId,
) -> Result<Option<ComputerRow>, StoreError> {
    let statement = format!("{SELECT} WHERE k.id = $1 AND k.partner_id = $2");
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(id.to_string())
        .bind(partner_id.to_owned())
        .fetch_optional(pool)
        .await?;
    row.as_ref().map(read).transpose()
}

/// A page of the computers that `visible` lets through and whose name or id contains `query`,
/// after a cursor.
pub(crate) async fn list(
    pool: &AnyPool,
    visible: &Clause,
    query: &str,
    client: Option<&str>,
    after: &str,
    limit: u32,
) -> Result<Vec<ComputerRow>, StoreError> {
    let (after_name, after_id) = after.split_once('\n').unwrap_or((after, ""));
    let mut clause = visible.clone();
    let query = clause.bind(like_contains(query));
    let client = clause.bind(client.map(tenants::name_key).unwrap_or_default());
    let (name, id) = (clause.bind(after_name), clause.bind(after_id));
    let statement = format!(
        "{SELECT} WHERE {} \
         AND (k.name_key LIKE {query} ESCAPE '\\' OR k.id LIKE {query} ESCAPE '\\') \
         AND ({client} = '' OR c.name_key = {client}) \
         AND (k.name_key > {name} OR (k.name_key = {name} AND k.id > {id})) \
         ORDER BY k.name_key, k.id LIMIT {limit}",
        clause.text
    );
    let mut query = sqlx::query(sqlx::AssertSqlSafe(statement));
    for value in &clause.values {
        query = query.bind(value.clone());
    }
    let rows = query.fetch_all(pool).await?;
    rows.iter().map(read).collect()
}

/// Path of the client that all of a partner's computers belong to which that search text finds.
pub(crate) async fn only_client(
    pool: &AnyPool,
    partner: &str,
    query: &str,
) -> Result<Option<String>, StoreError> {
    let rows = sqlx::query(
        "SELECT DISTINCT p.name AS partner, c.name AS client FROM computer k \
         JOIN client c ON c.id = k.client_id JOIN partner p ON p.id = c.partner_id \
         WHERE c.partner_id = $1 \
         AND (k.name_key LIKE $2 ESCAPE '\\' OR k.id LIKE $2 ESCAPE '\\') LIMIT 2",
    )
    .bind(partner.to_owned())
    .bind(like_contains(query))
    .fetch_all(pool)
    .await?;
    match rows.as_slice() {
        [row] => Ok(Some(format!("{}/{}", row.text("partner")?, row.text("client")?))),
        _ => Ok(None),
    }
}

/// Ids of the clients with a computer that `visible` lets through.
pub(crate) async fn clients(
    pool: &AnyPool,
    visible: &Clause,
) -> Result<std::collections::BTreeSet<String>, StoreError> {
    let statement =
        format!("SELECT DISTINCT k.client_id AS id FROM computer k WHERE {}", visible.text);
    let mut query = sqlx::query(sqlx::AssertSqlSafe(statement));
    for value in &visible.values {
        query = query.bind(value.clone());
    }
    let rows = query.fetch_all(pool).await?;
    rows.iter().map(|row| row.text("id")).collect()
}

/// All computers, or those of one name or id, whatever the partner: for the machine's
/// administrator. `text` is `partner/client/name`, `client/name`, a name or an id.
pub(crate) async fn find(pool: &AnyPool, text: &str) -> Result<Vec<ComputerRow>, StoreError> {
    let mut parts: Vec<&str> = text.splitn(3, '/').collect();
    let name = parts.pop().unwrap_or_default();
    let client = parts.pop().unwrap_or_default();
    let partner = parts.pop().unwrap_or_default();
    let statement = format!(
        "{SELECT} WHERE ($1 = '' OR k.name_key = $1 OR k.id = $1) \
         AND ($2 = '' OR c.name_key = $2) AND ($3 = '' OR p.name_key = $3) \
         ORDER BY p.name_key, c.name_key, k.name_key LIMIT {MAX_FOUND}"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(tenants::name_key(name))
        .bind(tenants::name_key(client))
        .bind(tenants::name_key(partner))
        .fetch_all(pool)
        .await?;
    rows.iter().map(read).collect()
}

/// Gives a computer another name; false if there is no such computer any more.
pub(crate) async fn rename(
    tx: &mut WriteTx,
    id: ComputerId,
    name: &str,
) -> Result<bool, StoreError> {
    let done = sqlx::query("UPDATE computer SET name = $1, name_key = $2 WHERE id = $3")
        .bind(name.to_owned())
        .bind(tenants::name_key(name))
        .bind(id.to_string())
        .execute(tx.sql())
        .await
        .map_err(|error| tenants::taken(error, "name of the computer"))?;
    Ok(done.rows_affected() > 0)
}

/// What goes with a computer and is its alone. Sessions and receipts stay, as evidence of what was
/// done: they go with the client. `$1` is its id.
pub(crate) const OF_COMPUTER: [&str; 4] = [
    "DELETE FROM access_decision WHERE request_id IN \
     (SELECT id FROM access_request WHERE computer_id = $1)",
    "DELETE FROM access_request WHERE computer_id = $1",
    "DELETE FROM computer_label WHERE computer_id = $1",
    "DELETE FROM enrolment WHERE computer_id = $1",
];

/// Removes a computer with what is its alone; how many credentials went with it, or `None` if there
/// is no such computer any more. Notes the removal, so that a restored backup does not undo it.
pub(crate) async fn remove(tx: &mut WriteTx, row: &ComputerRow) -> Result<Option<u64>, StoreError> {
    let (id, now) = (row.id.to_string(), bigint(tx.now_ms()));
    sqlx::query(
        "UPDATE access_binding SET valid_to_ms = $1 \
         WHERE scope_kind = 'computer' AND scope_id = $2 AND valid_to_ms IS NULL",
    )
    .bind(now)
    .bind(id.clone())
    .execute(tx.sql())
    .await?;
    for statement in OF_COMPUTER {
        sqlx::query(statement).bind(id.clone()).execute(tx.sql()).await?;
    }
    let credentials = sqlx::query("DELETE FROM credential WHERE computer_id = $1")
        .bind(id.clone())
        .execute(tx.sql())
        .await?;
    let gone = sqlx::query("DELETE FROM computer WHERE id = $1")
        .bind(id.clone())
        .execute(tx.sql())
        .await?;
    if gone.rows_affected() == 0 {
        return Ok(None);
    }
    sqlx::query(
        "INSERT INTO removed_computer (computer_id, partner_id, client_id, removed_ms) \
         VALUES ($1, $2, $3, $4)",
    )
    .bind(id)
    .bind(row.partner_id.clone())
    .bind(row.client_id.clone())
    .bind(now)
    .execute(tx.sql())
    .await?;
    Ok(Some(credentials.rows_affected()))
}

/// Notes that the agent was here, and its Noise key; false if there is no such computer any more.
pub(crate) async fn seen(
    tx: &mut WriteTx,
    id: ComputerId,
    noise_cert: Option<Vec<u8>>,
) -> Result<bool, StoreError> {
    let now = bigint(tx.now_ms());
    let known = sqlx::query("UPDATE computer SET last_seen_ms = $1 WHERE id = $2")
        .bind(now)
        .bind(id.to_string())
        .execute(tx.sql())
        .await?;
    if let Some(cert) = noise_cert {
        sqlx::query("UPDATE computer SET noise_cert = $1 WHERE id = $2")
            .bind(cert)
            .bind(id.to_string())
            .execute(tx.sql())
            .await?;
    }
    Ok(known.rows_affected() > 0)
}

/// Stores what the agent reported of its computer; false if there is no such computer any more.
pub(crate) async fn status(
    tx: &mut WriteTx,
    id: ComputerId,
    os: &str,
    version: &str,
    status: &str,
) -> Result<bool, StoreError> {
    let now = bigint(tx.now_ms());
    let known = sqlx::query(
        "UPDATE computer SET os = $1, version = $2, status = $3, last_seen_ms = $4 WHERE id = $5",
    )
    .bind(os.to_owned())
    .bind(version.to_owned())
    .bind(status.to_owned())
    .bind(now)
    .bind(id.to_string())
    .execute(tx.sql())
    .await?;
    Ok(known.rows_affected() > 0)
}
