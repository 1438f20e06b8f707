//! Reaching a relay: raw and inside TLS, over each of its addresses, at staggered times.
//!
//! The first connection on which the relay accepts the join is used; the others are dropped before
//! they count. Whoever gets it confirms the join. Must never connect where the mediator may not send this computer.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use adit_net::{
    identity::DeviceIdentity,
    noise::{
        NoiseError,
        join::{AcceptedJoin, JoinError, begin_join},
    },
    proxy::{Dialer, parse_host_port},
    tls::connect_cover,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::client::TlsStream;

use crate::{
    early::Warm,
    join::Relay,
    memory::{Memory, Way},
    relayed,
};

/// Time to connect. Short: when a network comes back, a new attempt is quicker than the next
/// retransmission of an old one.
const DIAL: Duration = Duration::from_secs(5);
/// Time for the TLS handshake.
const TLS: Duration = Duration::from_secs(5);
/// Head start of each attempt before the next (RFC 8305 §8).
const STAGGER: Duration = Duration::from_millis(250);

/// Why a relay was not joined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReachError {
    #[error("relay has no address")]
    NoAddress,
    #[error("{0}")]
    Dial(#[from] adit_net::proxy::DialError),
    #[error("tls: {0}")]
    Tls(io::Error),
    #[error("{0}")]
    Join(#[from] JoinError),
}

impl ReachError {
    /// The relay itself said no: another way would lead to the same answer.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Join(JoinError::Refused(_)))
    }
}

/// A connection on which the relay accepted the join; it does not count yet.
pub(crate) struct Reached {
    pub(crate) stream: RelayStream,
    pub(crate) way: Way,
    accepted: AcceptedJoin,
    rtt: Duration,
    pub(crate) at: Instant,
}

impl Reached {
    /// What must be sent before anything else, for the join to count.
    pub(crate) fn confirm(
        self,
        relay: &Relay,
        memory: &Memory,
    ) -> Result<(RelayStream, Vec<u8>), NoiseError> {
        memory.joined(relay.key, self.rtt, self.way);
        Ok((self.stream, self.accepted.confirmation()?))
    }
}

/// What reaching relays needs.
#[derive(Clone)]
pub(crate) struct Reach {
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) identity: Arc<DeviceIdentity>,
    pub(crate) memory: Arc<Memory>,
}

impl Reach {
    /// `warm`: connections that are under way already.
    pub(crate) async fn join(
        &self,
        relay: &Relay,
        slot: u32,
        warm: Option<&Warm>,
    ) -> Result<Reached, ReachError> {
        let needs_tls = self.memory.way() == Some(Way::Tls);
        let plan = plan(&relay.addresses, needs_tls);
        race(plan, |way, address| self.attempt(relay, address, way, slot, warm)).await
    }

    async fn attempt(
        &self,
        relay: &Relay,
        address: (String, u16),
        way: Way,
        slot: u32,
        warm: Option<&Warm>,
    ) -> Result<Reached, ReachError> {
        let ready = match warm {
            Some(warm) => warm.take(&address, way).await,
            None => None,
        };
        let mut stream = match ready {
            Some(stream) => stream,
            None => self.connect(&address, way).await?,
        };
        let noise = &self.identity.noise;
        let began = Instant::now();
        let accepted =
            begin_join(&mut stream, &relay.noise_key, noise, &relay.ticket, slot).await?;
        Ok(Reached { stream, way, accepted, rtt: began.elapsed(), at: Instant::now() })
    }

    /// Connects without saying anything yet.
    pub(crate) async fn connect(
        &self,
        (host, port): &(String, u16),
        way: Way,
    ) -> Result<RelayStream, ReachError> {
        let admits = |address| self.memory.admits(address);
        let tcp = self.dialer.dial_where(host, *port, DIAL, &admits).await?.stream;
        relayed::tune(&tcp);
        match way {
            Way::Raw => Ok(RelayStream::Raw(tcp)),
            Way::Tls => {
                let late = |_| ReachError::Tls(io::ErrorKind::TimedOut.into());
                let tls = timeout(TLS, connect_cover(tcp, host)).await.map_err(late)?;
                Ok(RelayStream::Tls(Box::new(tls.map_err(ReachError::Tls)?)))
            }
        }
    }
}

/// An attempt that is to be made: so long after the first, in this way, at this address.
type Planned = (Duration, Way, (String, u16));

/// When to try what. Where the last success needed TLS, it gets no head start to wait for.
fn plan(addresses: &[String], needs_tls: bool) -> Vec<Planned> {
    let addresses = addresses.iter().filter_map(|a| parse_host_port(a, 443).ok());
    let mut plan = Vec::new();
    for (n, address) in (0u32..).zip(addresses) {
        let tls = if needs_tls { n } else { n + 1 };
        plan.push((STAGGER * n, Way::Raw, address.clone()));
        plan.push((STAGGER * tls, Way::Tls, address));
    }
    plan.sort_by_key(|(after, way, _)| (*after, *way));
    plan
}

/// Makes the attempts at their times until one succeeds, or the relay says no. Those that are under
/// way then are dropped: their connections close.
async fn race<T, F: Future<Output = Result<T, ReachError>>>(
    mut plan: Vec<Planned>,
    mut attempt: impl FnMut(Way, (String, u16)) -> F,
) -> Result<T, ReachError> {
    let began = Instant::now();
    let mut running = FuturesUnordered::new();
    let mut error = ReachError::NoAddress;
    loop {
        let next = plan.first().map(|(after, ..)| began + *after);
        // Nothing under way: nothing to give a head start to.
        if running.is_empty() || next.is_some_and(|at| at <= Instant::now()) {
            if plan.is_empty() {
                return Err(error);
            }
            let (_, way, address) = plan.remove(0);
            running.push(attempt(way, address));
            continue;
        }
        let wait = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(done) = running.next() => match done {
                Ok(reached) => return Ok(reached),
                Err(refusal) if refusal.is_refusal() => return Err(refusal),
                Err(failed) => if !matches!(error, ReachError::Join(_)) { error = failed },
            },
            () = wait => {}
        }
    }
}

/// A connection to a relay.
pub(crate) enum RelayStream {
    Raw(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl RelayStream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Raw(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        self.tcp().local_addr().ok()
    }

    pub(crate) fn peer_addr(&self) -> Option<SocketAddr> {
        self.tcp().peer_addr().ok()
    }
}

impl AsyncRead for RelayStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Raw(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for RelayStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Raw(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Raw(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Raw(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
#[path = "reach_tests.rs"]
mod tests;
