//! Commands that ask something and are over.

pub mod audit;
pub mod computers;
pub mod credentials;
pub mod log;
pub mod login;
pub mod mfa;
pub mod netcheck;
pub mod receipts;
pub mod requests;
pub mod sessions;
pub mod trust;
mod web_login;

use adit_runtime::cli::CliError;
pub(crate) use adit_runtime::people::{note, table};

/// Why a secret could not be asked for: Ctrl-C there reaches the program as a character.
pub(crate) fn prompt_failed(error: &std::io::Error) -> CliError {
    match error.kind() {
        std::io::ErrorKind::Interrupted => CliError::interrupted(),
        _ => CliError::failed("terminal_failed", format!("cannot read from the terminal: {error}")),
    }
}
