//! The driver's carriers: which there are, which one is used, which still live.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use adit_core::path::{Activity, CarrierKind as PathKind, PathEvent, Seen};
use adit_protocol::{ids::CarrierNumber, ticket::Role};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::{
    carrier::Life,
    direct::Direct,
    driver::Driver,
    events::{CarrierKind, CarrierState, SessionEvent},
    memory::Way,
    punching::Validated,
    relays::RelayKey,
};

/// Direct carriers that live, and further ones that are being replaced.
const MAX_DIRECT: usize = 2;
const MAX_LEAVING: usize = 2;
/// A session counts as busy for so long after the last sign of life.
const BUSY_FOR: Duration = Duration::from_secs(2);
/// How often the round trip of a relayed carrier is measured.
const PING_EVERY: Duration = Duration::from_secs(5);
/// A handshake that took longer than this waited for something else than the way.
const MAX_HANDSHAKE_RTT: Duration = Duration::from_millis(500);
/// What two ends and a relay may take beyond the measured round trips.
const SLACK: Duration = Duration::from_millis(20);
/// Somebody counts as typing for so long after data came over the interactive connection.
const TYPING: Duration = Duration::from_secs(5);
/// And once more when nothing more is received for so long.
const CEASED: Duration = Duration::from_millis(250);
/// A relayed carrier that has been silent for so long is made anew: after a change of address on
/// the way its connection never comes back.
const SILENT_RELAYED: Duration = Duration::from_secs(2);

/// The relay that a carrier goes through.
#[derive(Clone)]
pub(crate) struct RelayUse {
    pub(crate) key: RelayKey,
    /// Its id at the mediator.
    pub(crate) id: Bytes,
    pub(crate) name: String,
    pub(crate) slot: u32,
    pub(crate) way: Way,
}

/// A carrier that is ready.
pub(crate) struct CarrierUp {
    pub(crate) number: CarrierNumber,
    pub(crate) kind: PathKind,
    pub(crate) rtt: Duration,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) remote: Option<SocketAddr>,
    pub(crate) relay: Option<RelayUse>,
    pub(crate) life: Arc<Life>,
    pub(crate) direct: Option<Direct>,
    pub(crate) stop: CancellationToken,
}

impl Carrier {
    /// Relayed, and not for bulk.
    fn is_interactive(&self) -> bool {
        self.up.relay.as_ref().is_some_and(|relay| relay.slot == 0)
    }
}

impl CarrierUp {
    /// The pair that a direct one uses.
    pub(crate) fn pair(&self) -> Option<Validated> {
        let direct = self.direct.as_ref()?;
        Some(Validated { socket: direct.socket, remote: self.remote? })
    }
}

/// A carrier and how it is doing.
pub(crate) struct Carrier {
    pub(crate) up: CarrierUp,
    pub(crate) state: CarrierState,
    seen: (u64, u64, u64),
    quic_acks: u64,
    /// Bytes of channels.
    acknowledged: u64,
    pinged: Option<Ping>,
    next_ping: Instant,
    /// Data received, when they were last seen to be more, and that it was asked since whether
    /// this was all.
    data: (u64, Instant),
    asked_since: bool,
    /// As measured last.
    pub(crate) rtt: Option<Duration>,
    /// Since when it has not answered.
    pub(crate) silent: Option<Instant>,
    /// Its path is about to be forgotten by a NAT.
    retiring: bool,
}

/// A ping that has no answer yet.
#[derive(Clone, Copy)]
struct Ping {
    nonce: u64,
    sent: Instant,
}

impl Driver {
    pub(crate) fn carrier_up(&mut self, up: CarrierUp, now: Instant) {
        let number = up.number;
        let rtt = self.plausible_rtt(&up);
        if !self.chooser.handle_carrier_up(
            number,
            up.kind,
            rtt.unwrap_or(Duration::from_millis(100)),
            now,
        ) {
            up.stop.cancel();
            return;
        }
        if let Some(rtt) = rtt {
            self.p.shared.with(|resume, _| resume.set_rtt(number, rtt));
        }
        info!(session = %self.p.session, carrier = %number, kind = kind(&up).as_str(), "carrier up");
        if self.stranded.take().is_some() && self.had_carrier {
            // The network is back: a direct path may be, too.
            self.chooser.handle_network_change(now);
        }
        self.had_carrier = true;
        let pair = up.pair();
        if let Some(relay) = &up.relay {
            self.relays.handle_up(&relay.key, relay.slot, number, now);
        }
        let carrier = Carrier {
            up,
            state: CarrierState::Standby,
            seen: (0, 0, 0),
            quic_acks: 0,
            acknowledged: 0,
            pinged: None,
            next_ping: now,
            data: (0, now),
            asked_since: true,
            rtt,
            silent: None,
            retiring: false,
        };
        self.carriers.insert(number, carrier);
        if let Some(pair) = pair {
            self.punching.connected(pair);
        }
        if self.p.role == Role::Agent {
            self.note_in_use();
            self.update_totals();
        } else if self.carriers.get(&number).is_some_and(|c| c.up.relay.is_some())
            && let Some(used) = self.in_use
        {
            // The peer joined anew: perhaps it moved, and the path in use is dead.
            self.ping(used, now);
        }
        self.follow_chooser();
        if self.in_use != Some(number) {
            self.tell_carrier(number);
        }
    }

    /// The handshake of a relayed carrier also waits for the other end to join.
    fn plausible_rtt(&self, up: &CarrierUp) -> Option<Duration> {
        let limit = match &up.relay {
            Some(relay) => self.relays.rtt(&relay.key).map_or(MAX_HANDSHAKE_RTT, |r| r + SLACK),
            None => Duration::MAX,
        };
        (up.rtt > Duration::ZERO).then_some(up.rtt.min(limit))
    }

    /// `why`: a stable word, and a text for the log.
    pub(crate) fn carrier_down(
        &mut self,
        number: CarrierNumber,
        why: (&'static str, String),
        now: Instant,
    ) {
        let Some(mut carrier) = self.carriers.remove(&number) else { return };
        carrier.up.stop.cancel();
        info!(session = %self.p.session, carrier = %number, why = why.1, "carrier down");
        self.chooser.handle_carrier_down(number, now);
        self.relays.handle_down(number, now);
        carrier.state = CarrierState::Lost;
        self.report_carrier(&carrier, if carrier.silent.is_some() { "silent" } else { why.0 });
        self.emit(carrier_event(&carrier));
        self.in_use.take_if(|n| *n == number);
        self.note_in_use();
        // Perhaps it was replaced on the same pair.
        let replaced = self.carriers.values().any(|c| c.up.pair() == carrier.up.pair());
        if let Some(pair) = carrier.up.pair().filter(|_| !replaced) {
            self.punching.connection_lost(pair, now);
        }
        if self.carriers.is_empty() {
            self.stranded.get_or_insert(now);
        }
        self.follow_chooser();
        self.update_totals();
    }

    /// Everything that the machines advise; `Some` ends the session.
    pub(crate) fn follow_advice(&mut self) -> Option<String> {
        self.follow_chooser();
        let direct = |c: &Carrier| c.up.direct.is_some() && c.silent.is_none();
        let direct = self.carriers.values().any(direct);
        self.punching.set_direct(&self.p, direct);
        let carriers = self.carriers_by_pair();
        let followed = self.punching.drain(&mut self.p, &mut self.chooser, &carriers);
        for pair in followed.retiring {
            self.set_retiring(pair, Instant::now());
        }
        for validated in followed.dial {
            self.dial_direct(validated);
        }
        None
    }

    /// Whether there may be one more direct carrier. Those that do not answer, or will not for
    /// long, make room: their pairs are dialled again once they answer.
    pub(crate) fn has_direct_room(&self) -> bool {
        let direct = || self.carriers.iter().filter(|(_, c)| c.up.direct.is_some());
        let leaving = |c: &Carrier| c.silent.is_some() || c.retiring;
        if direct().filter(|(_, c)| !leaving(c)).count() >= MAX_DIRECT {
            return false;
        }
        if direct().count() >= MAX_DIRECT + MAX_LEAVING
            && let Some((_, oldest)) = direct().find(|(_, c)| leaving(c))
        {
            oldest.up.stop.cancel();
        }
        true
    }

    /// The NAT of one end is about to forget the pair.
    fn set_retiring(&mut self, pair: Validated, now: Instant) {
        for (number, carrier) in &mut self.carriers {
            if carrier.up.pair() == Some(pair) {
                carrier.retiring = true;
                self.chooser.handle_retiring(*number, now);
            }
        }
    }

    fn carriers_by_pair(&self) -> BTreeMap<Validated, CarrierNumber> {
        self.carriers.iter().filter_map(|(n, c)| Some((c.up.pair()?, *n))).collect()
    }

    pub(crate) fn follow_chooser(&mut self) {
        while let Some(event) = self.chooser.poll_event() {
            match event {
                PathEvent::Use { interactive, bulk } => {
                    self.p.shared.with(|resume, now| resume.prefer(interactive, bulk, now));
                    self.use_carrier(interactive);
                }
                PathEvent::Suspect(number) => {
                    self.set_silent(number, true, Instant::now());
                    self.ask_move(number);
                    let direct = self.carriers.get(&number).is_some_and(|c| c.up.direct.is_some());
                    if direct && let Some(udp) = &self.p.udp {
                        udp.recheck();
                    }
                }
                PathEvent::Overdue(number) => self.ask_move(number),
                PathEvent::Probe(number) => self.ping(number, Instant::now()),
                PathEvent::Dead(number) => {
                    if let Some(carrier) = self.carriers.get(&number) {
                        carrier.up.stop.cancel();
                    }
                }
                PathEvent::WantDirect => self.punching.want_direct(),
                PathEvent::Stranded => debug!(session = %self.p.session, "no carrier left"),
            }
        }
    }

    /// Agent: the console is to use another.
    fn ask_move(&mut self, suspect: CarrierNumber) {
        let over = self.chooser.beside(suspect, Instant::now());
        if let Some(over) = over.filter(|_| self.p.role == Role::Agent) {
            self.p.shared.with(|resume, _| resume.ask_move(suspect, over));
        }
    }

    pub(crate) fn use_carrier(&mut self, number: CarrierNumber) {
        let before = self.in_use.replace(number);
        if before == Some(number) {
            return;
        }
        for (n, state) in [(before, CarrierState::Standby), (Some(number), CarrierState::Active)] {
            if let Some(n) = n
                && let Some(carrier) = self.carriers.get_mut(&n)
            {
                carrier.state = state;
                self.tell_carrier(n);
            }
        }
        self.update_totals();
    }

    pub(crate) fn look_for_life(&mut self, now: Instant) {
        let mut seen = Vec::with_capacity(self.carriers.len());
        for (number, carrier) in &mut self.carriers {
            let number = *number;
            let (outstanding, acknowledged) = self
                .p
                .shared
                .with(|resume, _| (resume.outstanding(number), resume.acknowledged(number)));
            let life = carrier.up.life.read();
            let (mut received, mut acked) = (life.0 != carrier.seen.0, life.1 != carrier.seen.1);
            let sent = life.2 != carrier.seen.2;
            let progress = acknowledged != carrier.acknowledged;
            (carrier.seen, carrier.acknowledged) = (life, acknowledged);
            let mut rtt = None;
            if let Some(direct) = &carrier.up.direct {
                let stats = direct.connection.stats();
                acked |= stats.frame_rx.acks != carrier.quic_acks;
                received |= acked;
                carrier.quic_acks = stats.frame_rx.acks;
                rtt = Some(direct.connection.rtt());
                carrier.rtt = rtt;
            }
            let answer = match (acked, progress) {
                (false, _) => None,
                (true, true) => Some(Activity::Acknowledged { outstanding }),
                (true, false) => Some(Activity::Answered { outstanding }),
            };
            let sent_data = sent && outstanding;
            seen.push((number, sent, Seen { rtt, sent: sent_data, received, answer }));
        }
        self.chooser.handle_seen(seen.iter().map(|(number, _, seen)| (*number, *seen)), now);
        for (number, sent, seen) in seen {
            let pair = self.carriers.get(&number).and_then(|c| c.up.pair());
            if let Some(rtt) = seen.rtt {
                self.p.shared.with(|resume, _| resume.set_rtt(number, rtt));
            }
            if seen.answer.is_some() {
                if let Some(pair) = pair {
                    self.punching.acknowledged(pair, now);
                }
                self.set_silent(number, false, now);
            }
            if sent || seen.received {
                self.busy_until = now + BUSY_FOR;
            }
            if pair.is_none() {
                self.look_at_relayed(number, seen.received, now);
            }
        }
        self.pace_bulk(now);
        self.note_in_use();
        self.update_totals();
    }

    /// A relay that is gone without a word is noticed by pings, and its connection is made anew.
    fn look_at_relayed(&mut self, number: CarrierNumber, received: bool, now: Instant) {
        let Some(carrier) = self.carriers.get_mut(&number) else { return };
        let data = carrier.up.life.data();
        if data != carrier.data.0 {
            (carrier.data, carrier.asked_since) = ((data, now), false);
        }
        if carrier.silent.is_some_and(|since| now >= since + SILENT_RELAYED) && !received {
            carrier.up.stop.cancel();
        }
        // A receiver has nothing outstanding by which it would notice that its carrier died.
        let ceased = !carrier.asked_since && now >= carrier.data.1 + CEASED;
        if ceased || now >= carrier.next_ping {
            carrier.asked_since = true;
            self.ping(number, now);
        }
    }

    /// Bulk gives way to what a person waits for.
    fn pace_bulk(&mut self, now: Instant) {
        let bulk = |c: &Carrier| c.up.relay.as_ref().is_some_and(|r| r.slot == 1);
        let sends = |n: CarrierNumber| self.p.shared.with(|resume, _| resume.outstanding(n));
        let found = self.carriers.iter().find(|(n, c)| bulk(c) && sends(**n));
        let found = found.map(|(n, c)| (*n, c.up.life.clone()));
        let number = found.as_ref().map(|(n, _)| *n);
        if self.paced != number {
            self.paced = number;
            self.pace.restart();
        }
        let Some((number, life)) = found else { return };
        let acknowledged = self.p.shared.with(|resume, _| resume.acknowledged(number));
        let rate = self.pace.handle_delivered(acknowledged, now);
        let interactive = self.carriers.iter().filter(|(_, c)| c.is_interactive());
        let asked = interactive.max_by_key(|(_, c)| c.data.1);
        let asked = asked.filter(|(_, c)| now < c.data.1 + TYPING).map(|(n, _)| *n);
        life.set_pace(rate.filter(|_| asked.is_some()));
        if let Some(asked) = asked {
            self.ping(asked, now);
        }
    }

    fn set_silent(&mut self, number: CarrierNumber, silent: bool, now: Instant) {
        let Some(carrier) = self.carriers.get_mut(&number) else { return };
        if carrier.silent.is_some() != silent {
            carrier.silent = silent.then_some(now);
            self.relays.handle_silent(number, silent, now);
        }
    }

    /// Agent: what the console uses is what brought something last. Where nothing moves it would
    /// use a direct carrier if there is one.
    fn note_in_use(&mut self) {
        if self.p.role != Role::Agent {
            return;
        }
        let (last, idle) =
            self.p.shared.with(|resume, _| (resume.in_use(), resume.live_channels() == 0));
        let lives = |c: &Carrier| c.up.direct.is_some() && c.silent.is_none() && !c.retiring;
        let direct = self.carriers.iter().rev().find(|(_, c)| lives(c)).map(|(n, _)| *n);
        self.in_use = direct.filter(|_| idle).or(last).filter(|n| self.carriers.contains_key(n));
    }

    /// After a change of network: connections from an address that is gone are dead, the others
    /// are asked, however idle they are.
    pub(crate) fn doubt_carriers(&mut self, now: Instant) {
        let all: Vec<_> = self.carriers.keys().copied().collect();
        for number in all {
            let Some(carrier) = self.carriers.get_mut(&number) else { continue };
            let gone = |local: SocketAddr| std::net::UdpSocket::bind((local.ip(), 0)).is_err();
            if carrier.up.local.is_some_and(gone) {
                carrier.up.stop.cancel();
            } else {
                carrier.pinged = None;
                self.ping(number, now);
            }
        }
    }

    pub(crate) fn ping(&mut self, number: CarrierNumber, now: Instant) {
        let Some(carrier) = self.carriers.get_mut(&number) else { return };
        carrier.next_ping = now + PING_EVERY;
        if carrier.pinged.is_some_and(|ping| now < ping.sent + PING_EVERY) {
            return;
        }
        let nonce = self.next_nonce;
        self.next_nonce += 1;
        carrier.pinged = Some(Ping { nonce, sent: now });
        // A ping waits for its answer like data do.
        self.chooser.handle_activity(number, Activity::Sent, now);
        self.p.shared.with(|resume, _| resume.ping(number, nonce));
    }

    pub(crate) fn handle_pong(&mut self, number: CarrierNumber, nonce: u64, now: Instant) {
        let Some(carrier) = self.carriers.get_mut(&number) else { return };
        if let Some(ping) = carrier.pinged.take_if(|ping| ping.nonce == nonce) {
            let rtt = now.saturating_duration_since(ping.sent);
            carrier.rtt = Some(rtt);
            if carrier.is_interactive() {
                self.pace.handle_rtt(rtt, now);
            }
            self.chooser.handle_rtt(number, rtt, now);
            let outstanding = self.p.shared.with(|resume, _| {
                resume.set_rtt(number, rtt);
                resume.outstanding(number)
            });
            let activity = Activity::Answered { outstanding };
            self.chooser.handle_activity(number, activity, now);
            self.set_silent(number, false, now);
        }
    }

    /// Only relays are left and something moves much: a second connection keeps it out of the
    /// way of keystrokes.
    pub(crate) fn want_bulk_slot(&mut self, now: Instant) {
        let relayed = self.carriers.values().all(|c| c.up.direct.is_none());
        if self.p.role != Role::Console || !relayed {
            return;
        }
        let used = self.in_use.and_then(|n| self.carriers.get(&n)?.up.relay.as_ref());
        let Some(key) = used.map(|r| r.key) else { return };
        if self.p.shared.with(|resume, _| resume.has_bulk()) {
            self.relays.want_bulk(&key, now);
        }
    }
}

/// Over what it goes.
pub(crate) fn kind(up: &CarrierUp) -> CarrierKind {
    if up.direct.is_some() { CarrierKind::Direct } else { CarrierKind::Relayed }
}

/// As the program learns of it.
pub(crate) fn carrier_event(carrier: &Carrier) -> SessionEvent {
    let up = &carrier.up;
    let rtt = match &up.direct {
        Some(direct) => Some(direct.connection.rtt()),
        None => carrier.rtt,
    };
    SessionEvent::Carrier {
        number: up.number,
        kind: kind(up),
        state: carrier.state,
        rtt,
        local: up.local,
        remote: up.remote,
        relay: up.relay.as_ref().map(|r| r.name.clone()),
    }
}
