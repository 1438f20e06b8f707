//! `mediator restore`: a backup in the place of the database, with new audit trees.
//!
//! The log goes on in trees that name the heads of the backup: continuing the old trees would
//! show a second history to everybody who holds a newer head. What ended or was used up since the
//! backup must not come back: all logins end, all enrolment tokens are void, erasures are done
//! again, and what was withdrawn in the database that is there, as far as it can be read, stays so.
//! Nor may evidence go that somebody ordered to be kept since: holds and longer retention stay.
//! Must never destroy the database that was there: it is kept beside.

use std::{
    fs::File,
    io::{BufReader, Write},
    path::Path,
};

use adit_ledger::{Event, Level};
use adit_runtime::{
    cli::{CliError, GlobalArgs},
    datadir::Part,
    secretio,
    time::unix_ms,
};
use serde_json::json;
use sqlx::any::AnyRow;
use zeroize::Zeroizing;

use crate::{
    admin::actor::LOCAL,
    age::{self, Identity, is_sealed},
    audit::retention::{self, Policy},
    config::PROGRAM,
    init::{HOME_PARTNER, ROOT_FINGERPRINT},
    place::{DATABASE, MediatorDir, STAGED, store_error},
    store::{Columns, Mode, Store, StoreError, WriteTx, Writer, audit, bigint, compact, tenants},
    tenancy::{
        again::{Copy, Known, again},
        ledger::{self, Erased},
    },
    vault::tenant::TenantKeys,
};

/// Restores.
pub(crate) async fn run(
    global: &GlobalArgs,
    file: &Path,
    identity: Option<&Path>,
) -> Result<(), CliError> {
    let place = MediatorDir::open(global)?;
    let _lock = place.dir.lock(PROGRAM.name)?;
    // What is missing is said now, not when the mediator shall start.
    place.installation()?;
    let keys = TenantKeys::new(place.wrapping_keys()?, place.dir.clone());
    let failed = |what: std::io::Error| {
        CliError::failed("restore_failed", format!("cannot restore {}: {what}", file.display()))
    };
    place.remove_staged()?;
    stage(&place, file, identity)?;
    let gone = withdrawn(&place).await;
    let taken_along = gone.whole;
    if let Err(error) = prepare(&place, &keys, gone).await {
        place.remove_staged()?;
        return Err(error);
    }
    let (now, database) = (unix_ms(), place.dir.file(DATABASE)?);
    let kept = format!("{DATABASE}.before-restore-{now}");
    let was_there = database.exists();
    if was_there {
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
    place.remove_staged()?;
    let output = global.output();
    output.emit(&json!({
        "restored": file.display().to_string(),
        "kept": was_there.then_some(&kept),
        "withdrawals_kept": taken_along,
    }))?;
    match was_there {
        true => {
            output
                .human(format_args!("restored; the database that was there is kept as {kept}"))?;
        }
        false => output.human("restored; no database was there")?,
    }
    output.human(match taken_along {
        true => "Passwords, second factors and the contents of roles are those of the backup.",
        false => {
            "No database was there that could be read as a whole: users that were disabled, API keys, rights \
             and devices that were withdrawn since the backup hold again, and legal holds that began \
             since do not. Look through users, API keys, bindings, devices, clients and relays \
             before anybody works, and set legal holds anew. What was erased since is erased again \
             only if erased.jsonl is in the data directory, from a copy made since: else erase it anew."
        }
    })
}

/// A copy of the backup to be worked on, opened if it is sealed.
fn stage(place: &MediatorDir, file: &Path, identity: Option<&Path>) -> Result<(), CliError> {
    let failed = |what: &dyn std::fmt::Display| {
        CliError::failed("restore_failed", format!("cannot restore {}: {what}", file.display()))
    };
    let identities = identity.map(|path| {
        secretio::warn_if_exposed(path);
        let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(|error| {
            CliError::failed("file_unreadable", format!("{}: {error}", path.display()))
        })?;
        Identity::read(&text).map_err(|error| {
            CliError::usage("usage", format!("{}: {error}", path.display()))
                .hint("mediator backup-key makes such a file; so does age-keygen")
        })
    });
    let identities = identities.transpose()?;
    let mut from = File::open(file).map(BufReader::new).map_err(|error| failed(&error))?;
    let sealed = is_sealed(&mut from).map_err(|error| failed(&error))?;
    let part = Part::create(&place.dir.file(STAGED)?).map_err(|error| failed(&error))?;
    let mut part = Staging(part);
    match (sealed, identities) {
        (true, None) => {
            return Err(CliError::usage("usage", format!("{} is sealed", file.display()))
                .hint("give the key that opens it: --identity FILE"));
        }
        (true, Some(identities)) => age::open(&identities, from, &mut part).map_err(|error| {
            CliError::failed("backup_invalid", format!("{}: {error}", file.display()))
        })?,
        (false, _) => {
            std::io::copy(&mut from, &mut part).map_err(|error| failed(&error))?;
        }
    }
    part.0.finish().map_err(|error| failed(&error))
}

/// What is staged, as the library writes.
struct Staging(Part);

impl Write for Staging {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What ends a right, by a statement that finds it and one that ends it again. `$1` to `$3` are
/// the texts found, `$4` the time.
const WITHDRAWALS: [(&str, &str); 12] = [
    (
        "SELECT id AS a, '' AS b, '' AS c FROM account WHERE disabled = 1",
        "UPDATE account SET disabled = 1 WHERE id = $1 AND disabled = 0 AND $2 = $3 AND $4 > 0",
    ),
    (
        "SELECT id AS a, '' AS b, '' AS c FROM api_key WHERE revoked_ms IS NOT NULL",
        "UPDATE api_key SET revoked_ms = $4 WHERE id = $1 AND revoked_ms IS NULL AND $2 = $3",
    ),
    (
        "SELECT id AS a, '' AS b, '' AS c FROM relay WHERE disabled = 1",
        "UPDATE relay SET disabled = 1 WHERE id = $1 AND disabled = 0 AND $2 = $3 AND $4 > 0",
    ),
    (
        "SELECT id AS a, '' AS b, '' AS c FROM access_binding WHERE valid_to_ms IS NOT NULL",
        "UPDATE access_binding SET valid_to_ms = $4 \
         WHERE id = $1 AND valid_to_ms IS NULL AND $2 = $3",
    ),
    (
        // Out of that group, and not in it again.
        "SELECT DISTINCT account_id AS a, label AS b, '' AS c FROM account_label x \
         WHERE NOT EXISTS (SELECT 1 FROM account_label y WHERE y.account_id = x.account_id \
         AND y.label = x.label AND y.valid_to_ms IS NULL)",
        "UPDATE account_label SET valid_to_ms = $4 \
         WHERE account_id = $1 AND label = $2 AND valid_to_ms IS NULL AND $3 = ''",
    ),
    (
        "SELECT device AS a, reason AS b, '' AS c FROM device_block",
        "INSERT INTO device_block (device, reason, since_ms) SELECT $1, $2, $4 WHERE $3 = '' \
         ON CONFLICT DO NOTHING",
    ),
    (
        "SELECT partner_id AS a, device AS b, reason AS c FROM partner_device_block",
        "INSERT INTO partner_device_block (partner_id, device, reason, since_ms) \
         SELECT $1, $2, $3, $4 WHERE EXISTS (SELECT 1 FROM partner WHERE id = $1) \
         ON CONFLICT DO NOTHING",
    ),
    (
        "SELECT client_id AS a, reason AS b, '' AS c FROM client_lock",
        "INSERT INTO client_lock (client_id, reason, since_ms) \
         SELECT $1, $2, $4 WHERE $3 = '' AND EXISTS (SELECT 1 FROM client WHERE id = $1) \
         ON CONFLICT DO NOTHING",
    ),
    (
        REMOVED,
        "DELETE FROM computer WHERE id = $1 AND partner_id = $2 AND client_id = $3 AND $4 > 0",
    ),
    (
        REMOVED,
        "DELETE FROM enrolment WHERE computer_id = $1 AND partner_id = $2 AND $3 <> '' AND $4 > 0",
    ),
    (
        REMOVED,
        "DELETE FROM credential \
         WHERE computer_id = $1 AND partner_id = $2 AND client_id = $3 AND $4 > 0",
    ),
    (
        // Also for the backup after the next.
        REMOVED,
        "INSERT INTO removed_computer (computer_id, partner_id, client_id, removed_ms) \
         SELECT $1, $2, $3, $4 WHERE EXISTS (SELECT 1 FROM client WHERE id = $3) \
         ON CONFLICT DO NOTHING",
    ),
];

/// Computers that were removed one by one.
const REMOVED: &str =
    "SELECT computer_id AS a, partner_id AS b, client_id AS c FROM removed_computer";

/// What the database that is there has and the backup may lack.
#[derive(Default)]
pub(crate) struct Withdrawn {
    /// All of it could be read.
    whole: bool,
    /// For each of [`WITHDRAWALS`] what it found.
    ended: Vec<Vec<[String; 3]>>,
    /// How long logs are kept at least.
    policies: Vec<Policy>,
    known: Known,
}

/// What was withdrawn in the database that is there.
async fn withdrawn(place: &MediatorDir) -> Withdrawn {
    let Ok(store) = place.store(Mode::Write).await else { return Withdrawn::default() };
    let all = read_withdrawn(&store).await;
    store.close().await;
    all
}

/// What can be read of it: what cannot keeps nothing else from staying withdrawn.
pub(crate) async fn read_withdrawn(store: &Store) -> Withdrawn {
    let mut whole = true;
    let mut ended = Vec::new();
    for (find, _) in WITHDRAWALS {
        let rows = sqlx::query(find).fetch_all(&store.readers).await.map_err(StoreError::from);
        let rows = readable(rows, &mut whole).into_iter();
        let three = |row: AnyRow| Ok([row.text("a")?, row.text("b")?, row.text("c")?]);
        ended.push(rows.filter_map(|row| readable(three(row).map(Some), &mut whole)).collect());
    }
    let policies = readable(retention::policies(&store.readers).await, &mut whole);
    let known = readable(Known::of(store).await, &mut whole);
    Withdrawn { whole, ended, policies, known }
}

fn readable<T: Default>(found: Result<T, StoreError>, whole: &mut bool) -> T {
    found.unwrap_or_else(|error| {
        tracing::warn!(%error, "some of what was withdrawn cannot be read");
        *whole = false;
        T::default()
    })
}

/// Ends it in the copy, too; how much came back with the backup.
async fn withdraw_again(tx: &mut WriteTx, gone: &[Vec<[String; 3]>]) -> Result<u64, StoreError> {
    let (mut count, now) = (0_u64, bigint(tx.now_ms()));
    for ((_, end), rows) in WITHDRAWALS.iter().zip(gone) {
        for [a, b, c] in rows {
            let ended = sqlx::query(*end)
                .bind(a.clone())
                .bind(b.clone())
                .bind(c.clone())
                .bind(now)
                .execute(tx.sql())
                .await?;
            count = count.saturating_add(ended.rows_affected());
        }
    }
    Ok(count)
}

/// Keeps in the copy what is kept now; how many holds and times the backup had not.
async fn keep_again(
    tx: &mut WriteTx,
    policies: &[Policy],
    configured_ms: u64,
) -> Result<u64, StoreError> {
    let mut count = 0_u64;
    for policy in policies {
        let changed = retention::keep_no_less(tx, policy, configured_ms).await?;
        count = count.saturating_add(changed);
    }
    Ok(count)
}

/// Checks the copy and starts new trees in it.
async fn prepare(place: &MediatorDir, keys: &TenantKeys, gone: Withdrawn) -> Result<(), CliError> {
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
    let configured_ms = place.settings.audit.retention_ms;
    let erased = ledger::read(&place.dir)?;
    let stop = tokio_util::sync::CancellationToken::new();
    let signer = installation.log_signer();
    let (writer, task) = Writer::start(&store, signer, stop.clone()).await.map_err(store_error)?;
    let (done, ()) = tokio::join!(
        async {
            let done = renew((&store, &writer), keys, gone, &erased, configured_ms).await;
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

/// Makes a copy of before one of now: new trees, and nothing back that ended. How much was erased.
pub(crate) async fn renew(
    (store, writer): (&Store, &Writer),
    keys: &TenantKeys,
    gone: Withdrawn,
    erased: &[Erased],
    configured_ms: u64,
) -> Result<u64, StoreError> {
    let trees = audit::current(&store.readers).await?;
    let home = tenants::setting(&store.readers, HOME_PARTNER).await?;
    let home = home.ok_or(StoreError::Missing("home partner in the backup"))?;
    let (log, Withdrawn { ended, policies, known, .. }) = (home.clone(), gone);
    let restart = writer.write(move |tx| {
        Box::pin(async move {
            for (partner, name, head) in trees {
                tx.start_tree(&partner, &name, Some(&head)).await?;
            }
            let (logins, tokens) = withdraw(tx).await?;
            let again = withdraw_again(tx, &ended).await?;
            let kept = keep_again(tx, &policies, configured_ms).await?;
            let event = Event::new("backup.restored", Level::Critical)
                .actor(LOCAL)
                .outcome("done")
                .extra("logins_ended", logins)
                .extra("tokens_voided", tokens)
                .extra("withdrawn_again", again)
                .extra("kept_again", kept);
            tx.append(&log, event).await.map(|_| ())
        })
    });
    restart.await?;
    // After the holds of both: what is under one is not erased.
    again(&Copy { store, writer, keys, home: &home }, &known, erased).await
}

/// Ends all logins and voids all enrolment tokens; how many of each. A token that was used or
/// revoked since the backup would be good again.
async fn withdraw(tx: &mut WriteTx) -> Result<(u64, u64), StoreError> {
    let logins = sqlx::query("DELETE FROM login").execute(tx.sql()).await?;
    let tokens = sqlx::query("UPDATE enroll_token SET uses_left = 0 WHERE uses_left > 0");
    let tokens = tokens.execute(tx.sql()).await?;
    Ok((logins.rows_affected(), tokens.rows_affected()))
}
