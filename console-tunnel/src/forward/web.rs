//! What a web page of somebody else's must not do with a redirected web service: a page in the
//! technician's browser can send requests to any port of this computer, and if its own name comes
//! to mean this computer (DNS rebinding), read the answers.
//!
//! The first request of each connection is looked at, without taking it: browsers keep the
//! connections of different sites apart. Whatever is no request of a browser passes. Must never
//! read what belongs to the channel.

use std::{net::IpAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

/// Bytes of a request's head that are looked at.
const MAX_HEAD: usize = 16 * 1024;
/// Time for a head to come.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// Until a head that came in part is looked at again.
const AGAIN: Duration = Duration::from_millis(5);
/// Bytes of a refused request that are thrown away.
const MAX_DISCARD: u64 = 1024 * 1024;
/// Time for a refusal to be read.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// What a head says so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Passes,
    Refused(&'static str),
    /// More of it must come.
    Open,
}

/// May this connection go on? Else it was answered.
pub(super) async fn admit(stream: &mut TcpStream, names: &[String]) -> bool {
    let deadline = Instant::now() + HEAD_DEADLINE;
    let mut head = vec![0; MAX_HEAD];
    let mut before = 0;
    let why = loop {
        let Ok(Ok(len)) = timeout_at(deadline, stream.peek(&mut head)).await else {
            break "no request came";
        };
        let complete = len == 0 || len >= MAX_HEAD;
        match judge(head.get(..len).unwrap_or_default(), names) {
            Verdict::Passes => return true,
            Verdict::Refused(why) => break why,
            Verdict::Open if complete => break "the request's head is too long, or cut off",
            // What was there stays there: it is not waited for again.
            Verdict::Open if len == before => sleep(AGAIN).await,
            Verdict::Open => {}
        }
        before = len;
    };
    if before == 0 {
        return false; // a browser's connection in stock
    }
    tracing::warn!(why, "a request to a redirected web service was refused");
    let text = format!(
        "Refused by console-tunnel: {why}.\nPages of other sites may not use this tunnel. A name \
         that is meant to lead here goes into local.hosts of console-tunnel.toml.\n"
    );
    let answer = format!(
        "HTTP/1.1 421 Misdirected Request\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{text}",
        text.len()
    );
    let told = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // What is left unread would reset the connection before the answer is read.
        tokio::io::copy(&mut stream.take(MAX_DISCARD), &mut tokio::io::sink()).await
    };
    let _ = timeout_at(Instant::now() + ANSWER_DEADLINE, told).await;
    false
}

fn judge(head: &[u8], names: &[String]) -> Verdict {
    let Some((first, mut rest)) = line(head) else {
        // No method is longer; what does not begin like a request line is none.
        let method = head.iter().take_while(|b| b.is_ascii_uppercase()).count();
        let odd = head.get(method).is_some_and(|b| *b != b' ') || method > 32;
        return if odd { Verdict::Passes } else { Verdict::Open };
    };
    if !first.windows(8).any(|part| part == b" HTTP/1.") {
        return Verdict::Passes;
    }
    let mut said = Said {
        reads: first.starts_with(b"GET ") || first.starts_with(b"HEAD "),
        ..Said::default()
    };
    while let Some((header, after)) = line(rest) {
        rest = after;
        if header.is_empty() {
            return said.verdict();
        }
        let Some(colon) = header.iter().position(|b| *b == b':') else { continue };
        let (name, value) = header.split_at(colon);
        let value = String::from_utf8_lossy(value.get(1..).unwrap_or_default());
        let value = value.trim().to_ascii_lowercase();
        match name.to_ascii_lowercase().as_slice() {
            b"host" if !is_own(&value, names) => return Verdict::Refused("it names another host"),
            b"sec-fetch-site" => said.cross_site |= value == "cross-site",
            b"sec-fetch-mode" => said.navigates |= value == "navigate",
            _ => {}
        }
    }
    Verdict::Open
}

/// What a browser says of who asks (Fetch Metadata).
#[derive(Default)]
struct Said {
    reads: bool,
    cross_site: bool,
    navigates: bool,
}

impl Said {
    /// Following a link is what people do.
    fn verdict(&self) -> Verdict {
        match self.cross_site && !(self.navigates && self.reads) {
            true => Verdict::Refused("a page of another site asks"),
            false => Verdict::Passes,
        }
    }
}

/// An address cannot be made to mean something else; a name can.
fn is_own(host: &str, names: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split_once(']').map_or(v6, |(ip, _)| ip),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.parse::<IpAddr>().is_ok()
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
    use tokio::net::TcpListener;

    use super::*;

    fn of(head: &str) -> Verdict {
        judge(head.as_bytes(), &["intranet.example".to_owned()])
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
            assert_eq!(of(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")), Verdict::Passes);
        }
        for host in
            ["evil.example:40123", "127.0.0.1.evil.example", "localhost.evil.example:1", "", "[x"]
        {
            let said = of(&format!("POST /x HTTP/1.1\r\nA: b\r\nhOST:\t{host}\r\n"));
            assert!(matches!(said, Verdict::Refused(_)), "{host}");
        }
        let twice = of("GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n");
        assert!(matches!(twice, Verdict::Refused(_)));
    }

    #[test]
    fn pages_of_other_sites_may_link_here_and_nothing_else() {
        let from = |method: &str, site: &str, mode: &str| {
            of(&format!(
                "{method} / HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: {site}\r\n\
                 Sec-Fetch-Mode: {mode}\r\n\r\n"
            ))
        };
        assert_eq!(from("GET", "cross-site", "navigate"), Verdict::Passes);
        assert_eq!(from("POST", "same-origin", "cors"), Verdict::Passes);
        assert_eq!(from("GET", "none", "navigate"), Verdict::Passes);
        for (method, mode) in [("GET", "no-cors"), ("POST", "navigate"), ("GET", "websocket")] {
            assert!(matches!(from(method, "cross-site", mode), Verdict::Refused(_)), "{method}");
        }
    }

    #[test]
    fn what_no_browser_sends_passes_and_a_part_is_waited_for() {
        for other in ["SSH-2.0-x", "\u{16}\u{3}\u{1}", "GET / HTTP/0.9\n", "PRI * HTTP/2.0\r\n"] {
            assert_eq!(of(other), Verdict::Passes, "{other}");
        }
        assert_eq!(of("GET / HTTP/1.0\r\n\r\n"), Verdict::Passes);
        for part in ["", "GE", "GET / HTT", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: evi"] {
            assert_eq!(of(part), Verdict::Open, "{part}");
        }
    }

    /// In pieces, and nothing of it is taken.
    #[tokio::test]
    async fn a_request_is_looked_at_and_left_and_a_refusal_says_why() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pass = |head: &'static str| {
            let at = listener.local_addr().unwrap();
            let client = async move {
                let mut client = TcpStream::connect(at).await.unwrap();
                let (first, second) = head.split_at(head.len() / 2);
                client.write_all(first.as_bytes()).await.unwrap();
                sleep(Duration::from_millis(20)).await;
                client.write_all(second.as_bytes()).await.unwrap();
                client
            };
            let listener = &listener;
            let server = async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let passes = admit(&mut stream, &[]).await;
                if passes {
                    let mut rest = vec![0; head.len()];
                    stream.read_exact(&mut rest).await.unwrap();
                    assert_eq!(rest, head.as_bytes());
                }
                passes
            };
            async move { tokio::join!(client, server) }
        };
        let (_client, passes) = pass("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await;
        assert!(passes);
        let (mut client, passes) = pass("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n").await;
        assert!(!passes);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 421 ") && answer.contains("another host"), "{answer}");
    }
}
