//! One session: its facts, its phase, and what is known of its use.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use adit_protocol::{
    grant::Grant,
    ids::{RelayId, SessionId},
    keys::sha256,
    limits::LEASE,
    target::Target,
    ticket::Role,
};
use bytes::Bytes;

use super::ending::Ending;
use super::fold::Refusals;
use super::types::{
    Allowed, Attempt, Basis, ConnectionId, Effect, Now, Place, Recorded, RequestId, SessionRow,
    Told, Who,
};

/// Kinds of carriers remembered per end.
const MAX_KINDS: usize = 16;

/// Where a session stands.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Its record is being made durable.
    Auditing { request: RequestId, asked: Duration, noise_msg1: Bytes },
    /// The agent was asked.
    Offered { request: RequestId, agent: ConnectionId, grant: Box<Grant>, audit_us: u32 },
    /// Granted.
    Open,
    /// Over; kept until everybody knows.
    Ended { ending: Ending },
}

/// A session that was asked for.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) who: Who,
    pub(crate) place: Place,
    pub(crate) redirector: String,
    pub(crate) targets: Vec<Target>,
    /// Targets as written in the record.
    pub(crate) target: String,
    pub(crate) any_target: bool,
    pub(crate) reason: String,
    pub(crate) ticket: String,
    pub(crate) viewer: String,
    pub(crate) rule: String,
    pub(crate) msg1_sha256: [u8; 32],
    /// Head of the log that the console holds.
    pub(super) seen: Option<adit_protocol::wire::SeenHead>,
    /// The console wants the agent's enrolment proved.
    pub(super) enrolment: bool,
    pub(crate) phase: Phase,
    pub(crate) started_ms: u64,
    pub(crate) started: Duration,
    /// End of the lease.
    pub(crate) lease: Duration,
    /// The console's connection that speaks for this session.
    pub(crate) console: Option<ConnectionId>,
    /// The agent's connection that was offered it; another one means that the agent came back.
    pub(super) offered_on: Option<ConnectionId>,
    /// Relays for which tickets were given out.
    pub(crate) relays: BTreeSet<RelayId>,
    /// The last of them, in the order in which they were chosen: both ends get the same.
    pub(super) chosen: Vec<RelayId>,
    /// Kinds of carriers in the order of use, by the end that told.
    kinds: BTreeMap<Role, Vec<String>>,
    /// There are more of these than the store knows.
    unwritten: bool,
    /// Refused channels told of late.
    pub(super) refusals: Refusals,
    /// Console to target, target to console.
    pub(crate) bytes: (u64, u64),
    pub(crate) relay_bytes: BTreeMap<RelayId, u64>,
    pub(crate) revocation: super::revoke::Revocation,
    /// When this session must be looked at again.
    pub(super) timer: Option<Duration>,
    pub(super) basis: Basis,
    /// When the right to it ends.
    pub(super) until: Option<Duration>,
    /// The right has ended; it is being judged anew.
    pub(super) overdue: bool,
}

impl Session {
    /// From an attempt that is allowed.
    pub(super) fn new(attempt: &Attempt, place: Place, allowed: Allowed, now: Now) -> Self {
        Self {
            id: attempt.session,
            who: attempt.who.clone(),
            place,
            redirector: attempt.redirector.clone(),
            targets: attempt.targets.clone(),
            target: target_text(&attempt.targets, attempt.any_target),
            any_target: attempt.any_target,
            reason: attempt.reason.clone(),
            ticket: attempt.ticket.clone(),
            viewer: attempt.viewer.clone(),
            rule: allowed.rule,
            msg1_sha256: sha256(&attempt.noise_msg1),
            seen: attempt.seen.clone(),
            enrolment: attempt.enrolment,
            phase: Phase::Auditing {
                request: attempt.request,
                asked: now.mono,
                noise_msg1: attempt.noise_msg1.clone(),
            },
            started_ms: now.unix_ms,
            started: now.mono,
            lease: now.mono + LEASE,
            console: Some(attempt.connection),
            offered_on: None,
            relays: BTreeSet::new(),
            chosen: Vec::new(),
            kinds: BTreeMap::new(),
            unwritten: false,
            refusals: Refusals::default(),
            bytes: (0, 0),
            relay_bytes: BTreeMap::new(),
            revocation: Default::default(),
            timer: None,
            basis: allowed.basis,
            until: super::review::until(allowed.until_ms, now),
            overdue: false,
        }
    }

    /// One that was open when the mediator stopped.
    pub(super) fn adopted(row: SessionRow, now: Now) -> Self {
        let left = row.lease_ms.saturating_sub(now.unix_ms);
        Self {
            id: row.id,
            who: row.who,
            place: row.place,
            redirector: row.redirector,
            targets: Vec::new(),
            target: row.target,
            any_target: row.any_target,
            reason: row.told.reason,
            ticket: row.told.ticket,
            viewer: row.told.viewer,
            rule: row.told.rule,
            msg1_sha256: [0; 32],
            seen: None,
            enrolment: false,
            phase: Phase::Open,
            started_ms: row.started_ms,
            started: now
                .mono
                .saturating_sub(Duration::from_millis(now.unix_ms.saturating_sub(row.started_ms))),
            // A clock that was set back must not make a lease longer than leases are.
            lease: now.mono + Duration::from_millis(left).min(LEASE),
            console: None,
            offered_on: None,
            relays: BTreeSet::new(),
            chosen: Vec::new(),
            kinds: [(Role::Console, row.told.by_console), (Role::Agent, row.told.by_agent)]
                .into_iter()
                .filter(|(_, kinds)| !kinds.is_empty())
                .collect(),
            unwritten: false,
            refusals: Refusals::default(),
            bytes: (0, 0),
            relay_bytes: BTreeMap::new(),
            revocation: Default::default(),
            timer: None,
            basis: row.basis,
            until: None,
            overdue: false,
        }
    }

    pub(super) fn row(&self, lease_ms: u64) -> SessionRow {
        SessionRow {
            id: self.id,
            who: self.who.clone(),
            place: self.place.clone(),
            redirector: self.redirector.clone(),
            target: self.target.clone(),
            any_target: self.any_target,
            started_ms: self.started_ms,
            lease_ms,
            basis: self.basis.clone(),
            told: self.told(),
        }
    }

    /// For the record of its end, if the mediator restarts before.
    pub(super) fn told(&self) -> Told {
        Told {
            reason: self.reason.clone(),
            ticket: self.ticket.clone(),
            viewer: self.viewer.clone(),
            rule: self.rule.clone(),
            by_console: self.kinds.get(&Role::Console).cloned().unwrap_or_default(),
            by_agent: self.kinds.get(&Role::Agent).cloned().unwrap_or_default(),
        }
    }

    /// The grant that names the record of its own approval.
    pub(super) fn grant(&self, recorded: &Recorded, now: Now) -> Grant {
        Grant {
            session: self.id,
            tenant: self.who.partner_id.clone(),
            computer: self.place.computer_id,
            console: self.who.device,
            agent: self.place.agent,
            redirector: self.redirector.clone(),
            targets: self.targets.clone(),
            any_target: self.any_target,
            msg1_sha256: self.msg1_sha256,
            issued_ms: now.unix_ms,
            expires_ms: now.unix_ms.saturating_add(lease_ms()),
            user: self.who.account.clone(),
            reason: self.reason.clone(),
            ticket: self.ticket.clone(),
            audit_seq: recorded.seq,
            audit_leaf: recorded.leaf.0,
        }
    }

    /// The first thing that it is for; `None` where the technician says later (SOCKS).
    pub(crate) fn first_target(&self) -> Option<String> {
        let mut named = self.target.split(',').filter(|part| !part.is_empty() && *part != ANY);
        named.next().map(str::to_owned)
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }

    pub(super) fn note_carrier(&mut self, by: Role, kind: &str) {
        let kinds = self.kinds.entry(by).or_default();
        if kinds.len() < MAX_KINDS && kinds.last().map(String::as_str) != Some(kind) {
            kinds.push(kind.to_owned());
            self.unwritten = true;
        }
    }

    /// What is to be told at its end, if that changed since it was written.
    pub(super) fn unwritten(&mut self) -> Effect {
        if std::mem::take(&mut self.unwritten) {
            Effect::Told { session: self.id, told: Box::new(self.told()) }
        } else {
            Effect::None
        }
    }

    /// Kinds of carriers in the order of use: the console's word, who chooses them, else the
    /// agent's.
    pub(crate) fn kinds(&self) -> &[String] {
        let told = self.kinds.get(&Role::Console).or_else(|| self.kinds.get(&Role::Agent));
        told.map_or(&[], Vec::as_slice)
    }

    pub(super) fn relayed(&self) -> u64 {
        self.relay_bytes.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// Milliseconds of a lease.
pub(super) fn lease_ms() -> u64 {
    u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX)
}

/// Stands for any target.
pub(super) const ANY: &str = "*";

/// Targets as kept: `host:port`, comma-separated, `*` for any.
pub(super) fn target_text(targets: &[Target], any: bool) -> String {
    let mut parts: Vec<String> = targets.iter().map(ToString::to_string).collect();
    if any {
        parts.push(ANY.to_owned());
    }
    parts.join(",")
}
