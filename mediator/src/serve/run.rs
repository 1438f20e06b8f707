//! `mediator serve`: puts everything together, says when it is ready, and takes it apart.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use adit_ledger::{Event, Level};
use adit_net::{
    stun::server::{self as stun, StunSockets},
    tls::{LiveCert, ServerTls, read_pem_chain, read_pem_key},
};
use adit_runtime::{
    cli::{CliError, GlobalArgs},
    local::LocalServer,
    logging,
    metrics::{Health, MetricsServer, Registry, prometheus_client::metrics::gauge::Gauge},
    shutdown::{STOP_DEADLINE, Shutdown},
    supervise::Tasks,
    time::unix_ms,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use zeroize::Zeroizing;

use super::{
    BrokerHandle, allowance::Allowances, confirm::Confirmer, driver, half_open::HalfOpen, listen,
    logins::Logins, review, review::Rules, seldom::Seldom, strangers::Strangers, twins::Twins,
};
use crate::{
    admin::{AdminContext, AdminRequest, actor::Actor, handle, tell_untold},
    config::{AllowedSources, PROGRAM, Settings},
    http,
    init::{HOME_PARTNER, ROOT_FINGERPRINT},
    installation::Installation,
    pages::Pages,
    place::{MediatorDir, Ports, no_wrapping_keys, store_error},
    proof,
    store::{
        Mode, Store, Writer, access::labels, factors, integrity::CHECK_WAIT, oidc, sessions,
        tenants,
    },
    tenancy::erase,
    vault::{Vault, tenant::TenantKeys},
};

/// Time for connections to end when the server stops.
const CONNECTIONS_STOP: Duration = Duration::from_secs(2);

/// How often certificates are looked at.
const RENEWAL: Duration = Duration::from_secs(12 * 3600);
/// How often the heads of the audit log are noted beside the database.
const NOTE_HEADS: Duration = Duration::from_secs(10);
/// How often overdue receipts are looked for.
const SWEEP_RECEIPTS: Duration = Duration::from_secs(60);
/// How often refusals that were only counted are told.
const TELL_REFUSALS: Duration = Duration::from_secs(60);
/// How often erasures that stopped midway are gone on with.
const GO_ON_ERASING: Duration = Duration::from_secs(60);
/// The UDP port that QUIC made passable.
const STUN_443: u16 = 443;
/// How often the gauges follow.
const GAUGE_INTERVAL: Duration = Duration::from_secs(5);

/// What connections share.
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) writer: Writer,
    pub(crate) installation: Arc<Installation>,
    pub(crate) broker: BrokerHandle,
    pub(crate) rules: Rules,
    pub(crate) logins: Logins,
    pub(crate) vault: Vault,
    /// Partner whose log holds the installation's own events.
    pub(crate) home: String,
    pub(crate) stun_ports: Vec<u16>,
    /// Addresses beyond the one by which a device came, if there are any.
    pub(crate) stun_addrs: Vec<String>,
    /// Unless addresses of relays are believed.
    pub(crate) confirmer: Option<Confirmer>,
    pub(crate) check_in_ms: u32,
    pub(crate) allowances: Arc<Allowances>,
    pub(crate) next_connection: AtomicU64,
    /// Of consoles, for the API.
    pub(crate) api_tokens: http::Tokens,
    /// Networks from which peers may come, and who came from elsewhere lately.
    pub(crate) sources: AllowedSources,
    pub(crate) strangers: Strangers,
    /// Refused enrolments that were recorded lately.
    pub(crate) refused_tokens: Arc<Seldom>,
    /// Devices that sent receipts of what is none of theirs, lately.
    pub(crate) strange_receipts: Arc<Seldom>,
    /// How many receipts without counterpart there are of each partner.
    pub(crate) receipt_room: Arc<proof::Room>,
    /// Agents of which there are two.
    pub(crate) twins: Twins,
    pub(crate) pages: Pages,
}

/// Serves until told to stop.
pub(crate) async fn run(global: &GlobalArgs) -> Result<(), CliError> {
    let place = MediatorDir::open(global)?;
    let log = logging::init(&place.settings.log_level, global.log_format)?;
    let shutdown = Shutdown::install()?;
    let _lock = place.dir.lock(PROGRAM.name)?;
    if let Err(error) = place.remove_staged() {
        // No reason to keep everybody out: certificates of destruction name it.
        tracing::warn!(%error, "what a restore left cannot be removed");
    }
    let server = Server::start(&place).await?;
    global.output().emit(&json!({
        "event": "ready",
        "port": server.ports.port,
        "stun_port": server.ports.stun_port,
        "fingerprint": server.fingerprint,
    }))?;
    tracing::info!(port = server.ports.port, stun_port = server.ports.stun_port,
        fingerprint = %server.fingerprint, "mediator is ready");
    let (stopped, mut reloads) = (shutdown.token(), shutdown.reload());
    let (mut renewal, mut heads) = (Every::new(RENEWAL), Every::new(NOTE_HEADS));
    loop {
        tokio::select! {
            () = stopped.cancelled() => break,
            () = server.essential.token().cancelled() => break,
            // Nothing can be written, so nothing can be granted: whoever watches starts it anew.
            () = server.writer.token().cancelled() => break,
            () = reloads.next() => reload(global, &server, &log),
            () = renewal.next() => server.renew(&place),
            () = heads.next() => {
                note_heads(&place, &server.store).await;
                if server.installation.is_out_of_time(unix_ms()) {
                    server.renew(&place);
                }
            }
        }
    }
    note_heads(&place, &server.store).await;
    let failed = server.stop().await;
    if failed > 0 {
        return Err(CliError::failed("task_failed", "a part of the mediator failed; see the log"));
    }
    Ok(())
}

/// Looks for receipts whose counterpart is overdue.
async fn sweep_receipts((store, writer): (Store, Writer), stop: CancellationToken) {
    let mut every = Every::new(SWEEP_RECEIPTS);
    let mut sweep = proof::sweep::Sweep::default();
    while stop.run_until_cancelled(every.next()).await.is_some() {
        let swept = sweep.sweep((&store.readers, &writer), unix_ms());
        match stop.run_until_cancelled(swept).await {
            None | Some(Ok(0)) => {}
            Some(Ok(missing)) => tracing::error!(missing, "receipts of one end did not come"),
            Some(Err(error)) => tracing::warn!(%error, "receipts not looked at"),
        }
    }
}

/// Tells how many refusals of the API were only counted.
async fn tell_refusals(admin: Arc<AdminContext>, stop: CancellationToken) {
    let mut every = Every::new(TELL_REFUSALS);
    while stop.run_until_cancelled(every.next()).await.is_some() {
        tell_untold(&admin, false).await;
    }
    tell_untold(&admin, true).await;
}

/// A tick that does not hurry after a delay.
struct Every(tokio::time::Interval);

impl Every {
    fn new(period: Duration) -> Self {
        let mut interval = tokio::time::interval(period);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Self(interval)
    }
    async fn next(&mut self) {
        self.0.tick().await;
    }
}

async fn note_heads(place: &MediatorDir, store: &Store) {
    if let Err(error) = place.note_heads(store).await {
        tracing::warn!(%error, "heads of the audit log not noted");
    }
}

/// SIGHUP: certificates and log level. What cannot be read leaves things as they are.
fn reload(global: &GlobalArgs, server: &Server, log: &logging::LogHandle) {
    let place = match MediatorDir::open(global) {
        Ok(place) => place,
        Err(error) => return tracing::error!(%error, "configuration not reloaded"),
    };
    if let Err(error) = log.set_level(&place.settings.log_level) {
        tracing::error!(%error, "log level not changed");
    }
    server.renew(&place);
}

/// A server that runs.
pub(crate) struct Server {
    pub(crate) ports: Ports,
    pub(crate) fingerprint: String,
    essential: Tasks,
    /// Stops the writer, after everybody who writes.
    writer: Tasks,
    connections: TaskTracker,
    accepting: CancellationToken,
    store: Store,
    installation: Arc<Installation>,
    control_cert: Arc<LiveCert>,
    public_cert: Arc<LiveCert>,
    web_cert: Arc<LiveCert>,
}

impl Server {
    /// Starts everything; when this returns, connections are accepted.
    pub(crate) async fn start(place: &MediatorDir) -> Result<Self, CliError> {
        let installation = Arc::new(place.installation()?);
        let fingerprint = installation.root().fingerprint();
        let store = place.store(Mode::Write).await?;
        let home = check_database(&store, &fingerprint.to_string()).await?;
        place.check_heads(&store).await?;
        let (listeners, sockets) = bind(place)?;
        let ports = Ports {
            port: listeners
                .first()
                .and_then(|listener| listener.local_addr().ok())
                .map_or(0, |address| address.port()),
            stun_port: sockets.port(),
        };
        place.note_ports(ports)?;
        let stun = told_servers(&sockets, ports.stun_port, place.settings.stun_443);
        let (essential, writing) = (Tasks::default(), Tasks::default());
        let (writer, task) =
            Writer::start(&store, installation.log_signer(), writing.token().clone())
                .await
                .map_err(store_error)?;
        writing.spawn_essential("writer", task);
        check_integrity(&store, &writer, &home, &essential).await?;
        writer
            .write(|tx| Box::pin(async move { labels::fill(tx).await }))
            .await
            .map_err(store_error)?;
        let adopted = sessions::open(&store.readers).await.map_err(store_error)?;
        let stop = essential.token().clone();
        let (broker, task) =
            driver::start(writer.clone(), Arc::clone(&installation), adopted, stop.clone());
        essential.spawn_essential("broker", task);
        essential.spawn_essential("stun", stun::serve(sockets, stop.clone()));
        let settings = &place.settings;
        let crypto = || CliError::failed("crypto_failed", "the system gives no randomness");
        let keys = place.wrapping_keys()?;
        let vault = Vault {
            store: store.clone(),
            writer: writer.clone(),
            keys: TenantKeys::new(keys.clone(), place.dir.clone()),
        };
        check_keys(&store, &vault.keys).await?;
        let logins = Logins::new(
            (store.clone(), writer.clone()),
            home.clone(),
            settings.logins,
            settings.accounts,
            keys.clone(),
        )
        .ok_or_else(crypto)?;
        let rules = Rules::default();
        let public_port = if settings.port == 0 { ports.port } else { settings.port };
        let pages = Pages::new(settings, public_port)?;
        let reviews = review::run(rules.clone(), store.clone(), broker.clone(), stop.clone());
        essential.spawn_essential("reviews", reviews);
        essential.spawn_essential(
            "receipts",
            sweep_receipts((store.clone(), writer.clone()), stop.clone()),
        );
        let host = settings.hosts.first().map_or("-", String::as_str);
        crate::audit::start(&store, &writer, &settings.audit, host, &essential);
        let admin = Arc::new(AdminContext {
            store: store.clone(),
            writer: writer.clone(),
            root: fingerprint,
            hosts: settings.hosts.clone(),
            port: Ok(if settings.port == 0 { ports.port } else { settings.port }),
            broker: Some(broker.clone()),
            rules: rules.clone(),
            accounts: settings.accounts,
            retention_ms: settings.audit.retention_ms,
            export_dir: settings.audit.export.clone().map(|(dir, _)| dir),
            keys,
            vault: vault.clone(),
            signer: installation.log_signer(),
            dir: place.dir.clone(),
            refusals: Default::default(),
            rotation: Default::default(),
            erasing: Default::default(),
        });
        serve_admin(place, Arc::clone(&admin), &essential)?;
        crate::admin::backup::forget_left(&place.dir);
        go_on_erasing(Arc::clone(&admin), &essential);
        essential.spawn_essential("refusals", tell_refusals(Arc::clone(&admin), stop.clone()));
        let confirmer = match settings.confirm_relays {
            true => Some(Confirmer::new().ok_or_else(crypto)?),
            false => None,
        };
        let shared = Arc::new(Shared {
            store: store.clone(),
            writer,
            installation: Arc::clone(&installation),
            broker,
            rules,
            logins,
            vault,
            home,
            stun_ports: stun.0,
            stun_addrs: stun.1,
            confirmer,
            check_in_ms: settings.check_in_ms,
            allowances: Arc::default(),
            next_connection: AtomicU64::new(1),
            api_tokens: http::Tokens::default(),
            sources: settings.sources.clone(),
            strangers: Strangers::default(),
            refused_tokens: Arc::default(),
            strange_receipts: Arc::default(),
            receipt_room: Arc::default(),
            twins: Twins::default(),
            pages,
        });
        let control_cert = live(installation.server())?;
        let web_cert = live(web_pair(settings, &installation)?)?;
        let public_cert = live(public_pair(settings, &installation)?)?;
        let tls = ServerTls::new(Arc::clone(&control_cert), Some(Arc::clone(&web_cert)))
            .and_then(|tls| tls.with_public(Arc::clone(&public_cert)))
            .map_err(|error| bad_cert(error.to_string()))?;
        let health = Health::default();
        serve_metrics(settings, shared.broker.clone(), &health, &essential).await?;
        let (connections, accepting) = (TaskTracker::new(), stop.child_token());
        let web = http::Web::new(admin, Arc::clone(&shared), connections.clone());
        let web = web.ok_or_else(crypto)?;
        let web = http::Server::new(Arc::new(web), stop.child_token(), connections.clone());
        let web = Arc::new(web);
        let half_open = HalfOpen::new(settings.half_open, settings.half_open_per_source);
        let room = Arc::new(Semaphore::new(settings.connections));
        for listener in listeners {
            let accept = listen::accept(
                listener,
                tls.clone(),
                half_open.clone(),
                Arc::clone(&room),
                (Arc::clone(&shared), Arc::clone(&web)),
                connections.clone(),
                accepting.clone(),
            );
            essential.spawn_essential("listener", accept);
        }
        health.set_ready(true);
        Ok(Self {
            ports,
            fingerprint: fingerprint.to_string(),
            essential,
            writer: writing,
            connections,
            accepting,
            store,
            installation,
            control_cert,
            public_cert,
            web_cert,
        })
    }

    /// Issues worn certificates anew and presents what is on disk.
    fn renew(&self, place: &MediatorDir) {
        let renewed = self.installation.renew(&place.dir, &place.settings.hosts, unix_ms());
        let renewed = renewed.and_then(|()| {
            let (settings, installation) = (&place.settings, &self.installation);
            for (cert, (chain, key)) in [
                (&self.control_cert, installation.server()),
                (&self.web_cert, web_pair(settings, installation)?),
                (&self.public_cert, public_pair(settings, installation)?),
            ] {
                cert.replace(chain, key).map_err(|error| bad_cert(error.to_string()))?;
            }
            Ok(())
        });
        if let Err(error) = renewed {
            tracing::error!(%error, "certificates not renewed");
        }
    }

    /// Stops in order: connections, broker, writer. Gives the number of parts that failed.
    pub(crate) async fn stop(self) -> usize {
        self.accepting.cancel();
        self.connections.close();
        let _ = tokio::time::timeout(CONNECTIONS_STOP, self.connections.wait()).await;
        let rest = STOP_DEADLINE.saturating_sub(CONNECTIONS_STOP) / 2;
        self.essential.stop_within(rest).await;
        self.writer.stop_within(rest).await;
        self.store.close().await;
        self.essential.failures() + self.writer.failures()
    }
}

/// What was being erased when the mediator stopped.
fn go_on_erasing(admin: Arc<AdminContext>, tasks: &Tasks) {
    tasks.spawn_until_stopped("erasures", async move { erase_on(&admin).await });
}

async fn erase_on(admin: &AdminContext) {
    let mut every = Every::new(GO_ON_ERASING);
    loop {
        every.next().await;
        match erase::resume(admin).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "interrupted erasures are done"),
            Err(error) => tracing::error!(%error, "erasures could not go on"),
        }
    }
}

/// Refuses to run without the keys of what is sealed: everybody with a second factor would be kept
/// out.
pub(crate) async fn check_keys(store: &Store, keys: &TenantKeys) -> Result<(), CliError> {
    let mut needed = factors::key_names(&store.readers).await.map_err(store_error)?;
    needed.extend(oidc::key_names(&store.readers).await.map_err(store_error)?);
    if needed.iter().all(|name| keys.wrapping().knows(name)) && keys.check()? {
        return Ok(());
    }
    Err(no_wrapping_keys("stored secrets are sealed with a key that is not here"))
}

async fn check_database(store: &Store, fingerprint: &str) -> Result<String, CliError> {
    let setting = async |name| tenants::setting(&store.readers, name).await.map_err(store_error);
    if setting(ROOT_FINGERPRINT).await?.as_deref() != Some(fingerprint) {
        let text = "the database belongs to an installation with another root key";
        return Err(CliError::failed("database_foreign", text)
            .hint("put back root.key, or restore the database of this installation"));
    }
    setting(HOME_PARTNER)
        .await?
        .ok_or_else(|| CliError::failed("database_corrupt", "the database has no home partner"))
}

/// Refuses a damaged database. A large one is checked further while the server runs; damage is
/// then logged and recorded.
async fn check_integrity(
    store: &Store,
    writer: &Writer,
    home: &str,
    tasks: &Tasks,
) -> Result<(), CliError> {
    let (tell, told) = oneshot::channel();
    let (store, writer, home) = (store.clone(), writer.clone(), home.to_owned());
    tasks.spawn_until_stopped("database check", async move {
        // Nobody waits any more if this comes late.
        match tell.send(store.check_integrity().await) {
            Ok(()) => {}
            Err(Ok(())) => tracing::info!("the database is whole"),
            Err(Err(error)) => {
                tracing::error!(%error, "the database is damaged: stop, and restore a backup");
                let event = Event::new("database.damaged", Level::Critical)
                    .actor("mediator")
                    .outcome("failed")
                    .extra("fault", error.to_string());
                let written = writer.write(move |tx| {
                    Box::pin(async move { tx.append(&home, event).await.map(|_| ()) })
                });
                if let Err(error) = written.await {
                    tracing::error!(%error, "the damage could not be recorded");
                }
            }
        }
    });
    match tokio::time::timeout(CHECK_WAIT, told).await {
        Ok(Ok(checked)) => checked.map_err(store_error),
        _ => {
            tracing::info!("the database is large: it is checked while the mediator runs");
            Ok(())
        }
    }
}

/// STUN servers as devices are told of them: ports at the address by which they came, and further
/// addresses, which tell address-dependent NATs from others.
fn told_servers(sockets: &StunSockets, port: u16, plain: bool) -> (Vec<u16>, Vec<String>) {
    let mut ports = vec![port, port.saturating_add(1)];
    ports.extend(plain.then_some(STUN_443));
    let concrete: Vec<_> =
        sockets.local_addrs().into_iter().filter(|addr| !addr.ip().is_unspecified()).collect();
    let several = concrete.iter().any(|addr| concrete.iter().any(|other| other.ip() != addr.ip()));
    let further = concrete.iter().filter(|_| several).map(ToString::to_string).collect();
    (ports, further)
}

/// The configured ports; for port 0 those of the last time, if they are free.
fn bind(place: &MediatorDir) -> Result<(Vec<tokio::net::TcpListener>, StunSockets), CliError> {
    let settings = &place.settings;
    let last = place.last_ports();
    let listeners = match (settings.port, last) {
        (0, Some(last)) => listen::bind(&settings.listen, last.port)
            .or_else(|_| listen::bind(&settings.listen, 0))?,
        (port, _) => listen::bind(&settings.listen, port)?,
    };
    let addresses = match settings.listen.as_slice() {
        [] => match listeners.first().and_then(|listener| listener.local_addr().ok()) {
            Some(address) => vec![address.ip()],
            None => Vec::new(),
        },
        some => some.to_vec(),
    };
    let bind_stun = |port| {
        StunSockets::bind(&addresses, port)
            .map_err(|error| CliError::bind(format_args!("UDP port {port} or the next"), &error))
    };
    let mut sockets = match (settings.stun_port, last) {
        (0, Some(last)) => bind_stun(last.stun_port).or_else(|_| bind_stun(0))?,
        (port, _) => bind_stun(port)?,
    };
    if settings.stun_443 {
        sockets.bind_plain(STUN_443).map_err(|error| CliError::bind("UDP port 443", &error))?;
    }
    Ok((listeners, sockets))
}

fn bad_cert(reason: String) -> CliError {
    CliError::failed("certificate_failed", reason).hint("see mediator config show")
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// What browsers see: the configured certificate, or the installation's own.
fn web_pair(settings: &Settings, installation: &Installation) -> Result<Pair, CliError> {
    let Some((chain, key)) = &settings.certificate else { return Ok(installation.server()) };
    let read =
        |path: &str| std::fs::read(path).map_err(|error| bad_cert(format!("{path}: {error}")));
    let chain = read_pem_chain(&read(chain)?).map_err(|error| bad_cert(error.to_string()))?;
    let key = Zeroizing::new(read(key)?);
    let key = read_pem_key(&key).map_err(|error| bad_cert(error.to_string()))?;
    Ok((chain, key))
}

/// What consoles see that go by public authorities: the same, and at its end the root, which
/// vouches for everything after the handshake.
fn public_pair(settings: &Settings, installation: &Installation) -> Result<Pair, CliError> {
    let (mut chain, key) = web_pair(settings, installation)?;
    let root = installation.server().0.pop();
    chain.extend(root.filter(|root| chain.last() != Some(root)));
    Ok((chain, key))
}

fn live((chain, key): Pair) -> Result<Arc<LiveCert>, CliError> {
    LiveCert::new(chain, key).map_err(|error| bad_cert(error.to_string()))
}

/// Numbers for operators, if they are asked for.
async fn serve_metrics(
    settings: &Settings,
    broker: BrokerHandle,
    health: &Health,
    tasks: &Tasks,
) -> Result<(), CliError> {
    let Some(address) = settings.metrics else { return Ok(()) };
    let mut registry = Registry::new(PROGRAM.name);
    let gauges = Gauges::default();
    for (name, help, gauge) in [
        ("agents", "Connected agents", &gauges.agents),
        ("consoles", "Connected consoles", &gauges.consoles),
        ("relays", "Registered relays", &gauges.relays),
        ("sessions", "Open sessions", &gauges.sessions),
        ("pending_revocations", "Ends not acknowledged yet", &gauges.pending),
        ("clocks_off", "Devices whose clocks are off by more than 30 s", &gauges.clocks),
    ] {
        registry.register(name, help, gauge.clone());
    }
    let server = MetricsServer::bind(address, Arc::new(registry), health.clone()).await?;
    let stop = tasks.token().clone();
    tasks.spawn_until_stopped("gauges", async move {
        while let Some(counts) = broker.ask(|driver, _| driver.broker.counts()).await {
            gauges.set(counts);
            gauges.clocks.set(i64::try_from(broker.clocks.off()).unwrap_or(i64::MAX));
            tokio::time::sleep(GAUGE_INTERVAL).await;
        }
    });
    tasks.spawn_essential("metrics", server.serve(stop));
    Ok(())
}

#[derive(Clone, Default)]
struct Gauges {
    agents: Gauge,
    consoles: Gauge,
    relays: Gauge,
    sessions: Gauge,
    pending: Gauge,
    clocks: Gauge,
}

impl Gauges {
    fn set(&self, counts: crate::core::types::Counts) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.agents.set(number(counts.agents));
        self.consoles.set(number(counts.consoles));
        self.relays.set(number(counts.relays));
        self.sessions.set(number(counts.sessions));
        self.pending.set(number(counts.pending));
    }
}

fn serve_admin(
    place: &MediatorDir,
    context: Arc<AdminContext>,
    tasks: &Tasks,
) -> Result<(), CliError> {
    let server = LocalServer::bind(&place.dir, PROGRAM.name)?;
    let answer = move |request: serde_json::Value| {
        let context = Arc::clone(&context);
        async move {
            let request: AdminRequest = serde_json::from_value(request).map_err(|error| {
                CliError::usage("local_bad_request", format!("not a request: {error}"))
            })?;
            handle(context, Actor::Local, request).await
        }
    };
    tasks.spawn_essential("admin", server.serve(answer, tasks.token().clone()));
    Ok(())
}
