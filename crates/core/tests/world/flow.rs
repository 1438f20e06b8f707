//! Carriers over what was punched, and numbered data over the carrier in use.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use adit_core::{
    path::{Activity, CarrierKind},
    punch::{Event, Family, LocalSocket},
};
use adit_protocol::ids::CarrierNumber;

use super::{AGENT, CONSOLE, Datagram, Signal, Step, World, ms};

pub(crate) const RELAY: u64 = 0;
/// Data are sent so often.
const TICK: Duration = Duration::from_millis(40);
const DIAL_TRIES: u32 = 6;
/// Of the oldest that are not acknowledged, sent again at once.
const RESENT: usize = 8;

type PairKey = (LocalSocket, SocketAddr);

pub(crate) struct Flow {
    next_carrier: u64,
    pub(crate) carriers: BTreeMap<u64, Carrier>,
    pub(crate) relay: bool,
    next_seq: u64,
    /// Not acknowledged: sent at, on.
    waiting: BTreeMap<u64, (Instant, u64)>,
    received: BTreeSet<u64>,
    pub(crate) last_progress: Instant,
    pub(crate) worst_stall: Duration,
    /// Which carrier was chosen when.
    pub(crate) moves: Vec<(Duration, u64)>,
}

#[derive(Debug)]
pub(crate) struct Carrier {
    pub(crate) console: PairKey,
    agent: Option<PairKey>,
    up: bool,
    rtt: Duration,
}

impl Flow {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            next_carrier: 1,
            carriers: BTreeMap::new(),
            relay: false,
            next_seq: 0,
            waiting: BTreeMap::new(),
            received: BTreeSet::new(),
            last_progress: now,
            worst_stall: Duration::ZERO,
            moves: Vec::new(),
        }
    }
}

impl World {
    /// The carrier in use is a direct one.
    pub(crate) fn is_direct(&self) -> bool {
        let used = self.sides[CONSOLE].chooser.in_use();
        used.is_some_and(|(carrier, _)| carrier.0 != RELAY)
    }

    /// Since when it has been, without interruption.
    pub(crate) fn direct_since(&self, since: Duration) -> Option<Duration> {
        let moves = &self.flow.moves;
        let after = moves.iter().find(|(at, carrier)| *at >= since && *carrier != RELAY);
        after.map(|(at, _)| *at)
    }

    pub(super) fn relay_up(&mut self) {
        let kind = CarrierKind::Relayed { slot: 0 };
        let rtt = 2 * self.plan.one_way() + ms(1);
        for side in &mut self.sides {
            assert!(side.chooser.handle_carrier_up(CarrierNumber(RELAY), kind, rtt, self.now));
        }
        self.flow.relay = true;
        self.flow.last_progress = self.now;
        if !self.plan.quiet {
            self.schedule(TICK, Step::Tick);
        }
    }

    /// The console goes on over this carrier, from what the agent did not acknowledge.
    pub(super) fn moved(&mut self, carrier: u64) {
        self.flow.moves.push((self.elapsed(), carrier));
        let waiting: Vec<_> = self.flow.waiting.keys().copied().collect();
        for seq in waiting {
            self.send_data(carrier, Some(seq));
        }
    }

    pub(super) fn tick(&mut self) {
        self.schedule(TICK, Step::Tick);
        let stall = self.now.saturating_duration_since(self.flow.last_progress);
        self.flow.worst_stall = self.flow.worst_stall.max(stall);
        let Some((carrier, _)) = self.sides[CONSOLE].chooser.in_use() else { return };
        let seq = self.flow.next_seq;
        self.flow.next_seq += 1;
        self.send_data(carrier.0, Some(seq));
        if carrier.0 == RELAY {
            return; // nothing is lost there
        }
        let rtt = self.flow.carriers.get(&carrier.0).map_or(ms(100), |c| c.rtt);
        let late = self.now.checked_sub(rtt * 2 + ms(60)).unwrap_or(self.t0);
        let again = self.flow.waiting.iter().filter(|(_, (at, _))| *at < late);
        let again: Vec<_> = again.map(|(seq, _)| *seq).take(RESENT).collect();
        for seq in again {
            self.send_data(carrier.0, Some(seq));
        }
    }

    pub(super) fn ping(&mut self, i: usize, carrier: u64) {
        self.sides[i].chooser.handle_activity(CarrierNumber(carrier), Activity::Sent, self.now);
        self.send_over(i, carrier, Datagram::Ping(carrier));
    }

    fn send_over(&mut self, i: usize, carrier: u64, what: Datagram) {
        if carrier == RELAY {
            return self.signal(i, Signal::Relayed(what));
        }
        let own = |c: &Carrier| if i == CONSOLE { Some(c.console) } else { c.agent };
        if let Some((socket, to)) = self.flow.carriers.get(&carrier).and_then(own) {
            self.send(i, socket, to, what);
        }
    }

    fn send_data(&mut self, carrier: u64, seq: Option<u64>) {
        if let Some(seq) = seq {
            self.flow.waiting.insert(seq, (self.now, carrier));
        }
        let number = CarrierNumber(carrier);
        self.sides[CONSOLE].chooser.handle_activity(number, Activity::Sent, self.now);
        let data = Datagram::Data { carrier, seq };
        if carrier == RELAY {
            self.signal(CONSOLE, Signal::Relayed(data));
        } else if let Some(pair) = self.flow.carriers.get(&carrier).map(|c| c.console) {
            self.send(CONSOLE, pair.0, pair.1, data);
        }
    }

    pub(super) fn receive_flow(&mut self, i: usize, pair: Option<PairKey>, what: Datagram) {
        let now = self.now;
        match what {
            Datagram::Check(_) => {}
            Datagram::Hello(n) => {
                let Some((socket, from)) = pair else { return };
                let admitted = |(_, e): &(Duration, Event)| matches!(e, Event::AddressAdmitted(a) if *a == from);
                if !self.sides[AGENT].events.iter().any(admitted) {
                    return;
                }
                let Some(carrier) = self.flow.carriers.get_mut(&n) else { return };
                if *carrier.agent.get_or_insert((socket, from)) != (socket, from) {
                    return;
                }
                let (kind, rtt) = (kind_of(from), carrier.rtt);
                let _ =
                    self.sides[AGENT].chooser.handle_carrier_up(CarrierNumber(n), kind, rtt, now);
                self.send(AGENT, socket, from, Datagram::Welcome(n));
            }
            Datagram::Welcome(n) => {
                let Some(carrier) = self.flow.carriers.get_mut(&n) else { return };
                if pair != Some(carrier.console) || std::mem::replace(&mut carrier.up, true) {
                    return;
                }
                let (kind, rtt) = (kind_of(carrier.console.1), carrier.rtt);
                let number = CarrierNumber(n);
                if !self.sides[CONSOLE].chooser.handle_carrier_up(number, kind, rtt, now) {
                    self.close_carrier(n);
                }
            }
            Datagram::Data { carrier, seq } => {
                if carrier != RELAY
                    && self.flow.carriers.get(&carrier).is_none_or(|c| c.agent != pair)
                {
                    return; // a connection does not migrate
                }
                self.sides[i].chooser.handle_activity(
                    CarrierNumber(carrier),
                    Activity::Received,
                    now,
                );
                if let Some((socket, remote)) = pair {
                    self.sides[i].punch.handle_acknowledged(socket, remote, now);
                }
                if seq.is_some_and(|seq| self.flow.received.insert(seq)) {
                    let stall = now.saturating_duration_since(self.flow.last_progress);
                    self.flow.worst_stall = self.flow.worst_stall.max(stall);
                    self.flow.last_progress = now;
                }
                let ack = Datagram::Ack { carrier, seq };
                match pair {
                    Some((socket, from)) => self.send(AGENT, socket, from, ack),
                    None => self.signal(AGENT, Signal::Relayed(ack)),
                }
            }
            Datagram::Ack { carrier, seq } => self.acknowledged(carrier, seq, pair),
            Datagram::Ping(n) | Datagram::Pong(n) => {
                let known = self.flow.carriers.get(&n);
                let own = |c: &Carrier| if i == CONSOLE { Some(c.console) } else { c.agent };
                if n != RELAY && known.and_then(own) != pair {
                    return;
                }
                if matches!(what, Datagram::Ping(_)) {
                    self.sides[i].chooser.handle_activity(
                        CarrierNumber(n),
                        Activity::Received,
                        now,
                    );
                    return self.send_over(i, n, Datagram::Pong(n));
                }
                let waits = |(_, on): &(Instant, u64)| i == CONSOLE && *on == n;
                let outstanding = self.flow.waiting.values().any(waits);
                let activity = Activity::Answered { outstanding };
                self.sides[i].chooser.handle_activity(CarrierNumber(n), activity, now);
            }
        }
    }

    fn acknowledged(&mut self, carrier: u64, seq: Option<u64>, pair: Option<PairKey>) {
        let known = self.flow.carriers.get(&carrier).map(|c| c.console);
        if carrier != RELAY && (known.is_none() || known != pair) {
            return;
        }
        if let Some(seq) = seq {
            self.flow.waiting.remove(&seq);
        }
        let outstanding = self.flow.waiting.values().any(|(_, on)| *on == carrier);
        let activity = Activity::Acknowledged { outstanding };
        let now = self.now;
        self.sides[CONSOLE].chooser.handle_activity(CarrierNumber(carrier), activity, now);
        if let Some((socket, remote)) = pair {
            self.sides[CONSOLE].punch.handle_acknowledged(socket, remote, now);
        }
    }

    /// What punching found out, for the carriers.
    pub(super) fn carrier_event(&mut self, i: usize, event: Event) {
        let now = self.now;
        match event {
            Event::Validated { socket, remote, rtt, .. } => {
                self.checked(i, (socket, remote), true);
                let mut known = self.flow.carriers.values();
                if i == CONSOLE && !known.any(|c| c.console == (socket, remote)) {
                    self.dial((socket, remote), rtt);
                }
            }
            Event::Rebound { socket, remote, .. } => {
                for n in self.carriers_of(i, (socket, remote)) {
                    self.sides[i].chooser.handle_rebound(CarrierNumber(n), now);
                }
                if i == CONSOLE {
                    self.dial((socket, remote), 2 * self.plan.one_way());
                }
            }
            Event::Rtt { socket, remote, .. } => self.checked(i, (socket, remote), true),
            Event::Silent { socket, remote } => self.checked(i, (socket, remote), false),
            Event::Retiring { socket, remote } => {
                for n in self.carriers_of(i, (socket, remote)) {
                    self.sides[i].chooser.handle_retiring(CarrierNumber(n), now);
                }
            }
            Event::Expired { socket, remote, .. } => {
                self.close_carriers(i, |pair| pair == (socket, remote));
            }
            _ => {}
        }
    }

    fn carriers_of(&self, i: usize, pair: PairKey) -> Vec<u64> {
        let own = |c: &Carrier| if i == CONSOLE { Some(c.console) } else { c.agent };
        self.flow.carriers.iter().filter(|(_, c)| own(c) == Some(pair)).map(|(n, _)| *n).collect()
    }

    fn checked(&mut self, i: usize, pair: PairKey, answered: bool) {
        for n in self.carriers_of(i, pair) {
            self.sides[i].chooser.handle_check(CarrierNumber(n), answered, self.now);
        }
    }

    fn dial(&mut self, console: PairKey, rtt: Duration) {
        let n = self.flow.next_carrier;
        self.flow.next_carrier += 1;
        self.flow.carriers.insert(n, Carrier { console, agent: None, up: false, rtt });
        self.redial(n, 0);
    }

    pub(super) fn redial(&mut self, n: u64, tries: u32) {
        let Some(carrier) = self.flow.carriers.get(&n).filter(|c| !c.up) else { return };
        if tries >= DIAL_TRIES {
            self.flow.carriers.remove(&n);
            return;
        }
        let (socket, remote) = carrier.console;
        self.send(CONSOLE, socket, remote, Datagram::Hello(n));
        self.schedule(ms(200 << tries), Step::Redial(n, tries + 1));
    }

    pub(super) fn close_carriers(&mut self, i: usize, which: impl Fn(PairKey) -> bool) {
        let own = |c: &Carrier| if i == CONSOLE { Some(c.console) } else { c.agent };
        let gone = self.flow.carriers.iter().filter(|(_, c)| own(c).is_some_and(&which));
        let gone: Vec<_> = gone.map(|(n, _)| *n).collect();
        for n in gone {
            self.signal(i, Signal::Closed(n));
            self.close_carrier(n);
        }
    }

    pub(super) fn close_carrier(&mut self, n: u64) {
        self.flow.carriers.remove(&n);
        for side in &mut self.sides {
            side.chooser.handle_carrier_down(CarrierNumber(n), self.now);
        }
    }

    pub(super) fn suspected(&mut self, n: u64) {
        self.sides[CONSOLE].chooser.handle_suspect(CarrierNumber(n), self.now);
    }
}

fn kind_of(remote: SocketAddr) -> CarrierKind {
    CarrierKind::Direct { family: Family::of(remote) }
}
