//! Identity providers of partners, and the accounts linked with them.

use sqlx::{AnyPool, any::AnyRow};

use super::{Columns, StoreError, WriteTx, bigint, fresh_id, tenants};
use crate::oidc::{MfaClaims, Provider};

const SELECT: &str = "SELECT o.id AS id, o.partner_id AS partner_id, o.name AS name, \
     o.issuer AS issuer, o.client_id AS client_id, o.secret_file AS secret_file, \
     o.ca_file AS ca_file, o.mfa AS mfa FROM oidc_provider o";

fn read(row: &AnyRow) -> Result<Provider, StoreError> {
    let mfa = row.text("mfa")?;
    Ok(Provider {
        id: row.text("id")?,
        partner_id: row.text("partner_id")?,
        name: row.text("name")?,
        issuer: row.text("issuer")?,
        client_id: row.text("client_id")?,
        secret_file: row.text("secret_file")?,
        ca_file: row.text("ca_file")?,
        mfa: serde_json::from_str(&mfa)
            .map_err(|_| StoreError::Corrupt("claims of an identity provider".into()))?,
    })
}

/// Adds a provider; its id in `new` is not used.
pub(crate) async fn insert(tx: &mut WriteTx, new: Provider) -> Result<String, StoreError> {
    let id = fresh_id()?;
    let now = bigint(tx.now_ms());
    let mfa = claims(&new.mfa)?;
    sqlx::query(
        "INSERT INTO oidc_provider (id, partner_id, name, name_key, issuer, client_id, \
         secret_file, ca_file, mfa, created_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(id.clone())
    .bind(new.partner_id)
    .bind(new.name.clone())
    .bind(tenants::name_key(&new.name))
    .bind(new.issuer)
    .bind(new.client_id)
    .bind(new.secret_file)
    .bind(new.ca_file)
    .bind(mfa)
    .bind(now)
    .execute(tx.sql())
    .await
    .map_err(|error| tenants::taken(error, "name of the identity provider"))?;
    Ok(id)
}

fn claims(mfa: &MfaClaims) -> Result<String, StoreError> {
    serde_json::to_string(mfa).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// All there are, by name.
pub(crate) async fn list(pool: &AnyPool) -> Result<Vec<Provider>, StoreError> {
    let statement = format!("{SELECT} ORDER BY o.name_key");
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement)).fetch_all(pool).await?;
    rows.iter().map(read).collect()
}

/// By id.
pub(crate) async fn by_id(pool: &AnyPool, id: &str) -> Result<Option<Provider>, StoreError> {
    let statement = format!("{SELECT} WHERE o.id = $1");
    let query = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(id.to_owned());
    query.fetch_optional(pool).await?.as_ref().map(read).transpose()
}

/// By name.
pub(crate) async fn by_name(pool: &AnyPool, name: &str) -> Result<Option<Provider>, StoreError> {
    let statement = format!("{SELECT} WHERE o.name_key = $1");
    let query = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(tenants::name_key(name));
    query.fetch_optional(pool).await?.as_ref().map(read).transpose()
}

/// Removes a provider and all links with it; false if it is not there.
pub(crate) async fn remove(tx: &mut WriteTx, id: &str) -> Result<bool, StoreError> {
    sqlx::query("DELETE FROM oidc_link WHERE provider_id = $1")
        .bind(id.to_owned())
        .execute(tx.sql())
        .await?;
    let done = sqlx::query("DELETE FROM oidc_provider WHERE id = $1")
        .bind(id.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Links an account with a subject of a provider.
pub(crate) async fn link(
    tx: &mut WriteTx,
    (provider, subject): (&str, &str),
    (account, partner): (&str, &str),
) -> Result<(), StoreError> {
    let now = bigint(tx.now_ms());
    sqlx::query(
        "INSERT INTO oidc_link (provider_id, subject, account_id, partner_id, created_ms, used_ms) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(provider.to_owned())
    .bind(subject.to_owned())
    .bind(account.to_owned())
    .bind(partner.to_owned())
    .bind(now)
    .bind(0_i64)
    .execute(tx.sql())
    .await
    .map_err(|error| tenants::taken(error, "subject of the identity provider"))?;
    Ok(())
}

/// Ends all links of an account with a provider; their number.
pub(crate) async fn unlink(
    tx: &mut WriteTx,
    provider: &str,
    account: &str,
) -> Result<u64, StoreError> {
    let done = sqlx::query("DELETE FROM oidc_link WHERE provider_id = $1 AND account_id = $2")
        .bind(provider.to_owned())
        .bind(account.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(done.rows_affected())
}

/// The account that a subject is linked with.
pub(crate) async fn account(
    pool: &AnyPool,
    provider: &str,
    subject: &str,
) -> Result<Option<String>, StoreError> {
    let row =
        sqlx::query("SELECT account_id FROM oidc_link WHERE provider_id = $1 AND subject = $2")
            .bind(provider.to_owned())
            .bind(subject.to_owned())
            .fetch_optional(pool)
            .await?;
    row.map(|row| row.text("account_id")).transpose()
}

/// A link as it is listed.
pub(crate) struct Link {
    pub(crate) provider: String,
    pub(crate) subject: String,
}

/// The links of an account.
pub(crate) async fn links(pool: &AnyPool, account: &str) -> Result<Vec<Link>, StoreError> {
    let rows = sqlx::query(
        "SELECT o.name AS provider, l.subject AS subject FROM oidc_link l \
         JOIN oidc_provider o ON o.id = l.provider_id WHERE l.account_id = $1 \
         ORDER BY o.name_key, l.subject",
    )
    .bind(account.to_owned())
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| Ok(Link { provider: row.text("provider")?, subject: row.text("subject")? }))
        .collect()
}
