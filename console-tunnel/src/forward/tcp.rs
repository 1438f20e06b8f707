//! Accepting local TCP connections and handing each to the session as a channel.
//!
//! A connection that cannot become a channel ends with a reset: a clean end would look like an
//! answer of the target.

use std::{sync::Arc, time::Duration};

use adit_protocol::target::Target;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::{
    Door,
    caller::{self, Transport},
    socks::{self, Reply},
    web,
};
use crate::session::SessionHandle;

/// SOCKS handshakes, or first requests, under way at once.
const MAX_HANDSHAKES: usize = 256;
/// Rest after an accept that failed, as when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time for the agent to audit, resolve and connect a SOCKS target.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// Each connection becomes a channel to the same target. Its bytes flow before the target has
/// answered.
pub(super) async fn serve_target(
    listener: TcpListener,
    target: &Target,
    door: Door,
    session: &SessionHandle,
) {
    let free = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    // Dropped with this function: what has not begun does not outlive the listener.
    let mut looks = JoinSet::new();
    loop {
        while looks.try_join_next().is_some() {}
        let mut stream = accept(&listener, &door).await;
        // The channel is begun whatever the first request says: an honest one does not wait.
        match session.open_tcp(target.clone()).await {
            Ok(channel) => match door.web.clone() {
                None => channel.attach(stream),
                Some(names) => {
                    let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
                    looks.spawn(async move {
                        let _permit = permit;
                        if web::admit(&mut stream, &names).await {
                            channel.attach(stream);
                        }
                    });
                }
            },
            Err(code) => {
                tracing::debug!(%target, reason = code.name(), "channel refused");
                reset(stream);
            }
        }
    }
}

/// Each connection says itself where it wants to go.
pub(super) async fn serve_socks(listener: TcpListener, door: Door, session: &SessionHandle) {
    let free = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    // Dropped with this function: handshakes do not outlive the listener.
    let mut handshakes = JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        let stream = accept(&listener, &door).await;
        let session = session.clone();
        handshakes.spawn(async move {
            let _permit = permit;
            if let Err(error) = socks(stream, &session).await {
                tracing::debug!(%error, "socks client was not connected");
            }
        });
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

/// The next connection of somebody who is served here.
async fn accept(listener: &TcpListener, door: &Door) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, source)) => {
                let local = stream.local_addr().unwrap_or(source);
                if !caller::is_served(door.users, Transport::Tcp, (source, local)).await {
                    reset(stream);
                    continue;
                }
                // A keystroke must not wait for the acknowledgement of the one before.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                return stream;
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
