//! Reads the TOML file into values with their lines.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::duration::parse_duration;
use super::load::{find_key, unknown_key};
use super::value::{Kind, Value};
use super::{Entry, Key, Origin, value_error};
use crate::cli::CliError;

/// Larger files are refused unread.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Tables inside tables, so that a hostile file cannot exhaust the stack.
const MAX_DEPTH: usize = 8;

/// Reads the text of `path`; `None` if there is no such file.
pub(super) fn read_file(path: &Path) -> Result<Option<String>, CliError> {
    let problem = |reason: String| {
        CliError::usage("config_unreadable", format!("cannot read {}: {reason}", path.display()))
    };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(problem(error.to_string())),
    };
    if !metadata.is_file() {
        return Err(problem("it is not a file".to_owned()));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(problem("it is larger than 1 MiB".to_owned()));
    }
    std::fs::read_to_string(path).map(Some).map_err(|error| problem(error.to_string()))
}

/// Adds the values of `text`, the contents of the file `path`, to `entries`.
pub(super) fn add_file(
    keys: &'static [Key],
    path: &Path,
    text: &str,
    entries: &mut BTreeMap<&'static str, Entry>,
) -> Result<(), CliError> {
    let file = path.display().to_string();
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        // `message` is without the excerpt, which could show a secret.
        CliError::usage("config_invalid", format!("{file}:{line}: {}", error.message()))
    })?;
    let mut walk = Walk { keys, file, text, entries };
    walk.table(table.get_ref(), "", 0)
}

struct Walk<'a> {
    keys: &'static [Key],
    file: String,
    text: &'a str,
    entries: &'a mut BTreeMap<&'static str, Entry>,
}

impl Walk<'_> {
    fn table(&mut self, table: &DeTable<'_>, prefix: &str, depth: usize) -> Result<(), CliError> {
        for (name, value) in table {
            let path = format!("{prefix}{}", name.get_ref());
            let origin = Origin::File {
                path: self.file.clone(),
                line: line_of(self.text, name.span().start),
            };
            if let Some(key) = find_key(self.keys, &path) {
                let value = read_value(key.kind, value)
                    .map_err(|reason| value_error(&path, &origin, &reason))?;
                self.entries.insert(key.path, Entry { value, origin });
                continue;
            }
            match value.get_ref() {
                DeValue::Table(inner) if depth < MAX_DEPTH && self.is_section(&path) => {
                    self.table(inner, &format!("{path}."), depth + 1)?;
                }
                _ => return Err(unknown_key(self.keys, &path, &origin)),
            }
        }
        Ok(())
    }

    fn is_section(&self, path: &str) -> bool {
        self.keys
            .iter()
            .any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
    }
}

fn read_value(kind: Kind, value: &Spanned<DeValue<'_>>) -> Result<Value, String> {
    let read = match (kind, value.get_ref()) {
        (Kind::String, DeValue::String(text)) => {
            Some(Value::String(Zeroizing::new(text.to_string())))
        }
        (Kind::Integer, DeValue::Integer(number)) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(Value::Integer)
        }
        (Kind::Bool, DeValue::Boolean(yes)) => Some(Value::Bool(*yes)),
        (Kind::Duration, DeValue::String(text)) => {
            return parse_duration(text).map(Value::Duration);
        }
        (Kind::Duration, DeValue::Integer(number)) if number.as_str() == "0" => {
            Some(Value::Duration(std::time::Duration::ZERO))
        }
        (Kind::StringList, DeValue::Array(items)) => items
            .iter()
            .map(|item| match item.get_ref() {
                DeValue::String(text) => Some(Zeroizing::new(text.to_string())),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()
            .map(Value::List),
        _ => None,
    };
    read.ok_or_else(|| format!("must be {}", kind.expected()))
}

/// Lines count from 1.
fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}
