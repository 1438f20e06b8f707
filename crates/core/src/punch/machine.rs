//! The machine: inputs, and what follows from them.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use adit_protocol::{
    candidate::{Candidate, CandidateKind},
    limits::MAX_CANDIDATES,
    nat::NatSummary,
};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    AddressFilter, BIRTHDAY_BASE, EAGER_STARTS, Event, FRESH_BASE, FRESH_HOLD, FailedClass, Family,
    LocalSocket, MAX_HOLD, MAX_QUEUED, MAX_SOCKETS, MIN_CHECK_INTERVAL, Message, OPENER_TTL, PACE,
    Packet, PairReport, PunchConfig, REANNOUNCE_GAP, Report, STRANGER_BURST, STRANGER_INTERVAL,
    TransactionId, Transmit, UNVERIFIED_BURST, UNVERIFIED_INTERVAL, UNVERIFIED_RESERVE,
    bucket::Bucket,
    candidate_priority,
    filter::is_public,
    fresh::Fresh,
    hard::Hard,
    pair::Pair,
    ports::PortOrder,
    replay::ReplayWindow,
    table::{PairKey, Table},
};

/// After so many checks of one pair, three rounds of them, it is not too early to say why there is
/// no path.
const TRIED_IN_VAIN: u64 = 15;

/// Pairs whose first rounds may use up all checks to unverified addresses: the best of each class,
/// and the next.
const BEST_PAIRS: usize = 16;

/// One end of a session, punching. See the [module](super).
#[derive(Debug)]
pub struct Punch {
    pub(super) filter: AddressFilter,
    check_interval: Duration,
    pub(super) rng: StdRng,
    pub(super) sockets: BTreeMap<LocalSocket, Socket>,
    /// The peer's candidates, for sockets that come later.
    pub(super) remote: Vec<Candidate>,
    end_of_candidates: bool,
    pub(super) table: Table,
    /// When own addresses were asked for and announced last, after the first time.
    announced: Option<Instant>,
    exhausted_told: bool,
    /// No check before this.
    paced_until: Instant,
    unverified: Bucket,
    strangers: Bucket,
    replays: ReplayWindow,
    /// Requests sent: the first part of their ids.
    requests: u32,
    /// A new start is wanted, but it is too early: then.
    pub(super) restart_at: Option<Instant>,
    /// Starts since a path worked or this end's network changed.
    pub(super) vain_starts: u32,
    /// The peer was heard of, wherever.
    pub(super) heard: bool,
    pub(super) hard: Hard,
    pub(super) fresh: Fresh,
    /// When [`Self::advance`] has something to do.
    pub(super) advance_at: Option<Instant>,
    transmits: VecDeque<Transmit>,
    pub(super) events: VecDeque<Event>,
}

#[derive(Debug)]
pub(super) struct Socket {
    pub(super) family: Family,
    pub(super) candidates: Vec<Candidate>,
    pub(super) since: Instant,
    /// It was said to be of no use any more.
    pub(super) unneeded: bool,
}

impl Punch {
    /// Nothing is sent before sockets and candidates are known.
    pub fn new(config: PunchConfig, now: Instant) -> Self {
        let mut rng = StdRng::from_seed(config.seed);
        let hard = Hard::new(PortOrder::new(&mut rng), now);
        Self {
            filter: config.filter,
            check_interval: config.check_interval.max(MIN_CHECK_INTERVAL),
            rng,
            sockets: BTreeMap::new(),
            remote: Vec::new(),
            end_of_candidates: false,
            table: Table::default(),
            announced: None,
            exhausted_told: false,
            paced_until: now,
            unverified: Bucket::new(UNVERIFIED_BURST, UNVERIFIED_INTERVAL, now),
            strangers: Bucket::new(STRANGER_BURST, STRANGER_INTERVAL, now),
            replays: ReplayWindow::default(),
            requests: 0,
            restart_at: None,
            vain_starts: 0,
            heard: false,
            hard,
            fresh: Fresh::new(),
            advance_at: None,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// A socket and all own candidates that lead to it; replaces what was said of it before.
    /// A socket must be known before its packets count; the list may be empty.
    pub fn handle_local_candidates(
        &mut self,
        socket: LocalSocket,
        family: Family,
        candidates: &[Candidate],
        now: Instant,
    ) {
        if !self.sockets.contains_key(&socket) && self.sockets.len() >= MAX_SOCKETS {
            return;
        }
        let candidates: Vec<_> = candidates.iter().take(MAX_CANDIDATES).copied().collect();
        match self.sockets.get_mut(&socket) {
            Some(known) => known.candidates = candidates,
            None => {
                let new = Socket { family, candidates, since: now, unneeded: false };
                self.sockets.insert(socket, new);
                if socket.0 >= FRESH_BASE {
                    self.follow_live_pairs(socket, now);
                }
            }
        }
        for candidate in self.remote.clone() {
            self.add(socket, &candidate, now);
        }
        self.advance(now);
    }

    /// What is known of the own NAT; may change. To be called once discovery is over, with or
    /// without success.
    pub fn handle_local_nat(&mut self, nat: NatSummary, now: Instant) {
        self.hard.handle_local_nat(nat);
        self.advance(now);
    }

    /// What the peer knows of its NAT, and where the mediator sees it; `None` if nothing new is
    /// known of that. The peer tells it when servers have answered: no more candidates need be
    /// waited for before there is a verdict, though some may follow.
    pub fn handle_remote_nat(&mut self, nat: NatSummary, seen: Option<IpAddr>, now: Instant) {
        self.end_of_candidates = true;
        self.hard.handle_remote_nat(nat, seen.map(|ip| ip.to_canonical()));
        self.advance(now);
    }

    /// A socket that was asked for by [`Event::WantSockets`].
    pub fn handle_birthday_socket(&mut self, socket: LocalSocket, _family: Family, now: Instant) {
        if self.hard.handle_socket(socket) {
            self.advance(now);
        } else {
            self.events.push_back(Event::ReleaseSockets { keep: self.promoted() });
        }
    }

    /// The peer starts later than this end, as long as signalling takes: no check of its own
    /// accord before that, for both ends' first packets must cross. To be called by the end that
    /// sends its candidates last (the agent), with the round trip of its control connection.
    pub fn handle_hold(&mut self, signalling: Duration, now: Instant) {
        self.paced_until = self.paced_until.max(now + signalling.min(MAX_HOLD));
    }

    /// A socket is gone, with all its pairs.
    pub fn handle_socket_closed(&mut self, socket: LocalSocket) {
        self.hard.handle_socket_closed(socket);
        self.sockets.remove(&socket);
        let gone: Vec<_> = self.table.pairs.keys().filter(|k| k.0 == socket).copied().collect();
        for key in gone {
            if self.table.pairs.remove(&key).is_some_and(|p| p.verified.is_some()) {
                self.tell_expired(key);
            }
        }
        self.table.rank();
    }

    /// The peer's candidates, all or more of them. New ones are checked at once; known ones mean
    /// that the peer starts again, so this end does too, within bounds.
    pub fn handle_remote_candidates(
        &mut self,
        candidates: &[Candidate],
        end_of_candidates: bool,
        now: Instant,
    ) {
        self.end_of_candidates |= end_of_candidates;
        if self.remote.is_empty() {
            self.fresh.handle_start(now);
        }
        let sockets: Vec<_> = self.sockets.keys().copied().collect();
        let mut again = false;
        for candidate in candidates.iter().take(MAX_CANDIDATES) {
            let addr = SocketAddr::new(candidate.addr.ip().to_canonical(), candidate.addr.port());
            let candidate = Candidate { addr, ..*candidate };
            let known = self.remote.iter().position(|c| c.addr == addr);
            if let Some(at) = known {
                self.remote.remove(at);
            }
            self.remote.push(candidate);
            for socket in sockets.iter().filter(|s| s.0 < BIRTHDAY_BASE) {
                again |= self.add(*socket, &candidate, now) && known.is_some();
            }
        }
        let excess = self.remote.len().saturating_sub(MAX_CANDIDATES);
        self.remote.drain(..excess);
        if again && self.announced.is_none_or(|at| now >= at + REANNOUNCE_GAP) {
            self.restart_and_announce(now);
        } else if again {
            // The answer to an own announcement, or the peer has a new reason to start.
            self.table.pairs.values_mut().for_each(Pair::hurry);
        }
        self.tell_exhausted();
        self.advance(now);
    }

    /// A check arrived; tag and integrity have been verified.
    pub fn handle_packet(&mut self, packet: Packet, now: Instant) {
        let from = SocketAddr::new(packet.from.ip().to_canonical(), packet.from.port());
        if !self.filter.admits(from) {
            return;
        }
        let key = (packet.socket, from);
        let birthday = packet.socket.0 >= BIRTHDAY_BASE;
        match packet.message {
            Message::Request { id, priority } => {
                if birthday && !self.promote(key, now) {
                    return;
                }
                self.handle_request(key, id, priority, now);
            }
            Message::Response { id, mapped } => {
                self.adopt_answer(key, id, now);
                self.handle_response(key, id, mapped, now);
            }
        }
        self.advance(now);
    }

    /// Something authenticated that is no check arrived over this pair, or data sent over it were
    /// acknowledged: as good as an answered check for consent, and a sign that the NAT still
    /// remembers; it says nothing of the round trip.
    pub fn handle_acknowledged(&mut self, socket: LocalSocket, remote: SocketAddr, now: Instant) {
        let Some(pair) = self.table.pairs.get_mut(&(socket, remote)) else { return };
        if let Some(verified) = pair.verified.as_mut() {
            verified.confirmed = verified.confirmed.max(now);
        }
        if let Some(mapping) = pair.mapping.as_mut() {
            mapping.confirmed = mapping.confirmed.max(now);
        }
    }

    /// Interfaces or routes of this end changed: everything is tried again, at once.
    pub fn handle_network_change(&mut self, filter: AddressFilter, now: Instant) {
        self.filter = filter;
        let barred: Vec<_> =
            self.table.pairs.keys().filter(|k| !self.filter.admits(k.1)).copied().collect();
        for key in barred {
            if self.table.pairs.remove(&key).is_some_and(|p| p.verified.is_some()) {
                self.tell_expired(key);
            }
        }
        for candidate in self.remote.clone() {
            for socket in self.sockets.keys().copied().collect::<Vec<_>>() {
                self.add(socket, &candidate, now);
            }
        }
        self.hard.handle_network_change();
        self.vain_starts = 0;
        self.fresh.handle_start(now);
        self.announced = Some(now); // by the owner, who knows best
        self.restart(now);
        self.advance(now);
    }

    /// UDP passes again ([`super::WatchEvent::Passes`]): everything is tried at once, at either
    /// end, unless there is a path.
    pub fn handle_udp_passes(&mut self, now: Instant) {
        if self.table.pairs.values().any(|p| p.is_usable(now)) {
            return;
        }
        self.hard.handle_network_change();
        self.vain_starts = 0;
        self.fresh.handle_start(now);
        // What was sent in vain went nowhere.
        self.unverified.refill(UNVERIFIED_RESERVE, now);
        self.restart_and_announce(now);
        self.advance(now);
    }

    /// A direct path is wanted again: new rounds for all pairs, not sooner than
    /// [`REANNOUNCE_GAP`] after the last start.
    pub fn handle_want_direct(&mut self, now: Instant) {
        self.restart_soon(now);
        self.advance(now);
    }

    /// Time passed. Call when [`Self::poll_timeout`] says so.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut silent = Vec::new();
        let mut expired = Vec::new();
        for (key, pair) in &mut self.table.pairs {
            if pair.turn_silent(now) {
                silent.push(*key);
            }
            if pair.expire(now) {
                expired.push(*key);
            }
        }
        self.table.pairs.retain(|_, p| !(p.is_hearsay() && p.is_exhausted() && p.next_at <= now));
        for (socket, remote) in silent {
            self.events.push_back(Event::Silent { socket, remote });
        }
        for key in expired {
            self.tell_expired(key);
        }
        if self.paced_until <= now && self.transmits.len() < MAX_QUEUED {
            self.send_check(now);
        }
        self.tell_exhausted();
        self.advance(now);
    }

    /// The next packet to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next thing found out.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let wakes = self.table.pairs.values().map(|pair| {
            let mut wake = pair.wake_at(self.paced_until).max(self.paced_until);
            if pair.verified.is_none() {
                wake = wake.max(self.unverified.ready_beside(reserved_from(pair)));
            }
            wake
        });
        wakes.chain(self.advance_at).min()
    }

    /// What is known of pairs, failures and hard NATs.
    pub fn report(&self) -> Report {
        let pairs = self.pairs();
        // Fresh sockets and what the peer tells later begin anew: by then the first have failed.
        let tried = self.is_exhausted() || pairs.iter().any(|p| p.checks >= TRIED_IN_VAIN);
        let failures = if tried { self.failures(&pairs) } else { Vec::new() };
        Report { pairs, failures, hard: self.hard.report() }
    }

    /// All pairs, best first.
    pub fn pairs(&self) -> Vec<PairReport> {
        let mut pairs: Vec<_> = self.table.pairs.iter().collect();
        pairs.sort_by_key(|(_, p)| (!p.is_live(), p.rank));
        let report = |(key, pair): (&PairKey, &Pair)| PairReport {
            socket: key.0,
            remote: key.1,
            kind: pair.kind,
            state: pair.state(),
            heard: pair.heard,
            checks: pair.checks,
            answers: pair.answers,
            mapped: pair.verified.as_ref().map(|v| v.mapped),
        };
        pairs.into_iter().map(report).collect()
    }

    /// Adds a pair or mentions it again; true if it is in the table.
    pub(super) fn add(&mut self, socket: LocalSocket, candidate: &Candidate, now: Instant) -> bool {
        let addr = candidate.addr;
        let Some(local) = self.sockets.get(&socket) else { return false };
        let own = self.sockets.values().flat_map(|s| &s.candidates).any(|c| c.addr == addr);
        // What another socket may do better is to pass a router.
        let own = own || socket.0 >= FRESH_BASE && !is_public(addr.ip());
        if own || local.family != Family::of(addr) || !self.filter.admits(addr) {
            return false;
        }
        match self.table.pairs.get_mut(&(socket, addr)) {
            Some(pair) => {
                pair.kind = candidate.kind;
                pair.priority = candidate.priority;
                pair.mentioned = now;
                self.table.rank();
                true
            }
            None => {
                let mut pair = Pair::new(candidate.kind, candidate.priority, now);
                if (FRESH_BASE..BIRTHDAY_BASE).contains(&socket.0) && is_public(addr.ip()) {
                    pair.next_at = now + FRESH_HOLD;
                }
                self.exhausted_told = false;
                let added = self.table.insert((socket, addr), pair);
                if added {
                    self.send_opener((socket, addr), now);
                }
                added
            }
        }
    }

    /// The first packet over a pair: its NATs' way out is open before the peer's packets come.
    fn send_opener(&mut self, key: PairKey, now: Instant) {
        let (socket, to) = key;
        if !to.is_ipv4() || !is_public(to.ip()) || self.transmits.len() >= MAX_QUEUED {
            return;
        }
        let priority = self.priority_of(socket);
        let Some(pair) = self.table.pairs.get(&key).filter(|p| !p.is_live()) else { return };
        let ready = self.unverified.ready_beside(reserved_from(pair)) <= now;
        if !ready || !self.unverified.take(now) {
            return;
        }
        let mut id = TransactionId::default();
        self.rng.fill_bytes(&mut id);
        number(&mut id, &mut self.requests);
        let message = Message::Request { id, priority };
        self.transmits.push_back(Transmit { socket, to, message, ttl: Some(OPENER_TTL) });
    }

    /// New rounds, now or as soon as they are allowed.
    fn restart_soon(&mut self, now: Instant) {
        match self.announced.map(|at| at + REANNOUNCE_GAP).filter(|allowed| now < *allowed) {
            Some(allowed) => self.restart_at = Some(allowed),
            None => self.restart_and_announce(now),
        }
    }

    pub(super) fn restart_and_announce(&mut self, now: Instant) {
        self.restart(now);
        self.announced = Some(now);
        self.events.push_back(Event::WantAddresses);
    }

    pub(super) fn restart(&mut self, now: Instant) {
        self.restart_at = None;
        self.fresh.handle_restart(now);
        self.exhausted_told = false;
        // What was tried in vain again and again is not tried as often.
        let round = self.vain_starts.checked_sub(EAGER_STARTS).map_or(0, |vain| vain.min(9) + 4);
        self.vain_starts += 1;
        for pair in self.table.pairs.values_mut().filter(|p| !p.is_hearsay()) {
            pair.restart(round, now);
        }
        let keys: Vec<_> = self.table.pairs.keys().copied().collect();
        for key in keys {
            self.send_opener(key, now);
        }
    }

    fn handle_request(&mut self, key: PairKey, id: TransactionId, priority: u32, now: Instant) {
        let socket = self.sockets.get(&key.0).filter(|s| !s.unneeded);
        let family = socket.map(|s| s.family);
        if family != Some(Family::of(key.1)) || !self.replays.take(&id) {
            return;
        }
        let known = self.table.is_verified(key.1);
        if !known && !self.strangers.take(now) {
            return;
        }
        if !self.table.pairs.contains_key(&key) {
            let pair = Pair::new(CandidateKind::PeerReflexive, priority, now);
            if !self.table.insert(key, pair) {
                return;
            }
        }
        let Some(pair) = self.table.pairs.get_mut(&key) else { return };
        if !pair.answers_allowed.take(now) {
            return;
        }
        self.heard = true;
        let first = !pair.heard;
        pair.handle_request(now);
        self.paced_until = self.paced_until.min(now + PACE); // the peer has begun: no hold
        if first {
            self.table.rank();
        }
        if self.transmits.len() < MAX_QUEUED {
            let message = Message::Response { id, mapped: key.1 };
            let ttl = None;
            self.transmits.push_back(Transmit { socket: key.0, to: key.1, message, ttl });
        }
    }

    fn handle_response(
        &mut self,
        key: PairKey,
        id: TransactionId,
        mapped: SocketAddr,
        now: Instant,
    ) {
        let (socket, remote) = key;
        let mapped = SocketAddr::new(mapped.ip().to_canonical(), mapped.port());
        let admitted = self.table.is_verified(remote);
        let goes_on = |(k, p): (&PairKey, &Pair)| *k != key && p.is_live() && !p.retiring;
        let beside = self.table.pairs.iter().any(goes_on);
        let Some(pair) = self.table.pairs.get_mut(&key) else { return };
        let Some(rtt) = pair.take_answer(id, now) else { return };
        let was_live = pair.is_live();
        let before = pair.verified.as_ref().map(|v| v.mapped);
        let rebound = before.is_some_and(|before| before != mapped);
        if rebound {
            // The NAT forgot the mapping between two checks: ask it more often.
            self.check_interval = (self.check_interval / 2).max(MIN_CHECK_INTERVAL);
        }
        if socket.0 < FRESH_BASE && pair.is_reused(now) {
            (pair.retiring, pair.worked_since) = (false, None);
        }
        let first = pair.worked_since.is_none();
        pair.worked_since.get_or_insert(now);
        let replaced = pair.retiring && socket.0 >= FRESH_BASE && beside;
        let opened = self.sockets.get(&socket).map(|s| s.since);
        let opened = opened.filter(|_| socket.0 >= FRESH_BASE);
        if let Some(lost) = pair.note_mapping(mapped, opened, now) {
            self.fresh.handle_lost(lost);
            pair.retiring = replaced;
            if replaced {
                // It was only watched until its mapping died. The one that the watching made would
                // look new to the peer, and is as old as the socket's use.
                pair.mapping = None;
                return;
            }
        }
        let jitter = self.rng.random_range(800..=1200); // RFC 7675 §5.1
        pair.confirm(rtt, mapped, self.check_interval * jitter / 1000, now);
        let kind = pair.kind;
        if !admitted {
            self.events.push_back(Event::AddressAdmitted(remote));
        }
        let known = self.sockets.get(&socket);
        let known = known.is_some_and(|s| s.candidates.iter().any(|c| c.addr == mapped));
        if !known && before != Some(mapped) {
            self.events.push_back(Event::PeerReflexive { socket, mapped });
        }
        if rebound {
            self.events.push_back(Event::Rebound { socket, remote, mapped });
        }
        self.events.push_back(if was_live {
            Event::Rtt { socket, remote, rtt }
        } else {
            Event::Validated { socket, remote, kind, rtt }
        });
        if first {
            self.retire_older(key, now);
        }
    }

    /// Sends the best check that is due. What was tried less often comes first: after a change,
    /// addresses that are new.
    fn send_check(&mut self, now: Instant) {
        let bucket = &self.unverified;
        let allowed = |p: &Pair| bucket.ready_beside(reserved_from(p)) <= now;
        let pairs = self.table.pairs.iter();
        let due = pairs.filter(|(_, p)| p.is_due(now) && (p.verified.is_some() || allowed(p)));
        let best = due.min_by_key(|(_, p)| (!p.triggered, !p.is_live(), p.tried, p.rank));
        let Some(key) = best.map(|(key, _)| *key) else { return };
        let beside_a_path = self.table.pairs.iter().any(|(k, p)| *k != key && p.is_live());
        let priority = self.priority_of(key.0);
        let Some(pair) = self.table.pairs.get_mut(&key) else { return };
        if pair.verified.is_none() && !self.unverified.take(now) {
            return;
        }
        let mut id = TransactionId::default();
        self.rng.fill_bytes(&mut id);
        number(&mut id, &mut self.requests);
        pair.record_check(id, beside_a_path, now);
        self.paced_until = now + PACE;
        let message = Message::Request { id, priority };
        self.transmits.push_back(Transmit { socket: key.0, to: key.1, message, ttl: None });
    }

    /// A check that belongs to no pair yet.
    pub(super) fn send_guess(
        &mut self,
        socket: LocalSocket,
        to: SocketAddr,
        opener: bool,
        now: Instant,
    ) {
        let priority = self.priority_of(socket);
        let mut id = TransactionId::default();
        self.rng.fill_bytes(&mut id);
        number(&mut id, &mut self.requests);
        self.hard.record_sent(socket, to, id, now);
        let message = Message::Request { id, priority };
        let ttl = opener.then_some(OPENER_TTL).filter(|_| to.is_ipv4());
        self.transmits.push_back(Transmit { socket, to, message, ttl });
    }

    /// What the peer shall give the own address as peer-reflexive candidate (RFC 8445 §7.1.1).
    fn priority_of(&self, socket: LocalSocket) -> u32 {
        let candidates = self.sockets.get(&socket).map(|s| s.candidates.iter());
        let best = candidates.and_then(|mut c| c.by_ref().map(|c| c.priority).max()).unwrap_or(0);
        let [_, high, low, _] = best.to_be_bytes();
        candidate_priority(CandidateKind::PeerReflexive, u16::from_be_bytes([high, low]))
    }

    fn is_exhausted(&self) -> bool {
        let pairs = &self.table.pairs;
        self.end_of_candidates && pairs.values().all(|p| p.verified.is_none() && p.is_exhausted())
    }

    pub(super) fn tell_expired(&mut self, (socket, remote): PairKey) {
        let revoked = !self.table.is_verified(remote);
        self.events.push_back(Event::Expired { socket, remote, revoked });
    }

    fn tell_exhausted(&mut self) {
        if self.exhausted_told || !self.is_exhausted() {
            return;
        }
        self.exhausted_told = true;
        let mut classes: BTreeMap<(Family, CandidateKind), (usize, bool)> = BTreeMap::new();
        for ((_, remote), pair) in &self.table.pairs {
            let class = classes.entry((Family::of(*remote), pair.kind)).or_default();
            *class = (class.0 + 1, class.1 | pair.heard);
        }
        let failed = classes
            .into_iter()
            .map(|((family, kind), (pairs, heard))| FailedClass { family, kind, pairs, heard })
            .collect();
        self.events.push_back(Event::Exhausted { failed });
    }
}

/// Tokens for unverified addresses that others may need more.
fn reserved_from(pair: &Pair) -> u32 {
    let best = pair.rank < BEST_PAIRS && pair.is_promising();
    if pair.triggered || best { 0 } else { UNVERIFIED_RESERVE }
}

/// Requests are numbered, see [`ReplayWindow`].
fn number(id: &mut TransactionId, requests: &mut u32) {
    for (to, from) in id.iter_mut().zip(requests.to_be_bytes()) {
        *to = from;
    }
    *requests = requests.wrapping_add(1);
}
