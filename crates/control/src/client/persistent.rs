//! One connection that is kept up: dialled again with growing, jittered waits.
//!
//! A mediator that restarts must not be stampeded, a device that roams must not wait, and one
//! that is not enrolled any more must not hammer.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use adit_protocol::wire::{Ping, frame::Body};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout},
};

use super::{ConnectConfig, ConnectError, Connected, Driver, connect};
use crate::{
    Backoff, CloseReason, Peer,
    backoff::{CAP, uniform},
};

/// Events that may wait to be handled.
const EVENTS: usize = 4;
/// Wait after an error that will not go away by itself; half of it is jitter.
const FATAL_RETRY: Duration = Duration::from_secs(120);
/// Time to answer after the network changed, or the connection is given up.
const POKE_TIMEOUT: Duration = Duration::from_millis(1_500);
/// A connection that lasted this long was a good one.
const STABLE: Duration = CAP;

/// Why the connection is down.
#[derive(Debug, thiserror::Error)]
pub enum DownReason {
    /// It could not be made.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It ended.
    #[error(transparent)]
    Closed(#[from] CloseReason),
}

impl DownReason {
    /// Will trying again soon not help?
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Connect(error) if error.is_fatal())
    }
}

/// What happened to the connection.
#[derive(Debug)]
pub enum Event {
    /// It is up.
    Up(Box<Connected>),
    /// It is down.
    Down {
        /// Why.
        error: DownReason,
        /// When it is tried again.
        retry_in: Duration,
    },
}

/// Handle of a connection that is kept up.
#[derive(Debug, Clone)]
pub struct Persistent(Arc<Notify>);

impl Persistent {
    /// Keeps a connection up for as long as the future is polled; dropping it ends the
    /// connection. `config` is asked before each attempt.
    pub fn start<F>(
        config: F,
    ) -> (Self, mpsc::Receiver<Event>, impl Future<Output = ()> + Send + use<F>)
    where
        F: FnMut() -> ConnectConfig + Send,
    {
        let poke = Arc::new(Notify::new());
        let (events, received) = mpsc::channel(EVENTS);
        (Self(poke.clone()), received, keep_up(config, poke, events))
    }

    /// The network changed: dial at once, or make sure that the connection still lives. Waits
    /// begin with the shortest again.
    pub fn poke(&self) {
        self.0.notify_one();
    }
}

/// Ends when nobody receives events any more.
async fn keep_up<F: FnMut() -> ConnectConfig + Send>(
    mut config: F,
    poke: Arc<Notify>,
    events: mpsc::Sender<Event>,
) {
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        let attempt = config();
        let connected = tokio::select! {
            connected = connect(&attempt) => connected,
            // On another network this attempt would hang until it is given up.
            () = poke.notified() => continue,
        };
        let error = match connected {
            Ok((connected, driver)) => {
                let (peer, local) = (connected.peer.clone(), connected.local);
                let up = events.send(Event::Up(Box::new(connected)));
                match while_up(up, driver, peer, local, &poke).await {
                    Some(reason) => DownReason::Closed(reason),
                    None => return,
                }
            }
            Err(error) => DownReason::Connect(error),
        };
        if matches!(error, DownReason::Closed(_)) && started.elapsed() >= STABLE {
            backoff.reset();
        }
        let random = rand::random::<u64>();
        let retry_in = if error.is_fatal() {
            FATAL_RETRY / 2 + uniform(FATAL_RETRY / 2, random)
        } else {
            backoff.next(random)
        };
        tracing::debug!(%error, ?retry_in, "control connection is down");
        let wait = async {
            if events.send(Event::Down { error, retry_in }).await.is_err() {
                return false;
            }
            tokio::select! {
                () = tokio::time::sleep(retry_in) => true,
                // Somebody knows better than what the waits so far say.
                () = poke.notified() => {
                    backoff.reset();
                    true
                }
                () = events.closed() => false,
            }
        };
        if !wait.await {
            return;
        }
    }
}

/// Drives the connection until it ends; `None` if nobody wants it any more.
async fn while_up(
    up: impl Future<Output = Result<(), mpsc::error::SendError<Event>>>,
    mut driver: Driver,
    peer: Peer,
    local: Option<SocketAddr>,
    poke: &Notify,
) -> Option<CloseReason> {
    tokio::select! {
        // The connection is driven while its news is delivered.
        reason = &mut driver => return Some(reason),
        sent = up => sent.ok()?,
    }
    loop {
        tokio::select! {
            reason = &mut driver => return Some(reason),
            () = poke.notified() => {}
        }
        if local.is_some_and(is_gone) {
            // Nothing will arrive there any more; the new network is there already.
            poke.notify_one();
            return Some(CloseReason::Lost("this end's address is gone".into()));
        }
        let alive = timeout(POKE_TIMEOUT, peer.request(Body::Ping(Ping {}), POKE_TIMEOUT));
        tokio::select! {
            reason = &mut driver => return Some(reason),
            answer = alive => if !matches!(answer, Ok(Ok(_))) {
                poke.notify_one();
                return Some(CloseReason::Silent(POKE_TIMEOUT));
            }
        }
    }
}

/// Whether an own address is no longer one. Binding sends nothing.
fn is_gone(local: SocketAddr) -> bool {
    std::net::UdpSocket::bind((local.ip(), 0))
        .is_err_and(|error| error.kind() == std::io::ErrorKind::AddrNotAvailable)
}
