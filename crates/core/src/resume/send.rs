//! Sending half of a channel: bytes wait here, held once, until the peer has delivered them.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Violation;

/// Bytes from `acked` (what the peer has written to its local socket) to `end` (what the local
/// socket has given us), in the chunks in which they were read.
#[derive(Debug, Default)]
pub(super) struct SendBuffer {
    chunks: VecDeque<Bytes>,
    acked: u64,
    end: u64,
    /// Highest offset ever handed to a carrier.
    sent_max: u64,
    /// Next offset for the carrier in use.
    next: u64,
    /// Chunk that holds `next` and the offset of that chunk's first byte: without it every
    /// transmit would walk the queue from the front.
    cursor: (usize, u64),
}

impl SendBuffer {
    pub(super) fn push(&mut self, data: Bytes) {
        self.end += data.len() as u64;
        if !data.is_empty() {
            self.chunks.push_back(data);
        }
    }

    pub(super) fn acked(&self) -> u64 {
        self.acked
    }
    pub(super) fn end(&self) -> u64 {
        self.end
    }
    pub(super) fn next(&self) -> u64 {
        self.next
    }
    /// Bytes that wait here.
    pub(super) fn held(&self) -> u64 {
        self.end - self.acked
    }
    pub(super) fn sent_max(&self) -> u64 {
        self.sent_max
    }

    /// Continues on another carrier from what the peer has received.
    pub(super) fn rewind(&mut self, received: u64) -> Result<(), Violation> {
        if received > self.sent_max {
            return Err(Violation("attach beyond what was sent"));
        }
        self.next = received.max(self.acked);
        // The first chunk begins at `acked`: what was acknowledged of it is sliced off.
        self.cursor = (0, self.acked);
        Ok(())
    }

    /// Takes up to `budget` bytes below `limit`, from one chunk, without copying.
    pub(super) fn take(&mut self, budget: usize, limit: u64) -> Option<(u64, Bytes)> {
        let limit = limit.min(self.end);
        let (mut index, mut start) = self.cursor;
        while let Some(chunk) = self.chunks.get(index) {
            let len = chunk.len() as u64;
            if self.next >= start + len {
                start += len;
                index += 1;
                continue;
            }
            self.cursor = (index, start);
            let room = limit.saturating_sub(self.next).min(start + len - self.next);
            let n = usize::try_from(room).unwrap_or(usize::MAX).min(budget);
            if n == 0 {
                return None;
            }
            let from = usize::try_from(self.next - start).ok()?;
            let data = chunk.slice(from..from + n);
            let offset = self.next;
            self.next += n as u64;
            self.sent_max = self.sent_max.max(self.next);
            return Some((offset, data));
        }
        self.cursor = (index, start);
        None
    }

    /// Frees what the peer has delivered.
    pub(super) fn ack(&mut self, delivered: u64) -> Result<(), Violation> {
        if delivered > self.sent_max {
            return Err(Violation("ack beyond what was sent"));
        }
        while self.acked < delivered {
            let Some(front) = self.chunks.front_mut() else { break };
            let n = (delivered - self.acked).min(front.len() as u64);
            self.acked += n;
            if n == front.len() as u64 {
                self.chunks.pop_front();
                match self.cursor.0.checked_sub(1) {
                    Some(index) => self.cursor.0 = index,
                    None => self.cursor.1 = self.acked,
                }
            } else {
                let _ = front.split_to(usize::try_from(n).unwrap_or(usize::MAX));
                if self.cursor.0 == 0 {
                    self.cursor.1 = self.acked;
                }
            }
        }
        self.next = self.next.max(self.acked);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "small numbers")]
    use super::*;
    use proptest::prelude::*;

    fn byte_at(offset: u64) -> u8 {
        u8::try_from(offset * 31 % 251).unwrap()
    }

    proptest! {
        /// Whatever the order of pushes, takes, acks and rewinds, bytes keep their offsets.
        #[test]
        fn bytes_keep_their_offsets(ops in proptest::collection::vec((0u8..4, 0u64..5000), 1..200)) {
            let mut b = SendBuffer::default();
            for (op, n) in ops {
                match op {
                    0 => {
                        let data: Vec<u8> = (b.end()..b.end() + n).map(byte_at).collect();
                        b.push(data.into());
                    }
                    1 => {
                        if let Some((offset, data)) = b.take(1 + n as usize, b.acked() + 20_000) {
                            prop_assert_eq!(offset + data.len() as u64, b.next());
                            for (i, byte) in data.iter().enumerate() {
                                prop_assert_eq!(*byte, byte_at(offset + i as u64));
                            }
                        }
                    }
                    2 => {
                        let to = b.acked() + n.min(b.sent_max() - b.acked());
                        b.ack(to).unwrap();
                        prop_assert_eq!(b.acked(), to);
                    }
                    _ => {
                        let to = b.acked() + n.min(b.sent_max() - b.acked());
                        b.rewind(to).unwrap();
                        prop_assert_eq!(b.next(), to);
                    }
                }
            }
            let sent_max = b.sent_max();
            prop_assert!(b.ack(sent_max + 1).is_err());
            prop_assert!(b.rewind(sent_max + 1).is_err());
        }
    }
}
