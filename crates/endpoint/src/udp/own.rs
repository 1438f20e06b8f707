//! Own addresses: those of interfaces, those that STUN servers see, those that the gateway maps;
//! and what is known of the NAT.
//!
//! One task watches interfaces, control connection, servers and gateway, and publishes what it
//! learns. Sessions take what there is; none of them waits for any of this.

use std::{
    collections::{BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr, SocketAddrV4},
    num::NonZeroU16,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use adit_core::punch::{
    AddressFilter, Family, LocalSocket, OwnSubnet, UdpWatch, WatchEvent, candidate_priority,
};
use adit_net::{
    interfaces::{self, InterfaceAddr, may_connect},
    stun::{
        self, FilteringBehaviour, MappingBehaviour, StunClass, StunClient,
        explore::{filtering, observe_ports, port_step},
    },
    udp::StunDatagram,
};
use adit_protocol::{
    candidate::{Candidate, CandidateKind},
    keys::random,
    nat::{MAX_NAT_PORTS, NatBehaviour, NatSummary},
};
use futures_util::future::BoxFuture;
use tokio::{
    sync::{Notify, mpsc},
    time::{sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use super::UdpStack;
use crate::link::{ControlLink, Link};

/// A mapping older than this may be forgotten by its NAT (RFC 4787 §4.3 asks for 2 min, but many
/// keep 30 s).
const MAPPING_FRESH: Duration = Duration::from_secs(20);
/// Local preference of an ordinary address and of junk (RFC 8445 §5.1.2.1).
const PREFERENCE: (u16, u16) = (65_535, 1_000);
/// Addresses of one family that are offered: ordinary ones, and junk.
const MAX_HOSTS: (usize, usize) = (12, 4);
/// Server-reflexive addresses of one socket that are offered.
const MAX_REFLEXIVE: usize = 4;
/// Addresses of the mediator's name that are asked.
const MAX_RESOLVED: usize = 8;
/// Time for its name to resolve; its address is asked without waiting for that.
const RESOLVE: Duration = Duration::from_secs(5);
/// Once one server has answered, the others have so long before the mapping is judged.
const STRAGGLERS: Duration = Duration::from_millis(300);
/// Requests of a watch that may still be answered: those of the last round trips.
const MAX_ASKED: usize = 8;
/// How long the gateway keeps its mapping for the next session.
const MAPPING_LINGER: Duration = Duration::from_secs(60);
/// Servers that were asked so lately are not asked again because a path was lost.
const ASKED_LATELY: Duration = Duration::from_secs(1);
/// Two reports of one change of network come within this time.
const SAME_CHANGE: Duration = Duration::from_secs(2);

/// What finding own addresses needs.
pub(super) struct Own {
    discovery: Mutex<Discovery>,
    /// By socket.
    watches: Mutex<Vec<Watching>>,
    discover: Notify,
    moved: Notify,
    answered: Notify,
}

#[derive(Default)]
struct Discovery {
    /// By socket.
    clients: Vec<Option<StunClient>>,
    servers: Vec<SocketAddr>,
    began: Option<Instant>,
    first_answer: Option<Instant>,
}

impl Own {
    pub(super) fn new(sockets: usize) -> Self {
        let clients = std::iter::repeat_with(|| None).take(sockets).collect();
        Self {
            discovery: Mutex::new(Discovery { clients, ..Discovery::default() }),
            watches: Mutex::new(std::iter::repeat_with(Watching::default).take(sockets).collect()),
            discover: Notify::new(),
            moved: Notify::new(),
            answered: Notify::new(),
        }
    }

    fn discovery(&self) -> MutexGuard<'_, Discovery> {
        self.discovery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watches(&self) -> MutexGuard<'_, Vec<Watching>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket's watch, and whom it asks.
#[derive(Default)]
struct Watching {
    watch: UdpWatch,
    /// Who answered last.
    favourite: Option<SocketAddr>,
    /// Who is asked beside it while nobody answers.
    turn: usize,
    asked: VecDeque<([u8; 12], SocketAddr)>,
    /// Who told last, and where it sees this end.
    told: Option<(SocketAddr, SocketAddr)>,
}

impl Watching {
    /// Whom to ask: one server; beside it another in turn, if the last had no answer.
    fn servers(&mut self, all: &[SocketAddr], again: bool) -> Vec<SocketAddr> {
        let favourite = self.favourite.filter(|f| all.contains(f)).or(all.first().copied());
        let others: Vec<_> = all.iter().copied().filter(|s| Some(*s) != favourite).collect();
        let other = others.get(self.turn % others.len().max(1)).copied().filter(|_| again);
        self.turn = self.turn.wrapping_add(usize::from(again));
        favourite.into_iter().chain(other).collect()
    }
}

/// For whom the servers were asked.
#[derive(PartialEq, Eq)]
struct Asked {
    remote: Option<SocketAddr>,
    host: String,
    resolved: Vec<IpAddr>,
}

impl UdpStack {
    /// Asks the STUN servers again unless they were asked just now.
    pub(crate) fn refresh(&self) {
        let began = self.own.discovery().began;
        if began.is_none_or(|at| at.elapsed() > MAPPING_FRESH) {
            self.own.discover.notify_one();
        }
    }

    /// Asks the STUN servers again in any case.
    pub(crate) fn rediscover(&self) {
        self.own.discover.notify_one();
    }

    /// A path was lost: perhaps the NAT has another idea of this end now.
    pub(crate) fn recheck(&self) {
        let began = self.own.discovery().began;
        if began.is_none_or(|at| at.elapsed() > ASKED_LATELY) {
            self.own.discover.notify_one();
        }
    }

    /// The network changed: everything known is doubtful.
    pub(crate) fn network_changed(&self) {
        self.own.moved.notify_one();
    }

    /// STUN servers of a family, as they were asked last.
    pub(crate) fn stun_servers(&self, family: Family) -> Vec<SocketAddr> {
        let discovery = self.own.discovery();
        discovery.servers.iter().copied().filter(|s| Family::of(*s) == family).collect()
    }

    /// Looks which ports the NAT gives just now; `None` if nothing is known of it at all.
    pub(crate) async fn observe_nat(&self) -> Option<NatSummary> {
        let nat = self.nat()?;
        if !nat.is_symmetric() {
            return Some(nat);
        }
        let ports = observe_ports(&self.stun_servers(Family::V4), id).await;
        if !ports.is_empty() {
            self.publish_nat(|nat| set_ports(nat, &ports));
        }
        self.nat()
    }

    /// Keeps own addresses up to date.
    pub(super) async fn watch(
        self: Arc<Self>,
        control: ControlLink,
        tasks: TaskTracker,
        cancel: CancellationToken,
    ) {
        let mut link = control.subscribe();
        let mut mapped = self.portmap.watch();
        let mut sessions = self.sessions.subscribe();
        let mut wanting = self.wanting.subscribe();
        let mut interfaces = interfaces::local_addresses().await;
        let mut changes = interfaces::watch(&tasks, cancel)
            .await
            .inspect_err(|error| tracing::warn!(%error, "interfaces are not watched"))
            .ok();
        // The last one: its servers answer also while it is down.
        let mut known: Option<Link> = None;
        let mut asked: Option<Asked> = None;
        let mut again = false;
        let mut resolved = Vec::new();
        let mut loopback = false;
        let mut moved_at: Option<Instant> = None;
        let mut idle_since = Some(Instant::now());
        let mut exploring: Option<BoxFuture<'_, ()>> = None;
        let mut resolving: Option<BoxFuture<'_, Vec<IpAddr>>> = None;
        loop {
            let current = link.borrow_and_update().clone();
            if let Some(current) = &current {
                // While the mediator is away, what held before goes on holding.
                loopback = current.remote.is_some_and(|r| r.ip().to_canonical().is_loopback());
                let now = Asked {
                    remote: current.remote,
                    host: current.host.clone(),
                    resolved: resolved.clone(),
                };
                if asked.as_ref().is_none_or(|a| a.host != now.host) {
                    resolving = Some(Box::pin(resolve(current.host.clone())));
                }
                if asked.as_ref() != Some(&now) || again {
                    self.begin_discovery(current, &resolved, &interfaces);
                    exploring = Some(Box::pin(self.explore()));
                    asked = Some(now);
                    again = false;
                }
                known = Some(current.clone());
            }
            self.set_hosts(&interfaces, loopback);
            self.set_wanted(*wanting.borrow_and_update() > 0);
            let busy = *sessions.borrow_and_update() > 0;
            idle_since = if busy { None } else { idle_since.or_else(|| Some(Instant::now())) };
            let idle_until = idle_since.map(|since| since + MAPPING_LINGER);
            let lingers = self.is_mapped() && idle_until.is_some_and(|at| Instant::now() < at);
            // A mediator on loopback: this is a test, or everything runs on one machine.
            let far = asked.is_some() && !loopback;
            self.want_mapping((busy || lingers) && far, &interfaces);
            tokio::select! {
                changed = link.changed() => match changed {
                    // What ended the connection may have been the NAT.
                    Ok(()) => again = true,
                    Err(_) => return,
                },
                change = next_change(&mut changes) => {
                    interfaces = change.addresses;
                    if change.major || change.resumed {
                        moved_at = Some(Instant::now());
                        self.new_network();
                        (asked, exploring) = (None, None);
                    }
                }
                () = self.own.moved.notified() => {
                    if moved_at.is_none_or(|at| at.elapsed() > SAME_CHANGE) {
                        moved_at = Some(Instant::now());
                        interfaces = interfaces::local_addresses().await;
                        self.new_network();
                        (asked, exploring) = (None, None);
                    }
                }
                () = self.own.discover.notified() => {
                    if let Some(known) = &known {
                        self.begin_discovery(known, &resolved, &interfaces);
                        exploring = Some(Box::pin(self.explore()));
                    }
                }
                found = run(&mut resolving) => resolved = found,
                () = run(&mut exploring) => {}
                changed = mapped.changed() => if changed.is_ok() {
                    let external = mapped.borrow_and_update().external;
                    self.set_port_mapping(external.map(|(_, addr)| addr));
                },
                changed = sessions.changed() => if changed.is_err() { return },
                changed = wanting.changed() => if changed.is_err() { return },
                () = at(idle_until.filter(|_| lingers)) => {}
                () = self.drive_discovery() => {}
                () = self.drive_watches() => {}
            }
        }
    }

    /// Everything known is of another network now.
    fn new_network(&self) {
        self.portmap.network_changed();
        self.own.watches().iter_mut().for_each(|watching| watching.favourite = None);
        self.addresses.send_modify(|addresses| {
            addresses.generation += 1;
            addresses.nat = None;
            for own in &mut addresses.candidates {
                own.retain(|c| c.kind == CandidateKind::Host);
            }
        });
    }
}

// ---------------------------------------------------------------- STUN

impl UdpStack {
    fn begin_discovery(&self, link: &Link, resolved: &[IpAddr], interfaces: &[InterfaceAddr]) {
        let own = interfaces::own_subnets(interfaces);
        let remote = link.remote.map(|r| r.ip().to_canonical());
        let ips: BTreeSet<IpAddr> = remote.into_iter().chain(resolved.iter().copied()).collect();
        let mut servers: Vec<SocketAddr> = ips
            .iter()
            .flat_map(|ip| link.stun_ports.iter().map(|port| SocketAddr::new(*ip, *port)))
            .collect();
        // The mediator's own address is known; what it names beyond is judged.
        let named = link.stun_addrs.iter().copied();
        servers.extend(named.filter(|addr| may_connect(*addr, link.remote, &own)));
        let now = Instant::now();
        let mut discovery = self.own.discovery();
        for (entry, slot) in self.entries.iter().zip(discovery.clients.iter_mut()) {
            let fitting: Vec<_> =
                servers.iter().copied().filter(|s| Family::of(*s) == entry.family).collect();
            // Without randomness there are no unpredictable transactions, hence no discovery.
            *slot =
                id().is_some().then(|| StunClient::new(&fitting, || id().unwrap_or_default(), now));
        }
        discovery.servers = servers;
        discovery.began = Some(now);
        discovery.first_answer = None;
    }

    pub(super) fn is_discovery(
        &self,
        socket: LocalSocket,
        datagram: &StunDatagram,
        packet: &stun::StunPacket,
    ) -> bool {
        if packet.class == StunClass::Request {
            return false;
        }
        let now = Instant::now();
        if self.is_watched(socket, datagram, packet) {
            return true;
        }
        let mut discovery = self.own.discovery();
        let Some(Some(client)) = discovery.clients.get_mut(socket.0) else { return false };
        if !client.handle_packet(datagram.from, packet, now) {
            return false;
        }
        let mut new = false;
        while client.poll_event().is_some() {
            new = true;
        }
        if new {
            let mapped = client.mapped();
            discovery.first_answer.get_or_insert(now);
            drop(discovery);
            self.handle_watched(socket, datagram.from);
            self.set_mapped(socket, &mapped);
            self.own.answered.notify_waiters();
        }
        true
    }

    fn set_mapped(&self, socket: LocalSocket, mapped: &[SocketAddr]) {
        self.addresses.send_if_modified(|addresses| {
            let Some(own) = addresses.candidates.get_mut(socket.0) else { return false };
            let before = own.clone();
            own.retain(|c| c.kind != CandidateKind::ServerReflexive);
            for addr in mapped.iter().take(MAX_REFLEXIVE) {
                if own.iter().all(|c| c.addr != *addr) {
                    let kind = CandidateKind::ServerReflexive;
                    let priority = candidate_priority(kind, PREFERENCE.0);
                    own.push(Candidate { kind, addr: *addr, priority });
                }
            }
            *own != before
        });
    }

    /// Sends what discovery wants to send; returns never.
    async fn drive_discovery(&self) {
        loop {
            let next = {
                let mut discovery = self.own.discovery();
                for (entry, slot) in self.entries.iter().zip(discovery.clients.iter_mut()) {
                    let Some(client) = slot else { continue };
                    client.handle_timeout(Instant::now());
                    while let Some((to, packet)) = client.poll_transmit() {
                        entry.socket.send_stun(to, &packet);
                    }
                }
                discovery.clients.iter().flatten().filter_map(StunClient::poll_timeout).min()
            };
            match next {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        }
    }

    // ------------------------------------------------------------ whether UDP passes

    fn set_wanted(&self, wanted: bool) {
        let now = Instant::now();
        for watching in self.own.watches().iter_mut() {
            watching.watch.handle_wanted(wanted, now);
        }
    }

    /// An answer to a watch's request: true if it is one.
    fn is_watched(
        &self,
        socket: LocalSocket,
        datagram: &StunDatagram,
        packet: &stun::StunPacket,
    ) -> bool {
        let asked = (packet.transaction_id, datagram.from);
        let mapped = packet.mapped.filter(|_| packet.class == StunClass::Success);
        let before = {
            let mut watches = self.own.watches();
            let Some(watching) = watches.get_mut(socket.0) else { return false };
            let Some(at) = watching.asked.iter().position(|a| *a == asked) else { return false };
            watching.asked.remove(at);
            let Some(mapped) = mapped else { return true };
            watching.told.replace((datagram.from, mapped))
        };
        self.handle_watched(socket, datagram.from);
        let changed = match before.filter(|(server, _)| *server == datagram.from) {
            Some((_, before)) => mapped != Some(before),
            None => {
                let addresses = self.addresses.borrow();
                // A NAT that maps by destination shows every server another port.
                let symmetric = addresses.nat.as_ref().is_some_and(NatSummary::is_symmetric);
                let own = addresses.candidates.get(socket.0).filter(|_| !symmetric);
                own.is_some_and(|own| own.iter().all(|c| Some(c.addr) != mapped))
            }
        };
        if changed {
            self.recheck(); // the NAT has another idea of this end, of which the peer must hear
        }
        true
    }

    fn handle_watched(&self, socket: LocalSocket, server: SocketAddr) {
        let mut passes = false;
        if let Some(watching) = self.own.watches().get_mut(socket.0) {
            watching.favourite = Some(server);
            watching.watch.handle_answer();
            // Requests are for `drive_watches`: it makes none of them wait for an answer.
            while let Some(event) = watching.watch.poll_event() {
                passes |= event == WatchEvent::Passes;
            }
        }
        if passes {
            debug!(?socket, "UDP passes again");
            self.addresses.send_modify(|addresses| addresses.passes += 1);
        }
    }

    /// Asks whom the watches want to ask; returns never.
    async fn drive_watches(&self) {
        loop {
            let next = {
                let servers = self.own.discovery().servers.clone();
                let mut watches = self.own.watches();
                for (entry, watching) in self.entries.iter().zip(watches.iter_mut()) {
                    let of_family = |s: &SocketAddr| Family::of(*s) == entry.family;
                    let servers: Vec<_> = servers.iter().copied().filter(of_family).collect();
                    watching.watch.handle_timeout(Instant::now());
                    while let Some(event) = watching.watch.poll_event() {
                        let WatchEvent::Ask { again } = event else { continue };
                        for server in watching.servers(&servers, again) {
                            // Without randomness there are no unpredictable transactions.
                            let Some(id) = id() else { continue };
                            watching.asked.truncate(MAX_ASKED - 1);
                            watching.asked.push_front((id, server));
                            entry.socket.send_stun(server, &stun::encode_binding_request(id));
                        }
                    }
                }
                watches.iter().filter_map(|w| w.watch.poll_timeout()).min()
            };
            match next {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Judges the NAT once its servers have answered: how it maps at once, how it counts and
    /// filters a little later.
    async fn explore(&self) {
        let (server, summary) = self.judged().await;
        let known = self.nat().map_or(NatBehaviour::Unknown, |nat| nat.filtering);
        self.publish_nat(|nat| {
            let counted = (nat.port_step, std::mem::take(&mut nat.ports));
            *nat = NatSummary { filtering: known, ..summary.clone() };
            // What fresh sockets showed says more than the ordinary one's ports.
            if nat.is_symmetric() && counted.0 != 0 {
                (nat.port_step, nat.ports) = counted;
            }
        });
        let Some(server) = server else { return };
        if summary.is_symmetric() {
            let ports = observe_ports(&[server], id).await;
            self.publish_nat(|nat| set_ports(nat, &ports));
        }
        if known == NatBehaviour::Unknown {
            let found = filtering(server, id).await;
            if found != FilteringBehaviour::Unknown {
                self.publish_nat(|nat| nat.filtering = filters(found));
            }
        }
        debug!(nat = ?self.nat(), "NAT");
    }

    /// Waits until the mapping can be told; the server is one that answered.
    async fn judged(&self) -> (Option<SocketAddr>, NatSummary) {
        loop {
            let answered = self.own.answered.notified();
            {
                let discovery = self.own.discovery();
                let done = discovery.clients.iter().flatten().all(StunClient::is_done);
                let waited = discovery.first_answer.map(|at| at.elapsed());
                if done || waited.is_some_and(|waited| waited >= STRAGGLERS) {
                    let hosts: BTreeSet<_> = self.addresses.borrow().hosts().collect();
                    return discovery.judge(&hosts);
                }
            }
            tokio::select! {
                () = answered => {}
                () = sleep(STRAGGLERS / 3) => {}
            }
        }
    }

    fn publish_nat(&self, change: impl FnOnce(&mut NatSummary)) {
        self.addresses.send_if_modified(|addresses| {
            let mut nat = addresses.nat.clone().unwrap_or_default();
            change(&mut nat);
            let changed = addresses.nat.as_ref() != Some(&nat);
            addresses.nat = Some(nat);
            changed
        });
    }
}

impl Discovery {
    /// Of IPv4, or of IPv6 where nobody answered over IPv4.
    fn judge(&self, hosts: &BTreeSet<SocketAddr>) -> (Option<SocketAddr>, NatSummary) {
        for v4 in [true, false] {
            for client in self.clients.iter().flatten() {
                let answers: Vec<_> =
                    client.answers().filter(|(server, _)| server.is_ipv4() == v4).collect();
                if answers.is_empty() {
                    continue;
                }
                // The order in which it was asked: by server.
                let ports: Vec<u16> = answers.iter().map(|(_, mapped)| mapped.port()).collect();
                // Who is seen as it is has no NAT.
                let mapping = if answers.iter().all(|(_, mapped)| hosts.contains(mapped)) {
                    NatBehaviour::EndpointIndependent
                } else {
                    maps(client.mapping_behaviour())
                };
                let ports = match mapping {
                    NatBehaviour::EndpointIndependent => ports.into_iter().take(1).collect(),
                    _ => ports,
                };
                let mut nat = NatSummary { mapping, ..NatSummary::default() };
                nat.ports = ports.into_iter().rev().take(MAX_NAT_PORTS).rev().collect();
                let asked = |s: &&SocketAddr| answers.iter().any(|(server, _)| server == *s);
                return (self.servers.iter().find(asked).copied(), nat);
            }
        }
        (None, NatSummary::default())
    }
}

fn set_ports(nat: &mut NatSummary, ports: &[u16]) {
    if !ports.is_empty() {
        nat.port_step = port_step(ports);
        nat.ports = ports.iter().rev().take(MAX_NAT_PORTS).rev().copied().collect();
    }
}

fn id() -> Option<[u8; 12]> {
    random().ok()
}

fn maps(behaviour: MappingBehaviour) -> NatBehaviour {
    match behaviour {
        MappingBehaviour::EndpointIndependent => NatBehaviour::EndpointIndependent,
        MappingBehaviour::AddressDependent => NatBehaviour::AddressDependent,
        MappingBehaviour::AddressAndPortDependent => NatBehaviour::AddressAndPortDependent,
        MappingBehaviour::Unknown => NatBehaviour::Unknown,
    }
}

fn filters(behaviour: FilteringBehaviour) -> NatBehaviour {
    match behaviour {
        FilteringBehaviour::EndpointIndependent => NatBehaviour::EndpointIndependent,
        FilteringBehaviour::AddressDependent => NatBehaviour::AddressDependent,
        FilteringBehaviour::AddressAndPortDependent => NatBehaviour::AddressAndPortDependent,
        FilteringBehaviour::Unknown => NatBehaviour::Unknown,
    }
}

async fn resolve(host: String) -> Vec<IpAddr> {
    let Ok((host, port)) = adit_net::proxy::parse_host_port(&host, 443) else { return Vec::new() };
    match timeout(RESOLVE, tokio::net::lookup_host((host.as_str(), port))).await {
        Ok(Ok(found)) => {
            let found: BTreeSet<_> = found.map(|a| a.ip().to_canonical()).collect();
            found.into_iter().take(MAX_RESOLVED).collect()
        }
        _ => Vec::new(),
    }
}

// ---------------------------------------------------------------- interfaces and gateway

impl UdpStack {
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
                let others: Vec<_> =
                    own.drain(..).filter(|c| c.kind != CandidateKind::Host).collect();
                let port = entry.socket.local_addr().port();
                *own = host_candidates(interfaces, entry.family, port, loopback);
                let new = |c: &Candidate| own.iter().all(|o| o.addr != c.addr);
                let others: Vec<_> = others.into_iter().filter(new).collect();
                own.extend(others);
            }
            before != (addresses.candidates.clone(), loopback)
        });
    }

    /// Own addresses for a further socket on this port.
    pub(crate) fn hosts_like(&self, family: Family, port: u16) -> Vec<Candidate> {
        let addresses = self.addresses.borrow();
        let hosts = self
            .entries
            .iter()
            .zip(&addresses.candidates)
            .filter(|(entry, _)| entry.family == family)
            .flat_map(|(_, own)| own.iter().filter(|c| c.kind == CandidateKind::Host));
        hosts.map(|c| Candidate { addr: SocketAddr::new(c.addr.ip(), port), ..*c }).collect()
    }

    fn is_mapped(&self) -> bool {
        self.portmap.watch().borrow().external.is_some()
    }

    /// Asks the gateway for a mapping, where there may be a NAT in between.
    fn want_mapping(&self, wanted: bool, interfaces: &[InterfaceAddr]) {
        let behind = interfaces
            .iter()
            .any(|i| !i.junk && !i.loopback && i.ip.is_ipv4() && is_translated(i.ip));
        let port = NonZeroU16::new(self.port(Family::V4)).filter(|_| wanted && behind);
        self.portmap.want(port);
    }

    fn set_port_mapping(&self, external: Option<SocketAddrV4>) {
        let v4 = self.entries.iter().position(|e| e.family == Family::V4);
        self.addresses.send_if_modified(|addresses| {
            let Some(own) = v4.and_then(|at| addresses.candidates.get_mut(at)) else {
                return false;
            };
            let before = own.clone();
            own.retain(|c| c.kind != CandidateKind::Mapped);
            if let Some(addr) = external.map(SocketAddr::V4)
                && own.iter().all(|c| c.addr != addr)
            {
                let kind = CandidateKind::Mapped;
                let priority = candidate_priority(kind, PREFERENCE.0);
                own.push(Candidate { kind, addr, priority });
            }
            *own != before
        });
    }
}

/// Host candidates for a socket, the useful before the junk.
fn host_candidates(
    interfaces: &[InterfaceAddr],
    family: Family,
    port: u16,
    loopback: bool,
) -> Vec<Candidate> {
    let fitting = |junk: bool| {
        interfaces.iter().filter(move |i| {
            i.junk == junk && i.ip.is_ipv4() == (family == Family::V4) && (!i.loopback || loopback)
        })
    };
    let good = fitting(false).take(MAX_HOSTS.0).map(|i| (i, PREFERENCE.0));
    let junk = fitting(true).take(MAX_HOSTS.1).map(|i| (i, PREFERENCE.1));
    (0u16..)
        .zip(good.chain(junk))
        .map(|(rank, (i, preference))| Candidate {
            kind: CandidateKind::Host,
            addr: SocketAddr::new(i.ip, port),
            priority: candidate_priority(CandidateKind::Host, preference.saturating_sub(rank)),
        })
        .collect()
}

/// Whether this is the candidate of a container, a virtual machine or a tunnel.
pub(super) fn is_junk(candidate: &Candidate) -> bool {
    let local_preference = candidate.priority >> 8 & 0xFFFF;
    candidate.kind == CandidateKind::Host && local_preference <= u32::from(PREFERENCE.1)
}

/// Addresses that are not their owner's outside: RFC 1918, and RFC 6598 for home networks that
/// borrow it.
fn is_translated(ip: IpAddr) -> bool {
    let shared =
        matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 100 && v4.octets()[1] & 0xC0 == 64);
    interfaces::is_private(ip) || shared
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

/// Runs what is there to its end, once.
async fn run<T>(future: &mut Option<BoxFuture<'_, T>>) -> T {
    let Some(running) = future else { return std::future::pending().await };
    let result = running.await;
    *future = None;
    result
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::udp::Addresses;

    fn interface(ip: &str, junk: bool) -> InterfaceAddr {
        let ip: IpAddr = ip.parse().unwrap();
        let net = format!("{ip}/24").parse().unwrap();
        InterfaceAddr { ip, net, name: "eth0".into(), junk, loopback: ip.is_loopback() }
    }

    #[test]
    fn thirty_junk_interfaces_crowd_out_nothing() {
        let mut interfaces: Vec<_> =
            (0..30).map(|n| interface(&format!("172.17.{n}.1"), true)).collect();
        interfaces.push(interface("192.168.1.7", false));
        interfaces.push(interface("127.0.0.1", false));
        let mut own = host_candidates(&interfaces, Family::V4, 4000, false);
        assert_eq!(own.len(), 1 + MAX_HOSTS.1);
        let addr = "203.0.113.9:4000".parse().unwrap();
        let kind = CandidateKind::ServerReflexive;
        own.push(Candidate { kind, addr, priority: candidate_priority(kind, PREFERENCE.0) });
        let addresses = Addresses { candidates: vec![own, Vec::new()], ..Addresses::default() };
        let offered = addresses.all();
        assert_eq!(offered[0].addr, "192.168.1.7:4000".parse().unwrap());
        assert_eq!(offered[1].addr, addr);
        assert!(offered[2..].iter().all(is_junk));
        assert!(host_candidates(&interfaces, Family::V6, 4000, true).is_empty());
    }

    #[test]
    fn only_translated_addresses_are_worth_a_mapping() {
        for (ip, translated) in [
            ("192.168.1.7", true),
            ("10.2.3.4", true),
            ("100.64.9.9", true),
            ("100.128.0.1", false),
            ("203.0.113.7", false),
        ] {
            assert_eq!(is_translated(ip.parse().unwrap()), translated, "{ip}");
        }
    }
}
