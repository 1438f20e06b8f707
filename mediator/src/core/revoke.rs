//! Ends that must reach everybody: pushed, repeated, acknowledged, and forgotten only when no
//! honest end can still serve the session.

use std::{collections::BTreeSet, time::Duration};

use adit_protocol::{
    ids::{RelayId, SessionId},
    limits::{OFFLINE_GRACE, TICKET_LIFE},
    ticket::Role,
};

use super::{
    broker::Broker,
    session::Phase,
    types::{ConnectionId, Device, Now, Transmit},
};

/// An end that was not acknowledged is told again after this long.
pub(crate) const RETRY: Duration = Duration::from_secs(5);

/// An ended session is remembered this long at least, for reports that come after the end.
pub(crate) const LATE_REPORTS: Duration = Duration::from_secs(60);

/// Who does not know yet that a session is over.
#[derive(Debug, Default)]
pub(crate) struct Revocation {
    pub(crate) agent: bool,
    pub(crate) console: bool,
    pub(crate) relays: BTreeSet<RelayId>,
    /// Until when it is remembered though nothing is pending.
    pub(crate) keep: Duration,
    /// When the session is forgotten whatever is pending.
    pub(crate) forget: Duration,
    /// The end's record is not durable yet.
    pub(crate) unrecorded: bool,
}

impl Revocation {
    pub(crate) fn is_pending(&self) -> bool {
        self.agent || self.console || !self.relays.is_empty()
    }
}

impl Broker {
    /// Marks everybody as not knowing, except the end that told us.
    pub(super) fn begin_revocation(
        &mut self,
        id: SessionId,
        told_by: Option<ConnectionId>,
        now: Now,
    ) {
        let by_agent = told_by.and_then(|c| self.role_of(c, id)) == Some(Role::Agent);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.revocation.agent = !by_agent;
        // A console that is not connected learns it by renewing; another connection of the same
        // device (a second program) does not know for the one that holds the session.
        session.revocation.console = session.console.is_some() && session.console != told_by;
        session.revocation.relays = session.relays.clone();
        session.revocation.keep = now.mono + LATE_REPORTS;
        // An agent without the mediator serves on for the grace; tickets may be used again for
        // their life.
        session.revocation.forget = session.lease + OFFLINE_GRACE + TICKET_LIFE;
        self.count_ended(id);
    }

    /// Sends what is pending to those who are connected, and sets the next look.
    pub(super) fn push_revocation(&mut self, id: SessionId, now: Now) {
        let Some(session) = self.sessions.get(&id) else { return };
        let Phase::Ended { ending } = &session.phase else { return };
        let reason = ending.reason.clone();
        let pending = &session.revocation;
        let agent = self.agents.get(&session.place.computer_id).copied();
        let mut out: Vec<Transmit> = Vec::new();
        let ends = [(pending.agent, agent), (pending.console, session.console)];
        for to in ends.into_iter().filter_map(|(due, to)| if due { to } else { None }) {
            out.push(Transmit::End { to, session: id, reason: reason.clone() });
        }
        for relay in &pending.relays {
            if let Some(to) = self.relays.get(relay).map(|relay| relay.connection) {
                out.push(Transmit::Cut { to, session: id });
            }
        }
        self.transmits.extend(out);
        self.settle(id, now);
    }

    /// Forgets an ended session that nobody needs, or sets its next look.
    pub(super) fn settle(&mut self, id: SessionId, now: Now) {
        let Some(session) = self.sessions.get(&id) else { return };
        let pending = &session.revocation;
        let quiet = !pending.is_pending() || now.mono >= pending.forget;
        if !quiet || pending.unrecorded {
            self.set_timer(id, now.mono + RETRY);
        } else if now.mono < pending.keep {
            let keep = pending.keep;
            self.set_timer(id, keep);
        } else {
            self.forget(id);
        }
    }

    /// A device says that it knows of an end (or does not know the session at all).
    pub(crate) fn handle_acknowledged(&mut self, session: SessionId, from: ConnectionId, now: Now) {
        let role = self.role_of(from, session);
        let relay = match self.devices.get(&from) {
            Some(Device::Relay { id, .. }) => Some(*id),
            _ => None,
        };
        let Some(found) = self.sessions.get_mut(&session) else { return };
        if !found.is_ended() {
            return;
        }
        match role {
            Some(Role::Agent) => found.revocation.agent = false,
            Some(Role::Console) if found.console == Some(from) => {
                found.revocation.console = false;
            }
            Some(Role::Console) => {}
            None => {}
        }
        if let Some(relay) = relay {
            found.revocation.relays.remove(&relay);
        }
        self.settle(session, now);
    }
}
