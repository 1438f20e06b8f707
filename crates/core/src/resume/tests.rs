//! The property of the design's section 6: any interleaving of carrier births, deaths,
//! reorderings and moves preserves each channel's byte stream exactly.

#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use adit_protocol::{
    code::ChannelCode,
    ids::{CarrierNumber, ChannelId},
    limits::{INITIAL_WINDOW, MAX_CHANNEL_WINDOW, MAX_SESSION_WINDOW},
    record::{MAX_VARINT, Record},
    target::{Target, Transport},
    ticket::Role,
};
use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Deliverable, Event, Resume, Shape, Transmit};

const SEEDS: u64 = 1000;
const STEPS: usize = 400;

/// What one end has of one channel.
#[derive(Default)]
struct Local {
    to_write: u64,
    written: u64,
    fin_sent: bool,
    read: u64,
    fin_read: bool,
    closed: Option<Option<ChannelCode>>,
}

struct End {
    role: Role,
    resume: Resume,
    locals: BTreeMap<ChannelId, Local>,
    events: u64,
}

/// One direction of a carrier: per stream (0 is the shared one) what is under way, in order.
#[derive(Default)]
struct Pipe {
    streams: BTreeMap<u64, VecDeque<(Instant, Transmit)>>,
}

struct Link {
    latency: Duration,
    pipes: [Pipe; 2],
    up: [bool; 2],
    dying: bool,
}

struct World {
    rng: StdRng,
    now: Instant,
    ends: [End; 2],
    links: BTreeMap<CarrierNumber, Link>,
    next_carrier: u64,
    connecting: Vec<(Instant, ChannelId)>,
}

fn byte_at(role: Role, channel: ChannelId, offset: u64) -> u8 {
    let salt = role as u64 * 97 + channel.0 * 31;
    u8::try_from((offset.wrapping_mul(2_654_435_761) >> 7).wrapping_add(salt) % 251).unwrap()
}

fn index(role: Role) -> usize {
    role as usize - 1
}

impl World {
    fn new(seed: u64) -> Self {
        let end =
            |role| End { role, resume: Resume::new(role), locals: BTreeMap::new(), events: 0 };
        Self {
            rng: StdRng::seed_from_u64(seed),
            now: Instant::now(),
            ends: [end(Role::Console), end(Role::Agent)],
            links: BTreeMap::new(),
            next_carrier: 1,
            connecting: vec![],
        }
    }

    fn birth(&mut self) -> CarrierNumber {
        let number = CarrierNumber(self.next_carrier);
        self.next_carrier += 1;
        let shape = if self.rng.random_bool(0.5) { Shape::Shared } else { Shape::Streams };
        let latency = Duration::from_micros(self.rng.random_range(10..50_000));
        self.links.insert(
            number,
            Link { latency, pipes: Default::default(), up: [true; 2], dying: false },
        );
        for end in &mut self.ends {
            assert!(end.resume.carrier_up(number, shape));
        }
        number
    }

    /// One end notices a death now, the other a little later; what is under way may still arrive
    /// at the other in part.
    fn kill(&mut self, number: CarrierNumber) {
        let first = usize::from(self.rng.random_bool(0.5));
        let link = self.links.get_mut(&number).unwrap();
        link.up[first] = false;
        link.dying = true;
        self.ends[first].resume.carrier_down(number);
        for pipe in &mut link.pipes {
            for stream in pipe.streams.values_mut() {
                let keep = self.rng.random_range(0..=stream.len());
                stream.truncate(keep);
            }
        }
    }

    fn bury(&mut self, number: CarrierNumber) {
        let link = self.links.remove(&number).unwrap();
        for (i, end) in self.ends.iter_mut().enumerate() {
            if link.up[i] {
                end.resume.carrier_down(number);
            }
        }
    }

    fn prefer_random(&mut self) {
        let live: Vec<_> =
            self.links.iter().filter(|(_, l)| !l.dying && l.up[0]).map(|(n, _)| *n).collect();
        if live.is_empty() {
            return;
        }
        let pick = |rng: &mut StdRng| live[rng.random_range(0..live.len())];
        let (a, b) = (pick(&mut self.rng), pick(&mut self.rng));
        self.ends[0].resume.prefer(a, b, self.now);
    }

    fn drain(&mut self, side: usize) {
        while let Some(event) = self.ends[side].resume.poll_event() {
            self.ends[side].events += 1;
            match event {
                Event::Transmit(n) => {
                    let budget = self.rng.random_range(100..5000);
                    while let Some(t) = self.ends[side].resume.poll_transmit(n, budget, self.now) {
                        self.send(side, n, 0, t);
                    }
                }
                Event::TransmitStream(n, id) => {
                    let budget = self.rng.random_range(1..5000);
                    while let Some(t) =
                        self.ends[side].resume.poll_transmit_stream(n, id, budget, self.now)
                    {
                        self.send(side, n, id.0, t);
                    }
                }
                Event::Connect(id, _) => {
                    let to_write = self.rng.random_range(0..60_000);
                    self.ends[side].locals.insert(id, Local { to_write, ..Local::default() });
                    let delay = Duration::from_millis(self.rng.random_range(0..50));
                    self.connecting.push((self.now + delay, id));
                }
                Event::Closed(id, end) => {
                    let local = self.ends[side].locals.get_mut(&id).unwrap();
                    assert_eq!(local.closed, None, "closed twice");
                    local.closed = Some(end.code);
                }
                Event::PeerClosed(_)
                | Event::JoinRelay { .. }
                | Event::LeaveRelay { .. }
                | Event::MoveAsked(_) => panic!("nobody asked"),
                Event::Deliver(_) | Event::Capacity(_) | Event::Opened(_) => {}
                Event::Datagram(..) | Event::Pong(..) => {}
            }
        }
    }

    fn send(&mut self, side: usize, number: CarrierNumber, stream: u64, t: Transmit) {
        let link = self.links.get_mut(&number).expect("no transmit on a dead carrier");
        assert!(link.up[side], "no transmit on a dead carrier");
        assert_eq!(t.payload.len(), t.record.payload_len());
        if link.dying {
            return;
        }
        let at = self.now + link.latency;
        link.pipes[side].streams.entry(stream).or_default().push_back((at, t));
    }

    fn arrive(&mut self) {
        for number in self.links.keys().copied().collect::<Vec<_>>() {
            for from in 0..2 {
                let to = 1 - from;
                loop {
                    let link = self.links.get_mut(&number).unwrap();
                    let due = link.pipes[from]
                        .streams
                        .values_mut()
                        .find(|s| s.front().is_some_and(|(at, _)| *at <= self.now));
                    let Some((_, t)) = due.and_then(VecDeque::pop_front) else { break };
                    if !link.up[to] {
                        continue;
                    }
                    let resume = &mut self.ends[to].resume;
                    let result = match &t.record {
                        Record::Data { channel, offset, .. } => {
                            resume.handle_data(number, *channel, *offset, t.payload)
                        }
                        record => resume.handle_record(number, record, self.now),
                    };
                    result
                        .unwrap_or_else(|v| panic!("honest peer violated: {v} by {:?}", t.record));
                    self.drain(to);
                }
            }
        }
    }

    fn local_io(&mut self, side: usize, chance: f64) {
        let ids: Vec<_> = self.ends[side].locals.keys().copied().collect();
        for id in ids {
            if !self.rng.random_bool(chance) {
                continue;
            }
            let max = self.rng.random_range(1..8000u64);
            let End { role, resume, locals, .. } = &mut self.ends[side];
            let local = locals.get_mut(&id).unwrap();
            if local.closed.is_some() {
                continue;
            }
            let n = max.min(local.to_write - local.written).min(resume.local_capacity(id) as u64);
            if n > 0 {
                let data: Vec<u8> =
                    (local.written..local.written + n).map(|o| byte_at(*role, id, o)).collect();
                local.written += n;
                resume.handle_local_data(id, data.into(), self.now);
            } else if local.written == local.to_write && !local.fin_sent {
                local.fin_sent = true;
                resume.handle_local_fin(id, self.now);
            }
            let other = role.other();
            for _ in 0..32 {
                match resume.take_deliverable(id) {
                    Some(Deliverable::Bytes(b)) => {
                        for byte in &b {
                            assert_eq!(*byte, byte_at(other, id, local.read), "wrong byte");
                            local.read += 1;
                        }
                        assert!(!local.fin_read);
                        resume.handle_delivered(id, b.len(), self.now);
                    }
                    Some(Deliverable::Fin) => {
                        local.fin_read = true;
                        resume.handle_fin_delivered(id, self.now);
                    }
                    None => break,
                }
            }
            self.drain(side);
        }
    }

    fn tick(&mut self, chance: f64) {
        self.now += Duration::from_micros(self.rng.random_range(10..30_000));
        self.arrive();
        let now = self.now;
        let (due, rest) = std::mem::take(&mut self.connecting)
            .into_iter()
            .partition::<Vec<_>, _>(|(at, _)| *at <= now);
        self.connecting = rest;
        for (_, id) in due {
            self.ends[1].resume.connected(id, now);
        }
        for side in 0..2 {
            self.local_io(side, chance);
            if self.ends[side].resume.poll_timeout().is_some_and(|t| t <= now) {
                self.ends[side].resume.handle_timeout(now);
            }
            self.drain(side);
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..40) {
            0 if self.links.len() < 5 => {
                self.birth();
                self.prefer_random();
            }
            1 => self.prefer_random(),
            2 | 3 => {
                let live: Vec<_> = self.links.keys().copied().collect();
                if !live.is_empty() {
                    let number = live[self.rng.random_range(0..live.len())];
                    if self.links[&number].dying {
                        self.bury(number)
                    } else {
                        self.kill(number)
                    }
                    self.prefer_random();
                }
            }
            4 if self.ends[0].locals.len() < 4 => {
                let target = Target::parse("127.0.0.1:22", Transport::Tcp).unwrap();
                let id = self.ends[0].resume.open(target, self.now).unwrap();
                let to_write = self.rng.random_range(0..60_000);
                self.ends[0].locals.insert(id, Local { to_write, ..Local::default() });
            }
            _ => {}
        }
        self.tick(0.3);
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            self.step();
        }
        // The network calms down: everything must come to its regular end.
        for number in self.links.keys().copied().collect::<Vec<_>>() {
            self.bury(number);
        }
        let number = self.birth();
        self.ends[0].resume.prefer(number, number, self.now);
        for _ in 0..4000 {
            let live = |e: &End| e.resume.live_channels() > 0;
            if !self.ends.iter().any(live) {
                break;
            }
            self.tick(1.0);
        }
        for end in &self.ends {
            assert_eq!(
                end.resume.live_channels(),
                0,
                "{:?} has channels left: {:#?}",
                end.role,
                end.resume
            );
            let other = &self.ends[1 - index(end.role)];
            for (id, local) in &end.locals {
                assert_eq!(local.closed, Some(None), "{id} at {:?}", end.role);
                assert_eq!(local.read, other.locals[id].to_write);
                assert!(local.fin_read);
            }
            assert_eq!(end.resume.windows, 0);
        }
    }
}

#[test]
fn streams_survive_any_interleaving_of_carriers() {
    let only = std::env::var("ADIT_SEED").ok().and_then(|s| s.parse::<u64>().ok());
    for seed in only.map_or(0..SEEDS, |s| s..s + 1) {
        let run = std::panic::catch_unwind(|| World::new(seed).run());
        if let Err(cause) = run {
            eprintln!("failing seed: ADIT_SEED={seed}");
            std::panic::resume_unwind(cause);
        }
    }
}

fn pair(shape: Shape) -> (World, CarrierNumber, ChannelId) {
    let mut w = World::new(1);
    let number = CarrierNumber(1);
    w.next_carrier = 2;
    w.links.insert(
        number,
        Link { latency: Duration::ZERO, pipes: Default::default(), up: [true; 2], dying: false },
    );
    for end in &mut w.ends {
        end.resume.carrier_up(number, shape);
    }
    w.ends[0].resume.prefer(number, number, w.now);
    let target = Target::parse("127.0.0.1:22", Transport::Tcp).unwrap();
    let id = w.ends[0].resume.open(target, w.now).unwrap();
    w.ends[0].locals.insert(id, Local::default());
    (w, number, id)
}

#[test]
fn data_follow_open_in_the_same_flight() {
    let (mut w, n, id) = pair(Shape::Shared);
    w.ends[0].resume.handle_local_data(id, Bytes::from_static(b"hello"), w.now);
    let first = w.ends[0].resume.poll_transmit(n, 100, w.now).unwrap();
    assert!(matches!(first.record, Record::Open { .. }));
    let second = w.ends[0].resume.poll_transmit(n, 100, w.now).unwrap();
    assert_eq!(second.payload, Bytes::from_static(b"hello"));
}

#[test]
fn whoever_watches_the_carrier_is_woken_when_data_begin_to_wait() {
    for shape in [Shape::Shared, Shape::Streams] {
        let (mut w, n, id) = pair(shape);
        let send = |w: &mut World, bytes: &'static [u8]| {
            let console = &mut w.ends[0].resume;
            console.take_timer_moved();
            console.handle_local_data(id, Bytes::from_static(bytes), w.now);
            while console.poll_transmit(n, 100, w.now).is_some() {}
            while console.poll_transmit_stream(n, id, 100, w.now).is_some() {}
            console.take_timer_moved()
        };
        assert!(send(&mut w, b"hello"));
        assert!(!send(&mut w, b"more"), "it is watched already");
        let ack = Record::Ack { channel: id, delivered: 9, credit: 1000 };
        w.ends[0].resume.handle_record(n, &ack, w.now).unwrap();
        assert!(send(&mut w, b"once more"));
    }
}

#[test]
fn reset_tells_the_other_end_even_if_its_carrier_dies() {
    for shape in [Shape::Shared, Shape::Streams] {
        let (mut w, n, id) = pair(shape);
        w.drain(0);
        w.arrive();
        assert_eq!(w.ends[1].resume.live_channels(), 1);
        w.ends[0].resume.reset(id, ChannelCode::LocalReset);
        for end in &mut w.ends {
            end.resume.carrier_down(n); // the reset was never sent
        }
        w.links.clear();
        let next = w.birth();
        w.ends[0].resume.prefer(next, next, w.now);
        w.ends[1].locals.insert(id, Local::default());
        for _ in 0..20 {
            w.tick(0.0);
        }
        assert_eq!(w.ends[1].locals[&id].closed, Some(Some(ChannelCode::LocalReset)));
    }
}

#[test]
fn a_refusal_reaches_the_console_and_the_id_stays_dead() {
    let (mut w, n, id) = pair(Shape::Shared);
    let now = w.now;
    let open = w.ends[0].resume.poll_transmit(n, 100, now).unwrap().record;
    let agent = &mut w.ends[1].resume;
    agent.handle_record(n, &open, now).unwrap();
    agent.refuse(id, ChannelCode::Policy);
    let word = agent.poll_transmit(n, 100, now).unwrap().record;
    assert_eq!(word, Record::Refused { channel: id, code: ChannelCode::Policy });
    while agent.poll_event().is_some() {}
    agent.handle_record(n, &open, now).unwrap();
    assert!(
        !std::iter::from_fn(|| agent.poll_event()).any(|e| matches!(e, Event::Connect(..))),
        "a repeated Open never dials twice"
    );
    assert_eq!(agent.poll_transmit(n, 100, now).unwrap().record, word);
}

#[test]
fn lies_kill_the_carrier() {
    let (mut w, n, id) = pair(Shape::Shared);
    let now = w.now;
    w.drain(0);
    w.arrive();
    let agent = &mut w.ends[1].resume;
    let data = |len| Bytes::from(vec![0u8; len]);
    assert!(agent.handle_data(n, id, 1, data(1)).is_err(), "gap");
    assert!(agent.handle_data(n, id, 0, data(1 << 20)).is_err(), "beyond credit");
    assert!(agent.handle_data(n, id, u64::MAX, data(2)).is_err(), "overflow");
    let ack = |delivered| Record::Ack { channel: id, delivered, credit: 0 };
    assert!(agent.handle_record(n, &ack(1), now).is_err(), "ack of nothing");
    agent.handle_data(n, id, 0, data(10)).unwrap();
    let fin = |final_offset| Record::Fin { channel: id, final_offset };
    assert!(agent.handle_record(n, &fin(9), now).is_err());
    agent.handle_record(n, &fin(10), now).unwrap();
    assert!(agent.handle_record(n, &fin(11), now).is_err(), "conflicting fin");
    assert!(agent.handle_data(n, id, 10, data(1)).is_err(), "beyond fin");
    let attach = Record::Attach { channel: id, epoch: 9, received: 5, credit: 0 };
    assert!(agent.handle_record(n, &attach, now).is_err(), "received what was not sent");
}

/// Acknowledgements queued on a slow carrier arrive after newer ones over the carrier to which
/// the channel moved. Both carriers are honest and stay.
#[test]
fn acks_of_two_carriers_may_overtake_one_another() {
    for seed in 0..300 {
        let (mut agent, slow, id, now) = agent();
        let mut rng = StdRng::seed_from_u64(seed);
        let quick = CarrierNumber(2);
        assert!(agent.carrier_up(quick, Shape::Streams));
        let total = INITIAL_WINDOW;
        agent.handle_local_data(id, Bytes::from(vec![0; total as usize]), now);
        agent.handle_local_fin(id, now);
        while agent.poll_transmit(slow, 1 << 20, now).is_some() {}
        // What the console said, in its order, each on the carrier in use then.
        let mut said: Vec<u64> = (0..20).map(|_| rng.random_range(0..=total)).collect();
        said.sort_unstable();
        said.push(total + 1); // the Fin
        let mut queues = [VecDeque::new(), VecDeque::new()];
        for delivered in said {
            queues[usize::from(rng.random_bool(0.5))].push_back(delivered);
        }
        let mut highest = 0;
        while queues.iter().any(|q| !q.is_empty()) {
            let which = usize::from(rng.random_bool(0.5));
            let Some(delivered) = queues[which].pop_front() else { continue };
            highest = highest.max(delivered);
            let ack = Record::Ack { channel: id, delivered, credit: delivered };
            let carrier = [slow, quick][which];
            agent.handle_record(carrier, &ack, now).unwrap_or_else(|v| panic!("{v}, seed {seed}"));
            assert_eq!(agent.channels[&id].send.acked(), highest.min(total), "seed {seed}");
            if let Some(delivered) = delivered.checked_sub(1) {
                let back = Record::Ack { channel: id, delivered, credit: 0 };
                assert!(agent.handle_record(carrier, &back, now).is_err(), "back on one carrier");
            }
            let beyond = Record::Ack { channel: id, delivered: total + 2, credit: 0 };
            assert!(agent.handle_record(carrier, &beyond, now).is_err(), "beyond what was sent");
        }
    }
}

#[test]
fn a_keystroke_takes_its_turn_beside_bulk() {
    let (mut w, n, bulk) = pair(Shape::Shared);
    let now = w.now;
    let key = w.ends[0].resume.open(Target::parse("a:1", Transport::Tcp).unwrap(), now).unwrap();
    let console = &mut w.ends[0].resume;
    console.handle_local_data(bulk, Bytes::from(vec![0; 200_000]), now);
    console.handle_local_data(key, Bytes::from_static(b"k"), now);
    let mut before = 0;
    while let Some(t) = console.poll_transmit(n, 65_000, now) {
        if matches!(t.record, Record::Data { channel, .. } if channel == key) {
            assert!(before <= super::FAIR_QUANTUM, "{before}");
            return;
        }
        before += t.payload.len();
    }
    panic!("keystroke not sent");
}

/// An agent with one connected channel on one carrier.
fn agent() -> (Resume, CarrierNumber, ChannelId, Instant) {
    let (now, carrier, id) = (Instant::now(), CarrierNumber(1), ChannelId(1));
    let mut agent = Resume::new(Role::Agent);
    assert!(agent.carrier_up(carrier, Shape::Shared));
    open(&mut agent, carrier, id, now);
    agent.connected(id, now);
    (agent, carrier, id, now)
}

fn open(agent: &mut Resume, carrier: CarrierNumber, channel: ChannelId, now: Instant) {
    let target = Target::parse("127.0.0.1:9", Transport::Tcp).unwrap();
    let open = Record::Open { channel, target, credit: INITIAL_WINDOW };
    agent.handle_record(carrier, &open, now).unwrap();
}

/// Reads a local socket that always has more; gives the bytes taken from it.
fn fill(agent: &mut Resume, id: ChannelId, now: Instant) -> u64 {
    let mut taken = 0;
    while let n @ 1.. = agent.local_capacity(id).min(1 << 20) {
        agent.handle_local_data(id, Bytes::from(vec![0; n]), now);
        taken += n as u64;
        assert!(taken < 1 << 30, "no end to what is kept for a peer that does not read");
    }
    taken
}

/// Credit is the peer's word: it must not decide how much of our memory waits for it.
#[test]
fn boundless_credit_does_not_make_memory_grow() {
    let (mut agent, carrier, id, now) = agent();
    let credit = MAX_VARINT;
    agent.handle_record(carrier, &Record::Opened { channel: id, credit }, now).unwrap_err();
    agent.handle_record(carrier, &Record::Ack { channel: id, delivered: 0, credit }, now).unwrap();
    assert!(fill(&mut agent, id, now) <= MAX_CHANNEL_WINDOW + 1024 * 1024);
    for n in 2..200 {
        let id = ChannelId(n);
        open(&mut agent, carrier, id, now);
        agent.connected(id, now);
        let ack = Record::Ack { channel: id, delivered: 0, credit };
        agent.handle_record(carrier, &ack, now).unwrap();
        fill(&mut agent, id, now);
    }
    let most = MAX_SESSION_WINDOW + 200 * super::LEAST_HELD;
    assert!(agent.held <= most, "{} held", agent.held);
    // And a channel goes on once its peer has read, also beside others that are stuck.
    let last = ChannelId(199);
    assert_eq!(agent.local_capacity(last), 0);
    while agent.poll_transmit(carrier, 1 << 20, now).is_some() {}
    let held = agent.channels[&last].send.held();
    let ack = Record::Ack { channel: last, delivered: held, credit };
    agent.handle_record(carrier, &ack, now).unwrap();
    assert!(agent.local_capacity(last) > 0);
    agent.close("over");
    assert_eq!(agent.held, 0);
}

/// More channels than memory, each stuck with all that its first window admits.
#[test]
fn stuck_channels_are_given_up_before_they_take_more_than_a_session_may_keep() {
    let (mut agent, carrier, first, now) = agent();
    agent.handle_data(carrier, first, 0, Bytes::from_static(b"key")).unwrap();
    let piece = Bytes::from(vec![0; 64 * 1024]);
    let (mut gone, mut most) = (0, 0);
    for n in 2..=900 {
        let id = ChannelId(n);
        open(&mut agent, carrier, id, now);
        for part in 0..4 {
            agent.handle_data(carrier, id, part * 64 * 1024, piece.clone()).unwrap();
            most = most.max(agent.memory.kept());
        }
        while let Some(event) = agent.poll_event() {
            if let Event::Closed(_, end) = event {
                assert_eq!(end.code, Some(ChannelCode::TooMany));
                gone += 1;
            }
        }
    }
    assert!(most <= MAX_SESSION_WINDOW, "{most} kept");
    assert!(gone > 600 && agent.live_channels() > 200, "{gone} given up");
    assert!(agent.is_live(first), "one that keeps little stays");
    while agent.take_deliverable(first).is_some() {}
    agent.handle_delivered(first, 3, now);
    agent.close("over");
    assert_eq!(agent.memory.kept(), 0);
}

/// A peer that repeats what is known beside a little that is new must not fill memory with it.
#[test]
fn what_is_kept_pins_little_more_than_itself() {
    let (mut agent, carrier, id, _) = agent();
    let buffer = Bytes::from(vec![7; 256 * 1024]);
    agent.handle_data(carrier, id, 0, buffer.slice(..31 * 1024)).unwrap();
    agent.handle_data(carrier, id, 0, buffer.slice(..60 * 1024)).unwrap();
    assert!(buffer.is_unique(), "pieces refer to the buffer");
    // Large ones are not copied, until much is kept.
    agent.handle_data(carrier, id, 60 * 1024, buffer.slice(..64 * 1024)).unwrap();
    assert!(!buffer.is_unique());
    while agent.take_deliverable(id).is_some() {}
    agent.memory.add(MAX_CHANNEL_WINDOW);
    agent.handle_data(carrier, id, 124 * 1024, buffer.slice(..64 * 1024)).unwrap();
    assert!(buffer.is_unique(), "a session that keeps much pins a buffer");
}

/// Packets of a direct carrier are handed on as they are while the local socket keeps pace: a copy
/// of each costs a tenth of all that a transfer costs. What piles up is copied, and in few pieces.
#[test]
fn packets_are_kept_as_they_came_until_they_pile_up() {
    const LEN: u64 = 1200;
    let (mut agent, _, id, _) = agent();
    let carrier = CarrierNumber(2);
    assert!(agent.carrier_up(carrier, Shape::Streams));
    let read = Bytes::from(vec![7; 64 * 1024]);
    let packet = read.slice(..1200);
    let mut offset = 0;
    for _ in 0..1000 {
        agent.handle_data(carrier, id, offset, packet.clone()).unwrap();
        offset += LEN;
        let Some(Deliverable::Bytes(piece)) = agent.take_deliverable(id) else { panic!() };
        assert_eq!(piece.as_ptr(), read.as_ptr(), "copied");
        agent.handle_delivered(id, piece.len(), Instant::now());
        let (_, credit) = agent.channels.get_mut(&id).unwrap().recv.ack();
        assert!(credit > offset + LEN);
    }
    agent.memory.add(MAX_SESSION_WINDOW / 100);
    for _ in 0..100 {
        agent.handle_data(carrier, id, offset, packet.clone()).unwrap();
        offset += LEN;
    }
    drop(packet);
    assert!(read.is_unique(), "queued bytes still refer to the read");
    let taken = std::iter::from_fn(|| agent.take_deliverable(id)).count();
    assert!(taken <= 5, "{taken} pieces");
}

/// Whatever the sizes of what is copied, its buffers are full, and a channel that waits for
/// nothing holds none.
#[test]
fn copies_take_no_more_room_than_what_they_hold() {
    let (mut agent, carrier, id, _) = agent();
    let mut offset = 0;
    for _ in 0..7 {
        for len in [1025, 32_767] {
            agent.handle_data(carrier, id, offset, Bytes::from(vec![7; len])).unwrap();
            offset += len as u64;
        }
    }
    let taken = std::iter::from_fn(|| agent.take_deliverable(id)).count();
    assert!(taken as u64 <= offset / (32 * 1024) + 1, "{taken} pieces");
    assert_eq!(agent.channels[&id].recv.held_for_copies(), 0);
}

/// The local side is told when there is something to take, not at each piece.
#[test]
fn only_the_first_piece_that_waits_is_an_event() {
    let (mut agent, carrier, id, _) = agent();
    while agent.poll_event().is_some() {}
    let told = |agent: &mut Resume, offset| {
        agent.handle_data(carrier, id, offset, Bytes::from_static(&[7; 2000])).unwrap();
        std::iter::from_fn(|| agent.poll_event()).filter(|e| *e == Event::Deliver(id)).count() > 0
    };
    assert!(told(&mut agent, 0));
    assert!(!told(&mut agent, 2000));
    assert!(agent.take_deliverable(id).is_some());
    assert!(agent.take_deliverable(id).is_none());
    assert!(told(&mut agent, 4000));
}

/// A byte must not keep the packet alive in which it came.
#[test]
fn single_bytes_do_not_pin_the_packets_they_came_in() {
    let (mut agent, carrier, id, _) = agent();
    let total = INITIAL_WINDOW;
    let packet = Bytes::from(vec![7; 64 * 1024]);
    for offset in 0..total {
        agent.handle_data(carrier, id, offset, packet.slice(..1)).unwrap();
    }
    assert!(packet.is_unique(), "queued bytes still refer to the packet");
    let mut pieces = 0;
    let mut bytes = 0;
    while let Some(Deliverable::Bytes(piece)) = agent.take_deliverable(id) {
        pieces += 1;
        bytes += piece.len() as u64;
    }
    assert_eq!(bytes, total);
    assert!(pieces <= total / 512, "{pieces} pieces");
}

/// What the peer says unasked must not become work for the session's driver.
#[test]
fn only_answers_to_our_pings_are_events() {
    let (mut agent, carrier, _, now) = agent();
    while agent.poll_event().is_some() {}
    for nonce in 0..1000 {
        agent.handle_record(carrier, &Record::Pong { nonce }, now).unwrap();
    }
    assert_eq!(agent.poll_event(), None);
    agent.ping(carrier, 7);
    while agent.poll_event().is_some() {}
    agent.handle_record(carrier, &Record::Pong { nonce: 7 }, now).unwrap();
    assert_eq!(agent.poll_event(), Some(Event::Pong(carrier, 7)));
    agent.handle_record(carrier, &Record::Pong { nonce: 7 }, now).unwrap();
    assert_eq!(agent.poll_event(), None);
}

#[test]
fn windows_grow_no_further_than_the_session_may() {
    for (limit, grows) in [(INITIAL_WINDOW, false), (MAX_SESSION_WINDOW, true)] {
        let (mut w, n, id) = pair(Shape::Shared);
        w.drain(0);
        w.arrive();
        let now = w.now;
        let agent = &mut w.ends[1].resume;
        agent.set_window_limit(limit);
        agent.connected(id, now);
        let mut offset = 0;
        for _ in 0..64 {
            let data = Bytes::from(vec![0; INITIAL_WINDOW as usize / 2]);
            let len = data.len();
            agent.handle_data(n, id, offset, data).unwrap();
            offset += len as u64;
            while agent.take_deliverable(id).is_some() {}
            agent.handle_delivered(id, len, now);
            while agent.poll_transmit(n, 1 << 16, now).is_some() {}
        }
        assert_eq!(agent.windows > INITIAL_WINDOW, grows);
        assert!(agent.windows <= limit.min(MAX_CHANNEL_WINDOW));
    }
}
