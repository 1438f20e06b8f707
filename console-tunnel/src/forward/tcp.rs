//! Accepting local TCP connections and handing each to the session as a channel.
//!
//! A connection that cannot become a channel ends with a reset: a clean end would look like an
//! answer of the target.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use adit_protocol::target::Target;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::{
    Door,
    caller::Transport,
    socks::{self, Reply},
    web,
};
use crate::session::SessionHandle;

/// Connections at once that are not served yet: their owner is looked for, or SOCKS negotiated.
const MAX_HANDSHAKES: usize = 256;
/// Rest after an accept that failed, as when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time for the agent to audit, resolve and connect a SOCKS target.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves each connection of somebody who is served here, beside the others: to one target, or
/// where it says itself.
pub(super) async fn serve(
    listener: TcpListener,
    target: Option<Target>,
    door: Door,
    session: &SessionHandle,
) {
    let free = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    // Dropped with this function: what has not begun does not outlive the listener.
    let mut handshakes = JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        let (stream, source) = accept(&listener).await;
        let (door, target, session) = (door.clone(), target.clone(), session.clone());
        handshakes.spawn(async move {
            let _permit = permit;
            let local = stream.local_addr().unwrap_or(source);
            if !door.callers.serve(Transport::Tcp, (source, local)).await {
                return reset(stream);
            }
            match target {
                Some(target) => begin(stream, target, door.web, &session).await,
                None => {
                    if let Err(error) = socks(stream, &session).await {
                        tracing::debug!(%error, "socks client was not connected");
                    }
                }
            }
        });
    }
}

/// The bytes flow before the target has answered.
async fn begin(
    stream: TcpStream,
    target: Target,
    web: Option<Vec<String>>,
    session: &SessionHandle,
) {
    match (session.open_tcp(target.clone()).await, web) {
        (Ok(channel), None) => channel.attach(stream),
        (Ok(channel), Some(names)) => {
            channel.attach_watched(stream, Box::new(web::Guard::new(names)));
        }
        (Err(code), _) => {
            tracing::debug!(%target, reason = code.name(), "channel refused");
            reset(stream);
        }
    }
}

async fn socks(mut stream: TcpStream, session: &SessionHandle) -> Result<(), socks::SocksError> {
    let target = socks::negotiate(&mut stream).await?;
    let connecting = async {
        let mut channel = session.open_tcp(target.clone()).await?;
        channel.connected().await?;
        Ok(channel)
    };
    let reply = match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(channel)) => {
            socks::answer(&mut stream, Reply::Succeeded).await?;
            channel.attach(stream);
            return Ok(());
        }
        Ok(Err(code)) => Reply::from_code(code),
        Err(_) => Reply::HostUnreachable,
    };
    socks::answer(&mut stream, reply).await?;
    Err(socks::SocksError::Refused(reply))
}

/// The next connection, and where it comes from.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, source)) => {
                // A keystroke must not wait for the acknowledgement of the one before.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                return (stream, source);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a local connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn reset(stream: TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "cannot reset a local connection");
    }
}
