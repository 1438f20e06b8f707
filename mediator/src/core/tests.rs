//! The broker in a world of random events, with a virtual clock, over seeds.
//!
//! The world plays store, agents, consoles and relay; it keeps its own account of what may
//! happen and compares after every step.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use adit_protocol::{
    code::failure,
    ids::{ComputerId, RelayId, SessionId},
    keys::{PublicKey, SigningKey},
    limits::{LEASE, OFFLINE_GRACE, TICKET_LIFE},
    target::{Target, Transport},
    wire::{self, session_event},
};

use super::{
    Broker,
    broker::{
        MAX_SESSIONS, MAX_SESSIONS_PER_CONSOLE, MAX_SESSIONS_PER_PARTNER, MAX_SESSIONS_PER_USER,
    },
    types::*,
};

const SEEDS: u64 = 400;
const STEPS: usize = 400;
const COMPUTERS: u8 = 3;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // SplitMix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[derive(Default, Debug)]
struct Fate {
    recorded_granted: bool,
    refused: usize,
    ended: usize,
    replies: usize,
    granted_reply: bool,
}

struct World {
    seed: u64,
    random: Random,
    broker: Broker,
    now: Now,
    console: PublicKey,
    agent: PublicKey,
    relay: PublicKey,
    console_connection: Option<ConnectionId>,
    agents: BTreeMap<u8, ConnectionId>,
    relay_connection: Option<ConnectionId>,
    connections: u64,
    requests: u64,
    sessions: u8,
    audits: VecDeque<(AuditId, Vec<adit_ledger::Event>)>,
    offers: VecDeque<(SessionId, ConnectionId)>,
    told: VecDeque<(SessionId, ConnectionId)>,
    opens: BTreeMap<RequestId, SessionId>,
    fates: BTreeMap<SessionId, Fate>,
    /// What each agent believes to serve.
    serving: BTreeMap<u8, BTreeSet<SessionId>>,
    failing_disk: bool,
}

fn key(n: u8) -> PublicKey {
    SigningKey::from_seed(&[n; 32]).unwrap().public()
}

fn computer_of(session: SessionId) -> u8 {
    session.0[1]
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            seed,
            random: Random(seed),
            broker: Broker::default(),
            now: Now { mono: Duration::from_secs(1_000), unix_ms: 1_000_000 },
            console: key(1),
            agent: key(2),
            relay: key(3),
            console_connection: None,
            agents: BTreeMap::new(),
            relay_connection: None,
            connections: 0,
            requests: 0,
            sessions: 0,
            audits: VecDeque::new(),
            offers: VecDeque::new(),
            told: VecDeque::new(),
            opens: BTreeMap::new(),
            fates: BTreeMap::new(),
            serving: BTreeMap::new(),
            failing_disk: false,
        };
        world.connect_all();
        world
    }

    fn connection(&mut self) -> ConnectionId {
        self.connections += 1;
        ConnectionId(self.connections)
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    fn connect_all(&mut self) {
        if self.console_connection.is_none() {
            let id = self.connection();
            let device = Device::Console { identity: self.console, noise: [1; 32] };
            self.console_connection = Some(id);
            self.broker.handle_connected(id, device, self.now);
        }
        for computer in 0..COMPUTERS {
            if !self.agents.contains_key(&computer) {
                self.connect_agent(computer);
            }
        }
        if self.relay_connection.is_none() {
            let id = self.connection();
            let device = Device::Relay {
                id: RelayId([9; 16]),
                identity: self.relay,
                info: wire::RelayInfo {
                    addresses: vec!["relay.example:443".into()],
                    ..wire::RelayInfo::default()
                },
                drains: false,
                setting: self.broker.relay_setting(RelayId([9; 16])),
            };
            self.relay_connection = Some(id);
            self.broker.handle_connected(id, device, self.now);
        }
        self.drain();
    }

    fn connect_agent(&mut self, computer: u8) {
        let id = self.connection();
        let device = Device::Agent { computer: ComputerId([computer; 16]), noise: [2; 32] };
        self.agents.insert(computer, id);
        self.broker.handle_connected(id, device, self.now);
        self.drain();
        self.check_in(computer);
    }

    fn check_in(&mut self, computer: u8) {
        let Some(connection) = self.agents.get(&computer).copied() else { return };
        let live: Vec<wire::LiveSession> = self
            .serving
            .entry(computer)
            .or_default()
            .iter()
            .map(|id| wire::LiveSession { session_id: id.to_bytes(), ..Default::default() })
            .collect();
        let request = self.request();
        self.broker.handle_check_in(request, connection, &live, self.now);
        self.drain_with(Some((request, computer)));
    }

    fn open(&mut self) {
        if self.sessions == u8::MAX {
            return;
        }
        let Some(attempt) = self.attempt() else { return };
        self.opens.insert(attempt.request, attempt.session);
        self.fates.insert(attempt.session, Fate::default());
        self.broker.handle_open(attempt, self.now);
        self.drain();
    }

    fn attempt(&mut self) -> Option<Attempt> {
        let connection = self.console_connection?;
        self.sessions += 1;
        let computer = u8::try_from(self.random.below(u64::from(COMPUTERS))).unwrap();
        let mut id = [self.sessions; 16];
        id[1] = computer;
        let session = SessionId(id);
        let allowed = self.random.below(5) > 0;
        let request = self.request();
        let place = Place {
            computer_id: ComputerId([computer; 16]),
            computer: "pc".into(),
            client_id: "c".into(),
            client: "p/c".into(),
            agent: self.agent,
        };
        let refusal = Refusal::new(failure::NOT_PERMITTED, "no");
        // Some rights end by themselves.
        let until_ms = match self.random.below(4) {
            0 => self.now.unix_ms + self.random.below(600_000),
            _ => u64::MAX,
        };
        let by_rule = Allowed { rule: "rule".into(), until_ms, basis: Basis::default() };
        Some(Attempt {
            request,
            connection,
            asked_ms: self.now.unix_ms,
            who: Who {
                account_id: "a".into(),
                account: "a".into(),
                partner_id: "p".into(),
                partner: "p".into(),
                login: [1; 32],
                device: self.console,
                source: "127.0.0.1:1".into(),
                mfa: String::new(),
            },
            session,
            place: Some(place),
            computer_id: String::new(),
            redirector: "ssh".into(),
            targets: vec![Target::new("127.0.0.1", 22, Transport::Tcp).unwrap()],
            any_target: false,
            reason: String::new(),
            ticket: String::new(),
            viewer: String::new(),
            noise_msg1: vec![0; 100].into(),
            seen: None,
            enrolment: false,
            generation: 0,
            verdict: if allowed { Ok(by_rule) } else { Err((refusal, "rule".into())) },
        })
    }

    fn drain(&mut self) {
        self.drain_with(None);
    }

    fn drain_with(&mut self, check_in: Option<(RequestId, u8)>) {
        while let Some(output) = self.broker.poll_output() {
            match output {
                Output::Audit { id, events, .. } => self.audits.push_back((id, events)),
                Output::Reply { request, reply } => self.replied(request, reply, check_in),
            }
        }
        while let Some(transmit) = self.broker.poll_transmit() {
            self.sent(transmit);
        }
    }

    fn replied(&mut self, request: RequestId, reply: Reply, check_in: Option<(RequestId, u8)>) {
        if let (Reply::CheckedIn(over), Some((asked, computer))) = (&reply, check_in)
            && asked == request
        {
            let serving = self.serving.entry(computer).or_default();
            over.iter().for_each(|id| {
                serving.remove(id);
            });
        }
        let Some(session) = self.opens.get(&request) else { return };
        let fate = self.fates.get_mut(session).unwrap();
        fate.replies += 1;
        if matches!(reply, Reply::Granted { .. }) {
            assert!(fate.recorded_granted, "seed {}: granted without a record", self.seed);
            fate.granted_reply = true;
        }
    }

    fn sent(&mut self, transmit: Transmit) {
        match transmit {
            Transmit::Offer { to, session, .. } => {
                let fate = &self.fates[&session];
                assert!(fate.recorded_granted, "seed {}: offered without a record", self.seed);
                self.offers.push_back((session, to));
            }
            Transmit::Tickets { session, .. } => {
                let fate = &self.fates[&session];
                assert!(fate.recorded_granted, "seed {}: tickets without a record", self.seed);
            }
            Transmit::End { to, session, .. } => {
                if self.agents.get(&computer_of(session)) == Some(&to) {
                    // An agent that still thinks about the offer gives it up.
                    self.offers.retain(|(offered, _)| *offered != session);
                    self.serving.entry(computer_of(session)).or_default().remove(&session);
                }
                self.told.push_back((session, to));
            }
            Transmit::Cut { to, session } => self.told.push_back((session, to)),
            Transmit::Signal { .. } | Transmit::Close { .. } => {}
        }
    }

    fn store(&mut self) {
        let Some((id, events)) = self.audits.pop_front() else { return };
        if self.failing_disk {
            self.broker.handle_audit_failed(id, self.now);
        } else {
            for event in &events {
                let Some(session) = event.session_id.as_ref().and_then(|id| id.parse().ok()) else {
                    continue;
                };
                let fate = self.fates.get_mut(&session).unwrap();
                match event.name.as_str() {
                    "session.granted" => fate.recorded_granted = true,
                    "session.refused" => fate.refused += 1,
                    "session.ended" => fate.ended += 1,
                    _ => {}
                }
                assert!(fate.refused + fate.ended <= 1, "seed {}: {fate:?}", self.seed);
            }
            let recorded = Recorded { seq: 1, ..Recorded::nothing() };
            self.broker.handle_audit_committed(id, recorded, self.now);
        }
        self.drain();
    }

    fn answer(&mut self) {
        let Some((session, _)) = self.offers.pop_front() else { return };
        let computer = computer_of(session);
        let outcome = match self.random.below(4) {
            0 => Err(Refusal::new(failure::AGENT_REFUSED, "no")),
            // The answer is lost though the agent serves.
            1 => {
                self.serving.entry(computer).or_default().insert(session);
                return;
            }
            _ => {
                self.serving.entry(computer).or_default().insert(session);
                Ok(vec![1].into())
            }
        };
        self.broker.handle_answer(session, outcome, self.now);
        self.drain();
    }

    fn acknowledge(&mut self) {
        if let Some((session, by)) = self.told.pop_front() {
            self.broker.handle_acknowledged(session, by, self.now);
            self.drain();
        }
    }

    fn any_session(&mut self) -> Option<SessionId> {
        let count = u64::try_from(self.fates.len()).unwrap();
        let skip = if count == 0 { return None } else { self.random.below(count) };
        self.fates.keys().nth(usize::try_from(skip).unwrap()).copied()
    }

    fn report_end(&mut self) {
        let (Some(session), request) = (self.any_session(), self.request()) else { return };
        let by_console = self.random.below(2) == 0;
        let by = match by_console {
            true => self.console_connection,
            false => self.agents.get(&computer_of(session)).copied(),
        };
        let Some(connection) = by else { return };
        if !by_console {
            self.serving.entry(computer_of(session)).or_default().remove(&session);
        }
        let end = session_event::Event::End(wire::SessionEnd::default());
        let events = [wire::SessionEvent { at_ms: 0, event: Some(end) }];
        self.broker.handle_report(request, connection, session, &events, self.now);
        self.drain();
    }

    fn renew(&mut self) {
        let (Some(session), request) = (self.any_session(), self.request()) else { return };
        let Some(connection) = self.agents.get(&computer_of(session)).copied() else { return };
        let allowed = self.random.below(6) > 0;
        self.broker.handle_renew(request, connection, session, allowed, self.now);
        self.drain();
    }

    fn disconnect(&mut self) {
        let computer = u8::try_from(self.random.below(u64::from(COMPUTERS))).unwrap();
        let gone = match self.random.below(3) {
            0 => self.console_connection.take(),
            1 => self.relay_connection.take(),
            _ => {
                // A restarted agent serves nothing.
                if self.random.below(2) == 0 {
                    self.serving.remove(&computer);
                }
                self.agents.remove(&computer)
            }
        };
        if let Some(gone) = gone {
            self.told.retain(|(_, to)| *to != gone);
            for (session, to) in std::mem::take(&mut self.offers) {
                if to != gone {
                    self.offers.push_back((session, to));
                } else if self.random.below(2) == 0 {
                    // It arrived, its answer did not.
                    self.serving.entry(computer_of(session)).or_default().insert(session);
                }
            }
            self.broker.handle_disconnected(gone, self.now);
            self.drain();
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now.mono += time;
        self.now.unix_ms += u64::try_from(time.as_millis()).unwrap();
        self.broker.handle_timeout(self.now);
        self.drain();
    }

    fn step(&mut self) {
        match self.random.below(16) {
            0..=2 => self.open(),
            3..=5 => self.store(),
            6..=7 => self.answer(),
            8 => self.acknowledge(),
            9 => self.report_end(),
            10 => self.renew(),
            11 => self.disconnect(),
            12 => self.connect_all(),
            13 => {
                let computer = u8::try_from(self.random.below(u64::from(COMPUTERS))).unwrap();
                self.check_in(computer);
            }
            14 => {
                let seconds = self.random.below(40);
                self.pass(Duration::from_secs(seconds));
            }
            _ => self.failing_disk = self.random.below(4) == 0,
        }
    }

    /// Everybody is there and answers; time passes until nothing can be left.
    fn settle(&mut self) {
        self.failing_disk = false;
        self.connect_all();
        let end = self.now.mono + LEASE + OFFLINE_GRACE + TICKET_LIFE + LEASE;
        while self.now.mono < end {
            while !self.audits.is_empty() || !self.told.is_empty() {
                self.store();
                self.acknowledge();
            }
            self.pass(Duration::from_secs(3));
        }
        while !self.audits.is_empty() {
            self.store();
        }
    }
}

#[test]
fn nothing_is_granted_unrecorded_and_every_end_is_recorded_once_and_reaches_everybody() {
    let (mut granted, mut ended) = (0, 0);
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
        for (session, fate) in &world.fates {
            assert_eq!(fate.replies, 1, "seed {seed}: {session} {fate:?}");
            if fate.granted_reply {
                assert_eq!((fate.ended, fate.refused), (1, 0), "seed {seed}: {session} {fate:?}");
            } else {
                assert_eq!(fate.ended, 0, "seed {seed}: {session} {fate:?}");
            }
            granted += usize::from(fate.granted_reply);
            ended += fate.ended;
        }
        for (computer, serving) in &world.serving {
            assert!(serving.is_empty(), "seed {seed}: {computer} still serves {serving:?}");
        }
        assert_eq!(world.broker.sessions.len(), 0, "seed {seed}: sessions are never forgotten");
        assert_eq!(world.broker.poll_timeout(), None, "seed {seed}: timers are left");
    }
    assert!(granted > 1000 && ended == granted, "the world is too quiet: {granted} {ended}");
}

/// A right that is withdrawn while the decision about it is under way is not granted after all:
/// there was no session yet that the withdrawal could have ended.
#[test]
fn a_withdrawal_hits_what_was_decided_before_it() {
    let mut world = World::new(1);
    for (affected, hit) in [
        (Affected::Account("a".into()), true),
        (Affected::Account("b".into()), false),
        (Affected::Login([1; 32]), true),
        (Affected::Login([2; 32]), false),
        (Affected::Client("c".into()), true),
        (Affected::Client("d".into()), false),
    ] {
        for late in [false, true] {
            world.now.unix_ms += 1000;
            let mut attempt = world.attempt().unwrap();
            attempt.verdict = Ok("rule".into());
            world.broker.handle_revoked(&affected, "withdrawn", world.now);
            if late {
                attempt.asked_ms += 1;
            }
            let session = attempt.session;
            world.broker.handle_open(attempt, world.now);
            let refused = hit && !late;
            assert_eq!(world.broker.sessions.contains_key(&session), !refused, "{affected:?}");
            while world.broker.poll_output().is_some() {}
        }
    }
}

/// R16: keys of consoles are anybody's to make, so that a bound for each console bounds nobody.
#[test]
fn a_user_with_any_number_of_consoles_leaves_others_their_sessions() {
    let mut world = World::new(1);
    let mut next = 0_u32;
    let mut open = |account: &str, console: u32| {
        world.sessions = 0;
        next += 1;
        let mut attempt = world.attempt().unwrap();
        let (mut id, mut device) = ([7; 16], [0; 32]);
        id[..4].copy_from_slice(&next.to_be_bytes());
        device[..4].copy_from_slice(&console.to_be_bytes());
        attempt.session = SessionId(id);
        attempt.who.device = PublicKey(device);
        account.clone_into(&mut attempt.who.account_id);
        attempt.verdict = Ok("rule".into());
        world.broker.handle_open(attempt, world.now);
        while world.broker.poll_output().is_some() {}
        assert_eq!(world.broker.tally.live, world.broker.sessions.len());
        world.broker.sessions.contains_key(&SessionId(id))
    };
    let of_one = (0..MAX_SESSIONS_PER_CONSOLE + 9).filter(|_| open("a", 0)).count();
    assert_eq!(of_one, MAX_SESSIONS_PER_CONSOLE);
    let consoles = u32::try_from(MAX_SESSIONS_PER_USER / 100 + 9).unwrap();
    let of_all =
        (1..=consoles).flat_map(|console| [console; 100]).filter(|c| open("a", *c)).count();
    assert_eq!(of_one + of_all, MAX_SESSIONS_PER_USER);
    assert!(open("b", u32::MAX), "nothing is left for others");
}

/// R16: a partner has as many users as it likes, and an agent acknowledges an end or does not.
#[test]
fn a_partner_with_any_number_of_users_and_ends_leaves_others_their_sessions() {
    let mut world = World::new(1);
    let mut next = 0_u32;
    let mut open = |world: &mut World, partner: &str| {
        world.sessions = 0;
        next += 1;
        let mut attempt = world.attempt().unwrap();
        let (mut id, mut device) = ([7; 16], [0; 32]);
        id[..4].copy_from_slice(&next.to_be_bytes());
        device[..4].copy_from_slice(&(next / 100).to_be_bytes());
        attempt.session = SessionId(id);
        attempt.who.device = PublicKey(device);
        attempt.who.account_id = format!("{partner}{}", next / 10_000);
        partner.clone_into(&mut attempt.who.partner_id);
        attempt.verdict = Ok("rule".into());
        world.broker.handle_open(attempt, world.now);
        while world.broker.poll_output().is_some() {}
        world.broker.sessions.get(&SessionId(id)).is_some_and(|session| !session.is_ended())
    };
    let over = 20_009;
    let of_p = (0..MAX_SESSIONS_PER_PARTNER + over).filter(|_| open(&mut world, "p")).count();
    assert_eq!(of_p, MAX_SESSIONS_PER_PARTNER);
    assert!(open(&mut world, "q"), "nothing is left for others");
    // All of them end, and nobody acknowledges it: as many again may be opened, again and again.
    for _ in 0..2 {
        let live: Vec<SessionId> = world
            .broker
            .sessions
            .values()
            .filter(|session| !session.is_ended() && session.who.partner_id == "p")
            .map(|session| session.id)
            .collect();
        for id in live {
            world.broker.end_or_refuse(id, "ended", world.now);
            while world.broker.poll_output().is_some() {}
            while world.broker.poll_transmit().is_some() {}
        }
        let again = (0..MAX_SESSIONS_PER_PARTNER).filter(|_| open(&mut world, "p")).count();
        assert_eq!(again, MAX_SESSIONS_PER_PARTNER, "the ended keep live ones out");
        let tally = &world.broker.tally;
        assert_eq!(tally.live + tally.ended, world.broker.sessions.len());
        assert!(tally.ended <= MAX_SESSIONS_PER_PARTNER && tally.live < MAX_SESSIONS);
        assert!(open(&mut world, "q"));
    }
}

#[test]
fn a_right_that_ends_is_judged_once_and_ends_the_session_if_nobody_judges() {
    for judged in [None, Some(Ok(u64::MAX)), Some(Err("outside_hours"))] {
        let mut world = World::new(1);
        let mut attempt = world.attempt().unwrap();
        let until_ms = world.now.unix_ms + 60_000;
        attempt.verdict = Ok(Allowed { until_ms, ..Allowed::from("rule") });
        let session = attempt.session;
        world.opens.insert(attempt.request, session);
        world.fates.entry(session).or_default();
        world.broker.handle_open(attempt, world.now);
        world.drain();
        world.store();
        world.broker.handle_answer(session, Ok(vec![0; 10].into()), world.now);
        world.drain();
        assert!(world.broker.open_session(session).is_some());
        world.pass(Duration::from_secs(59));
        assert!(!world.broker.has_reviews());
        world.pass(Duration::from_secs(1));
        let named = world.broker.take_reviews(10, world.now);
        assert_eq!((named.len(), named[0].age_ms), (1, 60_000));
        if let Some(outcome) = judged {
            world.broker.handle_reviewed(session, named[0].generation, outcome, world.now);
        }
        world.pass(crate::core::review::REVIEW_DEADLINE);
        let expected = judged == Some(Ok(u64::MAX));
        assert_eq!(world.broker.open_session(session).is_some(), expected, "{judged:?}");
    }
}

#[test]
fn what_older_rules_decided_is_judged_by_the_new_ones() {
    let mut world = World::new(1);
    world.broker.handle_rules_changed(7);
    for (generation, named) in [(7, 0), (6, 1), (7, 1)] {
        let mut attempt = world.attempt().unwrap();
        attempt.verdict = Ok("rule".into());
        attempt.generation = generation;
        world.broker.handle_open(attempt, world.now);
        assert_eq!(world.broker.take_reviews(10, world.now).len(), named);
    }
    // Judged by rules that have changed since: once more.
    let live = world.broker.take_reviews(10, world.now).remove(0);
    world.broker.handle_rules_changed(8);
    assert_eq!(world.broker.take_reviews(10, world.now).len(), 3);
    world.broker.handle_reviewed(live.session, live.generation, Ok(u64::MAX), world.now);
    assert_eq!(world.broker.take_reviews(10, world.now).len(), 3);
    world.broker.handle_reviewed(live.session, 8, Ok(u64::MAX), world.now);
    assert_eq!(world.broker.take_reviews(10, world.now).len(), 2);
}

#[test]
fn the_newest_connection_of_an_agent_wins() {
    let mut broker = Broker::default();
    let now = Now { mono: Duration::ZERO, unix_ms: 0 };
    let device = Device::Agent { computer: ComputerId([1; 16]), noise: [0; 32] };
    broker.handle_connected(ConnectionId(1), device.clone(), now);
    broker.handle_connected(ConnectionId(2), device, now);
    assert!(matches!(broker.poll_transmit(), Some(Transmit::Close { to }) if to.0 == 1));
    // The old connection's end is not the agent's.
    broker.handle_disconnected(ConnectionId(1), now);
    assert!(broker.is_online(ComputerId([1; 16])));
}

#[test]
fn a_restarted_mediator_adopts_sessions_and_ends_those_that_nobody_serves() {
    let mut world = World::new(1);
    let adopt = |world: &mut World, n: u8, computer: u8| {
        let mut id = [n; 16];
        id[1] = computer;
        let session = SessionId(id);
        world.fates.insert(session, Fate { recorded_granted: true, ..Fate::default() });
        let row = SessionRow {
            id: session,
            who: Who {
                account_id: "a".into(),
                account: "a".into(),
                partner_id: "p".into(),
                partner: "p".into(),
                login: [1; 32],
                device: world.console,
                source: String::new(),
                mfa: String::new(),
            },
            place: Place {
                computer_id: ComputerId([computer; 16]),
                computer: "pc".into(),
                client_id: "c".into(),
                client: "p/c".into(),
                agent: world.agent,
            },
            redirector: "ssh".into(),
            target: String::new(),
            any_target: false,
            basis: Basis::default(),
            told: Told {
                reason: "a reason".into(),
                ticket: "T-1".into(),
                viewer: "mstsc".into(),
                rule: "technician".into(),
                by_console: vec!["relayed".into()],
                by_agent: Vec::new(),
            },
            started_ms: 0,
            lease_ms: world.now.unix_ms + 60_000,
        };
        world.broker.handle_adopted(row, world.now);
        session
    };
    let (served, lost, gone) =
        (adopt(&mut world, 10, 0), adopt(&mut world, 11, 1), adopt(&mut world, 12, 2));
    let connection = world.agents.remove(&2).unwrap();
    world.broker.handle_disconnected(connection, world.now);
    world.serving.entry(0).or_default().insert(served);
    world.check_in(0);
    world.check_in(1);
    // Its record says what one without a restart between says.
    let mut events = world.audits.iter().flat_map(|(_, events)| events);
    let end = events.find(|event| event.name == "session.ended").unwrap();
    let said = [&end.reason, &end.ticket, &end.viewer, &end.rule].map(|text| text.as_deref());
    assert_eq!(said, [Some("a reason"), Some("T-1"), Some("mstsc"), Some("technician")]);
    assert_eq!(end.carriers, ["relayed"]);
    while !world.audits.is_empty() {
        world.store();
    }
    assert_eq!((world.fates[&served].ended, world.fates[&lost].ended), (0, 1));
    // An agent that is cut off may serve for the grace; then the end is recorded all the same.
    world.pass(Duration::from_secs(60) + OFFLINE_GRACE);
    assert_eq!(world.fates[&gone].ended, 0);
    world.pass(Duration::from_secs(60));
    while !world.audits.is_empty() {
        world.store();
    }
    assert_eq!(world.fates[&gone].ended, 1);
}

/// A stranger may come and go as often as the network lets it: that must not touch what others
/// have.
#[test]
fn a_console_without_sessions_comes_and_goes_without_a_trace() {
    let mut world = World::new(1);
    for _ in 0..STEPS {
        world.step();
    }
    world.drain();
    let ended = |world: &World| -> Vec<_> {
        world.broker.sessions.values().map(|session| (session.id, session.is_ended())).collect()
    };
    let before = ended(&world);
    let (stranger, identity) = (world.connection(), key(77));
    world.broker.handle_connected(
        stranger,
        Device::Console { identity, noise: [7; 32] },
        world.now,
    );
    world.broker.handle_disconnected(stranger, world.now);
    assert_eq!(ended(&world), before);
    assert!(world.broker.poll_output().is_none() && world.broker.poll_transmit().is_none());
    assert!(!world.broker.devices.contains_key(&stranger));
}
