//! Check-ins: on connecting, on change, and at the interval that the mediator asks for.

use std::{sync::Arc, time::Duration};

use adit_control::Peer;
use adit_net::interfaces;
use adit_protocol::{
    ids::SessionId,
    wire::{self, frame::Body},
};
use adit_runtime::time::unix_ms;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info};

use super::Agent;
use crate::{host, sessions::Sessions};

/// Bounds of the interval that a mediator may ask for.
const INTERVAL_BOUNDS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3600));
/// Interval if it asks for none.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);
/// Changes within this time are told together.
const SETTLE: Duration = Duration::from_millis(500);
/// For the mediator to answer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Addresses told.
const MAX_ADDRESSES: usize = 32;

/// Checks in for as long as it is polled.
pub(crate) async fn run(agent: Arc<Agent>, sessions: Arc<Sessions>, peer: Peer, interval_ms: u32) {
    let interval = match interval_ms {
        0 => DEFAULT_INTERVAL,
        ms => Duration::from_millis(ms.into()).clamp(INTERVAL_BOUNDS.0, INTERVAL_BOUNDS.1),
    };
    loop {
        once(&agent, &sessions, &peer).await;
        let due = Instant::now() + interval;
        let settled = Instant::now() + SETTLE;
        tokio::select! {
            () = sleep_until(due) => {}
            () = agent.changed.notified() => sleep_until(settled).await,
        }
    }
}

async fn once(agent: &Agent, sessions: &Sessions, peer: &Peer) {
    let (nat_mapping, nat_filtering) = sessions.nat();
    let found = timeout(TIMEOUT, interfaces::local_addresses()).await.unwrap_or_default();
    let useful = found.iter().filter(|a| !a.loopback && !a.junk).take(MAX_ADDRESSES);
    let check_in = wire::CheckIn {
        addresses: useful.map(|a| a.ip.to_string()).collect(),
        nat_mapping: nat_mapping.to_owned(),
        nat_filtering: nat_filtering.to_owned(),
        sessions: sessions.live_sessions(),
        now_ms: unix_ms(),
        ..host::check_in()
    };
    match peer.request(Body::CheckIn(check_in), TIMEOUT).await {
        Ok(Body::CheckInReply(reply)) => {
            for id in reply.end_sessions.iter().filter_map(|id| SessionId::from_slice(id).ok()) {
                if sessions.end(id, "revoked") {
                    info!(session_id = %id, "the mediator says that the session is over");
                }
            }
        }
        Ok(_) => debug!("check-in was answered with something else"),
        Err(error) => debug!(%error, computer_id = %agent.enrollment.computer, "check-in failed"),
    }
}
