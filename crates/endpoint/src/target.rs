//! Agent: what a channel leads to. Nothing is dialled before grant and policy have agreed.

use std::{future::Future, io::ErrorKind, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use adit_protocol::{
    code::ChannelCode,
    grant::Grant,
    limits::MAX_DATAGRAM,
    target::{Target, Transport},
};
use bytes::BytesMut;
use tokio::{
    net::{TcpStream, UdpSocket},
    sync::mpsc,
};

use crate::{
    local,
    receipts::Receipts,
    shared::{ChannelTap, Shared},
};

/// Time to connect a target, all its addresses together.
const CONNECT: Duration = Duration::from_secs(10);
/// Time for the gate, which may resolve a name, ask a person and wait for the audit.
const PERMIT: Duration = Duration::from_secs(75);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

/// What [`Gate::permit`] gives.
pub type Permit = Pin<Box<dyn Future<Output = Result<Vec<SocketAddr>, ChannelCode>> + Send>>;

/// What a gate says of every session while the owner's kill switch is on: the console tells it
/// from a policy by this.
pub const LOCKED: &str = "the endpoint owner locked this computer";

/// The agent's last word on every session and channel: its owner's policy, the resolution of
/// names, the audit of targets that the grant does not name.
pub trait Gate: Send + Sync + 'static {
    /// May the session begin? The text says why not.
    fn admit(&self, grant: &Grant) -> Result<(), String>;
    /// The addresses to dial for a target that the grant covers.
    fn permit(&self, grant: Grant, target: Target) -> Permit;
}

/// Connects a channel's target and serves it until the channel is over.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    gate: Arc<dyn Gate>,
    grant: Grant,
    target: Target,
    (tap, receipts): (ChannelTap, Arc<Receipts>),
    opened: mpsc::Sender<crate::driver::Message>,
) {
    let id = tap.id;
    let transport = target.transport();
    let connected = async {
        if !grant.covers(&target) {
            return Err(ChannelCode::NotGranted);
        }
        let permit = tokio::time::timeout(PERMIT, gate.permit(grant, target));
        let addresses = permit.await.unwrap_or(Err(ChannelCode::TargetUnreachable))?;
        let connect = async {
            match transport {
                Transport::Tcp => connect_tcp(&addresses).await.map(Connected::Tcp),
                Transport::Udp => connect_udp(&addresses).await.map(Connected::Udp),
            }
        };
        let connected = tokio::time::timeout(CONNECT, connect);
        connected.await.unwrap_or(Err(ChannelCode::TargetUnreachable))
    };
    // A channel that is given up is not dialled on: else a console that opens and resets could
    // have any number of dials under way, whatever the limit of channels.
    let mut progress = tap.progress.clone();
    let connected = tokio::select! {
        biased;
        () = local::wait_over(&mut progress) => return,
        connected = connected => connected,
    };
    match connected {
        Err(code) => shared.with(|resume, _| resume.refuse(id, code)),
        Ok(connected) => {
            let flow = shared.register_flow(id);
            shared.with(|resume, now| resume.connected(id, now));
            let _ = opened.send(crate::driver::Message::Connected(id)).await;
            match connected {
                Connected::Tcp(stream) => {
                    let ready = async move { receipts.released(id).await };
                    local::run(shared, tap, stream, None, ready).await;
                }
                Connected::Udp(socket) => {
                    let ready = async move { receipts.released(id).await };
                    serve_udp(shared, tap, (socket, ready), flow).await;
                }
            }
        }
    }
}

enum Connected {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

async fn connect_tcp(addresses: &[SocketAddr]) -> Result<TcpStream, ChannelCode> {
    let mut code = ChannelCode::TargetUnreachable;
    for address in addresses.iter().take(MAX_ADDRESSES) {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                code = ChannelCode::TargetRefused;
            }
            Err(_) => {}
        }
    }
    Err(code)
}

async fn connect_udp(addresses: &[SocketAddr]) -> Result<UdpSocket, ChannelCode> {
    let address = addresses.first().ok_or(ChannelCode::TargetUnreachable)?;
    let any: SocketAddr = if address.is_ipv4() {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let unreachable = |_| ChannelCode::TargetUnreachable;
    let socket = UdpSocket::bind(any).await.map_err(unreachable)?;
    socket.connect(address).await.map_err(unreachable)?;
    Ok(socket)
}

async fn serve_udp(
    shared: Arc<Shared>,
    tap: ChannelTap,
    (socket, ready): (UdpSocket, impl Future<Output = Result<(), ChannelCode>>),
    mut flow: mpsc::Receiver<bytes::Bytes>,
) {
    let ChannelTap { id, mut progress, .. } = tap;
    tokio::select! {
        () = local::wait_over(&mut progress) => return,
        ready = ready => if let Err(code) = ready {
            return shared.with(|resume, _| resume.reset(id, code));
        },
    }
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(MAX_DATAGRAM + 1);
        tokio::select! {
            () = local::wait_over(&mut progress) => return,
            datagram = flow.recv() => match datagram {
                // Like a network, a socket that cannot send just loses it.
                Some(datagram) => drop(socket.send(&datagram).await),
                None => return,
            },
            received = socket.recv_buf(&mut buffer) => {
                // An ICMP error shows here once; the flow goes on.
                if received.is_ok() {
                    let datagram = buffer.split().freeze();
                    shared.with(|resume, now| resume.handle_local_datagram(id, datagram, now));
                } else {
                    buffer.clear();
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}
