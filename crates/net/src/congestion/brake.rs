//! When slow start ends, and whether the window may grow at all, without IO.
//!
//! Must never let the window grow by more than was acknowledged.

use std::time::{Duration, Instant};

/// Samples that a round must have before it says anything (RFC 9406 §4.3).
const SAMPLES: u32 = 8;
/// A round trip is longer than the least by a queue if it is by the [`QUEUE_PART`]th part of the
/// least, within these bounds. More than RFC 9406 §4.3 has: here acknowledgements wait for two
/// programs to get a processor.
const QUEUE: (Duration, Duration) = (Duration::from_millis(8), Duration::from_millis(32));
const QUEUE_PART: u32 = 4;
/// In conservative slow start the window grows so many times more slowly (RFC 9406 §4.3).
const SLOWER: u64 = 4;
/// And for so many rounds. RFC 9406 §4.3 has 5, in which the window triples: more than the queues
/// of many routers take. With 2 it becomes one and a half times what filled the path, and Cubic
/// then takes nearly the same part off.
const SLOWER_ROUNDS: u32 = 2;
/// The window grows only while at least this part of it is used (RFC 9002 §7.8): on a path that is
/// faster than the ends it would otherwise grow without bounds, and all of it be sent at once when
/// they catch up.
const USED_PART: u64 = 2;

/// Watches rounds, and says how much of what is acknowledged may count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Brake {
    slow_start: bool,
    /// In conservative slow start: the least round trip of the round in which it began, and how
    /// many rounds have passed since.
    conservative: Option<(Duration, u32)>,
    round: Round,
    /// Least round trip ever.
    least: Duration,
    /// After the last acknowledgements.
    in_flight: Option<u64>,
    /// By the acknowledgements that are being taken in.
    acked: u64,
}

/// Begins with a packet; ends when one is acknowledged that was sent after that.
#[derive(Clone, Copy, Debug)]
struct Round {
    began: Instant,
    least: Duration,
    samples: u32,
    /// Most in flight in this round and in the one before.
    most: (u64, u64),
}

impl Round {
    fn new(began: Instant, most_before: u64) -> Self {
        Self { began, least: Duration::MAX, samples: 0, most: (0, most_before) }
    }
}

/// What an acknowledgement means for the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// It may grow as by so many bytes.
    By(u64),
    /// It is not used, and stays.
    Unused,
    /// The path is full: slow start is over.
    Full,
}

impl Brake {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            slow_start: true,
            conservative: None,
            round: Round::new(now, 0),
            least: Duration::MAX,
            in_flight: None,
            acked: 0,
        }
    }

    pub(super) fn handle_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        window: u64,
    ) -> Growth {
        self.acked += bytes;
        let rtt = now.saturating_duration_since(sent);
        self.least = self.least.min(rtt);
        if sent >= self.round.began {
            if let Some((_, rounds)) = &mut self.conservative {
                *rounds += 1;
            }
            self.round = Round::new(now, self.round.most.0);
        }
        self.round.least = self.round.least.min(rtt);
        self.round.samples = self.round.samples.saturating_add(1);
        if !self.is_used(window) {
            return Growth::Unused;
        }
        if self.slow_start { self.grow(bytes) } else { Growth::By(bytes) }
    }

    pub(super) fn handle_end_of_acks(&mut self, in_flight: u64) {
        let before = in_flight + std::mem::take(&mut self.acked);
        self.round.most.0 = self.round.most.0.max(before);
        self.in_flight = Some(in_flight);
    }

    /// Packets were lost, or a router says that they will be.
    pub(super) fn handle_congestion(&mut self) {
        self.slow_start = false;
    }

    fn grow(&mut self, bytes: u64) -> Growth {
        let round = (self.round.samples >= SAMPLES).then_some(self.round.least);
        match self.conservative {
            None => {
                let queue = (self.least / QUEUE_PART).clamp(QUEUE.0, QUEUE.1);
                let full = round.filter(|r| *r >= self.least.saturating_add(queue));
                self.conservative = full.map(|r| (r, 0));
                Growth::By(bytes)
            }
            // It was the ends that took their time, not a queue.
            Some((before, _)) if round.is_some_and(|r| r < before) => {
                self.conservative = None;
                Growth::By(bytes)
            }
            Some((_, rounds)) if rounds >= SLOWER_ROUNDS => {
                self.slow_start = false;
                Growth::Full
            }
            Some(_) => Growth::By(bytes / SLOWER),
        }
    }

    fn is_used(&self, window: u64) -> bool {
        let Some(in_flight) = self.in_flight else { return true };
        let most = self.round.most.0.max(self.round.most.1).max(in_flight + self.acked);
        most.saturating_mul(USED_PART) >= window
    }
}

#[cfg(test)]
#[path = "brake_tests.rs"]
mod tests;
