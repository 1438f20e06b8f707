//! Options of commands about stored credentials, at the mediator and remotely alike. Secrets are
//! read from standard input to its end, so that key files fit; never from the command line.

use std::path::PathBuf;

use clap::Args;
use zeroize::Zeroizing;

use super::CliError;
use crate::secretio;

/// Bytes of a secret.
const MAX_CREDENTIAL_SECRET: usize = 16 * 1024;
/// Bytes of notes.
const MAX_CREDENTIAL_NOTES: usize = 4096;
/// The kind of credential whose secret is one line.
const PASSWORD: &str = "password";

// What is not secret about a new credential.
#[derive(Debug, Clone, Args)]
#[expect(missing_docs, reason = "clap would show it as the command's description")]
pub struct CredentialAbout {
    /// Only for this computer of the client
    #[arg(long)]
    pub computer: Option<String>,
    /// User at the target
    #[arg(long)]
    pub user: Option<String>,
    /// File with notes, which only those see who may read the secret
    #[arg(long, value_name = "FILE")]
    pub notes_file: Option<PathBuf>,
    /// Only with this redirector; may be repeated [default: all that have a viewer]
    #[arg(long = "redirector")]
    pub redirectors: Vec<String>,
    /// Use it without being named, where it is the only one
    #[arg(long)]
    pub automatic: bool,
}

impl CredentialAbout {
    /// The notes, if there are any.
    pub fn notes(&self) -> Result<Option<Zeroizing<String>>, CliError> {
        self.notes_file.as_deref().map(notes).transpose()
    }
}

// What is to change.
#[derive(Debug, Clone, Args)]
#[expect(missing_docs, reason = "clap would show it as the command's description")]
pub struct CredentialEdit {
    /// Id, PARTNER/CLIENT[/COMPUTER]/NAME, or a name that no other has
    pub credential: String,
    /// Another name
    #[arg(long)]
    pub name: Option<String>,
    /// Another user at the target
    #[arg(long)]
    pub user: Option<String>,
    /// Read another secret from stdin
    #[arg(long)]
    pub secret_stdin: bool,
    /// File with other notes
    #[arg(long, value_name = "FILE")]
    pub notes_file: Option<PathBuf>,
    /// Only with this redirector; may be repeated, and replaces all of before
    #[arg(long = "redirector", conflicts_with = "any_redirector")]
    pub redirectors: Vec<String>,
    /// With all redirectors that have a viewer
    #[arg(long)]
    pub any_redirector: bool,
    /// Whether it is used without being named: true or false
    #[arg(long, value_name = "BOOL")]
    pub automatic: Option<bool>,
}

impl CredentialEdit {
    /// The other secret, if one is to be read.
    pub fn secret(&self) -> Result<Option<Zeroizing<String>>, CliError> {
        self.secret_stdin.then(|| credential_secret("")).transpose()
    }

    /// The other notes, if there are any.
    pub fn notes(&self) -> Result<Option<Zeroizing<String>>, CliError> {
        self.notes_file.as_deref().map(notes).transpose()
    }

    /// The other redirectors, if they change; none: all.
    pub fn redirectors(&self) -> Option<Vec<String>> {
        (self.any_redirector || !self.redirectors.is_empty()).then(|| self.redirectors.clone())
    }
}

/// A secret of standard input, without the line's end unless it has several.
pub fn credential_secret(kind: &str) -> Result<Zeroizing<String>, CliError> {
    let text = secretio::all_of_stdin(MAX_CREDENTIAL_SECRET, "secret")?;
    // Of a password the line's end is not part; of a key file every byte is.
    let one_line = kind == PASSWORD || text.lines().count() == 1;
    let bare = if one_line { text.trim_end_matches(['\n', '\r']) } else { text.as_str() };
    Ok(Zeroizing::new(bare.to_owned()))
}

fn notes(path: &std::path::Path) -> Result<Zeroizing<String>, CliError> {
    secretio::warn_if_exposed(path);
    secretio::all_of_file(path, MAX_CREDENTIAL_NOTES, "text of the notes")
}
