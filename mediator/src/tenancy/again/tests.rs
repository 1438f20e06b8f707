//! Backups of each moment of an erasure, put back at each other one.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;
use crate::{
    admin::{AdminRequest, accounts::AccountAct, actor::Actor, handle::handle},
    restore::{Withdrawn, read_withdrawn, renew},
    tenancy::{
        erase::{certificates, resume, tests::Town},
        ledger,
    },
};

/// What the database that is there tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    Readable,
    Gone,
}

const KINDS: [Kind; 2] = [Kind::Client, Kind::Partner];
const BOTH: [There; 2] = [There::Readable, There::Gone];

impl Town {
    async fn backup(&self, name: &str) -> PathBuf {
        let file = self.context.dir.path().with_file_name(name);
        self.running.store.copy_to(&file).await.unwrap();
        file
    }

    /// As `restore` does.
    async fn restore(self, backup: &Path, there: There) -> Self {
        let Self { mut context, running, acme, home, folders } = self;
        let gone = match there {
            There::Readable => read_withdrawn(&running.store).await,
            There::Gone => Withdrawn::default(),
        };
        running.close().await;
        folders.0.put_back(backup);
        let running = folders.0.open().await.unwrap();
        let (store, writer) = (running.store.clone(), running.writer.clone());
        (context.store, context.writer) = (store.clone(), writer.clone());
        (context.vault.store, context.vault.writer) = (store.clone(), writer.clone());
        let noted = ledger::read(&context.dir).unwrap();
        renew((&store, &writer), &context.vault.keys, gone, &noted, 0).await.unwrap();
        Self { context, running, acme, home, folders }
    }

    /// It is noted beside the database.
    fn note(&self, erasure: &Erasure, client: &str) {
        ledger::note(&self.context.dir, Erased::of(erasure, &[client.to_owned()])).unwrap();
    }

    /// Rows are deleted, and the database is about to be rewritten, which is the last that happens.
    async fn delete(&self, erasure: &Erasure, client: &str) {
        let writer = &self.context.writer;
        let deleted = erase::delete_rows_of(writer, erasure, vec![client.to_owned()]).await;
        let (mut counts, id) = (deleted.unwrap().unwrap().0, erasure.id.clone());
        assert_eq!(counts.clients, 1);
        counts.rewritten = Some(false);
        let noted =
            writer.write(move |tx| Box::pin(async move { erasures::note(tx, &id, &counts).await }));
        noted.await.unwrap();
    }

    fn has_key(&self, client: &str) -> bool {
        self.context.vault.keys.read(client).is_ok()
    }

    /// What its only certificate says.
    async fn certified(&self) -> Value {
        let told = certificates((&self.context, &Actor::Local), None).await.unwrap();
        let [one] = told.as_slice() else { panic!("{told:?}") };
        one["certificate"]["destruction"].clone()
    }

    async fn is_in_database(&self, client: &str) -> bool {
        let all = erasures::clients(&self.context.store.readers, &self.acme.id).await.unwrap();
        all.iter().any(|id| id == client)
    }
}

/// Killed at any moment and put back to any other one, an erasure comes to its end, and what it
/// certifies is what was there.
#[tokio::test]
async fn an_erasure_that_was_noted_is_finished_in_whichever_backup_is_put_back() {
    // Together: each waits for the disk most of the time.
    let moments = (0..3).flat_map(|moment| KINDS.map(|kind| (kind, moment)));
    let all = moments.flat_map(|(kind, moment)| BOTH.map(|there| (kind, there, moment)));
    let all = all.map(|(kind, there, moment)| finished_after(kind, there, moment));
    futures_util::future::join_all(all).await;
}

async fn finished_after(kind: Kind, there: There, moment: usize) {
    let town = Town::new().await;
    let client = town.client().await;
    let mut backups = vec![town.backup("before").await];
    let begun = town.begin_of(kind).await;
    town.note(&begun, &client);
    backups.push(town.backup("noted").await);
    // The key is still there, as where it could not be destroyed, or somebody had one made anew.
    town.delete(&begun, &client).await;
    backups.push(town.backup("deleted").await);
    let what = format!("{kind:?}, {there:?}, {moment}");
    assert!(town.has_key(&client), "{what}");
    let town = town.restore(&backups[moment], there).await;
    assert!(!town.is_in_database(&client).await, "{what}");
    assert!(!town.has_key(&client), "{what}");
    // Without a certificate it is not done, whatever is gone.
    assert_eq!(town.unfinished().await, 1, "{what}");
    // Nor if there was no disk for it then.
    town.context.vault.keys.read_or_make(&client).unwrap();
    assert_eq!(resume(&town.context).await.unwrap(), 1, "{what}");
    assert!(!town.has_key(&client), "{what}");
    let told = town.certified().await;
    for (name, count) in [
        ("clients_deleted", 1),
        ("tenant_keys_destroyed", 1),
        ("accounts_deleted", u64::from(kind == Kind::Partner)),
    ] {
        assert_eq!(told[name], count, "{what}, {name}: {told}");
    }
    assert_eq!((&told["again"], &told["compacted"]), (&AGAIN.into(), &true.into()), "{what}");
    // Where it is recorded that it was not as ever.
    let log = if kind == Kind::Client { &town.acme.id } else { &town.home };
    for event in ["erasure_begun", "erased", "certified"] {
        let all = town.told(log, &format!("{}.{event}", kind.name())).await;
        let again = all.iter().filter(|one| one["extra"]["again"] == AGAIN).count();
        let wanted = usize::from(event != "erasure_begun" || moment == 0);
        assert_eq!(again, wanted, "{what}, {event}: {all:?}");
    }
    town.running.close().await;
}

/// What was done before it stopped is back, so it is neither counted twice nor open to anybody.
#[tokio::test]
async fn what_waits_for_a_hold_is_locked_in_an_older_backup_and_counted_once() {
    let town = Town::new().await;
    let client = town.client().await;
    let before = town.backup("before").await;
    let begun = town.begin_of(Kind::Client).await;
    town.note(&begun, &client);
    town.delete(&begun, &client).await;
    town.hold(true).await;
    let town = town.restore(&before, There::Readable).await;
    assert!(town.is_in_database(&client).await && town.has_key(&client));
    assert!(locks::client(&town.context.store.readers, &client).await.unwrap());
    let told = town.told(&town.acme.id, "client.erasure_begun").await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["extra"]["again"], AGAIN);
    let path = "acme/gone".to_owned();
    let unlock = AccountAct::ClientLock { path, locked: false, reason: String::new() };
    let context = std::sync::Arc::new(town.context);
    let unlock = AdminRequest::Accounts(unlock);
    let refused = handle(context.clone(), Actor::Local, unlock).await.unwrap_err();
    assert_eq!(refused.code, "erasure_unfinished");
    let town = Town { context: std::sync::Arc::into_inner(context).unwrap(), ..town };
    assert!(locks::client(&town.context.store.readers, &client).await.unwrap());
    assert_eq!(resume(&town.context).await.unwrap(), 0);
    assert!(town.is_in_database(&client).await && town.has_key(&client));
    town.hold(false).await;
    assert_eq!(resume(&town.context).await.unwrap(), 1);
    let told = town.certified().await;
    assert_eq!((&told["clients_deleted"], &told["compacted"]), (&1.into(), &true.into()));
    town.running.close().await;
}

/// Nobody of a partner comes back while its erasure waits, and its hold is not erased with it. It is
/// known from the backup alone.
#[tokio::test]
async fn a_partner_that_is_held_in_an_older_backup_waits_and_its_people_are_shut_out() {
    let town = Town::new().await;
    let client = town.client().await;
    town.hold(true).await;
    let before = town.backup("before").await;
    town.hold(false).await;
    let begun = town.begin_of(Kind::Partner).await;
    town.note(&begun, &client);
    let town = town.restore(&before, There::Gone).await;
    let pool = &town.context.store.readers;
    assert!(town.is_in_database(&client).await && town.has_key(&client));
    assert!(locks::client(pool, &client).await.unwrap());
    let open: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM account WHERE disabled = 0")
        .fetch_one(pool)
        .await
        .unwrap();
    assert_eq!(open, 0);
    assert_eq!((resume(&town.context).await.unwrap(), town.unfinished().await), (0, 1));
    assert!(holds::is_held(pool, &town.acme.id).await.unwrap());
    town.running.close().await;
}

/// With a key that somebody put back from a copy of the folder, too.
#[tokio::test]
async fn what_is_certified_is_erased_in_an_older_backup_and_keeps_its_certificate() {
    for kind in KINDS {
        let town = Town::new().await;
        let client = town.client().await;
        let before = town.backup("before").await;
        let begun = town.begin_of(kind).await;
        let half = town.backup("half").await;
        town.note(&begun, &client);
        assert_eq!(resume(&town.context).await.unwrap(), 1);
        let first = town.certified().await;
        assert!(first["again"].is_null(), "{first}");
        let mut town = town;
        for backup in [&before, &half, &before] {
            town.context.vault.keys.read_or_make(&client).unwrap();
            town = town.restore(backup, There::Readable).await;
            assert!(!town.is_in_database(&client).await && !town.has_key(&client), "{kind:?}");
            assert_eq!((town.unfinished().await, town.certified().await), (0, first.clone()));
            let log = if kind == Kind::Client { &town.acme.id } else { &town.home };
            let told = town.told(log, &format!("{}.erased", kind.name())).await;
            let [told] = told.as_slice() else { panic!("{kind:?}: {told:?}") };
            assert_eq!(told["extra"]["again"], AGAIN, "{told}");
            assert_eq!(told["extra"]["erasure"], begun.id.as_str(), "{told}");
        }
        town.running.close().await;
    }
}

/// Of what came after a backup there is nothing but keys. A hold that has no place in it keeps them.
#[tokio::test]
async fn an_erasure_of_what_a_backup_never_had_takes_the_keys_unless_they_are_held() {
    for is_held in [false, true] {
        let mut town = Town::new().await;
        let before = town.backup("before").await;
        town.acme = town.running.partner("late").await;
        let of = town.acme.clone();
        let job = town.context.writer.write(move |tx| {
            Box::pin(async move { crate::store::tenants::create_client(tx, &of, "gone").await })
        });
        let client = job.await.unwrap().id;
        let begun = town.begin_of(Kind::Client).await;
        town.note(&begun, &client);
        town.hold(is_held).await;
        let town = town.restore(&before, There::Readable).await;
        let done = resume(&town.context).await.unwrap();
        assert_eq!((done, town.has_key(&client)), (usize::from(!is_held), is_held));
        if !is_held {
            let told = town.certified().await;
            let counts = (&told["clients_deleted"], &told["tenant_keys_destroyed"]);
            assert_eq!(counts, (&0.into(), &1.into()), "{told}");
            assert_eq!(town.told(&town.home, "client.certified").await.len(), 1);
        }
        assert_eq!(town.unfinished().await, 0);
        town.running.close().await;
    }
}

/// A row that cannot be read keeps nothing else from staying as it is, nor from being done.
#[tokio::test]
async fn one_erasure_that_cannot_be_read_takes_no_other_along() {
    let town = Town::new().await;
    let client = town.client().await;
    let before = town.backup("before").await;
    let begun = town.begin_of(Kind::Client).await;
    town.note(&begun, &client);
    let job = town.context.writer.write(|tx| {
        Box::pin(async move {
            let newer = "INSERT INTO erasure (id, kind, partner_id, client_id, subject, begun_ms, \
                         counts, certificate) VALUES ('x', 'folder', 'p', '', 'p', 1, '{}', '')";
            sqlx::query(newer).execute(tx.sql()).await?;
            Ok(sqlx::query("UPDATE account SET disabled = 1").execute(tx.sql()).await?)
        })
    });
    assert_eq!(job.await.unwrap().rows_affected(), 1);
    let strange = Erased { kind: "folder".into(), ..Erased::of(&begun, &[]) };
    ledger::note(&town.context.dir, Erased { erasure: "y".into(), ..strange }).unwrap();
    assert_eq!(resume(&town.context).await.unwrap(), 1);
    let first = town.certified().await;
    let town = town.restore(&before, There::Readable).await;
    assert_eq!(town.certified().await, first);
    let closed: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM account WHERE disabled = 1")
        .fetch_one(&town.context.store.readers)
        .await
        .unwrap();
    assert_eq!(closed, 1);
    // What a newer version erases is not taken for a partner.
    assert!(erasures::clients(&town.context.store.readers, &town.acme.id).await.is_ok());
    assert_eq!(town.told(&town.home, "partner.erased").await.len(), 0);
    town.running.close().await;
}

/// A backup that `restore` was working on is a copy as any other.
#[tokio::test]
async fn what_a_killed_restore_left_is_named_by_certificates() {
    let town = Town::new().await;
    for name in ["restore.db.part", "restore.db"] {
        std::fs::write(town.context.dir.file(name).unwrap(), "x").unwrap();
    }
    town.begin_of(Kind::Client).await;
    assert_eq!(resume(&town.context).await.unwrap(), 1);
    let copies = town.certified().await["copies_kept"].clone();
    assert_eq!(copies, serde_json::json!(["restore.db", "restore.db.part"]));
    town.running.close().await;
}
