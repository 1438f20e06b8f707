//! `credentials …`: stored credentials, through the HTTPS API and within one's rights.
//!
//! Secrets are shown by `show` alone. Must never take a secret from the command line.

use std::io::IsTerminal;

use adit_protocol::code::failure as failures;
use adit_runtime::cli::{
    CliError, CredentialAbout, CredentialEdit, credential_secret, escape_text,
};
use clap::Subcommand;
use hyper::Method;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{note, prompt_failed, table};
use crate::{
    api::{Api, Ask, part},
    config::Context,
    failure,
};

/// Matches named in an error.
const MAX_NAMED: usize = 10;
/// Pages read at most.
const MAX_PAGES: usize = 100;

/// What to do with stored credentials.
#[derive(Debug, Subcommand)]
pub enum CredentialsCommand {
    /// List those that you may use, see, change or delete
    #[command(after_help = "Examples:
  console-tunnel credentials list --client acme/berlin
  console-tunnel credentials list --json")]
    List {
        /// Only those of this client
        #[arg(long, value_name = "P/C")]
        client: Option<String>,
    },
    /// Add one; the secret is read from stdin
    #[command(after_help = "Examples:
  pass web01 | console-tunnel credentials add acme/berlin admin --user administrator
  console-tunnel credentials add acme/berlin deploy --kind ssh_key --user root < id_ed25519

An SSH key must have no passphrase: nobody can type it when the key is used.")]
    Add {
        /// PARTNER/CLIENT
        client: String,
        /// Name of the credential
        name: String,
        /// password, ssh_key or other
        #[arg(long, default_value = "password")]
        kind: String,
        /// Whose it is and where it may be used
        #[command(flatten)]
        about: CredentialAbout,
    },
    /// Add a password that the mediator makes, or put a new one in place of a secret
    #[command(after_help = "Examples:
  console-tunnel credentials generate acme/berlin admin --user administrator --computer web01
  console-tunnel credentials generate --replace 3f2a…

It is not set at the computer: whoever may read it does that.")]
    Generate {
        /// PARTNER/CLIENT
        #[arg(required_unless_present = "replace")]
        client: Option<String>,
        /// Name of the credential
        #[arg(required_unless_present = "replace")]
        name: Option<String>,
        /// Whose it is and where it may be used
        #[command(flatten)]
        about: CredentialAbout,
        /// Characters, 16 to 127
        #[arg(long)]
        length: Option<usize>,
        /// Give this credential a new password
        #[arg(long, value_name = "CREDENTIAL", conflicts_with_all = ["client", "name"])]
        replace: Option<String>,
    },
    /// Change one
    #[command(after_help = "Examples:
  console-tunnel credentials edit 3f2a… --automatic true
  pass new | console-tunnel credentials edit 3f2a… --secret-stdin")]
    Edit(CredentialEdit),
    /// Show one with its secret; recorded, and needs a second factor shown just now
    #[command(after_help = "Examples:
  console-tunnel credentials show acme/berlin/web01/admin --reason 'console only'
  console-tunnel credentials show 3f2a… --json")]
    Show {
        /// Id, PARTNER/CLIENT[/COMPUTER]/NAME, or a name that no other has
        credential: String,
        /// Why; for the audit record
        #[arg(long)]
        reason: Option<String>,
        /// Ticket number; for the audit record
        #[arg(long)]
        ticket: Option<String>,
    },
    /// Delete one
    #[command(after_help = "Example:\n  console-tunnel credentials delete 3f2a… --yes")]
    Delete {
        /// Id, PARTNER/CLIENT[/COMPUTER]/NAME, or a name that no other has
        credential: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// `credentials …`.
pub async fn run(context: &Context, command: CredentialsCommand) -> Result<(), CliError> {
    let mut api = Api::open(context).await?;
    let output = context.global.output();
    let put = |target: String, body: Map<String, Value>| Ask {
        method: Method::PUT,
        target,
        body: Some(Value::Object(body)),
    };
    let done = match command {
        CredentialsCommand::List { client } => {
            let found = list(&mut api, client.as_deref()).await?;
            return show_list(context, &found);
        }
        CredentialsCommand::Show { credential, reason, ticket } => {
            let id = find(&mut api, &credential).await?;
            let given = [("reason", reason), ("ticket", ticket)];
            let query: Vec<String> = given
                .into_iter()
                .filter_map(|(name, text)| Some(format!("{name}={}", part(&text?))))
                .collect();
            let target = format!("/api/v1/credentials/{}/secret?{}", part(&id), query.join("&"));
            let shown = api.ask(&Ask { method: Method::GET, target, body: None }).await?;
            output.emit(&shown)?;
            // The secret alone, so that a script can take it; of a key file every line.
            let secret = shown.get("secret").and_then(Value::as_str).unwrap_or_default();
            let lines: Vec<String> = secret.lines().map(escape_text).collect();
            return output.human(Zeroizing::new(lines.join("\n")).as_str());
        }
        CredentialsCommand::Add { client, name, kind, about } => {
            let secret = secret_of(&kind)?;
            let mut body = about_json(&about)?;
            body.insert("kind".to_owned(), kind.into());
            body.insert("secret".to_owned(), secret.as_str().into());
            api.ask(&put(target_of(&client, &name)?, body)).await?
        }
        CredentialsCommand::Generate { replace: Some(credential), length, .. } => {
            let id = find(&mut api, &credential).await?;
            let mut body = object(json!({"generate": true}));
            insert(&mut body, "length", length);
            api.ask(&put(format!("/api/v1/credentials/{}", part(&id)), body)).await?
        }
        CredentialsCommand::Generate { client, name, about, length, replace: None } => {
            let mut body = about_json(&about)?;
            insert(&mut body, "length", length);
            let (client, name) = (client.unwrap_or_default(), name.unwrap_or_default());
            api.ask(&put(target_of(&client, &name)?, body)).await?
        }
        CredentialsCommand::Edit(edit) => {
            let id = find(&mut api, &edit.credential).await?;
            let (secret, notes) = (edit.secret()?, edit.notes()?);
            let mut body = Map::new();
            insert(&mut body, "redirectors", edit.redirectors());
            insert(&mut body, "name", edit.name);
            insert(&mut body, "user", edit.user);
            insert(&mut body, "automatic", edit.automatic);
            insert(&mut body, "secret", secret.as_ref().map(|text| text.as_str()));
            insert(&mut body, "notes", notes.as_ref().map(|text| text.as_str()));
            api.ask(&put(format!("/api/v1/credentials/{}", part(&id)), body)).await?
        }
        CredentialsCommand::Delete { credential, yes } => {
            if !yes {
                let text = format!("this deletes {credential}");
                return Err(CliError::usage("usage", text).hint("give --yes if you mean it"));
            }
            let id = find(&mut api, &credential).await?;
            let target = format!("/api/v1/credentials/{}", part(&id));
            let done = api.ask(&Ask { method: Method::DELETE, target, body: None }).await?;
            output.emit(&done)?;
            return output.human("deleted");
        }
    };
    output.emit(&done)?;
    output.human(done.get("credential_id").and_then(Value::as_str).unwrap_or_default())
}

fn target_of(client: &str, name: &str) -> Result<String, CliError> {
    let (partner, client) = client
        .split_once('/')
        .ok_or_else(|| CliError::usage("usage", "a client is given as PARTNER/CLIENT"))?;
    let (partner, client, name) = (part(partner), part(client), part(name));
    Ok(format!("/api/v1/clients/{partner}/{client}/credentials/{name}"))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

fn insert<T: Into<Value>>(body: &mut Map<String, Value>, name: &str, value: Option<T>) {
    if let Some(value) = value {
        body.insert(name.to_owned(), value.into());
    }
}

fn about_json(about: &CredentialAbout) -> Result<Map<String, Value>, CliError> {
    let mut body = object(json!({
        "redirectors": about.redirectors,
        "automatic": about.automatic,
    }));
    insert(&mut body, "computer", about.computer.clone());
    insert(&mut body, "user", about.user.clone());
    insert(&mut body, "notes", about.notes()?.as_ref().map(|text| text.as_str()));
    Ok(body)
}

/// All that the mediator lists.
async fn list(api: &mut Api, client: Option<&str>) -> Result<Vec<Value>, CliError> {
    let filter = client.map(|client| format!("&client={}", part(client))).unwrap_or_default();
    let mut all = Vec::new();
    let mut cursor = String::new();
    for _ in 0..MAX_PAGES {
        let target = format!("/api/v1/credentials?limit=1000{filter}{cursor}");
        let mut page = api.ask(&Ask { method: Method::GET, target, body: None }).await?;
        let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) else {
            return Err(failure::unexpected());
        };
        all.extend(items);
        let Some(next) = page.get("next").and_then(Value::as_str) else { break };
        cursor = format!("&cursor={}", part(next));
    }
    Ok(all)
}

/// The id of what is named by id, by `PARTNER/CLIENT[/COMPUTER]/NAME`, or by a name alone.
async fn find(api: &mut Api, given: &str) -> Result<String, CliError> {
    let parts: Vec<&str> = given.split('/').collect();
    let (client, computer, name) = match parts.as_slice() {
        [_] if is_id(given) => return Ok(given.to_owned()),
        [name] => (None, None, *name),
        [partner, client, name] => (Some(format!("{partner}/{client}")), None, *name),
        [partner, client, computer, name] => {
            (Some(format!("{partner}/{client}")), Some(*computer), *name)
        }
        _ => {
            let text = "an id, PARTNER/CLIENT[/COMPUTER]/NAME or a name is expected";
            return Err(CliError::usage("usage", text));
        }
    };
    let mut found = list(api, client.as_deref()).await?;
    let whole = client.is_some();
    found
        .retain(|one| same(one, "name", Some(name)) && (!whole || same(one, "computer", computer)));
    only(&found, given)
}

/// Whether it is an id and no name.
fn is_id(given: &str) -> bool {
    given.parse::<adit_protocol::ids::ComputerId>().is_ok()
}

fn same(value: &Value, field: &str, text: Option<&str>) -> bool {
    let told = value.get(field).and_then(Value::as_str).map(str::to_lowercase);
    told == text.map(str::to_lowercase)
}

/// The id of the only one that was found.
fn only(found: &[Value], given: &str) -> Result<String, CliError> {
    let text = |one: &Value, name: &str| {
        one.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    match found {
        [one] => Ok(text(one, "credential_id")),
        [] => {
            let message = format!("there is no credential {}", escape_text(given));
            Err(CliError::not_there(failures::NO_SUCH_CREDENTIAL, message)
                .hint("console-tunnel credentials list"))
        }
        several => {
            let names: Vec<String> = several
                .iter()
                .take(MAX_NAMED)
                .map(|one| {
                    let place = [text(one, "client"), text(one, "computer"), text(one, "name")];
                    let place: Vec<&str> =
                        place.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
                    format!("{} ({})", place.join("/"), text(one, "credential_id"))
                })
                .collect();
            let message = format!(
                "\"{}\" means {} credentials: {}",
                escape_text(given),
                several.len(),
                escape_text(&names.join(", "))
            );
            Err(CliError::failed("ambiguous_credential", message)
                .hint("give PARTNER/CLIENT[/COMPUTER]/NAME or the id"))
        }
    }
}

fn show_list(context: &Context, found: &[Value]) -> Result<(), CliError> {
    let output = context.global.output();
    for one in found {
        output.emit(one)?;
    }
    if output.json {
        return Ok(());
    }
    if found.is_empty() {
        note("there is no credential that you may use or see");
        return Ok(());
    }
    let mut rows = table(&["CREDENTIAL", "CLIENT", "COMPUTER", "NAME", "KIND", "USER", "MAY"]);
    for one in found {
        let text =
            |name: &str| escape_text(one.get(name).and_then(Value::as_str).unwrap_or_default());
        let may = one.get("may").and_then(Value::as_array).into_iter().flatten();
        let may = may.filter_map(Value::as_str).filter_map(|name| name.split('.').next_back());
        rows.add_row([
            text("credential_id"),
            text("client"),
            text("computer"),
            text("name"),
            text("kind"),
            text("user"),
            escape_text(&may.collect::<Vec<_>>().join(" ")),
        ]);
    }
    output.human(rows)
}

/// Asked for on a terminal; else all of standard input.
fn secret_of(kind: &str) -> Result<Zeroizing<String>, CliError> {
    if std::io::stdin().is_terminal() {
        let asked = rpassword::prompt_password("Secret: ").map(Zeroizing::new);
        return asked.map_err(|error| prompt_failed(&error));
    }
    credential_secret(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_the_only_credential_that_has_it() {
        let one = |id: &str, client: &str| json!({"credential_id": id, "client": client, "computer": null, "name": "admin"});
        let found = [one("1", "p/a"), one("2", "p/b")];
        assert_eq!(only(&found[..1], "admin").unwrap(), "1");
        let error = only(&found, "admin").unwrap_err();
        assert_eq!((error.code, error.exit.code()), ("ambiguous_credential", 1));
        assert!(error.message.contains("p/b/admin (2)"), "{}", error.message);
        assert_eq!(only(&[], "admin").unwrap_err().exit.code(), 4);
        assert!(is_id("0190a0a0-0000-7000-8000-000000000000") && !is_id("admin"));
    }
}
