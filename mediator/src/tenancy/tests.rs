//! Erasure, retention and restored backups together: whatever order they come in, the log verifies,
//! what was erased stays erased, and nobody else loses anything.

use adit_ledger::{Event, Level};
use adit_runtime::{datadir::DataDir, time::unix_ms};

use super::{
    again::{Copy, Known, again},
    ledger::Erased,
};
use crate::{
    audit::{
        holds,
        retention::{DAY_MS, prune},
    },
    init::HOME_PARTNER,
    restore::{Withdrawn, read_withdrawn, renew},
    store::{
        erasures::{self, Counts, Erasure, Kind},
        locks, tenants,
        tests::{Fixture, Running},
    },
    vault::{tenant::TenantKeys, wrap::WrappingKeys},
};

const PATH: &str = "acme/gone";

struct Town {
    fixture: Fixture,
    backups: tempfile::TempDir,
    partner: tenants::Partner,
    home: String,
    keys: TenantKeys,
}

impl Town {
    async fn new() -> (Self, Running) {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let (partner, home) = (running.partner("acme").await, running.partner("home").await.id);
        let setting = home.clone();
        let job = running.writer.write(move |tx| {
            Box::pin(async move { tenants::set(tx, HOME_PARTNER, &setting).await })
        });
        job.await.unwrap();
        let backups = tempfile::tempdir().unwrap();
        let dir = DataDir::open(backups.path().join("d")).unwrap();
        let keys = TenantKeys::new(WrappingKeys::load(&dir, None).unwrap(), dir);
        (Self { fixture, backups, partner, home, keys }, running)
    }

    /// A client of that path, and entries by `actor` about it.
    async fn client(&self, running: &Running, actor: &'static str, entries: u64) -> String {
        self.client_at(running, PATH, actor, entries).await
    }

    async fn client_at(
        &self,
        running: &Running,
        path: &'static str,
        actor: &'static str,
        entries: u64,
    ) -> String {
        let partner = self.partner.clone();
        let job = running.writer.write(move |tx| {
            Box::pin(async move {
                let name = path.split_once('/').unwrap().1;
                let client = tenants::create_client(tx, &partner, name).await?;
                let added = Event::new("client.added", Level::Significant).client(path);
                tx.append(&partner.id, added).await?;
                Ok(client.id)
            })
        });
        let id = job.await.unwrap();
        self.entries(running, path, actor, entries).await;
        id
    }

    async fn entries(&self, running: &Running, path: &'static str, actor: &'static str, n: u64) {
        self.later_entries(running, path, actor, (n, 0)).await;
    }

    /// So many that are recorded so much later, milliseconds.
    async fn later_entries(
        &self,
        running: &Running,
        path: &'static str,
        actor: &'static str,
        (n, later): (u64, u64),
    ) {
        let partner = self.partner.id.clone();
        let job = running.writer.write(move |tx| {
            Box::pin(async move {
                tx.set_now(tx.now_ms() + later);
                for _ in 0..n {
                    let event = Event::new("session.granted", Level::Significant);
                    tx.append(&partner, event.client(path).actor(actor)).await?;
                }
                Ok(())
            })
        });
        job.await.unwrap();
    }

    fn id(&self, client: &str) -> String {
        format!("erasure of {client}")
    }

    async fn hold(&self, running: &Running, hold: bool) {
        let partner = self.partner.id.clone();
        let job = running
            .writer
            .write(move |tx| Box::pin(async move { holds::set(tx, &partner, hold).await }));
        job.await.unwrap();
    }

    /// As the command does, up to the certificate.
    async fn erase(&self, running: &Running, client: &str) -> Erased {
        let erased = self.begin(running, client).await;
        assert_eq!(self.again(running, std::slice::from_ref(&erased)).await, 1);
        let id = erased.erasure.clone();
        let job = running.writer.write(move |tx| {
            Box::pin(async move { erasures::finish(tx, &id, unix_ms(), "{}").await })
        });
        job.await.unwrap();
        erased
    }

    /// What is left to be erased in the database, of which nobody else knows anything.
    async fn again(&self, running: &Running, erased: &[Erased]) -> u64 {
        let Running { store, writer, .. } = running;
        let copy = Copy { store, writer, keys: &self.keys, home: &self.home };
        again(&copy, &Known::default(), erased).await.unwrap()
    }

    /// Its beginning.
    async fn begin(&self, running: &Running, client: &str) -> Erased {
        let new = Erasure {
            id: self.id(client),
            kind: Kind::Client,
            partner_id: self.partner.id.clone(),
            client_id: client.to_owned(),
            subject: PATH.to_owned(),
            begun_by: None,
            begun_ms: unix_ms(),
            finished_ms: None,
            counts: Counts::default(),
            certificate: String::new(),
        };
        let erased = Erased {
            kind: "client".into(),
            partner_id: new.partner_id.clone(),
            client_id: new.client_id.clone(),
            subject: new.subject.clone(),
            erasure: new.id.clone(),
            begun_ms: new.begun_ms,
            clients: Vec::new(),
            tenant_keys: 0,
        };
        let job = running
            .writer
            .write(move |tx| Box::pin(async move { erasures::begin(tx, &new).await }));
        job.await.unwrap();
        erased
    }

    async fn backup(&self, running: &Running, name: &str) -> std::path::PathBuf {
        let file = self.backups.path().join(name);
        running.store.copy_to(&file).await.unwrap();
        file
    }

    /// As `restore` does.
    async fn restore(
        &self,
        running: Running,
        backup: &std::path::Path,
        erased: &[Erased],
    ) -> Running {
        let gone = read_withdrawn(&running.store).await;
        self.restore_with(running, backup, erased, gone).await
    }

    /// The same where the database that was there can be read so far.
    async fn restore_with(
        &self,
        running: Running,
        backup: &std::path::Path,
        erased: &[Erased],
        gone: Withdrawn,
    ) -> Running {
        running.close().await;
        self.fixture.put_back(backup);
        let running = self.fixture.open().await.unwrap();
        let copy = (&running.store, &running.writer);
        renew(copy, &self.keys, gone, erased, 0).await.unwrap();
        verified(&running).await;
        running
    }

    /// Nothing of the client is erased, nobody gets to it, and it will be gone on with.
    async fn waits(&self, running: &Running, client: &str, when: &str) {
        assert_eq!(told_by(running, "zorro").await, 20, "{when}");
        let pool = &running.store.readers;
        let left = erasures::left(pool).await.unwrap();
        let ids: Vec<_> = left.into_iter().map(|one| one.id).collect();
        assert_eq!(ids, [self.id(client)], "{when}");
        let there = erasures::clients(pool, &self.partner.id).await.unwrap();
        assert!(there.iter().any(|id| id == client), "{when}");
        assert!(locks::client(pool, client).await.unwrap(), "{when}");
    }

    /// What is due a year later.
    async fn prune(&self, running: &Running) -> u64 {
        let stop = tokio_util::sync::CancellationToken::new();
        let due = unix_ms() + 365 * DAY_MS;
        prune(&running.store, &running.writer, 0, &[], due, &stop).await.unwrap()
    }
}

async fn verified(running: &Running) {
    let report = crate::admin::export::verify_store(&running.store, Default::default());
    report.await.unwrap().unwrap();
}

async fn told_by(running: &Running, actor: &str) -> i64 {
    sqlx::query_scalar("SELECT COUNT(*) FROM audit_entry WHERE line LIKE $1")
        .bind(format!("%{actor}%"))
        .fetch_one(&running.store.readers)
        .await
        .unwrap()
}

#[tokio::test]
async fn what_was_erased_stays_so_through_retention_and_restored_backups() {
    let (town, running) = Town::new().await;
    let gone = town.client(&running, "zorro", 1100).await;
    town.later_entries(&running, PATH, "zorro", (100, 400 * DAY_MS)).await;
    town.later_entries(&running, "acme/stays", "stayer", (300, 400 * DAY_MS)).await;
    let before = town.backup(&running, "before").await;
    // What is old goes by age, the rest by the erasure.
    assert!(town.prune(&running).await > 1000);
    verified(&running).await;
    let pruned = town.backup(&running, "pruned").await;
    let erased = vec![town.erase(&running, &gone).await];
    verified(&running).await;
    assert_eq!((told_by(&running, "zorro").await, told_by(&running, "stayer").await), (0, 300));
    // A backup of before both, of between, and of before again: nothing comes back.
    let mut running = running;
    for backup in [&before, &pruned, &before] {
        running = town.restore(running, backup, &erased).await;
        assert_eq!(told_by(&running, "zorro").await, 0, "{}", backup.display());
        assert_eq!(told_by(&running, "stayer").await, 300);
        let clients = erasures::clients(&running.store.readers, &town.partner.id).await.unwrap();
        assert!(!clients.contains(&gone));
        town.prune(&running).await;
        verified(&running).await;
    }
    // Doing it once more changes nothing.
    assert_eq!(town.again(&running, &erased).await, 0);
    running.close().await;
}

/// An older backup is no way around a hold.
#[tokio::test]
async fn an_erasure_that_a_hold_has_stopped_is_not_done_by_a_restored_backup() {
    let (town, running) = Town::new().await;
    let gone = town.client(&running, "zorro", 20).await;
    let before = town.backup(&running, "before").await;
    let erased = vec![town.begin(&running, &gone).await];
    let after = town.backup(&running, "after").await;
    town.hold(&running, true).await;
    let held = town.backup(&running, "held").await;
    let mut running = running;
    // Of the last one the hold is known from the backup alone, as where the machine is gone.
    for (backup, readable) in [(&before, true), (&after, true), (&held, true), (&held, false)] {
        town.hold(&running, true).await;
        let gone_since = match readable {
            true => read_withdrawn(&running.store).await,
            false => Withdrawn::default(),
        };
        running = town.restore_with(running, backup, &erased, gone_since).await;
        town.waits(&running, &gone, &backup.display().to_string()).await;
    }
    // No hold: it is done.
    town.hold(&running, false).await;
    let running = town.restore(running, &before, &erased).await;
    assert_eq!(told_by(&running, "zorro").await, 0);
    running.close().await;
}

/// What is back is kept for a court, though it was erased once when nothing was on it.
#[tokio::test]
async fn a_hold_that_is_back_with_a_backup_keeps_what_is_back_with_it() {
    let (town, running) = Town::new().await;
    let gone = town.client(&running, "zorro", 20).await;
    town.hold(&running, true).await;
    let held = town.backup(&running, "held").await;
    town.hold(&running, false).await;
    let erased = vec![town.erase(&running, &gone).await];
    let running = town.restore(running, &held, &erased).await;
    town.waits(&running, &gone, "erased before").await;
    // No certificate says that it is gone.
    let all = erasures::all(&running.store.readers).await.unwrap();
    assert_eq!(all.iter().map(|one| one.certificate.as_str()).collect::<Vec<_>>(), [""]);
    town.hold(&running, false).await;
    assert_eq!(town.again(&running, &erased).await, 1);
    assert_eq!(told_by(&running, "zorro").await, 0);
    running.close().await;
}

#[tokio::test]
async fn a_new_client_of_an_erased_ones_name_loses_nothing_by_a_restored_backup() {
    // Names are one whatever case their letters have; logs tell them as they were written.
    for path in [PATH, "acme/Gone"] {
        a_new_client_loses_nothing(path).await;
    }
}

async fn a_new_client_loses_nothing(path: &'static str) {
    let (town, running) = Town::new().await;
    let gone = town.client(&running, "zorro", 20).await;
    let early = town.backup(&running, "early").await;
    let erased = vec![town.erase(&running, &gone).await];
    let new = town.client_at(&running, path, "newcomer", 20).await;
    let late = town.backup(&running, "late").await;
    let running = town.restore(running, &late, &erased).await;
    assert_eq!(
        (told_by(&running, "zorro").await, told_by(&running, "newcomer").await),
        (0, 20),
        "{path}"
    );
    let clients = erasures::clients(&running.store.readers, &town.partner.id).await.unwrap();
    assert_eq!(clients, [new], "{path}");
    town.entries(&running, path, "newcomer", 5).await;
    // The same where the erasure had not finished when the name was given anew.
    let job = running.writer.write(|tx| {
        Box::pin(async move {
            let reopen = sqlx::query("UPDATE erasure SET finished_ms = NULL");
            Ok(reopen.execute(tx.sql()).await?)
        })
    });
    job.await.unwrap();
    town.again(&running, &erased).await;
    assert_eq!(told_by(&running, "newcomer").await, 25, "{path}");
    verified(&running).await;
    // And a backup of before both still gives nothing of the old one back.
    let running = town.restore(running, &early, &erased).await;
    assert_eq!(told_by(&running, "zorro").await, 0);
    running.close().await;
}

/// The name is free as soon as the rows are gone, which is before the entries are: whatever the new
/// client is called, and whatever tells of its beginning, the old one's entries go.
#[tokio::test]
async fn a_name_given_again_keeps_nothing_of_the_erased_client() {
    for path in ["acme/Gone", PATH] {
        let (town, running) = Town::new().await;
        let gone = town.client(&running, "zorro", 20).await;
        let id = gone.clone();
        let job = running.writer.write(move |tx| {
            Box::pin(async move { erasures::delete_client(tx, &id, &mut Counts::default()).await })
        });
        job.await.unwrap();
        let new = town.client_at(&running, path, "newcomer", 20).await;
        if path == PATH {
            // What tells of its beginning is not there (any more).
            let created = "UPDATE client SET created_ms = created_ms + 30000";
            let added = "UPDATE audit_entry SET event = 'other' WHERE event = 'client.added' \
                         AND seq = (SELECT MAX(seq) FROM audit_entry WHERE event = 'client.added')";
            let job = running.writer.write(move |tx| {
                Box::pin(async move {
                    sqlx::query(created).execute(tx.sql()).await?;
                    Ok(sqlx::query(added).execute(tx.sql()).await?)
                })
            });
            assert_eq!(job.await.unwrap().rows_affected(), 1);
            town.later_entries(&running, PATH, "newcomer", (1, 60_000)).await;
        }
        town.erase(&running, &gone).await;
        assert_eq!(told_by(&running, "zorro").await, 0, "{path}");
        let kept = told_by(&running, "newcomer").await;
        assert_eq!(kept, if path == PATH { 1 } else { 20 }, "{path}");
        let clients = erasures::clients(&running.store.readers, &town.partner.id).await.unwrap();
        assert_eq!(clients, [new]);
        running.close().await;
    }
}
