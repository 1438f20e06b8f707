//! The endpoint owner's kill switch: while the file `locked` exists, no session lives here.
//!
//! It works without the mediator and without the running agent. In doubt it is on: a directory
//! that cannot be looked at counts as locked.

use adit_runtime::{cli::CliError, datadir::DataDir, time::now_rfc3339};

/// File whose existence locks.
const LOCK_FILE: &str = "locked";

/// What consoles and audit are told.
pub use adit_endpoint::LOCKED;

/// The kill switch of a data directory.
#[derive(Debug, Clone)]
pub struct KillSwitch {
    dir: DataDir,
}

impl KillSwitch {
    /// Of this data directory.
    pub fn new(dir: DataDir) -> Self {
        Self { dir }
    }

    /// Is it on?
    pub fn is_locked(&self) -> bool {
        let path = self.dir.file(LOCK_FILE);
        path.map_or(true, |path| !matches!(path.try_exists(), Ok(false)))
    }

    /// Turns it on; `false` if it was.
    pub fn lock(&self) -> Result<bool, CliError> {
        if self.is_locked() {
            return Ok(false);
        }
        let text = format!("locked at {}\n", now_rfc3339());
        self.dir.write_atomic(LOCK_FILE, text.as_bytes(), 0o600).map(|()| true)
    }

    /// Turns it off; `false` if it was.
    pub fn unlock(&self) -> Result<bool, CliError> {
        let path = self.dir.file(LOCK_FILE)?;
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => {
                let message = format!("cannot remove {}: {error}", path.display());
                Err(CliError::failed("data_dir_unwritable", message)
                    .hint("run this as the agent's user"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_on_until_taken_off() {
        let outer = tempfile::tempdir().unwrap();
        let switch = || KillSwitch::new(DataDir::open(outer.path()).unwrap());
        assert!(!switch().is_locked());
        assert!(switch().lock().unwrap() && !switch().lock().unwrap());
        assert!(switch().is_locked());
        assert!(switch().unlock().unwrap() && !switch().unlock().unwrap());
        assert!(!switch().is_locked());
    }

    #[test]
    fn is_on_when_the_directory_cannot_be_seen() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("d");
        let switch = KillSwitch::new(DataDir::open(&path).unwrap());
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::write(&path, "a file where the directory was").unwrap();
        assert!(switch.is_locked());
    }
}
