//! A relay on loopback with a mediator's keys in the test's own hands.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where it fails")]

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use adit_control::MediatorClock;
use adit_net::{
    identity::{DeviceIdentity, NoiseKeypair},
    noise::join::{JoinError, join_relay},
};
use adit_protocol::{
    ids::SessionId,
    keys::{KeyCert, Purpose, SigningKey},
    ticket::{Role, Share, Ticket},
    wire,
};
use adit_relay::{
    core::pairing::Limits, hub::Hub, join::Door, listen, metrics::Metrics, splice::Engine,
    trust::Trust,
};
use adit_runtime::supervise::Tasks;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

/// The mediator's time in these tests.
pub(crate) const NOW_MS: u64 = 1_700_000_000_000;
/// Nothing in these tests takes as long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn limits() -> Limits {
    Limits {
        max_unjoined: 512,
        max_unjoined_per_source: 512,
        max_pairs: 4096,
        unjoined: Duration::from_secs(5),
        unpaired: Duration::from_secs(15),
        idle: Duration::from_secs(600),
        lifetime: Duration::from_secs(3600),
    }
}

pub(crate) fn session(n: u32) -> SessionId {
    SessionId(u128::from(n).to_be_bytes())
}

pub(crate) struct TestRelay {
    pub(crate) address: SocketAddr,
    pub(crate) hub: Arc<Hub>,
    pub(crate) tasks: Tasks,
    pub(crate) identity: Arc<DeviceIdentity>,
    pub(crate) root: SigningKey,
    pub(crate) ticket_key: SigningKey,
}

impl TestRelay {
    pub(crate) fn start(limits: Limits) -> Self {
        Self::with_engine(limits, Engine::new(2048))
    }

    pub(crate) fn with_engine(limits: Limits, engine: Engine) -> Self {
        let (root, ticket_key) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let identity = Arc::new(DeviceIdentity::generate(NOW_MS).unwrap());
        Self::with_keys(limits, engine, identity, root, ticket_key)
    }

    /// Another process of the same relay: all that it had in memory is gone.
    pub(crate) async fn restarted(self, limits: Limits) -> Self {
        assert!(self.tasks.stop_within(PATIENCE).await, "the relay does not stop");
        Self::with_keys(limits, Engine::new(2048), self.identity, self.root, self.ticket_key)
    }

    fn with_keys(
        limits: Limits,
        engine: Engine,
        identity: Arc<DeviceIdentity>,
        root: SigningKey,
        ticket_key: SigningKey,
    ) -> Self {
        let trust = Arc::new(Trust::new(identity.signing.public()));
        let cert = KeyCert { key: ticket_key.public(), not_before_ms: 0, not_after_ms: u64::MAX };
        let cert = KeyCert::issue(&root, Purpose::Ticket, &cert);
        trust.learn(root.public(), &[cert], MediatorClock::new(NOW_MS, Instant::now()));
        let tasks = Tasks::default();
        let hub = Hub::new(limits, engine, tasks.clone(), Metrics::default());
        let hosts = ["localhost".to_owned()];
        let now_ms = adit_runtime::time::unix_ms();
        let door = Door::new(Arc::clone(&identity), trust, &hosts, now_ms).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = listen::bind(&[any], true).unwrap().remove(0);
        let address = listener.local_addr().unwrap();
        tasks.spawn(
            "accept",
            listen::accept(listener, Arc::new(door), Arc::clone(&hub), tasks.clone()),
        );
        let time = Arc::clone(&hub);
        tasks.spawn_until_stopped("timers", async move { time.keep_time().await });
        Self { address, hub, tasks, identity, root, ticket_key }
    }

    pub(crate) fn ticket(&self, session: SessionId, role: Role, joiner: &NoiseKeypair) -> Ticket {
        Ticket {
            relay: self.identity.signing.public(),
            session,
            role,
            joiner: joiner.public,
            not_before_ms: NOW_MS - 60_000,
            expires_ms: NOW_MS + 600_000,
            share: Share::default(),
        }
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// A join with a ticket and key of its own.
    pub(crate) async fn join(&self, session: SessionId, role: Role) -> TcpStream {
        let (mut stream, key) = (self.connect().await, NoiseKeypair::generate().unwrap());
        let ticket = self.ticket(session, role, &key).sign(&self.ticket_key);
        self.join_over(&mut stream, &key, &ticket, 0).await.unwrap();
        stream
    }

    pub(crate) async fn join_over<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        key: &NoiseKeypair,
        ticket: &wire::Signed,
        slot: u32,
    ) -> Result<(), JoinError> {
        join_relay(stream, &self.identity.noise.public, key, ticket, slot).await
    }

    /// Both ends of a session.
    pub(crate) async fn pair(&self, session: SessionId) -> (TcpStream, TcpStream) {
        let console = self.join(session, Role::Console).await;
        (console, self.join(session, Role::Agent).await)
    }

    pub(crate) async fn eventually(&self, what: &str, mut is: impl FnMut(&Hub) -> bool) {
        let reached = timeout(PATIENCE, async {
            while !is(&self.hub) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(reached.await.is_ok(), "{what}: {:?}", self.hub.counts());
    }
}

/// What a peer sends until it closes; a reset is an error.
pub(crate) async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut out)).await.expect("no end in time").map(|_| out)
}

/// Bytes that differ by place and stream.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x.to_be_bytes()[3]
        })
        .collect()
}
