//! Carriers that come and go, and what is said about them.

use super::*;

impl Resume {
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

    /// Agent: asks the console, over another carrier, to leave this one.
    pub fn ask_move(&mut self, suspect: CarrierNumber, over: CarrierNumber) {
        self.control(over, Record::Move { suspect });
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
}
