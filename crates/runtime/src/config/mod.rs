//! Configuration: a TOML file, the environment and flags over a program's table of keys.
//!
//! Later sources win: default, file, environment, flag. Every value remembers where it came
//! from, so that an error names the line or variable to change. Unknown keys and variables are
//! errors: a misspelt limit that is silently ignored is worse than a program that does not
//! start. Secrets are never printed.

mod duration;
mod file;
mod load;
mod show;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::cli::CliError;

pub use duration::{format_duration, parse_duration, parse_some_duration};
pub use load::{Flag, Sources};
pub use show::ConfigCommand;
pub use value::{Kind, Value};

/// A key that a program knows.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted, e.g. `relay.listen`: key `listen` of table `[relay]`.
    pub path: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// Value if nobody sets it, as it would be written in the environment.
    pub default: Option<&'static str>,
    /// Never shown.
    pub secret: bool,
    /// One line for people.
    pub help: &'static str,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The program's own default.
    Default,
    /// A line of the configuration file.
    File {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
    },
    /// An environment variable.
    Variable(String),
    /// A flag on the command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::File { path, line } => write!(formatter, "{path}:{line}"),
            Self::Variable(name) => write!(formatter, "environment {name}"),
            Self::Flag(name) => write!(formatter, "flag {name}"),
        }
    }
}

#[derive(Clone)]
struct Entry {
    value: Value,
    origin: Origin,
}

/// The effective configuration of a program.
#[derive(Clone)]
pub struct Config {
    keys: &'static [Key],
    entries: BTreeMap<&'static str, Entry>,
}

impl Config {
    /// The text of a string key, which must be set.
    pub fn string(&self, path: &str) -> Result<String, CliError> {
        self.opt_string(path)?.ok_or_else(|| missing(path))
    }

    /// The text of a string key, if set.
    pub fn opt_string(&self, path: &str) -> Result<Option<String>, CliError> {
        Ok(self.opt_secret(path)?.map(|text| text.as_str().to_owned()))
    }

    /// The text of a secret key, if set.
    pub fn opt_secret(&self, path: &str) -> Result<Option<Zeroizing<String>>, CliError> {
        match self.value(path)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(wrong_getter(path)),
        }
    }

    /// An integer, which must be set.
    pub fn integer(&self, path: &str) -> Result<i64, CliError> {
        match self.value(path)? {
            Some(Value::Integer(number)) => Ok(*number),
            Some(_) => Err(wrong_getter(path)),
            None => Err(missing(path)),
        }
    }

    /// An integer within `range`, as the type the program uses.
    pub fn integer_in<T>(
        &self,
        path: &str,
        range: std::ops::RangeInclusive<T>,
    ) -> Result<T, CliError>
    where
        T: TryFrom<i64> + PartialOrd + fmt::Display,
    {
        let number = self.integer(path)?;
        T::try_from(number).ok().filter(|number| range.contains(number)).ok_or_else(|| {
            self.invalid(
                path,
                &format!("{number} is not within {} to {}", range.start(), range.end()),
            )
        })
    }

    /// A yes or no, which must be set.
    pub fn bool(&self, path: &str) -> Result<bool, CliError> {
        match self.value(path)? {
            Some(Value::Bool(yes)) => Ok(*yes),
            Some(_) => Err(wrong_getter(path)),
            None => Err(missing(path)),
        }
    }

    /// A duration, which must be set.
    pub fn duration(&self, path: &str) -> Result<Duration, CliError> {
        match self.value(path)? {
            Some(Value::Duration(duration)) => Ok(*duration),
            Some(_) => Err(wrong_getter(path)),
            None => Err(missing(path)),
        }
    }

    /// A list of strings; empty if not set.
    pub fn list(&self, path: &str) -> Result<Vec<String>, CliError> {
        match self.value(path)? {
            Some(Value::List(items)) => Ok(items.iter().map(|item| item.to_string()).collect()),
            Some(_) => Err(wrong_getter(path)),
            None => Ok(Vec::new()),
        }
    }

    /// A string key read as `T`, e.g. a socket address, if set.
    pub fn opt_parsed<T>(&self, path: &str) -> Result<Option<T>, CliError>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let Some(text) = self.opt_string(path)? else { return Ok(None) };
        text.parse().map(Some).map_err(|error: T::Err| self.invalid(path, &error.to_string()))
    }

    /// A string key read as `T`, which must be set.
    pub fn parsed<T>(&self, path: &str) -> Result<T, CliError>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        self.opt_parsed(path)?.ok_or_else(|| missing(path))
    }

    /// Each item of a list read as `T`.
    pub fn parsed_list<T>(&self, path: &str) -> Result<Vec<T>, CliError>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let items = self.list(path)?;
        let parsed = items.iter().map(|item| {
            item.parse()
                .map_err(|error: T::Err| self.invalid(path, &format!("\"{item}\": {error}")))
        });
        parsed.collect()
    }

    /// Where the value of a key came from, if it has one.
    pub fn origin(&self, path: &str) -> Option<&Origin> {
        self.entries.get(path).map(|entry| &entry.origin)
    }

    /// An error about the value of `path` that names where it was set. `reason` must not quote
    /// a secret.
    pub fn invalid(&self, path: &str, reason: &str) -> CliError {
        match self.origin(path) {
            Some(origin) => value_error(path, origin, reason),
            None => CliError::usage("config_invalid", format!("{path}: {reason}")),
        }
    }

    fn value(&self, path: &str) -> Result<Option<&Value>, CliError> {
        if !self.keys.iter().any(|key| key.path == path) {
            return Err(wrong_getter(path));
        }
        Ok(self.entries.get(path).map(|entry| &entry.value))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.keys.iter().filter_map(|key| {
            let entry = self.entries.get(key.path)?;
            Some((
                key.path,
                if key.secret { show::MASK.to_owned() } else { entry.value.to_string() },
            ))
        });
        formatter.debug_map().entries(shown).finish()
    }
}

fn value_error(path: &str, origin: &Origin, reason: &str) -> CliError {
    CliError::usage("config_invalid", format!("{origin}: {path}: {reason}"))
}

fn missing(path: &str) -> CliError {
    CliError::usage("config_missing", format!("{path} is not set"))
        .hint("set it in the configuration file or the environment; see config show")
}

/// The program asks for a key or type that its own table does not have.
fn wrong_getter(path: &str) -> CliError {
    CliError::failed("internal", format!("{path} is not in the table of keys with this type"))
}

#[cfg(test)]
mod tests;
