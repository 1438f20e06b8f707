//! Commands that look at the data directory and ask the running agent: `status`, `policy`,
//! `lock`, `unlock`, `consent`. Whatever they change is on disk before the agent hears of it.

use std::path::{Path, PathBuf};

use adit_runtime::{
    cli::{CliError, escape_text, evidence},
    datadir::DataDir,
    local::{LocalClient, LocalError, socket_path},
    output::Output,
};
use serde_json::{Value, json};

use crate::{
    enrollment::Enrollment,
    kill_switch::KillSwitch,
    policy::{Policy, PolicyStore},
    run::{status_text, stopped_status},
    settings::PROGRAM,
};

/// Largest file that `policy check` reads.
const MAX_POLICY_BYTES: u64 = 1024 * 1024;

/// `status`.
pub async fn status(dir: DataDir, output: Output) -> Result<(), CliError> {
    let call = ask(&dir, "status").await;
    let error = match call {
        Ok(status) => {
            output.emit(&status)?;
            return output.human(status_text(&status));
        }
        Err(error @ LocalError::NotRunning(_)) => error,
        Err(error) => return Err(error.into()),
    };
    // The files tell what would hold if it ran.
    if let Some(enrollment) = Enrollment::load(&dir)? {
        let loaded = PolicyStore::new(dir.clone()).look();
        let run = PROGRAM.command_line("run", dir.path());
        let status = stopped_status(&enrollment, &KillSwitch::new(dir), &loaded);
        output.emit(&status)?;
        output.human(status_text(&status))?;
        let error = CliError::from(error);
        return Err(error.hint(format!("start it with {run}, or agent-tunnel service start")));
    }
    let error = CliError::from(error);
    let enroll = PROGRAM.command_line("enroll TOKEN", dir.path());
    Err(error.hint(format!("this data directory is not enrolled: first {enroll}")))
}

/// `lock` and `unlock`.
pub async fn lock(dir: DataDir, on: bool, output: Output) -> Result<(), CliError> {
    let switch = KillSwitch::new(dir.clone());
    if on {
        switch.lock()?
    } else {
        switch.unlock()?
    };
    let command = if on { "lock" } else { "unlock" };
    let (running, ended) = match ask(&dir, command).await {
        Ok(answer) => (true, answer.get("ended_sessions").and_then(Value::as_u64)),
        Err(LocalError::NotRunning(_)) => (false, None),
        Err(error) => {
            let error = CliError::from(error);
            let hint = format!("the kill switch is {}; the agent looks within 5 s", state(on));
            return Err(error.hint(hint));
        }
    };
    let ended = ended.unwrap_or(0);
    output.emit(&json!({"locked": on, "running": running, "ended_sessions": ended}))?;
    let more = match (on, running) {
        (true, true) => {
            let word = if ended == 1 { "session" } else { "sessions" };
            format!("{ended} {word} ended, new ones are refused")
        }
        (true, false) => "the agent does not run; it will refuse every session".to_owned(),
        (false, true) => "sessions are possible again".to_owned(),
        (false, false) => "the agent does not run".to_owned(),
    };
    output.human(format_args!("The kill switch is {}: {more}.", state(on)))
}

/// `witness accept`.
pub fn witness_accept(dir: &DataDir, output: Output) -> Result<(), CliError> {
    // A running agent would write back what it knows.
    let _lock = dir.lock(PROGRAM.name)?;
    evidence::witness_accepted(adit_endpoint::accept_log(dir.path()), output)
}

/// `consent`.
pub async fn consent_list(dir: DataDir, output: Output) -> Result<(), CliError> {
    let answer = ask(&dir, "consent").await?;
    let questions = answer.get("questions").and_then(Value::as_array);
    let questions = questions.map(Vec::as_slice).unwrap_or_default();
    if questions.is_empty() {
        return output.human("Nobody waits for consent.");
    }
    for question in questions {
        output.emit(question)?;
        let text = |name: &str| match question.get(name) {
            Some(Value::String(text)) => escape_text(text),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        let left = question.get("expires_in_ms").and_then(Value::as_u64).unwrap_or(0) / 1000;
        let reason = text("reason");
        let why = if reason.is_empty() { String::new() } else { format!(", because: {reason}") };
        output.human(format_args!(
            "{}  {} wants to reach {} ({}), {left} s left{why}",
            text("id"),
            text("user"),
            text("target"),
            text("redirector")
        ))?;
    }
    output.human("Answer with: agent-tunnel consent allow ID, or deny ID")
}

/// `consent allow` and `consent deny`.
pub async fn consent_answer(
    dir: DataDir,
    id: u64,
    allow: bool,
    output: Output,
) -> Result<(), CliError> {
    let request = json!({"command": "consent_answer", "id": id, "allow": allow});
    output.emit(&call(&dir, request).await?)?;
    output.human(if allow { "Allowed, in this session." } else { "Denied, in this session." })
}

fn state(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// `policy show`.
pub fn policy_show(dir: DataDir, output: Output) -> Result<(), CliError> {
    let loaded = PolicyStore::new(dir).look();
    let problem = loaded.problem.as_ref().map(ToString::to_string);
    output.emit(&json!({
        "source": loaded.source.as_str(),
        "error": problem,
        "policy": loaded.policy.to_json(),
    }))?;
    if let Some(problem) = problem {
        output.human(format_args!("# policy.toml is invalid and not in force: {problem}"))?;
    }
    output.human(format_args!("# source: {}", loaded.source.as_str()))?;
    output.human(loaded.policy.to_toml().trim_end())
}

/// `policy check`.
pub fn policy_check(dir: PathBuf, file: Option<&Path>, output: Output) -> Result<(), CliError> {
    let (shown, found) = match file {
        Some(file) => (file.to_owned(), check_text(&read_policy(file)?).map(|()| true)),
        None => {
            let store = PolicyStore::new(DataDir::open_existing(dir.clone())?);
            let checked = store.check().map_err(|error| error.to_string());
            (dir.join(crate::policy::POLICY_FILE), checked)
        }
    };
    let shown = shown.display();
    let there = found.map_err(|reason| {
        CliError::usage("policy_invalid", format!("{shown}: {reason}"))
            .hint("until it is corrected, the last valid policy stays in force")
    })?;
    output.emit(&json!({"valid": true, "file": there.then(|| shown.to_string())}))?;
    if there {
        output.human(format_args!("{shown} is valid."))
    } else {
        output.human(format_args!("There is no {shown}: the built-in default holds."))
    }
}

/// Text of a policy that somebody names.
fn read_policy(file: &Path) -> Result<String, CliError> {
    use std::io::{ErrorKind, Read};
    let shown = file.display();
    let unreadable = |reason: String| {
        CliError::usage("policy_unreadable", reason)
            .hint("name the file to check, or none for policy.toml of the data directory")
    };
    let cannot = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => unreadable(format!("there is no file {shown}")),
        _ => unreadable(format!("cannot read {shown}: {error}")),
    };
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(cannot)?;
    let read = opened.take(MAX_POLICY_BYTES + 1).read_to_string(&mut text).map_err(cannot)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MAX_POLICY_BYTES {
        return Err(unreadable(format!("{shown} is larger than {MAX_POLICY_BYTES} bytes")));
    }
    Ok(text)
}

fn check_text(text: &str) -> Result<(), String> {
    Policy::parse(text).map(|_| ()).map_err(|error| error.to_string())
}

/// One question to the running agent, one answer.
async fn ask(dir: &DataDir, command: &str) -> Result<Value, LocalError> {
    call(dir, json!({ "command": command })).await
}

async fn call(dir: &DataDir, request: Value) -> Result<Value, LocalError> {
    let path = socket_path(dir.path(), PROGRAM.name);
    let replies = LocalClient::call(&path, request).await?;
    let first = replies.into_iter().next();
    first.ok_or_else(|| LocalError::Protocol("the answer is empty".to_owned()))
}
