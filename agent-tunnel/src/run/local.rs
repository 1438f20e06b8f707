//! Answers of the running agent to local commands. Never changes a file: commands do that
//! themselves, and only tell the agent to look.

use std::sync::Arc;

use adit_runtime::cli::CliError;
use serde_json::{Value, json};
use tracing::info;

use super::{Agent, status};
use crate::{gate::Boxed, sessions::Sessions};

/// The handler of the local socket.
pub(crate) fn handler(
    agent: &Arc<Agent>,
    sessions: &Arc<Sessions>,
) -> impl Fn(Value) -> Boxed<Result<Vec<Value>, CliError>> + Send + Sync + use<> {
    let (agent, sessions) = (agent.clone(), sessions.clone());
    move |request| {
        let (agent, sessions) = (agent.clone(), sessions.clone());
        Box::pin(async move { answer(&agent, &sessions, &request).await.map(|value| vec![value]) })
    }
}

async fn answer(agent: &Agent, sessions: &Sessions, request: &Value) -> Result<Value, CliError> {
    match request.get("command").and_then(Value::as_str) {
        Some("status") => Ok(status::running(agent, sessions).await),
        Some("consent") => Ok(json!({"questions": agent.rules.consent().list()})),
        Some("consent_answer") => {
            let id = request.get("id").and_then(Value::as_u64).unwrap_or_default();
            let allowed = request.get("allow").and_then(Value::as_bool).unwrap_or_default();
            if agent.rules.consent().answer(id, allowed) {
                return Ok(json!({"id": id, "allowed": allowed}));
            }
            let message = format!("no question {id} waits for an answer");
            Err(CliError::not_there("no_such_question", message)
                .hint("agent-tunnel consent lists those that wait; each has a minute"))
        }
        // The file says what holds; here it only takes effect at once.
        Some("lock" | "unlock") => {
            let locked = agent.rules.kill_switch().is_locked();
            info!(locked, "the endpoint owner turned the kill switch");
            agent.events.emit(&json!({"event": if locked { "locked" } else { "unlocked" }}));
            let ended = sessions.enforce();
            agent.changed.notify_one();
            Ok(json!({"locked": locked, "ended_sessions": ended}))
        }
        _ => Err(CliError::usage("local_bad_request", "the running agent does not know this")
            .hint("it may be of another version: restart it")),
    }
}
