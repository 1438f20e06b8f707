//! A gateway with NAT and firewall behaviour after RFC 4787: mapping × filtering × allocation ×
//! life, and the kernel's peculiarity when the peer's packet comes first.

use std::{
    collections::{BTreeSet, HashMap},
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

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    Open,
    Firewall,
    FullCone,
    Restricted,
    PortRestricted,
    SymmetricAddress,
    Symmetric,
    /// Ports follow each other.
    SymmetricSeq,
    /// Kernel masquerade: the port is kept if it is free towards that destination.
    Linux,
    /// The same, and what nobody asked for is remembered as a connection of the router's.
    LinuxNoInput,
    /// A port-restricted home NAT behind a carrier's NAT like it.
    Cgnat,
    /// The same with a carrier's NAT that maps by destination.
    CgnatSymmetric,
    Blocked,
}

impl Kind {
    pub(crate) const ALL: [Self; 13] = [
        Self::Open,
        Self::Firewall,
        Self::FullCone,
        Self::Restricted,
        Self::PortRestricted,
        Self::SymmetricAddress,
        Self::Symmetric,
        Self::SymmetricSeq,
        Self::Linux,
        Self::LinuxNoInput,
        Self::Cgnat,
        Self::CgnatSymmetric,
        Self::Blocked,
    ];

    /// The gateways of such a site, the inner one first.
    pub(crate) fn chain(self) -> Vec<Self> {
        match self {
            Self::Cgnat => vec![Self::PortRestricted, Self::PortRestricted],
            Self::CgnatSymmetric => vec![Self::PortRestricted, Self::Symmetric],
            other => vec![other],
        }
    }

    pub(crate) fn is_symmetric(self) -> bool {
        matches!(
            self,
            Self::Symmetric | Self::SymmetricAddress | Self::SymmetricSeq | Self::CgnatSymmetric
        )
    }

    /// `None`: addresses are not translated.
    pub(crate) fn mapping(self) -> Option<Dependence> {
        match self {
            Self::Open | Self::Firewall | Self::Blocked => None,
            Self::FullCone | Self::Restricted | Self::PortRestricted | Self::Cgnat => {
                Some(Endpoint)
            }
            Self::SymmetricAddress => Some(Address),
            _ => Some(AddressAndPort),
        }
    }

    pub(crate) fn filtering(self) -> Dependence {
        match self {
            Self::Open | Self::FullCone => Endpoint,
            Self::Restricted => Address,
            _ => AddressAndPort,
        }
    }

    fn keeps_ports(self) -> bool {
        matches!(self, Self::Linux | Self::LinuxNoInput)
    }
}

/// Two addresses are the same as far as `dependence` looks.
pub(crate) fn same(dependence: Dependence, a: SocketAddr, b: SocketAddr) -> bool {
    match dependence {
        Endpoint => true,
        Address => a.ip() == b.ip(),
        AddressAndPort => a == b,
    }
}

#[derive(Debug)]
struct Binding {
    outside: SocketAddr,
    sent_to: BTreeSet<SocketAddr>,
    born: Instant,
    used: Instant,
}

/// Inside address, and the destination as far as the mapping looks at it.
type Key = (SocketAddr, Option<IpAddr>, Option<u16>);

#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) kind: Kind,
    pub(crate) public: IpAddr,
    pub(crate) timeout: Duration,
    /// Mappings die at this age, whatever flows.
    pub(crate) life: Option<Duration>,
    pub(crate) hairpin: bool,
    bindings: HashMap<Key, Binding>,
    by_port: HashMap<u16, Vec<Key>>,
    /// Own port and remote end, for those that something was sent to.
    by_remote: HashMap<(u16, SocketAddr), Key>,
    next_port: u16,
    /// Own port and remote end of what the router took for its own.
    claimed: HashMap<(u16, SocketAddr), Instant>,
}

impl Gateway {
    pub(crate) fn new(kind: Kind, public: IpAddr, first_port: u16) -> Self {
        Self {
            kind,
            public,
            timeout: Duration::from_secs(30),
            life: None,
            hairpin: false,
            bindings: HashMap::new(),
            by_port: HashMap::new(),
            by_remote: HashMap::new(),
            next_port: first_port,
            claimed: HashMap::new(),
        }
    }

    /// As after a reboot: all mappings are forgotten.
    pub(crate) fn forget(&mut self) {
        self.bindings.clear();
        self.by_port.clear();
        self.by_remote.clear();
        self.claimed.clear();
    }

    fn key(&self, inside: SocketAddr, to: SocketAddr) -> Key {
        match self.kind.mapping().unwrap_or(Endpoint) {
            Endpoint => (inside, None, None),
            Address => (inside, Some(to.ip()), None),
            AddressAndPort => (inside, Some(to.ip()), Some(to.port())),
        }
    }

    fn is_live(&self, binding: &Binding, now: Instant) -> bool {
        now < binding.used + self.timeout && self.life.is_none_or(|life| now < binding.born + life)
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
        let key = self.key(inside, to);
        if self.bindings.get(&key).is_some_and(|b| !self.is_live(b, now)) {
            self.remove(&key);
        }
        if let Some(binding) = self.bindings.get_mut(&key) {
            if binding.sent_to.insert(to) {
                self.by_remote.insert((binding.outside.port(), to), key);
            }
            binding.used = now;
            return Some(binding.outside);
        }
        let outside = match self.kind.mapping() {
            None => inside,
            Some(_) => SocketAddr::new(self.public, self.allocate(inside, to, now, rng)),
        };
        let sent_to = BTreeSet::from([to]);
        self.by_port.entry(outside.port()).or_default().push(key);
        self.by_remote.insert((outside.port(), to), key);
        self.bindings.insert(key, Binding { outside, sent_to, born: now, used: now });
        Some(outside)
    }

    fn remove(&mut self, key: &Key) {
        if let Some(binding) = self.bindings.remove(key)
            && let Some(keys) = self.by_port.get_mut(&binding.outside.port())
        {
            keys.retain(|k| k != key);
            for to in &binding.sent_to {
                self.by_remote.remove(&(binding.outside.port(), *to));
            }
        }
    }

    fn allocate(
        &mut self,
        inside: SocketAddr,
        to: SocketAddr,
        now: Instant,
        rng: &mut StdRng,
    ) -> u16 {
        if self.kind == Kind::SymmetricSeq {
            // Others behind it get ports too, now and then.
            let others = if rng.random_range(0..4) == 0 { rng.random_range(1..=3) } else { 0 };
            self.next_port = self.next_port.wrapping_add(1 + others).max(1024);
            return self.next_port;
        }
        let timeout = self.timeout;
        self.claimed.retain(|_, used| now < *used + timeout);
        let taken = |gateway: &Self, port: u16| {
            let other = if gateway.kind.keeps_ports() {
                // Only connections to the same destination collide.
                gateway.by_remote.contains_key(&(port, to))
            } else {
                gateway.by_port.get(&port).is_some_and(|keys| !keys.is_empty())
            };
            other || gateway.claimed.contains_key(&(port, to))
        };
        if self.kind.keeps_ports() && !taken(self, inside.port()) {
            return inside.port();
        }
        loop {
            let port = rng.random_range(1024..=65535);
            if !taken(self, port) {
                return port;
            }
        }
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
        if self.kind == Kind::Open {
            return Some(to);
        }
        let filtering = self.kind.filtering();
        let (timeout, life) = (self.timeout, self.life);
        let strict = filtering == AddressAndPort;
        let exact = self.by_remote.get(&(to.port(), from)).filter(|_| strict);
        let loose = self.by_port.get(&to.port()).filter(|_| !strict);
        for key in exact.into_iter().chain(loose.into_iter().flatten()) {
            let Some(binding) = self.bindings.get_mut(key) else { continue };
            let live = now < binding.used + timeout && life.is_none_or(|l| now < binding.born + l);
            let known = strict || binding.sent_to.iter().any(|sent| same(filtering, *sent, from));
            if live && binding.outside == to && known {
                binding.used = now;
                return Some(key.0);
            }
        }
        if self.kind == Kind::LinuxNoInput {
            self.claimed.insert((to.port(), from), now);
        }
        None
    }
}
