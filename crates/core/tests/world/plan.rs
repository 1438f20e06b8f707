//! What a run is made of, and what theory says of it.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::nat::{Dependence, Kind};

/// What theory says of a pair of networks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Class {
    /// Simultaneous open works.
    Easy,
    /// The port has to be predicted.
    Predictable,
    /// The port has to be met by chance.
    Birthday,
    /// It depends on whose packet comes first.
    Race,
    /// A symmetric NAT against a router that minds whose packet comes first.
    BirthdayRace,
    /// Both ports follow each other: may work.
    Free,
    Impossible,
}

/// A change of a network during the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// The side's NAT forgets everything.
    Rebind,
    /// And gets another address.
    RebindAddress,
    /// The side is in another network.
    Roam,
    /// Nothing passes over UDP for some time.
    Outage { ms: u64 },
    /// Interfaces come and go, none that matters.
    Interfaces,
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) kinds: [Kind; 2],
    /// Both ends on one LAN, behind the first gateway.
    pub(crate) same_lan: bool,
    /// Firewalled IPv6 on both sides.
    pub(crate) v6: bool,
    /// Junk candidates of each side.
    pub(crate) junk: usize,
    /// One way, from each side to the middle of the network.
    pub(crate) delay_ms: [u64; 2],
    pub(crate) jitter_ms: u64,
    pub(crate) loss_percent: u32,
    /// What the mediator and the console's handshake take.
    pub(crate) signal_ms: u64,
    /// Server-reflexive candidates and NAT summaries come so much later than the others.
    pub(crate) trickle_ms: u64,
    /// Own addresses are announced again not sooner than this after it was asked for.
    pub(crate) announce_ms: u64,
    /// The mediator has two addresses, so that filtering is known.
    pub(crate) filtering_known: bool,
    /// Mappings of the side's outer NAT die at this age.
    pub(crate) life_s: Option<(usize, u64)>,
    /// On which side, after how many ms.
    pub(crate) change: Option<(Change, usize, u64)>,
    /// Only checks are sent, no data.
    pub(crate) quiet: bool,
}

impl Plan {
    pub(crate) fn of(kinds: [Kind; 2]) -> Self {
        Self {
            kinds,
            same_lan: false,
            v6: false,
            junk: 0,
            delay_ms: [10, 10],
            jitter_ms: 0,
            loss_percent: 0,
            signal_ms: 3,
            trickle_ms: 0,
            announce_ms: 0,
            filtering_known: true,
            life_s: None,
            change: None,
            quiet: false,
        }
    }

    pub(crate) fn random(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
        let mut kind = || Kind::ALL[rng.random_range(0..Kind::ALL.len())];
        let kinds = [kind(), kind()];
        let changes = [
            Change::Rebind,
            Change::RebindAddress,
            Change::Roam,
            Change::Outage { ms: rng.random_range(500..15_000) },
            Change::Interfaces,
        ];
        let change = changes[rng.random_range(0..changes.len())];
        let change = (change, rng.random_range(0..2), rng.random_range(6_000..20_000));
        let translated = kinds[0].mapping().is_some();
        Self {
            kinds,
            same_lan: rng.random_range(0..12) == 0 && translated,
            v6: rng.random_range(0..6) == 0,
            junk: if rng.random() { rng.random_range(0..=30) } else { 0 },
            delay_ms: [rng.random_range(1..=75), rng.random_range(1..=75)],
            jitter_ms: rng.random_range(0..=20),
            loss_percent: rng.random_range(0..=5),
            signal_ms: rng.random_range(1..=8),
            trickle_ms: if rng.random() { rng.random_range(1..=300) } else { 0 },
            announce_ms: 0,
            filtering_known: rng.random(),
            life_s: None,
            change: rng.random::<bool>().then_some(change),
            quiet: false,
        }
    }

    /// Written from the NATs' definitions, not from the machine: a side that maps by destination
    /// appears at a port that nobody knows, so that the other side's filter must not look at
    /// ports; a router that takes the peer's first packet for its own gives this end another port.
    pub(crate) fn class(&self) -> Class {
        let [a, b] = self.kinds;
        if self.same_lan || self.v6 {
            return Class::Easy;
        }
        let looks_at_ports = |k: Kind| k.filtering() == Dependence::AddressAndPort;
        let minds = |k: Kind| k == Kind::LinuxNoInput;
        if a == Kind::Blocked || b == Kind::Blocked {
            return Class::Impossible;
        }
        let seq = |k: Kind| k == Kind::SymmetricSeq;
        match (a.is_symmetric(), b.is_symmetric()) {
            (true, true) if seq(a) && seq(b) => Class::Free,
            (true, true) => Class::Impossible,
            (false, false) => {
                let race = minds(a) && looks_at_ports(b) || minds(b) && looks_at_ports(a);
                if race { Class::Race } else { Class::Easy }
            }
            (symmetric_a, _) => {
                let (symmetric, other) = if symmetric_a { (a, b) } else { (b, a) };
                if !looks_at_ports(other) {
                    Class::Easy
                } else if minds(other) {
                    Class::BirthdayRace
                } else if seq(symmetric) {
                    Class::Predictable
                } else {
                    Class::Birthday
                }
            }
        }
    }

    /// One way, from end to end.
    pub(crate) fn one_way(&self) -> Duration {
        Duration::from_millis(self.delay_ms.iter().sum())
    }
}
