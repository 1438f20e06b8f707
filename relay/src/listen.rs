//! Listening and accepting. Must never stop accepting because of what one client does.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use adit_protocol::limits::RELAY_UNJOINED;
use adit_runtime::{cli::CliError, supervise::Tasks};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use crate::{hub::Hub, join::Door, splice::prepare};

/// Connections that the kernel completes ahead of us.
const BACKLOG: i32 = 4096;
/// Rest after an accept that failed, e.g. because descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Binds all addresses. Of addresses that nobody chose, those of a family that the machine
/// lacks are left out.
pub fn bind(addresses: &[SocketAddr], chosen: bool) -> Result<Vec<TcpListener>, CliError> {
    let mut listeners = Vec::new();
    for address in addresses {
        match bind_one(*address) {
            Ok(listener) => listeners.push(listener),
            Err(error) if !chosen && is_missing_family(&error) => {
                debug!(%address, %error, "not listening");
            }
            Err(error) => return Err(CliError::bind(address, &error)),
        }
    }
    if listeners.is_empty() {
        return Err(CliError::failed("listen_failed", "there is no address to listen on")
            .hint("give one with --listen"));
    }
    Ok(listeners)
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Both families can be bound to the same port, whatever the system's default is.
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Elsewhere the option means something else.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn is_missing_family(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        // EAFNOSUPPORT has no kind of its own.
        || cfg!(target_os = "linux") && error.raw_os_error() == Some(97)
}

/// Accepts until the tasks are stopped.
pub async fn accept(listener: TcpListener, door: Arc<Door>, hub: Arc<Hub>, tasks: Tasks) {
    let stop = tasks.token().clone();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, source)) => {
                let (door, hub, stop) = (Arc::clone(&door), Arc::clone(&hub), stop.clone());
                // Counted before its task runs, so that a flood cannot outrun its quota.
                let unjoined = hub.handle_connected(source.ip());
                tasks.spawn("join", async move {
                    let go = unjoined.stop.clone();
                    let admitted = tokio::select! {
                        biased;
                        () = go.cancelled() => return,
                        () = stop.cancelled() => return,
                        // The machine's limit comes first; this one does not depend on it.
                        admitted = tokio::time::timeout(
                            RELAY_UNJOINED * 2,
                            admit(socket, &door, &hub, &unjoined),
                        ) => admitted,
                    };
                    match admitted {
                        Ok(Ok(leg)) => unjoined.joined(leg),
                        Ok(Err(error)) => {
                            debug!(%source, %error, "not joined");
                            unjoined.failed(&error);
                        }
                        Err(_) => debug!(%source, "not joined in time"),
                    }
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn admit(
    socket: TcpStream,
    door: &Door,
    hub: &Arc<Hub>,
    unjoined: &crate::hub::Unjoined,
) -> Result<crate::splice::Leg, crate::join::JoinError> {
    prepare(&socket)?;
    door.admit(socket, unjoined.conn, hub).await
}
