//! Copies of the database: into a file of this machine, or sealed for recipients on their way out.
//!
//! Without the keys of the data directory, as ever. What leaves the machine over the network is all
//! partners' persons, computers and logs: so it takes the right to both on the installation, and it
//! is sealed for recipients that whoever asks names (the record names them, too). Must never give
//! away a byte before the record of that is durable, nor leave a copy in the clear behind.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use adit_ledger::{Event, Level};
use adit_protocol::{code::failure, ids::ComputerId};
use adit_runtime::{
    cli::CliError,
    datadir::{DataDir, Part},
};
use serde_json::{Value, json};

use super::{
    actor::{Actor, LOCAL},
    handle::Who,
};
use crate::{
    age::{AgeError, Recipient, Sealer},
    place::store_error,
    roles::Permission,
    store::{self, Store, StoreError, fresh_id, tenants},
};

/// Begin and end of a copy's name while it is sealed; it has none as soon as it is whole.
const COPY: (&str, &str) = ("backup-", ".part");
/// Bytes that are sealed at once.
const STEP: usize = 256 * 1024;

/// Writes a copy to a file of this machine, sealed if there are recipients.
pub(super) async fn to_file(
    (context, actor): Who<'_>,
    file: String,
    recipients: Vec<String>,
) -> Result<Vec<Value>, CliError> {
    actor.local_only()?;
    let path = PathBuf::from(&file);
    if !path.is_absolute() {
        return Err(CliError::usage("usage", "the path of a backup must be absolute"));
    }
    if recipients.is_empty() {
        record((context, actor), &[]).await?;
        super::export::copy_database(&context.store, &path).await?;
        return Ok(vec![json!({"file": file, "keys": false})]);
    }
    let all = Recipient::parse_all(&recipients).map_err(unusable)?;
    if path.exists() {
        return Err(
            failed(&path, "it exists").hint("give the path of a file that does not exist yet")
        );
    }
    let mut part = Part::create(&path).map_err(|error| failed(&path, error))?;
    record((context, actor), &all).await?;
    let copy = copy(&context.store, &context.dir).await?;
    let written = tokio::task::spawn_blocking(move || {
        seal(copy, &all, |bytes| Ok(part.write(&bytes)?)).and_then(|()| Ok(part.finish()?))
    });
    let written = written.await.map_err(|_| failed(&path, "it was given up"))?;
    written.map_err(|error| failed(&path, error))?;
    Ok(vec![json!({"file": file, "keys": false, "recipients": recipients})])
}

/// May it be taken away over the network, for these recipients?
pub(crate) async fn judge(
    (context, actor): Who<'_>,
    recipients: &[String],
) -> Result<Vec<Recipient>, CliError> {
    // Everything that there is, the logs of all partners included.
    for permission in [Permission::ManagePolicy, Permission::ExportAudit] {
        actor.may_everywhere(context, &[permission]).await.map_err(|error| match error.code {
            // One of the two alone would be asked for in vain.
            failure::NOT_PERMITTED => error.hint(
                "a backup takes the permissions policy.manage and audit.export on the \
                 installation, not on a partner alone",
            ),
            _ => error,
        })?;
    }
    actor.must_be_fresh(context).await?;
    Recipient::parse_all(recipients).map_err(unusable)
}

/// Records it. First of all: the copy then shows that it was made.
pub(crate) async fn record(
    (context, actor): Who<'_>,
    recipients: &[Recipient],
) -> Result<(), CliError> {
    let home = context.home().await.map_err(store_error)?;
    let names: Vec<String> = recipients.iter().map(ToString::to_string).collect();
    let by = actor.clone();
    let written = context.writer.write(move |tx| {
        Box::pin(async move {
            let mut made = match by {
                Actor::Local => {
                    Event::new("backup.made", Level::Significant).actor(LOCAL).outcome("done")
                }
                by => {
                    let partner = tenants::partner_by_id(tx, &home).await?;
                    by.event("backup.made", &partner.name)
                }
            };
            if !names.is_empty() {
                made = made.extra("recipients", names.join(" "));
            }
            tx.append(&home, made).await.map(|_| ())
        })
    });
    written.await.map_err(store_error)
}

/// A consistent copy, which nobody else can find.
pub(crate) async fn copy(store: &Store, dir: &DataDir) -> Result<File, CliError> {
    let id = fresh_id().map_err(store_error)?;
    let path = dir.file(&format!("{}{id}{}", COPY.0, COPY.1))?;
    let forget = Forget(&path);
    store::private_file(&path).map_err(|error| failed(&path, error))?;
    store.copy_to(&path).await.map_err(|error| match error {
        error @ StoreError::Database(_) => failed(&path, error),
        error => store_error(error),
    })?;
    let opened = File::open(&path).map_err(|error| failed(&path, error))?;
    drop(forget);
    Ok(opened)
}

/// Takes the name from a copy, whatever becomes of it.
struct Forget<'a>(&'a Path);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        // Best effort: the next start removes what is left.
        let _ = std::fs::remove_file(self.0);
    }
}

/// Removes what a mediator that was killed meanwhile left.
pub(crate) fn forget_left(dir: &DataDir) {
    let entries = std::fs::read_dir(dir.path()).into_iter().flatten();
    for entry in entries.filter_map(Result::ok) {
        if entry.file_name().to_str().is_some_and(is_copy)
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::warn!(%error, "a copy of the database that was not finished cannot be removed");
        }
    }
}

/// Is it one of ours, or what the database has beside one? Whatever else is called a backup is
/// somebody's.
fn is_copy(name: &str) -> bool {
    let rest = name.strip_prefix(COPY.0).and_then(|rest| rest.split_once(COPY.1));
    rest.is_some_and(|(id, beside)| {
        let ours = id.parse::<ComputerId>().is_ok_and(|parsed| parsed.to_string() == id);
        ours && ["", "-journal", "-wal", "-shm"].contains(&beside)
    })
}

/// Seals a copy, piece by piece.
pub(crate) fn seal(
    mut copy: File,
    recipients: &[Recipient],
    mut out: impl FnMut(Vec<u8>) -> Result<(), AgeError>,
) -> Result<(), AgeError> {
    let (mut sealer, begun) = Sealer::new(recipients)?;
    out(begun)?;
    let mut step = vec![0; STEP];
    loop {
        match copy.read(&mut step) {
            Ok(0) => return out(sealer.finish()?),
            Ok(read) => out(sealer.more(step.get(..read).unwrap_or_default())?)?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn failed(path: &Path, what: impl std::fmt::Display) -> CliError {
    CliError::failed("backup_failed", format!("cannot write {}: {what}", path.display()))
}

fn unusable(error: AgeError) -> CliError {
    CliError::usage("usage", error.to_string())
        .hint("mediator backup-key FILE makes a key and prints its recipient; age-keygen does, too")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_start_removes_what_is_left_of_copies_and_nothing_else() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temporary.path().join("d")).unwrap();
        let id = fresh_id().unwrap();
        let left = [format!("backup-{id}.part"), format!("backup-{id}.part-journal")];
        let kept = [
            "backup-monday.part".to_owned(),
            "backup-monday.part1.rar".to_owned(),
            "backup-.part".to_owned(),
            format!("backup-{id}"),
            format!("backup-{id}.part.gz"),
            format!("backup-{}.part", id.to_uppercase()),
            format!("my-backup-{id}.part"),
        ];
        for name in left.iter().chain(&kept) {
            std::fs::write(dir.file(name).unwrap(), "x").unwrap();
        }
        forget_left(&dir);
        assert!(left.iter().all(|name| !dir.has(name)));
        for name in &kept {
            assert!(dir.has(name), "{name}");
        }
    }
}
