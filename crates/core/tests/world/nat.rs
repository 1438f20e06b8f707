//! A gateway with NAT and firewall behaviour after RFC 4787: mapping × filtering.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use rand::{RngExt as _, rngs::StdRng};

/// Which part of a destination a mapping or a filter depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dependence {
    Endpoint,
    Address,
    AddressAndPort,
}
use Dependence::{Address, AddressAndPort, Endpoint};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Open,
    Firewall,
    FullCone,
    Restricted,
    PortRestricted,
    SymmetricAddress,
    Symmetric,
    Blocked,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Open,
        Self::Firewall,
        Self::FullCone,
        Self::Restricted,
        Self::PortRestricted,
        Self::SymmetricAddress,
        Self::Symmetric,
        Self::Blocked,
    ];

    /// `None`: addresses are not translated.
    pub(crate) fn mapping(self) -> Option<Dependence> {
        match self {
            Self::Open | Self::Firewall | Self::Blocked => None,
            Self::FullCone | Self::Restricted | Self::PortRestricted => Some(Endpoint),
            Self::SymmetricAddress => Some(Address),
            Self::Symmetric => Some(AddressAndPort),
        }
    }

    pub(crate) fn filtering(self) -> Dependence {
        match self {
            Self::Open | Self::FullCone => Endpoint,
            Self::Restricted => Address,
            _ => AddressAndPort,
        }
    }
}

/// Two addresses are the same as far as `dependence` looks.
fn same(dependence: Dependence, a: SocketAddr, b: SocketAddr) -> bool {
    match dependence {
        Endpoint => true,
        Address => a.ip() == b.ip(),
        AddressAndPort => a == b,
    }
}

#[derive(Debug)]
struct Binding {
    inside: SocketAddr,
    outside: SocketAddr,
    /// The destination that made it.
    towards: SocketAddr,
    sent_to: BTreeSet<SocketAddr>,
    used: Instant,
}

#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) kind: Kind,
    pub(crate) public: IpAddr,
    pub(crate) timeout: Duration,
    bindings: Vec<Binding>,
}

impl Gateway {
    pub(crate) fn new(kind: Kind, public: IpAddr) -> Self {
        Self { kind, public, timeout: Duration::from_secs(30), bindings: Vec::new() }
    }

    /// As after a reboot: all mappings are forgotten.
    pub(crate) fn forget(&mut self) {
        self.bindings.clear();
    }

    /// A packet leaves: its source address outside.
    pub(crate) fn outbound(
        &mut self,
        inside: SocketAddr,
        to: SocketAddr,
        now: Instant,
        rng: &mut StdRng,
    ) -> Option<SocketAddr> {
        if self.kind == Kind::Blocked {
            return None;
        }
        self.bindings.retain(|b| now < b.used + self.timeout);
        let mapping = self.kind.mapping();
        let depends = mapping.unwrap_or(Endpoint);
        let known = |b: &&mut Binding| b.inside == inside && same(depends, b.towards, to);
        if let Some(binding) = self.bindings.iter_mut().find(known) {
            binding.sent_to.insert(to);
            binding.used = now;
            return Some(binding.outside);
        }
        let outside = match mapping {
            None => inside,
            Some(_) => loop {
                let outside = SocketAddr::new(self.public, rng.random_range(1024..=65535));
                if self.bindings.iter().all(|b| b.outside != outside) {
                    break outside;
                }
            },
        };
        let sent_to = BTreeSet::from([to]);
        self.bindings.push(Binding { inside, outside, towards: to, sent_to, used: now });
        Some(outside)
    }

    /// A packet arrives: where it goes inside.
    pub(crate) fn inbound(
        &mut self,
        to: SocketAddr,
        from: SocketAddr,
        now: Instant,
    ) -> Option<SocketAddr> {
        if self.kind == Kind::Blocked {
            return None;
        }
        let filtering = self.kind.filtering();
        if self.kind == Kind::Open {
            return Some(to);
        }
        let timeout = self.timeout;
        let live = self.bindings.iter_mut().filter(|b| now < b.used + timeout);
        let mut passes = live.filter(|b| {
            b.outside == to && b.sent_to.iter().any(|sent| same(filtering, *sent, from))
        });
        let binding = passes.next()?;
        binding.used = now;
        Some(binding.inside)
    }
}
