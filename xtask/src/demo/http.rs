//! A small HTTP/1.1 server, the demonstration's target: a page, bytes to fetch, bytes to send.
//!
//! It serves loopback only, one thread a connection, and knows three paths. What it sends and
//! expects is the byte pattern of [`fill`], so that both ends can compare without storing it.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
};

use anyhow::Result;

/// Bytes handled at once; a multiple of eight.
pub(crate) const CHUNK: usize = 64 * 1024;
/// Connections served at once.
const MAX_CONNECTIONS: usize = 64;
/// Lines of a request head that are read.
const MAX_HEADERS: usize = 100;
/// Length of a line of the head.
const MAX_LINE: u64 = 8 * 1024;

const PAGE: &str = "<!doctype html><meta charset=utf-8><title>Adit</title>\
    <h1>Hello through the tunnel</h1>\
    <p>This page comes from a server that only the agent reaches.</p>\
    <p>Bytes to fetch: <a href=/bytes/1048576>/bytes/N</a>; bytes to send: POST /bytes.</p>\n";

/// The running server.
pub(crate) struct Server {
    port: u16,
}

impl Server {
    /// Starts it on a free port. It ends with the process.
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let slots = std::sync::Arc::new(());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let slot = std::sync::Arc::clone(&slots);
                if std::sync::Arc::strong_count(&slot) <= MAX_CONNECTIONS + 1 {
                    thread::spawn(move || {
                        // A client that went away is not the server's business.
                        let _ = serve(&stream);
                        drop(slot);
                    });
                }
            }
        });
        Ok(Self { port })
    }

    /// Where it listens on loopback.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

fn serve(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(CHUNK, stream);
    while let Some(head) = Head::read(&mut reader)? {
        let mut out = stream;
        let bytes = head.path.strip_prefix("/bytes/").and_then(|n| n.parse::<u64>().ok());
        match (head.method.as_str(), head.path.as_str(), bytes) {
            ("GET", "/", _) => answer(&mut out, "200 OK", "text/html", PAGE)?,
            ("GET", _, Some(n)) => {
                write!(out, "HTTP/1.1 200 OK\r\ncontent-length: {n}\r\n\r\n")?;
                send_pattern(&mut out, n)?;
            }
            ("POST", "/bytes", _) => {
                let intact = read_pattern(&mut reader, head.length)?;
                let status = if intact { "200 OK" } else { "422 Unprocessable Content" };
                answer(&mut out, status, "text/plain", &format!("{} {intact}\n", head.length))?;
            }
            _ => answer(&mut out, "404 Not Found", "text/plain", "not here\n")?,
        }
        if head.close {
            break;
        }
    }
    Ok(())
}

fn answer(out: &mut impl Write, status: &str, kind: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n");
    out.write_all(format!("{head}\r\n{body}").as_bytes())
}

/// The head of a request or response: first line and what matters of the fields.
pub(crate) struct Head {
    /// Request: method. Response: version.
    pub(crate) method: String,
    /// Request: path. Response: status.
    pub(crate) path: String,
    pub(crate) length: u64,
    close: bool,
}

impl Head {
    /// The next head; nothing at the end of the connection.
    pub(crate) fn read(reader: &mut impl io::BufRead) -> io::Result<Option<Self>> {
        let first = line(reader)?;
        let mut words = first.split_whitespace().map(str::to_owned);
        let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(None) };
        let mut head = Self { method, path, length: 0, close: false };
        for _ in 0..MAX_HEADERS {
            let field = line(reader)?.to_ascii_lowercase();
            match field.split_once(':') {
                None if field.is_empty() => return Ok(Some(head)),
                Some(("content-length", n)) => head.length = n.trim().parse().unwrap_or(0),
                Some(("connection", value)) => head.close = value.trim() == "close",
                _ => {}
            }
        }
        Ok(None)
    }
}

fn line(reader: &mut impl io::BufRead) -> io::Result<String> {
    let mut text = String::new();
    reader.take(MAX_LINE).read_line(&mut text)?;
    Ok(text.trim_end().to_owned())
}

/// The bytes from `offset` on, eight at a time: nothing repeats, so that a lost, doubled or moved
/// block shows.
pub(crate) fn fill(buffer: &mut [u8], offset: u64) {
    for (at, word) in buffer.chunks_mut(8).enumerate() {
        // SplitMix64 of the block's number.
        let mut z = (offset / 8 + at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bytes = (z ^ (z >> 31)).to_le_bytes();
        word.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }
}

/// Sends that many bytes of the pattern.
pub(crate) fn send_pattern(out: &mut impl Write, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    while offset < length {
        let size = CHUNK.min(usize::try_from(length - offset).unwrap_or(CHUNK));
        let part = buffer.get_mut(..size).unwrap_or_default();
        fill(part, offset);
        out.write_all(part)?;
        offset += size as u64;
    }
    Ok(())
}

/// Reads that many bytes to the last one; whether they were the pattern.
pub(crate) fn read_pattern(reader: &mut impl Read, length: u64) -> io::Result<bool> {
    let (mut got, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    let (mut offset, mut intact) = (0, true);
    while offset < length {
        let size = CHUNK.min(usize::try_from(length - offset).unwrap_or(CHUNK));
        let part = got.get_mut(..size).unwrap_or_default();
        reader.read_exact(part)?;
        fill(expected.get_mut(..size).unwrap_or_default(), offset);
        intact &= expected.get(..size) == Some(part);
        offset += size as u64;
    }
    Ok(intact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_a_changed_byte_and_a_moved_block() {
        let mut sent = Vec::new();
        send_pattern(&mut sent, 200_001).unwrap();
        assert!(read_pattern(&mut sent.as_slice(), 200_001).unwrap());
        sent[150_000] ^= 1;
        assert!(!read_pattern(&mut sent.as_slice(), 200_001).unwrap());
        sent[150_000] ^= 1;
        sent.rotate_left(8);
        assert!(!read_pattern(&mut sent.as_slice(), 200_001).unwrap());
        assert!(read_pattern(&mut &sent[..10], 200_001).is_err());
    }

    #[test]
    fn serves_page_bytes_and_upload() {
        let server = Server::start().unwrap();
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).unwrap();
        let mut reader = BufReader::new(&stream);
        for (request, status, length) in [
            ("GET / HTTP/1.1\r\n\r\n", "200", PAGE.len() as u64),
            ("GET /bytes/100000 HTTP/1.1\r\n\r\n", "200", 100_000),
            ("POST /bytes HTTP/1.1\r\ncontent-length: 8\r\n\r\n01234567", "422", 8),
            ("GET /etc/passwd HTTP/1.1\r\nConnection: close\r\n\r\n", "404", 9),
        ] {
            (&stream).write_all(request.as_bytes()).unwrap();
            let head = Head::read(&mut reader).unwrap().unwrap();
            assert_eq!(head.path, status, "{request}");
            let mut body = vec![0; usize::try_from(head.length).unwrap()];
            reader.read_exact(&mut body).unwrap();
            assert!(head.length == length, "{request}: {} bytes", head.length);
        }
    }
}
