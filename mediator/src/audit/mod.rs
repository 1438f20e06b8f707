//! What is done with the audit log once it is written: search, levels, retention, forwarding.
//!
//! - [`keys`]: what entries are found by
//! - [`names`]: which events there are
//! - [`search`]: pages of entries, newest first, in bounded time, within what a person may read
//! - [`levels`]: up to which level a user's events are kept
//! - [`retention`]: contents go, hashes stay; [`holds`]: what keeps them for a court
//! - [`forward`]: syslog, webhook, periodic exports, without a gap
//! - [`acts`]: what administrators do with all that
//!
//! Must never change a leaf: the tree is the store's, and only grows.

pub(crate) mod acts;
pub(crate) mod fill;
pub(crate) mod forward;
pub(crate) mod holds;
pub(crate) mod keys;
pub(crate) mod levels;
pub(crate) mod names;
pub(crate) mod retention;
pub(crate) mod search;
pub(crate) mod settings;

#[cfg(test)]
mod tests;

use adit_runtime::supervise::Tasks;

use crate::store::{Store, Writer};
use settings::AuditSettings;

/// Starts what goes on in the background.
pub(crate) fn start(
    store: &Store,
    writer: &Writer,
    settings: &AuditSettings,
    host: &str,
    tasks: &Tasks,
) {
    let stop = tasks.token();
    let parts = || (store.clone(), writer.clone());
    let (at, to) = parts();
    tasks.spawn_until_stopped("audit keys", fill::run(at, to));
    let (at, to) = parts();
    let (keep, targets) = (settings.retention_ms, settings.targets());
    tasks.spawn("audit retention", retention::run(at, to, keep, targets, stop.clone()));
    if let Some(target) = settings.syslog.clone() {
        let (at, to) = parts();
        let receiver = forward::syslog::Syslog::new(target, settings.dialer.clone(), host);
        tasks.spawn("audit syslog", forward::run(at, to, receiver, stop.clone()));
    }
    if let Some(target) = settings.webhook.clone() {
        let (at, to) = parts();
        let receiver = forward::webhook::Webhook::new(target, settings.dialer.clone());
        tasks.spawn("audit webhook", forward::run(at, to, receiver, stop.clone()));
    }
    if let Some(export) = settings.export.clone() {
        let (at, to) = parts();
        tasks.spawn("audit export", forward::export::run(at, to, export, stop.clone()));
    }
}
