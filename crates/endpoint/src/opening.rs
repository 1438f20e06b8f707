//! Opening a session: the console's request, the agent's answer, and what both check.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use adit_control::RequestError;
use adit_core::{
    punch::{CHECK_INTERVAL, Punch, PunchConfig},
    resume::Resume,
};
use adit_ledger::SignedHead;
use adit_net::identity::DeviceIdentity;
use adit_protocol::{
    candidate::Candidate,
    code::failure,
    grant::Grant,
    handshake::HandshakeContext,
    ids::{ComputerId, SessionId},
    keys::{Fingerprint, KeyError, PublicKey, SigningKey, random, sha256},
    limits::{LEASE, OPEN_TIMEOUT},
    nat::{NatSummary, ip_from_wire},
    target::Target,
    ticket::Role,
    wire,
};
use bytes::Bytes;
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::{
    Endpoint, MAX_SEEN, MAX_SESSIONS,
    driver::{Driver, MESSAGES, Message, Parts},
    early::Early,
    events::Totals,
    handshake::{self, Established, HandshakeError, Offer, Own},
    join::{Joiner, Numbers, Relay, Tickets},
    reach::Reach,
    receipts::{Receipts, service_target},
    relays::Rtts,
    session::{HandleInner, Session, SessionHandle},
    shared::{ChannelTap, Shared},
    target::Gate,
    witness::{Doubt, Shown, told},
};

/// Longest grant that an agent takes: a lease, and as much again for clocks.
const MAX_GRANT: Duration = LEASE.saturating_mul(2);
/// What the mediator's own answer may take beyond the agent's time.
const MEDIATOR_SLACK: Duration = Duration::from_secs(5);
/// Why a session ends whose receipts do not fit.
pub(crate) const RECEIPT_REFUSED: &str = "receipt_refused";
/// Events that wait for the program.
const EVENTS: usize = 512;

/// Which carriers the technician wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CarrierChoice {
    /// Whatever is best.
    #[default]
    Auto,
    /// Only direct.
    Direct,
    /// Only relayed.
    Relayed,
}

/// What a console asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenRequest {
    /// Which computer.
    pub computer: ComputerId,
    /// Its partner's id.
    pub tenant: String,
    /// Its name, and `partner/client`, as they were described: if it is called otherwise now, the
    /// mediator refuses before anything is granted.
    pub called: (String, String),
    /// The agent was never met: its enrolment must be proved with the grant.
    pub first_contact: bool,
    /// The agent's identity, as known or pinned.
    pub agent: PublicKey,
    /// The agent's Noise key, certified by that identity.
    pub agent_noise: wire::Signed,
    /// Name of the redirector.
    pub redirector: String,
    /// Where its channels may lead.
    pub targets: Vec<Target>,
    /// Anywhere that is audited first (SOCKS).
    pub any_target: bool,
    /// For the audit.
    pub reason: String,
    /// For the audit.
    pub ticket: String,
    /// For the audit.
    pub viewer: String,
    /// Which carriers.
    pub carrier: CarrierChoice,
}

impl OpenRequest {
    /// What both ends' handshake is about.
    fn context(&self, session: SessionId, console: PublicKey) -> HandshakeContext<'_> {
        HandshakeContext {
            session,
            tenant: &self.tenant,
            computer: self.computer,
            console,
            agent: self.agent,
            redirector: &self.redirector,
            targets: &self.targets,
            any_target: self.any_target,
        }
    }
}

/// A session that is asked for. Dropping it gives up what was begun for it.
pub struct Prepared {
    asked: Asked,
    request: OpenRequest,
    offer: Offer,
    message1: Vec<u8>,
    said: Said,
    /// Which head of the audit log this console holds.
    seen: Option<wire::SeenHead>,
    quic_key: SigningKey,
    early: Option<Arc<Early>>,
}

impl Prepared {
    /// For the mediator, once.
    pub fn message(&self) -> wire::frame::Body {
        let request = &self.request;
        wire::frame::Body::Open(wire::Open {
            session_id: self.asked.session.to_bytes(),
            computer_id: request.computer.to_bytes(),
            redirector: request.redirector.clone(),
            targets: request.targets.iter().map(Target::to_wire).collect(),
            any_target: request.any_target,
            reason: request.reason.clone(),
            ticket: request.ticket.clone(),
            viewer: request.viewer.clone(),
            noise_msg1: Bytes::copy_from_slice(&self.message1),
            agent_identity: request.agent.to_bytes(),
            seen: self.seen.clone(),
            name: request.called.0.clone(),
            client: request.called.1.clone(),
            enrolment: request.first_contact,
        })
    }

    /// What is asked for.
    pub fn request(&self) -> &OpenRequest {
        &self.request
    }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prepared({})", self.asked.session)
    }
}

/// The endpoint knows that this session was asked for: tickets may come for it.
struct Asked {
    endpoint: Arc<Endpoint>,
    session: SessionId,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.endpoint.state().asked.remove(&self.session);
    }
}

/// Why a session was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The mediator or the agent said no.
    #[error("{}", .0.message)]
    Refused(wire::Failure),
    /// The mediator could not be asked.
    #[error("mediator did not answer: {0}")]
    Control(RequestError),
    /// The audit log is not what it should be.
    #[error(transparent)]
    Doubt(#[from] Doubt),
    /// Mediator or agent answered something that does not verify.
    #[error("answer is not acceptable: {0}")]
    BadAnswer(String),
    /// No carrier of the wanted kind can come about.
    #[error("{0}")]
    NoPath(String),
}

impl From<KeyError> for OpenError {
    fn from(error: KeyError) -> Self {
        Self::BadAnswer(error.to_string())
    }
}

impl From<HandshakeError> for OpenError {
    fn from(error: HandshakeError) -> Self {
        Self::BadAnswer(error.to_string())
    }
}

impl Endpoint {
    /// Console: asks the mediator for a session and starts it.
    pub async fn open(self: &Arc<Self>, request: OpenRequest) -> Result<Session, OpenError> {
        let (keys, _) = self.control.last().ok_or(OpenError::Control(RequestError::Closed))?;
        let computer = request.computer;
        let prepared = self.prepare(request, keys.root.fingerprint()).inspect_err(|error| {
            if let OpenError::Doubt(doubt) = error {
                self.alarm(doubt, &format!("opening of {computer}"), "console");
            }
        })?;
        let peer = self.control.peer().ok_or(OpenError::Control(RequestError::Closed))?;
        // The mediator gives the agent as long, and then says which of the two was silent.
        let answer = peer.request(prepared.message(), OPEN_TIMEOUT + MEDIATOR_SLACK).await;
        self.complete(prepared, answer).await
    }

    /// Console: makes the message that asks for a session, to be sent by the caller, perhaps even
    /// before the mediator has welcomed this console. Meanwhile relays are connected to. `root`: of
    /// the installation, whose audit log this console may have seen.
    pub fn prepare(
        self: &Arc<Self>,
        request: OpenRequest,
        root: Fingerprint,
    ) -> Result<Prepared, OpenError> {
        let direct = request.carrier != CarrierChoice::Relayed && self.udp.is_some();
        if request.carrier == CarrierChoice::Direct && !direct {
            return Err(OpenError::NoPath("direct carriers are switched off".into()));
        }
        self.require_own(&request.tenant)?;
        let session = SessionId(random()?);
        let quic_key = SigningKey::generate()?;
        let seen = self.seen_head(root, &request.tenant);
        let said = Said { head: seen.as_ref().map(head_line), ..self.say(direct) };
        let own = said.own(&self.identity, quic_key.public().fingerprint().0);
        let context = request.context(session, self.identity.signing.public());
        let (offer, message1) = Offer::begin(&context, &own, &request.agent_noise)?;
        let early = (request.carrier != CarrierChoice::Direct)
            .then(|| Early::start(self.reach(), self.tasks.clone(), self.cancel.child_token()));
        if let Some(early) = &early {
            self.state().asked.insert(session, early.clone());
        }
        let asked = Asked { endpoint: self.clone(), session };
        let seen = seen.as_ref().map(told);
        Ok(Prepared { asked, request, offer, message1, said, seen, quic_key, early })
    }

    /// Console: starts the session that the mediator has granted.
    pub async fn complete(
        self: &Arc<Self>,
        prepared: Prepared,
        answer: Result<wire::frame::Body, RequestError>,
    ) -> Result<Session, OpenError> {
        let session = prepared.asked.session;
        let granted = self.read_granted(session, answer)?;
        let audit = Duration::from_micros(granted.audit_us.into());
        match self.begin(prepared, granted).await {
            Ok(session) => Ok(Session { audit, ..session }),
            Err(error) => {
                // It was granted and nobody will use it: the agent need not wait for us.
                let reason = match &error {
                    OpenError::Doubt(doubt) => doubt.code(),
                    _ => "not_begun",
                };
                self.give_up(session, reason).await;
                Err(error)
            }
        }
    }

    /// Console: the session is not wanted after all. If it is granted nevertheless, it is ended.
    pub async fn abandon(
        self: Arc<Self>,
        prepared: Prepared,
        answer: impl Future<Output = Result<wire::frame::Body, RequestError>>,
    ) {
        let session = prepared.asked.session;
        drop(prepared);
        if answer.await.is_ok() {
            self.give_up(session, "not_begun").await;
        }
    }

    async fn begin(
        self: &Arc<Self>,
        prepared: Prepared,
        granted: wire::Granted,
    ) -> Result<Session, OpenError> {
        let Prepared { asked, request, offer, message1, said, quic_key, early, .. } = prepared;
        let (keys, clock) = self.control.last().ok_or(OpenError::Control(RequestError::Closed))?;
        let grant = open_grant(granted.grant.as_ref(), keys.grant)?;
        let context = request.context(asked.session, self.identity.signing.public());
        require_granted(&grant, &context, &request, &message1)?;
        let mut established = offer.finish(&granted.noise_msg2)?;
        let shown =
            self.check_shown(keys.root, &grant, granted.audit.as_ref(), &established.head).await;
        let shown = match shown {
            Ok(shown) => shown,
            Err(doubt) => {
                self.alarm(&doubt, &grant.session.to_string(), "console");
                self.warn_peer(grant.session, &mut established, &doubt);
                return Err(doubt.into());
            }
        };
        let enrolment = match request.first_contact {
            true => Some(self.check_met(&grant, (keys.root, &shown), granted.enrolment).await?),
            false => None,
        };
        let relayed = request.carrier != CarrierChoice::Direct;
        let direct = said.direct && established.direct;
        if !relayed && !direct {
            return Err(OpenError::NoPath("the computer takes no direct connections".into()));
        }
        if !direct && granted.relays.is_empty() {
            return Err(OpenError::NoPath("no relay is registered at the mediator".into()));
        }
        let left = Duration::from_millis(grant.expires_ms.saturating_sub(clock.now_ms()));
        let session = self.launch(Opening {
            grant,
            established,
            relays: granted.relays,
            said,
            peer_seen: ip_from_wire(&granted.peer_seen),
            relayed,
            quic_key: Some(quic_key),
            gate: None,
            lease_left: left,
            early,
            grant_hash: grant_hash(granted.grant.as_ref()),
        })?;
        Ok(Session { enrolment, ..session })
    }

    /// At first contact: before a byte flows, the agent's enrolment must be in the log.
    async fn check_met(
        &self,
        grant: &Grant,
        shown: (PublicKey, &Shown),
        proof: Option<wire::AuditEvidence>,
    ) -> Result<(u64, u64), Doubt> {
        let proved = match proof {
            Some(proof) => self.check_enrolment_shown(grant, shown, &proof).await,
            // A mediator of before, which proves it only when it is asked by itself.
            None => self.check_enrolment(&grant.tenant, grant.computer, grant.agent).await,
        };
        proved.inspect_err(|doubt| self.alarm_of_enrolment(doubt, grant.computer))
    }

    /// What the mediator shows of its log must hold by itself, with what this end saw, and with
    /// what the other end saw.
    async fn check_shown(
        &self,
        root: PublicKey,
        grant: &Grant,
        audit: Option<&wire::AuditEvidence>,
        peer_head: &[u8],
    ) -> Result<Shown, Doubt> {
        let shown = self.check_record(root, grant, audit).await?;
        self.check_peer_head(root, peer_head, &shown).await?;
        Ok(shown)
    }

    /// Tells the other end, sealed, why the session is refused. Who forges logs may drop it.
    fn warn_peer(&self, session: SessionId, established: &mut Established, doubt: &Doubt) {
        let Some(peer) = self.control.peer() else { return };
        let trickle = wire::Trickle { alert: Some(doubt.to_wire()), ..wire::Trickle::default() };
        let Ok((nonce, sealed)) = established.cipher.seal(&trickle.encode_to_vec()) else { return };
        let session_id = session.to_bytes();
        let signal = wire::Signal { session_id, nonce, sealed: sealed.into() };
        let _ = peer.push(wire::frame::Body::Signal(signal));
    }

    /// Tells the mediator that a session it granted is over. Without an answer its lease ends it.
    async fn give_up(&self, session: SessionId, reason: &str) {
        let Some(peer) = self.control.peer() else { return };
        let end = wire::EndSession { session_id: session.to_bytes(), reason: reason.into() };
        let _ = peer.request(wire::frame::Body::EndSession(end), MEDIATOR_SLACK).await;
    }

    fn read_granted(
        &self,
        session: SessionId,
        answer: Result<wire::frame::Body, RequestError>,
    ) -> Result<wire::Granted, OpenError> {
        match answer {
            Ok(wire::frame::Body::Granted(granted)) => Ok(granted),
            Ok(_) => Err(OpenError::BadAnswer("mediator answered something else".into())),
            Err(RequestError::Failed(failure)) => {
                let codes =
                    [failure::AUDIT_FORKED, failure::AUDIT_UNPROVEN, failure::AUDIT_FOREIGN];
                if codes.contains(&&*failure.code) {
                    let code = (failure.code.as_str(), failure.message.as_str());
                    self.note_alarm(code, &session.to_string(), "agent", None);
                }
                Err(OpenError::Refused(failure))
            }
            Err(error) => Err(OpenError::Control(error)),
        }
    }

    fn reach(&self) -> Reach {
        Reach {
            dialer: self.dialer.clone(),
            identity: self.identity.clone(),
            memory: self.memory.clone(),
        }
    }

    /// Agent: checks an offer and starts its session. The console still has to prove that it
    /// holds the session's keys before anything happens.
    pub async fn answer(
        self: &Arc<Self>,
        offer: wire::Offer,
        gate: Arc<dyn Gate>,
    ) -> Result<(wire::Answer, Session), wire::Failure> {
        let (keys, clock) =
            self.control.last().ok_or_else(|| refuse(failure::INTERNAL, "no mediator keys"))?;
        let grant = open_grant(offer.grant.as_ref(), keys.grant)
            .map_err(|e| refuse(failure::AGENT_REFUSED, &e.to_string()))?;
        let left = grant.expires_ms.saturating_sub(clock.now_ms());
        if left == 0 {
            return Err(refuse(failure::AGENT_REFUSED, "grant is expired"));
        }
        // Its handshake is remembered for `MAX_GRANT`: one that outlived the memory could be said
        // again.
        if left > millis(MAX_GRANT) {
            return Err(refuse(failure::AGENT_REFUSED, "grant is longer than grants are"));
        }
        if grant.agent != self.identity.signing.public() {
            return Err(refuse(failure::STALE_KEY, "grant names another agent identity"));
        }
        if grant.msg1_sha256 != handshake::message_hash(&offer.noise_msg1) {
            return Err(refuse(failure::AGENT_REFUSED, "grant is for another handshake"));
        }
        gate.admit(&grant).map_err(|why| refuse(failure::POLICY_REFUSED, &why))?;
        let session = grant.session.to_string();
        let doubtful = |doubt: Doubt| {
            self.alarm(&doubt, &session, "agent");
            refuse(doubt.code(), &doubt.to_string())
        };
        let shown = self.check_record(keys.root, &grant, offer.audit.as_ref()).await;
        let shown = shown.map_err(doubtful)?;
        self.remember(grant.msg1_sha256)?;

        let said = Said { head: Some(head_line(&shown.head)), ..self.say(self.udp.is_some()) };
        let quic_key_sha256 = self.udp.as_ref().map_or([0; 32], |u| u.key_sha256());
        let own = said.own(&self.identity, quic_key_sha256);
        let context = HandshakeContext {
            session: grant.session,
            tenant: &grant.tenant,
            computer: grant.computer,
            console: grant.console,
            agent: grant.agent,
            redirector: &grant.redirector,
            targets: &grant.targets,
            any_target: grant.any_target,
        };
        let (established, message2) = handshake::answer(&context, &own, &offer.noise_msg1)
            .map_err(|e| {
                let code = match e {
                    HandshakeError::Noise(_) => failure::STALE_KEY,
                    _ => failure::AGENT_REFUSED,
                };
                refuse(code, &e.to_string())
            })?;
        let peer_head = self.check_peer_head(keys.root, &established.head, &shown).await;
        peer_head.map_err(doubtful)?;
        let opening = Opening {
            grant,
            established,
            relays: offer.relays,
            said,
            peer_seen: ip_from_wire(&offer.peer_seen),
            relayed: true,
            quic_key: None,
            gate: Some(gate),
            lease_left: Duration::from_millis(left),
            early: None,
            grant_hash: grant_hash(offer.grant.as_ref()),
        };
        let session = self.launch(opening).map_err(|e| refuse(failure::BUSY, &e.to_string()))?;
        Ok((wire::Answer { noise_msg2: message2.into() }, session))
    }

    /// A first message is answered once during the grant's life.
    fn remember(&self, message1: [u8; 32]) -> Result<(), wire::Failure> {
        let mut state = self.state();
        let now = Instant::now();
        while state.seen.front().is_some_and(|(_, at)| now > *at + MAX_GRANT) {
            state.seen.pop_front();
        }
        if state.seen.iter().any(|(hash, _)| *hash == message1) {
            return Err(refuse(failure::AGENT_REFUSED, "handshake was answered before"));
        }
        if state.seen.len() >= MAX_SEEN {
            return Err(refuse(failure::BUSY, "too many sessions in a short time"));
        }
        state.seen.push_back((message1, now));
        Ok(())
    }

    /// What this end says of itself. `direct`: it wants a direct carrier.
    fn say(&self, direct: bool) -> Said {
        Said {
            candidates: self.candidates(direct),
            nat: self.udp.as_ref().filter(|_| direct).and_then(|udp| udp.nat()),
            relay_rtts: self.memory.rtts(),
            direct,
            head: None,
        }
    }

    fn candidates(&self, direct: bool) -> Vec<Candidate> {
        match &self.udp {
            Some(udp) if direct => {
                udp.refresh();
                udp.addresses().borrow().all()
            }
            _ => Vec::new(),
        }
    }

    fn launch(self: &Arc<Self>, opening: Opening) -> Result<Session, OpenError> {
        let id = opening.grant.session;
        let now = Instant::now();
        let shared = Shared::new(self.role, self.pool.clone());
        let cancel = self.cancel.child_token();
        let (message_in, messages) = mpsc::channel(MESSAGES);
        let (event_in, events) = mpsc::channel(EVENTS);
        let totals = watch::Sender::new(Totals::default());
        let over = CancellationToken::new();
        let receipts = Receipts::new(
            self.role,
            &opening.grant,
            (opening.grant_hash, opening.established.hash),
            (self.identity.clone(), self.keeper.clone()),
            (self.control.clone(), self.tasks.clone()),
        );
        let handle = SessionHandle(Arc::new(HandleInner {
            grant: opening.grant.clone(),
            receipts: receipts.clone(),
            shared: shared.clone(),
            messages: message_in.clone(),
            totals: totals.subscribe(),
            started: now,
            tasks: self.tasks.clone(),
            cancel: cancel.clone(),
            over: over.clone(),
        }));
        {
            let mut state = self.state();
            if state.sessions.len() >= MAX_SESSIONS {
                return Err(OpenError::NoPath("too many sessions are open".into()));
            }
            if state.sessions.contains_key(&id) {
                return Err(OpenError::BadAnswer("session exists already".into()));
            }
            state.sessions.insert(id, handle.clone());
        }
        self.adapt_keepalive();
        self.share_windows();
        let session = Session {
            handle,
            grant: opening.grant.clone(),
            audit: Duration::ZERO,
            enrolment: None,
            events,
        };
        if self.role == Role::Console {
            // The session's first channel, so that it is there before any other.
            let open = |resume: &mut Resume, now| resume.open(service_target()?, now).ok();
            if let Some(tap) = shared.register(open) {
                serve_receipts(&self.tasks, &receipts, &shared, tap, (&cancel, &message_in));
            }
        }
        let parts =
            self.parts(opening, shared, receipts, cancel, messages, message_in, event_in, totals);
        let endpoint = self.clone();
        self.tasks.spawn(async move {
            // Whatever happens to the driver, its tasks stop and the session is struck off.
            let cancel = parts.cancel.clone();
            let _end = OnDrop(Some(move || {
                cancel.cancel();
                endpoint.state().sessions.remove(&id);
                endpoint.share_windows();
                endpoint.adapt_keepalive();
                over.cancel();
            }));
            Driver::new(parts, now).run().await;
        });
        Ok(session)
    }

    #[expect(clippy::too_many_arguments, reason = "one caller; a struct would repeat `Parts`")]
    fn parts(
        self: &Arc<Self>,
        opening: Opening,
        shared: Arc<Shared>,
        receipts: Arc<Receipts>,
        cancel: CancellationToken,
        messages: mpsc::Receiver<crate::driver::Message>,
        message_in: mpsc::Sender<crate::driver::Message>,
        events: mpsc::Sender<crate::SessionEvent>,
        totals: watch::Sender<Totals>,
    ) -> Parts {
        let (session, endpoint) = (opening.grant.session, self.clone());
        let established = opening.established;
        let direct = opening.said.direct && established.direct;
        let udp = self.udp.clone().filter(|_| direct);
        let punch = udp.as_ref().and_then(|udp| {
            let addresses = udp.addresses().borrow().clone();
            let config = PunchConfig {
                seed: random().ok()?,
                filter: addresses.filter.clone(),
                check_interval: CHECK_INTERVAL,
            };
            let now = Instant::now();
            debug!(%session, own = ?addresses.candidates, peer = ?established.candidates, "candidates");
            let mut punch = Punch::new(config, now);
            for ((socket, family), own) in udp.sockets().zip(
                addresses.candidates.iter().map(Vec::as_slice).chain(std::iter::repeat(&[][..])),
            ) {
                punch.handle_local_candidates(socket, family, own, now);
            }
            if let Some(nat) = &opening.said.nat {
                punch.handle_local_nat(nat.clone(), now);
            }
            if let Some(nat) = &established.nat {
                punch.handle_remote_nat(nat.clone(), opening.peer_seen, now);
            }
            punch.handle_remote_candidates(&established.candidates, false, now);
            if self.role == Role::Agent
                && let Some(rtt) = self.control.peer().and_then(|peer| peer.rtt())
            {
                punch.handle_hold(rtt, now);
            }
            Some(punch)
        });
        let accepts = (self.role == Role::Agent).then_some(established.peer_quic_sha256);
        let inbox = udp.as_ref().map(|u| u.register(established.keys.stun_tag, accepts));
        let joiner = Joiner {
            shared: shared.clone(),
            session,
            keys: established.keys.clone(),
            reach: self.reach(),
            tickets: Arc::new(Tickets::new(
                session,
                self.control.clone(),
                Relay::list(&opening.relays),
            )),
            numbers: Arc::new(Numbers::default()),
            driver: message_in.clone(),
            hurry: watch::Sender::new(0),
        };
        Parts {
            session,
            role: self.role,
            grant: opening.grant,
            keys: established.keys,
            cipher: established.cipher,
            peer_candidates: established.candidates,
            peer_nat: established.nat,
            relay_rtts: (opening.said.relay_rtts, established.relay_rtts),
            memory: self.memory.clone(),
            shared,
            receipts,
            joiner,
            early: opening.early,
            udp,
            punch,
            inbox,
            quic_key: opening.quic_key,
            peer_quic_sha256: established.peer_quic_sha256,
            sent_candidates: opening.said.candidates,
            sent_nat: opening.said.nat,
            peer_seen: opening.peer_seen,
            gate: opening.gate,
            control: self.control.clone(),
            lease_left: opening.lease_left,
            grace: self.state().grace,
            resume_window: self.resume_window,
            relayed: opening.relayed,
            messages,
            message_in,
            events,
            totals,
            reports: self.reports.clone(),
            tasks: self.tasks.clone(),
            cancel,
            alarm: Box::new(move |session, alert| endpoint.alarm_of_peer(session, alert)),
        }
    }
}

/// What this end said of itself in the handshake.
struct Said {
    candidates: Vec<Candidate>,
    nat: Option<NatSummary>,
    relay_rtts: Rtts,
    direct: bool,
    /// Head of the audit log that this end saw.
    head: Option<Bytes>,
}

impl Said {
    fn own<'a>(&'a self, identity: &'a DeviceIdentity, quic_key_sha256: [u8; 32]) -> Own<'a> {
        Own {
            identity,
            quic_key_sha256,
            candidates: &self.candidates,
            nat: self.nat.as_ref(),
            direct: self.direct,
            relay_rtts: &self.relay_rtts,
            head: self.head.clone().unwrap_or_default(),
        }
    }
}

/// What both ways of opening lead to.
struct Opening {
    grant: Grant,
    established: Established,
    relays: Vec<wire::RelayGrant>,
    said: Said,
    peer_seen: Option<IpAddr>,
    relayed: bool,
    quic_key: Option<SigningKey>,
    gate: Option<Arc<dyn Gate>>,
    lease_left: Duration,
    /// Console: what was begun before the grant.
    early: Option<Arc<Early>>,
    /// Of the signed grant, for receipts.
    grant_hash: [u8; 32],
}

struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(f) = self.0.take() {
            f();
        }
    }
}

/// Exchanges receipts until the session is over; a story that cannot be true ends it.
pub(crate) fn serve_receipts(
    tasks: &TaskTracker,
    receipts: &Arc<Receipts>,
    shared: &Arc<Shared>,
    tap: ChannelTap,
    (cancel, driver): (&CancellationToken, &mpsc::Sender<Message>),
) {
    receipts.set_service(tap.id);
    let serve = receipts.clone().serve(shared.clone(), tap);
    let (cancel, driver) = (cancel.clone(), driver.clone());
    tasks.spawn(async move {
        if let Some(Err(wrong)) = cancel.run_until_cancelled(serve).await {
            warn!("receipt of the other end: {wrong}");
            // The driver may be over already: then nobody is served any more.
            let _ = driver.send(Message::End(RECEIPT_REFUSED.to_owned())).await;
        }
    });
}

fn grant_hash(signed: Option<&wire::Signed>) -> [u8; 32] {
    signed.map_or([0; 32], |signed| sha256(&signed.payload))
}

fn head_line(head: &SignedHead) -> Bytes {
    head.to_line().into()
}

fn open_grant(signed: Option<&wire::Signed>, key: PublicKey) -> Result<Grant, OpenError> {
    let signed = signed.ok_or_else(|| OpenError::BadAnswer("no grant in the answer".into()))?;
    Grant::open(key, signed).map_err(|e| OpenError::BadAnswer(e.to_string()))
}

/// Console: the mediator must have granted what was asked, to us, about this agent.
fn require_granted(
    grant: &Grant,
    context: &HandshakeContext<'_>,
    request: &OpenRequest,
    message1: &[u8],
) -> Result<(), OpenError> {
    let same = grant.session == context.session
        && grant.tenant == context.tenant
        && grant.computer == context.computer
        && grant.console == context.console
        && grant.agent == context.agent
        && grant.redirector == request.redirector
        && grant.targets == request.targets
        && grant.any_target == request.any_target
        && grant.msg1_sha256 == handshake::message_hash(message1);
    if same { Ok(()) } else { Err(OpenError::BadAnswer("mediator granted something else".into())) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn refuse(code: &str, message: &str) -> wire::Failure {
    wire::Failure { code: code.into(), message: message.into(), hint: String::new() }
}
