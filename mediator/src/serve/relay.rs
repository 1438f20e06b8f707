//! What relays say.

use adit_control::failure as fail;
use adit_protocol::{
    code::failure,
    target::{Target, Transport},
    wire::{self, frame::Body},
};

use super::connection::Line;
use crate::{core::types::Device, store::relays};

/// Addresses of one relay.
const MAX_ADDRESSES: usize = 8;
/// Sessions in one report.
const MAX_REPORTED: usize = 4096;

/// Serves a known relay.
pub(super) async fn serve(mut line: Line, relay: relays::RelayRow, device: Device) {
    let (id, peer, source) = (line.id, line.peer.clone(), line.source.ip());
    let broker = line.shared.broker.clone();
    let relay_id = relay.id;
    tracing::info!(relay = %relay.name, region = %relay.region, "relay registered");
    broker.act(move |driver, now| driver.connected(id, device, (peer, source), now)).await;
    let seen = line
        .shared
        .writer
        .write(move |tx| Box::pin(async move { relays::seen(tx, relay_id).await }));
    if let Err(error) = seen.await {
        tracing::warn!(%error, "last contact not written");
    }
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
    broker.act(move |driver, now| driver.disconnected(id, None, now)).await;
    tracing::info!(relay = %relay.name, "relay gone");
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
