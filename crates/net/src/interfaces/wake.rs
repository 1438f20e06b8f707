//! Noticing that the machine slept, or that this process was stopped.
//!
//! Neither is an event that a program is told of everywhere. But it shows: a tick comes late by
//! the monotonic clock, or, where that clock stands still during sleep, the wall clock has run
//! ahead of it.

use std::time::{Duration, Instant, SystemTime};

/// How often the clocks are looked at.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// Lateness that counts: every NAT mapping may be gone, every peer may have given us up. A wall
/// clock that was set forward looks the same and costs no more than looking again.
const SLEPT: Duration = Duration::from_secs(8);

#[derive(Debug)]
pub(super) struct SleepWatch {
    at: Instant,
    wall: SystemTime,
}

impl SleepWatch {
    pub(super) fn new(now: Instant, wall: SystemTime) -> Self {
        Self { at: now, wall }
    }

    /// Called every [`TICK`]: whether there was a sleep since the last time.
    pub(super) fn tick(&mut self, now: Instant, wall: SystemTime) -> bool {
        let passed = now.saturating_duration_since(self.at);
        let wall_passed = wall.duration_since(self.wall).unwrap_or(Duration::ZERO);
        *self = Self::new(now, wall);
        passed.max(wall_passed) >= TICK + SLEPT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_of_sleep_shows_on_either_clock_and_nothing_else_does() {
        let (mut now, mut wall) = (Instant::now(), SystemTime::now());
        let mut watch = SleepWatch::new(now, wall);
        let mut pass = |monotonic, clock| {
            now += Duration::from_millis(monotonic);
            wall += Duration::from_millis(clock);
            watch.tick(now, wall)
        };
        assert!(!pass(1_000, 1_000));
        assert!(!pass(4_000, 4_000), "a busy machine");
        assert!(pass(1_000, 61_000), "the monotonic clock stood still");
        assert!(!pass(1_000, 1_000));
        assert!(pass(61_000, 61_000), "the monotonic clock ran on, or the process was stopped");
        assert!(!pass(1_000, 1_000));
    }

    #[test]
    fn a_clock_set_back_is_no_sleep() {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let mut watch = SleepWatch::new(now, wall);
        assert!(!watch.tick(now + TICK, wall - Duration::from_secs(3600)));
        assert!(!watch.tick(now + TICK * 2, wall - Duration::from_secs(3599)));
    }
}
