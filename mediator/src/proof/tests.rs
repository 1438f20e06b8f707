//! Proofs against a store that grows, is opened anew and is restored.

use adit_ledger::{Discord, Event, Evidence, Level, Link, Order, SignedHead, evidence::relate};
use adit_protocol::wire;

use crate::store::tests::{Fixture, Running};

async fn append(running: &Running, partner: &str, count: u64) -> (u64, String) {
    let partner = partner.to_owned();
    let job = running.writer.write(move |tx| {
        Box::pin(async move {
            let mut last = (0, String::new());
            for _ in 0..count {
                let event = Event::new("session.granted", Level::Significant);
                let done = tx.append(&partner, event).await?;
                last = (done.seq, done.entry.to_line());
            }
            Ok(last)
        })
    });
    job.await.unwrap()
}

fn seen(head: &SignedHead) -> wire::SeenHead {
    wire::SeenHead { tree: head.tree.clone(), size: head.size }
}

fn evidence(audit: &wire::AuditEvidence) -> Evidence {
    let evidence = Evidence::from_wire(Some(audit)).unwrap();
    evidence.check(evidence.head.key_cert.as_ref().unwrap().root).unwrap();
    evidence
}

/// Every head ever shown is a beginning of every later one, with proofs from memory and, after a
/// restart, from the store; another tree's, size or partner's proves nothing.
#[tokio::test]
async fn heads_are_tied_together_whenever_they_were_seen() {
    let fixture = Fixture::new();
    let mut heads: Vec<SignedHead> = Vec::new();
    let mut partner = String::new();
    for round in 0..3 {
        let running = fixture.open().await.unwrap();
        if round == 0 {
            partner = running.partner("acme").await.id;
        }
        for count in [1, 2, 15, 1, 40, 7] {
            let (seq, line) = append(&running, &partner, count).await;
            let forest = running.writer.forest();
            let told: Vec<_> = heads.iter().rev().take(4).map(seen).collect();
            let audit = forest.evidence(&partner, (seq, &line), &told).await.unwrap();
            let now = evidence(&audit);
            assert_eq!(now.head.size, seq + 1);
            for old in heads.iter().rev().take(4) {
                assert_eq!(relate(old, &now.head, &now.links), Ok(Order::Newer));
                assert_eq!(relate(&now.head, old, &now.links), Ok(Order::Older));
                assert_eq!(relate(old, &now.head, &[]), Err(Discord::Unproven));
                let forged = SignedHead { root: now.head.root, ..old.clone() };
                assert_eq!(relate(&forged, &now.head, &now.links), Err(Discord::Fork));
            }
            heads.push(now.head);
        }
        let forest = running.writer.forest();
        for (a, b) in heads.iter().zip(heads.iter().skip(3)) {
            let links = forest.links(&partner, &seen(a), &seen(b)).await.unwrap();
            assert_eq!(relate(a, b, &links), Ok(Order::Newer));
            assert!(forest.links("other", &seen(a), &seen(b)).await.is_err());
        }
        running.close().await;
    }
}

/// A log that was begun anew names what it follows: who saw no more goes on, who saw more knows.
#[tokio::test]
async fn a_restored_log_is_followed_or_found_to_have_lost_entries() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("acme").await.id;
    append(&running, &partner, 20).await;
    let forest = running.writer.forest().clone();
    let backed_up = forest.head(&partner).unwrap();
    append(&running, &partner, 5).await;
    let lost = forest.head(&partner).unwrap();
    let (id, head) = (partner.clone(), SignedHead::clone(&backed_up));
    let restart = running
        .writer
        .write(move |tx| Box::pin(async move { tx.start_tree(&id, "acme", Some(&head)).await }));
    restart.await.unwrap();
    append(&running, &partner, 3).await;
    let now = forest.head(&partner).unwrap();
    let links = forest.links(&partner, &seen(&backed_up), &seen(&now)).await.unwrap();
    assert_eq!(relate(&backed_up, &now, &links), Ok(Order::Newer));
    assert_eq!(
        relate(&lost, &now, &links),
        Err(Discord::RolledBack { named: backed_up.size, seen: lost.size })
    );
    // A first entry that is not the tree's own proves nothing.
    let moved: Vec<Link> = links
        .iter()
        .map(|link| match link {
            Link::Started { entry, proof, .. } => Link::Started {
                tree: backed_up.tree.clone(),
                entry: entry.clone(),
                proof: proof.clone(),
            },
            grown @ Link::Grown { .. } => grown.clone(),
        })
        .collect();
    assert_eq!(relate(&backed_up, &now, &moved), Err(Discord::Unproven));
    running.close().await;
}

/// Past the nodes that are kept in memory.
#[tokio::test]
async fn old_heads_are_tied_from_stored_nodes() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("acme").await.id;
    append(&running, &partner, 100).await;
    let forest = running.writer.forest().clone();
    let old = forest.head(&partner).unwrap();
    for _ in 0..20 {
        append(&running, &partner, 500).await;
    }
    let now = forest.head(&partner).unwrap();
    let links = forest.links(&partner, &seen(&old), &seen(&now)).await.unwrap();
    assert_eq!(relate(&old, &now, &links), Ok(Order::Newer));
    running.close().await;
}

mod receipts {
    //! What two ends sign, as it arrives.

    use adit_ledger::{
        Hash, Receipt,
        receipt::{Close, Role, Statement},
    };
    use adit_protocol::{ids::SessionId, keys::SigningKey};
    use bytes::Bytes;

    use std::sync::Arc;

    use super::*;
    use crate::proof::{
        receipts::{GRACE_MS, Sender, counterparts, take},
        room::Room,
        sweep::Sweep,
    };

    #[derive(Clone)]
    struct Ends {
        console: Arc<SigningKey>,
        agent: Arc<SigningKey>,
        partner: String,
        session: [u8; 16],
        strange: Arc<crate::serve::Seldom>,
        room: Arc<Room>,
    }

    impl Ends {
        fn new(partner: String) -> Self {
            let key = || Arc::new(SigningKey::generate().unwrap());
            let (console, agent) = (key(), key());
            let (strange, room) = (Arc::default(), Arc::default());
            Self { console, agent, partner, session: [7; 16], strange, room }
        }

        fn receipt(&self, role: Role, channel: u64, delivered: Option<u64>) -> Receipt {
            let close = delivered.map(|delivered| Close {
                sent: delivered,
                acknowledged: delivered,
                delivered,
                complete: true,
                reason: "closed".into(),
            });
            let statement = Statement {
                role,
                session: self.session,
                grant_hash: Hash::of(b"grant"),
                handshake_hash: Hash::of(b"handshake"),
                console: self.console.public().fingerprint(),
                agent: self.agent.public().fingerprint(),
                redirector: "tcp".into(),
                target: "127.0.0.1:22".into(),
                channel,
                time_ms: 1,
                close,
            };
            let key = match role {
                Role::Console => &self.console,
                Role::Agent => &self.agent,
            };
            Receipt::sign(key, statement)
        }

        async fn send(&self, running: &Running, by: Role, receipts: &[Receipt]) {
            let key = match by {
                Role::Console => &self.console,
                Role::Agent => &self.agent,
            };
            let sender = Sender {
                partner_id: self.partner.clone(),
                partner: "acme".into(),
                identity: key.public(),
                strange: Arc::clone(&self.strange),
                room: Arc::clone(&self.room),
            };
            let lines = receipts.iter().map(|receipt| receipt.to_line().into()).collect();
            let job = running
                .writer
                .write(move |tx| Box::pin(async move { take(tx, sender, lines).await }));
            job.await.unwrap().written();
        }
    }

    async fn session(running: &Running, ends: &Ends) {
        sessions(running, std::slice::from_ref(ends)).await;
    }

    async fn sessions(running: &Running, all: &[Ends]) {
        use crate::core::types::Effect;
        let rows: Vec<_> = all.iter().map(row).collect();
        let job = running.writer.write(move |tx| {
            Box::pin(async move {
                for row in rows {
                    let session = row.id;
                    crate::store::sessions::apply(tx, Effect::Begin(Box::new(row))).await?;
                    let reason = "closed".to_owned();
                    let end =
                        Effect::End { session, reason, bytes_up: 0, bytes_down: 0, relay_bytes: 0 };
                    crate::store::sessions::apply(tx, end).await?;
                }
                Ok(())
            })
        });
        job.await.unwrap();
    }

    fn row(ends: &Ends) -> crate::core::types::SessionRow {
        use crate::core::types::{Basis, Place, SessionRow, Who};
        SessionRow {
            id: SessionId(ends.session),
            who: Who {
                account_id: "a".into(),
                account: "jane".into(),
                partner_id: ends.partner.clone(),
                partner: "acme".into(),
                login: [0; 32],
                device: ends.console.public(),
                source: "192.0.2.1:5".into(),
                mfa: String::new(),
            },
            place: Place {
                computer_id: adit_protocol::ids::ComputerId([1; 16]),
                computer: "pc".into(),
                client_id: "c".into(),
                client: "acme/berlin".into(),
                agent: ends.agent.public(),
            },
            redirector: "tcp".into(),
            target: "127.0.0.1:22".into(),
            any_target: false,
            started_ms: 1,
            lease_ms: 1,
            basis: Basis::default(),
            told: Default::default(),
        }
    }

    async fn later(running: &Running) -> u64 {
        let later = adit_runtime::time::unix_ms() + GRACE_MS + 60_000;
        Sweep::default().sweep((&running.store.readers, &running.writer), later).await.unwrap()
    }

    async fn entries(running: &Running) -> Vec<adit_ledger::Entry> {
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT line FROM audit_entry WHERE event LIKE 'receipt.%' ORDER BY seq",
        )
        .fetch_all(&running.store.readers)
        .await
        .unwrap();
        rows.iter().map(|line| adit_ledger::Entry::parse(line.as_bytes()).unwrap()).collect()
    }

    fn number(entry: &adit_ledger::Entry, key: &str) -> i64 {
        match entry.event().extra.get(key) {
            Some(adit_ledger::Value::Integer(number)) => *number,
            _ => 0,
        }
    }

    /// Session, first channel, how many, and all channels.
    fn told(entry: &adit_ledger::Entry) -> (String, i64, i64, String) {
        let channels = match entry.event().extra.get("channels") {
            Some(adit_ledger::Value::Text(text)) => text.clone(),
            _ => String::new(),
        };
        let session = entry.event().session_id.clone().unwrap();
        (session, number(entry, "channel"), 1 + number(entry, "others"), channels)
    }

    async fn events(running: &Running) -> Vec<(String, Option<String>)> {
        let entries = entries(running).await;
        entries
            .iter()
            .map(|entry| {
                let said = ["difference", "missing_from"].into_iter().find_map(|key| {
                    match entry.event().extra.get(key) {
                        Some(adit_ledger::Value::Text(text)) => Some(text.clone()),
                        _ => None,
                    }
                });
                (entry.event().name.clone(), said)
            })
            .collect()
    }

    /// The same story from both is silence; another one, a missing one and an invented one are
    /// events; what is sent twice changes nothing.
    #[tokio::test]
    async fn differences_and_gaps_become_events() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let partner = running.partner("acme").await.id;
        let ends = Ends::new(partner);
        session(&running, &ends).await;
        let both = |channel, delivered| {
            [Role::Console, Role::Agent].map(|role| ends.receipt(role, channel, delivered))
        };
        let good: Vec<_> = [both(2, None), both(2, Some(10))].concat();
        ends.send(&running, Role::Console, &good).await;
        ends.send(&running, Role::Agent, &good).await;
        assert_eq!(later(&running).await, 0);
        assert_eq!(events(&running).await, []);

        // Of a third one nobody but the console tells, and bytes were delivered.
        let alone = [ends.receipt(Role::Console, 3, None), ends.receipt(Role::Console, 3, Some(5))];
        ends.send(&running, Role::Console, &alone).await;
        // Of a fourth one the same, but nothing came of it.
        let nothing =
            [ends.receipt(Role::Console, 4, None), ends.receipt(Role::Console, 4, Some(0))];
        ends.send(&running, Role::Console, &nothing).await;
        assert_eq!(later(&running).await, 2);
        let missing = ("receipt.missing".to_owned(), Some("agent".to_owned()));
        assert_eq!(events(&running).await, [missing]);
        assert_eq!(later(&running).await, 0);
        // The agent was only late.
        ends.send(&running, Role::Agent, &[ends.receipt(Role::Agent, 3, None)]).await;
        assert_eq!(events(&running).await[1].0, "receipt.settled");
        ends.send(&running, Role::Agent, &[ends.receipt(Role::Agent, 3, Some(6))]).await;
        let told = events(&running).await;
        assert_eq!(told[2].0, "receipt.mismatch");
        // Two stories of one end; somebody else's session.
        ends.send(&running, Role::Agent, &[ends.receipt(Role::Agent, 3, Some(7))]).await;
        let mut other = ends.receipt(Role::Agent, 9, None).statement;
        other.session = [8; 16];
        let invented = Receipt::sign(&ends.agent, other);
        ends.send(&running, Role::Agent, &[invented]).await;
        let told: Vec<_> =
            events(&running).await.into_iter().skip(3).filter_map(|(_, said)| said).collect();
        assert_eq!(told, ["two_stories", "no_such_session"]);
        running.close().await;
    }

    async fn kept(running: &Running) -> i64 {
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM receipt");
        count.fetch_one(&running.store.readers).await.unwrap()
    }

    /// Any device can sign any number of receipts of sessions that never were, or were others'.
    #[tokio::test]
    async fn receipts_of_what_is_not_the_senders_session_fill_neither_table_nor_log() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let partner = running.partner("acme").await.id;
        let ends = Ends::new(partner.clone());
        session(&running, &ends).await;
        let mut invented = Vec::new();
        for n in 0..60 {
            let mut statement = ends.receipt(Role::Agent, n, None).statement;
            statement.session = [u8::try_from(n).unwrap() + 8; 16];
            invented.push(Receipt::sign(&ends.agent, statement));
        }
        ends.send(&running, Role::Agent, &invented).await;
        // Another computer's agent, also with the right console's name, and a console that signs
        // as an agent of its own.
        let others = Ends { strange: Arc::clone(&ends.strange), ..Ends::new(partner) };
        let mut statement = others.receipt(Role::Agent, 2, None).statement;
        statement.console = ends.console.public().fingerprint();
        let foreign = Receipt::sign(&others.agent, statement.clone());
        others.send(&running, Role::Agent, &[foreign]).await;
        let usurped = Receipt::sign(&others.agent, statement);
        ends.send(&running, Role::Console, &[usurped]).await;
        assert_eq!(kept(&running).await, 0);
        let told: Vec<_> =
            events(&running).await.into_iter().filter_map(|(_, said)| said).collect();
        assert_eq!(told, ["no_such_session", "agent", "agent"]);
        // What is the ends' own is taken nevertheless.
        let own = [ends.receipt(Role::Agent, 2, None), ends.receipt(Role::Agent, 2, Some(1))];
        ends.send(&running, Role::Agent, &own).await;
        assert_eq!(kept(&running).await, 2);
        running.close().await;
    }

    /// An end of a session that is over signs what it likes, as often as it likes.
    #[tokio::test]
    async fn receipts_of_ones_own_session_fill_neither_table_nor_log() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let partner = running.partner("acme").await.id;
        let ends = Ends::new(partner);
        session(&running, &ends).await;
        // Of ten seconds.
        let job = running.writer.write(|tx| {
            Box::pin(async move {
                let short = sqlx::query("UPDATE session SET started_ms = ended_ms - 10000");
                Ok(short.execute(tx.sql()).await?)
            })
        });
        job.await.unwrap();
        let last = 16_384 + 10 * 100;
        let numbers = [last, last + 1, 1 << 40, (1 << 53) - 1];
        let far: Vec<_> = numbers.map(|n| ends.receipt(Role::Agent, n, None)).into();
        ends.send(&running, Role::Agent, &far).await;
        assert_eq!(kept(&running).await, 1);
        // Another story each time, and targets that the session never had.
        for round in 0..20 {
            let stories: Vec<_> =
                (0..60).map(|n| ends.receipt(Role::Agent, 3, Some(60 * round + n))).collect();
            ends.send(&running, Role::Agent, &stories).await;
        }
        let mut elsewhere = Vec::new();
        for n in 0..60 {
            let mut statement = ends.receipt(Role::Agent, 100 + n, None).statement;
            statement.target = format!("192.0.2.{n}:22");
            elsewhere.push(Receipt::sign(&ends.agent, statement));
        }
        ends.send(&running, Role::Agent, &elsewhere).await;
        let told: Vec<_> =
            events(&running).await.into_iter().filter_map(|(_, said)| said).collect();
        assert_eq!(told, ["channel", "two_stories", "target"]);
        assert_eq!(kept(&running).await, 62);
        // That hides nothing that the other end tells.
        let mut other = ends.receipt(Role::Console, 3, Some(0)).statement;
        other.redirector = "ssh".into();
        let other = Receipt::sign(&ends.console, other);
        ends.send(&running, Role::Console, &[other]).await;
        assert_eq!(events(&running).await[3].0, "receipt.mismatch");
        running.close().await;
    }

    /// An end keeps its word for itself, of as many channels as it likes, and gives it afterwards.
    #[tokio::test]
    async fn what_is_missing_of_a_session_is_told_in_one_record_and_others_do_not_wait_for_it() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let partner = running.partner("acme").await.id;
        let ends = Ends::new(partner.clone());
        session(&running, &ends).await;
        let many = |role| {
            let both = |n| [ends.receipt(role, n, None), ends.receipt(role, n, Some(1))];
            (1..=300).flat_map(both).collect::<Vec<_>>()
        };
        for some in many(Role::Console).chunks(60) {
            ends.send(&running, Role::Console, some).await;
        }
        // Another session's, whose ends tell the truth but for one channel.
        let others = Ends { session: [9; 16], ..Ends::new(partner) };
        session(&running, &others).await;
        others.send(&running, Role::Console, &[others.receipt(Role::Console, 5, Some(1))]).await;
        assert_eq!(later(&running).await, 601);
        let id = |session| SessionId(session).to_string();
        // Nothing is left out, and who has one to tell of does not wait for who has 600.
        let records: Vec<_> = entries(&running).await.iter().map(told).collect();
        let first = (id([7; 16]), 1, 256, "1-128".to_owned());
        let other = (id([9; 16]), 5, 1, String::new());
        let second = (id([7; 16]), 129, 256, "129-256".to_owned());
        let third = (id([7; 16]), 257, 88, "257-300".to_owned());
        assert_eq!(records, [first, other, second, third]);
        assert_eq!(later(&running).await, 0);
        // Each is kept with what became of it.
        let missed = async || -> i64 {
            let count = sqlx::query_scalar("SELECT COUNT(*) FROM receipt WHERE state = 2");
            count.fetch_one(&running.store.readers).await.unwrap()
        };
        assert_eq!(missed().await, 601);
        // The other end was only late: that is told once, with what is missing still, and when
        // nothing is.
        for some in many(Role::Agent).chunks(60) {
            ends.send(&running, Role::Agent, some).await;
        }
        let settled: Vec<_> = entries(&running).await.split_off(4);
        let settled = settled.iter().map(|entry| {
            (entry.event().name.as_str(), number(entry, "still_missing"), number(entry, "others"))
        });
        let settled: Vec<_> = settled.collect();
        assert_eq!(settled, [("receipt.settled", 599, 0), ("receipt.settled", 0, 0)]);
        assert_eq!(missed().await, 1);
        running.close().await;
    }

    /// One console leaves a receipt without counterpart in each of very many sessions, and goes on
    /// doing so; neither another partner's evidence nor its own session's waits for that.
    #[tokio::test]
    async fn decoys_keep_nobodys_evidence_waiting() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let hostile = Ends::new(running.partner("hostile").await.id);
        let other = Ends::new(running.partner("other").await.id);
        let mut sweep = Sweep::default();
        let (mut count, mut real) = (0_u32, 0_u8);
        for _ in 0..3 {
            let mut decoys = Vec::new();
            for n in 0..240 {
                // Before and behind the others, in whatever order they are gone through.
                count += 1;
                let mut session = [if n % 2 == 0 { 0x01 } else { 0xfe }; 16];
                session[12..].copy_from_slice(&count.to_be_bytes());
                decoys.push(Ends { session, ..hostile.clone() });
            }
            sessions(&running, &decoys).await;
            let lines: Vec<_> =
                decoys.iter().map(|decoy| decoy.receipt(Role::Console, 1, None)).collect();
            for some in lines.chunks(60) {
                hostile.send(&running, Role::Console, some).await;
            }
            let mut awaited = Vec::new();
            for whose in [&hostile, &other] {
                real += 1;
                let ends = Ends { session: [0x70 + real; 16], ..whose.clone() };
                session(&running, &ends).await;
                let told = [1, 2].map(|n| ends.receipt(Role::Agent, n, Some(1)));
                ends.send(&running, Role::Agent, &told).await;
                awaited.push(SessionId(ends.session).to_string());
            }
            let later = adit_runtime::time::unix_ms() + GRACE_MS + 60_000;
            sweep.sweep((&running.store.readers, &running.writer), later).await.unwrap();
            let told: Vec<_> = entries(&running)
                .await
                .iter()
                .map(|e| e.event().session_id.clone().unwrap())
                .collect();
            for session in awaited {
                assert!(told.contains(&session), "{session} waits behind decoys");
            }
        }
        running.close().await;
    }

    /// A console that chooses the ids of its sessions, and opens and ends as many as are looked at
    /// in a turn, each just ahead of it.
    #[tokio::test]
    async fn no_ids_that_a_console_chooses_keep_a_walk_from_its_end() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let partner = running.partner("acme").await.id;
        let hostile = Ends::new(partner.clone());
        let decoys = async |first: u8, count: u8| {
            let of = |n| [vec![1, first, n], vec![0; 13]].concat().try_into().unwrap();
            let all: Vec<_> =
                (0..count).map(|n| Ends { session: of(n), ..hostile.clone() }).collect();
            sessions(&running, &all).await;
            let told = |ends: &Ends| ends.receipt(Role::Console, 1, None);
            for some in all.chunks(60) {
                let lines: Vec<_> = some.iter().map(told).collect();
                hostile.send(&running, Role::Console, &lines).await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        };
        let honest = Ends { session: [0x80; 16], ..Ends::new(partner.clone()) };
        session(&running, &honest).await;
        honest.send(&running, Role::Agent, &[honest.receipt(Role::Agent, 1, Some(1))]).await;
        decoys(0, 150).await;
        let (mut sweep, names) = (Sweep::default(), (partner, "acme".to_owned()));
        for n in 1..4 {
            let now = i64::try_from(adit_runtime::time::unix_ms()).unwrap();
            let store = (&running.store.readers, &running.writer);
            sweep.turn(store, &names, false, now).await.unwrap();
            decoys(n, 100).await;
        }
        let awaited = SessionId(honest.session).to_string();
        let told = entries(&running).await;
        assert!(told.iter().any(|e| e.event().session_id.as_ref() == Some(&awaited)));
        running.close().await;
    }

    /// More ends than one turn looks at, and a sweep that begins anew: each is told of once.
    #[tokio::test]
    async fn a_sweep_goes_on_where_it_was_and_leaves_nothing_out() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let one = Ends::new(running.partner("acme").await.id);
        let all: Vec<_> = (0..250).map(|n| Ends { session: [n; 16], ..one.clone() }).collect();
        sessions(&running, &all).await;
        for some in all.chunks(60) {
            let lines: Vec<_> =
                some.iter().map(|ends| ends.receipt(Role::Console, 1, Some(1))).collect();
            one.send(&running, Role::Console, &lines).await;
        }
        let mut sweep = Sweep::default();
        let later = adit_runtime::time::unix_ms() + GRACE_MS + 60_000;
        let store = (&running.store.readers, &running.writer);
        assert_eq!(sweep.sweep(store, later).await.unwrap(), 250);
        one.send(&running, Role::Console, &[one.receipt(Role::Console, 1, Some(1))]).await;
        let first = Ends { session: [0; 16], ..one.clone() };
        first.send(&running, Role::Console, &[first.receipt(Role::Console, 9, Some(1))]).await;
        assert_eq!(sweep.sweep(store, later + 60_000).await.unwrap(), 1, "one that had its turn");
        assert_eq!(sweep.sweep(store, later + 120_000).await.unwrap(), 0);
        assert_eq!(entries(&running).await.len(), 251);
        running.close().await;
    }

    /// A harmless channel before them does not hide where the others went.
    #[tokio::test]
    async fn what_is_missing_names_every_channel_and_target() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let partner = running.partner("acme").await.id;
        let ends = Ends::new(partner);
        session(&running, &ends).await;
        let job = running.writer.write(|tx| {
            Box::pin(async move {
                let any = sqlx::query("UPDATE session SET any_target = 1");
                Ok(any.execute(tx.sql()).await?)
            })
        });
        job.await.unwrap();
        let target = |n: u64| format!("host-{n}.of-a-network-with-a-long-name.example:22");
        let told: Vec<_> = (1..=60)
            .map(|n| {
                let mut statement = ends.receipt(Role::Agent, 2 * n, Some(1)).statement;
                statement.target = target(n);
                Receipt::sign(&ends.agent, statement)
            })
            .collect();
        ends.send(&running, Role::Agent, &told).await;
        assert_eq!(later(&running).await, 60);
        let (mut targets, mut channels) = (Vec::new(), Vec::new());
        for entry in entries(&running).await {
            let event = entry.event();
            let texts = |of: &std::collections::BTreeMap<_, _>, key| match of.get(key) {
                Some(adit_ledger::Value::Text(text)) => {
                    text.split(',').map(str::to_owned).collect::<Vec<_>>()
                }
                other => panic!("{key}: {other:?}"),
            };
            // Where to is personal, as `target` is.
            assert!(!event.extra.contains_key("targets"), "{event:?}");
            targets.extend(texts(&event.extra_personal, "targets"));
            channels.extend(texts(&event.extra, "channels"));
        }
        targets.sort();
        let mut expected: Vec<_> = (1..=60).map(target).collect();
        expected.sort();
        assert_eq!(targets, expected);
        assert_eq!(channels, (1..=60).map(|n| (2 * n).to_string()).collect::<Vec<_>>());
        running.close().await;
    }

    /// What is only late, in however many sessions, takes no place of what is a lie; nor does a
    /// difference that was noted and not written.
    #[tokio::test]
    async fn a_lie_is_recorded_whatever_else_was_settled_or_failed() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let one = Ends::new(running.partner("acme").await.id);
        let all: Vec<_> = (0..80).map(|n| Ends { session: [n; 16], ..one.clone() }).collect();
        sessions(&running, &all).await;
        let lines = |role| all.iter().map(move |ends| ends.receipt(role, 1, Some(1)));
        for some in lines(Role::Agent).collect::<Vec<_>>().chunks(60) {
            one.send(&running, Role::Agent, some).await;
        }
        assert_eq!(later(&running).await, 80);
        for some in lines(Role::Console).collect::<Vec<_>>().chunks(60) {
            one.send(&running, Role::Console, some).await;
        }
        // Settled, and then lies.
        let ends = Ends { session: [200; 16], ..one.clone() };
        session(&running, &ends).await;
        let told = [1, 2].map(|n| ends.receipt(Role::Agent, n, Some(1)));
        ends.send(&running, Role::Agent, &told).await;
        assert_eq!(later(&running).await, 2);
        ends.send(&running, Role::Console, &[ends.receipt(Role::Console, 1, Some(1))]).await;
        let lie = ends.receipt(Role::Console, 2, Some(9));
        let sender = Sender {
            partner_id: ends.partner.clone(),
            partner: "acme".into(),
            identity: ends.console.public(),
            strange: Arc::clone(&ends.strange),
            room: Arc::clone(&ends.room),
        };
        let line: Bytes = lie.to_line().into();
        let failed = running.writer.write(move |tx| {
            Box::pin(async move {
                let _noted = take(tx, sender, vec![line]).await?;
                Err::<(), _>(crate::store::StoreError::Random)
            })
        });
        assert!(failed.await.is_err());
        ends.send(&running, Role::Console, &[lie]).await;
        let entries = entries(&running).await;
        let [.., lie, last] = entries.as_slice() else { panic!("nothing recorded") };
        assert_eq!(lie.event().name, "receipt.mismatch");
        assert_eq!(lie.event().session_id, Some(SessionId(ends.session).to_string()));
        // Nothing is missing any more.
        assert_eq!(
            (last.event().name.as_str(), number(last, "still_missing")),
            ("receipt.settled", 0)
        );
        running.close().await;
    }

    /// The last one that was missing does not fit: a lie, and nothing is missing any more.
    #[tokio::test]
    async fn a_mismatch_that_comes_last_says_that_nothing_is_missing() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let ends = Ends::new(running.partner("acme").await.id);
        session(&running, &ends).await;
        let told = [2, 3, 4].map(|n| ends.receipt(Role::Agent, n, Some(1)));
        ends.send(&running, Role::Agent, &told).await;
        assert_eq!(later(&running).await, 3);
        for (channel, bytes) in [(2, 9), (3, 1), (4, 9)] {
            let late = ends.receipt(Role::Console, channel, Some(bytes));
            ends.send(&running, Role::Console, &[late]).await;
        }
        let told: Vec<_> = entries(&running)
            .await
            .iter()
            .skip(1)
            .map(|entry| {
                let event = entry.event();
                let still = event.extra.contains_key("still_missing");
                let still = still.then(|| number(entry, "still_missing"));
                (event.name.clone(), event.outcome.clone().unwrap(), still)
            })
            .collect();
        let expected = [
            ("receipt.mismatch", "mismatch", None),
            ("receipt.settled", "done", Some(1)),
            // The second lie within a minute is counted; that it was the last is told.
            ("receipt.settled", "mismatch", Some(0)),
        ];
        let expected = expected.map(|(name, outcome, n)| (name.to_owned(), outcome.to_owned(), n));
        assert_eq!(told, expected);
        running.close().await;
    }

    async fn kept_of(running: &Running, ends: &Ends) -> i64 {
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM receipt WHERE session_id = $1");
        let count = count.bind(SessionId(ends.session).to_string());
        count.fetch_one(&running.store.readers).await.unwrap()
    }

    /// Numbers told with records of what had no room.
    async fn dropped(running: &Running, ends: &Ends) -> Vec<i64> {
        let session = SessionId(ends.session).to_string();
        let entries = entries(running).await;
        let of = entries.iter().filter(|entry| {
            let event = entry.event();
            event.name == "receipt.dropped" && event.session_id.as_ref() == Some(&session)
        });
        of.map(|entry| number(entry, "dropped")).collect()
    }

    /// What only one end tells of is bounded for each partner: one end that signs without end
    /// leaves room to its partner's others, and takes none of another partner's.
    #[tokio::test]
    async fn a_flood_without_counterpart_has_its_own_partners_room_and_not_all_of_it() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let room = Arc::new(Room::of(400));
        let of = async |name: &'static str| {
            let new = Ends::new(running.partner(name).await.id);
            Ends { room: Arc::clone(&room), ..new }
        };
        let (flood, elsewhere) = (of("flooded").await, of("elsewhere").await);
        let beside = Ends { session: [8; 16], ..flood.clone() };
        let elsewhere = Ends { session: [9; 16], ..elsewhere };
        sessions(&running, &[flood.clone(), beside.clone(), elsewhere.clone()]).await;
        let many = |ends: &Ends, role, channels: std::ops::RangeInclusive<u64>| {
            channels.map(|n| ends.receipt(role, n, None)).collect::<Vec<_>>()
        };
        for some in many(&flood, Role::Agent, 1..=1000).chunks(60) {
            flood.send(&running, Role::Agent, some).await;
        }
        assert_eq!(kept_of(&running, &flood).await, 300);
        assert_eq!(dropped(&running, &flood).await, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
        // Others are served: all of what they tell, as long as there is room at all.
        beside.send(&running, Role::Agent, &many(&beside, Role::Agent, 1..=40)).await;
        elsewhere.send(&running, Role::Agent, &many(&elsewhere, Role::Agent, 1..=60)).await;
        assert_eq!(kept_of(&running, &beside).await, 40);
        assert_eq!(kept_of(&running, &elsewhere).await, 60);
        assert_eq!(dropped(&running, &beside).await, [0; 0]);
        // However many sessions, the partner's room is bounded.
        let crowd: Vec<_> = (20..90).map(|n| Ends { session: [n; 16], ..flood.clone() }).collect();
        sessions(&running, &crowd).await;
        for ends in &crowd {
            ends.send(&running, Role::Agent, &many(ends, Role::Agent, 1..=4)).await;
        }
        assert_eq!(kept(&running).await, 400 + 60);
        // What finds its counterpart is taken however full it is, and makes room.
        flood.send(&running, Role::Console, &many(&flood, Role::Console, 1..=60)).await;
        flood.send(&running, Role::Console, &many(&flood, Role::Console, 61..=120)).await;
        assert_eq!(kept_of(&running, &flood).await, 420);
        tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
        let last = crowd.last().unwrap();
        last.send(&running, Role::Agent, &many(last, Role::Agent, 1..=4)).await;
        assert_eq!(kept_of(&running, last).await, 4);
        running.close().await;
    }

    /// Nor do many sessions close the room to others: of the last eighth each person and each
    /// computer has a share, with whatever device, and gets it back with what finds its counterpart.
    #[tokio::test]
    async fn no_number_of_sessions_of_one_signer_takes_the_last_of_the_room() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let new = Ends::new(running.partner("acme").await.id);
        let flood = Ends { room: Arc::new(Room::of(400).for_each_signer(8)), ..new };
        let key = || Arc::new(SigningKey::generate().unwrap());
        let of = |n| Ends { session: [n; 16], ..flood.clone() };
        let fill = of(8);
        let crowd: Vec<_> = (20..30).map(of).collect();
        // The same account with other consoles; other computers.
        let devices: Vec<_> = (30..40).map(|n| Ends { console: key(), ..of(n) }).collect();
        let others: Vec<_> = (40..50).map(|n| Ends { agent: key(), ..of(n) }).collect();
        let all = [&[flood.clone(), fill.clone()], &crowd[..], &devices, &others].concat();
        sessions(&running, &all).await;
        let many = |ends: &Ends, role, channels: std::ops::RangeInclusive<u64>| {
            channels.map(|n| ends.receipt(role, n, None)).collect::<Vec<_>>()
        };
        for some in many(&flood, Role::Agent, 1..=300).chunks(60) {
            flood.send(&running, Role::Agent, some).await;
        }
        fill.send(&running, Role::Agent, &many(&fill, Role::Agent, 1..=50)).await;
        assert_eq!(kept(&running).await, 350);
        for ends in &crowd {
            ends.send(&running, Role::Agent, &many(ends, Role::Agent, 1..=4)).await;
        }
        assert_eq!(kept(&running).await, 358);
        assert_eq!(dropped(&running, &crowd[9]).await, [1, 2, 4]);
        for ends in &devices {
            ends.send(&running, Role::Console, &many(ends, Role::Console, 1..=4)).await;
        }
        assert_eq!(kept(&running).await, 366);
        // Other computers are served, although those two come with more and more.
        for ends in &others[..8] {
            ends.send(&running, Role::Agent, &many(ends, Role::Agent, 1..=4)).await;
            assert_eq!(kept_of(&running, ends).await, 4);
        }
        // 398 of 400 wait. What finds its counterpart makes room, and gives its signer's share back.
        let first = &crowd[0];
        first.send(&running, Role::Console, &many(first, Role::Console, 1..=4)).await;
        tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
        for ends in &crowd[2..6] {
            ends.send(&running, Role::Agent, &many(ends, Role::Agent, 1..=4)).await;
        }
        let again: Vec<_> = crowd[2..6].iter().map(|ends| kept_of(&running, ends)).collect();
        let mut kept_again = Vec::new();
        for kept in again {
            kept_again.push(kept.await);
        }
        assert_eq!(kept_again, [4, 0, 0, 0]);
        running.close().await;
    }

    /// Whose word had no room is not said to have sent nothing; and what is missing for good takes
    /// bounded room, too.
    #[tokio::test]
    async fn what_is_missing_for_good_is_bounded_and_the_largest_give_way() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let small = Ends::new(running.partner("acme").await.id);
        let large = Ends { session: [8; 16], room: Arc::new(Room::of(200)), ..small.clone() };
        sessions(&running, &[small.clone(), large.clone()]).await;
        small.send(&running, Role::Agent, &[small.receipt(Role::Agent, 2, Some(1))]).await;
        let both = |n| [Role::Agent, Role::Console].map(|role| large.receipt(role, n, Some(1)));
        for some in (1..=240).map(|n| both(n)[0].clone()).collect::<Vec<_>>().chunks(60) {
            large.send(&running, Role::Agent, some).await;
        }
        assert_eq!(kept_of(&running, &large).await, 149);
        let mut sweep = Sweep::with_room_for(100);
        let at = adit_runtime::time::unix_ms() + GRACE_MS + 60_000;
        let store = (&running.store.readers, &running.writer);
        assert_eq!(sweep.sweep(store, at).await.unwrap(), 150);
        assert_eq!((kept_of(&running, &small).await, kept_of(&running, &large).await), (1, 99));
        // 240 - 149 had no room at first, and 50 more had none in the end.
        assert_eq!(dropped(&running, &large).await, [1, 2, 4, 8, 16, 32, 64, 141]);
        assert_eq!(dropped(&running, &small).await, [0; 0]);
        // The console tells all: what it tells of channels that were dropped finds nothing, and
        // the agent is not said to have kept silent without more.
        for some in (1..=240).map(|n| both(n)[1].clone()).collect::<Vec<_>>().chunks(60) {
            small.send(&running, Role::Console, some).await;
        }
        assert_eq!(sweep.sweep(store, at).await.unwrap(), 141);
        let entries = entries(&running).await;
        let last = entries.iter().rfind(|entry| entry.event().name == "receipt.missing").unwrap();
        assert_eq!((number(last, "others"), number(last, "dropped")), (140, 141));
        assert!(matches!(last.event().extra.get("missing_from"),
            Some(adit_ledger::Value::Text(end)) if end == "agent"));
        running.close().await;
    }

    /// Whoever missed the other end's last word gets it here, and nobody else does.
    #[tokio::test]
    async fn close_receipts_are_given_to_the_other_end_alone() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let partner = running.partner("acme").await.id;
        let ends = Ends::new(partner.clone());
        session(&running, &ends).await;
        let close = ends.receipt(Role::Agent, 2, Some(1));
        let told = [ends.receipt(Role::Agent, 2, None), close.clone()];
        ends.send(&running, Role::Agent, &told).await;
        let name = |channel| wire::ReceiptName { session_id: vec![7; 16].into(), channel };
        let asked = [name(2), name(3)];
        let pool = &running.store.readers;
        let given = async |partner: &str, key: &SigningKey| {
            counterparts(pool, (partner, key.public()), &asked).await.unwrap()
        };
        assert_eq!(given(&partner, &ends.console).await, [close.to_line()]);
        assert!(given(&partner, &ends.agent).await.is_empty());
        assert!(given(&partner, &SigningKey::generate().unwrap()).await.is_empty());
        assert!(given("other", &ends.console).await.is_empty());
        running.close().await;
    }

    /// Erasing a client finds what is said of its receipts, and legal hold and retention are those
    /// of the log: no clock that leaps deletes a receipt.
    #[tokio::test]
    async fn events_name_the_client_and_receipts_last_as_long_as_the_log() {
        use crate::audit::{
            holds,
            retention::{DAY_MS, prune},
        };
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let partner = running.partner("acme").await.id;
        let ends = Ends::new(partner.clone());
        session(&running, &ends).await;
        let alone = [ends.receipt(Role::Console, 3, None), ends.receipt(Role::Console, 3, Some(5))];
        ends.send(&running, Role::Console, &alone).await;
        assert_eq!(later(&running).await, 2);
        ends.send(&running, Role::Agent, &[ends.receipt(Role::Agent, 3, Some(6))]).await;
        let lines: Vec<String> =
            sqlx::query_scalar("SELECT line FROM audit_entry WHERE event LIKE 'receipt.%'")
                .fetch_all(&running.store.readers)
                .await
                .unwrap();
        assert_eq!(lines.len(), 2);
        for line in lines {
            let entry = adit_ledger::Entry::parse(line.as_bytes()).unwrap();
            assert_eq!(entry.event().client.as_deref(), Some("acme/berlin"), "{line}");
        }
        // 400 days later by the wall clock; retention goes by a time of its own.
        let now = adit_runtime::time::unix_ms();
        let store = (&running.store.readers, &running.writer);
        let swept = Sweep::default().sweep(store, now + 400 * DAY_MS).await;
        assert_eq!(swept.unwrap(), 0);
        assert_eq!(kept(&running).await, 3);
        let at = async |days: u64| {
            let stop = tokio_util::sync::CancellationToken::new();
            let due = now + days * DAY_MS;
            prune(&running.store, &running.writer, 0, &[], due, &stop).await.unwrap();
            kept(&running).await
        };
        let hold = async |on| {
            let partner = partner.clone();
            let job = running
                .writer
                .write(move |tx| Box::pin(async move { holds::set(tx, &partner, on).await }));
            job.await.unwrap();
        };
        assert_eq!(at(119).await, 3, "never shorter than the default");
        hold(true).await;
        assert_eq!(at(400).await, 3, "a legal hold keeps them");
        hold(false).await;
        assert_eq!(at(400).await, 0);
        running.close().await;
    }
}
