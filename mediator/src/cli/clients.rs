//! Commands about clients of partners.

use std::io::{IsTerminal, Write};

use adit_runtime::{
    cli::{CertificateArg, CliError, GlobalArgs, escape_text},
    people,
};
use clap::Subcommand;
use serde_json::Value;

use super::{ask, call, erasure};
use crate::{
    admin::{AdminRequest, accounts::AccountAct},
    store::tenants::name_key,
};

#[derive(Subcommand)]
pub(super) enum ClientCommand {
    /// Add a client, and its partner if it is new
    #[command(after_help = "Example: mediator client add acme/headquarters")]
    Add {
        /// PARTNER/CLIENT
        path: String,
        /// The partner is meant to be new: do not ask
        #[arg(long)]
        new_partner: bool,
    },
    /// List clients
    #[command(after_help = "Example: mediator client list --json")]
    List,
    /// Lock a client down: live sessions end, none can be opened
    #[command(
        after_help = "Example: mediator client lockdown acme/headquarters --reason 'incident 7'"
    )]
    Lockdown {
        /// PARTNER/CLIENT
        path: String,
        /// Why; for the audit record
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// End a lockdown
    #[command(after_help = "Example: mediator client unlock acme/headquarters")]
    Unlock {
        /// PARTNER/CLIENT
        path: String,
    },
    /// Delete a client with its computers and personal data
    #[command(
        after_help = "Example: mediator client erase acme/headquarters --yes --certificate erased.json"
    )]
    Erase {
        /// PARTNER/CLIENT
        path: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Where the certificate goes.
        #[command(flatten)]
        certificate: CertificateArg,
    },
}

/// `client …`.
pub(super) async fn run(global: &GlobalArgs, command: ClientCommand) -> Result<(), CliError> {
    match command {
        ClientCommand::Add { path, new_partner } => add(global, path, new_partner).await,
        ClientCommand::List => ask(global, AdminRequest::ClientList).await,
        ClientCommand::Lockdown { path, reason } => {
            let act = AccountAct::ClientLock { path, locked: true, reason };
            ask(global, AdminRequest::Accounts(act)).await
        }
        ClientCommand::Unlock { path } => {
            let act = AccountAct::ClientLock { path, locked: false, reason: String::new() };
            ask(global, AdminRequest::Accounts(act)).await
        }
        ClientCommand::Erase { path, yes, certificate } => {
            if !yes {
                let text = format!("this deletes {path} with its computers and personal data");
                return Err(CliError::usage("usage", text).hint("add --yes if you mean it"));
            }
            erasure::erase(global, AdminRequest::ClientErase { path }, &certificate).await
        }
    }
}

/// A partner that was mistyped is a new one: a person is asked before, a script told afterwards.
async fn add(global: &GlobalArgs, path: String, new_partner: bool) -> Result<(), CliError> {
    let partner = path.split('/').next().unwrap_or_default().to_owned();
    let known = call(global, AdminRequest::PartnerList).await?;
    let known: Vec<String> = known.iter().map(|one| text(one, "partner")).collect();
    let asks = !new_partner && std::io::stdin().is_terminal();
    if asks
        && let Some(question) = is_new(&partner, &known)
        && !says_yes(&question)?
    {
        return Err(CliError::interrupted());
    }
    let output = global.output();
    let added = call(global, AdminRequest::ClientAdd { path }).await?.pop().unwrap_or_default();
    output.emit(&added)?;
    people::one(output, &added)?;
    if added.get("new_partner") == Some(&Value::Bool(true)) && !asks && !new_partner {
        let partner = text(&added, "client");
        let partner = partner.split('/').next().unwrap_or_default();
        let known = is_new(partner, &known).unwrap_or_else(|| format!("{partner} is new"));
        people::note(&format!(
            "{known}; if it was not meant to be: mediator partner erase {partner} --yes"
        ));
    }
    Ok(())
}

fn text(value: &Value, name: &str) -> String {
    value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// In words that there is no such partner yet, and which one may be meant.
fn is_new(partner: &str, known: &[String]) -> Option<String> {
    let key = name_key(partner);
    if known.iter().any(|name| name_key(name) == key) {
        return None;
    }
    let far = |name: &String| strsim::damerau_levenshtein(&name_key(name), &key);
    // Not every new name is a mistyped one.
    let near = |name: &&String| far(name) <= partner.chars().count().div_ceil(3);
    Some(match known.iter().min_by_key(|name| far(name)).filter(near) {
        Some(nearest) => format!("{partner} is a new partner, beside {nearest}"),
        None => format!("{partner} is a new partner"),
    })
}

fn says_yes(question: &str) -> Result<bool, CliError> {
    let failed = |_| CliError::failed("terminal_failed", "the terminal cannot be read");
    let mut out = std::io::stderr().lock();
    write!(out, "{}. Type yes if it is meant to be: ", escape_text(question)).map_err(failed)?;
    out.flush().map_err(failed)?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(failed)?;
    Ok(line.trim() == "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_partner_is_told_with_the_one_that_was_meant() {
        let known = ["acme".to_owned(), "main".to_owned()];
        assert_eq!(is_new("ACME", &known), None);
        assert_eq!(is_new("amce", &known).unwrap(), "amce is a new partner, beside acme");
        assert_eq!(is_new("globex", &known).unwrap(), "globex is a new partner");
    }
}
