//! What the driver tells the program, the mediator's audit, and at the end the peer.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use adit_protocol::{
    code::ChannelCode,
    ids::{CarrierNumber, ChannelId, SessionId},
    ticket::Role,
    wire,
};
use tracing::info;

use crate::{
    carriers::{Carrier, carrier_event, kind},
    counterparts,
    driver::{Driver, Message},
    events::{ChannelState, SessionEvent},
    link::Link,
    shared::{DriverEvent, Progress},
};

/// What has not led to a direct path by then counts as failed, though it is tried on.
const FIRST_ROUNDS: Duration = Duration::from_secs(12);
/// Time for both ends to exchange their last receipts: round trips of a bad path, and a machine
/// that is busy.
const LAST_RECEIPTS: Duration = Duration::from_secs(1);
/// Time for the last records to leave when the session ends.
const LAST_WORDS: Duration = Duration::from_millis(150);

impl Driver {
    pub(crate) fn emit(&self, event: SessionEvent) {
        // A program that does not read its events loses some, not the session.
        let _ = self.p.events.try_send(event);
    }

    pub(crate) fn tell_carrier(&self, number: CarrierNumber) {
        let Some(carrier) = self.carriers.get(&number) else { return };
        self.emit(carrier_event(carrier));
        self.report_carrier(carrier, "");
    }

    /// The record names the pair of a direct carrier as far as it is public: private addresses
    /// of the ends are nobody's business but theirs.
    pub(crate) fn report_carrier(&self, carrier: &Carrier, detail: &str) {
        if self.p.role != Role::Console {
            return; // the console chooses, so it reports
        }
        let (local, remote) = self.public_pair(carrier);
        let relay = carrier.up.relay.as_ref();
        let change = wire::CarrierChange {
            kind: kind(&carrier.up).as_str().into(),
            state: carrier.state.as_str().into(),
            relay_id: relay.map(|r| r.id.clone()).unwrap_or_default(),
            local,
            remote,
            detail: detail.into(),
        };
        self.report(wire::session_event::Event::Carrier(change));
    }

    fn public_pair(&self, carrier: &Carrier) -> (String, String) {
        let Some(pair) = carrier.up.pair() else { return Default::default() };
        let report = self.punching.report().unwrap_or_default();
        let known =
            report.pairs.iter().find(|p| p.remote == pair.remote && p.socket == pair.socket);
        // Behind a NAT the own address is the one that the peer sees.
        let local = known.and_then(|p| p.mapped).or(carrier.up.local);
        let text = |a: Option<SocketAddr>| {
            a.filter(|a| is_public(a.ip())).map(|a| a.to_string()).unwrap_or_default()
        };
        (text(local), text(carrier.up.remote))
    }

    /// Punching came to nothing so far; it goes on at growing gaps.
    pub(crate) fn is_exhausted(&self, now: Instant) -> bool {
        let wanted = self.p.udp.is_some() && self.carriers.values().all(|c| c.up.direct.is_none());
        wanted && (self.punching.is_exhausted() || now >= self.started + FIRST_ROUNDS)
    }

    /// Why there is no direct path, once, when the first rounds of punching came to nothing.
    pub(crate) fn tell_failures(&mut self, now: Instant) {
        let relayed = self.in_use.and_then(|n| self.carriers.get(&n));
        let Some(carrier) = relayed.filter(|c| c.up.direct.is_none()) else { return };
        if self.told_failures || !self.is_exhausted(now) {
            return;
        }
        let failures = self.punching.report().map(|r| r.failures).unwrap_or_default();
        let words: Vec<_> = failures.iter().map(|f| f.as_str()).collect();
        if words.is_empty() {
            return; // too early to say
        }
        info!(session = %self.p.session, failures = words.join(" "), "no direct path");
        self.report_carrier(carrier, &words.join(" "));
        self.told_failures = true;
    }

    pub(crate) fn report(&self, event: wire::session_event::Event) {
        let now_ms = self.p.control.last().map_or(0, |(_, clock)| clock.now_ms());
        self.p.reports.push(self.p.session, event, now_ms);
    }

    pub(crate) fn tell_channel(&mut self, id: ChannelId, lasted: Duration, progress: &Progress) {
        if self.p.receipts.is_service(id) {
            return;
        }
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
        self.p.receipts.end(id, end);
        let (up, down) = match self.p.role {
            Role::Console => (end.bytes_sent, end.bytes_received),
            Role::Agent => (end.bytes_received, end.bytes_sent),
        };
        self.p.totals.send_modify(|t| {
            t.bytes_up += up;
            t.bytes_down += down;
        });
        let state = if end.refused { ChannelState::Refused } else { ChannelState::Closed };
        // What the owner's policy refuses, the gate reports itself, with the rule.
        use ChannelCode::{ConsentRefused, ConsentTimeout, Policy};
        let by_policy =
            end.refused && matches!(end.code, Some(Policy | ConsentRefused | ConsentTimeout));
        if self.p.role == Role::Agent && !by_policy {
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

    pub(crate) fn update_totals(&self) {
        let carrier = self.in_use.and_then(|n| self.carriers.get(&n)).map(|c| kind(&c.up));
        self.p.totals.send_if_modified(|t| std::mem::replace(&mut t.carrier, carrier) != carrier);
    }

    pub(crate) fn renew(&mut self) {
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

    /// Resets all channels and lets both ends exchange the receipts of it.
    async fn close_channels(&mut self) {
        let live = self.p.receipts.live();
        for id in &live {
            self.p.shared.with(|resume, _| resume.reset(*id, ChannelCode::SessionEnded));
        }
        if self.carriers.is_empty() {
            return;
        }
        let (receipts, shared) = (self.p.receipts.clone(), self.p.shared.clone());
        let settled = async {
            // Channels that have ended but were not told yet are among those.
            while !receipts.live().is_empty() {
                if let DriverEvent::Channel(id, lasted, progress) = shared.driver_event().await {
                    self.tell_channel(id, lasted, &progress);
                }
            }
            let mut settled = std::pin::pin!(receipts.settled(&shared));
            loop {
                tokio::select! {
                    biased;
                    () = &mut settled => return,
                    event = shared.driver_event() => {
                        if let DriverEvent::Channel(id, lasted, progress) = event {
                            self.tell_channel(id, lasted, &progress);
                        }
                    }
                }
            }
        };
        // What does not come in time is asked for at the mediator.
        let _ = tokio::time::timeout(LAST_RECEIPTS, settled).await;
    }

    pub(crate) async fn finish(mut self, reason: &str) {
        info!(session = %self.p.session, reason, "session over");
        self.close_channels().await;
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
        let unmatched = self.p.receipts.unmatched();
        if !unmatched.is_empty() {
            counterparts::want(self.p.receipts.keeper(), unmatched).await;
        }
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
}

/// Neither private nor of this machine.
pub(crate) fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let shared = a == 100 && b & 0xc0 == 64; // RFC 6598
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || shared || a == 0)
        }
        IpAddr::V6(v6) => {
            let link_local = v6.is_unicast_link_local();
            !(v6.is_unique_local() || v6.is_loopback() || link_local || v6.is_unspecified())
        }
    }
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
