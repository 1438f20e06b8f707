//! How much a device may ask and tell: a token bucket for each kind of message.
//!
//! Beyond it a device waits, and only it: its next message is taken when its allowance permits,
//! so that nothing of an honest device is lost. One that has had to wait without a break for
//! [`PATIENCE`] loses its connection. Allowances belong to the device's identity: connecting anew
//! gives no new one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use adit_protocol::{keys::PublicKey, wire::frame::Body};

use crate::bucket::{Bucket, Rate};

/// Each writes a row.
const CHECK_INS: Rate = Rate::per_second(1, 60);
/// Events of sessions, each a record. After an outage an agent has 4,096 to tell.
const REPORTS: Rate = Rate::per_second(100, 16_384);
/// Receipts, each a row. Ends send what they have spooled at no more than 320 a second.
const RECEIPTS: Rate = Rate::per_second(400, 16_384);
/// Targets of SOCKS sessions, each a record that a connection waits for.
const TARGETS: Rate = Rate::per_second(50, 2_000);
/// Each names up to 2,000 sessions.
const RELAY_REPORTS: Rate = Rate::per_second(10, 200);
/// Candidates under way.
const SIGNALS: Rate = Rate::per_second(50, 1_000);
/// Reads of many rows.
const LISTS: Rate = Rate::per_second(10, 100);
/// Attempts to open a session and refusals told, each with records.
const OPENS: Rate = Rate::per_second(10, 200);
/// Renewals, tickets, ends, and whatever else: after an outage all sessions of an agent renew.
const OTHERS: Rate = Rate::per_second(50, 4_096);

/// From so long a time of waiting on, a connection ends.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// Devices whose allowance is remembered; those that have all of it are forgotten first.
const MAX_REMEMBERED: usize = 16_384;

const KINDS: usize = 9;

/// A kind of message, how much of it a message is, and its name in the record.
fn weigh(body: &Body) -> (usize, Rate, &'static str, u32) {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).max(1);
    match body {
        Body::CheckIn(_) => (0, CHECK_INS, "check_ins", 1),
        Body::SessionReport(report) => (1, REPORTS, "reports", count(report.events.len())),
        Body::Receipts(told) => (8, RECEIPTS, "receipts", count(told.lines.len())),
        Body::TargetRequest(_) => (2, TARGETS, "targets", 1),
        Body::RelayReport(_) => (3, RELAY_REPORTS, "relay_reports", 1),
        Body::Signal(_) => (4, SIGNALS, "signals", 1),
        Body::ListComputers(_) | Body::ListSessions(_) | Body::AuditExport(_) => {
            (5, LISTS, "lists", 1)
        }
        Body::Open(_) | Body::ConsoleRefusal(_) => (6, OPENS, "opens", 1),
        _ => (7, OTHERS, "others", 1),
    }
}

/// What becomes of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    /// Now, or when this time has passed.
    After(Duration),
    /// Too much for too long. The kind, and whether this is the first time of late.
    Cut { kind: &'static str, first: bool },
}

#[derive(Debug, Default)]
struct Buckets {
    /// Each kind's, and since when every message of it had to wait.
    of: [(Bucket, Option<Duration>); KINDS],
    cut_at: Option<Duration>,
}

impl Buckets {
    fn take(&mut self, body: &Body, now: Duration) -> Taken {
        let (kind, rate, name, count) = weigh(body);
        let Some((bucket, waits)) = self.of.get_mut(kind) else {
            return Taken::After(Duration::ZERO);
        };
        let wait = bucket.owe(rate, count, now);
        if wait.is_zero() {
            *waits = None;
            return Taken::After(wait);
        }
        let since = *waits.get_or_insert(now);
        if now.saturating_sub(since) < PATIENCE {
            return Taken::After(wait);
        }
        *waits = None;
        let first = self.cut_at.is_none_or(|at| now.saturating_sub(at) > 5 * PATIENCE);
        self.cut_at = Some(now);
        Taken::Cut { kind: name, first }
    }

    /// Nothing is lost if it is forgotten.
    fn is_full(&self, now: Duration) -> bool {
        self.of.iter().all(|(bucket, _)| bucket.is_full(now))
    }
}

/// The allowances of all devices.
pub(crate) struct Allowances {
    started: Instant,
    of: Mutex<HashMap<PublicKey, Arc<Mutex<Buckets>>>>,
}

impl Default for Allowances {
    fn default() -> Self {
        Self { started: Instant::now(), of: Mutex::default() }
    }
}

impl Allowances {
    /// That of a device which proved who it is.
    pub(super) fn of(self: &Arc<Self>, device: PublicKey) -> Allowance {
        let now = self.started.elapsed();
        let mut table = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= MAX_REMEMBERED {
            table.retain(|_, buckets| {
                Arc::strong_count(buckets) > 1
                    || !buckets.lock().unwrap_or_else(PoisonError::into_inner).is_full(now)
            });
        }
        let buckets = Arc::clone(table.entry(device).or_default());
        Allowance { started: self.started, buckets }
    }
}

/// One device's.
#[derive(Clone)]
pub(super) struct Allowance {
    started: Instant,
    buckets: Arc<Mutex<Buckets>>,
}

impl Allowance {
    /// Takes a message.
    pub(super) fn take(&self, body: &Body) -> Taken {
        let now = self.started.elapsed();
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner).take(body, now)
    }
}

#[cfg(test)]
mod tests {
    use adit_protocol::wire;

    use super::*;

    fn report(events: usize) -> Body {
        let events = vec![wire::SessionEvent::default(); events];
        Body::SessionReport(wire::SessionReport { events, ..wire::SessionReport::default() })
    }

    #[test]
    fn what_an_agent_spooled_in_an_outage_is_taken_at_once() {
        let mut buckets = Buckets::default();
        for _ in 0..4_096 / 64 {
            assert_eq!(buckets.take(&report(64), Duration::ZERO), Taken::After(Duration::ZERO));
        }
    }

    /// At the pace at which ends send them, receipts of weeks never wait, let alone end a connection.
    #[test]
    fn a_backlog_of_receipts_is_taken_and_leaves_room_for_sessions() {
        let mut buckets = Buckets::default();
        let told =
            |n: usize| Body::Receipts(wire::Receipts { lines: vec![bytes::Bytes::new(); n] });
        let mut now = Duration::ZERO;
        for _ in 0..4_000 {
            assert_eq!(buckets.take(&told(64), now), Taken::After(Duration::ZERO), "{now:?}");
            now += Duration::from_millis(200);
        }
        // Whoever sends more waits, and only with these.
        let waits = (0..400).any(|_| buckets.take(&told(64), now) != Taken::After(Duration::ZERO));
        assert!(waits);
        let renew = Body::Renew(wire::Renew::default());
        assert_eq!(buckets.take(&renew, now), Taken::After(Duration::ZERO));
    }

    #[test]
    fn a_flood_is_slowed_to_the_limit_and_then_cut() {
        let mut buckets = Buckets::default();
        let (mut now, mut events, mut cut) = (Duration::ZERO, 0_u64, None);
        while now < 2 * PATIENCE + Duration::from_secs(200) && cut.is_none() {
            match buckets.take(&report(64), now) {
                Taken::After(wait) => {
                    now += wait;
                    events += 64;
                }
                Taken::Cut { kind, first } => cut = Some((kind, first)),
            }
        }
        assert_eq!(cut, Some(("reports", true)));
        let allowed = 16_384 + now.as_secs() * 100 + 64;
        assert!(events <= allowed && now >= PATIENCE, "{events} events in {now:?}");
        // Other kinds do not suffer.
        let ask = Body::ListSessions(wire::ListSessions {});
        assert_eq!(buckets.take(&ask, now), Taken::After(Duration::ZERO));
    }

    #[test]
    fn connecting_anew_gives_no_new_allowance() {
        let allowances = Arc::new(Allowances::default());
        let device = PublicKey([1; 32]);
        let check_in = || Body::CheckIn(wire::CheckIn::default());
        for _ in 0..60 {
            assert_eq!(allowances.of(device).take(&check_in()), Taken::After(Duration::ZERO));
        }
        assert_ne!(allowances.of(device).take(&check_in()), Taken::After(Duration::ZERO));
    }
}
