//! Tenants that are erased: nothing of them is left, the log verifies, others are untouched.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::{path::Path, time::Duration};

use adit_protocol::wire::{self, frame::Body};
use common::{
    Device, Mediator, WAIT,
    api::{Web, Who},
    hello, identity, open, try_open,
};
use serde_json::{Value, json};

/// What tells of the client's persons and computers, each in another place.
const TRACES: [&str; 6] =
    ["zorro-pc", "zorro-tag", "zorro-user", "zorro-reason", "zorro-ticket", "zorro-note"];
const SECRET: &str = "zorro-secret-7";

/// Files of the data directory, and subfolders, that hold one of these texts.
fn found_in(folder: &Path, texts: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_path_buf()];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if let Ok(bytes) = std::fs::read(&path) {
            for text in texts {
                if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                    found.push(format!("{text} in {}", path.display()));
                }
            }
        }
    }
    found
}

impl Mediator {
    /// A client with a computer, a credential, a request's reason, a session, labels.
    async fn populate(&self, client: &str, prefix: &str) -> (Device, Device) {
        let name = |what: &str| format!("{prefix}-{what}");
        self.admin(&["client", "add", client]);
        let token = self.token(&["agent", "--client", client]);
        let key = identity();
        let enrolled = self.enroll(&key, &token, 1, &name("pc")).await.unwrap();
        let mut agent = self.connect(&key, hello(1, &key, &enrolled.device_id)).await.unwrap();
        let path = format!("{client}/{}", name("pc"));
        self.admin(&["computer", "group", &path, &name("tag")]);
        let args = ["credential", "add", client, "login", "--user", &name("user")];
        let (code, told) = self.try_admin(&args, &format!("{prefix}-secret-7"));
        assert_eq!(code, 0, "{told:?}");
        let notes = self.dir.path().parent().unwrap().join(format!("{prefix}.notes"));
        std::fs::write(&notes, name("note")).unwrap();
        let which = format!("{client}/login");
        self.admin(&["credential", "edit", &which, "--notes-file", notes.to_str().unwrap()]);
        std::fs::remove_file(notes).unwrap();
        let (console, _, _) = self.console().await;
        let mut wish = open(7, &enrolled, &key);
        wish.session_id = vec![u8::try_from(prefix.len()).unwrap(); 16].into();
        (wish.reason, wish.ticket) = (name("reason"), name("ticket"));
        try_open(&console, &mut agent, wish).await.unwrap();
        (console, agent)
    }

    fn verified(&self) {
        let fingerprint = self.fingerprint.clone();
        let report = self.admin(&["audit", "verify", "--key", &fingerprint]);
        assert_eq!(report[0]["valid"], true);
    }

    /// Where the certificate goes.
    fn certificate_file(&self) -> std::path::PathBuf {
        self.dir.path().parent().unwrap().join(format!("{}.json", self.port))
    }

    fn certificate(&self, reply: &Value) -> Value {
        let file = self.certificate_file();
        // Where the command wrote it, it is as it was told.
        let told = format!("{}\n", reply["certificate"]);
        match std::fs::read_to_string(&file) {
            Ok(written) => assert_eq!(written, told),
            Err(_) => std::fs::write(&file, told).unwrap(),
        }
        let path = file.to_str().unwrap();
        let told = self.admin(&["certificate", "verify", path, "--key", &self.fingerprint.clone()]);
        assert_eq!((told[0]["valid"].as_bool(), told[0]["trusted"].as_bool()), {
            (Some(true), Some(true))
        });
        let foreign = format!("sha256:{}", "00".repeat(32));
        let (code, _) = self.try_admin(&["certificate", "verify", path, "--key", &foreign], "");
        assert_eq!(code, 1);
        let altered = reply["certificate"].to_string().replacen(
            "\"compacted\":true",
            "\"compacted\":false",
            1,
        );
        std::fs::write(&file, altered).unwrap();
        let (code, told) = self.try_admin(&["certificate", "verify", path], "");
        assert_eq!((code, told[0]["error"]["code"].as_str()), (1, Some("certificate_invalid")));
        std::fs::remove_file(file).unwrap();
        reply["certificate"]["destruction"].clone()
    }
}

#[tokio::test]
async fn nothing_of_an_erased_client_is_left_and_a_backup_does_not_bring_it_back() {
    let mut mediator = Mediator::start();
    let (_console, mut agent) = mediator.populate("main/gone", "zorro").await;
    let (_other, _pc) = mediator.populate("main/stays", "stay").await;
    let backup = mediator.dir.path().parent().unwrap().join(format!("{}.db", mediator.port));
    mediator.admin(&["backup", backup.to_str().unwrap()]);
    let all: Vec<&str> = TRACES.into_iter().chain([SECRET]).collect();
    // The test itself must see what it looks for. Of the secret, its user and notes not even now.
    let before = found_in(mediator.dir.path(), &all).join("\n");
    for trace in ["zorro-pc", "zorro-tag", "zorro-reason", "zorro-ticket"] {
        assert!(before.contains(trace), "{before}");
    }
    for hidden in ["zorro-user", "zorro-note", SECRET] {
        assert!(!before.contains(hidden), "{before}");
    }

    let file = mediator.certificate_file();
    let erase = ["client", "erase", "main/gone", "--yes", "--certificate", file.to_str().unwrap()];
    // Nothing is erased whose certificate has no place.
    std::fs::write(&file, "mine").unwrap();
    let (code, told) = mediator.try_admin(&erase, "");
    assert_eq!((code, told[0]["error"]["code"].as_str()), (1, Some("output_failed")));
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    std::fs::remove_file(&file).unwrap();
    let reply = mediator.admin(&erase).remove(0);
    assert!(file.exists());
    assert_eq!(reply["sessions_ended"], 1, "{reply}");
    let ended = agent.next().await;
    assert!(matches!(ended.body, Body::EndSession(_)), "{:?}", ended.body);
    let told = mediator.certificate(&reply);
    for (what, count) in [
        ("computers_deleted", 1),
        ("credentials_destroyed", 1),
        ("tenant_keys_destroyed", 1),
        ("sessions_deleted", 1),
    ] {
        assert_eq!(told[what], count, "{what} in {told}");
    }
    assert!(told["entries_erased"].as_u64().unwrap() >= 6, "{told}");
    assert_eq!((&told["compacted"], &told["subject"]), (&true.into(), &"main/gone".into()));
    assert_eq!(found_in(mediator.dir.path(), &all), [""; 0]);
    mediator.verified();
    let record = mediator.events_named("client.erased").remove(0);
    assert_eq!(record["seq"], told["recorded_seq"]);
    assert_eq!(record["leaf"], told["recorded_leaf"]);
    assert_eq!(mediator.events_named("client.certified").len(), 1);
    let listed = mediator.admin(&["certificate", "list"]);
    assert_eq!(listed[0]["certificate"], reply["certificate"]);

    // The other client has lost nothing.
    let shown = mediator.admin(&["credential", "reveal", "main/stays/login"]).remove(0);
    assert_eq!((shown["secret"].as_str(), shown["notes"].as_str()), {
        (Some("stay-secret-7"), Some("stay-note"))
    });
    let open = mediator.admin(&["session", "list"]);
    assert_eq!((open.len(), open[0]["client"].as_str()), (1, Some("main/stays")));
    let texts = serde_json::to_string(&mediator.events()).unwrap();
    assert!(texts.contains("stay-reason") && !texts.contains("zorro"));

    // What was erased comes back with no backup, and no key of it either.
    mediator.stop();
    assert!(found_in(&backup, &["zorro-pc"]).len() == 1);
    mediator.admin(&["restore", backup.to_str().unwrap()]);
    for entry in std::fs::read_dir(mediator.dir.path()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.contains("before-restore") {
            std::fs::remove_file(mediator.dir.path().join(name)).unwrap();
        }
    }
    mediator.serve();
    assert_eq!(found_in(mediator.dir.path(), &all), [""; 0]);
    mediator.verified();
    let shown = mediator.admin(&["credential", "reveal", "main/stays/login"]).remove(0);
    assert_eq!(shown["secret"], "stay-secret-7");
    std::fs::remove_file(backup).unwrap();
}

/// Who has an old backup and the wrapping keys has the rows, but no key to what is in them; and
/// erasing over the network gives the same certificate.
#[tokio::test]
async fn what_was_shredded_is_worthless_in_a_backup_that_is_not_erased() {
    let mut mediator = Mediator::start();
    let (console, _agent) = mediator.populate("main/gone", "zorro").await;
    let (_other, _pc) = mediator.populate("main/stays", "stay").await;
    let backup = mediator.dir.path().parent().unwrap().join(format!("{}.db", mediator.port));
    mediator.admin(&["backup", backup.to_str().unwrap()]);
    drop(console);
    let me = identity();
    let console = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
    console.login("admin", &mediator.password).await.unwrap();
    let (owner, mut web) = (Who::at(&console, &me).await, Web::connect(&mediator).await);
    let erased = web.ask(&owner, "DELETE", "/api/v1/clients/main/gone", None).await;
    assert_eq!(erased.status, 200, "{erased:?}");
    let told = mediator.certificate(&erased.body);
    let listed = web.ask(&owner, "GET", "/api/v1/certificates", None).await;
    assert_eq!(listed.body["items"][0]["certificate"], erased.body["certificate"], "{listed:?}");
    let counts = (&told["credentials_destroyed"], &told["tenant_keys_destroyed"]);
    assert_eq!(counts, (&1.into(), &1.into()));

    // Somebody takes care that the restored copy is not erased again.
    mediator.stop();
    std::fs::remove_file(mediator.dir.path().join("erased.jsonl")).unwrap();
    mediator.admin(&["restore", backup.to_str().unwrap()]);
    mediator.serve();
    let listed = mediator.admin(&["credential", "list"]);
    assert!(listed.iter().any(|row| row["client"] == "main/gone"), "{listed:?}");
    let (code, told) = mediator.try_admin(&["credential", "reveal", "main/gone/login"], "");
    assert_ne!(code, 0, "{told:?}");
    assert!(!serde_json::to_string(&told).unwrap().contains(SECRET));
    assert_eq!(found_in(mediator.dir.path(), &["zorro-user", "zorro-note", SECRET]), [""; 0]);
    let shown = mediator.admin(&["credential", "reveal", "main/stays/login"]).remove(0);
    assert_eq!(shown["secret"], "stay-secret-7");
    std::fs::remove_file(backup).unwrap();
}

#[tokio::test]
async fn an_erased_partner_takes_its_people_along_and_leaves_the_others() {
    let mediator = Mediator::start();
    let added = mediator.admin(&["client", "add", "zorro-inc/one"]);
    assert_eq!(added[0]["new_partner"], true);
    mediator.admin(&["client", "add", "zorro-inc/two"]);
    let args = ["user", "add", "zorro-person", "--partner", "zorro-inc"];
    let password = mediator.admin(&args).remove(0)["password"].as_str().unwrap().to_owned();
    mediator.admin(&["user", "group", "zorro-person", "zorro-team"]);
    let (code, _) = mediator.try_admin(
        &["credential", "add", "zorro-inc/two", "login", "--user", "zorro-user"],
        "a secret",
    );
    assert_eq!(code, 0);
    let me = identity();
    let console = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
    console.login("zorro-person", &password).await.unwrap();
    let (code, told) = mediator.try_admin(&["partner", "erase", "main", "--yes"], "");
    assert_eq!((code, told[0]["error"]["code"].as_str()), (3, Some("home_partner")));
    assert_eq!(mediator.try_admin(&["partner", "erase", "zorro-inc"], "").0, 2);

    let reply = mediator.admin(&["partner", "erase", "zorro-inc", "--yes"]).remove(0);
    let told = mediator.certificate(&reply);
    assert_eq!((&told["clients_deleted"], &told["accounts_deleted"]), (&2.into(), &1.into()));
    let traces = ["zorro-person", "zorro-team", "zorro-user"];
    assert_eq!(found_in(mediator.dir.path(), &traces), [""; 0]);
    mediator.verified();
    assert!(console.ask(Body::WhoAmI(wire::WhoAmI {})).await.is_err());
    assert!(console.login("zorro-person", &password).await.is_err());
    assert_eq!(mediator.admin(&["client", "list"]).len(), 1);
    let (_agent, _, _) = mediator.agent("pc").await;
    // The name is free again, and is another partner.
    mediator.admin(&["client", "add", "zorro-inc/one"]);
    assert_eq!(mediator.admin(&["client", "list"]).len(), 2);
    mediator.verified();
}

#[tokio::test]
async fn an_erasure_that_is_killed_at_any_moment_is_finished_by_the_next_start() {
    for round in 0..8_u32 {
        let mut mediator = Mediator::start();
        let _ends = mediator.populate("main/gone", "zorro").await;
        std::thread::scope(|scope| {
            let erase =
                scope.spawn(|| mediator.try_admin(&["client", "erase", "main/gone", "--yes"], ""));
            // Starting the command takes some tens of milliseconds, the erasure as many.
            std::thread::sleep(Duration::from_millis(u64::from(30 + 12 * round)));
            let pid = mediator.pid().to_string();
            std::process::Command::new("kill").args(["-9", &pid]).status().unwrap();
            let _ = erase.join().unwrap();
        });
        mediator.kill();
        mediator.serve();
        let (code, _) = mediator.try_admin(&["client", "erase", "main/gone", "--yes"], "");
        // Done by the start, or by this command.
        assert!(code == 0 || code == 4, "round {round}: {code}");
        let deadline = std::time::Instant::now() + WAIT;
        while mediator.events_named("client.certified").is_empty() {
            assert!(std::time::Instant::now() < deadline, "round {round}");
            std::thread::sleep(Duration::from_millis(100));
        }
        let listed = mediator.admin(&["certificate", "list"]);
        assert_eq!(listed.len(), 1, "round {round}");
        let all: Vec<&str> = TRACES.into_iter().chain([SECRET]).collect();
        assert_eq!(found_in(mediator.dir.path(), &all), [""; 0], "round {round}");
        mediator.verified();
    }
}

/// Who erases an own partner says its name, is a person, and is erased with it.
#[tokio::test]
async fn a_partner_is_erased_from_afar_by_its_own_people_alone() {
    let mediator = Mediator::start();
    mediator.admin(&["client", "add", "zorro-inc/hq"]);
    let added =
        mediator.admin(&["user", "add", "zorro-user", "--partner", "zorro-inc", "--role", "owner"]);
    let person = async |name: &str, password: &str| {
        let me = identity();
        let console = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
        console.login(name, password).await.unwrap();
        (Who::at(&console, &me).await, console)
    };
    let (owner, _console) = person("zorro-user", added[0]["password"].as_str().unwrap()).await;
    let (stranger, _other) = person("admin", &mediator.password).await;
    let mut web = Web::connect(&mediator).await;
    let (path, named) = ("/api/v1/partners/zorro-inc/erase", json!({"partner": "zorro-inc"}));
    for (who, path, body, wanted) in [
        (&stranger, path, &named, (404, "not_found")),
        (&owner, path, &json!({"partner": "zorro"}), (400, "usage")),
        (&owner, "/api/v1/partners/main/erase", &json!({"partner": "main"}), (404, "not_found")),
        (
            &stranger,
            "/api/v1/partners/main/erase",
            &json!({"partner": "main"}),
            (403, "home_partner"),
        ),
    ] {
        let answer = web.ask(who, "POST", path, Some(body)).await;
        assert_eq!((answer.status, answer.code()), wanted, "{answer:?}");
    }
    let once = [("idempotency-key", "erase-zorro-once".to_owned())];
    let answer = web.ask_with(&owner, "POST", path, Some(&named), &once).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let told = mediator.certificate(&answer.body);
    assert_eq!(
        (told["kind"].as_str(), told["accounts_deleted"].as_u64()),
        (Some("partner"), Some(1))
    );
    assert_eq!(web.ask(&owner, "GET", "/api/v1/me", None).await.status, 401);
    // In the log that goes on stands what was erased, and of the person an id alone.
    mediator.verified();
    let events = mediator.admin(&["audit", "search", "--event", "partner.erased"]);
    let actor = events[0]["actor"].as_str().unwrap();
    assert!(actor.starts_with("account ") && events[0]["device"].is_null(), "{events:?}");
    assert_eq!(found_in(mediator.dir.path(), &["zorro-user"]), [""; 0]);
    let partners = mediator.admin(&["partner", "list"]);
    assert_eq!(partners.len(), 1, "{partners:?}");
    // Its certificate is for those who answer for the installation.
    let id = answer.body["erasure"].as_str().unwrap();
    let show = format!("/api/v1/certificates/{id}");
    assert_eq!(web.ask(&stranger, "GET", &show, None).await.status, 404);
    mediator.admin(&["role", "bind", "owner", "--user", "admin", "--installation"]);
    let shown = web.ask(&stranger, "GET", &show, None).await;
    assert_eq!(shown.body["certificate"], answer.body["certificate"], "{shown:?}");
}
