//! A simulated network: virtual clock, seeded NATs, loss, delay, reordering, changes; two ends
//! that punch and choose, with data flowing over what they choose.
#![allow(dead_code, reason = "several tests share it, none uses all")]

pub(crate) mod end;
mod flow;
pub(crate) mod nat;
pub(crate) mod plan;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use adit_core::{
    path::PathEvent,
    punch::{Event, Family, LocalSocket, Message, Packet, WatchEvent},
};
use adit_protocol::{candidate::Candidate, nat::NatSummary};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

pub(crate) use end::{Cut, End, Sent};
use flow::Flow;
pub(crate) use nat::Kind;
#[allow(unused_imports, reason = "as above")]
pub(crate) use plan::{Change, Class, Plan};

/// So long after they were asked, servers count as not answering.
const NO_ANSWER: Duration = Duration::from_millis(4600);
/// Routers from one end to the other end's gateways.
const HOPS_BETWEEN: u8 = 4;
pub(crate) const V4: LocalSocket = LocalSocket(0);
pub(crate) const V6: LocalSocket = LocalSocket(1);
pub(crate) const CONSOLE: usize = 0;
pub(crate) const AGENT: usize = 1;

/// What is in a datagram.
#[derive(Clone, Copy, Debug)]
enum Datagram {
    Check(Message),
    Hello(u64),
    Welcome(u64),
    Data { carrier: u64, seq: Option<u64> },
    Ack { carrier: u64, seq: Option<u64> },
    Ping(u64),
    Pong(u64),
}

/// What passes through the mediator, or the relay.
#[derive(Clone, Debug)]
enum Signal {
    Candidates { list: Vec<Candidate>, end: bool, nat: Option<NatSummary> },
    Suspect(u64),
    Closed(u64),
    Relayed(Datagram),
}

enum Step {
    Datagram {
        from: SocketAddr,
        to: SocketAddr,
        datagram: Datagram,
        lan: bool,
    },
    Signal {
        side: usize,
        signal: Signal,
    },
    /// Discovery of a socket is over.
    Discovered {
        side: usize,
        socket: LocalSocket,
        announce: bool,
        first: bool,
    },
    NatObserved {
        side: usize,
    },
    /// A server answered a watch's request.
    Watched {
        side: usize,
        server: SocketAddr,
        mapped: SocketAddr,
    },
    RelayUp,
    Tick,
    Redial(u64, u32),
    Change,
    OutageOver,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) sides: [End; 2],
    pub(crate) t0: Instant,
    pub(crate) now: Instant,
    pub(crate) udp_dead: bool,
    /// Checks are lost, data are not.
    pub(crate) checks_dead: bool,
    pub(crate) flow: Flow,
    pub(crate) steps_done: u64,
    rng: StdRng,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    steps: BTreeMap<u64, Step>,
    next_step: u64,
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl World {
    pub(crate) fn new(plan: Plan, seed: u64) -> Self {
        let mut world = Self::closed(plan, seed);
        world.open();
        world
    }

    /// UDP does not pass when the session begins, though servers may have seen the ends before.
    pub(crate) fn without_udp(plan: Plan, seed: u64, cuts: [Option<Cut>; 2], seen: bool) -> Self {
        let mut world = Self::closed(plan, seed);
        for (i, cut) in cuts.into_iter().enumerate() {
            if seen {
                let _ = world.discover(i, V4);
            }
            world.sides[i].cut = cut;
        }
        world.open();
        world
    }

    fn closed(plan: Plan, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let t0 = Instant::now();
        let sides = [0, 1].map(|i| End::new(&plan, i, t0, &mut rng));
        let flow = Flow::new(t0);
        Self {
            plan,
            sides,
            t0,
            now: t0,
            udp_dead: false,
            checks_dead: false,
            flow,
            steps_done: 0,
            rng,
            queue: BinaryHeap::new(),
            steps: BTreeMap::new(),
            next_step: 0,
        }
    }

    /// The Offer arrives at the agent now; its Answer takes its way to the console.
    fn open(&mut self) {
        let [console, agent] = self.plan.delay_ms;
        let signal = self.plan.one_way() + ms(self.plan.signal_ms);
        let trickle = ms(self.plan.trickle_ms);
        let hold = ms(2 * agent);
        for side in [CONSOLE, AGENT] {
            let when = if side == CONSOLE { Duration::ZERO } else { signal };
            let mut first = Vec::new();
            for socket in [V4, V6] {
                let hosts = self.sides[side].hosts(socket);
                let family = if socket == V6 { Family::V6 } else { Family::V4 };
                self.sides[side].punch.handle_local_candidates(socket, family, &hosts, self.now);
                first.extend(hosts);
            }
            if trickle.is_zero() {
                let (seen, nat) = self.discover(side, V4);
                self.sides[side].punch.handle_local_nat(nat.clone(), self.now);
                first.extend(seen);
                let signal = Signal::Candidates { list: first, end: true, nat: Some(nat) };
                self.schedule(when, Step::Signal { side: 1 - side, signal });
            } else {
                let signal = Signal::Candidates { list: first, end: false, nat: None };
                self.schedule(when, Step::Signal { side: 1 - side, signal });
                let step = Step::Discovered { side, socket: V4, announce: false, first: true };
                self.schedule(trickle, step);
            }
        }
        self.sides[AGENT].punch.handle_hold(hold, self.now);
        let up = signal + 2 * self.plan.one_way() + ms(console);
        self.schedule(up, Step::RelayUp);
        if let Some((_, _, at)) = self.plan.change {
            self.schedule(ms(at), Step::Change);
        }
    }

    fn discover(&mut self, side: usize, socket: LocalSocket) -> (Vec<Candidate>, NatSummary) {
        let end = &mut self.sides[side];
        if end.cut.is_some() {
            // What was known is believed until it is clear that nobody answers.
            let (seen, nat) = end.known.get(&socket).cloned().unwrap_or_default();
            let nat = if self.now < self.t0 + NO_ANSWER { nat } else { NatSummary::default() };
            return (seen, nat);
        }
        let found = self.ask_servers(side, socket);
        self.sides[side].known.insert(socket, found.clone());
        found
    }

    fn ask_servers(&mut self, side: usize, socket: LocalSocket) -> (Vec<Candidate>, NatSummary) {
        let gateways = if self.plan.same_lan { 0 } else { side };
        let (now, rng) = (self.now, &mut self.rng);
        if gateways == side {
            return self.sides[side].discover(socket, now, rng);
        }
        // On the other's LAN: its gateway, our socket.
        let inside = self.sides[side].sockets[&socket];
        let probe = LocalSocket(usize::MAX);
        self.sides[0].sockets.insert(probe, inside);
        let found = self.sides[0].discover(probe, now, rng);
        self.sides[0].sockets.remove(&probe);
        found
    }

    /// Hands in own candidates of a socket, and tells the peer of them.
    fn discovered(&mut self, side: usize, socket: LocalSocket, all: bool, first: bool) {
        if !self.sides[side].sockets.contains_key(&socket) {
            return;
        }
        let (seen, nat) = self.discover(side, socket);
        let mut list = self.sides[side].hosts(socket);
        list.extend(&seen);
        let family = if socket == V6 { Family::V6 } else { Family::V4 };
        self.sides[side].punch.handle_local_candidates(socket, family, &list, self.now);
        let nat = (socket == V4).then_some(nat);
        if let Some(nat) = &nat {
            self.sides[side].punch.handle_local_nat(nat.clone(), self.now);
        }
        if all {
            list.extend(self.sides[side].hosts(V6));
        } else {
            list.retain(|c| !self.sides[side].told.contains(&c.addr));
        }
        self.sides[side].told.extend(list.iter().map(|c| c.addr));
        if !list.is_empty() || first {
            self.signal(side, Signal::Candidates { list, end: first, nat });
        }
    }

    /// Gathers own addresses, and announces all of them.
    pub(crate) fn announce(&mut self, side: usize) {
        let after = ms((2 * self.plan.delay_ms[side]).max(self.plan.announce_ms));
        let step = Step::Discovered { side, socket: V4, announce: true, first: false };
        self.schedule(after, step);
    }

    fn signal(&mut self, from: usize, signal: Signal) {
        let after = self.plan.one_way() + ms(self.plan.signal_ms / 2);
        self.schedule(after, Step::Signal { side: 1 - from, signal });
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now - self.t0
    }

    /// Runs until then, or until `stop` says so after a step.
    pub(crate) fn run_until(&mut self, until: Duration, stop: impl Fn(&Self) -> bool) {
        let end = self.t0 + until;
        self.drain();
        while !stop(self) {
            let sides = self.sides.iter();
            let timeouts = |s: &End| {
                [s.punch.poll_timeout(), s.chooser.poll_timeout(), s.watch.poll_timeout()]
            };
            let timeouts = sides.flat_map(timeouts).flatten();
            let queued = self.queue.peek().map(|Reverse((at, _))| *at);
            let Some(next) = timeouts.chain(queued).min().filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            self.steps_done += 1;
            let allowed = 20_000 + 3_000 * self.elapsed().as_secs();
            assert!(self.steps_done < allowed, "busy loop at {:?}", self.elapsed());
            while self.queue.peek().is_some_and(|Reverse((at, _))| *at <= self.now) {
                let Some(Reverse((_, id))) = self.queue.pop() else { break };
                let Some(step) = self.steps.remove(&id) else { continue };
                self.step(step);
                self.drain();
            }
            for side in &mut self.sides {
                if side.punch.poll_timeout().is_some_and(|at| at <= self.now) {
                    side.punch.handle_timeout(self.now);
                }
                if side.chooser.poll_timeout().is_some_and(|at| at <= self.now) {
                    side.chooser.handle_timeout(self.now);
                }
                side.watch.handle_timeout(self.now);
            }
            self.drain();
        }
        if !stop(self) {
            self.now = self.now.max(end);
        }
    }

    pub(crate) fn drain(&mut self) {
        loop {
            let mut idle = true;
            for i in [CONSOLE, AGENT] {
                let at = self.elapsed();
                while let Some(event) = self.sides[i].punch.poll_event() {
                    idle = false;
                    self.sides[i].events.push((at, event.clone()));
                    self.handle_event(i, event);
                }
                while let Some(t) = self.sides[i].punch.poll_transmit() {
                    idle = false;
                    self.sides[i].sent.push(Sent { at, to: t.to, message: t.message });
                    self.send_with(i, t.socket, t.to, Datagram::Check(t.message), t.ttl);
                }
                while let Some(event) = self.sides[i].chooser.poll_event() {
                    idle = false;
                    self.handle_path_event(i, event);
                }
                while let Some(event) = self.sides[i].watch.poll_event() {
                    idle = false;
                    self.handle_watch_event(i, event);
                }
            }
            if idle {
                let wanted = !self.is_direct();
                let now = self.now;
                self.sides.iter_mut().for_each(|s| s.watch.handle_wanted(wanted, now));
                return;
            }
        }
    }

    fn handle_event(&mut self, i: usize, event: Event) {
        match event {
            Event::WantAddresses => self.announce(i),
            Event::WantNatSummary => {
                let after = ms(2 * self.plan.delay_ms[i]);
                self.schedule(after, Step::NatObserved { side: i });
            }
            Event::WantSockets { count, .. } => {
                for _ in 0..count {
                    let side = &mut self.sides[i];
                    let socket = LocalSocket(side.next_birthday);
                    side.next_birthday += 1;
                    self.open_socket(i, socket);
                    self.sides[i].punch.handle_birthday_socket(socket, Family::V4, self.now);
                }
                self.sides[i].most_sockets =
                    self.sides[i].most_sockets.max(self.sides[i].sockets.len());
            }
            Event::ReleaseSockets { keep } => {
                let base = adit_core::punch::BIRTHDAY_BASE;
                self.sides[i].sockets.retain(|s, _| s.0 < base || Some(*s) == keep);
            }
            Event::WantFreshSocket { family } => {
                let side = &mut self.sides[i];
                let socket = LocalSocket(side.next_fresh);
                side.next_fresh += 1;
                self.open_socket(i, socket);
                let hosts = self.sides[i].hosts(socket);
                self.sides[i].punch.handle_local_candidates(socket, family, &hosts, self.now);
                let after = ms(2 * self.plan.delay_ms[i]);
                let step = Step::Discovered { side: i, socket, announce: false, first: false };
                self.schedule(after, step);
            }
            Event::SocketUnneeded(socket) => {
                self.close_carriers(i, |pair| pair.0 == socket);
                self.sides[i].sockets.remove(&socket);
                self.sides[i].punch.handle_socket_closed(socket);
            }
            other => self.carrier_event(i, other),
        }
    }

    fn handle_watch_event(&mut self, i: usize, event: WatchEvent) {
        let again = match event {
            WatchEvent::Passes => return self.sides[i].punch.handle_udp_passes(self.now),
            WatchEvent::Ask { again } => again,
        };
        // Another server beside the first, if that did not answer.
        for server in ["203.0.113.10:3478", "203.0.113.10:3479"].iter().take(1 + usize::from(again))
        {
            self.sides[i].asked.push(self.elapsed());
            let to: SocketAddr = server.parse().unwrap();
            let inside = self.sides[i].sockets[&V4];
            let cut = self.sides[i].cut;
            if cut == Some(Cut::Inside) {
                continue;
            }
            let Some(mapped) = self.sides[i].outbound(inside, to, self.now, &mut self.rng) else {
                continue;
            };
            let mut lost = || self.rng.random_range(0..100) < self.plan.loss_percent;
            if cut.is_none() && !lost() && !lost() {
                let step = Step::Watched { side: i, server: to, mapped };
                self.schedule(ms(2 * self.plan.delay_ms[i]), step);
            }
        }
    }

    fn watched(&mut self, side: usize, server: SocketAddr, mapped: SocketAddr) {
        let end = &mut self.sides[side];
        if end.cut.is_some() {
            return;
        }
        end.watch.handle_answer();
        let known = end.known.get(&V4);
        let changed = match (end.watched.insert(server, mapped), known) {
            (Some(before), _) => before != mapped,
            (None, Some((_, nat))) if nat.is_symmetric() => false,
            (None, Some((seen, _))) => {
                end.sockets[&V4] != mapped && seen.iter().all(|c| c.addr != mapped)
            }
            // Servers were asked just now, or nobody answered them.
            (None, None) => self.now > self.t0 + ms(self.plan.trickle_ms + 1000),
        };
        if changed {
            // As if the network had changed: what was told before is gone.
            if known.is_some() {
                let filter = end.filter();
                end.punch.handle_network_change(filter, self.now);
            }
            let step = Step::Discovered { side, socket: V4, announce: false, first: false };
            self.schedule(ms(2 * self.plan.delay_ms[side]), step);
        }
    }

    fn open_socket(&mut self, i: usize, socket: LocalSocket) {
        let taken: Vec<u16> = self.sides[i].sockets.values().map(SocketAddr::port).collect();
        let port = loop {
            let port = self.rng.random_range(32_768..=60_999);
            if !taken.contains(&port) {
                break port;
            }
        };
        let addr = SocketAddr::new(self.sides[i].private, port);
        self.sides[i].sockets.insert(socket, addr);
    }

    fn handle_path_event(&mut self, i: usize, event: PathEvent) {
        match event {
            PathEvent::Use { interactive, .. } => self.moved(interactive.0),
            PathEvent::Probe(carrier) => self.ping(i, carrier.0),
            PathEvent::Suspect(carrier) | PathEvent::Overdue(carrier) if i == AGENT => {
                self.signal(AGENT, Signal::Suspect(carrier.0));
            }
            PathEvent::Dead(carrier) => self.close_carrier(carrier.0),
            PathEvent::WantDirect => {
                self.sides[i].punch.handle_want_direct(self.now);
                self.announce(i);
            }
            _ => {}
        }
    }

    fn send(&mut self, side: usize, socket: LocalSocket, to: SocketAddr, datagram: Datagram) {
        self.send_with(side, socket, to, datagram, None);
    }

    fn send_with(
        &mut self,
        side: usize,
        socket: LocalSocket,
        to: SocketAddr,
        datagram: Datagram,
        ttl: Option<u8>,
    ) {
        let Some(inside) = self.sides[side].sockets.get(&socket).copied() else { return };
        let other = &self.sides[1 - side];
        if self.plan.same_lan && other.sockets.values().any(|addr| *addr == to) {
            let lan = !to.is_ipv6();
            if lan {
                let step = Step::Datagram { from: inside, to, datagram, lan };
                return self.schedule(ms(1), step);
            }
        }
        let gateways = if self.plan.same_lan && to.is_ipv4() { 0 } else { side };
        let cut = self.sides[side].cut;
        if cut == Some(Cut::Inside) {
            return;
        }
        let (now, rng) = (self.now, &mut self.rng);
        let Some(outside) = self.sides[gateways].outbound(inside, to, now, rng) else { return };
        if ttl.is_some_and(|ttl| ttl < HOPS_BETWEEN) {
            return; // the own gateways saw it, the peer's are further away
        }
        let lost = self.checks_dead && matches!(datagram, Datagram::Check(_));
        if cut.is_some()
            || self.udp_dead
            || lost
            || self.rng.random_range(0..100) < self.plan.loss_percent
        {
            return;
        }
        let copies = if self.rng.random_range(0..100) == 0 { 2 } else { 1 };
        for _ in 0..copies {
            let jitter = ms(self.rng.random_range(0..=self.plan.jitter_ms));
            let step = Step::Datagram { from: outside, to, datagram, lan: false };
            self.schedule(self.plan.one_way() + jitter, step);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Datagram { from, to, datagram, lan } => self.arrive(from, to, datagram, lan),
            Step::Signal { side, signal } => self.receive_signal(side, signal),
            Step::Discovered { side, socket, announce, first } => {
                self.discovered(side, socket, announce, first);
            }
            Step::NatObserved { side } => {
                let socket = LocalSocket(usize::MAX - 1);
                self.open_socket(side, socket);
                let (_, nat) = self.discover(side, socket);
                self.sides[side].sockets.remove(&socket);
                self.sides[side].punch.handle_local_nat(nat.clone(), self.now);
                let (list, nat) = (Vec::new(), Some(nat));
                self.signal(side, Signal::Candidates { list, end: false, nat });
            }
            Step::Watched { side, server, mapped } => self.watched(side, server, mapped),
            Step::RelayUp => self.relay_up(),
            Step::Tick => self.tick(),
            Step::Redial(carrier, tries) => self.redial(carrier, tries),
            Step::Change => self.change(),
            Step::OutageOver => self.udp_dead = false,
        }
    }

    fn receive_signal(&mut self, side: usize, signal: Signal) {
        match signal {
            Signal::Candidates { list, end, nat } => {
                let seen = self.sides[if self.plan.same_lan { 0 } else { 1 - side }].public();
                let punch = &mut self.sides[side].punch;
                if let Some(nat) = nat {
                    let nat = NatSummary::from_wire(&nat.to_wire());
                    punch.handle_remote_nat(nat, Some(seen), self.now);
                }
                if !list.is_empty() || end {
                    punch.handle_remote_candidates(&list, end, self.now);
                }
            }
            Signal::Suspect(carrier) => self.suspected(carrier),
            Signal::Closed(carrier) => self.close_carrier(carrier),
            Signal::Relayed(datagram) => self.receive(side, None, datagram),
        }
    }

    fn change(&mut self) {
        let Some((change, side, _)) = self.plan.change else { return };
        match change {
            Change::Rebind => self.sides[side].gateways.iter_mut().for_each(|g| g.forget()),
            Change::RebindAddress => {
                let gateway = self.sides[side].outer();
                gateway.forget();
                if gateway.kind.mapping().is_some() {
                    gateway.public = ip(["198.51.100.41", "198.51.100.42"][side]);
                }
            }
            Change::Roam => {
                self.plan.same_lan = false;
                let rng = &mut self.rng;
                self.sides[side].roam(side, rng);
                self.network_changed(side);
            }
            Change::Outage { ms: outage } => {
                self.udp_dead = true;
                self.schedule(ms(outage), Step::OutageOver);
            }
            Change::Interfaces => self.network_changed(side),
        }
    }

    fn network_changed(&mut self, side: usize) {
        let filter = self.sides[side].filter();
        self.sides[side].punch.handle_network_change(filter, self.now);
        self.sides[side].chooser.handle_network_change(self.now);
        self.announce(side);
    }

    /// A datagram arrives at a public address, or on the LAN.
    fn arrive(&mut self, from: SocketAddr, to: SocketAddr, datagram: Datagram, lan: bool) {
        let now = self.now;
        let gateways = self.sides.iter().position(|s| s.public() == to.ip());
        if gateways.is_some_and(|g| self.sides[g].cut.is_some()) {
            return;
        }
        let inside = if lan || to.is_ipv6() {
            let side = self.sides.iter_mut().find(|s| s.sockets.values().any(|a| *a == to));
            match side {
                Some(side) if to.is_ipv6() && side.has_v6 => side.inbound(to, from, now),
                _ => Some(to),
            }
        } else {
            gateways.and_then(|g| self.sides[g].inbound(to, from, now))
        };
        let Some(inside) = inside else { return };
        for i in [CONSOLE, AGENT] {
            let mut sockets = self.sides[i].sockets.iter();
            let Some((socket, _)) = sockets.find(|(_, a)| **a == inside) else { continue };
            return self.receive(i, Some((*socket, from)), datagram);
        }
    }

    /// As an attacker would.
    pub(crate) fn deliver(&mut self, from: SocketAddr, to: SocketAddr, message: Message) {
        self.arrive(from, to, Datagram::Check(message), false);
    }

    fn receive(&mut self, i: usize, pair: Option<(LocalSocket, SocketAddr)>, what: Datagram) {
        match (what, pair) {
            (Datagram::Check(message), Some((socket, from))) => {
                let packet = Packet { socket, from, message };
                self.sides[i].punch.handle_packet(packet, self.now);
            }
            (other, pair) => self.receive_flow(i, pair, other),
        }
    }

    fn schedule(&mut self, after: Duration, step: Step) {
        self.next_step += 1;
        self.steps.insert(self.next_step, step);
        self.queue.push(Reverse((self.now + after, self.next_step)));
    }
}
