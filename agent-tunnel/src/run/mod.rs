//! `run`: the agent itself. It dials out and listens nowhere but on a socket in its own data
//! directory; nothing that the mediator says changes policy, trust, proxy or mediator.
//!
//! One control connection is kept up (`connection`); offers become sessions
//! ([`crate::sessions`]); the rules are judged again whenever they may have changed.

mod check_in;
mod connection;
mod events;
mod local;
mod outside;
mod status;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use adit_control::client::Persistent;
use adit_net::{identity::DeviceIdentity, interfaces};
use adit_runtime::{
    cli::{CliError, GlobalArgs},
    datadir::DataDir,
    local::LocalServer,
    logging::LogHandle,
    metrics::{Health, MetricsServer, Registry},
    output::Output,
    shutdown::{Reloads, Shutdown},
    supervise::Tasks,
};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::{
    consent::Consent,
    enrollment::Enrollment,
    failure,
    gate::Rules,
    kill_switch::KillSwitch,
    policy::{Loaded, PolicyStore},
    sessions::{SessionConfig, Sessions},
    settings::{PROGRAM, Settings},
};

pub(crate) use connection::{stun_addresses, stun_ports};
pub use events::Events;
pub(crate) use outside::World;
pub use status::LinkState;
pub(crate) use status::{human as status_text, stopped as stopped_status};

/// How often hours, and a kill switch that was turned by hand, are looked at.
const JUDGE_INTERVAL: Duration = Duration::from_secs(2);
/// How long `status` tells of another program with this identity.
const TWIN_SHOWN: Duration = Duration::from_secs(600);
/// For sessions to end and be reported when the program stops.
const SESSIONS_STOP: Duration = Duration::from_secs(2);
/// For everything else to stop; with the above less than the contract's 5 s.
const TASKS_STOP: Duration = Duration::from_secs(2);

/// What the tasks of a running agent share.
pub struct Agent {
    pub(crate) dir: DataDir,
    pub(crate) enrollment: Enrollment,
    pub(crate) identity: Arc<DeviceIdentity>,
    pub(crate) rules: Arc<Rules>,
    pub(crate) events: Events,
    pub(crate) started: Instant,
    pub(crate) health: Health,
    /// Something that a check-in tells has changed.
    pub(crate) changed: Notify,
    link: Mutex<LinkState>,
    twin: Mutex<Option<Twin>>,
}

/// Another program uses this computer's identity, as the mediator said.
struct Twin {
    problem: CliError,
    since: Instant,
    /// The connection over which it was said is still the last one.
    current: bool,
}

impl Agent {
    pub(crate) fn link(&self) -> MutexGuard<'_, LinkState> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn twin(&self) -> MutexGuard<'_, Option<Twin>> {
        self.twin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mediator said that another program uses this identity.
    fn note_twin(&self, problem: CliError) {
        *self.twin() = Some(Twin { problem, since: Instant::now(), current: true });
    }

    /// Why the connection that is down now was closed, if it was for another with this identity.
    fn closed_for_twin(&self) -> Option<CliError> {
        let mut twin = self.twin();
        let twin = twin.as_mut().filter(|twin| twin.current)?;
        twin.current = false;
        Some(twin.problem.clone())
    }

    /// The same for a while, though it is online again: the two take turns.
    pub(crate) fn lately_twin(&self) -> Option<CliError> {
        let twin = self.twin();
        twin.as_ref().filter(|twin| twin.since.elapsed() < TWIN_SHOWN).map(|t| t.problem.clone())
    }

    /// Reads the owner's policy anew. An invalid file changes nothing and is said so.
    fn reload_policy(&self) -> Arc<Loaded> {
        self.rules.set(load_policy(&PolicyStore::new(self.dir.clone())));
        self.rules.loaded()
    }
}

/// Runs until a signal.
pub async fn run(
    dir: DataDir,
    global: &GlobalArgs,
    log: LogHandle,
    output: Output,
) -> Result<(), CliError> {
    let settings = Settings::load(global, dir.path())?;
    let _lock = dir.lock(PROGRAM.name)?;
    let agent = Arc::new(prepare(dir, &settings, output)?);
    let dialer = settings.dialer(agent.enrollment.proxy.as_deref())?;
    let shutdown = Shutdown::install()?;
    let tasks = Tasks::new(shutdown.token());
    let local = LocalServer::bind(&agent.dir, PROGRAM.name)?;
    serve_metrics(&settings, &agent, &tasks).await?;

    let config = SessionConfig {
        dialer: dialer.clone(),
        direct: settings.direct,
        resume_window: settings.resume_window,
    };
    let sessions = Sessions::start(agent.clone(), config).await?;
    let connect = connection::config(&agent, dialer);
    let witness = sessions.clone();
    let (persistent, events, keep_up) = Persistent::start(move || {
        let mut config = connect.clone();
        config.hello.seen = witness.seen_heads();
        config
    });
    // Not stopped by the signal: the ends of sessions are reported over it.
    let control = Tasks::default();
    control.spawn_until_stopped("control connection", keep_up);
    control.spawn_until_stopped(
        "control events",
        connection::serve(agent.clone(), sessions.clone(), events, control.child()),
    );
    tasks.spawn("local socket", {
        let (handler, stop) = (local::handler(&agent, &sessions), tasks.token().clone());
        local.serve(handler, stop)
    });
    tasks.spawn_until_stopped("rules", {
        let reload = Reload { global: global.clone(), log };
        judge(agent.clone(), sessions.clone(), shutdown.reload(), reload)
    });
    tasks.spawn_until_stopped(
        "interfaces",
        watch_network(agent.clone(), sessions.clone(), persistent),
    );
    info!(computer_id = %agent.enrollment.computer, hosts = ?agent.enrollment.hosts, "agent started");

    tasks.token().cancelled().await;
    sessions.stop("agent_stopped", SESSIONS_STOP).await;
    let (control, tasks) =
        tokio::join!(control.stop_within(TASKS_STOP), tasks.stop_within(TASKS_STOP));
    if !(control && tasks) {
        warn!("some tasks were cut off");
    }
    Ok(())
}

fn prepare(dir: DataDir, settings: &Settings, output: Output) -> Result<Agent, CliError> {
    let enrollment = Enrollment::require(&dir)?;
    let identity = DeviceIdentity::load(dir.path()).map_err(|error| failure::identity(&error))?;
    let fits = |i: &DeviceIdentity| i.signing.public().fingerprint() == enrollment.agent_key;
    let identity = identity.filter(fits).ok_or_else(|| {
        CliError::failed("identity_damaged", "the device key is missing or not the enrolled one")
            .hint("restore identity.key and noise.key from a backup, or enrol again")
    })?;
    let loaded = load_policy(&PolicyStore::new(dir.clone()));
    let kill_switch = KillSwitch::new(dir.clone());
    if kill_switch.is_locked() {
        warn!("the kill switch is on: every session is refused until agent-tunnel unlock");
    }
    let events = Events::new(output);
    let consent = Consent::new(settings.consent.clone(), events.clone());
    Ok(Agent {
        enrollment,
        identity: Arc::new(identity),
        rules: Arc::new(Rules::new(loaded, kill_switch, consent)),
        events,
        started: Instant::now(),
        health: Health::default(),
        changed: Notify::new(),
        link: Mutex::new(LinkState::default()),
        twin: Mutex::default(),
        dir,
    })
}

fn load_policy(store: &PolicyStore) -> Loaded {
    let loaded = store.load();
    match &loaded.problem {
        Some(problem) => error!(%problem, in_force = loaded.source.as_str(),
            "policy.toml is invalid and changes nothing: run agent-tunnel policy check"),
        None => info!(source = loaded.source.as_str(), "policy in force"),
    }
    loaded
}

async fn serve_metrics(settings: &Settings, agent: &Agent, tasks: &Tasks) -> Result<(), CliError> {
    let Some(address) = settings.metrics else { return Ok(()) };
    let registry = Arc::new(Registry::new(PROGRAM.name));
    let server = MetricsServer::bind(address, registry, agent.health.clone()).await?;
    info!(address = %server.local_addr(), "metrics are served");
    tasks.spawn("metrics", server.serve(tasks.token().clone()));
    Ok(())
}

struct Reload {
    global: GlobalArgs,
    log: LogHandle,
}

impl Reload {
    fn settings(&self, agent: &Agent) {
        let settings = Settings::load(&self.global, agent.dir.path()).and_then(|settings| {
            self.log.set_level(&settings.log_level)?;
            agent.rules.consent().set_command(settings.consent);
            Ok(())
        });
        if let Err(error) = settings {
            error!(%error, "configuration is invalid: the log level stays");
        }
    }
}

/// Judges live sessions by the rules whenever these may have changed.
async fn judge(agent: Arc<Agent>, sessions: Arc<Sessions>, mut reloads: Reloads, reload: Reload) {
    let mut tick = tokio::time::interval(JUDGE_INTERVAL);
    loop {
        tokio::select! {
            () = reloads.next() => {
                reload.settings(&agent);
                let loaded = agent.reload_policy();
                sessions.set_offline_grace(loaded.policy.offline_grace);
                agent.changed.notify_one();
            }
            _ = tick.tick() => {}
        }
        sessions.enforce();
    }
}

/// Tells everyone when addresses change or the machine slept.
async fn watch_network(agent: Arc<Agent>, sessions: Arc<Sessions>, persistent: Persistent) {
    let tracker = TaskTracker::new();
    let stop = tokio_util::sync::CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut changes = match interfaces::watch(&tracker, stop).await {
        Ok(changes) => changes,
        Err(error) => {
            warn!(%error, "roaming is noticed by timeouts only");
            // Pokes are lost, the connection is not: its handle stays.
            return std::future::pending().await;
        }
    };
    while let Some(change) = changes.recv().await {
        if change.major || change.resumed {
            info!(resumed = change.resumed, "network changed");
            persistent.poke();
            sessions.network_changed();
            agent.changed.notify_one();
        }
    }
}
