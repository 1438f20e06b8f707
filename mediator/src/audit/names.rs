//! Names of events: whoever asks for one that there is not is told so, instead of finding nothing.
//!
//! Must never keep anybody from what the log holds: names that an earlier version wrote are good as
//! long as an entry has them.

use sqlx::AnyPool;

use super::search::{self, Filter, Page, Reach};
use crate::store::StoreError;

/// All that this version writes, as docs/audit.md lists them.
const EVENTS: [&str; 111] = [
    "act.refused",
    "agent.identity_in_use",
    "api.authentication_failed",
    "api.read",
    "api_key.created",
    "api_key.revoked",
    "audit.hold_released",
    "audit.hold_set",
    "audit.pruned",
    "audit.read",
    "audit.retention_set",
    "backup.made",
    "backup.restored",
    "channel.closed",
    "channel.refused",
    "channel.requested",
    "client.added",
    "client.certified",
    "client.erased",
    "client.erasure_begun",
    "client.locked",
    "client.unlocked",
    "clock.off",
    "clock.right",
    "computer.labelled",
    "computer.removed",
    "computer.renamed",
    "computer.unlabelled",
    "computers.listed",
    "connection.limited",
    "connection.source_refused",
    "credential.added",
    "credential.changed",
    "credential.deleted",
    "credential.read",
    "credential.refused",
    "credential.used",
    "database.compacted",
    "database.damaged",
    "device.disabled",
    "device.enabled",
    "enroll.refused",
    "enroll.succeeded",
    "installation.created",
    "login.device_approved",
    "login.device_refused",
    "login.failed",
    "login.limited",
    "login.reauthenticated",
    "login.reauthentication_failed",
    "login.second_factor_asked",
    "login.succeeded",
    "logout",
    "mfa.added",
    "mfa.confirmation_failed",
    "mfa.enrolment_begun",
    "mfa.recovery_renewed",
    "mfa.recovery_used",
    "mfa.refused",
    "mfa.removed",
    "oidc.provider_added",
    "oidc.provider_removed",
    "partner.added",
    "partner.certified",
    "partner.erased",
    "partner.erasure_begun",
    "receipt.dropped",
    "receipt.mismatch",
    "receipt.missing",
    "receipt.settled",
    "relay.disabled",
    "relay.drained",
    "relay.enabled",
    "relay.resumed",
    "request.approved",
    "request.decision_refused",
    "request.denied",
    "request.made",
    "requests.listed",
    "role.bound",
    "role.changed",
    "role.created",
    "role.deleted",
    "role.unbound",
    "session.accounted",
    "session.carrier",
    "session.end_refused",
    "session.ended",
    "session.granted",
    "session.refused",
    "session.requested",
    "sessions.listed",
    "token.created",
    "token.revoked",
    "tree.started",
    "user.add_refused",
    "user.added",
    "user.audit_level",
    "user.disabled",
    "user.enabled",
    "user.grouped",
    "user.linked",
    "user.logged_out",
    "user.mfa_policy",
    "user.mfa_reset",
    "user.password_set",
    "user.ungrouped",
    "user.unlinked",
    "vault.rotated",
    "vault.rotation_begun",
    "vault.rotation_failed",
];
/// Names proposed for one that there is not.
const MAX_PROPOSED: usize = 8;
/// Characters of a name that is compared with others.
const MAX_COMPARED: usize = 40;

/// A name that no event has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no event is called \"{name}\"")]
pub(crate) struct NoSuchEvent {
    name: String,
}

impl NoSuchEvent {
    /// What may be meant.
    pub(crate) fn hint(&self) -> String {
        match near(&self.name).as_slice() {
            [] => "docs/audit.md lists the events; without the filter all are found".to_owned(),
            near => format!("did you mean {}? docs/audit.md lists all", near.join(", ")),
        }
    }
}

/// Whether this version writes such events.
pub(crate) fn is_known(name: &str) -> bool {
    EVENTS.binary_search(&name).is_ok()
}

/// Whether events have the names that a filter asks for, as far as the reader may know: those that
/// this version writes, and what is found of others.
pub(crate) async fn check(
    pool: &AnyPool,
    reach: &Reach,
    filter: &Filter,
) -> Result<Result<(), NoSuchEvent>, StoreError> {
    for name in filter.events.iter().filter(|name| !is_known(name)) {
        let alone = Filter { events: vec![name.clone()], ..Filter::default() };
        let found = search::search(pool, reach, &alone, Page { after: None, limit: 1 }).await?;
        // A search that could not look at all of a long log says where to go on.
        if found.hits.is_empty() && found.next.is_none() {
            return Ok(Err(NoSuchEvent { name: name.clone() }));
        }
    }
    Ok(Ok(()))
}

/// Names like this one, the nearest first, then what else happens to the same things.
fn near(name: &str) -> Vec<&'static str> {
    if name.chars().count() > MAX_COMPARED {
        return Vec::new();
    }
    let name = name.to_lowercase();
    let far = |known: &str| strsim::damerau_levenshtein(known, &name);
    let bound = name.chars().count().div_ceil(4);
    let mut near: Vec<_> = EVENTS.into_iter().filter(|known| far(known) <= bound).collect();
    near.sort_by_key(|known| far(known));
    let (family, act) = name.split_once('.').unwrap_or((&name, &name));
    let related =
        |known: &&str| known.split_once('.').is_some_and(|(of, what)| of == family || what == act);
    for known in EVENTS.into_iter().filter(related) {
        if !near.contains(&known) {
            near.push(known);
        }
    }
    near.truncate(MAX_PROPOSED);
    near
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistyped_names_are_told_from_those_that_there_are() {
        assert!(EVENTS.is_sorted());
        for (name, proposed) in [
            ("login.fialed", "login.failed"),
            ("login_failed", "login.failed"),
            ("Login.Failed", "login.failed"),
            ("session.start", "session.granted"),
            ("session", "session.granted"),
            ("granted", "session.granted"),
            ("roles.bound", "role.bound"),
            ("log_out", "logout"),
        ] {
            assert!(!is_known(name), "{name}");
            let hint = NoSuchEvent { name: name.to_owned() }.hint();
            assert!(hint.contains(proposed), "{name}: {hint}");
        }
        assert_eq!(near("login.fialed").first(), Some(&"login.failed"));
        assert!(near("user.x").len() <= MAX_PROPOSED);
        for strange in ["", "x", &"login.failed".repeat(9)] {
            assert!(near(strange).is_empty(), "{strange}");
        }
    }

    #[test]
    fn the_documentation_lists_the_events() {
        let text = include_str!("../../../docs/audit.md");
        let (_, table) = text.split_once("\n## Events\n").unwrap();
        let table = table.split("\n## ").next().unwrap();
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        let mut listed = Vec::new();
        for (family, acts) in rows {
            let acts: Vec<&str> = acts.split('`').skip(1).step_by(2).collect();
            listed.extend(acts.iter().map(|act| format!("{family}.{act}")));
            // It is what happened itself.
            listed.extend(acts.is_empty().then(|| family.to_owned()));
        }
        assert_eq!(listed, EVENTS);
    }
}
