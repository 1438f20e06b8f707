//! Custom roles, each of one partner.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sqlx::{AnyPool, any::AnyRow};

use super::{When, corrupt};
use crate::{
    roles::{Conditions, Permission, Redirectors, Role, role::BUILTIN},
    store::{Columns, StoreError, WriteTx, bigint, fresh_id, tenants::name_key},
};

/// Custom roles of one partner.
pub(crate) const MAX_ROLES: u64 = 1000;

/// A role's content as stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    permissions: BTreeSet<String>,
    redirectors: Redirectors,
    #[serde(default)]
    conditions: Conditions,
}

const SELECT: &str = "SELECT role_id, name, content FROM access_role";

fn read(row: &AnyRow) -> Result<Role, StoreError> {
    let content: Content = serde_json::from_str(&row.text("content")?).map_err(corrupt)?;
    let permissions = content.permissions.iter().map(|name| name.parse::<Permission>());
    Ok(Role {
        id: row.text("role_id")?,
        name: row.text("name")?,
        permissions: permissions.collect::<Result<_, _>>().map_err(corrupt)?,
        redirectors: content.redirectors,
        conditions: content.conditions,
    })
}

/// Adds a role, or a new version of one.
pub(crate) async fn insert(tx: &mut WriteTx, partner: &str, role: &Role) -> Result<(), StoreError> {
    let content = Content {
        permissions: role.permissions.iter().map(|p| p.name().to_owned()).collect(),
        redirectors: role.redirectors.clone(),
        conditions: role.conditions.clone(),
    };
    let row = sqlx::query(
        "SELECT COUNT(*) AS count FROM access_role WHERE partner_id = $1 AND valid_to_ms IS NULL",
    )
    .bind(partner.to_owned())
    .fetch_one(tx.sql())
    .await?;
    if row.number("count")? >= MAX_ROLES {
        return Err(StoreError::Unavailable(format!("there are {MAX_ROLES} roles already")));
    }
    let now = bigint(tx.now_ms());
    sqlx::query(
        "INSERT INTO access_role (row_id, role_id, partner_id, name, name_key, content, \
         valid_from_ms) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(fresh_id()?)
    .bind(role.id.clone())
    .bind(partner.to_owned())
    .bind(role.name.clone())
    .bind(name_key(&role.name))
    .bind(serde_json::to_string(&content).map_err(corrupt)?)
    .bind(now)
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// Ends what holds of a role.
pub(crate) async fn close(tx: &mut WriteTx, role: &str) -> Result<(), StoreError> {
    let now = bigint(tx.now_ms());
    sqlx::query(
        "UPDATE access_role SET valid_to_ms = $1 WHERE role_id = $2 AND valid_to_ms IS NULL",
    )
    .bind(now)
    .bind(role.to_owned())
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// A partner's role by name, built-in ones included.
pub(crate) async fn by_name(
    tx: &mut WriteTx,
    partner: &str,
    name: &str,
) -> Result<Option<Role>, StoreError> {
    if let Some(role) = Role::builtin(&name_key(name)) {
        return Ok(Some(role));
    }
    let statement =
        format!("{SELECT} WHERE partner_id = $1 AND name_key = $2 AND valid_to_ms IS NULL");
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(partner.to_owned())
        .bind(name_key(name))
        .fetch_optional(tx.sql())
        .await?;
    row.as_ref().map(read).transpose()
}

/// By id, as it was at a time.
pub(crate) async fn by_id(
    pool: &AnyPool,
    id: &str,
    when: When,
) -> Result<Option<Role>, StoreError> {
    if let Some(name) = id.strip_prefix(BUILTIN) {
        return Ok(Role::builtin(name));
    }
    let statement = format!(
        "{SELECT} WHERE role_id = $1 AND {} ORDER BY valid_from_ms DESC LIMIT 1",
        when.valid("")
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(id.to_owned())
        .fetch_optional(pool)
        .await?;
    row.as_ref().map(read).transpose()
}

/// By id, as it is now, with what this transaction changed.
pub(crate) async fn present(tx: &mut WriteTx, id: &str) -> Result<Option<Role>, StoreError> {
    if let Some(name) = id.strip_prefix(BUILTIN) {
        return Ok(Role::builtin(name));
    }
    let statement = format!("{SELECT} WHERE role_id = $1 AND valid_to_ms IS NULL");
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(id.to_owned())
        .fetch_optional(tx.sql())
        .await?;
    row.as_ref().map(read).transpose()
}

/// A partner's own roles.
pub(crate) async fn list(pool: &AnyPool, partner: &str) -> Result<Vec<Role>, StoreError> {
    let statement =
        format!("{SELECT} WHERE partner_id = $1 AND valid_to_ms IS NULL ORDER BY name_key");
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(partner.to_owned())
        .fetch_all(pool)
        .await?;
    rows.iter().map(read).collect()
}
