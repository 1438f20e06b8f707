//! Which relays a session keeps joined, without IO.
//!
//! Both ends begin with the two relays of least summed round trip. From then on the console
//! decides: it keeps two in hand, replaces one that does not come back, and goes over to a
//! clearly better one; the agent follows its `JoinRelay` and `LeaveRelay`. An end without any
//! carrier joins all relays that it knows: the other end does the same, so they meet again.
//!
//! Must never leave a relay in use before another is joined.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use adit_protocol::{
    ids::{CarrierNumber, SessionId},
    keys::sha256,
    limits::MAX_RELAY_SLOTS,
    ticket::Role,
};

/// Relays that are kept joined: one in use, one in hand.
pub(crate) const IN_HAND: usize = 2;
/// Relays that a session knows of.
pub(crate) const MAX_KNOWN: usize = 8;
/// Round trip of an end that has not measured one.
const UNKNOWN_RTT: Duration = Duration::from_millis(250);
/// A relay that was joined and lost is replaced after this long.
const REPLACE_AFTER: Duration = Duration::from_secs(1);
/// And one that was never joined after this long: its join may need TLS, or a proxy.
const JOIN_TIME: Duration = Duration::from_secs(4);
/// A relay that was given up is tried again after this long.
const FORGIVE_AFTER: Duration = Duration::from_secs(60);
/// An end without any carrier for so long joins all relays.
const STRANDED_AFTER: Duration = Duration::from_millis(500);
/// The agent leaves a relay by which the console did not come for so long.
const UNVISITED: Duration = Duration::from_secs(60);
/// Another relay is worth joining if the summed round trip is less by this ...
const BETTER_BY: Duration = Duration::from_millis(20);
/// ... and by this part (one in so many).
const BETTER_PART: u32 = 5;
/// Better relays are gone over to no more often than this.
const IMPROVE_EVERY: Duration = Duration::from_secs(30);
/// The agent is told again to join a relay at which it was not met for so long.
const TELL_AGAIN: Duration = Duration::from_secs(2);
/// Pauses between questions for other relays; the last repeats.
const ASK_GAPS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
];
/// Relays asked for by the console whose tickets are still to come.
const MAX_WANTED: usize = 4;

/// A relay's identity.
pub(crate) type RelayKey = [u8; 32];

/// Measured round trips to relays.
pub(crate) type Rtts = Vec<(RelayKey, Duration)>;

/// How records name a relay.
pub(crate) fn tag(key: &RelayKey) -> u32 {
    let [a, b, c, d, ..] = *key;
    u32::from_be_bytes([a, b, c, d])
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Keep this slot joined.
    Join(RelayKey, u32),
    /// Leave all slots.
    Leave(RelayKey),
    /// Console: the agent is to join.
    TellJoin(u32, u32),
    /// Console: the agent is to leave.
    TellLeave(u32),
    /// Ask the mediator for relays other than those known.
    AskOthers,
}

/// What is known of a relay.
#[derive(Debug, Clone, Default)]
struct Known {
    own: Option<Duration>,
    peer: Option<Duration>,
    given_up: Option<Instant>,
    slots: BTreeMap<u32, Slot>,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Its carrier, and since when that has been silent.
    carrier: Option<(CarrierNumber, Option<Instant>)>,
    /// Since when there has been none.
    without: Instant,
    was_up: bool,
    /// When the agent was told last.
    told: Instant,
}

/// A relay as `explain` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelayView {
    pub(crate) key: RelayKey,
    pub(crate) own: Option<Duration>,
    pub(crate) peer: Option<Duration>,
    pub(crate) joined: bool,
    pub(crate) in_hand: bool,
}

/// The relays of one session.
#[derive(Debug)]
pub(crate) struct Relays {
    role: Role,
    session: SessionId,
    known: BTreeMap<RelayKey, Known>,
    /// Agent: asked for, but without ticket yet.
    wanted: VecDeque<(u32, u32)>,
    /// Since when the session has had no carrier at all, once it had one.
    stranded: Option<Instant>,
    ask: Option<(Instant, usize)>,
    improve_at: Instant,
    steps: VecDeque<Step>,
}

impl Relays {
    pub(crate) fn new(role: Role, session: SessionId, now: Instant) -> Self {
        Self {
            role,
            session,
            known: BTreeMap::new(),
            wanted: VecDeque::new(),
            stranded: None,
            ask: None,
            improve_at: now,
            steps: VecDeque::new(),
        }
    }

    /// The mediator offers these; the first offer also begins.
    pub(crate) fn handle_offered(&mut self, keys: &[RelayKey], now: Instant) {
        let first = self.known.is_empty();
        for key in keys {
            if !self.known.contains_key(key) && self.known.len() >= MAX_KNOWN {
                // Some that was given up makes room.
                let idle = self.known.iter().filter(|(_, k)| k.slots.is_empty());
                let oldest = idle.min_by_key(|(_, k)| k.given_up).map(|(key, _)| *key);
                let Some(oldest) = oldest else { continue };
                self.known.remove(&oldest);
            }
            self.known.entry(*key).or_default();
        }
        if first {
            for key in self.ranked(|_| true).into_iter().take(IN_HAND) {
                self.join(key, 0, now);
            }
        }
        let wanted = std::mem::take(&mut self.wanted);
        for (tag, slot) in wanted {
            self.handle_peer_join(tag, slot, now);
        }
        self.decide(now);
    }

    /// Round trips as told before the first offer, or later.
    pub(crate) fn handle_rtts(&mut self, own: bool, rtts: &[(RelayKey, Duration)], now: Instant) {
        for (key, rtt) in rtts {
            let Some(known) = self.known.get_mut(key) else { continue };
            *(if own { &mut known.own } else { &mut known.peer }) = Some(*rtt);
        }
        self.decide(now);
    }

    /// Adds relays with round trips before [`Self::handle_offered`] begins.
    pub(crate) fn begin(
        &mut self,
        keys: &[RelayKey],
        own: &[(RelayKey, Duration)],
        peer: &[(RelayKey, Duration)],
        now: Instant,
    ) {
        let find = |rtts: &[(RelayKey, Duration)], key: &RelayKey| {
            rtts.iter().find(|(k, _)| k == key).map(|(_, rtt)| *rtt)
        };
        for key in keys.iter().take(MAX_KNOWN) {
            let known = Known { own: find(own, key), peer: find(peer, key), ..Known::default() };
            self.known.insert(*key, known);
        }
        for key in self.ranked(|_| true).into_iter().take(IN_HAND) {
            self.join(key, 0, now);
        }
        self.decide(now);
    }

    pub(crate) fn handle_up(
        &mut self,
        key: &RelayKey,
        slot: u32,
        number: CarrierNumber,
        now: Instant,
    ) {
        if let Some(known) = self.known.get_mut(key)
            && let Some(slot) = known.slots.get_mut(&slot)
        {
            (slot.carrier, slot.was_up) = (Some((number, None)), true);
            known.given_up = None;
        }
        self.decide(now);
    }

    pub(crate) fn handle_down(&mut self, number: CarrierNumber, now: Instant) {
        if let Some(slot) = self.slot_of(number) {
            // What was silent has been missed since then.
            let since = slot.carrier.take().and_then(|(_, silent)| silent);
            slot.without = since.unwrap_or(now);
        }
        self.decide(now);
    }

    /// A carrier fell silent, or is heard of again.
    pub(crate) fn handle_silent(&mut self, number: CarrierNumber, silent: bool, now: Instant) {
        if let Some(slot) = self.slot_of(number)
            && let Some((_, since)) = &mut slot.carrier
        {
            match silent {
                true => _ = since.get_or_insert(now),
                false => *since = None,
            }
        }
        self.decide(now);
    }

    /// There is no live carrier of any kind, or there is again.
    pub(crate) fn handle_stranded(&mut self, stranded: bool, now: Instant) {
        match stranded {
            true => _ = self.stranded.get_or_insert(now),
            false => self.stranded = None,
        }
    }

    /// Another network: what did not answer may answer now.
    pub(crate) fn handle_network_change(&mut self, now: Instant) {
        self.known.values_mut().for_each(|k| k.given_up = None);
        self.ask = None;
        self.decide(now);
    }

    /// Console: bulk wants a connection of its own at this relay.
    pub(crate) fn want_bulk(&mut self, key: &RelayKey, now: Instant) {
        let joined = self.known.get(key).is_some_and(|k| k.slots.contains_key(&0));
        if joined && !self.known.get(key).is_some_and(|k| k.slots.contains_key(&1)) {
            self.steps.push_back(Step::TellJoin(tag(key), 1));
            self.join(*key, 1, now);
        }
    }

    /// Agent: the console asks to join.
    pub(crate) fn handle_peer_join(&mut self, tag_wanted: u32, slot: u32, now: Instant) {
        if slot >= MAX_RELAY_SLOTS {
            return;
        }
        match self.by_tag(tag_wanted) {
            Some(key) => self.join(key, slot, now),
            None if self.wanted.len() < MAX_WANTED => {
                self.wanted.push_back((tag_wanted, slot));
                self.ask_others(now);
            }
            None => {}
        }
    }

    /// Agent: the console leaves a relay.
    pub(crate) fn handle_peer_leave(&mut self, tag_left: u32, now: Instant) {
        self.wanted.retain(|(tag, _)| *tag != tag_left);
        if let Some(key) = self.by_tag(tag_left) {
            self.leave(key, now);
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.decide(now);
    }

    /// The next thing to do. Time is looked at with the driver's ticks: nothing here is urgent.
    pub(crate) fn poll_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    pub(crate) fn knows(&self, key: &RelayKey) -> bool {
        self.known.contains_key(key)
    }

    /// From end to end through this relay, if both have measured.
    pub(crate) fn rtt(&self, key: &RelayKey) -> Option<Duration> {
        let known = self.known.get(key)?;
        Some(known.own? + known.peer?)
    }

    pub(crate) fn view(&self) -> Vec<RelayView> {
        self.ranked(|_| true)
            .into_iter()
            .filter_map(|key| Some((key, self.known.get(&key)?)))
            .map(|(key, k)| RelayView {
                key,
                own: k.own,
                peer: k.peer,
                joined: !k.slots.is_empty(),
                in_hand: k.in_hand(),
            })
            .collect()
    }

    // ------------------------------------------------------------ inner parts

    fn slot_of(&mut self, number: CarrierNumber) -> Option<&mut Slot> {
        let slots = self.known.values_mut().flat_map(|k| k.slots.values_mut());
        slots.into_iter().find(|s| s.carrier.is_some_and(|(n, _)| n == number))
    }

    fn by_tag(&self, wanted: u32) -> Option<RelayKey> {
        self.known.keys().find(|key| tag(key) == wanted).copied()
    }

    /// Best first; equal ones in an order that both ends share and that spreads sessions.
    fn ranked(&self, which: impl Fn(&Known) -> bool) -> Vec<RelayKey> {
        let mut keys: Vec<_> = self
            .known
            .iter()
            .filter(|(_, known)| which(known))
            .map(|(key, known)| {
                let hash = sha256(&[&self.session.0[..], &key[..]].concat());
                (known.sum(), hash, *key)
            })
            .collect();
        keys.sort_unstable();
        keys.into_iter().map(|(_, _, key)| key).collect()
    }

    fn join(&mut self, key: RelayKey, slot: u32, now: Instant) {
        let Some(known) = self.known.get_mut(&key) else { return };
        if known.slots.contains_key(&slot) {
            return;
        }
        known.slots.insert(slot, Slot { carrier: None, without: now, was_up: false, told: now });
        self.steps.push_back(Step::Join(key, slot));
    }

    fn leave(&mut self, key: RelayKey, now: Instant) {
        let Some(known) = self.known.get_mut(&key) else { return };
        if !known.slots.is_empty() {
            known.given_up = (!known.in_hand()).then_some(now);
            known.slots.clear();
            self.steps.push_back(Step::Leave(key));
        }
    }

    fn ask_others(&mut self, now: Instant) {
        let asked = match self.ask {
            Some((at, _)) if now < at => return,
            Some((_, asked)) => asked,
            None => 0,
        };
        let gap = ASK_GAPS.get(asked + 1).or(ASK_GAPS.last()).copied().unwrap_or_default();
        self.ask = Some((now + gap, asked + 1));
        self.steps.push_back(Step::AskOthers);
    }

    fn decide(&mut self, now: Instant) {
        if self.known.is_empty() {
            return;
        }
        if self.stranded.is_some_and(|since| now >= since + STRANDED_AFTER) {
            for key in self.ranked(|_| true) {
                self.join(key, 0, now);
            }
            self.ask_others(now);
            return;
        }
        if self.stranded.is_some() {
            return;
        }
        match self.role {
            Role::Console => self.keep_two(now),
            Role::Agent => self.tidy(now),
        }
    }

    fn keep_two(&mut self, now: Instant) {
        let in_hand = self.ranked(Known::in_hand);
        let hoped = self.known.values().filter(|k| k.hopeful(now)).count();
        if in_hand.len() >= IN_HAND {
            self.ask = None;
            // Those that do not come up were replaced; of too many the worst goes.
            let rest = self.ranked(|k| !k.slots.is_empty() && !k.in_hand() && !k.hopeful(now));
            for key in rest.into_iter().chain(in_hand.iter().skip(IN_HAND).copied()) {
                self.steps.push_back(Step::TellLeave(tag(&key)));
                self.leave(key, now);
            }
            self.improve(&in_hand, now);
        } else if in_hand.len() + hoped < IN_HAND {
            let free = |k: &Known| {
                let forgiven = k.given_up.is_none_or(|at| now >= at + FORGIVE_AFTER);
                k.slots.is_empty() && forgiven
            };
            match self.ranked(free).first().copied() {
                Some(key) => self.join_both(key, now),
                None => self.ask_others(now),
            }
        }
        self.tell_again(now);
    }

    /// What was told on a carrier that died with it is said again.
    fn tell_again(&mut self, now: Instant) {
        for (key, known) in &mut self.known {
            for (slot, state) in &mut known.slots {
                if state.carrier.is_none() && now >= state.told.max(state.without) + TELL_AGAIN {
                    state.told = now;
                    self.steps.push_back(Step::TellJoin(tag(key), *slot));
                }
            }
        }
    }

    /// A relay that is clearly better is joined; once it is up, the worst of the three goes.
    fn improve(&mut self, in_hand: &[RelayKey], now: Instant) {
        if now < self.improve_at || in_hand.len() != IN_HAND {
            return;
        }
        let sum = |key: &RelayKey| self.known.get(key).map(Known::sum);
        let Some(worst) = in_hand.last().and_then(sum) else { return };
        let measured = |k: &Known| k.own.is_some() && k.peer.is_some() && k.slots.is_empty();
        let best = self.ranked(|k| measured(k) && k.given_up.is_none()).first().copied();
        let Some((best, sum)) = best.and_then(|key| Some((key, sum(&key)?))) else { return };
        if sum + BETTER_BY.max(worst / BETTER_PART) <= worst {
            self.improve_at = now + IMPROVE_EVERY;
            self.join_both(best, now);
        }
    }

    fn join_both(&mut self, key: RelayKey, now: Instant) {
        self.steps.push_back(Step::TellJoin(tag(&key), 0));
        self.join(key, 0, now);
    }

    /// Agent: what the console does not use is left.
    fn tidy(&mut self, now: Instant) {
        if self.known.values().any(Known::in_hand) {
            self.ask = None;
        } else {
            return;
        }
        let unvisited = |slot: &Slot| slot.carrier.is_none() && now >= slot.without + UNVISITED;
        for key in self.ranked(|k| !k.slots.is_empty() && k.slots.values().all(unvisited)) {
            self.leave(key, now);
        }
    }
}

impl Known {
    fn sum(&self) -> Duration {
        self.own.unwrap_or(UNKNOWN_RTT) + self.peer.unwrap_or(UNKNOWN_RTT)
    }

    fn in_hand(&self) -> bool {
        self.slots.get(&0).is_some_and(|s| matches!(s.carrier, Some((_, None))))
    }

    /// Not up, but it may be soon.
    fn hopeful(&self, now: Instant) -> bool {
        self.slots.get(&0).is_some_and(|slot| match slot.carrier {
            Some((_, Some(silent))) => now < silent + REPLACE_AFTER,
            Some((_, None)) => false,
            None => now < slot.without + if slot.was_up { REPLACE_AFTER } else { JOIN_TIME },
        })
    }
}

#[cfg(test)]
#[path = "relays_tests.rs"]
mod tests;
