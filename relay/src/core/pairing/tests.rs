//! Facts one by one, then the invariants over seeds against a simple model.

use std::collections::BTreeSet;

use super::*;

fn limits() -> Limits {
    Limits {
        max_unjoined: 32,
        max_unjoined_per_source: 8,
        max_pairs: 6,
        unjoined: Duration::from_secs(5),
        unpaired: Duration::from_secs(15),
        idle: Duration::from_secs(600),
        lifetime: Duration::from_secs(3600),
    }
}

const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn join(session: u8, slot: u32, role: Role) -> Join {
    of(session, slot, role, session)
}

fn of(session: u8, slot: u32, role: Role, share: u8) -> Join {
    Join { session: SessionId([session; 16]), slot, role, share: Share([share; 8]) }
}

struct World {
    relay: Pairing,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self { relay: Pairing::new(limits()), now: Instant::now() }
    }

    fn pass(&mut self, time: Duration) -> Vec<Event> {
        self.now += time;
        self.relay.handle_timeout(self.now);
        self.events()
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.relay.poll_event()).collect()
    }

    fn joined(&mut self, join: Join) -> ConnId {
        let conn = self.relay.handle_connected(HOST, self.now);
        assert_eq!(self.relay.handle_ticket(conn, join), JoinStatus::Accepted);
        self.relay.handle_confirmed(conn, self.now);
        conn
    }

    fn paired(&mut self, session: u8) -> (PairId, ConnId, ConnId) {
        let (c, a) = (
            self.joined(join(session, 0, Role::Console)),
            self.joined(join(session, 0, Role::Agent)),
        );
        match self.events()[..] {
            [Event::Paired { pair, console, agent, .. }] => {
                assert_eq!((console, agent), (c, a));
                (pair, c, a)
            }
            ref other => panic!("{other:?}"),
        }
    }
}

#[test]
fn join_counts_only_after_its_confirmation() {
    let mut w = World::new();
    let console = w.relay.handle_connected(HOST, w.now);
    w.relay.handle_ticket(console, join(1, 0, Role::Console));
    let agent = w.joined(join(1, 0, Role::Agent));
    assert_eq!(w.events(), []);
    assert_eq!(
        w.pass(Duration::from_secs(5)),
        [Event::Close { conn: console, reason: Reason::Unjoined }]
    );
    let unpaired = Event::Close { conn: agent, reason: Reason::Unpaired };
    assert_eq!(w.pass(Duration::from_secs(10)), [unpaired]);
    assert_eq!(w.relay.poll_timeout(), None);
    assert_eq!(w.relay.counts(), Counts::default());
}

#[test]
fn confirmation_without_ticket_is_nothing() {
    let mut w = World::new();
    let conn = w.relay.handle_connected(HOST, w.now);
    w.relay.handle_confirmed(conn, w.now);
    assert_eq!(w.relay.counts(), Counts { unjoined: 1, waiting: 0, pairs: 0 });
}

#[test]
fn newest_join_of_a_role_wins_and_ends_the_older_pair() {
    let mut w = World::new();
    let (pair, ..) = w.paired(1);
    let newer = w.joined(join(1, 0, Role::Agent));
    assert_eq!(w.events(), [Event::Cut { pair, reason: Reason::Replaced }]);
    let newest = w.joined(join(1, 0, Role::Agent));
    assert_eq!(w.events(), [Event::Close { conn: newer, reason: Reason::Replaced }]);
    let console = w.joined(join(1, 0, Role::Console));
    assert!(
        matches!(w.events()[..], [Event::Paired { console: c, agent, .. }] if c == console && agent == newest)
    );
}

#[test]
fn other_slot_session_or_same_role_never_pairs() {
    let mut w = World::new();
    w.joined(join(1, 0, Role::Console));
    w.joined(join(1, 1, Role::Agent));
    w.joined(join(2, 0, Role::Agent));
    w.joined(join(3, 0, Role::Console));
    assert_eq!(w.events(), []);
    let conn = w.relay.handle_connected(HOST, w.now);
    let status = w.relay.handle_ticket(conn, join(1, MAX_RELAY_SLOTS, Role::Agent));
    assert_eq!(status, JoinStatus::BadTicket);
}

#[test]
fn pair_ends_when_idle_or_old_but_not_while_bytes_move() {
    let mut w = World::new();
    let (idle, ..) = w.paired(1);
    let (busy, ..) = w.paired(2);
    for i in 1..6 {
        w.relay.handle_progress(busy, i, w.now + Duration::from_secs(599));
        let gone = w.pass(Duration::from_secs(600));
        let expected: &[Event] =
            if i == 1 { &[Event::Cut { pair: idle, reason: Reason::Idle }] } else { &[] };
        assert_eq!(gone, expected);
    }
    w.relay.handle_progress(busy, 6, w.now + Duration::from_secs(599));
    assert_eq!(
        w.pass(Duration::from_secs(600)),
        [Event::Cut { pair: busy, reason: Reason::Lifetime }]
    );
}

#[test]
fn cut_session_goes_entirely_and_its_tickets_with_it() {
    let mut w = World::new();
    let (pair, ..) = w.paired(1);
    let waiting = w.joined(join(1, 1, Role::Agent));
    let answered = w.relay.handle_connected(HOST, w.now);
    w.relay.handle_ticket(answered, join(1, 0, Role::Agent));
    let (other, ..) = w.paired(2);
    w.relay.handle_cut(SessionId([1; 16]), w.now);
    let gone: Vec<_> = w.events();
    assert_eq!(gone.len(), 3);
    assert!(gone.contains(&Event::Cut { pair, reason: Reason::Cut }));
    assert!(gone.contains(&Event::Close { conn: waiting, reason: Reason::Cut }));
    assert!(gone.contains(&Event::Close { conn: answered, reason: Reason::Cut }));
    let again = w.relay.handle_connected(HOST, w.now);
    assert_eq!(w.relay.handle_ticket(again, join(1, 0, Role::Console)), JoinStatus::BadTicket);
    w.relay.handle_progress(other, 1, w.now + TICKET_LIFE);
    w.pass(TICKET_LIFE);
    let later = w.relay.handle_connected(HOST, w.now);
    assert_eq!(w.relay.handle_ticket(later, join(1, 0, Role::Console)), JoinStatus::Accepted);
}

#[test]
fn full_relay_still_completes_and_replaces_what_it_has() {
    let mut w = World::new();
    for session in 0..6 {
        w.joined(join(session, 0, Role::Console));
    }
    let conn = w.relay.handle_connected(HOST, w.now);
    assert_eq!(w.relay.handle_ticket(conn, join(6, 0, Role::Console)), JoinStatus::Full);
    w.joined(join(5, 0, Role::Agent));
    assert_eq!(w.events().len(), 1);
    w.joined(join(4, 0, Role::Console));
    assert_eq!(w.events().len(), 1);
}

/// R16: one partner's sessions leave places to others, however many there are.
#[test]
fn nobodys_sessions_take_all_places_and_those_with_few_get_the_last() {
    let mut w = World::new();
    let max = 64;
    w.relay.handle_limits(Limits { max_pairs: max, max_unjoined: 1_000, ..limits() }, w.now);
    let open = |w: &mut World, session: u8, share: u8| {
        let conn = w.relay.handle_connected(HOST, w.now);
        let accepted = w.relay.handle_ticket(conn, of(session, 0, Role::Console, share));
        if accepted != JoinStatus::Accepted {
            w.relay.handle_closed(conn);
            return false;
        }
        w.relay.handle_confirmed(conn, w.now);
        true
    };
    assert_eq!((0..100).filter(|n| open(&mut w, *n, 1)).count(), max - max / RESERVED);
    assert!(open(&mut w, 0, 1), "who has a place keeps it");
    assert_eq!((100..150).filter(|n| open(&mut w, *n, 2)).count(), max / FEW);
    assert_eq!((150..200).filter(|n| open(&mut w, *n, *n)).count(), max / RESERVED - max / FEW);
    assert!(!open(&mut w, 200, 200));
    w.relay.handle_cut(SessionId([7; 16]), w.now);
    assert!(
        !open(&mut w, 201, 1) && open(&mut w, 202, 202),
        "a place that is left goes to whoever has few"
    );
}

#[test]
fn cut_sessions_are_remembered_the_latest_of_them() {
    let mut w = World::new();
    let session = |n: usize| {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_be_bytes());
        SessionId(id)
    };
    for n in 0..MAX_CUT_SESSIONS {
        w.relay.handle_cut(session(n), w.now + Duration::from_millis(1));
    }
    w.relay.handle_cut(session(0), w.now + Duration::from_millis(2));
    w.relay.handle_cut(session(MAX_CUT_SESSIONS), w.now + Duration::from_millis(3));
    assert_eq!((w.relay.cut.len(), w.relay.cut_order.len()), (MAX_CUT_SESSIONS, MAX_CUT_SESSIONS));
    assert!(w.relay.cut.contains_key(&session(0)) && !w.relay.cut.contains_key(&session(1)));
    w.pass(TICKET_LIFE + Duration::from_secs(1));
    assert!(w.relay.cut.is_empty() && w.relay.cut_order.is_empty() && w.relay.timers.is_empty());
}

#[test]
fn draining_relay_takes_no_new_join_and_keeps_its_pairs() {
    let mut w = World::new();
    let (pair, ..) = w.paired(1);
    w.relay.handle_drain();
    let conn = w.relay.handle_connected(HOST, w.now);
    assert_eq!(w.relay.handle_ticket(conn, join(2, 0, Role::Console)), JoinStatus::Draining);
    assert_eq!(w.relay.counts().pairs, 1);
    w.relay.handle_pair_ended(pair);
    assert_eq!(w.relay.counts().pairs, 0);
}

#[test]
fn one_ticket_cannot_fill_the_table_with_answered_joins() {
    let mut w = World::new();
    let first = w.relay.handle_connected(HOST, w.now);
    w.relay.handle_ticket(first, join(1, 0, Role::Console));
    for _ in 0..MAX_ANSWERED_PER_END {
        let conn = w.relay.handle_connected(HOST, w.now);
        w.relay.handle_ticket(conn, join(1, 0, Role::Console));
    }
    assert_eq!(w.events(), [Event::Close { conn: first, reason: Reason::Evicted }]);
}

#[test]
fn shorter_lifetime_holds_for_pairs_that_live() {
    let mut w = World::new();
    let (pair, ..) = w.paired(1);
    w.relay.handle_limits(Limits { lifetime: Duration::from_secs(60), ..limits() }, w.now);
    assert_eq!(w.pass(Duration::from_secs(59)), []);
    assert_eq!(w.pass(Duration::from_secs(1)), [Event::Cut { pair, reason: Reason::Lifetime }]);
}

/// What the driver knows, kept apart from the machine and compared with every event.
#[derive(Default)]
struct Model {
    open: BTreeMap<ConnId, (Instant, Option<Join>, bool)>,
    pairs: BTreeMap<PairId, (Join, Instant)>,
}

impl Model {
    fn handle(&mut self, events: Vec<Event>, now: Instant, newest: &BTreeMap<Join, ConnId>) {
        for event in events {
            match event {
                Event::Close { conn, .. } => {
                    assert!(self.open.remove(&conn).is_some(), "closed twice: {conn:?}");
                }
                Event::Cut { pair, .. } => {
                    assert!(self.pairs.remove(&pair).is_some(), "cut twice: {pair:?}");
                }
                Event::Paired { pair, session, console, agent } => {
                    let (_, c, c_confirmed) = self.open.remove(&console).unwrap();
                    let (_, a, a_confirmed) = self.open.remove(&agent).unwrap();
                    let (c, a) = (c.unwrap(), a.unwrap());
                    assert!(c_confirmed && a_confirmed);
                    assert_eq!((c.session, c.slot), (a.session, a.slot));
                    assert_eq!((c.role, a.role, c.session), (Role::Console, Role::Agent, session));
                    assert_eq!((newest[&c], newest[&a]), (console, agent), "not the newest");
                    assert!(
                        !self
                            .pairs
                            .values()
                            .any(|(j, _)| (j.session, j.slot) == (c.session, c.slot))
                    );
                    self.pairs.insert(pair, (c, now));
                }
            }
        }
    }

    fn check(&self, relay: &Pairing, now: Instant) {
        let l = limits();
        for (conn, (at, _, confirmed)) in &self.open {
            let limit = if *confirmed { l.unpaired } else { l.unjoined };
            assert!(now < *at + limit, "{conn:?} outlived its limit");
        }
        assert!(self.pairs.values().all(|(_, at)| now < *at + l.lifetime));
        let counts = relay.counts();
        let waiting = self.open.values().filter(|(.., confirmed)| *confirmed).count();
        assert_eq!(
            counts,
            Counts { unjoined: self.open.len() - waiting, waiting, pairs: self.pairs.len() }
        );
        assert!(counts.unjoined <= 2 * l.max_unjoined && waiting + counts.pairs <= l.max_pairs);
        let ends: BTreeSet<Join> = self.open.values().filter(|o| o.2).filter_map(|o| o.1).collect();
        assert_eq!(ends.len(), waiting, "two waiting for one place");
        assert_eq!(relay.shares.values().sum::<usize>(), relay.places.len());
        assert!(relay.shares.values().all(|count| *count > 0));
        assert_eq!(relay.cut_order.len(), relay.cut.len());
    }
}

struct Random(u64);

impl Random {
    /// xorshift64*: enough to shuffle a test.
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    fn pick<T: Copy>(&mut self, from: impl ExactSizeIterator<Item = T>) -> Option<T> {
        let n = from.len() as u64;
        let mut from = from;
        if n == 0 { None } else { from.nth(usize::try_from(self.below(n)).unwrap()) }
    }
}

#[test]
fn invariants_hold_over_seeds() {
    for seed in 1..=300 {
        if std::panic::catch_unwind(|| simulate(seed)).is_err() {
            panic!("seed {seed}");
        }
    }
}

fn simulate(seed: u64) {
    let mut rng = Random(seed);
    let mut now = Instant::now();
    let mut relay = Pairing::new(limits());
    let mut model = Model::default();
    let mut newest: BTreeMap<Join, ConnId> = BTreeMap::new();
    for _ in 0..1_000 {
        match rng.below(20) {
            0..7 => {
                let source = IpAddr::from([10, 0, 0, u8::try_from(rng.below(5)).unwrap()]);
                let conn = relay.handle_connected(source, now);
                model.open.insert(conn, (now, None, false));
            }
            7..12 => {
                let fresh: Vec<_> =
                    model.open.iter().filter(|(_, o)| o.1.is_none()).map(|(c, _)| *c).collect();
                if let Some(conn) = rng.pick(fresh.into_iter()) {
                    let role = if rng.below(2) == 0 { Role::Console } else { Role::Agent };
                    let session = u8::try_from(rng.below(6)).unwrap();
                    let j = of(session, u32::try_from(rng.below(3)).unwrap(), role, session % 3);
                    if relay.handle_ticket(conn, j) == JoinStatus::Accepted {
                        model.open.get_mut(&conn).unwrap().1 = Some(j);
                    } else {
                        relay.handle_closed(conn);
                        model.open.remove(&conn);
                    }
                }
            }
            12..16 => {
                let answered: Vec<_> = model
                    .open
                    .iter()
                    .filter(|(_, o)| o.1.is_some() && !o.2)
                    .map(|(c, o)| (*c, o.1.unwrap()))
                    .collect();
                if let Some((conn, j)) = rng.pick(answered.into_iter()) {
                    *model.open.get_mut(&conn).unwrap() = (now, Some(j), true);
                    newest.insert(j, conn);
                    relay.handle_confirmed(conn, now);
                }
            }
            16 => {
                let open: Vec<_> = model.open.keys().copied().collect();
                if let Some(conn) = rng.pick(open.into_iter()) {
                    relay.handle_closed(conn);
                    model.open.remove(&conn);
                }
            }
            17 => {
                let pairs: Vec<_> = model.pairs.keys().copied().collect();
                if let Some(pair) = rng.pick(pairs.into_iter()) {
                    relay.handle_pair_ended(pair);
                    model.pairs.remove(&pair);
                }
            }
            18 if rng.below(20) == 0 => {
                let session = SessionId([u8::try_from(rng.below(6)).unwrap(); 16]);
                relay.handle_cut(session, now);
            }
            _ => {
                now += Duration::from_millis(rng.below(4_000));
                relay.handle_timeout(now);
            }
        }
        let events = std::iter::from_fn(|| relay.poll_event()).collect();
        model.handle(events, now, &newest);
        model.check(&relay, now);
        assert!(relay.poll_timeout().is_none_or(|at| at > now));
    }
}
