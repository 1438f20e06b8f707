//! What agents say.

use std::sync::Arc;

use adit_control::failure as fail;
use adit_ledger::Event;
use adit_protocol::{
    code::failure,
    ids::{ComputerId, RelayId, SessionId},
    limits::MAX_NOISE_MESSAGE,
    target::Target,
    wire::{self, frame::Body},
};
use adit_runtime::time::unix_ms;
use futures_util::future::BoxFuture;
use serde_json::json;

use super::{
    clocks,
    connection::{Line, encoded, fact, not_enrolled},
    open,
    run::Shared,
    twins,
};
use crate::{
    authz::Holder,
    core::{
        report::code_text,
        review::Live,
        types::{Device, EndAs},
    },
    proof::{self, seen_head},
    store::{Room, StoreError, WriteTx, access::When, accounts, computers},
};

/// Sessions in one check-in.
const MAX_LISTED: usize = 4096;
/// Addresses in one check-in.
const MAX_ADDRESSES: usize = 32;
/// Relays that do not answer, in one request.
const MAX_NOT_RELAYS: usize = 16;

/// Serves a known agent.
pub(super) async fn serve(
    mut line: Line,
    computer: computers::ComputerRow,
    device: Device,
    hello: &wire::Hello,
) {
    let (id, peer, source) = (line.id, line.peer.clone(), line.source.ip());
    let broker = line.shared.broker.clone();
    tracing::info!(computer = %computer.name, client = %computer.client_path(),
        version = %fact(&hello.version), "agent online");
    let cert = hello.noise_cert.as_ref().map(encoded).filter(|c| *c != computer.noise_cert);
    let computer_id = computer.id;
    // Wins over an older connection of the same agent.
    let head = seen_head(hello.seen.first().cloned());
    let older = broker.ask(move |driver, now| {
        let older = driver.connected(id, device, (peer, source), now);
        driver.note_head(id, head);
        older
    });
    let (older, shared, from) = (older.await.flatten(), line.shared.clone(), line.source);
    // Nobody waits for what the older one answers.
    let replaced = async {
        if let Some(older) = older {
            twins::replace(&shared, (&computer, from), older).await;
        }
    };
    let served = async {
        if !seen(&line.shared, computer_id, cert).await {
            // Removed while it connected.
            line.peer.close();
        }
        compare_clock(&line, &computer, line.clock).await;
        while let Some(request) = line.next().await {
            handle(&line, &computer, request).await;
        }
        broker.act(move |driver, now| driver.disconnected(id, Some(computer_id), now)).await;
        seen(&line.shared, computer_id, None).await;
        tracing::info!(computer = %computer.name, "agent offline");
    };
    tokio::join!(replaced, served);
}

async fn compare_clock(line: &Line, computer: &computers::ComputerRow, shown: (u64, u64)) {
    let about = |event: Event| {
        event
            .partner(&computer.partner)
            .client(computer.client_path())
            .computer_id(computer.id.to_string())
            .computer(&computer.name)
    };
    clocks::compare(line, shown, &computer.partner_id, about).await;
}

/// Whether it is still enrolled, as far as that can be known.
async fn seen(shared: &Shared, id: ComputerId, cert: Option<Vec<u8>>) -> bool {
    let written =
        routine(shared, move |tx| Box::pin(async move { computers::seen(tx, id, cert).await }))
            .await;
    written.unwrap_or_else(|error| {
        tracing::warn!(%error, "last contact not written");
        true
    })
}

async fn handle(line: &Line, computer: &computers::ComputerRow, request: adit_control::Request) {
    let (body, responder) = request.into_parts();
    let (id, broker) = (line.id, &line.shared.broker);
    match body {
        Body::CheckIn(check_in) => {
            if check_in.sessions.len() > MAX_LISTED {
                return responder.fail(fail(failure::BAD_REQUEST, "too many sessions are listed"));
            }
            let clock = (check_in.now_ms, unix_ms());
            if !store_status(&line.shared, computer, &check_in).await {
                responder.fail(not_enrolled());
                return line.peer.close();
            }
            compare_clock(line, computer, clock).await;
            let live = check_in.sessions;
            broker
                .act(move |driver, now| {
                    let request = driver.request(responder);
                    driver.broker.handle_check_in(request, id, &live, now);
                })
                .await;
        }
        Body::TargetRequest(asked) => {
            let session = SessionId::from_slice(&asked.session_id);
            let target = asked.target.as_ref().map(Target::from_wire);
            let (Ok(session), Some(Ok(target))) = (session, target) else {
                return responder.fail(fail(failure::BAD_REQUEST, "session or target is no such"));
            };
            let Some((room, responder)) = room(&line.shared, 1, responder).await else { return };
            broker
                .act(move |driver, _| {
                    let request = driver.routine(responder, room);
                    driver.broker.handle_target(request, id, session, &target);
                })
                .await;
        }
        Body::HeadRequest(asked) => prove(line, &computer.partner_id, asked, responder).await,
        Body::Receipts(told) => {
            let names = (computer.partner_id.clone(), computer.partner.clone());
            receipts(line, names, told, responder).await;
        }
        Body::ReceiptRequest(asked) => {
            counterparts(line, &computer.partner_id, asked, responder).await;
        }
        // An agent that does not know yet whose log it is to believe asks about itself.
        Body::EnrolmentRequest(asked) if asked.computer_id == computer.id.to_bytes() => {
            let whose = (computer.partner_id.as_str(), computer.id);
            open::prove_enrolment(line, whose, asked.seen, responder).await;
        }
        body => of_session(line, body, responder).await,
    }
}

/// Takes the device's receipts in; acknowledged when they are durable.
pub(super) async fn receipts(
    line: &Line,
    (partner_id, partner): (String, String),
    told: wire::Receipts,
    responder: adit_control::Responder,
) {
    if told.lines.len() > proof::receipts::MAX_RECEIPTS {
        return responder.fail(fail(failure::BAD_REQUEST, "too many receipts"));
    }
    let Some((_room, responder)) = room(&line.shared, told.lines.len(), responder).await else {
        return;
    };
    let strange = Arc::clone(&line.shared.strange_receipts);
    let room = Arc::clone(&line.shared.receipt_room);
    let identity = line.identity;
    let sender = proof::receipts::Sender { partner_id, partner, identity, strange, room };
    let taken = line.shared.writer.write(move |tx| {
        Box::pin(async move { proof::receipts::take(tx, sender, told.lines).await })
    });
    match taken.await {
        Ok(noted) => {
            noted.written();
            responder.reply(Body::Done(wire::Done {}));
        }
        Err(error) => {
            tracing::error!(%error, "receipts not written");
            let text = "the mediator cannot record it at the moment";
            responder.fail(fail(failure::AUDIT_UNAVAILABLE, text));
        }
    }
}

/// Gives an end what the other end of its sessions has signed.
pub(super) async fn counterparts(
    line: &Line,
    partner: &str,
    asked: wire::ReceiptRequest,
    responder: adit_control::Responder,
) {
    if asked.wanted.len() > proof::receipts::MAX_RECEIPTS {
        return responder.fail(fail(failure::BAD_REQUEST, "too many receipts"));
    }
    let (pool, whose) = (&line.shared.store.readers, (partner, line.identity));
    match proof::receipts::counterparts(pool, whose, &asked.wanted).await {
        Ok(lines) => responder.reply(Body::Receipts(wire::Receipts { lines })),
        Err(error) => {
            tracing::error!(%error, "receipts cannot be read");
            responder.fail(fail(failure::INTERNAL, "receipts cannot be read"));
        }
    }
}

/// Ties two heads of the device's own partner's log together.
pub(super) async fn prove(
    line: &Line,
    partner: &str,
    asked: wire::HeadRequest,
    responder: adit_control::Responder,
) {
    let forest = line.shared.writer.forest();
    let (Some(old), Some(new)) = (seen_head(asked.old), seen_head(asked.new)) else {
        return responder.fail(fail(failure::BAD_REQUEST, "two heads are expected"));
    };
    match forest.links(partner, &old, &new).await {
        Ok(links) => {
            let links = links.iter().map(adit_ledger::Link::to_wire).collect();
            responder.reply(Body::HeadProof(wire::HeadProof { links }));
        }
        Err(error) => {
            tracing::warn!(%error, "heads that a device holds cannot be tied together");
            let text = "the two heads are not of one history that is kept here";
            responder.fail(fail(failure::AUDIT_UNPROVEN, text));
        }
    }
}

/// Room in the writer's queue for everyday records. While there is none the device waits; in the
/// end it is told that nothing was recorded.
pub(super) async fn room(
    shared: &Shared,
    records: usize,
    responder: adit_control::Responder,
) -> Option<(Room, adit_control::Responder)> {
    match shared.writer.room(records).await {
        Ok(room) => Some((room, responder)),
        Err(error) => {
            tracing::warn!(%error, "a report was put off");
            let text = "the mediator cannot record it at the moment";
            responder.fail(fail(failure::AUDIT_UNAVAILABLE, text));
            None
        }
    }
}

/// What both ends of a session say.
pub(super) async fn of_session(line: &Line, body: Body, responder: adit_control::Responder) {
    let (id, broker) = (line.id, line.shared.broker.clone());
    let no_session = || fail(failure::NO_SUCH_SESSION, "there is no such session");
    match body {
        Body::Renew(asked) => match SessionId::from_slice(&asked.session_id) {
            Ok(session) => renew(line, session, responder).await,
            Err(_) => responder.fail(no_session()),
        },
        Body::SessionReport(report) => match SessionId::from_slice(&report.session_id) {
            Ok(session) => {
                let records = report.events.len();
                let room = room(&line.shared, records, responder).await;
                let Some((room, responder)) = room else { return };
                broker
                    .act(move |driver, now| {
                        let request = driver.routine(responder, room);
                        driver.broker.handle_report(request, id, session, &report.events, now);
                    })
                    .await;
            }
            Err(_) => responder.fail(no_session()),
        },
        Body::Signal(signal) => {
            if signal.sealed.len() <= MAX_NOISE_MESSAGE {
                broker.act(move |driver, _| driver.broker.handle_signal(id, signal)).await;
            }
            responder.reply(Body::Done(wire::Done {}));
        }
        Body::TicketRequest(asked) => match SessionId::from_slice(&asked.session_id) {
            Ok(session) => {
                let not: Vec<RelayId> = asked
                    .not_relays
                    .iter()
                    .take(MAX_NOT_RELAYS)
                    .filter_map(|relay| RelayId::from_slice(relay).ok())
                    .collect();
                broker
                    .act(move |driver, now| {
                        let request = driver.request(responder);
                        driver.broker.handle_tickets(request, id, session, &not, now);
                    })
                    .await;
            }
            Err(_) => responder.fail(no_session()),
        },
        Body::EndSession(asked) => match SessionId::from_slice(&asked.session_id) {
            Ok(session) => {
                let reason = code_text(&asked.reason);
                broker
                    .act(move |driver, now| {
                        let request = driver.request(responder);
                        driver.broker.handle_end(request, session, &reason, &EndAs::End(id), now);
                    })
                    .await;
            }
            Err(_) => responder.fail(no_session()),
        },
        Body::Ping(_) => responder.reply(Body::Done(wire::Done {})),
        _ => responder.fail(fail(failure::BAD_REQUEST, "this message does not belong here")),
    }
}

/// Decides anew whether the technician may go on, then renews.
async fn renew(line: &Line, session: SessionId, responder: adit_control::Responder) {
    let broker = &line.shared.broker;
    let id = line.id;
    let live = broker.ask(move |driver, now| driver.broker.live(session, now)).await.flatten();
    let allowed = match live {
        None => Ok(false),
        Some(live) => may_go_on(&line.shared, &live).await,
    };
    let Ok(allowed) = allowed else {
        // Not a decision: the lease runs on, and the end asks again.
        return responder.fail(fail(failure::INTERNAL, "the right to go on cannot be read"));
    };
    broker
        .act(move |driver, now| {
            let request = driver.request(responder);
            driver.broker.handle_renew(request, id, session, allowed, now);
        })
        .await;
}

async fn may_go_on(shared: &Shared, live: &Live) -> Result<bool, crate::store::StoreError> {
    let (pool, now) = (&shared.store.readers, unix_ms());
    let holder = Holder::load(pool, &live.who.partner_id, &live.who.account_id, When::Now).await?;
    let right = holder.goes_on(pool, live, now).await?;
    Ok(right.is_ok() && accounts::login_lives(pool, live.who.login, now).await?)
}

/// Writes what nobody waits for in the place of everyday records.
async fn routine<F>(shared: &Shared, job: F) -> Result<bool, StoreError>
where
    F: for<'a> FnOnce(&'a mut WriteTx) -> BoxFuture<'a, Result<bool, StoreError>> + Send + 'static,
{
    let _room = shared.writer.room(1).await?;
    shared.writer.write(job).await
}

/// Whether it is still enrolled, as far as that can be known.
async fn store_status(
    shared: &Shared,
    computer: &computers::ComputerRow,
    check_in: &wire::CheckIn,
) -> bool {
    let status = json!({
        "os_version": fact(&check_in.os_version),
        "arch": fact(&check_in.arch),
        "hostname": fact(&check_in.hostname),
        "addresses": check_in.addresses.iter().take(MAX_ADDRESSES).map(|a| fact(a)).collect::<Vec<_>>(),
        "nat_mapping": fact(&check_in.nat_mapping),
        "nat_filtering": fact(&check_in.nat_filtering),
        "load_permille": check_in.load_permille,
        "uptime_s": check_in.uptime_s,
        "sessions": check_in.sessions.len(),
    })
    .to_string();
    let (id, os, version) = (computer.id, fact(&check_in.os), fact(&check_in.version));
    let written = routine(shared, move |tx| {
        Box::pin(async move { computers::status(tx, id, &os, &version, &status).await })
    })
    .await;
    written.unwrap_or_else(|error| {
        tracing::warn!(%error, "status of a computer not written");
        true
    })
}
