//! The HTTPS API as a program uses it: one connection, HTTP/1.1, a proof of possession with
//! every request.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adit_net::tls::{Trust, connect_web};
use adit_protocol::{
    dpop::{Claims, prove},
    keys::random,
    wire::{self, frame::Body},
};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use super::site::{Device, Site, WAIT};

/// Bytes of an answer.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// Requests that are put off or want another nonce, before one that is answered.
const MAX_TRIES: usize = 20;

/// A connection and whose requests go over it.
pub(super) struct Web<'a> {
    stream: TlsStream<TcpStream>,
    host: String,
    nonce: String,
    who: &'a Device,
    token: String,
}

/// What came, and how long it took.
pub(super) struct Answer {
    pub(super) ms: f64,
    pub(super) body: Value,
}

struct Raw {
    status: u16,
    nonce: Option<String>,
    retry_after: Option<u64>,
    body: Vec<u8>,
}

impl<'a> Web<'a> {
    /// Of somebody who is logged in.
    pub(super) async fn open(site: &Site, who: &'a Device) -> Result<Self> {
        let asked = Body::ApiTokenRequest(wire::ApiTokenRequest {});
        let Body::ApiToken(told) = who.peer.request(asked, WAIT).await? else {
            bail!("no token");
        };
        let tcp = TcpStream::connect(("127.0.0.1", site.port)).await?;
        tcp.set_nodelay(true)?;
        let trust = Trust::Root(site.fingerprint.parse()?);
        let stream = connect_web(tcp, "127.0.0.1", trust).await?;
        let host = format!("127.0.0.1:{}", site.port);
        Ok(Self { stream, host, nonce: String::new(), who, token: told.token })
    }

    /// A request that only reads.
    pub(super) async fn get(&mut self, target: &str) -> Result<Answer> {
        for _ in 0..MAX_TRIES {
            let start = Instant::now();
            let raw = self.once(target).await?;
            let ms = start.elapsed().as_secs_f64() * 1e3;
            let renewed = raw.nonce.is_some_and(|nonce| {
                let new = nonce != self.nonce;
                self.nonce = nonce;
                new
            });
            match raw.status {
                200 => return Ok(Answer { ms, body: serde_json::from_slice(&raw.body)? }),
                401 if renewed => {}
                429 => {
                    let wait = raw.retry_after.context("no Retry-After")?;
                    tokio::time::sleep(Duration::from_secs(wait)).await;
                }
                other => bail!("{target}: {other}: {}", String::from_utf8_lossy(&raw.body)),
            }
        }
        bail!("{target}: put off {MAX_TRIES} times")
    }

    async fn once(&mut self, target: &str) -> Result<Raw> {
        let path = target.split('?').next().unwrap_or(target);
        let proof = prove(
            &self.who.identity.signing,
            &Claims {
                method: "GET",
                url: &format!("https://{}{path}", self.host),
                token: &self.token,
                nonce: &self.nonce,
                id: random()?,
                issued_s: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
            },
        );
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: {}\r\nAuthorization: DPoP {}\r\nDPoP: {proof}\r\n\r\n",
            self.host, self.token
        );
        self.stream.write_all(request.as_bytes()).await?;
        self.stream.flush().await?;
        let mut bytes = Vec::with_capacity(64 * 1024);
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            self.more(&mut bytes).await?;
        };
        let mut body = bytes.split_off(end + 4);
        let head = String::from_utf8(bytes)?;
        let header = |wanted: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(':'));
            lines
                .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                .map(|(_, value)| value.trim().to_owned())
        };
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let length: usize = header("content-length").context("no Content-Length")?.parse()?;
        while body.len() < length {
            self.more(&mut body).await?;
        }
        Ok(Raw {
            status: status.context("no status")?,
            nonce: header("dpop-nonce"),
            retry_after: header("retry-after").and_then(|wait| wait.parse().ok()),
            body,
        })
    }

    async fn more(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        ensure!(bytes.len() < MAX_ANSWER, "an answer without end");
        let read = tokio::time::timeout(WAIT, self.stream.read_buf(bytes)).await??;
        ensure!(read > 0, "the connection ended");
        Ok(())
    }
}
