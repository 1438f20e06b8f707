//! `receipts` and `witness`: what this console signed and saw, for whoever audits.

use std::io::Write;

use adit_runtime::{
    cli::{CliError, escape_text},
    datadir::DataDir,
    output::Output,
};
use serde_json::json;

/// `receipts export`.
pub fn receipts_export(dir: &DataDir) -> Result<(), CliError> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let written = adit_endpoint::export_receipts(dir.path(), |line| writeln!(out, "{line}"));
    written.and_then(|_| out.flush()).map_err(|error| {
        CliError::failed("receipts_unreadable", format!("receipts cannot be written: {error}"))
            .hint("check the owner and mode of the data directory")
    })
}

/// `witness show`: heads on stdout, alerts as remarks.
pub fn witness_show(dir: &DataDir) -> Result<(), CliError> {
    let (heads, alerts) = adit_endpoint::read_witness(dir.path()).map_err(keep_error)?;
    let mut out = std::io::stdout().lock();
    for head in heads {
        writeln!(out, "{head}").map_err(|error| {
            CliError::failed("output_failed", format!("heads cannot be written: {error}"))
        })?;
    }
    for alert in alerts {
        eprintln!("alert: {}", escape_text(&alert));
    }
    Ok(())
}

fn keep_error(error: adit_endpoint::KeepError) -> CliError {
    CliError::failed("records_unreadable", error.to_string())
        .hint("restore the file; without it this end is no witness of what was before")
}

/// `witness accept`.
pub fn witness_accept(dir: &DataDir, output: &Output) -> Result<(), CliError> {
    let before = adit_endpoint::accept_log(dir.path()).map_err(keep_error)?;
    output.emit(&json!({"accepted": true, "forgotten": before.len()}))?;
    output.human("The next head of the audit log that is shown will be believed.")
}
