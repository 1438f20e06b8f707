//! Relays: which there are, which get new sessions, which may connect.

use adit_protocol::ids::RelayId;
use adit_runtime::{cli::CliError, time::format_ms};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{actor::not_found, handle::Who};
use crate::{
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

async fn list((context, _): Who<'_>) -> Result<Vec<Value>, CliError> {
    let mut told = Vec::new();
    for row in relays::list(&context.store.readers).await.map_err(store_error)? {
        let id = row.id;
        let load = match &context.broker {
            Some(broker) => {
                broker.ask(move |driver, _| driver.broker.relay_load(id)).await.flatten()
            }
            None => None,
        };
        told.push(json!({
            "relay_id": id.to_string(),
            "name": row.name,
            "region": row.region,
            "identity": row.identity.fingerprint().to_string(),
            "online": load.is_some(),
            "pairs": load,
            "draining": row.draining,
            "enabled": !row.disabled,
            "last_seen": format_ms(row.last_seen_ms),
        }));
    }
    Ok(told)
}

#[derive(Clone, Copy)]
enum Change {
    Draining(bool),
    Disabled(bool),
}

async fn set(
    (context, actor): Who<'_>,
    relay: &str,
    change: Change,
) -> Result<Vec<Value>, CliError> {
    let id: RelayId = relay.parse().map_err(|_| not_found("relay"))?;
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
    Ok(vec![match change {
        Change::Draining(on) => json!({"relay_id": relay, "draining": on}),
        Change::Disabled(on) => json!({"relay_id": relay, "enabled": !on}),
    }])
}
