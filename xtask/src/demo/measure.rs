//! An HTTP client for the demonstration's server: round trips and bulk, every byte compared.

use std::{
    io::{BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::http::{CHUNK, Head, read_pattern, send_pattern};

/// No step of the demonstration waits longer than this.
const DEADLINE: Duration = Duration::from_secs(60);

/// Time from connecting to the first byte of the page.
pub(crate) fn first_byte(server: SocketAddr) -> Result<Duration> {
    let start = Instant::now();
    let mut client = Client::connect(server)?;
    client.request("GET / HTTP/1.1\r\n", 0)?;
    let length = client.head()?;
    let time = start.elapsed();
    // The page is not the pattern.
    read_pattern(&mut client.reader, length)?;
    Ok(time)
}

/// Median time of small requests on one open connection.
pub(crate) fn round_trips(server: SocketAddr, count: u32) -> Result<Duration> {
    let mut client = Client::connect(server)?;
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        client.request("GET /bytes/8 HTTP/1.1\r\n", 0)?;
        let length = client.head()?;
        client.pattern(length)?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times.get(times.len() / 2).copied().context("no round trip")
}

/// Fetches bytes and compares them: bytes a second.
pub(crate) fn download(server: SocketAddr, length: u64) -> Result<f64> {
    let start = Instant::now();
    let mut client = Client::connect(server)?;
    client.request(&format!("GET /bytes/{length} HTTP/1.1\r\n"), 0)?;
    ensure!(client.head()? == length, "the answer has another length");
    client.pattern(length)?;
    Ok(rate(length, start))
}

/// Sends bytes, which the server compares: bytes a second.
pub(crate) fn upload(server: SocketAddr, length: u64) -> Result<f64> {
    let start = Instant::now();
    let mut client = Client::connect(server)?;
    client.request("POST /bytes HTTP/1.1\r\n", length)?;
    send_pattern(&mut &client.stream, length).context("sending through the redirector")?;
    let head = Head::read(&mut client.reader)?.context("no answer to the upload")?;
    ensure!(head.path == "200", "the server got other bytes than were sent ({})", head.path);
    Ok(rate(length, start))
}

struct Client {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Client {
    fn connect(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(server).with_context(|| format!("connecting {server}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let reader = BufReader::with_capacity(CHUNK, stream.try_clone()?);
        Ok(Self { stream, reader })
    }

    fn request(&mut self, line: &str, length: u64) -> Result<()> {
        let head = format!("{line}host: demo\r\ncontent-length: {length}\r\n\r\n");
        self.stream.write_all(head.as_bytes()).context("sending a request through the redirector")
    }

    /// Length of the answer's body.
    fn head(&mut self) -> Result<u64> {
        let head = Head::read(&mut self.reader).context("waiting for the answer")?;
        match head {
            Some(head) if head.path == "200" => Ok(head.length),
            Some(head) => bail!("the server answered {}", head.path),
            None => bail!("the connection through the redirector ended without an answer"),
        }
    }

    /// Reads a body that is the pattern.
    fn pattern(&mut self, length: u64) -> Result<()> {
        let intact = read_pattern(&mut self.reader, length).context("reading the answer")?;
        ensure!(intact, "bytes changed on the way");
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure to show")]
fn rate(length: u64, start: Instant) -> f64 {
    length as f64 / start.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::{super::http::Server, *};

    #[test]
    fn measures_a_server_without_a_tunnel() {
        let server = SocketAddr::from(([127, 0, 0, 1], Server::start().unwrap().port()));
        first_byte(server).unwrap();
        round_trips(server, 3).unwrap();
        assert!(download(server, 100_000).unwrap() > 0.0);
        assert!(upload(server, 100_000).unwrap() > 0.0);
    }

    #[test]
    fn says_when_nobody_answers() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(download(closed, 8).unwrap_err().to_string().contains("connecting"));
    }
}
