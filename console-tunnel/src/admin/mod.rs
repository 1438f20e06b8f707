//! `admin …`: what the mediator's own commands do, remotely and within one's rights.
//!
//! - [`args`]: commands, options, help with examples
//! - [`plan`]: which request a command is
//! - [`key`]: key pairs of API keys, made and kept here
//!
//! Must never decide anything about rights: the mediator does.

pub mod args;
pub mod key;
pub mod plan;

use std::{io::IsTerminal, time::Duration};

use adit_runtime::{
    cli::{CliError, escape_text},
    datadir::Part,
    people, secretio,
};
use serde_json::{Value, json};

pub use args::AdminCommand;

use crate::{
    api::{Api, Ask},
    config::Context,
};
use key::KeyFile;
use plan::{Answer, Plan, SECRET};

/// How often it is asked how far something is.
const LOOK: Duration = Duration::from_secs(1);
/// How long nothing may come of a backup: the mediator copies a large database first.
const BACKUP_PATIENCE: Duration = Duration::from_secs(1_800);
/// Bytes of a file that goes into a request.
const MAX_FILE: usize = 64 * 1024;
/// Files that an error names.
const MAX_NAMED: usize = 10;
/// Pages read at most.
const MAX_PAGES: usize = 10_000;

/// `admin …`.
pub async fn run(context: &Context, command: AdminCommand) -> Result<(), CliError> {
    let mut plan = Plan::of(&command)?;
    if plan.destroys {
        confirm(&plan)?;
    }
    if let Some((field, what)) = plan.stdin {
        let text = secretio::from_stdin(what)?;
        set(&mut plan.ask, field, Value::from(text.as_str()));
    }
    for (field, file) in &plan.files {
        if *field == SECRET {
            secretio::warn_if_exposed(file);
        }
        let text = secretio::all_of_file(file, MAX_FILE, field)?;
        let text = text.trim_end_matches(['\r', '\n']);
        set(&mut plan.ask, field, Value::from(text));
    }
    if plan.answer == Answer::File && plan.output.exists() {
        return Err(unwritable(&plan.output, &"it exists")
            .hint("give the path of a file that does not exist yet"));
    }
    // Before anything is asked for: what comes back may come once only.
    let certificate = plan.certificate.begin()?;
    let key = plan.key_file.as_deref().map(KeyFile::of).transpose()?;
    let mut api = match Api::open(context).await {
        Ok(api) => api,
        Err(error) => {
            key.iter().for_each(KeyFile::not_used);
            return Err(error);
        }
    };
    match plan.answer {
        Answer::One => {
            if let Some(key) = &key {
                set(&mut plan.ask, "public_key", Value::from(key.public()));
            }
            let asked = api.ask(&plan.ask).await;
            if let (Some(key), Err(error)) = (&key, &asked) {
                key.after(error);
            }
            let answer = asked?;
            context.global.output().emit(&answer)?;
            people::one(context.global.output(), &answer)
        }
        Answer::List => list(context, &mut api, plan).await,
        Answer::Certificate => {
            let answer = api.ask(&plan.ask).await?;
            certificate.tell(context.global.output(), &answer)
        }
        Answer::Progress => progress(context, &mut api, plan).await,
        Answer::File => download(context, &mut api, plan).await,
    }
}

/// Waits for the end of what goes on by itself, and tells on the way how far it is.
async fn progress(context: &Context, api: &mut Api, plan: Plan) -> Result<(), CliError> {
    let mut now = api.ask(&plan.ask).await?;
    let again = Ask { method: hyper::Method::GET, body: None, ..plan.ask };
    let (mut shown, of) = (None, |now: &Value, name: &str| now.get(name).cloned());
    while of(&now, "state") == Some("running".into()) {
        let done = (of(&now, "data_keys_made"), of(&now, "clients"));
        if shown.as_ref() != Some(&done) {
            if let (Some(Value::Number(made)), Some(Value::Number(clients))) = &done
                && clients.as_u64() > Some(0)
            {
                people::note(&format!("{made} of {clients} clients have new keys"));
            }
            shown = Some(done);
        }
        tokio::time::sleep(LOOK).await;
        now = api.ask(&again).await?;
    }
    context.global.output().emit(&now)?;
    match of(&now, "state").as_ref().and_then(Value::as_str) {
        Some("done") => people::one(context.global.output(), &now),
        Some("none") => Err(CliError::failed("rotation_failed", "the mediator was started anew")
            .hint("nothing is lost; give the same command again")),
        _ => {
            let code = now.get("error").and_then(Value::as_str).unwrap_or("internal").to_owned();
            let skipped = of(&now, "skipped");
            let files = skipped.as_ref().and_then(Value::as_array).into_iter().flatten();
            let named: Vec<String> = files
                .take(MAX_NAMED)
                .map(|one| {
                    let word =
                        |name: &str| one.get(name).and_then(Value::as_str).unwrap_or_default();
                    format!("{} of the client {}", word("file"), word("client"))
                })
                .collect();
            let text = format!("not all secrets have the new key: {code} {}", named.join(", "));
            let hint = match named.is_empty() {
                true => "nothing is lost; see the mediator's log, and give the same command again",
                false => {
                    "nothing is lost; the mediator's administrator puts it back from a copy \
                          of the folder tenants, and the same command does the rest"
                }
            };
            Err(CliError::failed("rotation_failed", text.trim_end()).hint(hint))
        }
    }
}

/// A file that gets its name when all of it has come.
async fn download(context: &Context, api: &mut Api, plan: Plan) -> Result<(), CliError> {
    let failed = |error: std::io::Error| unwritable(&plan.output, &error);
    let mut part = Part::create(&plan.output).map_err(failed)?;
    let mut size = 0_u64;
    api.download(&plan.ask, BACKUP_PATIENCE, |piece| {
        size = size.saturating_add(piece.len() as u64);
        part.write(piece).map_err(failed)
    })
    .await?;
    part.finish().map_err(failed)?;
    let told = json!({"file": plan.output.display().to_string(), "bytes": size});
    context.global.output().emit(&told)?;
    people::one(context.global.output(), &told)
}

fn unwritable(path: &std::path::Path, what: &dyn std::fmt::Display) -> CliError {
    CliError::failed("output_failed", format!("cannot write {}: {what}", path.display()))
}

fn set(ask: &mut Ask, name: &str, value: Value) {
    let body = ask.body.get_or_insert_with(|| json!({}));
    if let Some(object) = body.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
}

/// All pages, each shown as it comes to scripts, together to people.
async fn list(context: &Context, api: &mut Api, plan: Plan) -> Result<(), CliError> {
    let mut all = Vec::new();
    let mut ask = plan.ask.clone();
    for _ in 0..MAX_PAGES {
        let mut page = api.ask(&ask).await?;
        let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) else {
            return Err(crate::failure::unexpected());
        };
        for item in &items {
            context.global.output().emit(item)?;
        }
        all.extend(items);
        let Some(next) = page.get("next").and_then(Value::as_str) else { break };
        let joined = if plan.ask.target.contains('?') { '&' } else { '?' };
        ask.target = format!("{}{joined}cursor={}", plan.ask.target, crate::api::part(next));
    }
    people::list(context.global.output(), &all, &["certificate"])
}

/// What cannot be undone is asked about on a terminal, and needs `--yes` elsewhere.
fn confirm(plan: &Plan) -> Result<(), CliError> {
    use std::io::Write;
    let what = &plan.what;
    if !std::io::stdin().is_terminal() {
        return Err(CliError::usage("usage", format!("{what} cannot be undone"))
            .hint("give --yes if you mean it"));
    }
    let failed = |_| CliError::failed("terminal_failed", "the terminal cannot be read");
    let mut out = std::io::stderr().lock();
    write!(out, "{what}: this cannot be undone. Type {}: ", escape_text(&plan.yes))
        .map_err(failed)?;
    out.flush().map_err(failed)?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(failed)?;
    if line.trim() == plan.yes { Ok(()) } else { Err(CliError::interrupted()) }
}
