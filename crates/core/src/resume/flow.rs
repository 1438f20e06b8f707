//! UDP flows: datagrams without offsets, split into pieces where a carrier needs it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use adit_protocol::{
    ids::ChannelId,
    limits::{DATAGRAM_REASSEMBLY, MAX_DATAGRAM, MAX_DATAGRAM_PIECES, UDP_IDLE},
    record::Record,
    target::Target,
};
use bytes::{Bytes, BytesMut};

use super::{Transmit, Violation};

/// Datagrams that wait for a carrier; newer ones push out older ones.
const MAX_QUEUED: usize = 64;
/// Datagrams being put together at once.
const MAX_PARTIAL: usize = 16;

#[derive(Debug)]
pub(super) struct Flow {
    pub(super) id: ChannelId,
    pub(super) target: Target,
    /// Console: the agent has answered. Agent: the socket is there.
    pub(super) open: bool,
    queue: VecDeque<Bytes>,
    /// Pieces of the datagram that is being sent.
    sending: Option<(Bytes, u8, u8, usize)>,
    next_id: u32,
    partial: BTreeMap<u32, Partial>,
    last_use: Instant,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
}

#[derive(Debug)]
struct Partial {
    since: Instant,
    pieces: Vec<Option<Bytes>>,
    size: usize,
}

impl Flow {
    pub(super) fn new(id: ChannelId, target: Target, now: Instant) -> Self {
        Self {
            id,
            target,
            open: false,
            queue: VecDeque::new(),
            sending: None,
            next_id: 0,
            partial: BTreeMap::new(),
            last_use: now,
            bytes_sent: 0,
            bytes_received: 0,
        }
    }

    pub(super) fn push(&mut self, datagram: Bytes, now: Instant) {
        self.last_use = now;
        if datagram.len() > MAX_DATAGRAM {
            return;
        }
        if self.queue.len() >= MAX_QUEUED {
            self.queue.pop_front();
        }
        self.bytes_sent += datagram.len() as u64;
        self.queue.push_back(datagram);
    }

    pub(super) fn wants(&self) -> bool {
        self.open && (self.sending.is_some() || !self.queue.is_empty())
    }

    /// The next piece, of at most `max_piece` payload bytes.
    pub(super) fn poll_transmit(&mut self, max_piece: usize) -> Option<Transmit> {
        if !self.open || max_piece == 0 {
            return None;
        }
        let (rest, piece, pieces, size) = loop {
            if let Some(sending) = self.sending.take() {
                break sending;
            }
            let datagram = self.queue.pop_front()?;
            let pieces = datagram.len().div_ceil(max_piece).max(1);
            // What cannot be split into few enough pieces is dropped, as a network would.
            if let Ok(pieces) = u8::try_from(pieces)
                && pieces <= MAX_DATAGRAM_PIECES
            {
                self.next_id = self.next_id.wrapping_add(1);
                break (datagram, 0, pieces, max_piece);
            }
        };
        let mut rest = rest;
        let payload = rest.split_to(size.min(rest.len()));
        if piece + 1 < pieces {
            self.sending = Some((rest, piece + 1, pieces, size));
        }
        let len = u32::try_from(payload.len()).unwrap_or(0);
        let record = Record::Datagram { channel: self.id, id: self.next_id, piece, pieces, len };
        Some(Transmit { record, payload })
    }

    /// Takes in a piece; gives the datagram when it is whole.
    pub(super) fn handle_piece(
        &mut self,
        id: u32,
        piece: u8,
        pieces: u8,
        data: Bytes,
        now: Instant,
    ) -> Result<Option<Bytes>, Violation> {
        if pieces == 0 || pieces > MAX_DATAGRAM_PIECES || piece >= pieces {
            return Err(Violation("datagram piece out of range"));
        }
        self.last_use = now;
        if pieces == 1 {
            self.bytes_received += data.len() as u64;
            return Ok(Some(data));
        }
        self.partial.retain(|_, p| now.saturating_duration_since(p.since) < DATAGRAM_REASSEMBLY);
        if !self.partial.contains_key(&id) && self.partial.len() >= MAX_PARTIAL {
            self.partial.pop_first();
        }
        let partial = self.partial.entry(id).or_insert_with(|| Partial {
            since: now,
            pieces: vec![None; usize::from(pieces)],
            size: 0,
        });
        if partial.pieces.len() != usize::from(pieces) {
            self.partial.remove(&id);
            return Ok(None);
        }
        if let Some(slot) = partial.pieces.get_mut(usize::from(piece))
            && slot.is_none()
        {
            partial.size += data.len();
            *slot = Some(data);
        }
        if partial.size > MAX_DATAGRAM {
            self.partial.remove(&id);
            return Ok(None);
        }
        if partial.pieces.iter().any(Option::is_none) {
            return Ok(None);
        }
        let mut whole = BytesMut::with_capacity(partial.size);
        partial.pieces.iter().flatten().for_each(|p| whole.extend_from_slice(p));
        self.partial.remove(&id);
        self.bytes_received += whole.len() as u64;
        Ok(Some(whole.freeze()))
    }

    pub(super) fn idle_at(&self) -> Instant {
        self.last_use + UDP_IDLE
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "small numbers")]
    use super::*;
    use adit_protocol::target::Transport;
    use proptest::prelude::*;

    fn flow(now: Instant) -> Flow {
        let mut f = Flow::new(ChannelId(1), Target::parse("a:1", Transport::Udp).unwrap(), now);
        f.open = true;
        f
    }

    proptest! {
        #[test]
        fn split_datagrams_come_together_in_any_order(
            len in 0usize..20_000, max_piece in 400usize..2000, seed in any::<u64>(),
        ) {
            let now = Instant::now();
            let (mut a, mut b) = (flow(now), flow(now));
            let data: Bytes = (0..len).map(|i| (i % 251) as u8).collect();
            a.push(data.clone(), now);
            let mut pieces = vec![];
            while let Some(t) = a.poll_transmit(max_piece) {
                pieces.push(t);
            }
            let mut order: Vec<usize> = (0..pieces.len()).collect();
            order.sort_by_key(|i| (*i as u64 + 1).wrapping_mul(seed | 1));
            let mut whole = None;
            for i in order {
                let Record::Datagram { id, piece, pieces: n, .. } = pieces[i].record else {
                    unreachable!()
                };
                prop_assert!(whole.is_none());
                whole = b.handle_piece(id, piece, n, pieces[i].payload.clone(), now).unwrap();
            }
            prop_assert_eq!(whole, Some(data));
        }
    }

    #[test]
    fn backlog_keeps_the_newest() {
        let now = Instant::now();
        let mut f = flow(now);
        for i in 0..100u8 {
            f.push(Bytes::copy_from_slice(&[i]), now);
        }
        assert_eq!(f.poll_transmit(100).unwrap().payload[0], 36);
    }
}
