//! One UDP socket for STUN and QUIC, dark to strangers.
//!
//! STUN is taken out segment by segment and goes to a bounded channel; the rest reaches quinn
//! only from addresses that were admitted because a check proved them. Nothing that arrives can
//! end the socket, and nothing from an address that is not admitted makes quinn say a word.
//! There is no allocation for a QUIC packet of an admitted address.

mod hold;
mod opener;
mod segments;

use std::{
    collections::HashMap,
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, SocketAddrV6},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use quinn::{
    AsyncUdpSocket, Runtime as _, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit, UdpSocketState},
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::sync::mpsc;
use tracing::{debug, trace};

use self::hold::{Held, Hold};
pub use self::{opener::send_with_ttl, segments::split_segments};

/// Kernel buffers asked for, each way: 60 ms at 1 Gbit/s. The kernel may give less.
pub const SOCKET_BUFFER: usize = 7_500_000;
/// STUN datagrams waiting to be read; those beyond are dropped, their senders repeat.
pub const STUN_QUEUE: usize = 256;
/// Addresses admitted at once.
pub const MAX_ADMITTED: usize = 16_384;
/// Receives that may fail in a row before there is a pause: a socket without an interface must not
/// keep a processor busy.
const RECEIVE_ERRORS_AT_ONCE: u32 = 64;
/// That pause.
const ERROR_PAUSE: Duration = Duration::from_millis(50);
/// Descriptors that a process may have open for all its purposes.
const MAX_DESCRIPTORS: u64 = 20_000;
/// Descriptors that sockets beyond the ordinary ones leave to everything else.
const OTHER_DESCRIPTORS: u64 = 512;

/// A STUN message as it came; nothing in it is verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StunDatagram {
    /// Sender, IPv4-mapped addresses as IPv4.
    pub from: SocketAddr,
    /// The local address it was sent to, where the system tells.
    pub to: Option<IpAddr>,
    /// At most [`MAX_STUN`](crate::stun::MAX_STUN) bytes.
    pub payload: Bytes,
}

/// What was thrown away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dropped {
    /// STUN messages that found the channel full.
    pub stun: u64,
    /// QUIC packets of addresses that were not admitted in time.
    pub dark: u64,
}

/// The socket. quinn's endpoint driver is what receives: without a
/// [`QuicEndpoint`](crate::quic::QuicEndpoint) on it nothing arrives.
pub struct DemuxSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    /// The same socket, for STUN: tokio refuses to send on a socket until its reactor has looked
    /// at it once, and the first check of a session must not wait for its repetition.
    direct: (std::net::UdpSocket, UdpSocketState),
    local: SocketAddr,
    stun: mpsc::Sender<StunDatagram>,
    /// How many holders each address has: two sessions may share one peer address.
    admitted: RwLock<HashMap<SocketAddr, u32>>,
    hold: Mutex<Hold>,
    /// Whether `hold` has packets for quinn; saves the lock on the receive path.
    released: AtomicBool,
    receiver: AtomicWaker,
    errors: AtomicU32,
    pause: Mutex<Option<Pin<Box<tokio::time::Sleep>>>>,
    dropped_stun: AtomicU64,
    dropped_dark: AtomicU64,
}

impl DemuxSocket {
    /// Binds a socket of one family (`[::]` is IPv6 alone). Must be called within a tokio
    /// runtime.
    pub fn bind(addr: SocketAddr) -> io::Result<(Arc<Self>, mpsc::Receiver<StunDatagram>)> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&addr.into())?;
        Self::from_std(socket.into())
    }

    /// Takes over a bound socket, for instance a dual-stack one.
    pub fn from_std(
        socket: std::net::UdpSocket,
    ) -> io::Result<(Arc<Self>, mpsc::Receiver<StunDatagram>)> {
        raise_buffers(&socket);
        let direct = socket.try_clone()?;
        Self::from_parts(TokioRuntime.wrap_udp_socket(socket)?, direct)
    }

    fn from_parts(
        inner: Arc<dyn AsyncUdpSocket>,
        direct: std::net::UdpSocket,
    ) -> io::Result<(Arc<Self>, mpsc::Receiver<StunDatagram>)> {
        let local = inner.local_addr()?;
        let (stun, stun_queue) = mpsc::channel(STUN_QUEUE);
        let state = UdpSocketState::new((&direct).into())?;
        let socket = Self {
            inner,
            direct: (direct, state),
            local,
            stun,
            admitted: RwLock::default(),
            hold: Mutex::default(),
            released: AtomicBool::new(false),
            receiver: AtomicWaker::new(),
            errors: AtomicU32::new(0),
            pause: Mutex::default(),
            dropped_stun: AtomicU64::new(0),
            dropped_dark: AtomicU64::new(0),
        };
        Ok((Arc::new(socket), stun_queue))
    }

    /// Where the socket is bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Lets QUIC packets of `addr` through, those held for it first. Each call is to be undone by
    /// one [`revoke`](Self::revoke). `false`: there are [`MAX_ADMITTED`] addresses already.
    pub fn admit(&self, addr: SocketAddr) -> bool {
        let addr = normalise(addr);
        {
            let mut admitted = self.admitted.write().unwrap_or_else(PoisonError::into_inner);
            if admitted.len() >= MAX_ADMITTED && !admitted.contains_key(&addr) {
                return false;
            }
            let holders = admitted.entry(addr).or_default();
            *holders = holders.saturating_add(1);
        }
        let mut hold = self.hold();
        if hold.release(addr, Instant::now()) {
            self.released.store(true, Ordering::Release);
            drop(hold);
            self.receiver.wake();
        }
        true
    }

    /// Takes back one [`admit`](Self::admit). Close the connections of the address before: what
    /// they still receive is dropped.
    pub fn revoke(&self, addr: SocketAddr) {
        let addr = normalise(addr);
        let mut admitted = self.admitted.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(holders) = admitted.get_mut(&addr) {
            *holders -= 1;
            if *holders == 0 {
                admitted.remove(&addr);
            }
        }
    }

    /// Whether QUIC packets of `addr` get through.
    pub fn is_admitted(&self, addr: SocketAddr) -> bool {
        let admitted = self.admitted.read().unwrap_or_else(PoisonError::into_inner);
        admitted.contains_key(&normalise(addr))
    }

    /// Sends a STUN message. `false`: the system refused it, which is loss like any other.
    pub fn send_stun(&self, to: SocketAddr, packet: &[u8]) -> bool {
        self.send_stun_from(None, to, packet)
    }

    /// Sends a STUN message from a given local address, so that an answer leaves by the address
    /// that was asked.
    pub fn send_stun_from(&self, from: Option<IpAddr>, to: SocketAddr, packet: &[u8]) -> bool {
        let transmit = Transmit {
            destination: self.reachable(to),
            ecn: None,
            contents: packet,
            segment_size: None,
            src_ip: from,
        };
        let (socket, state) = &self.direct;
        match state.try_send(socket.into(), &transmit) {
            Ok(()) => true,
            Err(error) => {
                trace!(%error, %to, "STUN message not sent");
                false
            }
        }
    }

    /// Sends a STUN message that is to get no further than this TTL takes it; where that cannot
    /// be done it is not sent.
    pub fn send_opener(&self, to: SocketAddr, packet: &[u8], ttl: u8) {
        let socket = SockRef::from(&self.direct.0);
        if self.local.is_ipv4()
            && let Err(error) = send_with_ttl(&socket, to, packet, ttl)
        {
            trace!(%error, %to, "opener not sent");
        }
    }

    /// What was dropped since the socket exists.
    pub fn dropped(&self) -> Dropped {
        Dropped {
            stun: self.dropped_stun.load(Ordering::Relaxed),
            dark: self.dropped_dark.load(Ordering::Relaxed),
        }
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.hold().addresses()
    }

    /// Takes STUN out of a receive, and all of it if the sender is not admitted.
    fn sift(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        let (from, to) = (meta.addr, meta.dst_ip);
        split_segments(buffer, meta, |packet| self.deliver_stun(packet, from, to));
        if meta.len == 0 || self.is_admitted(meta.addr) {
            return;
        }
        let mut hold = self.hold();
        // Again, under the lock: an admission in between has looked for held packets already.
        if self.is_admitted(meta.addr) {
            return;
        }
        let now = Instant::now();
        for packet in buffer.get(..meta.len).unwrap_or_default().chunks(meta.stride.max(1)) {
            if !hold.hold(normalise(meta.addr), packet, meta, now) {
                self.dropped_dark.fetch_add(1, Ordering::Relaxed);
            }
        }
        meta.len = 0;
    }

    fn deliver_stun(&self, packet: &[u8], from: SocketAddr, to: Option<IpAddr>) {
        // Room first: no allocation for what would be dropped.
        match self.stun.try_reserve() {
            Ok(slot) => slot.send(StunDatagram {
                from: normalise(from),
                to: to.map(|ip| ip.to_canonical()),
                payload: Bytes::copy_from_slice(packet),
            }),
            Err(_) => {
                self.dropped_stun.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Hands packets that were held over to quinn.
    fn take_released(&self, bufs: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> usize {
        if !self.released.load(Ordering::Acquire) {
            return 0;
        }
        let mut hold = self.hold();
        let mut count = 0;
        let mut slots = bufs.iter_mut().zip(metas.iter_mut()).peekable();
        while let Some((buffer, meta)) = slots.peek_mut() {
            let Some(Held { packet, meta: held }) = hold.next_released() else { break };
            let Some(space) = buffer.get_mut(..packet.len()) else { continue };
            space.copy_from_slice(&packet);
            **meta = held;
            count += 1;
            slots.next();
        }
        self.released.store(hold.has_released(), Ordering::Release);
        count
    }

    fn hold(&self) -> MutexGuard<'_, Hold> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How this socket addresses `to`: an IPv6 socket wants IPv4 mapped.
    fn reachable(&self, to: SocketAddr) -> SocketAddr {
        match (self.local, to) {
            (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
                SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
            }
            _ => to,
        }
    }
}

impl AsyncUdpSocket for DemuxSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.inner.try_send(transmit) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                // No buffers, a firewall's no, no route: a lost packet, not a lost endpoint.
                trace!(%error, to = %transmit.destination, "packet not sent");
                Ok(())
            }
            sent => sent,
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut count = self.take_released(bufs, metas);
        if count == 0 {
            let Poll::Ready(received) = self.inner.poll_recv(cx, bufs, metas) else {
                self.receiver.register(cx.waker());
                // A release between the look above and the registration woke nobody.
                count = self.take_released(bufs, metas);
                return if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) };
            };
            count = match received {
                Ok(count) => count,
                Err(error) => {
                    self.survive(&error, cx);
                    return Poll::Pending;
                }
            };
            self.errors.store(0, Ordering::Relaxed);
            for (buffer, meta) in bufs.iter_mut().zip(metas.iter_mut()).take(count) {
                self.sift(buffer, meta);
            }
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

impl DemuxSocket {
    /// An error that the system reports on receive is some peer's news (ICMP), or the network's;
    /// the socket goes on, after a pause if errors do not end.
    fn survive(&self, error: &io::Error, cx: &mut Context<'_>) {
        let errors = self.errors.fetch_add(1, Ordering::Relaxed);
        if errors == 0 {
            debug!(%error, local = %self.local, "receive failed, going on");
        }
        if errors < RECEIVE_ERRORS_AT_ONCE {
            cx.waker().wake_by_ref();
            return;
        }
        let mut pause = Box::pin(tokio::time::sleep(ERROR_PAUSE));
        if pause.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        *self.pause.lock().unwrap_or_else(PoisonError::into_inner) = Some(pause);
    }
}

impl fmt::Debug for DemuxSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DemuxSocket").field("local", &self.local).finish_non_exhaustive()
    }
}

/// How many sockets beyond the ordinary ones this process may open. Raises the process's limit of
/// open files as far as the system allows and we want.
pub fn descriptor_room() -> usize {
    // Where there is no such limit the call says so by an error.
    let limit = rlimit::increase_nofile_limit(MAX_DESCRIPTORS).unwrap_or(MAX_DESCRIPTORS);
    let room = limit.min(MAX_DESCRIPTORS).saturating_sub(OTHER_DESCRIPTORS) / 2;
    usize::try_from(room).unwrap_or(0)
}

/// One address, one spelling: IPv4-mapped as IPv4, no flow label, a scope only where it counts.
pub fn normalise(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(_) => addr,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(ip) => SocketAddr::new(ip.into(), v6.port()),
            None => {
                let scope = if v6.ip().is_unicast_link_local() { v6.scope_id() } else { 0 };
                SocketAddrV6::new(*v6.ip(), v6.port(), 0, scope).into()
            }
        },
    }
}

fn raise_buffers(socket: &std::net::UdpSocket) {
    let socket = SockRef::from(socket);
    for result in
        [socket.set_recv_buffer_size(SOCKET_BUFFER), socket.set_send_buffer_size(SOCKET_BUFFER)]
    {
        if let Err(error) = result {
            debug!(%error, "socket buffer not raised");
        }
    }
    debug!(
        receive = socket.recv_buffer_size().unwrap_or(0),
        send = socket.send_buffer_size().unwrap_or(0),
        asked = SOCKET_BUFFER,
        "socket buffers"
    );
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "test data")]
mod tests;
