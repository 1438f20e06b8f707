//! Receiving half of a channel: what has arrived, what was delivered, and how much more may come.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use adit_protocol::limits::{ACK_DELAY, INITIAL_WINDOW, MAX_CHANNEL_WINDOW};
use bytes::{Bytes, BytesMut};

use super::{Violation, memory::Keep};

/// The window doubles when half of it was consumed within this many round trips: so it settles
/// at about twice the bandwidth-delay product.
const GROW_WITHIN_RTTS: u32 = 2;
/// A measured round trip below this is counted as this: on a quick network the time in which both
/// ends get to run at all is longer than the wire's, and a window of one wire's round trip would
/// stand empty meanwhile.
const LEAST_RTT: Duration = Duration::from_millis(8);

/// Pieces smaller than this are copied together: each would keep the packet or message alive in
/// which it came, so that a peer that sends single bytes could fill far more than its window.
const SMALL: usize = 1024;
/// What copied pieces are collected in: small ones, and larger ones.
const COLLECTED: (usize, usize) = (4 * SMALL, 32 * SMALL);
/// Pieces of messages smaller than this are copied, for the same reason: buffers that connections
/// are read into are up to eight times as large. Larger ones are copied only if much is kept.
const COPIED: usize = 32 * 1024;

#[derive(Debug)]
pub(super) struct Receiver {
    queue: VecDeque<Bytes>,
    /// The end of the queue, if it is copied.
    copied: BytesMut,
    /// All bytes below have arrived.
    received: u64,
    /// All bytes below were written to the local socket.
    delivered: u64,
    window: u64,
    /// What the peer may send up to, as told to it.
    credit_told: u64,
    delivered_told: u64,
    ack_due: Option<Instant>,
    /// Start of the measurement that may grow the window.
    mark: (Instant, u64),
    /// The peer's `Fin`.
    fin: Option<u64>,
    fin_delivered: bool,
    fin_told: bool,
}

impl Receiver {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            queue: VecDeque::new(),
            copied: BytesMut::new(),
            received: 0,
            delivered: 0,
            window: INITIAL_WINDOW,
            credit_told: INITIAL_WINDOW,
            delivered_told: 0,
            ack_due: None,
            mark: (now, 0),
            fin: None,
            fin_delivered: false,
            fin_told: false,
        }
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    #[cfg(test)]
    pub(super) fn held_for_copies(&self) -> usize {
        self.copied.capacity()
    }

    /// Bytes that wait for the local socket.
    pub(super) fn waiting(&self) -> u64 {
        self.received - self.delivered
    }

    /// Takes in data; `true` if there is something to deliver where there was nothing. `keep`: of
    /// the buffer that it came in.
    pub(super) fn handle_data(
        &mut self,
        offset: u64,
        mut data: Bytes,
        keep: Keep,
    ) -> Result<bool, Violation> {
        let end = offset.checked_add(data.len() as u64).ok_or(Violation("offset overflow"))?;
        if offset > self.received {
            return Err(Violation("gap in data"));
        }
        if end > self.credit_told {
            return Err(Violation("data beyond credit"));
        }
        if self.fin.is_some_and(|f| end > f) {
            return Err(Violation("data beyond fin"));
        }
        if end <= self.received {
            return Ok(false);
        }
        let known = usize::try_from(self.received - offset).unwrap_or(usize::MAX);
        let _ = data.split_to(known.min(data.len()));
        self.received = end;
        let was_empty = self.queue.is_empty() && self.copied.is_empty();
        self.push(data, keep);
        Ok(was_empty)
    }

    fn push(&mut self, data: Bytes, keep: Keep) {
        let least = match keep {
            Keep::Packets => SMALL,
            Keep::Messages => COPIED,
            Keep::Nothing => usize::MAX,
        };
        if data.len() >= least {
            self.end_copied();
            self.queue.push_back(data);
        } else {
            self.copy(data);
        }
    }

    /// Fills one buffer after the other: none is left half empty for a piece that would not fit.
    fn copy(&mut self, mut data: Bytes) {
        let collected = if data.len() < SMALL { COLLECTED.0 } else { COLLECTED.1 };
        while !data.is_empty() {
            let mut room = self.copied.capacity() - self.copied.len();
            if room == 0 {
                self.end_copied();
                self.copied = BytesMut::with_capacity(collected);
                room = self.copied.capacity();
            }
            self.copied.extend_from_slice(&data.split_to(room.min(data.len())));
        }
    }

    fn end_copied(&mut self) {
        // The rest of its buffer goes with it: nothing is held for a channel that is quiet.
        let whole = std::mem::take(&mut self.copied);
        if !whole.is_empty() {
            self.queue.push_back(whole.freeze());
        }
    }

    /// Takes in `Fin`; `true` if it is new.
    pub(super) fn handle_fin(&mut self, final_offset: u64) -> Result<bool, Violation> {
        match self.fin {
            Some(f) if f != final_offset => Err(Violation("conflicting fin")),
            Some(_) => Ok(false),
            None if final_offset != self.received => Err(Violation("fin after a gap")),
            None => {
                self.fin = Some(final_offset);
                Ok(true)
            }
        }
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        if self.queue.is_empty() {
            // From the start of its ring again: otherwise it goes round through all of it, and
            // finds every part of it cold.
            self.queue.clear();
            self.end_copied();
        }
        self.queue.pop_front()
    }

    /// Is everything delivered and only the local shutdown missing?
    pub(super) fn fin_ready(&self) -> bool {
        self.fin == Some(self.delivered) && !self.fin_delivered
    }

    pub(super) fn finished(&self) -> bool {
        self.fin_delivered
    }

    pub(super) fn fin_told(&self) -> bool {
        self.fin_told
    }

    pub(super) fn handle_fin_delivered(&mut self, now: Instant) {
        self.fin_delivered = true;
        self.ack_due = Some(now);
    }

    /// Bytes were written to the local socket. `grow` is how much the window may grow at most.
    pub(super) fn handle_delivered(&mut self, n: usize, rtt: Duration, grow: u64, now: Instant) {
        self.delivered = (self.delivered + n as u64).min(self.received);
        let consumed = self.delivered - self.mark.1;
        let elapsed = now.saturating_duration_since(self.mark.0);
        if consumed >= self.window / 2 {
            if elapsed <= rtt.max(LEAST_RTT) * GROW_WITHIN_RTTS {
                self.window += self.window.min(grow).min(MAX_CHANNEL_WINDOW - self.window);
            }
            self.mark = (now, self.delivered);
        }
        let quarter = self.delivered.saturating_sub(self.delivered_told) >= self.window / 4;
        let due = if quarter { now } else { now + ACK_DELAY };
        self.ack_due = Some(self.ack_due.map_or(due, |d| d.min(due)));
    }

    /// On a new carrier: acknowledgements under way on the old one may be lost.
    pub(super) fn tell_again(&mut self, now: Instant) {
        self.fin_told = false;
        self.ack_due = Some(now);
    }

    pub(super) fn ack_due(&self) -> Option<Instant> {
        self.ack_due
    }

    /// `(delivered, credit)` for an `Ack`, if one is due.
    pub(super) fn take_ack(&mut self, now: Instant) -> Option<(u64, u64)> {
        self.ack_due.filter(|d| *d <= now)?;
        Some(self.ack())
    }

    /// `(delivered, credit)` as they stand. A delivered `Fin` counts as one byte more.
    pub(super) fn ack(&mut self) -> (u64, u64) {
        self.ack_due = None;
        self.delivered_told = self.delivered;
        self.fin_told = self.fin_delivered;
        (self.delivered + u64::from(self.fin_delivered), self.credit())
    }

    /// Credit as of now, noted as told.
    pub(super) fn credit(&mut self) -> u64 {
        self.credit_told = self.credit_told.max(self.delivered + self.window);
        self.credit_told
    }
}
