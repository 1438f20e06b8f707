//! Further sockets: when a first one had bad luck, and before a NAT forgets a mapping.
//!
//! Some carriers' NATs forget every mapping after a fixed time, whatever flows over it. The time
//! is learnt from mappings that were lost; then the next one is punched from a fresh socket while
//! the old one still works. The old one is watched until it dies: if it does not, the NAT has no
//! such habit.

use std::time::{Duration, Instant};

use rand::{RngExt as _, rngs::StdRng};

use super::{FRESH_GAP, FRESH_TRIES, MAPPING_LIFE, pair::Lost};

#[derive(Debug)]
pub(super) struct Fresh {
    /// How long mappings live, as far as is known.
    life: Option<Duration>,
    asked_at: Option<Instant>,
    tries: usize,
    next_try: Option<Instant>,
}

impl Fresh {
    pub(super) fn new() -> Self {
        Self { life: None, asked_at: None, tries: 0, next_try: None }
    }

    pub(super) fn life(&self) -> Option<Duration> {
        self.life
    }

    /// Punching begins, or begins again in another network.
    pub(super) fn handle_start(&mut self, now: Instant) {
        self.tries = 0;
        self.next_try = FRESH_TRIES.first().map(|after| now + *after);
    }

    /// Punching begins again: as before, unless it was all tried in vain.
    pub(super) fn handle_restart(&mut self, now: Instant) {
        if self.tries == 0 && self.next_try.is_none() {
            self.handle_start(now);
        }
    }

    /// A path works.
    pub(super) fn handle_path(&mut self) {
        self.tries = 0;
        self.next_try = None;
    }

    /// A mapping was lost at this age.
    pub(super) fn handle_lost(&mut self, lost: Lost) {
        let age = lost.least;
        if MAPPING_LIFE.contains(&age) {
            // An age counts from when the mapping was first seen: it may have been older. And what
            // is known fits if the mapping may have died then, unseen.
            let fits = |life: &Duration| age >= *life * 3 / 4 || *life <= lost.most;
            let longest = self.life.filter(fits).map(|life| life.max(age));
            self.life = Some(longest.unwrap_or(age));
        }
    }

    /// A mapping is older than it should have become.
    pub(super) fn handle_survival(&mut self) {
        self.life = None;
    }

    /// Whether, without a path, another socket is due.
    pub(super) fn try_another(&mut self, now: Instant, rng: &mut StdRng) -> bool {
        if self.next_try.is_none_or(|at| at > now) {
            return false;
        }
        self.tries += 1;
        let [first, ..] = FRESH_TRIES;
        let gap = FRESH_TRIES.get(self.tries).and_then(|next| {
            let last = FRESH_TRIES.get(self.tries - 1).unwrap_or(&first);
            next.checked_sub(*last)
        });
        // By chance the ends' packets may cross where they did not before.
        let jitter = Duration::from_millis(rng.random_range(0..100));
        self.next_try = gap.map(|gap| now + gap + jitter);
        true
    }

    /// The age at which a mapping is to be replaced.
    pub(super) fn ripe(&self) -> Option<Duration> {
        self.life.map(|life| life * 3 / 4)
    }

    /// Whether the mapping that is in use, born then, is to be replaced now.
    pub(super) fn replace(&mut self, born: Instant, now: Instant) -> bool {
        let due = self.replace_at(born).is_some_and(|at| at <= now);
        if due {
            self.asked_at = Some(now);
        }
        due
    }

    /// When it will be.
    pub(super) fn replace_at(&self, born: Instant) -> Option<Instant> {
        let at = born + self.ripe()?;
        Some(self.asked_at.map_or(at, |asked| at.max(asked + FRESH_GAP)))
    }

    /// When another try is due.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.next_try
    }
}
