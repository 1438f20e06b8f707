//! Refusals by the API that anybody with a key can cause as often as it may ask: the first is
//! recorded at once, the same by the same within a minute are counted, and so are those of an
//! account or a partner that causes ever others.
//!
//! The next record tells how many were not recorded, and if there is none for a minute, one of
//! their own does. Must never let one partner's refusals hide
//! another's, nor, within a partner, one account's all others'.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use adit_ledger::{Event, Level};

use super::AdminContext;
use crate::{
    bucket::{Bucket, Rate},
    store::{StoreError, tenants},
};

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

/// One that is to be recorded. Unless it is known to be, the next of the same is: whoever asks and
/// goes away before the answer leaves no minute without a record.
#[must_use = "what was recorded is recorded again"]
pub(crate) struct Due<'a> {
    of: &'a Refusals,
    partner: String,
    key: Option<Key>,
    /// How many were not recorded.
    pub(crate) unrecorded: Unrecorded,
}

impl Due<'_> {
    /// It is on disk.
    pub(crate) fn written(mut self) {
        self.key = None;
    }
}

impl Drop for Due<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.of.undo(&self.partner, &key, self.unrecorded);
        }
    }
}

impl Refusals {
    /// Is this one recorded?
    pub(crate) fn note(&self, partner: &str, key: Key) -> Option<Due<'_>> {
        let unrecorded = self.note_at(partner, &key, self.started.elapsed())?;
        Some(Due { of: self, partner: partner.to_owned(), key: Some(key), unrecorded })
    }

    /// Of each partner, how many were counted and for a minute told by no other.
    pub(crate) fn untold(&self) -> Vec<(String, u64)> {
        self.untold_at(self.started.elapsed())
    }

    fn untold_at(&self, now: Duration) -> Vec<(String, u64)> {
        let mut table = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let untold = |(partner, of): (&String, &mut OfPartner)| {
            of.forget(now);
            let told = of.unrecorded > 0 && of.bucket.take(OF_PARTNER, now).is_ok();
            told.then(|| (partner.clone(), std::mem::take(&mut of.unrecorded)))
        };
        table.iter_mut().filter_map(untold).collect()
    }

    /// The same of all that were counted, to be told before this is forgotten.
    fn rest(&self) -> Vec<(String, u64)> {
        let mut table = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = |(partner, of): (&String, &mut OfPartner)| {
            of.forget(Duration::MAX);
            let count = std::mem::take(&mut of.unrecorded);
            (count > 0).then(|| (partner.clone(), count))
        };
        table.iter_mut().filter_map(rest).collect()
    }

    /// They could not be told.
    pub(crate) fn still_untold(&self, partner: &str, count: u64) {
        let mut table = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of) = table.get_mut(partner) {
            of.unrecorded = of.unrecorded.saturating_add(count);
        }
    }

    fn note_at(&self, partner: &str, key: &Key, now: Duration) -> Option<Unrecorded> {
        let mut table = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= MAX_PARTNERS && !table.contains_key(partner) {
            table.retain(|_, of| !of.bucket.is_full(now) || of.has_counted());
        }
        table.entry(partner.to_owned()).or_default().note(key, now)
    }

    fn undo(&self, partner: &str, key: &Key, told: Unrecorded) {
        let mut table = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of) = table.get_mut(partner) else { return };
        let since = of.recorded.remove(key).map_or(0, |(_, others)| others);
        let all = [told.others, told.of_partner, since, 1];
        of.unrecorded = all.into_iter().fold(of.unrecorded, u64::saturating_add);
    }
}

/// Records of each partner how many refusals were counted and told by no record.
/// `last`: no other follows, since the program ends.
pub(crate) async fn tell_untold(context: &AdminContext, last: bool) {
    let refusals = &context.refusals;
    for (partner, count) in if last { refusals.rest() } else { refusals.untold() } {
        let id = partner.clone();
        let told = context.writer.write(move |tx| {
            Box::pin(async move {
                let name = tenants::partner_by_id(tx, &id).await?.name;
                let event = Event::new("act.refused", Level::Significant)
                    .partner(name)
                    .outcome("refused")
                    .rule("counted")
                    .extra("others_of_partner", count);
                tx.append(&id, event).await.map(|_| ())
            })
        });
        match told.await {
            // An erased partner has no log.
            Ok(()) | Err(StoreError::Missing(_)) => {}
            Err(error) => {
                context.refusals.still_untold(&partner, count);
                tracing::warn!(%error, count, "refusals that were counted are not told yet");
            }
        }
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

    /// Something is told by no record yet.
    fn has_counted(&self) -> bool {
        self.unrecorded > 0 || self.recorded.values().any(|(_, others)| *others > 0)
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

    #[test]
    fn one_that_was_not_written_does_not_count_as_recorded() {
        let refusals = Refusals::default();
        drop(refusals.note("p", key(1, "users.show", 1)));
        let due = refusals.note("p", key(1, "users.show", 1)).unwrap();
        assert_eq!(due.unrecorded.of_partner, 1);
        due.written();
        assert!(refusals.note("p", key(1, "users.show", 1)).is_none());
    }

    #[test]
    fn what_was_counted_is_told_also_if_nothing_follows() {
        let refusals = Refusals::default();
        let at = Duration::from_secs;
        for _ in 0..3_000 {
            let _ = refusals.note_at("p", &key(1, "users.show", 1), at(0));
        }
        refusals.note_at("q", &key(1, "users.show", 1), at(0)).unwrap();
        assert_eq!(refusals.untold_at(at(59)), []);
        assert_eq!(refusals.untold_at(at(60)), [("p".to_owned(), 2_999)]);
        assert_eq!(refusals.untold_at(at(61)), []);
        refusals.still_untold("p", 2_999);
        assert_eq!(refusals.untold_at(at(62)), [("p".to_owned(), 2_999)]);
        let same = refusals.note_at("p", &key(1, "users.show", 1), at(63));
        assert_eq!(same, Some(Unrecorded::default()));
    }

    #[test]
    fn what_was_counted_is_not_lost_with_whom_it_is_counted_of() {
        let refusals = Refusals::default();
        let at = Duration::from_secs;
        for _ in 0..10 {
            let _ = refusals.note_at("p", &key(1, "users.show", 1), at(0));
        }
        let _ = refusals.note_at("q", &key(1, "users.show", 1), at(0));
        refusals.still_untold("q", 7);
        for partner in 0..2 * MAX_PARTNERS {
            // Long after all of p's and q's allowance is there again.
            let _ = refusals.note_at(&partner.to_string(), &key(1, "users.show", 1), at(30));
            let _ = refusals.note_at("last", &key(1, "users.show", 1), at(60));
        }
        assert!(refusals.of.lock().unwrap().len() <= 2 * MAX_PARTNERS + 3);
        // At the end, however short the time since.
        let rest = refusals.rest();
        let of = |name: &str| rest.iter().find(|(partner, _)| partner == name).map(|(_, n)| *n);
        assert_eq!((of("p"), of("q")), (Some(9), Some(7)));
        assert_eq!(refusals.rest(), []);
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
