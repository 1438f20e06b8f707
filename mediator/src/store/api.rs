//! API keys, and answers kept for repeated requests.

use adit_protocol::keys::PublicKey;
use sqlx::{AnyPool, Row, any::AnyRow};

use super::{Columns, StoreError, WriteTx, bigint, tenants};

/// Keys of one partner that hold.
pub(crate) const MAX_KEYS: u64 = 1_000;
/// Answers kept for one principal.
const MAX_REPLIES: u64 = 1_000;

/// A key.
#[derive(Clone, Debug)]
pub(crate) struct ApiKeyRow {
    pub(crate) id: String,
    pub(crate) partner_id: String,
    pub(crate) partner: String,
    pub(crate) name: String,
    pub(crate) key: PublicKey,
    /// JSON.
    pub(crate) networks: String,
    pub(crate) created_by: String,
    pub(crate) created_ms: u64,
    pub(crate) expires_ms: u64,
    pub(crate) revoked: bool,
}

const SELECT: &str = "SELECT k.id AS id, k.partner_id AS partner_id, p.name AS partner, \
     k.name AS name, k.public_key AS public_key, k.networks AS networks, \
     k.created_by AS created_by, k.created_ms AS created_ms, k.expires_ms AS expires_ms, \
     k.revoked_ms AS revoked_ms FROM api_key k JOIN partner p ON p.id = k.partner_id";

fn read(row: &AnyRow) -> Result<ApiKeyRow, StoreError> {
    let revoked: Option<i64> = row.try_get("revoked_ms")?;
    Ok(ApiKeyRow {
        id: row.text("id")?,
        partner_id: row.text("partner_id")?,
        partner: row.text("partner")?,
        name: row.text("name")?,
        key: PublicKey::from_slice(&row.blob("public_key")?)
            .map_err(|_| StoreError::Corrupt("public key of an API key".into()))?,
        networks: row.text("networks")?,
        created_by: row.text("created_by")?,
        created_ms: row.number("created_ms")?,
        expires_ms: row.number("expires_ms")?,
        revoked: revoked.is_some(),
    })
}

/// Adds a key.
pub(crate) async fn insert(tx: &mut WriteTx, new: &ApiKeyRow) -> Result<(), StoreError> {
    let row = sqlx::query(
        "SELECT COUNT(*) AS count FROM api_key WHERE partner_id = $1 AND revoked_ms IS NULL",
    )
    .bind(new.partner_id.clone())
    .fetch_one(tx.sql())
    .await?;
    if row.number("count")? >= MAX_KEYS {
        return Err(StoreError::Unavailable(format!("there are {MAX_KEYS} API keys already")));
    }
    sqlx::query(
        "INSERT INTO api_key (id, partner_id, name, public_key, networks, created_by, \
         created_ms, expires_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(new.id.clone())
    .bind(new.partner_id.clone())
    .bind(new.name.clone())
    .bind(new.key.0.to_vec())
    .bind(new.networks.clone())
    .bind(new.created_by.clone())
    .bind(bigint(new.created_ms))
    .bind(bigint(new.expires_ms))
    .execute(tx.sql())
    .await
    .map_err(|error| tenants::taken(error, "public key of the API key"))?;
    Ok(())
}

/// A key by its id.
pub(crate) async fn by_id(pool: &AnyPool, id: &str) -> Result<Option<ApiKeyRow>, StoreError> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("{SELECT} WHERE k.id = $1")))
        .bind(id.to_owned())
        .fetch_optional(pool)
        .await?;
    row.as_ref().map(read).transpose()
}

/// Whether a key may still be used.
pub(crate) async fn enabled(pool: &AnyPool, id: &str) -> Result<bool, StoreError> {
    Ok(by_id(pool, id).await?.is_some_and(|key| !key.revoked))
}

/// The keys of a partner that were not revoked; without a partner, of all.
pub(crate) async fn list(
    pool: &AnyPool,
    partner: Option<&str>,
) -> Result<Vec<ApiKeyRow>, StoreError> {
    let statement = format!(
        "{SELECT} WHERE ($1 = '' OR k.partner_id = $1) AND k.revoked_ms IS NULL ORDER BY k.id"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(partner.unwrap_or_default().to_owned())
        .fetch_all(pool)
        .await?;
    rows.iter().map(read).collect()
}

/// Revokes a key for ever; false if it was.
pub(crate) async fn revoke(tx: &mut WriteTx, id: &str) -> Result<bool, StoreError> {
    let now = bigint(tx.now_ms());
    let done =
        sqlx::query("UPDATE api_key SET revoked_ms = $1 WHERE id = $2 AND revoked_ms IS NULL")
            .bind(now)
            .bind(id.to_owned())
            .execute(tx.sql())
            .await?;
    Ok(done.rows_affected() == 1)
}

/// An answer that is kept, or the mark that a request is under way.
#[derive(Clone, Debug)]
pub(crate) struct ReplyRow {
    pub(crate) request: String,
    /// 0: none yet.
    pub(crate) status: u64,
    pub(crate) body: Vec<u8>,
}

/// Begins a request that may be repeated; what is known of it if it was begun before. Forgets
/// what is older than `since_ms`, and the oldest of this principal if it keeps too many.
pub(crate) async fn begin_reply(
    tx: &mut WriteTx,
    (principal, partner): (&str, &str),
    name: &str,
    request: &str,
    since_ms: u64,
) -> Result<Option<ReplyRow>, StoreError> {
    sqlx::query("DELETE FROM api_reply WHERE created_ms < $1")
        .bind(bigint(since_ms))
        .execute(tx.sql())
        .await?;
    let known = sqlx::query(
        "SELECT request, status, body FROM api_reply \
         WHERE principal = $1 AND name = $2",
    )
    .bind(principal.to_owned())
    .bind(name.to_owned())
    .fetch_optional(tx.sql())
    .await?;
    if let Some(row) = known {
        return Ok(Some(ReplyRow {
            request: row.text("request")?,
            status: row.number("status")?,
            body: row.blob("body")?,
        }));
    }
    sqlx::query(
        "DELETE FROM api_reply WHERE principal = $1 AND name IN (SELECT name FROM api_reply \
         WHERE principal = $1 ORDER BY created_ms DESC LIMIT 1000000 OFFSET $2)",
    )
    .bind(principal.to_owned())
    .bind(bigint(MAX_REPLIES - 1))
    .execute(tx.sql())
    .await?;
    let now = bigint(tx.now_ms());
    sqlx::query(
        "INSERT INTO api_reply (principal, name, request, partner_id, status, body, created_ms) \
         VALUES ($1, $2, $3, $4, 0, $5, $6)",
    )
    .bind(principal.to_owned())
    .bind(name.to_owned())
    .bind(request.to_owned())
    .bind(partner.to_owned())
    .bind(Vec::new())
    .bind(now)
    .execute(tx.sql())
    .await?;
    Ok(None)
}

/// Keeps an answer, unless an erasure emptied what it would go into.
pub(crate) async fn keep_reply(
    tx: &mut WriteTx,
    principal: &str,
    name: &str,
    status: u16,
    body: Vec<u8>,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE api_reply SET status = $1, body = $2 \
         WHERE principal = $3 AND name = $4 AND LENGTH(body) = 0",
    )
    .bind(i64::from(status))
    .bind(body)
    .bind(principal.to_owned())
    .bind(name.to_owned())
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// Forgets a request that had no effect, so that it can be repeated.
pub(crate) async fn forget_reply(
    tx: &mut WriteTx,
    principal: &str,
    name: &str,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM api_reply WHERE principal = $1 AND name = $2")
        .bind(principal.to_owned())
        .bind(name.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(())
}
