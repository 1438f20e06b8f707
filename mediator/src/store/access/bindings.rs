//! Bindings: the table of role × scope × subject that decisions and lists rest on.

use std::collections::BTreeMap;

use sqlx::{AnyPool, Row, any::AnyRow};

use super::{When, corrupt, roles};
use crate::{
    roles::{Conditions, Permission, Rule, Scope},
    store::{Columns, StoreError, WriteTx, bigint, fresh_id},
};

/// Bindings of one subject that count: lists name each in their statement.
pub(crate) const MAX_PER_SUBJECT: u64 = 256;

/// To whom a role is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// An account, by id.
    User(String),
    /// A group of the partner's users, by name.
    Group(String),
    /// An API key, by id.
    Key(String),
}

impl Subject {
    /// Its kind as stored.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::User(_) => "user",
            Self::Group(_) => "group",
            Self::Key(_) => "key",
        }
    }

    /// Id or name.
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::User(id) | Self::Group(id) | Self::Key(id) => id,
        }
    }
}

/// A binding.
#[derive(Clone, Debug)]
pub(crate) struct Binding {
    pub(crate) id: String,
    pub(crate) partner: String,
    pub(crate) subject: Subject,
    pub(crate) role: String,
    pub(crate) scope: Scope,
    pub(crate) conditions: Conditions,
    pub(crate) expires_ms: Option<u64>,
}

impl Binding {
    /// Of an account to its whole partner, without conditions.
    pub(crate) fn on_partner(
        partner: &str,
        account: String,
        role: String,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            id: fresh_id()?,
            partner: partner.to_owned(),
            subject: Subject::User(account),
            role,
            scope: Scope::Partner(partner.to_owned()),
            conditions: Conditions::default(),
            expires_ms: None,
        })
    }
}

const SELECT: &str = "SELECT b.id AS id, b.partner_id AS partner_id, \
     b.subject_kind AS subject_kind, b.subject_id AS subject_id, b.role_id AS role_id, \
     b.scope_kind AS scope_kind, b.scope_partner_id AS scope_partner_id, \
     b.scope_client_id AS scope_client_id, b.scope_id AS scope_id, \
     b.conditions AS conditions, b.expires_ms AS expires_ms FROM access_binding b";

fn read(row: &AnyRow) -> Result<Binding, StoreError> {
    let (partner, client) = (row.text("scope_partner_id")?, row.text("scope_client_id")?);
    let id = row.text("scope_id")?;
    let scope = match row.text("scope_kind")?.as_str() {
        "installation" => Scope::Installation,
        "partner" => Scope::Partner(partner),
        "client" => Scope::Client { partner, client },
        "group" => Scope::Group { partner, label: id },
        "tag" => Scope::Tag { partner, label: id },
        "computer" => Scope::Computer { partner, client, computer: id },
        other => return Err(corrupt(format_args!("scope {other}"))),
    };
    let subject = match row.text("subject_kind")?.as_str() {
        "user" => Subject::User(row.text("subject_id")?),
        "group" => Subject::Group(row.text("subject_id")?),
        "key" => Subject::Key(row.text("subject_id")?),
        other => return Err(corrupt(format_args!("subject {other}"))),
    };
    let expires: Option<i64> = row.try_get("expires_ms")?;
    Ok(Binding {
        id: row.text("id")?,
        partner: row.text("partner_id")?,
        subject,
        role: row.text("role_id")?,
        scope,
        conditions: serde_json::from_str(&row.text("conditions")?).map_err(corrupt)?,
        expires_ms: expires.map(|ms| u64::try_from(ms).unwrap_or(0)),
    })
}

/// Adds a binding.
pub(crate) async fn insert(tx: &mut WriteTx, new: &Binding) -> Result<(), StoreError> {
    let row = sqlx::query(
        "SELECT COUNT(*) AS count FROM access_binding WHERE subject_kind = $1 \
         AND subject_id = $2 AND partner_id = $3 AND valid_to_ms IS NULL",
    )
    .bind(new.subject.kind())
    .bind(new.subject.id().to_owned())
    .bind(new.partner.clone())
    .fetch_one(tx.sql())
    .await?;
    if row.number("count")? >= MAX_PER_SUBJECT {
        return Err(StoreError::Unavailable(format!(
            "there are {MAX_PER_SUBJECT} bindings already; bind a wider scope or a group"
        )));
    }
    let (client, id) = match &new.scope {
        Scope::Installation | Scope::Partner(_) => ("", ""),
        Scope::Client { client, .. } => (client.as_str(), ""),
        Scope::Group { label, .. } | Scope::Tag { label, .. } => ("", label.as_str()),
        Scope::Computer { client, computer, .. } => (client.as_str(), computer.as_str()),
    };
    let now = bigint(tx.now_ms());
    sqlx::query(
        "INSERT INTO access_binding (id, partner_id, subject_kind, subject_id, role_id, \
         scope_kind, scope_partner_id, scope_client_id, scope_id, conditions, expires_ms, \
         valid_from_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(new.id.clone())
    .bind(new.partner.clone())
    .bind(new.subject.kind())
    .bind(new.subject.id().to_owned())
    .bind(new.role.clone())
    .bind(new.scope.kind())
    .bind(new.scope.partner().unwrap_or_default().to_owned())
    .bind(client.to_owned())
    .bind(id.to_owned())
    .bind(serde_json::to_string(&new.conditions).map_err(corrupt)?)
    .bind(new.expires_ms.map(bigint))
    .bind(now)
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// Ends a binding; false if it holds no more.
pub(crate) async fn close(tx: &mut WriteTx, id: &str) -> Result<bool, StoreError> {
    let now = bigint(tx.now_ms());
    let done = sqlx::query(
        "UPDATE access_binding SET valid_to_ms = $1 WHERE id = $2 AND valid_to_ms IS NULL",
    )
    .bind(now)
    .bind(id.to_owned())
    .execute(tx.sql())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The bindings of a role that hold, by id.
pub(crate) async fn ids_of_role(tx: &mut WriteTx, role: &str) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query(
        "SELECT id FROM access_binding WHERE role_id = $1 AND valid_to_ms IS NULL ORDER BY id",
    )
    .bind(role.to_owned())
    .fetch_all(tx.sql())
    .await?;
    rows.iter().map(|row| row.text("id")).collect()
}

/// Ends all bindings of a role; gives their number.
pub(crate) async fn close_of_role(tx: &mut WriteTx, role: &str) -> Result<u64, StoreError> {
    let now = bigint(tx.now_ms());
    let done = sqlx::query(
        "UPDATE access_binding SET valid_to_ms = $1 WHERE role_id = $2 AND valid_to_ms IS NULL",
    )
    .bind(now)
    .bind(role.to_owned())
    .execute(tx.sql())
    .await?;
    Ok(done.rows_affected())
}

/// Forgets the bindings to a client and its computers, those that ended before too: they name
/// people, and networks. How many accounts that may log in have no right any more without them.
pub(crate) async fn forget_client(tx: &mut WriteTx, client: &str) -> Result<u64, StoreError> {
    const OWN: &str = "b.partner_id = a.partner_id AND b.valid_to_ms IS NULL \
         AND (b.expires_ms IS NULL OR b.expires_ms > $2) \
         AND ((b.subject_kind = 'user' AND b.subject_id = a.id) \
         OR (b.subject_kind = 'group' AND EXISTS (SELECT 1 FROM account_label l \
         WHERE l.account_id = a.id AND l.partner_id = a.partner_id \
         AND l.label = b.subject_id AND l.valid_to_ms IS NULL)))";
    let now = bigint(tx.now_ms());
    let statement = format!(
        "SELECT COUNT(*) AS count FROM account a WHERE a.disabled = 0 \
         AND EXISTS (SELECT 1 FROM access_binding b WHERE b.scope_client_id = $1 AND {OWN}) \
         AND NOT EXISTS (SELECT 1 FROM access_binding b WHERE b.scope_client_id <> $1 AND {OWN})"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(client.to_owned())
        .bind(now)
        .fetch_one(tx.sql())
        .await?;
    sqlx::query("DELETE FROM access_binding WHERE scope_client_id = $1")
        .bind(client.to_owned())
        .execute(tx.sql())
        .await?;
    row.number("count")
}

/// A binding that holds.
pub(crate) async fn by_id(tx: &mut WriteTx, id: &str) -> Result<Option<Binding>, StoreError> {
    let statement = format!("{SELECT} WHERE b.id = $1 AND b.valid_to_ms IS NULL");
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(id.to_owned())
        .fetch_optional(tx.sql())
        .await?;
    row.as_ref().map(read).transpose()
}

/// All bindings of a partner that hold.
pub(crate) async fn list(pool: &AnyPool, partner: &str) -> Result<Vec<Binding>, StoreError> {
    let statement =
        format!("{SELECT} WHERE b.partner_id = $1 AND b.valid_to_ms IS NULL ORDER BY b.id");
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(partner.to_owned())
        .fetch_all(pool)
        .await?;
    rows.iter().map(read).collect()
}

/// The rules of an account: its own bindings and those of its groups, with their roles. A
/// binding whose role is gone gives nothing.
pub(crate) async fn rules(
    pool: &AnyPool,
    partner: &str,
    account: &str,
    when: When,
) -> Result<Vec<Rule>, StoreError> {
    let statement = format!(
        "{SELECT} WHERE b.partner_id = $1 AND {} AND (\
         (b.subject_kind = 'user' AND b.subject_id = $2) OR \
         (b.subject_kind = 'group' AND b.subject_id IN (SELECT l.label FROM account_label l \
         WHERE l.account_id = $2 AND l.partner_id = $1 AND {}))) ORDER BY b.id LIMIT {}",
        when.valid("b."),
        when.valid("l."),
        MAX_PER_SUBJECT
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(partner.to_owned())
        .bind(account.to_owned())
        .fetch_all(pool)
        .await?;
    with_roles(pool, &rows, when).await
}

/// How surely somebody of a partner holds a permission, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Held {
    /// Nobody does.
    Never,
    /// Only on conditions that may not be met when it matters.
    Sometimes,
    /// Somebody does from wherever and whenever.
    Always,
}

/// How surely any enabled account holds a permission on all of its partner, for good.
pub(crate) async fn anybody_with(
    tx: &mut WriteTx,
    partner: &str,
    permission: Permission,
) -> Result<Held, StoreError> {
    let rows = sqlx::query(
        "SELECT DISTINCT b.role_id AS role, b.conditions AS conditions \
         FROM account a JOIN access_binding b ON b.partner_id = a.partner_id \
         WHERE a.partner_id = $1 AND a.disabled = 0 \
         AND b.valid_to_ms IS NULL AND b.expires_ms IS NULL \
         AND (b.scope_kind = 'installation' \
         OR (b.scope_kind = 'partner' AND b.scope_partner_id = $1)) \
         AND ((b.subject_kind = 'user' AND b.subject_id = a.id) \
         OR (b.subject_kind = 'group' AND EXISTS (SELECT 1 FROM account_label l \
         WHERE l.account_id = a.id AND l.partner_id = a.partner_id \
         AND l.label = b.subject_id AND l.valid_to_ms IS NULL)))",
    )
    .bind(partner.to_owned())
    .fetch_all(tx.sql())
    .await?;
    let mut held = Held::Never;
    for row in rows {
        let role = roles::present(tx, &row.text("role")?).await?;
        let Some(role) = role.filter(|role| role.grants(permission, None)) else { continue };
        let conditions: Conditions =
            serde_json::from_str(&row.text("conditions")?).map_err(corrupt)?;
        if !conditions.may_keep_out() && !role.conditions.may_keep_out() {
            return Ok(Held::Always);
        }
        held = Held::Sometimes;
    }
    Ok(held)
}

/// The rules of an API key.
pub(crate) async fn rules_of_key(
    pool: &AnyPool,
    partner: &str,
    key: &str,
) -> Result<Vec<Rule>, StoreError> {
    of_subject(pool, partner, &Subject::Key(key.to_owned())).await
}

/// The rules that one subject has now by itself, not through groups.
pub(crate) async fn of_subject(
    pool: &AnyPool,
    partner: &str,
    subject: &Subject,
) -> Result<Vec<Rule>, StoreError> {
    let statement = format!(
        "{SELECT} WHERE b.partner_id = $1 AND b.subject_kind = $2 AND b.subject_id = $3 \
         AND b.valid_to_ms IS NULL ORDER BY b.id LIMIT {MAX_PER_SUBJECT}"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(partner.to_owned())
        .bind(subject.kind())
        .bind(subject.id().to_owned())
        .fetch_all(pool)
        .await?;
    with_roles(pool, &rows, When::Now).await
}

/// The rules of a partner that are bound in this scope.
pub(crate) async fn of_label(
    pool: &AnyPool,
    partner: &str,
    kind: &str,
    label: &str,
) -> Result<Vec<Rule>, StoreError> {
    let statement = format!(
        "{SELECT} WHERE b.scope_partner_id = $1 AND b.scope_kind = $2 AND b.scope_id = $3 \
         AND b.valid_to_ms IS NULL ORDER BY b.id"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(partner.to_owned())
        .bind(kind.to_owned())
        .bind(label.to_owned())
        .fetch_all(pool)
        .await?;
    with_roles(pool, &rows, When::Now).await
}

async fn with_roles(pool: &AnyPool, rows: &[AnyRow], when: When) -> Result<Vec<Rule>, StoreError> {
    let mut known = BTreeMap::new();
    let mut rules = Vec::with_capacity(rows.len());
    for row in rows {
        let binding = read(row)?;
        if !known.contains_key(&binding.role) {
            let role = roles::by_id(pool, &binding.role, when).await?;
            known.insert(binding.role.clone(), role);
        }
        if let Some(Some(role)) = known.get(&binding.role) {
            rules.push(Rule {
                binding: binding.id,
                role: role.clone(),
                scope: binding.scope,
                conditions: binding.conditions,
                expires_ms: binding.expires_ms,
            });
        }
    }
    Ok(rules)
}
