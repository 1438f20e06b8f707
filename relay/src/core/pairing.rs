//! Who may wait, who is paired with whom, who must go: the relay's rules in one place.
//!
//! A connection is *unjoined* until it confirmed a join: first unproven, counted in
//! [`Admission`], then *answered* once its message 1 carried a valid
//! ticket. Confirmed, it *waits* for the other role of the same session and slot; together they
//! are a *pair*. Whoever drives this machine does the reading, the cryptography and the copying.
//!
//! Invariants:
//! - a pair's ends have the same session and slot, and opposite roles;
//! - of each session, slot and role at most one connection waits or is paired: the newest
//!   confirmed one. It closes an older one, together with the end that was paired with it;
//! - each connection is told to close, paired, or reported closed exactly once;
//! - every table has a limit, every state a deadline.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use adit_protocol::{
    code::JoinStatus,
    ids::SessionId,
    limits::{MAX_RELAY_SLOTS, TICKET_LIFE},
    ticket::{Role, Share},
};

use super::admission::Admission;

#[cfg(test)]
mod tests;

/// Answered but unconfirmed joins of one session, slot and role: enough for one who retries in
/// haste, too few for one who wants to fill the table with a single ticket.
pub const MAX_ANSWERED_PER_END: usize = 4;
/// One part in so many of the places is only for those that have less than one part in so many.
const RESERVED: usize = 8;
const FEW: usize = 16;
/// Sessions remembered as cut, so that tickets still valid do not bring them back.
pub const MAX_CUT_SESSIONS: usize = 16_384;

/// A connection; ids grow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u64);

/// Two connections that are joined; ids grow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PairId(pub u64);

/// Bounds, changeable while running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections that have not joined, in all.
    pub max_unjoined: usize,
    /// Connections without a valid ticket from one source.
    pub max_unjoined_per_source: usize,
    /// Pairs, counting those that wait for their other end.
    pub max_pairs: usize,
    /// Time to join.
    pub unjoined: Duration,
    /// Time to wait for the other end.
    pub unpaired: Duration,
    /// A pair without a byte for so long ends.
    pub idle: Duration,
    /// Every pair ends after so long; its session rejoins.
    pub lifetime: Duration,
}

/// What a valid ticket and message 1 ask for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Join {
    /// The session.
    pub session: SessionId,
    /// Which of its connections.
    pub slot: u32,
    /// As which end.
    pub role: Role,
    /// Whose places it takes: of a session always the same.
    pub share: Share,
}

/// Why a connection or pair is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Did not join in time.
    Unjoined,
    /// Gave way to newer connections.
    Evicted,
    /// The other end did not come in time.
    Unpaired,
    /// A newer join of the same role.
    Replaced,
    /// The mediator ended the session.
    Cut,
    /// No byte for too long.
    Idle,
    /// Lived for too long.
    Lifetime,
    /// The tables are full.
    Full,
}

/// What the driver is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Drop a connection that is not paired.
    Close {
        /// Which.
        conn: ConnId,
        /// Why.
        reason: Reason,
    },
    /// Copy between these two from now on.
    Paired {
        /// The new pair.
        pair: PairId,
        /// Its session.
        session: SessionId,
        /// The console's connection.
        console: ConnId,
        /// The agent's connection.
        agent: ConnId,
    },
    /// Abort both connections of a pair.
    Cut {
        /// Which.
        pair: PairId,
        /// Why.
        reason: Reason,
    },
}

/// Sizes of the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Connections that have not joined.
    pub unjoined: usize,
    /// Joins that wait for their other end.
    pub waiting: usize,
    /// Pairs.
    pub pairs: usize,
}

type Key = (SessionId, u32);

#[derive(Debug, Clone, Copy)]
enum ConnState {
    Unproven,
    Answered(Join),
    Waiting(Join),
}

#[derive(Debug)]
struct Conn {
    state: ConnState,
    deadline: Instant,
}

/// INVARIANT: with `pair` set there is no waiting end, otherwise exactly one.
#[derive(Debug)]
struct Place {
    waiting: Option<(Role, ConnId)>,
    pair: Option<PairId>,
    share: Share,
}

#[derive(Debug)]
struct Pair {
    key: Key,
    bytes: u64,
    active_at: Instant,
    ends_at: Instant,
    timer: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Conn(ConnId),
    Pair(PairId),
    Cut(SessionId),
}

/// The machine.
#[derive(Debug)]
pub struct Pairing {
    limits: Limits,
    draining: bool,
    next_id: u64,
    admission: Admission,
    conns: BTreeMap<ConnId, Conn>,
    answered: BTreeMap<Join, BTreeSet<ConnId>>,
    answered_order: BTreeSet<ConnId>,
    places: BTreeMap<Key, Place>,
    /// INVARIANT: how many of `places` each has.
    shares: BTreeMap<Share, usize>,
    waiting: usize,
    pairs: BTreeMap<PairId, Pair>,
    cut: BTreeMap<SessionId, Instant>,
    /// The same, by when they are forgotten: thousands may end in one go, while others join.
    cut_order: BTreeSet<(Instant, SessionId)>,
    timers: BTreeSet<(Instant, Timer)>,
    events: VecDeque<Event>,
}

impl Pairing {
    /// An empty relay.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            draining: false,
            next_id: 0,
            admission: Admission::default(),
            conns: BTreeMap::new(),
            answered: BTreeMap::new(),
            answered_order: BTreeSet::new(),
            places: BTreeMap::new(),
            shares: BTreeMap::new(),
            waiting: 0,
            pairs: BTreeMap::new(),
            cut: BTreeMap::new(),
            cut_order: BTreeSet::new(),
            timers: BTreeSet::new(),
            events: VecDeque::new(),
        }
    }

    /// A connection was accepted. It is always let in; another may have to go.
    pub fn handle_connected(&mut self, source: IpAddr, now: Instant) -> ConnId {
        let conn = ConnId(self.take_id());
        let (per_source, max) = (self.limits.max_unjoined_per_source, self.limits.max_unjoined);
        let victim = self.admission.admit(conn, source.into(), per_source, max);
        let deadline = now + self.limits.unjoined;
        self.conns.insert(conn, Conn { state: ConnState::Unproven, deadline });
        self.timers.insert((deadline, Timer::Conn(conn)));
        if let Some(victim) = victim {
            self.close(victim, Reason::Evicted);
        }
        conn
    }

    /// Message 1 was authentic and its ticket valid. The status goes into message 2; unless it is
    /// `Accepted`, the connection ends after it and the driver reports that.
    pub fn handle_ticket(&mut self, conn: ConnId, join: Join) -> JoinStatus {
        if !matches!(self.conns.get(&conn), Some(Conn { state: ConnState::Unproven, .. })) {
            return JoinStatus::BadTicket;
        }
        if join.slot >= MAX_RELAY_SLOTS || self.cut.contains_key(&join.session) {
            return JoinStatus::BadTicket;
        }
        if self.draining {
            return JoinStatus::Draining;
        }
        if !self.has_room(&join) {
            return JoinStatus::Full;
        }
        self.admission.remove(conn);
        if let Some(c) = self.conns.get_mut(&conn) {
            c.state = ConnState::Answered(join);
        }
        self.answered_order.insert(conn);
        let same = self.answered.entry(join).or_default();
        same.insert(conn);
        let hasty = (same.len() > MAX_ANSWERED_PER_END).then(|| same.first().copied()).flatten();
        let crowded = (self.answered_order.len() > self.limits.max_unjoined.max(1))
            .then(|| self.answered_order.first().copied())
            .flatten();
        if let Some(victim) = hasty.or(crowded) {
            self.close(victim, Reason::Evicted);
        }
        JoinStatus::Accepted
    }

    /// The joiner proved that it is there: now the join counts. False if the connection had
    /// been told to close already.
    pub fn handle_confirmed(&mut self, conn: ConnId, now: Instant) -> bool {
        let Some(&Conn { state: ConnState::Answered(join), deadline }) = self.conns.get(&conn)
        else {
            return false;
        };
        let key = (join.session, join.slot);
        if !self.has_room(&join) || self.cut.contains_key(&join.session) {
            let cut = self.cut.contains_key(&join.session);
            self.close(conn, if cut { Reason::Cut } else { Reason::Full });
            return true;
        }
        self.forget_answered(conn, &join);
        self.timers.remove(&(deadline, Timer::Conn(conn)));

        if let Some(pair) = self.places.get(&key).and_then(|p| p.pair) {
            self.cut_pair(pair, Reason::Replaced);
        }
        match self.places.get(&key).and_then(|p| p.waiting) {
            Some((role, other)) if role == join.role => {
                self.close(other, Reason::Replaced);
                self.wait(conn, join, now);
            }
            Some((_, other)) => self.pair(&join, conn, other, now),
            None => self.wait(conn, join, now),
        }
        true
    }

    /// The end that waits for this one, though it has not confirmed its join yet.
    pub fn waiting_for(&self, join: &Join) -> Option<ConnId> {
        let (role, conn) = self.places.get(&(join.session, join.slot))?.waiting?;
        (role != join.role).then_some(conn)
    }

    /// A connection that is not paired ended by itself or broke a rule.
    pub fn handle_closed(&mut self, conn: ConnId) {
        self.remove(conn);
    }

    /// A pair's copying ended.
    pub fn handle_pair_ended(&mut self, pair: PairId) {
        self.remove_pair(pair);
    }

    /// Bytes that a pair has moved in both directions until now.
    pub fn handle_progress(&mut self, pair: PairId, bytes: u64, now: Instant) {
        if let Some(p) = self.pairs.get_mut(&pair)
            && p.bytes != bytes
        {
            p.bytes = bytes;
            p.active_at = now;
        }
    }

    /// The mediator ended a session: everything of it goes, and does not come back.
    pub fn handle_cut(&mut self, session: SessionId, now: Instant) {
        self.forget_cut(session);
        if self.cut.len() >= MAX_CUT_SESSIONS
            && let Some((_, oldest)) = self.cut_order.first().copied()
        {
            self.forget_cut(oldest);
        }
        let forget = now + TICKET_LIFE;
        self.cut.insert(session, forget);
        self.cut_order.insert((forget, session));
        self.timers.insert((forget, Timer::Cut(session)));
        for slot in 0..MAX_RELAY_SLOTS {
            let (pair, waiting) =
                self.places.get(&(session, slot)).map_or((None, None), |p| (p.pair, p.waiting));
            if let Some(pair) = pair {
                self.cut_pair(pair, Reason::Cut);
            }
            if let Some((_, conn)) = waiting {
                self.close(conn, Reason::Cut);
            }
            for role in [Role::Console, Role::Agent] {
                let of = |share| Join { session, slot, role, share };
                let all = self.answered.range(of(Share([0; 8]))..=of(Share([0xFF; 8])));
                let answered: Vec<ConnId> = all.flat_map(|(_, conns)| conns).copied().collect();
                for conn in answered {
                    self.close(conn, Reason::Cut);
                }
            }
        }
    }

    /// No new joins from now on.
    pub fn handle_drain(&mut self) {
        self.draining = true;
    }

    /// New joins are taken again.
    pub fn handle_resume(&mut self) {
        self.draining = false;
    }

    /// New limits; they hold for what comes, and idle and lifetime also for what is there.
    pub fn handle_limits(&mut self, limits: Limits, now: Instant) {
        let (old, new) = (self.limits.lifetime, limits.lifetime);
        self.limits = limits;
        let ids: Vec<PairId> = self.pairs.keys().copied().collect();
        for id in ids {
            if let Some(p) = self.pairs.get_mut(&id) {
                p.ends_at = (p.ends_at + new).checked_sub(old).unwrap_or(now);
                self.timers.remove(&(p.timer, Timer::Pair(id)));
                p.timer = now;
                self.timers.insert((now, Timer::Pair(id)));
            }
        }
    }

    /// What is due at `now` happens.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, timer)) = self.timers.first() {
            if at > now {
                return;
            }
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Conn(conn) => {
                    let waits = self.conns.get(&conn).map(|c| c.state);
                    let unpaired = matches!(waits, Some(ConnState::Waiting(_)));
                    self.close(conn, if unpaired { Reason::Unpaired } else { Reason::Unjoined });
                }
                Timer::Cut(session) => self.forget_cut(session),
                Timer::Pair(pair) => self.check_pair(pair, now),
            }
        }
    }

    /// What the driver is to do next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When `handle_timeout` is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Sizes of the tables.
    pub fn counts(&self) -> Counts {
        Counts {
            unjoined: self.admission.len() + self.answered_order.len(),
            waiting: self.waiting,
            pairs: self.pairs.len(),
        }
    }

    /// Are new joins refused?
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// A join to a place that exists needs no room: it completes or replaces what is there. The
    /// last places are for those that have few, so that nobody's sessions take all there are (R16).
    fn has_room(&self, join: &Join) -> bool {
        let (max, taken) = (self.limits.max_pairs, self.places.len());
        let own = self.shares.get(&join.share).copied().unwrap_or(0);
        let has_few = own == 0 || own < max / FEW;
        let open_to_it = if has_few { max } else { max - max / RESERVED };
        self.places.contains_key(&(join.session, join.slot)) || taken < open_to_it
    }

    fn take_place(&mut self, key: Key, place: Place) {
        self.leave_place(&key);
        *self.shares.entry(place.share).or_default() += 1;
        self.places.insert(key, place);
    }

    fn leave_place(&mut self, key: &Key) {
        let Some(place) = self.places.remove(key) else { return };
        if let Some(count) = self.shares.get_mut(&place.share) {
            *count -= 1;
            if *count == 0 {
                self.shares.remove(&place.share);
            }
        }
    }

    fn wait(&mut self, conn: ConnId, join: Join, now: Instant) {
        let deadline = now + self.limits.unpaired;
        self.conns.insert(conn, Conn { state: ConnState::Waiting(join), deadline });
        self.timers.insert((deadline, Timer::Conn(conn)));
        let waiting = Some((join.role, conn));
        let place = Place { waiting, pair: None, share: join.share };
        self.take_place((join.session, join.slot), place);
        self.waiting += 1;
    }

    fn pair(&mut self, join: &Join, conn: ConnId, other: ConnId, now: Instant) {
        let key = (join.session, join.slot);
        self.remove(other);
        self.conns.remove(&conn);
        let pair = PairId(self.take_id());
        let (console, agent) = match join.role {
            Role::Console => (conn, other),
            Role::Agent => (other, conn),
        };
        let ends_at = now + self.limits.lifetime;
        let timer = ends_at.min(now + self.limits.idle);
        self.pairs.insert(pair, Pair { key, bytes: 0, active_at: now, ends_at, timer });
        self.timers.insert((timer, Timer::Pair(pair)));
        self.take_place(key, Place { waiting: None, pair: Some(pair), share: join.share });
        self.events.push_back(Event::Paired { pair, session: key.0, console, agent });
    }

    fn check_pair(&mut self, pair: PairId, now: Instant) {
        let Some(p) = self.pairs.get_mut(&pair) else { return };
        let idle_at = p.active_at + self.limits.idle;
        if p.ends_at <= now {
            self.cut_pair(pair, Reason::Lifetime);
        } else if idle_at <= now {
            self.cut_pair(pair, Reason::Idle);
        } else {
            p.timer = p.ends_at.min(idle_at);
            self.timers.insert((p.timer, Timer::Pair(pair)));
        }
    }

    fn close(&mut self, conn: ConnId, reason: Reason) {
        if self.remove(conn) {
            self.events.push_back(Event::Close { conn, reason });
        }
    }

    fn cut_pair(&mut self, pair: PairId, reason: Reason) {
        if self.remove_pair(pair) {
            self.events.push_back(Event::Cut { pair, reason });
        }
    }

    fn remove_pair(&mut self, pair: PairId) -> bool {
        let Some(p) = self.pairs.remove(&pair) else { return false };
        self.timers.remove(&(p.timer, Timer::Pair(pair)));
        self.leave_place(&p.key);
        true
    }

    fn remove(&mut self, conn: ConnId) -> bool {
        self.admission.remove(conn);
        let Some(c) = self.conns.remove(&conn) else { return false };
        self.timers.remove(&(c.deadline, Timer::Conn(conn)));
        match c.state {
            ConnState::Unproven => {}
            ConnState::Answered(join) => self.forget_answered(conn, &join),
            ConnState::Waiting(join) => {
                self.waiting = self.waiting.saturating_sub(1);
                self.leave_place(&(join.session, join.slot));
            }
        }
        true
    }

    fn forget_cut(&mut self, session: SessionId) {
        let Some(at) = self.cut.remove(&session) else { return };
        self.cut_order.remove(&(at, session));
        self.timers.remove(&(at, Timer::Cut(session)));
    }

    fn forget_answered(&mut self, conn: ConnId, join: &Join) {
        self.answered_order.remove(&conn);
        if let Some(same) = self.answered.get_mut(join) {
            same.remove(&conn);
            if same.is_empty() {
                self.answered.remove(join);
            }
        }
    }
}
