//! Token buckets by key, bounded in number: how much a source or a principal may ask.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Requests a second, and how many at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) per_second: u32,
    pub(crate) burst: u32,
}

/// Keys remembered; those that have all of their allowance are forgotten first.
const MAX_KEYS: usize = 16_384;

/// One bucket for each key, as virtual schedules (GCRA): the time at which each is full again.
pub(crate) struct Buckets<K> {
    rate: Rate,
    started: Instant,
    full_at: Mutex<HashMap<K, Duration>>,
}

impl<K: Eq + Hash> Buckets<K> {
    /// Buckets of one rate.
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, started: Instant::now(), full_at: Mutex::default() }
    }

    /// Takes one request, or says how long to wait.
    pub(crate) fn take(&self, key: K) -> Result<(), Duration> {
        self.take_at(key, self.started.elapsed())
    }

    fn take_at(&self, key: K, now: Duration) -> Result<(), Duration> {
        let each = Duration::from_secs(1) / self.rate.per_second.max(1);
        let room = each * self.rate.burst;
        let mut table = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= MAX_KEYS && !table.contains_key(&key) {
            table.retain(|_, full_at| *full_at > now);
            // So many at once is a flood from everywhere: whoever is new waits.
            if table.len() >= MAX_KEYS {
                return Err(Duration::from_secs(1));
            }
        }
        let full_at = table.entry(key).or_default();
        let next = (*full_at).max(now) + each;
        if next > now + room {
            return Err(next - now - room);
        }
        *full_at = next;
        Ok(())
    }
}

/// How many requests of each key are under way.
pub(crate) struct UnderWay<K: Eq + Hash> {
    max: usize,
    max_per_key: usize,
    table: Mutex<(usize, HashMap<K, usize>)>,
}

impl<K: Eq + Hash + Clone> UnderWay<K> {
    /// At most `max` in all and `max_per_key` of each key.
    pub(crate) fn new(max: usize, max_per_key: usize) -> Self {
        Self { max, max_per_key, table: Mutex::default() }
    }

    /// Begins one; `None` if there are too many.
    pub(crate) fn begin(self: &Arc<Self>, key: K) -> Option<Begun<K>> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let of_key = table.1.get(&key).copied().unwrap_or(0);
        if table.0 >= self.max || of_key >= self.max_per_key {
            return None;
        }
        table.0 += 1;
        table.1.insert(key.clone(), of_key + 1);
        Some(Begun { of: Arc::clone(self), key })
    }
}

/// A request under way, until it is dropped.
pub(crate) struct Begun<K: Eq + Hash + Clone> {
    of: Arc<UnderWay<K>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Drop for Begun<K> {
    fn drop(&mut self) {
        let mut table = self.of.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.0 = table.0.saturating_sub(1);
        if let Some(count) = table.1.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                table.1.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate_holds_and_other_keys_do_not_suffer() {
        let buckets = Buckets::new(Rate { per_second: 10, burst: 5 });
        let at = Duration::from_millis;
        for _ in 0..5 {
            buckets.take_at("a", at(0)).unwrap();
        }
        assert_eq!(buckets.take_at("a", at(0)), Err(at(100)));
        buckets.take_at("b", at(0)).unwrap();
        buckets.take_at("a", at(100)).unwrap();
        assert!(buckets.take_at("a", at(100)).is_err());
    }

    #[test]
    fn what_is_under_way_is_bounded_per_key_and_in_all() {
        let under_way = Arc::new(UnderWay::new(3, 2));
        let first = under_way.begin(1).unwrap();
        let _second = under_way.begin(1).unwrap();
        assert!(under_way.begin(1).is_none());
        let _third = under_way.begin(2).unwrap();
        assert!(under_way.begin(3).is_none());
        drop(first);
        assert!(under_way.begin(1).is_some());
        assert_eq!(under_way.table.lock().unwrap().1.len(), 2);
    }
}
