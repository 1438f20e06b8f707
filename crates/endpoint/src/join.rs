//! Keeps one relayed carrier of a session up: dial, join, handshake, run, and again.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use adit_core::resume::Shape;
use adit_net::{
    identity::DeviceIdentity,
    noise::{
        RelayedHandshake,
        join::{JoinError, join_relay},
        records::MAX_HANDSHAKE_PAYLOAD,
    },
    proxy::{Dialer, parse_host_port},
};
use adit_protocol::{
    handshake::SessionKeys,
    ids::{CarrierNumber, SessionId},
    keys::{NoiseCert, PublicKey},
    ticket::Role,
    wire,
};
use bytes::BytesMut;
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    carrier::{CarrierEnd, Life, fill_message, take_in_message},
    carriers::CarrierUp,
    driver::Message,
    link::ControlLink,
    relayed::{self, Relayed, read_frame},
    shared::Shared,
};

/// Time to reach the relay.
const DIAL: Duration = Duration::from_secs(10);
/// Time for the other end to join and answer: a little more than the relay waits.
const ANSWER: Duration = Duration::from_secs(17);
/// Pauses between attempts that failed at once; the last repeats.
const BACKOFF_MS: [u64; 6] = [0, 200, 500, 1000, 2000, 5000];
/// An attempt that lasted so long did not fail at once.
const LASTED: Duration = Duration::from_secs(3);
/// Fresh tickets are asked for after this many failures.
const RENEW_AFTER: usize = 2;
/// Time for the mediator to give tickets.
const TICKETS: Duration = Duration::from_secs(10);
/// Carrier numbers that may be behind the highest one.
const NUMBER_WINDOW: u64 = 64;

/// Numbers of a session's carriers: the console gives them out, the agent takes each once.
#[derive(Debug, Default)]
pub(crate) struct Numbers(Mutex<(u64, BTreeSet<u64>)>);

impl Numbers {
    pub(crate) fn next(&self) -> CarrierNumber {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 += 1;
        CarrierNumber(state.0)
    }

    /// `false`: the number was used, or is too old to tell.
    pub(crate) fn accept(&self, number: CarrierNumber) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (highest, used) = &mut *state;
        if number.0 == 0
            || number.0.saturating_add(NUMBER_WINDOW) <= *highest
            || !used.insert(number.0)
        {
            return false;
        }
        *highest = (*highest).max(number.0);
        while used.first().is_some_and(|n| n.saturating_add(NUMBER_WINDOW) <= *highest) {
            used.pop_first();
        }
        true
    }
}

/// A relay as the mediator named it.
#[derive(Clone)]
pub(crate) struct Relay {
    pub(crate) name: String,
    addresses: Vec<String>,
    noise_key: [u8; 32],
    ticket: wire::Signed,
}

impl Relay {
    pub(crate) fn from_wire(grant: &wire::RelayGrant) -> Option<Self> {
        let info = grant.relay.as_ref()?;
        let identity = PublicKey::from_slice(&info.identity).ok()?;
        Some(Self {
            name: info.addresses.first()?.clone(),
            addresses: info.addresses.iter().take(4).cloned().collect(),
            noise_key: NoiseCert::open(identity, info.noise_cert.as_ref()?).ok()?,
            ticket: grant.ticket.clone()?,
        })
    }

    pub(crate) fn list(grants: &[wire::RelayGrant]) -> Vec<Self> {
        grants.iter().filter_map(Self::from_wire).take(crate::MAX_RELAYS).collect()
    }
}

/// All that joining needs.
#[derive(Clone)]
pub(crate) struct Joiner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) session: SessionId,
    pub(crate) keys: SessionKeys,
    pub(crate) identity: Arc<DeviceIdentity>,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) control: ControlLink,
    pub(crate) numbers: Arc<Numbers>,
    pub(crate) driver: mpsc::Sender<Message>,
}

impl Joiner {
    /// Runs until cancelled. `index`: of the relay in the session's list.
    pub(crate) async fn keep_up(
        self,
        mut relay: Relay,
        index: usize,
        slot: u32,
        cancel: CancellationToken,
    ) {
        let mut failures = 0;
        loop {
            let pause = BACKOFF_MS.get(failures).or(BACKOFF_MS.last()).copied().unwrap_or(0);
            let wait = tokio::time::sleep(Duration::from_millis(pause));
            if cancel.run_until_cancelled(wait).await.is_none() {
                return;
            }
            let began = Instant::now();
            let attempt = self.attempt(&relay, slot, &cancel);
            let Some(end) = cancel.run_until_cancelled(attempt).await else { return };
            debug!(session = %self.session, relay = relay.name, slot, %end, "relayed carrier over");
            failures = if began.elapsed() > LASTED { 1 } else { failures + 1 };
            if failures > RENEW_AFTER || matches!(end, AttemptEnd::Join(JoinError::Refused(_))) {
                let fresh = cancel.run_until_cancelled(self.fresh_ticket(index)).await;
                relay = fresh.flatten().unwrap_or(relay);
            }
        }
    }

    async fn fresh_ticket(&self, index: usize) -> Option<Relay> {
        let request =
            wire::TicketRequest { session_id: self.session.to_bytes(), not_relays: Vec::new() };
        let body = wire::frame::Body::TicketRequest(request);
        match self.control.peer()?.request(body, TICKETS).await.ok()? {
            wire::frame::Body::Tickets(t) => Relay::list(&t.relays).into_iter().nth(index),
            _ => None,
        }
    }

    async fn attempt(&self, relay: &Relay, slot: u32, cancel: &CancellationToken) -> AttemptEnd {
        let mut stream = match self.dial(relay).await {
            Ok(stream) => stream,
            Err(end) => return end,
        };
        let noise = &self.identity.noise;
        let join = join_relay(&mut stream, &relay.noise_key, noise, &relay.ticket, slot);
        if let Err(error) = join.await {
            return AttemptEnd::Join(error);
        }
        let cancel = cancel.child_token();
        let life = Arc::new(Life::default());
        let mut number = None;
        let greeted = match self.shared.role() {
            Role::Console => self.initiate(stream, &mut number, &life).await,
            Role::Agent => self.respond(stream, &mut number, &life).await,
        };
        let end = match greeted {
            Ok((carrier, rtt)) => {
                self.tell_up(&carrier, rtt, relay, slot, &cancel).await;
                let run = relayed::run(&self.shared, carrier);
                cancel.run_until_cancelled(run).await.unwrap_or(CarrierEnd::Stopped)
            }
            Err(end) => end,
        };
        if let Some(number) = number {
            self.shared.with(|resume, _| resume.carrier_down(number));
            self.shared.forget_carrier(number);
            let _ = self.driver.send(Message::Down(number, end.to_string())).await;
        }
        AttemptEnd::Carrier(end)
    }

    async fn dial(&self, relay: &Relay) -> Result<TcpStream, AttemptEnd> {
        let mut last = AttemptEnd::Dial("relay has no address".into());
        for address in &relay.addresses {
            let Ok((host, port)) = parse_host_port(address, 443) else { continue };
            match self.dialer.dial(&host, port, DIAL).await {
                Ok(dialed) => {
                    relayed::tune(&dialed.stream);
                    return Ok(dialed.stream);
                }
                Err(error) => last = AttemptEnd::Dial(error.to_string()),
            }
        }
        Err(last)
    }

    async fn tell_up(
        &self,
        carrier: &Relayed<TcpStream>,
        rtt: Duration,
        relay: &Relay,
        slot: u32,
        cancel: &CancellationToken,
    ) {
        let up = CarrierUp {
            number: carrier.number,
            kind: adit_core::path::CarrierKind::Relayed { slot },
            rtt,
            local: carrier.stream.local_addr().ok(),
            remote: carrier.stream.peer_addr().ok(),
            relay: Some(relay.name.clone()),
            life: carrier.life.clone(),
            direct: None,
            stop: cancel.clone(),
        };
        let _ = self.driver.send(Message::Up(Box::new(up))).await;
    }

    /// Console: the first message already carries records if no other carrier is in use.
    async fn initiate(
        &self,
        mut stream: TcpStream,
        up: &mut Option<CarrierNumber>,
        life: &Arc<Life>,
    ) -> Result<(Relayed<TcpStream>, Duration), CarrierEnd> {
        let number = self.numbers.next();
        let transmit = self.shared.register_carrier(number);
        let mut payload = BytesMut::new();
        let placed = self.shared.with(|resume, now| {
            if !resume.carrier_up(number, Shape::Shared) {
                return false;
            }
            if resume.in_use().is_none() {
                resume.prefer(number, number, now);
            }
            fill_message(resume, number, &mut payload, MAX_HANDSHAKE_PAYLOAD, now);
            true
        });
        if !placed {
            return Err(CarrierEnd::Stopped);
        }
        *up = Some(number);
        let psk = &self.keys.relay_psk;
        let (handshake, frame) = RelayedHandshake::initiate(psk, self.session, number, &payload)?;
        let began = Instant::now();
        stream.write_all(&frame).await?;
        let mut received = BytesMut::new();
        let reply = timeout(ANSWER, read_frame(&mut stream, &mut received))
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        let (payload, sealer, opener) = handshake.finish(&reply)?;
        self.shared.with(|resume, now| take_in_message(resume, number, payload, life, now))?;
        transmit.notify_one();
        let life = life.clone();
        let carrier = Relayed { number, stream, sealer, opener, received, transmit, life };
        Ok((carrier, began.elapsed()))
    }

    /// Agent: the console speaks first; its message proves that it has the session's keys.
    async fn respond(
        &self,
        mut stream: TcpStream,
        up: &mut Option<CarrierNumber>,
        life: &Arc<Life>,
    ) -> Result<(Relayed<TcpStream>, Duration), CarrierEnd> {
        let mut received = BytesMut::new();
        // A relay that accepted the join and then says nothing must not hold this slot for ever.
        let first = timeout(ANSWER, read_frame(&mut stream, &mut received))
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        let psk = &self.keys.relay_psk;
        let (handshake, payload) = RelayedHandshake::respond(psk, self.session, &first)?;
        let number = handshake.carrier();
        if !self.numbers.accept(number) {
            return Err(CarrierEnd::Stopped);
        }
        let transmit = self.shared.register_carrier(number);
        if !self.shared.with(|resume, _| resume.carrier_up(number, Shape::Shared)) {
            return Err(CarrierEnd::Stopped);
        }
        *up = Some(number);
        self.shared.with(|resume, now| take_in_message(resume, number, payload, life, now))?;
        let (frame, sealer, opener) = handshake.reply(&[])?;
        stream.write_all(&frame).await?;
        transmit.notify_one();
        let life = life.clone();
        let carrier = Relayed { number, stream, sealer, opener, received, transmit, life };
        Ok((carrier, Duration::ZERO))
    }
}

#[derive(Debug, thiserror::Error)]
enum AttemptEnd {
    #[error("{0}")]
    Dial(String),
    #[error("{0}")]
    Join(JoinError),
    #[error("{0}")]
    Carrier(CarrierEnd),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_carrier_number_is_accepted_once() {
        let numbers = Numbers::default();
        let accept = |n| numbers.accept(CarrierNumber(n));
        assert!(accept(2) && accept(1), "carriers may overtake each other");
        assert!(!accept(2) && !accept(1) && !accept(0));
        assert!(accept(1000));
        assert!(!accept(2) && !accept(936), "too old to tell");
        assert!(accept(937));
        assert!(accept(u64::MAX) && !accept(u64::MAX), "the peer says which");
    }
}
