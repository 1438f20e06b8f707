//! `receipts` and `witness` of agent and console: what an end of sessions signed and saw, for
//! whoever audits. Where that is kept is the program's business.

use std::{fmt::Display, io, io::Write};

use serde_json::json;

use super::{CliError, escape_text};
use crate::output::Output;

/// `receipts export`: `write` gives a line at a time.
pub fn receipts_export<T>(
    write: impl FnOnce(&mut dyn FnMut(&str) -> io::Result<()>) -> io::Result<T>,
) -> Result<(), CliError> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = write(&mut |line| writeln!(out, "{line}"));
    written.and_then(|_| out.flush()).map_err(|error| {
        CliError::failed("receipts_unreadable", format!("receipts cannot be written: {error}"))
            .hint("check the owner and mode of the data directory")
    })
}

/// `witness show`: heads on stdout, alerts as remarks.
pub fn witness_show<E: Display>(
    kept: Result<(Vec<String>, Vec<String>), E>,
) -> Result<(), CliError> {
    let (heads, alerts) = kept.map_err(unreadable)?;
    let mut out = io::stdout().lock();
    for head in heads {
        writeln!(out, "{head}").map_err(|error| {
            CliError::failed("output_failed", format!("heads cannot be written: {error}"))
        })?;
    }
    for alert in alerts {
        // If nobody can read it, nobody misses it.
        let _ = writeln!(io::stderr().lock(), "alert: {}", escape_text(&alert));
    }
    Ok(())
}

/// `witness accept`: what was forgotten, or why not.
pub fn witness_accepted<T, E: Display>(
    forgotten: Result<Vec<T>, E>,
    output: Output,
) -> Result<(), CliError> {
    let before = forgotten.map_err(unreadable)?;
    output.emit(&json!({"accepted": true, "forgotten": before.len()}))?;
    output.human("The next head of the audit log that is shown will be believed.")
}

fn unreadable(error: impl Display) -> CliError {
    CliError::failed("records_unreadable", error.to_string())
        .hint("restore the file; without it this end is no witness of what was before")
}
