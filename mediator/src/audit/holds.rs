//! Legal holds: several may be on a partner at once, each for a case of its own.
//!
//! While any is there, nothing of the partner is deleted or erased. A hold is set and ends, and is
//! never changed. Must never end one that nobody named where there are several.

use sqlx::{AnyPool, Row, any::AnyRow};

use crate::store::{Columns, StoreError, WriteTx, bigint, fresh_id};

/// Holds on one partner.
pub(crate) const MAX_HOLDS: usize = 100;

/// A legal hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) id: String,
    pub(crate) partner_id: String,
    pub(crate) reason: String,
    /// Who set it; `None`: set before that was kept.
    pub(crate) created_by: Option<String>,
    pub(crate) created_ms: Option<u64>,
}

const SELECT: &str = "SELECT id, partner_id, reason, created_by, created_ms FROM audit_hold";
/// Oldest first.
const ORDER: &str = "ORDER BY COALESCE(created_ms, 0), id";

fn read(row: &AnyRow) -> Result<Hold, StoreError> {
    let created: Option<i64> = row.try_get("created_ms")?;
    Ok(Hold {
        id: row.text("id")?,
        partner_id: row.text("partner_id")?,
        reason: row.text("reason")?,
        created_by: row.try_get("created_by")?,
        created_ms: created.and_then(|ms| u64::try_from(ms).ok()),
    })
}

/// Of all partners.
pub(crate) async fn all(pool: &AnyPool) -> Result<Vec<Hold>, StoreError> {
    let statement = format!("{SELECT} {ORDER}");
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement)).fetch_all(pool).await?;
    rows.iter().map(read).collect()
}

/// Of a partner.
pub(crate) async fn of_partner(tx: &mut WriteTx, partner: &str) -> Result<Vec<Hold>, StoreError> {
    let statement = format!("{SELECT} WHERE partner_id = $1 {ORDER}");
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(partner.to_owned())
        .fetch_all(tx.sql())
        .await?;
    rows.iter().map(read).collect()
}

const IS_HELD: &str = "SELECT id FROM audit_hold WHERE partner_id = $1 LIMIT 1";

/// Whether a legal hold is on a partner.
pub(crate) async fn is_held(pool: &AnyPool, partner: &str) -> Result<bool, StoreError> {
    let found = sqlx::query(IS_HELD).bind(partner.to_owned()).fetch_optional(pool).await?;
    Ok(found.is_some())
}

/// The same, between other writes.
pub(crate) async fn is_held_in(tx: &mut WriteTx, partner: &str) -> Result<bool, StoreError> {
    let found = sqlx::query(IS_HELD).bind(partner.to_owned()).fetch_optional(tx.sql()).await?;
    Ok(found.is_some())
}

/// What became of a wish for a hold.
#[derive(Debug)]
pub(crate) enum Begun {
    New(Hold),
    /// The same person set it before, in the same words.
    Same(Hold),
    TooMany,
}

/// Sets a hold beside those that are there. What the same person says again is the same hold, so
/// that it can be said again; without a reason nobody can tell, and it is another one.
pub(crate) async fn begin(
    tx: &mut WriteTx,
    partner: &str,
    by: &str,
    reason: &str,
) -> Result<Begun, StoreError> {
    let there = of_partner(tx, partner).await?;
    let same = |hold: &&Hold| {
        !reason.is_empty() && hold.reason == reason && hold.created_by.as_deref() == Some(by)
    };
    if let Some(same) = there.iter().find(same) {
        return Ok(Begun::Same(same.clone()));
    }
    if there.len() >= MAX_HOLDS {
        return Ok(Begun::TooMany);
    }
    let hold = Hold {
        id: fresh_id()?,
        partner_id: partner.to_owned(),
        reason: reason.to_owned(),
        created_by: Some(by.to_owned()),
        created_ms: Some(tx.now_ms()),
    };
    keep(tx, &hold).await?;
    Ok(Begun::New(hold))
}

/// What became of a wish to end a hold.
#[derive(Debug)]
pub(crate) enum Ended {
    One(Hold),
    /// None was there.
    None,
    /// None was named, and there are these.
    Several(Vec<Hold>),
    /// The one that was named is not there.
    Missing,
}

/// Ends the hold that is named, or the only one.
pub(crate) async fn end(
    tx: &mut WriteTx,
    partner: &str,
    id: Option<&str>,
) -> Result<Ended, StoreError> {
    let mut there = of_partner(tx, partner).await?;
    let place = match (id, there.len()) {
        (Some(id), _) => there.iter().position(|hold| hold.id == id),
        (None, 0) => return Ok(Ended::None),
        (None, 1) => Some(0),
        (None, _) => return Ok(Ended::Several(there)),
    };
    let Some(place) = place else { return Ok(Ended::Missing) };
    let hold = there.swap_remove(place);
    sqlx::query("DELETE FROM audit_hold WHERE id = $1 AND partner_id = $2")
        .bind(hold.id.clone())
        .bind(partner.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(Ended::One(hold))
}

/// Adds it as it is, unless it is there or its partner is not; how many were added.
pub(crate) async fn keep(tx: &mut WriteTx, hold: &Hold) -> Result<u64, StoreError> {
    let added = sqlx::query(
        "INSERT INTO audit_hold (id, partner_id, reason, created_by, created_ms) \
         SELECT $1, id, $2, $3, $4 FROM partner WHERE id = $5 ON CONFLICT DO NOTHING",
    )
    .bind(hold.id.clone())
    .bind(hold.reason.clone())
    .bind(hold.created_by.clone())
    .bind(hold.created_ms.map(bigint))
    .bind(hold.partner_id.clone())
    .execute(tx.sql())
    .await?;
    Ok(added.rows_affected())
}

/// For tests that ask only whether one is there: sets one, or ends all.
#[cfg(test)]
pub(crate) async fn set(tx: &mut WriteTx, partner: &str, held: bool) -> Result<(), StoreError> {
    if held {
        begin(tx, partner, "somebody", "case 7").await?;
        return Ok(());
    }
    for hold in of_partner(tx, partner).await? {
        end(tx, partner, Some(&hold.id)).await?;
    }
    Ok(())
}
