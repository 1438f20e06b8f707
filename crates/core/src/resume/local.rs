//! The local side of channels: opening, bytes in, bytes out, ends.

use super::*;

impl Resume {
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
        let growth = self.growth();
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let rtt = channel.tx.and_then(|c| self.carriers.get(&c)?.rtt).unwrap_or(DEFAULT_RTT);
        let (window, waiting) = (channel.recv.window(), channel.recv.waiting());
        self.timer_moved |= channel.recv.ack_due().is_none();
        channel.delivered_bytes(n, rtt, growth, now);
        self.windows += channel.recv.window() - window;
        self.memory.remove(waiting - channel.recv.waiting());
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
}
