//! `relay serve`: puts the parts together and takes them apart again.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use adit_net::{identity::DeviceIdentity, proxy::parse_host_port};
use adit_runtime::{
    cli::{CliError, GlobalArgs},
    config::Config,
    datadir::DataDir,
    local::LocalServer,
    logging::{self, LogHandle},
    metrics::{Health, MetricsServer, Registry},
    output::Output,
    shutdown::{STOP_DEADLINE, Shutdown},
    supervise::Tasks,
    time::unix_ms,
};
use clap::Args;
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};
use tracing::{error, info};

use super::{local::Responder, own_identity, sources};
use crate::{
    capacity::Capacity,
    config::{DEFAULT_PORT, KEYS, PROGRAM, Settings},
    control::{Control, Registration, Status},
    enrolment::Enrolment,
    hub::Hub,
    join::Door,
    listen,
    metrics::Metrics,
    splice::Engine,
    trust::Trust,
};

/// Options of `relay serve`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    relay serve\n  \
    relay serve --data-dir /srv/relay --listen 192.0.2.7:443,[2001:db8::7]:443")]
pub struct ServeArgs {
    /// Addresses to listen on, separated by commas
    #[arg(long, value_name = "ADDR:PORT[,…]")]
    listen: Option<String>,
}

pub(super) async fn run(global: &GlobalArgs, args: &ServeArgs) -> Result<(), CliError> {
    let load = || {
        let sources = sources(global, args.listen.as_deref())?;
        Settings::read(&Config::load(&PROGRAM, KEYS, &sources)?)
    };
    let settings = load()?;
    let log = logging::init(&settings.log_level, global.log_format)?;
    let not_joined = || {
        CliError::not_there("not_joined", "this relay has not joined an installation")
            .hint("get a token with \"mediator token relay\", then: relay join TOKEN")
    };
    let dir = DataDir::open_existing(global.data_dir(&PROGRAM)?)?;
    let _lock = dir.lock(PROGRAM.name)?;
    let enrolment = Enrolment::load(&dir)?.ok_or_else(not_joined)?;
    let identity = own_identity(&dir)?;

    let shutdown = Shutdown::install()?;
    let tasks = Tasks::new(shutdown.token());
    let capacity = Capacity::of_this_process();
    let parts = Parts::build(&settings, &dir, capacity, enrolment, identity, &tasks).await?;
    let hub = Arc::clone(&parts.hub);
    let mut failed = parts.start(global.output(), &tasks);
    let mut reloads = shutdown.reload();
    let token = shutdown.token();
    let failure = loop {
        tokio::select! {
            () = token.cancelled() => break None,
            // Without an error the control task ends only when all stop.
            failure = &mut failed => break failure.ok(),
            () = reloads.next() => reload(&hub, capacity, load(), &log),
        }
    };
    let clean = tasks.stop_within(STOP_DEADLINE).await;
    match failure {
        Some(error) => Err(error),
        None if clean => Ok(()),
        None => Err(CliError::failed("stop_incomplete", "some tasks did not stop in time")),
    }
}

fn reload(hub: &Arc<Hub>, capacity: Capacity, load: Result<Settings, CliError>, log: &LogHandle) {
    // A mistake in the file must not end what runs: the old settings stay.
    let set = load.and_then(|settings| {
        log.set_level(&settings.log_level)?;
        hub.handle_limits(capacity.clamp(settings.limits));
        Ok(())
    });
    match set {
        Ok(()) => info!("log level and limits are as configured; the rest waits for a restart"),
        Err(error) => error!(%error, "configuration not reloaded"),
    }
}

/// Everything that runs, bound but not yet started.
struct Parts {
    hub: Arc<Hub>,
    control: Arc<Control>,
    door: Arc<Door>,
    listeners: Vec<TcpListener>,
    local: LocalServer,
    metrics: Option<MetricsServer>,
    listen: Vec<String>,
    relay_id: String,
}

impl Parts {
    async fn build(
        settings: &Settings,
        dir: &DataDir,
        capacity: Capacity,
        enrolment: Enrolment,
        identity: DeviceIdentity,
        tasks: &Tasks,
    ) -> Result<Self, CliError> {
        let listeners = listen::bind(&settings.listen, settings.listen_chosen)?;
        let bound: Vec<SocketAddr> =
            listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let local = LocalServer::bind(dir, PROGRAM.name)?;
        let (metrics, health) = (Metrics::default(), Health::default());
        let metrics_server = match settings.metrics {
            Some(address) => {
                let mut registry = Registry::new(PROGRAM.name);
                metrics.register(&mut registry);
                Some(MetricsServer::bind(address, Arc::new(registry), health.clone()).await?)
            }
            None => None,
        };
        let limits = capacity.clamp(settings.limits);
        let engine = Engine::new(capacity.max_pipes());
        let hub = Hub::new(limits, engine, tasks.clone(), metrics.clone());
        let identity = Arc::new(identity);
        let trust = Arc::new(Trust::new(identity.signing.public()));
        let advertise = match settings.advertise.is_empty() {
            true => enrolment.advertise.clone(),
            false => settings.advertise.clone(),
        };
        let hosts = certificate_hosts(&advertise);
        let door = Door::new(Arc::clone(&identity), Arc::clone(&trust), &hosts, unix_ms())
            .map_err(|e| CliError::failed("tls_failed", e.to_string()))?;
        let dialer = settings.dialer()?;
        let relay_id = enrolment.relay.to_string();
        let listen = bound.iter().map(ToString::to_string).collect();
        let registration = Registration {
            identity,
            region: settings.region.clone().unwrap_or_else(|| enrolment.region.clone()),
            enrolment,
            dialer,
            advertise,
            bound,
        };
        let control = Control::new(registration, Arc::clone(&hub), trust, health, metrics);
        let door = Arc::new(door);
        Ok(Self { hub, control, door, listeners, local, metrics: metrics_server, listen, relay_id })
    }

    /// Starts all tasks. The receiver hears of the error that makes going on pointless.
    fn start(self, output: Output, tasks: &Tasks) -> oneshot::Receiver<CliError> {
        let Self { hub, control, door, listeners, local, metrics, listen, relay_id } = self;
        for listener in listeners {
            let accept =
                listen::accept(listener, Arc::clone(&door), Arc::clone(&hub), tasks.clone());
            tasks.spawn_essential("accept", accept);
        }
        let time = Arc::clone(&hub);
        tasks.spawn_until_stopped("timers", async move { time.keep_time().await });
        if let Some(metrics) = metrics {
            tasks.spawn("metrics", metrics.serve(tasks.token().clone()));
        }
        let responder = Arc::new(Responder {
            hub,
            control: Arc::clone(&control),
            relay_id: relay_id.clone(),
            listen: listen.clone(),
            started: Instant::now(),
        });
        let answer = move |request| Arc::clone(&responder).answer(request);
        tasks.spawn("local socket", local.serve(answer, tasks.token().clone()));

        let ready = announce(control.status(), output, listen, relay_id);
        tasks.spawn_until_stopped("ready", ready);
        let (failed, failure) = oneshot::channel();
        let running = control.run(tasks.token().clone());
        tasks.spawn("control", async move {
            if let Err(error) = running.await {
                // Nobody listens any more only when the program stops anyway.
                let _ = failed.send(error);
            }
        });
        failure
    }
}

/// Says once that the relay does its job.
async fn announce(
    mut status: watch::Receiver<Status>,
    output: Output,
    listen: Vec<String>,
    relay_id: String,
) -> Result<(), CliError> {
    let Ok(status) = status.wait_for(|status| status.registered).await.map(|s| s.clone()) else {
        return Ok(());
    };
    output.emit(&json!({
        "event": "ready",
        "listen": listen,
        "relay_id": relay_id,
        "advertised": status.advertised,
        "unconfirmed": status.unconfirmed,
        "mediator": status.mediator,
    }))?;
    output.human(format_args!("relay {relay_id} is ready on {}", listen.join(", ")))
}

/// Names for the TLS certificate, which nobody checks.
fn certificate_hosts(advertise: &[String]) -> Vec<String> {
    let hosts = advertise.iter().filter_map(|text| parse_host_port(text, DEFAULT_PORT).ok());
    let mut hosts: Vec<String> = hosts.map(|(host, _)| host).collect();
    if hosts.is_empty() {
        hosts.push("localhost".to_owned());
    }
    hosts
}
