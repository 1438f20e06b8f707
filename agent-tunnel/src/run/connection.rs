//! The control connection's ups and downs, and what the mediator asks over it.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use adit_control::{
    Incoming, Request,
    client::{ATTEMPT_TIMEOUT, Ahead, ConnectConfig, Connected, DownReason, Event},
};
use adit_net::{proxy::Dialer, tls::Trust};
use adit_protocol::{PROTOCOL_VERSION, code::failure as codes, wire, wire::frame::Body};
use adit_runtime::{cli::escape_text, supervise::Tasks};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::{Agent, check_in, status::LinkState};
use crate::{failure, sessions::Sessions};

/// Role of `Hello` (docs/protocol.md).
const ROLE_AGENT: u32 = 1;

/// Whom to call and what to say first.
pub(crate) fn config(agent: &Agent, dialer: Dialer) -> ConnectConfig {
    ConnectConfig {
        hosts: agent.enrollment.hosts.clone(),
        trust: Trust::Root(agent.enrollment.root),
        identity: agent.identity.clone(),
        dialer,
        hello: wire::Hello {
            role: ROLE_AGENT,
            protocol: PROTOCOL_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device_id: agent.enrollment.computer.to_bytes(),
            noise_cert: Some(agent.identity.noise_cert.clone()),
            ..wire::Hello::default()
        },
        ahead: Ahead::default(),
        pipelined: Vec::new(),
        timeout: ATTEMPT_TIMEOUT,
    }
}

/// Follows the connection for as long as it is polled.
pub(crate) async fn serve(
    agent: Arc<Agent>,
    sessions: Arc<Sessions>,
    mut events: mpsc::Receiver<Event>,
    tasks: Tasks,
) {
    // Tasks of the connection that is up.
    let mut current: Option<Tasks> = None;
    while let Some(event) = events.recv().await {
        if let Some(old) = current.take() {
            old.token().cancel();
        }
        match event {
            Event::Up(connected) => {
                let connection = tasks.child();
                up(&agent, &sessions, *connected, &connection);
                current = Some(connection);
            }
            Event::Down { error, retry_in } => {
                sessions.link_down();
                agent.health.set_ready(false);
                down(&agent, &error, retry_in);
            }
        }
    }
}

/// Says at once why, and what to do, however long the next attempt is away.
fn down(agent: &Agent, error: &DownReason, retry_in: Duration) {
    let twin = agent.closed_for_twin().filter(|_| matches!(error, DownReason::Closed(_)));
    let problem = twin.unwrap_or_else(|| failure::down(error));
    let (code, reason) = (problem.code, escape_text(&problem.message));
    let hint = problem.hint.as_deref().unwrap_or_default();
    if error.is_fatal() {
        error!(code, %reason, hint, ?retry_in, "the mediator cannot be used");
    } else {
        warn!(code, %reason, hint, ?retry_in, "offline");
    }
    agent.events.emit(&json!({
        "event": "offline",
        "code": code,
        "reason": problem.message,
        "hint": problem.hint,
        "retry_in_ms": u64::try_from(retry_in.as_millis()).unwrap_or(u64::MAX),
    }));
    *agent.link() = LinkState::Offline { problem, retry_at: Instant::now() + retry_in };
}

fn up(agent: &Arc<Agent>, sessions: &Arc<Sessions>, connected: Connected, tasks: &Tasks) {
    let host = connected.host.clone();
    *agent.link() = LinkState::Online {
        host: host.clone(),
        via_proxy: connected.via_proxy,
        since: Instant::now(),
    };
    sessions.link_up(&connected);
    agent.health.set_ready(true);
    info!(%host, via_proxy = connected.via_proxy, "online");
    if agent.events.first_ready() {
        let computer_id = agent.enrollment.computer.to_string();
        agent.events.emit(
            &json!({"event": "ready", "computer_id": computer_id, "mediator": host.as_str()}),
        );
    }
    agent
        .events
        .emit(&json!({"event": "online", "mediator": host, "via_proxy": connected.via_proxy}));
    let interval = connected.welcome.check_in_ms;
    tasks.spawn_until_stopped(
        "check-in",
        check_in::run(agent.clone(), sessions.clone(), connected.peer.clone(), interval),
    );
    tasks.spawn_until_stopped(
        "requests",
        serve_requests(agent.clone(), sessions.clone(), connected.incoming),
    );
}

async fn serve_requests(agent: Arc<Agent>, sessions: Arc<Sessions>, mut incoming: Incoming) {
    while let Some(request) = incoming.recv().await {
        let Some(request) = notice(&agent, request) else { continue };
        if let Some(request) = sessions.handle(request) {
            refuse(request);
        }
    }
}

/// Why the mediator is about to close this connection.
fn notice(agent: &Agent, request: Request) -> Option<Request> {
    match &request.body {
        Body::Failure(told) if told.code == codes::IDENTITY_IN_USE => {
            agent.note_twin(failure::refused(told));
            request.reply(Body::Done(wire::Done {}));
            None
        }
        _ => Some(request),
    }
}

/// What is neither of a session nor an offer: no command of the mediator changes this agent.
fn refuse(request: Request) {
    if matches!(request.body, Body::Ping(_)) {
        request.reply(Body::Done(wire::Done {}));
    } else if !request.is_push() {
        debug!("the mediator asked for something that agents do not do");
        request.fail(adit_control::failure(codes::BAD_REQUEST, "agents do not do this"));
    }
}

/// Addresses of a welcome that can be read.
pub(crate) fn stun_addresses(welcome: &wire::Welcome) -> Vec<SocketAddr> {
    welcome.stun_addrs.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Ports of a welcome that can be ports.
pub(crate) fn stun_ports(welcome: &wire::Welcome) -> Vec<u16> {
    let port = |n: &u32| u16::try_from(*n).ok().filter(|port| *port != 0);
    welcome.stun_ports.iter().filter_map(port).collect()
}
