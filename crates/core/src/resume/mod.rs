//! Channels that outlive their carriers.
//!
//! A session of one end holds *channels* (redirected TCP connections, UDP flows) and *carriers*
//! (authenticated, reliable, ordered connections to the other end). Each channel sends on one
//! carrier at a time and accepts from all. The rules:
//!
//! - Offsets are absolute. The sender keeps every byte until the peer has written it to its
//!   local socket; the receiver drops what it has.
//! - The console moves a channel by `Attach{epoch}` on the new carrier and goes on sending on the
//!   old one until the agent's `Attach` names what it has received. The agent follows the newest
//!   epoch.
//! - A carrier's end is never a channel's end. A channel ends by both `Fin`s, acknowledged, or by
//!   a reset with a reason; its last word is repeated if the carrier died under it.
//! - A peer that breaks a rule ([`Violation`]) loses the carrier, not the session.
//!
//! INVARIANT: whatever carriers are born, die and reorder, the bytes delivered on a channel are a
//! prefix of the bytes given to it at the other end, and all of them if it closes without reset.
//!
//! Sans-IO: call a `handle_*` (or a command), then drain [`Resume::poll_event`]; transmit when an
//! event says so, until `poll_transmit*` gives `None`; call [`Resume::handle_timeout`] at
//! [`Resume::poll_timeout`].

mod carriers;
mod channel;
mod flow;
mod local;
mod memory;
mod output;
mod records;
mod recv;
mod send;
mod tombstone;
mod types;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use adit_protocol::{
    code::ChannelCode,
    ids::{CarrierNumber, ChannelId},
    limits::{FAIR_QUANTUM, MAX_CARRIERS, MAX_CHANNELS_PER_SESSION, MAX_SESSION_WINDOW},
    record::{MAX_VARINT, Record},
    target::{Target, Transport},
    ticket::Role,
};
use bytes::Bytes;

use channel::{Channel, State};
use flow::Flow;
use memory::Memory;
pub use memory::Pool;
use tombstone::{Epitaph, Tombstones};
pub use types::{ChannelEnd, Deliverable, Event, Shape, TooManyChannels, Transmit, Violation};

/// Control records that may wait for one carrier.
const MAX_CONTROL_QUEUE: usize = 4096;
/// How often channels are judged to be bulk or not.
const BULK_INTERVAL: Duration = Duration::from_secs(1);
/// Of what a session may hold, the part that windows may grow to: the rest is for the first
/// windows of channels that come later.
const GROWTH: (u64, u64) = (3, 4);
/// What a channel may always have waiting for the peer, so that each can go on.
const LEAST_HELD: u64 = 4 * 1024;
/// Round trip assumed until one was measured (RFC 9002 §6.2.2 assumes 333 ms; the window should
/// rather not grow too fast).
const DEFAULT_RTT: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Carrier {
    shape: Shape,
    rtt: Option<Duration>,
    /// Bytes of ours that the peer acknowledged while they were sent here.
    acknowledged: u64,
    /// Our ping that has no answer yet: only its answer is an event.
    pinged: Option<u64>,
    control: VecDeque<Record>,
    ready: VecDeque<ChannelId>,
    in_ready: BTreeSet<ChannelId>,
    /// An event asked the shell to transmit, and it has not come to the end yet.
    signalled: bool,
    streams_signalled: BTreeSet<ChannelId>,
}

/// One end of a session.
#[derive(Debug)]
pub struct Resume {
    role: Role,
    carriers: BTreeMap<CarrierNumber, Carrier>,
    channels: BTreeMap<ChannelId, Channel>,
    flows: BTreeMap<ChannelId, Flow>,
    tombstones: Tombstones,
    next_channel: u64,
    interactive: Option<CarrierNumber>,
    bulk: Option<CarrierNumber>,
    windows: u64,
    /// Bytes of all channels that wait for the peer.
    held: u64,
    /// Bytes of all channels that wait for a local socket.
    memory: Memory,
    next_judgement: Option<Instant>,
    timer_moved: bool,
    /// Sum of windows beyond which none grows.
    window_limit: u64,
    events: VecDeque<Event>,
}

impl Resume {
    /// A session without carriers and channels, alone in its process.
    pub fn new(role: Role) -> Self {
        Self::with_pool(role, Pool::default())
    }

    /// A session without carriers and channels beside others.
    pub fn with_pool(role: Role, pool: Pool) -> Self {
        Self {
            role,
            carriers: BTreeMap::new(),
            channels: BTreeMap::new(),
            flows: BTreeMap::new(),
            tombstones: Tombstones::default(),
            next_channel: 1,
            interactive: None,
            bulk: None,
            windows: 0,
            held: 0,
            memory: Memory::new(pool),
            next_judgement: None,
            timer_moved: false,
            window_limit: MAX_SESSION_WINDOW,
            events: VecDeque::new(),
        }
    }

    /// Channels and flows that are alive.
    pub fn live_channels(&self) -> usize {
        self.channels.len() + self.flows.len()
    }

    /// The carrier for what a person waits for, if there is one.
    pub fn in_use(&self) -> Option<CarrierNumber> {
        self.interactive
    }

    /// Has [`Resume::poll_timeout`] perhaps become earlier since this was asked last, or do data
    /// wait for an acknowledgement where none did?
    pub fn take_timer_moved(&mut self) -> bool {
        std::mem::take(&mut self.timer_moved)
    }

    /// This session's share of what the process may hold, at most [`MAX_SESSION_WINDOW`]. Windows
    /// that are larger already stay; none grows beyond it. A session that keeps more than its
    /// share gives channels up once the process is short of memory.
    pub fn set_window_limit(&mut self, bytes: u64) {
        self.window_limit = bytes.min(MAX_SESSION_WINDOW);
        // Others are promised what this one kept beyond its share while there was room.
        self.keep_within();
    }

    /// Where a live channel or flow leads.
    pub fn target(&self, id: ChannelId) -> Option<&Target> {
        let channel = self.channels.get(&id).map(|c| &c.target);
        channel.or_else(|| self.flows.get(&id).map(|f| &f.target))
    }

    /// Is the channel or flow alive?
    pub fn is_live(&self, id: ChannelId) -> bool {
        self.channels.contains_key(&id) || self.flows.contains_key(&id)
    }

    /// Was everything that a live channel was given delivered at the other end?
    pub fn is_delivered(&self, id: ChannelId) -> bool {
        self.channels.get(&id).is_some_and(|channel| channel.send.acked() >= channel.send.end())
    }

    /// Is some channel moving much?
    pub fn has_bulk(&self) -> bool {
        self.channels.values().any(|c| c.bulk)
    }

    /// Bytes of channels that send on this carrier, acknowledged since it is up.
    pub fn acknowledged(&self, number: CarrierNumber) -> u64 {
        self.carriers.get(&number).map_or(0, |c| c.acknowledged)
    }

    /// Is there data that a carrier has been given and the peer has not delivered?
    pub fn outstanding(&self, number: CarrierNumber) -> bool {
        self.channels.values().any(|c| c.tx == Some(number) && c.send.acked() < c.send.sent_max())
    }

    // ------------------------------------------------------------ inner parts

    /// Both ways are done and acknowledged. `told_on`: where our last word went; without it, it is
    /// said again.
    fn finish(&mut self, id: ChannelId, told_on: Option<CarrierNumber>) {
        let Some(mut channel) = self.channels.remove(&id) else { return };
        self.release(&channel);
        let (received, ack) = channel.epitaph();
        let how = Epitaph::Clean { received, ack };
        self.tombstones.bury(id, how, told_on.or(self.interactive));
        if let (None, Some(number)) = (told_on, self.interactive) {
            self.control(number, how.last_word(id));
        }
        self.events.push_back(Event::Closed(id, end_of(&channel, false, None)));
    }

    /// Ends a channel or flow. `by_peer`: the peer knows already.
    fn end(&mut self, id: ChannelId, how: Epitaph, by_peer: bool) {
        let (refused, code) = match how {
            Epitaph::Refused(code) => (true, Some(code)),
            Epitaph::Reset(code) => (false, Some(code)),
            Epitaph::Clean { .. } => (false, None),
        };
        let on = if let Some(channel) = self.channels.remove(&id) {
            self.release(&channel);
            self.events.push_back(Event::Closed(id, end_of(&channel, refused, code)));
            channel.tx
        } else if let Some(flow) = self.flows.remove(&id) {
            // For a flow that has idled out the end is the regular one.
            let code = code.filter(|c| *c != ChannelCode::Idle);
            let end = ChannelEnd {
                target: flow.target,
                refused,
                code,
                bytes_given: flow.bytes_sent,
                bytes_sent: flow.bytes_sent,
                bytes_received: flow.bytes_received,
            };
            self.events.push_back(Event::Closed(id, end));
            self.interactive
        } else {
            return;
        };
        if by_peer {
            // Never said again: a carrier number that cannot die.
            self.tombstones.bury(id, how, Some(CarrierNumber(0)));
            return;
        }
        let on = on.filter(|c| self.carriers.contains_key(c)).or(self.interactive);
        self.tombstones.bury(id, how, on);
        if let Some(on) = on {
            self.control(on, how.last_word(id));
        }
    }

    fn say_last_words(&mut self, number: CarrierNumber) {
        for record in self.tombstones.unsaid(number) {
            self.control(number, record);
        }
    }

    /// Console: sees to it that a channel is on the carrier where it should be.
    fn place(&mut self, id: ChannelId, now: Instant) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let want = if channel.bulk { self.bulk } else { self.interactive };
        let Some(want) = want.filter(|c| self.carriers.contains_key(c)) else { return };
        if channel.moving == Some(want) || channel.moving.is_none() && channel.tx == Some(want) {
            return;
        }
        channel.go_to(want);
        self.signal(id, now);
    }

    /// The memory that a channel took.
    fn release(&mut self, channel: &Channel) {
        self.windows = self.windows.saturating_sub(channel.recv.window());
        self.held = self.held.saturating_sub(channel.send.held());
        self.memory.remove(channel.recv.waiting());
    }

    /// How much one channel may have waiting for the peer. Credit alone must not say: it is the
    /// peer's word. No more than what all of them leave free, so that one that is stuck leaves as
    /// much to the others as it takes.
    fn most_held(&self) -> u64 {
        self.window_limit.saturating_sub(self.held).max(LEAST_HELD)
    }

    /// How much the windows may still grow.
    fn growth(&self) -> u64 {
        (self.window_limit / GROWTH.1 * GROWTH.0).saturating_sub(self.windows)
    }

    /// Gives up channels until what is kept for local sockets is within bounds: first those whose
    /// sockets take least.
    fn keep_within(&mut self) {
        while self.memory.is_over(self.window_limit)
            && let Some(most) = self.channels.values().max_by_key(|c| c.recv.waiting())
            && most.recv.waiting() > 0
        {
            let id = most.id;
            self.end(id, Epitaph::Reset(ChannelCode::TooMany), false);
        }
    }

    fn unblock(&mut self, id: ChannelId) {
        let most = self.most_held();
        if let Some(channel) = self.channels.get_mut(&id)
            && channel.blocked
            && channel.capacity(most) > 0
        {
            channel.blocked = false;
            self.events.push_back(Event::Capacity(id));
        }
    }

    fn control(&mut self, number: CarrierNumber, record: Record) {
        let Some(carrier) = self.carriers.get_mut(&number) else { return };
        if carrier.control.len() >= MAX_CONTROL_QUEUE {
            return; // a peer that asks faster than it reads gets no more answers
        }
        carrier.control.push_back(record);
        signal_carrier(carrier, number, &mut self.events);
    }

    /// Tells the shell which connections have something to send for a channel.
    fn signal(&mut self, id: ChannelId, now: Instant) {
        let Some(channel) = self.channels.get(&id) else { return };
        for number in channel.carriers() {
            let Some(carrier) = self.carriers.get_mut(&number) else { continue };
            if !channel.wants(number, now) {
                continue;
            }
            match carrier.shape {
                Shape::Shared => {
                    if carrier.in_ready.insert(id) {
                        carrier.ready.push_back(id);
                    }
                    signal_carrier(carrier, number, &mut self.events);
                }
                Shape::Streams => {
                    if carrier.streams_signalled.insert(id) {
                        self.events.push_back(Event::TransmitStream(number, id));
                    }
                }
            }
        }
    }

    fn signal_flows(&mut self) {
        if let Some(number) = self.interactive
            && self.flows.values().any(Flow::wants)
            && let Some(carrier) = self.carriers.get_mut(&number)
        {
            signal_carrier(carrier, number, &mut self.events);
        }
    }
}

fn carrier_is_shared(carriers: &BTreeMap<CarrierNumber, Carrier>, number: CarrierNumber) -> bool {
    carriers.get(&number).is_some_and(|c| c.shape == Shape::Shared)
}

fn signal_carrier(carrier: &mut Carrier, number: CarrierNumber, events: &mut VecDeque<Event>) {
    if !std::mem::replace(&mut carrier.signalled, true) {
        events.push_back(Event::Transmit(number));
    }
}

fn end_of(channel: &Channel, refused: bool, code: Option<ChannelCode>) -> ChannelEnd {
    ChannelEnd {
        target: channel.target.clone(),
        refused,
        code,
        bytes_given: channel.send.end(),
        bytes_sent: channel.send.acked(),
        bytes_received: channel.recv.delivered(),
    }
}
