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
    caller::{self, Transport},
};
use crate::session::SessionHandle;

/// Flows of one forward.
const MAX_FLOWS: usize = 256;
/// Datagrams of one source waiting, as while its flow is being opened.
const QUEUE: usize = 64;
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
                    let users = door.users;
                    tasks.spawn(async move {
                        if !caller::is_served(users, Transport::Udp, (source, local)).await {
                            return source;
                        }
                        if let Err(code) = carry(&socket, source, queue, target, &session).await {
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

/// Carries the datagrams of one source both ways until nothing flows for a while.
async fn carry(
    socket: &UdpSocket,
    source: SocketAddr,
    mut queue: mpsc::Receiver<Bytes>,
    target: Target,
    session: &SessionHandle,
) -> Result<(), ChannelCode> {
    let mut flow = session.open_udp(target).await?;
    let idle = sleep_until(Instant::now() + UDP_IDLE);
    tokio::pin!(idle);
    loop {
        tokio::select! {
            datagram = queue.recv() => match datagram {
                Some(datagram) => flow.send(datagram),
                None => return Ok(()),
            },
            datagram = flow.recv() => match datagram {
                Some(datagram) => {
                    if let Err(error) = socket.send_to(&datagram, source).await {
                        tracing::debug!(%source, %error, "cannot send a local datagram");
                    }
                }
                None => return Ok(()),
            },
            () = &mut idle => return Ok(()),
        }
        idle.as_mut().reset(Instant::now() + UDP_IDLE);
    }
}
