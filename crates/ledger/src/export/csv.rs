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

/// What a spreadsheet takes for the beginning of a formula. Full-width forms are read as their
/// ASCII twins by some programs.
const FORMULA: [char; 10] = ['=', '+', '-', '@', '＝', '＋', '－', '＠', '|', '%'];

/// What some locales take for the end of a cell.
const SEPARATORS: [char; 3] = [';', ',', '|'];

/// Puts an apostrophe before everything that would begin a formula, also where a program cuts
/// cells at another separator than the comma.
fn defuse(cell: String) -> String {
    let mut out = String::with_capacity(cell.len() + 1);
    let mut begins = true;
    for c in cell.chars() {
        if begins && FORMULA.contains(&c) {
            out.push('\'');
        }
        let blank = c.is_whitespace() || c == '"';
        begins = SEPARATORS.contains(&c) || begins && blank;
        out.push(c);
    }
    out
}

fn record(cells: impl Iterator<Item = String>) -> String {
    let mut writer = WriterBuilder::new().terminator(Terminator::CRLF).from_writer(Vec::new());
    // Writing to memory cannot fail; if it did, an empty line would show it.
    let bytes = writer.write_record(cells).ok().and_then(|()| writer.into_inner().ok());
    String::from_utf8(bytes.unwrap_or_default()).unwrap_or_default()
}
