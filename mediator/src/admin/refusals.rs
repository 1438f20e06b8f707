//! Refusals by the API that anybody with a key can cause as often as it may ask: the first is
//! recorded at once, the same by the same within a minute are counted, and so are those of an
//! account or a partner that causes ever others.
//!
//! The next record tells how many were not recorded. Must never let one partner's refusals hide
//! another's, nor, within a partner, one account's all others'.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::bucket::{Bucket, Rate};

/// Time for which the same is recorded once.
const ONCE_IN: Duration = Duration::from_secs(60);
/// Different ones of an account: each operation refused once or twice, and then a pace.
const OF_ACCOUNT: Rate = Rate { each: Duration::from_secs(2), burst: 256 };
/// Those of all accounts of a partner.
const OF_PARTNER: Rate = Rate { each: Duration::from_millis(500), burst: 2_048 };
/// Remembered of a partner before what is over a minute old is forgotten. INVARIANT: more than a
/// burst and what the pace gives in a minute, so that there is always something to forget.
const MAX_KEYS: usize = 4_096;
/// Partners remembered before those are forgotten that were not refused anything lately.
const MAX_PARTNERS: usize = 4_096;

/// Account, operation and code.
pub(crate) type Key = (String, &'static str, String);

/// What was recorded lately.
#[derive(Debug)]
pub(crate) struct Refusals {
    started: Instant,
    of: Mutex<BTreeMap<String, OfPartner>>,
}

/// How many were not recorded since the last that were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unrecorded {
    /// Of the very same.
    pub(crate) others: u64,
    /// Of others of the partner.
    pub(crate) of_partner: u64,
}

#[derive(Debug, Default)]
struct OfPartner {
    bucket: Bucket,
    accounts: BTreeMap<String, Bucket>,
    recorded: BTreeMap<Key, (Duration, u64)>,
    unrecorded: u64,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { started: Instant::now(), of: Mutex::default() }
    }
}

impl Refusals {
    /// Is this one recorded? If so: how many were not.
    pub(crate) fn note(&self, partner: &str, key: &Key) -> Option<Unrecorded> {
        self.note_at(partner, key, self.started.elapsed())
    }

    fn note_at(&self, partner: &str, key: &Key, now: Duration) -> Option<Unrecorded> {
        let mut table = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= MAX_PARTNERS && !table.contains_key(partner) {
            table.retain(|_, of| !of.bucket.is_full(now));
        }
        table.entry(partner.to_owned()).or_default().note(key, now)
    }

    /// The record could not be made: the next of the same is tried again.
    pub(crate) fn undo(&self, partner: &str, key: &Key, told: Unrecorded) {
        let mut table = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of) = table.get_mut(partner) else { return };
        let since = of.recorded.remove(key).map_or(0, |(_, others)| others);
        let all = [told.others, told.of_partner, since, 1];
        of.unrecorded = all.into_iter().fold(of.unrecorded, u64::saturating_add);
    }
}

impl OfPartner {
    fn note(&mut self, key: &Key, now: Duration) -> Option<Unrecorded> {
        if self.recorded.len().max(self.accounts.len()) >= MAX_KEYS {
            self.forget(now);
        }
        let noted = self.recorded.get_mut(key);
        let lately = noted.as_ref().is_some_and(|(at, _)| now.saturating_sub(*at) < ONCE_IN);
        // An account without room takes nothing of the partner's; one is remembered only for what
        // the partner had room for.
        let mut bucket = self.bucket;
        let room = !lately && bucket.take(OF_PARTNER, now).is_ok() && {
            let account = self.accounts.entry(key.0.clone()).or_default();
            account.take(OF_ACCOUNT, now).is_ok()
        };
        if room {
            self.bucket = bucket;
        }
        match noted {
            Some((_, others)) if !room => *others = others.saturating_add(1),
            None if !room => self.unrecorded = self.unrecorded.saturating_add(1),
            found => {
                let others = found.map_or(0, |(_, others)| *others);
                self.recorded.insert(key.clone(), (now, 0));
                return Some(Unrecorded {
                    others,
                    of_partner: std::mem::take(&mut self.unrecorded),
                });
            }
        }
        None
    }

    /// What is over a minute old; what was counted of it is told as the partner's.
    fn forget(&mut self, now: Duration) {
        let mut counted = 0_u64;
        self.recorded.retain(|_, (at, others)| {
            let stays = now.saturating_sub(*at) < ONCE_IN;
            counted = counted.saturating_add(if stays { 0 } else { *others });
            stays
        });
        self.unrecorded = self.unrecorded.saturating_add(counted);
        self.accounts.retain(|_, bucket| !bucket.is_full(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(account: u32, operation: &'static str, code: u32) -> Key {
        (account.to_string(), operation, code.to_string())
    }

    #[test]
    fn the_same_is_recorded_once_a_minute_and_tells_how_many_were_not() {
        let refusals = Refusals::default();
        let at = Duration::from_secs;
        let same = key(1, "users.show", 1);
        assert_eq!(refusals.note_at("p", &same, at(0)), Some(Unrecorded::default()));
        for _ in 0..3_000 {
            assert_eq!(refusals.note_at("p", &same, at(59)), None);
        }
        for other in [key(2, "users.show", 1), key(1, "users.list", 1), key(1, "users.show", 2)] {
            assert_eq!(refusals.note_at("p", &other, at(59)), Some(Unrecorded::default()));
        }
        let told = Unrecorded { others: 3_000, of_partner: 0 };
        assert_eq!(refusals.note_at("p", &same, at(60)), Some(told));
        // Nothing is lost if it cannot be written.
        refusals.undo("p", &same, told);
        let told = Unrecorded { others: 0, of_partner: 3_001 };
        assert_eq!(refusals.note_at("p", &same, at(60)), Some(told));
    }

    /// Whatever an account or a partner is refused: all is in a record or counted in one, their
    /// number is bounded, and others have their own.
    #[test]
    fn who_is_refused_ever_other_things_hides_nothing_of_others_and_all_is_counted() {
        let refusals = Refusals::default();
        let burst = |rate: Rate| rate.burst as usize;
        let (mut recorded, mut counted) = (0, 0);
        let mut note = |key: &Key, now| {
            let told = refusals.note_at("p", key, now);
            recorded += usize::from(told.is_some());
            let told = told.unwrap_or_default();
            counted += usize::try_from(told.others + told.of_partner).unwrap();
            recorded
        };
        for code in 0..2_000 {
            note(&key(1, "a", code), Duration::ZERO);
        }
        let of_one = note(&key(1, "a", 0), Duration::ZERO);
        assert_eq!(of_one, burst(OF_ACCOUNT));
        assert_eq!(note(&key(2, "a", 0), Duration::ZERO), of_one + 1, "hidden by another account");
        for account in 3..20_000 {
            note(&key(account, "a", 0), Duration::ZERO);
        }
        assert_eq!(note(&key(1, "a", 0), Duration::ZERO), burst(OF_PARTNER));
        let fresh = Some(Unrecorded::default());
        assert_eq!(refusals.note_at("q", &key(1, "a", 0), Duration::ZERO), fresh);
        // Later, all is forgotten, but for how many there were.
        let later = Duration::from_secs(7_200);
        for code in 0..10_000 {
            note(&key(20_000 + code, "b", code), later);
        }
        note(&key(1, "a", 0), later + ONCE_IN);
        let of = refusals.of.lock().unwrap();
        let p = of.get("p").unwrap();
        assert!(p.recorded.len() <= MAX_KEYS && p.accounts.len() <= MAX_KEYS);
        let left: u64 = p.recorded.values().map(|(_, others)| others).sum::<u64>() + p.unrecorded;
        let all = 2_000 + 1 + 1 + 19_997 + 1 + 10_000 + 1;
        assert_eq!(recorded + counted + usize::try_from(left).unwrap(), all);
    }
}
