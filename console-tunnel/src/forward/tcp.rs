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

use super::socks::{self, Reply};
use crate::session::SessionHandle;

/// SOCKS handshakes under way at once.
const MAX_HANDSHAKES: usize = 256;
/// Rest after an accept that failed, as when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time for the agent to audit, resolve and connect a SOCKS target.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// Each connection becomes a channel to the same target. Its bytes flow before the target has
/// answered.
pub(super) async fn serve_target(listener: TcpListener, target: &Target, session: &SessionHandle) {
    loop {
        let stream = accept(&listener).await;
        match session.open_tcp(target.clone()).await {
            Ok(channel) => channel.attach(stream),
            Err(code) => {
                tracing::debug!(%target, reason = code.name(), "channel refused");
                reset(stream);
            }
        }
    }
}

/// Each connection says itself where it wants to go.
pub(super) async fn serve_socks(listener: TcpListener, session: &SessionHandle) {
    let free = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    // Dropped with this function: handshakes do not outlive the listener.
    let mut handshakes = JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        let stream = accept(&listener).await;
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

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
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
