//! The side that dials: agents, consoles and relays.
//!
//! [`connect`] makes one connection; [`Persistent`] keeps one up. The mediator's keys are
//! accepted only under the root that the TLS handshake proved.

mod persistent;

use std::{
    future::{Future, poll_fn, ready},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use adit_net::{
    identity::DeviceIdentity,
    proxy::{DialError, Dialer, parse_host_port},
    tls::{TlsError, Trust, connect_control, interceptor},
};
use adit_protocol::{
    code::failure as codes,
    keys::{KeyCert, KeyError, PublicKey, Purpose},
    limits::{KEEPALIVE_IDLE, OPEN_TIMEOUT},
    wire::{self, Failure, frame::Body},
};
use futures_util::future::join_all;

use tokio::sync::watch;

pub use persistent::{DownReason, Event, Persistent};

use crate::{CloseReason, Incoming, MediatorClock, Options, Peer, RequestError, Skew, start};

/// Port of a mediator unless another is given.
pub const DEFAULT_PORT: u16 = 443;
/// Time for one host: dialling, TLS, and the answer to `Hello`.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time to dial without a proxy. Short: when a network comes back, a new attempt is quicker than
/// the next retransmission of an old one.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Time to look who ends TLS.
const INSPECT: Duration = Duration::from_secs(3);
/// It is looked at this often: a mediator that is overloaded must not be dialled twice as much.
const INSPECT_EVERY: Duration = Duration::from_secs(60);
/// Bounds of the keepalive interval that a mediator may set.
const KEEPALIVE_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Whom to call and what to say.
#[derive(Clone)]
pub struct ConnectConfig {
    /// Mediator addresses, `host` or `host:port`, tried in this order.
    pub hosts: Vec<String>,
    /// Whom to believe.
    pub trust: Trust,
    /// Who we are.
    pub identity: Arc<DeviceIdentity>,
    /// The way out.
    pub dialer: Dialer,
    /// The first request. Unless it says what the own clock shows, the system is asked.
    pub hello: wire::Hello,
    /// Requests sent right behind it, in the same flight, whose answers are not waited for.
    pub ahead: Ahead,
    /// Requests sent behind those, in the same flight.
    pub pipelined: Vec<Body>,
    /// Time for one host.
    pub timeout: Duration,
}

/// Requests that follow `Hello`. They may still be in the making while the connection is made.
#[derive(Clone, Default)]
pub struct Ahead(Option<watch::Receiver<Option<Vec<Body>>>>);

/// Where they are put; dropped without any, there are none.
pub type AheadSender = watch::Sender<Option<Vec<Body>>>;

impl Ahead {
    /// Some that are not made yet: the connection waits for them once it is there.
    pub fn later() -> (AheadSender, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(Some(receiver)))
    }

    async fn bodies(&self) -> Vec<Body> {
        let Some(mut receiver) = self.0.clone() else { return Vec::new() };
        let bodies = receiver.wait_for(Option::is_some).await;
        bodies.ok().and_then(|bodies| bodies.clone()).unwrap_or_default()
    }
}

impl From<Vec<Body>> for Ahead {
    fn from(bodies: Vec<Body>) -> Self {
        Self(Some(watch::channel(Some(bodies)).1))
    }
}

impl std::fmt::Debug for ConnectConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // `hello`, `ahead` and `pipelined` may hold a session token or a password.
        f.debug_struct("ConnectConfig")
            .field("hosts", &self.hosts)
            .field("trust", &self.trust)
            .finish_non_exhaustive()
    }
}

/// The mediator's certified keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MediatorKeys {
    /// Certifies the others.
    pub root: PublicKey,
    /// Signs grants and leases.
    pub grant: PublicKey,
    /// Signs relay tickets.
    pub ticket: PublicKey,
    /// Signs tree heads.
    pub log: PublicKey,
}

impl MediatorKeys {
    /// The newest key of each purpose that `root` certified for `now_ms`.
    pub fn open(root: PublicKey, certs: &[wire::Signed], now_ms: u64) -> Result<Self, KeyError> {
        let newest = |purpose| {
            certs
                .iter()
                .filter_map(|signed| KeyCert::open(root, purpose, signed).ok())
                .filter(|cert| cert.check_time(now_ms).is_ok())
                .max_by_key(|cert| cert.not_before_ms)
                .map(|cert| cert.key)
                .ok_or(KeyError::WrongPurpose)
        };
        Ok(Self {
            root,
            grant: newest(Purpose::Grant)?,
            ticket: newest(Purpose::Ticket)?,
            log: newest(Purpose::Log)?,
        })
    }
}

/// Drives one connection until it ends; the caller owns it.
pub type Driver = Pin<Box<dyn Future<Output = CloseReason> + Send>>;

/// Time for the answer to a request that was sent ahead.
pub const AHEAD_TIMEOUT: Duration = OPEN_TIMEOUT.saturating_add(Duration::from_secs(5));

/// The answer to a request that was sent ahead.
pub struct AheadReply(Pin<Box<dyn Future<Output = Result<Body, RequestError>> + Send>>);

impl Future for AheadReply {
    type Output = Result<Body, RequestError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl std::fmt::Debug for AheadReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AheadReply")
    }
}

/// A connection that was welcomed.
#[derive(Debug)]
pub struct Connected {
    /// For requests and pushes.
    pub peer: Peer,
    /// What the mediator asks and tells.
    pub incoming: Incoming,
    /// The mediator's welcome.
    pub welcome: wire::Welcome,
    /// Its keys, certified by the root.
    pub keys: MediatorKeys,
    /// Its time.
    pub clock: MediatorClock,
    /// Answers to the pipelined requests, in their order.
    pub replies: Vec<Result<Body, RequestError>>,
    /// Answers to the requests that were sent ahead, as they come.
    pub ahead: Vec<AheadReply>,
    /// The entry of `hosts` that answered.
    pub host: String,
    /// Its address; unknown behind a proxy.
    pub remote: Option<SocketAddr>,
    /// The own address that it uses.
    pub local: Option<SocketAddr>,
    /// Whether a proxy is in between.
    pub via_proxy: bool,
    /// The installation's root key.
    pub root: PublicKey,
}

/// Why no mediator welcomed us.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No host is configured.
    #[error("no mediator address is configured")]
    NoHost,
    /// A host is not `host:port`.
    #[error("mediator address {0}")]
    InvalidHost(#[from] adit_net::proxy::InvalidHostPort),
    /// No TCP connection.
    #[error("mediator {host}: {error}")]
    Dial {
        /// Which.
        host: String,
        /// Why.
        error: DialError,
    },
    /// No TLS, or not with whom we trust.
    #[error("mediator {host}: {error}")]
    Tls {
        /// Which.
        host: String,
        /// Why.
        error: TlsError,
    },
    /// The mediator said no.
    #[error("mediator {host} refused: {}", failure.message)]
    Refused {
        /// Which.
        host: String,
        /// What it said.
        failure: Failure,
    },
    /// The connection ended before the welcome.
    #[error("mediator {host}: {reason}")]
    Closed {
        /// Which.
        host: String,
        /// Why.
        reason: CloseReason,
    },
    /// No answer in time.
    #[error("mediator {host} did not answer within {} s", timeout.as_secs())]
    Timeout {
        /// Which.
        host: String,
        /// How long we waited.
        timeout: Duration,
    },
    /// The answer to `Hello` is not what the root vouches for.
    #[error("mediator {host} presents keys that its root does not certify: {error}")]
    Keys {
        /// Which.
        host: String,
        /// Why.
        error: KeyError,
    },
    /// The answer to `Hello` is none.
    #[error("mediator {host} did not answer hello with a welcome")]
    NoWelcome {
        /// Which.
        host: String,
    },
}

impl ConnectError {
    /// Will trying again soon not help? Somebody has to enrol again, or change a setting.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::NoHost | Self::InvalidHost(_) | Self::Keys { .. } => true,
            Self::Tls { error, .. } => {
                matches!(error, TlsError::UnknownRoot { .. } | TlsError::Key(_))
            }
            Self::Refused { failure, .. } => matches!(
                failure.code.as_str(),
                codes::NOT_ENROLLED | codes::NOT_LOGGED_IN | codes::UNSUPPORTED_VERSION
            ),
            _ => false,
        }
    }

    /// How much it tells, when several hosts failed: the further we came, the more.
    fn rank(&self) -> u8 {
        match self {
            _ if self.is_fatal() => 3,
            Self::Refused { .. } | Self::NoWelcome { .. } => 2,
            Self::Tls { error, .. } if error.is_trust() => 2,
            Self::Dial { .. } => 0,
            _ => 1,
        }
    }

    /// What the mediator said, if it said something.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Refused { failure, .. } => Some(failure),
            _ => None,
        }
    }
}

/// Connects to the first host that welcomes us. The second value drives the connection and must
/// be polled from now on.
pub async fn connect(config: &ConnectConfig) -> Result<(Connected, Driver), ConnectError> {
    let mut worst = ConnectError::NoHost;
    for host in &config.hosts {
        let attempt = tokio::time::timeout(config.timeout, connect_one(config, host)).await;
        let error = match attempt {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => error,
            Err(_) => ConnectError::Timeout { host: host.clone(), timeout: config.timeout },
        };
        // What tells most: a refusal or a wrong key rather than a host that is down.
        if matches!(worst, ConnectError::NoHost) || error.rank() > worst.rank() {
            worst = error;
        }
    }
    Err(worst)
}

async fn connect_one(
    config: &ConnectConfig,
    host: &str,
) -> Result<(Connected, Driver), ConnectError> {
    let (name, port) = parse_host_port(host, DEFAULT_PORT)?;
    let via_proxy = config.dialer.uses_proxy(&name, port);
    let limit = if via_proxy { config.timeout } else { config.timeout.min(DIAL_TIMEOUT) };
    let dialed = config
        .dialer
        .dial(&name, port, limit)
        .await
        .map_err(|error| ConnectError::Dial { host: host.to_owned(), error })?;
    let local = dialed.stream.local_addr().ok();
    let opened =
        connect_control(dialed.stream, &name, config.trust, &config.identity.signing).await;
    let (stream, info) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let error = explain(config, &name, port, error).await;
            return Err(ConnectError::Tls { host: host.to_owned(), error });
        }
    };
    let (peer, incoming, driver) = start(stream, Options::client());
    let mut driver: Driver = Box::pin(driver);

    let asked = Instant::now();
    let Answers { welcome, replies, ahead } = say_hello(config, host, &peer, &mut driver).await?;
    let clock = MediatorClock::new(welcome.now_ms, Instant::now());
    compare_clocks(welcome.now_ms, asked.elapsed());
    let not_certified = |error| ConnectError::Keys { host: host.to_owned(), error };
    let root = info.root.ok_or(KeyError::InvalidKey).map_err(not_certified)?;
    let keys =
        MediatorKeys::open(root, &welcome.key_certs, welcome.now_ms).map_err(not_certified)?;
    peer.set_keepalive(match welcome.keepalive_ms {
        0 => KEEPALIVE_IDLE,
        ms => Duration::from_millis(ms.into()).clamp(KEEPALIVE_BOUNDS.0, KEEPALIVE_BOUNDS.1),
    });
    let connected = Connected {
        peer,
        incoming,
        welcome,
        keys,
        clock,
        replies,
        ahead,
        host: host.to_owned(),
        remote: dialed.remote,
        local,
        via_proxy: dialed.via_proxy,
        root,
    };
    Ok((connected, driver))
}

/// Says once in each connection whether this computer's clock is wrong. Nothing here goes by it,
/// but people, their one-time codes and the rules of endpoints do.
fn compare_clocks(mediator_ms: u64, trip: Duration) {
    if let Some(skew) = Skew::of(own_time(), mediator_ms, trip) {
        tracing::warn!(%skew, "this computer's clock is not the mediator's: set one of them");
    }
}

/// What this computer's own clock shows.
fn own_time() -> u64 {
    let own = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(own.as_millis()).unwrap_or(u64::MAX)
}

/// A handshake that broke without a word: perhaps because somebody on the way ended it.
async fn explain(config: &ConnectConfig, name: &str, port: u16, error: TlsError) -> TlsError {
    /// When it was looked at last, and what was found.
    static LAST: Mutex<Option<(Instant, Option<String>)>> = Mutex::new(None);
    if !error.may_be_interception() {
        return error;
    }
    let last = LAST.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let found = match last.filter(|(at, _)| at.elapsed() < INSPECT_EVERY) {
        Some((_, found)) => found,
        None => {
            let look = async {
                let dialed = config.dialer.dial(name, port, INSPECT).await.ok()?;
                interceptor(dialed.stream, name).await
            };
            let found = tokio::time::timeout(INSPECT, look).await.ok().flatten();
            let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some((Instant::now(), found.clone()));
            found
        }
    };
    found.map_or(error, |issuer| TlsError::Intercepted { issuer })
}

/// What came of the first flight.
struct Answers {
    welcome: wire::Welcome,
    replies: Vec<Result<Body, RequestError>>,
    ahead: Vec<AheadReply>,
}

async fn say_hello(
    config: &ConnectConfig,
    host: &str,
    peer: &Peer,
    driver: &mut Driver,
) -> Result<Answers, ConnectError> {
    let ask = |body: &Body| peer.request(body.clone(), config.timeout);
    let ahead = config.ahead.bodies().await;
    let mut hello = config.hello.clone();
    if hello.now_ms == 0 {
        hello.now_ms = own_time();
    }
    let hello = Body::Hello(hello);
    // Polled in this order, so that `Hello` is the first in the queue and all leave together.
    let flight = async {
        tokio::try_join!(
            biased;
            ask(&hello),
            async { Ok(send_ahead(peer, &ahead).await) },
            async { Ok(join_all(config.pipelined.iter().map(ask)).await) },
        )
    };
    tokio::pin!(flight);
    let (answers, ended) = tokio::select! {
        biased;
        answers = &mut flight => (answers, None),
        // Whoever waits is told so when the driver ends; an answer may have come just before.
        reason = driver => (flight.await, Some(reason)),
    };
    match (answers, ended) {
        (Err(RequestError::Failed(failure)), _) => {
            Err(ConnectError::Refused { host: host.to_owned(), failure })
        }
        (_, Some(reason)) => Err(ConnectError::Closed { host: host.to_owned(), reason }),
        (Ok((Body::Welcome(welcome), ahead, replies)), None) => {
            Ok(Answers { welcome, replies, ahead })
        }
        _ => Err(ConnectError::NoWelcome { host: host.to_owned() }),
    }
}

/// Queues requests without waiting for their answers.
async fn send_ahead(peer: &Peer, bodies: &[Body]) -> Vec<AheadReply> {
    let mut sent = Vec::new();
    for body in bodies {
        let (peer, body) = (peer.clone(), body.clone());
        let ask = async move { peer.request(body, AHEAD_TIMEOUT).await };
        let mut reply = AheadReply(Box::pin(ask));
        // The first poll queues it; an answer cannot be there yet, an error may be.
        let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut reply).poll(cx)));
        match first.await {
            Poll::Pending => sent.push(reply),
            Poll::Ready(answer) => sent.push(AheadReply(Box::pin(ready(answer)))),
        }
    }
    sent
}
