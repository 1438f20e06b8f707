//! Drives one session: which carriers it has, which it uses, and when it ends.
//!
//! Bytes do not pass here: channel and carrier tasks move them through [`Shared`]. The driver
//! feeds the path machines (punching, choice), follows their advice, starts what they ask for,
//! and tells the mediator and the program what happened.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use adit_core::{path::PathChooser, punch::Punch, resume::Event};
use adit_net::noise::signal::SignalCipher;
use adit_protocol::{
    candidate::Candidate,
    code::ChannelCode,
    grant::Grant,
    handshake::SessionKeys,
    ids::{CarrierNumber, ChannelId, SessionId},
    keys::SigningKey,
    limits::MAX_CANDIDATES,
    nat::NatSummary,
    record::MAX_REASON,
    ticket::Role,
    wire,
};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    carriers::{Carrier, CarrierUp},
    early::Early,
    events::{SessionEvent, Totals},
    explain::Explanation,
    join::{Joiner, Numbers, Relay},
    lease::{LeaseEvent, LeaseTimer},
    link::ControlLink,
    memory::Memory,
    opening::serve_receipts,
    pace::Pace,
    punching::{Punching, Validated},
    receipts::{Receipts, service_target},
    relays::{RelayKey, Relays, Rtts},
    report::Reports,
    shared::{ChannelTap, DriverEvent, Progress, Shared},
    target::{self, Gate},
    udp::{Addresses, Inbox, UdpStack},
    witness::code_of,
};

/// Messages that wait for the driver.
pub(crate) const MESSAGES: usize = 256;
/// How often signs of life are looked at while data move, and otherwise.
const TICK_BUSY: Duration = Duration::from_millis(50);
const TICK_IDLE: Duration = Duration::from_millis(500);
/// How long a console that has just opened a session waits for its first carrier.
const FIRST_CARRIER: Duration = Duration::from_secs(30);

/// What others tell the driver.
pub(crate) enum Message {
    Up(Box<CarrierUp>),
    /// With a stable word and a text.
    Down(CarrierNumber, (&'static str, String)),
    /// The mediator gave relays and tickets.
    Offered(Vec<Relay>),
    Explain(oneshot::Sender<Explanation>),
    /// Console: a direct dial to this pair came to nothing.
    DialFailed(Validated),
    /// Agent: the target is connected.
    Connected(ChannelId),
    Signal(wire::Signal),
    /// `None`: no answer, which is no refusal; the timer asks again.
    Renewed(Option<Result<Duration, &'static str>>),
    Grace(Duration),
    NetworkChanged,
    End(String),
}

/// Told of a session's alert.
pub(crate) type Alarm = Box<dyn Fn(&str, &wire::HeadAlert) + Send + Sync>;

/// What the driver works with.
pub(crate) struct Parts {
    pub(crate) session: SessionId,
    pub(crate) role: Role,
    pub(crate) grant: Grant,
    pub(crate) keys: SessionKeys,
    pub(crate) cipher: SignalCipher,
    /// Round trips to relays, as this end and the peer told.
    /// What the peer told of itself: for `explain`.
    pub(crate) peer_candidates: Vec<Candidate>,
    pub(crate) peer_nat: Option<NatSummary>,
    pub(crate) relay_rtts: (Rtts, Rtts),
    pub(crate) memory: Arc<Memory>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) receipts: Arc<Receipts>,
    pub(crate) joiner: Joiner,
    /// Console: joins that were begun before the grant.
    pub(crate) early: Option<Arc<Early>>,
    pub(crate) udp: Option<Arc<UdpStack>>,
    pub(crate) punch: Option<Punch>,
    pub(crate) inbox: Option<Inbox>,
    /// Where the mediator sees the peer.
    pub(crate) peer_seen: Option<IpAddr>,
    pub(crate) quic_key: Option<SigningKey>,
    pub(crate) peer_quic_sha256: [u8; 32],
    pub(crate) sent_candidates: Vec<adit_protocol::candidate::Candidate>,
    /// What the handshake told the peer of the NAT.
    pub(crate) sent_nat: Option<NatSummary>,
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
    /// Writes down what alarmed the other end.
    pub(crate) alarm: Alarm,
}

pub(crate) struct Driver {
    pub(crate) p: Parts,
    pub(crate) chooser: PathChooser,
    pub(crate) punching: Punching,
    /// Agent: connections that have not greeted yet.
    pub(crate) greetings: Arc<Semaphore>,
    pub(crate) carriers: BTreeMap<CarrierNumber, Carrier>,
    pub(crate) in_use: Option<CarrierNumber>,
    lease: LeaseTimer,
    pub(crate) renewing: bool,
    pub(crate) started: Instant,
    pub(crate) busy_until: Instant,
    /// Since when there has been no carrier.
    pub(crate) stranded: Option<Instant>,
    pub(crate) had_carrier: bool,
    pub(crate) pace: Pace,
    /// The carrier whose bulk is watched.
    pub(crate) paced: Option<CarrierNumber>,
    pub(crate) relays: Relays,
    pub(crate) relay_stops: BTreeMap<RelayKey, CancellationToken>,
    pub(crate) relay_news: watch::Receiver<u64>,
    /// It was told why there is no direct path.
    pub(crate) told_failures: bool,
    pub(crate) next_nonce: u64,
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
            pace: Pace::new(now),
            paced: None,
            relays: Relays::new(p.role, p.session, now),
            relay_stops: BTreeMap::new(),
            relay_news: p.memory.subscribe(),
            told_failures: false,
            next_nonce: 1,
            numbers: p.joiner.numbers.clone(),
            p,
        }
    }

    /// Runs the session to its end.
    pub(crate) async fn run(mut self) {
        self.begin_relays(Instant::now());
        let (mut stun_in, mut connections) =
            self.p.inbox.take().map_or((None, None), |i| (Some(i.incoming), Some(i.connections)));
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
                    self.punching.handle_incoming(&mut self.p, stun);
                    None
                }
                Some(connection) = next(&mut connections) => {
                    self.accept_direct(connection);
                    None
                }
                changed = link.changed() => {
                    let online = changed.is_ok() && link.borrow_and_update().is_some();
                    if online {
                        self.punching.handle_online(Instant::now());
                        self.link_is_back(Instant::now());
                    }
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
                () = shared.timer_moved() => {
                    // Data may wait on a path that died while the session was idle.
                    self.busy_until = self.busy_until.max(Instant::now() + TICK_BUSY);
                    None
                }
                () = tokio::time::sleep_until(wake.into()) => None, // looked at above
            };
            if let Some(reason) = end {
                break reason;
            }
        };
        self.finish(&word(&reason)).await;
    }

    // ------------------------------------------------------------ inputs

    /// If the mediator can be reached again, so perhaps can the peer and relays.
    fn link_is_back(&mut self, now: Instant) {
        self.chooser.handle_network_change(now);
        if self.carriers.is_empty() {
            self.p.joiner.hurry.send_modify(|n| *n += 1);
        }
    }

    fn handle_message(&mut self, message: Message) -> Option<String> {
        let now = Instant::now();
        match message {
            Message::Up(up) => self.carrier_up(*up, now),
            Message::Down(number, why) => self.carrier_down(number, why, now),
            Message::Offered(relays) => self.relays_offered(relays, now),
            // Who asked may be gone.
            Message::Explain(answer) => drop(answer.send(self.explain(now))),
            Message::DialFailed(pair) => self.punching.dial_failed(pair, now),
            Message::Connected(id) => self.tell_channel(id, Duration::ZERO, &Progress::Open),
            Message::Signal(signal) => {
                if let Some(trickle) = self.punching.handle_signal(&mut self.p, &signal) {
                    self.handle_peer_rtts(&trickle.relay_rtts, now);
                    self.note_peer(&trickle);
                    if let Some(alert) = trickle.alert {
                        return Some(self.alarmed(&alert));
                    }
                }
            }
            Message::Renewed(result) => {
                self.renewing = false;
                match result {
                    None => {}
                    Some(Ok(left)) => {
                        self.lease.handle_renewed(left, now);
                        self.renew_tickets();
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
            Message::NetworkChanged => {
                self.chooser.handle_network_change(now);
                self.relays.handle_network_change(now);
                self.p.joiner.hurry.send_modify(|n| *n += 1);
                self.doubt_carriers(now);
            }
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
            // What came on any carrier before counts before: after a delay an answer of one would make
            // another late, and an old acknowledgement would answer a new complaint.
            DriverEvent::Machine(Event::MoveAsked(number)) => {
                self.look_for_life(now);
                self.chooser.handle_suspect(number, now);
            }
            DriverEvent::Machine(Event::Pong(number, nonce)) => {
                self.look_for_life(now);
                self.handle_pong(number, nonce, now);
            }
            DriverEvent::Machine(Event::JoinRelay { relay, slot }) => {
                self.relays.handle_peer_join(relay, slot, now);
                self.follow_relays(now);
            }
            DriverEvent::Machine(Event::LeaveRelay { relay }) => {
                self.relays.handle_peer_leave(relay, now);
                self.follow_relays(now);
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
            let receipts = self.p.receipts.clone();
            if service_target().as_ref() == Some(&target) {
                return self.connect_receipts(tap);
            }
            receipts.begin(id, &target);
            let serve = target::serve(shared, gate, grant, target, (tap, receipts), opened);
            let cancel = self.p.cancel.clone();
            self.p.tasks.spawn(async move { cancel.run_until_cancelled(serve).await });
        }
    }

    /// Agent: the channel on which receipts are exchanged, the first of its kind.
    fn connect_receipts(&self, tap: ChannelTap) {
        let (shared, id) = (&self.p.shared, tap.id);
        if !self.p.receipts.set_service(id) {
            return shared.with(|resume, _| resume.refuse(id, ChannelCode::NotGranted));
        }
        shared.with(|resume, now| resume.connected(id, now));
        let ends = (&self.p.cancel, &self.p.message_in);
        serve_receipts(&self.p.tasks, &self.p.receipts, shared, tap, ends);
    }

    /// The other end does not believe what the mediator showed it.
    fn alarmed(&self, alert: &wire::HeadAlert) -> String {
        let session = self.p.session.to_string();
        (self.p.alarm)(&session, alert);
        code_of(alert).to_owned()
    }

    fn note_peer(&mut self, trickle: &wire::Trickle) {
        for candidate in Candidate::list_from_wire(&trickle.candidates) {
            let known = &mut self.p.peer_candidates;
            known.retain(|c| c.addr != candidate.addr);
            known.push(candidate);
            if known.len() > MAX_CANDIDATES {
                known.remove(0);
            }
        }
        if let Some(nat) = &trickle.nat {
            self.p.peer_nat = Some(NatSummary::from_wire(nat));
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
        self.want_bulk_slot(now);
        self.follow_relays(now);
        self.tell_failures(now);
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

    pub(crate) fn numbers(&self) -> Arc<Numbers> {
        self.numbers.clone()
    }
}

/// A reason as both ends report it: a stable word.
fn word(reason: &str) -> String {
    let letter = |c: char| if c.is_ascii_lowercase() { c } else { '_' };
    let word: String =
        reason.chars().map(|c| letter(c.to_ascii_lowercase())).take(MAX_REASON).collect();
    if word.is_empty() { "closed".to_owned() } else { word }
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
