//! Token buckets, as virtual schedules (GCRA): all that is kept is when a bucket is full again.
//!
//! Times are those since a moment of the caller's.

use std::time::Duration;

/// A burst, and then a pace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// From one to the next.
    pub(crate) each: Duration,
    /// How many at once.
    pub(crate) burst: u32,
}

impl Rate {
    /// So many a second, and so many at once.
    pub(crate) const fn per_second(count: u32, burst: u32) -> Self {
        Self { each: Duration::from_nanos(1_000_000_000 / count as u64), burst }
    }
}

/// One bucket, full at first.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bucket {
    full_at: Duration,
}

impl Bucket {
    /// Takes one, or says after what time there is one.
    pub(crate) fn take(&mut self, rate: Rate, now: Duration) -> Result<(), Duration> {
        let mut after = *self;
        match after.owe(rate, 1, now) {
            Duration::ZERO => {
                *self = after;
                Ok(())
            }
            wait => Err(wait),
        }
    }

    /// Takes so many (but no more than a burst), also if they are not there: says after what time
    /// they are.
    pub(crate) fn owe(&mut self, rate: Rate, count: u32, now: Duration) -> Duration {
        self.full_at = self.full_at.max(now) + rate.each * count.min(rate.burst);
        self.full_at.saturating_sub(now + rate.each * rate.burst)
    }

    /// Nothing is lost if it is forgotten.
    pub(crate) fn is_full(self, now: Duration) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever comes when: never more than a burst and what the pace has given since, and whoever
    /// waits as told gets one.
    #[test]
    fn a_bucket_is_a_burst_and_then_a_pace() {
        for seed in 1..=64_u64 {
            let mut state = seed;
            let mut random = |below: u64| {
                // Knuth's MMIX.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) % below
            };
            let rate = Rate {
                each: Duration::from_millis(1 + random(300)),
                burst: 1 + u32::try_from(random(40)).unwrap(),
            };
            let (mut bucket, mut now) = (Bucket::default(), Duration::ZERO);
            let mut taken: Vec<Duration> = Vec::new();
            for _ in 0..2_000 {
                now += Duration::from_millis(random(100));
                match bucket.take(rate, now) {
                    Ok(()) => taken.push(now),
                    Err(wait) => {
                        let mut later = bucket;
                        let almost = now + wait - Duration::from_nanos(1);
                        assert!(later.take(rate, almost).is_err(), "seed {seed}");
                        assert_eq!(later.take(rate, now + wait), Ok(()), "seed {seed}");
                    }
                }
            }
            let burst = usize::try_from(rate.burst).unwrap();
            for (first, last) in taken.iter().zip(taken.iter().skip(burst)) {
                assert!(*last - *first >= rate.each, "seed {seed}: {rate:?}");
            }
            assert!(!bucket.is_full(now) || taken.last() < Some(&now), "seed {seed}");
            assert!(bucket.is_full(now + rate.each * rate.burst), "seed {seed}");
        }
    }

    #[test]
    fn what_is_owed_is_waited_for_and_never_more_than_a_burst() {
        let rate = Rate::per_second(10, 5);
        let mut bucket = Bucket::default();
        assert_eq!(bucket.owe(rate, 5, Duration::ZERO), Duration::ZERO);
        assert_eq!(bucket.owe(rate, 1, Duration::ZERO), Duration::from_millis(100));
        assert_eq!(bucket.take(rate, Duration::ZERO), Err(Duration::from_millis(200)));
        assert_eq!(bucket.owe(rate, u32::MAX, Duration::ZERO), Duration::from_millis(600));
    }
}
