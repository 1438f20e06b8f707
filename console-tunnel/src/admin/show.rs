//! Answers of the API: a line of JSON each for scripts, tables for people.

use adit_runtime::cli::{CliError, escape_text};
use serde_json::Value;

use crate::{
    commands::{note, table},
    config::Context,
};

/// One thing.
pub(super) fn one(context: &Context, answer: &Value) -> Result<(), CliError> {
    let output = context.global.output();
    output.emit(answer)?;
    let Some(fields) = answer.as_object() else { return Ok(()) };
    let shown = fields.iter().filter(|(_, value)| !is_empty(value));
    let width = shown.clone().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let lines: Vec<String> =
        shown.map(|(name, value)| format!("{name:width$}  {}", text(value))).collect();
    output.human(lines.join("\n"))
}

/// A list: the columns are the fields that any item has.
pub(super) fn list(context: &Context, items: &[Value]) -> Result<(), CliError> {
    let output = context.global.output();
    if output.json {
        return Ok(());
    }
    let mut columns: Vec<&String> = Vec::new();
    for (name, value) in items.iter().filter_map(Value::as_object).flatten() {
        if !is_empty(value) && !columns.contains(&name) {
            columns.push(name);
        }
    }
    if columns.is_empty() {
        note("there are none");
        return Ok(());
    }
    let headers: Vec<String> = columns.iter().map(|name| name.to_uppercase()).collect();
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let mut rows = table(&headers);
    for item in items {
        rows.add_row(
            columns.iter().map(|name| item.get(name.as_str()).map_or_else(String::new, text)),
        );
    }
    output.human(rows)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// A value in words; nothing in it acts on a terminal.
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
            let shown = fields.iter().filter(|(_, value)| !is_empty(value));
            let texts: Vec<String> = shown
                .map(|(name, value)| format!("{}={}", escape_text(name), text(value)))
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
        assert_eq!(text(&json!({"a": 1, "b": null})), "a=1");
        assert_eq!(text(&json!("\u{1b}[2J")), "\\u{1b}[2J");
    }
}
