//! Accepting connections on the one TCP port.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use adit_net::tls::{Accepted, ServerTls};
use adit_runtime::cli::CliError;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{connection, half_open::HalfOpen, run::Shared};
use crate::http;

/// Connections that the system keeps for us until they are accepted.
const BACKLOG: i32 = 4096;
/// Rest after an accept that failed, e.g. because file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Binds one port on each address; none means all addresses of both families.
pub(super) fn bind(addresses: &[IpAddr], port: u16) -> Result<Vec<TcpListener>, CliError> {
    let bound =
        |address: SocketAddr| bind_one(address).map_err(|error| CliError::bind(address, &error));
    if addresses.is_empty() {
        let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        return match bind_one(both) {
            Ok(listener) => Ok(vec![listener]),
            // No IPv6 in this kernel.
            Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
                Ok(vec![bound(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))?])
            }
            Err(error) => Err(CliError::bind(both, &error)),
        };
    }
    let mut listeners: Vec<TcpListener> = Vec::new();
    let mut port = port;
    for ip in addresses {
        let listener = bound(SocketAddr::new(*ip, port))?;
        port = listener.local_addr().map_or(port, |address| address.port());
        listeners.push(listener);
    }
    Ok(listeners)
}

fn bind_one(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // A restart must not wait for old connections to be forgotten.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until `stop`; each connection is a task of `tasks`.
pub(super) async fn accept(
    listener: TcpListener,
    tls: ServerTls,
    half_open: HalfOpen,
    room: Arc<Semaphore>,
    (shared, web): (Arc<Shared>, Arc<http::Server>),
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok((stream, from)) => (stream, canonical(from)),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            tracing::warn!(%from, "connection refused: there are too many");
            continue;
        };
        let admitted = half_open.admit(from.ip());
        let (tls, stop) = (tls.clone(), stop.clone());
        let (shared, web) = (Arc::clone(&shared), Arc::clone(&web));
        tasks.spawn(async move {
            let _permit = permit;
            let serve = serve(stream, from, tls, admitted, (shared, web));
            stop.run_until_cancelled(serve).await;
        });
    }
}

async fn serve(
    stream: TcpStream,
    from: SocketAddr,
    tls: ServerTls,
    admitted: super::half_open::Admitted,
    (shared, web): (Arc<Shared>, Arc<http::Server>),
) {
    // Waiting for more to send only delays the answer.
    let _ = stream.set_nodelay(true);
    let must_go = admitted.must_go();
    match must_go.run_until_cancelled(tls.accept(stream)).await {
        None => tracing::debug!(%from, "a stalled handshake gave way"),
        Some(Err(error)) => tracing::debug!(%from, %error, "not accepted"),
        Some(Ok(Accepted::Control { stream, peer })) => {
            connection::serve(shared, stream, peer, from, admitted).await;
        }
        Some(Ok(Accepted::Web { stream, alpn })) => {
            web.serve(stream, &alpn, from, admitted).await;
        }
    }
}

/// IPv4 as IPv4, whichever socket it came through.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
