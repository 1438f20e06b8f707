//! The store on a real file: group commit, undone jobs, tampering, and every statement.

use std::sync::Arc;

use adit_ledger::{Event, Level, RootCert};
use adit_protocol::{
    ids::{ComputerId, RelayId},
    keys::{KeyCert, Purpose, SigningKey},
};
use tokio::task::JoinSet;

use super::*;

pub(crate) struct Fixture {
    dir: tempfile::TempDir,
    signer: LogSigner,
}

pub(crate) struct Running {
    pub(crate) store: Store,
    pub(crate) writer: Writer,
    stop: tokio_util::sync::CancellationToken,
    task: JoinSet<()>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let (root, log) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let cert = KeyCert { key: log.public(), not_before_ms: 0, not_after_ms: u64::MAX };
        let cert = KeyCert::issue(&root, Purpose::Log, &cert);
        let cert = RootCert { root: root.public(), cert };
        let signer = LogSigner { key: Arc::new(log), cert: Arc::new(cert.into()) };
        Self { dir: tempfile::tempdir().unwrap(), signer }
    }

    pub(crate) fn signer(&self) -> LogSigner {
        self.signer.clone()
    }

    fn file(&self) -> std::path::PathBuf {
        // A path that needs escaping.
        self.dir.path().join("a b?c#d%.db")
    }

    /// A copy takes the place of the database, which is closed.
    pub(crate) fn put_back(&self, copy: &Path) {
        let file = self.file();
        for end in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{end}", file.display()));
        }
        std::fs::copy(copy, file).unwrap();
    }

    pub(crate) async fn open(&self) -> Result<Running, StoreError> {
        let mode = if self.file().exists() { Mode::Write } else { Mode::Create };
        let store = Store::open(&self.file(), mode).await?;
        let stop = tokio_util::sync::CancellationToken::new();
        let (writer, run) = Writer::start(&store, self.signer.clone(), stop.clone()).await?;
        let mut task = JoinSet::new();
        task.spawn(run);
        Ok(Running { store, writer, stop, task })
    }
}

impl Running {
    pub(crate) async fn partner(&self, name: &'static str) -> tenants::Partner {
        let write = self
            .writer
            .write(move |tx| Box::pin(async move { tenants::create_partner(tx, name).await }));
        write.await.unwrap()
    }

    async fn append(&self, partner: &str, name: &'static str) -> Result<u64, StoreError> {
        let partner = partner.to_owned();
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    let event = Event::new(name, Level::Normal);
                    tx.append(&partner, event).await.map(|appended| appended.seq)
                })
            })
            .await
    }

    pub(crate) async fn close(mut self) {
        self.stop.cancel();
        while self.task.join_next().await.is_some() {}
        self.store.close().await;
    }
}

#[tokio::test]
async fn concurrent_writes_are_one_sequence_that_survives_a_restart_and_verifies() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("p").await.id;
    let mut tasks = JoinSet::new();
    for _ in 0..200 {
        let (writer, partner) = (running.writer.clone(), partner.clone());
        tasks.spawn(async move {
            writer
                .write(move |tx| {
                    Box::pin(async move {
                        let event = Event::new("test", Level::Normal);
                        tx.append(&partner, event).await.map(|appended| appended.seq)
                    })
                })
                .await
                .unwrap()
        });
    }
    let mut seqs = tasks.join_all().await;
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=200).collect::<Vec<_>>());
    running.close().await;
    let running = fixture.open().await.unwrap();
    assert_eq!(running.append(&partner, "after").await.unwrap(), 201);
    let report = crate::admin::export::verify_store(&running.store, Default::default());
    assert_eq!(report.await.unwrap().unwrap().trees[0].entries, 202);
    running.close().await;
}

/// Backups take long: decisions must not wait for them.
#[tokio::test]
async fn a_copy_takes_no_reading_connection() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let mut taken = Vec::new();
    for _ in 0..READERS {
        taken.push(running.store.readers.acquire().await.unwrap());
    }
    let copy = fixture.dir.path().join("copy");
    running.store.copy_to(&copy).await.unwrap();
    assert!(copy.exists());
    drop(taken);
    running.close().await;
}

#[tokio::test]
async fn a_job_that_fails_leaves_nothing_and_harms_no_other() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("p").await.id;
    let id = partner.clone();
    let failing = running.writer.submit::<(), _>(move |tx| {
        Box::pin(async move {
            tx.append(&id, Event::new("ghost", Level::Normal)).await?;
            tenants::create_partner(tx, "q").await?;
            tenants::create_partner(tx, "P").await?;
            Ok(())
        })
    });
    let id = partner.clone();
    let good = running.writer.submit(move |tx| {
        Box::pin(async move {
            tx.append(&id, Event::new("real", Level::Normal)).await.map(|done| done.seq)
        })
    });
    assert!(matches!(failing.unwrap().wait().await, Err(StoreError::Taken(_))));
    assert_eq!(good.unwrap().wait().await.unwrap(), 1);
    assert_eq!(audit::trees(&running.store.readers).await.unwrap().len(), 1);
    running.partner("q").await;
    running.close().await;
    fixture.open().await.unwrap().close().await;
}

#[tokio::test]
async fn a_log_that_was_cut_or_altered_is_not_continued() {
    for statement in [
        "DELETE FROM audit_entry WHERE seq = 2",
        "UPDATE audit_entry SET line = replace(line, 'third', 'thief') WHERE seq = 3",
        "INSERT INTO audit_entry (tree, seq, time_ms, event, leaf, line) \
         SELECT tree, 4, time_ms, event, leaf, line FROM audit_entry WHERE seq = 3",
        "UPDATE audit_tree SET head = replace(head, '\"size\":4', '\"size\":3')",
        "DELETE FROM audit_entry WHERE seq = 3",
    ] {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let partner = running.partner("p").await.id;
        for name in ["first", "second", "third"] {
            running.append(&partner, name).await.unwrap();
        }
        sqlx::query(statement).execute(&running.store.readers).await.unwrap();
        let verified = crate::admin::export::verify_store(&running.store, Default::default()).await;
        running.close().await;
        let opened = fixture.open().await;
        // A hole in the middle is for the full verification; the ends are checked at each start.
        let found = verified.is_err() || verified.is_ok_and(|verified| verified.is_err());
        assert!(found || opened.is_err(), "{statement}");
        if !statement.contains("seq = 2") {
            assert!(matches!(opened.err(), Some(StoreError::Corrupt(_))), "{statement}");
        }
    }
}

#[tokio::test]
async fn durability_is_full_on_every_connection() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let mut connection = running.store.connect().await.unwrap();
    for (pragma, expected) in [("PRAGMA synchronous", 2_i64), ("PRAGMA foreign_keys", 1)] {
        let value: i64 = sqlx::query_scalar(pragma).fetch_one(&mut connection).await.unwrap();
        assert_eq!(value, expected, "{pragma}");
    }
    running.close().await;
}

#[tokio::test]
async fn computers_are_found_within_their_partner_only() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let (p, q) = (running.partner("p").await, running.partner("q").await);
    let ids: Vec<ComputerId> = running
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let mut ids = Vec::new();
                for (n, partner) in [&p, &q, &p].into_iter().enumerate() {
                    let client = tenants::create_client(tx, partner, &format!("c{n}")).await?;
                    let new = computers::NewComputer {
                        client,
                        name: format!("PC_{n}%"),
                        identity: SigningKey::generate().unwrap().public(),
                        noise_cert: vec![1],
                        tags: "{}".into(),
                        os: "os".into(),
                        version: "1".into(),
                    };
                    ids.push(computers::insert(tx, &new).await?);
                }
                computers::status(tx, ids[0], "linux", "2", "{}").await?;
                computers::seen(tx, ids[0], Some(vec![2])).await?;
                Ok(ids)
            })
        })
        .await
        .unwrap();
    let pool = &running.store.readers;
    let p = computers::by_id(pool, ids[0]).await.unwrap().unwrap();
    assert_eq!((p.os.as_str(), p.noise_cert.as_slice()), ("linux", [2].as_slice()));
    assert!(computers::of_partner(pool, &p.partner_id, ids[1]).await.unwrap().is_none());
    let names = async |query: &str, client, after: &str, limit| {
        let visible = access::filter::Clause {
            text: "k.partner_id = $1".to_owned(),
            values: vec![p.partner_id.clone()],
        };
        let rows = computers::list(pool, &visible, query, client, after, limit).await;
        rows.unwrap().iter().map(|row| row.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names("", None, "", 10).await, ["PC_0%", "PC_2%"]);
    assert_eq!(names("pc_2", None, "", 10).await, ["PC_2%"]);
    assert_eq!(names("p%2", None, "", 10).await, [""; 0]);
    assert_eq!(names("", Some("C0"), "", 10).await, ["PC_0%"]);
    assert_eq!(names("", None, "", 1).await, ["PC_0%"]);
    assert_eq!(names("", None, &p.cursor(), 10).await, ["PC_2%"]);
    running.close().await;
}

#[tokio::test]
async fn erasing_a_client_deletes_personal_fields_and_the_log_still_verifies() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("p").await;
    let erased = running
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let client = tenants::create_client(tx, &partner, "c").await?;
                for path in ["p/c", "p/c2"] {
                    let event = Event::new("session.granted", Level::Significant)
                        .client(path)
                        .actor("somebody");
                    tx.append(&partner.id, event).await?;
                }
                let mut counts = erasures::Counts::default();
                erasures::delete_client(tx, &client.id, &mut counts).await?;
                let entries = (0..9).collect::<Vec<u64>>();
                let tree = sqlx::query("SELECT id FROM audit_tree").fetch_one(tx.sql()).await?;
                let tree = tree.text("id")?;
                let erased = erasures::forget_entries(tx, &tree, &entries, Some("p/c")).await?;
                assert_eq!(counts.clients, 1);
                Ok(erased)
            })
        })
        .await;
    assert_eq!(erased.unwrap(), 1);
    let trees = audit::trees(&running.store.readers).await.unwrap();
    let rows = audit::entries(&running.store.readers, &trees[0].id, 0, 9, 9).await.unwrap();
    assert!(!rows[1].line.contains("somebody") && rows[2].line.contains("somebody"));
    let report = crate::admin::export::verify_store(&running.store, Default::default());
    assert_eq!(report.await.unwrap().unwrap().trees[0].erased, 1);
    running.close().await;
}

#[tokio::test]
async fn the_remaining_statements_run() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("p").await;
    let identity = SigningKey::generate().unwrap().public();
    let home = partner.id.clone();
    let relay: RelayId = running
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let relay = relays::insert(tx, "r", identity, "eu").await?;
                relays::seen(tx, relay).await?;
                assert!(relays::by_identity(tx, identity).await?.is_some());
                let id = accounts::insert(tx, &partner, "Jane", "technician", "hash").await?;
                assert_eq!(accounts::add_failure(tx, &id).await?, 1);
                assert_eq!(accounts::add_failure(tx, &id).await?, 2);
                accounts::set_failures(tx, &id, 0, 0).await?;
                accounts::insert_login(tx, [1; 32], &id, identity, u64::MAX >> 2).await?;
                accounts::insert_login(tx, [2; 32], &id, identity, u64::MAX >> 2).await?;
                accounts::touch_login(tx, [1; 32]).await?;
                accounts::delete_login(tx, [2; 32]).await?;
                tenants::partner_by_id(tx, &home).await?;
                Ok(relay)
            })
        })
        .await
        .unwrap();
    let pool = &running.store.readers;
    assert_eq!(relays::by_id(pool, relay).await.unwrap().unwrap().region, "eu");
    assert!(accounts::login(pool, [1; 32], identity).await.unwrap().is_some());
    assert!(accounts::login(pool, [2; 32], identity).await.unwrap().is_none());
    assert!(accounts::login_lives(pool, [1; 32], 0).await.unwrap());
    let jane = accounts::by_name(pool, "JANE").await.unwrap().unwrap();
    assert!(accounts::enabled(pool, &jane.id).await.unwrap());
    running
        .writer
        .write(move |tx| {
            Box::pin(async move {
                accounts::set_password(tx, &jane.id, "other").await?;
                accounts::set_disabled(tx, &jane.id, true).await?;
                assert!(accounts::find(tx, "jane").await?.disabled);
                Ok(())
            })
        })
        .await
        .unwrap();
    assert!(accounts::login(pool, [1; 32], identity).await.unwrap().is_none());
    assert_eq!(accounts::list(pool, None).await.unwrap().len(), 1);
    assert_eq!(tenants::clients(pool).await.unwrap().len(), 0);
    running.close().await;
}

#[tokio::test]
async fn a_flood_of_everyday_records_leaves_room_for_a_grant() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("p").await.id;
    // The disk stands still while the flood comes.
    let (go, gate) = tokio::sync::oneshot::channel::<()>();
    let stuck = running.writer.submit(move |_| {
        Box::pin(async move {
            let _ = gate.await;
            Ok(())
        })
    });
    let stuck = stuck.unwrap();
    let mut flood = JoinSet::new();
    for _ in 0..3 * writer::MAX_WAITING_JOBS {
        let (writer, partner) = (running.writer.clone(), partner.clone());
        flood.spawn(async move {
            let _room = writer.room(1).await?;
            let event = Event::new("flood", Level::Normal);
            let job = writer.write(move |tx| {
                Box::pin(async move { tx.append(&partner, event).await.map(|_| ()) })
            });
            job.await
        });
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let grant = running.writer.submit(move |tx| {
        Box::pin(async move {
            tx.append(&partner, Event::new("grant", Level::Significant)).await.map(|a| a.seq)
        })
    });
    let grant = grant.expect("the queue has room");
    go.send(()).unwrap();
    stuck.wait().await.unwrap();
    let seq = grant.wait().await.unwrap();
    assert!(seq <= writer::MAX_ROUTINE as u64 + 2, "the grant waited behind {seq} records");
    assert!(flood.join_all().await.into_iter().all(|done| done.is_ok()));
    running.close().await;
}
