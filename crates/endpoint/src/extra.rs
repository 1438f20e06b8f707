//! Sockets of one session alone: fresh ones, whose mappings are young, and birthday sockets, of
//! which many are open for a moment so that one of them is hit.
//!
//! A birthday socket is a bare descriptor and a small task until an authenticated check arrives
//! on it; then it becomes a socket like any other, with an endpoint of its own. All are counted
//! against what the process may open, and all are closed with their session.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Instant};

use adit_core::punch::{BIRTHDAY_BASE, BIRTHDAY_SOCKETS, FRESH_BASE, Family, LocalSocket};
use adit_net::{
    quic::QuicEndpoint,
    stun::{self, MAX_STUN, StunClient},
    udp::{DemuxSocket, StunDatagram, normalise, send_with_ttl},
};
use adit_protocol::keys::random;
use tokio::{
    net::UdpSocket,
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Duration, sleep, sleep_until},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::debug;

use crate::udp::{Doors, Incoming, StunIn, UdpStack};

/// Sockets of a session that have an endpoint, fresh ones and promoted birthday ones. A peer that
/// hits more of them has found a path already.
const MAX_FULL: usize = 12;
/// Rest of a bare socket after a receive that failed: an ICMP error is a peer's news.
const ERROR_PAUSE: Duration = Duration::from_millis(20);

/// What the sockets of a session share.
#[derive(Clone)]
pub(crate) struct Ground {
    pub(crate) udp: Arc<UdpStack>,
    pub(crate) doors: Doors,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
    /// Agent: the key that connections of this session present.
    pub(crate) quic_key: Option<[u8; 32]>,
}

/// A session's own sockets.
pub(crate) struct Extras {
    ground: Ground,
    sockets: BTreeMap<LocalSocket, Extra>,
    next_fresh: usize,
    next_birthday: usize,
    /// Held while there are birthday sockets.
    turn: Option<OwnedSemaphorePermit>,
}

struct Extra {
    family: Family,
    kind: Kind,
    room: OwnedSemaphorePermit,
    /// Its tasks end with it.
    _stop: DropGuard,
}

enum Kind {
    Bare(Arc<UdpSocket>),
    Full { socket: Arc<DemuxSocket>, quic: Arc<QuicEndpoint> },
}

impl Extras {
    pub(crate) fn new(ground: Ground) -> Self {
        let (next_fresh, next_birthday) = (FRESH_BASE, BIRTHDAY_BASE);
        Self { ground, sockets: BTreeMap::new(), next_fresh, next_birthday, turn: None }
    }

    /// Where things for the session are put.
    pub(crate) fn doors(&self) -> Doors {
        self.ground.doors.clone()
    }

    /// Opens up to `count` birthday sockets, as many as process and system allow.
    pub(crate) fn open_birthday(&mut self, count: usize, family: Family) -> Vec<LocalSocket> {
        self.turn = self.turn.take().or_else(|| self.ground.udp.birthday_turn());
        let mut opened = Vec::new();
        if self.turn.is_none() {
            debug!("other sessions hold birthday sockets");
            return opened;
        }
        let held = self.sockets.range(LocalSocket(BIRTHDAY_BASE)..).count();
        for _ in 0..count.min(BIRTHDAY_SOCKETS.saturating_sub(held)) {
            let Some(room) = self.ground.udp.socket_room() else { break };
            let Ok(socket) = bind(family).and_then(UdpSocket::from_std) else { break };
            let number = LocalSocket(self.next_birthday);
            self.next_birthday += 1;
            let (socket, stop) = (Arc::new(socket), self.ground.cancel.child_token());
            let (read, token) =
                (read_bare(socket.clone(), number, self.ground.doors.clone()), stop.clone());
            self.ground.tasks.spawn(async move { token.run_until_cancelled(read).await });
            let extra = Extra { family, kind: Kind::Bare(socket), room, _stop: stop.drop_guard() };
            self.sockets.insert(number, extra);
            opened.push(number);
        }
        if opened.is_empty() {
            self.turn = None;
        }
        opened
    }

    /// Opens an ordinary socket more, and asks the servers how it is seen; gives its port.
    pub(crate) fn open_fresh(
        &mut self,
        family: Family,
        admitted: impl Iterator<Item = SocketAddr>,
    ) -> Option<(LocalSocket, u16)> {
        if self.full_count() >= MAX_FULL {
            return None;
        }
        let room = self.ground.udp.socket_room()?;
        let socket = bind(family).inspect_err(|error| debug!(%error, "no fresh socket")).ok()?;
        let number = LocalSocket(self.next_fresh);
        let servers = self.ground.udp.stun_servers(family);
        let ids = || random().unwrap_or_default();
        // Without randomness there are no unpredictable transactions, hence no discovery.
        let client = random::<12>().ok().map(|_| StunClient::new(&servers, ids, Instant::now()));
        let extra = self.full(number, family, socket, client, room)?;
        admitted.filter(|a| Family::of(*a) == family).for_each(|addr| extra.admit(addr, true));
        let port = extra.port();
        self.next_fresh += 1;
        self.sockets.insert(number, extra);
        Some((number, port))
    }

    /// An authenticated check arrived on a birthday socket: it gets an endpoint, so that a
    /// connection that comes next finds somebody.
    pub(crate) fn promote(
        &mut self,
        number: LocalSocket,
        admitted: impl Iterator<Item = SocketAddr>,
    ) {
        if self.full_count() >= MAX_FULL {
            return;
        }
        let Some(bare) = self.sockets.get(&number) else { return };
        let Kind::Bare(socket) = &bare.kind else { return };
        let Ok(socket) = socket2::SockRef::from(&**socket).try_clone() else { return };
        let Some(Extra { family, room, .. }) = self.sockets.remove(&number) else { return };
        if let Some(extra) = self.full(number, family, socket.into(), None, room) {
            admitted.filter(|a| Family::of(*a) == family).for_each(|addr| extra.admit(addr, true));
            self.sockets.insert(number, extra);
        }
    }

    fn full(
        &self,
        number: LocalSocket,
        family: Family,
        socket: std::net::UdpSocket,
        discovery: Option<StunClient>,
        room: OwnedSemaphorePermit,
    ) -> Option<Extra> {
        let Ground { udp, doors, tasks, cancel, quic_key } = &self.ground;
        let (socket, stun) = DemuxSocket::from_std(socket).ok()?;
        let quic = Arc::new(QuicEndpoint::new(socket.clone(), udp.server_config()).ok()?);
        let stop = cancel.child_token();
        let serve = serve_full(number, socket.clone(), stun, discovery, doors.clone());
        let token = stop.clone();
        tasks.spawn(async move { token.run_until_cancelled(serve).await });
        if quic_key.is_some() {
            let accept = udp.clone().accept(number, quic.clone(), *quic_key, tasks.clone());
            let token = stop.clone();
            tasks.spawn(async move { token.run_until_cancelled(accept).await });
        }
        let kind = Kind::Full { socket, quic };
        Some(Extra { family, kind, room, _stop: stop.drop_guard() })
    }

    fn full_count(&self) -> usize {
        self.sockets.values().filter(|e| matches!(e.kind, Kind::Full { .. })).count()
    }

    /// Closes the birthday sockets but one.
    pub(crate) fn release_birthday(&mut self, keep: Option<LocalSocket>) {
        self.sockets.retain(|number, _| number.0 < BIRTHDAY_BASE || Some(*number) == keep);
        self.turn = None;
    }

    pub(crate) fn close(&mut self, number: LocalSocket) {
        self.sockets.remove(&number);
    }

    pub(crate) fn has(&self, number: LocalSocket) -> bool {
        self.sockets.contains_key(&number)
    }

    /// Sends a check. What is not sent is lost, like anything else on the way.
    pub(crate) fn send(&self, number: LocalSocket, to: SocketAddr, packet: &[u8]) {
        match self.sockets.get(&number).map(|e| &e.kind) {
            Some(Kind::Bare(socket)) => {
                drop(socket2::SockRef::from(&**socket).send_to(packet, &to.into()))
            }
            Some(Kind::Full { socket, .. }) => drop(socket.send_stun(to, packet)),
            None => {}
        }
    }

    /// Sends a check that need not arrive. A birthday socket's is sent in any case: nothing else
    /// opens its NAT.
    pub(crate) fn send_opener(&self, number: LocalSocket, to: SocketAddr, packet: &[u8], ttl: u8) {
        match self.sockets.get(&number).map(|e| &e.kind) {
            Some(Kind::Bare(socket)) => {
                let socket = socket2::SockRef::from(&**socket);
                if !send_with_ttl(&socket, to, packet, ttl).unwrap_or(false) {
                    drop(socket.send_to(packet, &to.into()));
                }
            }
            Some(Kind::Full { socket, .. }) => socket.send_opener(to, packet, ttl),
            None => {}
        }
    }

    /// Lets QUIC packets of an address in, or no longer.
    pub(crate) fn admit(&self, addr: SocketAddr, admit: bool) {
        let fitting = self.sockets.values().filter(|e| e.family == Family::of(addr));
        fitting.for_each(|e| e.admit(addr, admit));
    }

    pub(crate) fn dial(
        &self,
        number: LocalSocket,
        to: SocketAddr,
        config: quinn::ClientConfig,
    ) -> Option<quinn::Connecting> {
        let Kind::Full { quic, .. } = &self.sockets.get(&number)?.kind else { return None };
        quic.dial(to, config).inspect_err(|error| debug!(%error, %to, "dial")).ok()
    }

    /// The local port of a socket.
    pub(crate) fn port(&self, number: LocalSocket) -> Option<u16> {
        self.sockets.get(&number).map(Extra::port)
    }
}

impl Extra {
    fn port(&self) -> u16 {
        match &self.kind {
            Kind::Bare(socket) => socket.local_addr().map_or(0, |a| a.port()),
            Kind::Full { socket, .. } => socket.local_addr().port(),
        }
    }

    fn admit(&self, addr: SocketAddr, admit: bool) {
        if let Kind::Full { socket, .. } = &self.kind {
            if admit {
                socket.admit(addr);
            } else {
                socket.revoke(addr);
            }
        }
    }
}

fn bind(family: Family) -> std::io::Result<std::net::UdpSocket> {
    let any = match family {
        Family::V4 => "0.0.0.0:0",
        Family::V6 => "[::]:0",
    };
    let any: SocketAddr = any.parse().map_err(std::io::Error::other)?;
    let kind = socket2::Type::DGRAM;
    let socket = socket2::Socket::new(socket2::Domain::for_address(any), kind, None)?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&any.into())?;
    Ok(socket.into())
}

/// Reads checks. Whatever else arrives is ignored: nobody is known here yet.
async fn read_bare(socket: Arc<UdpSocket>, number: LocalSocket, doors: Doors) {
    let mut buffer = [0; MAX_STUN + 1];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((len, from)) => {
                let Some(raw) = buffer.get(..len) else { continue };
                let Some(packet) = stun::parse(raw) else { continue };
                let raw = bytes::Bytes::copy_from_slice(raw);
                let check = StunIn { socket: number, from: normalise(from), packet, raw };
                // A session that does not keep up loses checks, which are repeated anyway.
                let _ = doors.incoming.try_send(Incoming::Check(check));
            }
            Err(_) => sleep(ERROR_PAUSE).await,
        }
    }
}

/// Passes checks on, and finds out how the socket is seen.
async fn serve_full(
    number: LocalSocket,
    socket: Arc<DemuxSocket>,
    mut received: mpsc::Receiver<StunDatagram>,
    mut discovery: Option<StunClient>,
    doors: Doors,
) {
    loop {
        while let Some((to, packet)) = discovery.as_mut().and_then(StunClient::poll_transmit) {
            socket.send_stun(to, &packet);
        }
        let due = discovery.as_ref().and_then(StunClient::poll_timeout);
        let timer = async {
            match due {
                Some(due) => sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            datagram = received.recv() => {
                let Some(StunDatagram { from, payload, .. }) = datagram else { return };
                let Some(packet) = stun::parse(&payload) else { continue };
                if let Some(client) = &mut discovery
                    && client.handle_packet(from, &packet, Instant::now())
                {
                    while let Some(mapping) = client.poll_event() {
                        let _ = doors.incoming.send(Incoming::Mapped(number, mapping.mapped)).await;
                    }
                    continue;
                }
                let check = StunIn { socket: number, from, packet, raw: payload };
                let _ = doors.incoming.try_send(Incoming::Check(check));
            }
            () = timer => {
                if let Some(client) = &mut discovery {
                    client.handle_timeout(Instant::now());
                }
            }
        }
    }
}
