//! Addresses that a peer may not make us send to (requirement R15).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// Ports below this belong to services; in the own network they are not to be knocked at.
const FIRST_PRIVATE_PORT: u16 = 1_024;
/// Where clouds tell machines their secrets, as far as these are not link-local.
const METADATA: &[IpAddr] = &[
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xFD00, 0xEC2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xFD20, 0xCE, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xFD00, 0x42, 0, 0, 0, 0, 0, 0x42)),
];

/// Whether a candidate of a peer must not be probed. `own` are the subnets of this machine;
/// `loopback` allows loopback, for peers whose mediator was reached over loopback.
pub fn forbidden_probe_target(target: SocketAddr, own: &[IpNet], loopback: bool) -> bool {
    let ip = innermost(target.ip());
    if target.port() == 0 || METADATA.contains(&ip) || translated(ip).is_some() {
        return true;
    }
    if ip.is_loopback() {
        return !loopback;
    }
    if never_a_peer(ip) {
        return true;
    }
    let own_net = own.iter().find(|net| net.contains(&ip));
    if own_net.is_some_and(|net| is_broadcast(net, ip)) {
        return true;
    }
    is_private(ip) && (own_net.is_none() || target.port() < FIRST_PRIVATE_PORT)
}

/// Whether a program may connect to an address that the mediator named: a relay, or a further
/// STUN server. To be asked of every address that a name resolved to.
///
/// A mediator that was taken over must not make its agents knock at what is reachable only for
/// them. So public addresses are all right; private and shared ones only where the mediator
/// itself was reached at such an address, or at one of the same subnet, for then the whole
/// installation lives in a private network; loopback only for a mediator on loopback. With an
/// unknown `mediator` (behind a proxy) private addresses need an own subnet; the proxy, which
/// makes the connection then, has rules of its own.
pub fn may_connect(target: SocketAddr, mediator: Option<SocketAddr>, own: &[IpNet]) -> bool {
    let ip = innermost(target.ip());
    let mediator = mediator.map(|m| innermost(m.ip()));
    if let Some(readings) = translated(ip) {
        // Where the mediator is reached through the same kind of translator, and whichever bits it
        // reads, it is led to no place that this machine would not go to by itself.
        let known = mediator.is_some_and(|m| translated(m).is_some());
        let public = |ip: &Ipv4Addr| {
            let ip = IpAddr::V4(*ip);
            !(METADATA.contains(&ip)
                || ip.is_loopback()
                || never_a_peer(ip)
                || is_private(ip)
                || is_shared(ip))
        };
        let mut read = readings.iter().filter(|ip| ip.octets()[0] != 0).peekable();
        return known && target.port() != 0 && read.peek().is_some() && read.all(public);
    }
    if target.port() == 0 || METADATA.contains(&ip) {
        return false;
    }
    if ip.is_loopback() {
        return mediator.is_some_and(|m| m.is_loopback());
    }
    // A relay next to a mediator that was reached at the same address is no new destination.
    if mediator == Some(ip) {
        return true;
    }
    if never_a_peer(ip) || own.iter().any(|net| net.contains(&ip) && is_broadcast(net, ip)) {
        return false;
    }
    if !is_private(ip) && !is_shared(ip) {
        return true;
    }
    match mediator {
        Some(m) if m.is_loopback() => own.iter().any(|net| net.contains(&ip)),
        Some(m) => is_private(m) || is_shared(m),
        None => own.iter().any(|net| net.contains(&ip)),
    }
}

/// Shared with other customers of a provider (RFC 6598); some overlay networks use it too.
fn is_shared(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.octets()[0] == 100 && ip.octets()[1] & 0xC0 == 64)
}

/// RFC 1918 and RFC 4193.
pub fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private(),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

fn never_a_peer(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            // "This network" (RFC 791) and the reserved last eighth (RFC 1112 §4).
            ip.octets()[0] == 0 || ip.octets()[0] >= 240 || ip.is_link_local() || ip.is_multicast()
        }
        IpAddr::V6(ip) => {
            // The deprecated site-local range (RFC 3879) is treated like link-local.
            let site_local = ip.segments()[0] & 0xFFC0 == 0xFEC0;
            ip.is_unspecified() || ip.is_unicast_link_local() || ip.is_multicast() || site_local
        }
    }
}

fn is_broadcast(net: &IpNet, ip: IpAddr) -> bool {
    net.addr().is_ipv4() && net.prefix_len() < 31 && (ip == net.broadcast() || ip == net.network())
}

/// The IPv4 address that an IPv6 one stands for: mapped, compatible (RFC 4291 §2.5.5), NAT64
/// (RFC 6052 §2.1), 6to4 (RFC 3056 §2) and what translators wrote before (RFC 2765 §2.1).
pub fn innermost(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    let embedded = |high: u16, low: u16| {
        IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => ip,
        [0, 0, 0, 0, 0, 0 | 0xFFFF, high, low]
        | [0, 0, 0, 0, 0xFFFF, 0, high, low]
        | [0x64, 0xFF9B, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        _ => ip,
    }
}

/// What an address of local NAT64 (RFC 8215) may stand for: an IPv4 address behind a prefix of 48,
/// 56, 64 or 96 bits (RFC 6052 §2.2), which only its translator knows.
fn translated(ip: IpAddr) -> Option<[Ipv4Addr; 4]> {
    let IpAddr::V6(v6) = ip else { return None };
    if !matches!(v6.segments(), [0x64, 0xFF9B, 1, ..]) {
        return None;
    }
    let [.., b6, b7, _, b9, b10, b11, b12, b13, b14, b15] = v6.octets();
    let readings =
        [[b6, b7, b9, b10], [b7, b9, b10, b11], [b9, b10, b11, b12], [b12, b13, b14, b15]];
    Some(readings.map(Ipv4Addr::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also in networks that hold the addresses in which clouds tell secrets.
    fn forbidden(target: &str) -> bool {
        let own = ["192.168.7.20/24", "fd12::5/64", "fd00::/16", "fd20::/16", "100.100.100.1/24"];
        let own = own.map(|net| net.parse().unwrap());
        forbidden_probe_target(target.parse().unwrap(), &own, false)
    }

    #[test]
    fn refuses_what_r15_names_in_every_spelling() {
        for target in [
            "127.0.0.1:5000",
            "[::1]:5000",
            "[::ffff:127.0.0.1]:5000",
            "[::127.0.0.1]:5000",
            "[::ffff:0:127.0.0.1]:5000",
            "[::ffff:0:169.254.169.254]:5000",
            "[64:ff9b::7f00:1]:5000",
            "[64:ff9b:1::a9fe:a9fe]:5000",
            "[64:ff9b:1:a9fe:a9:fe00:808:808]:5000",
            "[64:ff9b:1::cb00:7109]:5000",
            "[2002:7f00:1::]:5000",
            "169.254.169.254:5000",
            "[::ffff:169.254.169.254]:5000",
            "[fd00:ec2::254]:5000",
            "[fd20:ce::254]:5000",
            "[fd00:42::42]:5000",
            "100.100.100.200:5000",
            "168.63.129.16:5000",
            "192.0.0.192:5000",
            "169.254.3.4:5000",
            "[fe80::1]:5000",
            "[fec0::1]:5000",
            "224.0.0.251:5353",
            "[ff02::fb]:5353",
            "0.0.0.0:5000",
            "0.1.2.3:5000",
            "[::]:5000",
            "255.255.255.255:5000",
            "240.0.0.1:5000",
            "203.0.113.9:0",
        ] {
            assert!(forbidden(target), "{target}");
        }
    }

    #[test]
    fn private_addresses_only_in_an_own_subnet_and_not_at_services() {
        assert!(!forbidden("192.168.7.9:40000"));
        assert!(!forbidden("[::ffff:192.168.7.9]:40000"));
        assert!(!forbidden("[fd12::9]:40000"));
        for target in [
            "192.168.7.9:53",
            "192.168.7.255:40000",
            "192.168.8.9:40000",
            "10.0.0.1:40000",
            "[fd13::9]:40000",
            "[fd12::9]:161",
        ] {
            assert!(forbidden(target), "{target}");
        }
        assert!(!forbidden("203.0.113.9:443"));
        assert!(!forbidden("[2001:db8::9]:443"));
        assert!(!forbidden("100.64.3.4:40000"));
    }

    #[test]
    fn loopback_only_when_allowed_and_nothing_else_with_it() {
        assert!(!forbidden_probe_target("127.0.0.1:5000".parse().unwrap(), &[], true));
        assert!(!forbidden_probe_target("[::1]:5000".parse().unwrap(), &[], true));
        assert!(forbidden_probe_target("169.254.169.254:80".parse().unwrap(), &[], true));
    }

    #[test]
    fn translators_of_the_local_network_are_led_to_public_addresses_only() {
        let may = |target: &str, mediator: &str| {
            may_connect(target.parse().unwrap(), Some(mediator.parse().unwrap()), &[])
        };
        let (relay, here) = ("[64:ff9b:1::cb00:7109]:443", "[64:ff9b:1::cb00:7101]:443");
        assert!(may(relay, here) && !may(relay, "203.0.113.1:443"));
        for target in [
            "[64:ff9b:1::a9fe:a9fe]:80",
            "[64:ff9b:1:a9fe:a9:fe00:808:808]:80",
            "[64:ff9b:1:9:fe:a9fe:808:808]:80",
            "[64:ff9b:1:0:a9:fea9:fe08:808]:80",
            "[64:ff9b:1::a00:1]:443",
            "[64:ff9b:1::]:443",
        ] {
            assert!(!may(target, here), "{target}");
        }
    }

    #[test]
    fn a_mediator_leads_nobody_into_networks_that_it_is_not_in_itself() {
        let own = ["192.168.7.20/24".parse().unwrap()];
        let may = |target: &str, mediator: Option<&str>| {
            let mediator = mediator.map(|m| m.parse().unwrap());
            may_connect(target.parse().unwrap(), mediator, &own)
        };
        let public = Some("203.0.113.9:443");
        let private = Some("10.1.2.3:443");
        for target in ["198.51.100.7:443", "[2001:db8::7]:443"] {
            assert!(may(target, public) && may(target, private) && may(target, None), "{target}");
        }
        for target in ["10.9.9.9:443", "192.168.7.9:443", "100.64.1.1:443", "[fd12::9]:443"] {
            assert!(!may(target, public), "{target}");
            assert!(may(target, private), "{target}");
        }
        assert!(may("192.168.7.9:443", None) && !may("10.9.9.9:443", None));
        let here = Some("127.0.0.1:443");
        assert!(may("127.0.0.1:8443", here) && may("[::1]:8443", here));
        assert!(!may("127.0.0.1:8443", private) && !may("127.0.0.1:8443", None));
        for target in [
            "169.254.169.254:80",
            "[::ffff:169.254.169.254]:80",
            "[fe80::1]:443",
            "224.0.0.1:443",
            "0.0.0.0:443",
            "192.168.7.255:443",
            "198.51.100.7:0",
        ] {
            assert!(![public, private, here, None].into_iter().any(|m| may(target, m)), "{target}");
        }
        assert!(may("[fe80::5]:443", Some("[fe80::5]:8443")), "the mediator's own host");
    }
}
