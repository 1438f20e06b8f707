//! Messages 1 that were seen already, so that recorded ones cost the relay neither memory nor
//! a place: an honest joiner's ephemeral key, and so its message 1, is new each time.
//!
//! This is economy, not the defence: a replayed message 1 cannot be confirmed anyway. Only
//! messages with a valid ticket are remembered, so that strangers cannot push entries out.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

/// Messages remembered at most; the oldest is forgotten first.
pub const MAX_REMEMBERED: usize = 65_536;

/// Hashes of messages 1 of the last ticket's life.
#[derive(Debug)]
pub struct Replay {
    keep: Duration,
    order: VecDeque<(Instant, [u8; 32])>,
    seen: BTreeSet<[u8; 32]>,
}

impl Replay {
    /// Remembers for `keep`, which is a ticket's life.
    pub fn new(keep: Duration) -> Self {
        Self { keep, order: VecDeque::new(), seen: BTreeSet::new() }
    }

    /// Was this message seen?
    pub fn contains(&self, hash: &[u8; 32]) -> bool {
        self.seen.contains(hash)
    }

    /// Remembers a message; false if it was known.
    pub fn insert(&mut self, hash: [u8; 32], now: Instant) -> bool {
        while self.order.len() >= MAX_REMEMBERED
            || self.order.front().is_some_and(|(at, _)| now.duration_since(*at) > self.keep)
        {
            if let Some((_, old)) = self.order.pop_front() {
                self.seen.remove(&old);
            }
        }
        let new = self.seen.insert(hash);
        if new {
            self.order.push_back((now, hash));
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_a_message_until_its_ticket_is_dead() {
        let now = Instant::now();
        let mut r = Replay::new(Duration::from_secs(600));
        assert!(r.insert([1; 32], now));
        assert!(!r.insert([1; 32], now + Duration::from_secs(599)));
        assert!(r.contains(&[1; 32]));
        r.insert([2; 32], now + Duration::from_secs(601));
        assert!(!r.contains(&[1; 32]));
    }

    #[test]
    fn memory_is_bounded() {
        let now = Instant::now();
        let mut r = Replay::new(Duration::from_secs(600));
        for i in 0..MAX_REMEMBERED as u64 + 10 {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&i.to_be_bytes());
            r.insert(hash, now);
        }
        assert_eq!(r.seen.len(), MAX_REMEMBERED);
        assert_eq!(r.order.len(), MAX_REMEMBERED);
    }
}
