//! The mediator's time, by which all expiries are judged, carried on by our monotonic clock.

use std::time::{Duration, Instant};

/// From so much on a device's own clock is said to be wrong: one-time codes and the rules of
/// endpoints by the hour go by it.
pub const MAX_SKEW: Duration = Duration::from_secs(30);

/// How a device's own clock differs from the mediator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skew {
    /// It shows what has not been yet.
    Ahead(Duration),
    /// It shows what has been.
    Behind(Duration),
}

impl Skew {
    /// Compares; nothing if they agree as far as it matters. `trip`: what the answer took at most.
    pub fn of(own_ms: u64, mediator_ms: u64, trip: Duration) -> Option<Self> {
        let by = Duration::from_millis(own_ms.abs_diff(mediator_ms)).saturating_sub(trip);
        match (by > MAX_SKEW, own_ms > mediator_ms) {
            (false, _) => None,
            (true, true) => Some(Self::Ahead(by)),
            (true, false) => Some(Self::Behind(by)),
        }
    }
}

impl std::fmt::Display for Skew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ahead(by) => write!(f, "{} s ahead", by.as_secs()),
            Self::Behind(by) => write!(f, "{} s behind", by.as_secs()),
        }
    }
}

/// What time it is at the mediator.
#[derive(Debug, Clone, Copy)]
pub struct MediatorClock {
    base: Instant,
    base_ms: u64,
}

impl MediatorClock {
    /// The mediator said `now_ms` at `at`.
    pub fn new(now_ms: u64, at: Instant) -> Self {
        Self { base: at, base_ms: now_ms }
    }

    /// Milliseconds since 1970, now.
    pub fn now_ms(&self) -> u64 {
        self.at(Instant::now())
    }

    /// Milliseconds since 1970 at a moment.
    pub fn at(&self, at: Instant) -> u64 {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let later = self.base_ms.saturating_add(ms(at.saturating_duration_since(self.base)));
        later.saturating_sub(ms(self.base.saturating_duration_since(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_with_how_much_and_a_slow_network_is_not_taken_for_one() {
        let (none, slow) = (Duration::ZERO, Duration::from_secs(20));
        let told = |own, mediator, trip| Skew::of(own, mediator, trip).map(|skew| skew.to_string());
        assert_eq!(told(1_000_000, 1_000_000, none), None);
        assert_eq!(told(1_030_000, 1_000_000, none), None);
        assert_eq!(told(1_031_000, 1_000_000, none).as_deref(), Some("31 s ahead"));
        assert_eq!(told(1_000_000, 1_090_000, none).as_deref(), Some("90 s behind"));
        assert_eq!(told(1_045_000, 1_000_000, slow), None);
        assert!(told(0, u64::MAX, none).is_some());
    }
}
