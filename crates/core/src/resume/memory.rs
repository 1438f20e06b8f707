//! What channels keep in memory until a local socket has taken it, counted.
//!
//! The windows of a session's channels may add up to more than a session may hold: a new channel
//! begins with a whole window, so that its first data need not wait. What counts is what is
//! really kept. It is counted for the session and for the process; must never go beyond
//! [`MAX_SESSION_WINDOW`] and [`MAX_PROCESS_WINDOW`], whatever peers send.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use adit_protocol::limits::{MAX_PROCESS_WINDOW, MAX_SESSION_WINDOW};

/// Beyond this every session keeps its share and no more: what is above is for those who come
/// later, since it can be promised to all.
const SHARED: u64 = MAX_PROCESS_WINDOW / 2;
/// A session that keeps more than this copies all that comes, so that nothing pins the buffer it
/// came in (at most eight times a piece that is not copied, see [`super::recv`]).
const COPY_SESSION: u64 = MAX_SESSION_WINDOW / 8;
/// The same for the process.
const COPY_PROCESS: u64 = MAX_PROCESS_WINDOW / 16;
/// A session that keeps no more than this keeps packets as they came: one read of a socket brings
/// up to 64 of them in one buffer of less than 128 times the least piece that is not copied.
const KEEP_SESSION: u64 = MAX_SESSION_WINDOW / 128;
/// The same for the process.
const KEEP_PROCESS: u64 = MAX_PROCESS_WINDOW / 128;

/// What may be kept as it came, and what is copied out of its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// All is copied.
    Nothing,
    /// Pieces of messages, as relayed carriers bring them, if they are large.
    Messages,
    /// The payload of packets, too.
    Packets,
}

/// What the sessions of one process keep together.
#[derive(Debug, Clone, Default)]
pub struct Pool(Arc<AtomicU64>);

impl Pool {
    /// What each of so many sessions is certain to get.
    pub fn share(sessions: usize) -> u64 {
        (SHARED / (sessions.max(1) as u64)).min(MAX_SESSION_WINDOW)
    }

    /// Bytes kept by all sessions.
    pub fn kept(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one session keeps.
#[derive(Debug, Default)]
pub(super) struct Memory {
    own: u64,
    pool: Pool,
}

impl Memory {
    pub(super) fn new(pool: Pool) -> Self {
        Self { own: 0, pool }
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> u64 {
        self.own
    }

    pub(super) fn add(&mut self, bytes: u64) {
        self.own += bytes;
        self.pool.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn remove(&mut self, bytes: u64) {
        let bytes = bytes.min(self.own);
        self.own -= bytes;
        self.pool.0.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Is more kept than this session may? `share`: what it is certain to get.
    pub(super) fn is_over(&self, share: u64) -> bool {
        self.own > MAX_SESSION_WINDOW || self.own > share && self.pool.kept() > SHARED
    }

    /// Which pieces may pin the buffers that they came in. `more`: bytes not added yet.
    pub(super) fn keep(&self, more: u64) -> Keep {
        let (own, kept) = (self.own + more, self.pool.kept() + more);
        if own > COPY_SESSION || kept > COPY_PROCESS {
            Keep::Nothing
        } else if own > KEEP_SESSION || kept > KEEP_PROCESS {
            Keep::Messages
        } else {
            Keep::Packets
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.remove(self.own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many sessions as there may be, each taking what it gets.
    #[test]
    fn sessions_that_take_all_they_get_stay_within_what_the_process_may_hold() {
        const PIECE: u64 = 64 * 1024;
        let pool = Pool::default();
        let mut sessions: Vec<Memory> = Vec::new();
        for n in 1..=128 {
            sessions.push(Memory::new(pool.clone()));
            let share = Pool::share(n);
            // The others hear of it, and give up what is beyond their share now.
            for memory in &mut sessions {
                while memory.is_over(share) {
                    memory.remove(PIECE);
                }
            }
            for memory in &mut sessions {
                loop {
                    memory.add(PIECE);
                    if memory.is_over(share) {
                        memory.remove(PIECE);
                        break;
                    }
                }
                assert!(pool.kept() <= MAX_PROCESS_WINDOW, "{} kept by {n}", pool.kept());
            }
            // The last to come has its share, whatever the others took before.
            let last = sessions.last().unwrap();
            assert!(last.own + PIECE > share, "{} of {share}", last.own);
        }
        drop(sessions);
        assert_eq!(pool.kept(), 0);
    }
}
