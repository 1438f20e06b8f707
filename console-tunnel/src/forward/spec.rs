//! What `-L`, `-U` and `-D` say, in OpenSSH's syntax: `[ADDR:]PORT:HOST:PORT` and `[ADDR:]PORT`.
//!
//! Pure parsing. Without an address only this machine can connect; a forward never opens to the
//! network by a typing error: an address must be an address, `localhost` or `*`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use adit_protocol::target::{InvalidTarget, Target, Transport};

/// Why an argument is no forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    /// Wrong number of fields.
    #[error("{0} is expected; IPv6 addresses need brackets")]
    Syntax(&'static str),
    /// The address to listen on.
    #[error("\"{0}\" is no address to listen on: an IP address, localhost or * is expected")]
    Address(String),
    /// The port to listen on.
    #[error("\"{0}\" is no port to listen on: 0 (any free one) to 65535 is expected")]
    Port(String),
    /// Host and port at the other end.
    #[error("target: {0}")]
    Target(#[from] InvalidTarget),
}

/// `[ADDR:]PORT:HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardSpec {
    /// Where to listen; port 0 means any free one.
    pub listen: SocketAddr,
    /// Host at the other end, as the agent is to resolve it.
    pub host: String,
    /// Port at the other end.
    pub port: u16,
}

impl ForwardSpec {
    /// The target for a transport.
    pub fn target(&self, transport: Transport) -> Result<Target, InvalidTarget> {
        Target::new(&self.host, self.port, transport)
    }
}

impl FromStr for ForwardSpec {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let fields = fields(text);
        let (address, port, host, target_port) = match fields.as_deref() {
            Some([port, host, target]) => (None, *port, *host, *target),
            Some([address, port, host, target]) => (Some(*address), *port, *host, *target),
            _ => return Err(InvalidSpec::Syntax("[ADDR:]PORT:HOST:PORT")),
        };
        let host = unbracket(host);
        let target_port = decimal(target_port).ok_or(InvalidTarget::Port)?;
        let target = Target::new(host, target_port, Transport::Tcp)?;
        let listen = SocketAddr::new(listen_address(address)?, listen_port(port)?);
        Ok(Self { listen, host: target.host().to_owned(), port: target.port() })
    }
}

/// `[ADDR:]PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenSpec(
    /// Where to listen; port 0 means any free one.
    pub SocketAddr,
);

impl FromStr for ListenSpec {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let fields = fields(text);
        let (address, port) = match fields.as_deref() {
            Some([port]) => (None, *port),
            Some([address, port]) => (Some(*address), *port),
            _ => return Err(InvalidSpec::Syntax("[ADDR:]PORT")),
        };
        Ok(Self(SocketAddr::new(listen_address(address)?, listen_port(port)?)))
    }
}

impl fmt::Display for ListenSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Splits at colons outside brackets; `None` if brackets do not pair up around whole fields.
fn fields(text: &str) -> Option<Vec<&str>> {
    let mut out = Vec::new();
    let mut rest = text;
    loop {
        let end = if rest.starts_with('[') {
            let close = rest.find(']')?;
            close + 1
        } else {
            rest.find(':').unwrap_or(rest.len())
        };
        let (field, after) = rest.split_at_checked(end)?;
        out.push(field);
        match after.strip_prefix(':') {
            Some(next) => rest = next,
            None if after.is_empty() => return Some(out),
            None => return None,
        }
    }
}

fn unbracket(field: &str) -> &str {
    field.strip_prefix('[').and_then(|f| f.strip_suffix(']')).unwrap_or(field)
}

fn listen_address(field: Option<&str>) -> Result<IpAddr, InvalidSpec> {
    match field {
        None | Some("localhost") => Ok(Ipv4Addr::LOCALHOST.into()),
        Some("*") => Ok(Ipv4Addr::UNSPECIFIED.into()),
        Some(text) => unbracket(text).parse().map_err(|_| InvalidSpec::Address(shortened(text))),
    }
}

fn listen_port(field: &str) -> Result<u16, InvalidSpec> {
    decimal(field).ok_or_else(|| InvalidSpec::Port(shortened(field)))
}

/// Digits only: `parse` would also take `+80`.
fn decimal(field: &str) -> Option<u16> {
    field.bytes().all(|b| b.is_ascii_digit()).then(|| field.parse().ok())?
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_read_as_openssh_reads_them() {
        for (text, listen, host, port) in [
            ("8080:web:80", "127.0.0.1:8080", "web", 80),
            ("0:10.0.0.1:80", "127.0.0.1:0", "10.0.0.1", 80),
            ("127.0.0.2:8080:web:80", "127.0.0.2:8080", "web", 80),
            ("localhost:1:Web.Example.:80", "127.0.0.1:1", "web.example", 80),
            ("*:1:web:80", "0.0.0.0:1", "web", 80),
            ("[::1]:1:[fe80::1]:80", "[::1]:1", "fe80::1", 80),
            ("1:[::ffff:127.0.0.1]:80", "127.0.0.1:1", "127.0.0.1", 80),
        ] {
            let spec: ForwardSpec = text.parse().expect(text);
            assert_eq!(spec.listen, listen.parse().unwrap(), "{text}");
            assert_eq!((spec.host.as_str(), spec.port), (host, port), "{text}");
        }
    }

    #[test]
    fn wrong_forwards_are_refused() {
        for text in [
            "",
            ":",
            "80",
            "80:web",
            "a:80:web:80",
            "80:web:0",
            "80:web:65536",
            "65536:web:80",
            "80:-web:80",
            "80::1:80",
            "::1:80:web:80",
            "[::1:80:web:80",
            "[::1]x:80:web:80",
            "80:we b:80",
            "+80:web:80",
            "80:web:+80",
            "1:2:3:4:5",
            "80:web:80:",
            ":80:web:80",
            "80:127.1:80",
            "-1:web:80",
            "80:[::1:80",
            "80:web:80 ",
            "é:1:[é]:2",
        ] {
            assert!(text.parse::<ForwardSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn listeners_default_to_this_machine() {
        for (text, listen) in [
            ("1080", "127.0.0.1:1080"),
            ("0", "127.0.0.1:0"),
            ("[::]:1080", "[::]:1080"),
            ("192.0.2.1:1", "192.0.2.1:1"),
        ] {
            assert_eq!(text.parse::<ListenSpec>().unwrap().0, listen.parse().unwrap());
        }
        for text in ["", "x", "1:2:3", "host:1", "::1:1", "1080x", ":1080"] {
            assert!(text.parse::<ListenSpec>().is_err(), "{text}");
        }
    }
}
