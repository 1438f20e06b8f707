//! What is to be sent next, and when time matters.

use super::*;

impl Resume {
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
        self.timer_moved |= channel.begins_to_wait(out.as_ref());
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
        let channel = self.channels.get_mut(&id);
        let out = channel.and_then(|channel| {
            let out = channel.poll_transmit(number, budget, now);
            self.timer_moved |= channel.begins_to_wait(out.as_ref());
            out
        });
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
        let event = self.events.pop_front();
        if event.is_none() {
            self.events.clear(); // from the start of its ring, which is still in the cache
        }
        event
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
}
