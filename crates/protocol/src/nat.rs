//! What an end knows of its own NAT and tells the peer, so that both can meet it (RFC 4787).
//!
//! A peer's summary is a hint: it decides how probing goes, never where packets may be sent.

use std::net::IpAddr;

use bytes::Bytes;

use crate::wire;

/// External ports that an end tells of.
pub const MAX_NAT_PORTS: usize = 8;
/// Largest believable distance between the external ports of successive mappings. NATs count by
/// 1, some by 2 to keep parity, few by more; larger "steps" are chance.
pub const MAX_PORT_STEP: i32 = 64;

/// What a mapping, or a filter, depends on (RFC 4787 §4.1, §5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub enum NatBehaviour {
    /// Not found out.
    #[default]
    Unknown = 0,
    /// On nothing: one external port for all destinations; anybody gets in.
    EndpointIndependent = 1,
    /// On the destination's address.
    AddressDependent = 2,
    /// On the destination's address and port.
    AddressAndPortDependent = 3,
}

/// An end's NAT, as its STUN discovery saw it: that of IPv4, or of IPv6 where IPv4 is missing.
///
/// Without any port no server answered: UDP is blocked, as far as this end can tell.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct NatSummary {
    /// On what the external port depends.
    pub mapping: NatBehaviour,
    /// On what it depends who gets in.
    pub filtering: NatBehaviour,
    /// Distance between the external ports of successive mappings; 0 if not predictable.
    pub port_step: i32,
    /// External ports observed last, newest last.
    pub ports: Vec<u16>,
}

impl NatBehaviour {
    fn from_wire(n: u32) -> Self {
        match n {
            1 => Self::EndpointIndependent,
            2 => Self::AddressDependent,
            3 => Self::AddressAndPortDependent,
            _ => Self::Unknown,
        }
    }

    /// As in command-line output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
        }
    }
}

impl NatSummary {
    /// Another port for each destination: the peer cannot know it beforehand.
    pub fn is_symmetric(&self) -> bool {
        matches!(
            self.mapping,
            NatBehaviour::AddressDependent | NatBehaviour::AddressAndPortDependent
        )
    }

    /// No server answered over UDP.
    pub fn is_blocked(&self) -> bool {
        self.ports.is_empty()
    }

    /// For a message field. Of more than [`MAX_NAT_PORTS`] ports the newest are kept.
    pub fn to_wire(&self) -> wire::NatSummary {
        let skip = self.ports.len().saturating_sub(MAX_NAT_PORTS);
        wire::NatSummary {
            mapping: self.mapping as u32,
            filtering: self.filtering as u32,
            port_step: believable(self.port_step),
            ports: self.ports.iter().skip(skip).map(|p| u32::from(*p)).collect(),
        }
    }

    /// From a message field. What cannot be is dropped: unknown behaviours, steps and ports.
    pub fn from_wire(w: &wire::NatSummary) -> Self {
        let ports = w.ports.iter().rev().take(MAX_NAT_PORTS).rev();
        let ports = ports.filter_map(|p| u16::try_from(*p).ok().filter(|p| *p != 0)).collect();
        Self {
            mapping: NatBehaviour::from_wire(w.mapping),
            filtering: NatBehaviour::from_wire(w.filtering),
            port_step: believable(w.port_step),
            ports,
        }
    }
}

/// The distance between the external ports of successive mappings, observed in this order; 0 if
/// there are fewer than three, or they do not go one way in small steps. Others who got ports in
/// between make single distances multiples of it.
pub fn regular_step(ports: &[u16]) -> i32 {
    let steps = ports.windows(2).map(|pair| match pair {
        [before, after] => i32::from(*after) - i32::from(*before),
        _ => 0,
    });
    let steps: Vec<i32> = steps.collect();
    let small = |step: &i32| *step != 0 && believable(*step) == *step;
    let one_way = steps.iter().all(|s| *s > 0) || steps.iter().all(|s| *s < 0);
    if steps.len() < 2 || !one_way || !steps.iter().all(small) {
        return 0;
    }
    let divisor = |a: i32, b: i32| {
        let (mut a, mut b) = (a.abs(), b.abs());
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let sign = steps.first().map_or(1, |s| s.signum());
    steps.into_iter().fold(0, divisor) * sign
}

fn believable(step: i32) -> i32 {
    if step.unsigned_abs() <= MAX_PORT_STEP.unsigned_abs() { step } else { 0 }
}

/// An IP address for a message field: 4 or 16 bytes.
pub fn ip_to_wire(ip: IpAddr) -> Bytes {
    match ip.to_canonical() {
        IpAddr::V4(v4) => Bytes::copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => Bytes::copy_from_slice(&v6.octets()),
    }
}

/// An IP address from a message field; IPv4-mapped ones become IPv4. None for any other length:
/// an absent field is empty.
pub fn ip_from_wire(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let ip = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()?;
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_and_drops_what_cannot_be() {
        let nat = NatSummary {
            mapping: NatBehaviour::AddressAndPortDependent,
            filtering: NatBehaviour::AddressDependent,
            port_step: -2,
            ports: (1..=20).collect(),
        };
        let back = NatSummary::from_wire(&nat.to_wire());
        assert_eq!(back, NatSummary { ports: (13..=20).collect(), ..nat });
        let strange = wire::NatSummary {
            mapping: 9,
            filtering: u32::MAX,
            port_step: i32::MIN,
            ports: vec![0, 70_000, 7],
        };
        let read = NatSummary::from_wire(&strange);
        assert_eq!(read, NatSummary { ports: vec![7], ..NatSummary::default() });
    }

    #[test]
    fn only_regular_ports_have_a_step() {
        assert_eq!(regular_step(&[4000, 4001, 4003]), 1);
        assert_eq!(regular_step(&[4000, 4002, 4008, 4010]), 2);
        assert_eq!(regular_step(&[4010, 4008, 4004]), -2);
        for none in [&[4000, 4001][..], &[4000, 4001, 4000], &[4000, 4000, 4001], &[1, 900, 901]] {
            assert_eq!(regular_step(none), 0, "{none:?}");
        }
    }

    #[test]
    fn addresses_read_back() {
        for ip in ["192.0.2.1", "2001:db8::1"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(ip_from_wire(&ip_to_wire(ip)), Some(ip));
        }
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(ip_to_wire(mapped).len(), 4);
        assert_eq!(ip_from_wire(b""), None);
        assert_eq!(ip_from_wire(&[1; 5]), None);
    }
}
