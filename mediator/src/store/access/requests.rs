//! Requests for approval and what became of them.

use sqlx::{AnyPool, Row, any::AnyRow};

use super::When;
use crate::store::{Columns, StoreError, WriteTx, bigint};

/// Requests in one list.
pub(crate) const MAX_LISTED: u32 = 200;

/// A request with its last decision.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) id: String,
    pub(crate) partner_id: String,
    pub(crate) client_id: String,
    pub(crate) computer_id: String,
    pub(crate) account_id: String,
    pub(crate) redirector: String,
    pub(crate) reason: String,
    pub(crate) ticket: String,
    pub(crate) length_ms: u64,
    pub(crate) asked_ms: u64,
    /// For people.
    pub(crate) user: String,
    pub(crate) computer: String,
    /// `partner/client`.
    pub(crate) client: String,
    pub(crate) decision: Option<Decision>,
}

/// A decision.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    pub(crate) approved: bool,
    pub(crate) by: String,
    pub(crate) until_ms: u64,
}

impl Request {
    /// Where it stands.
    pub(crate) fn state(&self, now_ms: u64) -> &'static str {
        match &self.decision {
            None => "pending",
            Some(Decision { approved: false, .. }) => "denied",
            Some(decision) if decision.until_ms <= now_ms => "over",
            Some(_) => "approved",
        }
    }
}

const SELECT: &str = "SELECT r.id AS id, r.partner_id AS partner_id, r.client_id AS client_id, \
     r.computer_id AS computer_id, r.account_id AS account_id, r.redirector AS redirector, \
     r.reason AS reason, r.ticket AS ticket, r.length_ms AS length_ms, r.asked_ms AS asked_ms, \
     a.name AS user_name, k.name AS computer, c.name AS client, p.name AS partner, \
     d.approved AS approved, d.decided_by AS decided_by, d.until_ms AS until_ms \
     FROM access_request r JOIN account a ON a.id = r.account_id \
     JOIN computer k ON k.id = r.computer_id JOIN client c ON c.id = k.client_id \
     JOIN partner p ON p.id = r.partner_id \
     LEFT JOIN access_decision d ON d.request_id = r.id AND d.number = \
     (SELECT MAX(e.number) FROM access_decision e WHERE e.request_id = r.id)";

fn read(row: &AnyRow) -> Result<Request, StoreError> {
    let approved: Option<i64> = row.try_get("approved")?;
    let decision = approved
        .map(|approved| {
            Ok::<_, StoreError>(Decision {
                approved: approved != 0,
                by: row.text("decided_by")?,
                until_ms: row.number("until_ms")?,
            })
        })
        .transpose()?;
    Ok(Request {
        id: row.text("id")?,
        partner_id: row.text("partner_id")?,
        client_id: row.text("client_id")?,
        computer_id: row.text("computer_id")?,
        account_id: row.text("account_id")?,
        redirector: row.text("redirector")?,
        reason: row.text("reason")?,
        ticket: row.text("ticket")?,
        length_ms: row.number("length_ms")?,
        asked_ms: row.number("asked_ms")?,
        user: row.text("user_name")?,
        computer: row.text("computer")?,
        client: format!("{}/{}", row.text("partner")?, row.text("client")?),
        decision,
    })
}

/// What is asked for.
pub(crate) struct NewRequest {
    pub(crate) id: String,
    pub(crate) partner_id: String,
    pub(crate) client_id: String,
    pub(crate) computer_id: String,
    pub(crate) account_id: String,
    pub(crate) redirector: String,
    pub(crate) reason: String,
    pub(crate) ticket: String,
    pub(crate) length_ms: u64,
}

impl NewRequest {
    /// Does it ask as a present one does?
    pub(crate) fn asks_as(&self, present: &Request) -> bool {
        (&self.reason, &self.ticket, self.length_ms)
            == (&present.reason, &present.ticket, present.length_ms)
    }
}

/// Adds a request.
pub(crate) async fn insert(tx: &mut WriteTx, new: NewRequest) -> Result<(), StoreError> {
    let now = bigint(tx.now_ms());
    sqlx::query(
        "INSERT INTO access_request (id, partner_id, client_id, computer_id, account_id, \
         redirector, reason, ticket, length_ms, asked_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(new.id)
    .bind(new.partner_id)
    .bind(new.client_id)
    .bind(new.computer_id)
    .bind(new.account_id)
    .bind(new.redirector)
    .bind(new.reason)
    .bind(new.ticket)
    .bind(bigint(new.length_ms))
    .bind(now)
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// Adds a decision; it counts from now on.
pub(crate) async fn decide(
    tx: &mut WriteTx,
    request: &str,
    decision: &Decision,
) -> Result<(), StoreError> {
    let now = bigint(tx.now_ms());
    sqlx::query(
        "INSERT INTO access_decision (request_id, number, approved, decided_by, decided_ms, \
         until_ms) SELECT $1, COALESCE(MAX(number), 0) + 1, $2, $3, $4, $5 \
         FROM access_decision WHERE request_id = $1",
    )
    .bind(request.to_owned())
    .bind(i16::from(decision.approved))
    .bind(decision.by.clone())
    .bind(now)
    .bind(bigint(decision.until_ms))
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// How many requests of an account nobody has decided.
pub(crate) async fn pending_of(tx: &mut WriteTx, account: &str) -> Result<u64, StoreError> {
    let row = sqlx::query(
        "SELECT COUNT(*) AS count FROM access_request r WHERE r.account_id = $1 \
         AND NOT EXISTS (SELECT 1 FROM access_decision d WHERE d.request_id = r.id)",
    )
    .bind(account.to_owned())
    .fetch_one(tx.sql())
    .await?;
    row.number("count")
}

/// The undecided one of the same person for the same redirector of the same computer.
pub(crate) async fn same_pending(
    tx: &mut WriteTx,
    new: &NewRequest,
) -> Result<Option<Request>, StoreError> {
    let statement = format!(
        "{SELECT} WHERE r.partner_id = $1 AND r.account_id = $2 AND r.computer_id = $3 \
         AND r.redirector = $4 AND d.request_id IS NULL ORDER BY r.asked_ms LIMIT 1"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(new.partner_id.clone())
        .bind(new.account_id.clone())
        .bind(new.computer_id.clone())
        .bind(new.redirector.clone())
        .fetch_optional(tx.sql())
        .await?;
    row.as_ref().map(read).transpose()
}

/// A partner's request.
pub(crate) async fn by_id(
    tx: &mut WriteTx,
    partner: Option<&str>,
    id: &str,
) -> Result<Option<Request>, StoreError> {
    let statement = format!("{SELECT} WHERE r.id = $1 AND ($2 = '' OR r.partner_id = $2)");
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(id.to_owned())
        .bind(partner.unwrap_or_default().to_owned())
        .fetch_optional(tx.sql())
        .await?;
    row.as_ref().map(read).transpose()
}

/// Requests, newest first. `clause` filters `k`, the computer, and `r`; its numbered
/// placeholders begin with `$1`.
pub(crate) async fn list(
    pool: &AnyPool,
    pending: bool,
    clause: &super::filter::Clause,
) -> Result<Vec<Request>, StoreError> {
    let undecided = if pending { "AND d.request_id IS NULL" } else { "" };
    let statement = format!(
        "{SELECT} WHERE {} {undecided} ORDER BY r.asked_ms DESC, r.id LIMIT {MAX_LISTED}",
        clause.text
    );
    let mut query = sqlx::query(sqlx::AssertSqlSafe(statement));
    for value in &clause.values {
        query = query.bind(value.clone());
    }
    let rows = query.fetch_all(pool).await?;
    rows.iter().map(read).collect()
}

/// Until when somebody has approved this for the account; past decisions count by their times.
pub(crate) async fn approved_until(
    pool: &AnyPool,
    account: &str,
    computer: &str,
    redirector: &str,
    when: When,
) -> Result<Option<u64>, StoreError> {
    let then = match when {
        When::Now => i64::MAX,
        When::At(ms) => bigint(ms),
    };
    let row = sqlx::query(
        "SELECT MAX(d.until_ms) AS until_ms FROM access_request r \
         JOIN access_decision d ON d.request_id = r.id \
         WHERE r.account_id = $1 AND r.computer_id = $2 AND r.redirector = $3 \
         AND d.approved = 1 AND d.decided_ms <= $4 AND d.number = \
         (SELECT MAX(e.number) FROM access_decision e \
         WHERE e.request_id = r.id AND e.decided_ms <= $4)",
    )
    .bind(account.to_owned())
    .bind(computer.to_owned())
    .bind(redirector.to_owned())
    .bind(then)
    .fetch_one(pool)
    .await?;
    let until: Option<i64> = row.try_get("until_ms")?;
    Ok(until.map(|ms| u64::try_from(ms).unwrap_or(0)))
}

/// Forgets the requests for a client's computers.
pub(crate) async fn forget_client(tx: &mut WriteTx, client: &str) -> Result<(), StoreError> {
    for statement in [
        "DELETE FROM access_decision WHERE request_id IN \
         (SELECT id FROM access_request WHERE client_id = $1)",
        "DELETE FROM access_request WHERE client_id = $1",
    ] {
        sqlx::query(statement).bind(client.to_owned()).execute(tx.sql()).await?;
    }
    Ok(())
}
