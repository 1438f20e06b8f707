//! Two programs with one identity: an agent's data directory that was copied, with a disk image say.
//!
//! The newest connection of an agent wins. Usually the older one is dead: the agent has lost it and
//! dialled anew. So the older one is asked before it is closed: whoever answers lives, and is told
//! why it goes. Must never decide by addresses or by how often somebody connects: agents that roam
//! do that, too.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use adit_control::{Peer, RequestError, failure as fail};
use adit_ledger::{Event, Level};
use adit_protocol::{code::failure, wire::frame::Body};
use adit_runtime::time::unix_ms;
use tokio::sync::Semaphore;

use super::{run::Shared, seldom::Seldom};
use crate::store::computers::ComputerRow;

/// Time for an older connection to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Older connections that are asked at once; others are closed without a word.
const MAX_ASKED: usize = 64;

/// What is known of them.
#[derive(Debug)]
pub(crate) struct Twins {
    asked: Semaphore,
    recorded: Seldom,
}

impl Default for Twins {
    fn default() -> Self {
        Self { asked: Semaphore::new(MAX_ASKED), recorded: Seldom::default() }
    }
}

/// Closes the older connection of an agent, after it was told why. If it lives, that is recorded:
/// once a minute for each computer, with the number of others.
pub(super) async fn replace(
    shared: &Shared,
    (computer, source): (&ComputerRow, SocketAddr),
    (older, from): (Peer, IpAddr),
) {
    let alive = match shared.twins.asked.try_acquire() {
        Ok(_turn) => lives(&older).await,
        Err(_) => false,
    };
    older.close();
    if !alive {
        return;
    }
    let Some(others) = shared.twins.recorded.note(&computer.id.to_bytes(), unix_ms()) else {
        return;
    };
    tracing::warn!(computer = %computer.name, client = %computer.client_path(),
        now = %source.ip(), before = %from, others,
        "two running agents use one identity: was a data directory copied? \
         Enrol one of the two computers anew, with a data directory of its own");
    let mut event = Event::new("agent.identity_in_use", Level::Significant)
        .partner(&computer.partner)
        .client(computer.client_path())
        .computer_id(computer.id.to_string())
        .computer(&computer.name)
        .device(computer.identity.fingerprint().to_string())
        .source(source.to_string())
        .outcome("noticed")
        .extra_personal("other_source", from.to_string());
    if others > 0 {
        event = event.extra("others", others);
    }
    let Ok(_room) = shared.writer.room(1).await else { return };
    let partner = computer.partner_id.clone();
    let written = shared
        .writer
        .write(move |tx| Box::pin(async move { tx.append(&partner, event).await.map(|_| ()) }));
    if let Err(error) = written.await {
        tracing::error!(%error, "an identity that is used twice was not recorded");
    }
}

/// Tells it; whoever answers, be it that it does not understand, lives.
async fn lives(older: &Peer) -> bool {
    let text = "another program that runs uses this computer's identity";
    let told = Body::Failure(fail(failure::IDENTITY_IN_USE, text));
    let answer = older.request(told, ANSWER_TIMEOUT).await;
    matches!(answer, Ok(_) | Err(RequestError::Failed(_) | RequestError::UnknownAnswer))
}
