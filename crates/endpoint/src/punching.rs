//! A session's hole punching between the machine and the sockets: seals and opens checks, keeps
//! the set of admitted addresses, opens and closes the session's own sockets, trickles candidates
//! and what is known of the NAT, and says which pairs to dial.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use adit_core::{
    path::PathChooser,
    punch::{
        Event, Family, LocalSocket, Message, Packet, PairState, Punch, Report, candidate_priority,
    },
};
use adit_net::stun::{self, StunClass};
use adit_protocol::{
    candidate::{Candidate, CandidateKind},
    ids::CarrierNumber,
    limits::MAX_CANDIDATES,
    nat::NatSummary,
    ticket::Role,
    wire,
};
use bytes::Bytes;
use prost::Message as _;
use tracing::debug;

use crate::{
    driver::Parts,
    extra::{Extras, Ground},
    udp::{Addresses, Incoming, StunIn, UdpStack, Wanting},
};

/// A lost or failed connection over a pair that still answers is tried again after these.
const REDIAL_MS: [u64; 5] = [200, 1000, 3000, 10_000, 30_000];
/// Time for servers to answer before own addresses are announced again: both ends start then.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(200);

/// Checks wait so long after own addresses were told, unless the peer begins.
const TOLD_HOLD: Duration = Duration::from_millis(100);
/// What was told so shortly before the control connection came back may have been lost with the
/// one before.
const LOST_WITH_LINK: Duration = Duration::from_secs(30);
/// Local preference of what leads to a session's own socket: behind the shared one.
const FRESH_PREFERENCE: u16 = 60_000;

/// A pair that works both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Validated {
    pub(crate) socket: LocalSocket,
    pub(crate) remote: SocketAddr,
}

/// What the machine's events ask of the driver.
#[derive(Default)]
pub(crate) struct Followed {
    /// Pairs to dial.
    pub(crate) dial: Vec<Validated>,
    /// Pairs that a NAT is about to forget.
    pub(crate) retiring: Vec<Validated>,
}

pub(crate) struct Punching {
    punch: Option<Punch>,
    extras: Option<Extras>,
    admitted: BTreeSet<SocketAddr>,
    dialled: BTreeSet<Validated>,
    redial: BTreeMap<Validated, (Instant, usize)>,
    /// Candidates that the peer was told.
    sent: BTreeSet<SocketAddr>,
    /// What the peer was told of the NAT.
    told_nat: Option<NatSummary>,
    generation: Option<u64>,
    /// How often UDP passed again.
    passes: Option<u64>,
    /// As long as there is no direct path.
    wanting: Option<Wanting>,
    /// Own sockets of the session, and what leads to them.
    fresh: BTreeMap<LocalSocket, (Family, Vec<Candidate>)>,
    /// All candidates are to be announced then.
    announce_at: Option<Instant>,
    /// When the peer was told something last, or would have been.
    told_at: Option<Instant>,
    /// To be trickled with the next look: candidates, and whether the NAT goes along.
    untold: (Vec<Candidate>, bool),
    /// The first rounds went unanswered.
    exhausted: bool,
}

impl Punching {
    pub(crate) fn new(parts: &mut Parts) -> Self {
        let ground = parts.udp.clone().zip(parts.inbox.as_ref()).map(|(udp, inbox)| Ground {
            udp,
            doors: inbox.doors.clone(),
            tasks: parts.tasks.clone(),
            cancel: parts.cancel.clone(),
            quic_key: (parts.role == Role::Agent).then_some(parts.peer_quic_sha256),
        });
        Self {
            punch: parts.punch.take(),
            extras: ground.map(Extras::new),
            admitted: BTreeSet::new(),
            dialled: BTreeSet::new(),
            redial: BTreeMap::new(),
            sent: parts.sent_candidates.iter().map(|c| c.addr).collect(),
            told_nat: parts.sent_nat.take(),
            generation: None,
            passes: None,
            wanting: None,
            fresh: BTreeMap::new(),
            announce_at: None,
            told_at: None,
            untold: (Vec::new(), false),
            exhausted: false,
        }
    }

    /// What punching looks like; `None` where no direct path is wanted.
    pub(crate) fn report(&self) -> Option<Report> {
        self.punch.as_ref().map(Punch::report)
    }

    /// The first rounds went unanswered.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// Sends what the machine wants to send.
    pub(crate) fn transmit(&mut self, parts: &Parts) {
        let (Some(punch), Some(udp)) = (&mut self.punch, &parts.udp) else { return };
        let (own, peer) = direction_keys(parts);
        while let Some(t) = punch.poll_transmit() {
            match t.message {
                Message::Request { id, priority } => {
                    let tag = parts.keys.stun_tag;
                    let packet = stun::encode_check(id, &tag, own, priority);
                    match (self.extras.as_ref().filter(|e| e.has(t.socket)), t.ttl) {
                        (Some(extras), None) => extras.send(t.socket, t.to, &packet),
                        (Some(extras), Some(ttl)) => {
                            extras.send_opener(t.socket, t.to, &packet, ttl);
                        }
                        (None, None) => udp.send_check(t.socket, t.to, &packet, Some((id, tag))),
                        (None, Some(ttl)) => udp.send_opener(t.socket, t.to, &packet, ttl),
                    }
                }
                Message::Response { id, mapped } => {
                    let packet = stun::encode_check_response(id, mapped, peer);
                    match self.extras.as_ref().filter(|e| e.has(t.socket)) {
                        Some(extras) => extras.send(t.socket, t.to, &packet),
                        None => udp.send_check(t.socket, t.to, &packet, None),
                    }
                }
            }
        }
    }

    /// What the sockets have for this session.
    pub(crate) fn handle_incoming(&mut self, parts: &mut Parts, incoming: Incoming) {
        let now = Instant::now();
        match incoming {
            Incoming::Check(check) => self.handle_check(parts, &check, now),
            Incoming::Mapped(socket, mapped) => self.handle_mapped(socket, mapped, now),
            Incoming::Nat(nat) => {
                if let Some(punch) = &mut self.punch {
                    punch.handle_local_nat(nat.clone(), now);
                    self.told_nat = Some(nat);
                    self.untold.1 = true; // also if it is as before: the peer waits for it
                }
            }
        }
        self.tell(parts);
    }

    fn handle_check(&mut self, parts: &Parts, check: &StunIn, now: Instant) {
        let Some(punch) = &mut self.punch else { return };
        let (own, peer) = direction_keys(parts);
        let id = check.packet.transaction_id;
        let (key, message) = match (check.packet.class, check.packet.mapped) {
            (StunClass::Request, _) => {
                let priority = check.packet.priority.unwrap_or(0);
                (peer, Message::Request { id, priority })
            }
            (StunClass::Success, Some(mapped)) => (own, Message::Response { id, mapped }),
            _ => return,
        };
        if !stun::verify_integrity(&check.raw, key) {
            return;
        }
        if let Some(extras) = &mut self.extras {
            extras.promote(check.socket, self.admitted.iter().copied());
        }
        let packet = Packet { socket: check.socket, from: check.from, message };
        punch.handle_packet(packet, now);
    }

    /// A server told how a socket of this session's own is seen.
    fn handle_mapped(&mut self, socket: LocalSocket, mapped: SocketAddr, now: Instant) {
        let Some((family, own)) = self.fresh.get_mut(&socket) else { return };
        if own.iter().any(|c| c.addr == mapped) {
            return;
        }
        let kind = CandidateKind::ServerReflexive;
        let candidate =
            Candidate { kind, addr: mapped, priority: candidate_priority(kind, FRESH_PREFERENCE) };
        own.push(candidate);
        if let Some(punch) = &mut self.punch {
            punch.handle_local_candidates(socket, *family, own, now);
        }
        if self.sent.insert(mapped) {
            self.untold.0.push(candidate);
        }
    }

    /// Gives what the peer said, for those whom the rest of it concerns.
    pub(crate) fn handle_signal(
        &mut self,
        parts: &mut Parts,
        signal: &wire::Signal,
    ) -> Option<wire::Trickle> {
        // Not sealed by the peer, or said before: no reason to end anything.
        let payload = parts.cipher.open(signal.nonce, &signal.sealed).ok()?;
        let trickle = wire::Trickle::decode(payload.as_slice()).ok()?;
        let Some(punch) = &mut self.punch else { return Some(trickle) };
        let now = Instant::now();
        let candidates = Candidate::list_from_wire(&trickle.candidates);
        debug!(session = %parts.session, ?candidates, nat = ?trickle.nat, "peer tells more");
        // The NAT first: it says how the candidates are to be tried.
        if let Some(nat) = &trickle.nat {
            punch.handle_remote_nat(NatSummary::from_wire(nat), parts.peer_seen, now);
        }
        if !candidates.is_empty() || trickle.end_of_candidates {
            punch.handle_remote_candidates(&candidates, trickle.end_of_candidates, now);
        }
        Some(trickle)
    }

    /// Own addresses, or what is known of the NAT, changed: what is new is told to the peer.
    pub(crate) fn handle_addresses(
        &mut self,
        parts: &mut Parts,
        addresses: &Addresses,
        now: Instant,
    ) {
        let (Some(punch), Some(udp)) = (&mut self.punch, &parts.udp) else { return };
        let all = addresses.all();
        for ((socket, family), own) in udp.sockets().zip(&addresses.candidates) {
            punch.handle_local_candidates(socket, family, own, now);
        }
        let moved = self.generation.replace(addresses.generation);
        let moved = moved.is_some_and(|before| before != addresses.generation);
        let fresh: BTreeSet<_> = self.fresh.values().flat_map(|f| &f.1).map(|c| c.addr).collect();
        let gone = |s: &SocketAddr| all.iter().all(|c| c.addr != *s) && !fresh.contains(s);
        if moved || self.sent.iter().any(gone) {
            self.sent.retain(|s| !gone(s));
            punch.handle_network_change(addresses.filter.clone(), now);
        }
        let passes = self.passes.replace(addresses.passes);
        if passes.is_some_and(|before| before != addresses.passes) {
            punch.handle_udp_passes(now);
        }
        if let Some(nat) = addresses.nat.as_ref().filter(|nat| self.told_nat.as_ref() != Some(*nat))
        {
            punch.handle_local_nat(nat.clone(), now);
            self.told_nat = Some(nat.clone());
            self.untold.1 = true;
        }
        let new = all.into_iter().filter(|c| self.sent.insert(c.addr));
        self.untold.0.extend(new);
        if moved {
            // The peer knows some of them already, but not that they are tried again now.
            self.announce_at = Some(now + ANNOUNCE_AFTER);
        }
        self.tell(parts);
    }

    /// Tells the peer what is new.
    fn tell(&mut self, parts: &mut Parts) {
        let (candidates, with_nat) = std::mem::take(&mut self.untold);
        if !candidates.is_empty() || with_nat {
            let now = Instant::now();
            self.told_at = Some(now);
            // The peer's way out to a new address must be open before this end's checks arrive.
            if !candidates.is_empty()
                && let Some(punch) = &mut self.punch
            {
                punch.handle_hold(TOLD_HOLD, now);
            }
            let nat = self.told_nat.as_ref().filter(|_| with_nat);
            trickle(parts, &candidates, nat.map(NatSummary::to_wire));
        }
    }

    /// The control connection is up again.
    pub(crate) fn handle_online(&mut self, now: Instant) {
        if self.told_at.is_some_and(|at| now < at + LOST_WITH_LINK) {
            self.announce_at = Some(now);
        }
        // What the peer told meanwhile is lost as well.
        if let Some(punch) = &mut self.punch
            && !punch.pairs().iter().any(|p| matches!(p.state, PairState::Valid { .. }))
        {
            punch.handle_want_direct(now);
        }
    }

    /// Tells the peer everything, so that both ends start again.
    fn announce(&mut self, parts: &mut Parts) {
        let Some(udp) = parts.udp.clone() else { return };
        let mut all = udp.addresses().borrow().all();
        let own = self.fresh.values().flat_map(|f| f.1.iter().copied());
        all.extend(own.filter(|c| c.kind != CandidateKind::Host));
        all.truncate(MAX_CANDIDATES);
        self.sent = all.iter().map(|c| c.addr).collect();
        self.untold = (all, true);
        self.tell(parts);
    }

    /// Whether there is a direct path that answers: otherwise it is watched whether UDP passes.
    pub(crate) fn set_direct(&mut self, parts: &Parts, direct: bool) {
        if direct || self.punch.is_none() {
            self.wanting = None;
        } else if self.wanting.is_none() {
            self.wanting = parts.udp.as_ref().map(UdpStack::want_path);
        }
    }

    /// No direct path: the machine starts again when it sees fit.
    pub(crate) fn want_direct(&mut self) {
        if let Some(punch) = &mut self.punch {
            punch.handle_want_direct(Instant::now());
        }
    }

    /// Follows the machine's events.
    pub(crate) fn drain(
        &mut self,
        parts: &mut Parts,
        chooser: &mut PathChooser,
        carriers: &BTreeMap<Validated, CarrierNumber>,
    ) -> Followed {
        let now = Instant::now();
        let mut followed = Followed::default();
        if self.announce_at.take_if(|at| *at <= now).is_some() {
            self.announce(parts);
        }
        while let Some(event) = self.punch.as_mut().and_then(Punch::poll_event) {
            self.follow(parts, chooser, carriers, event, &mut followed);
        }
        self.tell(parts);
        followed.dial.extend(self.due_redials(now));
        followed
    }

    fn follow(
        &mut self,
        parts: &Parts,
        chooser: &mut PathChooser,
        carriers: &BTreeMap<Validated, CarrierNumber>,
        event: Event,
        followed: &mut Followed,
    ) {
        let now = Instant::now();
        let number = |socket, remote| carriers.get(&Validated { socket, remote }).copied();
        match event {
            Event::AddressAdmitted(addr) => {
                if self.admitted.insert(addr) {
                    self.admit(parts, addr, true);
                }
            }
            Event::Validated { socket, remote, rtt, .. } => {
                debug!(session = %parts.session, ?socket, %remote, ?rtt, "path validated");
                let pair = Validated { socket, remote };
                if let Some(number) = carriers.get(&pair) {
                    chooser.handle_check(*number, true, now);
                } else if parts.role == Role::Console && self.dialled.insert(pair) {
                    followed.dial.push(pair);
                }
            }
            Event::Rebound { socket, remote, .. } => {
                let pair = Validated { socket, remote };
                if let Some(number) = carriers.get(&pair) {
                    chooser.handle_rebound(*number, now);
                }
                if parts.role == Role::Console {
                    self.dialled.insert(pair);
                    self.redial.remove(&pair);
                    followed.dial.push(pair);
                }
            }
            Event::Rtt { socket, remote, .. } => {
                if let Some(number) = number(socket, remote) {
                    chooser.handle_check(number, true, now);
                }
            }
            Event::Silent { socket, remote } => {
                if let Some(number) = number(socket, remote) {
                    chooser.handle_check(number, false, now);
                }
            }
            Event::Expired { remote, revoked, .. } => {
                if revoked && self.admitted.remove(&remote) {
                    self.admit(parts, remote, false);
                }
            }
            Event::Retiring { socket, remote } => {
                followed.retiring.push(Validated { socket, remote });
            }
            Event::PeerReflexive { .. } => {}
            Event::Exhausted { failed } => {
                debug!(session = %parts.session, ?failed, "no direct path yet");
                self.exhausted = true;
            }
            event => self.provide(parts, &event, now),
        }
    }

    /// What the machine wants of sockets and servers.
    fn provide(&mut self, parts: &Parts, event: &Event, now: Instant) {
        let (Some(punch), Some(extras), Some(udp)) =
            (&mut self.punch, &mut self.extras, &parts.udp)
        else {
            return;
        };
        debug!(session = %parts.session, ?event, "punching");
        match *event {
            Event::WantAddresses => {
                udp.rediscover();
                self.announce_at = Some(now + ANNOUNCE_AFTER);
            }
            Event::WantNatSummary => {
                let (udp, doors) = (udp.clone(), extras.doors());
                let cancel = parts.cancel.clone();
                parts.tasks.spawn(async move {
                    let observed = cancel.run_until_cancelled(udp.observe_nat()).await.flatten();
                    if let Some(nat) = observed {
                        let _ = doors.incoming.send(Incoming::Nat(nat)).await;
                    }
                });
            }
            Event::WantSockets { count, family } => {
                for socket in extras.open_birthday(count, family) {
                    punch.handle_birthday_socket(socket, family, now);
                }
            }
            Event::ReleaseSockets { keep } => extras.release_birthday(keep),
            Event::WantFreshSocket { family } => {
                let admitted = self.admitted.iter().copied();
                if let Some((socket, port)) = extras.open_fresh(family, admitted) {
                    let own = udp.hosts_like(family, port);
                    punch.handle_local_candidates(socket, family, &own, now);
                    self.fresh.insert(socket, (family, own));
                }
            }
            Event::SocketUnneeded(socket) => {
                extras.close(socket);
                self.fresh.remove(&socket);
                self.dialled.retain(|pair| pair.socket != socket);
                self.redial.retain(|pair, _| pair.socket != socket);
                punch.handle_socket_closed(socket);
            }
            _ => {}
        }
    }

    fn admit(&self, parts: &Parts, addr: SocketAddr, admit: bool) {
        if let Some(udp) = &parts.udp {
            udp.admit(addr, admit);
        }
        if let Some(extras) = &self.extras {
            extras.admit(addr, admit);
        }
    }

    /// Dials over a pair, from whichever socket it is.
    pub(crate) fn dial(
        &self,
        parts: &Parts,
        pair: Validated,
        config: quinn::ClientConfig,
    ) -> Option<quinn::Connecting> {
        match self.extras.as_ref().filter(|e| e.has(pair.socket)) {
            Some(extras) => extras.dial(pair.socket, pair.remote, config),
            None => parts.udp.as_ref()?.dial(pair.socket, pair.remote, config),
        }
    }

    /// The local port of a socket.
    pub(crate) fn port(&self, parts: &Parts, socket: LocalSocket, remote: SocketAddr) -> u16 {
        let own = self.extras.as_ref().and_then(|e| e.port(socket));
        own.or_else(|| Some(parts.udp.as_ref()?.port(Family::of(remote)))).unwrap_or(0)
    }

    /// Acknowledged data are as good as an answered check.
    pub(crate) fn acknowledged(&mut self, pair: Validated, now: Instant) {
        if let Some(punch) = &mut self.punch {
            punch.handle_acknowledged(pair.socket, pair.remote, now);
        }
    }

    pub(crate) fn dial_failed(&mut self, pair: Validated, now: Instant) {
        let tries = self.redial.get(&pair).map_or(0, |r| r.1);
        let pause = REDIAL_MS.get(tries).or(REDIAL_MS.last()).copied().unwrap_or(1000);
        self.redial.insert(pair, (now + Duration::from_millis(pause), tries + 1));
    }

    pub(crate) fn connection_lost(&mut self, pair: Validated, now: Instant) {
        if self.dialled.contains(&pair) {
            self.dial_failed(pair, now);
        }
    }

    pub(crate) fn connected(&mut self, pair: Validated) {
        self.redial.remove(&pair);
    }

    fn due_redials(&mut self, now: Instant) -> Vec<Validated> {
        let due: Vec<_> =
            self.redial.iter().filter(|(_, (at, _))| *at <= now).map(|(pair, _)| *pair).collect();
        if due.is_empty() {
            return Vec::new();
        }
        let pairs = self.punch.as_ref().map(Punch::pairs).unwrap_or_default();
        let mut dial = Vec::new();
        for pair in due {
            let is_live = pairs.iter().any(|p| {
                (p.socket, p.remote) == (pair.socket, pair.remote)
                    && matches!(p.state, PairState::Valid { .. })
            });
            match self.redial.get_mut(&pair) {
                Some(entry) if is_live => {
                    entry.0 = now + Duration::from_secs(60); // until the dial's outcome is known
                    dial.push(pair);
                }
                _ => {
                    // It will be dialled when it validates again.
                    self.redial.remove(&pair);
                    self.dialled.remove(&pair);
                }
            }
        }
        dial
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if let Some(punch) = &mut self.punch
            && punch.poll_timeout().is_some_and(|t| t <= now)
        {
            punch.handle_timeout(now);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let redial = self.redial.values().map(|r| r.0);
        let punch = self.punch.as_ref().and_then(Punch::poll_timeout);
        punch.into_iter().chain(self.announce_at).chain(redial).min()
    }

    /// The session is over: its addresses get no more answers.
    pub(crate) fn forget(&mut self, parts: &Parts) {
        self.wanting = None;
        let Some(udp) = &parts.udp else { return };
        let quic_key = (parts.role == Role::Agent).then_some(parts.peer_quic_sha256);
        udp.forget(parts.keys.stun_tag, quic_key);
        for addr in std::mem::take(&mut self.admitted) {
            udp.admit(addr, false);
        }
        self.extras = None;
    }
}

/// Keys of our own checks and of the peer's.
fn direction_keys(parts: &Parts) -> (&[u8; 32], &[u8; 32]) {
    match parts.role {
        Role::Console => (&parts.keys.stun_console, &parts.keys.stun_agent),
        Role::Agent => (&parts.keys.stun_agent, &parts.keys.stun_console),
    }
}

/// Tells the peer of candidates and the NAT, sealed, through the mediator.
fn trickle(parts: &mut Parts, candidates: &[Candidate], nat: Option<wire::NatSummary>) {
    debug!(session = %parts.session, ?candidates, ?nat, "told the peer more");
    let trickle = wire::Trickle {
        candidates: candidates.iter().map(Candidate::to_wire).collect(),
        end_of_candidates: false,
        nat,
        ..wire::Trickle::default()
    };
    send_trickle(parts, &trickle);
}

/// Tells the peer something, sealed, through the mediator.
pub(crate) fn send_trickle(parts: &mut Parts, trickle: &wire::Trickle) {
    let Some(peer) = parts.control.peer() else { return };
    let Ok((nonce, sealed)) = parts.cipher.seal(&trickle.encode_to_vec()) else { return };
    let session_id = parts.session.to_bytes();
    let signal = wire::Signal { session_id, nonce, sealed: Bytes::from(sealed) };
    // Lost candidates cost a direct path at worst; they are said again when it is missed.
    let _ = peer.push(wire::frame::Body::Signal(signal));
}
