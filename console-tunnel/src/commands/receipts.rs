//! `witness accept`: what this console saw of audit logs no longer binds it.

use adit_runtime::{
    cli::{CliError, evidence},
    datadir::DataDir,
    output::Output,
};

/// `witness accept`.
pub fn witness_accept(dir: &DataDir, output: Output) -> Result<(), CliError> {
    evidence::witness_accepted(adit_endpoint::accept_log(dir.path()), output)
}
