//! `audit verify --receipts`: what the ends signed, against the log and against each other.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use adit_ledger::Reconciler;
use adit_runtime::cli::{CliError, GlobalArgs};

use crate::{
    place::{MediatorDir, store_error},
    proof,
    store::Mode,
};

/// What both ends signed.
pub(super) fn read(files: &[PathBuf]) -> Result<Reconciler, CliError> {
    let mut reconciler = Reconciler::new();
    for path in files {
        reconciler.receipts(open(path)?).map_err(|error| unreadable(path, &error))?;
    }
    Ok(reconciler)
}

/// Receipts against each other and the log: an export, which they watched while it was verified,
/// or the store's.
pub(super) async fn compare(
    global: &GlobalArgs,
    is_export: bool,
    mut reconciler: Reconciler,
) -> Result<(), CliError> {
    if !is_export {
        let store = MediatorDir::open(global)?.store(Mode::Read).await?;
        let sessions: Vec<String> = reconciler.sessions().collect();
        for session in sessions {
            let found = proof::granted(&store.readers, &session).await.map_err(store_error)?;
            found.iter().for_each(|entry| reconciler.entry(entry));
        }
    }
    let found = reconciler.finish();
    let output = global.output();
    output.emit(&found.describe())?;
    output.human(&found)?;
    match found.findings.first() {
        None => Ok(()),
        Some(first) => Err(CliError::failed(
            "receipts_mismatch",
            format!("{} things do not fit; the first: {first}", found.findings.len()),
        )
        .hint("keep the receipts of both ends, and the heads that they saw")),
    }
}

fn open(path: &Path) -> Result<BufReader<File>, CliError> {
    File::open(path).map(BufReader::new).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::failed("file_unreadable", format!("{}: {error}", path.display()))
}
