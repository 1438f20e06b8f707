//! The UDP sockets of a process: one for each family, shared by its sessions.
//!
//! STUN messages go to the session that their tag or transaction names; QUIC connections to the
//! session that owns the key they present. What belongs to no session gets no answer.

mod own;

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use adit_core::punch::{AddressFilter, BIRTHDAY_SOCKETS, Family, LocalSocket};
use adit_net::{
    portmap::{MapProtocol, PortMapper},
    quic::QuicEndpoint,
    stun::{self, StunClass},
    tls::{peer_spki_sha256, quic_server_config},
    udp::{DemuxSocket, StunDatagram, descriptor_room},
};
use adit_protocol::{
    candidate::{Candidate, CandidateKind},
    keys::SigningKey,
    limits::MAX_CANDIDATES,
    nat::NatSummary,
    ticket::Role,
};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::link::ControlLink;
use own::Own;

/// STUN messages of one session that wait for its driver.
const SESSION_QUEUE: usize = 64;
/// Transactions of all sessions that may be answered.
const MAX_TRANSACTIONS: usize = 8192;
/// QUIC handshakes under way at once. They come from admitted addresses, but whoever can forge a
/// sender can send in their name.
const MAX_HANDSHAKES: usize = 64;
/// Time for a QUIC handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Sessions that may hold birthday sockets at once.
const MAX_BIRTHDAYS: usize = 2;
/// Sockets opened for single sessions, in all; fewer where the system allows fewer.
const MAX_EXTRA_SOCKETS: usize = MAX_BIRTHDAYS * BIRTHDAY_SOCKETS + 64;

/// What the sockets have for a session.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A check, not verified yet.
    Check(StunIn),
    /// A server told where a socket of the session's own is seen.
    Mapped(LocalSocket, SocketAddr),
    /// The NAT was observed anew because the session asked for it.
    Nat(NatSummary),
}

/// A STUN message for a session.
#[derive(Debug)]
pub(crate) struct StunIn {
    pub(crate) socket: LocalSocket,
    pub(crate) from: SocketAddr,
    pub(crate) packet: stun::StunPacket,
    pub(crate) raw: Bytes,
}

/// A connection and the socket through which it came.
pub(crate) type Accepted = (LocalSocket, quinn::Connection);

/// What a session is reached by.
pub(crate) struct Inbox {
    pub(crate) incoming: mpsc::Receiver<Incoming>,
    pub(crate) connections: mpsc::Receiver<Accepted>,
    /// For the session's own sockets.
    pub(crate) doors: Doors,
}

/// Where things for a session are put.
#[derive(Debug, Clone)]
pub(crate) struct Doors {
    pub(crate) incoming: mpsc::Sender<Incoming>,
    pub(crate) connections: mpsc::Sender<Accepted>,
}

struct Entry {
    family: Family,
    socket: Arc<DemuxSocket>,
    quic: Arc<QuicEndpoint>,
}

#[derive(Default)]
struct Registry {
    by_tag: HashMap<[u8; 16], mpsc::Sender<Incoming>>,
    by_transaction: HashMap<[u8; 12], [u8; 16]>,
    transactions: VecDeque<[u8; 12]>,
    by_quic_key: HashMap<[u8; 32], mpsc::Sender<Accepted>>,
}

/// Addresses as sessions offer them, the rules for probing, and what is known of the NAT.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses {
    /// By socket.
    pub(crate) candidates: Vec<Vec<Candidate>>,
    pub(crate) filter: AddressFilter,
    /// `None`: no server has been asked, or none can have answered yet.
    pub(crate) nat: Option<NatSummary>,
    /// Another number: the network is another one, or the machine slept.
    pub(crate) generation: u64,
    /// Another number: UDP passes again after it did not.
    pub(crate) passes: u64,
}

impl Addresses {
    fn hosts(&self) -> impl Iterator<Item = SocketAddr> {
        let all = self.candidates.iter().flatten();
        all.filter(|c| c.kind == CandidateKind::Host).map(|c| c.addr)
    }

    /// The best for a peer: however many junk interfaces there are, they crowd out nothing.
    pub(crate) fn all(&self) -> Vec<Candidate> {
        let mut all: Vec<_> = self.candidates.iter().flatten().copied().collect();
        all.sort_by_key(|c| (own::is_junk(c), std::cmp::Reverse(c.priority)));
        all.truncate(MAX_CANDIDATES);
        all
    }
}

/// See [`UdpStack::want_path`].
pub(crate) struct Wanting(Arc<UdpStack>);

impl Drop for Wanting {
    fn drop(&mut self) {
        self.0.wanting.send_modify(|wanting| *wanting = wanting.saturating_sub(1));
    }
}

/// The sockets.
pub(crate) struct UdpStack {
    entries: Vec<Entry>,
    registry: Arc<Mutex<Registry>>,
    role: Role,
    key: SigningKey,
    addresses: watch::Sender<Addresses>,
    own: Own,
    /// Sessions that are registered.
    sessions: watch::Sender<usize>,
    /// Those that want a direct path and have none.
    wanting: watch::Sender<usize>,
    portmap: PortMapper,
    birthdays: Arc<Semaphore>,
    extra_sockets: Arc<Semaphore>,
}

impl UdpStack {
    /// Binds what the machine has and starts to serve it. The agent accepts connections, the
    /// console only dials. `upnp`: TCP to the gateway goes around no proxy.
    pub(crate) fn start(
        role: Role,
        upnp: bool,
        control: ControlLink,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Result<Arc<Self>, crate::StartError> {
        let key = SigningKey::generate()?;
        let registry = Arc::new(Mutex::new(Registry::default()));
        let mut entries = Vec::new();
        let mut receivers = Vec::new();
        let any: [(IpAddr, Family); 2] = [
            (Ipv4Addr::UNSPECIFIED.into(), Family::V4),
            (Ipv6Addr::UNSPECIFIED.into(), Family::V6),
        ];
        for (ip, family) in any {
            let (socket, stun) = match DemuxSocket::bind(SocketAddr::new(ip, 0)) {
                Ok(bound) => bound,
                Err(error) => {
                    debug!(%error, ?family, "no UDP socket of this family");
                    continue;
                }
            };
            let server = server_config(role, &key, &registry)?;
            let quic = Arc::new(QuicEndpoint::new(socket.clone(), server)?);
            entries.push(Entry { family, socket, quic });
            receivers.push(stun);
        }
        let room = descriptor_room().min(MAX_EXTRA_SOCKETS);
        let stack = Arc::new(Self {
            own: Own::new(entries.len()),
            entries,
            registry,
            role,
            key,
            addresses: watch::Sender::new(Addresses::default()),
            sessions: watch::Sender::new(0),
            wanting: watch::Sender::new(0),
            portmap: PortMapper::start(upnp, tasks, cancel.clone()),
            birthdays: Arc::new(Semaphore::new(MAX_BIRTHDAYS)),
            extra_sockets: Arc::new(Semaphore::new(room)),
        });
        for (index, receiver) in receivers.into_iter().enumerate() {
            let serve = stack.clone().serve_stun(LocalSocket(index), receiver);
            let token = cancel.clone();
            tasks.spawn(async move { token.run_until_cancelled(serve).await });
            if role == Role::Agent {
                let Some(quic) = stack.entries.get(index).map(|e| e.quic.clone()) else { continue };
                let accept = stack.clone().accept(LocalSocket(index), quic, None, tasks.clone());
                let token = cancel.clone();
                tasks.spawn(async move { token.run_until_cancelled(accept).await });
            }
        }
        let (watch, token) =
            (stack.clone().watch(control, tasks.clone(), cancel.clone()), cancel.clone());
        tasks.spawn(async move { token.run_until_cancelled(watch).await });
        Ok(stack)
    }

    /// SHA-256 of the key that accepted connections present.
    pub(crate) fn key_sha256(&self) -> [u8; 32] {
        self.key.public().fingerprint().0
    }

    pub(crate) fn sockets(&self) -> impl Iterator<Item = (LocalSocket, Family)> {
        self.entries.iter().enumerate().map(|(i, e)| (LocalSocket(i), e.family))
    }

    pub(crate) fn port(&self, family: Family) -> u16 {
        let entry = self.entries.iter().find(|e| e.family == family);
        entry.map_or(0, |e| e.socket.local_addr().port())
    }

    pub(crate) fn addresses(&self) -> watch::Receiver<Addresses> {
        self.addresses.subscribe()
    }

    /// What is known of the NAT, if anything is.
    pub(crate) fn nat(&self) -> Option<NatSummary> {
        self.addresses.borrow().nat.clone()
    }

    /// Protocols by which the gateway maps ports, as far as it was asked.
    pub(crate) fn port_mapping(&self) -> Vec<&'static str> {
        self.portmap.available().into_iter().map(MapProtocol::as_str).collect()
    }

    /// A session wants what carries its tag, and connections with this key.
    pub(crate) fn register(&self, tag: [u8; 16], quic_key: Option<[u8; 32]>) -> Inbox {
        let (incoming_in, incoming) = mpsc::channel(SESSION_QUEUE);
        let (connection_in, connections) = mpsc::channel(4);
        let doors = Doors { incoming: incoming_in, connections: connection_in };
        let mut registry = lock(&self.registry);
        registry.by_tag.insert(tag, doors.incoming.clone());
        if let Some(key) = quic_key {
            registry.by_quic_key.insert(key, doors.connections.clone());
        }
        self.sessions.send_replace(registry.by_tag.len());
        Inbox { incoming, connections, doors }
    }

    pub(crate) fn forget(&self, tag: [u8; 16], quic_key: Option<[u8; 32]>) {
        let mut registry = lock(&self.registry);
        registry.by_tag.remove(&tag);
        if let Some(key) = quic_key {
            registry.by_quic_key.remove(&key);
        }
        self.sessions.send_replace(registry.by_tag.len());
    }

    /// A session has no direct path but wants one: until the answer is dropped it is watched
    /// whether UDP passes.
    pub(crate) fn want_path(self: &Arc<Self>) -> Wanting {
        self.wanting.send_modify(|wanting| *wanting += 1);
        Wanting(self.clone())
    }

    /// Sends a check; its answer comes to the session with this tag.
    pub(crate) fn send_check(
        &self,
        socket: LocalSocket,
        to: SocketAddr,
        packet: &[u8],
        expect: Option<([u8; 12], [u8; 16])>,
    ) {
        if let Some((transaction, tag)) = expect {
            let mut registry = lock(&self.registry);
            registry.by_transaction.insert(transaction, tag);
            registry.transactions.push_back(transaction);
            if registry.transactions.len() > MAX_TRANSACTIONS
                && let Some(old) = registry.transactions.pop_front()
            {
                registry.by_transaction.remove(&old);
            }
        }
        if let Some(entry) = self.entries.get(socket.0) {
            entry.socket.send_stun(to, packet);
        }
    }

    /// Sends a check that is not to arrive.
    pub(crate) fn send_opener(&self, socket: LocalSocket, to: SocketAddr, packet: &[u8], ttl: u8) {
        if let Some(entry) = self.entries.get(socket.0) {
            entry.socket.send_opener(to, packet, ttl);
        }
    }

    /// Lets QUIC packets of an address in, or no longer.
    pub(crate) fn admit(&self, addr: SocketAddr, admit: bool) {
        for entry in self.entries.iter().filter(|e| e.family == Family::of(addr)) {
            if admit {
                entry.socket.admit(addr);
            } else {
                entry.socket.revoke(addr);
            }
        }
    }

    pub(crate) fn dial(
        &self,
        socket: LocalSocket,
        to: SocketAddr,
        config: quinn::ClientConfig,
    ) -> Option<quinn::Connecting> {
        let entry = self.entries.get(socket.0)?;
        entry.quic.dial(to, config).inspect_err(|error| debug!(%error, %to, "dial")).ok()
    }

    pub(crate) async fn shutdown(&self, deadline: Duration) {
        let all =
            self.entries.iter().map(|e| e.quic.shutdown(quinn::VarInt::from_u32(0), b"", deadline));
        tokio::join!(futures_util::future::join_all(all), self.portmap.release());
    }

    /// Keys with which a session's own socket accepts connections; the console accepts none.
    pub(crate) fn server_config(&self) -> Option<quinn::ServerConfig> {
        server_config(self.role, &self.key, &self.registry).ok().flatten()
    }

    /// Permission to hold birthday sockets.
    pub(crate) fn birthday_turn(&self) -> Option<OwnedSemaphorePermit> {
        self.birthdays.clone().try_acquire_owned().ok()
    }

    /// Permission for one socket beyond the shared ones.
    pub(crate) fn socket_room(&self) -> Option<OwnedSemaphorePermit> {
        self.extra_sockets.clone().try_acquire_owned().ok()
    }

    async fn serve_stun(
        self: Arc<Self>,
        socket: LocalSocket,
        mut rx: mpsc::Receiver<StunDatagram>,
    ) {
        while let Some(datagram) = rx.recv().await {
            let Some(packet) = stun::parse(&datagram.payload) else { continue };
            if self.is_discovery(socket, &datagram, &packet) {
                continue;
            }
            let session = {
                let mut registry = lock(&self.registry);
                let tag = match packet.class {
                    StunClass::Request => packet.username_tag,
                    _ => registry.by_transaction.remove(&packet.transaction_id),
                };
                tag.and_then(|t| registry.by_tag.get(&t).cloned())
            };
            if let Some(session) = session {
                let from = datagram.from;
                let check = StunIn { socket, from, packet, raw: datagram.payload };
                // A session that does not keep up loses checks, which are repeated anyway.
                let _ = session.try_send(Incoming::Check(check));
            }
        }
    }

    /// Accepts connections of sessions, or of one of them alone.
    pub(crate) async fn accept(
        self: Arc<Self>,
        socket: LocalSocket,
        quic: Arc<QuicEndpoint>,
        only: Option<[u8; 32]>,
        tasks: TaskTracker,
    ) {
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        while let Some(incoming) = quic.accept().await {
            let Ok(turn) = handshakes.clone().try_acquire_owned() else {
                incoming.ignore();
                continue;
            };
            let stack = self.clone();
            tasks.spawn(async move {
                let Ok(connecting) = incoming.accept() else { return };
                let Ok(Ok(connection)) = tokio::time::timeout(HANDSHAKE, connecting).await else {
                    return;
                };
                drop(turn);
                let session = peer_spki_sha256(&connection)
                    .filter(|key| only.is_none_or(|only| only == *key))
                    .and_then(|key| lock(&stack.registry).by_quic_key.get(&key).cloned());
                match session {
                    Some(session) => drop(session.try_send((socket, connection))),
                    None => connection.close(quinn::VarInt::from_u32(1), b""),
                }
            });
        }
    }
}

fn server_config(
    role: Role,
    key: &SigningKey,
    registry: &Arc<Mutex<Registry>>,
) -> Result<Option<quinn::ServerConfig>, adit_net::tls::QuicConfigError> {
    if role == Role::Console {
        return Ok(None);
    }
    let registry = registry.clone();
    let allow = move |hash: &[u8; 32]| lock(&registry).by_quic_key.contains_key(hash);
    quic_server_config(key, Arc::new(allow)).map(Some)
}

fn lock(registry: &Mutex<Registry>) -> MutexGuard<'_, Registry> {
    registry.lock().unwrap_or_else(PoisonError::into_inner)
}
