//! Tenants that are erased: nothing of them is left, the log verifies, others are untouched.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use adit_ledger::{
    Hash,
    receipt::{Receipt, Role, Statement},
};
use adit_protocol::{
    code::failure,
    wire::{self, frame::Body},
};
use common::{
    Device, Mediator, WAIT,
    api::{Answer, Web, Who, now_s, register},
    hello, identity, open, try_open,
};
use serde_json::{Value, json};
use sqlx::{Connection as _, Row as _};
use tokio::task::JoinSet;

/// What tells of the client's persons and computers, each in another place.
const TRACES: [&str; 9] = [
    "zorro-pc",
    "zorro-tag",
    "zorro-user",
    "zorro-reason",
    "zorro-ticket",
    "zorro-note",
    "zorro-near",
    "zorro-far",
    "zorro-team",
];
const SECRET: &str = "zorro-secret-7";

/// The session that a populated client has.
fn session_of(prefix: &str) -> Vec<u8> {
    prefix.bytes().cycle().take(16).collect()
}

/// Whoever does not acknowledge that its sessions end is waited for.
fn answering(mut device: Device) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        // All of it: what is taken out of it alone ends with the rest.
        let device = &mut device;
        while let Some(request) = device.incoming.recv().await {
            request.into_parts().1.reply(Body::Done(wire::Done {}));
        }
    });
    tasks
}

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

/// The last answer of an API that was asked twice with one key.
struct Replayed {
    web: Web,
    owner: Who,
    body: Value,
    _console: Device,
}

impl Replayed {
    const KEY: [(&str, &str); 1] = [("idempotency-key", "zorro-token-once")];

    async fn again(&mut self) -> Answer {
        let key = Self::KEY.map(|(name, value)| (name, value.to_owned()));
        let target = "/api/v1/tokens/agent";
        self.web.ask_with(&self.owner, "POST", target, Some(&self.body), &key).await
    }
}

impl Mediator {
    /// A client of which a session is over whose console told of none of its two targets. Serves
    /// anew, and writes copies of the log to that folder.
    async fn lose_receipts(&mut self, client: &str, prefix: &str, exports: &Path) {
        self.admin(&["client", "add", client]);
        let token = self.token(&["agent", "--client", client]);
        let key = identity();
        let enrolled = self.enroll(&key, &token, 1, &format!("{prefix}-pc-2")).await.unwrap();
        let mut agent = self.connect(&key, hello(1, &key, &enrolled.device_id)).await.unwrap();
        let (console, me, _) = self.console().await;
        let mut wish = open(200, &enrolled, &key);
        wish.redirector = "tcp".into();
        wish.targets = ["near", "far"]
            .map(|end| wire::Target { host: format!("{prefix}-{end}"), port: 22, protocol: 6 })
            .into();
        try_open(&console, &mut agent, wish).await.unwrap();
        let told = |(channel, end): (u64, &str)| {
            let statement = Statement {
                role: Role::Agent,
                session: [200; 16],
                grant_hash: Hash::of(b"grant"),
                handshake_hash: Hash::of(b"handshake"),
                console: me.signing.public().fingerprint(),
                agent: key.signing.public().fingerprint(),
                redirector: "tcp".into(),
                target: format!("{prefix}-{end}:22"),
                channel,
                time_ms: 1,
                close: None,
            };
            Receipt::sign(&key.signing, statement).to_line().into()
        };
        let lines = [(1, "near"), (2, "far")].map(told).into();
        agent.ask(Body::Receipts(wire::Receipts { lines })).await.unwrap();
        self.stop();
        // More than a quarter of an hour ago.
        let past = i64::try_from(now_s() * 1000 - 3_600_000).unwrap();
        let file = format!("sqlite://{}", self.database().display());
        let mut database = sqlx::SqliteConnection::connect(&file).await.unwrap();
        for statement in ["UPDATE session SET ended_ms = $1", "UPDATE receipt SET received_ms = $1"]
        {
            sqlx::query(statement).bind(past).execute(&mut database).await.unwrap();
        }
        database.close().await.unwrap();
        let config = self.dir.path().join("mediator.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        let exports = format!("[audit]\nexport_dir = {exports:?}\nexport_every = \"1s\"\n");
        std::fs::write(&config, format!("{text}\n{exports}")).unwrap();
        self.serve();
        let since = Instant::now();
        while self.events_named("receipt.missing").is_empty() {
            assert!(since.elapsed() < WAIT);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let missing = self.events_named("receipt.missing").remove(0);
        let targets = format!("{prefix}-far:22,{prefix}-near:22");
        assert_eq!(missing["extra_personal"]["targets"], targets, "{missing}");
    }

    /// What people did that is about that client alone, of which an entry tells each time: roles
    /// given and taken, looks, what they were refused.
    async fn tell(&self, client: &str, prefix: &str, session: &[u8]) -> Replayed {
        let within = ["--client", client];
        let bind = |args: &[&str]| self.admin(&[&["role", "bind"], args].concat()).remove(0);
        let team = format!("{prefix}-team");
        let bound = bind(&[&["auditor", "--user-group", &team], &within[..]].concat());
        self.admin(&["role", "unbind", bound["binding"].as_str().unwrap()]);
        bind(&["auditor", "--user-group", &team, "--computer", &format!("{client}/{prefix}-pc")]);
        let rep = self.admin(&["user", "add", "rep", "--role", "none"]);
        bind(&[&["technician", "--require", "approval", "--user", "rep"], &within[..]].concat());
        self.admin(&["audit", "level", "rep", "5"]);
        let me = identity();
        let console = self.connect(&me, hello(2, &me, &[])).await.unwrap();
        console.login("rep", rep[0]["password"].as_str().unwrap()).await.unwrap();
        let end = wire::EndSession { session_id: session.to_vec().into(), ..Default::default() };
        console.ask(Body::EndSession(end)).await.unwrap_err();
        bind(&[&["client-representative", "--user", "rep"], &within[..]].concat());
        let mut found = Vec::new();
        for (query, of) in [("", client.to_uppercase()), (&prefix[1..], String::new())] {
            let wish =
                wire::ListComputers { query: query.into(), client: of, ..Default::default() };
            match console.ask(Body::ListComputers(wish)).await.unwrap() {
                Body::Computers(told) => found.push(told.computers),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(found[0].len(), found[1].len());
        let wish = wire::RequestAccess {
            computer_id: found[0][0].computer_id.clone(),
            redirector: "ssh".into(),
            reason: format!("{prefix}-reason"),
            ..Default::default()
        };
        let asked = console.ask(Body::RequestAccess(wish)).await.unwrap();
        let Body::AccessRequest(asked) = asked else { panic!("{asked:?}") };
        let own = wire::DecideRequest {
            request_id: asked.request_id,
            approve: true,
            ..Default::default()
        };
        let refused = console.ask(Body::DecideRequest(own)).await.unwrap_err();
        assert_eq!(refused.code, failure::NOT_PERMITTED);
        let (admin, me, _) = self.console().await;
        let (owner, web) = (Who::at(&admin, &me).await, Web::connect(self).await);
        let body = json!({"client": client});
        let mut replayed = Replayed { web, owner, body, _console: admin };
        let made = replayed.again().await;
        assert_eq!(made.status, 200, "{made:?}");
        assert_eq!(replayed.again().await.body, made.body);
        let token = format!("/api/v1/tokens/{}", made.body["token_id"].as_str().unwrap());
        let revoked = replayed.web.ask(&replayed.owner, "DELETE", &token, None).await;
        assert_eq!(revoked.status, 200, "{revoked:?}");
        replayed
    }

    /// A client with a computer, a credential, a request's reason, a session, labels.
    async fn populate(&self, client: &str, prefix: &str) -> (Device, Device) {
        let name = |what: &str| format!("{prefix}-{what}");
        // It may be there.
        let (code, told) = self.try_admin(&["client", "add", client], "");
        assert!(code == 0 || told[0]["error"]["code"] == "name_taken", "{told:?}");
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
        wish.session_id = session_of(prefix).into();
        (wish.reason, wish.ticket) = (name("reason"), name("ticket"));
        try_open(&console, &mut agent, wish).await.unwrap();
        (console, agent)
    }

    /// Removes what a restore put aside.
    fn forget_former(&self) {
        for entry in std::fs::read_dir(self.dir.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.contains("before-restore") {
                std::fs::remove_file(self.dir.path().join(name)).unwrap();
            }
        }
    }

    /// How many clients have a key.
    fn keys(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("tenants")).unwrap().count()
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
    let (mut mediator, exports) = (Mediator::start(), tempfile::tempdir().unwrap());
    mediator.lose_receipts("main/gone", "zorro", exports.path()).await;
    let (_console, mut agent) = mediator.populate("main/gone", "zorro").await;
    let mut replayed = mediator.tell("main/gone", "zorro", &session_of("zorro")).await;
    let (_other, _pc) = mediator.populate("main/stays", "stay").await;
    let backup = mediator.dir.path().parent().unwrap().join(format!("{}.db", mediator.port));
    mediator.admin(&["backup", backup.to_str().unwrap()]);
    let all: Vec<&str> = TRACES.into_iter().chain([SECRET]).collect();
    // The test itself must see what it looks for. Of the secret, its user and notes not even now.
    let before = found_in(mediator.dir.path(), &all).join("\n");
    let seen = ["pc", "tag", "reason", "ticket", "near", "far", "team"];
    for trace in seen.map(|what| format!("zorro-{what}")) {
        assert!(before.contains(&trace), "{before}");
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
        ("computers_deleted", 2),
        ("accounts_without_rights", 1),
        ("credentials_destroyed", 1),
        ("tenant_keys_destroyed", 1),
        ("sessions_deleted", 2),
    ] {
        assert_eq!(told[what], count, "{what} in {told}");
    }
    let copies = told["copies_kept"].as_array().unwrap();
    assert!(copies.len() == 1 && copies[0].as_str().unwrap().contains("export_dir"), "{told}");
    // What concerns the client alone is told with it, and by nobody any more.
    let events = mediator.events();
    for (name, count) in [
        ("role.bound", 4),
        ("role.unbound", 1),
        ("computers.listed", 2),
        ("request.made", 1),
        ("request.decision_refused", 1),
        ("session.end_refused", 1),
        ("token.created", 3),
        ("token.revoked", 1),
        ("receipt.missing", 1),
    ] {
        let gone = |event: &&Value| event["event"] == name && event["client"] == "main/gone";
        let found: Vec<&Value> = events.iter().filter(gone).collect();
        assert_eq!(found.len(), count, "{name}: {found:?}");
        for event in found {
            assert!(event["salt"].is_null() && event["actor"].is_null(), "{event}");
        }
    }
    let again = replayed.again().await;
    assert_eq!((again.status, again.code()), (409, failure::IDEMPOTENCY_CONFLICT), "{again:?}");
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
    assert_eq!(of_nobody(&mediator).await, (0, 0));
    assert!(found_in(&backup, &["zorro-pc"]).len() == 1);
    mediator.admin(&["restore", backup.to_str().unwrap()]);
    mediator.forget_former();
    assert_eq!(of_nobody(&mediator).await, (0, 0));
    mediator.serve();
    assert_eq!(found_in(mediator.dir.path(), &all), [""; 0]);
    mediator.verified();
    // What was done, and done again, can be shown.
    let listed = mediator.admin(&["certificate", "list"]);
    assert_eq!(listed[0]["certificate"], reply["certificate"]);
    let records = mediator.events_named("client.erased");
    let [again] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!(again["extra"]["erasure"], listed[0]["erasure"]);
    assert_eq!(again["extra"]["subject"], "main/gone");
    let shown = mediator.admin(&["credential", "reveal", "main/stays/login"]).remove(0);
    assert_eq!(shown["secret"], "stay-secret-7");
    std::fs::remove_file(backup).unwrap();
}

/// Bindings within a client that is not there, and answers of the API that could be given again.
async fn of_nobody(mediator: &Mediator) -> (i64, i64) {
    let file = format!("sqlite://{}", mediator.database().display());
    let mut database = sqlx::SqliteConnection::connect(&file).await.unwrap();
    let mut counts = Vec::new();
    for statement in [
        "SELECT COUNT(*) FROM access_binding WHERE scope_client_id <> '' \
         AND scope_client_id NOT IN (SELECT id FROM client)",
        "SELECT COUNT(*) FROM api_reply WHERE status <> 0 OR LENGTH(body) > 1",
    ] {
        let row = sqlx::query(statement).fetch_one(&mut database).await.unwrap();
        counts.push(row.get::<i64, _>(0));
    }
    database.close().await.unwrap();
    (counts[0], counts[1])
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
    assert_eq!(mediator.admin(&["certificate", "list"]), [json!(null); 0]);
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
    let mut mediator = Mediator::start();
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

    let backup = mediator.dir.path().parent().unwrap().join(format!("{}.db", mediator.port));
    mediator.admin(&["backup", backup.to_str().unwrap()]);
    let reply = mediator.admin(&["partner", "erase", "zorro-inc", "--yes"]).remove(0);
    let told = mediator.certificate(&reply);
    assert_eq!((&told["clients_deleted"], &told["accounts_deleted"]), (&2.into(), &1.into()));
    let traces = ["zorro-person", "zorro-team", "zorro-user"];
    assert_eq!(found_in(mediator.dir.path(), &traces), [""; 0]);
    mediator.verified();
    assert!(console.ask(Body::WhoAmI(wire::WhoAmI {})).await.is_err());
    assert!(console.login("zorro-person", &password).await.is_err());
    assert_eq!(mediator.admin(&["client", "list"]).len(), 1);
    let (agent, _, _) = mediator.agent("pc").await;
    // Nor does a backup bring any of it back.
    drop((console, agent));
    mediator.stop();
    mediator.admin(&["restore", backup.to_str().unwrap()]);
    mediator.forget_former();
    std::fs::remove_file(backup).unwrap();
    mediator.serve();
    assert_eq!(found_in(mediator.dir.path(), &traces), [""; 0]);
    assert_eq!(mediator.admin(&["client", "list"]).len(), 1);
    assert_eq!(mediator.keys(), 0);
    let records = mediator.events_named("partner.erased");
    let [again] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!(again["extra"]["again"], "a backup was restored", "{again}");
    let listed = mediator.admin(&["certificate", "list"]);
    assert_eq!(listed[0]["certificate"], reply["certificate"]);
    // The name is free again, and is another partner.
    mediator.admin(&["client", "add", "zorro-inc/one"]);
    assert_eq!(mediator.admin(&["client", "list"]).len(), 2);
    mediator.verified();
}

/// Whoever waits for another erasure is judged once more: it cannot be undone.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_revoked_while_it_waits_erases_nothing() {
    let mediator = Mediator::start();
    let (first, second) = ("main/first", "main/second");
    for path in [first, second] {
        mediator.admin(&["client", "add", path]);
    }
    let (console, me, _) = mediator.console().await;
    let mut web = Web::connect(&mediator).await;
    let owner = Who::at(&console, &me).await;
    let key = register(&mut web, &owner, "eraser", "administrator", &json!({})).await;
    // Neither comes to an end meanwhile: nothing can be written.
    let file = mediator.database();
    let mut database = sqlx::SqliteConnection::connect(file.to_str().unwrap()).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut database).await.unwrap();
    let socket = mediator.dir.path().join("mediator.sock");
    let one = std::thread::spawn(move || {
        let mut stream = UnixStream::connect(socket).unwrap();
        let wish = json!({"act": "client_erase", "path": first});
        stream.write_all(format!("{wish}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let other =
        tokio::spawn(
            async move { web.ask(&key, "DELETE", "/api/v1/clients/main/second", None).await },
        );
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!other.is_finished(), "it did not wait");
    let revoked = "UPDATE api_key SET revoked_ms = 1 WHERE name = 'eraser'";
    sqlx::query(revoked).execute(&mut database).await.unwrap();
    sqlx::query("COMMIT").execute(&mut database).await.unwrap();
    assert!(one.join().unwrap().contains("\"certificate\""));
    let refused = other.await.unwrap();
    assert_eq!((refused.status, refused.code()), (403, failure::NOT_PERMITTED), "{refused:?}");
    assert_eq!(mediator.admin(&["client", "list"]).len(), 2);
    assert_eq!(mediator.events_named("client.erasure_begun").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_is_killed_at_any_moment_is_finished_by_the_next_start() {
    let rounds = std::env::var("ADIT_FAULT_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let mut mediator = Mediator::start();
    // Asked without a program that would have to start: how long that takes is anybody's guess.
    let erase = |mediator: &Mediator, path: &str| {
        let socket = mediator.dir.path().join("mediator.sock");
        let wish = json!({"act": "client_erase", "path": path});
        move || {
            let (since, mut answer) = (Instant::now(), String::new());
            let mut stream = UnixStream::connect(socket).unwrap();
            let _ = stream.write_all(format!("{wish}\n").as_bytes());
            let _ = stream.read_to_string(&mut answer);
            (answer.contains("\"certificate\""), since.elapsed())
        }
    };
    // Round 0 tells how long one takes.
    let (mut length, mut midway) = (Duration::ZERO, 0);
    let folder = tempfile::tempdir().unwrap();
    for round in 0..=rounds {
        let (path, prefix) = (format!("main/gone-{round}"), format!("zorro{round}"));
        let ends = mediator.populate(&path, &prefix).await;
        let _answering = [ends.0, ends.1].map(answering);
        // Every other time a backup of before is put back.
        let backup = folder.path().join(format!("{round}.db"));
        let backup = (round % 2 == 1).then(|| backup.to_str().unwrap().to_owned());
        if let Some(file) = &backup {
            mediator.admin(&["backup", file]);
        }
        let erasing = std::thread::spawn(erase(&mediator, &path));
        if round == 0 {
            let (done, took) = erasing.join().unwrap();
            assert!(done);
            length = took;
            continue;
        }
        // From its first moments to when it is over, in another order.
        std::thread::sleep(length * (1 + round * 7 % rounds) / (1 + rounds));
        mediator.kill();
        let (done, took) = erasing.join().unwrap();
        if done {
            // The first one may have taken longer than they do.
            length = length.min(took);
        }
        let begun = mediator.admin(&["certificate", "list"]);
        let of_it = |line: &&Value| line["subject"] == path.as_str();
        midway += u32::from(begun.iter().filter(of_it).any(|line| line["finished"].is_null()));
        if let Some(file) = &backup {
            mediator.admin(&["restore", file]);
            mediator.forget_former();
        }
        // As one leaves it that is killed.
        let staged = ["restore.db", "restore.db-wal", "restore.db.part"];
        let staged = staged.map(|name| mediator.dir.path().join(name));
        staged.iter().for_each(|path| std::fs::write(path, format!("{prefix}-pc")).unwrap());
        mediator.serve();
        assert!(!staged.iter().any(|path| path.exists()), "round {round}");
        let (code, told) = mediator.try_admin(&["client", "erase", &path, "--yes"], "");
        // Done by this command, or by the start, which may be at it.
        let under_way =
            told.first().is_some_and(|told| told["error"]["code"] == "erasure_under_way");
        assert!(code == 0 || code == 4 || under_way, "round {round}: {code}, {told:?}");
        let deadline = Instant::now() + WAIT;
        let certified = |mediator: &Mediator| {
            let all = mediator.admin(&["certificate", "list"]);
            all.iter().filter(of_it).filter(|line| !line["finished"].is_null()).count()
        };
        while certified(&mediator) == 0 {
            assert!(Instant::now() < deadline, "round {round}");
            std::thread::sleep(Duration::from_millis(100));
        }
        let listed = mediator.admin(&["certificate", "list"]);
        assert_eq!(listed.iter().filter(of_it).count(), 1, "round {round}");
        assert_eq!(mediator.keys(), 0, "round {round}");
        let all: Vec<String> = TRACES.map(|trace| trace.replacen("zorro", &prefix, 1)).into();
        let secret = SECRET.replacen("zorro", &prefix, 1);
        let all: Vec<&str> = all.iter().map(String::as_str).chain([secret.as_str()]).collect();
        assert_eq!(found_in(mediator.dir.path(), &all), [""; 0], "round {round}");
        mediator.verified();
    }
    eprintln!("{midway} of {rounds} were killed midway, at a length of {length:?}");
    assert!(midway > rounds / 3, "only {midway} of {rounds}, at a length of {length:?}");
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
