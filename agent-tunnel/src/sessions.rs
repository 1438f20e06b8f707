//! Sessions of this agent: offers in, gates between, ends out. The only module that knows
//! `adit_endpoint`; everything else sees ids, counts and JSON.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use adit_control::{Peer, Request, client::Connected, failure};
use adit_endpoint::{
    ControlLink, Endpoint, EndpointConfig, Explanation, Gate, Link, Permit, Session, SessionEvent,
    SessionInfo,
};
use adit_net::proxy::Dialer;
use adit_protocol::{
    code::failure as codes,
    grant::Grant,
    ids::{ComputerId, SessionId},
    limits::OPEN_TIMEOUT,
    target::Target,
    ticket::Role,
    wire::{self, frame::Body},
};
use adit_runtime::{cli::CliError, supervise::Tasks};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    enrollment::Enrollment,
    failure as problem,
    gate::{Outside, SessionGate},
    run::{Agent, World, stun_addresses, stun_ports},
};

/// Offers that are answered at a time; each costs two milliseconds of handshake.
pub const MAX_OFFERS: usize = 64;
/// STUN servers used of a welcome.
const MAX_STUN: usize = 8;

/// How sessions are set up.
pub struct SessionConfig {
    /// The way out over TCP.
    pub dialer: Dialer,
    /// Whether UDP may be used.
    pub direct: bool,
    /// How long a session waits without any path.
    pub resume_window: Duration,
}

/// Where to find the mediator when it is there.
#[derive(Clone)]
pub struct MediatorSlot(Arc<Endpoint>, ControlLink);

impl MediatorSlot {
    /// For requests, if it is there.
    pub fn peer(&self) -> Option<Peer> {
        self.1.peer()
    }

    /// Tells the mediator what the owner's rules refused, now or when it is there again.
    pub fn report_refusal(&self, session: SessionId, target: &Target, rule: &str) {
        self.0.report_refusal(session, target, rule);
    }
}

/// All sessions.
pub struct Sessions {
    agent: Arc<Agent>,
    endpoint: Arc<Endpoint>,
    link: ControlLink,
    outside: Arc<dyn Outside>,
    offers: Arc<Semaphore>,
    live: Mutex<BTreeMap<SessionId, Live>>,
    /// The partner of an earlier version's enrolment is on disk.
    pinned: Mutex<bool>,
    tasks: Tasks,
}

struct Live {
    grant: Grant,
    gate: Arc<SessionGate>,
}

/// What stands between the endpoint and the gate: a grant must be for this computer.
struct EndpointGate {
    gate: Arc<SessionGate>,
    computer: ComputerId,
}

impl Gate for EndpointGate {
    fn admit(&self, grant: &Grant) -> Result<(), String> {
        if grant.computer != self.computer {
            return Err("grant is for another computer".to_owned());
        }
        self.gate.admit(grant)
    }

    fn permit(&self, grant: Grant, target: Target) -> Permit {
        Box::pin(self.gate.clone().permit(grant, target))
    }
}

impl Sessions {
    /// Without sessions.
    pub async fn start(agent: Arc<Agent>, config: SessionConfig) -> Result<Arc<Self>, CliError> {
        let link = ControlLink::new();
        let endpoint_config = EndpointConfig {
            role: Role::Agent,
            identity: agent.identity.clone(),
            dialer: Arc::new(config.dialer),
            direct: config.direct,
            resume_window: config.resume_window,
            offline_grace: agent.rules.loaded().policy.offline_grace,
            relay_cache: None,
            records: Some(agent.dir.path().to_owned()),
            mediator: String::new(),
            partner: agent.enrollment.partner_id.clone(),
        };
        let endpoint = Endpoint::start(endpoint_config, link.clone(), CancellationToken::new());
        let endpoint = endpoint.await.map_err(|error| problem::start(&error))?;
        let outside = Arc::new(World::new(MediatorSlot(endpoint.clone(), link.clone())));
        Ok(Arc::new(Self {
            agent,
            endpoint,
            link,
            outside,
            offers: Arc::new(Semaphore::new(MAX_OFFERS)),
            live: Mutex::default(),
            pinned: Mutex::default(),
            tasks: Tasks::default(),
        }))
    }

    /// The control connection is up.
    pub fn link_up(&self, connected: &Connected) {
        let mut stun_addrs = stun_addresses(&connected.welcome);
        let mut stun_ports = stun_ports(&connected.welcome);
        stun_addrs.truncate(MAX_STUN);
        stun_ports.truncate(MAX_STUN);
        self.link.set_up(Link {
            peer: connected.peer.clone(),
            keys: connected.keys,
            clock: connected.clock,
            remote: connected.remote,
            host: connected.host.clone(),
            stun_ports,
            stun_addrs,
        });
        self.endpoint.set_relays(&connected.welcome.relays);
    }

    /// The control connection is lost.
    pub fn link_down(&self) {
        self.link.set_down();
    }

    /// Takes what the mediator asks of sessions; gives anything else back.
    pub fn handle(self: &Arc<Self>, request: Request) -> Option<Request> {
        let request = self.endpoint.handle_request(request)?;
        if !matches!(request.body, Body::Offer(_)) || request.is_push() {
            return Some(request);
        }
        let Ok(turn) = self.offers.clone().try_acquire_owned() else {
            request.fail(failure(codes::BUSY, "too many sessions are being opened"));
            return None;
        };
        let (Body::Offer(offer), responder) = request.into_parts() else { return None };
        let sessions = self.clone();
        self.tasks.spawn_until_stopped("offer", async move {
            let answered = tokio::time::timeout(OPEN_TIMEOUT, sessions.answer(offer)).await;
            drop(turn);
            match answered {
                Ok(Ok((answer, session, gate))) => {
                    // Known before the console can use it.
                    let events = sessions.begin(session, gate);
                    responder.reply(Body::Answer(answer));
                    sessions.enforce();
                    events.await;
                }
                Ok(Err(refusal)) => {
                    info!(code = refusal.code, message = refusal.message, "offer refused");
                    sessions.tell_doubt(&refusal);
                    responder.fail(refusal);
                }
                Err(_) => responder.fail(failure(codes::AGENT_TIMEOUT, "the agent is too slow")),
            }
        });
        None
    }

    async fn answer(
        &self,
        offer: wire::Offer,
    ) -> Result<(wire::Answer, Session, Arc<SessionGate>), wire::Failure> {
        let gate = SessionGate::new(self.agent.rules.clone(), self.outside.clone());
        let computer = self.agent.enrollment.computer;
        let between = Arc::new(EndpointGate { gate: gate.clone(), computer });
        let (answer, session) = self.endpoint.answer(offer, between).await?;
        self.remember_partner();
        Ok((answer, session, gate))
    }

    /// An agent that was enrolled by an earlier version learns whose log it believes from its first
    /// session, once.
    fn remember_partner(&self) {
        let known = self.agent.enrollment.partner_id.is_some();
        let Some(partner) = self.endpoint.partner().filter(|_| !known) else { return };
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        if *pinned {
            return;
        }
        let enrollment = Enrollment { partner_id: Some(partner), ..self.agent.enrollment.clone() };
        match enrollment.save(&self.agent.dir) {
            Ok(()) => *pinned = true,
            Err(error) => warn!(%error, "this computer's partner is not remembered"),
        }
    }

    /// Remembers a session; the future follows it to its end.
    fn begin(
        self: &Arc<Self>,
        session: Session,
        gate: Arc<SessionGate>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let Session { handle, grant, events, .. } = session;
        let id = grant.session;
        let console = grant.console.fingerprint().to_string();
        info!(session_id = %id, user = %grant.user, redirector = %grant.redirector, %console,
            targets = ?grant.targets, any_target = grant.any_target, "session started");
        self.agent.events.emit(&json!({
            "event": "session",
            "state": "start",
            "session_id": id.to_string(),
            "user": grant.user,
            "redirector": grant.redirector,
            "targets": texts(&grant.targets),
            "console": console,
        }));
        self.live().insert(id, Live { grant, gate });
        self.agent.changed.notify_one();
        let sessions = self.clone();
        async move {
            let end = follow(id, events).await;
            drop(handle);
            sessions.live().remove(&id);
            info!(session_id = %id, reason = end.reason, bytes_up = end.bytes_up,
                bytes_down = end.bytes_down, "session ended");
            sessions.agent.events.emit(&json!({
                "event": "session",
                "state": "end",
                "session_id": id.to_string(),
                "reason": end.reason,
                "bytes_up": end.bytes_up,
                "bytes_down": end.bytes_down,
                "duration_ms": millis(end.duration),
            }));
            sessions.agent.changed.notify_one();
        }
    }

    /// What this agent does not believe of the audit log is not only for the log file.
    fn tell_doubt(&self, refusal: &wire::Failure) {
        let doubts = [codes::AUDIT_UNPROVEN, codes::AUDIT_FORKED, codes::AUDIT_FOREIGN];
        if doubts.contains(&refusal.code.as_str()) {
            self.agent.events.emit(&json!({
                "event": "audit_alert",
                "code": refusal.code,
                "message": refusal.message,
            }));
        }
    }

    /// Heads of the partner's audit log that this agent saw, for the mediator.
    pub fn seen_heads(&self) -> Vec<wire::SeenHead> {
        self.endpoint.seen_heads(self.agent.enrollment.root)
    }

    /// The last alerts about the audit log.
    pub fn alerts(&self) -> Vec<Value> {
        let alerts = self.endpoint.alerts();
        alerts.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The last of them that the owner has not accepted.
    pub fn standing_alert(&self) -> Option<Value> {
        serde_json::from_str(&self.endpoint.standing_alert()?).ok()
    }

    /// Ends sessions that the rules do not allow any more; how many.
    pub fn enforce(&self) -> usize {
        let over: Vec<(SessionId, &'static str)> = self
            .live()
            .iter()
            .filter_map(|(id, live)| Some((*id, live.gate.still_admitted(&live.grant).err()?)))
            .collect();
        for (id, reason) in &over {
            warn!(session_id = %id, reason, "the endpoint owner's rules end the session");
            self.endpoint.end_session(*id, reason);
        }
        over.len()
    }

    /// Ends one session; `false` if there is none.
    pub fn end(&self, id: SessionId, reason: &str) -> bool {
        self.endpoint.end_session(id, reason)
    }

    /// The policy's word about the mediator's absence changed.
    pub fn set_offline_grace(&self, grace: Duration) {
        self.endpoint.set_offline_grace(grace);
    }

    /// Addresses changed.
    pub fn network_changed(&self) {
        self.endpoint.network_changed();
    }

    /// For check-ins.
    pub fn live_sessions(&self) -> Vec<wire::LiveSession> {
        self.endpoint.live_sessions()
    }

    /// NAT mapping and filtering behaviour.
    pub fn nat(&self) -> (&'static str, &'static str) {
        let nat = self.endpoint.nat();
        (nat.mapping, nat.filtering)
    }

    /// Protocols by which the gateway maps ports, as far as sessions needed to know.
    pub fn port_mapping(&self) -> Vec<&'static str> {
        self.endpoint.port_mapping()
    }

    /// For `status`.
    pub async fn list(&self) -> Vec<Value> {
        let said = self.endpoint.explanations().await;
        let of = |info: &SessionInfo| {
            let id = info.id.to_string();
            to_json(info, said.iter().find(|said| said.session_id == id))
        };
        self.endpoint.sessions().iter().map(of).collect()
    }

    /// Ends all sessions, reports their ends, and stops.
    pub async fn stop(&self, reason: &str, limit: Duration) {
        self.endpoint.shutdown(reason, limit).await;
        self.tasks.stop_within(Duration::from_millis(100)).await;
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<SessionId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a session ended.
struct End {
    reason: String,
    bytes_up: u64,
    bytes_down: u64,
    duration: Duration,
}

/// Logs what happens in a session until it is over.
async fn follow(id: SessionId, mut events: mpsc::Receiver<SessionEvent>) -> End {
    while let Some(event) = events.recv().await {
        match event {
            SessionEvent::Carrier { number, kind, state, rtt, remote, relay, .. } => {
                info!(session_id = %id, %number, kind = kind.as_str(), state = state.as_str(),
                    ?rtt, ?remote, ?relay, "carrier changed");
            }
            SessionEvent::Channel { id: channel, target, state, reason, .. } => {
                let reason = reason.map(|code| code.name());
                debug!(session_id = %id, %channel, to = ?target, state = state.as_str(), reason,
                    "channel changed");
            }
            SessionEvent::Lease { expires_ms } => {
                debug!(session_id = %id, expires_ms, "lease renewed");
            }
            SessionEvent::Closed { reason, bytes_up, bytes_down, duration } => {
                return End { reason, bytes_up, bytes_down, duration };
            }
        }
    }
    let reason = "ended".to_owned();
    End { reason, bytes_up: 0, bytes_down: 0, duration: Duration::ZERO }
}

fn to_json(session: &SessionInfo, said: Option<&Explanation>) -> Value {
    let used = said.and_then(|said| said.carriers.iter().find(|c| c.state == "active"));
    // Why it is relayed; null while it is direct, or nobody can say.
    let reason = said.filter(|said| said.carrier != Some("direct"));
    let reason = reason.filter(|said| !said.failures.is_empty()).map(|said| &said.failures);
    json!({
        "session_id": session.id.to_string(),
        "user": session.user,
        "redirector": session.redirector,
        "targets": texts(&session.targets),
        "carrier": session.carrier.map(|kind| kind.as_str()),
        "rtt_ms": used.and_then(|used| used.rtt_ms),
        "remote": used.and_then(|used| used.remote).map(|remote| remote.to_string()),
        "relay": used.and_then(|used| used.relay.as_deref()),
        "relay_reason": reason,
        "bytes_up": session.bytes_up,
        "bytes_down": session.bytes_down,
        "duration_ms": millis(session.started.elapsed()),
    })
}

fn texts(targets: &[Target]) -> Vec<String> {
    targets.iter().map(ToString::to_string).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
