//! Answers for people: objects as lines of names and values, lists as tables that fit the
//! terminal. The same things as JSON are [`crate::output`]'s.
//!
//! Nothing in an answer acts on the terminal: all text is escaped.

use std::io::Write;

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

use crate::{
    cli::{CliError, escape_text},
    output::Output,
};

/// Columns of a terminal that does not say how many it has.
const DEFAULT_WIDTH: u16 = 80;
/// Fields of objects told in brief.
const MAX_BRIEF_FIELDS: usize = 8;
/// Letters of a value told in brief: an id fits.
const MAX_BRIEF_CHARS: usize = 48;
/// Items of a list inside a table's cell that are named.
const MAX_NAMED: usize = 6;

/// A table: no lines, fitted to the terminal.
pub fn table(columns: &[&str]) -> Table {
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
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "note: {}", escape_text(text));
}

/// Fields of answers that are a warning where they say something, and what they warn of.
const WARNINGS: [(&str, &str); 1] =
    [("unknown_redirectors", "no computer has these redirectors, so nobody can open them")];

/// What an answer warns of.
fn warnings(answer: &Value) -> impl Iterator<Item = String> {
    let said = |(name, meaning): (&str, &str)| {
        let value = answer.get(name).filter(|value| !is_empty(value))?;
        Some(format!("{meaning}: {}", text(value)))
    };
    WARNINGS.into_iter().filter_map(said)
}

/// One thing: a line for each of its fields that says something. What it warns of is on stderr,
/// too.
pub fn one(output: Output, answer: &Value) -> Result<(), CliError> {
    if !output.json {
        warnings(answer).for_each(|warning| note(&warning));
    }
    let Some(fields) = answer.as_object() else { return Ok(()) };
    let shown = fields.iter().filter(|(_, value)| !is_empty(value));
    let width = shown.clone().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let lines: Vec<String> = shown
        .map(|(name, value)| format!("{:width$}  {}", escape_text(name), text(value)))
        .collect();
    output.human(lines.join("\n"))
}

/// A list: the columns are the fields that any item has, except those of `left_out`, which
/// `--json` has.
pub fn list(output: Output, items: &[Value], left_out: &[&str]) -> Result<(), CliError> {
    if output.json {
        return Ok(());
    }
    let mut columns: Vec<&String> = Vec::new();
    for (name, value) in items.iter().filter_map(Value::as_object).flatten() {
        let wanted = !is_empty(value) && !left_out.contains(&name.as_str());
        if wanted && !columns.contains(&name) {
            columns.push(name);
        }
    }
    if columns.is_empty() {
        note("there are none");
        return Ok(());
    }
    let headers: Vec<String> =
        columns.iter().map(|name| escape_text(name).to_uppercase().replace('_', " ")).collect();
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let mut rows = table(&headers);
    for item in items {
        rows.add_row(
            columns.iter().map(|name| item.get(name.as_str()).map_or_else(String::new, cell)),
        );
    }
    output.human(rows)
}

/// Objects in few words, for the end of a line: `name=value` of each field that says something.
pub fn brief(objects: &[Option<&Value>]) -> String {
    let fields = objects.iter().flatten().filter_map(|object| object.as_object()).flatten();
    let shown = fields.filter(|(_, value)| !is_empty(value)).take(MAX_BRIEF_FIELDS);
    let words: Vec<String> = shown
        .map(|(name, value)| format!("{}={}", shortened(escape_text(name)), quoted(&text(value))))
        .collect();
    words.join("  ")
}

/// So that a text cannot pass for the next field.
fn quoted(text: &str) -> String {
    let text = shortened(text.to_owned());
    match text.chars().any(|c| c.is_whitespace() || c == '"') {
        true => format!("\"{}\"", text.replace('"', "\\\"")),
        false => text,
    }
}

fn shortened(text: String) -> String {
    match text.char_indices().nth(MAX_BRIEF_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        // What does not hold is not worth a column.
        Value::Object(fields) => fields.values().all(|one| is_empty(one) || *one == false),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// A value within a table: of a long list its first items and how many more there are.
fn cell(value: &Value) -> String {
    match value {
        Value::Array(items) if items.len() > MAX_NAMED => {
            let first: Vec<String> = items.iter().take(MAX_NAMED).map(text).collect();
            format!("{} and {} more", first.join(", "), items.len() - MAX_NAMED)
        }
        value => text(value),
    }
}

/// A value in words.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => escape_text(text),
        Value::Array(items) => {
            let texts: Vec<String> = items.iter().map(text).collect();
            texts.join(if items.iter().any(Value::is_object) { "; " } else { ", " })
        }
        Value::Object(fields) => {
            // What does not hold is not worth a word.
            let shown = fields.iter().filter(|(_, value)| !is_empty(value) && **value != false);
            let texts: Vec<String> = shown
                .map(|(name, value)| match value {
                    Value::Bool(_) => escape_text(name),
                    value => format!("{}={}", escape_text(name), text(value)),
                })
                .collect();
            texts.join(" ")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_told_in_words_and_nothing_acts_on_a_terminal() {
        assert_eq!(text(&json!(true)), "yes");
        assert_eq!(text(&json!(["a", "b"])), "a, b");
        assert_eq!(text(&json!({"a": 1, "b": null, "c": true, "d": false})), "a=1 c");
        assert_eq!(text(&json!("\u{1b}[2J")), "\\u{1b}[2J");
    }

    #[test]
    fn an_answer_warns_only_of_what_is_there() {
        let said = |answer| warnings(&answer).collect::<Vec<_>>();
        assert_eq!(said(json!({"role": "r", "unknown_redirectors": []})), [""; 0]);
        let told = said(json!({"role": "r", "unknown_redirectors": ["shh", "rdb"]}));
        assert_eq!(told, ["no computer has these redirectors, so nobody can open them: shh, rdb"]);
    }

    #[test]
    fn objects_in_brief_are_short_and_no_value_passes_for_a_field() {
        let (personal, other) = (
            json!({"user": "jane", "query": "x  outcome=done", "esc": "\u{1b}[2J"}),
            json!({"role": "r", "none": null, "permissions": "launch ".repeat(30), "links": 2}),
        );
        let told = brief(&[Some(&personal), None, Some(&Value::Null), Some(&other)]);
        assert!(told.contains("user=jane") && told.contains("links=2"), "{told}");
        assert!(told.contains("query=\"x  outcome=done\""), "{told}");
        assert!(!told.contains('\u{1b}') && !told.contains("none"), "{told}");
        assert!(told.contains("permissions=\"launch launch") && told.contains('…'), "{told}");
        let many: serde_json::Map<String, Value> =
            (0..100).map(|n| (format!("f{n}"), "x".repeat(500).into())).collect();
        assert!(brief(&[Some(&many.into())]).chars().count() < 500);
        assert_eq!(brief(&[None]), "");
    }

    #[test]
    fn long_lists_in_a_table_are_cut_and_say_so() {
        let items: Vec<u8> = (1..=9).collect();
        assert_eq!(cell(&json!(items)), "1, 2, 3, 4, 5, 6 and 3 more");
        assert_eq!(cell(&json!([1, 2])), "1, 2");
    }

    #[test]
    fn a_terminal_without_columns_counts_as_one_of_eighty() {
        assert_eq!(usable_width(0), 80);
        assert_eq!(usable_width(40), 40);
    }
}
