//! Credentials, as the machine's administrator and clients of the API manage them. The acts are
//! those of [`crate::vault`]; secrets never come by a command line.

use adit_runtime::cli::CliError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{AdminContext, Secret, actor::Actor};
use crate::vault::{
    Asker, VaultError,
    acts::{Change, New, NewSecret, Wish},
};

/// An act on credentials. Texts that may be secret or personal are [`Secret`]s.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum CredentialAct {
    /// Lists them.
    List { client: Option<String> },
    /// Adds one.
    Add(Box<Add>),
    /// Changes one.
    Edit(Box<Edit>),
    /// Deletes one.
    Delete { credential: String },
    /// Shows one with its secret.
    Reveal {
        credential: String,
        #[serde(default)]
        reason: Option<String>,
        #[serde(default)]
        ticket: Option<String>,
    },
}

/// A credential to be added.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Add {
    pub(crate) client: String,
    pub(crate) computer: Option<String>,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) user: Secret,
    /// None: a password is made.
    pub(crate) secret: Option<Secret>,
    /// Of a password that is made.
    pub(crate) length: Option<usize>,
    pub(crate) notes: Secret,
    pub(crate) redirectors: Vec<String>,
    pub(crate) automatic: bool,
}

/// What is to become different.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Edit {
    pub(crate) credential: String,
    pub(crate) name: Option<String>,
    pub(crate) user: Option<Secret>,
    pub(crate) secret: Option<Secret>,
    /// A password is made.
    pub(crate) generate: bool,
    pub(crate) length: Option<usize>,
    pub(crate) notes: Option<Secret>,
    pub(crate) redirectors: Option<Vec<String>>,
    pub(crate) automatic: Option<bool>,
}

/// Does it.
pub(super) async fn handle(
    (context, actor): (&AdminContext, &Actor),
    act: CredentialAct,
) -> Result<Vec<Value>, CliError> {
    let (vault, mut asker) = (&context.vault, Asker::from(actor));
    let done = match act {
        CredentialAct::List { client } => {
            let wish = Wish { client, after: None };
            return vault.list(&asker, &wish).await.map_err(VaultError::cli);
        }
        CredentialAct::Add(add) => vault.add(&asker, (*add).into()).await,
        CredentialAct::Edit(edit) => {
            let which = edit.credential.clone();
            vault.edit(&asker, &which, (*edit).into()).await
        }
        CredentialAct::Delete { credential } => vault.delete(&asker, &credential).await,
        CredentialAct::Reveal { credential, reason, ticket } => {
            asker.give(reason, ticket);
            vault.reveal(&asker, &credential).await
        }
    };
    done.map(|told| vec![told]).map_err(VaultError::cli)
}

fn hidden(secret: &Secret) -> Zeroizing<String> {
    Zeroizing::new(secret.expose().to_owned())
}

fn new_secret(secret: Option<&Secret>, length: Option<usize>) -> NewSecret {
    match secret {
        Some(secret) => NewSecret::Given(hidden(secret)),
        None => NewSecret::Generated(length),
    }
}

impl From<Add> for New {
    fn from(add: Add) -> Self {
        Self {
            user: hidden(&add.user),
            secret: new_secret(add.secret.as_ref(), add.length),
            notes: hidden(&add.notes),
            client: add.client,
            computer: add.computer,
            name: add.name,
            kind: add.kind,
            redirectors: add.redirectors,
            automatic: add.automatic,
        }
    }
}

impl From<Edit> for Change {
    fn from(edit: Edit) -> Self {
        let another = edit.secret.is_some() || edit.generate;
        Self {
            user: edit.user.as_ref().map(hidden),
            secret: another.then(|| new_secret(edit.secret.as_ref(), edit.length)),
            notes: edit.notes.as_ref().map(hidden),
            name: edit.name,
            redirectors: edit.redirectors,
            automatic: edit.automatic,
        }
    }
}
