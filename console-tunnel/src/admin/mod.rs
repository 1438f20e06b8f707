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

use std::io::IsTerminal;

use adit_runtime::{cli::CliError, people, secretio};
use serde_json::{Value, json};

pub use args::AdminCommand;

use crate::{
    api::{Api, Ask},
    config::Context,
};
use plan::{Answer, Plan};

/// Pages read at most.
const MAX_PAGES: usize = 10_000;

/// `admin …`.
pub async fn run(context: &Context, command: AdminCommand) -> Result<(), CliError> {
    let mut plan = Plan::of(&command)?;
    if plan.destroys {
        confirm(&plan)?;
    }
    if plan.wants_password {
        let password = secretio::from_stdin("password")?;
        set(&mut plan.ask, "password", Value::from(password.as_str()));
    }
    if let Some(file) = &plan.key_file {
        set(&mut plan.ask, "public_key", Value::from(key::public(file)?));
    }
    let mut api = Api::open(context).await?;
    match plan.answer {
        Answer::One => {
            let answer = api.ask(&plan.ask).await?;
            context.global.output().emit(&answer)?;
            people::one(context.global.output(), &answer)
        }
        Answer::List => list(context, &mut api, plan).await,
    }
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
    write!(out, "{what}: this cannot be undone. Type yes: ").map_err(failed)?;
    out.flush().map_err(failed)?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(failed)?;
    match line.trim() {
        "yes" => Ok(()),
        _ => Err(CliError::interrupted()),
    }
}
