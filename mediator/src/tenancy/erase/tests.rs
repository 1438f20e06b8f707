//! Who erases, for whom, and when nobody may.

use std::sync::Arc;

use adit_protocol::keys::SigningKey;
use adit_runtime::datadir::DataDir;

use super::*;
use crate::{
    admin::actor::Remote,
    authz::Holder,
    config::{AccountSettings, MfaRule},
    http::Problem,
    init::HOME_PARTNER,
    roles::{Conditions, Role, Rule, Scope},
    store::{
        access::bindings::{self, Binding},
        accounts,
        tests::{Fixture, Running},
    },
    vault::{Vault, tenant::TenantKeys, wrap::WrappingKeys},
};

const NAME: &str = "zorro-user";
const PERSON: &str = "id-of-zorro";

/// An installation with a partner `acme`, its client `acme/gone`, and one of its people.
pub(in crate::tenancy) struct Town {
    pub(in crate::tenancy) context: AdminContext,
    pub(in crate::tenancy) running: Running,
    pub(in crate::tenancy) acme: tenants::Partner,
    pub(in crate::tenancy) home: String,
    pub(in crate::tenancy) folders: (Fixture, tempfile::TempDir),
}

impl Town {
    pub(in crate::tenancy) async fn new() -> Self {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::open(folder.path().join("d")).unwrap();
        let keys = WrappingKeys::load(&dir, None).unwrap();
        let home = running.partner("home").await.id;
        let acme = running.partner("acme").await;
        let (of, setting) = (acme.clone(), home.clone());
        let job = running.writer.write(move |tx| {
            Box::pin(async move {
                tenants::set(tx, HOME_PARTNER, &setting).await?;
                tenants::create_client(tx, &of, "gone").await?;
                let account = accounts::insert(tx, &of, NAME, "none", "hash").await?;
                let known = "UPDATE account SET id = $1 WHERE id = $2";
                sqlx::query(known).bind(PERSON).bind(account).execute(tx.sql()).await?;
                let all = Binding::on_partner(&of.id, PERSON.into(), "builtin:owner".into())?;
                bindings::insert(tx, &all).await
            })
        });
        job.await.unwrap();
        let (store, writer) = (running.store.clone(), running.writer.clone());
        let context = AdminContext {
            store: store.clone(),
            writer: writer.clone(),
            root: SigningKey::generate().unwrap().public().fingerprint(),
            hosts: Vec::new(),
            port: Ok(1),
            broker: None,
            rules: Default::default(),
            accounts: AccountSettings { mfa: MfaRule::OnceSetUp, life_ms: 1, idle_ms: 1 },
            retention_ms: crate::audit::retention::DAY_MS,
            export_dir: None,
            vault: Vault { store, writer, keys: TenantKeys::new(keys.clone(), dir.clone()) },
            keys,
            signer: fixture.signer(),
            dir,
            refusals: Default::default(),
            rotation: Default::default(),
            erasing: Default::default(),
        };
        Self { context, running, acme, home, folders: (fixture, folder) }
    }

    /// One of acme's people, who may do everything there.
    fn person(&self) -> Actor {
        let scope = Scope::Partner(self.acme.id.clone());
        let rule = Rule {
            binding: "b".into(),
            role: Role::builtin("owner").unwrap(),
            scope,
            conditions: Conditions::default(),
            expires_ms: None,
        };
        Actor::Remote(Arc::new(Remote {
            kind: actor::Kind::Console,
            holder: Holder {
                account: PERSON.into(),
                partner: self.acme.id.clone(),
                disabled: false,
                rules: vec![rule],
            },
            name: NAME.into(),
            partner: "acme".into(),
            device: SigningKey::generate().unwrap().public(),
            source: "192.0.2.1:1".parse().unwrap(),
            mfa: "totp".into(),
            mfa_ms: Some(unix_ms()),
            fresh: true,
            operation: "test",
            denied: Default::default(),
        }))
    }

    pub(in crate::tenancy) async fn hold(&self, hold: bool) {
        let partner = self.acme.id.clone();
        let job = self
            .running
            .writer
            .write(move |tx| Box::pin(async move { holds::set(tx, &partner, hold).await }));
        job.await.unwrap();
    }

    /// The step after the beginning fails.
    fn break_down(&self) {
        std::fs::create_dir(self.context.dir.file(ledger::ERASED).unwrap()).unwrap();
    }

    fn mend(&self) {
        std::fs::remove_dir(self.context.dir.file(ledger::ERASED).unwrap()).unwrap();
    }

    /// Entries of that name, as they stand in the log of a partner.
    pub(in crate::tenancy) async fn told(&self, partner: &str, event: &str) -> Vec<Value> {
        let lines: Vec<String> = sqlx::query_scalar(
            "SELECT e.line FROM audit_entry e JOIN audit_tree t ON t.id = e.tree \
             WHERE t.partner_id = $1 AND e.event = $2 ORDER BY e.seq",
        )
        .bind(partner.to_owned())
        .bind(event.to_owned())
        .fetch_all(&self.running.store.readers)
        .await
        .unwrap();
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The erasure of acme, begun and no further; its client has a key.
    async fn begin(&self) -> Erasure {
        self.begin_of(Kind::Partner).await
    }

    /// The same, or that of its client alone.
    pub(in crate::tenancy) async fn begin_of(&self, kind: Kind) -> Erasure {
        let client = self.client().await;
        self.context.vault.keys.read_or_make(&client).unwrap();
        let (client_id, subject) = match kind {
            Kind::Client => (client, "acme/gone"),
            Kind::Partner => (String::new(), "acme"),
        };
        let new = Erasure {
            id: fresh_id().unwrap(),
            kind,
            partner_id: self.acme.id.clone(),
            client_id,
            subject: subject.to_owned(),
            begun_by: Some(LOCAL.to_owned()),
            begun_ms: unix_ms(),
            finished_ms: None,
            counts: Counts::default(),
            certificate: String::new(),
        };
        begin((&self.context, &Actor::Local), new).await.unwrap()
    }

    /// Id of its client.
    pub(in crate::tenancy) async fn client(&self) -> String {
        let all = erasures::clients(&self.running.store.readers, &self.acme.id).await.unwrap();
        let [client] = all.as_slice() else { panic!("{all:?}") };
        client.clone()
    }

    pub(in crate::tenancy) async fn unfinished(&self) -> usize {
        let all = erasures::all(&self.running.store.readers).await.unwrap();
        all.iter().filter(|one| one.finished_ms.is_none()).count()
    }
}

#[tokio::test]
async fn who_began_the_erasure_of_their_own_partner_is_told_though_others_finish_it() {
    let town = Town::new().await;
    let (context, person) = (&town.context, town.person());
    town.break_down();
    let stopped = partner((context, &person), "acme", Some("acme")).await.unwrap_err();
    // Who began it cannot ask again: what they are told is true for them.
    assert_eq!(stopped.code, "erasure_unfinished");
    let shown = Problem::from(stopped);
    assert!(shown.status.as_u16() == 503 && shown.detail.contains("by itself"), "{}", shown.detail);
    assert_eq!(resume(context).await.unwrap(), 0);
    town.mend();
    assert_eq!(resume(context).await.unwrap(), 1);
    assert_eq!((town.unfinished().await, resume(context).await.unwrap()), (0, 0));
    for name in ["erasure_begun", "erased", "certified"] {
        let told = town.told(&town.home, &format!("partner.{name}")).await;
        let [told] = told.as_slice() else { panic!("{name}: {told:?}") };
        assert_eq!(told["actor"], "account id-of-zorro", "{told}");
        let text = told.to_string();
        assert!(text.contains("\"begun_by\":\"account id-of-zorro\""), "{text}");
        assert!(!text.contains(NAME) && !text.contains(LOCAL), "{text}");
    }
    town.running.close().await;
}

/// The certificate tells of all that was done, whoever did it before.
#[tokio::test]
async fn what_was_done_before_an_erasure_stopped_is_certified() {
    let town = Town::new().await;
    let context = &town.context;
    let begun = town.begin().await;
    // A key is destroyed, and nobody lives to say so.
    destroy_key(context, &begun, &town.client().await).await.unwrap();
    let set_home = async |home: &str| {
        let home = home.to_owned();
        let job = town
            .running
            .writer
            .write(move |tx| Box::pin(async move { tenants::set(tx, HOME_PARTNER, &home).await }));
        job.await.unwrap();
    };
    // All but the last step is done, which has nowhere to record it.
    set_home("nowhere").await;
    run((context, None), begun).await.unwrap_err();
    set_home(&town.home).await;
    assert_eq!(resume(context).await.unwrap(), 1);
    let told = certificates((context, &Actor::Local), None).await.unwrap();
    let text = told[0]["certificate"].to_string();
    for count in ["clients_deleted", "tenant_keys_destroyed"] {
        let told = [format!("{count}\":1,"), format!("{count}\\\":1,")];
        assert!(told.iter().any(|told| text.contains(told)), "{count}: {text}");
    }
    assert!(
        !text.contains("entries_erased\":0") && !text.contains("entries_erased\\\":0"),
        "{text}"
    );
    town.running.close().await;
}

#[tokio::test]
async fn the_local_administrator_who_goes_on_does_not_take_the_place_of_who_began() {
    let town = Town::new().await;
    let context = &town.context;
    town.break_down();
    partner((context, &town.person()), "acme", Some("acme")).await.unwrap_err();
    town.mend();
    partner((context, &Actor::Local), "acme", None).await.unwrap();
    let told = town.told(&town.home, "partner.erased").await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["actor"], LOCAL);
    assert!(told[0].to_string().contains("\"begun_by\":\"account id-of-zorro\""), "{}", told[0]);
    town.running.close().await;
}

#[tokio::test]
async fn what_two_erase_at_once_is_erased_and_certified_once() {
    let town = Town::new().await;
    let (context, person) = (&town.context, town.person());
    let (one, other, resumed) = tokio::join!(
        client((context, &person), "acme/gone"),
        client((context, &Actor::Local), "acme/gone"),
        resume(context),
    );
    let done = [one.is_ok(), other.is_ok(), resumed.unwrap() == 1];
    assert_eq!(done.into_iter().filter(|done| *done).count(), 1, "{done:?}");
    for name in ["client.erasure_begun", "client.erased", "client.certified"] {
        assert_eq!(town.told(&town.acme.id, name).await.len(), 1, "{name}");
    }
    assert_eq!(erasures::all(&town.running.store.readers).await.unwrap().len(), 1);
    town.running.close().await;
}

#[tokio::test]
async fn nothing_is_erased_while_a_legal_hold_is_on_the_partner() {
    let town = Town::new().await;
    let (context, person) = (&town.context, town.person());
    town.hold(true).await;
    for by in [&person, &Actor::Local] {
        let refused = client((context, by), "acme/gone").await.unwrap_err();
        assert_eq!((refused.code, refused.exit), ("legal_hold", Exit::Refused));
        assert!(refused.hint.unwrap().contains("release"));
        let refused = partner((context, by), "acme", Some("acme")).await.unwrap_err();
        assert_eq!(refused.code, "legal_hold");
    }
    assert_eq!(town.unfinished().await, 0);
    town.hold(false).await;
    // Nor is one gone on with that had begun before.
    town.break_down();
    client((context, &person), "acme/gone").await.unwrap_err();
    town.mend();
    town.hold(true).await;
    assert_eq!(resume(context).await.unwrap(), 0);
    assert_eq!(client((context, &person), "acme/gone").await.unwrap_err().code, "legal_hold");
    assert_eq!(town.told(&town.acme.id, "client.erased").await.len(), 0);
    town.hold(false).await;
    assert_eq!((resume(context).await.unwrap(), town.unfinished().await), (1, 0));
    town.running.close().await;
}

/// A hold that comes at any moment of an erasure stops it there.
#[tokio::test]
async fn each_step_of_an_erasure_heeds_a_hold_that_came_after_the_one_before() {
    let town = Town::new().await;
    let context = &town.context;
    let (begun, client) = (town.begin().await, town.client().await);
    let pass = Pass { store: &context.store, writer: &context.writer, erasure: &begun };
    town.hold(true).await;
    let refused = [
        heed_hold(context, &begun).await,
        destroy_key(context, &begun, &client).await,
        delete_rows(context, &begun, vec![client.clone()]).await.map(drop),
    ];
    for refused in refused {
        let refused = refused.unwrap_err();
        assert!(refused.code == "legal_hold" && refused.hint.unwrap().contains("by itself"));
    }
    assert_eq!(pass.run().await.unwrap(), None);
    context.vault.keys.read(&client).unwrap();
    assert_eq!(town.client().await, client);
    let told = town.told(&town.acme.id, "partner.erasure_begun").await;
    assert!(!told[0]["actor"].is_null(), "{}", told[0]);
    town.hold(false).await;
    assert!(pass.run().await.unwrap().unwrap().entries > 0);
    assert_eq!((resume(context).await.unwrap(), town.unfinished().await), (1, 0));
    town.running.close().await;
}

/// What has no room for a second copy would be begun again each minute.
#[tokio::test]
async fn the_database_is_rewritten_once_for_an_erasure() {
    let town = Town::new().await;
    let context = &town.context;
    let mut begun = town.begin().await;
    assert!(rewrite(context, &mut begun).await.unwrap());
    // Who goes on after a try that ended nobody knows how.
    let mut known = erasures::unfinished(&context.store.readers, &begun.id).await.unwrap().unwrap();
    assert_eq!(known.counts.rewritten, Some(false));
    let _running = compact::try_take(&context.store).unwrap();
    assert!(!rewrite(context, &mut known).await.unwrap());
    town.running.close().await;
}

#[tokio::test]
async fn the_database_is_rewritten_by_one_at_a_time_and_that_is_recorded() {
    let town = Town::new().await;
    let who = (&town.context, &Actor::Local);
    let running = compact::try_take(&town.context.store).unwrap();
    assert_eq!(compact(who).await.unwrap_err().code, failure::BUSY);
    assert_eq!(town.told(&town.home, "database.compacted").await.len(), 0);
    drop(running);
    compact(who).await.unwrap();
    // Its beginning too: a crash would leave nothing else.
    let told = town.told(&town.home, "database.compacted").await;
    let [begun, done] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((&begun["actor"], &begun["outcome"]), (&json!(LOCAL), &json!("begun")));
    assert_eq!((&done["actor"], &done["outcome"]), (&json!(LOCAL), &json!("done")));
    town.running.close().await;
}
