//! How long a session may go on, without clock and IO: leases while the mediator is reachable,
//! `offline_grace` when it is not.

use std::time::{Duration, Instant};

/// A renewal is asked for when this part of a lease is left.
const RENEW_AT: u32 = 2;
/// A failed renewal is tried again after this long.
const RETRY: Duration = Duration::from_secs(5);

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseEvent {
    /// Ask the mediator for a renewal.
    Renew,
    /// The session ends.
    Over(&'static str),
}

/// Monotonic: changes of the wall clock have no effect.
#[derive(Debug)]
pub(crate) struct LeaseTimer {
    expires: Instant,
    renew_at: Instant,
    online: bool,
    /// Since when the mediator has not confirmed this session, as seen at a loss of the
    /// connection. A connection that comes back does not clear it, only a renewal does: whoever
    /// can cut connections could otherwise make a session last for ever, grace by grace.
    unconfirmed: Option<Instant>,
    grace: Duration,
}

impl LeaseTimer {
    /// `left`: until the grant expires.
    pub(crate) fn new(left: Duration, grace: Duration, online: bool, now: Instant) -> Self {
        Self {
            expires: now + left,
            renew_at: now + left / RENEW_AT,
            online,
            unconfirmed: (!online).then_some(now),
            grace,
        }
    }

    pub(crate) fn set_grace(&mut self, grace: Duration) {
        self.grace = grace;
    }

    /// The mediator became reachable or unreachable.
    pub(crate) fn handle_online(&mut self, online: bool, now: Instant) {
        match (online, std::mem::replace(&mut self.online, online)) {
            (true, false) => {
                // It may have ended the session meanwhile: ask, and give it time to answer.
                self.renew_at = now;
                self.expires = self.expires.max(now + 2 * RETRY);
            }
            (false, true) => {
                self.unconfirmed.get_or_insert(now);
            }
            _ => {}
        }
    }

    pub(crate) fn handle_renewed(&mut self, left: Duration, now: Instant) {
        self.expires = self.expires.max(now + left);
        self.renew_at = now + left / RENEW_AT;
        self.unconfirmed = (!self.online).then_some(now);
    }

    fn ends_at(&self) -> (Instant, &'static str) {
        match self.unconfirmed.filter(|_| !self.online) {
            // Offline the grace counts, even beyond the lease: an outage of the mediator shorter
            // than the grace ends nothing.
            Some(since) => (since + self.grace, "mediator_lost"),
            None => (self.expires + RETRY, "lease_expired"),
        }
    }

    pub(crate) fn poll_timeout(&self) -> Instant {
        let end = self.ends_at().0;
        if self.online { end.min(self.renew_at) } else { end }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Option<LeaseEvent> {
        let (end, reason) = self.ends_at();
        if now >= end {
            return Some(LeaseEvent::Over(reason));
        }
        if self.online && now >= self.renew_at {
            self.renew_at = now + RETRY;
            return Some(LeaseEvent::Renew);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn renews_at_half_and_ends_when_never_renewed() {
        let t0 = Instant::now();
        let mut l = LeaseTimer::new(300 * S, 900 * S, true, t0);
        assert_eq!(l.poll_timeout(), t0 + 150 * S);
        assert_eq!(l.handle_timeout(t0 + 150 * S), Some(LeaseEvent::Renew));
        assert_eq!(l.poll_timeout(), t0 + 155 * S);
        assert_eq!(l.handle_timeout(t0 + 305 * S), Some(LeaseEvent::Over("lease_expired")));
        l.handle_renewed(300 * S, t0 + 200 * S);
        assert_eq!(l.handle_timeout(t0 + 305 * S), None);
    }

    /// Connections that are cut as soon as they are up add nothing to the grace.
    #[test]
    fn a_flapping_connection_does_not_prolong_the_grace() {
        let t0 = Instant::now();
        let mut l = LeaseTimer::new(300 * S, 900 * S, true, t0);
        let mut now = t0;
        l.handle_online(false, now);
        let over = loop {
            now += 60 * S;
            if let Some(LeaseEvent::Over(reason)) = l.handle_timeout(now) {
                break reason;
            }
            l.handle_online(true, now);
            assert_eq!(l.handle_timeout(now), Some(LeaseEvent::Renew));
            now += S;
            l.handle_online(false, now);
            assert!(now < t0 + 3600 * S, "never ends");
        };
        assert_eq!(over, "mediator_lost");
        assert!(now <= t0 + 1000 * S);
        // A renewal does: the grace begins anew with the next loss.
        let mut l = LeaseTimer::new(300 * S, 900 * S, true, t0);
        l.handle_online(false, t0);
        l.handle_online(true, t0 + 800 * S);
        l.handle_renewed(300 * S, t0 + 801 * S);
        l.handle_online(false, t0 + 802 * S);
        assert_eq!(l.handle_timeout(t0 + 1600 * S), None);
        assert_eq!(l.handle_timeout(t0 + 1702 * S), Some(LeaseEvent::Over("mediator_lost")));
    }

    #[test]
    fn offline_lasts_as_long_as_the_grace_and_zero_ends_at_once() {
        let t0 = Instant::now();
        let mut l = LeaseTimer::new(300 * S, 900 * S, true, t0);
        l.handle_online(false, t0 + 10 * S);
        assert_eq!(l.handle_timeout(t0 + 909 * S), None);
        assert_eq!(l.handle_timeout(t0 + 910 * S), Some(LeaseEvent::Over("mediator_lost")));
        l.set_grace(Duration::ZERO);
        assert_eq!(l.poll_timeout(), t0 + 10 * S);
        let mut l = LeaseTimer::new(300 * S, 900 * S, true, t0);
        l.handle_online(false, t0);
        l.handle_online(true, t0 + 400 * S);
        assert_eq!(l.handle_timeout(t0 + 400 * S), Some(LeaseEvent::Renew));
        assert_eq!(l.handle_timeout(t0 + 415 * S), Some(LeaseEvent::Over("lease_expired")));
    }
}
