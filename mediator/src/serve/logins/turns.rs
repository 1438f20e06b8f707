//! Whose password is compared next: in turns, so that a flood waits behind itself.
//!
//! Consoles with which their user logged in before have a line of their own that goes first; each
//! line takes one from every asker in turn. An asker is a device in the first, a source in the
//! second. When a line is full, whoever has most in it gives way to whoever has less.
//!
//! INVARIANT: a turn is held by exactly one comparison until it is dropped; nobody waits while
//! one is free.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use adit_protocol::keys::PublicKey;
use tokio::sync::oneshot;

use crate::serve::half_open::Source;

/// Who may wait in each of the two lines, in all and for one asker.
const MAX_WAITING: usize = 64;
const MAX_WAITING_EACH: usize = 8;
/// Turns in a row of the first line while somebody waits in the second.
const MAX_FIRST: u32 = 3;
/// Longest wait for a turn: with what comes after it, below what a console waits for an answer.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// A device with which that user logged in before.
    Known(PublicKey),
    /// Anybody else.
    Stranger(Source),
}

/// A right to compare one password; the next one's when it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Option<Arc<Mutex<Lines>>>);

/// Hands out turns.
pub(super) struct Turns(Arc<Mutex<Lines>>);

#[derive(Debug)]
struct Lines {
    free: usize,
    known: Line<PublicKey>,
    strangers: Line<Source>,
    /// Turns of the first line in a row.
    first: u32,
}

type Waiter = oneshot::Sender<Turn>;

/// One line: each asker's own, and in which order they have their turns.
#[derive(Debug)]
struct Line<K> {
    of: HashMap<K, VecDeque<Waiter>>,
    order: VecDeque<K>,
}

impl Turns {
    /// So many at a time.
    pub(super) fn new(at_once: usize) -> Self {
        let (known, strangers) = (Line::default(), Line::default());
        Self(Arc::new(Mutex::new(Lines { free: at_once, known, strangers, first: 0 })))
    }

    /// Waits for a turn; `None`: too many wait, or it takes too long.
    pub(super) async fn wait(&self, asker: Asker) -> Option<Turn> {
        let turn = {
            let mut lines = lock(&self.0);
            if let Some(free) = lines.free.checked_sub(1) {
                lines.free = free;
                return Some(Turn(Some(Arc::clone(&self.0))));
            }
            match asker {
                Asker::Known(device) => lines.known.join(device),
                Asker::Stranger(source) => lines.strangers.join(source),
            }?
        };
        tokio::time::timeout(QUEUE_TIMEOUT, turn).await.ok()?.ok()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(lines) = self.0.take() else { return };
        let mut all = lock(&lines);
        while let Some(waiter) = all.next() {
            match waiter.send(Turn(Some(Arc::clone(&lines)))) {
                Ok(()) => return,
                // Gone meanwhile. Not to be dropped as it is, under the lock.
                Err(mut turn) => turn.0 = None,
            }
        }
        all.free += 1;
    }
}

impl Lines {
    fn next(&mut self) -> Option<Waiter> {
        if self.first >= MAX_FIRST {
            self.first = 0;
            if let Some(waiter) = self.strangers.next() {
                return Some(waiter);
            }
        }
        match self.known.next() {
            Some(waiter) => {
                self.first += 1;
                Some(waiter)
            }
            None => {
                self.first = 0;
                self.strangers.next()
            }
        }
    }
}

impl<K> Default for Line<K> {
    fn default() -> Self {
        Self { of: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Copy + Eq + Hash> Line<K> {
    fn join(&mut self, asker: K) -> Option<oneshot::Receiver<Turn>> {
        self.forget();
        let own = self.of.get(&asker).map_or(0, VecDeque::len);
        if own >= MAX_WAITING_EACH {
            return None;
        }
        if self.of.values().map(VecDeque::len).sum::<usize>() >= MAX_WAITING {
            let (most, line) = self.of.iter_mut().max_by_key(|(_, line)| line.len())?;
            if line.len() <= own + 1 {
                return None;
            }
            // Dropped, it is told that there is no turn for it.
            line.pop_back();
            let most = *most;
            self.tidy(most);
        }
        let (waiter, turn) = oneshot::channel();
        let line = self.of.entry(asker).or_default();
        line.push_back(waiter);
        if line.len() == 1 {
            self.order.push_back(asker);
        }
        Some(turn)
    }

    fn next(&mut self) -> Option<Waiter> {
        let asker = self.order.pop_front()?;
        let waiter = self.of.get_mut(&asker)?.pop_front();
        self.order.push_back(asker);
        self.tidy(asker);
        waiter
    }

    /// Those who wait no more.
    fn forget(&mut self) {
        for line in self.of.values_mut() {
            line.retain(|waiter| !waiter.is_closed());
        }
        self.of.retain(|_, line| !line.is_empty());
        let of = &self.of;
        self.order.retain(|asker| of.contains_key(asker));
    }

    fn tidy(&mut self, asker: K) {
        if self.of.get(&asker).is_some_and(VecDeque::is_empty) {
            self.of.remove(&asker);
            self.order.retain(|other| *other != asker);
        }
    }
}

fn lock(lines: &Mutex<Lines>) -> MutexGuard<'_, Lines> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::BoxFuture};

    use super::*;

    fn from(n: u8) -> Asker {
        Asker::Stranger(Source::of([192, 0, 2, n].into()))
    }

    fn known() -> Asker {
        Asker::Known(adit_protocol::keys::SigningKey::generate().unwrap().public())
    }

    struct Waiting<'a>(Vec<(u8, BoxFuture<'a, Option<Turn>>)>);

    impl<'a> Waiting<'a> {
        fn join(&mut self, turns: &'a Turns, name: u8, asker: Asker) {
            self.0.push((name, turns.wait(asker).boxed()));
            self.refused();
        }

        /// Who is told that there is no turn.
        fn refused(&mut self) -> Vec<u8> {
            let mut refused = Vec::new();
            self.0.retain_mut(|(name, wait)| match wait.now_or_never() {
                Some(None) => {
                    refused.push(*name);
                    false
                }
                Some(Some(_)) => panic!("{name} has a turn while it is another's"),
                None => true,
            });
            refused
        }

        /// Whose turn it is, one after the other.
        fn order(&mut self, turn: Turn) -> Vec<u8> {
            let (mut names, mut turn) = (Vec::new(), Some(turn));
            while let Some(held) = turn.take() {
                drop(held);
                self.0.retain_mut(|(name, wait)| match wait.now_or_never() {
                    Some(next) => {
                        names.push(*name);
                        assert!(turn.is_none() && next.is_some(), "{name}");
                        turn = next;
                        false
                    }
                    None => true,
                });
            }
            names
        }
    }

    #[tokio::test]
    async fn a_flood_from_one_source_waits_behind_itself() {
        let turns = Turns::new(1);
        let turn = turns.wait(from(1)).await.unwrap();
        let mut waiting = Waiting(Vec::new());
        for name in 10..18 {
            waiting.join(&turns, name, from(1));
        }
        assert!(turns.wait(from(1)).await.is_none(), "more than a source may have");
        waiting.join(&turns, 2, from(2));
        waiting.join(&turns, 3, from(3));
        assert_eq!(waiting.order(turn), [10, 2, 3, 11, 12, 13, 14, 15, 16, 17]);
        assert_eq!(lock(&turns.0).free, 1);
    }

    #[tokio::test]
    async fn consoles_of_before_go_first_and_keep_nobody_out() {
        let turns = Turns::new(1);
        let turn = turns.wait(from(1)).await.unwrap();
        let mut waiting = Waiting(Vec::new());
        for name in [1, 2] {
            waiting.join(&turns, name, from(1));
        }
        for name in 10..15 {
            waiting.join(&turns, name, known());
        }
        assert_eq!(waiting.order(turn), [10, 11, 12, 1, 13, 14, 2]);
    }

    #[tokio::test]
    async fn whoever_has_most_gives_way_to_whoever_is_new() {
        let turns = Turns::new(1);
        let turn = turns.wait(from(1)).await.unwrap();
        let mut waiting = Waiting(Vec::new());
        for name in 0..64 {
            waiting.join(&turns, name, from(name / 8));
        }
        waiting.join(&turns, 100, from(100));
        // The newcomer stands in the line, and one of the eight that each had is told to go.
        assert_eq!(waiting.refused().len(), 1);
        assert_eq!(waiting.0.last().unwrap().0, 100);
        let order = waiting.order(turn);
        assert_eq!(order.iter().position(|name| *name == 100), Some(8), "{order:?}");
    }

    #[tokio::test]
    async fn who_has_gone_takes_no_turn() {
        let turns = Turns::new(2);
        let (one, two) = (turns.wait(from(1)).await.unwrap(), turns.wait(from(1)).await.unwrap());
        let mut waiting = Waiting(Vec::new());
        for name in 0..8 {
            waiting.join(&turns, name, from(1));
        }
        waiting.0.clear();
        waiting.join(&turns, 9, from(1));
        drop(two);
        assert_eq!(waiting.0.remove(0).1.now_or_never().unwrap().map(|_| 9), Some(9));
        drop(one);
        assert_eq!(lock(&turns.0).free, 2);
    }
}
