//! Commands that ask something and are over.

pub mod audit;
pub mod computers;
pub mod login;
pub mod sessions;
pub mod trust;

use std::io::Write;

use adit_runtime::cli::escape_text;
use comfy_table::{ContentArrangement, Table, presets};

/// A table for people: no lines, fitted to the terminal.
fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(columns.to_vec());
    table
}

/// A remark on stderr, escaped. If nobody can read it, nobody misses it.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "note: {}", escape_text(text));
}
