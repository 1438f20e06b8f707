//! Groups and tags of computers, groups of users.

use std::collections::BTreeSet;

use sqlx::AnyPool;

use super::When;
use crate::{
    roles::Object,
    store::{Columns, StoreError, WriteTx, bigint, computers::ComputerRow},
};

/// Labels of one computer or user.
pub(crate) const MAX_LABELS: usize = 64;

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

/// The computer as decisions see it.
pub(crate) async fn object(
    pool: &AnyPool,
    row: &ComputerRow,
    when: When,
) -> Result<Object, StoreError> {
    let computer = row.id.to_string();
    let (groups, tags) = of_computer(pool, &computer, when).await?;
    Ok(Object::Computer {
        partner: row.partner_id.clone(),
        client: row.client_id.clone(),
        computer,
        groups,
        tags,
    })
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
