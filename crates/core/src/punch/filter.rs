//! Which addresses a peer may make this end send packets to.
//!
//! Candidates come from the other end, which may be hostile: it must not be able to point checks
//! at services of this machine, at a cloud's metadata service, or at groups of hosts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Private addresses are probed on ports from here: below are services, not session sockets.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// Where clouds tell machines their secrets, also to those of a subnet that holds such an address.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
];

/// A subnet of an own interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnSubnet {
    /// Any address in it.
    pub addr: IpAddr,
    /// Prefix length in bits.
    pub prefix: u8,
}

/// Admits public addresses, and private ones of own subnets with unprivileged ports.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AddressFilter {
    /// Subnets of own interfaces.
    pub own_subnets: Vec<OwnSubnet>,
    /// The mediator was reached over loopback: both ends may be on this machine.
    pub loopback: bool,
}

impl AddressFilter {
    /// Whether packets may go there.
    pub fn admits(&self, addr: SocketAddr) -> bool {
        let ip = addr.ip().to_canonical();
        if addr.port() == 0 || never(ip) {
            return false;
        }
        let unprivileged = addr.port() >= FIRST_UNPRIVILEGED_PORT;
        if ip.is_loopback() {
            return self.loopback && unprivileged;
        }
        if is_private(ip) {
            return unprivileged && self.own_subnets.iter().any(|s| s.contains(ip));
        }
        // An own subnet with public addresses needs no rule: it is reachable from anywhere.
        true
    }
}

impl OwnSubnet {
    fn contains(&self, ip: IpAddr) -> bool {
        let shift = |bits: u32| bits.saturating_sub(u32::from(self.prefix));
        match (self.addr.to_canonical(), ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (a.to_bits() ^ b.to_bits()).checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                (a.to_bits() ^ b.to_bits()).checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// Addresses that no candidate can have.
fn never(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            // 169.254/16 holds the usual metadata address; the others are clouds of their own.
            v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_link_local()
                || first == 0
                || first >= 240
                || v4 == Ipv4Addr::new(100, 100, 100, 200)
                || v4 == Ipv4Addr::new(192, 0, 0, 192)
                || v4 == Ipv4Addr::new(168, 63, 129, 16)
        }
        IpAddr::V6(v6) => {
            let [first, ..] = v6.segments();
            v6.is_unspecified()
                || v6.is_multicast()
                || first & 0xffc0 == 0xfe80 // link-local (RFC 4291 §2.5.6): ambiguous without zone
                || first & 0xffc0 == 0xfec0 // site-local, deprecated (RFC 3879)
                || METADATA_V6.contains(&v6)
                // Translated IPv4 (RFC 6052 §2.1, RFC 3056): would smuggle any of the above.
                || matches!(v6.segments(), [0x64, 0xff9b, ..] | [0x2002, ..])
                || v6.to_ipv4().is_some_and(|v4| !v6.is_loopback() && !v4.is_unspecified())
        }
    }
}

/// Neither private nor of this machine.
pub(super) fn is_public(ip: IpAddr) -> bool {
    !is_private(ip) && !ip.is_loopback()
}

/// RFC 1918, RFC 6598 (shared by carriers), RFC 4193.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private() || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(v6) => {
            let [first, ..] = v6.segments();
            first & 0xfe00 == 0xfc00
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admits_only_what_a_peer_may_point_at() {
        let filter = AddressFilter {
            own_subnets: vec![
                OwnSubnet { addr: "192.168.7.9".parse().unwrap(), prefix: 24 },
                OwnSubnet { addr: "fd12::1".parse().unwrap(), prefix: 64 },
                // They hold addresses in which clouds tell secrets.
                OwnSubnet { addr: "fd00::1".parse().unwrap(), prefix: 16 },
                OwnSubnet { addr: "fd20::1".parse().unwrap(), prefix: 16 },
                OwnSubnet { addr: "100.100.100.1".parse().unwrap(), prefix: 24 },
            ],
            loopback: false,
        };
        for ok in [
            "203.0.113.9:53",
            "[2001:db8::1]:443",
            "192.168.7.200:1024",
            "[fd12::99]:40000",
            "[::ffff:203.0.113.9]:9",
        ] {
            assert!(filter.admits(ok.parse().unwrap()), "{ok}");
        }
        for bad in [
            "192.168.7.200:1023",
            "192.168.8.1:4000",
            "10.0.0.1:4000",
            "100.64.0.1:4000",
            "127.0.0.1:4000",
            "[::1]:4000",
            "[::ffff:127.0.0.1]:4000",
            "[::127.0.0.1]:4000",
            "[64:ff9b::7f00:1]:4000",
            "[64:ff9b:1::a9fe:a9fe]:4000",
            "[2002:7f00:1::]:4000",
            "169.254.169.254:8080",
            "[fd00:ec2::254]:8080",
            "[fd20:ce::254]:8080",
            "[fd00:42::42]:8080",
            "100.100.100.200:8080",
            "168.63.129.16:8080",
            "192.0.0.192:8080",
            "[fe80::1]:4000",
            "[ff02::1]:4000",
            "224.0.0.251:5353",
            "255.255.255.255:4000",
            "0.0.0.0:4000",
            "[::]:4000",
            "203.0.113.9:0",
            "[fd13::1]:4000",
        ] {
            assert!(!filter.admits(bad.parse().unwrap()), "{bad}");
        }
        let local = AddressFilter { own_subnets: vec![], loopback: true };
        assert!(local.admits("127.0.0.1:4000".parse().unwrap()));
        assert!(!local.admits("127.0.0.1:22".parse().unwrap()));
    }
}
