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
    http::{Full, UnderWay},
    store::{StoreError, computers::ComputerRow},
};

/// Time for an older connection to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Older connections that are asked at once, of one computer and of one partner. Nobody's agents
/// that come and go keep others' twins from being noticed. An agent that has lost its connection
/// does not lose so many more within [`ANSWER_TIMEOUT`]: a computer's fifth, which is not asked, is
/// recorded. Otherwise, whoever does not answer on purpose would keep all from being asked.
const MAX_ASKED: usize = 64;
const MAX_ASKED_EACH: [usize; 2] = [4, 16];
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
    /// Whether an older connection is a twin's, as far as it can be known; for the record.
    async fn judge(
        &self,
        (computer, partner): (String, String),
        lives: impl Future<Output = bool>,
    ) -> Option<Outcome> {
        match self.asked.begin([computer, partner]) {
            Ok(_turn) => lives.await.then_some(Outcome::Noticed),
            Err(Full::Of(0)) => Some(Outcome::NotAsked),
            // Others' connections, which were perhaps all lost at once.
            Err(_) => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// It answered.
    Noticed,
    /// It could not be asked: too many of the computer's are.
    NotAsked,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Noticed => "noticed",
            Self::NotAsked => "not_asked",
        }
    }
}

/// Closes the older connection of an agent, after it was told why. If it lives, or one of too many
/// may, that is recorded: each once a minute for each computer, with the number of others.
pub(super) async fn replace(
    shared: &Shared,
    (computer, source): (&ComputerRow, SocketAddr),
    (older, from): (Peer, IpAddr),
) {
    let keys = (computer.id.to_string(), computer.partner_id.clone());
    let outcome = shared.twins.judge(keys, lives(&older)).await;
    older.close();
    let Some(outcome) = outcome else { return };
    let group = computer.partner_id.as_bytes();
    let key = [&computer.id.to_bytes()[..], outcome.name().as_bytes()].concat();
    let Some(others) = shared.twins.recorded.note_of(group, &key, unix_ms()) else { return };
    let what = match outcome {
        Outcome::Noticed => "two running agents use one identity",
        Outcome::NotAsked => {
            "an agent's connections replace each other so fast as if two used one identity"
        }
    };
    tracing::warn!(computer = %computer.name, client = %computer.client_path(),
        now = %source.ip(), before = %from, others,
        "{what}: was a data directory copied? \
         Enrol one of the two computers anew, with a data directory of its own");
    let mut event = Event::new("agent.identity_in_use", Level::Significant)
        .partner(&computer.partner)
        .client(computer.client_path())
        .computer_id(computer.id.to_string())
        .computer(&computer.name)
        .device(computer.identity.fingerprint().to_string())
        .source(source.to_string())
        .outcome(outcome.name())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever has a copied key and does not answer could go on for ever otherwise: it takes turns
    /// while the other's connections are closed.
    #[tokio::test(start_paused = true)]
    async fn who_is_not_asked_because_others_of_the_computer_do_not_answer_is_recorded() {
        let twins = Twins::default();
        let of = |computer: &str| (computer.to_owned(), "partner".to_owned());
        let silent = async || {
            tokio::time::sleep(ANSWER_TIMEOUT).await;
            false
        };
        let dead = async |computer: &str| twins.judge(of(computer), silent()).await;
        let early = async || {
            tokio::time::sleep(ANSWER_TIMEOUT / 2).await;
            // No own turn is left, all others' are not touched.
            let own = twins.judge(of("pc"), async { true }).await;
            assert_eq!(own, Some(Outcome::NotAsked));
            let other = twins.judge(of("other"), async { true }).await;
            assert_eq!(other, Some(Outcome::Noticed));
        };
        // As many as an agent may lose in a row are nothing to tell of.
        let (a, b, c, d, ()) =
            tokio::join!(dead("pc"), dead("pc"), dead("pc"), dead("pc"), early());
        assert_eq!([a, b, c, d], [None; 4]);
        let own = twins.judge(of("pc"), async { true }).await;
        assert_eq!(own, Some(Outcome::Noticed));
        // When a partner's way here fails, all of its are lost at once: that is no twin's doing.
        let names: Vec<_> = (0..=MAX_ASKED_EACH[1]).map(|n| n.to_string()).collect();
        let all = futures_util::future::join_all(names.iter().map(|name| dead(name))).await;
        assert!(all.iter().all(Option::is_none));
    }
}
