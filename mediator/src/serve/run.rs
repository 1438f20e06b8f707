//! `mediator serve`: puts everything together, says when it is ready, and takes it apart.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use adit_net::{
    stun::server::{self as stun, StunSockets},
    tls::{LiveCert, ServerTls, read_pem_chain, read_pem_key},
};
use adit_runtime::{
    cli::{CliError, GlobalArgs},
    local::LocalServer,
    logging,
    shutdown::{STOP_DEADLINE, Shutdown},
    supervise::Tasks,
};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{BrokerHandle, driver, half_open::HalfOpen, listen, logins::Logins};
use crate::{
    admin::{AdminContext, AdminRequest, handle},
    config::{PROGRAM, Settings},
    init::{HOME_PARTNER, ROOT_FINGERPRINT},
    installation::Installation,
    place::{MediatorDir, Ports, store_error},
    store::{Mode, Store, Writer, sessions, tenants},
};

/// Time for connections to end when the server stops.
const CONNECTIONS_STOP: Duration = Duration::from_secs(2);

/// What connections share.
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) writer: Writer,
    pub(super) installation: Arc<Installation>,
    pub(super) broker: BrokerHandle,
    pub(super) logins: Logins,
    /// Partner whose log holds the installation's own events.
    pub(super) home: String,
    pub(super) stun_ports: [u16; 2],
    pub(super) check_in_ms: u32,
    pub(super) next_connection: AtomicU64,
}

/// Serves until told to stop.
pub(crate) async fn run(global: &GlobalArgs) -> Result<(), CliError> {
    let place = MediatorDir::open(global)?;
    logging::init(&place.settings.log_level, global.log_format)?;
    let shutdown = Shutdown::install()?;
    let _lock = place.dir.lock(PROGRAM.name)?;
    let server = Server::start(&place).await?;
    global.output().emit(&json!({
        "event": "ready",
        "port": server.ports.port,
        "stun_port": server.ports.stun_port,
        "fingerprint": server.fingerprint,
    }))?;
    tracing::info!(port = server.ports.port, stun_port = server.ports.stun_port,
        fingerprint = %server.fingerprint, "mediator is ready");
    let stopped = shutdown.token();
    tokio::select! {
        () = stopped.cancelled() => {}
        () = server.essential.token().cancelled() => {}
    }
    let failed = server.stop().await;
    if failed > 0 {
        return Err(CliError::failed("task_failed", "a part of the mediator failed; see the log"));
    }
    Ok(())
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
}

impl Server {
    /// Starts everything; when this returns, connections are accepted.
    pub(crate) async fn start(place: &MediatorDir) -> Result<Self, CliError> {
        let installation = Arc::new(place.installation()?);
        let fingerprint = installation.root().fingerprint();
        let store = place.store(Mode::Write).await?;
        let home = check_database(&store, &fingerprint.to_string()).await?;
        let (listeners, sockets) = bind(place)?;
        let ports = Ports {
            port: listeners
                .first()
                .and_then(|listener| listener.local_addr().ok())
                .map_or(0, |address| address.port()),
            stun_port: sockets.port(),
        };
        place.note_ports(ports)?;
        let (essential, writing) = (Tasks::default(), Tasks::default());
        let (writer, task) =
            Writer::start(&store, installation.log_signer()?, writing.token().clone())
                .await
                .map_err(store_error)?;
        writing.spawn_essential("writer", task);
        let adopted = sessions::open(&store.readers).await.map_err(store_error)?;
        let stop = essential.token().clone();
        let (broker, task) =
            driver::start(writer.clone(), Arc::clone(&installation), adopted, stop.clone());
        essential.spawn_essential("broker", task);
        essential.spawn_essential("stun", stun::serve(sockets, stop.clone()));
        let settings = &place.settings;
        let crypto = || CliError::failed("crypto_failed", "the system gives no randomness");
        let logins = Logins::new(store.clone(), writer.clone(), home.clone(), settings.logins)
            .ok_or_else(crypto)?;
        let admin = AdminContext {
            store: store.clone(),
            writer: writer.clone(),
            root: fingerprint,
            hosts: settings.hosts.clone(),
            port: Ok(if settings.port == 0 { ports.port } else { settings.port }),
            broker: Some(broker.clone()),
        };
        serve_admin(place, admin, &essential)?;
        let shared = Arc::new(Shared {
            store: store.clone(),
            writer,
            installation: Arc::clone(&installation),
            broker,
            logins,
            home,
            stun_ports: [ports.stun_port, ports.stun_port.saturating_add(1)],
            check_in_ms: settings.check_in_ms,
            next_connection: AtomicU64::new(1),
        });
        let tls = tls(settings, &installation)?;
        let half_open = HalfOpen::new(settings.half_open, settings.half_open_per_source);
        let room = Arc::new(Semaphore::new(settings.connections));
        let (connections, accepting) = (TaskTracker::new(), stop.child_token());
        for listener in listeners {
            let accept = listen::accept(
                listener,
                tls.clone(),
                half_open.clone(),
                Arc::clone(&room),
                Arc::clone(&shared),
                connections.clone(),
                accepting.clone(),
            );
            essential.spawn_essential("listener", accept);
        }
        Ok(Self {
            ports,
            fingerprint: fingerprint.to_string(),
            essential,
            writer: writing,
            connections,
            accepting,
            store,
        })
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
    let sockets = match (settings.stun_port, last) {
        (0, Some(last)) => bind_stun(last.stun_port).or_else(|_| bind_stun(0))?,
        (port, _) => bind_stun(port)?,
    };
    Ok((listeners, sockets))
}

fn tls(settings: &Settings, installation: &Installation) -> Result<ServerTls, CliError> {
    let failed =
        |reason: String| CliError::failed("certificate_failed", reason).hint("see config show");
    let (chain, key) = installation.server();
    let own = LiveCert::new(chain, key).map_err(|error| failed(error.to_string()))?;
    let web = match &settings.certificate {
        None => Arc::clone(&own),
        Some((chain, key)) => {
            let read = |path: &str| {
                std::fs::read(path).map_err(|error| failed(format!("{path}: {error}")))
            };
            let chain = read_pem_chain(&read(chain)?).map_err(|e| failed(e.to_string()))?;
            let key = read_pem_key(&read(key)?).map_err(|e| failed(e.to_string()))?;
            LiveCert::new(chain, key).map_err(|error| failed(error.to_string()))?
        }
    };
    ServerTls::new(own, Some(web)).map_err(|error| failed(error.to_string()))
}

fn serve_admin(place: &MediatorDir, context: AdminContext, tasks: &Tasks) -> Result<(), CliError> {
    let server = LocalServer::bind(&place.dir, PROGRAM.name)?;
    let context = Arc::new(context);
    let answer = move |request: serde_json::Value| {
        let context = Arc::clone(&context);
        async move {
            let request: AdminRequest = serde_json::from_value(request).map_err(|error| {
                CliError::usage("local_bad_request", format!("not a request: {error}"))
            })?;
            handle(context, request).await
        }
    };
    tasks.spawn_essential("admin", server.serve(answer, tasks.token().clone()));
    Ok(())
}
