//! Enrolment tokens: the public half of the seed, what it enrols, how often and how long.

use adit_protocol::{ids::TokenId, keys::PublicKey};

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

/// Finds a token.
pub(crate) async fn find(tx: &mut WriteTx, id: TokenId) -> Result<Option<TokenRow>, StoreError> {
    let row = sqlx::query(
        "SELECT kind, partner_id, client_id, region, public_key, uses_left, expires_ms \
         FROM enroll_token WHERE id = $1",
    )
    .bind(id.to_string())
    .fetch_optional(tx.sql())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let corrupt = |what: &str| StoreError::Corrupt(format!("enrolment token: {what}"));
    Ok(Some(TokenRow {
        id,
        kind: u8::try_from(row.number("kind")?).map_err(|_| corrupt("kind"))?,
        partner_id: row.opt_text("partner_id")?,
        client_id: row.opt_text("client_id")?,
        region: row.text("region")?,
        key: PublicKey::from_slice(&row.blob("public_key")?).map_err(|_| corrupt("key"))?,
        uses_left: row.number("uses_left")?,
        expires_ms: row.number("expires_ms")?,
    }))
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
