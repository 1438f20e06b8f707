//! Blind copying between the two connections of a pair.
//!
//! On Linux two raw TCP connections are joined with splice(2): the bytes never enter this
//! process. Pipes come from a [`PipePool`] and are borrowed only while bytes move, so that an
//! idle pair costs two sockets and one small task. TLS ends, and every other system, are copied
//! through pooled buffers.
//!
//! Invariants:
//! - bytes are neither looked at, nor kept, nor reordered, and none is passed on twice;
//! - a half-close is passed on as a half-close, and anything but two half-closes as a reset: a
//!   truncated stream must never look complete;
//! - no timer and no batching: what arrives is passed on at once.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use socket2::SockRef;
use tokio::{io::AsyncReadExt, net::TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

mod copy;
#[cfg(target_os = "linux")]
mod linux;
pub mod pool;

#[cfg(target_os = "linux")]
pub use pool::PipePool;
pub use pool::{BufferPool, Engine};

/// First keepalive probe on a silent connection, and the time between probes.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// One end of a pair.
#[derive(Debug)]
pub enum Leg {
    /// The carrier's bytes as they are.
    Raw(TcpStream),
    /// Inside TLS that this relay terminates.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Leg {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Raw(s) => s,
            Self::Tls(s) => s.get_ref().0,
        }
    }

    /// Makes dropping this connection a reset.
    pub fn abort(&self) {
        // Without lingering the kernel answers with RST and discards what is queued.
        let _ = SockRef::from(self.socket()).set_linger(Some(Duration::ZERO));
    }
}

/// Bytes that a pair has moved.
#[derive(Debug, Default)]
pub struct Meter {
    up: AtomicU64,
    down: AtomicU64,
}

impl Meter {
    /// Console to agent, agent to console.
    pub fn read(&self) -> (u64, u64) {
        (self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed))
    }
}

/// How copying ended.
#[derive(Debug)]
pub enum Outcome {
    /// Both ends closed their direction.
    Clean,
    /// One end was reset or failed; so was the other, therefore.
    Broken(io::Error),
    /// The relay ended it; both ends were reset.
    Cut,
}

/// Options that every joined or joining connection gets.
pub fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let (idle, interval) = KEEPALIVE;
    let keepalive = socket2::TcpKeepalive::new().with_time(idle).with_interval(interval);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

/// Copies both ways until both directions ended, one broke, or `cut` fires. So many of the
/// console's first bytes has the agent already.
pub async fn run(
    (mut console, ahead): (Leg, usize),
    mut agent: Leg,
    engine: &Engine,
    meter: &Meter,
    cut: &CancellationToken,
) -> Outcome {
    // Until both directions have ended, whatever drops this future must not look like an end.
    console.abort();
    agent.abort();
    let result = tokio::select! {
        biased;
        () = cut.cancelled() => return Outcome::Cut,
        result = async {
            skip(&mut console, ahead, meter).await?;
            both_ways(&mut console, &mut agent, engine, meter).await
        } => result,
    };
    match result {
        Ok(()) => {
            for leg in [&console, &agent] {
                let _ = SockRef::from(leg.socket()).set_linger(None);
            }
            Outcome::Clean
        }
        Err(error) => Outcome::Broken(error),
    }
}

/// Takes bytes off the connection that were passed on before it was paired.
async fn skip(console: &mut Leg, ahead: usize, meter: &Meter) -> io::Result<()> {
    let mut buffer = [0; 512];
    let mut left = ahead;
    while left > 0 {
        let piece = buffer.get_mut(..left.min(512)).unwrap_or_default();
        let n = console.read(piece).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left = left.saturating_sub(n);
        meter.up.fetch_add(n as u64, Ordering::Relaxed);
    }
    Ok(())
}

async fn both_ways(
    console: &mut Leg,
    agent: &mut Leg,
    engine: &Engine,
    meter: &Meter,
) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if engine.splice
        && let (Leg::Raw(console), Leg::Raw(agent)) = (&*console, &*agent)
    {
        return linux::both_ways(console, agent, engine, meter).await;
    }
    copy::both_ways(console, agent, &engine.buffers, meter).await
}
