//! Ends that must reach everybody: pushed, repeated, acknowledged, and forgotten only when no
//! honest end can still serve the session.

use std::{collections::BTreeSet, time::Duration};

use adit_protocol::{
    ids::{RelayId, SessionId},
    limits::{OFFLINE_GRACE, TICKET_LIFE},
};

use super::{
    broker::Broker,
    session::Phase,
    types::{ConnectionId, Device, Now, Transmit},
};

/// An end that was not acknowledged is told again after this long.
pub(crate) const RETRY: Duration = Duration::from_secs(5);

/// Who does not know yet that a session is over.
#[derive(Debug, Default)]
pub(crate) struct Revocation {
    pub(crate) agent: bool,
    pub(crate) console: bool,
    pub(crate) relays: BTreeSet<RelayId>,
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
    pub(super) fn begin_revocation(&mut self, id: SessionId, told_by: Option<ConnectionId>) {
        let told_by = told_by.and_then(|c| self.role_of(c, id));
        let Some(session) = self.sessions.get_mut(&id) else { return };
        use adit_protocol::ticket::Role;
        session.revocation.agent = told_by != Some(Role::Agent);
        session.revocation.console = told_by != Some(Role::Console);
        session.revocation.relays = session.relays.clone();
        // An agent without the mediator serves on for the grace; tickets may be used again for
        // their life.
        session.revocation.forget = session.lease + OFFLINE_GRACE + TICKET_LIFE;
    }

    /// Sends what is pending to those who are connected, and sets the next look.
    pub(super) fn push_revocation(&mut self, id: SessionId, now: Now) {
        let Some(session) = self.sessions.get(&id) else { return };
        let Phase::Ended { reason } = &session.phase else { return };
        let reason = reason.clone();
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
    fn settle(&mut self, id: SessionId, now: Now) {
        let Some(session) = self.sessions.get(&id) else { return };
        let pending = &session.revocation;
        let over = !pending.is_pending() || now.mono >= pending.forget;
        if over && !pending.unrecorded {
            self.forget(id);
        } else {
            self.set_timer(id, now.mono + RETRY);
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
        use adit_protocol::ticket::Role;
        match role {
            Some(Role::Agent) => found.revocation.agent = false,
            Some(Role::Console) => found.revocation.console = false,
            None => {}
        }
        if let Some(relay) = relay {
            found.revocation.relays.remove(&relay);
        }
        self.settle(session, now);
    }
}
