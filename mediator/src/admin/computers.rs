//! Computers that are removed or renamed, one by one.
//!
//! A computer that is removed is not enrolled any more: its row goes in the transaction that
//! records it, then its sessions end, then its agent's connection. The entry of its enrolment stays
//! in the log. Must never leave its agent connected: whoever comes between the row's end and the
//! connection's is found out by the agent's next check-in.

use std::time::{Duration, Instant};

use adit_protocol::ids::ComputerId;
use adit_runtime::cli::CliError;
use serde_json::{Value, json};

use super::{
    actor::not_found,
    handle::{AdminContext, Who, bad_name},
    labels,
};
use crate::{
    core::{ending::COMPUTER_REMOVED, types::Affected},
    names,
    place::store_error,
    roles::Permission,
    store::{StoreError, computers},
};

/// Who may: it takes from others what they may reach.
const CHANGE: &[Permission] = &[Permission::ManagePolicy];
/// Time for both ends and the relays to learn that sessions are over.
const TELL_DEADLINE: Duration = Duration::from_secs(5);
/// Time for the agent's last reports and receipts of sessions that were ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Removes a computer.
pub(super) async fn remove(
    (context, actor): Who<'_>,
    computer: &str,
) -> Result<Vec<Value>, CliError> {
    let row = labels::one(context, actor, computer).await?;
    actor.may_computer(context, &row, CHANGE).await?;
    // Nothing brings it back but its owner.
    actor.must_be_fresh(context).await?;
    let (gone, by) = (row.clone(), actor.clone());
    let removed = context.writer.write(move |tx| {
        Box::pin(async move {
            let credentials = computers::remove(tx, &gone).await?;
            let credentials = credentials.ok_or(StoreError::Missing("computer"))?;
            let done = by
                .event("computer.removed", &gone.partner)
                .client(gone.client_path())
                .computer(&gone.name)
                .computer_id(gone.id.to_string())
                .extra("identity", gone.identity.fingerprint().to_string())
                .extra("credentials_destroyed", credentials);
            tx.append(&gone.partner_id, done).await?;
            Ok(credentials)
        })
    });
    let credentials = match removed.await {
        Err(StoreError::Missing(_)) => return Err(not_found("computer")),
        done => done.map_err(store_error)?,
    };
    let ended = context.end_sessions(Affected::Computer(row.id), COMPUTER_REMOVED).await;
    disconnect(context, row.id, ended > 0).await;
    context.rules_changed().await;
    Ok(vec![json!({
        "computer_id": row.id.to_string(),
        "computer": row.name,
        "client": row.client_path(),
        "removed": true,
        "sessions_ended": ended,
        "credentials_destroyed": credentials,
    })])
}

/// Once its agent knows that its sessions are over, or had the time to.
async fn disconnect(context: &AdminContext, computer: ComputerId, had_sessions: bool) {
    let Some(broker) = &context.broker else { return };
    let begun = Instant::now();
    while begun.elapsed() < TELL_DEADLINE {
        match broker.ask(move |driver, _| driver.broker.untold_of(computer)).await {
            Some(0) | None => break,
            Some(_) => tokio::time::sleep(LOOK).await,
        }
    }
    if had_sessions {
        tokio::time::sleep(LAST_WORDS).await;
    }
    broker.act(move |driver, _| driver.broker.handle_unenrolled(&[computer])).await;
}

/// Gives a computer another name. Consoles learn it with the next list, or when they open it.
pub(super) async fn rename(
    (context, actor): Who<'_>,
    computer: &str,
    name: String,
) -> Result<Vec<Value>, CliError> {
    names::check(&name).map_err(bad_name)?;
    let row = labels::one(context, actor, computer).await?;
    actor.may_computer(context, &row, CHANGE).await?;
    let (old, new, by) = (row.clone(), name.clone(), actor.clone());
    let renamed = context.writer.write(move |tx| {
        Box::pin(async move {
            if old.name == new {
                return Ok(false);
            }
            if !computers::rename(tx, old.id, &new).await? {
                return Err(StoreError::Missing("computer"));
            }
            let done = by
                .event("computer.renamed", &old.partner)
                .client(old.client_path())
                .computer(&old.name)
                .computer_id(old.id.to_string())
                .extra_personal("name", new);
            tx.append(&old.partner_id, done).await?;
            Ok(true)
        })
    });
    let changed = renamed.await.map_err(|error| match error {
        StoreError::Missing(_) => not_found("computer"),
        StoreError::Taken(_) => {
            let text = format!("{} has a computer named {name}", row.client_path());
            CliError::failed("name_taken", text).hint(match actor.remote() {
                None => "choose another name, or remove that computer: mediator computer remove",
                Some(_) => {
                    "choose another name, or remove that computer: \
                     console-tunnel admin computer remove"
                }
            })
        }
        other => store_error(other),
    })?;
    Ok(vec![json!({
        "computer_id": row.id.to_string(),
        "client": row.client_path(),
        "computer": name,
        "was": row.name,
        "changed": changed,
    })])
}
