//! A simulated network: virtual clock, seeded NATs, loss, delay, reordering; two ends punching.

pub(crate) mod nat;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use adit_core::punch::{
    AddressFilter, CHECK_INTERVAL, Event, Family, LocalSocket, Message, OwnSubnet, Packet, Punch,
    PunchConfig, candidate_priority,
};
use adit_protocol::candidate::{Candidate, CandidateKind};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use nat::{Gateway, Kind};

pub(crate) const V4: LocalSocket = LocalSocket(0);
pub(crate) const V6: LocalSocket = LocalSocket(1);

/// What a run is made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) kinds: [Kind; 2],
    /// Both ends on one LAN, behind the first gateway.
    pub(crate) same_lan: bool,
    /// Firewalled IPv6 on both sides.
    pub(crate) v6: bool,
    /// Junk candidates of each side.
    pub(crate) junk: usize,
    pub(crate) delay_ms: u64,
    pub(crate) jitter_ms: u64,
    pub(crate) loss_percent: u32,
    /// The console learns the agent's candidates so much later than the other way round.
    pub(crate) skew_ms: u64,
    /// Server-reflexive candidates come so much later than the others.
    pub(crate) trickle_ms: u64,
}

impl Plan {
    pub(crate) fn of(kinds: [Kind; 2]) -> Self {
        Self {
            kinds,
            same_lan: false,
            v6: false,
            junk: 0,
            delay_ms: 20,
            jitter_ms: 0,
            loss_percent: 0,
            skew_ms: 40,
            trickle_ms: 0,
        }
    }

    /// Whether theory says that simultaneous open works. Written from the NATs' definitions, not
    /// from the machine: a side that maps by destination appears at a port that nobody knows, so
    /// the other side's filter must not look at ports, and must have been opened towards that IP.
    pub(crate) fn possible(&self) -> bool {
        let [a, b] = self.kinds;
        let stable = |k: Kind| !matches!(k, Kind::Symmetric | Kind::SymmetricAddress);
        let ignores_ports = |k: Kind| matches!(k, Kind::Open | Kind::FullCone | Kind::Restricted);
        let v4 = a != Kind::Blocked
            && b != Kind::Blocked
            && match (stable(a), stable(b)) {
                (true, true) => true,
                (false, true) => ignores_ports(b),
                (true, false) => ignores_ports(a),
                (false, false) => false,
            };
        v4 || self.same_lan || self.v6
    }
}

pub(crate) struct Side {
    pub(crate) punch: Punch,
    pub(crate) gateway: Gateway,
    gateway_v6: Gateway,
    addrs: [SocketAddr; 2],
    has_v6: bool,
    junk: Vec<Candidate>,
    pub(crate) events: Vec<(Duration, Event)>,
    pub(crate) sent: Vec<(Duration, SocketAddr, Message)>,
}

enum Step {
    Packet { packet_from: SocketAddr, to: SocketAddr, message: Message, lan: bool },
    Candidates { side: usize, candidates: Vec<Candidate>, end: bool },
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) sides: [Side; 2],
    pub(crate) t0: Instant,
    pub(crate) now: Instant,
    pub(crate) udp_dead: bool,
    rng: StdRng,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    steps: BTreeMap<u64, Step>,
    next_step: u64,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn candidate(kind: CandidateKind, addr: SocketAddr, preference: u16) -> Candidate {
    Candidate { kind, addr, priority: candidate_priority(kind, preference) }
}

impl World {
    pub(crate) fn new(plan: Plan, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let t0 = Instant::now();
        let sides = [0, 1].map(|i| Side::new(&plan, i, t0, &mut rng));
        let mut world = Self {
            plan,
            sides,
            t0,
            now: t0,
            udp_dead: false,
            rng,
            queue: BinaryHeap::new(),
            steps: BTreeMap::new(),
            next_step: 0,
        };
        // The agent (1) learns the console's candidates first: they are in the Offer.
        let skew = Duration::from_millis(world.plan.skew_ms);
        let trickle = Duration::from_millis(world.plan.trickle_ms);
        for from in [0, 1] {
            let start = if from == 0 { Duration::ZERO } else { skew };
            world.announce(from, start, trickle);
        }
        world
    }

    /// Gathers this side's candidates and sends them to the other, reflexive ones later.
    pub(crate) fn announce(&mut self, from: usize, start: Duration, trickle: Duration) {
        let hosts = self.sides[from].hosts();
        let reflexive = self.gather(from);
        let all: Vec<_> = hosts.iter().chain(&reflexive).copied().collect();
        let now = self.now;
        for socket in [V4, V6] {
            let family = if socket == V4 { Family::V4 } else { Family::V6 };
            let own: Vec<_> =
                all.iter().filter(|c| Family::of(c.addr) == family).copied().collect();
            self.sides[from].punch.handle_local_candidates(socket, family, &own, now);
        }
        let (first, end) = if trickle.is_zero() { (all, true) } else { (hosts, false) };
        let side = 1 - from;
        self.schedule(start, Step::Candidates { side, candidates: first, end });
        if !end {
            let step = Step::Candidates { side, candidates: reflexive, end: true };
            self.schedule(start + trickle, step);
        }
    }

    /// What two STUN servers see.
    fn gather(&mut self, side: usize) -> Vec<Candidate> {
        let addr = self.sides[side].addrs[0];
        let gateway = if self.plan.same_lan { 0 } else { side };
        let servers = ["203.0.113.10:3478", "203.0.113.20:3478"];
        let mut seen: Vec<_> = servers
            .iter()
            .filter_map(|server| {
                let gateway = &mut self.sides[gateway].gateway;
                gateway.outbound(addr, server.parse().unwrap(), self.now, &mut self.rng)
            })
            .filter(|mapped| *mapped != addr)
            .collect();
        seen.dedup();
        seen.into_iter().map(|a| candidate(CandidateKind::ServerReflexive, a, 65535)).collect()
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now - self.t0
    }

    /// Runs until then, or until `stop` says so after a step.
    pub(crate) fn run_until(&mut self, until: Duration, stop: impl Fn(&Self) -> bool) {
        let end = self.t0 + until;
        let mut steps = 0;
        while !stop(self) {
            let timeouts = self.sides.iter().filter_map(|s| s.punch.poll_timeout());
            let queued = self.queue.peek().map(|Reverse((at, _))| *at);
            let Some(next) = timeouts.chain(queued).min().filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            steps += 1;
            assert!(steps < 200_000, "busy loop at {:?}", self.elapsed());
            while self.queue.peek().is_some_and(|Reverse((at, _))| *at <= self.now) {
                let Some(Reverse((_, id))) = self.queue.pop() else { break };
                let Some(step) = self.steps.remove(&id) else { continue };
                self.step(step);
            }
            for side in &mut self.sides {
                if side.punch.poll_timeout().is_some_and(|at| at <= self.now) {
                    side.punch.handle_timeout(self.now);
                }
            }
            self.drain();
        }
        if !stop(self) {
            self.now = self.now.max(end);
        }
    }

    pub(crate) fn drain(&mut self) {
        for i in [0, 1] {
            let at = self.elapsed();
            while let Some(event) = self.sides[i].punch.poll_event() {
                self.sides[i].events.push((at, event));
            }
            while let Some(t) = self.sides[i].punch.poll_transmit() {
                self.sides[i].sent.push((at, t.to, t.message));
                self.send(i, t.to, t.message);
            }
        }
    }

    fn send(&mut self, side: usize, to: SocketAddr, message: Message) {
        let inside = self.sides[side].addrs[usize::from(to.is_ipv6())];
        if self.plan.same_lan && self.sides[1 - side].addrs.contains(&to) {
            let step = Step::Packet { packet_from: inside, to, message, lan: true };
            self.schedule(Duration::from_millis(1), step);
            return;
        }
        let gateway = if to.is_ipv6() {
            &mut self.sides[side].gateway_v6
        } else {
            &mut self.sides[if self.plan.same_lan { 0 } else { side }].gateway
        };
        let Some(outside) = gateway.outbound(inside, to, self.now, &mut self.rng) else { return };
        if self.udp_dead || self.rng.random_range(0..100) < self.plan.loss_percent {
            return;
        }
        let copies = if self.rng.random_range(0..100) == 0 { 2 } else { 1 };
        for _ in 0..copies {
            let jitter = self.rng.random_range(0..=self.plan.jitter_ms);
            let delay = Duration::from_millis(self.plan.delay_ms + jitter);
            let step = Step::Packet { packet_from: outside, to, message, lan: false };
            self.schedule(delay, step);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Candidates { side, candidates, end } => {
                self.sides[side].punch.handle_remote_candidates(&candidates, end, self.now);
            }
            Step::Packet { packet_from, to, message, lan } => {
                self.deliver(packet_from, to, message, lan);
            }
        }
    }

    pub(crate) fn deliver(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        message: Message,
        lan: bool,
    ) {
        let now = self.now;
        for side in &mut self.sides {
            let inside = if lan || to.is_ipv6() && !side.has_v6 {
                Some(to)
            } else if to.is_ipv6() {
                side.gateway_v6.inbound(to, from, now)
            } else {
                side.gateway.inbound(to, from, now)
            };
            let Some(socket) = inside.and_then(|a| side.addrs.iter().position(|own| *own == a))
            else {
                continue;
            };
            let packet = Packet { socket: LocalSocket(socket), from, message };
            side.punch.handle_packet(packet, now);
            return;
        }
    }

    fn schedule(&mut self, after: Duration, step: Step) {
        self.next_step += 1;
        self.steps.insert(self.next_step, step);
        self.queue.push(Reverse((self.now + after, self.next_step)));
    }
}

impl Side {
    fn new(plan: &Plan, i: usize, t0: Instant, rng: &mut StdRng) -> Self {
        let public = ip(["198.51.100.10", "198.51.100.20"][i]);
        let port = rng.random_range(1024..=65535);
        let lan = if plan.same_lan { [".1.2", ".1.3"] } else { [".1.2", ".2.2"] }[i];
        let kind = plan.kinds[if plan.same_lan { 0 } else { i }];
        let private = ip(&format!("192.168{lan}"));
        let translated = kind.mapping().is_some() || kind == Kind::Blocked || plan.same_lan;
        let v4 = SocketAddr::new(if translated { private } else { public }, port);
        let v6 = SocketAddr::new(ip(["2001:db8:1::2", "2001:db8:2::2"][i]), port);
        let subnets = [private, ip("172.17.0.1"), ip("fd00:17::1")];
        let own_subnets = subnets.map(|addr| OwnSubnet { addr, prefix: 24 }).to_vec();
        let filter = AddressFilter { own_subnets, loopback: false };
        let config = PunchConfig { seed: rng.random(), filter, check_interval: CHECK_INTERVAL };
        Self {
            punch: Punch::new(config, t0),
            gateway: Gateway::new(kind, public),
            gateway_v6: Gateway::new(Kind::Firewall, v6.ip()),
            addrs: [v4, v6],
            has_v6: plan.v6,
            junk: (0..plan.junk).map(|n| junk(n, i, rng)).collect(),
            events: Vec::new(),
            sent: Vec::new(),
        }
    }

    /// Junk first and in front by priority: an end that ranks badly must do no harm.
    fn hosts(&self) -> Vec<Candidate> {
        let v6 = self.has_v6.then_some(self.addrs[1]);
        let own = [Some(self.addrs[0]), v6].into_iter().flatten();
        let own = own.map(|a| candidate(CandidateKind::Host, a, 65000));
        self.junk.iter().copied().chain(own).collect()
    }

    pub(crate) fn validated_at(&self) -> Option<Duration> {
        let valid = |e: &&(Duration, Event)| matches!(e.1, Event::Validated { .. });
        self.events.iter().find(valid).map(|e| e.0)
    }
}

/// Addresses of container bridges, of unreachable hosts, and ones that must never be probed.
fn junk(n: usize, side: usize, rng: &mut StdRng) -> Candidate {
    let x = 100 * side + n;
    let addr = match n % 6 {
        0 => format!("172.17.0.{}", x % 250 + 2),
        1 => format!("198.51.100.{}", x % 150 + 100),
        2 => format!("10.{x}.0.1"),
        3 => format!("2001:db8:dead::{x}"),
        4 => format!("fd00:17::{x}"),
        _ => ["127.0.0.1", "169.254.169.254", "224.0.0.251", "::1", "fe80::1"][n / 6 % 5].into(),
    };
    let addr = SocketAddr::new(ip(&addr), rng.random_range(1..=65535));
    candidate(CandidateKind::Host, addr, 65535)
}
