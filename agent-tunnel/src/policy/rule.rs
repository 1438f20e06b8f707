//! What an `[[allow]]` entry's targets and ports match.
//!
//! Addresses are compared in canonical form only. Special addresses (requirement R15) match
//! nothing but a rule that lies wholly within their own block: whoever wants them has to mean it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use adit_net::interfaces::innermost;
use adit_protocol::target::{Target, Transport};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The addresses of `localhost`.
pub(super) const LOCALHOST: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Bits before the IPv4 address in an IPv4-mapped one (RFC 4291 §2.5.5.2).
const MAPPED_PREFIX: u8 = 96;

/// Blocks that only a rule within them opens: loopback, link-local, multicast, broadcast and the
/// reserved last sixteenth (RFC 6890), and where clouds tell machines their secrets.
const SPECIAL: &[IpNet] = &[
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([224, 0, 0, 0], 4),
    v4([240, 0, 0, 0], 4),
    v4([100, 100, 100, 200], 32),
    v4([168, 63, 129, 16], 32),
    v4([192, 0, 0, 192], 32),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128),
    v6([0xFE80, 0, 0, 0, 0, 0, 0, 0], 10),
    // Site-local addresses, deprecated by RFC 3879 but still routed by some.
    v6([0xFEC0, 0, 0, 0, 0, 0, 0, 0], 10),
    v6([0xFF00, 0, 0, 0, 0, 0, 0, 0], 8),
    // Local NAT64 (RFC 8215): which bits are the IPv4 address, only its translator knows.
    v6([0x64, 0xFF9B, 1, 0, 0, 0, 0, 0], 48),
    v6([0xFD00, 0xEC2, 0, 0, 0, 0, 0, 0x254], 128),
    v6([0xFD20, 0xCE, 0, 0, 0, 0, 0, 0x254], 128),
    v6([0xFD00, 0x42, 0, 0, 0, 0, 0, 0x42], 128),
];

const fn v4(octets: [u8; 4], prefix: u8) -> IpNet {
    let [a, b, c, d] = octets;
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn v6(segments: [u16; 8], prefix: u8) -> IpNet {
    let [a, b, c, d, e, f, g, h] = segments;
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix))
}

/// One of an entry's targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetRule {
    /// Addresses.
    Net(IpNet),
    /// Names.
    Name(NamePattern),
}

impl TargetRule {
    /// Exactly one address.
    pub fn address(ip: IpAddr) -> Self {
        Self::Net(IpNet::from(ip.to_canonical()))
    }

    /// Reads an address, network, name, or `*.name`. `localhost` means the loopback addresses,
    /// so that it can give two rules.
    pub fn parse(text: &str) -> Result<Vec<Self>, String> {
        if text == "localhost" {
            return Ok(LOCALHOST.into_iter().map(Self::address).collect());
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(vec![Self::address(ip)]);
        }
        if text.contains('/') {
            let net = text.parse::<IpNet>().map_err(|_| {
                format!("\"{}\" is not a network like \"192.168.7.0/24\"", text.escape_debug())
            })?;
            if net != net.trunc() {
                return Err(format!(
                    "\"{net}\" has bits after its prefix: write \"{}\" or the address alone",
                    net.trunc()
                ));
            }
            return Ok(vec![Self::Net(canonical(net))]);
        }
        NamePattern::parse(text).map(|pattern| vec![Self::Name(pattern)])
    }

    /// Does it, being about addresses, include this one?
    pub(super) fn allows_address(&self, ip: IpAddr) -> bool {
        let Self::Net(net) = self else { return false };
        if never_dialled(ip) || !net.contains(&ip) {
            return false;
        }
        match SPECIAL.iter().find(|block| block.contains(&ip)) {
            Some(block) => block.contains(net),
            // An IPv6 address that stands for a special IPv4 one: only by its full address.
            None if is_special(ip) => net.prefix_len() == net.max_prefix_len(),
            None => true,
        }
    }
}

impl fmt::Display for TargetRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Self::Net(net) => net.fmt(f),
            Self::Name(pattern) => pattern.fmt(f),
        }
    }
}

/// IPv4-mapped networks are IPv4 networks.
fn canonical(net: IpNet) -> IpNet {
    if let IpNet::V6(v6) = net
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Some(prefix) = v6.prefix_len().checked_sub(MAPPED_PREFIX)
        && let Ok(net) = Ipv4Net::new(v4, prefix)
    {
        return IpNet::V4(net);
    }
    net
}

/// Addresses that are nobody's: "this network" (RFC 791), where a system may connect to itself,
/// and the limited broadcast.
pub(super) fn never_dialled(ip: IpAddr) -> bool {
    match innermost(ip) {
        IpAddr::V4(ip) => ip.octets()[0] == 0 || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    }
}

/// Does requirement R15 name the address, in whatever spelling?
pub(super) fn is_special(ip: IpAddr) -> bool {
    let inner = innermost(ip);
    SPECIAL.iter().any(|block| block.contains(&ip) || block.contains(&inner))
}

/// A name, or all names below one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    /// INVARIANT: in the canonical form of [`Target`].
    name: String,
    below: bool,
}

impl NamePattern {
    fn parse(text: &str) -> Result<Self, String> {
        let (name, below) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let shown = text.escape_debug();
        let target = Target::new(name, 1, Transport::Tcp).map_err(|_| {
            format!(
                "\"{shown}\" is not an address, a network, a name, or \"*.\" and a name \
                 (for all addresses: \"0.0.0.0/0\" and \"::/0\")"
            )
        })?;
        if target.ip().is_some() || super::is_localhost(target.host()) {
            return Err(format!("\"{shown}\" is not a name below which there are others"));
        }
        Ok(Self { name: target.host().to_owned(), below })
    }

    /// Does it match this canonical name?
    pub fn matches(&self, name: &str) -> bool {
        match name.strip_suffix(self.name.as_str()) {
            Some("") => !self.below,
            Some(rest) => self.below && rest.ends_with('.'),
            None => false,
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.name)
    }
}

/// Ports from first to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// One port.
    pub const fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// From a number of the file.
    pub fn from_number(number: i64) -> Result<Self, String> {
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        port.map(Self::single).ok_or_else(|| format!("{number} is not a port: 1 to 65535"))
    }

    /// Reads `22` or `5900-5910`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("\"{}\" is not a port or a range like \"5900-5910\"", text.escape_debug());
        let port = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            let port = digits.parse::<u16>().ok().filter(|port| plain && *port != 0);
            port.ok_or_else(wrong)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = Self { first: port(first)?, last: port(last)? };
        if range.first > range.last {
            return Err(format!("\"{}\" ends before it begins", text.escape_debug()));
        }
        Ok(range)
    }

    /// Is the port within?
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// The port, if it is only one.
    pub fn as_single(self) -> Option<u16> {
        (self.first == self.last).then_some(self.first)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_single() {
            Some(port) => port.fmt(f),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}
