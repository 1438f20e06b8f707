//! What console and agent share: sessions with their channels and carriers.
//!
//! [`Endpoint`] is one for each process. The console [opens](Endpoint::open) sessions, the agent
//! [answers](Endpoint::answer) offers; both get a [`Session`]. Inside, each session has a driver
//! task that follows the sans-IO machines of `adit-core`, and tasks that move bytes between local
//! connections, the resumable channels, and the carriers.
//!
//! Invariants:
//! - nothing has an effect before the peer proved possession of the session's keys: no dial, no
//!   carrier, no admitted address;
//! - a channel leads only where handshake, grant and the agent's [`Gate`] all agree;
//! - every task belongs to the endpoint's tracker and stops with its token;
//! - a panic or error in one session ends that session.

mod alerts;
mod carrier;
mod carriers;
mod connect;
mod counterparts;
mod direct;
mod driver;
mod early;
mod events;
mod explain;
mod extra;
mod handshake;
mod join;
mod keeper;
mod lease;
mod link;
mod local;
mod memory;
mod netcheck;
mod opening;
mod pace;
mod partner;
mod punching;
mod reach;
mod receipts;
mod relayed;
mod relaying;
mod relays;
mod report;
mod session;
mod shared;
mod spool;
mod target;
mod telling;
mod udp;
mod witness;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use adit_core::resume::Pool;
use adit_net::{identity::DeviceIdentity, proxy::Dialer, tls::QuicConfigError};
use adit_protocol::{
    ids::SessionId,
    keys::KeyError,
    limits::{KEEPALIVE_BUSY, KEEPALIVE_IDLE},
    target::Target,
    ticket::Role,
    wire,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use adit_core::punch::FailureClass;
pub use events::{CarrierKind, CarrierState, ChannelState, SessionEvent, SessionInfo};
pub use explain::{
    CandidateView, CarrierView, EndView, Explanation, HardView, PairView, RelayPathView,
};
pub use keeper::{KeepError, export as export_receipts};
pub use link::{ControlLink, Link};
pub use local::{Refusal, Watch};
pub use memory::RelayStatus;
pub use netcheck::{Around, NETCHECK_TIME, Netcheck, RelayCheck, netcheck};
pub use opening::{CarrierChoice, OpenError, OpenRequest, Prepared};
pub use session::{PendingChannel, Session, SessionHandle, UdpFlow};
pub use target::{Gate, LOCKED, Permit};
pub use witness::{Doubt, accept as accept_log, read as read_witness};

use driver::Message;
use early::Early;
use keeper::Keeper;
use memory::Memory;
use partner::Partner;
use report::Reports;
use udp::UdpStack;
use witness::Witness;

/// Sessions of one process.
pub const MAX_SESSIONS: usize = 256;
/// First messages remembered against replay.
const MAX_SEEN: usize = 8192;

/// How an endpoint is set up.
pub struct EndpointConfig {
    /// Console or agent.
    pub role: Role,
    /// The device's keys.
    pub identity: Arc<DeviceIdentity>,
    /// For every TCP connection.
    pub dialer: Arc<Dialer>,
    /// Whether direct carriers are wanted: without, there is no UDP at all.
    pub direct: bool,
    /// How long a session waits without any carrier.
    pub resume_window: Duration,
    /// How long sessions last without the mediator.
    pub offline_grace: Duration,
    /// A file in the program's own directory for what short-lived programs learn of relays.
    pub relay_cache: Option<PathBuf>,
    /// The program's own directory, for receipts and heads of audit logs.
    pub records: Option<PathBuf>,
    /// The mediator's name, without spaces: what the file says of relays is of this mediator.
    pub mediator: String,
    /// The partner whose log is believed, if the program knows it yet.
    pub partner: Option<String>,
}

/// Why an endpoint could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No socket.
    #[error("cannot open a UDP socket: {0}")]
    Io(#[from] std::io::Error),
    /// No key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No configuration.
    #[error(transparent)]
    Quic(#[from] QuicConfigError),
    /// No records.
    #[error(transparent)]
    Keep(#[from] KeepError),
}

/// What is known of the NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatInfo {
    /// Mapping behaviour (RFC 4787 §4.1), or `unknown`.
    pub mapping: &'static str,
    /// Filtering behaviour (RFC 4787 §5), or `unknown`.
    pub filtering: &'static str,
}

#[derive(Default)]
struct State {
    sessions: BTreeMap<SessionId, SessionHandle>,
    /// Console: sessions that were asked for, with what was begun for them.
    asked: BTreeMap<SessionId, Arc<Early>>,
    seen: VecDeque<([u8; 32], Instant)>,
    grace: Duration,
}

/// Everything that the sessions of a process share.
pub struct Endpoint {
    role: Role,
    identity: Arc<DeviceIdentity>,
    dialer: Arc<Dialer>,
    resume_window: Duration,
    control: ControlLink,
    udp: Option<Arc<UdpStack>>,
    memory: Arc<Memory>,
    reports: Arc<Reports>,
    keeper: Arc<Keeper>,
    /// What sessions keep for local sockets, together.
    pool: Pool,
    witness: Witness,
    partner: Partner,
    tasks: TaskTracker,
    cancel: CancellationToken,
    state: Mutex<State>,
}

/// Keeps in `file`, the relay cache of [`EndpointConfig`], which relays the mediator `of` named, so
/// that the first session of a later process connects to them at once. They are measured for `time`
/// at most. `remote`: where the mediator was reached.
pub async fn learn_relays(
    (file, of): (PathBuf, String),
    dialer: Arc<Dialer>,
    relays: &[wire::RelayInfo],
    remote: Option<SocketAddr>,
    time: Duration,
) {
    Memory::new(dialer, Some(file), of).learn(relays, remote, time).await;
}

impl Endpoint {
    /// Starts without sessions. Must be called within a tokio runtime.
    pub async fn start(
        config: EndpointConfig,
        control: ControlLink,
        cancel: CancellationToken,
    ) -> Result<Arc<Self>, StartError> {
        let tasks = TaskTracker::new();
        let udp = match config.direct {
            true => {
                let upnp = !config.dialer.has_proxy();
                Some(UdpStack::start(config.role, upnp, control.clone(), &tasks, &cancel)?)
            }
            false => None,
        };
        let reports = Arc::new(Reports::default());
        let (send, link, token) = (reports.clone(), control.clone(), cancel.child_token());
        tasks.spawn(async move { send.run(link, token).await });
        let memory = Memory::new(config.dialer.clone(), config.relay_cache, config.mediator);
        tasks.spawn(memory.clone().run(cancel.child_token()));
        let (keeper, keep) = Keeper::start(config.records)?;
        let token = cancel.child_token();
        tasks.spawn(async move { token.run_until_cancelled(keep).await });
        let witness = Witness::load(keeper.clone())?;
        let (spool, link, token) = (keeper.clone(), control.clone(), cancel.child_token());
        tasks.spawn(async move { spool::run(spool, link, token).await });
        let (ask, link, token) = (keeper.clone(), control.clone(), cancel.child_token());
        tasks.spawn(async move { counterparts::run(ask, link, token).await });
        let state = State { grace: config.offline_grace, ..State::default() };
        Ok(Arc::new(Self {
            role: config.role,
            identity: config.identity,
            dialer: config.dialer,
            resume_window: config.resume_window,
            control,
            udp,
            memory,
            reports,
            keeper,
            pool: Pool::default(),
            witness,
            partner: Partner::new(config.partner),
            tasks,
            cancel,
            state: Mutex::new(state),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the mediator's requests and pushes that belong to sessions; gives others back.
    pub fn handle_request(&self, request: adit_control::Request) -> Option<adit_control::Request> {
        match &request.body {
            wire::frame::Body::Signal(signal) => {
                if let Some(session) = self.find(&signal.session_id) {
                    session.tell(Message::Signal(signal.clone()));
                }
            }
            wire::frame::Body::EndSession(end) => {
                // Unknown means over: the answer is the same.
                if let Some(session) = self.find(&end.session_id) {
                    session.tell(Message::End(end.reason.clone()));
                }
            }
            wire::frame::Body::SessionTickets(tickets) => {
                let asked = SessionId::from_slice(&tickets.session_id).ok();
                let asked = asked.and_then(|id| self.state().asked.get(&id).cloned());
                if let Some(early) = asked {
                    early.handle_tickets(&tickets.relays);
                }
            }
            _ => return Some(request),
        }
        if !request.is_push() {
            request.reply(wire::frame::Body::Done(wire::Done {}));
        }
        None
    }

    fn find(&self, id: &[u8]) -> Option<SessionHandle> {
        let id = SessionId::from_slice(id).ok()?;
        self.state().sessions.get(&id).cloned()
    }

    /// For the check-in.
    pub fn live_sessions(&self) -> Vec<wire::LiveSession> {
        self.state().sessions.values().map(SessionHandle::live).collect()
    }

    /// For `status`.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.state().sessions.values().map(SessionHandle::info).collect()
    }

    /// Ends a session; `false` if there is none with this id.
    pub fn end_session(&self, id: SessionId, reason: &str) -> bool {
        let session = self.state().sessions.get(&id).cloned();
        session.inspect(|s| s.close(reason)).is_some()
    }

    /// Ends all sessions.
    pub fn end_all(&self, reason: &str) {
        let sessions: Vec<_> = self.state().sessions.values().cloned().collect();
        sessions.iter().for_each(|s| s.close(reason));
    }

    /// The owner changed how long sessions last without the mediator.
    pub fn set_offline_grace(&self, grace: Duration) {
        let mut state = self.state();
        state.grace = grace;
        state.sessions.values().for_each(|s| s.tell(Message::Grace(grace)));
    }

    /// What is known of the NAT.
    pub fn nat(&self) -> NatInfo {
        let nat = self.udp.as_ref().and_then(|u| u.nat()).unwrap_or_default();
        NatInfo { mapping: nat.mapping.as_str(), filtering: nat.filtering.as_str() }
    }

    /// Protocols by which the gateway maps ports, as far as sessions needed to know.
    pub fn port_mapping(&self) -> Vec<&'static str> {
        self.udp.as_ref().map(|u| u.port_mapping()).unwrap_or_default()
    }

    /// Agent: the gate refused a channel by a rule of the owner's. The channel's own end is not
    /// reported then.
    pub fn report_refusal(&self, session: SessionId, target: &Target, rule: &str) {
        let refusal = wire::PolicyRefusal { target: Some(target.to_wire()), rule: rule.to_owned() };
        let at_ms = self.control.last().map_or(0, |(_, clock)| clock.now_ms());
        self.reports.push(session, wire::session_event::Event::Refusal(refusal), at_ms);
    }

    /// The mediator told which relays there are: they are measured in the background.
    pub fn set_relays(&self, relays: &[wire::RelayInfo]) {
        let mediator = self.control.current().and_then(|link| link.remote);
        self.memory.set_relays(relays, mediator);
    }

    /// The relays of the installation, with round trips as far as measured.
    pub fn relays(&self) -> Vec<RelayStatus> {
        self.memory.list()
    }

    /// Measures all relays afresh.
    pub async fn measure_relays(&self) -> Vec<RelayStatus> {
        self.memory.measure(true).await;
        self.memory.list()
    }

    /// The machine's network changed.
    pub fn network_changed(&self) {
        self.memory.network_changed();
        if let Some(udp) = &self.udp {
            udp.network_changed();
        }
        let state = self.state();
        state.sessions.values().for_each(|s| s.tell(Message::NetworkChanged));
    }

    /// Ends all sessions, tells the mediator, stops all tasks.
    pub async fn shutdown(&self, reason: &str, deadline: Duration) {
        let sessions: Vec<_> = self.state().sessions.values().cloned().collect();
        let end = async {
            for session in &sessions {
                session.close(reason);
            }
            for session in &sessions {
                session.ended().await;
            }
            self.keeper.flush().await;
            spool::flush(&self.keeper).await;
            self.reports.flush(deadline).await;
            counterparts::flush(&self.keeper).await;
        };
        // What does not end in time is cut off.
        let _ = tokio::time::timeout(deadline, end).await;
        if let Some(udp) = &self.udp {
            udp.shutdown(Duration::from_millis(100)).await;
        }
        self.cancel.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(deadline, self.tasks.wait()).await;
    }

    /// Sessions share what the process may hold.
    fn share_windows(&self) {
        let state = self.state();
        let share = Pool::share(state.sessions.len());
        state.sessions.values().for_each(|s| s.set_window_limit(share));
    }

    /// Keepalive is quick while sessions live: a revocation must get through in seconds.
    fn adapt_keepalive(&self) {
        if let Some(peer) = self.control.peer() {
            let busy = !self.state().sessions.is_empty();
            peer.set_keepalive(if busy { KEEPALIVE_BUSY } else { KEEPALIVE_IDLE });
        }
    }
}
