//! Kill switches: technicians' devices that may not log in, clients that are locked down.

use adit_protocol::keys::{Fingerprint, PublicKey};
use sqlx::AnyPool;

use super::{Columns, StoreError, WriteTx, bigint};

/// Devices that one partner switches off for its own users.
const MAX_BLOCKED: u64 = 10_000;

/// A device that is switched off.
pub(crate) struct Lock {
    /// Fingerprint of the device.
    pub(crate) what: String,
    /// Name of the partner for whose users alone it is switched off.
    pub(crate) partner: Option<String>,
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

/// The same inside a transaction, for users of a partner: that may have switched it off, too.
pub(crate) async fn device_in(
    tx: &mut WriteTx,
    device: PublicKey,
    partner: &str,
) -> Result<bool, StoreError> {
    let row = sqlx::query(
        "SELECT since_ms FROM device_block WHERE device = $1 UNION ALL \
         SELECT since_ms FROM partner_device_block WHERE device = $1 AND partner_id = $2",
    )
    .bind(device.fingerprint().to_string())
    .bind(partner.to_owned())
    .fetch_optional(tx.sql())
    .await?;
    Ok(row.is_some())
}

/// Whether a partner switched a device off for its users.
pub(crate) async fn device_of(
    pool: &AnyPool,
    device: PublicKey,
    partner: &str,
) -> Result<bool, StoreError> {
    let statement =
        "SELECT since_ms FROM partner_device_block WHERE device = $1 AND partner_id = $2";
    let row = sqlx::query(statement)
        .bind(device.fingerprint().to_string())
        .bind(partner.to_owned())
        .fetch_optional(pool)
        .await?;
    Ok(row.is_some())
}

/// Devices that are switched off for everybody, and those that partners switched off for their
/// users: all partners, or this one.
pub(crate) async fn devices(
    pool: &AnyPool,
    partner: Option<&str>,
) -> Result<Vec<Lock>, StoreError> {
    let rows = sqlx::query(
        "SELECT device AS what, reason, since_ms, '' AS partner FROM device_block UNION ALL \
         SELECT b.device AS what, b.reason AS reason, b.since_ms AS since_ms, p.name AS partner \
         FROM partner_device_block b JOIN partner p ON p.id = b.partner_id \
         WHERE $1 = '' OR b.partner_id = $1 ORDER BY what, partner",
    )
    .bind(partner.unwrap_or_default().to_owned())
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let (what, reason) = (row.text("what")?, row.text("reason")?);
            let partner = Some(row.text("partner")?).filter(|name| !name.is_empty());
            Ok(Lock { what, partner, reason, since_ms: row.number("since_ms")? })
        })
        .collect()
}

/// Switches a device off, for everybody or for the users of a partner, and ends their logins
/// with it; their number.
pub(crate) async fn disable_device(
    tx: &mut WriteTx,
    device: Fingerprint,
    partner: Option<&str>,
    reason: &str,
) -> Result<u64, StoreError> {
    if let Some(partner) = partner {
        let row =
            sqlx::query("SELECT COUNT(*) AS count FROM partner_device_block WHERE partner_id = $1")
                .bind(partner.to_owned())
                .fetch_one(tx.sql())
                .await?;
        if row.number("count")? >= MAX_BLOCKED {
            return Err(StoreError::Taken("room for devices that are switched off"));
        }
    }
    let now = bigint(tx.now_ms());
    let statement = match partner {
        None => {
            "INSERT INTO device_block (device, reason, since_ms) VALUES ($1, $2, $3) \
             ON CONFLICT (device) DO UPDATE SET reason = excluded.reason"
        }
        Some(_) => {
            "INSERT INTO partner_device_block (device, reason, since_ms, partner_id) \
             VALUES ($1, $2, $3, $4) \
             ON CONFLICT (partner_id, device) DO UPDATE SET reason = excluded.reason"
        }
    };
    let mut insert =
        sqlx::query(statement).bind(device.to_string()).bind(reason.to_owned()).bind(now);
    if let Some(partner) = partner {
        insert = insert.bind(partner.to_owned());
    }
    insert.execute(tx.sql()).await?;
    let rows = sqlx::query(
        "SELECT DISTINCT l.device AS device FROM login l JOIN account a ON a.id = l.account_id \
         WHERE ($1 = '' OR a.partner_id = $1)",
    )
    .bind(partner.unwrap_or_default().to_owned())
    .fetch_all(tx.sql())
    .await?;
    let mut ended = 0;
    for row in rows {
        let key = row.blob("device")?;
        if PublicKey::from_slice(&key).is_ok_and(|key| key.fingerprint() == device) {
            let done = sqlx::query(
                "DELETE FROM login WHERE device = $1 AND account_id IN \
                 (SELECT id FROM account WHERE $2 = '' OR partner_id = $2)",
            )
            .bind(key)
            .bind(partner.unwrap_or_default().to_owned())
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
    partner: Option<&str>,
) -> Result<bool, StoreError> {
    let statement = match partner {
        None => "DELETE FROM device_block WHERE device = $1",
        Some(_) => "DELETE FROM partner_device_block WHERE device = $1 AND partner_id = $2",
    };
    let mut query = sqlx::query(statement).bind(device.to_string());
    if let Some(partner) = partner {
        query = query.bind(partner.to_owned());
    }
    Ok(query.execute(tx.sql()).await?.rows_affected() == 1)
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
