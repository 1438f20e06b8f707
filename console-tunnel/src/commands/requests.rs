//! `requests make|list|approve|deny`: access that somebody else has to approve first.

use std::time::Duration;

use adit_protocol::{
    ids::ComputerId,
    wire::{self, frame::Body},
};
use adit_runtime::{
    cli::{CliError, escape_text},
    time::format_ms,
};
use serde_json::{Value, json};

use super::{note, table};
use crate::{
    cli::RequestsCommand,
    config::Context,
    events::duration_text,
    failure,
    link::{Caller, Online, matching, only_one},
    state::Selector,
};

/// `requests …`.
pub async fn run(context: &Context, command: RequestsCommand) -> Result<(), CliError> {
    let caller = Caller::load(context)?;
    let done = async {
        let online = caller.connect(Vec::new()).await?;
        match command {
            RequestsCommand::Make { computer, redirector, reason, ticket, length } => {
                let found = matching(&online.peer, &Selector::from(computer.as_str())).await?;
                let wish = wire::RequestAccess {
                    computer_id: only_one(&found, &computer)?.id.to_bytes(),
                    redirector,
                    reason,
                    ticket,
                    length_ms: millis(length),
                };
                one(context, &online, Body::RequestAccess(wish)).await
            }
            RequestsCommand::List { pending } => list(context, &online, pending).await,
            RequestsCommand::Approve { id, length, note } => {
                let length_ms = millis(length);
                let wish = wire::DecideRequest { request_id: id, approve: true, length_ms, note };
                one(context, &online, Body::DecideRequest(wish)).await
            }
            RequestsCommand::Deny { id, note } => {
                let wish =
                    wire::DecideRequest { request_id: id, approve: false, length_ms: 0, note };
                one(context, &online, Body::DecideRequest(wish)).await
            }
        }
    };
    done.await.map_err(|error| caller.explain(error))
}

/// 0: the mediator's default.
fn millis(length: Option<Duration>) -> u64 {
    length.map_or(0, |length| u64::try_from(length.as_millis()).unwrap_or(u64::MAX))
}

/// What is answered with the request as it is then.
async fn one(context: &Context, online: &Online, wish: Body) -> Result<(), CliError> {
    let answer = online.ask(wish).await?;
    let Body::AccessRequest(request) = answer else { return Err(failure::unexpected()) };
    let output = context.global.output();
    output.emit(&object(&request)?)?;
    output.human(line(&request))?;
    if request.state == "pending" {
        note(&format!(
            "somebody else decides it: console-tunnel requests approve {}",
            request.request_id
        ));
    }
    Ok(())
}

async fn list(context: &Context, online: &Online, pending: bool) -> Result<(), CliError> {
    let answer = online.ask(Body::ListRequests(wire::ListRequests { pending })).await?;
    let Body::AccessRequests(list) = answer else { return Err(failure::unexpected()) };
    let output = context.global.output();
    if !output.json && list.requests.is_empty() {
        note(if pending { "no request waits" } else { "there are no requests" });
        return Ok(());
    }
    let mut rows = table(&["REQUEST", "STATE", "USER", "COMPUTER", "REDIRECTOR", "FOR", "REASON"]);
    for request in &list.requests {
        output.emit(&object(request)?)?;
        rows.add_row([
            escape_text(&request.request_id),
            state_text(request),
            escape_text(&request.user),
            escape_text(&format!("{}/{}", request.client, request.computer)),
            escape_text(&request.redirector),
            length_text(request),
            escape_text(&reason_text(request)),
        ]);
    }
    output.human(rows)
}

fn object(request: &wire::AccessRequest) -> Result<Value, CliError> {
    let id = ComputerId::from_slice(&request.computer_id).map_err(|_| failure::unexpected())?;
    let given = |ms: u64| (ms != 0).then(|| format_ms(ms));
    let by = (!request.decided_by.is_empty()).then_some(&request.decided_by);
    Ok(json!({
        "request_id": request.request_id,
        "state": request.state,
        "user": request.user,
        "computer_id": id.to_string(),
        "computer": request.computer,
        "client": request.client,
        "redirector": request.redirector,
        "reason": request.reason,
        "ticket": request.ticket,
        "asked": format_ms(request.asked_ms),
        "length_ms": request.length_ms,
        "decided_by": by,
        "until": given(request.until_ms),
    }))
}

fn length_text(request: &wire::AccessRequest) -> String {
    duration_text(Duration::from_millis(request.length_ms))
}

fn reason_text(request: &wire::AccessRequest) -> String {
    match request.ticket.as_str() {
        "" => request.reason.clone(),
        ticket => format!("{} ({ticket})", request.reason),
    }
}

/// `approved by ann until …`.
fn state_text(request: &wire::AccessRequest) -> String {
    let by = match request.decided_by.as_str() {
        "" => String::new(),
        by => format!(" by {by}"),
    };
    let until = match request.until_ms {
        0 => String::new(),
        until => format!(" until {}", format_ms(until)),
    };
    escape_text(&format!("{}{by}{until}", request.state))
}

fn line(request: &wire::AccessRequest) -> String {
    format!(
        "request {} of {} for {} on {}/{} for {}: {}",
        escape_text(&request.request_id),
        escape_text(&request.user),
        escape_text(&request.redirector),
        escape_text(&request.client),
        escape_text(&request.computer),
        length_text(request),
        state_text(request)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_without_letting_names_forge_lines() {
        let request = wire::AccessRequest {
            request_id: "r1".into(),
            user: "ann\u{1b}[2J".into(),
            computer_id: vec![1; 16].into(),
            computer: "pc".into(),
            client: "p/c".into(),
            redirector: "rdp".into(),
            reason: "disk".into(),
            ticket: "T-1".into(),
            asked_ms: 0,
            length_ms: 7_200_000,
            state: "approved".into(),
            decided_by: "bob".into(),
            until_ms: 1,
        };
        let text = line(&request);
        assert!(!text.contains('\u{1b}') && text.contains("2 h"), "{text}");
        assert!(text.ends_with("approved by bob until 1970-01-01T00:00:00.001Z"), "{text}");
        assert_eq!(reason_text(&request), "disk (T-1)");
        let told = object(&request).unwrap();
        assert_eq!(told["until"], "1970-01-01T00:00:00.001Z");
        let pending = wire::AccessRequest { until_ms: 0, decided_by: String::new(), ..request };
        assert!(object(&pending).unwrap()["until"].is_null());
        assert!(object(&wire::AccessRequest::default()).is_err());
    }
}
