//! Enrolment tokens: the public half of the seed, what it enrols, how often and how long.

use adit_protocol::{ids::TokenId, keys::PublicKey};
use sqlx::{AnyPool, any::AnyRow};

use super::{Columns, StoreError, WriteTx, bigint};

/// A stored token.
#[derive(Clone, Debug)]
pub(crate) struct TokenRow {
    pub(crate) id: TokenId,
    /// 1 agent, 3 relay.
    pub(crate) kind: u8,
    pub(crate) partner_id: Option<String>,
    pub(crate) client_id: Option<String>,
    pub(crate) region: String,
    pub(crate) key: PublicKey,
    pub(crate) uses_left: u64,
    pub(crate) expires_ms: u64,
}

/// How long expired tokens are kept, so that their use is told as expired, milliseconds.
const KEEP_EXPIRED_MS: u64 = 30 * 24 * 3_600_000;

/// Stores a token and forgets long expired ones.
pub(crate) async fn insert(tx: &mut WriteTx, token: &TokenRow) -> Result<(), StoreError> {
    let now = tx.now_ms();
    sqlx::query("DELETE FROM enroll_token WHERE expires_ms < $1")
        .bind(bigint(now.saturating_sub(KEEP_EXPIRED_MS)))
        .execute(tx.sql())
        .await?;
    sqlx::query(
        "INSERT INTO enroll_token (id, kind, partner_id, client_id, region, public_key, \
         uses_left, created_ms, expires_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(token.id.to_string())
    .bind(i16::from(token.kind))
    .bind(token.partner_id.clone())
    .bind(token.client_id.clone())
    .bind(token.region.clone())
    .bind(token.key.0.to_vec())
    .bind(bigint(token.uses_left))
    .bind(bigint(now))
    .bind(bigint(token.expires_ms))
    .execute(tx.sql())
    .await?;
    Ok(())
}

const SELECT: &str = "SELECT t.id AS id, t.kind AS kind, t.partner_id AS partner_id, \
     t.client_id AS client_id, t.region AS region, t.public_key AS public_key, \
     t.uses_left AS uses_left, t.expires_ms AS expires_ms, \
     p.name AS partner, c.name AS client FROM enroll_token t \
     LEFT JOIN client c ON c.id = t.client_id LEFT JOIN partner p ON p.id = t.partner_id";

fn read(row: &AnyRow) -> Result<TokenRow, StoreError> {
    let corrupt = |what: &str| StoreError::Corrupt(format!("enrolment token: {what}"));
    Ok(TokenRow {
        id: row.parsed("id")?,
        kind: u8::try_from(row.number("kind")?).map_err(|_| corrupt("kind"))?,
        partner_id: row.opt_text("partner_id")?,
        client_id: row.opt_text("client_id")?,
        region: row.text("region")?,
        key: PublicKey::from_slice(&row.blob("public_key")?).map_err(|_| corrupt("key"))?,
        uses_left: row.number("uses_left")?,
        expires_ms: row.number("expires_ms")?,
    })
}

/// Finds a token.
pub(crate) async fn find(tx: &mut WriteTx, id: TokenId) -> Result<Option<TokenRow>, StoreError> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("{SELECT} WHERE t.id = $1")))
        .bind(id.to_string())
        .fetch_optional(tx.sql())
        .await?;
    row.as_ref().map(read).transpose()
}

/// Tokens with uses left that end after a time, each with its `partner/client`.
pub(crate) async fn list(
    pool: &AnyPool,
    after_ms: u64,
) -> Result<Vec<(TokenRow, Option<String>)>, StoreError> {
    let statement =
        format!("{SELECT} WHERE t.uses_left > 0 AND t.expires_ms > $1 ORDER BY t.id LIMIT 10000");
    let rows =
        sqlx::query(sqlx::AssertSqlSafe(statement)).bind(bigint(after_ms)).fetch_all(pool).await?;
    rows.iter()
        .map(|row| {
            let path = row.opt_text("partner")?.zip(row.opt_text("client")?);
            Ok((read(row)?, path.map(|(partner, client)| format!("{partner}/{client}"))))
        })
        .collect()
}

/// Deletes a token; false if there is none.
pub(crate) async fn delete(tx: &mut WriteTx, id: TokenId) -> Result<bool, StoreError> {
    let done = sqlx::query("DELETE FROM enroll_token WHERE id = $1")
        .bind(id.to_string())
        .execute(tx.sql())
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Takes one use; false if none is left.
pub(crate) async fn spend(tx: &mut WriteTx, id: TokenId) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE enroll_token SET uses_left = uses_left - 1 WHERE id = $1 AND uses_left > 0",
    )
    .bind(id.to_string())
    .execute(tx.sql())
    .await?;
    Ok(done.rows_affected() == 1)
}
