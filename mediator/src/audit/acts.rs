//! What administrators do with the log's levels, retention and forwarding. Every act is recorded
//! in the transaction that does it.

use adit_ledger::Level;
use adit_runtime::{cli::CliError, time::format_ms};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    forward,
    holds::{self, Begun, Ended, Hold},
    levels,
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
/// Holds that are named where one of several was to be.
const MAX_NAMED: usize = 10;
/// Characters of their reasons there.
const MAX_BRIEF: usize = 60;

/// An act.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "audit", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum AuditAct {
    /// Lists how long logs are kept.
    Retention,
    /// Keeps a partner's log for so long; `None`: as configured.
    SetRetention { partner: String, days: Option<u64> },
    /// Begins a legal hold, or ends one: the one that is named, or the only one.
    Hold {
        partner: String,
        hold: bool,
        reason: String,
        #[serde(default)]
        hold_id: Option<String>,
    },
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
        AuditAct::Hold { hold: true, hold_id: Some(_), .. } => {
            let text = "a hold that is set gets its id here";
            Err(CliError::usage("usage", text).hint("name one only to release it"))
        }
        AuditAct::Hold { partner, hold: true, reason, .. } => {
            begin_hold(writer, by, partner, shortened(reason)).await
        }
        AuditAct::Hold { partner, hold: false, reason, hold_id } => {
            end_hold(writer, by, (partner, hold_id), shortened(reason)).await
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
                "hold": !policy.holds.is_empty(),
                "hold_reason": reasons(&policy.holds),
                "holds": policy.holds.iter().map(hold_json).collect::<Vec<_>>(),
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

fn shortened(reason: String) -> String {
    reason.chars().take(MAX_REASON).collect()
}

async fn begin_hold(
    writer: &Writer,
    by: &Actor,
    partner: String,
    reason: String,
) -> Result<Vec<Value>, CliError> {
    let (by, wanted) = (by.clone(), partner.clone());
    let begun = writer.write(move |tx| {
        Box::pin(async move {
            let partner =
                tenants::partner(tx, &wanted).await?.ok_or(StoreError::Missing("partner"))?;
            let hold = match holds::begin(tx, &partner.id, by.name(), &reason).await? {
                Begun::New(hold) => {
                    let event = by.event("audit.hold_set", &partner.name).reason(reason);
                    tx.append(&partner.id, event.extra("hold", hold.id.as_str())).await?;
                    hold
                }
                Begun::Same(hold) => hold,
                Begun::TooMany => return Ok(None),
            };
            Ok(Some((hold, holds::of_partner(tx, &partner.id).await?)))
        })
    });
    let Some((hold, there)) = begun.await.map_err(store_error)? else {
        let text = format!("{} legal holds are on {partner}, as many as may be", holds::MAX_HOLDS);
        return Err(CliError::failed("too_many_holds", text)
            .hint("release those that nothing needs any more: audit retention show lists them"));
    };
    Ok(vec![told(&partner, Some(&hold.id), &there)])
}

async fn end_hold(
    writer: &Writer,
    by: &Actor,
    (partner, id): (String, Option<String>),
    reason: String,
) -> Result<Vec<Value>, CliError> {
    let (by, wanted) = (by.clone(), partner.clone());
    let ended = writer.write(move |tx| {
        Box::pin(async move {
            let partner =
                tenants::partner(tx, &wanted).await?.ok_or(StoreError::Missing("partner"))?;
            let ended = holds::end(tx, &partner.id, id.as_deref()).await?;
            let there = holds::of_partner(tx, &partner.id).await?;
            if let Ended::One(hold) = &ended {
                let left = u64::try_from(there.len()).unwrap_or(u64::MAX);
                let event = by
                    .event("audit.hold_released", &partner.name)
                    .reason(reason)
                    .extra("hold", hold.id.as_str())
                    .extra("holds_left", left)
                    .extra_personal("held_for", hold.reason.as_str());
                tx.append(&partner.id, event).await?;
            }
            Ok((ended, there))
        })
    });
    match ended.await.map_err(store_error)? {
        (Ended::One(hold), there) => Ok(vec![told(&partner, Some(&hold.id), &there)]),
        (Ended::None, there) => Ok(vec![told(&partner, None, &there)]),
        (Ended::Missing, _) => Err(store_error(StoreError::Missing("legal hold on the partner"))
            .hint("audit retention show lists those that are there")),
        (Ended::Several(there), _) => Err(several(&partner, &there)),
    }
}

/// What was done to which hold, and what is on the partner now.
fn told(partner: &str, id: Option<&str>, there: &[Hold]) -> Value {
    json!({
        "partner": partner,
        "hold": !there.is_empty(),
        "hold_id": id,
        "holds": there.iter().map(hold_json).collect::<Vec<_>>(),
    })
}

fn hold_json(hold: &Hold) -> Value {
    json!({
        "hold_id": hold.id,
        "reason": hold.reason,
        "created_by": hold.created_by,
        "created": hold.created_ms.map(format_ms),
    })
}

/// For those who know of one hold only.
fn reasons(there: &[Hold]) -> String {
    let given = there.iter().map(|hold| hold.reason.as_str()).filter(|reason| !reason.is_empty());
    given.collect::<Vec<_>>().join("; ")
}

/// Which of them is for whoever releases one to say.
fn several(partner: &str, there: &[Hold]) -> CliError {
    let one = |hold: &Hold| match hold.reason.chars().take(MAX_BRIEF).collect::<String>() {
        reason if reason.is_empty() => hold.id.clone(),
        reason => format!("{} ({reason})", hold.id),
    };
    let mut named: Vec<String> = there.iter().take(MAX_NAMED).map(one).collect();
    if let Some(more) = there.len().checked_sub(MAX_NAMED).filter(|more| *more > 0) {
        named.push(format!("and {more} more"));
    }
    let count = there.len();
    let text = format!("{count} legal holds are on {partner}: {}", named.join(", "));
    CliError::failed("ambiguous_hold", text)
        .hint("none was released: name the one that is over, audit retention show lists them")
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
