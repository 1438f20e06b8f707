//! Second factors of accounts, and their recovery codes.
//!
//! A factor's secret is an envelope that only the wrapping keys open. What counts once is used up
//! by a conditional update in the transaction that permits something for it.

use sqlx::{AnyPool, any::AnyRow};

use super::{Columns, StoreError, WriteTx, bigint, fresh_id};
use crate::{mfa::totp::AppClock, vault::wrap::Place};

/// Table, for the envelopes' place.
const TABLE: &str = "factor";
/// Of one account, those that are not confirmed included.
pub(crate) const MAX_PER_ACCOUNT: usize = 8;

/// A second factor.
#[derive(Clone)]
pub(crate) struct FactorRow {
    pub(crate) id: String,
    pub(crate) account_id: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    /// An envelope.
    pub(crate) secret: Vec<u8>,
    /// Of a security key the counter is its last step.
    pub(crate) clock: AppClock,
    pub(crate) created_ms: u64,
    pub(crate) confirmed: bool,
    pub(crate) used_ms: u64,
}

impl FactorRow {
    /// Where its secret belongs.
    pub(crate) fn place(&self) -> Place<'_> {
        Place { table: TABLE, row: &self.id, tenant: &self.account_id }
    }
}

/// A factor that is set up.
pub(crate) struct NewFactor {
    pub(crate) id: String,
    pub(crate) account_id: String,
    pub(crate) partner_id: String,
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) secret: Vec<u8>,
    pub(crate) key_name: String,
}

impl NewFactor {
    /// An id, and the place of the secret that is sealed for it.
    pub(crate) fn fresh_id() -> Result<String, StoreError> {
        fresh_id()
    }

    /// The same place as [`FactorRow::place`].
    pub(crate) fn place<'a>(id: &'a str, account: &'a str) -> Place<'a> {
        Place { table: TABLE, row: id, tenant: account }
    }
}

const SELECT: &str = "SELECT f.id AS id, f.account_id AS account_id, \
     f.kind AS kind, f.name AS name, f.secret AS secret, f.last_step AS last_step, \
     f.drift_ms AS drift_ms, f.missed_ms AS missed_ms, \
     f.created_ms AS created_ms, f.used_ms AS used_ms, \
     CASE WHEN f.confirmed_ms IS NULL THEN 0 ELSE 1 END AS confirmed FROM factor f";

fn read(row: &AnyRow) -> Result<FactorRow, StoreError> {
    Ok(FactorRow {
        id: row.text("id")?,
        account_id: row.text("account_id")?,
        kind: row.text("kind")?,
        name: row.text("name")?,
        secret: row.blob("secret")?,
        clock: AppClock {
            last_step: row.number("last_step")?,
            drift_ms: sqlx::Row::try_get(row, "drift_ms")?,
            missed_ms: row.number("missed_ms")?,
            counted_ms: row.number("used_ms")?,
        },
        created_ms: row.number("created_ms")?,
        confirmed: row.flag("confirmed")?,
        used_ms: row.number("used_ms")?,
    })
}

/// All of an account, oldest first.
pub(crate) async fn of_account(
    pool: &AnyPool,
    account: &str,
) -> Result<Vec<FactorRow>, StoreError> {
    let statement = format!("{SELECT} WHERE f.account_id = $1 ORDER BY f.created_ms, f.id");
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(account.to_owned())
        .fetch_all(pool)
        .await?;
    rows.iter().map(read).collect()
}

/// All there are, to seal them anew.
pub(crate) async fn all(tx: &mut WriteTx) -> Result<Vec<FactorRow>, StoreError> {
    let rows = sqlx::query(SELECT).fetch_all(tx.sql()).await?;
    rows.iter().map(read).collect()
}

/// Puts another envelope of the same secret in place.
pub(crate) async fn reseal(
    tx: &mut WriteTx,
    id: &str,
    secret: Vec<u8>,
    key_name: &str,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE factor SET secret = $1, key_name = $2 WHERE id = $3")
        .bind(secret)
        .bind(key_name.to_owned())
        .bind(id.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(())
}

/// Names of the wrapping keys that are needed.
pub(crate) async fn key_names(pool: &AnyPool) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query("SELECT DISTINCT key_name FROM factor").fetch_all(pool).await?;
    rows.iter().map(|row| row.text("key_name")).collect()
}

/// Adds a factor that does not count yet; others that were never confirmed are forgotten.
pub(crate) async fn insert(tx: &mut WriteTx, new: NewFactor) -> Result<(), StoreError> {
    let now = bigint(tx.now_ms());
    sqlx::query("DELETE FROM factor WHERE account_id = $1 AND confirmed_ms IS NULL")
        .bind(new.account_id.clone())
        .execute(tx.sql())
        .await?;
    sqlx::query(
        "INSERT INTO factor (id, account_id, partner_id, kind, name, secret, key_name, last_step, \
         created_ms, used_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(new.id)
    .bind(new.account_id)
    .bind(new.partner_id)
    .bind(new.kind)
    .bind(new.name)
    .bind(new.secret)
    .bind(new.key_name)
    .bind(0_i64)
    .bind(now)
    .bind(0_i64)
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// Uses up a step of a confirmed factor; false if it, or a later one, was used already.
pub(crate) async fn use_step(
    tx: &mut WriteTx,
    id: &str,
    clock: &AppClock,
) -> Result<bool, StoreError> {
    let now = bigint(tx.now_ms());
    let done = sqlx::query(
        "UPDATE factor SET last_step = $1, drift_ms = $2, missed_ms = 0, used_ms = $3 \
         WHERE id = $4 AND last_step < $5 AND confirmed_ms IS NOT NULL",
    )
    .bind(bigint(clock.last_step))
    .bind(clock.drift_ms)
    .bind(now)
    .bind(id.to_owned())
    .bind(bigint(clock.last_step))
    .execute(tx.sql())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Notes a right code that was shown at another time than its own, and so is spent.
pub(crate) async fn miss_step(
    tx: &mut WriteTx,
    id: &str,
    clock: &AppClock,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE factor SET last_step = $1, missed_ms = $2 WHERE id = $3 AND last_step < $4",
    )
    .bind(bigint(clock.last_step))
    .bind(bigint(clock.missed_ms))
    .bind(id.to_owned())
    .bind(bigint(clock.last_step))
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// Notes the counter of a security key; false if it, or a later one, was seen already. Zero means
/// that the key does not count (WebAuthn §6.1.1).
pub(crate) async fn use_counter(
    tx: &mut WriteTx,
    id: &str,
    counter: u64,
) -> Result<bool, StoreError> {
    let now = bigint(tx.now_ms());
    let done = sqlx::query(
        "UPDATE factor SET last_step = $1, used_ms = $2 \
         WHERE id = $3 AND confirmed_ms IS NOT NULL \
         AND (last_step < $4 OR (last_step = 0 AND $5 = 0))",
    )
    .bind(bigint(counter))
    .bind(now)
    .bind(id.to_owned())
    .bind(bigint(counter))
    .bind(bigint(counter))
    .execute(tx.sql())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Lets a factor count from now on, its first code used up; false if it is not there to be
/// confirmed.
pub(crate) async fn confirm(
    tx: &mut WriteTx,
    account: &str,
    id: &str,
    clock: &AppClock,
) -> Result<bool, StoreError> {
    let now = bigint(tx.now_ms());
    let done = sqlx::query(
        "UPDATE factor SET last_step = $1, drift_ms = $2, missed_ms = 0, used_ms = $3, \
         confirmed_ms = $4 WHERE id = $5 AND account_id = $6 AND confirmed_ms IS NULL",
    )
    .bind(bigint(clock.last_step))
    .bind(clock.drift_ms)
    .bind(now)
    .bind(now)
    .bind(id.to_owned())
    .bind(account.to_owned())
    .execute(tx.sql())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Removes a factor; with the last confirmed one go the recovery codes. The kind, if it was there.
pub(crate) async fn remove(
    tx: &mut WriteTx,
    account: &str,
    id: &str,
) -> Result<Option<String>, StoreError> {
    let row = sqlx::query("DELETE FROM factor WHERE id = $1 AND account_id = $2 RETURNING kind")
        .bind(id.to_owned())
        .bind(account.to_owned())
        .fetch_optional(tx.sql())
        .await?;
    let Some(row) = row else { return Ok(None) };
    if confirmed(tx, account).await? == 0 {
        set_recovery(tx, account, &[]).await?;
    }
    row.text("kind").map(Some)
}

/// Removes all factors and recovery codes; the number of factors.
pub(crate) async fn remove_all(tx: &mut WriteTx, account: &str) -> Result<u64, StoreError> {
    let done = sqlx::query("DELETE FROM factor WHERE account_id = $1")
        .bind(account.to_owned())
        .execute(tx.sql())
        .await?;
    set_recovery(tx, account, &[]).await?;
    Ok(done.rows_affected())
}

/// Number of an account's factors that count.
pub(crate) async fn confirmed(tx: &mut WriteTx, account: &str) -> Result<u64, StoreError> {
    let row = sqlx::query(
        "SELECT COUNT(*) AS n FROM factor WHERE account_id = $1 AND confirmed_ms IS NOT NULL",
    )
    .bind(account.to_owned())
    .fetch_one(tx.sql())
    .await?;
    row.number("n")
}

/// Puts recovery codes in the place of all former ones.
pub(crate) async fn set_recovery(
    tx: &mut WriteTx,
    account: &str,
    hashes: &[[u8; 32]],
) -> Result<(), StoreError> {
    let now = bigint(tx.now_ms());
    sqlx::query("DELETE FROM recovery_code WHERE account_id = $1")
        .bind(account.to_owned())
        .execute(tx.sql())
        .await?;
    for hash in hashes {
        sqlx::query("INSERT INTO recovery_code (account_id, hash, created_ms) VALUES ($1, $2, $3)")
            .bind(account.to_owned())
            .bind(hash.to_vec())
            .bind(now)
            .execute(tx.sql())
            .await?;
    }
    Ok(())
}

/// Uses up a recovery code; false if there is none such.
pub(crate) async fn use_recovery(
    tx: &mut WriteTx,
    account: &str,
    hash: [u8; 32],
) -> Result<bool, StoreError> {
    let now = bigint(tx.now_ms());
    let done = sqlx::query(
        "UPDATE recovery_code SET used_ms = $1 \
         WHERE account_id = $2 AND hash = $3 AND used_ms IS NULL",
    )
    .bind(now)
    .bind(account.to_owned())
    .bind(hash.to_vec())
    .execute(tx.sql())
    .await?;
    Ok(done.rows_affected() == 1)
}

const LEFT: &str =
    "SELECT COUNT(*) AS n FROM recovery_code WHERE account_id = $1 AND used_ms IS NULL";

/// Recovery codes that are left.
pub(crate) async fn recovery_left(pool: &AnyPool, account: &str) -> Result<u64, StoreError> {
    sqlx::query(LEFT).bind(account.to_owned()).fetch_one(pool).await?.number("n")
}

/// The same inside a transaction.
pub(crate) async fn recovery_left_in(tx: &mut WriteTx, account: &str) -> Result<u64, StoreError> {
    sqlx::query(LEFT).bind(account.to_owned()).fetch_one(tx.sql()).await?.number("n")
}
