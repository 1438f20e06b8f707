//! Both ends of a forward: a server that the agent reaches and a client that uses the console's
//! local port. In a laboratory they run as the program `adit-peer` inside a namespace.
//!
//! Bulk bytes are a pattern that never repeats, computed at both ends, so that a lost, doubled,
//! moved or changed byte is found without storing anything.

use std::{
    io::{self, BufRead as _, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

/// Bytes handled at once; a multiple of eight.
const CHUNK: usize = 64 * 1024;
/// No read or write of a client waits longer.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often a client says how far it is.
const PROGRESS: Duration = Duration::from_millis(100);

/// A server's kinds of connections, chosen by the client's first line.
///
/// `echo`: sends back what comes. `source SEED BYTES RATE`: sends that many pattern bytes, at most
/// RATE a second (0: unlimited). `sink SEED`: reads to the end, answers a JSON line.
pub struct TcpServer {
    addr: SocketAddr,
    listener: Arc<TcpListener>,
}

impl TcpServer {
    /// Starts one; it ends with the process, or when it is stopped.
    pub fn start(addr: impl ToSocketAddrs) -> Result<Self> {
        let listener = Arc::new(TcpListener::bind(addr)?);
        let addr = listener.local_addr()?;
        let accepting = Arc::clone(&listener);
        thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                thread::spawn(move || {
                    // A broken connection is the client's finding.
                    let _ = serve(&stream);
                });
            }
        });
        Ok(Self { addr, listener })
    }

    /// Takes no more connections, so that nothing keeps the server's network namespace.
    pub fn stop(self) -> Result<()> {
        Ok(rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both)?)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.addr.port()
    }
}

fn serve(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(CHUNK, stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let words: Vec<_> = line.split_whitespace().collect();
    let mut out = stream;
    match words.as_slice() {
        ["echo"] => {
            let mut buffer = vec![0; CHUNK];
            loop {
                let n = reader.read(&mut buffer)?;
                if n == 0 {
                    break;
                }
                out.write_all(buffer.get(..n).unwrap_or_default())?;
            }
        }
        ["source", seed, bytes, rate] => {
            send(&mut out, seed.parse()?, bytes.parse()?, rate.parse()?)?
        }
        ["sink", seed] => {
            let mut check = Check::new(seed.parse()?);
            let mut buffer = vec![0; CHUNK];
            loop {
                let n = reader.read(&mut buffer)?;
                if n == 0 {
                    break;
                }
                check.take(buffer.get(..n).unwrap_or_default());
            }
            writeln!(out, "{}", json!({"bytes": check.offset, "intact": check.intact}))?;
        }
        _ => bail!("no such kind of connection"),
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok(())
}

/// The pattern's bytes from `offset` (a multiple of eight) on.
pub fn fill(buffer: &mut [u8], seed: u64, offset: u64) {
    for (at, word) in buffer.chunks_mut(8).enumerate() {
        // SplitMix64 of seed and block number.
        let block = (offset / 8 + at as u64).wrapping_add(seed.wrapping_mul(0xd134_2543_de82_ef95));
        let mut z = block.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bytes = (z ^ (z >> 31)).to_le_bytes();
        word.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }
}

/// Compares a stream with the pattern.
pub(crate) struct Check {
    seed: u64,
    pub(crate) offset: u64,
    pub(crate) intact: bool,
    expected: Vec<u8>,
}

impl Check {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, offset: 0, intact: true, expected: vec![0; CHUNK + 16] }
    }

    pub(crate) fn take(&mut self, bytes: &[u8]) {
        // The pattern starts at multiples of eight.
        let before = self.offset % 8;
        fill(&mut self.expected, self.seed, self.offset - before);
        let from = usize::try_from(before).unwrap_or(0);
        self.intact &= self.expected.get(from..from + bytes.len()) == Some(bytes);
        self.offset += bytes.len() as u64;
    }
}

/// Sends pattern bytes, at most `rate` a second (0: unlimited).
fn send(out: &mut impl Write, seed: u64, bytes: u64, rate: u64) -> Result<()> {
    let start = Instant::now();
    // With a rate, small pieces make a steady flow.
    let piece = if rate == 0 { CHUNK } else { 8 * 1024 };
    let mut buffer = vec![0; piece];
    let mut offset = 0;
    while offset < bytes {
        let size = piece.min(usize::try_from(bytes - offset).unwrap_or(piece));
        let part = buffer.get_mut(..size).unwrap_or_default();
        fill(part, seed, offset);
        out.write_all(part)?;
        offset += size as u64;
        if let Some(due) = (offset * 1000).checked_div(rate) {
            let due = start + Duration::from_millis(due);
            thread::park_timeout(due.saturating_duration_since(Instant::now()));
        }
    }
    Ok(())
}

fn connect(addr: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&addr, DEADLINE).with_context(|| format!("connect {addr}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// Sends `count` messages of `size` bytes and waits for each to come back; milliseconds each.
pub fn echo(addr: SocketAddr, count: u32, size: usize) -> Result<Vec<f64>> {
    let mut stream = connect(addr)?;
    stream.write_all(b"echo\n")?;
    let (mut sent, mut got) = (vec![0; size], vec![0; size]);
    let mut times = Vec::new();
    for n in 0..count {
        fill(&mut sent, u64::from(n), 0);
        let start = Instant::now();
        stream.write_all(&sent)?;
        stream.read_exact(&mut got).context("waiting for the echo")?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(sent == got, "message {n} came back changed");
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    ensure!(stream.read(&mut got)? == 0, "bytes after the end");
    Ok(times)
}

/// Connects as soon as somebody listens, sends 64 bytes and waits for the first that comes back:
/// when that was.
pub fn first_byte(addr: SocketAddr, time: Duration) -> Result<Instant> {
    let deadline = Instant::now() + time;
    let mut stream = loop {
        match TcpStream::connect(addr) {
            Ok(stream) => break stream,
            Err(e) if Instant::now() >= deadline => bail!("connect {addr}: {e}"),
            Err(_) => thread::park_timeout(Duration::from_millis(2)),
        }
    };
    stream.set_nodelay(true)?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left))?;
    let mut sent = [0; 64];
    fill(&mut sent, 1, 0);
    stream.write_all(&[b"echo\n", &sent[..]].concat())?;
    let mut got = [0; 64];
    stream.read_exact(&mut got[..1]).context("waiting for the first byte")?;
    let at = Instant::now();
    stream.read_exact(&mut got[1..]).context("waiting for the rest")?;
    ensure!(sent == got, "the first bytes came back changed");
    Ok(at)
}

/// Fetches pattern bytes and compares them; `progress` hears how many came so far. Gives
/// `{"bytes","intact","ms","max_gap_ms"}`; `max_gap_ms` is the longest time without a byte.
pub fn fetch(
    addr: SocketAddr,
    seed: u64,
    bytes: u64,
    rate: u64,
    mut progress: impl FnMut(u64),
) -> Result<Value> {
    let mut stream = connect(addr)?;
    writeln!(stream, "source {seed} {bytes} {rate}")?;
    let mut check = Check::new(seed);
    let mut buffer = vec![0; CHUNK];
    let start = Instant::now();
    let (mut last, mut told, mut gap) = (None::<Instant>, start, Duration::ZERO);
    loop {
        let n =
            stream.read(&mut buffer).with_context(|| format!("after {} bytes", check.offset))?;
        let now = Instant::now();
        if n == 0 {
            break;
        }
        gap = gap.max(last.map(|l| now - l).unwrap_or_default());
        last = Some(now);
        check.take(buffer.get(..n).unwrap_or_default());
        if now - told >= PROGRESS {
            told = now;
            progress(check.offset);
        }
    }
    Ok(json!({
        "bytes": check.offset,
        "intact": check.intact && check.offset == bytes,
        "ms": start.elapsed().as_secs_f64() * 1e3,
        "max_gap_ms": gap.as_secs_f64() * 1e3,
    }))
}

/// Sends pattern bytes; the server compares them and answers `{"bytes","intact"}`.
pub fn push(addr: SocketAddr, seed: u64, bytes: u64, rate: u64) -> Result<Value> {
    let mut stream = connect(addr)?;
    writeln!(stream, "sink {seed}")?;
    send(&mut stream, seed, bytes, rate)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).context("waiting for the server's verdict")?;
    serde_json::from_str(&line).with_context(|| format!("the server said {line:?}"))
}

/// How a connection ended that was expected to be refused: nothing arrives.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum End {
    /// With a reset.
    Reset,
    /// As if the stream were complete.
    Closed,
    /// Not at all, within the time.
    Open,
}

/// Connects, sends a line, and says how the connection ended. Bytes that arrive are an error.
pub fn refused(addr: SocketAddr, time: Duration) -> Result<End> {
    let mut stream = connect(addr)?;
    stream.set_read_timeout(Some(time))?;
    // A reset may come before the line is out.
    let _ = stream.write_all(b"echo\nhello");
    match stream.read(&mut [0; 16]) {
        Ok(0) => Ok(End::Closed),
        Ok(n) => bail!("{n} bytes came through"),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(End::Open),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(End::Reset),
        Err(e) => Err(e.into()),
    }
}

/// A UDP server that sends back each datagram; it ends with the process.
pub fn udp_server(addr: impl ToSocketAddrs) -> Result<SocketAddr> {
    let socket = UdpSocket::bind(addr)?;
    let addr = socket.local_addr()?;
    thread::spawn(move || -> io::Result<()> {
        let mut buffer = vec![0; 65_535];
        loop {
            let (n, from) = socket.recv_from(&mut buffer)?;
            socket.send_to(buffer.get(..n).unwrap_or_default(), from)?;
        }
    });
    Ok(addr)
}

/// Sends datagrams of the given sizes, each until its echo comes; how many had to be repeated.
pub fn udp_echo(addr: SocketAddr, sizes: &[usize]) -> Result<u32> {
    let socket = UdpSocket::bind(if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(addr)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut repeated = 0;
    let mut got = vec![0; 65_535];
    for (n, size) in sizes.iter().enumerate() {
        let mut sent = vec![0; *size];
        fill(&mut sent, n as u64 + 1, 0);
        let mut tries = 0;
        loop {
            socket.send(&sent)?;
            // Late echoes of an earlier try are read away.
            match socket.recv(&mut got) {
                Ok(n) if got.get(..n) == Some(&sent[..]) => break,
                Ok(_) => {}
                Err(_) => tries += 1,
            }
            ensure!(tries < 10, "a datagram of {size} bytes never came back");
        }
        repeated += tries;
    }
    Ok(repeated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> SocketAddr {
        TcpServer::start("127.0.0.1:0").unwrap().addr()
    }

    #[test]
    fn both_ends_agree_on_the_pattern() {
        let server = server();
        assert_eq!(echo(server, 3, 100).unwrap().len(), 3);
        let got = fetch(server, 5, 1_000_003, 0, |_| {}).unwrap();
        assert_eq!(got["intact"], true, "{got}");
        assert_eq!(
            push(server, 5, 1_000_003, 0).unwrap(),
            json!({"bytes": 1_000_003, "intact": true})
        );
    }

    #[test]
    fn notices_changed_and_moved_bytes() {
        for change in [|b: &mut Vec<u8>| b[70_001] ^= 1, |b: &mut Vec<u8>| b.rotate_left(8)] {
            let mut bytes = vec![0; 100_000];
            fill(&mut bytes, 9, 0);
            let verdict = |bytes: &[u8]| {
                let mut check = Check::new(9);
                bytes.chunks(33_333).for_each(|c| check.take(c));
                check.intact
            };
            assert!(verdict(&bytes));
            change(&mut bytes);
            assert!(!verdict(&bytes));
        }
    }

    #[test]
    fn paces_and_measures_gaps() {
        let got = fetch(server(), 1, 100_000, 200_000, |_| {}).unwrap();
        assert!(got["ms"].as_f64().unwrap() > 300.0, "{got}");
        assert!(got["max_gap_ms"].as_f64().unwrap() < 300.0, "{got}");
    }

    #[test]
    fn echoes_datagrams() {
        let server = udp_server("127.0.0.1:0").unwrap();
        assert_eq!(udp_echo(server, &[0, 1, 1200, 60_000]).unwrap(), 0);
    }
}
