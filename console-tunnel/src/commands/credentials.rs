//! `credentials …`: stored credentials, through the HTTPS API and within one's rights.
//!
//! Secrets are read from standard input to its end, so that key files fit, and shown by `show`
//! alone. Must never take a secret from the command line.

use std::io::{IsTerminal, Read};

use adit_runtime::cli::{CliError, escape_text};
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{note, table};
use crate::{
    api::{Api, Ask, part},
    config::Context,
    failure,
};

/// Bytes of a secret.
const MAX_SECRET: usize = 16 * 1024;
/// Bytes of notes.
const MAX_NOTES: usize = 4096;
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
  console-tunnel credentials add acme/berlin deploy --kind ssh_key --user root < id_ed25519")]
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
        about: AboutArgs,
    },
    /// Add a password that the mediator makes, or put a new one in place of a secret
    #[command(after_help = "Examples:
  console-tunnel credentials generate acme/berlin admin --user administrator --computer web01
  console-tunnel credentials generate --replace 3f2a…")]
    Generate {
        /// PARTNER/CLIENT
        #[arg(required_unless_present = "replace")]
        client: Option<String>,
        /// Name of the credential
        #[arg(required_unless_present = "replace")]
        name: Option<String>,
        /// Whose it is and where it may be used
        #[command(flatten)]
        about: AboutArgs,
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
    Edit {
        /// Id, or PARTNER/CLIENT[/COMPUTER]/NAME
        credential: String,
        /// Another name
        #[arg(long)]
        name: Option<String>,
        /// Another user at the target
        #[arg(long)]
        user: Option<String>,
        /// Read another secret from stdin
        #[arg(long)]
        secret_stdin: bool,
        /// File with other notes
        #[arg(long, value_name = "FILE")]
        notes_file: Option<std::path::PathBuf>,
        /// Only with this redirector; may be repeated, and replaces all of before
        #[arg(long = "redirector")]
        redirectors: Vec<String>,
        /// Whether it is used without being named: true or false
        #[arg(long, value_name = "BOOL")]
        automatic: Option<bool>,
    },
    /// Show one with its secret; recorded, and needs a second factor shown just now
    #[command(after_help = "Examples:
  console-tunnel credentials show acme/berlin/web01/admin --reason 'console only'
  console-tunnel credentials show 3f2a… --json")]
    Show {
        /// Id, or PARTNER/CLIENT[/COMPUTER]/NAME
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
        /// Id, or PARTNER/CLIENT[/COMPUTER]/NAME
        credential: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

// What is not secret.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "clap would show it as the command's description")]
pub struct AboutArgs {
    /// Only for this computer of the client
    #[arg(long)]
    pub computer: Option<String>,
    /// User at the target
    #[arg(long)]
    pub user: Option<String>,
    /// File with notes, which only those see who may read the secret
    #[arg(long, value_name = "FILE")]
    pub notes_file: Option<std::path::PathBuf>,
    /// Only with this redirector; may be repeated [default: all that have a viewer]
    #[arg(long = "redirector")]
    pub redirectors: Vec<String>,
    /// Use it without being named, where it is the only one
    #[arg(long)]
    pub automatic: bool,
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
            let secret = secret_from_stdin(&kind)?;
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
        CredentialsCommand::Edit {
            credential,
            name,
            user,
            secret_stdin,
            notes_file,
            redirectors,
            automatic,
        } => {
            let id = find(&mut api, &credential).await?;
            let mut body = Map::new();
            insert(&mut body, "name", name);
            insert(&mut body, "user", user);
            insert(&mut body, "automatic", automatic);
            insert(&mut body, "redirectors", (!redirectors.is_empty()).then_some(redirectors));
            if secret_stdin {
                body.insert("secret".to_owned(), secret_from_stdin("")?.as_str().into());
            }
            if let Some(path) = &notes_file {
                body.insert("notes".to_owned(), notes(path)?.as_str().into());
            }
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

fn about_json(about: &AboutArgs) -> Result<Map<String, Value>, CliError> {
    let mut body = object(json!({
        "redirectors": about.redirectors,
        "automatic": about.automatic,
    }));
    insert(&mut body, "computer", about.computer.clone());
    insert(&mut body, "user", about.user.clone());
    if let Some(path) = &about.notes_file {
        body.insert("notes".to_owned(), notes(path)?.as_str().into());
    }
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

/// The id of what is named by id or by `PARTNER/CLIENT[/COMPUTER]/NAME`.
async fn find(api: &mut Api, given: &str) -> Result<String, CliError> {
    let parts: Vec<&str> = given.split('/').collect();
    let (partner, client, computer, name) = match parts.as_slice() {
        [_] => return Ok(given.to_owned()),
        [partner, client, name] => (partner, client, None, name),
        [partner, client, computer, name] => (partner, client, Some(*computer), name),
        _ => {
            let text = "an id or PARTNER/CLIENT[/COMPUTER]/NAME is expected";
            return Err(CliError::usage("usage", text));
        }
    };
    let same = |value: &Value, field: &str, text: Option<&str>| {
        let told = value.get(field).and_then(Value::as_str).map(str::to_lowercase);
        told == text.map(str::to_lowercase)
    };
    let found = list(api, Some(&format!("{partner}/{client}"))).await?;
    let found = found
        .iter()
        .find(|one| same(one, "name", Some(name)) && same(one, "computer", computer))
        .and_then(|one| one.get("credential_id"))
        .and_then(Value::as_str);
    found.map(str::to_owned).ok_or_else(|| {
        let text = format!("there is no credential {}", escape_text(given));
        CliError::not_there(adit_protocol::code::failure::NO_SUCH_CREDENTIAL, text)
            .hint("console-tunnel credentials list")
    })
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

fn secret_from_stdin(kind: &str) -> Result<Zeroizing<String>, CliError> {
    if std::io::stdin().is_terminal() {
        return rpassword::prompt_password("Secret: ").map(Zeroizing::new).map_err(|error| {
            CliError::failed("terminal_failed", format!("cannot read from the terminal: {error}"))
        });
    }
    let text = read(std::io::stdin().lock(), MAX_SECRET, "secret")?;
    // Of a password the line's end is not part; of a key file every byte is.
    let one_line = kind == "password" || text.lines().count() == 1;
    let bare = if one_line { text.trim_end_matches(['\n', '\r']) } else { text.as_str() };
    Ok(Zeroizing::new(bare.to_owned()))
}

fn notes(path: &std::path::Path) -> Result<Zeroizing<String>, CliError> {
    let file = std::fs::File::open(path).map_err(|error| {
        CliError::usage("secret_unreadable", format!("{}: {error}", path.display()))
    })?;
    read(file, MAX_NOTES, "text of the notes")
}

fn read(from: impl Read, max: usize, what: &str) -> Result<Zeroizing<String>, CliError> {
    // Room for all of it: a buffer that moved would leave a copy.
    let mut bytes = Zeroizing::new(Vec::with_capacity(max + 2));
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    from.take(limit).read_to_end(&mut bytes).map_err(|error| {
        CliError::usage("secret_unreadable", format!("cannot read the {what}: {error}"))
    })?;
    if bytes.len() > max {
        let text = format!("the {what} is longer than {max} bytes");
        return Err(CliError::usage("secret_invalid", text));
    }
    String::from_utf8(std::mem::take(&mut *bytes)).map(Zeroizing::new).map_err(|error| {
        drop(Zeroizing::new(error.into_bytes()));
        CliError::usage("secret_invalid", format!("the {what} is not UTF-8"))
    })
}
