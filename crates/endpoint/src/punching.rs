//! A session's hole punching between the machine and the sockets: seals and opens checks, keeps
//! the set of admitted addresses, trickles candidates, and says which pairs to dial.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use adit_core::{
    path::PathChooser,
    punch::{Event, LocalSocket, Message, Packet, PairState, Punch},
};
use adit_net::stun::{self, StunClass};
use adit_protocol::{candidate::Candidate, ids::CarrierNumber, ticket::Role, wire};
use bytes::Bytes;
use prost::Message as _;
use tracing::debug;

use crate::{
    driver::Parts,
    udp::{Addresses, StunIn},
};

/// A lost or failed connection over a pair that still answers is tried again after these.
const REDIAL_MS: [u64; 5] = [200, 1000, 3000, 10_000, 30_000];

/// A pair that works both ways.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Validated {
    pub(crate) socket: LocalSocket,
    pub(crate) remote: SocketAddr,
}

pub(crate) struct Punching {
    punch: Option<Punch>,
    admitted: BTreeSet<SocketAddr>,
    dialled: BTreeSet<SocketAddr>,
    redial: BTreeMap<SocketAddr, (Instant, usize)>,
    sent: BTreeSet<SocketAddr>,
}

impl Punching {
    pub(crate) fn new(parts: &mut Parts) -> Self {
        Self {
            punch: parts.punch.take(),
            admitted: BTreeSet::new(),
            dialled: BTreeSet::new(),
            redial: BTreeMap::new(),
            sent: parts.sent_candidates.iter().map(|c| c.addr).collect(),
        }
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
                    udp.send_check(t.socket, t.to, &packet, Some((id, tag)));
                }
                Message::Response { id, mapped } => {
                    let packet = stun::encode_check_response(id, mapped, peer);
                    udp.send_check(t.socket, t.to, &packet, None);
                }
            }
        }
    }

    pub(crate) fn handle_stun(&mut self, parts: &Parts, stun: StunIn) {
        let Some(punch) = &mut self.punch else { return };
        let (own, peer) = direction_keys(parts);
        let id = stun.packet.transaction_id;
        let (key, message) = match (stun.packet.class, stun.packet.mapped) {
            (StunClass::Request, _) => {
                let priority = stun.packet.priority.unwrap_or(0);
                (peer, Message::Request { id, priority })
            }
            (StunClass::Success, Some(mapped)) => (own, Message::Response { id, mapped }),
            _ => return,
        };
        if stun::verify_integrity(&stun.raw, key) {
            let packet = Packet { socket: stun.socket, from: stun.from, message };
            punch.handle_packet(packet, Instant::now());
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
        if let Some(punch) = &mut self.punch {
            let candidates = Candidate::list_from_wire(&trickle.candidates);
            debug!(session = %parts.session, ?candidates, "peer's further candidates");
            punch.handle_remote_candidates(&candidates, trickle.end_of_candidates, Instant::now());
        }
        Some(trickle)
    }

    /// Own addresses changed: new ones are told to the peer.
    pub(crate) fn handle_addresses(
        &mut self,
        parts: &mut Parts,
        addresses: &Addresses,
        now: Instant,
    ) {
        let (Some(punch), Some(udp)) = (&mut self.punch, &parts.udp) else { return };
        let all = addresses.all();
        let hosts_gone = self.sent.iter().any(|s| all.iter().all(|c| c.addr != *s));
        for ((socket, family), own) in udp.sockets().zip(&addresses.candidates) {
            punch.handle_local_candidates(socket, family, own, now);
        }
        if hosts_gone {
            self.sent.retain(|s| all.iter().any(|c| c.addr == *s));
            punch.handle_network_change(addresses.filter.clone(), now);
        }
        let new: Vec<_> = all.into_iter().filter(|c| self.sent.insert(c.addr)).collect();
        if !new.is_empty() {
            trickle(parts, &new);
        }
    }

    /// No direct path: both ends start again.
    pub(crate) fn want_direct(&mut self, parts: &mut Parts) {
        let (Some(punch), Some(udp)) = (&mut self.punch, parts.udp.clone()) else { return };
        punch.handle_want_direct(Instant::now());
        udp.refresh();
        let all = udp.addresses().borrow().all();
        self.sent = all.iter().map(|c| c.addr).collect();
        trickle(parts, &all);
    }

    /// Follows the machine's events; gives the pairs to dial.
    pub(crate) fn drain(
        &mut self,
        parts: &Parts,
        chooser: &mut PathChooser,
        carriers: &BTreeMap<SocketAddr, CarrierNumber>,
    ) -> Vec<Validated> {
        let (Some(punch), Some(udp)) = (&mut self.punch, &parts.udp) else { return Vec::new() };
        let now = Instant::now();
        let mut dial = Vec::new();
        let console = parts.role == Role::Console;
        while let Some(event) = punch.poll_event() {
            match event {
                Event::AddressAdmitted(addr) => {
                    if self.admitted.insert(addr) {
                        udp.admit(addr, true);
                    }
                }
                Event::Validated { socket, remote, rtt, .. } => {
                    debug!(session = %parts.session, %remote, ?rtt, "path validated");
                    if let Some(number) = carriers.get(&remote) {
                        chooser.handle_check(*number, true, now);
                    } else if console && self.dialled.insert(remote) {
                        dial.push(Validated { socket, remote });
                    }
                }
                Event::Rebound { socket, remote, .. } => {
                    if console {
                        self.dialled.insert(remote);
                        dial.push(Validated { socket, remote });
                    }
                }
                Event::Rtt { remote, .. } => {
                    if let Some(number) = carriers.get(&remote) {
                        chooser.handle_check(*number, true, now);
                    }
                }
                Event::Silent { remote, .. } => {
                    if let Some(number) = carriers.get(&remote) {
                        chooser.handle_check(*number, false, now);
                    }
                }
                Event::Expired { remote, revoked, .. } => {
                    if revoked && self.admitted.remove(&remote) {
                        udp.admit(remote, false);
                    }
                }
                // What follows has no sockets to go with yet.
                Event::PeerReflexive { .. }
                | Event::WantAddresses
                | Event::WantNatSummary
                | Event::WantSockets { .. }
                | Event::ReleaseSockets { .. }
                | Event::WantFreshSocket { .. }
                | Event::Retiring { .. }
                | Event::SocketUnneeded(_) => {}
                Event::Exhausted { failed } => {
                    debug!(session = %parts.session, ?failed, "no direct path yet");
                }
            }
        }
        dial.extend(self.due_redials(now));
        dial
    }

    /// Acknowledged data are as good as an answered check.
    pub(crate) fn acknowledged(&mut self, remote: SocketAddr, now: Instant) {
        let Some(punch) = &mut self.punch else { return };
        let pair = punch.pairs().into_iter().find(|p| p.remote == remote);
        if let Some(pair) = pair {
            punch.handle_acknowledged(pair.socket, remote, now);
        }
    }

    pub(crate) fn dial_failed(&mut self, remote: SocketAddr, now: Instant) {
        let tries = self.redial.get(&remote).map_or(0, |r| r.1);
        let pause = REDIAL_MS.get(tries).or(REDIAL_MS.last()).copied().unwrap_or(1000);
        self.redial.insert(remote, (now + Duration::from_millis(pause), tries + 1));
    }

    pub(crate) fn connection_lost(&mut self, remote: SocketAddr, now: Instant) {
        if self.dialled.contains(&remote) {
            self.dial_failed(remote, now);
        }
    }

    pub(crate) fn connected(&mut self, remote: SocketAddr) {
        self.redial.remove(&remote);
    }

    fn due_redials(&mut self, now: Instant) -> Vec<Validated> {
        let due: Vec<_> =
            self.redial.iter().filter(|(_, (at, _))| *at <= now).map(|(r, _)| *r).collect();
        if due.is_empty() {
            return Vec::new();
        }
        let report = self.punch.as_ref().map(Punch::pairs).unwrap_or_default();
        let mut dial = Vec::new();
        for remote in due {
            let live = report
                .iter()
                .find(|p| p.remote == remote && matches!(p.state, PairState::Valid { .. }));
            match (live, self.redial.get_mut(&remote)) {
                (Some(pair), Some(entry)) => {
                    entry.0 = now + Duration::from_secs(60); // until the dial's outcome is known
                    dial.push(Validated { socket: pair.socket, remote });
                }
                _ => {
                    // It will be dialled when it validates again.
                    self.redial.remove(&remote);
                    self.dialled.remove(&remote);
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
        let redial = self.redial.values().map(|r| r.0).min();
        self.punch.as_ref().and_then(Punch::poll_timeout).into_iter().chain(redial).min()
    }

    /// The session is over: its addresses get no more answers.
    pub(crate) fn forget(&mut self, parts: &Parts) {
        let Some(udp) = &parts.udp else { return };
        let quic_key = (parts.role == Role::Agent).then_some(parts.peer_quic_sha256);
        udp.forget(parts.keys.stun_tag, quic_key);
        for addr in std::mem::take(&mut self.admitted) {
            udp.admit(addr, false);
        }
    }
}

/// Keys of our own checks and of the peer's.
fn direction_keys(parts: &Parts) -> (&[u8; 32], &[u8; 32]) {
    match parts.role {
        Role::Console => (&parts.keys.stun_console, &parts.keys.stun_agent),
        Role::Agent => (&parts.keys.stun_agent, &parts.keys.stun_console),
    }
}

/// Tells the peer of candidates, sealed, through the mediator.
fn trickle(parts: &mut Parts, candidates: &[Candidate]) {
    if parts.control.peer().is_none() {
        return;
    }
    debug!(session = %parts.session, ?candidates, "further candidates told");
    let trickle = wire::Trickle {
        candidates: candidates.iter().map(Candidate::to_wire).collect(),
        end_of_candidates: false,
        nat: None,
        relay_rtts: Vec::new(),
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
