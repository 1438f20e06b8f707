//! Bytes of each session, kept until the mediator has acknowledged them.
//!
//! Figures are totals of the session's stay at this relay: from its first pair until the report
//! that says `ended`. A session that comes back begins a new stay at zero. Must never grow
//! without bound while the mediator is away.

use std::collections::BTreeMap;

use adit_protocol::ids::SessionId;

/// Sessions remembered at most; beyond it ended ones that were never reported are given up.
pub const MAX_ACCOUNTS: usize = 65_536;
/// Sessions in one report: keeps it far below the control connection's frame limit.
pub const MAX_SESSIONS_PER_REPORT: usize = 2_000;

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
    acknowledged: Option<(u64, u64)>,
}

impl Account {
    fn total(&self) -> (u64, u64) {
        (self.closed.0.saturating_add(self.live.0), self.closed.1.saturating_add(self.live.1))
    }

    fn is_due(&self) -> bool {
        self.pairs == 0 || self.acknowledged != Some(self.total())
    }
}

/// Accounts of sessions that are here or not yet reported to the end.
#[derive(Debug, Default)]
pub struct Usage {
    accounts: BTreeMap<SessionId, Account>,
    given_up: u64,
}

impl Usage {
    /// A pair of the session began.
    pub fn handle_pair_begun(&mut self, session: SessionId) {
        if self.accounts.len() >= MAX_ACCOUNTS && !self.accounts.contains_key(&session) {
            self.give_one_up();
        }
        self.accounts.entry(session).or_default().pairs += 1;
    }

    /// Current bytes of all live pairs of a session together.
    pub fn handle_live(&mut self, session: SessionId, up: u64, down: u64) {
        if let Some(a) = self.accounts.get_mut(&session) {
            a.live = (up, down);
        }
    }

    /// A pair ended with these bytes; the sum of the live ones follows with `handle_live`.
    pub fn handle_pair_ended(&mut self, session: SessionId, up: u64, down: u64) {
        if let Some(a) = self.accounts.get_mut(&session) {
            a.pairs = a.pairs.saturating_sub(1);
            a.closed = (a.closed.0.saturating_add(up), a.closed.1.saturating_add(down));
            // Until the next `handle_live` the pair must not be counted twice.
            a.live = if a.pairs == 0 {
                (0, 0)
            } else {
                (a.live.0.saturating_sub(up), a.live.1.saturating_sub(down))
            };
        }
    }

    /// What the mediator does not know yet.
    pub fn poll_report(&self) -> Vec<Statement> {
        let due = self.accounts.iter().filter(|(_, a)| a.is_due());
        due.take(MAX_SESSIONS_PER_REPORT)
            .map(|(session, a)| {
                let (bytes_up, bytes_down) = a.total();
                Statement { session: *session, bytes_up, bytes_down, ended: a.pairs == 0 }
            })
            .collect()
    }

    /// The mediator has these.
    pub fn handle_acknowledged(&mut self, statements: &[Statement]) {
        for s in statements {
            let Some(a) = self.accounts.get_mut(&s.session) else { continue };
            let same = a.total() == (s.bytes_up, s.bytes_down);
            if s.ended && a.pairs == 0 && same {
                self.accounts.remove(&s.session);
            } else {
                if s.ended {
                    // It came back while the report was under way: a new stay begins.
                    a.closed.0 = a.closed.0.saturating_sub(s.bytes_up);
                    a.closed.1 = a.closed.1.saturating_sub(s.bytes_down);
                }
                a.acknowledged = (!s.ended).then_some((s.bytes_up, s.bytes_down));
            }
        }
    }

    /// Accounts dropped because the mediator was away for too long.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    fn give_one_up(&mut self) {
        let victim = self.accounts.iter().find(|(_, a)| a.pairs == 0).map(|(s, _)| *s);
        if let Some(victim) = victim.or_else(|| self.accounts.keys().next().copied()) {
            self.accounts.remove(&victim);
            self.given_up += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: SessionId = SessionId([1; 16]);

    fn only(u: &Usage) -> Statement {
        let all = u.poll_report();
        assert_eq!(all.len(), 1);
        all[0]
    }

    #[test]
    fn reports_changes_once_and_the_end_until_acknowledged() {
        let mut u = Usage::default();
        u.handle_pair_begun(S);
        u.handle_live(S, 10, 20);
        let first = only(&u);
        assert_eq!((first.bytes_up, first.bytes_down, first.ended), (10, 20, false));
        u.handle_acknowledged(&[first]);
        assert!(u.poll_report().is_empty());
        u.handle_pair_ended(S, 15, 20);
        let last = only(&u);
        assert_eq!((last.bytes_up, last.bytes_down, last.ended), (15, 20, true));
        assert_eq!(only(&u), last);
        u.handle_acknowledged(&[last]);
        assert!(u.poll_report().is_empty());
    }

    #[test]
    fn pair_that_replaces_another_adds_to_the_same_stay() {
        let mut u = Usage::default();
        u.handle_pair_begun(S);
        u.handle_pair_begun(S);
        u.handle_live(S, 30, 3);
        u.handle_pair_ended(S, 10, 1);
        assert_eq!((only(&u).bytes_up, only(&u).bytes_down), (30, 3));
        u.handle_live(S, 25, 2);
        assert_eq!((only(&u).bytes_up, only(&u).bytes_down), (35, 3));
    }

    #[test]
    fn session_that_returns_during_its_last_report_is_not_lost() {
        let mut u = Usage::default();
        u.handle_pair_begun(S);
        u.handle_pair_ended(S, 5, 5);
        let last = only(&u);
        u.handle_pair_begun(S);
        u.handle_live(S, 1, 2);
        u.handle_acknowledged(&[last]);
        let again = only(&u);
        assert_eq!((again.bytes_up, again.bytes_down, again.ended), (1, 2, false));
    }

    #[test]
    fn accounts_are_bounded_while_the_mediator_is_away() {
        let mut u = Usage::default();
        for i in 0..MAX_ACCOUNTS as u128 + 5 {
            let s = SessionId(i.to_be_bytes());
            u.handle_pair_begun(s);
            u.handle_pair_ended(s, 1, 1);
        }
        assert_eq!(u.accounts.len(), MAX_ACCOUNTS);
        assert_eq!(u.given_up(), 5);
    }
}
