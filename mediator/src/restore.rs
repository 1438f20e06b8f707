//! `mediator restore`: a backup in the place of the database, with new audit trees.
//!
//! The log goes on in trees that name the heads of the backup: continuing the old trees would
//! show a second history to everybody who holds a newer head. What ended or was used up since the
//! backup must not come back: all logins end, and tokens good for one more enrolment are void.
//! Must never destroy the database that was there: it is kept beside.

use std::path::Path;

use adit_ledger::{Event, Level};
use adit_runtime::{
    cli::{CliError, GlobalArgs},
    time::unix_ms,
};
use serde_json::json;

use crate::{
    config::PROGRAM,
    init::{HOME_PARTNER, ROOT_FINGERPRINT},
    place::{DATABASE, MediatorDir, store_error},
    store::{Mode, Store, StoreError, WriteTx, Writer, audit, compact, tenants},
    tenancy::{erase, ledger},
};

/// Where the backup is worked on.
const STAGED: &str = "restore.db";

/// Restores.
pub(crate) async fn run(global: &GlobalArgs, file: &Path) -> Result<(), CliError> {
    let place = MediatorDir::open(global)?;
    let _lock = place.dir.lock(PROGRAM.name)?;
    let failed = |what: std::io::Error| {
        CliError::failed("restore_failed", format!("cannot restore {}: {what}", file.display()))
    };
    remove_staged(&place)?;
    let bytes = std::fs::read(file).map_err(failed)?;
    place.dir.write_atomic(STAGED, &bytes, 0o600)?;
    let prepared = prepare(&place).await;
    if let Err(error) = prepared {
        remove_staged(&place)?;
        return Err(error);
    }
    let (now, database) = (unix_ms(), place.dir.file(DATABASE)?);
    let kept = format!("{DATABASE}.before-restore-{now}");
    if database.exists() {
        // Closing a database cleanly empties its log; a copy keeps both together otherwise.
        let old = place.store(Mode::Write).await;
        if let Ok(old) = old {
            old.copy_to(&place.dir.file(&kept)?).await.map_err(store_error)?;
            old.close().await;
        } else {
            std::fs::copy(&database, place.dir.file(&kept)?).map_err(failed)?;
        }
    }
    for end in ["-wal", "-shm"] {
        let stale = place.dir.file(&format!("{DATABASE}{end}"))?;
        if stale.exists() {
            std::fs::remove_file(stale).map_err(failed)?;
        }
    }
    place.forget_heads()?;
    std::fs::rename(place.dir.file(STAGED)?, &database).map_err(failed)?;
    remove_staged(&place)?;
    let output = global.output();
    output.emit(&json!({"restored": file.display().to_string(), "kept": kept}))?;
    output.human(format_args!("restored; the database that was there is kept as {kept}"))
}

/// Checks the copy and starts new trees in it.
async fn prepare(place: &MediatorDir) -> Result<(), CliError> {
    let installation = place.installation()?;
    let path = place.dir.file(STAGED)?;
    let store = Store::open(&path, Mode::Write)
        .await
        .map_err(|_| CliError::failed("backup_invalid", "the file is no backup of a mediator"))?;
    let root = tenants::setting(&store.readers, ROOT_FINGERPRINT).await.map_err(store_error)?;
    if root != Some(installation.root().fingerprint().to_string()) {
        return Err(CliError::failed(
            "backup_foreign",
            "the backup belongs to an installation with another root key",
        ));
    }
    let trees = audit::current(&store.readers).await.map_err(store_error)?;
    let home = tenants::setting(&store.readers, HOME_PARTNER).await.map_err(store_error)?;
    let stop = tokio_util::sync::CancellationToken::new();
    let signer = installation.log_signer();
    let (writer, task) = Writer::start(&store, signer, stop.clone()).await.map_err(store_error)?;
    let restart = writer.write(move |tx| {
        Box::pin(async move {
            for (partner, name, head) in trees {
                tx.start_tree(&partner, &name, Some(&head)).await?;
            }
            let home = home.ok_or(StoreError::Missing("home partner in the backup"))?;
            let (logins, tokens) = withdraw(tx).await?;
            let event = Event::new("backup.restored", Level::Critical)
                .actor("local administrator")
                .outcome("done")
                .extra("logins_ended", logins)
                .extra("tokens_voided", tokens);
            tx.append(&home, event).await
        })
    });
    let erased = ledger::read(&place.dir)?;
    let (done, ()) = tokio::join!(
        async {
            let done = restart.await;
            let done = match done {
                Ok(_) => erase::again(&store, &writer, &erased).await,
                Err(error) => Err(error),
            };
            stop.cancel();
            done
        },
        task
    );
    let erased = done.map_err(store_error)?;
    if erased > 0 {
        // Not a word of it may be left in the pages of the copy.
        compact::run(&store, true).await.map_err(store_error)?;
    }
    store.close().await;
    Ok(())
}

/// Ends all logins and voids the tokens that have one use left; how many of each.
async fn withdraw(tx: &mut WriteTx) -> Result<(u64, u64), StoreError> {
    let logins = sqlx::query("DELETE FROM login").execute(tx.sql()).await?;
    let tokens = sqlx::query("UPDATE enroll_token SET uses_left = 0 WHERE uses_left = 1");
    let tokens = tokens.execute(tx.sql()).await?;
    Ok((logins.rows_affected(), tokens.rows_affected()))
}

fn remove_staged(place: &MediatorDir) -> Result<(), CliError> {
    for end in ["", "-wal", "-shm"] {
        let path = place.dir.file(&format!("{STAGED}{end}"))?;
        if path.exists() {
            std::fs::remove_file(&path).map_err(|error| {
                CliError::failed("restore_failed", format!("{}: {error}", path.display()))
            })?;
        }
    }
    Ok(())
}
