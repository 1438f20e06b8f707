//! How many sessions there are of whom: those that are live, which are bounded, and those that are
//! over and only remembered, which are bounded by themselves.
//!
//! Must never let what is over keep anybody from opening a session: an end that acknowledges
//! nothing decides how long the ended are remembered.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use adit_protocol::ids::SessionId;

use super::{
    broker::{Broker, MAX_SESSIONS, MAX_SESSIONS_PER_PARTNER, MAX_SESSIONS_PER_USER},
    session::Session,
};

/// Ended sessions that are remembered of one partner's users, and of all.
const MAX_ENDED_PER_PARTNER: usize = MAX_SESSIONS_PER_PARTNER;
const MAX_ENDED: usize = MAX_SESSIONS;

/// INVARIANT: each session is counted once: as live, or among the ended of its partner.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) live: usize,
    of_account: BTreeMap<String, usize>,
    of_partner: BTreeMap<String, usize>,
    pub(super) ended: usize,
    /// Of each partner, by until when they are kept: those that ended first come first.
    ended_of: BTreeMap<String, BTreeSet<(Duration, SessionId)>>,
}

impl Tally {
    /// Whether there is no room for one more of this user of this partner.
    pub(super) fn is_full(&self, account: &str, partner: &str) -> bool {
        let of_account = self.of_account.get(account).copied().unwrap_or(0);
        let of_partner = self.of_partner.get(partner).copied().unwrap_or(0);
        of_account >= MAX_SESSIONS_PER_USER
            || of_partner >= MAX_SESSIONS_PER_PARTNER
            || self.live >= MAX_SESSIONS
    }

    pub(super) fn begin(&mut self, session: &Session) {
        self.live += 1;
        *self.of_account.entry(session.who.account_id.clone()).or_default() += 1;
        *self.of_partner.entry(session.who.partner_id.clone()).or_default() += 1;
    }

    fn cease(&mut self, session: &Session) {
        self.live = self.live.saturating_sub(1);
        less(&mut self.of_account, &session.who.account_id);
        less(&mut self.of_partner, &session.who.partner_id);
    }

    /// A live one is over.
    fn end(&mut self, session: &Session) {
        self.cease(session);
        let ended = self.ended_of.entry(session.who.partner_id.clone()).or_default();
        self.ended += usize::from(ended.insert((session.revocation.keep, session.id)));
    }

    /// One is no longer remembered.
    pub(super) fn forget(&mut self, session: &Session) {
        if !session.is_ended() {
            return self.cease(session);
        }
        let partner = &session.who.partner_id;
        let Some(ended) = self.ended_of.get_mut(partner) else { return };
        self.ended -= usize::from(ended.remove(&(session.revocation.keep, session.id)));
        if ended.is_empty() {
            self.ended_of.remove(partner);
        }
    }

    /// The ended of a partner that has too many.
    fn too_many(&self, partner: &str) -> Option<&BTreeSet<(Duration, SessionId)>> {
        let of_it = self.ended_of.get(partner);
        match of_it.filter(|ended| ended.len() > MAX_ENDED_PER_PARTNER) {
            None if self.ended > MAX_ENDED => self.ended_of.values().max_by_key(|of| of.len()),
            found => found,
        }
    }
}

fn less(counts: &mut BTreeMap<String, usize>, key: &str) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Broker {
    /// Counts a session as over. Of a partner with too many of those, the one that ended first and
    /// whose end is recorded is forgotten: its right is gone, it is not renewed, and its ends
    /// close by themselves within the lease and the grace.
    pub(super) fn count_ended(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        self.tally.end(session);
        let recorded = |id: &&SessionId| {
            self.sessions.get(id).is_none_or(|session| !session.revocation.unrecorded)
        };
        let too_many = self.tally.too_many(&session.who.partner_id);
        let oldest = too_many.and_then(|ended| {
            ended.iter().map(|(_, id)| id).filter(|other| **other != id).find(recorded).copied()
        });
        if let Some(oldest) = oldest {
            self.forget(oldest);
        }
    }
}
