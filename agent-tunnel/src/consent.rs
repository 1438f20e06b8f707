//! Asking the person at the computer. A question is put when a channel is opened, by a console
//! that has proved who it is; never for an offer. Whoever does not answer in time has refused.
//!
//! Answers come through the local socket (`agent-tunnel consent`) or from the exit status of a
//! program that the endpoint owner configured. Nothing that the mediator or a console says
//! chooses the program, and their words reach it only as arguments, made harmless.

use std::{
    collections::BTreeMap,
    process::Stdio,
    sync::{Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use adit_protocol::{grant::Grant, ids::SessionId, target::Target};
use adit_runtime::{
    cli::{CliError, escape_text},
    config::Config,
};
use serde_json::{Value, json};
use tokio::{process::Command, sync::oneshot};
use tracing::{info, warn};

use crate::run::Events;

/// For an answer; then it is no.
pub const CONSENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Questions that wait at a time.
const MAX_PENDING: usize = 16;
/// Of those, questions of one session.
const MAX_PENDING_PER_SESSION: usize = 4;
/// Characters of a value in a question or argument.
const MAX_VALUE: usize = 128;
/// Arguments of the configured program.
const MAX_ARGUMENTS: usize = 32;
/// The key of the configured program.
const COMMAND_KEY: &str = "consent.command";

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The person agreed.
    Allowed,
    /// The person refused.
    Refused,
    /// Nobody answered.
    TimedOut,
    /// Too many questions wait already.
    Busy,
}

/// The questions of a running agent.
#[derive(Debug)]
pub struct Consent {
    waiting: Mutex<Waiting>,
    command: RwLock<Vec<String>>,
    events: Events,
}

#[derive(Debug, Default)]
struct Waiting {
    last_id: u64,
    /// INVARIANT: at most `MAX_PENDING`.
    questions: BTreeMap<u64, Question>,
}

#[derive(Debug)]
struct Question {
    session: SessionId,
    values: Values,
    asked: Instant,
    answer: Option<oneshot::Sender<bool>>,
}

/// What is shown of a question, harmless wherever it is shown.
type Values = [(&'static str, String); 6];

impl Consent {
    /// Without questions. `command` is empty if only the local socket answers.
    pub fn new(command: Vec<String>, events: Events) -> Self {
        Self { waiting: Mutex::default(), command: RwLock::new(command), events }
    }

    /// The owner configured another program.
    pub fn set_command(&self, command: Vec<String>) {
        *self.command.write().unwrap_or_else(PoisonError::into_inner) = command;
    }

    /// Asks whether a channel to `target` may be opened. A question that is dropped is withdrawn.
    pub async fn ask(&self, grant: &Grant, target: &Target) -> Verdict {
        let (answer, answered) = oneshot::channel();
        let Some((id, values)) = self.put(grant, target, answer) else {
            warn!(session_id = %grant.session, to = ?target, "too many questions wait for consent");
            return Verdict::Busy;
        };
        let _withdraw = Withdraw { consent: self, id };
        info!(id, session_id = %grant.session, user = %grant.user, to = ?target,
            "waiting for consent: agent-tunnel consent allow or deny");
        self.events.emit(&shown("consent", id, &values, CONSENT_TIMEOUT));
        let command = self.command.read().unwrap_or_else(PoisonError::into_inner).clone();
        let verdict = tokio::select! {
            biased;
            Ok(allowed) = answered => told(allowed),
            allowed = run(&command, &values) => told(allowed),
            () = tokio::time::sleep(CONSENT_TIMEOUT) => Verdict::TimedOut,
        };
        info!(id, session_id = %grant.session, ?verdict, "question of consent is over");
        verdict
    }

    /// Questions that wait, oldest first.
    pub fn list(&self) -> Vec<Value> {
        let waiting = self.waiting();
        let open = waiting.questions.iter().filter(|(_, question)| question.answer.is_some());
        open.map(|(id, question)| {
            let left = CONSENT_TIMEOUT.saturating_sub(question.asked.elapsed());
            shown("waiting", *id, &question.values, left)
        })
        .collect()
    }

    /// Answers a question; `false` if it does not wait.
    pub fn answer(&self, id: u64, allowed: bool) -> bool {
        let answer = self.waiting().questions.get_mut(&id).and_then(|q| q.answer.take());
        answer.is_some_and(|answer| answer.send(allowed).is_ok())
    }

    fn put(
        &self,
        grant: &Grant,
        target: &Target,
        answer: oneshot::Sender<bool>,
    ) -> Option<(u64, Values)> {
        let mut waiting = self.waiting();
        let of_session = waiting.questions.values().filter(|q| q.session == grant.session).count();
        if waiting.questions.len() >= MAX_PENDING || of_session >= MAX_PENDING_PER_SESSION {
            return None;
        }
        waiting.last_id += 1;
        let id = waiting.last_id;
        let values = [
            ("id", id.to_string()),
            ("user", harmless(&grant.user)),
            ("target", harmless(&target.to_string())),
            ("redirector", harmless(&grant.redirector)),
            ("console", grant.console.fingerprint().to_string()),
            ("reason", harmless(&grant.reason)),
        ];
        let question = Question {
            session: grant.session,
            values: values.clone(),
            asked: Instant::now(),
            answer: Some(answer),
        };
        waiting.questions.insert(id, question);
        Some((id, values))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a question back when its channel is given up or it is answered.
struct Withdraw<'a> {
    consent: &'a Consent,
    id: u64,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.consent.waiting().questions.remove(&self.id);
    }
}

fn told(allowed: bool) -> Verdict {
    if allowed { Verdict::Allowed } else { Verdict::Refused }
}

fn shown(event: &str, id: u64, values: &Values, left: Duration) -> Value {
    let mut object = serde_json::Map::new();
    object.insert("event".to_owned(), event.into());
    object.extend(values.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())));
    object.insert("id".to_owned(), id.into());
    let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    object.insert("expires_in_ms".to_owned(), json!(left));
    Value::Object(object)
}

/// Exit status 0 is a yes, 1 a no; for ever without a program, or if it fails otherwise: the
/// local socket can still answer.
async fn run(command: &[String], values: &Values) -> bool {
    if let Some((program, arguments)) = command.split_first() {
        let mut command = Command::new(program);
        command.args(arguments.iter().map(|argument| fill(argument, values)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.kill_on_drop(true).status().await.map(|status| status.code()) {
            Ok(Some(0)) => return true,
            Ok(Some(1)) => return false,
            Ok(code) => warn!(program, ?code, "consent.command ended without an answer"),
            Err(error) => warn!(program, %error, "consent.command cannot be started"),
        }
    }
    std::future::pending().await
}

/// Puts values in place of `{name}`, in one pass: a value is never read as a placeholder.
fn fill(argument: &str, values: &Values) -> String {
    let mut filled = String::new();
    let mut rest = argument;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        let found = values
            .iter()
            .find_map(|(name, value)| Some((value, after.strip_prefix(name)?.strip_prefix('}')?)));
        match found {
            Some((value, left)) => {
                filled.push_str(value);
                rest = left;
            }
            None => {
                filled.push('{');
                rest = after;
            }
        }
    }
    filled.push_str(rest);
    filled
}

/// Fit for a terminal, for a dialog that reads markup and escapes, and for an argument.
fn harmless(text: &str) -> String {
    let cut: String = text.chars().take(MAX_VALUE).collect();
    let plain = escape_text(&cut).replace(['<', '>', '&', '\\'], "_");
    if plain.starts_with('-') { format!("_{plain}") } else { plain }
}

/// The configured program with its arguments.
pub fn read_command(config: &Config) -> Result<Vec<String>, CliError> {
    let command = config.list(COMMAND_KEY)?;
    let absolute =
        command.first().is_none_or(|program| std::path::Path::new(program).is_absolute());
    if !absolute {
        return Err(config.invalid(COMMAND_KEY, "begins with the absolute path of a program"));
    }
    if command.len() > MAX_ARGUMENTS {
        return Err(config.invalid(COMMAND_KEY, &format!("at most {MAX_ARGUMENTS} items")));
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(user: &str) -> Values {
        let value = || "x".to_owned();
        [
            ("id", value()),
            ("user", harmless(user)),
            ("target", value()),
            ("redirector", value()),
            ("console", value()),
            ("reason", value()),
        ]
    }

    #[test]
    fn words_of_others_are_one_argument_and_nothing_else() {
        let hostile = values("--help <b>{id}</b>\u{1b}[2J\\n");
        assert_eq!(fill("{user}", &hostile), "_--help _b_{id}_/b__u{1b}[2J_n");
        assert_eq!(fill("{user} {target}{no} {", &values("eve")), "eve x{no} {");
        assert!(harmless(&"x".repeat(10_000)).len() <= MAX_VALUE);
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn the_configured_program_answers_by_its_exit_status_only() {
        let shell =
            |script: &str| ["/bin/sh", "-c", script, "sh", "{user}"].map(str::to_owned).to_vec();
        assert!(run(&shell("test \"$1\" = eve"), &values("eve")).await);
        assert!(!run(&shell("exit 1"), &values("eve")).await);
        for open in [shell("exit 7"), vec!["/nonexistent/dialog".to_owned()], Vec::new()] {
            let values = values("eve");
            let waits = tokio::time::timeout(Duration::from_millis(300), run(&open, &values));
            assert!(waits.await.is_err(), "{open:?}");
        }
    }
}
