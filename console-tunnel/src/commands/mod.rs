//! Commands that ask something and are over.

pub mod audit;
pub mod computers;
pub mod login;
pub mod sessions;
pub mod trust;

use comfy_table::{ContentArrangement, Table, presets};

/// A table for people: no lines, fitted to the terminal.
fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(columns.to_vec());
    table
}
