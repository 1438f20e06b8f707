//! Enrolled relays. Their addresses and Noise keys are what they say when they register.

use adit_protocol::{ids::RelayId, keys::PublicKey};
use sqlx::{AnyPool, any::AnyRow};

use super::{Columns, StoreError, WriteTx, bigint, tenants};

/// A relay.
#[derive(Clone, Debug)]
pub(crate) struct RelayRow {
    pub(crate) id: RelayId,
    pub(crate) name: String,
    pub(crate) identity: PublicKey,
    pub(crate) region: String,
    pub(crate) last_seen_ms: u64,
    /// Gets nothing new.
    pub(crate) draining: bool,
    /// May not connect.
    pub(crate) disabled: bool,
}

const SELECT: &str =
    "SELECT id, name, identity, region, last_seen_ms, draining, disabled FROM relay";

fn read(row: &AnyRow) -> Result<RelayRow, StoreError> {
    let identity = PublicKey::from_slice(&row.blob("identity")?)
        .map_err(|_| StoreError::Corrupt("identity of a relay".into()))?;
    Ok(RelayRow {
        id: row.parsed("id")?,
        name: row.text("name")?,
        identity,
        region: row.text("region")?,
        last_seen_ms: row.number("last_seen_ms")?,
        draining: row.flag("draining")?,
        disabled: row.flag("disabled")?,
    })
}

/// Adds a relay.
pub(crate) async fn insert(
    tx: &mut WriteTx,
    name: &str,
    identity: PublicKey,
    region: &str,
) -> Result<RelayId, StoreError> {
    let id = super::fresh_id()?;
    let now = bigint(tx.now_ms());
    sqlx::query(
        "INSERT INTO relay (id, name, identity, region, enrolled_ms, last_seen_ms) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(id.clone())
    .bind(name.to_owned())
    .bind(identity.0.to_vec())
    .bind(region.to_owned())
    .bind(now)
    .bind(now)
    .execute(tx.sql())
    .await
    .map_err(|error| tenants::taken(error, "identity of the relay"))?;
    id.parse().map_err(|_| StoreError::Corrupt("fresh id".into()))
}

/// By its identity, inside a transaction.
pub(crate) async fn by_identity(
    tx: &mut WriteTx,
    identity: PublicKey,
) -> Result<Option<RelayRow>, StoreError> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("{SELECT} WHERE identity = $1")))
        .bind(identity.0.to_vec())
        .fetch_optional(tx.sql())
        .await?;
    row.as_ref().map(read).transpose()
}

/// By its id.
pub(crate) async fn by_id(pool: &AnyPool, id: RelayId) -> Result<Option<RelayRow>, StoreError> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("{SELECT} WHERE id = $1")))
        .bind(id.to_string())
        .fetch_optional(pool)
        .await?;
    row.as_ref().map(read).transpose()
}

/// Notes that the relay was here.
pub(crate) async fn seen(tx: &mut WriteTx, id: RelayId) -> Result<(), StoreError> {
    let now = bigint(tx.now_ms());
    sqlx::query("UPDATE relay SET last_seen_ms = $1 WHERE id = $2")
        .bind(now)
        .bind(id.to_string())
        .execute(tx.sql())
        .await?;
    Ok(())
}

/// All relays.
pub(crate) async fn list(pool: &AnyPool) -> Result<Vec<RelayRow>, StoreError> {
    let statement = format!("{SELECT} ORDER BY id LIMIT 10000");
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement)).fetch_all(pool).await?;
    rows.iter().map(read).collect()
}

/// Gives a relay nothing new, or again; false if there is none such.
pub(crate) async fn set_draining(
    tx: &mut WriteTx,
    id: RelayId,
    draining: bool,
) -> Result<bool, StoreError> {
    let done = sqlx::query("UPDATE relay SET draining = $1 WHERE id = $2")
        .bind(i16::from(draining))
        .bind(id.to_string())
        .execute(tx.sql())
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Lets a relay not connect, or again; false if there is none such.
pub(crate) async fn set_disabled(
    tx: &mut WriteTx,
    id: RelayId,
    disabled: bool,
) -> Result<bool, StoreError> {
    let done = sqlx::query("UPDATE relay SET disabled = $1 WHERE id = $2")
        .bind(i16::from(disabled))
        .bind(id.to_string())
        .execute(tx.sql())
        .await?;
    Ok(done.rows_affected() == 1)
}
