//! The log's search, levels, retention and exports on a real database.

use std::{collections::BTreeSet, time::Duration};

use adit_ledger::{Event, Level, Trust, verify_export};
use adit_runtime::time::unix_ms;
use sqlx::Row;
use tokio_util::sync::CancellationToken;

use super::{
    fill, forward, holds, levels,
    retention::{self, DAY_MS},
    search::{self, Cursor, Filter, Page, Reach},
};
use crate::{
    admin::export::{self, Format, Selection},
    authz::{Holder, facts_now},
    roles::{Conditions, Permission, Role, Rule, Scope},
    store::{
        access::bindings::{self, Binding},
        accounts, audit,
        tenants::{self, Partner},
        tests::{Fixture, Running},
    },
};

/// A small generator: seeds make a test's world.
struct Dice(u64);

impl Dice {
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.roll(of.len() as u64)).unwrap()]
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

impl Running {
    /// Adds events, each at its time.
    async fn add(&self, partner: &Partner, events: Vec<(u64, Event)>) {
        let id = partner.id.clone();
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    for (time, event) in events {
                        tx.set_now(time);
                        tx.append(&id, event).await?;
                    }
                    Ok(())
                })
            })
            .await
            .unwrap();
    }

    /// All pages of a search.
    async fn search(&self, reach: &Reach, filter: &Filter, limit: u32) -> Vec<u64> {
        let (mut after, mut seqs) = (None, Vec::new());
        loop {
            let page = Page { after, limit };
            let found = search::search(&self.store.readers, reach, filter, page).await.unwrap();
            assert!(found.hits.len() <= limit as usize);
            seqs.extend(found.hits.iter().map(|hit| hit.seq));
            let Some(next) = found.next else { return seqs };
            // What a client hands back is what it was given.
            after = Some(next.to_string().parse::<Cursor>().unwrap());
        }
    }

    async fn export(&self, filter: Filter, heads: Vec<adit_ledger::SignedHead>) -> String {
        let heads = export::seen(&heads);
        let selection = Selection { format: Format::Jsonl, filter, partner: None, heads };
        let mut out = String::new();
        export::export(&self.store, &selection, |piece: String| {
            out.push_str(&piece);
            Ok(())
        })
        .await
        .unwrap();
        out
    }
}

fn random_event(dice: &mut Dice) -> Event {
    let names = ["session.granted", "session.ended", "login.failed", "user.added"];
    let mut event =
        Event::new(dice.pick(&names), Level::Normal).actor(format!("Person{}", dice.roll(4)));
    if dice.roll(3) > 0 {
        event = event
            .computer(format!("PC-{}", dice.roll(5)))
            .computer_id(format!("id{}", dice.roll(5)))
            .client(format!("P/C{}", dice.roll(3)))
            .redirector(dice.pick(&["ssh", "rdp"]))
            .session_id(format!("s{}", dice.roll(40)));
    } else {
        event = event.extra_personal("user", format!("person{}", dice.roll(4)));
    }
    event
}

fn random_filter(dice: &mut Dice) -> Filter {
    let mut filter = Filter::default();
    let mut pick = |list: &mut Vec<String>, prefix: &str, count: u64| {
        for _ in 0..dice.roll(3).saturating_sub(dice.roll(2)) {
            list.push(format!("{prefix}{}", dice.roll(count)));
        }
    };
    pick(&mut filter.persons, "PERSON", 4);
    pick(&mut filter.computers, "pc-", 5);
    pick(&mut filter.computers, "id", 5);
    pick(&mut filter.clients, "p/c", 3);
    pick(&mut filter.sessions, "s", 40);
    if dice.roll(3) == 0 {
        filter.redirectors = vec!["ssh".to_owned()];
    }
    if dice.roll(3) == 0 {
        filter.events = vec!["login.failed".to_owned(), "session.ended".to_owned()];
    }
    if dice.roll(2) == 0 {
        filter.since_ms = Some(dice.roll(6_000));
        filter.until_ms = Some(dice.roll(6_000));
    }
    filter
}

#[tokio::test]
async fn a_search_finds_exactly_what_matches_whatever_the_clock_did() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let (partner, other) = (running.partner("p").await, running.partner("q").await);
    let mut dice = Dice(7);
    let mut events = Vec::new();
    for n in 0..4_000 {
        // The clock jumps back and forth for a while, and once for a moment long before: what is
        // searched for by time is in stretches apart then.
        let jump = match n {
            500 => 3_000,
            2_100..3_000 => dice.pick(&[0, 0, 0, 3_000]),
            _ => 0,
        };
        events.push((1_000 + n + jump, random_event(&mut dice)));
    }
    running.add(&partner, events.clone()).await;
    running.add(&other, events).await;
    let trees = audit::trees(&running.store.readers).await.unwrap();
    let tree = trees.iter().find(|tree| tree.partner == "p").unwrap();
    let rows = audit::entries(&running.store.readers, &tree.id, 0, 9_999, 9_999).await.unwrap();
    let entries: Vec<_> =
        rows.iter().map(|row| adit_ledger::Entry::parse(row.line.as_bytes()).unwrap()).collect();
    let reach = Reach::whole(partner.id.clone());
    for _ in 0..60 {
        let filter = random_filter(&mut dice);
        let expected: Vec<u64> = entries
            .iter()
            .rev()
            .filter(|entry| filter.matches(entry))
            .map(adit_ledger::Entry::seq)
            .collect();
        let limit = u32::try_from(1 + dice.roll(200)).unwrap();
        assert_eq!(running.search(&reach, &filter, limit).await, expected, "{filter:?}");
    }
    assert_eq!(running.search(&reach, &Filter::default(), 500).await.len(), 4_001);
    // However little time there is, each page gets further, and nothing is lost between two.
    let list = |text: &str| vec![text.to_owned()];
    let filter = Filter { persons: list("PERSON1"), computers: list("pc-2"), ..Filter::default() };
    let whole = running.search(&reach, &filter, 500).await;
    assert!(!whole.is_empty());
    let (mut after, mut pieces) = (None, Vec::new());
    for pages in 0.. {
        assert!(pages <= 4_001, "a page that gets nowhere");
        let page = Page { after, limit: 500 };
        let pool = &running.store.readers;
        let found = search::within(pool, (&reach, &filter), page, Duration::ZERO).await.unwrap();
        pieces.extend(found.hits.iter().map(|hit| hit.seq));
        let Some(next) = found.next else { break };
        after = Some(next);
    }
    assert_eq!(pieces, whole);
    running.close().await;
}

#[tokio::test]
async fn readers_find_what_their_roles_cover_and_nothing_of_other_partners() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let (partner, other) = (running.partner("p").await, running.partner("q").await);
    let owner = partner.clone();
    let (account, client) = running
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let client = tenants::create_client(tx, &owner, "c1").await?;
                let id = accounts::insert(tx, &owner, "Rita", "none", "hash").await?;
                Ok((id, client))
            })
        })
        .await
        .unwrap();
    for partner in [&partner, &other] {
        let about = |client: &str| Event::new("session.granted", Level::Normal).client(client);
        let events = vec![(1, about("p/c1")), (2, about("p/c2")), (3, about("P/C1"))];
        running.add(partner, events).await;
    }
    let holder = |scope, role| Holder {
        account: account.clone(),
        partner: partner.id.clone(),
        disabled: false,
        rules: vec![Rule {
            binding: "b".into(),
            role: Role::builtin(role).unwrap(),
            scope,
            conditions: Conditions::default(),
            expires_ms: None,
        }],
    };
    let of_client = Scope::Client { partner: partner.id.clone(), client: client.id.clone() };
    let pool = &running.store.readers;
    let reach = async |holder: &Holder| {
        Reach::of(pool, holder, Permission::ReadAudit, facts_now(None, 5)).await.unwrap()
    };
    let narrow = reach(&holder(of_client.clone(), "auditor")).await.unwrap();
    assert_eq!(running.search(&narrow, &Filter::default(), 10).await, [3, 1]);
    let c2 = Filter { clients: vec!["p/c2".into()], ..Filter::default() };
    assert_eq!(running.search(&narrow, &c2, 10).await, [0; 0]);
    assert_eq!(narrow.narrow(c2), None);
    assert_eq!(narrow.narrow(Filter::default()).unwrap().clients, ["p/c1"]);
    let whole = reach(&holder(Scope::Partner(partner.id.clone()), "auditor")).await.unwrap();
    assert_eq!(running.search(&whole, &Filter::default(), 10).await, [3, 2, 1, 0]);
    // Installation-wide roles do not pass the wall between partners either.
    let wide = reach(&holder(Scope::Installation, "auditor")).await.unwrap();
    assert_eq!(running.search(&wide, &Filter::default(), 10).await.len(), 4);
    // A cursor of another partner's log leads nowhere else.
    let foreign = Page { after: Some("99-99".parse().unwrap()), limit: 10 };
    let found = search::search(pool, &narrow, &Filter::default(), foreign).await.unwrap();
    assert_eq!(found.hits.len(), 2);
    let technician = holder(Scope::Partner(partner.id.clone()), "technician");
    assert!(reach(&technician).await.is_err());
    let disabled = Holder { disabled: true, ..holder(of_client, "auditor") };
    assert!(reach(&disabled).await.is_err());
    running.close().await;
}

#[tokio::test]
async fn erased_people_are_not_found_any_more() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("p").await;
    let event = Event::new("session.granted", Level::Normal).client("p/c").actor("Somebody");
    running.add(&partner, vec![(1, event)]).await;
    let tree = audit::trees(&running.store.readers).await.unwrap().remove(0).id;
    let rows = audit::entries(&running.store.readers, &tree, 1, 2, 1).await.unwrap();
    let mut entry = adit_ledger::Entry::parse(rows[0].line.as_bytes()).unwrap();
    entry.erase();
    running
        .writer
        .write(move |tx| Box::pin(async move { audit::replace_entry(tx, &tree, &entry).await }))
        .await
        .unwrap();
    let reach = Reach::whole(partner.id.clone());
    let person = Filter { persons: vec!["somebody".into()], ..Filter::default() };
    assert_eq!(running.search(&reach, &person, 10).await, [0; 0]);
    let client = Filter { clients: vec!["p/c".into()], ..Filter::default() };
    assert_eq!(running.search(&reach, &client, 10).await, [1]);
    let key: Option<String> = sqlx::query_scalar("SELECT actor_key FROM audit_entry WHERE seq = 1")
        .fetch_one(&running.store.readers)
        .await
        .unwrap();
    assert_eq!(key, None);
    running.close().await;
}

#[tokio::test]
async fn levels_leave_out_what_may_be_left_out_and_nothing_else() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("p").await;
    let kept = running
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let id = accounts::insert(tx, &partner, "Jane", "technician", "hash").await?;
                bindings::insert(
                    tx,
                    &Binding::on_partner(&partner.id, id.clone(), "builtin:technician".into())?,
                )
                .await?;
                let mut kept = Vec::new();
                for number in 0..=5 {
                    let level = Level::from_number(number).unwrap();
                    levels::set(tx, &id, level).await?;
                    let carrier = |level| Event::new("session.carrier", level).optional();
                    let mut mine = Vec::new();
                    for event in [
                        carrier(Level::Informational).actor("JANE"),
                        carrier(Level::Everything).actor("Jane"),
                        carrier(Level::Everything).actor("a stranger"),
                        Event::new("session.granted", Level::Everything).actor("Jane"),
                    ] {
                        mine.push(tx.record(&partner.id, event).await?.is_some());
                    }
                    kept.push(mine);
                }
                Ok(kept)
            })
        })
        .await
        .unwrap();
    for (level, kept) in kept.into_iter().enumerate() {
        assert_eq!(kept, [level >= 3, level >= 5, true, true], "level {level}");
    }
    running.close().await;
}

#[tokio::test]
async fn a_log_from_before_its_nodes_gets_all_of_them_once() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("p").await;
    let event = || Event::new("session.granted", Level::Normal);
    running.add(&partner, (0..4_500).map(|n| (n, event())).collect()).await;
    let nodes = async || -> BTreeSet<(i64, i64, Vec<u8>)> {
        let rows = sqlx::query("SELECT level, idx, hash FROM audit_node")
            .fetch_all(&running.store.readers)
            .await
            .unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    };
    let all = nodes().await;
    assert!(all.len() > 500);
    // As an old version left it, with some entries of this one.
    for statement in [
        "DELETE FROM audit_node WHERE (idx + 1) * (1 << level) < 4400",
        "DELETE FROM setting WHERE name = 'audit_nodes_built'",
    ] {
        let job = running.writer.write(move |tx| {
            Box::pin(async move {
                sqlx::query(statement).execute(tx.sql()).await?;
                Ok(())
            })
        });
        job.await.unwrap();
    }
    assert!(nodes().await.len() < 20);
    fill::run(running.store.clone(), running.writer.clone()).await.unwrap();
    assert_eq!(nodes().await, all);
    assert!(tenants::setting(&running.store.readers, "audit_nodes_built").await.unwrap().is_some());
    running.close().await;
}

#[tokio::test]
async fn retention_deletes_contents_and_the_log_still_verifies() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("p").await;
    let now = 1_000 * DAY_MS;
    let old = now - 121 * DAY_MS;
    let event =
        |name: &str| Event::new(name, Level::Normal).actor("Jane").reason("a secret reason");
    let mut events: Vec<_> = (0..2_500).map(|n| (old + n, event("session.granted"))).collect();
    events[10].1 = event("enroll.succeeded");
    // One that the clock dated into the future, and one of today among the old ones.
    events[20].0 = now + 400 * DAY_MS;
    events[30].0 = now;
    running.add(&partner, events).await;
    let in_the_middle = running.head().await;
    running.add(&partner, (0..100).map(|n| (now + n, event("session.ended"))).collect()).await;
    let prune_at = async |now: u64, days: u64, targets: &[&'static str]| {
        let (store, writer) = (&running.store, &running.writer);
        let stop = CancellationToken::new();
        let keep = days * DAY_MS;
        retention::prune(store, writer, keep, targets, now, &stop).await.unwrap()
    };
    let prune = async |days, targets: &[&'static str]| prune_at(now, days, targets).await;
    // Longer retention, a hold, and a receiver that has nothing yet: nothing goes.
    assert_eq!(prune(200, &[]).await, 0);
    running.hold(&partner, true).await;
    assert_eq!(prune(120, &[]).await, 0);
    // Two cases: one that is over ends nothing.
    let other = running.another_hold(&partner, "case 8").await;
    running.release(&partner, &other).await;
    assert_eq!(prune(120, &[]).await, 0);
    running.hold(&partner, false).await;
    assert_eq!(prune(120, &[forward::SYSLOG]).await, 0);
    // All that is old but the first entry and the enrolment; of the newest block, too.
    let pruned = prune(0, &[]).await;
    assert_eq!(pruned, 2_501 - 4);
    assert_eq!(prune(120, &[]).await, 0);
    let trust = Trust { heads: vec![in_the_middle.clone()], ..Trust::default() };
    let report = export::verify_store(&running.store, trust.clone()).await.unwrap().unwrap();
    assert_eq!(report.trees[0].pruned, pruned);
    let exported = running.export(Filter::default(), vec![in_the_middle.clone()]).await;
    let report = verify_export(exported.as_bytes(), &trust).unwrap();
    assert_eq!((report.trees[0].pruned, report.trees[0].omitted), (pruned, 0));
    let reach = Reach::whole(partner.id.clone());
    let jane = Filter { persons: vec!["jane".into()], ..Filter::default() };
    let found = running.search(&reach, &jane, 500).await;
    assert_eq!(found.len() as u64, 2_600 - pruned);
    assert!([11, 21, 31].iter().all(|seq| found.contains(seq)));
    let told = Filter { events: vec!["audit.pruned".into()], ..Filter::default() };
    assert_eq!(running.search(&reach, &told, 5).await.len(), 1);
    // What is recorded of it is not due some day, to be recorded again.
    let late = unix_ms() + 1_000 * DAY_MS;
    assert_eq!(prune_at(late, 120, &[]).await, 102);
    assert_eq!(prune_at(late + 1_000 * DAY_MS, 120, &[]).await, 0);
    assert_eq!(running.search(&reach, &told, 5).await.len(), 2);
    running.close().await;
    // A log that nobody has used for long goes on.
    let running = fixture.open().await.unwrap();
    let trust = Trust { heads: vec![in_the_middle], ..Trust::default() };
    export::verify_store(&running.store, trust).await.unwrap().unwrap();
    running.add(&partner, vec![(now, event("session.granted"))]).await;
    running.close().await;
}

impl Running {
    async fn head(&self) -> adit_ledger::SignedHead {
        audit::trees(&self.store.readers).await.unwrap().remove(0).head
    }

    async fn hold(&self, partner: &Partner, hold: bool) {
        let id = partner.id.clone();
        self.writer
            .write(move |tx| Box::pin(async move { holds::set(tx, &id, hold).await }))
            .await
            .unwrap();
    }
}

impl Running {
    async fn another_hold(&self, partner: &Partner, reason: &'static str) -> String {
        let id = partner.id.clone();
        let begun = self.writer.write(move |tx| {
            Box::pin(async move { holds::begin(tx, &id, "somebody", reason).await })
        });
        match begun.await.unwrap() {
            holds::Begun::New(hold) => hold.id,
            other => panic!("{other:?}"),
        }
    }

    async fn release(&self, partner: &Partner, hold: &str) {
        let (id, hold) = (partner.id.clone(), hold.to_owned());
        let ended = self
            .writer
            .write(move |tx| Box::pin(async move { holds::end(tx, &id, Some(&hold)).await }));
        let ended = ended.await.unwrap();
        assert!(matches!(ended, holds::Ended::One(_)), "{ended:?}");
    }
}

#[tokio::test]
async fn holds_are_of_their_partner_each_for_itself_and_not_without_bound() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let (ours, theirs) = (running.partner("ours").await, running.partner("theirs").await);
    let first = running.another_hold(&ours, "case 1").await;
    let second = running.another_hold(&ours, "").await;
    let foreign = running.another_hold(&theirs, "case 1").await;
    let of = ours.id.clone();
    let seen = running.writer.write(move |tx| {
        Box::pin(async move {
            // Another partner's is not there, and without a name nobody knows which.
            let ended = holds::end(tx, &of, Some(&foreign)).await?;
            assert!(matches!(ended, holds::Ended::Missing), "{ended:?}");
            let ended = holds::end(tx, &of, None).await?;
            assert!(matches!(&ended, holds::Ended::Several(two) if two.len() == 2), "{ended:?}");
            // Said again by the same person it is the same; by another one, or without words, not.
            let same = holds::begin(tx, &of, "somebody", "case 1").await?;
            assert!(matches!(&same, holds::Begun::Same(hold) if hold.id == first), "{same:?}");
            for (by, reason) in [("another", "case 1"), ("somebody", "")] {
                let begun = holds::begin(tx, &of, by, reason).await?;
                assert!(matches!(begun, holds::Begun::New(_)), "{begun:?}");
            }
            for number in 4..holds::MAX_HOLDS {
                holds::begin(tx, &of, "somebody", &format!("case {number}")).await?;
            }
            let beyond = holds::begin(tx, &of, "somebody", "one more").await?;
            assert!(matches!(beyond, holds::Begun::TooMany), "{beyond:?}");
            holds::of_partner(tx, &of).await
        })
    });
    let seen = seen.await.unwrap();
    assert_eq!(seen.len(), holds::MAX_HOLDS);
    assert!(seen.iter().any(|hold| hold.id == second && hold.reason.is_empty()));
    let theirs = theirs.id;
    assert!(holds::is_held(&running.store.readers, &theirs).await.unwrap());
    running.close().await;
}

/// What was held before several could be is held still, and known by its partner's id.
#[tokio::test]
async fn a_hold_of_before_is_kept_when_the_database_is_brought_up_to_date() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let (held, free) = (running.partner("held").await, running.partner("free").await);
    let (one, other) = (held.id.clone(), free.id.clone());
    let back = running.writer.write(move |tx| {
        Box::pin(async move {
            for statement in [
                "DROP TABLE audit_hold",
                "ALTER TABLE audit_policy ADD COLUMN hold SMALLINT NOT NULL DEFAULT 0",
                "ALTER TABLE audit_policy ADD COLUMN hold_reason TEXT NOT NULL DEFAULT ''",
                "DELETE FROM _sqlx_migrations WHERE version = 76",
            ] {
                sqlx::query(statement).execute(tx.sql()).await?;
            }
            for (id, hold, reason) in [(one, 1, "case 7"), (other, 0, "")] {
                sqlx::query(
                    "INSERT INTO audit_policy (partner_id, retention_ms, hold, hold_reason) \
                     VALUES ($1, 20000000000, $2, $3)",
                )
                .bind(id)
                .bind(hold)
                .bind(reason)
                .execute(tx.sql())
                .await?;
            }
            Ok(())
        })
    });
    back.await.unwrap();
    running.close().await;
    let running = fixture.open().await.unwrap();
    let policies = retention::policies(&running.store.readers).await.unwrap();
    for policy in &policies {
        assert_eq!(policy.retention_ms, Some(20_000_000_000));
        let kept = (policy.partner == "held").then(|| holds::Hold {
            id: held.id.clone(),
            partner_id: held.id.clone(),
            reason: "case 7".to_owned(),
            created_by: None,
            created_ms: None,
        });
        assert_eq!(policy.holds, kept.into_iter().collect::<Vec<_>>(), "{}", policy.partner);
    }
    assert_eq!(policies.len(), 2);
    running.close().await;
}

#[tokio::test]
async fn an_export_of_a_part_proves_what_it_leaves_out() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("p").await;
    let mut dice = Dice(3);
    running.add(&partner, (0..700).map(|n| (n, random_event(&mut dice))).collect()).await;
    let earlier = running.head().await;
    running.add(&partner, (0..700).map(|n| (n, random_event(&mut dice))).collect()).await;
    let filter = Filter { persons: vec!["person1".into()], ..Filter::default() };
    let shown = running.search(&Reach::whole(partner.id.clone()), &filter, 100).await.len() as u64;
    let exported = running.export(filter, vec![earlier.clone()]).await;
    let trust = Trust { heads: vec![earlier], ..Trust::default() };
    let report = verify_export(exported.as_bytes(), &trust).unwrap();
    assert_eq!((report.trees[0].entries, report.trees[0].omitted), (shown, 1_401 - shown));
    for line in exported.lines().filter(|line| line.starts_with("{\"v\":1")) {
        assert!(line.to_lowercase().contains("\"person1\""), "{line}");
    }
    let complete = Trust { complete: true, ..Trust::default() };
    assert!(verify_export(exported.as_bytes(), &complete).is_err());
    // One shown entry less does not verify.
    let cut: Vec<&str> = exported.lines().collect();
    let first = cut.iter().position(|line| line.starts_with("{\"v\":1")).unwrap();
    let without: String = cut
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != first)
        .map(|(_, line)| format!("{line}\n"))
        .collect();
    assert!(verify_export(without.as_bytes(), &Trust::default()).is_err());
    running.close().await;
}

#[tokio::test]
async fn periodic_exports_go_on_where_they_ended_and_each_verifies() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("p").await;
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice(5);
    for round in 0..3 {
        running.add(&partner, (0..77).map(|n| (n, random_event(&mut dice))).collect()).await;
        let done = forward::export::round(&running.store, &running.writer, dir.path()).await;
        assert_eq!(done.unwrap(), 1, "round {round}");
    }
    let done = forward::export::round(&running.store, &running.writer, dir.path()).await;
    assert_eq!(done.unwrap(), 0);
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().path()).collect();
    names.sort();
    let mut seen = BTreeSet::new();
    for name in &names {
        let text = std::fs::read_to_string(name).unwrap();
        let report = verify_export(text.as_bytes(), &Trust::default()).unwrap();
        assert_eq!(report.trees[0].head.size, seen.len() as u64 + report.trees[0].entries);
        for line in text.lines().filter(|line| line.starts_with("{\"v\":1")) {
            seen.insert(adit_ledger::Entry::parse(line.as_bytes()).unwrap().seq());
        }
    }
    assert_eq!((names.len(), seen.len()), (3, 3 * 77 + 1));
    running.close().await;
}
