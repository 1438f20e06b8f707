//! CSV (RFC 4180) for spreadsheets. Does not verify.
//!
//! A cell that a spreadsheet would take for a formula begins with an apostrophe.

use csv::{Terminator, WriterBuilder};

use super::fields;
use crate::{Entry, Event};

/// The line of column names, with its line end.
pub fn header() -> String {
    let entry = Entry::seal(0, 0, Event::default(), [0; 16]);
    record(fields(&entry).into_iter().map(|(name, _)| name.to_owned()))
}

/// One entry's line, with its line end.
pub fn row(entry: &Entry) -> String {
    record(fields(entry).into_iter().map(|(_, value)| defuse(value.unwrap_or_default())))
}

fn defuse(cell: String) -> String {
    // Full-width forms are read as their ASCII twins by some programs.
    let starts = ['=', '+', '-', '@', '\t', '\r', '＝', '＋', '－', '＠', '|', '%'];
    if cell.trim_start().starts_with(starts) { format!("'{cell}") } else { cell }
}

fn record(cells: impl Iterator<Item = String>) -> String {
    let mut writer = WriterBuilder::new().terminator(Terminator::CRLF).from_writer(Vec::new());
    // Writing to memory cannot fail; if it did, an empty line would show it.
    let bytes = writer.write_record(cells).ok().and_then(|()| writer.into_inner().ok());
    String::from_utf8(bytes.unwrap_or_default()).unwrap_or_default()
}
