//! What was opened lately on this console: a convenience of the picker, never a decision.
//!
//! A list that cannot be read is left alone and counts as empty.

use adit_protocol::{ids::ComputerId, limits::MAX_TEXT};
use adit_runtime::{cli::CliError, datadir::DataDir};
use serde::{Deserialize, Serialize};

const FILE: &str = "recent.toml";
/// Largest list that is read.
const MAX_BYTES: u64 = 1024 * 1024;
/// Entries that are kept.
const MAX_RECENT: usize = 200;

/// Something that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recent {
    /// On which computer.
    pub computer: ComputerId,
    /// Name of the redirector.
    pub redirector: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    recent: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    computer_id: String,
    redirector: String,
}

/// The list, the latest first.
pub fn load(directory: &DataDir) -> Result<Vec<Recent>, CliError> {
    let Some(bytes) = directory.read(FILE, MAX_BYTES)? else { return Ok(Vec::new()) };
    let damaged = |reason: String| {
        let path = directory.path().join(FILE);
        CliError::failed("state_damaged", format!("{} is damaged: {reason}", path.display()))
            .hint("remove it: it only orders what the picker shows")
    };
    let text = str::from_utf8(&bytes).map_err(|error| damaged(error.to_string()))?;
    let file: File = toml::from_str(text).map_err(|error| damaged(error.message().to_owned()))?;
    let read = |row: Row| {
        let computer = row.computer_id.parse().ok()?;
        Some(Recent { computer, redirector: row.redirector })
    };
    Ok(file.recent.into_iter().take(MAX_RECENT).filter_map(read).collect())
}

/// Puts something in front. Whether that works changes nothing for the session.
pub fn remember(directory: &DataDir, opened: Recent) {
    if let Err(error) = try_remember(directory, opened) {
        tracing::debug!(%error, "not remembered as opened lately");
    }
}

fn try_remember(directory: &DataDir, opened: Recent) -> Result<(), CliError> {
    let mut list = load(directory)?;
    if opened.redirector.len() > MAX_TEXT || list.first() == Some(&opened) {
        return Ok(());
    }
    list.retain(|known| *known != opened);
    list.insert(0, opened);
    list.truncate(MAX_RECENT);
    let row = |recent: Recent| Row {
        computer_id: recent.computer.to_string(),
        redirector: recent.redirector,
    };
    let file = File { recent: list.into_iter().map(row).collect() };
    let text = toml::to_string(&file)
        .map_err(|error| CliError::failed("internal", format!("cannot encode: {error}")))?;
    directory.write_atomic(FILE, text.as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_is_first_and_a_damaged_list_is_left_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = DataDir::open(temporary.path().join("d")).unwrap();
        let opened = |id: u8, redirector: &str| Recent {
            computer: ComputerId([id; 16]),
            redirector: redirector.to_owned(),
        };
        for (id, redirector) in [(1, "ssh"), (2, "rdp"), (1, "ssh"), (1, "vnc")] {
            remember(&directory, opened(id, redirector));
        }
        let list = [opened(1, "vnc"), opened(1, "ssh"), opened(2, "rdp")];
        assert_eq!(load(&directory).unwrap(), list);
        directory.write_atomic(FILE, b"[[recent]", 0o600).unwrap();
        remember(&directory, opened(3, "rdp"));
        assert_eq!(load(&directory).unwrap_err().code, "state_damaged");
        assert_eq!(directory.read(FILE, MAX_BYTES).unwrap().unwrap(), b"[[recent]");
    }
}
