//! One control connection: its `Hello`, then the messages of its role.
//!
//! The identity that TLS proved must be the one that is enrolled under the device id; whoever
//! only claims gets a failure and nothing else.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use adit_control::{Incoming, Options, Peer, Responder, failure as fail, server::expect_hello};
use adit_ledger::{Event, Level};
use adit_protocol::{
    code::failure,
    ids::{ComputerId, RelayId},
    keys::{NoiseCert, PublicKey},
    limits::KEEPALIVE_IDLE,
    wire::{self, frame::Body},
};
use adit_runtime::time::unix_ms;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    agent,
    allowance::{Allowance, Taken},
    confirm::Unconfirmed,
    console, enroll,
    half_open::Admitted,
    logins::Origin,
    relay,
    run::Shared,
};
use crate::{
    config::{MfaRule, is_allowed},
    core::types::{ConnectionId, Device},
    store::{computers, relays},
};

/// Silence of two and a half times this ends a relay's connection: then it is offered no more.
const KEEPALIVE_RELAY: Duration = Duration::from_secs(3);
/// Time for the `Hello`.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Time to log in or enrol.
const PROOF_DEADLINE: Duration = Duration::from_secs(120);
/// Bytes of free text that a device tells of itself.
pub(super) const MAX_FACT: usize = 128;

/// What is known of a connection.
pub(super) struct Line {
    pub(super) shared: Arc<Shared>,
    pub(super) id: ConnectionId,
    pub(super) identity: PublicKey,
    pub(super) source: SocketAddr,
    pub(super) peer: Peer,
    pub(super) incoming: Incoming,
    /// Until the device proved that it belongs here.
    pub(super) unproved: Option<Admitted>,
    /// Once it did: how much it may say, and whose log tells if it says more.
    pub(super) proved: Option<Proved>,
    /// What its clock showed, and when that came; both milliseconds since 1970.
    pub(super) clock: (u64, u64),
}

/// A device that belongs here.
pub(super) struct Proved {
    allowance: Allowance,
    pub(super) partner_id: String,
    /// Path of an agent's client.
    client: Option<String>,
}

impl Line {
    /// Comes when a connection that has proved nothing must give way.
    pub(super) async fn must_go(&self) {
        match &self.unproved {
            Some(admitted) => admitted.must_go().cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Where it comes from, for logins.
    pub(super) fn from(&self) -> Origin {
        Origin { device: self.identity, source: self.source }
    }

    /// The device belongs here; what it does too much of is told in this partner's log.
    pub(super) fn proved(&mut self, partner_id: &str) {
        self.unproved = None;
        let allowance = self.shared.allowances.of(self.identity);
        let partner_id = partner_id.to_owned();
        self.proved = Some(Proved { allowance, partner_id, client: None });
    }

    fn proved_agent(&mut self, computer: &computers::ComputerRow) {
        self.proved(&computer.partner_id);
        if let Some(proved) = &mut self.proved {
            proved.client = Some(computer.client_path());
        }
    }

    /// The next request. Those who have proved nothing have a deadline and give way to others;
    /// those who say too much wait, and are cut off at last.
    pub(super) async fn next(&mut self) -> Option<adit_control::Request> {
        let request = self.receive().await?;
        let Some(proved) = &self.proved else { return Some(request) };
        match proved.allowance.take(&request.body) {
            Taken::After(wait) if wait.is_zero() => Some(request),
            Taken::After(wait) => tokio::select! {
                () = tokio::time::sleep(wait) => Some(request),
                () = self.peer.closed() => None,
            },
            Taken::Cut { kind, first } => {
                tracing::warn!(source = %self.source, kind, "connection ended: it asks too much");
                if first {
                    self.record_cut(proved, kind).await;
                }
                let text = "too many messages for too long; connect again later";
                request.fail(fail(failure::RATE_LIMITED, text));
                None
            }
        }
    }

    async fn record_cut(&self, proved: &Proved, kind: &'static str) {
        let mut event = Event::new("connection.limited", Level::Significant)
            .device(self.identity.fingerprint().to_string())
            .source(self.source.to_string())
            .outcome("refused")
            .end_reason(failure::RATE_LIMITED)
            .extra("kind", kind);
        event.client.clone_from(&proved.client);
        let partner_id = proved.partner_id.clone();
        let written = self.shared.writer.write(move |tx| {
            Box::pin(async move { tx.append(&partner_id, event).await.map(|_| ()) })
        });
        if let Err(error) = written.await {
            tracing::error!(%error, "a connection's cut was not recorded");
        }
    }

    async fn receive(&mut self) -> Option<adit_control::Request> {
        match &self.unproved {
            None => self.incoming.recv().await,
            Some(admitted) => {
                let must_go = admitted.must_go();
                let recv = tokio::time::timeout(PROOF_DEADLINE, self.incoming.recv());
                must_go.run_until_cancelled(recv).await?.ok()?
            }
        }
    }
}

/// Speaks the control protocol on an authenticated stream until it ends.
pub(super) async fn serve<S>(
    shared: Arc<Shared>,
    stream: S,
    identity: PublicKey,
    source: SocketAddr,
    admitted: Admitted,
) where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (peer, incoming, driver) = adit_control::start(stream, Options::server());
    let id = ConnectionId(shared.next_connection.fetch_add(1, Ordering::Relaxed));
    let line = Line {
        shared,
        id,
        identity,
        source,
        peer: peer.clone(),
        incoming,
        unproved: Some(admitted),
        proved: None,
        clock: (0, 0),
    };
    let speak = async {
        speak(line).await;
        peer.close();
    };
    let (reason, ()) = tokio::join!(driver, speak);
    tracing::debug!(connection = id.0, %source, %reason, "control connection ended");
}

async fn speak(mut line: Line) {
    let hello = expect_hello(&mut line.incoming, HELLO_DEADLINE);
    let must_go = line.unproved.as_ref().map(Admitted::must_go).unwrap_or_default();
    let Some(Ok((hello, responder))) = must_go.run_until_cancelled(hello).await else { return };
    line.clock = (hello.now_ms, unix_ms());
    if let Err(failure) = source_allowed(&line, hello.role).await {
        return responder.fail(failure);
    }
    match hello.role {
        1 => match known_agent(&line, &hello).await {
            Ok((computer, device)) => {
                line.proved_agent(&computer);
                welcome(&line, responder, KEEPALIVE_IDLE).await;
                agent::serve(line, computer, device, &hello).await;
            }
            Err(failure) => responder.fail(failure),
        },
        2 => match noise_key(&line, hello.noise_cert.as_ref()) {
            Ok(noise) => {
                let login = console::resume(&mut line, &hello).await;
                welcome(&line, responder, KEEPALIVE_IDLE).await;
                console::serve(line, noise, login).await;
            }
            Err(failure) => responder.fail(failure),
        },
        3 => match known_relay(&line, &hello).await {
            Ok((relay, device, unconfirmed)) => {
                let home = line.shared.home.clone();
                line.proved(&home);
                // Whoever is sent to a relay must find it there.
                line.peer.set_keepalive(KEEPALIVE_RELAY);
                let told = unconfirmed.iter().map(ToString::to_string).collect();
                let to_relay = ToRelay { unconfirmed: told, drained: relay.draining };
                answer(&line, responder, KEEPALIVE_RELAY, to_relay).await;
                relay::serve(line, relay, device, unconfirmed).await;
            }
            Err(failure) => responder.fail(failure),
        },
        4 => {
            welcome(&line, responder, KEEPALIVE_IDLE).await;
            enroll::serve(line).await;
        }
        _ => responder.fail(fail(failure::BAD_REQUEST, "no such role")),
    }
}

async fn welcome(line: &Line, responder: Responder, keepalive: Duration) {
    answer(line, responder, keepalive, ToRelay::default()).await;
}

/// What only a relay is told.
#[derive(Default)]
struct ToRelay {
    /// Its addresses that nobody is told.
    unconfirmed: Vec<String>,
    /// An operator wants it to get nothing new.
    drained: bool,
}

async fn answer(line: &Line, responder: Responder, keepalive: Duration, to_relay: ToRelay) {
    let ToRelay { unconfirmed, drained } = to_relay;
    let shared = &line.shared;
    let relays = shared.broker.ask(|driver, _| driver.broker.relay_infos()).await;
    responder.reply(Body::Welcome(wire::Welcome {
        now_ms: unix_ms(),
        key_certs: shared.installation.key_certs(),
        stun_ports: shared.stun_ports.iter().copied().map(u32::from).collect(),
        stun_addrs: shared.stun_addrs.clone(),
        keepalive_ms: u32::try_from(keepalive.as_millis()).unwrap_or(45_000),
        check_in_ms: shared.check_in_ms,
        relays: relays.unwrap_or_default(),
        unconfirmed,
        drained,
        installation: shared.installation.root().fingerprint().to_string(),
        web_login: shared.logins.settings.mfa == MfaRule::PhishingResistant,
    }));
}

/// Where this kind of device may come from.
async fn source_allowed(line: &Line, role: u32) -> Result<(), wire::Failure> {
    let allowed = &line.shared.sources;
    let (networks, kind) = match role {
        2 => (&allowed.consoles, "console"),
        3 => (&allowed.relays, "relay"),
        // A device that enrols is an agent or a relay; as what it comes later is judged then.
        4 => return Ok(()),
        _ => (&allowed.agents, "agent"),
    };
    if is_allowed(networks, line.source.ip()) {
        return Ok(());
    }
    line.shared.strangers.refused(&line.shared, line.from(), kind).await;
    Err(fail(failure::SOURCE_NOT_ALLOWED, "not from this network"))
}

pub(super) fn not_enrolled() -> wire::Failure {
    fail(failure::NOT_ENROLLED, "this device is not enrolled here (any more); enrol it again")
}

async fn known_agent(
    line: &Line,
    hello: &wire::Hello,
) -> Result<(computers::ComputerRow, Device), wire::Failure> {
    let id = ComputerId::from_slice(&hello.device_id).map_err(|_| not_enrolled())?;
    let row = computers::by_id(&line.shared.store.readers, id).await.map_err(|error| {
        tracing::error!(%error, "cannot read computers");
        fail(failure::INTERNAL, "computers cannot be read")
    })?;
    let row = row.filter(|row| row.identity == line.identity).ok_or_else(not_enrolled)?;
    let noise = noise_key(line, hello.noise_cert.as_ref())?;
    Ok((row, Device::Agent { computer: id, noise }))
}

async fn known_relay(
    line: &Line,
    hello: &wire::Hello,
) -> Result<(relays::RelayRow, Device, Vec<Unconfirmed>), wire::Failure> {
    let id = RelayId::from_slice(&hello.device_id).map_err(|_| not_enrolled())?;
    // Before the row is read: the relay itself chooses how long all that follows takes.
    let setting = line.shared.broker.ask(move |driver, _| driver.broker.relay_setting(id)).await;
    let setting = setting.ok_or_else(|| fail(failure::BUSY, "the mediator is stopping"))?;
    let row = relays::by_id(&line.shared.store.readers, id).await.map_err(|error| {
        tracing::error!(%error, "cannot read relays");
        fail(failure::INTERNAL, "relays cannot be read")
    })?;
    let row = row.filter(|row| row.identity == line.identity && !row.disabled);
    let row = row.ok_or_else(not_enrolled)?;
    let told = hello.relay.clone().unwrap_or_default();
    // A relay's Noise key comes with its description or with the hello.
    let cert = told.noise_cert.clone().or_else(|| hello.noise_cert.clone());
    let noise = noise_key(line, cert.as_ref())?;
    let mut addresses = relay::addresses(&told.addresses)?;
    let drains = addresses.is_empty();
    if row.draining {
        // Without addresses it gets nothing new.
        addresses.clear();
    }
    let (addresses, unconfirmed) = relay::confirmed(line, noise, addresses).await;
    let region = if told.region.is_empty() { row.region.clone() } else { fact(&told.region) };
    let info = wire::RelayInfo {
        relay_id: id.to_bytes(),
        identity: line.identity.to_bytes(),
        noise_cert: cert,
        addresses,
        region,
    };
    let device = Device::Relay { id, identity: line.identity, info, drains, setting };
    Ok((row, device, unconfirmed))
}

/// The Noise key that the connection's own identity certified.
fn noise_key(line: &Line, cert: Option<&wire::Signed>) -> Result<[u8; 32], wire::Failure> {
    cert.and_then(|cert| NoiseCert::open(line.identity, cert).ok()).ok_or_else(|| {
        fail(failure::BAD_REQUEST, "the Noise key is not certified by this device's identity")
    })
}

/// An encoded certificate for the store.
pub(super) fn encoded(cert: &wire::Signed) -> Vec<u8> {
    cert.encode_to_vec()
}

/// Text that a device tells of itself: bounded, without anything that acts.
pub(super) fn fact(text: &str) -> String {
    adit_runtime::cli::escape_text(&text.chars().take(MAX_FACT).collect::<String>())
}
