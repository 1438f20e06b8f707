//! The UDP sockets of a process: one for each family, shared by its sessions.
//!
//! STUN messages go to the session that their tag or transaction names; QUIC connections to the
//! session that owns the key they present. What belongs to no session gets no answer.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use adit_core::punch::{AddressFilter, Family, LocalSocket, OwnSubnet, candidate_priority};
use adit_net::{
    interfaces::{self, InterfaceAddr},
    quic::QuicEndpoint,
    stun::{self, MappingBehaviour, StunClass, StunClient},
    tls::{peer_spki_sha256, quic_server_config},
    udp::{DemuxSocket, StunDatagram},
};
use adit_protocol::{
    candidate::{Candidate, CandidateKind},
    keys::{SigningKey, random},
    limits::MAX_CANDIDATES,
    ticket::Role,
};
use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::link::{ControlLink, Link};

/// STUN messages of one session that wait for its driver.
const SESSION_QUEUE: usize = 64;
/// Transactions of all sessions that may be answered.
const MAX_TRANSACTIONS: usize = 8192;
/// QUIC handshakes under way at once. They come from admitted addresses, but whoever can forge a
/// sender can send in their name.
const MAX_HANDSHAKES: usize = 64;
/// Time for a QUIC handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A mapping older than this may be forgotten by its NAT (RFC 4787 §4.3 asks for 2 min, but many
/// keep 30 s).
const MAPPING_FRESH: Duration = Duration::from_secs(20);
/// Local preference of an ordinary address and of junk (RFC 8445 §5.1.2.1).
const PREFERENCE: (u16, u16) = (65_535, 1_000);

/// A STUN message for a session.
#[derive(Debug)]
pub(crate) struct StunIn {
    pub(crate) socket: LocalSocket,
    pub(crate) from: SocketAddr,
    pub(crate) packet: stun::StunPacket,
    pub(crate) raw: Bytes,
}

/// What a session is reached by.
pub(crate) struct Inbox {
    pub(crate) stun: mpsc::Receiver<StunIn>,
    pub(crate) connections: mpsc::Receiver<quinn::Connection>,
}

struct Entry {
    family: Family,
    socket: Arc<DemuxSocket>,
    quic: QuicEndpoint,
}

#[derive(Default)]
struct Registry {
    by_tag: HashMap<[u8; 16], mpsc::Sender<StunIn>>,
    by_transaction: HashMap<[u8; 12], [u8; 16]>,
    transactions: VecDeque<[u8; 12]>,
    by_quic_key: HashMap<[u8; 32], mpsc::Sender<quinn::Connection>>,
}

/// Addresses as sessions offer them, and the rules for probing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses {
    /// By socket.
    pub(crate) candidates: Vec<Vec<Candidate>>,
    pub(crate) filter: AddressFilter,
    pub(crate) mapping: Option<MappingBehaviour>,
}

impl Addresses {
    pub(crate) fn all(&self) -> Vec<Candidate> {
        let mut all: Vec<_> = self.candidates.iter().flatten().copied().collect();
        all.sort_by_key(|c| std::cmp::Reverse(c.priority));
        all.truncate(MAX_CANDIDATES);
        all
    }
}

/// The sockets.
pub(crate) struct UdpStack {
    entries: Vec<Entry>,
    registry: Arc<Mutex<Registry>>,
    key: SigningKey,
    addresses: watch::Sender<Addresses>,
    discovery: Mutex<Vec<Option<StunClient>>>,
    discover: Notify,
    discovered_at: Mutex<Option<Instant>>,
}

impl UdpStack {
    /// Binds what the machine has and starts to serve it. The agent accepts connections, the
    /// console only dials.
    pub(crate) fn start(
        role: Role,
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
            let server = match role {
                Role::Console => None,
                Role::Agent => {
                    let registry = registry.clone();
                    let allow =
                        move |hash: &[u8; 32]| lock(&registry).by_quic_key.contains_key(hash);
                    Some(quic_server_config(&key, Arc::new(allow))?)
                }
            };
            let quic = QuicEndpoint::new(socket.clone(), server)?;
            entries.push(Entry { family, socket, quic });
            receivers.push(stun);
        }
        let discovery = Mutex::new(entries.iter().map(|_| None).collect());
        let stack = Arc::new(Self {
            entries,
            registry,
            key,
            addresses: watch::Sender::new(Addresses::default()),
            discovery,
            discover: Notify::new(),
            discovered_at: Mutex::new(None),
        });
        for (index, receiver) in receivers.into_iter().enumerate() {
            let serve = stack.clone().serve_stun(LocalSocket(index), receiver);
            let token = cancel.clone();
            tasks.spawn(async move { token.run_until_cancelled(serve).await });
            if role == Role::Agent {
                let (accept, token) = (stack.clone().accept(index, tasks.clone()), cancel.clone());
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

    /// Asks the STUN servers again unless they were asked just now.
    pub(crate) fn refresh(&self) {
        let at = *self.discovered_at.lock().unwrap_or_else(PoisonError::into_inner);
        if at.is_none_or(|at| at.elapsed() > MAPPING_FRESH) {
            self.discover.notify_one();
        }
    }

    /// The network changed: everything known is doubtful.
    pub(crate) fn network_changed(&self) {
        self.discover.notify_one();
    }

    /// A session wants what carries its tag, and connections with this key.
    pub(crate) fn register(&self, tag: [u8; 16], quic_key: Option<[u8; 32]>) -> Inbox {
        let (stun_in, stun) = mpsc::channel(SESSION_QUEUE);
        let (connection_in, connections) = mpsc::channel(4);
        let mut registry = lock(&self.registry);
        registry.by_tag.insert(tag, stun_in);
        if let Some(key) = quic_key {
            registry.by_quic_key.insert(key, connection_in);
        }
        Inbox { stun, connections }
    }

    pub(crate) fn forget(&self, tag: [u8; 16], quic_key: Option<[u8; 32]>) {
        let mut registry = lock(&self.registry);
        registry.by_tag.remove(&tag);
        if let Some(key) = quic_key {
            registry.by_quic_key.remove(&key);
        }
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
        futures_util::future::join_all(all).await;
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
                // A session that does not keep up loses checks, which are repeated anyway.
                let _ = session.try_send(StunIn { socket, from, packet, raw: datagram.payload });
            }
        }
    }

    async fn accept(self: Arc<Self>, index: usize, tasks: TaskTracker) {
        let Some(entry) = self.entries.get(index) else { return };
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        while let Some(incoming) = entry.quic.accept().await {
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
                    .and_then(|key| lock(&stack.registry).by_quic_key.get(&key).cloned());
                match session {
                    Some(session) => drop(session.try_send(connection)),
                    None => connection.close(quinn::VarInt::from_u32(1), b""),
                }
            });
        }
    }
}

// ---------------------------------------------------------------- own addresses

impl UdpStack {
    fn is_discovery(
        &self,
        socket: LocalSocket,
        datagram: &StunDatagram,
        packet: &stun::StunPacket,
    ) -> bool {
        if packet.class == StunClass::Request {
            return false;
        }
        let mut discovery = self.discovery.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Some(client)) = discovery.get_mut(socket.0) else { return false };
        let ours = client.handle_packet(datagram.from, packet, Instant::now());
        if ours {
            let mut new = false;
            while client.poll_event().is_some() {
                new = true;
            }
            let (mapped, behaviour) = (client.mapped(), client.mapping_behaviour());
            drop(discovery);
            if new {
                self.set_mapped(socket, &mapped, behaviour);
            }
        }
        ours
    }

    fn set_mapped(&self, socket: LocalSocket, mapped: &[SocketAddr], behaviour: MappingBehaviour) {
        self.addresses.send_modify(|addresses| {
            addresses.mapping = Some(behaviour);
            let Some(own) = addresses.candidates.get_mut(socket.0) else { return };
            own.retain(|c| c.kind != CandidateKind::ServerReflexive);
            for addr in mapped.iter().take(4) {
                if own.iter().all(|c| c.addr != *addr) {
                    let kind = CandidateKind::ServerReflexive;
                    let priority = candidate_priority(kind, PREFERENCE.0);
                    own.push(Candidate { kind, addr: *addr, priority });
                }
            }
        });
    }

    fn set_hosts(&self, interfaces: &[InterfaceAddr], loopback: bool) {
        self.addresses.send_if_modified(|addresses| {
            let before = (addresses.candidates.clone(), addresses.filter.loopback);
            addresses.filter = AddressFilter {
                own_subnets: interfaces
                    .iter()
                    .filter(|i| !i.loopback)
                    .map(|i| OwnSubnet { addr: i.net.addr(), prefix: i.net.prefix_len() })
                    .collect(),
                loopback,
            };
            addresses.candidates.resize(self.entries.len(), Vec::new());
            for (entry, own) in self.entries.iter().zip(&mut addresses.candidates) {
                own.retain(|c| c.kind != CandidateKind::Host);
                let port = entry.socket.local_addr().port();
                let fitting = interfaces.iter().filter(|i| {
                    i.ip.is_ipv4() == (entry.family == Family::V4) && (!i.loopback || loopback)
                });
                for (rank, i) in (0u16..).zip(fitting.take(MAX_CANDIDATES)) {
                    let preference = if i.junk { PREFERENCE.1 } else { PREFERENCE.0 };
                    let priority =
                        candidate_priority(CandidateKind::Host, preference.saturating_sub(rank));
                    let addr = SocketAddr::new(i.ip, port);
                    own.push(Candidate { kind: CandidateKind::Host, addr, priority });
                }
            }
            before != (addresses.candidates.clone(), loopback)
        });
    }

    /// Keeps own addresses up to date.
    async fn watch(
        self: Arc<Self>,
        control: ControlLink,
        tasks: TaskTracker,
        cancel: CancellationToken,
    ) {
        let mut link = control.subscribe();
        let mut interfaces = interfaces::local_addresses().await;
        let mut changes = interfaces::watch(&tasks, cancel)
            .await
            .inspect_err(|error| tracing::warn!(%error, "interfaces are not watched"))
            .ok();
        // The link for which the STUN servers were asked.
        let mut asked: Option<(Option<SocketAddr>, String)> = None;
        loop {
            let current = link.borrow_and_update().clone();
            let loopback = current
                .as_ref()
                .and_then(|l| l.remote)
                .is_some_and(|r| r.ip().to_canonical().is_loopback());
            self.set_hosts(&interfaces, loopback);
            let link_now = current.as_ref().map(|l| (l.remote, l.host.clone()));
            if let Some(current) = &current
                && asked != link_now
            {
                asked = link_now;
                self.begin_discovery(current).await;
            }
            tokio::select! {
                changed = link.changed() => if changed.is_err() { return },
                change = next_change(&mut changes) => {
                    interfaces = change.addresses;
                    if change.major {
                        asked = None;
                    }
                }
                () = self.discover.notified() => asked = None,
                () = self.drive_discovery() => {}
            }
        }
    }

    async fn begin_discovery(&self, link: &Link) {
        let mut servers = link.stun_addrs.clone();
        let mut ips: Vec<IpAddr> = link.remote.map(|r| r.ip().to_canonical()).into_iter().collect();
        if let Ok((host, port)) = adit_net::proxy::parse_host_port(&link.host, 443)
            && let Ok(found) = tokio::net::lookup_host((host.as_str(), port)).await
        {
            ips.extend(found.map(|a| a.ip().to_canonical()).take(8));
        }
        ips.sort_unstable();
        ips.dedup();
        servers.extend(
            ips.iter().flat_map(|ip| link.stun_ports.iter().map(|p| SocketAddr::new(*ip, *p))),
        );
        let now = Instant::now();
        *self.discovered_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        let mut discovery = self.discovery.lock().unwrap_or_else(PoisonError::into_inner);
        for (entry, slot) in self.entries.iter().zip(discovery.iter_mut()) {
            let own: Vec<_> =
                servers.iter().copied().filter(|s| Family::of(*s) == entry.family).collect();
            // Without randomness there are no unpredictable transactions, hence no discovery.
            *slot = random::<12>()
                .is_ok()
                .then(|| StunClient::new(&own, || random().unwrap_or_default(), now));
        }
    }

    /// Sends what discovery wants to send; returns never.
    async fn drive_discovery(&self) {
        loop {
            let next = {
                let mut discovery = self.discovery.lock().unwrap_or_else(PoisonError::into_inner);
                for (entry, slot) in self.entries.iter().zip(discovery.iter_mut()) {
                    let Some(client) = slot else { continue };
                    client.handle_timeout(Instant::now());
                    while let Some((to, packet)) = client.poll_transmit() {
                        entry.socket.send_stun(to, &packet);
                    }
                }
                discovery.iter().flatten().filter_map(StunClient::poll_timeout).min()
            };
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        }
    }
}

async fn next_change(
    changes: &mut Option<mpsc::Receiver<interfaces::Change>>,
) -> interfaces::Change {
    if let Some(receiver) = changes
        && let Some(change) = receiver.recv().await
    {
        return change;
    }
    std::future::pending().await
}

fn lock(registry: &Mutex<Registry>) -> MutexGuard<'_, Registry> {
    registry.lock().unwrap_or_else(PoisonError::into_inner)
}
