//! Credentials of clients, at the running mediator: managed, used in sessions, never told.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::sync::Arc;

use adit_net::identity::DeviceIdentity;
use adit_protocol::{
    code::failure,
    ids::SessionId,
    sealed::{self, CredentialContext},
    wire::{self, frame::Body},
};
use common::{
    Device, Mediator,
    api::{Web, Who},
    hello, identity, open, try_open,
};
use serde_json::{Value, json};
use sqlx::Connection as _;

const SECRET: &str = "Correct-Horse-9";

impl Mediator {
    /// Adds a credential to `main/hq`; its id.
    fn add(&self, name: &str, secret: &str, more: &[&str]) -> String {
        let args = [&["credential", "add", "main/hq", name, "--user", "root"], more].concat();
        let (code, told) = self.try_admin(&args, secret);
        assert_eq!(code, 0, "{told:?}");
        told[0]["credential_id"].as_str().unwrap().to_owned()
    }

    fn reveal(&self, which: &str) -> Value {
        self.admin(&["credential", "reveal", which]).remove(0)
    }
}

/// Opens a session for `redirector` that the agent agrees to.
async fn session(
    console: &Device,
    agent: &mut Device,
    number: u8,
    wish: wire::Open,
) -> Result<(), wire::Failure> {
    let wish = wire::Open { session_id: vec![number; 16].into(), ..wish };
    try_open(console, agent, wish).await
}

async fn take(
    console: &Device,
    session: u8,
    name: &str,
) -> Result<wire::UsableCredential, wire::Failure> {
    let session_id = vec![session; 16].into();
    let wish = wire::UseCredential { session_id, name: name.to_owned() };
    match console.ask(Body::UseCredential(wish)).await? {
        Body::UsableCredential(usable) => Ok(usable),
        other => panic!("{other:?}"),
    }
}

fn unseal(me: &DeviceIdentity, session: u8, told: &wire::UsableCredential) -> Option<String> {
    let context = CredentialContext {
        session: SessionId([session; 16]),
        console: me.signing.public(),
        credential: &told.credential_id,
    };
    let secret = sealed::open(&me.noise.private, &context, &told.sealed).ok()?;
    Some(String::from_utf8(secret.to_vec()).unwrap())
}

#[tokio::test]
async fn credentials_are_managed_and_recorded_by_their_id_alone() {
    let mediator = Mediator::start();
    let (_agent, _, _) = mediator.agent("pc-1").await;
    let id = mediator.add("admin", &format!("{SECRET}\n"), &["--computer", "pc-1"]);
    let everywhere = mediator.add("admin", "another one", &[]);
    let (code, told) = mediator.try_admin(&["credential", "add", "main/hq", "ADMIN"], "x");
    assert_eq!((code, told[0]["error"]["code"].as_str().unwrap()), (1, "name_taken"));
    for bad in [
        &["credential", "add", "main/nowhere", "n"][..],
        &["credential", "add", "main/hq", "n", "--computer", "pc-2"],
        &["credential", "add", "main/hq", "n", "--kind", "ssh_key"],
        &["credential", "add", "main/hq", "n/m"],
        &["credential", "reveal", "../wrapping.keys"],
    ] {
        assert_ne!(mediator.try_admin(bad, "x").0, 0, "{bad:?}");
    }
    assert_eq!(mediator.try_admin(&["credential", "add", "main/hq", "n"], "").0, 2);
    // A key that no launch could use is told of before anybody needs it.
    let (console, me, _) = mediator.console().await;
    let (who, mut web) = (Who::at(&console, &me).await, Web::connect(&mediator).await);
    for key in [
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAG\n",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,4D\n",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIFLTBXBgkqhkiG9w0BBQ0w\n",
    ] {
        let add = ["credential", "add", "main/hq", "n", "--kind", "ssh_key"];
        let (code, told) = mediator.try_admin(&add, key);
        assert_eq!((code, &told[0]["error"]["code"]), (2, &"usage".into()), "{told:?}");
        let place = "/api/v1/clients/main/hq/credentials/n";
        let body = json!({"kind": "ssh_key", "secret": key, "redirectors": []});
        let refused = web.ask(&who, "PUT", place, Some(&body)).await;
        assert_eq!((refused.status, refused.code()), (400, "usage"), "{refused:?}");
        for told in [&told[0]["error"]["message"], &refused.body["detail"]] {
            let told = told.as_str().unwrap();
            assert!(told.contains("passphrase") && told.contains("ssh-keygen -p"), "{told}");
        }
    }
    let plain = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9u\n";
    let key = mediator.add("key", plain, &["--kind", "ssh_key"]);
    let change = ["credential", "edit", &key, "--secret-stdin"];
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIFLTBXBgkqhkiG9w0BBQ0w\n";
    assert_eq!(mediator.try_admin(&change, encrypted).0, 2);
    mediator.admin(&["credential", "delete", &key]);
    let shown = mediator.reveal("main/hq/pc-1/admin");
    assert_eq!((shown["secret"].as_str(), shown["user"].as_str()), (Some(SECRET), Some("root")));
    assert_eq!(mediator.reveal("main/hq/admin")["credential_id"], everywhere.as_str());

    let made = mediator.admin(&["credential", "generate", "main/hq", "local", "--user", "adm"]);
    assert!(made[0].get("secret").is_none(), "{made:?}");
    let made = made[0]["credential_id"].as_str().unwrap().to_owned();
    let first = mediator.reveal(&made)["secret"].as_str().unwrap().to_owned();
    mediator.admin(&["credential", "generate", "--replace", &made, "--length", "32"]);
    let second = mediator.reveal(&made)["secret"].as_str().unwrap().to_owned();
    assert_eq!((first.len(), second.len()), (24, 32));
    assert_ne!(first, second[..24]);

    let edit = ["credential", "edit", &id, "--secret-stdin", "--name", "boss", "--user", "ann"];
    assert_eq!(mediator.try_admin(&edit, "changed").0, 0);
    let shown = mediator.reveal(&id);
    assert_eq!((shown["secret"].as_str(), shown["user"].as_str()), (Some("changed"), Some("ann")));
    assert_eq!(shown["version"], 2);
    let listed = mediator.admin(&["credential", "list", "--client", "main/hq"]);
    let names: Vec<_> = listed.iter().map(|told| told["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["admin", "boss", "local"]);
    assert!(listed.iter().all(|told| told.get("secret").is_none()));
    mediator.admin(&["credential", "delete", &id]);
    assert_eq!(mediator.try_admin(&["credential", "reveal", &id], "").0, 4);

    let events = mediator.events();
    for (name, count) in [
        ("credential.added", 4),
        ("credential.read", 5),
        ("credential.changed", 2),
        ("credential.deleted", 2),
    ] {
        let named: Vec<_> = events.iter().filter(|event| event["event"] == name).collect();
        assert_eq!(named.len(), count, "{name}");
        assert!(named.iter().all(|event| event["credential_id"].is_string()));
    }
    let text = serde_json::to_string(&events).unwrap();
    for secret in [SECRET, "another one", "changed", &first, &second] {
        // The word "changed" is also the name of a field.
        assert!(secret == "changed" || !text.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn a_credential_is_used_by_whoever_may_and_opens_on_that_console_only() {
    let mediator = Mediator::start();
    let (mut agent, enrolled, agent_key) = mediator.agent("pc-1").await;
    let wish = open(1, &enrolled, &agent_key);
    mediator.add("admin", "of the client", &["--automatic"]);
    let own = mediator.add("admin", SECRET, &["--computer", "pc-1", "--redirector", "ssh"]);
    mediator.add("desktop", "for rdp", &["--redirector", "rdp"]);

    let me = identity();
    let console = technician(&mediator, &me, "tech", "technician").await;
    session(&console, &mut agent, 1, wish.clone()).await.unwrap();
    let told = take(&console, 1, "Admin").await.unwrap();
    assert_eq!((told.credential_id.as_str(), told.user.as_str()), (own.as_str(), "root"));
    assert_eq!(unseal(&me, 1, &told).as_deref(), Some(SECRET));
    assert!(unseal(&me, 2, &told).is_none() && unseal(&identity(), 1, &told).is_none());
    // The only one that is used by itself, since the computer's own is not.
    let automatic = take(&console, 1, "").await.unwrap();
    assert_eq!(unseal(&me, 1, &automatic).as_deref(), Some("of the client"));
    for name in ["desktop", "nothing", &own] {
        let refused = take(&console, 1, name).await.unwrap_err();
        assert_eq!(refused.code, failure::NO_SUCH_CREDENTIAL, "{name}");
    }
    // Not without the session, nor from another device, nor for a session of somebody else.
    assert_eq!(take(&console, 9, "admin").await.unwrap_err().code, failure::NO_SUCH_SESSION);
    let other = technician(&mediator, &identity(), "other", "technician").await;
    assert_eq!(take(&other, 1, "admin").await.unwrap_err().code, failure::NO_SUCH_SESSION);

    // Launching is one thing, using a credential another.
    mediator.admin(&["role", "create", "launcher", "--permission", "launch"]);
    let launcher = technician(&mediator, &identity(), "launcher", "launcher").await;
    session(&launcher, &mut agent, 3, wish.clone()).await.unwrap();
    let refused = take(&launcher, 3, "admin").await.unwrap_err();
    assert_eq!(refused.code, failure::NOT_PERMITTED);
    assert_eq!(take(&launcher, 3, "").await.unwrap_err().code, failure::NO_SUCH_CREDENTIAL);

    let used = mediator.events_named("credential.used");
    assert_eq!(used.len(), 2);
    assert_eq!(used[0]["credential_id"], own.as_str());
    assert_eq!((used[0]["actor"].as_str(), used[0]["redirector"].as_str()), {
        (Some("tech"), Some("ssh"))
    });
    let refused = mediator.events_named("credential.refused");
    assert_eq!(refused.len(), 1);
    // Where, and of what session, is said with each.
    for event in used.iter().chain(&refused) {
        assert!(event["session_id"].is_string() && event["computer_id"].is_string(), "{event}");
        assert_eq!((&event["computer"], &event["redirector"]), (&"pc-1".into(), &"ssh".into()));
        assert_eq!(event["target"], "127.0.0.1:22", "{event}");
    }
    assert_eq!((refused[0]["actor"].as_str(), refused[0]["end_reason"].as_str()), {
        (Some("launcher"), Some(failure::NOT_PERMITTED))
    });

    // Over is over.
    mediator.admin(&["client", "lockdown", "main/hq"]);
    assert_eq!(take(&console, 1, "admin").await.unwrap_err().code, failure::NO_SUCH_SESSION);
}

/// Read, edit, delete and use are four things: who may do one may do none of the others, and each
/// attempt is on record with who, what and how it ended.
#[tokio::test]
async fn of_reading_editing_deleting_and_using_none_includes_another() {
    const ALL: [&str; 4] = ["read", "edit", "delete", "use"];
    let mediator = Mediator::start();
    let (mut agent, enrolled, agent_key) = mediator.agent("pc-1").await;
    for (n, one) in (1_u8..).zip(ALL) {
        // Without a session nobody could use one.
        let permissions = ["launch".to_owned(), format!("credentials.{one}")];
        let create = ["role", "create", one, "--permission", &permissions[0], "--permission"];
        mediator.admin(&[&create[..], &[&permissions[1]]].concat());
        let name = format!("for-{one}");
        let id = mediator.add(&name, SECRET, &[]);
        let me = identity();
        let console = technician(&mediator, &me, &format!("{one}er"), one).await;
        second_factor_now(&mediator).await;
        session(&console, &mut agent, n, open(1, &enrolled, &agent_key)).await.unwrap();
        let who = Who::at(&console, &me).await;
        let mut web = Web::connect(&mediator).await;
        let listed = web.ask(&who, "GET", "/api/v1/credentials", None).await;
        assert_eq!(listed.status, 200, "{listed:?}");
        let text = listed.body.to_string();
        assert!(text.contains(&id) && !text.contains(SECRET), "{text}");

        let place = format!("/api/v1/credentials/{id}");
        let shown = web.ask(&who, "GET", &format!("{place}/secret"), None).await;
        assert_eq!(shown.body.to_string().contains(SECRET), one == "read", "{one}: {shown:?}");
        let used = take(&console, n, &name).await;
        assert_eq!(used.is_ok(), one == "use", "{one}: {used:?}");
        let rename = serde_json::json!({"user": "boss"});
        let edited = web.ask(&who, "PUT", &place, Some(&rename)).await;
        assert_eq!(edited.status == 200, one == "edit", "{one}: {edited:?}");
        let deleted = web.ask(&who, "DELETE", &place, None).await;
        assert_eq!(deleted.status == 200, one == "delete", "{one}: {deleted:?}");
        let now = mediator.try_admin(&["credential", "reveal", &id], "");
        match one {
            "delete" => assert_eq!(now.0, 4, "{now:?}"),
            "edit" => assert_eq!(now.1[0]["user"], "boss", "{now:?}"),
            _ => assert_eq!((&now.1[0]["user"], &now.1[0]["version"]), (&"root".into(), &1.into())),
        }
        let by = format!("{one}er");
        let events: Vec<Value> =
            mediator.events().into_iter().filter(|e| e["actor"] == by).collect();
        let done =
            ["credential.read", "credential.changed", "credential.deleted", "credential.used"];
        for (done, what) in done.into_iter().zip(ALL) {
            let found: Vec<_> = events.iter().filter(|event| event["event"] == done).collect();
            assert_eq!(found.len(), usize::from(what == one), "{one}: {done} {found:?}");
            assert!(found.iter().all(|event| event["credential_id"] == id.as_str()), "{found:?}");
        }
        let refused = events.iter().filter(|event| event["event"] == "credential.refused");
        let refused: Vec<_> = refused.map(|event| &event["credential_id"]).collect();
        assert_eq!(refused, [id.as_str(); 3], "{one}: {events:#?}");
    }
}

/// As if everybody who is logged in had just shown a second factor.
async fn second_factor_now(mediator: &Mediator) {
    let database = format!("sqlite:{}", mediator.database().display());
    let mut database = sqlx::SqliteConnection::connect(&database).await.unwrap();
    let shown = "UPDATE login SET mfa = 'totp', mfa_ms = authenticated_ms";
    sqlx::query(shown).execute(&mut database).await.unwrap();
}

async fn technician(
    mediator: &Mediator,
    me: &Arc<DeviceIdentity>,
    name: &str,
    role: &str,
) -> Device {
    let added = mediator.admin(&["user", "add", name, "--role", role]);
    let console = mediator.connect(me, hello(2, me, &[])).await.unwrap();
    console.login(name, added[0]["password"].as_str().unwrap()).await.unwrap();
    console
}
