//! Sessions of this console: the only module that knows the endpoint's API.
//!
//! Keeps the control connection up for as long as sessions live, feeds the endpoint with it, and
//! opens sessions on a computer that the caller has checked.

use std::{sync::Arc, time::Duration};

use adit_control::{
    Incoming, Peer,
    client::{Ahead, AheadReply, ConnectConfig, Connected, DownReason, Event, Persistent},
};
use adit_endpoint::{
    CarrierChoice, ControlLink, Endpoint, EndpointConfig, Link, OpenError, Prepared,
};
use adit_net::interfaces;
use adit_protocol::{keys::Fingerprint, target::Target, ticket::Role, wire::frame::Body};
use adit_runtime::cli::CliError;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use adit_endpoint::{
    ChannelState, Explanation, OpenRequest, Session, SessionEvent, SessionHandle,
};

use crate::{
    cli::{Carrier, SessionArgs},
    config::Context,
    failure,
    link::{Caller, refuse},
    state::KnownComputer,
};

/// What was learnt of relays, in the data directory: the next console need not measure again.
pub const RELAY_CACHE: &str = "relays";
/// Time to end a session that was asked for and is not wanted after all.
pub const ABANDON: Duration = Duration::from_secs(2);
/// Time for sessions to end where nothing was waited for before, of the 5 s of a clean stop.
pub const SHUTDOWN: Duration = Duration::from_millis(2_500);

/// The endpoint with its control connection.
pub struct Sessions {
    endpoint: Arc<Endpoint>,
    /// For requests of commands.
    pub peer: Peer,
    /// The answer to the question that followed `Hello`, if it went with it.
    pub answer: Option<AheadReply>,
    /// The installation's root key.
    pub root: Fingerprint,
    /// A session that was asked for in the same flight.
    asked: Option<(Prepared, AheadReply)>,
    tasks: JoinSet<()>,
}

/// The entry in the audit log that a computer's enrolment left.
#[derive(Debug, Clone, Copy)]
pub struct Enrolment {
    /// Its number.
    pub seq: u64,
    /// Its time, milliseconds since 1970.
    pub time_ms: u64,
}

impl From<(u64, u64)> for Enrolment {
    fn from((seq, time_ms): (u64, u64)) -> Self {
        Self { seq, time_ms }
    }
}

/// A session that can be asked for before the mediator has said anything, and the root key of the
/// installation that it is meant for.
pub type Wish = (OpenRequest, Fingerprint);

/// What a session is asked for, apart from the computer.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Name of the redirector.
    pub redirector: &'a str,
    /// Where its channels lead.
    pub targets: Vec<Target>,
    /// SOCKS: anywhere that is audited first.
    pub any_target: bool,
    /// Name of the viewer's program.
    pub viewer: String,
    /// Reason, ticket, carrier.
    pub options: &'a SessionArgs,
}

impl Sessions {
    /// Starts the endpoint and connects to the mediator. In the same flight as `Hello` go the wish
    /// for a session, if there is one, and a question. The wish is made up while the connection is
    /// made.
    pub async fn start(
        context: &Context,
        caller: &Caller,
        carrier: Carrier,
        wish: impl Future<Output = Option<Wish>>,
        question: Body,
    ) -> Result<Self, CliError> {
        let direct = carrier != Carrier::Relayed && context.config.bool("session.direct")?;
        let control = ControlLink::new();
        let config = EndpointConfig {
            role: Role::Console,
            identity: caller.identity(),
            dialer: Arc::new(caller.dialer()),
            direct,
            resume_window: context.resume_window()?,
            offline_grace: context.offline_grace()?,
            relay_cache: Some(context.directory.path().join(RELAY_CACHE)),
            records: Some(context.directory.path().to_owned()),
            mediator: caller.account.address(),
            partner: caller.account.pinned().map(str::to_owned),
        };
        // First of all the connection is begun; all else is done while it is being made.
        let mut tasks = JoinSet::new();
        let owned = caller.clone();
        let (flight, ahead) = Ahead::later();
        let mut first = Some(ahead);
        let (persistent, mut events, keep_up) = Persistent::start(move || {
            let ahead = first.take().unwrap_or_default();
            ConnectConfig { ahead, ..owned.config(owned.account.trust.into(), Vec::new()) }
        });
        tasks.spawn(keep_up);
        tokio::task::yield_now().await;
        let start = Endpoint::start(config, control.clone(), CancellationToken::new());
        let (endpoint, wish) = tokio::join!(start, wish);
        let endpoint = endpoint.map_err(|error| failure::start(&error))?;
        // What cannot be prepared now is found out when it is wanted.
        let prepare = |(wish, root)| Some((endpoint.prepare(wish, root).ok()?, root));
        let prepared = wish.and_then(prepare);
        let open = prepared.as_ref().map(|(prepared, _)| prepared.message());
        flight.send_replace(Some(open.into_iter().chain([question]).collect()));
        tasks.spawn(watch_network(endpoint.clone(), persistent));
        let mut connected = match events.recv().await {
            Some(Event::Up(connected)) => connected,
            Some(Event::Down { error: DownReason::Connect(error), .. }) => {
                return Err(caller.explain(failure::connect(&error)));
            }
            Some(Event::Down { error: DownReason::Closed(_), .. }) | None => {
                return Err(CliError::no_path(
                    "mediator_unreachable",
                    "mediator closed the connection",
                )
                .hint("try again"));
            }
        };
        let (link, relays) = (link_of(&connected), std::mem::take(&mut connected.welcome.relays));
        let (peer, mut ahead) = (connected.peer.clone(), std::mem::take(&mut connected.ahead));
        let answer = ahead.pop();
        let root = connected.root.fingerprint();
        let asked = prepared.and_then(|(prepared, of)| Some((prepared, ahead.pop()?, of)));
        // Where public authorities vouch for the mediator it may be another installation now, of
        // whose log this console holds another head, or none.
        let (asked, foreign) = match asked {
            Some((prepared, reply, of)) if of == root => (Some((prepared, reply)), None),
            other => (None, other),
        };
        let inform = keep_informed(endpoint.clone(), control.clone(), events, connected.incoming);
        tasks.spawn(inform);
        control.set_up(link);
        endpoint.set_relays(&relays);
        if let Some((prepared, reply, _)) = foreign {
            tasks.spawn(endpoint.clone().abandon(prepared, reply));
        }
        Ok(Self { endpoint, peer, answer, root, asked, tasks })
    }

    /// The partner whose audit log is believed, once it is known.
    pub fn partner(&self) -> Option<String> {
        self.endpoint.partner()
    }

    /// The proof that a computer's agent was enrolled with its key, where no session brought it.
    pub fn enrolment(
        &self,
        computer: &KnownComputer,
    ) -> impl Future<Output = Result<Enrolment, CliError>> + use<> {
        let endpoint = self.endpoint.clone();
        let (tenant, id, key) = (computer.tenant.clone(), computer.id, computer.identity);
        async move {
            let proved = endpoint.check_enrolment(&tenant, id, key).await;
            let (seq, time_ms) = proved.map_err(|doubt| {
                endpoint.alarm_of_enrolment(&doubt, id);
                failure::doubt(&doubt)
            })?;
            Ok(Enrolment { seq, time_ms })
        }
    }

    /// Opens a session: the one that was asked for already, if it is the same. At first contact
    /// with the proof that the agent was enrolled with its key.
    pub async fn open(
        &mut self,
        computer: &KnownComputer,
        wanted: &Wanted<'_>,
        first_contact: bool,
    ) -> Result<Session, CliError> {
        let request = wish(computer, wanted, first_contact);
        let opened = match self.asked.take() {
            Some((prepared, answer)) if *prepared.request() == request => {
                let answer = answer.await;
                self.endpoint.complete(prepared, answer).await
            }
            other => {
                if let Some((prepared, answer)) = other {
                    tracing::debug!("the computer is described otherwise than before");
                    self.tasks.spawn(self.endpoint.clone().abandon(prepared, answer));
                }
                self.endpoint.open(request).await
            }
        };
        opened.map_err(|error| match error {
            OpenError::Refused(failure) => failure::refused(&failure),
            OpenError::Control(error) => failure::request(&error),
            OpenError::Doubt(doubt) => failure::doubt(&doubt),
            OpenError::BadAnswer(reason) => CliError::refused(
                "agent_untrusted",
                format!("mediator or agent answered what cannot be accepted: {reason}"),
            )
            .hint("do not go on; tell your administrator"),
            OpenError::NoPath(reason) => {
                CliError::no_path("no_path", reason).hint("try --carrier auto")
            }
        })
    }

    /// The session that was asked for is not wanted after all.
    pub async fn abandon(&mut self) {
        if let Some((prepared, answer)) = self.asked.take() {
            let abandon = self.endpoint.clone().abandon(prepared, answer);
            if tokio::time::timeout(ABANDON, abandon).await.is_err() {
                tracing::debug!("a session that was asked for may begin without us");
            }
        }
    }

    /// Measures the round trips to the relays, by name.
    pub async fn measure_relays(&self) -> Vec<(String, Duration)> {
        let measured = self.endpoint.measure_relays().await;
        measured.into_iter().filter_map(|relay| Some((relay.name, relay.rtt?))).collect()
    }

    /// Ends all sessions on both sides and tells the mediator; so long for the sessions, and again
    /// for the tasks that they leave, which need none of it unless something is wrong here.
    pub async fn shutdown(mut self, reason: &str, within: Duration) {
        self.endpoint.shutdown(reason, within).await;
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// What is asked of the endpoint.
pub fn wish(computer: &KnownComputer, wanted: &Wanted<'_>, first_contact: bool) -> OpenRequest {
    OpenRequest {
        computer: computer.id,
        tenant: computer.tenant.clone(),
        called: (computer.name.clone(), computer.client.clone()),
        first_contact,
        agent: computer.identity,
        agent_noise: computer.noise_cert.clone(),
        redirector: wanted.redirector.to_owned(),
        targets: wanted.targets.clone(),
        any_target: wanted.any_target,
        reason: wanted.options.reason.clone(),
        ticket: wanted.options.ticket.clone(),
        viewer: wanted.viewer.clone(),
        carrier: match wanted.options.carrier {
            Carrier::Auto => CarrierChoice::Auto,
            Carrier::Direct => CarrierChoice::Direct,
            Carrier::Relayed => CarrierChoice::Relayed,
        },
    }
}

fn link_of(connected: &Connected) -> Link {
    let addresses = connected.welcome.stun_addrs.iter().filter_map(|text| text.parse().ok());
    let ports = connected.welcome.stun_ports.iter().filter_map(|port| u16::try_from(*port).ok());
    Link {
        peer: connected.peer.clone(),
        keys: connected.keys,
        clock: connected.clock,
        remote: connected.remote,
        host: connected.host.clone(),
        stun_ports: ports.collect(),
        stun_addrs: addresses.collect(),
    }
}

/// Tells the endpoint about the control connection, and gives it the mediator's requests.
async fn keep_informed(
    endpoint: Arc<Endpoint>,
    control: ControlLink,
    mut events: mpsc::Receiver<Event>,
    incoming: Incoming,
) {
    let mut incoming = Some(incoming);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(Event::Up(connected)) => {
                    tracing::info!("mediator is reachable again");
                    control.set_up(link_of(&connected));
                    endpoint.set_relays(&connected.welcome.relays);
                    incoming = Some(connected.incoming);
                }
                Some(Event::Down { error, retry_in }) => {
                    control.set_down();
                    incoming = None;
                    tracing::warn!(%error, ?retry_in, "mediator is not reachable, sessions go on");
                }
                None => return,
            },
            request = next_request(&mut incoming) => match request {
                Some(request) => {
                    if let Some(request) = endpoint.handle_request(request) {
                        refuse(request);
                    }
                }
                // The connection ended; its event says why.
                None => incoming = None,
            },
        }
    }
}

/// Tells everyone when addresses change or the machine slept, so that nobody waits for a timeout.
async fn watch_network(endpoint: Arc<Endpoint>, persistent: Persistent) {
    let tracker = TaskTracker::new();
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut changes = match interfaces::watch(&tracker, stop).await {
        Ok(changes) => changes,
        Err(error) => {
            tracing::warn!(%error, "roaming is noticed by timeouts only");
            // Pokes are lost, the connection is not: its handle stays.
            return std::future::pending().await;
        }
    };
    while let Some(change) = changes.recv().await {
        if change.major || change.resumed {
            tracing::info!(resumed = change.resumed, "network changed");
            persistent.poke();
            endpoint.network_changed();
        }
    }
}

async fn next_request(incoming: &mut Option<Incoming>) -> Option<adit_control::Request> {
    match incoming {
        Some(incoming) => incoming.recv().await,
        None => std::future::pending().await,
    }
}
