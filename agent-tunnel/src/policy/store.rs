//! `policy.toml` on disk, and the copy of its last valid state.
//!
//! A broken file neither opens nor closes more than before, also across a restart: the text that
//! was last in force is kept beside it. Never writes `policy.toml` itself except the default,
//! where none is.

use adit_runtime::{cli::CliError, datadir::DataDir};
use tracing::warn;

use super::{DEFAULT_TEXT, Policy, PolicyError};

/// The endpoint owner's file in the data directory.
pub const POLICY_FILE: &str = "policy.toml";
/// The text that was last in force.
const LAST_VALID_FILE: &str = "policy.last-valid";
/// Larger files are not read.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Where the policy in force came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `policy.toml`.
    File,
    /// There is no file: the built-in default.
    Default,
    /// The file is invalid: the one before it.
    LastValid,
    /// The file is invalid and nothing valid is known: the built-in default.
    Fallback,
}

impl Source {
    /// Stable name for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Default => "default",
            Self::LastValid => "last_valid",
            Self::Fallback => "fallback_default",
        }
    }
}

/// A policy in force and why it is this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// What holds.
    pub policy: Policy,
    /// Where it came from.
    pub source: Source,
    /// What is wrong with the file, if it does not hold.
    pub problem: Option<PolicyError>,
}

/// The policy files of a data directory.
#[derive(Debug, Clone)]
pub struct PolicyStore {
    dir: DataDir,
}

impl PolicyStore {
    /// In this data directory.
    pub fn new(dir: DataDir) -> Self {
        Self { dir }
    }

    /// What holds now, without changing anything on disk.
    pub fn look(&self) -> Loaded {
        match self.read_file() {
            Ok(Some((_, policy))) => Loaded { policy, source: Source::File, problem: None },
            Ok(None) => {
                Loaded { policy: Policy::default(), source: Source::Default, problem: None }
            }
            Err(problem) => {
                let (policy, source) = match self.last_valid() {
                    Some(policy) => (policy, Source::LastValid),
                    None => (Policy::default(), Source::Fallback),
                };
                Loaded { policy, source, problem: Some(problem) }
            }
        }
    }

    /// Reads what holds and keeps a copy of it if it is valid. A copy that cannot be written is
    /// a warning: the policy holds all the same.
    pub fn load(&self) -> Loaded {
        let loaded = self.look();
        let text = match (loaded.source, self.read_file()) {
            // Read again: what is kept is what was read now, not what a racing editor leaves.
            (Source::File, Ok(Some((text, policy)))) if policy == loaded.policy => Some(text),
            // A later broken file must not bring back the one before the removal.
            (Source::Default, _) => Some(DEFAULT_TEXT.to_owned()),
            _ => None,
        };
        if let Some(text) = text
            && self.kept().as_deref() != Some(text.as_bytes())
            && let Err(error) = self.dir.write_atomic(LAST_VALID_FILE, text.as_bytes(), 0o600)
        {
            warn!(%error, "cannot keep a copy of the valid policy");
        }
        loaded
    }

    /// Is `policy.toml` valid? `false` if it is missing, which means the default.
    pub fn check(&self) -> Result<bool, PolicyError> {
        self.read_file().map(|found| found.is_some())
    }

    /// Writes the commented default unless the owner has a file already.
    pub fn write_default(&self) -> Result<bool, CliError> {
        if self.dir.has(POLICY_FILE) {
            return Ok(false);
        }
        self.dir.write_atomic(POLICY_FILE, DEFAULT_TEXT.as_bytes(), 0o600).map(|()| true)
    }

    fn read_file(&self) -> Result<Option<(String, Policy)>, PolicyError> {
        let unreadable = |reason: String| PolicyError::Unreadable(reason);
        let bytes = self.dir.read(POLICY_FILE, MAX_FILE_BYTES);
        let Some(bytes) = bytes.map_err(|error| unreadable(error.message))? else {
            return Ok(None);
        };
        let text = String::from_utf8(bytes).map_err(|_| unreadable("it is not UTF-8".into()))?;
        let policy = Policy::parse(&text)?;
        Ok(Some((text, policy)))
    }

    fn kept(&self) -> Option<Vec<u8>> {
        self.dir.read(LAST_VALID_FILE, MAX_FILE_BYTES).ok().flatten()
    }

    fn last_valid(&self) -> Option<Policy> {
        let text = String::from_utf8(self.kept()?).ok()?;
        Policy::parse(&text).ok()
    }
}
