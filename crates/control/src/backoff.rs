//! How long to wait before dialling again: decorrelated jitter.
//!
//! Each wait is drawn between the base and three times the last one, up to a cap: clients that
//! were cut off together spread out, and stay spread out.

use std::time::Duration;

/// Shortest wait.
pub(crate) const BASE: Duration = Duration::from_millis(500);
/// Longest wait.
pub(crate) const CAP: Duration = Duration::from_secs(30);

/// State of the waits of one client; randomness is given.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    last: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(BASE, CAP)
    }
}

impl Backoff {
    /// Waits between `base` and `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap: cap.max(base), last: base }
    }

    /// The next wait; `random` is uniform over all of `u64`.
    pub fn next(&mut self, random: u64) -> Duration {
        let upper = (self.last * 3).min(self.cap);
        self.last = self.base + uniform(upper.saturating_sub(self.base), random);
        self.last
    }

    /// After a connection that lasted.
    pub fn reset(&mut self) {
        self.last = self.base;
    }
}

/// Uniform between zero and `span`.
pub(crate) fn uniform(span: Duration, random: u64) -> Duration {
    // 32 bits are plenty, and exact in a float.
    let fraction = f64::from(u32::try_from(random >> 32).unwrap_or(u32::MAX));
    span.mul_f64(fraction / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64: seeds that differ little give waits that differ much.
    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[test]
    fn waits_stay_within_bounds_and_grow_to_the_cap() {
        for seed in 0..200 {
            let (mut backoff, mut state) = (Backoff::default(), seed);
            let waits: Vec<_> = (0..200).map(|_| backoff.next(random(&mut state))).collect();
            assert!(waits.iter().all(|w| (BASE..=CAP).contains(w)), "seed {seed}");
            assert!(waits.iter().max() > Some(&(CAP / 2)), "seed {seed}");
            assert!(waits[0] <= BASE * 3);
            backoff.reset();
            assert!(backoff.next(random(&mut state)) <= BASE * 3, "seed {seed}");
        }
        assert_eq!(Backoff::default().next(0), BASE);
        assert_eq!(Backoff::default().next(u64::MAX), BASE * 3);
    }

    #[test]
    fn clients_cut_off_together_do_not_come_back_together() {
        let mut per_second = [0u32; 40];
        for seed in 0..1000u64 {
            let (mut backoff, mut state) = (Backoff::default(), seed * 7919);
            let at: Duration = (0..4).map(|_| backoff.next(random(&mut state))).sum();
            per_second[usize::try_from(at.as_secs()).unwrap().min(39)] += 1;
        }
        assert!(per_second.iter().all(|n| *n < 350), "{per_second:?}");
    }
}
