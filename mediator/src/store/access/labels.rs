//! Groups and tags of computers, groups of users.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::AnyPool;

use super::When;
use crate::store::{Columns, StoreError, WriteTx, bigint, tenants};

/// Labels of one computer or user.
pub(crate) const MAX_LABELS: usize = 64;
/// Setting that says that [`fill`] is done.
const FILLED: &str = "labels_filled";

/// What a label of a computer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Group,
    Tag,
}

impl Kind {
    /// As stored.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Tag => "tag",
        }
    }
}

/// Adds a label to a computer; false if it has it already.
pub(crate) async fn add(
    tx: &mut WriteTx,
    partner: &str,
    computer: &str,
    kind: Kind,
    label: &str,
) -> Result<bool, StoreError> {
    let now = bigint(tx.now_ms());
    let done = sqlx::query(
        "INSERT INTO computer_label (computer_id, partner_id, kind, label, valid_from_ms) \
         SELECT $1, $2, $3, $4, $5 WHERE NOT EXISTS (SELECT 1 FROM computer_label l \
         WHERE l.computer_id = $1 AND l.kind = $3 AND l.label = $4 AND l.valid_to_ms IS NULL)",
    )
    .bind(computer.to_owned())
    .bind(partner.to_owned())
    .bind(kind.name())
    .bind(label.to_owned())
    .bind(now)
    .execute(tx.sql())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Takes a label from a computer; false if it has none such.
pub(crate) async fn remove(
    tx: &mut WriteTx,
    computer: &str,
    kind: Kind,
    label: &str,
) -> Result<bool, StoreError> {
    let now = bigint(tx.now_ms());
    let done = sqlx::query(
        "UPDATE computer_label SET valid_to_ms = $1 WHERE computer_id = $2 AND kind = $3 \
         AND label = $4 AND valid_to_ms IS NULL",
    )
    .bind(now)
    .bind(computer.to_owned())
    .bind(kind.name())
    .bind(label.to_owned())
    .execute(tx.sql())
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Forgets all labels of a client's computers.
pub(crate) async fn forget_client(tx: &mut WriteTx, client: &str) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM computer_label WHERE computer_id IN \
         (SELECT id FROM computer WHERE client_id = $1)",
    )
    .bind(client.to_owned())
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// A computer's groups and tags.
pub(crate) async fn of_computer(
    pool: &AnyPool,
    computer: &str,
    when: When,
) -> Result<(BTreeSet<String>, BTreeSet<String>), StoreError> {
    let statement = format!(
        "SELECT kind, label FROM computer_label WHERE computer_id = $1 AND {}",
        when.valid("")
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(computer.to_owned())
        .fetch_all(pool)
        .await?;
    let (mut groups, mut tags) = (BTreeSet::new(), BTreeSet::new());
    for row in &rows {
        let set = if row.text("kind")? == "group" { &mut groups } else { &mut tags };
        set.insert(row.text("label")?);
    }
    Ok((groups, tags))
}

/// Puts a user into a group; false if it is there already.
pub(crate) async fn add_user(
    tx: &mut WriteTx,
    partner: &str,
    account: &str,
    label: &str,
) -> Result<bool, StoreError> {
    let now = bigint(tx.now_ms());
    let done = sqlx::query(
        "INSERT INTO account_label (account_id, partner_id, label, valid_from_ms) \
         SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT 1 FROM account_label l \
         WHERE l.account_id = $1 AND l.label = $3 AND l.valid_to_ms IS NULL)",
    )
    .bind(account.to_owned())
    .bind(partner.to_owned())
    .bind(label.to_owned())
    .bind(now)
    .execute(tx.sql())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Takes a user out of a group; false if it is not there.
pub(crate) async fn remove_user(
    tx: &mut WriteTx,
    account: &str,
    label: &str,
) -> Result<bool, StoreError> {
    let now = bigint(tx.now_ms());
    let done = sqlx::query(
        "UPDATE account_label SET valid_to_ms = $1 \
         WHERE account_id = $2 AND label = $3 AND valid_to_ms IS NULL",
    )
    .bind(now)
    .bind(account.to_owned())
    .bind(label.to_owned())
    .execute(tx.sql())
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Adds the tags that an agent was enrolled with, a JSON object, as `key=value`.
pub(crate) async fn add_tags(
    tx: &mut WriteTx,
    partner: &str,
    computer: &str,
    tags: &str,
) -> Result<(), StoreError> {
    let tags: BTreeMap<String, String> = serde_json::from_str(tags).unwrap_or_default();
    for (key, value) in tags.iter().take(MAX_LABELS) {
        add(tx, partner, computer, Kind::Tag, &format!("{key}={value}")).await?;
    }
    Ok(())
}

/// Once: the tags of computers that were enrolled before tags had rows of their own.
pub(crate) async fn fill(tx: &mut WriteTx) -> Result<(), StoreError> {
    let done = sqlx::query("SELECT value FROM setting WHERE name = $1")
        .bind(FILLED)
        .fetch_optional(tx.sql())
        .await?;
    if done.is_some() {
        return Ok(());
    }
    let rows = sqlx::query("SELECT id, partner_id, tags FROM computer WHERE tags <> '{}'")
        .fetch_all(tx.sql())
        .await?;
    for row in &rows {
        let (partner, id, tags) = (row.text("partner_id")?, row.text("id")?, row.text("tags")?);
        add_tags(tx, &partner, &id, &tags).await?;
    }
    tenants::set(tx, FILLED, "1").await
}
