//! Credentials of clients and their data keys: sealed bytes in, sealed bytes out.
//!
//! Every row names its partner and client. What the bytes say only [`crate::vault`] knows.

use sqlx::{AnyPool, any::AnyRow};

use super::{
    Columns, StoreError, WriteTx,
    access::filter::{self, Clause},
    bigint, tenants,
};

/// Of one client.
pub(crate) const MAX_PER_CLIENT: u64 = 10_000;
/// In one list.
pub(crate) const MAX_LISTED: u32 = 1_000;

/// The columns by which lists are filtered: one for all computers of a client has no computer.
pub(crate) const FILTER: filter::Columns =
    filter::Columns { computer: "v.computer_id", client: "v.client_id", partner: "v.partner_id" };

/// A stored credential.
#[derive(Clone)]
pub(crate) struct CredentialRow {
    pub(crate) id: String,
    pub(crate) partner_id: String,
    pub(crate) partner: String,
    pub(crate) client_id: String,
    pub(crate) client: String,
    /// Empty: for all computers of the client.
    pub(crate) computer_id: String,
    /// Its name, if it is for one.
    pub(crate) computer: String,
    pub(crate) name: String,
    pub(crate) kind: String,
    /// None: all that have a viewer.
    pub(crate) redirectors: Vec<String>,
    pub(crate) automatic: bool,
    pub(crate) version: u64,
    pub(crate) key_version: u64,
    pub(crate) about: Vec<u8>,
    pub(crate) secret: Vec<u8>,
    pub(crate) created_ms: u64,
    pub(crate) changed_ms: u64,
    pub(crate) used_ms: u64,
}

impl CredentialRow {
    /// `partner/client`.
    pub(crate) fn client_path(&self) -> String {
        format!("{}/{}", self.partner, self.client)
    }
}

/// A client's data key, sealed.
#[derive(Clone)]
pub(crate) struct KeyRow {
    pub(crate) client_id: String,
    pub(crate) partner_id: String,
    pub(crate) version: u64,
    pub(crate) sealed: Vec<u8>,
}

const SELECT: &str = "SELECT v.id AS id, v.partner_id AS partner_id, p.name AS partner, \
     v.client_id AS client_id, c.name AS client, v.computer_id AS computer_id, \
     COALESCE(k.name, '') AS computer, v.name AS name, v.kind AS kind, \
     v.redirectors AS redirectors, v.automatic AS automatic, v.version AS version, \
     v.key_version AS key_version, v.about AS about, v.secret AS secret, \
     v.created_ms AS created_ms, v.changed_ms AS changed_ms, v.used_ms AS used_ms \
     FROM credential v JOIN partner p ON p.id = v.partner_id JOIN client c ON c.id = v.client_id \
     LEFT JOIN computer k ON k.id = v.computer_id";

fn read(row: &AnyRow) -> Result<CredentialRow, StoreError> {
    let redirectors = row.text("redirectors")?;
    Ok(CredentialRow {
        id: row.text("id")?,
        partner_id: row.text("partner_id")?,
        partner: row.text("partner")?,
        client_id: row.text("client_id")?,
        client: row.text("client")?,
        computer_id: row.text("computer_id")?,
        computer: row.text("computer")?,
        name: row.text("name")?,
        kind: row.text("kind")?,
        redirectors: redirectors.split_whitespace().map(str::to_owned).collect(),
        automatic: row.flag("automatic")?,
        version: row.number("version")?,
        key_version: row.number("key_version")?,
        about: row.blob("about")?,
        secret: row.blob("secret")?,
        created_ms: row.number("created_ms")?,
        changed_ms: row.number("changed_ms")?,
        used_ms: row.number("used_ms")?,
    })
}

/// By id, of one partner or (the machine's administrator) of any.
pub(crate) async fn by_id(
    pool: &AnyPool,
    partner: Option<&str>,
    id: &str,
) -> Result<Option<CredentialRow>, StoreError> {
    let statement = format!("{SELECT} WHERE v.id = $1 AND ($2 = '' OR v.partner_id = $2)");
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(id.to_owned())
        .bind(partner.unwrap_or_default().to_owned())
        .fetch_optional(pool)
        .await?;
    row.as_ref().map(read).transpose()
}

/// By the names of client, computer (or none) and credential.
pub(crate) async fn by_name(
    pool: &AnyPool,
    (partner, client): (&str, &str),
    computer: Option<&str>,
    name: &str,
) -> Result<Option<CredentialRow>, StoreError> {
    let statement = format!(
        "{SELECT} WHERE p.name_key = $1 AND c.name_key = $2 AND v.name_key = $3 \
         AND COALESCE(k.name_key, '') = $4"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(tenants::name_key(partner))
        .bind(tenants::name_key(client))
        .bind(tenants::name_key(name))
        .bind(computer.map(tenants::name_key).unwrap_or_default())
        .fetch_optional(pool)
        .await?;
    row.as_ref().map(read).transpose()
}

/// Those that `clause` (or, for the machine's administrator, nothing) lets through, of a client or
/// of all, from a name and id on.
pub(crate) async fn list(
    pool: &AnyPool,
    clause: Option<Clause>,
    client: Option<&str>,
    (after_name, after_id): (&str, &str),
) -> Result<Vec<CredentialRow>, StoreError> {
    let mut clause = clause.unwrap_or(Clause { text: "1 = 1".to_owned(), values: Vec::new() });
    let client = clause.bind(client.unwrap_or_default());
    let name = clause.bind(after_name);
    let id = clause.bind(after_id);
    let statement = format!(
        "{SELECT} WHERE {} AND ({client} = '' OR v.client_id = {client}) \
         AND (v.name_key > {name} OR (v.name_key = {name} AND v.id > {id})) \
         ORDER BY v.name_key, v.id LIMIT {MAX_LISTED}",
        clause.text
    );
    let mut query = sqlx::query(sqlx::AssertSqlSafe(statement));
    for value in clause.values {
        query = query.bind(value);
    }
    let rows = query.fetch_all(pool).await?;
    rows.iter().map(read).collect()
}

/// All that a computer's viewers may be given.
pub(crate) async fn of_computer(
    pool: &AnyPool,
    (partner, client): (&str, &str),
    computer: &str,
) -> Result<Vec<CredentialRow>, StoreError> {
    let statement = format!(
        "{SELECT} WHERE v.partner_id = $1 AND v.client_id = $2 \
         AND (v.computer_id = '' OR v.computer_id = $3) ORDER BY v.name_key, v.id"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(partner.to_owned())
        .bind(client.to_owned())
        .bind(computer.to_owned())
        .fetch_all(pool)
        .await?;
    rows.iter().map(read).collect()
}

/// All of a client, to seal them anew.
pub(crate) async fn of_client(
    tx: &mut WriteTx,
    client: &str,
) -> Result<Vec<CredentialRow>, StoreError> {
    let statement = format!("{SELECT} WHERE v.client_id = $1");
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(client.to_owned())
        .fetch_all(tx.sql())
        .await?;
    rows.iter().map(read).collect()
}

/// How many a client has.
pub(crate) async fn count(tx: &mut WriteTx, client: &str) -> Result<u64, StoreError> {
    sqlx::query("SELECT COUNT(*) AS n FROM credential WHERE client_id = $1")
        .bind(client.to_owned())
        .fetch_one(tx.sql())
        .await?
        .number("n")
}

/// Adds one.
pub(crate) async fn insert(tx: &mut WriteTx, row: &CredentialRow) -> Result<(), StoreError> {
    let now = bigint(tx.now_ms());
    sqlx::query(
        "INSERT INTO credential (id, partner_id, client_id, computer_id, name, name_key, kind, \
         redirectors, automatic, version, key_version, about, secret, created_ms, changed_ms, \
         used_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
    )
    .bind(row.id.clone())
    .bind(row.partner_id.clone())
    .bind(row.client_id.clone())
    .bind(row.computer_id.clone())
    .bind(row.name.clone())
    .bind(tenants::name_key(&row.name))
    .bind(row.kind.clone())
    .bind(row.redirectors.join(" "))
    .bind(i16::from(row.automatic))
    .bind(bigint(row.version))
    .bind(bigint(row.key_version))
    .bind(row.about.clone())
    .bind(row.secret.clone())
    .bind(now)
    .bind(now)
    .bind(0_i64)
    .execute(tx.sql())
    .await
    .map_err(|error| tenants::taken(error, "name of the credential"))?;
    Ok(())
}

/// Puts another version in the place of the one before it; false if that is not there any more.
pub(crate) async fn replace(tx: &mut WriteTx, row: &CredentialRow) -> Result<bool, StoreError> {
    let now = bigint(tx.now_ms());
    let done = sqlx::query(
        "UPDATE credential SET name = $1, name_key = $2, kind = $3, redirectors = $4, \
         automatic = $5, version = $6, key_version = $7, about = $8, secret = $9, \
         changed_ms = $10 WHERE id = $11 AND version = $12",
    )
    .bind(row.name.clone())
    .bind(tenants::name_key(&row.name))
    .bind(row.kind.clone())
    .bind(row.redirectors.join(" "))
    .bind(i16::from(row.automatic))
    .bind(bigint(row.version))
    .bind(bigint(row.key_version))
    .bind(row.about.clone())
    .bind(row.secret.clone())
    .bind(now)
    .bind(row.id.clone())
    .bind(bigint(row.version.saturating_sub(1)))
    .execute(tx.sql())
    .await
    .map_err(|error| tenants::taken(error, "name of the credential"))?;
    Ok(done.rows_affected() == 1)
}

/// Puts the same contents under another data key in place.
pub(crate) async fn reseal(tx: &mut WriteTx, row: &CredentialRow) -> Result<(), StoreError> {
    sqlx::query("UPDATE credential SET about = $1, secret = $2, key_version = $3 WHERE id = $4")
        .bind(row.about.clone())
        .bind(row.secret.clone())
        .bind(bigint(row.key_version))
        .bind(row.id.clone())
        .execute(tx.sql())
        .await?;
    Ok(())
}

/// Deletes one; false if it is gone already.
pub(crate) async fn delete(tx: &mut WriteTx, id: &str) -> Result<bool, StoreError> {
    let done = sqlx::query("DELETE FROM credential WHERE id = $1")
        .bind(id.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Notes that it was used; false if it is gone or was changed.
pub(crate) async fn used(tx: &mut WriteTx, id: &str, version: u64) -> Result<bool, StoreError> {
    let now = bigint(tx.now_ms());
    let done = sqlx::query("UPDATE credential SET used_ms = $1 WHERE id = $2 AND version = $3")
        .bind(now)
        .bind(id.to_owned())
        .bind(bigint(version))
        .execute(tx.sql())
        .await?;
    Ok(done.rows_affected() == 1)
}

fn read_key(row: &AnyRow) -> Result<KeyRow, StoreError> {
    Ok(KeyRow {
        client_id: row.text("client_id")?,
        partner_id: row.text("partner_id")?,
        version: row.number("version")?,
        sealed: row.blob("sealed")?,
    })
}

const KEY: &str = "SELECT client_id, partner_id, version, sealed FROM client_key";

/// A client's data key.
pub(crate) async fn key(pool: &AnyPool, client: &str) -> Result<Option<KeyRow>, StoreError> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("{KEY} WHERE client_id = $1")))
        .bind(client.to_owned())
        .fetch_optional(pool)
        .await?;
    row.as_ref().map(read_key).transpose()
}

/// The same inside a transaction.
pub(crate) async fn key_in(tx: &mut WriteTx, client: &str) -> Result<Option<KeyRow>, StoreError> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("{KEY} WHERE client_id = $1")))
        .bind(client.to_owned())
        .fetch_optional(tx.sql())
        .await?;
    row.as_ref().map(read_key).transpose()
}

/// Those of all clients.
pub(crate) async fn keys(pool: &AnyPool) -> Result<Vec<KeyRow>, StoreError> {
    let statement = format!("{KEY} ORDER BY client_id");
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement)).fetch_all(pool).await?;
    rows.iter().map(read_key).collect()
}

/// Keeps a client's data key, in the place of a former one.
pub(crate) async fn put_key(tx: &mut WriteTx, key: &KeyRow) -> Result<(), StoreError> {
    let now = bigint(tx.now_ms());
    sqlx::query(
        "INSERT INTO client_key (client_id, partner_id, version, sealed, created_ms) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (client_id) DO UPDATE SET \
         version = excluded.version, sealed = excluded.sealed, created_ms = excluded.created_ms",
    )
    .bind(key.client_id.clone())
    .bind(key.partner_id.clone())
    .bind(bigint(key.version))
    .bind(key.sealed.clone())
    .bind(now)
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// Deletes a client's credentials and its data key; the number of credentials.
pub(crate) async fn forget_client(tx: &mut WriteTx, client: &str) -> Result<u64, StoreError> {
    let done = sqlx::query("DELETE FROM credential WHERE client_id = $1")
        .bind(client.to_owned())
        .execute(tx.sql())
        .await?;
    sqlx::query("DELETE FROM client_key WHERE client_id = $1")
        .bind(client.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(done.rows_affected())
}
