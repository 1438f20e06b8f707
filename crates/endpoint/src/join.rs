//! Keeps one relayed carrier of a session up: join, handshake, run, and again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use adit_core::resume::Shape;
use adit_net::noise::{RelayedHandshake, records::MAX_HANDSHAKE_PAYLOAD};
use adit_protocol::{
    handshake::SessionKeys,
    ids::{CarrierNumber, SessionId},
    keys::{NoiseCert, PublicKey},
    ticket::Role,
    wire,
};
use bytes::{Bytes, BytesMut};
use tokio::{
    io::AsyncWriteExt,
    sync::{Notify, mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    carrier::{CarrierEnd, Life, fill_message, take_in_message},
    carriers::{CarrierUp, RelayUse},
    driver::Message,
    early::{self, Begun},
    link::ControlLink,
    memory::MAX_ADDRESSES,
    reach::{Reach, ReachError, RelayStream},
    relayed::{self, Relayed, read_frame},
    relays::{MAX_KNOWN, RelayKey},
    shared::Shared,
};

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
/// Tickets are asked for no more often than this, whoever wants them.
const TICKETS_GAP: Duration = Duration::from_secs(2);
/// The first carrier of a session waits so long for somebody who wants to use it ...
const FIRST_CHANNEL: Duration = Duration::from_millis(30);
/// ... and so long for the first bytes of who does: often it is the target that speaks first.
const FIRST_DATA: Duration = Duration::from_millis(3);
/// Carriers that are the first of their session, as far as they are begun at the same time.
const FIRST_NUMBERS: u64 = 2;
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
    /// Its identity.
    pub(crate) key: RelayKey,
    /// Its id at the mediator.
    pub(crate) id: Bytes,
    pub(crate) name: String,
    pub(crate) addresses: Vec<String>,
    pub(crate) noise_key: [u8; 32],
    pub(crate) ticket: wire::Signed,
}

impl Relay {
    pub(crate) fn from_wire(grant: &wire::RelayGrant) -> Option<Self> {
        let info = grant.relay.as_ref()?;
        let identity = PublicKey::from_slice(&info.identity).ok()?;
        Some(Self {
            key: identity.0,
            id: info.relay_id.clone(),
            name: info.addresses.first()?.clone(),
            addresses: info.addresses.iter().take(MAX_ADDRESSES).cloned().collect(),
            noise_key: NoiseCert::open(identity, info.noise_cert.as_ref()?).ok()?,
            ticket: grant.ticket.clone()?,
        })
    }

    pub(crate) fn list(grants: &[wire::RelayGrant]) -> Vec<Self> {
        grants.iter().take(MAX_KNOWN).filter_map(Self::from_wire).collect()
    }
}

/// A session's relays with their newest tickets.
pub(crate) struct Tickets {
    session: SessionId,
    control: ControlLink,
    relays: Mutex<BTreeMap<RelayKey, Relay>>,
    asked: Mutex<Option<Instant>>,
}

impl Tickets {
    pub(crate) fn new(session: SessionId, control: ControlLink, relays: Vec<Relay>) -> Self {
        let relays = relays.into_iter().map(|r| (r.key, r)).collect();
        Self { session, control, relays: Mutex::new(relays), asked: Mutex::default() }
    }

    fn relays(&self) -> MutexGuard<'_, BTreeMap<RelayKey, Relay>> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: &RelayKey) -> Option<Relay> {
        self.relays().get(key).cloned()
    }

    pub(crate) fn keys(&self) -> Vec<RelayKey> {
        self.relays().keys().copied().collect()
    }

    /// Puts in what the mediator gave; `known` are the relays that the session still knows.
    pub(crate) fn take_in(&self, relays: Vec<Relay>, known: impl Fn(&RelayKey) -> bool) {
        let mut all = self.relays();
        all.extend(relays.into_iter().map(|r| (r.key, r)));
        all.retain(|key, _| known(key));
    }

    /// Asks the mediator for fresh tickets, for others than all relays known if `others`.
    pub(crate) async fn ask(&self, others: bool) -> Option<Vec<Relay>> {
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if !others && asked.is_some_and(|at| at.elapsed() < TICKETS_GAP) {
                return None;
            }
            *asked = Some(Instant::now());
        }
        let not_relays = match others {
            true => self.relays().values().map(|r| r.id.clone()).collect(),
            false => Vec::new(),
        };
        let request = wire::TicketRequest { session_id: self.session.to_bytes(), not_relays };
        let body = wire::frame::Body::TicketRequest(request);
        match self.control.peer()?.request(body, TICKETS).await.ok()? {
            wire::frame::Body::Tickets(t) => Some(Relay::list(&t.relays)),
            _ => None,
        }
    }
}

/// All that joining needs.
#[derive(Clone)]
pub(crate) struct Joiner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) session: SessionId,
    pub(crate) keys: SessionKeys,
    pub(crate) reach: Reach,
    pub(crate) tickets: Arc<Tickets>,
    pub(crate) numbers: Arc<Numbers>,
    pub(crate) driver: mpsc::Sender<Message>,
    /// Changes when it is time to try at once what waits or hangs.
    pub(crate) hurry: watch::Sender<u64>,
}

impl Joiner {
    /// Runs until cancelled. `begun`: the first join is under way already.
    pub(crate) async fn keep_up(
        self,
        key: RelayKey,
        slot: u32,
        begun: Option<Begun>,
        cancel: CancellationToken,
    ) {
        let _ = cancel.run_until_cancelled(self.try_on(key, slot, begun, &cancel)).await;
    }

    async fn try_on(
        &self,
        key: RelayKey,
        slot: u32,
        mut begun: Option<Begun>,
        cancel: &CancellationToken,
    ) {
        let mut failures = 0;
        let mut hurry = self.hurry.subscribe();
        loop {
            let pause = BACKOFF_MS.get(failures).or(BACKOFF_MS.last()).copied().unwrap_or(0);
            let hurried = tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(pause)) => false,
                _ = hurry.changed() => true,
            };
            if hurried {
                failures = 0;
            }
            let Some(relay) = self.tickets.get(&key) else { return };
            let began = Instant::now();
            let end = self.attempt(&relay, slot, begun.take(), cancel, &mut hurry).await;
            debug!(session = %self.session, relay = relay.name, slot, %end, "relayed carrier over");
            failures = match &end {
                // What worked is begun anew at once.
                AttemptEnd::Carrier(_) if began.elapsed() > LASTED => 0,
                _ if began.elapsed() > LASTED => 1,
                _ => failures + 1,
            };
            let refused = matches!(&end, AttemptEnd::Reach(error) if error.is_refusal());
            if (failures > RENEW_AFTER || refused)
                && let Some(relays) = self.tickets.ask(false).await
            {
                let _ = self.driver.send(Message::Offered(relays)).await;
            }
        }
    }

    async fn attempt(
        &self,
        relay: &Relay,
        slot: u32,
        begun: Option<Begun>,
        cancel: &CancellationToken,
        hurry: &mut watch::Receiver<u64>,
    ) -> AttemptEnd {
        let reach = async {
            match early::accepted(begun).await {
                Some(reached) => Ok(reached),
                None => self.reach.join(relay, slot, None).await,
            }
        };
        let reached = tokio::select! {
            reached = reach => reached,
            _ = hurry.changed() => return AttemptEnd::Hurried,
        };
        let reached = match reached {
            Ok(reached) => reached,
            Err(error) => return AttemptEnd::Reach(error),
        };
        let used = RelayUse {
            key: relay.key,
            id: relay.id.clone(),
            name: relay.name.clone(),
            slot,
            way: reached.way,
        };
        let cancel = cancel.child_token();
        let life = Arc::new(Life::default());
        let mut number = None;
        let greeted = match (reached.confirm(relay, &self.reach.memory), self.shared.role()) {
            (Err(error), _) => Err(error.into()),
            (Ok(joined), Role::Console) => self.initiate(joined, &mut number, &life).await,
            (Ok(joined), Role::Agent) => self.respond(joined, &mut number, &life).await,
        };
        let end = match greeted {
            Ok((carrier, rtt)) => {
                self.tell_up(&carrier, rtt, used, &cancel).await;
                let run = relayed::run(&self.shared, carrier);
                cancel.run_until_cancelled(run).await.unwrap_or(CarrierEnd::Stopped)
            }
            Err(end) => end,
        };
        if let Some(number) = number {
            self.shared.with(|resume, _| resume.carrier_down(number));
            self.shared.forget_carrier(number);
            let why = (end.word(), end.to_string());
            let _ = self.driver.send(Message::Down(number, why)).await;
        }
        AttemptEnd::Carrier(end)
    }

    async fn tell_up(
        &self,
        carrier: &Relayed<RelayStream>,
        rtt: Duration,
        used: RelayUse,
        cancel: &CancellationToken,
    ) {
        let up = CarrierUp {
            number: carrier.number,
            kind: adit_core::path::CarrierKind::Relayed { slot: used.slot },
            rtt,
            local: carrier.stream.local_addr(),
            remote: carrier.stream.peer_addr(),
            relay: Some(used),
            life: carrier.life.clone(),
            direct: None,
            stop: cancel.clone(),
        };
        let _ = self.driver.send(Message::Up(Box::new(up))).await;
    }

    /// Console: the first message already carries records if no other carrier is in use. It leaves
    /// together with the join's confirmation.
    async fn initiate(
        &self,
        (mut stream, mut first): (RelayStream, Vec<u8>),
        up: &mut Option<CarrierNumber>,
        life: &Arc<Life>,
    ) -> Result<(Relayed<RelayStream>, Duration), CarrierEnd> {
        let number = self.numbers.next();
        let transmit = self.shared.register_carrier(number);
        let placed = self.shared.with(|resume, now| {
            let first = resume.in_use().is_none();
            if !resume.carrier_up(number, Shape::Shared) {
                return None;
            }
            if first {
                resume.prefer(number, number, now);
            }
            Some(first)
        });
        let Some(alone) = placed else { return Err(CarrierEnd::Stopped) };
        *up = Some(number);
        let payload = self.first_words(number, alone, &transmit).await;
        let psk = &self.keys.relay_psk;
        let (handshake, frame) = RelayedHandshake::initiate(psk, self.session, number, &payload)?;
        first.extend_from_slice(&frame);
        let began = Instant::now();
        stream.write_all(&first).await?;
        stream.flush().await?;
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

    /// Console: what the first message carries. The first carrier of a session may be there a
    /// moment before the program has handed over the connection that waits for it; were its bytes
    /// to miss this message, they would wait for the answer to it.
    async fn first_words(&self, number: CarrierNumber, alone: bool, transmit: &Notify) -> BytesMut {
        let mut payload = BytesMut::new();
        let mut until = Instant::now() + FIRST_CHANNEL;
        loop {
            let (channels, data) = self.shared.with(|resume, now| {
                let room = MAX_HANDSHAKE_PAYLOAD.saturating_sub(payload.len());
                fill_message(resume, number, &mut payload, room, now);
                (resume.live_channels() > 0, resume.outstanding(number))
            });
            if channels {
                until = until.min(Instant::now() + FIRST_DATA);
            }
            let wait = until.saturating_duration_since(Instant::now());
            let first = alone && number.0 <= FIRST_NUMBERS;
            if !first || data || timeout(wait, transmit.notified()).await.is_err() {
                return payload;
            }
        }
    }

    /// Agent: the console speaks first; its message proves that it has the session's keys.
    async fn respond(
        &self,
        (mut stream, confirm): (RelayStream, Vec<u8>),
        up: &mut Option<CarrierNumber>,
        life: &Arc<Life>,
    ) -> Result<(Relayed<RelayStream>, Duration), CarrierEnd> {
        stream.write_all(&confirm).await?;
        stream.flush().await?;
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
        stream.flush().await?;
        transmit.notify_one();
        let life = life.clone();
        let carrier = Relayed { number, stream, sealer, opener, received, transmit, life };
        Ok((carrier, Duration::ZERO))
    }
}

#[derive(Debug, thiserror::Error)]
enum AttemptEnd {
    #[error("{0}")]
    Reach(ReachError),
    #[error("{0}")]
    Carrier(CarrierEnd),
    #[error("the network changed")]
    Hurried,
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
