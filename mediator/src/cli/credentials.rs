//! Commands about credentials. Secrets are read from stdin to its end, so that key files fit.

use std::io::Read;

use adit_runtime::cli::{CliError, GlobalArgs};
use clap::{Args, Subcommand};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::{
    admin::{
        AdminRequest, Secret,
        credentials::{Add, CredentialAct, Edit},
    },
    vault::contents::{MAX_NOTES, MAX_SECRET, PASSWORD},
};

#[derive(Subcommand)]
pub(super) enum CredentialCommand {
    /// Add a credential; the secret is read from stdin
    #[command(after_help = "Examples: pass web01 | mediator credential add acme/berlin admin \
        --user administrator --computer web01\n\
        mediator credential add acme/berlin deploy --kind ssh_key --user root < id_ed25519")]
    Add(AddArgs),
    /// Add a password that is made here, or put a new one in place of a secret
    #[command(after_help = "Examples: mediator credential generate acme/berlin admin \
        --user administrator --computer web01\n\
        mediator credential generate --replace 3f2a…")]
    Generate {
        /// PARTNER/CLIENT
        #[arg(required_unless_present = "replace")]
        client: Option<String>,
        /// Name of the credential
        #[arg(required_unless_present = "replace")]
        name: Option<String>,
        #[command(flatten)]
        about: AboutArgs,
        /// Characters, 16 to 127
        #[arg(long, default_value_t = crate::vault::generate::DEFAULT_LENGTH)]
        length: usize,
        /// Give this credential (id or PARTNER/CLIENT[/COMPUTER]/NAME) a new password
        #[arg(long, value_name = "CREDENTIAL", conflicts_with_all = ["client", "name"])]
        replace: Option<String>,
    },
    /// List credentials, without secrets
    #[command(after_help = "Example: mediator credential list --client acme/berlin --json")]
    List {
        /// Only those of this client
        #[arg(long, value_name = "PARTNER/CLIENT")]
        client: Option<String>,
    },
    /// Change a credential
    #[command(after_help = "Example: pass new | mediator credential edit 3f2a… --secret-stdin")]
    Edit(EditArgs),
    /// Delete a credential
    #[command(after_help = "Example: mediator credential delete acme/berlin/web01/admin")]
    Delete {
        /// Id, or PARTNER/CLIENT[/COMPUTER]/NAME
        credential: String,
    },
    /// Show a credential with its secret; recorded
    #[command(after_help = "Example: mediator credential reveal acme/berlin/web01/admin")]
    Reveal {
        /// Id, or PARTNER/CLIENT[/COMPUTER]/NAME
        credential: String,
        /// Why; for the audit record
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Args)]
pub(super) struct AddArgs {
    /// PARTNER/CLIENT
    client: String,
    /// Name of the credential
    name: String,
    #[command(flatten)]
    about: AboutArgs,
    /// password, ssh_key or other
    #[arg(long, default_value = PASSWORD)]
    kind: String,
}

#[derive(Args)]
pub(super) struct AboutArgs {
    /// Only for this computer of the client
    #[arg(long)]
    computer: Option<String>,
    /// User at the target
    #[arg(long, default_value = "", hide_default_value = true)]
    user: String,
    /// File with notes, which only those see who may read the secret
    #[arg(long, value_name = "FILE")]
    notes_file: Option<std::path::PathBuf>,
    /// Only with this redirector; may be repeated [default: all that have a viewer]
    #[arg(long = "redirector")]
    redirectors: Vec<String>,
    /// Use it without being named, where it is the only one
    #[arg(long)]
    automatic: bool,
}

#[derive(Args)]
pub(super) struct EditArgs {
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
    #[arg(long = "redirector", conflicts_with = "any_redirector")]
    redirectors: Vec<String>,
    /// With all redirectors that have a viewer
    #[arg(long)]
    any_redirector: bool,
    /// Whether it is used without being named: true or false
    #[arg(long, value_name = "BOOL")]
    automatic: Option<bool>,
}

impl CredentialCommand {
    fn into_act(self) -> Result<CredentialAct, CliError> {
        Ok(match self {
            Self::List { client } => CredentialAct::List { client },
            Self::Delete { credential } => CredentialAct::Delete { credential },
            Self::Reveal { credential, reason } => {
                CredentialAct::Reveal { credential, reason, ticket: None }
            }
            Self::Add(AddArgs { client, name, about, kind }) => {
                let secret = Some(secret_from_stdin(&kind)?);
                add(client, name, kind, about, (secret, None))?
            }
            Self::Generate { replace: Some(credential), length, .. } => {
                CredentialAct::Edit(Box::new(Edit {
                    credential,
                    name: None,
                    user: None,
                    secret: None,
                    generate: true,
                    length: Some(length),
                    notes: None,
                    redirectors: None,
                    automatic: None,
                }))
            }
            Self::Generate { client, name, about, length, replace: None } => {
                let (client, name) = (client.unwrap_or_default(), name.unwrap_or_default());
                add(client, name, PASSWORD.to_owned(), about, (None, Some(length)))?
            }
            Self::Edit(args) => {
                let secret = match args.secret_stdin {
                    true => Some(secret_from_stdin("")?),
                    false => None,
                };
                let redirectors = (args.any_redirector || !args.redirectors.is_empty())
                    .then_some(args.redirectors);
                CredentialAct::Edit(Box::new(Edit {
                    credential: args.credential,
                    name: args.name,
                    user: args.user.map(hidden),
                    secret,
                    generate: false,
                    length: None,
                    notes: args.notes_file.map(|path| notes(&path)).transpose()?,
                    redirectors,
                    automatic: args.automatic,
                }))
            }
        })
    }
}

fn add(
    client: String,
    name: String,
    kind: String,
    about: AboutArgs,
    (secret, length): (Option<Secret>, Option<usize>),
) -> Result<CredentialAct, CliError> {
    let notes = match &about.notes_file {
        Some(path) => notes(path)?,
        None => hidden(String::new()),
    };
    Ok(CredentialAct::Add(Box::new(Add {
        client,
        computer: about.computer,
        name,
        kind,
        user: hidden(about.user),
        secret,
        length,
        notes,
        redirectors: about.redirectors,
        automatic: about.automatic,
    })))
}

fn hidden(text: String) -> Secret {
    Secret::new(Zeroizing::new(text))
}

fn secret_from_stdin(kind: &str) -> Result<Secret, CliError> {
    let text = read(std::io::stdin().lock(), MAX_SECRET, "secret")?;
    // Of a password the line's end is not part; of a key file every byte is.
    let one_line = kind == PASSWORD || text.lines().count() == 1;
    let bare = if one_line { text.trim_end_matches(['\n', '\r']) } else { text.as_str() };
    Ok(Secret::new(Zeroizing::new(bare.to_owned())))
}

fn notes(path: &std::path::Path) -> Result<Secret, CliError> {
    let file = std::fs::File::open(path).map_err(|error| {
        CliError::usage("secret_unreadable", format!("{}: {error}", path.display()))
    })?;
    read(file, MAX_NOTES, "text of the notes").map(Secret::new)
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
    if bytes.is_empty() {
        return Err(CliError::usage("secret_missing", format!("the {what} is empty")));
    }
    String::from_utf8(std::mem::take(&mut *bytes)).map(Zeroizing::new).map_err(|error| {
        drop(Zeroizing::new(error.into_bytes()));
        CliError::usage("secret_invalid", format!("the {what} is not UTF-8"))
    })
}

pub(super) async fn run(global: &GlobalArgs, command: CredentialCommand) -> Result<(), CliError> {
    let reveals = matches!(command, CredentialCommand::Reveal { .. });
    let request = AdminRequest::Credentials(command.into_act()?);
    if !reveals {
        return super::ask(global, request).await;
    }
    let output = global.output();
    for reply in super::call(global, request).await? {
        output.emit(&reply)?;
        // The secret alone, so that a script can take it.
        output.human(reply.get("secret").and_then(Value::as_str).unwrap_or_default())?;
    }
    Ok(())
}
