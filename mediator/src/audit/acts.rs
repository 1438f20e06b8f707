//! What administrators do with the log's levels, retention and forwarding. Every act is recorded
//! in the transaction that does it.

use adit_ledger::Level;
use adit_runtime::{cli::CliError, time::format_ms};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    forward, levels,
    retention::{self, DAY_MS, MAX_DAYS, MIN_DAYS},
};
use crate::{
    admin::actor::Actor,
    place::store_error,
    roles::Permission,
    store::{Store, StoreError, Writer, accounts, tenants},
};

/// Characters of a legal hold's reason.
const MAX_REASON: usize = 500;

/// An act.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "audit", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum AuditAct {
    /// Lists how long logs are kept.
    Retention,
    /// Keeps a partner's log for so long; `None`: as configured.
    SetRetention { partner: String, days: Option<u64> },
    /// Begins or ends a legal hold.
    Hold { partner: String, hold: bool, reason: String },
    /// Sets up to which level a user's events are kept.
    SetLevel { user: String, level: u8 },
    /// Tells how far receivers are.
    Forwarding,
}

/// Does it, for `by`, whom the log names.
pub(crate) async fn handle(
    store: &Store,
    writer: &Writer,
    retention_ms: u64,
    by: &Actor,
    act: AuditAct,
) -> Result<Vec<Value>, CliError> {
    match act {
        AuditAct::Retention => list(store, retention_ms, by).await,
        AuditAct::SetRetention { partner, days } => {
            if days.is_some_and(|days| !(MIN_DAYS..=MAX_DAYS).contains(&days)) {
                let text = format!("{MIN_DAYS} to {MAX_DAYS} days are expected");
                return Err(CliError::usage("usage", text)
                    .hint("what was promised to be kept is not deleted earlier"));
            }
            set_retention(writer, by, partner.clone(), days).await.map_err(store_error)?;
            Ok(vec![json!({"partner": partner, "days": days})])
        }
        AuditAct::Hold { partner, hold, reason } => {
            let reason: String = reason.chars().take(MAX_REASON).collect();
            set_hold(writer, by, partner.clone(), hold, reason).await.map_err(store_error)?;
            Ok(vec![json!({"partner": partner, "hold": hold})])
        }
        AuditAct::SetLevel { user, level } => {
            let level = Level::from_number(level.into())
                .ok_or_else(|| CliError::usage("usage", "a level from 0 to 5 is expected"))?;
            set_level(writer, by, user.clone(), level).await.map_err(store_error)?;
            Ok(vec![json!({"user": user, "level": level as u8, "name": level.name()})])
        }
        AuditAct::Forwarding => standings(store, by).await,
    }
}

async fn list(store: &Store, retention_ms: u64, by: &Actor) -> Result<Vec<Value>, CliError> {
    let policies = retention::policies(&store.readers).await.map_err(store_error)?;
    Ok(policies
        .into_iter()
        .filter(|policy| by.remote().is_none_or(|remote| remote.partner == policy.partner))
        .map(|policy| {
            json!({
                "partner": policy.partner,
                "days": policy.retention_ms.unwrap_or(retention_ms) / DAY_MS,
                "own": policy.retention_ms.is_some(),
                "hold": policy.hold,
                "hold_reason": policy.hold_reason,
            })
        })
        .collect())
}

async fn set_retention(
    writer: &Writer,
    by: &Actor,
    partner: String,
    days: Option<u64>,
) -> Result<(), StoreError> {
    let by = by.clone();
    writer
        .write(move |tx| {
            Box::pin(async move {
                let partner =
                    tenants::partner(tx, &partner).await?.ok_or(StoreError::Missing("partner"))?;
                let ms = days.map(|days| days * DAY_MS);
                retention::set_retention(tx, &partner.id, ms).await?;
                let mut done = by.event("audit.retention_set", &partner.name);
                done = match days {
                    Some(days) => done.extra("days", days),
                    None => done.extra("days", "as configured"),
                };
                tx.append(&partner.id, done).await.map(|_| ())
            })
        })
        .await
}

async fn set_hold(
    writer: &Writer,
    by: &Actor,
    partner: String,
    hold: bool,
    reason: String,
) -> Result<(), StoreError> {
    let by = by.clone();
    writer
        .write(move |tx| {
            Box::pin(async move {
                let partner =
                    tenants::partner(tx, &partner).await?.ok_or(StoreError::Missing("partner"))?;
                retention::set_hold(tx, &partner.id, hold, &reason).await?;
                let name = if hold { "audit.hold_set" } else { "audit.hold_released" };
                let done = by.event(name, &partner.name).reason(reason);
                tx.append(&partner.id, done).await.map(|_| ())
            })
        })
        .await
}

async fn set_level(
    writer: &Writer,
    by: &Actor,
    user: String,
    level: Level,
) -> Result<(), StoreError> {
    let by = by.clone();
    writer
        .write(move |tx| {
            Box::pin(async move {
                let account = accounts::find(tx, &user).await?;
                levels::set(tx, &account.id, level).await?;
                let done = by
                    .event("user.audit_level", &account.partner)
                    .extra("level", u64::from(level as u8))
                    .extra_personal("user", account.name);
                tx.append(&account.partner_id, done).await.map(|_| ())
            })
        })
        .await
}

/// Of the own partner's log; of all to those who answer for the receivers.
async fn standings(store: &Store, by: &Actor) -> Result<Vec<Value>, CliError> {
    let all = by.holds_everywhere(Permission::ManagePolicy);
    let standings = forward::standings(&store.readers).await.map_err(store_error)?;
    Ok(standings
        .into_iter()
        .filter(|standing| all || standing.partner == by.partner_name())
        .map(|standing| {
            json!({
                "target": standing.target,
                "partner": standing.partner,
                "tree": standing.tree,
                "delivered": standing.delivered,
                "entries": standing.entries,
                "behind": standing.entries.saturating_sub(standing.delivered),
                "updated": format_ms(standing.updated_ms),
            })
        })
        .collect())
}
