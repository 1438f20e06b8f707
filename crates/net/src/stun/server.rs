//! The mediator's STUN service on ports N and N+1 of one or more addresses, and where it is wanted
//! on a further port that restrictive networks let pass.
//!
//! Stateless: at most one answer for each request (RFC 8489 §6.3.1), never a larger one than
//! twice the request over IPv4, none to anything malformed, none that names software. It must
//! never be worth reflecting traffic off.

use std::{
    collections::BTreeSet,
    future::poll_fn,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use quinn::{
    AsyncUdpSocket, Runtime as _, TokioRuntime,
    udp::{RecvMeta, Transmit},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace, warn};

use super::{
    codec::{Change, StunClass, encode_behaviour_response, encode_binding_response, parse},
    rate::RateLimit,
};

/// Addresses served at once, with two ports each.
const MAX_ADDRESSES: usize = 8;
/// Attempts to find two free neighbouring ports when any will do.
const PORT_ATTEMPTS: usize = 64;
/// Receive buffers of a socket; with GRO each may be filled with many requests.
const BUFFERS: usize = 4;
/// Largest GRO batch.
const BUFFER_LEN: usize = 65_535;
/// Kernel buffers asked for: a burst of requests from a fleet that reconnects.
const SOCKET_BUFFER: usize = 1024 * 1024;
/// XOR-MAPPED-ADDRESS and RESPONSE-ORIGIN for IPv4: shorter requests are plain ones.
const SMALLEST_BEHAVIOUR_ANSWER: usize = 44;
/// A socket that fails this often in a row is given up.
const MAX_RECEIVE_ERRORS: u32 = 100;

/// Bound sockets: port N and N+1 of every address, in this order.
#[derive(Debug)]
pub struct StunSockets {
    sockets: Vec<Site>,
}

#[derive(Debug)]
struct Site {
    socket: Arc<dyn AsyncUdpSocket>,
    local: SocketAddr,
    /// Index of the same port at another address of the family, for CHANGE-REQUEST.
    other_ip: Option<usize>,
    /// Only says where a request seems to come from: it has no second port.
    plain: bool,
}

impl StunSockets {
    /// Binds `port` and `port + 1` of each address; 0 stands for any free pair. `[::]` alone
    /// serves both families. Must be called within a tokio runtime.
    pub fn bind(addresses: &[IpAddr], port: u16) -> io::Result<Self> {
        let addresses: BTreeSet<IpAddr> = addresses.iter().take(MAX_ADDRESSES).copied().collect();
        let addresses: Vec<IpAddr> = addresses.into_iter().collect();
        if addresses.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "give an address to bind"));
        }
        if port != 0 {
            return Self::bind_pair(&addresses, port);
        }
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..PORT_ATTEMPTS {
            match Self::bind_pair(&addresses, 0) {
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => last = e,
                done => return done,
            }
        }
        Err(last)
    }

    fn bind_pair(addresses: &[IpAddr], port: u16) -> io::Result<Self> {
        let dual = addresses.len() == 1;
        let (mut base, mut sockets) = (port, Vec::with_capacity(addresses.len() * 2));
        for ip in addresses {
            let first = bind_one(SocketAddr::new(*ip, base), dual)?;
            base = first.1.port();
            let next = base.checked_add(1).ok_or(io::ErrorKind::AddrInUse)?;
            for (socket, local) in [first, bind_one(SocketAddr::new(*ip, next), dual)?] {
                sockets.push(Site { socket, local, other_ip: None, plain: false });
            }
        }
        let locals: Vec<SocketAddr> = sockets.iter().map(|s| s.local).collect();
        for (index, site) in sockets.iter_mut().enumerate() {
            site.other_ip = other_ip(&locals, index);
        }
        Ok(Self { sockets })
    }

    /// Binds one more port of each address, for plain requests only: networks that block what
    /// they do not know often let UDP 443 pass, for QUIC.
    pub fn bind_plain(&mut self, port: u16) -> io::Result<()> {
        let ips: BTreeSet<IpAddr> = self.sockets.iter().map(|site| site.local.ip()).collect();
        let dual = ips.len() == 1;
        for ip in ips {
            let (socket, local) = bind_one(SocketAddr::new(ip, port), dual)?;
            self.sockets.push(Site { socket, local, other_ip: None, plain: true });
        }
        Ok(())
    }

    /// Where requests are received.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|site| site.local).collect()
    }

    /// The lower of the two ports.
    pub fn port(&self) -> u16 {
        self.sockets.first().map_or(0, |site| site.local.port())
    }

    /// What to answer to `request`, and through which socket.
    fn answer(
        &self,
        index: usize,
        request: &[u8],
        from: SocketAddr,
        to: Option<IpAddr>,
    ) -> Option<(usize, Vec<u8>)> {
        let packet = parse(request)?;
        if packet.class != StunClass::Request || packet.unknown_required {
            return None;
        }
        let id = packet.transaction_id;
        if self.sockets.get(index)?.plain {
            return packet.change.is_none().then(|| (index, encode_binding_response(id, from)));
        }
        let change = packet.change.unwrap_or_default();
        let via = self.partner(index, change)?;
        let origin = self.address_of(via, to.filter(|_| !change.ip));
        let other = self
            .partner(index, Change { ip: true, port: true })
            .and_then(|other| self.address_of(other, None));
        if request.len() >= SMALLEST_BEHAVIOUR_ANSWER {
            let answer = encode_behaviour_response(id, from, origin, other);
            if answer.len() <= request.len() {
                return Some((via, answer));
            }
        }
        // Without padding the answer would be larger than the request: nobody is told to expect
        // it from elsewhere either.
        packet.change.is_none().then(|| (index, encode_binding_response(id, from)))
    }

    fn partner(&self, index: usize, change: Change) -> Option<usize> {
        let index = if change.port { index ^ 1 } else { index };
        if change.ip { self.sockets.get(index)?.other_ip } else { Some(index) }
    }

    /// The address by which others know a socket, if it can be told.
    fn address_of(&self, index: usize, received_at: Option<IpAddr>) -> Option<SocketAddr> {
        let local = self.sockets.get(index)?.local;
        let ip = if local.ip().is_unspecified() { received_at? } else { local.ip() };
        Some(SocketAddr::new(ip, local.port()))
    }
}

/// Answers until `cancel` says stop.
pub async fn serve(sockets: StunSockets, cancel: CancellationToken) {
    let sockets = Arc::new(sockets);
    let limit = Arc::new(Mutex::new(RateLimit::new(Instant::now())));
    let mut tasks = JoinSet::new();
    for index in 0..sockets.sockets.len() {
        tasks.spawn(serve_socket(sockets.clone(), index, limit.clone()));
    }
    let all_ended = async { while tasks.join_next().await.is_some() {} };
    if cancel.run_until_cancelled(all_ended).await.is_some() {
        warn!("no STUN socket is left");
    }
}

async fn serve_socket(sockets: Arc<StunSockets>, index: usize, limit: Arc<Mutex<RateLimit>>) {
    let Some(site) = sockets.sockets.get(index) else { return };
    let mut buffers = vec![0u8; BUFFERS * BUFFER_LEN];
    let mut metas = [RecvMeta::default(); BUFFERS];
    let mut errors = 0;
    while errors < MAX_RECEIVE_ERRORS {
        let received = poll_fn(|cx| {
            let mut chunks = buffers.chunks_mut(BUFFER_LEN).map(IoSliceMut::new);
            let mut slices: [IoSliceMut<'_>; BUFFERS] =
                std::array::from_fn(|_| chunks.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
            site.socket.poll_recv(cx, &mut slices, &mut metas)
        })
        .await;
        let count = match received {
            Ok(count) => count,
            Err(error) => {
                debug!(%error, local = %site.local, "STUN receive failed");
                errors += 1;
                continue;
            }
        };
        errors = 0;
        for (meta, buffer) in metas.iter().zip(buffers.chunks(BUFFER_LEN)).take(count) {
            let Some(filled) = buffer.get(..meta.len) else { continue };
            for request in filled.chunks(meta.stride.max(1)) {
                answer_one(&sockets, index, &limit, request, meta);
            }
        }
    }
    warn!(local = %site.local, "STUN socket given up");
}

fn answer_one(
    sockets: &StunSockets,
    index: usize,
    limit: &Mutex<RateLimit>,
    request: &[u8],
    meta: &RecvMeta,
) {
    // Before the table is touched, so that garbage costs nobody a token.
    if !super::looks_like_stun(request) {
        return;
    }
    let allowed =
        limit.lock().unwrap_or_else(PoisonError::into_inner).allow(meta.addr.ip(), Instant::now());
    if !allowed {
        trace!(from = %meta.addr, "STUN request over the limit");
        return;
    }
    let Some((via, answer)) = sockets.answer(index, request, meta.addr, meta.dst_ip) else {
        return;
    };
    let Some(site) = sockets.sockets.get(via) else { return };
    let same_address = sockets.sockets.get(index).map(|s| s.local.ip()) == Some(site.local.ip());
    let transmit = Transmit {
        destination: meta.addr,
        ecn: None,
        contents: &answer,
        segment_size: None,
        // A host with several addresses must answer from the one that was asked.
        src_ip: meta.dst_ip.filter(|_| same_address),
    };
    // A full send queue drops the answer: the asker repeats.
    if let Err(error) = site.socket.try_send(&transmit) {
        trace!(%error, to = %meta.addr, "STUN answer dropped");
    }
}

/// The same port at the next other address of the same family, if both are concrete.
fn other_ip(locals: &[SocketAddr], index: usize) -> Option<usize> {
    let own = locals.get(index)?;
    let fits = |other: &SocketAddr| {
        other.is_ipv4() == own.is_ipv4()
            && other.ip() != own.ip()
            && !other.ip().is_unspecified()
            && !own.ip().is_unspecified()
    };
    let mut after = locals.iter().enumerate().cycle().skip(index).step_by(2);
    after.by_ref().take(locals.len() / 2).find(|(_, other)| fits(other)).map(|(at, _)| at)
}

fn bind_one(addr: SocketAddr, dual: bool) -> io::Result<(Arc<dyn AsyncUdpSocket>, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!(dual && addr.ip().is_unspecified()))?;
    }
    for result in
        [socket.set_recv_buffer_size(SOCKET_BUFFER), socket.set_send_buffer_size(SOCKET_BUFFER)]
    {
        if let Err(error) = result {
            debug!(%error, "socket buffer not raised");
        }
    }
    socket.bind(&addr.into())?;
    let socket = TokioRuntime.wrap_udp_socket(socket.into())?;
    let local = socket.local_addr()?;
    Ok((socket, local))
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
