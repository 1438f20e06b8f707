//! `sessions`, `sessions end`.

use adit_protocol::{
    ids::SessionId,
    wire::{self, frame::Body},
};
use adit_runtime::{
    cli::{CliError, escape_text},
    time::format_ms,
};
use serde_json::json;

use super::{note, table};
use crate::{config::Context, failure, link::Caller};

/// Reason of a session's end if none is given.
const DEFAULT_REASON: &str = "ended by an administrator";

/// `sessions`.
pub async fn list(context: &Context) -> Result<(), CliError> {
    let caller = Caller::load(context)?;
    let mut online = caller.connect(vec![Body::ListSessions(wire::ListSessions {})]).await?;
    let answer = online.first_reply().map_err(|error| caller.explain(error))?;
    let Body::Sessions(list) = answer else { return Err(failure::unexpected()) };
    let output = context.global.output();
    if !output.json && list.sessions.is_empty() {
        note("no session is live");
        return Ok(());
    }
    let mut rows = table(&["SESSION", "USER", "COMPUTER", "REDIRECTOR", "SINCE", "CARRIER"]);
    for session in &list.sessions {
        let id = SessionId::from_slice(&session.session_id).map_err(|_| failure::unexpected())?;
        output.emit(&json!({
            "session_id": id.to_string(),
            "user": session.user,
            "computer": session.computer,
            "client": session.client,
            "redirector": session.redirector,
            "started": format_ms(session.started_ms),
            "carrier": session.carrier,
        }))?;
        rows.add_row([
            id.to_string(),
            escape_text(&session.user),
            escape_text(&format!("{}/{}", session.client, session.computer)),
            escape_text(&session.redirector),
            format_ms(session.started_ms),
            escape_text(&session.carrier),
        ]);
    }
    output.human(rows)
}

/// `sessions end ID`.
pub async fn end(context: &Context, id: SessionId, reason: &str) -> Result<(), CliError> {
    let caller = Caller::load(context)?;
    let reason = if reason.is_empty() { DEFAULT_REASON } else { reason };
    let request = wire::EndSession { session_id: id.to_bytes(), reason: reason.to_owned() };
    let mut online = caller.connect(vec![Body::EndSession(request)]).await?;
    let answer = online.first_reply().map_err(|error| caller.explain(error))?;
    let Body::Done(_) = answer else { return Err(failure::unexpected()) };
    let output = context.global.output();
    output.emit(&json!({"session_id": id.to_string(), "ended": true}))?;
    output.human(format_args!("session {id} is ended"))
}
