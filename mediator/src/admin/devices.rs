//! Technicians' devices: which there are, and switching them off and on.
//!
//! A device is off for everybody, which the machine's administrator decides, or for the users of
//! one partner, which that partner decides. Neither undoes the other's by accident; the machine's
//! administrator, whom nothing keeps out, can undo a partner's by naming it.

use std::collections::BTreeMap;

use adit_protocol::{code::failure, keys::Fingerprint};
use adit_runtime::{cli::CliError, time::format_ms};
use serde_json::{Value, json};

use super::{
    actor::Actor,
    handle::{AdminContext, Who},
    users,
};
use crate::{
    core::types::Affected,
    place::store_error,
    store::{StoreError, devices, locks, tenants},
};

/// Who switched a device off for everybody, as it is told.
const MEDIATOR: &str = "mediator";

/// Devices with which somebody logged in, and those that are off.
pub(super) async fn list((context, actor): Who<'_>) -> Result<Vec<Value>, CliError> {
    actor.may_at_home(context, users::MANAGE).await?;
    let all = all(context, actor).await?;
    Ok(all.into_iter().map(|(device, listed)| listed.tell(&device)).collect())
}

async fn all(context: &AdminContext, actor: &Actor) -> Result<BTreeMap<String, Listed>, CliError> {
    let (pool, partner) = (&context.store.readers, actor.partner_id());
    let mut all: BTreeMap<String, Listed> = BTreeMap::new();
    for known in devices::known(pool, partner).await.map_err(store_error)? {
        let listed = all.entry(known.device.fingerprint().to_string()).or_default();
        listed.used_ms = listed.used_ms.max(known.used_ms);
        listed.users.push(known.user);
    }
    for mut lock in locks::devices(pool, partner).await.map_err(store_error)? {
        if partner.is_some() && lock.partner.is_none() {
            // That nobody gets in with a device is told of those with which its own people did,
            // and not why: that may be about others.
            if !all.contains_key(&lock.what) {
                continue;
            }
            lock.reason.clear();
        }
        all.entry(lock.what.clone()).or_default().locks.push(lock);
    }
    Ok(all)
}

/// A device that somebody logged in with, or that is off.
#[derive(Default)]
struct Listed {
    users: Vec<String>,
    used_ms: u64,
    locks: Vec<locks::Lock>,
}

impl Listed {
    fn tell(self, device: &str) -> Value {
        let disabled_by = self.disabled_by();
        let Self { mut users, used_ms, locks } = self;
        users.sort_unstable();
        let first = locks.iter().min_by_key(|lock| lock.since_ms);
        let reasons = locks.iter().map(|lock| lock.reason.as_str());
        json!({
            "device": device,
            "enabled": locks.is_empty(),
            "disabled_by": disabled_by,
            "users": users,
            "last_login": (used_ms > 0).then(|| format_ms(used_ms)),
            "since": first.map(|lock| format_ms(lock.since_ms)),
            "reason": reasons.filter(|reason| !reason.is_empty()).collect::<Vec<_>>().join("; "),
        })
    }

    fn disabled_by(&self) -> Vec<String> {
        let by = |lock: &locks::Lock| match &lock.partner {
            Some(partner) => format!("partner {partner}"),
            None => MEDIATOR.to_owned(),
        };
        self.locks.iter().map(by).collect()
    }
}

/// Switches a device off or on: for everybody, or for the users of the actor's partner, or of the
/// one that the machine's administrator names.
pub(super) async fn set(
    (context, actor): Who<'_>,
    device: &str,
    (partner, everywhere): (Option<String>, bool),
    (disabled, reason): (bool, String),
) -> Result<Vec<Value>, CliError> {
    let fingerprint: Fingerprint = device
        .parse()
        .map_err(|_| CliError::usage("usage", "a device's fingerprint is expected: sha256:…"))?;
    match everywhere {
        true => actor.may_everywhere(context, users::MANAGE).await?,
        false => actor.may_at_home(context, users::MANAGE).await?,
    }
    let of = match (actor.partner_id().filter(|_| !everywhere), partner) {
        (None, None) => None,
        (_, partner) => Some(super::access::partner(context, actor, partner).await?.id),
    };
    let home = match &of {
        Some(partner) => partner.clone(),
        None => context.home().await.map_err(store_error)?,
    };
    let (by, scope) = (actor.clone(), of.clone());
    let done = context.writer.write(move |tx| {
        Box::pin(async move {
            let name = if disabled { "device.disabled" } else { "device.enabled" };
            let of = scope.as_deref();
            let (changed, logins) = match disabled {
                true => (true, locks::disable_device(tx, fingerprint, of, &reason).await?),
                false => (locks::enable_device(tx, fingerprint, of).await?, 0),
            };
            if !changed {
                return Ok(None);
            }
            let partner = tenants::partner_by_id(tx, &home).await?;
            let done = by
                .event(name, &partner.name)
                .extra("logins_ended", logins)
                .extra_personal("disabled", fingerprint.to_string());
            let done =
                if by.remote().is_none() { done.device(fingerprint.to_string()) } else { done };
            let done = if reason.is_empty() { done } else { done.reason(reason) };
            tx.append(&home, done).await?;
            Ok::<_, StoreError>(Some(logins))
        })
    });
    let Some(logins) = done.await.map_err(store_error)? else {
        return Err(still_off((context, actor), fingerprint).await?);
    };
    let mut ended = 0;
    if disabled {
        let affected = match of {
            Some(partner) => Affected::DeviceOf { device: fingerprint, partner },
            None => Affected::Device(fingerprint),
        };
        ended = context.end_sessions(affected, failure::DEVICE_DISABLED).await;
    }
    let by = disabled_by((context, actor), fingerprint).await?;
    Ok(vec![json!({
        "device": device,
        "enabled": by.is_empty(),
        "disabled_by": by,
        "logins_ended": logins,
        "sessions_ended": ended,
    })])
}

/// Who keeps a device off, as far as it is for this one to know.
async fn disabled_by(
    (context, actor): Who<'_>,
    device: Fingerprint,
) -> Result<Vec<String>, CliError> {
    let mut all = all(context, actor).await?;
    Ok(all.remove(&device.to_string()).map(|listed| listed.disabled_by()).unwrap_or_default())
}

/// What this one did not switch off, it cannot switch on: who did.
async fn still_off((context, actor): Who<'_>, device: Fingerprint) -> Result<CliError, CliError> {
    let by = disabled_by((context, actor), device).await?;
    if by.is_empty() {
        return Ok(store_error(StoreError::Missing("disabled device")));
    }
    let text = format!("the device was not disabled here, but by: {}", by.join(", "));
    let error = CliError::not_there("not_found", text);
    let of = by.first().and_then(|by| by.strip_prefix("partner ")).unwrap_or_default();
    Ok(match actor {
        Actor::Local => error.hint(format!("mediator device enable {device} --partner \"{of}\"")),
        Actor::Remote(_) => error.hint(
            "ask the mediator's administrator; with the permission on the installation: \
             console-tunnel admin device enable --everybody",
        ),
    })
}
