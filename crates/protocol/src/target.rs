//! Where a redirector leads: host, port and transport, as named by a console.

use std::{fmt, net::IpAddr, str::FromStr};

use crate::{limits::MAX_HOST_LEN, wire};

/// Transport of a redirected service, with its IANA protocol number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Transport {
    /// TCP, 6.
    Tcp = 6,
    /// UDP, 17.
    Udp = 17,
}

impl Transport {
    /// From the IANA protocol number.
    pub fn from_number(n: u32) -> Result<Self, InvalidTarget> {
        match n {
            6 => Ok(Self::Tcp),
            17 => Ok(Self::Udp),
            _ => Err(InvalidTarget::Transport),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Why a target is not one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidTarget {
    /// Not an address and not a host name (RFC 1123 §2.1, underscores allowed).
    #[error("not a host name or address")]
    Host,
    /// 0 or above 65535.
    #[error("not a port: 1 to 65535 is expected")]
    Port,
    /// Neither TCP nor UDP.
    #[error("transport is neither tcp nor udp")]
    Transport,
    /// Not `HOST:PORT`.
    #[error("HOST:PORT or [IPV6]:PORT is expected")]
    Syntax,
}

/// A validated target. The host is an IP address in canonical form or a lower-case name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    host: Box<str>,
    port: u16,
    transport: Transport,
}

impl Target {
    /// Validates host and port. IPv4-mapped IPv6 addresses become IPv4, so that no rule about
    /// an address can be passed by writing it in another way.
    pub fn new(host: &str, port: u16, transport: Transport) -> Result<Self, InvalidTarget> {
        if port == 0 {
            return Err(InvalidTarget::Port);
        }
        let host = match host.parse::<IpAddr>() {
            Ok(ip) => ip.to_canonical().to_string(),
            Err(_) => valid_name(host).ok_or(InvalidTarget::Host)?,
        };
        Ok(Self { host: host.into(), port, transport })
    }

    /// Parses `HOST:PORT` or `[IPV6]:PORT`.
    pub fn parse(s: &str, transport: Transport) -> Result<Self, InvalidTarget> {
        let (host, port) = s.rsplit_once(':').ok_or(InvalidTarget::Syntax)?;
        let host = match host.strip_prefix('[') {
            Some(v6) => v6.strip_suffix(']').ok_or(InvalidTarget::Syntax)?,
            None if host.contains(':') => return Err(InvalidTarget::Syntax),
            None => host,
        };
        Self::new(host, u16::from_str(port).map_err(|_| InvalidTarget::Port)?, transport)
    }

    /// Host name or address.
    pub fn host(&self) -> &str {
        &self.host
    }
    /// The host, if it is an address.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
    /// Port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }
    /// TCP or UDP.
    pub fn transport(&self) -> Transport {
        self.transport
    }
    /// For a message field.
    pub fn to_wire(&self) -> wire::Target {
        wire::Target {
            host: self.host.to_string(),
            port: self.port.into(),
            protocol: self.transport as u32,
        }
    }
    /// From a message field.
    pub fn from_wire(w: &wire::Target) -> Result<Self, InvalidTarget> {
        let port = u16::try_from(w.port).map_err(|_| InvalidTarget::Port)?;
        Self::new(&w.host, port, Transport::from_number(w.protocol)?)
    }
}

/// Labels of letters, digits, `-` and `_`, of 1 to 63 characters; never looking like an option
/// (leading `-`) or like a number written in a way only some resolvers know.
fn valid_name(host: &str) -> Option<String> {
    let label_ok = |l: &str| {
        (1..=63).contains(&l.len())
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let last = name.rsplit('.').next()?;
    let numeric = last.bytes().all(|b| b.is_ascii_digit())
        || last.strip_prefix("0x").is_some_and(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
    (name.len() <= MAX_HOST_LEN && !numeric && name.split('.').all(label_ok)).then_some(name)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", self.transport)
    }
}

/// A redirector known to every build: its name, port on the computer itself, and viewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuiltinRedirector {
    /// As typed on the command line.
    pub name: &'static str,
    /// Port on the computer's loopback address.
    pub port: u16,
    /// Kind of viewer, a key of the console's own table.
    pub viewer: &'static str,
}

/// The redirectors every computer has, all TCP on its loopback address.
pub const BUILTIN_REDIRECTORS: [BuiltinRedirector; 5] = [
    BuiltinRedirector { name: "rdp", port: 3389, viewer: "rdp" },
    BuiltinRedirector { name: "vnc", port: 5900, viewer: "vnc" },
    BuiltinRedirector { name: "ssh", port: 22, viewer: "ssh" },
    BuiltinRedirector { name: "http", port: 80, viewer: "browser" },
    BuiltinRedirector { name: "https", port: 443, viewer: "browser" },
];

/// Redirectors that are no service of the computer's own, but lead where a forward asks to.
pub const FORWARD_REDIRECTORS: [&str; 3] = ["tcp", "udp", "socks"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_canonical() {
        let t = |s| Target::parse(s, Transport::Tcp).map(|t| t.to_string());
        assert_eq!(t("127.0.0.1:22").unwrap(), "127.0.0.1:22");
        assert_eq!(t("[::ffff:127.0.0.1]:22").unwrap(), "127.0.0.1:22");
        assert_eq!(t("[::1]:22").unwrap(), "[::1]:22");
        assert_eq!(t("Host.Example.:80").unwrap(), "host.example:80");
    }

    #[test]
    fn odd_spellings_are_refused() {
        for bad in [
            "x",
            ":1",
            "a:0",
            "a:65536",
            "-a:1",
            "a b:1",
            "127.1:80",
            "0x7f.0x1:80",
            "0X7F000001:80",
            "::1:22",
            "1.2.3.4.5:1",
            "2130706433:80",
            "a..b:1",
            "[::1:22",
            "a:1x",
        ] {
            assert!(Target::parse(bad, Transport::Tcp).is_err(), "{bad}");
        }
    }
}
