//! Refusals that somebody can cause as often as they like, recorded once a minute.
//!
//! Whoever holds a token that was used up, or a device that was switched off, has proved nothing
//! that would let them fill the log. The first refusal is recorded at once; those that follow
//! within a minute are counted, and the next record tells how many there were.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Time for which one is recorded once, milliseconds.
const ONCE_IN_MS: u64 = 60_000;
/// What was counted is forgotten after this long without another, milliseconds.
const FORGET_MS: u64 = 3_600_000;
/// Tokens and devices that are told apart; all others count as one.
const MAX_KEYS: usize = 4096;
/// The same within a group.
const MAX_OF_GROUP: usize = 64;

/// Who was recorded lately.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<BTreeMap<Vec<u8>, Noted>>);

#[derive(Debug)]
struct Noted {
    recorded_ms: u64,
    others: u64,
}

impl Seldom {
    /// Is this one recorded? If so: how many were not, since the last that was.
    pub(crate) fn note(&self, key: &[u8], now_ms: u64) -> Option<u64> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Self::note_in(&mut table, key, now_ms)
    }

    /// The same for one of a group, such as a partner, that can cause any number of keys: when it
    /// has too many, its others count as one, and no other group's do.
    pub(crate) fn note_of(&self, group: &[u8], key: &[u8], now_ms: u64) -> Option<u64> {
        self.note_within((group, MAX_OF_GROUP), key, now_ms)
    }

    /// The same for a group that may have so many.
    pub(crate) fn note_within(
        &self,
        (group, most): (&[u8], usize),
        key: &[u8],
        now_ms: u64,
    ) -> Option<u64> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let group = [group, &[0]].concat();
        let key = [group.as_slice(), key].concat();
        if table.contains_key(&key) {
            return Self::note_in(&mut table, &key, now_ms);
        }
        let of_group: Vec<_> = table
            .range(group.clone()..)
            .take_while(|(key, _)| key.starts_with(&group))
            .map(|(key, noted)| (key.clone(), noted.recorded_ms))
            .collect();
        let mut count = of_group.len();
        if count >= most {
            for (old, recorded_ms) in of_group {
                if now_ms.abs_diff(recorded_ms) >= FORGET_MS {
                    table.remove(&old);
                    count -= 1;
                }
            }
        }
        if count < most && Self::has_room(&mut table, now_ms) {
            return Self::note_at(&mut table, &key, now_ms);
        }
        // However full it is: what a group's others count as is the group's own.
        Self::note_at(&mut table, &group, now_ms)
    }

    /// What was noted of keys or groups that begin so is not on disk: the next of each is recorded.
    pub(crate) fn record_again(&self, prefix: &[u8]) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_prefix = table.range_mut(prefix.to_vec()..);
        for (_, noted) in of_prefix.take_while(|(key, _)| key.starts_with(prefix)) {
            noted.recorded_ms = 0;
        }
    }

    fn note_in(table: &mut BTreeMap<Vec<u8>, Noted>, key: &[u8], now_ms: u64) -> Option<u64> {
        let fits = table.contains_key(key) || Self::has_room(table, now_ms);
        Self::note_at(table, if fits { key } else { &[] }, now_ms)
    }

    fn has_room(table: &mut BTreeMap<Vec<u8>, Noted>, now_ms: u64) -> bool {
        if table.len() >= MAX_KEYS {
            table.retain(|_, noted| now_ms.abs_diff(noted.recorded_ms) < FORGET_MS);
        }
        table.len() < MAX_KEYS
    }

    fn note_at(table: &mut BTreeMap<Vec<u8>, Noted>, key: &[u8], now_ms: u64) -> Option<u64> {
        let Some(noted) = table.get_mut(key) else {
            table.insert(key.to_vec(), Noted { recorded_ms: now_ms, others: 0 });
            return Some(0);
        };
        // Also of a clock that was set back: nothing stays unrecorded until it is there again.
        if now_ms.abs_diff(noted.recorded_ms) < ONCE_IN_MS {
            noted.others = noted.others.saturating_add(1);
            return None;
        }
        noted.recorded_ms = now_ms;
        Some(std::mem::take(&mut noted.others))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_minute_is_recorded_and_tells_how_many_were_not() {
        let seldom = Seldom::default();
        assert_eq!(seldom.note(b"a", 0), Some(0));
        for _ in 0..500 {
            assert_eq!(seldom.note(b"a", ONCE_IN_MS - 1), None);
        }
        assert_eq!(seldom.note(b"b", 1), Some(0), "others have their own");
        assert_eq!(seldom.note(b"a", ONCE_IN_MS), Some(500));
        assert_eq!(seldom.note(b"a", 2 * ONCE_IN_MS), Some(0));
        assert_eq!(seldom.note(b"a", 2 * ONCE_IN_MS + 1), None);
        assert_eq!(seldom.note(b"a", 1), Some(1), "the clock was set back");
    }

    #[test]
    fn any_number_of_keys_takes_bounded_memory() {
        let seldom = Seldom::default();
        let recorded = (0..3 * MAX_KEYS).filter_map(|n| seldom.note(&n.to_be_bytes(), 0)).count();
        assert!(recorded <= MAX_KEYS + 1, "{recorded}");
        assert!(seldom.0.lock().unwrap().len() <= MAX_KEYS + 1);
    }

    #[test]
    fn one_group_with_any_number_of_keys_silences_no_other() {
        let seldom = Seldom::default();
        let of_p = |now_ms| {
            let note = |n: u32| seldom.note_of(b"p", &n.to_be_bytes(), now_ms);
            (0..1000).filter_map(note).count()
        };
        assert_eq!(of_p(0), MAX_OF_GROUP + 1);
        assert_eq!(seldom.note_of(b"p2", b"x", 0), Some(0));
        assert_eq!(seldom.note_of(b"p", b"x", ONCE_IN_MS), Some(999 - MAX_OF_GROUP as u64));
        assert_eq!(of_p(FORGET_MS + ONCE_IN_MS), MAX_OF_GROUP + 1);
        assert!(seldom.0.lock().unwrap().len() <= MAX_OF_GROUP + 2);
    }

    #[test]
    fn what_does_not_fit_counts_as_its_own_groups() {
        let seldom = Seldom::default();
        for group in 0..100_u8 {
            for n in 0..MAX_OF_GROUP {
                seldom.note_of(&[b'm', group], &n.to_be_bytes(), 0);
            }
        }
        assert!(seldom.0.lock().unwrap().len() >= MAX_KEYS);
        assert_eq!(seldom.note_of(b"lie", b"x", 0), Some(0));
        assert_eq!(seldom.note_of(b"late", b"x", 0), Some(0));
        assert_eq!(seldom.note_of(b"lie", b"y", 1), None);
        assert_eq!(seldom.note_of(b"lie", b"y", ONCE_IN_MS), Some(1));
    }

    #[test]
    fn what_was_not_written_is_recorded_again() {
        let seldom = Seldom::default();
        let now = FORGET_MS;
        assert_eq!(seldom.note_of(b"p1", b"x", now), Some(0));
        assert_eq!(seldom.note_of(b"q1", b"x", now), Some(0));
        assert_eq!(seldom.note_of(b"p1", b"x", now), None);
        seldom.record_again(b"p");
        assert_eq!(seldom.note_of(b"p1", b"x", now), Some(1));
        assert_eq!(seldom.note_of(b"q1", b"x", now), None);
    }
}
