//! The driver's relays: joins and leaves them as [`Relays`](crate::relays::Relays) says, renews
//! tickets, and exchanges measured round trips with the peer.

use std::time::{Duration, Instant};

use adit_protocol::wire;
use bytes::Bytes;
use tracing::{debug, info};

use crate::{
    driver::{Driver, Message},
    join::Relay,
    memory::MAX_MEASURED,
    punching::send_trickle,
    relays::{RelayKey, Rtts, Step},
};

/// A figure that differs by less than this, or by less than one part in [`TOLD_PART`], from what
/// the peer knows is not told again.
const TOLD_BY: Duration = Duration::from_millis(10);
/// See [`TOLD_BY`].
const TOLD_PART: u32 = 5;
/// Longest round trip that is believed.
const MAX_RTT: Duration = Duration::from_secs(10);

/// Round trips as the peer told them; what makes no sense is left out.
pub(crate) fn rtts_from_wire(told: &[wire::RelayRtt]) -> Rtts {
    told.iter()
        .take(MAX_MEASURED)
        .filter_map(|told| {
            let rtt = Duration::from_micros(told.rtt_us.into());
            Some((told.relay_identity.as_ref().try_into().ok()?, rtt.min(MAX_RTT)))
        })
        .collect()
}

/// For the handshake and trickles.
pub(crate) fn rtts_to_wire(rtts: &[(RelayKey, Duration)]) -> Vec<wire::RelayRtt> {
    rtts.iter()
        .take(MAX_MEASURED)
        .map(|(key, rtt)| wire::RelayRtt {
            relay_identity: Bytes::copy_from_slice(key),
            rtt_us: u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX),
        })
        .collect()
}

impl Driver {
    pub(crate) fn begin_relays(&mut self, now: Instant) {
        if self.p.relayed {
            let keys = self.p.joiner.tickets.keys();
            let (own, peer) = &self.p.relay_rtts;
            self.relays.begin(&keys, own, peer, now);
            self.follow_relays(now);
        }
        // What was begun at other relays is given up.
        self.p.early = None;
    }

    /// Does what the machine wants.
    pub(crate) fn follow_relays(&mut self, now: Instant) {
        if !self.p.relayed {
            return;
        }
        let stranded = self.carriers.values().all(|c| c.silent.is_some());
        self.relays.handle_stranded(stranded && self.had_carrier, now);
        self.relays.handle_timeout(now);
        if self.relay_news.has_changed().unwrap_or(false) {
            self.relay_news.mark_unchanged();
            self.tell_rtts(now);
        }
        while let Some(step) = self.relays.poll_step() {
            match step {
                Step::Join(key, slot) => self.join(key, slot),
                Step::Leave(key) => {
                    info!(session = %self.p.session, relay = self.relay_name(&key), "relay left");
                    if let Some(stop) = self.relay_stops.remove(&key) {
                        stop.cancel();
                    }
                }
                Step::TellJoin(tag, slot) => {
                    self.p.shared.with(|resume, _| resume.ask_join(tag, slot));
                }
                Step::TellLeave(tag) => self.p.shared.with(|resume, _| resume.tell_leave(tag)),
                Step::AskOthers => self.ask_tickets(true),
            }
        }
    }

    pub(crate) fn relay_name(&self, key: &RelayKey) -> String {
        self.p.joiner.tickets.get(key).map(|r| r.name).unwrap_or_default()
    }

    fn join(&mut self, key: RelayKey, slot: u32) {
        debug!(session = %self.p.session, relay = self.relay_name(&key), slot, "relay joined");
        let stop = self.relay_stops.entry(key).or_insert_with(|| self.p.cancel.child_token());
        let begun = self.p.early.as_ref().filter(|_| slot == 0).and_then(|e| e.take(&key));
        let keep_up = self.p.joiner.clone().keep_up(key, slot, begun, stop.child_token());
        self.p.tasks.spawn(keep_up);
    }

    fn ask_tickets(&self, others: bool) {
        let (tickets, driver) = (self.p.joiner.tickets.clone(), self.p.message_in.clone());
        let cancel = self.p.cancel.clone();
        self.p.tasks.spawn(async move {
            let asked = cancel.run_until_cancelled(tickets.ask(others)).await.flatten();
            if let Some(relays) = asked {
                let _ = driver.send(Message::Offered(relays)).await;
            }
        });
    }

    /// A replacement may be needed when the mediator is not there: tickets never get old.
    pub(crate) fn renew_tickets(&self) {
        if self.p.relayed {
            self.ask_tickets(false);
        }
    }

    pub(crate) fn relays_offered(&mut self, relays: Vec<Relay>, now: Instant) {
        if !self.p.relayed {
            return;
        }
        let keys: Vec<_> = relays.iter().map(|r| r.key).collect();
        self.relays.handle_offered(&keys, now);
        self.p.joiner.tickets.take_in(relays, |key| self.relays.knows(key));
        self.relays.handle_rtts(true, &self.p.memory.rtts(), now);
        self.follow_relays(now);
    }

    pub(crate) fn handle_peer_rtts(&mut self, told: &[wire::RelayRtt], now: Instant) {
        if !told.is_empty() {
            self.relays.handle_rtts(false, &rtts_from_wire(told), now);
            self.follow_relays(now);
        }
    }

    /// Own figures changed: the peer learns what differs from what it knows.
    fn tell_rtts(&mut self, now: Instant) {
        let told = &mut self.p.relay_rtts.0;
        let differs = |key: &RelayKey, rtt: Duration| {
            let known = told.iter().find(|(k, _)| k == key).map(|(_, rtt)| *rtt);
            known.is_none_or(|known| {
                known.abs_diff(rtt) >= TOLD_BY && known.abs_diff(rtt) >= known / TOLD_PART
            })
        };
        let mut news = self.p.memory.rtts();
        news.retain(|(key, rtt)| differs(key, *rtt));
        if news.is_empty() {
            return;
        }
        told.retain(|(key, _)| news.iter().all(|(k, _)| k != key));
        told.extend(news.iter().copied());
        self.relays.handle_rtts(true, &news, now);
        let relay_rtts = rtts_to_wire(&news);
        send_trickle(&mut self.p, &wire::Trickle { relay_rtts, ..wire::Trickle::default() });
    }
}
