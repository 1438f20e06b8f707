//! Technicians' accounts and their logins.

use adit_protocol::keys::PublicKey;
use sqlx::{AnyPool, any::AnyRow};

use super::{Columns, StoreError, WriteTx, bigint, devices, fresh_id, tenants};
use crate::{config::MfaRule, mfa};

/// Hash of a session token.
pub(crate) type LoginId = [u8; 32];

/// An account with its partner.
#[derive(Clone)]
pub(crate) struct AccountRow {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) partner_id: String,
    pub(crate) partner: String,
    /// PHC string.
    pub(crate) password: String,
    pub(crate) retry_ms: u64,
    pub(crate) disabled: bool,
    pub(crate) mfa: MfaPolicy,
    /// The password must not be the only factor.
    pub(crate) short_password: bool,
    /// Second factors that count.
    pub(crate) factors: u64,
}

impl AccountRow {
    /// Which second factor a login takes. `everybody`: the installation's setting.
    pub(crate) fn mfa_rule(&self, everybody: MfaRule) -> MfaRule {
        let asked = match self.mfa {
            MfaPolicy::Default => everybody,
            MfaPolicy::Required => everybody.max(MfaRule::Required),
            MfaPolicy::OnceSetUp => MfaRule::OnceSetUp,
            MfaPolicy::PhishingResistant => MfaRule::PhishingResistant,
        };
        match self.factors > 0 || self.short_password {
            true => asked.max(MfaRule::Required),
            false => asked,
        }
    }

    /// Is a login without a second factor good for setting one up only?
    pub(crate) fn requires_mfa(&self, everybody: MfaRule) -> bool {
        self.mfa_rule(everybody) >= MfaRule::Required
    }
}

/// Whether an account needs a second factor before it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MfaPolicy {
    /// As the installation's setting says.
    Default,
    /// Yes.
    Required,
    /// No.
    OnceSetUp,
    /// Yes, and one that resists phishing.
    PhishingResistant,
}

impl MfaPolicy {
    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Required => "required",
            Self::OnceSetUp => "once_set_up",
            Self::PhishingResistant => "phishing-resistant",
        }
    }

    fn stored(self) -> i16 {
        match self {
            Self::Default => 0,
            Self::Required => 1,
            Self::OnceSetUp => 2,
            Self::PhishingResistant => 3,
        }
    }

    fn read(number: u64) -> Self {
        match number {
            0 => Self::Default,
            2 => Self::OnceSetUp,
            3 => Self::PhishingResistant,
            // What a later version wrote is read strictly.
            _ => Self::Required,
        }
    }
}

/// What somebody showed for a login, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proof {
    /// `none`, `totp`, `recovery`, `webauthn`, `oidc`: how the second factor was shown last.
    pub(crate) mfa: String,
    pub(crate) mfa_ms: Option<u64>,
    /// When the password was.
    pub(crate) authenticated_ms: u64,
}

impl Proof {
    /// Is a login with this proof good for setting up a second factor only?
    pub(crate) fn is_limited(&self, rule: MfaRule) -> bool {
        match rule {
            MfaRule::OnceSetUp => false,
            MfaRule::Required => self.mfa_ms.is_none(),
            MfaRule::PhishingResistant => !mfa::resists_phishing(&self.mfa),
        }
    }
}

/// A login that may be used.
#[derive(Clone)]
pub(crate) struct LoginRow {
    pub(crate) id: LoginId,
    pub(crate) account: AccountRow,
    pub(crate) used_ms: u64,
    pub(crate) expires_ms: u64,
    pub(crate) proof: Proof,
}

impl LoginRow {
    /// Was the second factor shown at most so long ago?
    pub(crate) fn fresh_mfa(&self, within_ms: u64, now_ms: u64) -> bool {
        self.proof.mfa_ms.is_some_and(|at| now_ms.saturating_sub(at) <= within_ms)
    }

    /// Was all that a login of this account takes shown at most so long ago?
    pub(crate) fn is_fresh(&self, within_ms: u64, now_ms: u64) -> bool {
        match self.account.factors {
            0 => now_ms.saturating_sub(self.proof.authenticated_ms) <= within_ms,
            _ => self.fresh_mfa(within_ms, now_ms),
        }
    }

    /// Is it good for setting up a second factor only?
    pub(crate) fn is_limited(&self, everybody: MfaRule) -> bool {
        self.proof.is_limited(self.account.mfa_rule(everybody))
    }
}

const ACCOUNT: &str = "a.id AS id, a.name AS name, a.password AS password, \
     a.retry_ms AS retry_ms, a.disabled AS disabled, a.mfa AS mfa_policy, \
     a.short_password AS short_password, (SELECT COUNT(*) FROM factor f \
     WHERE f.account_id = a.id AND f.confirmed_ms IS NOT NULL) AS factors, \
     p.id AS partner_id, p.name AS partner";

fn read(row: &AnyRow) -> Result<AccountRow, StoreError> {
    Ok(AccountRow {
        id: row.text("id")?,
        name: row.text("name")?,
        partner_id: row.text("partner_id")?,
        partner: row.text("partner")?,
        password: row.text("password")?,
        retry_ms: row.number("retry_ms")?,
        disabled: row.flag("disabled")?,
        mfa: MfaPolicy::read(row.number("mfa_policy")?),
        short_password: row.flag("short_password")?,
        factors: row.number("factors")?,
    })
}

/// Adds an account and gives its id.
pub(crate) async fn insert(
    tx: &mut WriteTx,
    partner: &tenants::Partner,
    name: &str,
    role: &str,
    password: &str,
) -> Result<String, StoreError> {
    let id = fresh_id()?;
    let now = bigint(tx.now_ms());
    sqlx::query(
        "INSERT INTO account (id, partner_id, name, name_key, role, password, failures, \
         retry_ms, disabled, created_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(id.clone())
    .bind(partner.id.clone())
    .bind(name.to_owned())
    .bind(tenants::name_key(name))
    .bind(role.to_owned())
    .bind(password.to_owned())
    .bind(0_i64)
    .bind(0_i64)
    .bind(0_i16)
    .bind(now)
    .execute(tx.sql())
    .await
    .map_err(|error| tenants::taken(error, "name of the user"))?;
    Ok(id)
}

/// By name.
pub(crate) async fn by_name(pool: &AnyPool, name: &str) -> Result<Option<AccountRow>, StoreError> {
    let statement = format!(
        "SELECT {ACCOUNT} FROM account a JOIN partner p ON p.id = a.partner_id \
         WHERE a.name_key = $1"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(tenants::name_key(name))
        .fetch_optional(pool)
        .await?;
    row.as_ref().map(read).transpose()
}

/// By id.
pub(crate) async fn by_id(pool: &AnyPool, id: &str) -> Result<Option<AccountRow>, StoreError> {
    let statement = format!(
        "SELECT {ACCOUNT} FROM account a JOIN partner p ON p.id = a.partner_id WHERE a.id = $1"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(id.to_owned())
        .fetch_optional(pool)
        .await?;
    row.as_ref().map(read).transpose()
}

/// By name, inside a transaction.
pub(crate) async fn find(tx: &mut WriteTx, name: &str) -> Result<AccountRow, StoreError> {
    let statement = format!(
        "SELECT {ACCOUNT} FROM account a JOIN partner p ON p.id = a.partner_id \
         WHERE a.name_key = $1"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(tenants::name_key(name))
        .fetch_optional(tx.sql())
        .await?;
    read(&row.ok_or(StoreError::Missing("user"))?)
}

/// All accounts, or those of one partner.
pub(crate) async fn list(
    pool: &AnyPool,
    partner: Option<&str>,
) -> Result<Vec<AccountRow>, StoreError> {
    let statement = format!(
        "SELECT {ACCOUNT} FROM account a JOIN partner p ON p.id = a.partner_id \
         WHERE ($1 = '' OR a.partner_id = $1) ORDER BY p.name_key, a.name_key"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(partner.unwrap_or_default().to_owned())
        .fetch_all(pool)
        .await?;
    rows.iter().map(read).collect()
}

/// Whether the account is enabled now.
pub(crate) async fn enabled(pool: &AnyPool, id: &str) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT disabled FROM account WHERE id = $1")
        .bind(id.to_owned())
        .fetch_optional(pool)
        .await?;
    row.map_or(Ok(false), |row| Ok(!row.flag("disabled")?))
}

/// Sets failures in a row and the time before which no password is accepted.
pub(crate) async fn set_failures(
    tx: &mut WriteTx,
    id: &str,
    failures: u64,
    retry_ms: u64,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE account SET failures = $1, retry_ms = $2 WHERE id = $3")
        .bind(bigint(failures))
        .bind(bigint(retry_ms))
        .bind(id.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(())
}

/// Counts one more failure and gives their number.
pub(crate) async fn add_failure(tx: &mut WriteTx, id: &str) -> Result<u64, StoreError> {
    let row =
        sqlx::query("UPDATE account SET failures = failures + 1 WHERE id = $1 RETURNING failures")
            .bind(id.to_owned())
            .fetch_optional(tx.sql())
            .await?;
    row.map_or(Ok(1), |row| row.number("failures"))
}

/// Whether a second factor is required before there is one.
pub(crate) async fn set_mfa_policy(
    tx: &mut WriteTx,
    id: &str,
    policy: MfaPolicy,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE account SET mfa = $1 WHERE id = $2")
        .bind(policy.stored())
        .bind(id.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(())
}

/// Notes whether the password is too short to be the only factor.
pub(crate) async fn set_short_password(
    tx: &mut WriteTx,
    id: &str,
    short: bool,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE account SET short_password = $1 WHERE id = $2")
        .bind(i16::from(short))
        .bind(id.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(())
}

/// Before when the account gets no password accepted from unknown devices; `None`: no account.
pub(crate) async fn retry_ms_in(tx: &mut WriteTx, id: &str) -> Result<Option<u64>, StoreError> {
    let row = sqlx::query("SELECT retry_ms FROM account WHERE id = $1")
        .bind(id.to_owned())
        .fetch_optional(tx.sql())
        .await?;
    row.map(|row| row.number("retry_ms")).transpose()
}

/// Whether the account is enabled and still has the password that was checked: what changed
/// meanwhile must not be logged in to.
pub(crate) async fn is_unchanged(
    tx: &mut WriteTx,
    id: &str,
    password: &str,
) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT disabled, password FROM account WHERE id = $1")
        .bind(id.to_owned())
        .fetch_optional(tx.sql())
        .await?;
    row.map_or(Ok(false), |row| Ok(!row.flag("disabled")? && row.text("password")? == password))
}

/// Disables or enables an account; disabling ends its logins.
pub(crate) async fn set_disabled(
    tx: &mut WriteTx,
    id: &str,
    disabled: bool,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE account SET disabled = $1 WHERE id = $2")
        .bind(i16::from(disabled))
        .bind(id.to_owned())
        .execute(tx.sql())
        .await?;
    if disabled { end_logins(tx, id).await } else { Ok(()) }
}

/// Sets a password; ends the account's logins.
pub(crate) async fn set_password(
    tx: &mut WriteTx,
    id: &str,
    password: &str,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE account SET password = $1, failures = 0, retry_ms = 0 WHERE id = $2")
        .bind(password.to_owned())
        .bind(id.to_owned())
        .execute(tx.sql())
        .await?;
    devices::forget(tx, id).await?;
    end_logins(tx, id).await
}

/// Ends all logins of an account.
pub(crate) async fn end_logins(tx: &mut WriteTx, account: &str) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM login WHERE account_id = $1")
        .bind(account.to_owned())
        .execute(tx.sql())
        .await?;
    Ok(())
}

/// Ends the logins of an account whose second factor was shown in one of these ways.
pub(crate) async fn end_logins_without_mfa(
    tx: &mut WriteTx,
    account: &str,
    weak: &[&str],
) -> Result<Vec<LoginId>, StoreError> {
    let mut ended = Vec::new();
    for method in weak {
        let rows = sqlx::query(
            "DELETE FROM login WHERE account_id = $1 AND mfa = $2 RETURNING token_hash",
        )
        .bind(account.to_owned())
        .bind((*method).to_owned())
        .fetch_all(tx.sql())
        .await?;
        for row in rows {
            let bytes = row.blob("token_hash")?;
            ended.push(bytes.try_into().map_err(|_| StoreError::Corrupt("login".into()))?);
        }
    }
    Ok(ended)
}

/// Notes what was shown for a login, and until when it holds.
pub(crate) async fn prove(
    tx: &mut WriteTx,
    login: LoginId,
    proof: &Proof,
    expires_ms: u64,
) -> Result<bool, StoreError> {
    let now = bigint(tx.now_ms());
    let done = sqlx::query(
        "UPDATE login SET mfa = $1, mfa_ms = $2, authenticated_ms = $3, expires_ms = $4, \
         used_ms = $5 WHERE token_hash = $6",
    )
    .bind(proof.mfa.clone())
    .bind(proof.mfa_ms.map(bigint))
    .bind(bigint(proof.authenticated_ms))
    .bind(bigint(expires_ms))
    .bind(now)
    .bind(login.to_vec())
    .execute(tx.sql())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A login as it is listed.
pub(crate) struct ListedLogin {
    pub(crate) device: PublicKey,
    pub(crate) created_ms: u64,
    pub(crate) used_ms: u64,
    pub(crate) expires_ms: u64,
    pub(crate) proof: Proof,
}

/// The logins of an account that have not expired, oldest first.
pub(crate) async fn logins(
    pool: &AnyPool,
    account: &str,
    now_ms: u64,
) -> Result<Vec<ListedLogin>, StoreError> {
    let statement = format!(
        "SELECT l.device AS device, l.created_ms AS created_ms, {LOGIN} FROM login l \
         WHERE l.account_id = $1 AND l.expires_ms > $2 ORDER BY l.created_ms, l.token_hash"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(account.to_owned())
        .bind(bigint(now_ms))
        .fetch_all(pool)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(ListedLogin {
                device: PublicKey::from_slice(&row.blob("device")?)
                    .map_err(|_| StoreError::Corrupt("device of a login".into()))?,
                created_ms: row.number("created_ms")?,
                used_ms: row.number("used_ms")?,
                expires_ms: row.number("expires_ms")?,
                proof: read_proof(row)?,
            })
        })
        .collect()
}

const LOGIN: &str = "l.used_ms AS used_ms, l.expires_ms AS expires_ms, l.mfa AS mfa, \
     COALESCE(l.mfa_ms, -1) AS mfa_ms, l.authenticated_ms AS authenticated_ms";

fn read_proof(row: &AnyRow) -> Result<Proof, StoreError> {
    let mfa_ms: i64 = sqlx::Row::try_get(row, "mfa_ms")?;
    Ok(Proof {
        mfa: row.text("mfa")?,
        mfa_ms: u64::try_from(mfa_ms).ok(),
        authenticated_ms: row.number("authenticated_ms")?,
    })
}

/// Adds a login and forgets expired ones.
pub(crate) async fn insert_login(
    tx: &mut WriteTx,
    login: LoginId,
    account: &str,
    device: PublicKey,
    expires_ms: u64,
) -> Result<(), StoreError> {
    let now = bigint(tx.now_ms());
    sqlx::query("DELETE FROM login WHERE expires_ms < $1").bind(now).execute(tx.sql()).await?;
    sqlx::query(
        "INSERT INTO login (token_hash, account_id, device, created_ms, used_ms, expires_ms) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(login.to_vec())
    .bind(account.to_owned())
    .bind(device.0.to_vec())
    .bind(now)
    .bind(now)
    .bind(bigint(expires_ms))
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// A login of this device. Expiry is for the caller to judge.
pub(crate) async fn login(
    pool: &AnyPool,
    login: LoginId,
    device: PublicKey,
) -> Result<Option<LoginRow>, StoreError> {
    let statement = format!(
        "SELECT {LOGIN}, {ACCOUNT} FROM login l \
         JOIN account a ON a.id = l.account_id JOIN partner p ON p.id = a.partner_id \
         WHERE l.token_hash = $1 AND l.device = $2"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(login.to_vec())
        .bind(device.0.to_vec())
        .fetch_optional(pool)
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(LoginRow {
        id: login,
        account: read(&row)?,
        used_ms: row.number("used_ms")?,
        expires_ms: row.number("expires_ms")?,
        proof: read_proof(&row)?,
    }))
}

/// Whether a login still exists and its absolute end has not come.
pub(crate) async fn login_lives(
    pool: &AnyPool,
    login: LoginId,
    now_ms: u64,
) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT expires_ms FROM login WHERE token_hash = $1")
        .bind(login.to_vec())
        .fetch_optional(pool)
        .await?;
    row.map_or(Ok(false), |row| Ok(now_ms < row.number("expires_ms")?))
}

/// The same inside a transaction.
pub(crate) async fn login_lives_in(
    tx: &mut WriteTx,
    login: LoginId,
    now_ms: u64,
) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT expires_ms FROM login WHERE token_hash = $1")
        .bind(login.to_vec())
        .fetch_optional(tx.sql())
        .await?;
    row.map_or(Ok(false), |row| Ok(now_ms < row.number("expires_ms")?))
}

/// Notes that a login was used.
pub(crate) async fn touch_login(tx: &mut WriteTx, login: LoginId) -> Result<(), StoreError> {
    let now = bigint(tx.now_ms());
    sqlx::query("UPDATE login SET used_ms = $1 WHERE token_hash = $2")
        .bind(now)
        .bind(login.to_vec())
        .execute(tx.sql())
        .await?;
    Ok(())
}

/// Ends a login.
pub(crate) async fn delete_login(tx: &mut WriteTx, login: LoginId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM login WHERE token_hash = $1")
        .bind(login.to_vec())
        .execute(tx.sql())
        .await?;
    Ok(())
}
