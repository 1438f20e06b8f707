//! What a console does at relays before it knows that its session is granted: it connects to those
//! that it remembers, and begins to join once the mediator sends tickets.
//!
//! Nothing of it counts: a join that is not confirmed changes nothing at the relay, and only the
//! granted session confirms. What nobody takes is closed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use adit_net::proxy::parse_host_port;
use adit_protocol::{limits::RELAY_UNJOINED, wire};
use tokio::{sync::oneshot, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::{
    join::Relay,
    memory::Way,
    reach::{Reach, Reached, RelayStream},
    relays::RelayKey,
};

/// Relays that are connected to before there is a ticket.
const MAX_WARM: usize = 3;
/// Joins begun before the session is granted: as many as the mediator offers relays.
const MAX_EARLY: usize = 4;
/// A relay closes what has not joined; what is older than this is not begun to be used.
const LIFE: Duration = RELAY_UNJOINED.saturating_sub(Duration::from_millis(1500));

type Where = (String, u16);

/// A connection that may be there already, and since when.
type Made = oneshot::Receiver<(RelayStream, Instant)>;

/// Connections to relays, made before there was a ticket for them.
pub(crate) struct Warm(Mutex<Vec<(Where, Way, Made)>>);

impl Warm {
    fn start(reach: &Reach, tasks: &TaskTracker, cancel: &CancellationToken) -> Self {
        let way = reach.memory.way().unwrap_or(Way::Raw);
        let mut all = Vec::new();
        for address in reach.memory.remembered(MAX_WARM) {
            let Ok(address) = parse_host_port(&address, 443) else { continue };
            let (mut made, receiver) = oneshot::channel();
            let (reach, to, cancel) = (reach.clone(), address.clone(), cancel.clone());
            tasks.spawn(async move {
                let stream = tokio::select! {
                    connected = reach.connect(&to, way) => connected.ok(),
                    () = made.closed() => None,
                    () = cancel.cancelled() => None,
                };
                if let Some(stream) = stream {
                    // Nobody may want it any more.
                    let _ = made.send((stream, Instant::now()));
                }
            });
            all.push((address, way, receiver));
        }
        Self(Mutex::new(all))
    }

    /// A connection to this address, if one is under way and comes about.
    pub(crate) async fn take(&self, address: &Where, way: Way) -> Option<RelayStream> {
        let receiver = {
            let mut all = lock(&self.0);
            let at = all.iter().position(|(a, w, _)| a == address && *w == way)?;
            all.swap_remove(at).2
        };
        let (stream, made) = receiver.await.ok()?;
        (made.elapsed() < LIFE).then_some(stream)
    }
}

/// Joins that were begun for a session that is not granted yet.
pub(crate) struct Early {
    reach: Reach,
    warm: Arc<Warm>,
    joins: Mutex<BTreeMap<RelayKey, Begun>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

/// A join that may be accepted already. Dropping it gives it up.
pub(crate) type Begun = oneshot::Receiver<Reached>;

impl Early {
    /// Connects to the relays that are remembered.
    pub(crate) fn start(reach: Reach, tasks: TaskTracker, cancel: CancellationToken) -> Arc<Self> {
        let warm = Arc::new(Warm::start(&reach, &tasks, &cancel));
        Arc::new(Self { reach, warm, joins: Mutex::default(), tasks, cancel })
    }

    /// The mediator sent tickets: it has recorded the grant, and the agent is being asked.
    pub(crate) fn handle_tickets(&self, grants: &[wire::RelayGrant]) {
        let mut joins = lock(&self.joins);
        for relay in Relay::list(grants).into_iter().take(MAX_EARLY) {
            if joins.len() >= MAX_EARLY || joins.contains_key(&relay.key) {
                continue;
            }
            let (mut begun, receiver) = oneshot::channel();
            joins.insert(relay.key, receiver);
            let (reach, warm, cancel) =
                (self.reach.clone(), self.warm.clone(), self.cancel.clone());
            self.tasks.spawn(async move {
                let reached = tokio::select! {
                    reached = reach.join(&relay, 0, Some(&warm)) => reached,
                    () = begun.closed() => return,
                    () = cancel.cancelled() => return,
                };
                match reached {
                    // Nobody may want it any more.
                    Ok(reached) => drop(begun.send(reached)),
                    Err(error) => debug!(relay = relay.name, %error, "not joined early"),
                }
            });
        }
    }

    /// The join at this relay, if it was begun.
    pub(crate) fn take(&self, key: &RelayKey) -> Option<Begun> {
        lock(&self.joins).remove(key)
    }
}

/// The accepted join, unless it failed or the relay will have given it up.
pub(crate) async fn accepted(begun: Option<Begun>) -> Option<Reached> {
    let reached = begun?.await.ok()?;
    (reached.at.elapsed() < LIFE).then_some(reached)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
