//! Commands about credentials.

use adit_runtime::cli::{CliError, CredentialAbout, CredentialEdit, GlobalArgs, credential_secret};
use clap::{Args, Subcommand};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::{
    admin::{
        AdminRequest, Secret,
        credentials::{Add, CredentialAct, Edit},
    },
    vault::contents::PASSWORD,
};

#[derive(Subcommand)]
pub(super) enum CredentialCommand {
    /// Add a credential; the secret is read from stdin
    #[command(after_help = "Examples: pass web01 | mediator credential add acme/berlin admin \
        --user administrator --computer web01\n\
        mediator credential add acme/berlin deploy --kind ssh_key --user root < id_ed25519\n\n\
        An SSH key must have no passphrase: nobody can type it when the key is used.")]
    Add(AddArgs),
    /// Add a password that is made here, or put a new one in place of a secret
    #[command(after_help = "Examples: mediator credential generate acme/berlin admin \
        --user administrator --computer web01\n\
        mediator credential generate --replace 3f2a…\n\n\
        It is not set at the computer: whoever may read it does that.")]
    Generate {
        /// PARTNER/CLIENT
        #[arg(required_unless_present = "replace")]
        client: Option<String>,
        /// Name of the credential
        #[arg(required_unless_present = "replace")]
        name: Option<String>,
        #[command(flatten)]
        about: CredentialAbout,
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
    Edit(CredentialEdit),
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
    about: CredentialAbout,
    /// password, ssh_key or other
    #[arg(long, default_value = PASSWORD)]
    kind: String,
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
                let secret = Some(Secret::new(credential_secret(&kind)?));
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
            Self::Edit(args) => CredentialAct::Edit(Box::new(Edit {
                secret: args.secret()?.map(Secret::new),
                notes: args.notes()?.map(Secret::new),
                redirectors: args.redirectors(),
                credential: args.credential,
                name: args.name,
                user: args.user.map(hidden),
                generate: false,
                length: None,
                automatic: args.automatic,
            })),
        })
    }
}

fn add(
    client: String,
    name: String,
    kind: String,
    about: CredentialAbout,
    (secret, length): (Option<Secret>, Option<usize>),
) -> Result<CredentialAct, CliError> {
    let notes = about.notes()?.unwrap_or_default();
    Ok(CredentialAct::Add(Box::new(Add {
        client,
        computer: about.computer,
        name,
        kind,
        user: hidden(about.user.unwrap_or_default()),
        secret,
        length,
        notes: Secret::new(notes),
        redirectors: about.redirectors,
        automatic: about.automatic,
    })))
}

fn hidden(text: String) -> Secret {
    Secret::new(Zeroizing::new(text))
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
