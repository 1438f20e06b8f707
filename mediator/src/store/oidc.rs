//! Identity providers of partners, and the accounts linked with them.

use sqlx::{AnyPool, any::AnyRow};

use super::{Columns, StoreError, WriteTx, bigint, fresh_id, tenants};
use crate::{
    oidc::{MfaClaims, Provider},
    vault::wrap::Place,
};

const SELECT: &str = "SELECT o.id AS id, o.partner_id AS partner_id, o.name AS name, \
     o.issuer AS issuer, o.client_id AS client_id, o.secret_file AS secret_file, \
     o.ca_file AS ca_file, o.ca AS ca, o.public_only AS public_only, o.mfa AS mfa, \
     (SELECT COUNT(*) FROM oidc_secret s WHERE s.provider_id = o.id) AS secrets \
     FROM oidc_provider o";
/// What is taken if a subject is another account's.
pub(crate) const LINKED: &str = "subject of the identity provider";
/// Providers of one partner.
const MAX_PROVIDERS: u64 = 64;

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
        ca: row.text("ca")?,
        public_only: row.flag("public_only")?,
        is_sealed: row.flag("secrets")?,
        secret: None,
        mfa: serde_json::from_str(&mfa)
            .map_err(|_| StoreError::Corrupt("claims of an identity provider".into()))?,
    })
}

/// Adds a provider; its id in `new` is not used.
pub(crate) async fn insert(tx: &mut WriteTx, new: Provider) -> Result<String, StoreError> {
    let id = fresh_id()?;
    let row = sqlx::query("SELECT COUNT(*) AS count FROM oidc_provider WHERE partner_id = $1")
        .bind(new.partner_id.clone())
        .fetch_one(tx.sql())
        .await?;
    if row.number("count")? >= MAX_PROVIDERS {
        let text = format!("the partner has {MAX_PROVIDERS} identity providers already");
        return Err(StoreError::Unavailable(text));
    }
    let now = bigint(tx.now_ms());
    let mfa = claims(&new.mfa)?;
    sqlx::query(
        "INSERT INTO oidc_provider (id, partner_id, name, name_key, issuer, client_id, \
         secret_file, ca_file, mfa, created_ms, ca, public_only) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
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
    .bind(new.ca)
    .bind(i64::from(new.public_only))
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
    for statement in [
        "DELETE FROM oidc_link WHERE provider_id = $1",
        "DELETE FROM oidc_secret WHERE provider_id = $1",
    ] {
        sqlx::query(statement).bind(id.to_owned()).execute(tx.sql()).await?;
    }
    let done = sqlx::query("DELETE FROM oidc_provider WHERE id = $1")
        .bind(id.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(done.rows_affected() == 1)
}

/// This mediator's secret at a provider, sealed.
pub(crate) struct SecretRow {
    pub(crate) provider: String,
    pub(crate) partner: String,
    pub(crate) sealed: Vec<u8>,
}

impl SecretRow {
    /// Where it belongs.
    pub(crate) fn place(&self) -> Place<'_> {
        Place { table: "oidc_secret", row: &self.provider, tenant: &self.partner }
    }

    fn read(row: &AnyRow) -> Result<Self, StoreError> {
        Ok(Self {
            provider: row.text("provider")?,
            partner: row.text("partner")?,
            sealed: row.blob("secret")?,
        })
    }
}

const SECRETS: &str =
    "SELECT provider_id AS provider, partner_id AS partner, secret FROM oidc_secret";

/// Keeps a secret, or puts another in its place; `key_name`: of the wrapping key over it.
pub(crate) async fn put_secret(
    tx: &mut WriteTx,
    row: &SecretRow,
    key_name: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO oidc_secret (provider_id, partner_id, secret, key_name) \
         VALUES ($1, $2, $3, $4) ON CONFLICT (provider_id) \
         DO UPDATE SET secret = excluded.secret, key_name = excluded.key_name",
    )
    .bind(row.provider.clone())
    .bind(row.partner.clone())
    .bind(row.sealed.clone())
    .bind(key_name.to_owned())
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// The secret at a provider.
pub(crate) async fn secret(pool: &AnyPool, id: &str) -> Result<Option<SecretRow>, StoreError> {
    let statement = format!("{SECRETS} WHERE provider_id = $1");
    let query = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(id.to_owned());
    query.fetch_optional(pool).await?.as_ref().map(SecretRow::read).transpose()
}

/// All there are.
pub(crate) async fn secrets(tx: &mut WriteTx) -> Result<Vec<SecretRow>, StoreError> {
    let rows = sqlx::query(SECRETS).fetch_all(tx.sql()).await?;
    rows.iter().map(SecretRow::read).collect()
}

/// Names of the wrapping keys that they need.
pub(crate) async fn key_names(pool: &AnyPool) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query("SELECT DISTINCT key_name FROM oidc_secret").fetch_all(pool).await?;
    rows.iter().map(|row| row.text("key_name")).collect()
}

/// Links an account with a subject of a provider; false if it was.
pub(crate) async fn link(
    tx: &mut WriteTx,
    (provider, subject): (&str, &str),
    (account, partner): (&str, &str),
) -> Result<bool, StoreError> {
    let known =
        sqlx::query("SELECT account_id FROM oidc_link WHERE provider_id = $1 AND subject = $2")
            .bind(provider.to_owned())
            .bind(subject.to_owned())
            .fetch_optional(tx.sql())
            .await?;
    if let Some(row) = known
        && row.text("account_id")? == account
    {
        return Ok(false);
    }
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
    .map_err(|error| tenants::taken(error, LINKED))?;
    Ok(true)
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
