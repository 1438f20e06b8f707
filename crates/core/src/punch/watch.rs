//! Whether UDP passes at all, watched while a session wants a path that it has not got.
//!
//! Where UDP is blocked there is nothing to punch, and attempts get rare. When it passes again
//! they must not wait for the next one: so a STUN server is asked, by one small request every
//! [`WATCH_INTERVAL`], from the socket that punches. An answer after silence says that UDP passes
//! again. Each request also keeps the NAT's mapping, so that the peer knows where this end is.
//!
//! One for each ordinary socket, not for each session. What goes out in vain does not go far:
//! a network without UDP drops it at its own edge.
//!
//! INVARIANT: never more than one [`WatchEvent::Ask`] in [`WATCH_INTERVAL`], none unless a session
//! wants a path.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// A server is asked so often. An answer that comes back takes at most this and a round trip
/// longer than it takes UDP to pass; signalling and checks have the rest of five seconds.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// So many requests in a row without an answer: UDP is blocked. One alone may have been lost.
pub const WATCH_SILENCE: u32 = 2;

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WatchEvent {
    /// Ask a server; the last request had no answer if `again`, so that another may be asked too.
    Ask {
        /// See above.
        again: bool,
    },
    /// UDP passes again: what failed may work now ([`super::Punch::handle_udp_passes`]).
    Passes,
}

/// Asks servers while a path is wanted, and tells when UDP passes again.
#[derive(Debug, Default)]
pub struct UdpWatch {
    /// When a server is asked next, if a path is wanted.
    ask_at: Option<Instant>,
    asked: Option<Instant>,
    /// The last request has no answer yet.
    waiting: bool,
    /// Requests in a row that had none.
    unanswered: u32,
    events: VecDeque<WatchEvent>,
}

impl UdpWatch {
    /// Sessions want a path, or none does any more.
    pub fn handle_wanted(&mut self, wanted: bool, now: Instant) {
        if !wanted {
            // What was lost before says nothing of what comes.
            *self = Self { asked: self.asked, ..Self::default() };
        } else if self.ask_at.is_none() {
            self.ask_at = Some(self.asked.map_or(now, |at| now.max(at + WATCH_INTERVAL)));
        }
    }

    /// A server answered, whatever it was asked for.
    pub fn handle_answer(&mut self) {
        self.waiting = false;
        if std::mem::take(&mut self.unanswered) >= WATCH_SILENCE {
            self.events.push_back(WatchEvent::Passes);
        }
    }

    /// Time passed. Call when [`Self::poll_timeout`] says so.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.ask_at.is_none_or(|at| at > now) {
            return;
        }
        if std::mem::replace(&mut self.waiting, true) {
            self.unanswered = self.unanswered.saturating_add(1);
        }
        self.asked = Some(now);
        self.ask_at = Some(now + WATCH_INTERVAL);
        self.events.push_back(WatchEvent::Ask { again: self.unanswered > 0 });
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<WatchEvent> {
        self.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ask_at
    }

    /// No answer for a while, though servers are asked.
    pub fn is_silent(&self) -> bool {
        self.unanswered >= WATCH_SILENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(watch: &mut UdpWatch) -> Vec<WatchEvent> {
        std::iter::from_fn(|| watch.poll_event()).collect()
    }

    /// Lets time pass until then; how often a server was asked.
    fn run(watch: &mut UdpWatch, now: &mut Instant, until: Instant, answers: bool) -> usize {
        let mut asked = 0;
        while let Some(at) = watch.poll_timeout().filter(|at| *at <= until) {
            *now = at;
            watch.handle_timeout(at);
            for event in events(watch) {
                asked += usize::from(matches!(event, WatchEvent::Ask { .. }));
                if answers {
                    watch.handle_answer();
                }
            }
        }
        *now = until;
        asked
    }

    #[test]
    fn asks_nobody_unless_a_path_is_wanted() {
        let mut now = Instant::now();
        let mut watch = UdpWatch::default();
        assert_eq!(watch.poll_timeout(), None);
        watch.handle_wanted(true, now);
        let until = now + Duration::from_secs(60);
        assert_eq!(run(&mut watch, &mut now, until, true), 31);
        watch.handle_wanted(false, now);
        watch.handle_answer();
        assert_eq!((watch.poll_timeout(), events(&mut watch)), (None, vec![]));
    }

    #[test]
    fn wanting_again_and_again_asks_no_more_often() {
        let mut now = Instant::now();
        let mut watch = UdpWatch::default();
        let mut asked = 0;
        for _ in 0..600 {
            watch.handle_wanted(true, now);
            let until = now + Duration::from_millis(100);
            asked += run(&mut watch, &mut now, until, false);
            watch.handle_wanted(false, now);
        }
        assert!(asked <= 31, "{asked}");
    }

    #[test]
    fn an_answer_after_silence_is_told_once_and_a_lost_one_is_not() {
        let mut now = Instant::now();
        let mut watch = UdpWatch::default();
        watch.handle_wanted(true, now);
        // One request is lost now and then.
        for n in 0..100u32 {
            let until = now + WATCH_INTERVAL;
            run(&mut watch, &mut now, until, n % 2 == 0);
            watch.handle_answer();
            assert!(!events(&mut watch).contains(&WatchEvent::Passes));
        }
        let until = now + Duration::from_secs(3600);
        run(&mut watch, &mut now, until, false);
        assert!(watch.is_silent());
        watch.handle_answer();
        assert_eq!(events(&mut watch), [WatchEvent::Passes]);
        watch.handle_answer();
        assert_eq!(events(&mut watch), []);
    }
}
