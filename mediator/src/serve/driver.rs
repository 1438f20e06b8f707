//! The task that owns the broker: gives it time, makes its records durable, sends what it says.
//!
//! Connections hand in closures ([`BrokerHandle::ask`]), so that the broker is never shared.
//! Nothing here decides anything.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use adit_control::{Peer, RequestError, Responder};
use adit_protocol::{
    code::failure,
    grant::Grant,
    ids::{ComputerId, SessionId},
    limits::{MAX_NOISE_MESSAGE, MAX_TEXT, OPEN_TIMEOUT},
    nat::ip_to_wire,
    wire::{self, frame::Body},
};
use adit_runtime::time::unix_ms;
use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::clocks::Clocks;
use crate::{
    core::{Broker, types::*},
    installation::Installation,
    proof::Forest,
    store::{Room, StoreError, Writer, sessions},
};

/// Closures that may wait for the broker.
const MAX_WAITING: usize = 4096;
/// Time for a device to acknowledge an end.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Replies that may be outstanding in all.
const MAX_REQUESTS: usize = 100_000;

type Act = Box<dyn FnOnce(&mut Driver, Now) + Send>;

/// Computers that are online, for lists.
pub(crate) type Online = Arc<RwLock<HashSet<ComputerId>>>;

/// The way to the broker.
#[derive(Clone)]
pub(crate) struct BrokerHandle {
    acts: mpsc::Sender<Act>,
    online: Online,
    /// By how much the devices' clocks are off.
    pub(crate) clocks: Arc<Clocks>,
}

impl BrokerHandle {
    /// Does something with the broker and waits for the answer; `None` if it has stopped.
    pub(crate) async fn ask<T, F>(&self, act: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Driver, Now) -> T + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let act: Act = Box::new(move |driver, now| {
            // Whoever asked may have gone.
            let _ = sender.send(act(driver, now));
        });
        self.acts.send(act).await.ok()?;
        receiver.await.ok()
    }

    /// Does something with the broker; answers go through a [`Responder`].
    pub(crate) async fn act(&self, act: impl FnOnce(&mut Driver, Now) + Send + 'static) {
        // The broker stops last: then there is nobody to tell.
        let _ = self.acts.send(Box::new(act)).await;
    }

    /// Whether a computer's agent is connected.
    pub(crate) fn is_online(&self, computer: ComputerId) -> bool {
        self.online.read().unwrap_or_else(PoisonError::into_inner).contains(&computer)
    }
}

/// What the task owns.
pub(crate) struct Driver {
    pub(crate) broker: Broker,
    started: Instant,
    /// Time since 1970 when this process started: sessions that began before have a time too.
    base: Duration,
    peers: BTreeMap<ConnectionId, Peer>,
    /// Where their control connections come from.
    sources: BTreeMap<ConnectionId, IpAddr>,
    /// With the room that a request's records take in the writer's queue.
    responders: BTreeMap<RequestId, (Responder, Option<Room>)>,
    next_request: u64,
    writer: Writer,
    installation: Arc<Installation>,
    online: Online,
    audits: JoinSet<(AuditId, Result<Recorded, StoreError>)>,
    requests: JoinSet<Outcome>,
    /// Heads of their partner's log that agents hold, as far as they told or were shown.
    heads: BTreeMap<ConnectionId, wire::SeenHead>,
    /// What the agent was shown whose answer is being handled: the console is shown the same.
    shown: Option<(SessionId, Proofs)>,
}

/// What is shown of the log for a grant.
struct Proofs {
    audit: wire::AuditEvidence,
    /// For the console only, which asked for it.
    enrolment: Option<wire::AuditEvidence>,
}

/// What an agent was shown with an offer.
struct Shown {
    to: ConnectionId,
    head: wire::SeenHead,
    proofs: Proofs,
}

enum Outcome {
    Answer(SessionId, Result<Bytes, Refusal>, Option<Box<Shown>>),
    Told { session: SessionId, by: ConnectionId, acknowledged: bool },
}

/// Makes the broker's task.
pub(crate) fn start(
    writer: Writer,
    installation: Arc<Installation>,
    adopted: Vec<SessionRow>,
    stop: CancellationToken,
) -> (BrokerHandle, impl Future<Output = ()> + Send) {
    let (acts, queue) = mpsc::channel(MAX_WAITING);
    let online = Online::default();
    let mut driver = Driver {
        broker: Broker::default(),
        started: Instant::now(),
        base: Duration::from_millis(unix_ms()),
        peers: BTreeMap::new(),
        sources: BTreeMap::new(),
        responders: BTreeMap::new(),
        next_request: 0,
        writer,
        installation,
        online: Arc::clone(&online),
        audits: JoinSet::new(),
        requests: JoinSet::new(),
        heads: BTreeMap::new(),
        shown: None,
    };
    let now = driver.now();
    for row in adopted {
        driver.broker.handle_adopted(row, now);
    }
    (BrokerHandle { acts, online, clocks: Arc::default() }, driver.run(queue, stop))
}

impl Driver {
    fn now(&self) -> Now {
        Now { mono: self.base + self.started.elapsed(), unix_ms: unix_ms() }
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Act>, stop: CancellationToken) {
        loop {
            self.drain();
            let due =
                self.broker.poll_timeout().map(|at| self.started + at.saturating_sub(self.base));
            let sleep = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(done) = self.audits.join_next() => self.audited(done),
                Some(done) = self.requests.join_next() => self.told(done),
                act = queue.recv() => match act {
                    Some(act) => {
                        let now = self.now();
                        act(&mut self, now);
                    }
                    None => return,
                },
                () = sleep => {
                    let now = self.now();
                    self.broker.handle_timeout(now);
                }
                () = stop.cancelled() => return,
            }
        }
    }

    /// Keeps a request until the broker answers it.
    pub(crate) fn request(&mut self, responder: Responder) -> RequestId {
        self.keep(responder, None)
    }

    /// The same for what waits in the writer's queue like everyday reports.
    pub(crate) fn routine(&mut self, responder: Responder, room: Room) -> RequestId {
        self.keep(responder, Some(room))
    }

    fn keep(&mut self, responder: Responder, room: Option<Room>) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        if self.responders.len() >= MAX_REQUESTS {
            responder.fail(adit_control::failure(failure::BUSY, "too many requests wait"));
        } else {
            self.responders.insert(id, (responder, room));
        }
        id
    }

    /// A device connected. The older connection of an agent is no longer used, and the caller's to
    /// close; with its address.
    pub(crate) fn connected(
        &mut self,
        id: ConnectionId,
        device: Device,
        (peer, source): (Peer, IpAddr),
        now: Now,
    ) -> Option<(Peer, IpAddr)> {
        let mut older = None;
        if let Device::Agent { computer, .. } = &device {
            older = self.broker.agent_connection(*computer).and_then(|connection| {
                Some((self.peers.remove(&connection)?, *self.sources.get(&connection)?))
            });
            self.online.write().unwrap_or_else(PoisonError::into_inner).insert(*computer);
        }
        self.peers.insert(id, peer);
        self.sources.insert(id, source);
        self.broker.handle_connected(id, device, now);
        older
    }

    /// An agent told which head of its partner's log it holds.
    pub(crate) fn note_head(&mut self, id: ConnectionId, seen: Option<wire::SeenHead>) {
        if let Some(seen) = seen {
            self.heads.insert(id, seen);
        }
    }

    /// A connection ended.
    pub(crate) fn disconnected(
        &mut self,
        id: ConnectionId,
        computer: Option<ComputerId>,
        now: Now,
    ) {
        self.peers.remove(&id);
        self.sources.remove(&id);
        self.heads.remove(&id);
        self.broker.handle_disconnected(id, now);
        if let Some(computer) = computer
            && !self.broker.is_online(computer)
        {
            self.online.write().unwrap_or_else(PoisonError::into_inner).remove(&computer);
        }
    }

    fn drain(&mut self) {
        loop {
            if let Some(output) = self.broker.poll_output() {
                match output {
                    Output::Audit { id, partner_id, events, effect } => {
                        self.audit(id, partner_id, events, effect);
                    }
                    Output::Reply { request, reply } => self.reply(request, reply),
                }
            } else if let Some(transmit) = self.broker.poll_transmit() {
                self.transmit(transmit);
            } else {
                return;
            }
        }
    }

    fn audit(
        &mut self,
        id: AuditId,
        partner: String,
        events: Vec<adit_ledger::Event>,
        effect: Effect,
    ) {
        let submitted = self.writer.submit(move |tx| {
            Box::pin(async move {
                let mut last = None;
                for event in events {
                    if let Some(appended) = tx.record(&partner, event).await? {
                        last = Some(appended);
                    }
                }
                sessions::apply(tx, effect).await?;
                Ok(last.map_or_else(Recorded::nothing, |last| Recorded {
                    seq: last.seq,
                    leaf: last.leaf,
                    line: last.entry.to_line().into(),
                }))
            })
        });
        match submitted {
            Ok(pending) => {
                self.audits.spawn(async move { (id, pending.wait().await) });
            }
            Err(error) => {
                tracing::error!(%error, "audit record refused");
                let now = self.now();
                self.broker.handle_audit_failed(id, now);
            }
        }
    }

    fn audited(
        &mut self,
        done: Result<(AuditId, Result<Recorded, StoreError>), tokio::task::JoinError>,
    ) {
        let now = self.now();
        match done {
            Ok((id, Ok(recorded))) => self.broker.handle_audit_committed(id, recorded, now),
            Ok((id, Err(error))) => {
                tracing::error!(%error, "audit record not written");
                self.broker.handle_audit_failed(id, now);
            }
            // Awaiting a channel does not panic; were it to, the request is never granted.
            Err(error) => tracing::error!(%error, "audit task failed"),
        }
    }

    fn reply(&mut self, request: RequestId, reply: Reply) {
        let Some((responder, _room)) = self.responders.remove(&request) else { return };
        match reply {
            Reply::Done => responder.reply(Body::Done(wire::Done {})),
            Reply::Refused(refusal) => {
                responder.fail(adit_control::failure(refusal.code, refusal.message));
            }
            Reply::Renewed(lease) => {
                let lease = Some(lease.sign(&self.installation.grant));
                responder.reply(Body::Renewed(wire::Renewed { lease }));
            }
            Reply::Tickets(choices) => {
                let relays = self.sign_tickets(&choices);
                responder.reply(Body::Tickets(wire::Tickets { relays }));
            }
            Reply::CheckedIn(over) => {
                let end_sessions = over.into_iter().map(SessionId::to_bytes).collect();
                let reply = wire::CheckInReply { now_ms: unix_ms(), end_sessions };
                responder.reply(Body::CheckInReply(reply));
            }
            Reply::Granted { grant, noise_msg2, relays, audit_us, agent } => {
                let shown = self.shown.take().filter(|(session, _)| *session == grant.session);
                let (audit, enrolment) = match shown {
                    Some((_, proofs)) => (Some(proofs.audit), proofs.enrolment),
                    None => (None, None),
                };
                responder.reply(Body::Granted(wire::Granted {
                    audit,
                    enrolment,
                    grant: Some(grant.sign(&self.installation.grant)),
                    noise_msg2,
                    relays: self.sign_tickets(&relays),
                    audit_us,
                    peer_seen: self.seen(agent),
                }));
            }
        }
    }

    /// The address of a device, as the other end may need it to find the way through its NAT.
    fn seen(&self, id: ConnectionId) -> Bytes {
        self.sources.get(&id).map(|ip| ip_to_wire(*ip)).unwrap_or_default()
    }

    fn sign_tickets(&self, choices: &[RelayChoice]) -> Vec<wire::RelayGrant> {
        choices
            .iter()
            .map(|choice| wire::RelayGrant {
                relay: Some(choice.relay.clone()),
                ticket: Some(choice.ticket.sign(&self.installation.ticket)),
            })
            .collect()
    }

    fn transmit(&mut self, transmit: Transmit) {
        match transmit {
            Transmit::Offer { .. } => self.offer(transmit),
            Transmit::Tickets { to, session, relays } => {
                let relays = self.sign_tickets(&relays);
                if let Some(peer) = self.peers.get(&to) {
                    let session_id = session.to_bytes();
                    let tickets = wire::SessionTickets { session_id, relays };
                    // Lost in a full queue, they come with the grant.
                    let _ = peer.push(Body::SessionTickets(tickets));
                }
            }
            Transmit::End { to, session, reason } => {
                let session_id = session.to_bytes();
                let end = Body::EndSession(wire::EndSession { session_id, reason });
                self.tell(to, session, end);
            }
            Transmit::Cut { to, session } => {
                let session_id = session.to_bytes();
                self.tell(to, session, Body::RelayCut(wire::RelayCut { session_id }));
            }
            Transmit::Signal { to, signal } => {
                if let Some(peer) = self.peers.get(&to) {
                    // A full queue loses it; both ends repeat what matters.
                    let _ = peer.push(Body::Signal(signal));
                }
            }
            Transmit::Close { to } => {
                if let Some(peer) = self.peers.remove(&to) {
                    peer.close();
                }
            }
        }
    }

    fn offer(&mut self, offer: Transmit) {
        let Transmit::Offer {
            to,
            session,
            grant,
            noise_msg1,
            relays,
            console,
            entry,
            seen,
            enrolment,
        } = offer
        else {
            return;
        };
        let Some(peer) = self.peers.get(&to).cloned() else {
            let refusal = Refusal::new(failure::AGENT_OFFLINE, "the computer went offline");
            let now = self.now();
            return self.broker.handle_answer(session, Err(refusal), now);
        };
        let mut offer = wire::Offer {
            grant: Some(grant.sign(&self.installation.grant)),
            noise_msg1,
            relays: self.sign_tickets(&relays),
            peer_seen: console.map(|console| self.seen(console)).unwrap_or_default(),
            audit: None,
        };
        let forest = self.writer.forest().clone();
        let held = self.heads.get(&to).cloned();
        let seen: Vec<_> = held.into_iter().chain(seen).collect();
        self.requests.spawn(async move {
            let record = (grant.audit_seq, &*entry);
            let audit = match forest.evidence(&grant.tenant, record, &seen).await {
                Ok(audit) => audit,
                Err(error) => {
                    tracing::error!(%error, %session, "grant cannot be proved");
                    return Outcome::Answer(session, Err(unproven()), None);
                }
            };
            offer.audit = Some(audit.clone());
            // Read while the agent answers, so that first contacts take no longer.
            let (answer, enrolment) =
                tokio::join!(peer.request(Body::Offer(offer), OPEN_TIMEOUT), async {
                    match enrolment {
                        true => prove_enrolment(&forest, &grant, &audit).await,
                        false => None,
                    }
                });
            let shown = forest.head_of(&audit).map(|head| {
                let proofs = Proofs { audit, enrolment };
                Box::new(Shown { to, head, proofs })
            });
            Outcome::Answer(session, read_answer(answer), shown)
        });
    }

    fn tell(&mut self, to: ConnectionId, session: SessionId, body: Body) {
        let Some(peer) = self.peers.get(&to).cloned() else { return };
        self.requests.spawn(async move {
            let answer = peer.request(body, ACKNOWLEDGE_TIMEOUT).await;
            // A device that does not know the session does not serve it.
            let acknowledged = matches!(answer, Ok(_) | Err(RequestError::Failed(_)));
            Outcome::Told { session, by: to, acknowledged }
        });
    }

    fn told(&mut self, done: Result<Outcome, tokio::task::JoinError>) {
        let now = self.now();
        match done {
            Ok(Outcome::Answer(session, answer, shown)) => {
                if let (Ok(_), Some(shown)) = (&answer, shown) {
                    let Shown { to, head, proofs } = *shown;
                    if self.peers.contains_key(&to) {
                        self.heads.insert(to, head);
                    }
                    self.shown = Some((session, proofs));
                }
                self.broker.handle_answer(session, answer, now);
                self.drain();
                self.shown = None;
            }
            Ok(Outcome::Told { session, by, acknowledged: true }) => {
                self.broker.handle_acknowledged(session, by, now);
            }
            Ok(Outcome::Told { .. }) => {}
            Err(error) => tracing::error!(%error, "request task failed"),
        }
    }
}

/// The enrolment of the agent of a grant, in the head that the grant's own record is shown in. A
/// console that gets none asks for it by itself, and refuses without.
async fn prove_enrolment(
    forest: &Forest,
    grant: &Grant,
    audit: &wire::AuditEvidence,
) -> Option<wire::AuditEvidence> {
    let computer = grant.computer.to_string();
    let proved = forest.enrolment_beside(&grant.tenant, &computer, audit).await;
    let warn = |error: &StoreError| tracing::warn!(%error, computer, "enrolment cannot be proved");
    proved.inspect_err(warn).ok()
}

/// Without proof the agent would refuse: it is not asked.
fn unproven() -> Refusal {
    let text = "the proof of the audit record could not be made; nothing was granted";
    Refusal::new(failure::AUDIT_UNAVAILABLE, text)
}

fn read_answer(answer: Result<Body, RequestError>) -> Result<Bytes, Refusal> {
    match answer {
        Ok(Body::Answer(answer)) if answer.noise_msg2.len() <= MAX_NOISE_MESSAGE => {
            Ok(answer.noise_msg2)
        }
        Ok(_) | Err(RequestError::UnknownAnswer) => {
            Err(Refusal::new(failure::AGENT_REFUSED, "the agent answered with something else"))
        }
        Err(RequestError::Failed(told)) => Err(agent_refusal(&told)),
        Err(RequestError::Timeout(_)) => {
            Err(Refusal::new(failure::AGENT_TIMEOUT, "the agent did not answer in time"))
        }
        Err(RequestError::Closed) => {
            Err(Refusal::new(failure::AGENT_OFFLINE, "the computer went offline"))
        }
        Err(RequestError::Busy | RequestError::TooLarge) => {
            Err(Refusal::new(failure::BUSY, "the computer is too busy"))
        }
    }
}

/// The agent's own refusal: a code that agents may give, and its words, bounded.
fn agent_refusal(told: &wire::Failure) -> Refusal {
    let codes = [
        failure::POLICY_REFUSED,
        failure::STALE_KEY,
        failure::BUSY,
        failure::AUDIT_UNPROVEN,
        failure::AUDIT_FORKED,
        failure::AUDIT_FOREIGN,
    ];
    let code = codes.into_iter().find(|code| *code == told.code).unwrap_or(failure::AGENT_REFUSED);
    let message = told.message.chars().take(MAX_TEXT / 4).collect::<String>();
    Refusal::new(code, message)
}
