//! What the command lines of all programs have in common.
//! Never decides anything about a command itself; never prints a secret.

mod args;
mod certificate;
mod credential;
mod error;
mod escape;
pub mod evidence;
mod generate;
mod parse;
mod paths;

pub use args::{GlobalArgs, Program};
pub use certificate::{CertificateArg, CertificateFile};
pub use credential::{CredentialAbout, CredentialEdit, credential_secret};
pub(crate) use error::LAST_WORDS;
pub use error::{CliError, Exit, report};
pub(crate) use escape::escape_json;
pub use escape::escape_text;
pub use generate::{Generate, write_completions, write_man, write_man_pages};
pub(crate) use parse::wants_json;
pub use parse::{PROTOCOLS, VERSION, command, parse, parse_from, version_string};
