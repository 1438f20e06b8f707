//! R31, R32: of a thousand stored secrets none is found where it must not be: database,
//! write-ahead log, logs at the finest level, backup, exports, metrics, memory.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::{
    collections::HashSet,
    io::{Read, Write},
    os::unix::{fs::FileExt as _, net::UnixStream},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use adit_protocol::{
    keys::random,
    wire::{self, frame::Body},
};
use common::{
    Mediator,
    api::{Web, Who},
    hello, identity, open, try_open,
};
use serde_json::{Value, json};
use sqlx::Connection as _;

const COUNT: usize = 1000;
/// So many of them come, and go, over the network.
const REMOTE: usize = 100;
/// Bytes of each secret.
const LENGTH: usize = 24;

/// A secret that nothing else looks like.
fn secret() -> String {
    let bytes: [u8; 12] = random().unwrap();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The secrets that these bytes hold, as text or in UTF-16.
fn found(bytes: &[u8], secrets: &HashSet<Vec<u8>>) -> Vec<String> {
    let wide: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0).collect();
    [bytes, &wide].into_iter().flat_map(|bytes| found_in_text(bytes, secrets)).collect()
}

fn found_in_text(bytes: &[u8], secrets: &HashSet<Vec<u8>>) -> Vec<String> {
    // Secrets are hexadecimal: everything else parts what may be one.
    let runs = bytes.split(|byte| !byte.is_ascii_hexdigit());
    let windows = runs.flat_map(|run| run.windows(LENGTH));
    windows.filter(|window| secrets.contains(*window)).map(text).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn nothing_in(folder: &Path, secrets: &HashSet<Vec<u8>>) {
    let mut left = vec![folder.to_path_buf()];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if let Ok(bytes) = std::fs::read(&path) {
            let found = found(&bytes, secrets);
            assert!(found.is_empty(), "{} secrets in {}", found.len(), path.display());
        }
    }
}

/// Asks the running mediator as its command does, without starting a program a thousand times.
fn ask(dir: &Path, request: &Value) -> Vec<Value> {
    let answer = try_ask(dir, request).unwrap();
    answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn try_ask(dir: &Path, request: &Value) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(dir.join("mediator.sock"))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The request that adds a password to a client.
fn add(client: &str, name: &str, secret: &str, notes: &str, user: &str) -> Value {
    json!({
        "act": "credentials", "what": "add", "client": client, "computer": null,
        "name": name, "kind": "password", "user": user,
        "secret": secret, "length": null, "notes": notes, "redirectors": [],
        "automatic": false,
    })
}

/// A credential as the machine's administrator sees it.
fn revealed(mediator: &Mediator, id: &str) -> Value {
    let wish = json!({"act": "credentials", "what": "reveal", "credential": id});
    ask(mediator.dir.path(), &wish).remove(0)
}

/// Whatever the machine allows: a crash leaves nothing of what is in memory.
#[tokio::test]
async fn a_mediator_leaves_no_core_dump() {
    let mut mediator = Mediator::init();
    mediator.serve();
    let limits = format!("/proc/{}/limits", mediator.pid());
    let limits = std::fs::read_to_string(limits).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let limits: Vec<&str> = line.split_whitespace().skip(4).take(2).collect();
    assert_eq!(limits, ["0", "0"], "{line}");
}

#[tokio::test]
async fn none_of_a_thousand_secrets_is_found_anywhere() {
    let mut mediator = Mediator::init();
    let config = mediator.dir.path().join("mediator.toml");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut text = std::fs::read_to_string(&config).unwrap();
    text.push_str(&format!("\n[metrics]\nlisten = \"127.0.0.1:{port}\"\n"));
    std::fs::write(&config, text).unwrap();
    let outside = tempfile::tempdir().unwrap();
    let log = outside.path().join("log");
    mediator.serve_logging("trace", Stdio::from(std::fs::File::create(&log).unwrap()));
    mediator.admin(&["client", "add", "main/hq"]);
    let (mut agent, enrolled, key) = mediator.agent("pc-1").await;

    let me = identity();
    let console = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
    console.login("admin", &mediator.password).await.unwrap();
    second_factor_now(&mediator).await;
    let (who, mut web) = (Who::at(&console, &me).await, Web::connect(&mediator).await);

    let (mut secrets, mut users) = (HashSet::new(), HashSet::new());
    let mut ids = Vec::new();
    for number in 0..COUNT {
        let (secret, notes, user) = (secret(), secret(), secret());
        if number == COUNT - REMOTE {
            // One that is silent meanwhile is ended.
            web = Web::connect(&mediator).await;
        }
        let told = if number < COUNT - REMOTE {
            let wish = add("main/hq", &format!("c{number}"), &secret, &notes, &user);
            ask(mediator.dir.path(), &wish).remove(0)["reply"].take()
        } else {
            let place = format!("/api/v1/clients/main/hq/credentials/c{number}");
            let wish = json!({"secret": secret, "notes": notes, "user": user});
            web.ask(&who, "PUT", &place, Some(&wish)).await.body
        };
        let id = told["credential_id"].as_str();
        ids.push(id.unwrap_or_else(|| panic!("{told:?}")).to_owned());
        users.insert(user.clone().into_bytes());
        secrets.extend([secret, notes, user].map(String::into_bytes));
    }
    // Everything that is done with some of them.
    for id in ids.iter().take(50) {
        let shown = revealed(&mediator, id);
        let secret = shown["reply"]["secret"].as_str().unwrap();
        assert!(secrets.contains(secret.as_bytes()));
    }
    web = Web::connect(&mediator).await;
    for id in ids.iter().rev().take(REMOTE / 2) {
        let shown = web.ask(&who, "GET", &format!("/api/v1/credentials/{id}/secret"), None).await;
        let secret = shown.body["secret"].as_str().unwrap();
        assert!(secrets.contains(secret.as_bytes()));
    }
    try_open(&console, &mut agent, open(1, &enrolled, &key)).await.unwrap();
    for number in 0..50 {
        let wish =
            wire::UseCredential { session_id: vec![1; 16].into(), name: format!("c{number}") };
        console.ask(Body::UseCredential(wish)).await.unwrap();
    }
    mediator.admin(&["vault", "rotate", "--data-keys"]);
    mediator.admin(&["credential", "list"]);
    let (code, _) = mediator.try_admin(&["credential", "add", "main/hq", "c1"], "taken");
    assert_eq!(code, 1);
    let backup = outside.path().join("backup.db");
    mediator.admin(&["backup", backup.to_str().unwrap()]);
    let export = outside.path().join("export");
    mediator.admin(&["audit", "export", "--output", export.to_str().unwrap()]);
    let mut metrics = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    metrics.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut told = Vec::new();
    metrics.read_to_end(&mut told).unwrap();
    assert!(told.windows(8).any(|window| window == b"sessions"));
    assert!(found(&told, &secrets).is_empty());

    // With the write-ahead log as it is while it runs.
    nothing_in(mediator.dir.path(), &secrets);
    nothing_in(outside.path(), &secrets);
    assert!(std::fs::metadata(&log).unwrap().len() > 10_000, "the log says nothing");

    // At rest: what was under way is done. An open connection keeps what it said last in its
    // buffers.
    drop(web);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let bytes = memory(mediator.pid());
    // What is meant to be there is seen, on the heap as well: this looks where secrets would be.
    for known in ["mediator.db", ids[COUNT - 1].as_str(), mediator.dir.path().to_str().unwrap()] {
        let known = known.as_bytes();
        assert!(bytes.windows(known.len()).any(|window| window == known), "not all was looked at");
    }
    // User names go to consoles as they are, and may wait in the buffers of their connections.
    let secrets_alone: HashSet<Vec<u8>> = secrets.difference(&users).cloned().collect();
    let held: HashSet<String> = found(&bytes, &secrets_alone).into_iter().collect();
    assert!(held.is_empty(), "{} secrets in memory", held.len());
    drop(bytes);
    mediator.stop();
    nothing_in(mediator.dir.path(), &secrets);
}

/// As if everybody who is logged in had just shown a second factor.
async fn second_factor_now(mediator: &Mediator) {
    let database = format!("sqlite:{}", mediator.database().display());
    let mut database = sqlx::SqliteConnection::connect(&database).await.unwrap();
    let shown = "UPDATE login SET mfa = 'totp', mfa_ms = authenticated_ms";
    sqlx::query(shown).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
}

/// All memory that a process can write to: what a core dump of it holds, and more.
fn memory(pid: u32) -> Vec<u8> {
    let process = Path::new("/proc").join(pid.to_string());
    let maps = std::fs::read_to_string(process.join("maps")).unwrap();
    let memory = std::fs::File::open(process.join("mem")).unwrap();
    let mut all = Vec::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut part = vec![0; usize::try_from(to - from).unwrap()];
        // Some pages have no content.
        if memory.read_exact_at(&mut part, from).is_ok() {
            all.extend(part);
        }
    }
    assert!(all.len() > 1 << 20, "only {} bytes of memory", all.len());
    all
}

/// Wrapping key, tenant keys and data keys are replaced while `kill -9` comes at any moment.
#[tokio::test]
async fn a_key_rotation_that_is_killed_at_any_moment_leaves_every_credential_readable() {
    /// Each rotation adds a wrapping key, and the file holds 64.
    const MOST: u32 = 50;
    const EACH: usize = 12;
    let mut mediator = Mediator::init();
    mediator.serve();
    let mut stored = Vec::new();
    for client in ["main/hq", "main/b", "main/c", "main/d"] {
        mediator.admin(&["client", "add", client]);
        for number in 0..EACH {
            let (secret, notes) = (secret(), secret());
            let wish = add(client, &format!("c{number}"), &secret, &notes, "root");
            let told = ask(mediator.dir.path(), &wish);
            let id = told[0]["reply"]["credential_id"].as_str();
            let id = id.unwrap_or_else(|| panic!("{told:?}")).to_owned();
            stored.push((id, secret, notes));
        }
    }
    let all_readable = |mediator: &Mediator, when: &str| {
        for (id, secret, notes) in &stored {
            let told = revealed(mediator, id);
            assert_eq!(told["reply"]["secret"], secret.as_str(), "{when}: {told}");
            assert_eq!(told["reply"]["notes"], notes.as_str(), "{when}: {told}");
        }
    };
    let rotate = json!({"act": "accounts", "what": "vault_rotate", "data_keys": true});
    let whole = |mediator: &Mediator| {
        let told = ask(mediator.dir.path(), &rotate).remove(0);
        assert_eq!(told["reply"]["credentials_resealed"], stored.len(), "{told}");
    };
    let since = Instant::now();
    whole(&mediator);
    let mut length = since.elapsed();
    all_readable(&mediator, "after the first");
    let rounds = std::env::var("ADIT_FAULT_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let rounds = MOST.min(rounds);
    let mut cut = 0;
    for round in 0..rounds {
        let (dir, rotate) = (mediator.dir.path().to_owned(), rotate.clone());
        let rotating = std::thread::spawn(move || {
            let since = Instant::now();
            (try_ask(&dir, &rotate), since.elapsed())
        });
        // From its first moments to when it is over, in another order.
        std::thread::park_timeout(length * (1 + round * 7 % rounds) / (1 + rounds));
        mediator.kill();
        let (answer, took) = rotating.join().unwrap();
        if answer.is_ok_and(|told| told.contains("credentials_resealed")) {
            // The first one may have taken longer than they do.
            length = length.min(took);
        } else {
            cut += 1;
        }
        mediator.serve();
        all_readable(&mediator, &format!("round {round}"));
    }
    assert!(cut > rounds / 3, "only {cut} of {rounds} were cut, at a length of {length:?}");
    whole(&mediator);
    mediator.kill();
    mediator.serve();
    all_readable(&mediator, "after the last");
    mediator.admin(&["audit", "verify"]);
}
