//! Lists in SQL against the decision for each row, over random worlds in one database; the
//! migration; the past.

use std::{collections::BTreeSet, time::Duration};

use adit_protocol::{
    ids::{ComputerId, SessionId},
    keys::{SigningKey, random},
};

use super::{
    bindings::{Binding, Subject},
    labels::Kind,
    *,
};
use crate::{
    authz::Holder,
    core::types::{Basis, Effect, Place, SessionRow, Told, Who},
    roles::{
        Act, Object, Permission, Role,
        tests::{Pc, Random, conditions, facts, labels as some_labels, role, scope},
    },
    store::{
        Columns as _, WriteTx, accounts, computers, fresh_id, sessions, tenants,
        tests::{Fixture, Running},
    },
};

const WORLDS: u64 = 60;

/// A partner's account and all computers of two partners.
struct World {
    partner: String,
    account: String,
    pcs: Vec<Pc>,
}

async fn computer(
    tx: &mut WriteTx,
    client: &tenants::Client,
    name: &str,
    groups: BTreeSet<String>,
    tags: BTreeSet<String>,
) -> Result<Pc, StoreError> {
    let identity = SigningKey::generate().unwrap().public();
    let new = computers::NewComputer {
        client: client.clone(),
        name: name.to_owned(),
        identity,
        noise_cert: vec![1],
        tags: "{}".into(),
        os: "os".into(),
        version: "1".into(),
    };
    let id = computers::insert(tx, &new).await?.to_string();
    for (kind, set) in [(Kind::Group, &groups), (Kind::Tag, &tags)] {
        for label in set {
            labels::add(tx, &client.partner_id, &id, kind, label).await?;
            // Twice is once, and what was taken away does not count.
            assert!(!labels::add(tx, &client.partner_id, &id, kind, label).await?);
        }
    }
    for (kind, label, set) in [(Kind::Group, "g", &groups), (Kind::Tag, "b=2", &tags)] {
        if !set.contains(label) {
            labels::add(tx, &client.partner_id, &id, kind, label).await?;
            assert!(labels::remove(tx, &id, kind, label).await?);
        }
    }
    let (partner, client) = (client.partner_id.clone(), client.id.clone());
    Ok(Pc { partner, client, id, groups, tags })
}

async fn session(tx: &mut WriteTx, pc: &Pc, account: &str) -> Result<SessionId, StoreError> {
    let id = SessionId(random().map_err(|_| StoreError::Random)?);
    let key = SigningKey::generate().unwrap().public();
    let row = SessionRow {
        id,
        who: Who {
            account_id: account.to_owned(),
            account: account.to_owned(),
            partner_id: pc.partner.clone(),
            partner: "p".into(),
            login: [1; 32],
            device: key,
            source: "192.0.2.1:1".into(),
            mfa: String::new(),
        },
        place: Place {
            computer_id: pc.id.parse::<ComputerId>().unwrap(),
            computer: "pc".into(),
            client_id: pc.client.clone(),
            client: "p/c".into(),
            agent: key,
        },
        redirector: "ssh".into(),
        target: "127.0.0.1:22".into(),
        any_target: false,
        started_ms: 1,
        lease_ms: 1,
        basis: Basis::default(),
        told: Told::default(),
    };
    sessions::apply(tx, Effect::Begin(Box::new(row))).await?;
    Ok(id)
}

async fn build(tx: &mut WriteTx, seed: u64) -> Result<World, StoreError> {
    let random = &mut Random(seed);
    let mut pcs = Vec::new();
    let mut partners = Vec::new();
    for p in 0..2 {
        let partner = tenants::create_partner(tx, &format!("p{p}-{seed}")).await?;
        for c in 0..2 {
            let client = tenants::create_client(tx, &partner, &format!("c{c}")).await?;
            for k in 0..2 {
                let groups = some_labels(random, &["g", "h"]);
                let tags = some_labels(random, &["a=1", "b=2"]);
                pcs.push(computer(tx, &client, &format!("k{k}"), groups, tags).await?);
            }
        }
        partners.push(partner);
    }
    let mine = &partners[0];
    let account = accounts::insert(tx, mine, &format!("u-{seed}"), "technician", "hash").await?;
    labels::add_user(tx, &mine.id, &account, "night").await?;
    labels::add_user(tx, &mine.id, &account, "day").await?;
    labels::remove_user(tx, &account, "day").await?;
    for n in 0..seed % 6 {
        let mut role = role(random, 6);
        if role.id == "r" {
            role.id = fresh_id()?;
            role.name = format!("custom{n}");
            roles::insert(tx, &mine.id, &role).await?;
            if random.one_in(4) {
                // Another version takes its place.
                roles::close(tx, &role.id).await?;
                role.permissions = Role::builtin("auditor").unwrap().permissions;
                roles::insert(tx, &mine.id, &role).await?;
            }
        }
        let subject = match random.below(5) {
            0 => Subject::Group("night".into()),
            1 => Subject::Group("day".into()),
            _ => Subject::User(account.clone()),
        };
        let binding = Binding {
            id: fresh_id()?,
            partner: mine.id.clone(),
            subject,
            role: role.id,
            scope: scope(random, &pcs),
            conditions: conditions(random, 6),
            expires_ms: random.one_in(4).then(|| random.below(200_000_000)),
        };
        bindings::insert(tx, &binding).await?;
        if random.one_in(5) {
            assert!(bindings::close(tx, &binding.id).await?);
        }
    }
    Ok(World { partner: mine.id.clone(), account, pcs })
}

async fn worlds(running: &Running) -> Vec<World> {
    let write = running.writer.write(|tx| {
        Box::pin(async move {
            let mut worlds = Vec::new();
            for seed in 0..WORLDS {
                worlds.push(build(tx, seed).await?);
            }
            Ok(worlds)
        })
    });
    write.await.unwrap()
}

fn object(pc: &Pc) -> Object {
    Object::Computer {
        partner: pc.partner.clone(),
        client: pc.client.clone(),
        computer: pc.id.clone(),
        groups: pc.groups.clone(),
        tags: pc.tags.clone(),
    }
}

#[tokio::test]
async fn lists_show_exactly_what_decisions_allow_and_nothing_of_other_partners() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let worlds = worlds(&running).await;
    let all: Vec<Pc> = worlds.iter().flat_map(|world| world.pcs.clone()).collect();
    let everywhere = all.clone();
    let open: Vec<SessionId> = running
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let mut open = Vec::new();
                for pc in &everywhere {
                    open.push(session(tx, pc, "somebody").await?);
                }
                Ok(open)
            })
        })
        .await
        .unwrap();
    let pool = &running.store.readers;
    let mut shown = 0;
    for (seed, world) in (0..).zip(&worlds) {
        let holder = Holder::load(pool, &world.partner, &world.account, When::Now).await.unwrap();
        let random = &mut Random(seed + 1_000_000);
        for _ in 0..4 {
            let facts = facts(random);
            let may = |permission, pc: &Pc| {
                holder.decide(Act::of(permission), &object(pc), facts.clone()).is_allowed()
            };
            for permission in
                [Permission::SeeComputers, Permission::ApproveRequests, Permission::ManageTokens]
            {
                let clause = holder.filter(permission, facts.clone(), &filter::COMPUTER);
                let rows = computers::list(pool, &clause, "", None, "", 10_000).await.unwrap();
                let listed: BTreeSet<String> = rows.iter().map(|row| row.id.to_string()).collect();
                let allowed: BTreeSet<String> =
                    all.iter().filter(|pc| may(permission, pc)).map(|pc| pc.id.clone()).collect();
                assert_eq!(listed, allowed, "seed {seed} {permission} {:#?}", holder.rules);
                assert!(rows.iter().all(|row| row.partner_id == world.partner), "seed {seed}");
                shown += listed.len();
            }
            let clause = holder.filter(Permission::SeeSessions, facts.clone(), &filter::SESSION);
            let listed = sessions::visible(pool, &world.account, clause, 10_000).await.unwrap();
            let mine = all.iter().zip(&open);
            let mine = mine.filter(|(pc, _)| may(Permission::SeeSessions, pc));
            let allowed: BTreeSet<SessionId> = mine.map(|(_, id)| *id).collect();
            assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), allowed, "seed {seed}");
        }
    }
    assert!(shown > 100, "the worlds show too little: {shown}");
    running.close().await;
}

#[tokio::test]
async fn what_held_at_a_past_time_is_known() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("p").await;
    let bound = Binding::on_partner(&partner.id, "a".into(), "builtin:technician".into()).unwrap();
    let id = bound.id.clone();
    let write = running.writer.write(move |tx| {
        Box::pin(async move {
            bindings::insert(tx, &bound).await?;
            Ok(tx.now_ms())
        })
    });
    let from = write.await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let write = running.writer.write(move |tx| {
        Box::pin(async move {
            assert!(bindings::close(tx, &id).await? && !bindings::close(tx, &id).await?);
            Ok(tx.now_ms())
        })
    });
    let to = write.await.unwrap();
    let pool = &running.store.readers;
    for (when, count) in [
        (When::At(from - 1), 0),
        (When::At(from), 1),
        (When::At(to - 1), 1),
        (When::At(to), 0),
        (When::Now, 0),
    ] {
        let rules = bindings::rules(pool, &partner.id, "a", when).await.unwrap();
        assert_eq!(rules.len(), count, "{when:?}");
    }
    running.close().await;
}

#[tokio::test]
async fn existing_users_keep_what_they_could_do() {
    let fixture = Fixture::new();
    let running = fixture.open().await.unwrap();
    let partner = running.partner("p").await;
    let of = partner.clone();
    let write = running.writer.write(move |tx| {
        Box::pin(async move {
            tenants::set(tx, crate::init::HOME_PARTNER, &of.id).await?;
            for (name, role, at) in [
                ("first", "administrator", 1),
                ("second", "administrator", 2),
                ("jane", "technician", 0),
            ] {
                let id = accounts::insert(tx, &of, name, role, "hash").await?;
                sqlx::query("UPDATE account SET created_ms = $1 WHERE id = $2")
                    .bind(i64::from(at))
                    .bind(id)
                    .execute(tx.sql())
                    .await?;
            }
            let migration = include_str!("../../../migrations/0010_access.sql");
            let (_, statement) = migration.split_once("-- What worked goes on").unwrap();
            let (_, statement) = statement.split_once('\n').unwrap();
            sqlx::query(statement).execute(tx.sql()).await?;
            Ok(())
        })
    });
    write.await.unwrap();
    let pool = &running.store.readers;
    for (name, role) in [("first", "owner"), ("second", "administrator"), ("jane", "technician")] {
        let account = accounts::by_name(pool, name).await.unwrap().unwrap();
        let rules = bindings::rules(pool, &partner.id, &account.id, When::Now).await.unwrap();
        let names: Vec<_> = rules.iter().map(|rule| rule.role.name.as_str()).collect();
        assert_eq!(names, [role], "{name}");
    }
    let open =
        sqlx::query("SELECT COUNT(*) AS count FROM access_binding").fetch_one(pool).await.unwrap();
    assert_eq!(open.number("count").unwrap(), 3);
    running.close().await;
}
