//! `relay status`, `relay drain` and `relay resume`: both sides of the local socket.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use adit_runtime::{
    cli::{CliError, GlobalArgs, escape_text},
    config::parse_duration,
    datadir::DataDir,
    local::{LocalClient, LocalError, socket_path},
};
use clap::Args;
use serde_json::{Value, json};

use crate::{config::PROGRAM, control::Control, hub::Hub};

/// Longest drain.
const MAX_DEADLINE: Duration = Duration::from_secs(7 * 86_400);
/// What the local call may take beyond the drain itself.
const CALL_SLACK: Duration = Duration::from_secs(10);

/// Options of `relay drain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  relay drain\n  relay drain --deadline 1h && systemctl stop relay"
)]
pub struct DrainArgs {
    /// How long to wait for pairs to end
    #[arg(long, default_value = "10m", value_parser = parse_duration)]
    deadline: Duration,
}

pub(super) async fn drain(global: &GlobalArgs, args: &DrainArgs) -> Result<(), CliError> {
    let deadline = args.deadline.min(MAX_DEADLINE);
    let ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    let path = socket(global)?;
    let request = json!({"command": "drain", "deadline_ms": ms});
    let replies = LocalClient::call_within(&path, request, deadline + CALL_SLACK).await?;
    let reply = replies.into_iter().next().unwrap_or_default();
    let left = reply.get("pairs_left").and_then(Value::as_u64).unwrap_or_default();
    global.output().emit(&reply)?;
    if left == 0 {
        return global.output().human("drained: no pair is left, no join is taken");
    }
    Err(CliError::failed(
        "drain_incomplete",
        format!("{left} {} left", if left == 1 { "pair is" } else { "pairs are" }),
    )
    .hint("wait longer with --deadline, or stop the relay: its sessions move elsewhere"))
}

pub(super) async fn resume(global: &GlobalArgs) -> Result<(), CliError> {
    let path = socket(global)?;
    let replies = LocalClient::call(&path, json!({"command": "resume"})).await?;
    let reply = replies.into_iter().next().unwrap_or_default();
    global.output().emit(&reply)?;
    global.output().human(match reply.get("drained_by").and_then(Value::as_array) {
        Some(by) if !by.is_empty() => {
            "no longer drained here, but an operator drains it at the mediator: \
             console-tunnel admin relay resume, or mediator relay resume there"
        }
        _ => "taking new joins again",
    })
}

pub(super) async fn status(global: &GlobalArgs) -> Result<(), CliError> {
    let path = socket(global)?;
    let replies = match LocalClient::call(&path, json!({"command": "status"})).await {
        Err(error @ LocalError::NotRunning(_)) => {
            global.output().emit(&json!({"state": "stopped"}))?;
            global.output().human("state                 stopped")?;
            return Err(CliError::from(error).hint("start it with relay serve"));
        }
        replies => replies?,
    };
    let reply = replies.into_iter().next().unwrap_or_default();
    global.output().emit(&reply)?;
    let text = |key: &str| match reply.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) if items.is_empty() => "-".to_owned(),
        Some(Value::Array(items)) => {
            items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
        }
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    };
    let lines: Vec<String> = [
        ("state", "state"),
        ("drained by", "drained_by"),
        ("relay", "relay_id"),
        ("mediator", "mediator"),
        ("listening on", "listen"),
        ("advertised as", "advertised"),
        ("told to nobody", "unconfirmed"),
        ("pairs", "pairs"),
        ("waiting joins", "waiting"),
        ("unjoined connections", "unjoined"),
    ]
    .iter()
    .map(|(label, key)| format!("{label:22}{}", escape_text(&text(key))))
    .collect();
    global.output().human(lines.join("\n"))
}

/// Of the relay of the data directory, which must be there.
fn socket(global: &GlobalArgs) -> Result<PathBuf, CliError> {
    let dir = DataDir::open_existing(global.data_dir(&PROGRAM)?)?;
    Ok(socket_path(dir.path(), PROGRAM.name))
}

/// The answering side.
pub(super) struct Responder {
    pub(super) hub: Arc<Hub>,
    pub(super) control: Arc<Control>,
    pub(super) relay_id: String,
    pub(super) listen: Vec<String>,
    pub(super) started: Instant,
}

impl Responder {
    pub(super) async fn answer(self: Arc<Self>, request: Value) -> Result<Vec<Value>, CliError> {
        match request.get("command").and_then(Value::as_str) {
            Some("status") => Ok(vec![self.status()]),
            Some("drain") => {
                let ms = request.get("deadline_ms").and_then(Value::as_u64).unwrap_or_default();
                self.drain(Duration::from_millis(ms).min(MAX_DEADLINE)).await
            }
            Some("resume") => Ok(vec![self.resume()]),
            _ => Err(CliError::usage("local_bad_request", "no such command")),
        }
    }

    fn status(&self) -> Value {
        let counts = self.hub.counts();
        let control = self.control.status().borrow().clone();
        let drained_by = self.drained_by();
        let state = match (drained_by.is_empty(), control.registered) {
            (false, _) => "draining",
            (true, true) => "serving",
            (true, false) => "connecting",
        };
        json!({
            "state": state,
            "drained_by": drained_by,
            "registered": control.registered,
            "relay_id": self.relay_id,
            "mediator": control.mediator,
            "listen": self.listen,
            "advertised": control.advertised,
            "unconfirmed": control.unconfirmed,
            "pairs": counts.pairs,
            "waiting": counts.waiting,
            "unjoined": counts.unjoined,
            "uptime_ms": u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Who wants it to take nothing new.
    fn drained_by(&self) -> Vec<&'static str> {
        let here = self.hub.is_draining().then_some("relay");
        let there = self.control.status().borrow().drained.then_some("mediator");
        here.into_iter().chain(there).collect()
    }

    fn resume(&self) -> Value {
        if self.hub.is_draining() {
            self.hub.handle_resume();
            self.control.register_again();
        }
        let drained_by = self.drained_by();
        json!({"draining": !drained_by.is_empty(), "drained_by": drained_by})
    }

    async fn drain(&self, deadline: Duration) -> Result<Vec<Value>, CliError> {
        if !self.hub.is_draining() {
            self.hub.handle_drain();
            self.control.register_again();
        }
        let _ = tokio::time::timeout(deadline, self.hub.emptied()).await;
        let left = self.hub.counts().pairs;
        Ok(vec![json!({"drained": left == 0, "pairs_left": left})])
    }
}
