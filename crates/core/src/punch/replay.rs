//! Each request of the peer counts once (a sliding window as in RFC 4303 §3.4.3).
//!
//! Recorded requests, sent again in somebody's name, would make this end send there.

use super::{REPLAY_MEMORY, TransactionId};

const WORDS: usize = (REPLAY_MEMORY / 64) as usize;

#[derive(Default, Debug)]
pub(super) struct ReplayWindow {
    /// One more than the highest number taken; 0: none yet.
    next: u64,
    /// INVARIANT: bit `n % REPLAY_MEMORY` says whether `n` was taken, for the last numbers.
    taken: [u64; WORDS],
}

impl ReplayWindow {
    /// True if this one was not taken before.
    pub(super) fn take(&mut self, id: &TransactionId) -> bool {
        let number = u64::from(counter(id));
        let memory = u64::from(REPLAY_MEMORY);
        if number + memory < self.next {
            return false;
        }
        if number >= self.next {
            for skipped in self.next..number.min(self.next + memory) {
                self.set(skipped, false);
            }
            self.next = number + 1;
            self.set(number, true);
            return true;
        }
        !self.set(number, true)
    }

    /// What it was before.
    fn set(&mut self, number: u64, to: bool) -> bool {
        let bit = number % u64::from(REPLAY_MEMORY);
        let word = usize::try_from(bit / 64).unwrap_or(0);
        let mask = 1u64 << (bit % 64);
        let Some(word) = self.taken.get_mut(word) else { return true };
        let before = *word & mask != 0;
        *word = if to { *word | mask } else { *word & !mask };
        before
    }
}

fn counter(id: &TransactionId) -> u32 {
    let [a, b, c, d, ..] = *id;
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    fn id(n: u32) -> TransactionId {
        let mut id = [7; 12];
        for (to, from) in id.iter_mut().zip(n.to_be_bytes()) {
            *to = from;
        }
        id
    }

    #[test]
    fn takes_each_recent_number_once_and_no_old_one() {
        for seed in 0..50 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut window = ReplayWindow::default();
            let (mut taken, mut highest) = (BTreeSet::new(), 0u32);
            for _ in 0..3000 {
                let number = match rng.random_range(0..10) {
                    0 => highest + rng.random_range(0..3000),
                    1 => rng.random_range(0..=highest),
                    _ => (highest + rng.random_range(0..40)).saturating_sub(30),
                };
                let fresh = number + REPLAY_MEMORY > highest && taken.insert(number);
                let at_the_edge = number + REPLAY_MEMORY == highest;
                assert!(window.take(&id(number)) == fresh || at_the_edge, "seed {seed}");
                highest = highest.max(number);
            }
        }
        let mut window = ReplayWindow::default();
        assert!(window.take(&id(u32::MAX)) && !window.take(&id(u32::MAX)) && !window.take(&id(0)));
    }
}
