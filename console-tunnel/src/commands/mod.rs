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

use std::io::Write;

use adit_runtime::cli::escape_text;
use comfy_table::{ContentArrangement, Table, presets};

/// Columns of a terminal that does not say how many it has.
const DEFAULT_WIDTH: u16 = 80;

/// A table for people: no lines, fitted to the terminal.
pub(crate) fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(columns.to_vec());
    // Without a terminal there is no width, and nothing is folded.
    if let Some(width) = table.width() {
        table.set_width(usable_width(width));
    }
    table
}

/// Serial lines and some emulators report 0 columns, which would leave one letter a line.
fn usable_width(reported: u16) -> u16 {
    if reported == 0 { DEFAULT_WIDTH } else { reported }
}

/// A remark on stderr, escaped. If nobody can read it, nobody misses it.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "note: {}", escape_text(text));
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_terminal_without_columns_counts_as_one_of_eighty() {
        assert_eq!(super::usable_width(0), 80);
        assert_eq!(super::usable_width(40), 40);
    }
}
