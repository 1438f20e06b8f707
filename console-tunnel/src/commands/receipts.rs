//! `witness accept`: what this console saw of audit logs no longer binds it.

use adit_runtime::{
    cli::{CliError, evidence},
    datadir::DataDir,
    output::Output,
};

use crate::state::account::forget_pin;

/// `witness accept`.
pub fn witness_accept(dir: &DataDir, output: Output) -> Result<(), CliError> {
    let forgotten = adit_endpoint::accept_log(dir.path());
    if forgotten.is_ok() {
        forget_pin(dir)?;
    }
    evidence::witness_accepted(forgotten, output)
}
