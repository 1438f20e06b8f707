//! Local datagrams: one flow for each address that sends, so that answers find their way back.
//!
//! Like the network, it drops what it cannot hold: nothing here waits for a slow reader.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use adit_protocol::{
    code::ChannelCode,
    limits::{MAX_DATAGRAM, UDP_IDLE},
    target::Target,
};
use bytes::Bytes;
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Door,
    caller::{Callers, Transport},
};
use crate::session::SessionHandle;

/// Flows of one forward.
const MAX_FLOWS: usize = 256;
/// Datagrams of one source waiting, as while its flow is being opened.
const QUEUE: usize = 64;
/// How long a look at whose a flow is counts: ports are used again.
const LOOK: Duration = Duration::from_secs(1);
/// Rest after a receive that failed.
const RECEIVE_PAUSE: Duration = Duration::from_millis(20);

/// Serves a socket until dropped.
pub(super) async fn serve(
    socket: UdpSocket,
    target: &Target,
    (door, local): (Door, SocketAddr),
    session: &SessionHandle,
) {
    let socket = Arc::new(socket);
    let mut flows: BTreeMap<SocketAddr, mpsc::Sender<Bytes>> = BTreeMap::new();
    // Dropped with this function: flows do not outlive the socket.
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok((len, source)) => {
                    let datagram = Bytes::copy_from_slice(buffer.get(..len).unwrap_or_default());
                    let known = flows.get(&source).filter(|flow| !flow.is_closed());
                    if let Some(flow) = known {
                        // A full queue drops, as a full network queue would.
                        let _ = flow.try_send(datagram);
                        continue;
                    }
                    if flows.len() >= MAX_FLOWS {
                        tracing::debug!(%source, "too many udp flows: datagram dropped");
                        continue;
                    }
                    let (sender, queue) = mpsc::channel(QUEUE);
                    let _ = sender.try_send(datagram);
                    flows.insert(source, sender);
                    let (socket, session) = (Arc::clone(&socket), session.clone());
                    let target = target.clone();
                    let callers = Arc::clone(&door.callers);
                    tasks.spawn(async move {
                        let flow = Flow { socket: &socket, callers: &callers, source, local };
                        if let Err(code) = flow.carry(queue, target, &session).await {
                            tracing::debug!(%source, reason = code.name(), "udp flow refused");
                        }
                        source
                    });
                }
                Err(error) => {
                    // Some systems report here that an answer of ours found nobody.
                    tracing::debug!(%error, "cannot receive a local datagram");
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                }
            },
            Some(ended) = tasks.join_next() => match ended {
                Ok(source) => {
                    // The source may have come again in the meantime.
                    if flows.get(&source).is_some_and(mpsc::Sender::is_closed) {
                        flows.remove(&source);
                    }
                }
                Err(_) => flows.retain(|_, flow| !flow.is_closed()),
            },
        }
    }
}

/// The datagrams of one source.
struct Flow<'a> {
    socket: &'a UdpSocket,
    callers: &'a Callers,
    source: SocketAddr,
    local: SocketAddr,
}

impl Flow<'_> {
    /// Carries them both ways until nothing flows for a while, or until the source is somebody
    /// else's.
    async fn carry(
        &self,
        mut queue: mpsc::Receiver<Bytes>,
        target: Target,
        session: &SessionHandle,
    ) -> Result<(), ChannelCode> {
        let mut looked = Instant::now();
        if !self.is_served().await {
            return Ok(());
        }
        let mut flow = session.open_udp(target).await?;
        let idle = sleep_until(Instant::now() + UDP_IDLE);
        tokio::pin!(idle);
        loop {
            let (datagram, up) = tokio::select! {
                datagram = queue.recv() => (datagram, true),
                datagram = flow.recv() => (datagram, false),
                () = &mut idle => return Ok(()),
            };
            let Some(datagram) = datagram else { return Ok(()) };
            let now = Instant::now();
            if now.duration_since(looked) >= LOOK {
                if !self.is_served().await {
                    return Ok(());
                }
                looked = now;
            }
            if up {
                flow.send(datagram);
            } else if let Err(error) = self.socket.send_to(&datagram, self.source).await {
                tracing::debug!(source = %self.source, %error, "cannot send a local datagram");
            }
            idle.as_mut().reset(now + UDP_IDLE);
        }
    }

    async fn is_served(&self) -> bool {
        self.callers.serve(Transport::Udp, (self.source, self.local)).await
    }
}
