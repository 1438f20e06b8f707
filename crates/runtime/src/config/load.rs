//! Puts the sources on top of each other.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::file::{add_file, read_file};
use super::{Config, Entry, Key, Origin, Value, value_error};
use crate::cli::{CliError, Program, escape_text};
use crate::datadir::denied;
use crate::logging::check_level;

/// Characters of an unknown name that are quoted, and up to which the known name that was meant is
/// looked for: the work grows with the length of both, and a file's key may have a mebibyte.
const MAX_GUESSED: usize = 64;
/// Instead of a guess.
const NO_GUESS: &str = "`config show` tells the names that there are";

/// The key of the log level in every program.
const LOG_LEVEL_KEY: &str = "log.level";

/// A flag that sets a key.
#[derive(Clone)]
pub struct Flag {
    /// Key that it sets.
    pub path: &'static str,
    /// As the user typed it, e.g. `--listen`.
    pub name: &'static str,
    /// What was given.
    pub value: String,
}

/// Where configuration comes from.
#[derive(Clone, Default)]
pub struct Sources {
    /// `--config`: must exist.
    pub config: Option<PathBuf>,
    /// Its `<program>.toml` is read if it exists, unless `config` is given.
    pub data_dir: Option<PathBuf>,
    /// Environment, already limited to names starting with the program's prefix or not.
    pub environment: Vec<(OsString, OsString)>,
    /// Flags that were given.
    pub flags: Vec<Flag>,
}

impl Sources {
    /// The file and this process's environment, without flags.
    pub fn new(config: Option<&Path>, data_dir: &Path) -> Self {
        Self {
            config: config.map(Path::to_owned),
            data_dir: Some(data_dir.to_owned()),
            environment: std::env::vars_os().collect(),
            flags: Vec::new(),
        }
    }

    /// Adds a flag if it was given.
    #[must_use]
    pub fn flag(
        mut self,
        path: &'static str,
        name: &'static str,
        value: Option<impl ToString>,
    ) -> Self {
        let flag = value.map(|value| Flag { path, name, value: value.to_string() });
        self.flags.extend(flag);
        self
    }
}

impl Config {
    /// Reads all sources. Errors have exit code 2 and name file and line, variable or flag.
    pub fn load(
        program: &Program,
        keys: &'static [Key],
        sources: &Sources,
    ) -> Result<Self, CliError> {
        let mut entries = BTreeMap::new();
        for key in keys {
            if let Some(text) = key.default {
                entries.insert(key.path, entry(key, text, Origin::Default)?);
            }
        }
        if let Some(path) = sources.file(program)
            && let Some(text) = read_file(&path).map_err(|error| sources.or_denied(error))?
        {
            add_file(keys, &path, &text, &mut entries)?;
        } else if let Some(path) = &sources.config {
            return Err(CliError::usage(
                "config_unreadable",
                format!("there is no configuration file {}", path.display()),
            ));
        }
        add_environment(program, keys, &sources.environment, &mut entries)?;
        for flag in &sources.flags {
            let key = find_key(keys, flag.path).ok_or_else(|| super::wrong_getter(flag.path))?;
            entries.insert(key.path, entry(key, &flag.value, Origin::Flag(flag.name))?);
        }
        let config = Self { keys, entries };
        config.check_common()?;
        Ok(config)
    }

    /// Keys that mean the same in every program are checked here, so that `config check` finds
    /// their mistakes as well.
    fn check_common(&self) -> Result<(), CliError> {
        let Some(Entry { value: Value::String(level), origin }) = self.entries.get(LOG_LEVEL_KEY)
        else {
            return Ok(());
        };
        check_level(level).map_err(|error| CliError {
            message: format!("{origin}: {LOG_LEVEL_KEY}: {}", error.message),
            ..error
        })
    }
}

impl Sources {
    /// A file that was not named is out of reach when the whole data directory is.
    fn or_denied(&self, error: CliError) -> CliError {
        let directory = self.data_dir.as_deref().filter(|_| self.config.is_none());
        directory.and_then(denied).unwrap_or(error)
    }

    /// A chosen directory that does not exist is a slip of the pen, and checking "no file" in it
    /// would hide that. The default one need not exist yet.
    pub(super) fn check_data_dir(&self, program: &Program) -> Result<(), CliError> {
        let Some(path) = self.data_dir.as_deref().filter(|_| self.config.is_none()) else {
            return Ok(());
        };
        if path.is_dir() || program.default_data_dir().is_ok_and(|default| default == path) {
            return Ok(());
        }
        let message = format!("there is no data directory {}", path.display());
        Err(denied(path).unwrap_or_else(|| {
            CliError::usage("data_dir_missing", message)
                .hint("give the right one with --data-dir, or the file itself with --config")
        }))
    }

    pub(super) fn file(&self, program: &Program) -> Option<PathBuf> {
        let default = || Some(self.data_dir.as_ref()?.join(format!("{}.toml", program.name)));
        self.config.clone().or_else(default)
    }
}

fn add_environment(
    program: &Program,
    keys: &'static [Key],
    environment: &[(OsString, OsString)],
    entries: &mut BTreeMap<&'static str, Entry>,
) -> Result<(), CliError> {
    let prefix = program.env_prefix();
    for (name, text) in environment {
        let name = name.to_string_lossy();
        let Some(rest) = name.strip_prefix(&prefix) else { continue };
        let origin = Origin::Variable(name.to_string());
        let Some(key) = keys.iter().find(|key| variable(key) == rest) else {
            let names = keys.iter().map(|key| format!("{prefix}{}", variable(key)));
            return Err(unknown("variable", &name, "environment", names));
        };
        let text = text.to_str().ok_or_else(|| value_error(key.path, &origin, "is not UTF-8"))?;
        entries.insert(key.path, entry(key, text, origin)?);
    }
    Ok(())
}

fn entry(key: &Key, text: &str, origin: Origin) -> Result<Entry, CliError> {
    let value = key.kind.read(text).map_err(|reason| {
        // A reason may quote the text.
        let reason = if key.secret { format!("must be {}", key.kind.expected()) } else { reason };
        value_error(key.path, &origin, &reason)
    })?;
    Ok(Entry { value, origin })
}

pub(super) fn find_key(keys: &'static [Key], path: &str) -> Option<&'static Key> {
    keys.iter().find(|key| key.path == path)
}

pub(super) fn unknown_key(keys: &[Key], path: &str, origin: &Origin) -> CliError {
    let (quoted, whole) = cut(path);
    let message = format!("{origin}: unknown key \"{quoted}\"");
    let error = CliError::usage("config_unknown_key", message);
    if !whole {
        return error.hint(NO_GUESS);
    }
    // Of the same depth: a section for what stands where a section stands; and keys of that very
    // name in other sections.
    let depth = path.split('.').count();
    let near = keys.iter().flat_map(|key| {
        let ends = key.path.match_indices('.').map(|(at, _)| at).chain([key.path.len()]);
        let same = ends.take(depth).last().and_then(|end| key.path.get(..end)).unwrap_or(key.path);
        let last = key.path.rsplit('.').next().unwrap_or(key.path);
        [
            (2 * strsim::damerau_levenshtein(same, path), same, same == key.path),
            (2 * strsim::damerau_levenshtein(last, path) + 1, key.path, true),
        ]
    });
    match near.min_by_key(|(distance, ..)| *distance) {
        Some((_, key, true)) => error.hint(format!("did you mean \"{key}\"?")),
        Some((_, section, false)) => error.hint(format!("did you mean [{section}]?")),
        None => error.hint("this program has no configuration keys"),
    }
}

fn unknown(
    what: &str,
    name: &str,
    origin: &str,
    candidates: impl Iterator<Item = String>,
) -> CliError {
    let (quoted, whole) = cut(name);
    let message = format!("{origin}: unknown {what} \"{quoted}\"");
    let error = CliError::usage("config_unknown_key", message);
    if !whole {
        return error.hint(NO_GUESS);
    }
    let nearest = candidates.min_by_key(|known| strsim::damerau_levenshtein(known, name));
    match nearest {
        Some(known) => error.hint(format!("did you mean \"{known}\"?")),
        None => error.hint("this program has no configuration keys"),
    }
}

/// A name as it is quoted, and whether that is all of it.
fn cut(name: &str) -> (String, bool) {
    match name.char_indices().nth(MAX_GUESSED) {
        None => (escape_text(name), true),
        Some((end, _)) => (escape_text(name.get(..end).unwrap_or_default()) + "…", false),
    }
}

/// The part of a key's variable after the program's prefix.
fn variable(key: &Key) -> String {
    key.path.to_ascii_uppercase().replace(['.', '-'], "_")
}
