//! Typed values and how texts become them.

use std::fmt;
use std::time::Duration;

use zeroize::Zeroizing;

use super::duration::{format_duration, parse_duration};

/// What the values of a key are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    String,
    /// A whole number.
    Integer,
    /// true or false.
    Bool,
    /// Text like `15m`.
    Duration,
    /// Texts; separated by commas outside TOML.
    StringList,
}

impl Kind {
    /// What a value must look like, for error messages.
    pub(super) fn expected(self) -> &'static str {
        match self {
            Self::String => "a string",
            Self::Integer => "a whole number",
            Self::Bool => "true or false",
            Self::Duration => "a duration like \"15m\"",
            Self::StringList => "a list of strings",
        }
    }

    /// Reads a value from the environment, a flag or a default. The reason given on failure
    /// does not quote the text: it may be a secret.
    pub(super) fn read(self, text: &str) -> Result<Value, String> {
        let value = match self {
            Self::String => Some(Value::String(Zeroizing::new(text.to_owned()))),
            Self::Integer => text.trim().parse().ok().map(Value::Integer),
            Self::Bool => text.trim().parse().ok().map(Value::Bool),
            Self::Duration => return parse_duration(text.trim()).map(Value::Duration),
            Self::StringList => Some(Value::List(
                text.split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(|item| Zeroizing::new(item.to_owned()))
                    .collect(),
            )),
        };
        value.ok_or_else(|| format!("must be {}", self.expected()))
    }
}

/// A value. Printing one shows it: secrets are masked by whoever knows the key.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// Text.
    String(Zeroizing<String>),
    /// A whole number.
    Integer(i64),
    /// Yes or no.
    Bool(bool),
    /// A duration.
    Duration(Duration),
    /// Texts.
    List(Vec<Zeroizing<String>>),
}

impl Value {
    /// As JSON; durations as text, as they are configured.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match self {
            Self::String(text) => text.as_str().into(),
            Self::Integer(number) => (*number).into(),
            Self::Bool(yes) => (*yes).into(),
            Self::Duration(duration) => format_duration(*duration).into(),
            Self::List(items) => items.iter().map(|item| item.as_str()).collect(),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // JSON's strings, numbers and arrays are TOML's as well.
        write!(formatter, "{}", self.to_json())
    }
}
