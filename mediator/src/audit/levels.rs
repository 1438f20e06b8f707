//! Audit levels: up to which level the events of a user are kept.
//!
//! An event is left out only if it says that it may be ([`Event::optional`]) and its user's level
//! is below its own. New users have level 4: everyday acts are kept, looks are not. Access and
//! security events never say so. Must never keep less than it should for want of knowledge: who is
//! not known has the highest level.

use adit_ledger::{Event, Level};
use sqlx::{AnyConnection, AnyPool};

use super::keys::fold;
use crate::store::{Columns, StoreError, WriteTx};

/// Whether an event is kept, by the level of the user who acted.
pub(crate) async fn keeps(
    connection: &mut AnyConnection,
    event: &Event,
) -> Result<bool, StoreError> {
    if !event.optional {
        return Ok(true);
    }
    let Some(actor) = &event.actor else { return Ok(true) };
    let row = sqlx::query("SELECT audit_level FROM account WHERE name_key = $1")
        .bind(fold(actor))
        .fetch_optional(connection)
        .await?;
    let level = match row {
        Some(row) => Level::from_number(row.number("audit_level")?),
        None => None,
    };
    Ok(event.is_kept_at(level.unwrap_or(Level::Everything)))
}

/// Whether a user's level (by account id) is at least this: asked before work that only some
/// users' events need. What is kept, [`keeps`] decides.
pub(crate) async fn reaches(
    pool: &AnyPool,
    account: &str,
    level: Level,
) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT audit_level FROM account WHERE id = $1")
        .bind(account.to_owned())
        .fetch_optional(pool)
        .await?;
    let own = match row {
        Some(row) => Level::from_number(row.number("audit_level")?),
        None => None,
    };
    Ok(own.unwrap_or(Level::Everything) >= level)
}

/// Sets the level of a user (by account id).
pub(crate) async fn set(tx: &mut WriteTx, account: &str, level: Level) -> Result<(), StoreError> {
    sqlx::query("UPDATE account SET audit_level = $1 WHERE id = $2")
        .bind(i16::from(level as u8))
        .bind(account.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(())
}
