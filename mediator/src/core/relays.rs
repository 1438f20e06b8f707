//! Which relays the ends of a session may use.
//!
//! Both ends get the same ones in the same order, so that what one has measured or named means
//! the same to the other: those of the session first, as they were chosen, then others, of
//! different regions as far as there are any, the least loaded of each. Must never offer a relay
//! that drains or has no control connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use adit_protocol::{
    ids::{RelayId, SessionId},
    keys::PublicKey,
    limits::TICKET_LIFE,
    ticket::{Role, Share, Ticket},
    wire,
};

use super::{broker::Broker, types::*};

/// Relays offered to the ends of a session; they measure and take the best two.
pub(crate) const RELAYS_PER_SESSION: usize = 4;
/// Relays of one session at a time, those included that an end asked for when others failed.
const MAX_CHOSEN: usize = 8;
/// Relays that ever got tickets for one session: each must hear of its end.
const MAX_TICKETED: usize = 32;
/// A relay that registered this recently comes after others: it may be one that keeps failing.
const SETTLING: Duration = Duration::from_secs(10);

/// A registered relay.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) connection: ConnectionId,
    pub(super) identity: PublicKey,
    pub(super) info: wire::RelayInfo,
    pub(super) load: u64,
    pub(super) since: Duration,
    /// It registered without addresses.
    pub(super) drains: bool,
}

/// What is known of a registered relay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RelayState {
    /// Pairs and waiting joins.
    pub(crate) load: u64,
    /// It takes nothing new, by its own machine's word.
    pub(crate) drains: bool,
}

impl Registered {
    /// One without addresses drains: it serves what it has and takes nothing new.
    fn takes(&self) -> bool {
        !self.info.addresses.is_empty()
    }
}

impl Broker {
    /// Relays and tickets for one end: the session's, and others in the place of those that are
    /// gone or do not answer.
    pub(super) fn tickets(
        &mut self,
        id: SessionId,
        role: Role,
        not: &[RelayId],
        now: Now,
    ) -> Vec<RelayChoice> {
        let Some(session) = self.sessions.get(&id) else { return Vec::new() };
        let partner = session.who.partner_id.clone();
        let connection = match role {
            Role::Console => session.console,
            Role::Agent => self.agents.get(&session.place.computer_id).copied(),
        };
        let noise = connection.and_then(|connection| match self.devices.get(&connection) {
            Some(Device::Agent { noise, .. } | Device::Console { noise, .. }) => Some(*noise),
            _ => None,
        });
        let Some(joiner) = noise else { return Vec::new() };
        let fit =
            |id: &RelayId| !not.contains(id) && self.relays.get(id).is_some_and(Registered::takes);
        let mut picked: Vec<RelayId> = session.chosen.iter().copied().filter(fit).collect();
        let missing = RELAYS_PER_SESSION.saturating_sub(picked.len());
        let room = MAX_TICKETED.saturating_sub(session.relays.len());
        let new = pick(&self.relays, &session.chosen, not, missing.min(room), now.mono);
        picked.extend(&new);
        for relay in new {
            if let Some(relay) = self.relays.get_mut(&relay) {
                // Until its next report says how many pairs there are.
                relay.load = relay.load.saturating_add(1);
            }
            if let Some(session) = self.sessions.get_mut(&id) {
                session.relays.insert(relay);
                if session.chosen.len() >= MAX_CHOSEN {
                    session.chosen.remove(0);
                }
                session.chosen.push(relay);
            }
        }
        let life = u64::try_from(TICKET_LIFE.as_millis()).unwrap_or(u64::MAX);
        let ticket = |relay: &Registered| Ticket {
            relay: relay.identity,
            session: id,
            role,
            joiner,
            not_before_ms: now.unix_ms.saturating_sub(60_000),
            expires_ms: now.unix_ms.saturating_add(life),
            share: Share::of(&partner, relay.identity),
        };
        let registered = picked.iter().filter_map(|relay| self.relays.get(relay));
        registered
            .map(|relay| RelayChoice { relay: relay.info.clone(), ticket: ticket(relay) })
            .collect()
    }
}

/// New relays for a session: one of each region that it lacks, then any.
fn pick(
    relays: &BTreeMap<RelayId, Registered>,
    chosen: &[RelayId],
    not: &[RelayId],
    count: usize,
    now: Duration,
) -> Vec<RelayId> {
    let mut order: Vec<(&RelayId, &Registered)> = relays
        .iter()
        .filter(|(id, relay)| !chosen.contains(id) && !not.contains(id) && relay.takes())
        .collect();
    let settling = |relay: &Registered| now.saturating_sub(relay.since) < SETTLING;
    order.sort_by_key(|(id, relay)| (settling(relay), relay.load, **id));
    let mut regions: BTreeSet<&str> = chosen
        .iter()
        .filter(|id| !not.contains(id))
        .filter_map(|id| relays.get(id))
        .map(|relay| relay.info.region.as_str())
        .collect();
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for (id, relay) in order {
        match regions.insert(relay.info.region.as_str()) {
            true => first.push(*id),
            false => rest.push(*id),
        }
    }
    first.into_iter().chain(rest).take(count).collect()
}
