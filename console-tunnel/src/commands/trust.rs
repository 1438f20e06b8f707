//! `trust`: a person's word about the key of a computer's agent.
//!
//! Works before first contact and without a network, since the word must not depend on what a
//! mediator says.

use adit_protocol::keys::Fingerprint;
use adit_runtime::cli::{CliError, Exit, escape_text};
use serde_json::json;

use super::{login::known_account, note};
use crate::{
    config::Context,
    link::{Caller, matching, no_such_computer, only_one},
    state::{KnownAgents, KnownComputer, Selector, known::KnownAgent},
};

/// `trust COMPUTER sha256:…`.
pub async fn trust(context: &Context, given: &str, key: Fingerprint) -> Result<(), CliError> {
    let installation = known_account(context)?.installation();
    let selector = Selector::from(given);
    let (found, unasked) = look_up(context, &selector).await?;
    let pin = match found.as_slice() {
        [] => by_given(&installation, given, &selector, key).map_err(|error| {
            // The mediator could have told which computer is meant.
            unasked
                .map_or(error, |why| why.hint("without the mediator, give client/name or the id"))
        })?,
        _ => {
            let computer = only_one(&found, given)?;
            remark_other_key(computer, key);
            let pin = KnownAgent::pinned(&installation, &computer.client, &computer.name, key);
            KnownAgent { computer: Some(computer.id), ..pin }
        }
    };
    let (id, name) = (pin.computer, pin.name.clone());
    let client = pin.client.clone();
    KnownAgents::update(&context.directory, |known| known.pin(pin)).await?;
    let output = context.global.output();
    output.emit(&json!({
        "computer_id": id.map(|id| id.to_string()),
        "name": name,
        "client": client,
        "agent_key": key.to_string(),
        "pinned": true,
    }))?;
    output.human(format_args!("{} is trusted with {key}", escape_text(given)))
}

/// What the mediator says; nothing, and why, if it cannot be asked.
async fn look_up(
    context: &Context,
    selector: &Selector,
) -> Result<(Vec<KnownComputer>, Option<CliError>), CliError> {
    let ask = async {
        let online = Caller::load(context)?.connect(Vec::new()).await?;
        matching(&online.peer, selector).await
    };
    match ask.await {
        Ok(found) => Ok((found, None)),
        Err(error) if error.exit == Exit::NoPath || error.code == "not_logged_in" => {
            Ok((Vec::new(), Some(error)))
        }
        Err(error) => Err(error),
    }
}

/// Nobody knows the computer yet: the pin is by what was given, if that is unmistakable.
fn by_given(
    installation: &str,
    given: &str,
    selector: &Selector,
    key: Fingerprint,
) -> Result<KnownAgent, CliError> {
    match selector {
        Selector::Id(id) => {
            let pin = KnownAgent::pinned(installation, "", "", key);
            Ok(KnownAgent { computer: Some(*id), ..pin })
        }
        Selector::Name { client: Some(client), name } if !name.is_empty() => {
            Ok(KnownAgent::pinned(installation, client, name, key))
        }
        Selector::Name { .. } => {
            Err(no_such_computer(given).hint("before it is enrolled, give client/name or the id"))
        }
    }
}

fn remark_other_key(computer: &KnownComputer, key: Fingerprint) {
    let presented = computer.identity.fingerprint();
    if presented != key {
        // Whoever is right, the person's word counts.
        let path = computer.path();
        note(&format!(
            "the mediator names another key for {path}: {presented}; sessions with it will be \
             refused"
        ));
    }
}
