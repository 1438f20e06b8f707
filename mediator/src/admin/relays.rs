//! Relays: which there are, which get new sessions, which may connect.

use adit_protocol::ids::RelayId;
use adit_runtime::{cli::CliError, time::format_ms};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{actor::not_found, handle::Who};
use crate::{
    core::relays::RelayState,
    place::store_error,
    roles::Permission,
    store::{StoreError, relays, tenants},
};

/// An act on relays.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum RelayAct {
    /// Lists them.
    List,
    /// Gives it nothing new, or again.
    Drain { relay: String, draining: bool },
    /// Lets it not connect, or again.
    Disable { relay: String, disabled: bool },
}

const MANAGE: &[Permission] = &[Permission::ManageRelays];

/// Does it.
pub(super) async fn handle(who: Who<'_>, act: RelayAct) -> Result<Vec<Value>, CliError> {
    who.1.may_everywhere(who.0, MANAGE).await?;
    match act {
        RelayAct::List => list(who).await,
        RelayAct::Drain { relay, draining } => set(who, &relay, Change::Draining(draining)).await,
        RelayAct::Disable { relay, disabled } => set(who, &relay, Change::Disabled(disabled)).await,
    }
}

async fn list(who: Who<'_>) -> Result<Vec<Value>, CliError> {
    let mut told = Vec::new();
    for row in relays::list(&who.0.store.readers).await.map_err(store_error)? {
        let id = row.id;
        let state = state(who, id).await;
        let drained_by = drained_by(row.draining, state);
        told.push(json!({
            "relay_id": id.to_string(),
            "name": row.name,
            "region": row.region,
            "identity": row.identity.fingerprint().to_string(),
            "online": state.is_some(),
            "pairs": state.map(|state| state.load),
            "draining": !drained_by.is_empty(),
            "drained_by": drained_by,
            "enabled": !row.disabled,
            "last_seen": format_ms(row.last_seen_ms),
            "clock_offset_ms": who.0.clock_offset(row.identity),
        }));
    }
    Ok(told)
}

/// What the server knows of a relay that is registered.
async fn state((context, _): Who<'_>, id: RelayId) -> Option<RelayState> {
    let broker = context.broker.as_ref()?;
    broker.ask(move |driver, _| driver.broker.relay_state(id)).await.flatten()
}

/// Who wants a relay to get nothing new: an operator here, or its own machine.
fn drained_by(here: bool, state: Option<RelayState>) -> Vec<&'static str> {
    let itself = state.is_some_and(|state| state.drains);
    let here = here.then_some("mediator");
    here.into_iter().chain(itself.then_some("relay")).collect()
}

/// The relay that is meant: its id, or its name if no other has it.
async fn find((context, _): Who<'_>, given: &str) -> Result<RelayId, CliError> {
    if let Ok(id) = given.parse() {
        return Ok(id);
    }
    let mut rows = relays::list(&context.store.readers).await.map_err(store_error)?;
    rows.retain(|row| row.name == given);
    match rows.as_slice() {
        [] => Err(not_found("relay")),
        [row] => Ok(row.id),
        several => {
            let ids: Vec<String> = several.iter().map(|row| row.id.to_string()).collect();
            let text = format!("{} relays have that name: {}", ids.len(), ids.join(", "));
            Err(CliError::failed("ambiguous_relay", text).hint("give the id"))
        }
    }
}

#[derive(Clone, Copy)]
enum Change {
    Draining(bool),
    Disabled(bool),
}

async fn set(who: Who<'_>, relay: &str, change: Change) -> Result<Vec<Value>, CliError> {
    let id = find(who, relay).await?;
    // What its own machine wants does not change with our word.
    let before = state(who, id).await;
    let (context, actor) = who;
    let home = context.home().await.map_err(store_error)?;
    let by = actor.clone();
    let done = context.writer.write(move |tx| {
        Box::pin(async move {
            let (name, changed) = match change {
                Change::Draining(on) => {
                    let name = if on { "relay.drained" } else { "relay.resumed" };
                    (name, relays::set_draining(tx, id, on).await?)
                }
                Change::Disabled(on) => {
                    let name = if on { "relay.disabled" } else { "relay.enabled" };
                    (name, relays::set_disabled(tx, id, on).await?)
                }
            };
            if !changed {
                return Err(StoreError::Missing("relay"));
            }
            let partner = tenants::partner_by_id(tx, &home).await?;
            let event = by.event(name, &partner.name).extra("relay_id", id.to_string());
            tx.append(&home, event).await
        })
    });
    done.await.map_err(store_error)?;
    if let Some(broker) = &context.broker {
        let act = move |driver: &mut crate::serve::Driver, _| match change {
            Change::Draining(true) => driver.broker.handle_relay_drained(id),
            Change::Draining(false) | Change::Disabled(_) => {
                driver.broker.handle_relay_dropped(id);
            }
        };
        broker.act(act).await;
    }
    let relay = id.to_string();
    Ok(vec![match change {
        Change::Draining(on) => {
            let drained_by = drained_by(on, before);
            let draining = !drained_by.is_empty();
            json!({"relay_id": relay, "draining": draining, "drained_by": drained_by})
        }
        Change::Disabled(on) => json!({"relay_id": relay, "enabled": !on}),
    }])
}
