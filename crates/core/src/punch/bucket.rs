//! A token bucket on given time, as a virtual schedule (GCRA): one instant, no counters.

use std::time::{Duration, Instant};

/// Lets `burst` things happen at once and one more in each `interval`.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    full_at: Instant,
    interval: Duration,
    burst: u32,
}

impl Bucket {
    pub(super) fn new(burst: u32, interval: Duration, now: Instant) -> Self {
        Self { full_at: now, interval, burst }
    }

    /// When there is a token beside so many that stay.
    pub(super) fn ready_beside(&self, left: u32) -> Instant {
        let ahead = self.interval * self.burst.saturating_sub(1 + left);
        self.full_at.checked_sub(ahead).unwrap_or(self.full_at)
    }

    /// There are at least so many tokens from now on.
    pub(super) fn refill(&mut self, tokens: u32, now: Instant) {
        self.full_at = self.full_at.min(now + self.interval * self.burst.saturating_sub(tokens));
    }

    /// Takes a token if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        // `full_at` may lie so near to the clock's origin that it cannot be shifted back: compare
        // with the shift on the other side.
        let ahead = self.interval * self.burst.saturating_sub(1);
        if self.full_at > now + ahead {
            return false;
        }
        self.full_at = self.full_at.max(now) + self.interval;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_burst_then_rate() {
        let t0 = Instant::now();
        let mut bucket = Bucket::new(3, Duration::from_millis(100), t0);
        assert_eq!((0..5).filter(|_| bucket.take(t0)).count(), 3);
        assert_eq!(bucket.ready_beside(0), t0 + Duration::from_millis(100));
        assert_eq!(bucket.ready_beside(1), t0 + Duration::from_millis(200));
        assert!(bucket.take(t0 + Duration::from_millis(100)));
        assert!(!bucket.take(t0 + Duration::from_millis(150)));
        let t1 = t0 + Duration::from_secs(9);
        assert_eq!((0..9).filter(|_| bucket.take(t1)).count(), 3);
        bucket.refill(2, t1);
        bucket.refill(1, t1);
        assert_eq!((0..9).filter(|_| bucket.take(t1)).count(), 2);
    }
}
