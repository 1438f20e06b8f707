//! One end: the machines, its sockets and gateways, what it sent and found out.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use adit_core::{
    path::PathChooser,
    punch::{
        AddressFilter, CHECK_INTERVAL, Event, Family, LocalSocket, OwnSubnet, Punch, PunchConfig,
        UdpWatch, candidate_priority,
    },
};
use adit_protocol::{
    candidate::{Candidate, CandidateKind},
    nat::{NatBehaviour, NatSummary, regular_step},
    ticket::Role,
};
use rand::{RngExt as _, rngs::StdRng};

use super::{
    V4, V6, ip,
    nat::{Gateway, Kind},
    plan::Plan,
};

pub(crate) struct End {
    pub(crate) punch: Punch,
    pub(crate) chooser: PathChooser,
    pub(crate) kind: Kind,
    /// The inner one first.
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) gateway_v6: Gateway,
    pub(crate) private: IpAddr,
    /// Inside addresses.
    pub(crate) sockets: BTreeMap<LocalSocket, SocketAddr>,
    pub(crate) has_v6: bool,
    junk: Vec<Candidate>,
    filtering_known: bool,
    pub(crate) events: Vec<(Duration, Event)>,
    pub(crate) sent: Vec<Sent>,
    pub(crate) next_fresh: usize,
    pub(crate) next_birthday: usize,
    pub(crate) most_sockets: usize,
    pub(crate) told: Vec<SocketAddr>,
    pub(crate) watch: UdpWatch,
    /// When servers were asked whether UDP passes.
    pub(crate) asked: Vec<Duration>,
    /// Where those saw this end last.
    pub(crate) watched: BTreeMap<SocketAddr, SocketAddr>,
    pub(crate) cut: Option<Cut>,
    /// What servers said last of a socket.
    pub(crate) known: BTreeMap<LocalSocket, (Vec<Candidate>, NatSummary)>,
}

/// Where UDP does not pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cut {
    /// Before the NAT, which forgets its mappings.
    Inside,
    /// Behind it.
    Outside,
}

/// A check that left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) at: Duration,
    pub(crate) to: SocketAddr,
    pub(crate) message: adit_core::punch::Message,
}

pub(crate) fn candidate(kind: CandidateKind, addr: SocketAddr, preference: u16) -> Candidate {
    Candidate { kind, addr, priority: candidate_priority(kind, preference) }
}

impl End {
    pub(crate) fn new(plan: &Plan, i: usize, t0: Instant, rng: &mut StdRng) -> Self {
        let kind = plan.kinds[if plan.same_lan { 0 } else { i }];
        let public = ip(["198.51.100.10", "198.51.100.20"][if plan.same_lan { 0 } else { i }]);
        let mut gateways = gateways(kind, public, rng);
        if let Some((side, life)) = plan.life_s
            && side == i
            && let Some(outer) = gateways.last_mut()
        {
            outer.life = Some(Duration::from_secs(life));
        }
        let lan = if plan.same_lan { [".1.2", ".1.3"] } else { [".1.2", ".2.2"] }[i];
        let translated = kind.mapping().is_some() || kind == Kind::Blocked || plan.same_lan;
        let private = if translated { ip(&format!("192.168{lan}")) } else { public };
        let port = rng.random_range(1024..=65535);
        let v6 = SocketAddr::new(ip(["2001:db8:1::2", "2001:db8:2::2"][i]), port);
        let sockets = BTreeMap::from([(V4, SocketAddr::new(private, port)), (V6, v6)]);
        let config = PunchConfig {
            seed: rng.random(),
            filter: filter(private),
            check_interval: CHECK_INTERVAL,
        };
        Self {
            punch: Punch::new(config, t0),
            chooser: PathChooser::new([Role::Console, Role::Agent][i], t0),
            kind,
            gateways,
            gateway_v6: Gateway::new(Kind::Firewall, v6.ip(), 0),
            private,
            sockets,
            has_v6: plan.v6,
            junk: (0..plan.junk).map(|n| junk(n, i, rng)).collect(),
            filtering_known: plan.filtering_known,
            events: Vec::new(),
            sent: Vec::new(),
            next_fresh: adit_core::punch::FRESH_BASE,
            next_birthday: adit_core::punch::BIRTHDAY_BASE,
            most_sockets: 0,
            told: Vec::new(),
            watch: UdpWatch::default(),
            asked: Vec::new(),
            watched: BTreeMap::new(),
            cut: None,
            known: BTreeMap::new(),
        }
    }

    pub(crate) fn outer(&mut self) -> &mut Gateway {
        self.gateways.last_mut().unwrap()
    }

    pub(crate) fn public(&self) -> IpAddr {
        self.gateways.last().unwrap().public
    }

    /// Through all gateways; the source address as others see it.
    pub(crate) fn outbound(
        &mut self,
        inside: SocketAddr,
        to: SocketAddr,
        now: Instant,
        rng: &mut StdRng,
    ) -> Option<SocketAddr> {
        if to.is_ipv6() {
            return self.gateway_v6.outbound(inside, to, now, rng);
        }
        self.gateways.iter_mut().try_fold(inside, |from, g| g.outbound(from, to, now, rng))
    }

    pub(crate) fn inbound(
        &mut self,
        to: SocketAddr,
        from: SocketAddr,
        now: Instant,
    ) -> Option<SocketAddr> {
        if to.is_ipv6() {
            return self.gateway_v6.inbound(to, from, now);
        }
        self.gateways.iter_mut().rev().try_fold(to, |to, g| g.inbound(to, from, now))
    }

    /// Another network: a port-restricted NAT.
    pub(crate) fn roam(&mut self, i: usize, rng: &mut StdRng) {
        let public = ip(["198.51.100.31", "198.51.100.32"][i]);
        self.kind = Kind::PortRestricted;
        self.gateways = gateways(self.kind, public, rng);
        self.private = ip(["192.168.31.2", "192.168.32.2"][i]);
        for addr in self.sockets.values_mut().filter(|a| a.is_ipv4()) {
            addr.set_ip(self.private);
        }
    }

    pub(crate) fn filter(&self) -> AddressFilter {
        filter(self.private)
    }

    /// Junk first and in front by priority: an end that ranks badly must do no harm.
    pub(crate) fn hosts(&self, socket: LocalSocket) -> Vec<Candidate> {
        let own = self.sockets.get(&socket).filter(|a| a.is_ipv4() || self.has_v6);
        let own = own.map(|a| candidate(CandidateKind::Host, *a, 65000));
        let family = if socket == V6 { Family::V6 } else { Family::V4 };
        let junk = self.junk.iter().filter(|c| Family::of(c.addr) == family && socket.0 < 2);
        junk.copied().chain(own).collect()
    }

    /// What STUN servers see of a socket: at two addresses, or at three ports of one, which cannot
    /// tell whether a mapping depends on the address.
    pub(crate) fn discover(
        &mut self,
        socket: LocalSocket,
        now: Instant,
        rng: &mut StdRng,
    ) -> (Vec<Candidate>, NatSummary) {
        let Some(inside) = self.sockets.get(&socket).copied().filter(SocketAddr::is_ipv4) else {
            return (Vec::new(), NatSummary::default());
        };
        let third = if self.filtering_known { "203.0.113.20:3478" } else { "203.0.113.10:443" };
        let servers = ["203.0.113.10:3478", "203.0.113.10:3479", third];
        let servers = servers.map(|s| s.parse::<SocketAddr>().unwrap());
        let mapped: Vec<_> =
            servers.iter().filter_map(|s| self.outbound(inside, *s, now, rng)).collect();
        let mapping = match mapped[..] {
            [a, b, c] if a == b && b == c && (self.filtering_known || a == inside) => {
                NatBehaviour::EndpointIndependent
            }
            [a, b, c] if a == b && b == c => NatBehaviour::Unknown,
            [a, b, _] if a == b => NatBehaviour::AddressDependent,
            [_, _, _] => NatBehaviour::AddressAndPortDependent,
            _ => NatBehaviour::Unknown,
        };
        use super::nat::Dependence;
        let filtering = match self.kind.filtering() {
            _ if !self.filtering_known || mapped.is_empty() => NatBehaviour::Unknown,
            Dependence::Endpoint => NatBehaviour::EndpointIndependent,
            Dependence::Address => NatBehaviour::AddressDependent,
            Dependence::AddressAndPort => NatBehaviour::AddressAndPortDependent,
        };
        let ports: Vec<u16> = mapped.iter().map(SocketAddr::port).collect();
        let symmetric = mapping == NatBehaviour::AddressAndPortDependent;
        let port_step = if symmetric { regular_step(&ports) } else { 0 };
        let mut seen = mapped;
        seen.retain(|m| *m != inside);
        seen.dedup();
        let kind = CandidateKind::ServerReflexive;
        let seen = seen.into_iter().map(|a| candidate(kind, a, 65535)).collect();
        (seen, NatSummary { mapping, filtering, port_step, ports })
    }

    pub(crate) fn validated_at(&self) -> Option<Duration> {
        self.validated_since(Duration::ZERO)
    }

    pub(crate) fn validated_since(&self, since: Duration) -> Option<Duration> {
        let valid = |e: &&(Duration, Event)| e.0 >= since && matches!(e.1, Event::Validated { .. });
        self.events.iter().find(valid).map(|e| e.0)
    }

    pub(crate) fn count(&self, is: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|(_, e)| is(e)).count()
    }
}

fn gateways(kind: Kind, public: IpAddr, rng: &mut StdRng) -> Vec<Gateway> {
    let chain = kind.chain();
    let outer = chain.len() - 1;
    let between = ip("100.64.0.7");
    let of = |(n, kind): (usize, &Kind)| {
        let address = if n == outer { public } else { between };
        Gateway::new(*kind, address, rng.random_range(1024..60_000))
    };
    chain.iter().enumerate().map(of).collect()
}

fn filter(private: IpAddr) -> AddressFilter {
    let subnets = [private, ip("172.17.0.1"), ip("fd00:17::1")];
    let own_subnets = subnets.map(|addr| OwnSubnet { addr, prefix: 24 }).to_vec();
    AddressFilter { own_subnets, loopback: false }
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
