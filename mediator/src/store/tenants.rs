//! Partners and clients, and the settings of the installation.

use sqlx::AnyPool;

use super::{Columns, StoreError, WriteTx, bigint, fresh_id};

/// A client with its partner.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) partner_id: String,
    pub(crate) partner: String,
}

impl Client {
    /// `partner/client`.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.partner, self.name)
    }
}

/// A partner.
#[derive(Clone, Debug)]
pub(crate) struct Partner {
    pub(crate) id: String,
    pub(crate) name: String,
}

/// By which names are compared.
pub(crate) fn name_key(name: &str) -> String {
    name.to_lowercase()
}

/// Makes a partner and its audit log.
pub(crate) async fn create_partner(tx: &mut WriteTx, name: &str) -> Result<Partner, StoreError> {
    let id = fresh_id()?;
    let now = bigint(tx.now_ms());
    sqlx::query("INSERT INTO partner (id, name, name_key, created_ms) VALUES ($1, $2, $3, $4)")
        .bind(id.clone())
        .bind(name.to_owned())
        .bind(name_key(name))
        .bind(now)
        .execute(tx.sql())
        .await
        .map_err(|error| taken(error, "name of the partner"))?;
    tx.start_tree(&id, name, None).await?;
    Ok(Partner { id, name: name.to_owned() })
}

/// Finds a partner by name.
pub(crate) async fn partner(tx: &mut WriteTx, name: &str) -> Result<Option<Partner>, StoreError> {
    let row = sqlx::query("SELECT id, name FROM partner WHERE name_key = $1")
        .bind(name_key(name))
        .fetch_optional(tx.sql())
        .await?;
    row.map(|row| Ok(Partner { id: row.text("id")?, name: row.text("name")? })).transpose()
}

/// A partner that must be there.
pub(crate) async fn partner_by_id(tx: &mut WriteTx, id: &str) -> Result<Partner, StoreError> {
    let row = sqlx::query("SELECT id, name FROM partner WHERE id = $1")
        .bind(id.to_owned())
        .fetch_optional(tx.sql())
        .await?
        .ok_or(StoreError::Missing("partner"))?;
    Ok(Partner { id: row.text("id")?, name: row.text("name")? })
}

/// The name of a partner that must be there.
pub(crate) async fn partner_name(pool: &AnyPool, id: &str) -> Result<String, StoreError> {
    let row = sqlx::query("SELECT name FROM partner WHERE id = $1")
        .bind(id.to_owned())
        .fetch_optional(pool)
        .await?
        .ok_or(StoreError::Missing("partner"))?;
    row.text("name")
}

/// Makes a client.
pub(crate) async fn create_client(
    tx: &mut WriteTx,
    partner: &Partner,
    name: &str,
) -> Result<Client, StoreError> {
    let id = fresh_id()?;
    let now = bigint(tx.now_ms());
    sqlx::query(
        "INSERT INTO client (id, partner_id, name, name_key, created_ms) \
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(id.clone())
    .bind(partner.id.clone())
    .bind(name.to_owned())
    .bind(name_key(name))
    .bind(now)
    .execute(tx.sql())
    .await
    .map_err(|error| taken(error, "name of the client"))?;
    Ok(Client {
        id,
        name: name.to_owned(),
        partner_id: partner.id.clone(),
        partner: partner.name.clone(),
    })
}

/// Finds a client by the names in `partner/client`.
pub(crate) async fn find_client(
    pool: &AnyPool,
    partner: &str,
    name: &str,
) -> Result<Option<Client>, StoreError> {
    let row = sqlx::query(
        "SELECT c.id AS id, c.name AS name, p.id AS partner_id, p.name AS partner \
         FROM client c JOIN partner p ON p.id = c.partner_id \
         WHERE p.name_key = $1 AND c.name_key = $2",
    )
    .bind(name_key(partner))
    .bind(name_key(name))
    .fetch_optional(pool)
    .await?;
    row.map(|row| {
        Ok(Client {
            id: row.text("id")?,
            name: row.text("name")?,
            partner_id: row.text("partner_id")?,
            partner: row.text("partner")?,
        })
    })
    .transpose()
}

/// Partners, by name.
pub(crate) async fn partners(pool: &AnyPool) -> Result<Vec<Partner>, StoreError> {
    let rows =
        sqlx::query("SELECT id, name FROM partner ORDER BY name_key").fetch_all(pool).await?;
    rows.iter().map(|row| Ok(Partner { id: row.text("id")?, name: row.text("name")? })).collect()
}

/// Id and name of a client's computer, by either.
pub(crate) async fn computer_of(
    pool: &AnyPool,
    client: &str,
    text: &str,
) -> Result<Option<(String, String)>, StoreError> {
    let row = sqlx::query(
        "SELECT id, name FROM computer WHERE client_id = $1 AND (id = $2 OR name_key = $3) \
         ORDER BY CASE WHEN id = $2 THEN 0 ELSE 1 END LIMIT 1",
    )
    .bind(client.to_owned())
    .bind(text.to_owned())
    .bind(name_key(text))
    .fetch_optional(pool)
    .await?;
    row.map(|row| Ok((row.text("id")?, row.text("name")?))).transpose()
}

/// Path of a partner's client of that name, as it is spelled there.
pub(crate) async fn client_path(
    pool: &AnyPool,
    partner: &str,
    name: &str,
) -> Result<Option<String>, StoreError> {
    let row = sqlx::query(
        "SELECT c.name AS name, p.name AS partner FROM client c \
         JOIN partner p ON p.id = c.partner_id WHERE p.id = $1 AND c.name_key = $2",
    )
    .bind(partner.to_owned())
    .bind(name_key(name))
    .fetch_optional(pool)
    .await?;
    row.map(|row| Ok(format!("{}/{}", row.text("partner")?, row.text("name")?))).transpose()
}

/// A client that must be there.
pub(crate) async fn client_by_id(tx: &mut WriteTx, id: &str) -> Result<Client, StoreError> {
    let row = sqlx::query(
        "SELECT c.id AS id, c.name AS name, p.id AS partner_id, p.name AS partner \
         FROM client c JOIN partner p ON p.id = c.partner_id WHERE c.id = $1",
    )
    .bind(id.to_owned())
    .fetch_optional(tx.sql())
    .await?
    .ok_or(StoreError::Missing("client"))?;
    Ok(Client {
        id: row.text("id")?,
        name: row.text("name")?,
        partner_id: row.text("partner_id")?,
        partner: row.text("partner")?,
    })
}

/// A client and how many computers it has.
pub(crate) async fn clients(pool: &AnyPool) -> Result<Vec<(Client, u64)>, StoreError> {
    let rows = sqlx::query(
        "SELECT c.id AS id, c.name AS name, p.id AS partner_id, p.name AS partner, \
         (SELECT COUNT(*) FROM computer k WHERE k.client_id = c.id) AS computers \
         FROM client c JOIN partner p ON p.id = c.partner_id ORDER BY p.name_key, c.name_key",
    )
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let client = Client {
                id: row.text("id")?,
                name: row.text("name")?,
                partner_id: row.text("partner_id")?,
                partner: row.text("partner")?,
            };
            Ok((client, row.number("computers")?))
        })
        .collect()
}

/// Reads a setting.
pub(crate) async fn setting(pool: &AnyPool, name: &str) -> Result<Option<String>, StoreError> {
    let row = sqlx::query("SELECT value FROM setting WHERE name = $1")
        .bind(name.to_owned())
        .fetch_optional(pool)
        .await?;
    row.map(|row| row.text("value")).transpose()
}

/// Writes a setting.
pub(crate) async fn set(tx: &mut WriteTx, name: &str, value: &str) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO setting (name, value) VALUES ($1, $2) \
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind(name.to_owned())
    .bind(value.to_owned())
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// Tells a violated uniqueness from other faults.
pub(crate) fn taken(error: sqlx::Error, what: &'static str) -> StoreError {
    match error.as_database_error() {
        Some(inner) if inner.is_unique_violation() => StoreError::Taken(what),
        _ => StoreError::Database(error),
    }
}
