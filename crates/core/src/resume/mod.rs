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

mod channel;
mod flow;
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
    limits::{
        FAIR_QUANTUM, INITIAL_WINDOW, MAX_CARRIERS, MAX_CHANNEL_WINDOW, MAX_CHANNELS_PER_SESSION,
        MAX_SESSION_WINDOW,
    },
    record::{MAX_VARINT, Record},
    target::{Target, Transport},
    ticket::Role,
};
use bytes::Bytes;

use channel::{Channel, State};
use flow::Flow;
use tombstone::{Epitaph, Tombstones};
pub use types::{ChannelEnd, Deliverable, Event, Shape, TooManyChannels, Transmit, Violation};

/// Control records that may wait for one carrier.
const MAX_CONTROL_QUEUE: usize = 4096;
/// How often channels are judged to be bulk or not.
const BULK_INTERVAL: Duration = Duration::from_secs(1);
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
    next_judgement: Option<Instant>,
    timer_moved: bool,
    /// Sum of windows beyond which none grows.
    window_limit: u64,
    events: VecDeque<Event>,
}

impl Resume {
    /// A session without carriers and channels.
    pub fn new(role: Role) -> Self {
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
            next_judgement: None,
            timer_moved: false,
            window_limit: MAX_SESSION_WINDOW,
            events: VecDeque::new(),
        }
    }

    // ------------------------------------------------------------ carriers

    /// A carrier is ready. `false` if there are too many; then it is to be closed.
    pub fn carrier_up(&mut self, number: CarrierNumber, shape: Shape) -> bool {
        if self.carriers.len() >= MAX_CARRIERS || self.carriers.contains_key(&number) {
            return false;
        }
        self.carriers.insert(
            number,
            Carrier {
                shape,
                rtt: None,
                acknowledged: 0,
                pinged: None,
                control: VecDeque::new(),
                ready: VecDeque::new(),
                in_ready: BTreeSet::new(),
                signalled: false,
                streams_signalled: BTreeSet::new(),
            },
        );
        self.say_last_words(number);
        if self.role == Role::Agent {
            // The agent has no preference; datagrams and last words take the newest carrier until
            // the console attaches or sends elsewhere.
            self.interactive = Some(number);
        }
        true
    }

    /// A carrier is gone, with everything in flight on it.
    pub fn carrier_down(&mut self, number: CarrierNumber) {
        if self.carriers.remove(&number).is_none() {
            return;
        }
        for channel in self.channels.values_mut() {
            channel.carrier_down(number);
        }
        self.tombstones.carrier_down(number);
        for slot in [&mut self.interactive, &mut self.bulk] {
            slot.take_if(|c| *c == number);
        }
        if self.role == Role::Agent {
            self.interactive = self.carriers.keys().next_back().copied();
        }
        if let Some(heir) = self.interactive.or(self.carriers.keys().next_back().copied()) {
            self.say_last_words(heir);
        }
    }

    /// Console: channels go over to these carriers.
    pub fn prefer(&mut self, interactive: CarrierNumber, bulk: CarrierNumber, now: Instant) {
        debug_assert_eq!(self.role, Role::Console);
        (self.interactive, self.bulk) = (Some(interactive), Some(bulk));
        self.next_judgement.get_or_insert(now + BULK_INTERVAL);
        let ids: Vec<_> = self.channels.keys().copied().collect();
        for id in ids {
            self.place(id, now);
        }
        // Flows whose Open may have died with its carrier say it again.
        let flows: Vec<_> =
            self.flows.values().filter(|f| !f.open).map(|f| (f.id, f.target.clone())).collect();
        for (channel, target) in flows {
            self.control(interactive, Record::Open { channel, target, credit: 0 });
        }
        self.signal_flows();
    }

    /// Smoothed round trip of a carrier; windows grow by it.
    pub fn set_rtt(&mut self, number: CarrierNumber, rtt: Duration) {
        if let Some(carrier) = self.carriers.get_mut(&number) {
            carrier.rtt = Some(rtt);
        }
    }

    /// Sends a ping on a carrier.
    pub fn ping(&mut self, number: CarrierNumber, nonce: u64) {
        if let Some(carrier) = self.carriers.get_mut(&number) {
            carrier.pinged = Some(nonce);
        }
        self.control(number, Record::Ping { nonce });
    }

    /// Agent: asks the console to leave a carrier, on whichever other carrier lives.
    pub fn ask_move(&mut self, suspect: CarrierNumber) {
        let other = self.carriers.keys().rev().find(|c| **c != suspect).copied();
        if let Some(other) = other {
            self.control(other, Record::Move { suspect });
        }
    }

    /// Console: asks the agent to join a relay slot.
    pub fn ask_join(&mut self, relay: u32, slot: u32) {
        if let Some(carrier) = self.interactive {
            self.control(carrier, Record::JoinRelay { relay, slot });
        }
    }

    /// Console: tells the agent that a relay is left.
    pub fn tell_leave(&mut self, relay: u32) {
        if let Some(carrier) = self.interactive {
            self.control(carrier, Record::LeaveRelay { relay });
        }
    }

    /// Tells the peer that the session ends, on every carrier, and resets all channels.
    pub fn close(&mut self, reason: &str) {
        let code = ChannelCode::SessionEnded;
        let channels: Vec<_> = self.channels.keys().chain(self.flows.keys()).copied().collect();
        for id in channels {
            self.end(id, Epitaph::Reset(code), false);
        }
        let carriers: Vec<_> = self.carriers.keys().copied().collect();
        for number in carriers {
            self.control(number, Record::Close { reason: reason.into() });
        }
    }

    // ------------------------------------------------------------ channels, local side

    /// Console: opens a channel. Data may be given at once.
    pub fn open(&mut self, target: Target, now: Instant) -> Result<ChannelId, TooManyChannels> {
        debug_assert_eq!(self.role, Role::Console);
        if self.live_channels() >= MAX_CHANNELS_PER_SESSION {
            return Err(TooManyChannels);
        }
        let id = ChannelId(self.next_channel);
        self.next_channel += 1;
        match target.transport() {
            Transport::Tcp => {
                let mut channel = Channel::new(id, target, self.role, now);
                self.windows += channel.recv.window();
                if let Some(carrier) = self.interactive {
                    channel.open_on(carrier);
                }
                self.channels.insert(id, channel);
                self.signal(id, now);
            }
            Transport::Udp => {
                self.flows.insert(id, Flow::new(id, target.clone(), now));
                self.timer_moved = true;
                if let Some(carrier) = self.interactive {
                    self.control(carrier, Record::Open { channel: id, target, credit: 0 });
                }
            }
        }
        Ok(id)
    }

    /// Agent: the target is connected.
    pub fn connected(&mut self, id: ChannelId, now: Instant) {
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.connected();
            self.events.push_back(Event::Deliver(id));
            self.events.push_back(Event::Capacity(id));
            self.signal(id, now);
        } else if let Some(flow) = self.flows.get_mut(&id) {
            flow.open = true;
            if let Some(carrier) = self.interactive {
                self.control(carrier, Record::Opened { channel: id, credit: 0 });
            }
        }
    }

    /// Agent: the target is not to be reached.
    pub fn refuse(&mut self, id: ChannelId, code: ChannelCode) {
        self.end(id, Epitaph::Refused(code), false);
    }

    /// Ends a channel at once, on both sides.
    pub fn reset(&mut self, id: ChannelId, code: ChannelCode) {
        self.end(id, Epitaph::Reset(code), false);
    }

    /// Bytes that the local socket may give now. An [`Event::Capacity`] follows a 0.
    pub fn local_capacity(&mut self, id: ChannelId) -> usize {
        let most = self.most_held();
        let Some(channel) = self.channels.get_mut(&id) else { return 0 };
        let capacity = channel.capacity(most);
        channel.blocked = capacity == 0;
        capacity
    }

    /// Bytes from the local socket, at most [`Resume::local_capacity`].
    pub fn handle_local_data(&mut self, id: ChannelId, data: Bytes, now: Instant) {
        if let Some(channel) = self.channels.get_mut(&id) {
            self.held += data.len() as u64;
            channel.push_local(data);
            self.signal(id, now);
        }
    }

    /// The local socket has ended its sending side.
    pub fn handle_local_fin(&mut self, id: ChannelId, now: Instant) {
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.local_fin();
            self.signal(id, now);
        }
    }

    /// A datagram from the local socket of a flow.
    pub fn handle_local_datagram(&mut self, id: ChannelId, datagram: Bytes, now: Instant) {
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.push(datagram, now);
            self.signal_flows();
        }
    }

    /// What is to be written to the local socket next.
    pub fn take_deliverable(&mut self, id: ChannelId) -> Option<Deliverable> {
        let channel = self.channels.get_mut(&id)?;
        if self.role == Role::Agent && channel.state == State::Opening {
            return None;
        }
        match channel.recv.pop() {
            Some(bytes) => Some(Deliverable::Bytes(bytes)),
            None => channel.recv.fin_ready().then_some(Deliverable::Fin),
        }
    }

    /// Bytes taken by [`Resume::take_deliverable`] were written.
    pub fn handle_delivered(&mut self, id: ChannelId, n: usize, now: Instant) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let rtt = channel.tx.and_then(|c| self.carriers.get(&c)?.rtt).unwrap_or(DEFAULT_RTT);
        let before = channel.recv.window();
        self.timer_moved |= channel.recv.ack_due().is_none();
        channel.delivered_bytes(n, rtt, self.window_limit.saturating_sub(self.windows), now);
        self.windows += channel.recv.window() - before;
        if channel.recv.fin_ready() {
            self.events.push_back(Event::Deliver(id));
        }
        if channel.recv.ack_due().is_some_and(|d| d <= now) {
            self.signal(id, now);
        }
    }

    /// The local socket's sending side was shut down.
    pub fn handle_fin_delivered(&mut self, id: ChannelId, now: Instant) {
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.recv.handle_fin_delivered(now);
            self.signal(id, now);
        }
    }

    // ------------------------------------------------------------ records

    /// Takes in a record without payload. An error kills the carrier.
    pub fn handle_record(
        &mut self,
        carrier: CarrierNumber,
        record: &Record,
        now: Instant,
    ) -> Result<(), Violation> {
        if !self.carriers.contains_key(&carrier) {
            return Ok(());
        }
        match record {
            Record::Open { channel, target, credit } => {
                self.handle_open(carrier, *channel, target, *credit, now)
            }
            Record::Opened { channel, credit } => self.handle_opened(*channel, *credit, now),
            Record::Refused { channel, code } => {
                self.console_only("refused")?;
                self.end(*channel, Epitaph::Refused(*code), true);
                Ok(())
            }
            Record::Attach { channel, epoch, received, credit } => {
                self.handle_attach(carrier, (*channel, *epoch), (*received, *credit), now)
            }
            Record::Ack { channel, delivered, credit } => {
                self.handle_ack(carrier, *channel, *delivered, *credit, now)
            }
            Record::Fin { channel, final_offset } => self.handle_fin(*channel, *final_offset, now),
            Record::Reset { channel, code } => {
                // It may be the first word about a channel that was given up before its Open.
                if self.role == Role::Agent && !self.tombstones.see(*channel) {
                    return Err(Violation("channel ids jump"));
                }
                self.end(*channel, Epitaph::Reset(*code), true);
                Ok(())
            }
            Record::Data { .. } | Record::Datagram { .. } => Err(Violation("payload missing")),
            Record::Move { suspect } => {
                self.console_only("move")?;
                if self.carriers.contains_key(suspect) {
                    self.events.push_back(Event::MoveAsked(*suspect));
                }
                Ok(())
            }
            Record::Ping { nonce } => {
                self.control(carrier, Record::Pong { nonce: *nonce });
                Ok(())
            }
            Record::Pong { nonce } => {
                let from = self.carriers.get_mut(&carrier);
                if from.is_some_and(|c| c.pinged.take_if(|n| n == nonce).is_some()) {
                    self.events.push_back(Event::Pong(carrier, *nonce));
                }
                Ok(())
            }
            Record::JoinRelay { relay, slot } => {
                self.agent_only("join")?;
                self.events.push_back(Event::JoinRelay { relay: *relay, slot: *slot });
                Ok(())
            }
            Record::LeaveRelay { relay } => {
                self.agent_only("leave")?;
                self.events.push_back(Event::LeaveRelay { relay: *relay });
                Ok(())
            }
            Record::Close { reason } => {
                self.events.push_back(Event::PeerClosed(reason.clone()));
                Ok(())
            }
            Record::Hello { .. } | Record::Welcome { .. } => Err(Violation("greeting twice")),
        }
    }

    /// Takes in bytes of a `Data` record, whole or in consecutive parts.
    pub fn handle_data(
        &mut self,
        carrier: CarrierNumber,
        id: ChannelId,
        offset: u64,
        data: Bytes,
    ) -> Result<(), Violation> {
        if !self.carriers.contains_key(&carrier) {
            return Ok(());
        }
        // A channel that is over may still have data under way.
        let Some(channel) = self.channels.get_mut(&id) else { return Ok(()) };
        if channel.recv.handle_data(offset, data)? {
            self.events.push_back(Event::Deliver(id));
        }
        Ok(())
    }

    /// Takes in a `Datagram` record with its payload.
    pub fn handle_datagram(
        &mut self,
        carrier: CarrierNumber,
        record: &Record,
        data: Bytes,
        now: Instant,
    ) -> Result<(), Violation> {
        let Record::Datagram { channel, id, piece, pieces, .. } = record else {
            return Err(Violation("not a datagram"));
        };
        let Some(flow) = self.flows.get_mut(channel) else { return Ok(()) };
        if self.role == Role::Agent && self.carriers.contains_key(&carrier) {
            self.interactive = Some(carrier);
        }
        if let Some(whole) = flow.handle_piece(*id, *piece, *pieces, data, now)? {
            self.events.push_back(Event::Datagram(*channel, whole));
        }
        Ok(())
    }

    // ------------------------------------------------------------ output

    /// Next record for the connection that a carrier's records share. `budget`: payload bytes
    /// that still fit.
    pub fn poll_transmit(
        &mut self,
        number: CarrierNumber,
        budget: usize,
        now: Instant,
    ) -> Option<Transmit> {
        let carrier = self.carriers.get_mut(&number)?;
        if let Some(record) = carrier.control.pop_front() {
            return Some(Transmit { record, payload: Bytes::new() });
        }
        while let Some(carrier) = self.carriers.get_mut(&number)
            && let Some(id) = carrier.ready.pop_front()
        {
            // Alone, a channel may fill the message; with others it takes fair turns.
            let quantum = if carrier.ready.is_empty() { budget } else { budget.min(FAIR_QUANTUM) };
            let out = self.poll_ready_channel(number, id, quantum, now);
            if out.is_some() {
                return out;
            }
            if budget == 0 {
                return None; // the message is full; the caller comes back with another
            }
        }
        if carrier_is_shared(&self.carriers, number)
            && self.interactive == Some(number)
            && let Some(out) = self.poll_datagram(number, budget)
        {
            return Some(out);
        }
        if let Some(carrier) = self.carriers.get_mut(&number) {
            carrier.signalled = false;
        }
        None
    }

    fn poll_ready_channel(
        &mut self,
        number: CarrierNumber,
        id: ChannelId,
        quantum: usize,
        now: Instant,
    ) -> Option<Transmit> {
        let carrier = self.carriers.get_mut(&number)?;
        let Some(channel) = self.channels.get_mut(&id) else {
            carrier.in_ready.remove(&id);
            return None;
        };
        let out = channel.poll_transmit(number, quantum, now);
        if channel.wants(number, now) {
            carrier.ready.push_back(id);
        } else {
            carrier.in_ready.remove(&id);
        }
        if channel.complete() {
            self.finish(id, Some(number));
        }
        out
    }

    /// Next record for a channel's own stream on a carrier of shape [`Shape::Streams`].
    pub fn poll_transmit_stream(
        &mut self,
        number: CarrierNumber,
        id: ChannelId,
        budget: usize,
        now: Instant,
    ) -> Option<Transmit> {
        let out = self.channels.get_mut(&id).and_then(|c| c.poll_transmit(number, budget, now));
        if self.channels.get(&id).is_some_and(Channel::complete) {
            self.finish(id, Some(number));
        }
        if out.is_none()
            && let Some(carrier) = self.carriers.get_mut(&number)
        {
            carrier.streams_signalled.remove(&id);
        }
        out
    }

    /// Next datagram piece for a carrier: `max_piece` payload bytes at most.
    pub fn poll_datagram(&mut self, number: CarrierNumber, max_piece: usize) -> Option<Transmit> {
        if self.interactive != Some(number) {
            return None;
        }
        self.flows.values_mut().find_map(|f| f.poll_transmit(max_piece))
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Resume::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let acks =
            self.channels.values().filter(|c| c.tx.is_some()).filter_map(|c| c.recv.ack_due());
        let flows = self.flows.values().map(Flow::idle_at);
        let judge = self.next_judgement.filter(|_| !self.channels.is_empty());
        acks.chain(flows).chain(judge).min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<_> = self
            .channels
            .values()
            .filter(|c| c.recv.ack_due().is_some_and(|d| d <= now))
            .map(|c| c.id)
            .collect();
        for id in due {
            self.signal(id, now);
        }
        let idle: Vec<_> =
            self.flows.values().filter(|f| f.idle_at() <= now).map(|f| f.id).collect();
        for id in idle {
            self.end(id, Epitaph::Reset(ChannelCode::Idle), false);
        }
        if self.next_judgement.is_some_and(|d| d <= now) {
            self.next_judgement = Some(now + BULK_INTERVAL);
            let changed: Vec<_> =
                self.channels.values_mut().filter_map(|c| c.judge_bulk().then_some(c.id)).collect();
            for id in changed {
                self.place(id, now);
            }
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

    /// Has [`Resume::poll_timeout`] perhaps become earlier since this was asked last?
    pub fn take_timer_moved(&mut self) -> bool {
        std::mem::take(&mut self.timer_moved)
    }

    /// This session's share of what the process may hold, at most [`MAX_SESSION_WINDOW`]. Windows
    /// that are larger already stay; none grows beyond it.
    pub fn set_window_limit(&mut self, bytes: u64) {
        self.window_limit = bytes.min(MAX_SESSION_WINDOW);
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

    fn console_only(&self, what: &'static str) -> Result<(), Violation> {
        if self.role == Role::Console { Ok(()) } else { Err(Violation(what)) }
    }
    fn agent_only(&self, what: &'static str) -> Result<(), Violation> {
        if self.role == Role::Agent { Ok(()) } else { Err(Violation(what)) }
    }

    fn handle_open(
        &mut self,
        carrier: CarrierNumber,
        id: ChannelId,
        target: &Target,
        credit: u64,
        now: Instant,
    ) -> Result<(), Violation> {
        self.agent_only("open from the agent")?;
        if id.0 == 0 || id.0 > MAX_VARINT / 2 {
            return Err(Violation("channel id out of range"));
        }
        if self.channels.contains_key(&id) {
            return Ok(()); // said again on another carrier; the target is not dialled twice
        }
        if let Some(flow) = self.flows.get(&id) {
            if flow.open {
                self.control(carrier, Record::Opened { channel: id, credit: 0 });
            }
            return Ok(());
        }
        if self.tombstones.seen(id) {
            self.answer_dead(carrier, id, None);
            return Ok(());
        }
        if !self.tombstones.see(id) {
            return Err(Violation("channel ids jump"));
        }
        if self.live_channels() >= MAX_CHANNELS_PER_SESSION {
            let how = Epitaph::Refused(ChannelCode::TooMany);
            self.tombstones.bury(id, how, Some(carrier));
            self.control(carrier, how.last_word(id));
            return Ok(());
        }
        match target.transport() {
            Transport::Tcp => {
                let mut channel = Channel::new(id, target.clone(), self.role, now);
                channel.handle_opened(credit);
                channel.state = State::Opening;
                channel.tx = Some(carrier);
                self.windows += channel.recv.window();
                self.channels.insert(id, channel);
            }
            Transport::Udp => {
                self.interactive = Some(carrier);
                self.flows.insert(id, Flow::new(id, target.clone(), now));
                self.timer_moved = true;
            }
        }
        self.events.push_back(Event::Connect(id, target.clone()));
        Ok(())
    }

    fn handle_opened(&mut self, id: ChannelId, credit: u64, now: Instant) -> Result<(), Violation> {
        self.console_only("opened from the console")?;
        if let Some(channel) = self.channels.get_mut(&id) {
            if channel.handle_opened(credit) {
                self.events.push_back(Event::Opened(id));
            }
            self.unblock(id);
            self.signal(id, now);
        } else if let Some(flow) = self.flows.get_mut(&id)
            && !std::mem::replace(&mut flow.open, true)
        {
            self.events.push_back(Event::Opened(id));
            self.signal_flows();
        }
        Ok(())
    }

    fn handle_attach(
        &mut self,
        carrier: CarrierNumber,
        (id, epoch): (ChannelId, u64),
        (received, credit): (u64, u64),
        now: Instant,
    ) -> Result<(), Violation> {
        let Some(channel) = self.channels.get_mut(&id) else {
            if self.role == Role::Agent {
                self.answer_dead(carrier, id, Some(epoch));
            }
            return Ok(());
        };
        if channel.handle_attach(carrier, epoch, received, credit, now)? {
            self.unblock(id);
            self.signal(id, now);
        }
        Ok(())
    }

    /// A word about a channel that is over: it gets the last word again.
    fn answer_dead(&mut self, carrier: CarrierNumber, id: ChannelId, epoch: Option<u64>) {
        let how = self.tombstones.epitaph(id).unwrap_or(Epitaph::Reset(ChannelCode::Unknown));
        if let (Epitaph::Clean { received, .. }, Some(epoch)) = (how, epoch) {
            // All the peer's bytes are here; it only needs to hear so.
            let attach = Record::Attach { channel: id, epoch, received, credit: received };
            self.control(carrier, attach);
        }
        self.control(carrier, how.last_word(id));
    }

    fn handle_ack(
        &mut self,
        carrier: CarrierNumber,
        id: ChannelId,
        delivered: u64,
        credit: u64,
        now: Instant,
    ) -> Result<(), Violation> {
        let Some(channel) = self.channels.get_mut(&id) else { return Ok(()) };
        let held = channel.send.held();
        let result = channel.handle_ack(carrier, delivered, credit);
        let freed = held - channel.send.held();
        self.held -= freed;
        if let Some(carrier) = channel.tx.and_then(|tx| self.carriers.get_mut(&tx)) {
            carrier.acknowledged += freed;
        }
        result?;
        let done = channel.complete();
        let on = channel.tx;
        self.unblock(id);
        self.signal(id, now);
        if done {
            self.finish(id, on);
        }
        Ok(())
    }

    fn handle_fin(&mut self, id: ChannelId, offset: u64, now: Instant) -> Result<(), Violation> {
        let Some(channel) = self.channels.get_mut(&id) else { return Ok(()) };
        let new = channel.recv.handle_fin(offset)?;
        if new && channel.recv.fin_ready() {
            self.events.push_back(Event::Deliver(id));
        } else if !new && channel.recv.finished() {
            channel.recv.handle_fin_delivered(now); // the acknowledgement was lost: again
            self.signal(id, now);
        }
        Ok(())
    }

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
    }

    /// How much one channel may have waiting for the peer. Credit alone must not say: it is the
    /// peer's word.
    fn most_held(&self) -> u64 {
        if self.held < self.window_limit { MAX_CHANNEL_WINDOW } else { INITIAL_WINDOW }
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
        bytes_sent: channel.send.acked(),
        bytes_received: channel.recv.delivered(),
    }
}
