//! Default places on each platform. The only module that knows them.

use std::path::PathBuf;

#[cfg(unix)]
pub(super) fn default_data_dir(program: &str) -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(system_state().join("adit").join(program));
    }
    user_state().map(|state| state.join("adit").join(program))
}

#[cfg(windows)]
pub(super) fn default_data_dir(program: &str) -> Option<PathBuf> {
    absolute("LOCALAPPDATA").map(|state| state.join("adit").join(program))
}

#[cfg(all(unix, not(target_os = "macos")))]
fn system_state() -> PathBuf {
    PathBuf::from("/var/lib")
}

#[cfg(target_os = "macos")]
fn system_state() -> PathBuf {
    PathBuf::from("/Library/Application Support")
}

#[cfg(all(unix, not(target_os = "macos")))]
fn user_state() -> Option<PathBuf> {
    // A relative value is invalid and ignored (XDG Base Directory Specification).
    absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
}

#[cfg(target_os = "macos")]
fn user_state() -> Option<PathBuf> {
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join("Library/Application Support")))
}

fn absolute(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}
