//! Drives one session: which carriers it has, which it uses, and when it ends.
//!
//! Bytes do not pass here: channel and carrier tasks move them through [`Shared`]. The driver
//! feeds the path machines (punching, choice), follows their advice, starts what they ask for,
//! and tells the mediator and the program what happened.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use adit_core::{
    path::{CarrierKind as PathKind, PathChooser, PathEvent},
    punch::Punch,
    resume::Event,
};
use adit_net::noise::signal::SignalCipher;
use adit_protocol::{
    code::ChannelCode,
    grant::Grant,
    handshake::SessionKeys,
    ids::{CarrierNumber, ChannelId, SessionId},
    keys::SigningKey,
    record::MAX_REASON,
    ticket::Role,
    wire,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info};

use crate::{
    carrier::Life,
    direct::Direct,
    events::{CarrierKind, CarrierState, ChannelState, SessionEvent, Totals},
    join::{Joiner, Numbers, Relay},
    lease::{LeaseEvent, LeaseTimer},
    link::{ControlLink, Link},
    punching::Punching,
    report::Reports,
    shared::{DriverEvent, Progress, Shared},
    target::{self, Gate},
    udp::{Addresses, Inbox, UdpStack},
};

/// Messages that wait for the driver.
pub(crate) const MESSAGES: usize = 256;
/// How often signs of life are looked at while data move, and otherwise.
const TICK_BUSY: Duration = Duration::from_millis(50);
const TICK_IDLE: Duration = Duration::from_millis(500);
/// A session counts as busy for so long after the last sign of life.
const BUSY_FOR: Duration = Duration::from_secs(2);
/// How often the round trip of a relayed carrier is measured.
const PING_EVERY: Duration = Duration::from_secs(5);
/// How long a console that has just opened a session waits for its first carrier.
const FIRST_CARRIER: Duration = Duration::from_secs(30);
/// Time for the last records to leave when the session ends.
const LAST_WORDS: Duration = Duration::from_millis(150);

/// A carrier that is ready.
pub(crate) struct CarrierUp {
    pub(crate) number: CarrierNumber,
    pub(crate) kind: PathKind,
    pub(crate) rtt: Duration,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) remote: Option<SocketAddr>,
    pub(crate) relay: Option<String>,
    pub(crate) life: Arc<Life>,
    pub(crate) direct: Option<Direct>,
    pub(crate) stop: CancellationToken,
}

/// What others tell the driver.
pub(crate) enum Message {
    Up(Box<CarrierUp>),
    Down(CarrierNumber, String),
    /// Console: a direct dial to this pair came to nothing.
    DialFailed(SocketAddr),
    /// Agent: the target is connected.
    Connected(ChannelId),
    Signal(wire::Signal),
    /// `None`: no answer, which is no refusal; the timer asks again.
    Renewed(Option<Result<Duration, &'static str>>),
    Grace(Duration),
    NetworkChanged,
    End(String),
}

struct Carrier {
    up: CarrierUp,
    state: CarrierState,
    seen: (u64, u64, u64),
    quic_acks: u64,
    pinged: Option<(u64, Instant)>,
    next_ping: Instant,
}

/// What the driver works with.
pub(crate) struct Parts {
    pub(crate) session: SessionId,
    pub(crate) role: Role,
    pub(crate) grant: Grant,
    pub(crate) keys: SessionKeys,
    pub(crate) cipher: SignalCipher,
    pub(crate) relays: Vec<Relay>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) joiner: Joiner,
    pub(crate) udp: Option<Arc<UdpStack>>,
    pub(crate) punch: Option<Punch>,
    pub(crate) inbox: Option<Inbox>,
    pub(crate) quic_key: Option<SigningKey>,
    pub(crate) peer_quic_sha256: [u8; 32],
    pub(crate) sent_candidates: Vec<adit_protocol::candidate::Candidate>,
    pub(crate) gate: Option<Arc<dyn Gate>>,
    pub(crate) control: ControlLink,
    pub(crate) lease_left: Duration,
    pub(crate) grace: Duration,
    pub(crate) resume_window: Duration,
    pub(crate) relayed: bool,
    pub(crate) messages: mpsc::Receiver<Message>,
    pub(crate) message_in: mpsc::Sender<Message>,
    pub(crate) events: mpsc::Sender<SessionEvent>,
    pub(crate) totals: watch::Sender<Totals>,
    pub(crate) reports: Arc<Reports>,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
}

pub(crate) struct Driver {
    pub(crate) p: Parts,
    pub(crate) chooser: PathChooser,
    pub(crate) punching: Punching,
    /// Agent: connections that have not greeted yet.
    pub(crate) greetings: Arc<Semaphore>,
    carriers: BTreeMap<CarrierNumber, Carrier>,
    in_use: Option<CarrierNumber>,
    lease: LeaseTimer,
    renewing: bool,
    started: Instant,
    busy_until: Instant,
    /// Since when there has been no carrier.
    stranded: Option<Instant>,
    had_carrier: bool,
    bulk_slot: bool,
    next_nonce: u64,
    numbers: Arc<Numbers>,
}

impl Driver {
    pub(crate) fn new(mut p: Parts, now: Instant) -> Self {
        let online = p.control.peer().is_some();
        Self {
            chooser: PathChooser::new(p.role, now),
            punching: Punching::new(&mut p),
            greetings: Arc::new(Semaphore::new(crate::connect::MAX_GREETINGS)),
            carriers: BTreeMap::new(),
            in_use: None,
            lease: LeaseTimer::new(p.lease_left, p.grace, online, now),
            renewing: false,
            started: now,
            busy_until: now,
            stranded: Some(now),
            had_carrier: false,
            bulk_slot: false,
            next_nonce: 1,
            numbers: p.joiner.numbers.clone(),
            p,
        }
    }

    /// Runs the session to its end.
    pub(crate) async fn run(mut self) {
        if self.p.relayed {
            for (index, relay) in self.p.relays.clone().into_iter().enumerate() {
                self.join(relay, index, 0);
            }
        }
        let (mut stun_in, mut connections) =
            self.p.inbox.take().map_or((None, None), |i| (Some(i.stun), Some(i.connections)));
        let mut link = self.p.control.subscribe();
        let mut addresses = self.p.udp.as_ref().map(|u| u.addresses());
        if let Some(addresses) = &mut addresses {
            // What was learnt while the offer was under way is told now.
            let now = addresses.borrow_and_update().clone();
            self.handle_addresses(&now);
        }
        // What is due is done when it is due, however much comes in: a peer that never pauses must
        // outlast neither its lease nor a revocation.
        let mut due: Option<Instant> = None;
        let reason = loop {
            self.punching.transmit(&self.p);
            if let Some(reason) = self.follow_advice() {
                break reason;
            }
            let now = Instant::now();
            let soonest = self.next_wake(now);
            let wake = due.map_or(soonest, |due| due.min(soonest));
            due = Some(wake);
            if now >= wake {
                due = None;
                if let Some(reason) = self.handle_time(now) {
                    break reason;
                }
                continue;
            }
            let shared = self.p.shared.clone();
            let end = tokio::select! {
                biased;
                () = self.p.cancel.cancelled() => Some("stopped".to_owned()),
                Some(message) = self.p.messages.recv() => self.handle_message(message),
                event = shared.driver_event() => self.handle_event(event),
                Some(stun) = next(&mut stun_in) => {
                    self.punching.handle_stun(&self.p, stun);
                    None
                }
                Some(connection) = next(&mut connections) => {
                    self.accept_direct(connection);
                    None
                }
                changed = link.changed() => {
                    let online = changed.is_ok() && link.borrow_and_update().is_some();
                    self.lease.handle_online(online, Instant::now());
                    None
                }
                () = next_addresses(&mut addresses) => {
                    if let Some(addresses) = &mut addresses {
                        let now = addresses.borrow_and_update().clone();
                        self.handle_addresses(&now);
                    }
                    None
                }
                () = shared.timer_moved() => None,
                () = tokio::time::sleep_until(wake.into()) => None, // looked at above
            };
            if let Some(reason) = end {
                break reason;
            }
        };
        self.finish(&word(&reason)).await;
    }

    fn join(&self, relay: Relay, index: usize, slot: u32) {
        let joiner = self.p.joiner.clone();
        let cancel = self.p.cancel.child_token();
        self.p.tasks.spawn(joiner.keep_up(relay, index, slot, cancel));
    }

    // ------------------------------------------------------------ inputs

    fn handle_message(&mut self, message: Message) -> Option<String> {
        let now = Instant::now();
        match message {
            Message::Up(up) => self.carrier_up(*up, now),
            Message::Down(number, why) => self.carrier_down(number, &why, now),
            Message::DialFailed(remote) => self.punching.dial_failed(remote, now),
            Message::Connected(id) => self.tell_channel(id, Duration::ZERO, &Progress::Open),
            Message::Signal(signal) => {
                self.punching.handle_signal(&mut self.p, &signal);
            }
            Message::Renewed(result) => {
                self.renewing = false;
                match result {
                    None => {}
                    Some(Ok(left)) => {
                        self.lease.handle_renewed(left, now);
                        let expires_ms = self.p.control.last().map(|(_, c)| {
                            c.now_ms() + u64::try_from(left.as_millis()).unwrap_or(0)
                        });
                        if let Some(expires_ms) = expires_ms {
                            self.emit(SessionEvent::Lease { expires_ms });
                        }
                    }
                    Some(Err(reason)) => return Some(reason.to_owned()),
                }
            }
            Message::Grace(grace) => self.lease.set_grace(grace),
            Message::NetworkChanged => self.chooser.handle_network_change(now),
            Message::End(reason) => return Some(reason),
        }
        None
    }

    fn handle_event(&mut self, event: DriverEvent) -> Option<String> {
        let now = Instant::now();
        match event {
            DriverEvent::NeedStream(number, id) => {
                // The console alone opens streams; at the agent the stream that the channel came
                // on is about to be registered, and looks for something to send by itself.
                if self.p.role == Role::Console
                    && let Some(direct) =
                        self.carriers.get(&number).and_then(|c| c.up.direct.clone())
                {
                    let shared = self.p.shared.clone();
                    direct.tasks.clone().spawn(crate::direct::open_stream(shared, direct, id));
                }
            }
            DriverEvent::Channel(id, lasted, progress) => self.tell_channel(id, lasted, &progress),
            DriverEvent::Machine(Event::Connect(id, target)) => self.connect(id, target),
            DriverEvent::Machine(Event::MoveAsked(number)) => {
                self.chooser.handle_suspect(number, now);
            }
            DriverEvent::Machine(Event::Pong(number, nonce)) => {
                self.handle_pong(number, nonce, now)
            }
            DriverEvent::Machine(Event::JoinRelay { relay, slot }) => {
                let index = relay as usize;
                if slot == 1
                    && !std::mem::replace(&mut self.bulk_slot, true)
                    && let Some(relay) = self.p.relays.get(index).cloned()
                {
                    self.join(relay, index, slot);
                }
            }
            DriverEvent::Machine(Event::PeerClosed(reason)) => return Some(reason.into()),
            DriverEvent::Machine(_) => {}
        }
        None
    }

    fn connect(&mut self, id: ChannelId, target: adit_protocol::target::Target) {
        let Some(gate) = self.p.gate.clone() else { return };
        // The channel may be over already; then there is nobody to serve.
        let tap = self.p.shared.register(|resume, _| resume.is_live(id).then_some(id));
        if let Some(tap) = tap {
            let (shared, grant) = (self.p.shared.clone(), self.p.grant.clone());
            let opened = self.p.message_in.clone();
            let serve = target::serve(shared, gate, grant, target, tap, opened);
            let cancel = self.p.cancel.clone();
            self.p.tasks.spawn(async move { cancel.run_until_cancelled(serve).await });
        }
    }

    fn handle_pong(&mut self, number: CarrierNumber, nonce: u64, now: Instant) {
        let Some(carrier) = self.carriers.get_mut(&number) else { return };
        if let Some((_, sent)) = carrier.pinged.take_if(|(n, _)| *n == nonce) {
            let rtt = now.saturating_duration_since(sent);
            self.chooser.handle_rtt(number, rtt, now);
            let outstanding = self.p.shared.with(|resume, _| {
                resume.set_rtt(number, rtt);
                resume.outstanding(number)
            });
            let activity = adit_core::path::Activity::Acknowledged { outstanding };
            self.chooser.handle_activity(number, activity, now);
        }
    }

    fn handle_addresses(&mut self, addresses: &Addresses) {
        let now = Instant::now();
        self.punching.handle_addresses(&mut self.p, addresses, now);
    }

    fn handle_time(&mut self, now: Instant) -> Option<String> {
        self.p.shared.with(|resume, now| {
            if resume.poll_timeout().is_some_and(|t| t <= now) {
                resume.handle_timeout(now);
            }
        });
        self.look_for_life(now);
        self.chooser.handle_timeout(now);
        self.punching.handle_timeout(now);
        match self.lease.handle_timeout(now) {
            Some(LeaseEvent::Over(reason)) => return Some(reason.to_owned()),
            Some(LeaseEvent::Renew) => self.renew(),
            None => {}
        }
        let limit = if self.had_carrier || self.p.role == Role::Agent {
            self.p.resume_window
        } else {
            FIRST_CARRIER.min(self.p.resume_window)
        };
        if self.stranded.is_some_and(|since| now >= since + limit) {
            return Some(if self.had_carrier { "no_carrier" } else { "no_path" }.to_owned());
        }
        self.want_bulk_slot();
        None
    }

    fn next_wake(&self, now: Instant) -> Instant {
        let tick = if now < self.busy_until { TICK_BUSY } else { TICK_IDLE };
        let machine = self.p.shared.with(|resume, _| resume.poll_timeout());
        [machine, self.chooser.poll_timeout(), self.punching.poll_timeout()]
            .into_iter()
            .flatten()
            .chain([self.lease.poll_timeout(), now + tick])
            .min()
            .unwrap_or(now + tick)
            // A machine whose time has come is served, but never in a busy loop.
            .max(now + Duration::from_micros(100))
    }

    // ------------------------------------------------------------ carriers

    fn carrier_up(&mut self, up: CarrierUp, now: Instant) {
        let number = up.number;
        let rtt = (up.rtt > Duration::ZERO).then_some(up.rtt);
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
        (self.stranded, self.had_carrier) = (None, true);
        let up_remote = up.direct.as_ref().and(up.remote);
        let carrier = Carrier {
            up,
            state: CarrierState::Standby,
            seen: (0, 0, 0),
            quic_acks: 0,
            pinged: None,
            next_ping: now,
        };
        self.carriers.insert(number, carrier);
        if let Some(remote) = up_remote {
            self.punching.connected(remote);
        }
        if self.p.role == Role::Agent {
            self.in_use = self.p.shared.with(|resume, _| resume.in_use());
            self.update_totals();
        }
        self.follow_chooser();
        if self.in_use != Some(number) {
            self.tell_carrier(number);
        }
    }

    fn carrier_down(&mut self, number: CarrierNumber, why: &str, now: Instant) {
        let Some(mut carrier) = self.carriers.remove(&number) else { return };
        carrier.up.stop.cancel();
        info!(session = %self.p.session, carrier = %number, why, "carrier down");
        self.chooser.handle_carrier_down(number, now);
        carrier.state = CarrierState::Lost;
        self.report_carrier(&carrier, why);
        self.emit(carrier_event(&carrier));
        self.in_use.take_if(|n| *n == number);
        if let Some(remote) = carrier.up.direct.as_ref().and(carrier.up.remote) {
            self.punching.connection_lost(remote, now);
        }
        if self.carriers.is_empty() {
            self.stranded.get_or_insert(now);
        }
        self.follow_chooser();
        self.update_totals();
    }

    /// Everything that the machines advise; `Some` ends the session.
    fn follow_advice(&mut self) -> Option<String> {
        self.follow_chooser();
        let carriers = self.carriers_by_remote();
        for validated in self.punching.drain(&self.p, &mut self.chooser, &carriers) {
            self.dial_direct(validated);
        }
        None
    }

    fn carriers_by_remote(&self) -> BTreeMap<SocketAddr, CarrierNumber> {
        self.carriers
            .iter()
            .filter(|(_, c)| c.up.direct.is_some())
            .filter_map(|(n, c)| Some((c.up.remote?, *n)))
            .collect()
    }

    fn follow_chooser(&mut self) {
        while let Some(event) = self.chooser.poll_event() {
            match event {
                PathEvent::Use { interactive, bulk } => {
                    self.p.shared.with(|resume, now| resume.prefer(interactive, bulk, now));
                    self.use_carrier(interactive);
                }
                PathEvent::Suspect(number) => {
                    if self.p.role == Role::Agent {
                        self.p.shared.with(|resume, _| resume.ask_move(number));
                    }
                }
                PathEvent::Probe(number) => self.ping(number, Instant::now()),
                PathEvent::Dead(number) => {
                    if let Some(carrier) = self.carriers.get(&number) {
                        carrier.up.stop.cancel();
                    }
                }
                PathEvent::WantDirect => self.punching.want_direct(&mut self.p),
                PathEvent::Stranded => debug!(session = %self.p.session, "no carrier left"),
            }
        }
    }

    fn use_carrier(&mut self, number: CarrierNumber) {
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

    fn look_for_life(&mut self, now: Instant) {
        use adit_core::path::Activity;
        let numbers: Vec<_> = self.carriers.keys().copied().collect();
        for number in numbers {
            let outstanding = self.p.shared.with(|resume, _| resume.outstanding(number));
            let Some(carrier) = self.carriers.get_mut(&number) else { continue };
            let seen = carrier.up.life.read();
            let (mut received, mut acked) = (seen.0 != carrier.seen.0, seen.1 != carrier.seen.1);
            let sent = seen.2 != carrier.seen.2;
            carrier.seen = seen;
            let direct_remote = carrier.up.direct.as_ref().and(carrier.up.remote);
            if let Some(direct) = &carrier.up.direct {
                let stats = direct.connection.stats();
                acked |= stats.frame_rx.acks != carrier.quic_acks;
                received |= acked;
                carrier.quic_acks = stats.frame_rx.acks;
                let rtt = direct.connection.rtt();
                self.chooser.handle_rtt(number, rtt, now);
                self.p.shared.with(|resume, _| resume.set_rtt(number, rtt));
            }
            if sent && outstanding {
                self.chooser.handle_activity(number, Activity::Sent, now);
            }
            if received {
                self.chooser.handle_activity(number, Activity::Received, now);
            }
            if acked && let Some(remote) = direct_remote {
                self.punching.acknowledged(remote, now);
            }
            if acked {
                self.chooser.handle_activity(number, Activity::Acknowledged { outstanding }, now);
            }
            if sent || received {
                self.busy_until = now + BUSY_FOR;
            }
            if carrier.up.direct.is_none() && now >= carrier.next_ping {
                self.ping(number, now);
            }
        }
        self.update_totals();
    }

    fn ping(&mut self, number: CarrierNumber, now: Instant) {
        let Some(carrier) = self.carriers.get_mut(&number) else { return };
        carrier.next_ping = now + PING_EVERY;
        if carrier.pinged.is_some_and(|(_, at)| now < at + PING_EVERY) {
            return;
        }
        let nonce = self.next_nonce;
        self.next_nonce += 1;
        carrier.pinged = Some((nonce, now));
        self.p.shared.with(|resume, _| resume.ping(number, nonce));
    }

    /// Only relays are left and something moves much: a second connection keeps it out of the
    /// way of keystrokes.
    fn want_bulk_slot(&mut self) {
        let relayed = self.carriers.values().all(|c| c.up.direct.is_none());
        if self.p.role != Role::Console || self.bulk_slot || !relayed || self.carriers.is_empty() {
            return;
        }
        let Some(relay) = self.p.relays.first().cloned() else { return };
        let asked = self.p.shared.with(|resume, _| {
            let bulk = resume.has_bulk();
            if bulk {
                resume.ask_join(0, 1);
            }
            bulk
        });
        if asked {
            self.bulk_slot = true;
            self.join(relay, 0, 1);
        }
    }

    // ------------------------------------------------------------ telling

    fn emit(&self, event: SessionEvent) {
        // A program that does not read its events loses some, not the session.
        let _ = self.p.events.try_send(event);
    }

    fn tell_carrier(&self, number: CarrierNumber) {
        let Some(carrier) = self.carriers.get(&number) else { return };
        self.emit(carrier_event(carrier));
        self.report_carrier(carrier, "");
    }

    fn report_carrier(&self, carrier: &Carrier, detail: &str) {
        if self.p.role != Role::Console {
            return; // the console chooses, so it reports
        }
        let text = |a: Option<SocketAddr>| a.map(|a| a.to_string()).unwrap_or_default();
        let change = wire::CarrierChange {
            kind: kind(&carrier.up).as_str().into(),
            state: carrier.state.as_str().into(),
            relay_id: bytes::Bytes::new(),
            local: text(carrier.up.local),
            remote: text(carrier.up.remote),
            detail: detail.into(),
        };
        self.report(wire::session_event::Event::Carrier(change));
    }

    fn report(&self, event: wire::session_event::Event) {
        let now_ms = self.p.control.last().map_or(0, |(_, clock)| clock.now_ms());
        self.p.reports.push(self.p.session, event, now_ms);
    }

    fn tell_channel(&mut self, id: ChannelId, lasted: Duration, progress: &Progress) {
        let Progress::Over(end) = progress else {
            let reason = None;
            let target = self.p.shared.with(|resume, _| resume.target(id).cloned());
            self.emit(SessionEvent::Channel {
                id,
                target,
                state: ChannelState::Open,
                reason,
                bytes_up: 0,
                bytes_down: 0,
                duration: lasted,
            });
            return;
        };
        let (up, down) = match self.p.role {
            Role::Console => (end.bytes_sent, end.bytes_received),
            Role::Agent => (end.bytes_received, end.bytes_sent),
        };
        self.p.totals.send_modify(|t| {
            t.bytes_up += up;
            t.bytes_down += down;
        });
        let state = if end.refused { ChannelState::Refused } else { ChannelState::Closed };
        if self.p.role == Role::Agent {
            let ended = wire::ChannelEnd {
                channel: id.0,
                target: Some(end.target.to_wire()),
                refused: end.refused,
                outcome: end.code.map_or("closed", ChannelCode::name).into(),
                bytes_up: up,
                bytes_down: down,
                duration_ms: u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX),
            };
            self.report(wire::session_event::Event::Channel(ended));
        }
        self.emit(SessionEvent::Channel {
            id,
            target: Some(end.target.clone()),
            state,
            reason: end.code,
            bytes_up: up,
            bytes_down: down,
            duration: lasted,
        });
    }

    fn update_totals(&self) {
        let carrier = self.in_use.and_then(|n| self.carriers.get(&n)).map(|c| kind(&c.up));
        self.p.totals.send_if_modified(|t| std::mem::replace(&mut t.carrier, carrier) != carrier);
    }

    fn renew(&mut self) {
        let Some(link) = self.p.control.current() else { return };
        if std::mem::replace(&mut self.renewing, true) {
            return;
        }
        let (session, message_in) = (self.p.session, self.p.message_in.clone());
        let cancel = self.p.cancel.clone();
        self.p.tasks.spawn(async move {
            let result = cancel.run_until_cancelled(renew(&link, session)).await.flatten();
            let _ = message_in.send(Message::Renewed(result)).await;
        });
    }

    async fn finish(mut self, reason: &str) {
        info!(session = %self.p.session, reason, "session over");
        self.p.shared.with(|resume, _| resume.close(reason));
        // Resets of channels and the farewell are on their way; more than this is not owed.
        let events = async {
            loop {
                let event = self.p.shared.driver_event().await;
                if let DriverEvent::Channel(id, lasted, progress) = event {
                    self.tell_channel(id, lasted, &progress);
                }
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, events).await;
        self.punching.forget(&self.p);
        self.p.cancel.cancel();
        let totals = *self.p.totals.borrow();
        let duration = self.started.elapsed();
        self.report(wire::session_event::Event::End(wire::SessionEnd {
            reason: reason.to_owned(),
            bytes_up: totals.bytes_up,
            bytes_down: totals.bytes_down,
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        }));
        let closed = SessionEvent::Closed {
            reason: reason.to_owned(),
            bytes_up: totals.bytes_up,
            bytes_down: totals.bytes_down,
            duration,
        };
        let _ = tokio::time::timeout(LAST_WORDS, self.p.events.send(closed)).await;
    }

    pub(crate) fn numbers(&self) -> Arc<Numbers> {
        self.numbers.clone()
    }

    pub(crate) fn direct_count(&self) -> usize {
        self.carriers.values().filter(|c| c.up.direct.is_some()).count()
    }
}

/// A reason as both ends report it: a stable word.
fn word(reason: &str) -> String {
    let letter = |c: char| if c.is_ascii_lowercase() { c } else { '_' };
    let word: String =
        reason.chars().map(|c| letter(c.to_ascii_lowercase())).take(MAX_REASON).collect();
    if word.is_empty() { "closed".to_owned() } else { word }
}

/// `None`: no answer.
async fn renew(link: &Link, session: SessionId) -> Option<Result<Duration, &'static str>> {
    let body = wire::frame::Body::Renew(wire::Renew { session_id: session.to_bytes() });
    match link.peer.request(body, Duration::from_secs(10)).await {
        Ok(wire::frame::Body::Renewed(renewed)) => {
            let lease = adit_protocol::grant::Lease::open(link.keys.grant, &renewed.lease?).ok()?;
            let left = lease.expires_ms.saturating_sub(link.clock.now_ms());
            (lease.session == session).then(|| Ok(Duration::from_millis(left)))
        }
        Err(adit_control::RequestError::Failed(failure)) => {
            use adit_protocol::code::failure as code;
            let over = [code::NOT_PERMITTED, code::NO_SUCH_SESSION, code::NOT_LOGGED_IN];
            over.contains(&failure.code.as_str()).then_some(Err("revoked"))
        }
        _ => None,
    }
}

fn kind(up: &CarrierUp) -> CarrierKind {
    if up.direct.is_some() { CarrierKind::Direct } else { CarrierKind::Relayed }
}

fn carrier_event(carrier: &Carrier) -> SessionEvent {
    let up = &carrier.up;
    let rtt = match &up.direct {
        Some(direct) => Some(direct.connection.rtt()),
        None => (up.rtt > Duration::ZERO).then_some(up.rtt),
    };
    SessionEvent::Carrier {
        number: up.number,
        kind: kind(up),
        state: carrier.state,
        rtt,
        local: up.local,
        remote: up.remote,
        relay: up.relay.clone(),
    }
}

async fn next<T>(receiver: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match receiver {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

async fn next_addresses(addresses: &mut Option<watch::Receiver<Addresses>>) {
    let changed = match addresses {
        Some(addresses) => addresses.changed().await,
        None => return std::future::pending().await,
    };
    if changed.is_err() {
        *addresses = None;
    }
}
