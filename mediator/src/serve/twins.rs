//! Two programs with one identity: an agent's data directory that was copied, with a disk image say.
//!
//! The newest connection of an agent wins. Usually the older one is dead: the agent has lost it and
//! dialled anew. So the older one is asked before it is closed: whoever answers lives, and is told
//! why it goes. Must never decide by addresses or by how often somebody connects: agents that roam
//! do that, too.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use adit_control::{Peer, RequestError, failure as fail};
use adit_ledger::{Event, Level};
use adit_protocol::{code::failure, wire::frame::Body};
use adit_runtime::time::unix_ms;

use super::{run::Shared, seldom::Seldom};
use crate::{
    http::{Begun, Full, UnderWay},
    store::{StoreError, computers::ComputerRow},
};

/// Time for an older connection to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Older connections that are asked at once, of one computer and of one partner; others are closed
/// without a word. Nobody's agents that come and go keep others' twins from being noticed.
const MAX_ASKED: usize = 64;
const MAX_ASKED_EACH: [usize; 2] = [1, 16];
/// Of all, only for partners of which none is asked.
const ASKED_RESERVED: usize = 16;

/// What is known of them.
pub(crate) struct Twins {
    /// Computer and partner.
    asked: Arc<UnderWay<String, 2>>,
    recorded: Seldom,
}

impl Default for Twins {
    fn default() -> Self {
        let asked = UnderWay::reserving(ASKED_RESERVED, MAX_ASKED, MAX_ASKED_EACH);
        Self { asked: Arc::new(asked), recorded: Seldom::default() }
    }
}

impl Twins {
    fn begin(&self, computer: &ComputerRow) -> Result<Begun<String, 2>, Full> {
        self.asked.begin([computer.id.to_string(), computer.partner_id.clone()])
    }
}

/// Closes the older connection of an agent, after it was told why. If it lives, that is recorded:
/// once a minute for each computer, with the number of others.
pub(super) async fn replace(
    shared: &Shared,
    (computer, source): (&ComputerRow, SocketAddr),
    (older, from): (Peer, IpAddr),
) {
    let alive = match shared.twins.begin(computer) {
        Ok(_turn) => lives(&older).await,
        Err(_) => false,
    };
    older.close();
    if !alive {
        return;
    }
    let (group, key) = (computer.partner_id.as_bytes(), computer.id.to_bytes());
    let Some(others) = shared.twins.recorded.note_of(group, &key, unix_ms()) else { return };
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
    if let Err(error) = record(shared, computer.partner_id.clone(), event).await {
        shared.twins.recorded.record_again(group);
        tracing::error!(%error, "an identity that is used twice was not recorded");
    }
}

async fn record(shared: &Shared, partner: String, event: Event) -> Result<(), StoreError> {
    let _room = shared.writer.room(1).await?;
    let append = shared
        .writer
        .write(move |tx| Box::pin(async move { tx.append(&partner, event).await.map(|_| ()) }));
    append.await
}

/// Tells it; whoever answers, be it that it does not understand, lives.
async fn lives(older: &Peer) -> bool {
    let text = "another program that runs uses this computer's identity";
    let told = Body::Failure(fail(failure::IDENTITY_IN_USE, text));
    let answer = older.request(told, ANSWER_TIMEOUT).await;
    matches!(answer, Ok(_) | Err(RequestError::Failed(_) | RequestError::UnknownAnswer))
}
