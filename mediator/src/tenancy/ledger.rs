//! What was erased, in a file beside the database: ids and times, nothing of a person.
//!
//! A backup that was made before an erasure holds what was erased. `restore` erases it again
//! before the backup takes the database's place.

use std::io::Write;

use adit_runtime::{cli::CliError, datadir::DataDir};
use serde::{Deserialize, Serialize};

/// The file: one JSON object a line, only ever added to.
pub(crate) const ERASED: &str = "erased.jsonl";
/// Bytes of it: some hundred thousand lines.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// One erased tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Erased {
    /// client, partner
    pub(crate) kind: String,
    pub(crate) partner_id: String,
    /// Empty for a partner.
    pub(crate) client_id: String,
    /// `partner/client` or `partner`.
    pub(crate) subject: String,
    pub(crate) erasure: String,
    pub(crate) begun_ms: u64,
}

/// All of them.
pub(crate) fn read(dir: &DataDir) -> Result<Vec<Erased>, CliError> {
    let Some(bytes) = dir.read(ERASED, MAX_BYTES)? else { return Ok(Vec::new()) };
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mut found = Vec::new();
    for line in lines {
        match serde_json::from_slice(line) {
            Ok(erased) => found.push(erased),
            // The last line of a crash while it was written: the erasure begins anew.
            Err(error) => tracing::warn!(%error, "a line of {ERASED} cannot be read"),
        }
    }
    Ok(found)
}

/// Adds one; on disk when this returns. Nothing if it is there already.
pub(crate) fn note(dir: &DataDir, erased: &Erased) -> Result<(), CliError> {
    if read(dir)?.contains(erased) {
        return Ok(());
    }
    let path = dir.file(ERASED)?;
    let failed = |error: std::io::Error| {
        CliError::failed("data_dir_unwritable", format!("cannot write {}: {error}", path.display()))
            .hint("check owner, mode and free space; nothing was erased")
    };
    let text = serde_json::to_string(erased)
        .map_err(|error| CliError::failed("internal", error.to_string()))?;
    if !dir.has(ERASED) {
        dir.write_atomic(ERASED, b"", 0o600)?;
    }
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).map_err(failed)?;
    // After a line that was cut off, too.
    write!(file, "\n{text}\n").and_then(|()| file.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_erased_is_remembered_also_behind_a_torn_line() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temporary.path().join("d")).unwrap();
        assert_eq!(read(&dir).unwrap(), []);
        let erased = |id: &str| Erased {
            kind: "client".into(),
            partner_id: "p".into(),
            client_id: id.into(),
            subject: "p/c".into(),
            erasure: "e".into(),
            begun_ms: 1,
        };
        note(&dir, &erased("1")).unwrap();
        note(&dir, &erased("1")).unwrap();
        let path = dir.file(ERASED).unwrap();
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"kind\":\"cl");
        std::fs::write(&path, text).unwrap();
        note(&dir, &erased("2")).unwrap();
        assert_eq!(read(&dir).unwrap(), [erased("1"), erased("2")]);
    }
}
