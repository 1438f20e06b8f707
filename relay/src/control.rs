//! The relay and its mediator: registering, reporting, being told to cut.
//!
//! Must never stop serving because the mediator is away.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use adit_control::{
    CloseReason, Incoming, Peer, Request,
    client::{ATTEMPT_TIMEOUT, Ahead, ConnectConfig, Connected, DownReason, Event, Persistent},
    failure,
};
use adit_net::{identity::DeviceIdentity, proxy::Dialer, tls::Trust as TlsTrust};
use adit_protocol::{
    PROTOCOL_VERSION,
    code::failure as codes,
    ids::SessionId,
    wire::{self, frame::Body},
};
use adit_runtime::{
    cli::{CliError, escape_text},
    metrics::Health,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    core::{pairing::Counts, usage::Statement},
    enrolment::Enrolment,
    errors::connect_error,
    hub::Hub,
    metrics::Metrics,
    trust::Trust,
};

/// Time between reports while there is something new.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// Time for the mediator to acknowledge a report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the last report when the relay stops.
const LAST_REPORT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for pairs to end when the relay stops, before the last report.
const LAST_PAIRS_TIMEOUT: Duration = Duration::from_secs(2);

/// How often in [`RECALLED_IN`] the mediator may close in good order and find the relay back at
/// once: more is no operator's doing.
const RECALLS: u32 = 12;
/// See [`RECALLS`].
const RECALLED_IN: Duration = Duration::from_secs(60);

/// How often the mediator closed a connection in good order, lately.
#[derive(Debug, Default)]
struct Recalls {
    since: Option<Instant>,
    count: u32,
}

impl Recalls {
    /// Whether to follow one more.
    fn take(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= RECALLED_IN) {
            *self = Self { since: Some(now), count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count <= RECALLS
    }
}

/// What does not change while the relay runs.
#[derive(Debug)]
pub struct Registration {
    /// Who we are.
    pub identity: Arc<DeviceIdentity>,
    /// To whom.
    pub enrolment: Enrolment,
    /// The way out.
    pub dialer: Dialer,
    /// Region to tell.
    pub region: String,
    /// Addresses that the operator gave; empty: the bound ones.
    pub advertise: Vec<String>,
    /// Addresses that are bound, ports known.
    pub bound: Vec<SocketAddr>,
}

/// What others may know of the connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The mediator knows us.
    pub registered: bool,
    /// Which mediator, while registered.
    pub mediator: Option<String>,
    /// Addresses it was told.
    pub advertised: Vec<String>,
    /// Those of them that it tells nobody, with the reason.
    pub unconfirmed: Vec<String>,
    /// An operator at the mediator wants us to get nothing new.
    pub drained: bool,
}

/// Keeps the relay registered.
pub struct Control {
    registration: Registration,
    hub: Arc<Hub>,
    trust: Arc<Trust>,
    health: Health,
    metrics: Metrics,
    status: watch::Sender<Status>,
    /// Said in the next `Hello`.
    addresses: Mutex<Vec<String>>,
    again: Notify,
}

impl Control {
    /// Not connected yet; see [`Control::run`].
    pub fn new(
        registration: Registration,
        hub: Arc<Hub>,
        trust: Arc<Trust>,
        health: Health,
        metrics: Metrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            addresses: Mutex::new(registration.addresses(None)),
            registration,
            hub,
            trust,
            health,
            metrics,
            status: watch::Sender::new(Status::default()),
            again: Notify::new(),
        })
    }

    /// Follows the registration.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Registers anew, without addresses if the relay drains.
    pub fn register_again(&self) {
        self.again.notify_one();
    }

    /// Runs until `stop`, then reports a last time. An error means that it is pointless to go
    /// on: the relay was never registered and never will be.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), CliError> {
        let this = Arc::clone(&self);
        let (persistent, events, driver) = Persistent::start(move || this.connect_config());
        tokio::pin!(driver);
        tokio::select! {
            () = &mut driver => Ok(()),
            result = self.follow(persistent, events, stop) => result,
        }
    }

    async fn follow(
        &self,
        persistent: Persistent,
        mut events: mpsc::Receiver<Event>,
        stop: CancellationToken,
    ) -> Result<(), CliError> {
        let mut ended_by_us = false;
        let mut recalls = Recalls::default();
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                event = events.recv() => event,
            };
            match event {
                None => return Ok(()),
                Some(Event::Up(connected)) => {
                    ended_by_us = if self.learn(&connected) {
                        self.while_up(*connected, &stop).await
                    } else {
                        connected.peer.close();
                        connected.peer.closed().await;
                        true
                    };
                    self.set_status(Status::default());
                }
                // To register anew; the wait that spreads a herd is for those who lost the
                // mediator.
                Some(Event::Down { .. }) if std::mem::take(&mut ended_by_us) => persistent.poke(),
                // An operator drained or resumed this relay there: the next welcome says so.
                Some(Event::Down { error: DownReason::Closed(CloseReason::Remote), .. })
                    if recalls.take(Instant::now()) =>
                {
                    persistent.poke();
                }
                Some(Event::Down { error, retry_in }) => {
                    warn!(%error, ?retry_in, "not connected to the mediator");
                    if let DownReason::Connect(error) = &error
                        && error.is_fatal()
                        && !self.trust.is_met()
                    {
                        return Err(connect_error(error));
                    }
                }
            }
        }
    }

    /// Takes over what the welcome says. False if the mediator was told other addresses than
    /// are right now that the way to it is known.
    fn learn(&self, connected: &Connected) -> bool {
        self.trust.learn(connected.root, &connected.welcome.key_certs, connected.clock);
        let right = self.right_addresses(connected.remote.map(|remote| remote.ip()));
        let mut said = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let same = *said == right;
        if right.is_empty() && !self.hub.is_draining() {
            warn!("own address is unknown: give --advertise to join, or relay.advertise");
        }
        *said = right;
        same
    }

    /// Until the connection ends; true if we ended it in order to register anew.
    async fn while_up(&self, connected: Connected, stop: &CancellationToken) -> bool {
        let Connected { peer, incoming, host, welcome, .. } = connected;
        info!(mediator = host, "registered");
        let unconfirmed: Vec<String> =
            welcome.unconfirmed.iter().take(MAX_UNCONFIRMED).map(|t| escape_text(t)).collect();
        for one in &unconfirmed {
            warn!("the mediator tells nobody of {one}: is the address right, and open from there?");
        }
        self.hub.handle_reconnected();
        self.set_status(Status {
            registered: true,
            mediator: Some(host),
            advertised: self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            unconfirmed,
            drained: welcome.drained,
        });
        let again = tokio::select! {
            () = peer.closed() => false,
            () = self.listen(incoming) => false,
            () = self.report_always(&peer) => false,
            () = self.again.notified() => {
                *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = Vec::new();
                self.report(&peer, REPORT_TIMEOUT).await;
                true
            }
            () = stop.cancelled() => {
                let _ = tokio::time::timeout(LAST_PAIRS_TIMEOUT, self.hub.emptied()).await;
                self.report(&peer, LAST_REPORT_TIMEOUT).await;
                false
            }
        };
        peer.close();
        peer.closed().await;
        again
    }

    async fn listen(&self, mut incoming: Incoming) {
        while let Some(request) = incoming.recv().await {
            self.answer(request);
        }
    }

    fn answer(&self, request: Request) {
        let (body, responder) = request.into_parts();
        match body {
            Body::RelayCut(cut) => match SessionId::from_slice(&cut.session_id) {
                Ok(session) => {
                    self.hub.handle_cut(session);
                    responder.reply(Body::Done(wire::Done {}));
                }
                Err(error) => responder.fail(failure(codes::BAD_REQUEST, error.to_string())),
            },
            _ => responder.fail(failure(codes::BAD_REQUEST, "not a request for a relay")),
        }
    }

    async fn report_always(&self, peer: &Peer) {
        let mut tick = tokio::time::interval(REPORT_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            tick.tick().await;
            self.hub.collect();
            let counts = self.hub.counts();
            if told != Some(counts) || !self.hub.poll_report().is_empty() {
                told = self.report(peer, REPORT_TIMEOUT).await.then_some(counts);
            }
        }
    }

    /// Tells everything that is new, in as many messages as it takes.
    async fn report(&self, peer: &Peer, limit: Duration) -> bool {
        self.hub.collect();
        loop {
            let statements = self.hub.poll_report();
            let body = Body::RelayReport(report(&statements, self.hub.counts()));
            match peer.request(body, limit).await {
                Ok(_) => self.hub.handle_acknowledged(&statements),
                Err(error) => {
                    warn!(%error, "report was not taken");
                    return false;
                }
            }
            if statements.len() < crate::core::usage::MAX_SESSIONS_PER_REPORT {
                return true;
            }
        }
    }

    fn connect_config(&self) -> ConnectConfig {
        let r = &self.registration;
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let relay = wire::RelayInfo {
            relay_id: r.enrolment.relay.to_bytes(),
            identity: r.identity.signing.public().to_bytes(),
            noise_cert: Some(r.identity.noise_cert.clone()),
            addresses,
            region: r.region.clone(),
        };
        ConnectConfig {
            hosts: r.enrolment.mediators.clone(),
            trust: TlsTrust::Root(r.enrolment.root),
            identity: Arc::clone(&r.identity),
            dialer: r.dialer.clone(),
            hello: wire::Hello {
                role: ROLE_RELAY,
                protocol: PROTOCOL_VERSION,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                device_id: r.enrolment.relay.to_bytes(),
                noise_cert: Some(r.identity.noise_cert.clone()),
                relay: Some(relay),
                ..wire::Hello::default()
            },
            ahead: Ahead::default(),
            pipelined: Vec::new(),
            timeout: ATTEMPT_TIMEOUT,
        }
    }

    fn right_addresses(&self, mediator: Option<IpAddr>) -> Vec<String> {
        if self.hub.is_draining() {
            return Vec::new();
        }
        self.registration.addresses(mediator)
    }

    fn set_status(&self, status: Status) {
        self.health.set_ready(status.registered);
        self.metrics.set_registered(status.registered);
        self.status.send_replace(status);
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Control({:?})", self.status.borrow())
    }
}

/// Addresses that the mediator says more about.
const MAX_UNCONFIRMED: usize = 8;
/// `Hello.role` of a relay.
const ROLE_RELAY: u32 = 3;

impl Registration {
    /// What to advertise: what the operator said, else what is bound; for wildcards the address
    /// from which this machine talks to the mediator.
    fn addresses(&self, mediator: Option<IpAddr>) -> Vec<String> {
        if !self.advertise.is_empty() {
            return self.advertise.clone();
        }
        let mut out: Vec<String> = Vec::new();
        for bound in &self.bound {
            let ip = if bound.ip().is_unspecified() {
                mediator.and_then(local_address_towards)
            } else {
                Some(bound.ip())
            };
            // A wildcard is of one family only; the other one has its own.
            let address = ip.filter(|ip| ip.is_ipv4() == bound.is_ipv4());
            if let Some(ip) = address {
                let text = SocketAddr::new(ip, bound.port()).to_string();
                if !out.contains(&text) {
                    out.push(text);
                }
            }
        }
        out
    }
}

/// The kernel's choice of a source address; nothing is sent.
fn local_address_towards(remote: IpAddr) -> Option<IpAddr> {
    const DISCARD: u16 = 9;
    let any: SocketAddr = match remote {
        IpAddr::V4(_) => ([0; 4], 0).into(),
        IpAddr::V6(_) => ([0; 16], 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect((remote, DISCARD)).ok()?;
    socket.local_addr().ok().map(|local| local.ip())
}

fn report(statements: &[Statement], counts: Counts) -> wire::RelayReport {
    let sessions = statements.iter().map(|s| wire::RelaySession {
        session_id: s.session.to_bytes(),
        bytes_up: s.bytes_up,
        bytes_down: s.bytes_down,
        ended: s.ended,
    });
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    wire::RelayReport {
        sessions: sessions.collect(),
        pairs: number(counts.pairs),
        waiting: number(counts.waiting),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An operator drains and resumes as he likes; a mediator that closes whatever connects is
    /// dialled with growing waits.
    #[test]
    fn recalls_are_followed_within_bounds() {
        let (mut recalls, start) = (Recalls::default(), Instant::now());
        let followed = (0..600).filter(|s| recalls.take(start + Duration::from_secs(*s))).count();
        assert_eq!(followed, 10 * RECALLS as usize);
    }
}
