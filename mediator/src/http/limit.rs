//! How much a source or a principal may ask, and how much of it at a time: token buckets and counts
//! by key, bounded in number.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::bucket::{Bucket, Rate};

/// Keys remembered; those that have all of their allowance are forgotten first.
const MAX_KEYS: usize = 16_384;

/// One bucket for each key.
pub(crate) struct Buckets<K> {
    rate: Rate,
    started: Instant,
    of: Mutex<HashMap<K, Bucket>>,
}

impl<K: Eq + Hash> Buckets<K> {
    /// Buckets of one rate.
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, started: Instant::now(), of: Mutex::default() }
    }

    /// Takes one request, or says how long to wait.
    pub(crate) fn take(&self, key: K) -> Result<(), Duration> {
        self.take_at(key, self.started.elapsed())
    }

    fn take_at(&self, key: K, now: Duration) -> Result<(), Duration> {
        let mut table = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= MAX_KEYS && !table.contains_key(&key) {
            table.retain(|_, bucket| !bucket.is_full(now));
            // So many at once is a flood from everywhere: whoever is new waits.
            if table.len() >= MAX_KEYS {
                return Err(Duration::from_secs(1));
            }
        }
        table.entry(key).or_default().take(self.rate, now)
    }
}

/// Why no more can be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// Of the key in this place there are as many as it may have.
    Of(usize),
    /// All keys together have as many as there may be.
    InAll,
}

/// How many requests are under way: in all, and of each of a request's keys, such as who asks and
/// for which partner.
pub(crate) struct UnderWay<K, const N: usize = 1> {
    max: usize,
    max_each: [usize; N],
    /// Of `max`, only for whoever's last key has none.
    reserved: usize,
    counts: Mutex<Counts<K, N>>,
}

/// INVARIANT: a count is as many as there are [`Begun`] with its key, and none is zero.
struct Counts<K, const N: usize> {
    all: usize,
    of: [HashMap<K, usize>; N],
}

impl<K: Eq + Hash + Clone, const N: usize> UnderWay<K, N> {
    /// At most `max` in all and, in each place of a key, so many of the same.
    pub(crate) fn new(max: usize, max_each: [usize; N]) -> Self {
        Self::reserving(0, max, max_each)
    }

    /// The same, of which so many only for whoever's last key has none: a few that each take their
    /// share leave something to the others.
    pub(crate) fn reserving(reserved: usize, max: usize, max_each: [usize; N]) -> Self {
        let of = std::array::from_fn(|_| HashMap::new());
        Self { max, max_each, reserved, counts: Mutex::new(Counts { all: 0, of }) }
    }

    /// Begins one, or says of what there are too many: of the first key that has its share, before
    /// all. What is refused counts nowhere.
    pub(crate) fn begin(self: &Arc<Self>, keys: [K; N]) -> Result<Begun<K, N>, Full> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_keys = counts.of.iter().zip(&keys).map(|(of, key)| of.get(key).copied());
        if let Some(place) =
            of_keys.zip(self.max_each).position(|(count, max)| count.unwrap_or(0) >= max)
        {
            return Err(Full::Of(place));
        }
        let has_some = counts.of.last().zip(keys.last()).is_some_and(|(of, k)| of.contains_key(k));
        let reserved = if has_some { self.reserved } else { 0 };
        if counts.all >= self.max.saturating_sub(reserved) {
            return Err(Full::InAll);
        }
        counts.all += 1;
        for (of, key) in counts.of.iter_mut().zip(&keys) {
            *of.entry(key.clone()).or_default() += 1;
        }
        Ok(Begun { of: Arc::clone(self), keys })
    }
}

/// A request under way, until it is dropped.
pub(crate) struct Begun<K: Eq + Hash, const N: usize = 1> {
    of: Arc<UnderWay<K, N>>,
    keys: [K; N],
}

impl<K: Eq + Hash, const N: usize> Drop for Begun<K, N> {
    fn drop(&mut self) {
        let mut counts = self.of.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        for (of, key) in counts.of.iter_mut().zip(&self.keys) {
            if let Some(count) = of.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    of.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate_holds_and_other_keys_do_not_suffer() {
        let buckets = Buckets::new(Rate::per_second(10, 5));
        let at = Duration::from_millis;
        for _ in 0..5 {
            buckets.take_at("a", at(0)).unwrap();
        }
        assert_eq!(buckets.take_at("a", at(0)), Err(at(100)));
        buckets.take_at("b", at(0)).unwrap();
        buckets.take_at("a", at(100)).unwrap();
        assert!(buckets.take_at("a", at(100)).is_err());
    }

    /// As a plain list of what is under way says it.
    #[test]
    fn what_is_under_way_is_bounded_of_each_key_and_in_all_whatever_comes_and_goes() {
        const MAX: usize = 12;
        const EACH: [usize; 2] = [2, 5];
        for seed in 1..=64_u64 {
            let mut state = seed;
            let mut random = |below: usize| {
                // Knuth's MMIX.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                usize::try_from(state >> 33).unwrap() % below
            };
            let under_way = Arc::new(UnderWay::new(MAX, EACH));
            let (mut begun, mut refused) = (Vec::new(), [0; 3]);
            for step in 0..2_000 {
                if random(3) == 0 && !begun.is_empty() {
                    drop(begun.swap_remove(random(begun.len())));
                    continue;
                }
                let asker = random(24);
                let keys = [asker, asker % 4];
                let count = |place: usize| {
                    let same = |one: &&Begun<usize, 2>| one.keys[place] == keys[place];
                    begun.iter().filter(same).count()
                };
                let expected = match () {
                    () if count(0) >= EACH[0] => Some(Full::Of(0)),
                    () if count(1) >= EACH[1] => Some(Full::Of(1)),
                    () if begun.len() >= MAX => Some(Full::InAll),
                    () => None,
                };
                match under_way.begin(keys) {
                    Ok(one) => {
                        assert_eq!(expected, None, "seed {seed}, step {step}");
                        begun.push(one);
                    }
                    Err(full) => {
                        assert_eq!(expected, Some(full), "seed {seed}, step {step}");
                        let kind = if let Full::Of(place) = full { place } else { 2 };
                        refused[kind] += 1;
                    }
                }
            }
            assert!(refused.iter().all(|count| *count > 0), "seed {seed}: {refused:?}");
            begun.clear();
            let counts = under_way.counts.lock().unwrap();
            assert!(counts.all == 0 && counts.of.iter().all(HashMap::is_empty), "seed {seed}");
        }
    }
}
