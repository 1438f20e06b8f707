//! Kill switches: technicians' devices that may not log in, clients that are locked down.

use adit_protocol::keys::{Fingerprint, PublicKey};
use sqlx::AnyPool;

use super::{Columns, StoreError, WriteTx, bigint};

/// A device or client that is switched off.
pub(crate) struct Lock {
    /// Fingerprint, or the client's id.
    pub(crate) what: String,
    pub(crate) reason: String,
    pub(crate) since_ms: u64,
}

/// Whether a device may not log in.
pub(crate) async fn device(pool: &AnyPool, device: PublicKey) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT since_ms FROM device_block WHERE device = $1")
        .bind(device.fingerprint().to_string())
        .fetch_optional(pool)
        .await?;
    Ok(row.is_some())
}

/// The same inside a transaction.
pub(crate) async fn device_in(tx: &mut WriteTx, device: PublicKey) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT since_ms FROM device_block WHERE device = $1")
        .bind(device.fingerprint().to_string())
        .fetch_optional(tx.sql())
        .await?;
    Ok(row.is_some())
}

/// Devices that are switched off.
pub(crate) async fn devices(pool: &AnyPool) -> Result<Vec<Lock>, StoreError> {
    let rows = sqlx::query(
        "SELECT device AS what, reason, since_ms FROM device_block ORDER BY since_ms, device",
    )
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let (what, reason) = (row.text("what")?, row.text("reason")?);
            Ok(Lock { what, reason, since_ms: row.number("since_ms")? })
        })
        .collect()
}

/// Switches a device off and ends its logins; their number.
pub(crate) async fn disable_device(
    tx: &mut WriteTx,
    device: Fingerprint,
    reason: &str,
) -> Result<u64, StoreError> {
    let now = bigint(tx.now_ms());
    sqlx::query(
        "INSERT INTO device_block (device, reason, since_ms) VALUES ($1, $2, $3) \
         ON CONFLICT (device) DO UPDATE SET reason = excluded.reason",
    )
    .bind(device.to_string())
    .bind(reason.to_owned())
    .bind(now)
    .execute(tx.sql())
    .await?;
    let rows = sqlx::query("SELECT DISTINCT device FROM login").fetch_all(tx.sql()).await?;
    let mut ended = 0;
    for row in rows {
        let key = row.blob("device")?;
        if PublicKey::from_slice(&key).is_ok_and(|key| key.fingerprint() == device) {
            let done = sqlx::query("DELETE FROM login WHERE device = $1")
                .bind(key)
                .execute(tx.sql())
                .await?;
            ended += done.rows_affected();
        }
    }
    Ok(ended)
}

/// Lets a device log in again; false if it could.
pub(crate) async fn enable_device(
    tx: &mut WriteTx,
    device: Fingerprint,
) -> Result<bool, StoreError> {
    let done = sqlx::query("DELETE FROM device_block WHERE device = $1")
        .bind(device.to_string())
        .execute(tx.sql())
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Whether a client is locked down.
pub(crate) async fn client(pool: &AnyPool, client: &str) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT since_ms FROM client_lock WHERE client_id = $1")
        .bind(client.to_owned())
        .fetch_optional(pool)
        .await?;
    Ok(row.is_some())
}

/// Locks a client down.
pub(crate) async fn lock_client(
    tx: &mut WriteTx,
    client: &str,
    reason: &str,
) -> Result<(), StoreError> {
    let now = bigint(tx.now_ms());
    sqlx::query(
        "INSERT INTO client_lock (client_id, reason, since_ms) VALUES ($1, $2, $3) \
         ON CONFLICT (client_id) DO UPDATE SET reason = excluded.reason",
    )
    .bind(client.to_owned())
    .bind(reason.to_owned())
    .bind(now)
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// Unlocks a client; false if it was not locked.
pub(crate) async fn unlock_client(tx: &mut WriteTx, client: &str) -> Result<bool, StoreError> {
    let done = sqlx::query("DELETE FROM client_lock WHERE client_id = $1")
        .bind(client.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(done.rows_affected() == 1)
}
