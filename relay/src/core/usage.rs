//! Bytes of each session, kept until the mediator has acknowledged them.
//!
//! Figures are totals since the session first came here, also over several pairs; they are
//! forgotten a ticket's life after its last pair, when it cannot come back without the mediator.
//! Must never grow without bound while the mediator is away.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use adit_protocol::{ids::SessionId, limits::TICKET_LIFE};

/// Sessions remembered at most; beyond it those without pairs are given up, the oldest first.
pub const MAX_ACCOUNTS: usize = 65_536;
/// Sessions in one report: keeps it far below the control connection's frame limit.
pub const MAX_SESSIONS_PER_REPORT: usize = 2_000;
/// How long a session without pairs is remembered.
const REMEMBER: Duration = TICKET_LIFE;

/// What a report says of one session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Statement {
    /// The session.
    pub session: SessionId,
    /// Console to agent.
    pub bytes_up: u64,
    /// Agent to console.
    pub bytes_down: u64,
    /// No pair of it is left here.
    pub ended: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Account {
    /// Of pairs that are over.
    closed: (u64, u64),
    /// Of live pairs, as last seen.
    live: (u64, u64),
    pairs: usize,
    /// Since when there is no pair.
    idle_since: Option<Instant>,
    acknowledged: Option<Statement>,
}

impl Account {
    fn statement(&self, session: SessionId) -> Statement {
        Statement {
            session,
            bytes_up: self.closed.0.saturating_add(self.live.0),
            bytes_down: self.closed.1.saturating_add(self.live.1),
            ended: self.pairs == 0,
        }
    }
}

/// Accounts of sessions that are here or were not long ago.
#[derive(Debug, Default)]
pub struct Usage {
    accounts: BTreeMap<SessionId, Account>,
    /// Sessions in the order in which they lost their last pair; some have come back since.
    idle: VecDeque<(Instant, SessionId)>,
    given_up: u64,
}

impl Usage {
    /// A pair of the session began.
    pub fn handle_pair_begun(&mut self, session: SessionId, now: Instant) {
        self.forget(now);
        let account = self.accounts.entry(session).or_default();
        account.pairs += 1;
        account.idle_since = None;
    }

    /// Current bytes of all live pairs of a session together.
    pub fn handle_live(&mut self, session: SessionId, up: u64, down: u64) {
        if let Some(a) = self.accounts.get_mut(&session) {
            a.live = (up, down);
        }
    }

    /// A pair ended with these bytes; the sum of the live ones follows with `handle_live`.
    pub fn handle_pair_ended(&mut self, session: SessionId, up: u64, down: u64, now: Instant) {
        let Some(a) = self.accounts.get_mut(&session) else { return };
        a.pairs = a.pairs.saturating_sub(1);
        a.closed = (a.closed.0.saturating_add(up), a.closed.1.saturating_add(down));
        if a.pairs == 0 {
            a.live = (0, 0);
            a.idle_since = Some(now);
            self.idle.push_back((now, session));
        } else {
            // Until the next `handle_live` the pair must not be counted twice.
            a.live = (a.live.0.saturating_sub(up), a.live.1.saturating_sub(down));
        }
        self.forget(now);
    }

    /// What the mediator does not know yet.
    pub fn poll_report(&self) -> Vec<Statement> {
        self.accounts
            .iter()
            .map(|(session, a)| (a.statement(*session), a.acknowledged))
            .filter(|(statement, known)| known.as_ref() != Some(statement))
            .map(|(statement, _)| statement)
            .take(MAX_SESSIONS_PER_REPORT)
            .collect()
    }

    /// The mediator has these.
    pub fn handle_acknowledged(&mut self, statements: &[Statement]) {
        for s in statements {
            if let Some(a) = self.accounts.get_mut(&s.session) {
                a.acknowledged = Some(*s);
            }
        }
    }

    /// Another mediator, or one that restarted, may have forgotten what it was told.
    pub fn handle_reconnected(&mut self) {
        for account in self.accounts.values_mut() {
            account.acknowledged = None;
        }
    }

    /// Accounts dropped before the mediator had acknowledged them.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    /// Drops what is old, and the oldest beyond the limit.
    fn forget(&mut self, now: Instant) {
        while let Some(&(since, session)) = self.idle.front() {
            let old = now.duration_since(since) > REMEMBER;
            if !old && self.accounts.len() <= MAX_ACCOUNTS && self.idle.len() <= MAX_ACCOUNTS {
                return;
            }
            self.idle.pop_front();
            // It came back since, and perhaps left again: then there is a later entry.
            if self.accounts.get(&session).is_some_and(|a| a.idle_since == Some(since))
                && let Some(a) = self.accounts.remove(&session)
                && a.acknowledged != Some(a.statement(session))
            {
                self.given_up += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: SessionId = SessionId([1; 16]);

    fn only(u: &Usage) -> (u64, u64, bool) {
        let all = u.poll_report();
        assert_eq!(all.len(), 1);
        (all[0].bytes_up, all[0].bytes_down, all[0].ended)
    }

    fn acknowledge(u: &mut Usage) {
        let all = u.poll_report();
        u.handle_acknowledged(&all);
    }

    #[test]
    fn reports_changes_once_and_the_end_until_acknowledged() {
        let (mut u, now) = (Usage::default(), Instant::now());
        u.handle_pair_begun(S, now);
        u.handle_live(S, 10, 20);
        assert_eq!(only(&u), (10, 20, false));
        acknowledge(&mut u);
        assert!(u.poll_report().is_empty());
        u.handle_pair_ended(S, 15, 20, now);
        assert_eq!(only(&u), (15, 20, true));
        assert_eq!(only(&u), (15, 20, true));
        acknowledge(&mut u);
        assert!(u.poll_report().is_empty());
        u.handle_reconnected();
        assert_eq!(only(&u), (15, 20, true));
    }

    #[test]
    fn totals_go_on_over_pairs_that_overlap_and_that_follow() {
        let (mut u, now) = (Usage::default(), Instant::now());
        u.handle_pair_begun(S, now);
        u.handle_pair_begun(S, now);
        u.handle_live(S, 30, 3);
        u.handle_pair_ended(S, 10, 1, now);
        assert_eq!(only(&u), (30, 3, false));
        u.handle_live(S, 25, 2);
        assert_eq!(only(&u), (35, 3, false));
        u.handle_pair_ended(S, 25, 2, now);
        acknowledge(&mut u);
        u.handle_pair_begun(S, now + REMEMBER);
        u.handle_live(S, 1, 1);
        assert_eq!(only(&u), (36, 4, false));
        u.handle_pair_ended(S, 1, 1, now + REMEMBER);
        acknowledge(&mut u);
        u.handle_pair_begun(S, now + REMEMBER * 3);
        assert_eq!(only(&u), (0, 0, false));
    }

    #[test]
    fn accounts_are_bounded_while_the_mediator_is_away() {
        let (mut u, now) = (Usage::default(), Instant::now());
        u.handle_pair_begun(S, now);
        for i in 0..MAX_ACCOUNTS as u128 + 5 {
            let s = SessionId((i << 32).to_be_bytes());
            u.handle_pair_begun(s, now);
            u.handle_pair_ended(s, 1, 1, now);
        }
        assert_eq!(u.accounts.len(), MAX_ACCOUNTS);
        assert!(u.accounts.contains_key(&S), "a live one was given up");
        assert_eq!(u.given_up(), 6);
    }
}
