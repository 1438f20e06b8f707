//! Rights that change while sessions live: which sessions must be judged anew, and what came out.
//!
//! The broker decides nothing here. It names the sessions ([`Broker::take_reviews`]) after a
//! change of the rules and when a right's end has come; the shell asks the one decision point and
//! tells ([`Broker::handle_reviewed`]). A session whose right has ended and that nobody judged in
//! time ends all the same.

use std::time::Duration;

use adit_protocol::ids::SessionId;

use super::{
    broker::Broker,
    ending::TIME_LIMIT,
    types::{Basis, Now, Place, Who},
};

/// How long after a right's end the session is left for the shell to judge.
pub(crate) const REVIEW_DEADLINE: Duration = Duration::from_secs(2);

/// A session that must be judged.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) session: SessionId,
    /// The rules of this generation, or later ones, must be asked.
    pub(crate) generation: u64,
    pub(crate) who: Who,
    pub(crate) place: Place,
    pub(crate) redirector: String,
    pub(crate) began_ms: u64,
    /// How long it has lasted, whatever the wall clock did meanwhile.
    pub(crate) age_ms: u64,
    pub(crate) basis: Basis,
}

impl Broker {
    /// The rules have changed: decisions of earlier generations are to be taken again.
    pub(crate) fn handle_rules_changed(&mut self, generation: u64) {
        self.generation = self.generation.max(generation);
        let live = self.sessions.values().filter(|session| !session.is_ended());
        self.reviews.extend(live.map(|session| session.id));
    }

    /// Some of the sessions that must be judged. They are named again if nothing is told.
    pub(crate) fn take_reviews(&mut self, limit: usize, now: Now) -> Vec<Live> {
        let sessions = &self.sessions;
        self.reviews.retain(|id| sessions.get(id).is_some_and(|session| !session.is_ended()));
        self.reviews.iter().take(limit).filter_map(|id| self.live(*id, now)).collect()
    }

    /// A session as it is judged.
    pub(crate) fn live(&self, id: SessionId, now: Now) -> Option<Live> {
        let session = self.sessions.get(&id).filter(|session| !session.is_ended())?;
        let age = now.mono.saturating_sub(session.started).as_millis();
        Some(Live {
            session: id,
            generation: self.generation,
            who: session.who.clone(),
            place: session.place.clone(),
            redirector: session.redirector.clone(),
            began_ms: session.started_ms,
            age_ms: u64::try_from(age).unwrap_or(u64::MAX),
            basis: session.basis.clone(),
        })
    }

    /// Judged by the rules of `generation`: until when it may go on, or why not.
    pub(crate) fn handle_reviewed(
        &mut self,
        id: SessionId,
        generation: u64,
        outcome: Result<u64, &'static str>,
        now: Now,
    ) {
        if generation >= self.generation {
            self.reviews.remove(&id);
        }
        match outcome {
            Err(reason) => {
                self.reviews.remove(&id);
                self.end_or_refuse(id, reason, now);
            }
            Ok(until_ms) => {
                let Some(session) = self.sessions.get_mut(&id) else { return };
                session.until = until(until_ms, now);
                session.overdue = false;
                if session.is_open() {
                    self.set_lease_timer(id);
                }
            }
        }
    }

    /// A session that was decided by rules of an earlier generation, or taken over at the start.
    pub(super) fn review_if_older(&mut self, id: SessionId, generation: u64) {
        if generation < self.generation {
            self.reviews.insert(id);
        }
    }

    /// The end of an open session's right has come: once to be judged, then for good.
    pub(super) fn right_ended(&mut self, id: SessionId, now: Now) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if std::mem::replace(&mut session.overdue, true) {
            return self.end_or_refuse(id, TIME_LIMIT, now);
        }
        session.until = Some(now.mono + REVIEW_DEADLINE);
        self.reviews.insert(id);
        self.set_lease_timer(id);
    }

    /// Are there sessions to be judged?
    pub(crate) fn has_reviews(&self) -> bool {
        !self.reviews.is_empty()
    }
}

/// On the broker's own clock; `None`: no limit.
pub(super) fn until(until_ms: u64, now: Now) -> Option<Duration> {
    (until_ms != u64::MAX)
        .then(|| now.mono + Duration::from_millis(until_ms.saturating_sub(now.unix_ms)))
}
