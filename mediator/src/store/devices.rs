//! Consoles with which an account logged in before, and their failures since.

use adit_protocol::keys::PublicKey;
use sqlx::AnyPool;

use super::{Columns, StoreError, WriteTx, bigint};

/// Of one account; the one that was used longest ago is forgotten first.
pub(crate) const MAX_PER_ACCOUNT: u32 = 32;
/// Listed at most.
const MAX_LISTED: u32 = 100_000;

/// A console with which somebody logged in.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) device: PublicKey,
    /// Whose account it was.
    pub(crate) user: String,
    /// When it was last used to log in.
    pub(crate) used_ms: u64,
}

/// Devices of all accounts, or of those of one partner; those used last first.
pub(crate) async fn known(pool: &AnyPool, partner: Option<&str>) -> Result<Vec<Known>, StoreError> {
    let of = if partner.is_some() { "WHERE a.partner_id = $1" } else { "" };
    let statement = format!(
        "SELECT d.device AS device, a.name AS name, d.used_ms AS used_ms FROM known_device d \
         JOIN account a ON a.id = d.account_id {of} ORDER BY d.used_ms DESC LIMIT {MAX_LISTED}"
    );
    let mut query = sqlx::query(sqlx::AssertSqlSafe(statement));
    if let Some(partner) = partner {
        query = query.bind(partner.to_owned());
    }
    let rows = query.fetch_all(pool).await?;
    rows.iter()
        .map(|row| {
            let device = PublicKey::from_slice(&row.blob("device")?)
                .map_err(|_| StoreError::Corrupt("key of a device".into()))?;
            Ok(Known { device, user: row.text("name")?, used_ms: row.number("used_ms")? })
        })
        .collect()
}

/// Before when a known device gets no password accepted; `None`: it is not known.
pub(crate) async fn retry_ms(
    pool: &AnyPool,
    account: &str,
    device: PublicKey,
) -> Result<Option<u64>, StoreError> {
    let row =
        sqlx::query("SELECT retry_ms FROM known_device WHERE account_id = $1 AND device = $2")
            .bind(account.to_owned())
            .bind(device.0.to_vec())
            .fetch_optional(pool)
            .await?;
    row.map(|row| row.number("retry_ms")).transpose()
}

/// The same inside a transaction.
pub(crate) async fn retry_ms_in(
    tx: &mut WriteTx,
    account: &str,
    device: PublicKey,
) -> Result<Option<u64>, StoreError> {
    let row =
        sqlx::query("SELECT retry_ms FROM known_device WHERE account_id = $1 AND device = $2")
            .bind(account.to_owned())
            .bind(device.0.to_vec())
            .fetch_optional(tx.sql())
            .await?;
    row.map(|row| row.number("retry_ms")).transpose()
}

/// The device logged in.
pub(crate) async fn note(
    tx: &mut WriteTx,
    account: &str,
    device: PublicKey,
) -> Result<(), StoreError> {
    let now = bigint(tx.now_ms());
    sqlx::query(
        "INSERT INTO known_device (account_id, device, failures, retry_ms, used_ms) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (account_id, device) DO UPDATE \
         SET failures = 0, retry_ms = 0, used_ms = excluded.used_ms",
    )
    .bind(account.to_owned())
    .bind(device.0.to_vec())
    .bind(0_i64)
    .bind(0_i64)
    .bind(now)
    .execute(tx.sql())
    .await?;
    sqlx::query(
        "DELETE FROM known_device WHERE account_id = $1 AND device NOT IN (SELECT device FROM \
         known_device WHERE account_id = $2 ORDER BY used_ms DESC, device LIMIT $3)",
    )
    .bind(account.to_owned())
    .bind(account.to_owned())
    .bind(i64::from(MAX_PER_ACCOUNT))
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// Counts one more failure and gives their number; `None` if the device is not known (any more).
pub(crate) async fn add_failure(
    tx: &mut WriteTx,
    account: &str,
    device: PublicKey,
) -> Result<Option<u64>, StoreError> {
    let row = sqlx::query(
        "UPDATE known_device SET failures = failures + 1 WHERE account_id = $1 AND device = $2 \
         RETURNING failures",
    )
    .bind(account.to_owned())
    .bind(device.0.to_vec())
    .fetch_optional(tx.sql())
    .await?;
    row.map(|row| row.number("failures")).transpose()
}

/// Sets the time before which the device gets no password accepted.
pub(crate) async fn set_retry(
    tx: &mut WriteTx,
    account: &str,
    device: PublicKey,
    retry_ms: u64,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE known_device SET retry_ms = $1 WHERE account_id = $2 AND device = $3")
        .bind(bigint(retry_ms))
        .bind(account.to_owned())
        .bind(device.0.to_vec())
        .execute(tx.sql())
        .await?;
    Ok(())
}

/// Forgets all devices of an account: its password is another.
pub(crate) async fn forget(tx: &mut WriteTx, account: &str) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM known_device WHERE account_id = $1")
        .bind(account.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(())
}
