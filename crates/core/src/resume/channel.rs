//! One redirected TCP connection.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use adit_protocol::{
    ids::{CarrierNumber, ChannelId},
    limits::{INITIAL_WINDOW, MAX_CHANNEL_WINDOW},
    record::Record,
    target::Target,
    ticket::Role,
};
use bytes::Bytes;

use super::{Transmit, Violation, recv::Receiver, send::SendBuffer};

/// Read-ahead from the local socket beyond the peer's credit, so that a fresh credit finds bytes.
const READ_AHEAD: u64 = 64 * 1024;
/// A channel is bulk while it moves more than this per second; a file copy, not a keystroke.
const BULK_BYTES_PER_S: u64 = 512 * 1024;
/// And stops being bulk after this many quieter seconds.
const BULK_CALM_S: u8 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Console: `Open` not yet answered. Agent: target not yet connected.
    Opening,
    Open,
}

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) id: ChannelId,
    pub(super) target: Target,
    pub(super) state: State,
    role: Role,
    pub(super) send: SendBuffer,
    pub(super) recv: Receiver,
    /// The peer's credit.
    credit: u64,
    /// Where we send.
    pub(super) tx: Option<CarrierNumber>,
    /// Console: where we want to send, once the peer has answered `Attach`.
    pub(super) moving: Option<CarrierNumber>,
    epoch: u64,
    /// Console: it was given to a carrier at some time.
    placed: bool,
    pending: Pending,
    local_fin: bool,
    fin_sent: bool,
    /// On any carrier, at any time.
    fin_ever_sent: bool,
    fin_acked: bool,
    /// Last acknowledgement on each carrier. They must not go back on one carrier; those of
    /// different carriers overtake one another.
    acked_on: BTreeMap<CarrierNumber, u64>,
    pub(super) bulk: bool,
    calm_s: u8,
    moved_bytes: u64,
    /// The local side was told that there is no room.
    pub(super) blocked: bool,
}

/// Small records waiting for their carrier, at most one of each.
#[derive(Debug, Default)]
struct Pending {
    open: Option<CarrierNumber>,
    opened: bool,
    attach: Option<CarrierNumber>,
}

impl Channel {
    pub(super) fn new(id: ChannelId, target: Target, role: Role, now: Instant) -> Self {
        Self {
            id,
            target,
            state: State::Opening,
            role,
            send: SendBuffer::default(),
            recv: Receiver::new(now),
            credit: INITIAL_WINDOW,
            tx: None,
            moving: None,
            epoch: 0,
            placed: false,
            pending: Pending::default(),
            local_fin: false,
            fin_sent: false,
            fin_ever_sent: false,
            fin_acked: false,
            acked_on: BTreeMap::new(),
            bulk: false,
            calm_s: 0,
            moved_bytes: 0,
            blocked: false,
        }
    }

    /// Console: first use of a carrier. Data may follow `Open` at once.
    pub(super) fn open_on(&mut self, carrier: CarrierNumber) {
        self.tx = Some(carrier);
        self.placed = true;
        self.pending.open = Some(carrier);
    }

    /// Console: this is the carrier to be on.
    pub(super) fn go_to(&mut self, carrier: CarrierNumber) {
        if self.role == Role::Console && !self.placed {
            self.open_on(carrier)
        } else {
            self.move_to(carrier)
        }
    }

    /// Go over to a carrier; it takes effect when the agent answers.
    fn move_to(&mut self, carrier: CarrierNumber) {
        self.epoch += 1;
        self.moving = Some(carrier);
        if self.state == State::Opening {
            self.pending.open = Some(carrier);
        }
        self.pending.attach = Some(carrier);
    }

    pub(super) fn carrier_down(&mut self, carrier: CarrierNumber) {
        for slot in [&mut self.tx, &mut self.moving] {
            slot.take_if(|c| *c == carrier);
        }
        self.pending.open.take_if(|c| *c == carrier);
        self.pending.attach.take_if(|c| *c == carrier);
        self.acked_on.remove(&carrier);
    }

    /// The peer's `Attach`. Gives `true` if sending now happens on that carrier.
    pub(super) fn handle_attach(
        &mut self,
        carrier: CarrierNumber,
        epoch: u64,
        received: u64,
        credit: u64,
        now: Instant,
    ) -> Result<bool, Violation> {
        let wanted = match self.role {
            Role::Console => self.moving == Some(carrier) && epoch == self.epoch,
            Role::Agent => epoch > self.epoch,
        };
        if !wanted {
            return Ok(false);
        }
        self.send.rewind(received)?;
        self.credit = self.credit.max(credit);
        self.epoch = epoch;
        self.moving = None;
        self.tx = Some(carrier);
        self.fin_sent = false;
        self.recv.tell_again(now);
        if self.role == Role::Agent {
            self.pending.attach = Some(carrier);
            // The first Opened may have died with its carrier; a second one changes nothing.
            self.pending.opened = self.state == State::Open;
        }
        Ok(true)
    }

    pub(super) fn connected(&mut self) {
        self.state = State::Open;
        self.pending.opened = true;
    }

    pub(super) fn handle_opened(&mut self, credit: u64) -> bool {
        self.credit = self.credit.max(credit);
        self.pending.open = None;
        std::mem::replace(&mut self.state, State::Open) == State::Opening
    }

    pub(super) fn push_local(&mut self, data: Bytes) {
        self.moved_bytes += data.len() as u64;
        self.send.push(data);
    }

    pub(super) fn local_fin(&mut self) {
        self.local_fin = true;
    }

    /// Bytes that the local side may still give. `most`: of ours that may wait for the peer
    /// whatever credit it gives, since they wait in our memory; never more than the largest window.
    pub(super) fn capacity(&self, most: u64) -> usize {
        if self.local_fin {
            return 0;
        }
        let acked = self.send.acked();
        let limit = self.credit.min(acked + MAX_CHANNEL_WINDOW) + READ_AHEAD;
        let limit = limit.min(acked + most);
        usize::try_from(limit.saturating_sub(self.send.end())).unwrap_or(0)
    }

    pub(super) fn handle_ack(
        &mut self,
        carrier: CarrierNumber,
        delivered: u64,
        credit: u64,
    ) -> Result<(), Violation> {
        if self.acked_on.get(&carrier).is_some_and(|last| delivered < *last) {
            return Err(Violation("ack went back"));
        }
        let fin = self.local_fin && delivered == self.send.end() + 1;
        if fin && !self.fin_ever_sent {
            return Err(Violation("fin acknowledged before it was sent"));
        }
        let bytes = if fin { self.send.end() } else { delivered };
        if bytes > self.send.acked() {
            self.send.ack(bytes)?;
        }
        self.fin_acked |= fin;
        self.acked_on.insert(carrier, delivered);
        self.credit = self.credit.max(credit);
        Ok(())
    }

    /// Both ways ended and both ends know.
    pub(super) fn complete(&self) -> bool {
        self.fin_acked && self.recv.finished() && self.recv.fin_told()
    }

    pub(super) fn delivered_bytes(&mut self, n: usize, rtt: Duration, grow: u64, now: Instant) {
        self.moved_bytes += n as u64;
        self.recv.handle_delivered(n, rtt, grow, now);
    }

    /// Once a second: does it look like bulk? Gives `true` when that changed.
    pub(super) fn judge_bulk(&mut self) -> bool {
        let busy = std::mem::take(&mut self.moved_bytes) > BULK_BYTES_PER_S;
        self.calm_s = if busy { 0 } else { self.calm_s.saturating_add(1) };
        let bulk = busy || self.bulk && self.calm_s < BULK_CALM_S;
        std::mem::replace(&mut self.bulk, bulk) != bulk
    }

    /// Next record for this carrier.
    pub(super) fn poll_transmit(
        &mut self,
        carrier: CarrierNumber,
        budget: usize,
        now: Instant,
    ) -> Option<Transmit> {
        if let Some(record) = self.poll_small(carrier, now) {
            return Some(Transmit { record, payload: Bytes::new() });
        }
        if self.tx != Some(carrier) {
            return None;
        }
        if let Some((offset, payload)) = self.send.take(budget, self.credit) {
            let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
            return Some(Transmit {
                record: Record::Data { channel: self.id, offset, len },
                payload,
            });
        }
        if self.local_fin && !self.fin_sent && self.send.next() == self.send.end() {
            self.fin_sent = true;
            self.fin_ever_sent = true;
            let record = Record::Fin { channel: self.id, final_offset: self.send.end() };
            return Some(Transmit { record, payload: Bytes::new() });
        }
        None
    }

    /// Before `out` nothing waited for an acknowledgement: from now on the carrier is watched.
    pub(super) fn begins_to_wait(&self, out: Option<&Transmit>) -> bool {
        let data = |record: &Record| matches!(record, Record::Data { offset, .. } if *offset == self.send.acked());
        out.is_some_and(|out| data(&out.record))
    }

    fn poll_small(&mut self, carrier: CarrierNumber, now: Instant) -> Option<Record> {
        let channel = self.id;
        if self.pending.open.take_if(|c| *c == carrier).is_some() {
            let (target, credit) = (self.target.clone(), self.recv.credit());
            return Some(Record::Open { channel, target, credit });
        }
        if self.pending.attach.take_if(|c| *c == carrier).is_some() {
            let (received, credit) = (self.recv.received(), self.recv.credit());
            return Some(Record::Attach { channel, epoch: self.epoch, received, credit });
        }
        if self.tx != Some(carrier) {
            return None;
        }
        if std::mem::take(&mut self.pending.opened) {
            return Some(Record::Opened { channel, credit: self.recv.credit() });
        }
        self.recv.take_ack(now).map(|(delivered, credit)| Record::Ack {
            channel,
            delivered,
            credit,
        })
    }

    /// Is there anything that [`Channel::poll_transmit`] would give?
    pub(super) fn wants(&self, carrier: CarrierNumber, now: Instant) -> bool {
        if self.pending.open == Some(carrier) || self.pending.attach == Some(carrier) {
            return true;
        }
        self.tx == Some(carrier)
            && (self.pending.opened
                || self.recv.ack_due().is_some_and(|d| d <= now)
                || self.send.next() < self.send.end().min(self.credit)
                || self.local_fin && !self.fin_sent && self.send.next() == self.send.end())
    }

    /// Carriers that may have something to send for this channel.
    pub(super) fn carriers(&self) -> impl Iterator<Item = CarrierNumber> + use<> {
        [self.pending.open, self.pending.attach.filter(|c| self.tx != Some(*c)), self.tx]
            .into_iter()
            .flatten()
    }

    /// The last word about a channel that is over: what a late `Attach` is answered with.
    pub(super) fn epitaph(&mut self) -> (u64, u64) {
        let received = self.recv.received();
        (received, self.recv.ack().0)
    }
}
