//! What a web page of somebody else's must not do with a redirected web service: a page in the
//! technician's browser can send requests to any port of this computer, and if its own name comes
//! to mean this computer (DNS rebinding), read the answers.
//!
//! Each request of a connection is judged, since browsers use a connection for more than one: HTTP/1
//! is followed from head to head (RFC 9112 §6). What no browser can begin a connection with passes
//! unseen: TLS, where the service's certificate keeps other names away, and protocols that are not
//! HTTP. Must never pass on part of a head that is not judged yet.

use std::net::IpAddr;

use adit_endpoint::{Refusal, Watch};
use bytes::{Buf, Bytes, BytesMut};

/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// Bytes of a chunk's first line, or of one after the last chunk.
const MAX_LINE: usize = 4 * 1024;
/// How a client begins that speaks HTTP/2 without asking (RFC 9113 §3.4). No page can make it.
const HTTP_2: &[u8] = b"PRI * HTTP/2.0\r\n";

/// Why a request is refused.
type Why = &'static str;

/// What comes next of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A request's head; the first thing that comes may be something else.
    Head { first: bool },
    /// So many bytes of a body, or of a chunk with its end.
    Body { left: u64, chunked: bool },
    /// The line before a chunk.
    Chunk,
    /// Lines after the last chunk.
    Trailer,
    /// No requests.
    Opaque,
}

/// Follows one connection of a browser.
#[derive(Debug)]
pub(super) struct Guard {
    /// What the service may be called, beside addresses and localhost.
    names: Vec<String>,
    state: State,
    /// Part of a head or line.
    held: BytesMut,
}

impl Guard {
    pub(super) fn new(names: Vec<String>) -> Self {
        Self { names, state: State::Head { first: true }, held: BytesMut::new() }
    }

    /// How many of these bytes go on, and what comes after them. `None`: more must come first.
    fn step(&self, bytes: &[u8]) -> Result<Option<(usize, State)>, Why> {
        let step = match self.state {
            State::Opaque => Some((bytes.len(), State::Opaque)),
            State::Body { left, chunked } => {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let left = left.saturating_sub(here as u64);
                let after = match (left, chunked) {
                    (0, false) => State::Head { first: false },
                    (0, true) => State::Chunk,
                    _ => State::Body { left, chunked },
                };
                (!bytes.is_empty() || left == 0).then_some((here, after))
            }
            State::Chunk => match line(within(bytes, MAX_LINE)) {
                Some((first, rest)) => {
                    let size = chunk_size(first).ok_or("it has a chunk without a size")?;
                    let after = match size {
                        0 => State::Trailer,
                        size => State::Body { left: size.saturating_add(2), chunked: true },
                    };
                    Some((within(bytes, MAX_LINE).len() - rest.len(), after))
                }
                None => open(bytes, MAX_LINE)?,
            },
            State::Trailer => match line(within(bytes, MAX_LINE)) {
                Some((first, rest)) => {
                    let over = first.is_empty();
                    let after = if over { State::Head { first: false } } else { State::Trailer };
                    Some((within(bytes, MAX_LINE).len() - rest.len(), after))
                }
                None => open(bytes, MAX_LINE)?,
            },
            State::Head { first } => match judge(within(bytes, MAX_HEAD), &self.names)? {
                Judged::Request { length, after } => Some((length, after)),
                Judged::Other if first => Some((bytes.len(), State::Opaque)),
                Judged::Other => return Err("it is no request"),
                Judged::Open => open(bytes, MAX_HEAD)?,
            },
        };
        Ok(step)
    }

    fn refuse(why: Why) -> Refusal {
        tracing::warn!(why, "a request to a redirected web service was refused");
        let text = format!(
            "Refused by console-tunnel: {why}.\nPages of other sites may not use this tunnel. A \
             name that is meant to lead here goes into local.hosts of console-tunnel.toml.\n"
        );
        Refusal(format!(
            "HTTP/1.1 421 Misdirected Request\r\ncontent-type: text/plain\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{text}",
            text.len()
        ))
    }
}

impl Watch for Guard {
    fn pass(&mut self, bytes: Bytes) -> Result<Bytes, Refusal> {
        if self.held.is_empty() && self.state == State::Opaque {
            return Ok(bytes);
        }
        self.held.extend_from_slice(&bytes);
        let mut passed = 0;
        loop {
            let rest = self.held.get(passed..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            match self.step(rest).map_err(Self::refuse)? {
                Some((length, after)) => {
                    passed += length;
                    self.state = after;
                }
                None => break,
            }
        }
        let passed = self.held.copy_to_bytes(passed);
        if self.held.is_empty() {
            // What a large body needed is not kept for small heads.
            self.held = BytesMut::new();
        }
        Ok(passed)
    }

    fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }
}

/// More must come, unless there is too much already.
fn open<T>(bytes: &[u8], most: usize) -> Result<Option<T>, Why> {
    if bytes.len() >= most { Err("its head is too long") } else { Ok(None) }
}

/// However much came at once, no more of it is looked at.
fn within(bytes: &[u8], most: usize) -> &[u8] {
    bytes.get(..most).unwrap_or(bytes)
}

/// What a head is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judged {
    /// A request that may go on.
    Request { length: usize, after: State },
    /// Nothing that a browser sends.
    Other,
    /// More of it must come.
    Open,
}

fn judge(head: &[u8], names: &[String]) -> Result<Judged, Why> {
    if HTTP_2.starts_with(head) {
        return Ok(Judged::Open);
    }
    let method = head.iter().take_while(|b| is_token(**b)).count();
    if method == 0 || head.get(method).is_some_and(|b| *b != b' ') || head.starts_with(HTTP_2) {
        return Ok(Judged::Other);
    }
    let Some((first, mut rest)) = line(head) else { return Ok(Judged::Open) };
    if !first.windows(6).any(|part| part == b" HTTP/") {
        return Ok(Judged::Other);
    }
    let mut said = Said::of(first)?;
    while let Some((header, after)) = line(rest) {
        rest = after;
        if header.is_empty() {
            let after = said.verdict()?;
            return Ok(Judged::Request { length: head.len() - rest.len(), after });
        }
        said.add(header, names)?;
    }
    Ok(Judged::Open)
}

/// What a request says of itself, of its body, and of who asks (Origin, Fetch Metadata).
#[derive(Default)]
struct Said {
    reads: bool,
    host: Option<String>,
    origin: Option<String>,
    site: Option<String>,
    navigates: bool,
    whole_page: bool,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    to_upgrade: bool,
}

impl Said {
    fn of(first: &[u8]) -> Result<Self, Why> {
        let parts: Vec<&[u8]> = first.split(|b| *b == b' ').collect();
        let [method, target, b"HTTP/1.0" | b"HTTP/1.1"] = parts.as_slice() else {
            return Err("its first line makes no sense");
        };
        // `OPTIONS *` is no page's; whole addresses and CONNECT are for proxies.
        if !target.starts_with(b"/") && *target != b"*" {
            return Err("it is meant for a proxy");
        }
        Ok(Self { reads: matches!(*method, b"GET" | b"HEAD"), ..Self::default() })
    }

    fn add(&mut self, header: &[u8], names: &[String]) -> Result<(), Why> {
        const ODD: Why = "its head makes no sense";
        let colon = header.iter().position(|b| *b == b':').ok_or(ODD)?;
        let (name, value) = header.split_at(colon);
        if name.is_empty() || !name.iter().all(|b| is_token(*b)) || header.contains(&b'\r') {
            return Err(ODD);
        }
        let value = String::from_utf8_lossy(value.get(1..).unwrap_or_default());
        let value = value.trim().to_ascii_lowercase();
        let has = |word: &str| value.split(',').any(|part| part.trim() == word);
        // Said twice, it could mean one thing here and another there.
        let once = |before: &mut Option<String>, value: String| match before.replace(value) {
            Some(_) => Err(ODD),
            None => Ok(()),
        };
        match name.to_ascii_lowercase().as_slice() {
            b"host" if !is_own(&value, names) => return Err("it names another host"),
            b"host" => once(&mut self.host, value)?,
            b"origin" => once(&mut self.origin, value)?,
            b"sec-fetch-site" => once(&mut self.site, value)?,
            b"sec-fetch-mode" => self.navigates = value == "navigate",
            b"sec-fetch-dest" => self.whole_page = value == "document",
            b"content-length" => {
                let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
                let length = value.parse().ok().filter(|_| digits && self.length.is_none());
                self.length = Some(length.ok_or(ODD)?);
            }
            b"transfer-encoding" if value == "chunked" && !self.chunked => self.chunked = true,
            b"transfer-encoding" => return Err(ODD),
            b"connection" => self.upgrade |= has("upgrade"),
            b"upgrade" => self.to_upgrade = true,
            _ => {}
        }
        Ok(())
    }

    /// What follows, if the request may go on. Following a link is what people do; anything else
    /// is for the service's own pages. Another port of this computer is another customer's.
    fn verdict(&self) -> Result<State, Why> {
        const OTHERS: Why = "a page of another site asks";
        let site = self.site.as_deref();
        let own = matches!(site, Some("same-origin" | "none"));
        if site.is_some() && !own && !(self.navigates && self.whole_page && self.reads) {
            return Err(OTHERS);
        }
        // With web sockets, and without TLS, Origin is all that some browsers tell. A page that
        // tells nobody where it is (Referrer-Policy) has "null" for its own forms, too.
        let told = match self.origin.as_deref() {
            None => true,
            Some("null") => site == Some("same-origin"),
            Some(origin) => {
                self.host.is_some() && origin.strip_prefix("http://") == self.host.as_deref()
            }
        };
        if !told {
            return Err(OTHERS);
        }
        Ok(match (self.upgrade && self.to_upgrade, self.chunked, self.length) {
            (_, true, Some(_)) => return Err("its body has two lengths"),
            (true, ..) => State::Opaque,
            (false, true, None) => State::Chunk,
            (false, false, Some(left)) if left > 0 => State::Body { left, chunked: false },
            _ => State::Head { first: false },
        })
    }
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 9112 §7.1.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (digits, rest) = line.split_at_checked(digits)?;
    let ended = matches!(rest.first(), None | Some(b';' | b' ' | b'\t'));
    let digits = std::str::from_utf8(digits).ok().filter(|_| ended)?;
    u64::from_str_radix(digits, 16).ok()
}

/// An address cannot be made to mean something else; a name can. No address of its own is 0.0.0.0,
/// which leads here as well, and which browsers do not count as this computer.
fn is_own(host: &str, names: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split_once(']').map_or(v6, |(ip, _)| ip),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.parse::<IpAddr>().is_ok_and(|ip| !ip.to_canonical().is_unspecified())
        || name == "localhost"
        || name.ends_with(".localhost")
        || names.iter().any(|own| own == name)
}

/// The first line, without its end, and what follows.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let (line, rest) = bytes.split_at(end);
    Some((line.strip_suffix(b"\r").unwrap_or(line), rest.get(1..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one connection's bytes come to, however they are cut: what passed, or why not.
    fn of(said: &str) -> Result<String, String> {
        let whole = in_pieces(said, said.len().max(1));
        for size in [1, 7] {
            assert_eq!(in_pieces(said, size), whole, "in pieces of {size}: {said}");
        }
        whole.map(|(passed, _)| passed)
    }

    fn in_pieces(said: &str, size: usize) -> Result<(String, State), String> {
        let mut guard = Guard::new(vec!["intranet.example".to_owned()]);
        let mut passed = String::new();
        for piece in said.as_bytes().chunks(size) {
            let more = guard.pass(Bytes::copy_from_slice(piece)).map_err(|Refusal(why)| why)?;
            assert!(guard.held.len() <= MAX_HEAD);
            passed.push_str(std::str::from_utf8(&more).unwrap());
        }
        Ok((passed, guard.state))
    }

    fn passes(said: &str) {
        assert_eq!(of(said).as_deref(), Ok(said));
    }

    #[track_caller]
    fn refused(said: &str, why: &str) {
        let told = of(said).expect_err(said);
        assert!(told.starts_with("HTTP/1.1 421 ") && told.contains(why), "{said}: {told}");
    }

    #[test]
    fn other_names_are_refused_and_addresses_and_own_names_pass() {
        for host in [
            "127.0.0.1:40123",
            "localhost:40123",
            "app.localhost",
            "[::1]:40123",
            "Intranet.Example:40123",
            "intranet.example.",
            "10.0.0.5",
        ] {
            passes(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        }
        for host in [
            "evil.example:40123",
            "127.0.0.1.evil.example",
            "localhost.evil.example:1",
            "0.0.0.0:40123",
            "[::]:1",
            "",
            "[x",
        ] {
            refused(&format!("POST /x HTTP/1.1\r\nA: b\r\nhOST:\t{host}\r\n"), "another host");
        }
        let twice = "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n";
        refused(twice, "another host");
        let long = format!("patch /?{} HTTP/1.1\r\nHost: evil.example\r\n\r\n", "a".repeat(20_000));
        refused(&long, "too long");
        refused("GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", "a proxy");
    }

    #[test]
    fn pages_of_other_sites_may_link_here_and_nothing_else() {
        let from = |method: &str, more: &str| {
            format!("{method} / HTTP/1.1\r\nHost: 127.0.0.1:40123\r\n{more}\r\n")
        };
        let fetched = |method: &str, site: &str, mode: &str, dest: &str| {
            let more = format!(
                "Sec-Fetch-Site: {site}\r\nSec-Fetch-Mode: {mode}\r\nSec-Fetch-Dest: {dest}\r\n"
            );
            from(method, &more)
        };
        passes(&fetched("GET", "cross-site", "navigate", "document"));
        passes(&fetched("GET", "none", "navigate", "document"));
        passes(&fetched("POST", "same-origin", "cors", "empty"));
        // Another port of the same address is another tunnel: perhaps another customer's.
        for site in ["cross-site", "same-site"] {
            refused(&fetched("GET", site, "no-cors", "image"), "another site");
            refused(&fetched("POST", site, "navigate", "document"), "another site");
            refused(&fetched("GET", site, "navigate", "iframe"), "another site");
            refused(&fetched("GET", site, "websocket", "websocket"), "another site");
        }
        let socket = |origin: &str| {
            from(
                "GET",
                &format!(
                    "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nOrigin: {origin}\r\n"
                ),
            )
        };
        let spoken = socket("http://127.0.0.1:40123") + "\u{1}\u{2} not a request";
        passes(&spoken);
        for origin in
            ["https://evil.example", "http://127.0.0.1:40124", "https://127.0.0.1:40123", "null"]
        {
            refused(&socket(origin), "another site");
        }
        let own_form = "Origin: null\r\nSec-Fetch-Site: same-origin\r\n";
        passes(&from("POST", own_form));
    }

    #[test]
    fn every_request_of_a_connection_is_judged_and_no_body_is() {
        let evil = "POST / HTTP/1.1\r\nHost: evil.example\r\n\r\n";
        let good = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let post = |how: &str, body: &str| {
            format!("POST / HTTP/1.1\r\nHost: localhost\r\n{how}\r\n\r\n{body}")
        };
        let sized = post(&format!("Content-Length: {}", evil.len()), evil);
        let chunks = format!("5\r\nGET /\r\n{:X};x=y\r\n{evil}\r\n0\r\nT: x\r\n\r\n", evil.len());
        let chunked = post("Transfer-Encoding: chunked", &chunks);
        for first in [good, &sized, &chunked] {
            passes(&format!("{first}{good}{sized}"));
            refused(&format!("{first}{evil}"), "another host");
            refused(&format!("{first}\u{16}\u{3}\u{1}"), "no request");
        }
        for odd in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Content-Length: 1\r\nContent-Length: 1",
            "Content-Length: +1",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding : chunked",
            " folded: x",
        ] {
            refused(&post(odd, "x"), "Refused");
        }
        refused(&post("Transfer-Encoding: chunked", "x\r\n"), "without a size");
        let endless = post("Transfer-Encoding: chunked", &"0".repeat(MAX_LINE));
        refused(&endless, "too long");
    }

    #[test]
    fn what_no_browser_sends_passes_and_part_of_a_head_waits() {
        for other in ["SSH-2.0-x\r\n", "\u{16}\u{3}\u{1}", "GET /\r\n", "PRI * HTTP/2.0\r\n\r\nSM"]
        {
            passes(other);
        }
        passes("GET / HTTP/1.0\r\n\r\n");
        for part in ["GE", "GET / HTT", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: evi"] {
            assert_eq!(of(part).as_deref(), Ok(""), "{part}");
            let mut guard = Guard::new(Vec::new());
            guard.pass(Bytes::copy_from_slice(part.as_bytes())).unwrap();
            assert!(guard.is_holding(), "{part}");
        }
        let mut guard = Guard::new(Vec::new());
        assert!(!guard.is_holding());
        guard.pass(Bytes::from_static(b"GET / HTTP/1.0\r\n\r\n")).unwrap();
        assert!(!guard.is_holding());
    }
}
