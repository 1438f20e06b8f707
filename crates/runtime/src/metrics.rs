//! Metrics and health on an address of the operator's choice, off unless configured. A tiny
//! HTTP/1.1 responder: GET of three paths, one request a connection, everything bounded. Never
//! carries a secret, and no text from peers as a label.

mod http;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Metric;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::cli::{CliError, VERSION};

#[doc(hidden)]
pub use http::fuzz_request;
pub use prometheus_client;

/// Connections served at a time.
pub const MAX_CONNECTIONS: usize = 32;

/// Rest after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The metrics of a program, all named `adit_…`.
#[derive(Debug)]
pub struct Registry {
    inner: prometheus_client::registry::Registry,
}

impl Registry {
    /// A registry with `adit_build_info` for the program `name`.
    pub fn new(name: &'static str) -> Self {
        let mut inner = prometheus_client::registry::Registry::with_prefix("adit");
        let info = Info::new(vec![("program", name), ("version", VERSION)]);
        inner.register("build", "Program and version", info);
        Self { inner }
    }

    /// Adds a metric; keep a clone of it to change it.
    pub fn register(&mut self, name: &str, help: &str, metric: impl Metric) {
        self.inner.register(name, help, metric);
    }

    /// The registry of prometheus-client, for collectors and units.
    pub fn inner_mut(&mut self) -> &mut prometheus_client::registry::Registry {
        &mut self.inner
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.inner)?;
        Ok(text)
    }
}

/// Whether the program does its job, as `/readyz` tells it.
#[derive(Debug, Clone, Default)]
pub struct Health {
    ready: Arc<AtomicBool>,
}

impl Health {
    /// Says whether it does.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Whether it does.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

/// The bound responder.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
    address: SocketAddr,
    registry: Arc<Registry>,
    health: Health,
}

impl MetricsServer {
    /// Binds `address`; port 0 means any free one.
    pub async fn bind(
        address: SocketAddr,
        registry: Arc<Registry>,
        health: Health,
    ) -> Result<Self, CliError> {
        let failed = |error| CliError::bind(address, &error);
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, registry, health })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        // Dropped at the end, which ends the connections: a scrape can be repeated.
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let (permit, accepted) = tokio::select! {
                () = stop.cancelled() => return,
                Ok(permit) = Arc::clone(&free).acquire_owned() => tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = self.listener.accept() => (permit, accepted),
                },
            };
            match accepted {
                Ok((stream, _)) => {
                    let (registry, health) = (Arc::clone(&self.registry), self.health.clone());
                    connections.spawn(async move {
                        let _permit = permit;
                        http::answer(stream, |path| respond(path, &registry, &health)).await;
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept a metrics connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

fn respond(path: &str, registry: &Registry, health: &Health) -> http::Response {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match path {
        "/metrics" => match registry.encode() {
            Ok(text) => http::Response { status: 200, content_type: OPENMETRICS, body: text },
            Err(_) => http::Response::text(500, "cannot encode the metrics\n"),
        },
        "/healthz" => http::Response::text(200, "ok\n"),
        "/readyz" if health.is_ready() => http::Response::text(200, "ready\n"),
        "/readyz" => http::Response::text(503, "not ready\n"),
        _ => http::Response::text(404, "try /metrics, /healthz or /readyz\n"),
    }
}

#[cfg(test)]
mod tests;
