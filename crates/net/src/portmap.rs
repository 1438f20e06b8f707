//! Port mappings on the gateway of the local network: PCP, NAT-PMP and UPnP-IGD.
//!
//! The three are asked at the same time and the first mapping that works is kept, renewed, and
//! given back when it is no longer wanted. Nothing may wait for it: gateways are slow, and most
//! have nothing to give. What a gateway says is a hint for candidates and nothing more: it is as
//! trustworthy as anybody in the local network.
//!
//! UPnP speaks HTTP over TCP: it is left out where a proxy is to be used for all TCP, although the
//! router would be in the local network, where proxies cannot reach it: that every TCP connection
//! goes through the proxy is a promise without exceptions.

mod upnp;

#[doc(hidden)]
pub use upnp::fuzz::upnp as fuzz_upnp;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    num::NonZeroU16,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use portmapper::{Client, Config};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info};

/// Time for a gateway to say whether it speaks a protocol; the UPnP search takes 1 s.
const PROBE: Duration = Duration::from_secs(3);
/// Once one protocol is there, better ones may still answer for so long.
const GRACE: Duration = Duration::from_millis(100);
/// Time for a mapping.
const ATTEMPT: Duration = Duration::from_secs(4);
/// Pause before the gateway is asked again; it doubles.
const FIRST_RETRY: Duration = Duration::from_secs(30);
/// The pause grows up to here.
const MAX_RETRY: Duration = Duration::from_secs(900);
/// Time for the gateway to take a mapping back.
const RELEASE: Duration = Duration::from_millis(800);

/// How a mapping is asked for, the best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum MapProtocol {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// UPnP Internet Gateway Device.
    Upnp,
}

impl MapProtocol {
    /// As outsiders read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pcp => "pcp",
            Self::NatPmp => "nat-pmp",
            Self::Upnp => "upnp",
        }
    }

    fn client(self) -> Service {
        if self == Self::Upnp {
            return Service::Upnp(upnp::Mapper::default());
        }
        Service::Library(Client::new(Config {
            // The library believes too much of what strangers in the local network say.
            enable_upnp: false,
            enable_pcp: self == Self::Pcp,
            enable_nat_pmp: self == Self::NatPmp,
            protocol: portmapper::Protocol::Udp,
        }))
    }
}

/// Who speaks a protocol for us.
enum Service {
    Library(Client),
    Upnp(upnp::Mapper),
}

impl Service {
    /// Whether the gateway speaks it.
    async fn probe(&self) -> bool {
        match self {
            Self::Library(client) => {
                matches!(client.probe().await, Ok(Ok(found)) if found.pcp || found.nat_pmp)
            }
            Self::Upnp(mapper) => mapper.probe().await,
        }
    }

    async fn map(&self, port: NonZeroU16) -> Option<SocketAddrV4> {
        match self {
            Self::Library(client) => {
                let mut external = client.watch_external_address();
                client.update_local_port(port);
                let mapped = external.wait_for(|addr| addr.as_ref().is_some_and(is_plausible));
                mapped.await.ok().and_then(|addr| *addr)
            }
            Self::Upnp(mapper) => mapper.map(port).await.filter(is_plausible),
        }
    }

    /// Renews the mapping and tells where it is, until it is lost.
    async fn hold(&self, first: SocketAddrV4, mut tell: impl FnMut(SocketAddrV4)) {
        tell(first);
        match self {
            Self::Library(client) => {
                let mut external = client.watch_external_address();
                while external.changed().await.is_ok() {
                    let now = *external.borrow_and_update();
                    let Some(addr) = now.filter(is_plausible) else { return };
                    tell(addr);
                }
            }
            Self::Upnp(mapper) => mapper.keep().await,
        }
    }

    /// Gives a mapping back, if there is one.
    async fn release(&self) {
        match self {
            Self::Library(client) => {
                client.deactivate();
                // It does one thing after the other: once it has an answer to this, it is done
                // with that.
                let _ = client.probe().await;
            }
            Self::Upnp(mapper) => mapper.release().await,
        }
    }

    /// What was asked for is not wanted any more.
    fn give_up(&self) {
        if let Self::Library(client) = self {
            client.deactivate();
        }
    }
}

/// Asks the gateway what it speaks, and for nothing else. `upnp` allows what needs TCP.
pub async fn probe_gateway(upnp: bool) -> Vec<MapProtocol> {
    let clients = clients(upnp);
    let probes: FuturesUnordered<_> = clients.iter().map(|(p, c)| probe(*p, c)).collect();
    let mut found: Vec<_> =
        probes.filter_map(async |(protocol, there)| there.then_some(protocol)).collect().await;
    found.sort_unstable();
    found
}

fn clients(upnp: bool) -> Vec<(MapProtocol, Service)> {
    let all = [MapProtocol::Pcp, MapProtocol::NatPmp, MapProtocol::Upnp];
    let allowed = all.into_iter().filter(|p| upnp || *p != MapProtocol::Upnp);
    allowed.map(|p| (p, p.client())).collect()
}

/// What the gateway gives.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortMapping {
    /// The mapped address, and by which protocol it came.
    pub external: Option<(MapProtocol, SocketAddrV4)>,
    /// Protocols that the gateway answered to.
    pub available: Vec<MapProtocol>,
    /// All protocols were asked.
    pub probed: bool,
}

/// Keeps one UDP port mapped while it is wanted.
#[derive(Debug)]
pub struct PortMapper {
    /// The local port, and a number that changes with the network.
    wanted: watch::Sender<(Option<NonZeroU16>, u64)>,
    state: watch::Receiver<PortMapping>,
    idle: watch::Receiver<bool>,
}

impl PortMapper {
    /// Does nothing until a port is wanted. `upnp` allows what needs TCP.
    pub fn start(upnp: bool, tasks: &TaskTracker, cancel: CancellationToken) -> Self {
        let (wanted, wants) = watch::channel((None, 0));
        let (state_in, state) = watch::channel(PortMapping::default());
        let (idle_in, idle) = watch::channel(true);
        let task = Task { wants, state: state_in, idle: idle_in, upnp };
        tasks.spawn(async move { cancel.run_until_cancelled(task.run()).await });
        Self { wanted, state, idle }
    }

    /// Maps this local port, or gives the mapping back.
    pub fn want(&self, port: Option<NonZeroU16>) {
        self.wanted.send_if_modified(|(now, _)| std::mem::replace(now, port) != port);
    }

    /// There may be another gateway: what it gave is forgotten and asked for again.
    pub fn network_changed(&self) {
        self.wanted.send_if_modified(|(port, generation)| {
            *generation += 1;
            port.is_some()
        });
    }

    /// The mapping and its changes.
    pub fn watch(&self) -> watch::Receiver<PortMapping> {
        self.state.clone()
    }

    /// Protocols that the gateway answered to.
    pub fn available(&self) -> Vec<MapProtocol> {
        self.state.borrow().available.clone()
    }

    /// Gives the mapping back and waits until the gateway was told.
    pub async fn release(&self) {
        self.want(None);
        let mut idle = self.idle.clone();
        // A gateway that does not answer forgets the mapping when it expires.
        let _ = timeout(RELEASE, idle.wait_for(|idle| *idle)).await;
    }
}

struct Task {
    wants: watch::Receiver<(Option<NonZeroU16>, u64)>,
    state: watch::Sender<PortMapping>,
    idle: watch::Sender<bool>,
    upnp: bool,
}

impl Task {
    async fn run(mut self) {
        loop {
            let (port, _) = *self.wants.borrow_and_update();
            self.idle.send_replace(port.is_none());
            let Some(port) = port else {
                if self.wants.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let round = Round::new(self.upnp, &self.state);
            let closed = tokio::select! {
                () = round.keep(port) => false,
                changed = self.wants.changed() => changed.is_err(),
            };
            round.release().await;
            self.state.send_replace(PortMapping::default());
            if closed {
                return;
            }
        }
    }
}

/// The clients for one network.
struct Round<'a> {
    clients: Vec<(MapProtocol, Service)>,
    state: &'a watch::Sender<PortMapping>,
}

impl<'a> Round<'a> {
    fn new(upnp: bool, state: &'a watch::Sender<PortMapping>) -> Self {
        Self { clients: clients(upnp), state }
    }

    /// Gets a mapping and keeps it; asks again at growing intervals while there is none.
    async fn keep(&self, port: NonZeroU16) {
        let mut pause = FIRST_RETRY;
        loop {
            if self.once(port).await {
                pause = FIRST_RETRY;
            }
            self.state.send_if_modified(|state| state.external.take().is_some());
            sleep(pause).await;
            pause = (pause * 2).min(MAX_RETRY);
        }
    }

    /// One try; returns when there is no mapping (any more). Whether there was one.
    async fn once(&self, port: NonZeroU16) -> bool {
        let mut probes: FuturesUnordered<_> =
            self.clients.iter().map(|(p, client)| probe(*p, client)).collect();
        let mut untried = Vec::new();
        loop {
            // The best that answers; others get a moment if a lesser one was first.
            let mut until: Option<Instant> = None;
            while !probes.is_empty() && !untried.contains(&MapProtocol::Pcp) {
                let grace = async {
                    match until {
                        Some(until) => sleep_until(until).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    Some((protocol, there)) = probes.next() => if there {
                        self.found(protocol);
                        untried.push(protocol);
                        until.get_or_insert(Instant::now() + GRACE);
                    },
                    () = grace => break,
                }
            }
            untried.sort_unstable();
            if untried.is_empty() {
                self.state.send_if_modified(|s| !std::mem::replace(&mut s.probed, true));
                return false;
            }
            let protocol = untried.remove(0);
            let Some((_, client)) = self.clients.iter().find(|(p, _)| *p == protocol) else {
                continue;
            };
            if let Ok(Some(external)) = timeout(ATTEMPT, client.map(port)).await {
                info!(protocol = protocol.as_str(), %external, "port mapped");
                // What else there is, `status` wants to know.
                let rest = async {
                    while let Some((protocol, there)) = probes.next().await {
                        if there {
                            self.found(protocol);
                        }
                    }
                    self.state.send_if_modified(|s| !std::mem::replace(&mut s.probed, true));
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = self.hold(protocol, client, external) => return true,
                    () = rest => {}
                }
            }
            client.give_up();
        }
    }

    fn found(&self, protocol: MapProtocol) {
        debug!(protocol = protocol.as_str(), "gateway maps ports");
        self.state.send_if_modified(|state| {
            let new = !state.available.contains(&protocol);
            if new {
                state.available.push(protocol);
                state.available.sort_unstable();
            }
            new
        });
    }

    /// Follows the mapping until it is lost.
    async fn hold(&self, protocol: MapProtocol, client: &Service, first: SocketAddrV4) {
        let tell = |addr| self.state.send_modify(|state| state.external = Some((protocol, addr)));
        client.hold(first, tell).await;
        info!(protocol = protocol.as_str(), "port mapping lost");
    }

    async fn release(self) {
        let Some((protocol, external)) = self.state.borrow().external else { return };
        let Some((_, client)) = self.clients.iter().find(|(p, _)| *p == protocol) else { return };
        if timeout(RELEASE, client.release()).await.is_ok() {
            debug!(protocol = protocol.as_str(), %external, "port mapping given back");
        }
    }
}

async fn probe(protocol: MapProtocol, client: &Service) -> (MapProtocol, bool) {
    (protocol, timeout(PROBE, client.probe()).await == Ok(true))
}

/// Some gateways map while they have no address themselves.
fn is_plausible(external: &SocketAddrV4) -> bool {
    let ip: &Ipv4Addr = external.ip();
    let useless = ip.is_unspecified()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_broadcast();
    external.port() != 0 && !useless
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_without_an_address_maps_nothing() {
        for (addr, plausible) in [
            ("203.0.113.5:4000", true),
            ("100.64.0.9:4000", true),
            ("0.0.0.0:4000", false),
            ("127.0.0.1:4000", false),
            ("169.254.1.1:4000", false),
            ("255.255.255.255:4000", false),
        ] {
            assert_eq!(is_plausible(&addr.parse().unwrap()), plausible, "{addr}");
        }
    }

    #[tokio::test]
    async fn releasing_what_was_never_wanted_takes_no_time_and_asks_nobody() {
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let mapper = PortMapper::start(true, &tasks, cancel.clone());
        mapper.network_changed();
        let began = Instant::now();
        mapper.release().await;
        assert!(began.elapsed() < RELEASE / 2);
        assert_eq!(*mapper.watch().borrow(), PortMapping::default());
        cancel.cancel();
        tasks.close();
        tasks.wait().await;
    }
}
