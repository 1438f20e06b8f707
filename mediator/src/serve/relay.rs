//! What relays say.

use std::time::Duration;

use adit_control::failure as fail;
use adit_ledger::Event;
use adit_protocol::{
    code::failure,
    keys::NoiseCert,
    target::{Target, Transport},
    wire::{self, frame::Body},
};

use super::{
    clocks,
    confirm::{Claimant, Unconfirmed},
    connection::Line,
    run::Shared,
};
use crate::{core::types::Device, store::relays};

/// Addresses of one relay.
const MAX_ADDRESSES: usize = 8;
/// How often an address that did not answer is asked again.
const CONFIRM_AGAIN: Duration = Duration::from_secs(60);
/// Sessions in one report.
const MAX_REPORTED: usize = 4096;

/// Serves a known relay.
pub(super) async fn serve(
    mut line: Line,
    relay: relays::RelayRow,
    device: Device,
    unconfirmed: Vec<Unconfirmed>,
) {
    let (id, peer, source) = (line.id, line.peer.clone(), line.source.ip());
    let broker = line.shared.broker.clone();
    let relay_id = relay.id;
    let home = line.shared.home.clone();
    let about = |event: Event| event.extra("relay_id", relay_id.to_string());
    clocks::compare(&line, line.clock, &home, about).await;
    tracing::info!(relay = %relay.name, region = %relay.region, "relay registered");
    let (shared, claimant) = (line.shared.clone(), claimant(&line, &device));
    broker
        .act(move |driver, now| {
            driver.connected(id, device, (peer, source), now);
        })
        .await;
    let seen = line
        .shared
        .writer
        .write(move |tx| Box::pin(async move { relays::seen(tx, relay_id).await }));
    if let Err(error) = seen.await {
        tracing::warn!(%error, "last contact not written");
    }
    let listen = listen(&mut line);
    tokio::select! {
        () = listen => {}
        // It registers again then, and hears what holds.
        () = reached(&shared, claimant, unconfirmed) => {
            tracing::info!(relay = %relay.name, "an address answers by now");
        }
    }
    broker.act(move |driver, now| driver.disconnected(id, None, now)).await;
    tracing::info!(relay = %relay.name, "relay gone");
}

fn claimant(line: &Line, device: &Device) -> Option<Claimant> {
    let Device::Relay { identity, info, .. } = device else { return None };
    let cert = info.noise_cert.as_ref()?;
    let noise = NoiseCert::open(*identity, cert).ok()?;
    Some(Claimant { identity: *identity, noise, source: line.source })
}

/// Waits until one of the addresses that did not answer does.
async fn reached(shared: &Shared, claimant: Option<Claimant>, unconfirmed: Vec<Unconfirmed>) {
    let (Some(confirmer), Some(claimant)) = (&shared.confirmer, claimant) else {
        return std::future::pending().await;
    };
    if unconfirmed.is_empty() {
        return std::future::pending().await;
    }
    let addresses: Vec<_> = unconfirmed.into_iter().map(|one| one.address).collect();
    loop {
        tokio::time::sleep(CONFIRM_AGAIN).await;
        if !confirmer.sort(claimant, &addresses).await.0.is_empty() {
            return;
        }
    }
}

async fn listen(line: &mut Line) {
    let (id, broker) = (line.id, line.shared.broker.clone());
    while let Some(request) = line.next().await {
        let push = request.is_push();
        let (body, responder) = request.into_parts();
        match body {
            Body::RelayReport(report) if report.sessions.len() <= MAX_REPORTED => {
                broker
                    .act(move |driver, _| {
                        let request = (!push).then(|| driver.request(responder));
                        driver.broker.handle_relay_report(request, id, &report);
                    })
                    .await;
            }
            Body::Ping(_) => responder.reply(Body::Done(wire::Done {})),
            _ => responder.fail(fail(failure::BAD_REQUEST, "this message does not belong here")),
        }
    }
}

/// Those of a relay's addresses at which it answers, and the others.
pub(super) async fn confirmed(
    line: &Line,
    noise: [u8; 32],
    addresses: Vec<String>,
) -> (Vec<String>, Vec<Unconfirmed>) {
    let Some(confirmer) = &line.shared.confirmer else { return (addresses, Vec::new()) };
    let claimant = Claimant { identity: line.identity, noise, source: line.source };
    let (confirmed, others) = confirmer.sort(claimant, &addresses).await;
    for one in &others {
        tracing::warn!(source = %line.source, "address of a relay is told to nobody: {one}");
    }
    (confirmed, others)
}

/// Checks what a relay says of where it can be reached.
pub(super) fn addresses(told: &[String]) -> Result<Vec<String>, wire::Failure> {
    let bad = |text: &str| fail(failure::BAD_REQUEST, text);
    // None: it drains, and gets no new sessions.
    if told.len() > MAX_ADDRESSES {
        return Err(bad("a relay names at most 8 addresses"));
    }
    told.iter()
        .map(|address| {
            Target::parse(address, Transport::Tcp)
                .map(|target| target.to_string())
                .map_err(|_| bad("an address of the relay is not HOST:PORT"))
        })
        .collect()
}
