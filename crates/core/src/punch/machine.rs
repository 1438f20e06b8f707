//! The machine: inputs, and what follows from them.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use adit_protocol::{
    candidate::{Candidate, CandidateKind},
    limits::MAX_CANDIDATES,
    nat::NatSummary,
};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    AddressFilter, Event, FailedClass, Family, HardReport, LocalSocket, MAX_HOLD, MAX_QUEUED,
    MAX_SOCKETS, MIN_CHECK_INTERVAL, Message, PACE, Packet, PairReport, PunchConfig,
    REANNOUNCE_GAP, REPLAY_MEMORY, Report, TransactionId, Transmit, UNVERIFIED_BURST,
    UNVERIFIED_INTERVAL,
    bucket::Bucket,
    candidate_priority,
    pair::Pair,
    table::{PairKey, Table},
};

/// One end of a session, punching. See the [module](super).
#[derive(Debug)]
pub struct Punch {
    filter: AddressFilter,
    check_interval: Duration,
    rng: StdRng,
    sockets: BTreeMap<LocalSocket, Socket>,
    /// The peer's candidates, for sockets that come later.
    remote: Vec<Candidate>,
    end_of_candidates: bool,
    table: Table,
    /// The last (re)start.
    started: Instant,
    exhausted_told: bool,
    /// No check before this.
    paced_until: Instant,
    unverified: Bucket,
    seen: VecDeque<(TransactionId, SocketAddr)>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

#[derive(Debug)]
struct Socket {
    family: Family,
    candidates: Vec<Candidate>,
}

impl Punch {
    /// Nothing is sent before sockets and candidates are known.
    pub fn new(config: PunchConfig, now: Instant) -> Self {
        Self {
            filter: config.filter,
            check_interval: config.check_interval.max(MIN_CHECK_INTERVAL),
            rng: StdRng::from_seed(config.seed),
            sockets: BTreeMap::new(),
            remote: Vec::new(),
            end_of_candidates: false,
            table: Table::default(),
            started: now,
            exhausted_told: false,
            paced_until: now,
            unverified: Bucket::new(UNVERIFIED_BURST, UNVERIFIED_INTERVAL, now),
            seen: VecDeque::new(),
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
        let candidates = candidates.iter().take(MAX_CANDIDATES).copied().collect();
        self.sockets.insert(socket, Socket { family, candidates });
        for candidate in self.remote.clone() {
            self.add(socket, &candidate, now);
        }
    }

    /// What is known of the own NAT; may change.
    pub fn handle_local_nat(&mut self, _nat: NatSummary, _now: Instant) {}

    /// What the peer knows of its NAT, and where the mediator sees it.
    pub fn handle_remote_nat(
        &mut self,
        _nat: NatSummary,
        _seen: Option<std::net::IpAddr>,
        _now: Instant,
    ) {
    }

    /// A socket that was asked for by [`Event::WantSockets`].
    pub fn handle_birthday_socket(&mut self, _socket: LocalSocket, _family: Family, _now: Instant) {
    }

    /// The peer starts later than this end, as long as signalling takes: no check of its own
    /// accord before that, for both ends' first packets must cross. To be called by the end that
    /// sends its candidates last (the agent), with the round trip of its control connection.
    pub fn handle_hold(&mut self, signalling: Duration, now: Instant) {
        self.paced_until = self.paced_until.max(now + signalling.min(MAX_HOLD));
    }

    /// A socket is gone, with all its pairs.
    pub fn handle_socket_closed(&mut self, socket: LocalSocket) {
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
            for socket in &sockets {
                again |= self.add(*socket, &candidate, now) && known.is_some();
            }
        }
        let excess = self.remote.len().saturating_sub(MAX_CANDIDATES);
        self.remote.drain(..excess);
        if again && now >= self.started + REANNOUNCE_GAP {
            self.restart(now);
        }
        self.tell_exhausted();
    }

    /// A check arrived; tag and integrity have been verified.
    pub fn handle_packet(&mut self, packet: Packet, now: Instant) {
        let from = SocketAddr::new(packet.from.ip().to_canonical(), packet.from.port());
        let Some(socket) = self.sockets.get(&packet.socket) else { return };
        if socket.family != Family::of(from) || !self.filter.admits(from) {
            return;
        }
        let key = (packet.socket, from);
        match packet.message {
            Message::Request { id, priority } => self.handle_request(key, id, priority, now),
            Message::Response { id, mapped } => self.handle_response(key, id, mapped, now),
        }
    }

    /// The peer acknowledged data over this pair: as good as an answered check for consent, but
    /// not for the NAT's memory or the round trip.
    pub fn handle_acknowledged(&mut self, socket: LocalSocket, remote: SocketAddr, now: Instant) {
        let pair = self.table.pairs.get_mut(&(socket, remote));
        if let Some(verified) = pair.and_then(|p| p.verified.as_mut()) {
            verified.confirmed = verified.confirmed.max(now);
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
        self.restart(now);
    }

    /// A direct path is wanted again: new rounds for all pairs, not sooner than
    /// [`REANNOUNCE_GAP`] after the last start.
    pub fn handle_want_direct(&mut self, now: Instant) {
        if now >= self.started + REANNOUNCE_GAP {
            self.restart(now);
        }
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
                wake = wake.max(self.unverified.ready_at());
            }
            wake
        });
        wakes.min()
    }

    /// What is known of pairs, failures and hard NATs.
    pub fn report(&self) -> Report {
        Report { pairs: self.pairs(), failures: Vec::new(), hard: HardReport::default() }
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
    fn add(&mut self, socket: LocalSocket, candidate: &Candidate, now: Instant) -> bool {
        let addr = candidate.addr;
        let Some(local) = self.sockets.get(&socket) else { return false };
        let own = self.sockets.values().flat_map(|s| &s.candidates).any(|c| c.addr == addr);
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
                let pair = Pair::new(candidate.kind, candidate.priority, now);
                self.exhausted_told = false;
                self.table.insert((socket, addr), pair)
            }
        }
    }

    fn restart(&mut self, now: Instant) {
        self.started = now;
        self.exhausted_told = false;
        for pair in self.table.pairs.values_mut() {
            pair.restart(now);
        }
    }

    fn handle_request(&mut self, key: PairKey, id: TransactionId, priority: u32, now: Instant) {
        // A request is recorded and sent again by others as if from elsewhere: not this one.
        if self.seen.iter().any(|(seen, from)| *seen == id && *from != key.1) {
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
        let first = !pair.heard;
        pair.handle_request(now);
        if first {
            self.table.rank();
        }
        if self.seen.len() >= REPLAY_MEMORY {
            self.seen.pop_front();
        }
        self.seen.push_back((id, key.1));
        if self.transmits.len() < MAX_QUEUED {
            let message = Message::Response { id, mapped: key.1 };
            self.transmits.push_back(Transmit { socket: key.0, to: key.1, message });
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
        let Some(pair) = self.table.pairs.get_mut(&key) else { return };
        let Some(rtt) = pair.take_answer(id, now) else { return };
        let was_live = pair.is_live();
        let before = pair.verified.as_ref().map(|v| v.mapped);
        let rebound = before.is_some_and(|before| before != mapped);
        if rebound {
            // The NAT forgot the mapping between two checks: ask it more often.
            self.check_interval = (self.check_interval / 2).max(MIN_CHECK_INTERVAL);
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
    }

    /// Sends the best check that is due.
    fn send_check(&mut self, now: Instant) {
        let allowed = self.unverified.ready_at() <= now;
        let due = self
            .table
            .pairs
            .iter()
            .filter(|(_, p)| p.is_due(now) && (allowed || p.verified.is_some()));
        let best = due.min_by_key(|(_, p)| (!p.triggered, !p.is_live(), p.rank));
        let Some(key) = best.map(|(key, _)| *key) else { return };
        let beside_a_path = self.table.pairs.iter().any(|(k, p)| *k != key && p.is_live());
        let priority = self.priority_of(key.0);
        let Some(pair) = self.table.pairs.get_mut(&key) else { return };
        if pair.verified.is_none() && !self.unverified.take(now) {
            return;
        }
        let mut id = TransactionId::default();
        self.rng.fill_bytes(&mut id);
        pair.record_check(id, beside_a_path, now);
        self.paced_until = now + PACE;
        let message = Message::Request { id, priority };
        self.transmits.push_back(Transmit { socket: key.0, to: key.1, message });
    }

    /// What the peer shall give the own address as peer-reflexive candidate (RFC 8445 §7.1.1).
    fn priority_of(&self, socket: LocalSocket) -> u32 {
        let candidates = self.sockets.get(&socket).map(|s| s.candidates.iter());
        let best = candidates.and_then(|mut c| c.by_ref().map(|c| c.priority).max()).unwrap_or(0);
        let [_, high, low, _] = best.to_be_bytes();
        candidate_priority(CandidateKind::PeerReflexive, u16::from_be_bytes([high, low]))
    }

    fn tell_expired(&mut self, (socket, remote): PairKey) {
        let revoked = !self.table.is_verified(remote);
        self.events.push_back(Event::Expired { socket, remote, revoked });
    }

    fn tell_exhausted(&mut self) {
        let pairs = &self.table.pairs;
        if self.exhausted_told
            || !self.end_of_candidates
            || !pairs.values().all(|p| p.verified.is_none() && p.is_exhausted())
        {
            return;
        }
        self.exhausted_told = true;
        let mut classes: BTreeMap<(Family, CandidateKind), (usize, bool)> = BTreeMap::new();
        for ((_, remote), pair) in pairs {
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
