//! Sessions that were granted, so that a restarted mediator knows which are open.

use adit_protocol::{ids::SessionId, keys::PublicKey};
use sqlx::AnyPool;

use super::{Columns, StoreError, WriteTx, bigint};
use crate::core::types::{Effect, Place, SessionRow, Who};

/// Does what a record stands for.
pub(crate) async fn apply(tx: &mut WriteTx, effect: Effect) -> Result<(), StoreError> {
    match effect {
        Effect::None => Ok(()),
        Effect::Begin(row) => begin(tx, *row).await,
        Effect::Lease { session, lease_ms } => {
            sqlx::query("UPDATE session SET lease_ms = $1 WHERE id = $2")
                .bind(bigint(lease_ms))
                .bind(session.to_string())
                .execute(tx.sql())
                .await?;
            Ok(())
        }
        Effect::Told { session, told } => {
            sqlx::query("UPDATE session SET told = $1 WHERE id = $2 AND ended_ms IS NULL")
                .bind(serde_json::to_string(&told).unwrap_or_default())
                .bind(session.to_string())
                .execute(tx.sql())
                .await?;
            Ok(())
        }
        Effect::End { session, reason, bytes_up, bytes_down, relay_bytes } => {
            let now = bigint(tx.now_ms());
            sqlx::query(
                "UPDATE session SET ended_ms = $1, end_reason = $2, bytes_up = $3, \
                 bytes_down = $4, relay_bytes = $5, told = '' WHERE id = $6 AND ended_ms IS NULL",
            )
            .bind(now)
            .bind(reason)
            .bind(bigint(bytes_up))
            .bind(bigint(bytes_down))
            .bind(bigint(relay_bytes))
            .bind(session.to_string())
            .execute(tx.sql())
            .await?;
            Ok(())
        }
    }
}

async fn begin(tx: &mut WriteTx, row: SessionRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO session (id, partner_id, client_id, client, computer_id, computer, \
         account_id, account, login, console, agent, source, redirector, target, any_target, \
         started_ms, lease_ms, bytes_up, bytes_down, relay_bytes, access, mfa, told) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, \
         $18, $19, $20, $21, $22, $23)",
    )
    .bind(row.id.to_string())
    .bind(row.who.partner_id)
    .bind(row.place.client_id)
    .bind(row.place.client)
    .bind(row.place.computer_id.to_string())
    .bind(row.place.computer)
    .bind(row.who.account_id)
    .bind(row.who.account)
    .bind(row.who.login.to_vec())
    .bind(row.who.device.0.to_vec())
    .bind(row.place.agent.0.to_vec())
    .bind(row.who.source)
    .bind(row.redirector)
    .bind(row.target)
    .bind(i16::from(row.any_target))
    .bind(bigint(row.started_ms))
    .bind(bigint(row.lease_ms))
    .bind(0_i64)
    .bind(0_i64)
    .bind(0_i64)
    .bind(serde_json::to_string(&row.basis).unwrap_or_default())
    .bind(row.who.mfa)
    .bind(serde_json::to_string(&row.told).unwrap_or_default())
    .execute(tx.sql())
    .await
    .map_err(|error| super::tenants::taken(error, "session id"))?;
    Ok(())
}

/// Sessions that were not ended.
pub(crate) async fn open(pool: &AnyPool) -> Result<Vec<SessionRow>, StoreError> {
    let rows = sqlx::query(
        "SELECT s.id AS id, s.partner_id AS partner_id, s.client_id AS client_id, \
         s.client AS client, s.computer_id AS computer_id, s.computer AS computer, \
         s.account_id AS account_id, s.account AS account, s.login AS login, \
         s.console AS console, s.agent AS agent, s.source AS source, \
         s.redirector AS redirector, s.target AS target, s.any_target AS any_target, \
         s.started_ms AS started_ms, s.lease_ms AS lease_ms, s.access AS access, s.mfa AS mfa, \
         s.told AS told, \
         COALESCE(p.name, s.partner_id) AS partner \
         FROM session s LEFT JOIN partner p ON p.id = s.partner_id WHERE s.ended_ms IS NULL",
    )
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let corrupt = |what: &str| StoreError::Corrupt(format!("session: {what}"));
            let key = |column: &str| {
                PublicKey::from_slice(&row.blob(column)?).map_err(|_| corrupt(column))
            };
            Ok(SessionRow {
                id: row.parsed::<SessionId>("id")?,
                who: Who {
                    account_id: row.text("account_id")?,
                    account: row.text("account")?,
                    partner_id: row.text("partner_id")?,
                    partner: row.text("partner")?,
                    login: row.blob("login")?.try_into().map_err(|_| corrupt("login"))?,
                    device: key("console")?,
                    source: row.text("source")?,
                    mfa: row.text("mfa")?,
                },
                place: Place {
                    computer_id: row.parsed("computer_id")?,
                    computer: row.text("computer")?,
                    client_id: row.text("client_id")?,
                    client: row.text("client")?,
                    agent: key("agent")?,
                },
                redirector: row.text("redirector")?,
                target: row.text("target")?,
                any_target: row.flag("any_target")?,
                started_ms: row.number("started_ms")?,
                lease_ms: row.number("lease_ms")?,
                // Rows of earlier versions say nothing: then nothing was given.
                basis: serde_json::from_str(&row.text("access")?).unwrap_or_default(),
                told: serde_json::from_str(&row.text("told")?).unwrap_or_default(),
            })
        })
        .collect()
}

/// Ids of the open sessions that an account may see: its own, and those that `clause` finds.
pub(crate) async fn visible(
    pool: &AnyPool,
    account: &str,
    mut clause: super::access::filter::Clause,
    limit: u32,
) -> Result<Vec<SessionId>, StoreError> {
    let own = clause.bind(account);
    let statement = format!(
        "SELECT s.id AS id FROM session s WHERE s.ended_ms IS NULL \
         AND ((s.account_id = {own} AND s.partner_id = $1) OR {}) \
         ORDER BY s.started_ms, s.id LIMIT {limit}",
        clause.text
    );
    let mut query = sqlx::query(sqlx::AssertSqlSafe(statement));
    for value in &clause.values {
        query = query.bind(value.clone());
    }
    let rows = query.fetch_all(pool).await?;
    rows.iter().map(|row| row.parsed("id")).collect()
}
