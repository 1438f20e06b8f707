//! Records of the peer, checked as they come.

use super::{memory::Keep, *};

impl Resume {
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
        self.handle_pieces(carrier, id, offset, std::iter::once(data))
    }

    /// Takes in the pieces in which bytes of a channel came, the first of them at `offset`.
    pub fn handle_pieces(
        &mut self,
        carrier: CarrierNumber,
        id: ChannelId,
        mut offset: u64,
        pieces: impl Iterator<Item = Bytes>,
    ) -> Result<(), Violation> {
        let Some(shape) = self.carriers.get(&carrier).map(|c| c.shape) else { return Ok(()) };
        // A channel that is over may still have data under way.
        let Some(channel) = self.channels.get_mut(&id) else { return Ok(()) };
        let before = channel.recv.waiting();
        let (mut begins, mut result) = (false, Ok(()));
        for piece in pieces {
            let keep = match self.memory.keep(channel.recv.waiting() - before) {
                Keep::Packets if shape == Shape::Shared => Keep::Messages,
                keep => keep,
            };
            let end = offset.saturating_add(piece.len() as u64);
            match channel.recv.handle_data(offset, piece, keep) {
                Ok(first) => begins |= first,
                Err(violation) => {
                    result = Err(violation);
                    break;
                }
            }
            offset = end;
        }
        let more = channel.recv.waiting() - before;
        if begins {
            self.events.push_back(Event::Deliver(id));
        }
        if more > 0 {
            self.memory.add(more);
            self.keep_within();
        }
        result
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
}
