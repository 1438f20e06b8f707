//! `host:port` as people write it.

/// The text is not a host and port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not host:port: an IPv6 address needs brackets, a port is 0 to 65535")]
pub struct InvalidHostPort(String);

/// Reads `host`, `host:port`, `1.2.3.4:port`, `[::1]`, `[::1]:port`, `::1`; the host comes
/// without brackets.
pub fn parse_host_port(text: &str, default_port: u16) -> Result<(String, u16), InvalidHostPort> {
    let invalid = || InvalidHostPort(text.chars().take(300).collect());
    let trimmed = text.trim();
    if trimmed.parse::<std::net::Ipv6Addr>().is_ok() {
        return Ok((trimmed.to_owned(), default_port));
    }
    let (host, port) = if let Some(rest) = trimmed.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or_else(invalid)?;
        // A zone (RFC 4007 §11) is the reader's business; what is before it must be an address.
        let address = host.split_once('%').map_or(host, |(address, _)| address);
        address.parse::<std::net::Ipv6Addr>().map_err(|_| invalid())?;
        match after {
            "" => (host, None),
            _ => (host, Some(after.strip_prefix(':').ok_or_else(invalid)?)),
        }
    } else {
        match trimmed.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (trimmed, None),
        }
    };
    let port = match port {
        None => default_port,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().map_err(|_| invalid())?
        }
        Some(_) => return Err(invalid()),
    };
    let bad = |c: char| c.is_whitespace() || c.is_control() || "/@?#[]\\".contains(c);
    if host.is_empty() || host.len() > adit_protocol::limits::MAX_HOST_LEN || host.contains(bad) {
        return Err(invalid());
    }
    Ok((host.to_owned(), port))
}

/// The reverse: IPv6 addresses in brackets.
pub fn format_host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
