//! The mediator's time, by which all expiries are judged, carried on by our monotonic clock.

use std::time::{Duration, Instant};

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
