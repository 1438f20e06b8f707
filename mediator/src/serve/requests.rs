//! Consoles that ask for access, see requests and decide them.

use adit_control::{Responder, failure as fail};
use adit_protocol::{
    code::failure,
    ids::ComputerId,
    wire::{self, frame::Body},
};
use adit_runtime::time::unix_ms;

use super::{connection::Line, console, mfa};
use crate::{
    core::types::Refusal,
    requests::{self, Actor, By, Judgement, RequestError, Wish},
    roles::Permission,
    store::{
        StoreError,
        access::{
            filter,
            requests::{self as rows, Request},
        },
        accounts::LoginRow,
        computers,
    },
};

/// Answers a message about requests.
pub(super) async fn handle(line: &Line, row: &LoginRow, body: Body, responder: Responder) {
    let done = match body {
        Body::RequestAccess(wish) => ask(line, row, wish).await.map(Body::AccessRequest),
        Body::DecideRequest(wish) => decide(line, row, wish).await.map(Body::AccessRequest),
        Body::ListRequests(wish) => {
            list(line, row, &wish).await.map(Body::AccessRequests).map_err(RequestError::Store)
        }
        _ => Err(Refusal::new(failure::BAD_REQUEST, "this message does not belong here").into()),
    };
    match done {
        Ok(body) => responder.reply(body),
        Err(RequestError::Refused(refusal, hint)) => {
            let failure = fail(refusal.code, refusal.message);
            responder.fail(wire::Failure { hint: hint.to_owned(), ..failure });
        }
        Err(RequestError::Store(error @ StoreError::Unavailable(_))) => {
            tracing::error!(%error, "request not recorded");
            responder.fail(fail(failure::AUDIT_UNAVAILABLE, "it could not be recorded"));
        }
        Err(RequestError::Store(error)) => {
            tracing::error!(%error, "requests cannot be read");
            responder.fail(fail(failure::INTERNAL, "requests cannot be read"));
        }
    }
}

pub(super) fn actor(line: &Line, row: &LoginRow) -> Actor {
    Actor {
        name: row.account.name.clone(),
        device: Some(line.identity.fingerprint().to_string()),
        source: Some(line.source.to_string()),
    }
}

async fn ask(
    line: &Line,
    row: &LoginRow,
    wish: wire::RequestAccess,
) -> Result<wire::AccessRequest, RequestError> {
    let no_computer = || Refusal::new(failure::NO_SUCH_COMPUTER, "there is no such computer");
    if !requests::is_redirector(&wish.redirector) {
        let text = "there is no such redirector";
        return Err(Refusal::new(failure::NO_SUCH_REDIRECTOR, text).into());
    }
    let shared = &line.shared;
    let pool = &shared.store.readers;
    let id = ComputerId::from_slice(&wish.computer_id).map_err(|_| no_computer())?;
    let computer =
        computers::of_partner(pool, &row.account.partner_id, id).await?.ok_or_else(no_computer)?;
    let holder = console::holder(line, row).await?;
    let asked = Wish {
        redirector: wish.redirector,
        reason: wish.reason,
        ticket: wish.ticket,
        length_ms: wish.length_ms,
    };
    let facts = mfa::facts(line, row);
    let who = (&holder, &actor(line, row));
    let made = requests::make(pool, &shared.writer, who, &computer, asked, facts).await?;
    Ok(told(made))
}

async fn decide(
    line: &Line,
    row: &LoginRow,
    wish: wire::DecideRequest,
) -> Result<wire::AccessRequest, RequestError> {
    let shared = &line.shared;
    let holder = console::holder(line, row).await?;
    let judgement = Judgement {
        approve: wish.approve,
        length_ms: wish.length_ms,
        note: wish.note,
        by: By::Device(line.identity),
    };
    let facts = mfa::facts(line, row);
    let done = requests::decide(
        &shared.store.readers,
        &shared.writer,
        (Some(&holder), &actor(line, row)),
        &wish.request_id,
        judgement,
        facts,
    )
    .await?;
    if !wish.approve {
        // An approval that is taken back ends what rests on it.
        shared.rules.changed(&shared.broker).await;
    }
    Ok(told(done))
}

async fn list(
    line: &Line,
    row: &LoginRow,
    wish: &wire::ListRequests,
) -> Result<wire::AccessRequests, StoreError> {
    let holder = console::holder(line, row).await?;
    let facts = mfa::facts(line, row);
    let mut clause = holder.filter(Permission::ApproveRequests, facts, &filter::COMPUTER);
    let own = clause.bind(row.account.id.as_str());
    clause.text = format!("((r.account_id = {own} AND r.partner_id = $1) OR {})", clause.text);
    let rows = rows::list(&line.shared.store.readers, wish.pending, &clause).await?;
    Ok(wire::AccessRequests { requests: rows.into_iter().map(told).collect() })
}

fn told(request: Request) -> wire::AccessRequest {
    let state = request.state(unix_ms()).to_owned();
    let computer_id = request.computer_id.parse().map(ComputerId::to_bytes).unwrap_or_default();
    let (decided_by, until_ms) = match request.decision {
        Some(decision) => (decision.by, if decision.approved { decision.until_ms } else { 0 }),
        None => Default::default(),
    };
    wire::AccessRequest {
        request_id: request.id,
        user: request.user,
        computer_id,
        computer: request.computer,
        client: request.client,
        redirector: request.redirector,
        reason: request.reason,
        ticket: request.ticket,
        asked_ms: request.asked_ms,
        length_ms: request.length_ms,
        state,
        decided_by,
        until_ms,
    }
}
