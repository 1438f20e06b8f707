//! Faults below the mediator: a power cut at any write, a disk that is full or fails, a clock that
//! jumps. No acknowledged record is lost, nothing is allowed that could not be recorded, and all
//! recovers by itself.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod common;
#[path = "common/disk.rs"]
mod disk;
#[path = "common/shim.rs"]
mod shim;

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use adit_protocol::wire::{self, frame::Body};
use common::{
    Device, Mediator,
    api::{Web, Who},
    hello, identity, open, try_open,
};
use disk::{Dice, Disk};
use serde_json::{Value, json};
use shim::{Act, Op, Shim};
use sqlx::Connection as _;

/// Cuts of the power in one test run; `cargo xtask faults` asks for more.
const CUTS: usize = 40;

fn rounds(usual: usize) -> usize {
    std::env::var("ADIT_FAULT_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// A device's fingerprint once its login was acknowledged.
async fn login(mediator: &Mediator) -> Result<String, String> {
    let me = identity();
    let device = mediator.connect(&me, hello(2, &me, &[])).await.map_err(|e| e.to_string())?;
    match device.login("admin", &mediator.password).await {
        Ok(_) => Ok(me.signing.public().fingerprint().to_string()),
        Err(failure) => Err(failure.code),
    }
}

/// What was acknowledged, each with where the journal was then: all that it rests on is in front.
#[derive(Default)]
struct Acknowledged {
    logins: Vec<(usize, String)>,
    clients: Vec<(usize, String)>,
    /// Id and secret, and the client that it is of.
    credentials: Vec<(usize, String, String, String)>,
    rotations: Vec<usize>,
    erased: Option<Erased>,
}

/// A client that is erased.
struct Erased {
    path: String,
    id: String,
    /// From here on it may be gone.
    begun: usize,
    end: usize,
}

impl Mediator {
    /// Asks as a command does, without starting a program for it.
    fn ask(&self, request: &Value) -> (String, Vec<Value>) {
        let mut stream = UnixStream::connect(self.dir.path().join("mediator.sock")).unwrap();
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let lines = answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (answer, lines)
    }

    /// The same of what must work.
    fn done(&self, request: &Value) -> Vec<Value> {
        let (answer, lines) = self.ask(request);
        assert!(lines.iter().all(|line| line.get("error").is_none()), "{request}: {answer}");
        // The last line says that these were all.
        let replies = lines.into_iter().map(|mut line| line["reply"].take());
        replies.filter(|reply| !reply.is_null()).collect()
    }

    fn add_credential(&self, client: &str, name: &str, secret: &str) -> String {
        let told = self.done(&json!({
            "act": "credentials", "what": "add", "client": client, "computer": null,
            "name": name, "kind": "password", "user": "root", "secret": secret, "length": null,
            "notes": "", "redirectors": [], "automatic": false,
        }));
        told[0]["credential_id"].as_str().unwrap().to_owned()
    }
}

fn reveal(id: &str) -> Value {
    json!({"act": "credentials", "what": "reveal", "credential": id})
}

/// Everything that is to outlive a power cut.
async fn live(mediator: &Mediator, shim: &Shim) -> Acknowledged {
    let mut told = Acknowledged::default();
    for round in 0..3 {
        let logins = (0..4).map(|_| async {
            let device = login(mediator).await.unwrap();
            (shim.recorded(), device)
        });
        told.logins.extend(futures_util::future::join_all(logins).await);
        let client = format!("main/client{round}");
        mediator.done(&json!({"act": "client_add", "path": client}));
        told.clients.push((shim.recorded(), client.clone()));
        // The first makes the folder of keys; each first one of a client its key.
        for (n, client) in [client.as_str(), client.as_str(), "main/client0"].iter().enumerate() {
            let secret = format!("secret-{round}-{n}");
            let id = mediator.add_credential(client, &secret, &secret);
            told.credentials.push((shim.recorded(), id, secret, (*client).to_owned()));
        }
        let rotate = json!({"act": "accounts", "what": "vault_rotate", "data_keys": round == 1});
        mediator.done(&rotate);
        told.rotations.push(shim.recorded());
        // A head of what was just acknowledged stands beside the database, too.
        let before = noted(&shim.ops());
        while round == 1 && noted(&shim.ops()) == before {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let begun = shim.recorded();
    let path = "main/client0".to_owned();
    let told_of = mediator.done(&json!({"act": "client_erase", "path": path}));
    let id = told_of[0]["certificate"]["destruction"]["client_id"].as_str().unwrap().to_owned();
    told.erased = Some(Erased { path, id, begun, end: shim.recorded() });
    told.logins.push({
        let device = login(mediator).await.unwrap();
        (shim.recorded(), device)
    });
    told
}

impl Acknowledged {
    /// Where the power is cut: behind each act, and at random, half of that where something other
    /// than the database is written.
    fn cuts(&self, ops: &[Op], count: usize) -> Vec<(usize, Dice)> {
        let mut cuts = Vec::new();
        let acts = self.clients.iter().map(|(end, _)| end);
        let acts = acts.chain(self.credentials.iter().map(|(end, ..)| end)).chain(&self.rotations);
        for end in acts.chain(self.erased.iter().map(|one| &one.end)) {
            cuts.push((ops.partition_point(|op| op.end <= *end), Dice(None)));
        }
        let rare: Vec<usize> = (0..ops.len()).filter(|n| !ops[*n].path.contains(".db")).collect();
        let mut dice = Dice(Some(11));
        while cuts.len() < count {
            let cut = match cuts.len() % 2 {
                0 => dice.roll(ops.len() + 1),
                _ => rare[dice.roll(rare.len())] + dice.roll(2),
            };
            let seed = u64::try_from(cuts.len()).unwrap();
            cuts.push((cut, Dice((seed % 4 != 3).then_some(seed))));
        }
        cuts
    }

    /// Looks for all of it in a mediator that came back with what was on disk then; how much.
    fn look(&self, mediator: &Mediator, at: usize, when: &str) -> usize {
        let events = mediator.events();
        let told = |name: &str, field: &str, value: &str| {
            events.iter().any(|event| event["event"] == name && event[field] == value)
        };
        let mut found = 0;
        let mut look = |end: usize, what: &str, is_there: &dyn Fn() -> bool| {
            if end <= at {
                assert!(is_there(), "{when}: {what} is lost");
                found += 1;
            }
        };
        for (end, device) in &self.logins {
            look(*end, device, &|| told("login.succeeded", "device", device));
        }
        let listed = mediator.done(&json!({"act": "client_list"}));
        let gone = self.erased.as_ref().unwrap();
        for (end, client) in &self.clients {
            look(*end, client, &|| {
                let is_listed = listed.iter().any(|row| row["client"] == client.as_str());
                let may_be_gone = *client == gone.path && gone.begun <= at;
                told("client.added", "client", client) && (is_listed || may_be_gone)
            });
        }
        for (end, id, secret, client) in &self.credentials {
            look(*end, id, &|| {
                if *client == gone.path && gone.begun <= at {
                    return told("credential.added", "credential_id", id);
                }
                let (answer, lines) = mediator.ask(&reveal(id));
                assert_eq!(lines[0]["reply"]["secret"], secret.as_str(), "{when}: {answer}");
                told("credential.added", "credential_id", id)
            });
        }
        let rotated = events.iter().filter(|event| event["event"] == "vault.rotated").count();
        for (n, end) in self.rotations.iter().enumerate() {
            look(*end, "a rotation", &|| rotated > n);
        }
        let certificates = mediator.done(&json!({"act": "certificate_list"}));
        look(gone.end, "the erasure", &|| {
            listed.iter().all(|row| row["client"] != gone.path.as_str())
                && certificates.len() == 1
                && certificates[0]["certificate"].is_object()
        });
        // Also where the mediator that came back went on with it.
        if told("client.erased", "client", &gone.path) {
            let left = keys(mediator, &gone.id);
            assert!(left.is_empty(), "{when}: {left:?} of what was erased");
        }
        found
    }
}

/// Files with a client's key that are not all zeros; also those that have another name yet.
fn keys(mediator: &Mediator, client: &str) -> Vec<String> {
    let Ok(folder) = std::fs::read_dir(mediator.dir.path().join("tenants")) else {
        return Vec::new();
    };
    let files = folder.map(|entry| entry.unwrap().path());
    let whole = files.filter(|file| std::fs::read(file).unwrap().iter().any(|byte| *byte != 0));
    let names = whole.map(|file| file.file_name().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| name.contains(client)).collect()
}

/// Whether it happens to a file or folder of that name.
fn is_of(op: &Op, name: &str) -> bool {
    let is_it = |path: &str| path == name || path.split('/').next() == Some(name);
    is_it(&op.path) || matches!(&op.act, Act::Renamed(to) if is_it(to))
}

/// How often the heads beside the database were replaced.
fn noted(ops: &[Op]) -> usize {
    ops.iter().filter(|op| op.path != "audit-heads.jsonl" && is_of(op, "audit-heads.jsonl")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_at_any_write_loses_nothing_that_was_acknowledged() {
    let shim = Shim::new();
    let mut mediator = Mediator::start();
    mediator.stop();
    let folder = mediator.dir.path().to_owned();
    let base = Disk::read(&folder);
    shim.record(&folder);
    mediator.serve_with(|command| shim.on(command));
    let acknowledged = live(&mediator, &shim).await;
    mediator.kill();
    let ops = shim.ops();
    for (what, count) in [
        ("mediator.db-wal", 5),
        ("audit-heads.jsonl", 1),
        ("wrapping.keys", 3),
        ("tenants", 1),
        ("erased.jsonl", 1),
    ] {
        let seen = ops.iter().filter(|op| is_of(op, what)).count();
        assert!(seen >= count, "{seen} of {what} among {}", ops.len());
    }
    let (mut checked, cuts) = (0, acknowledged.cuts(&ops, rounds(CUTS)));
    let count = cuts.len();
    for (round, (cut, mut dice)) in cuts.into_iter().enumerate() {
        let when = format!("round {round}: cut at {cut} of {}", ops.len());
        let mut disk = base.clone();
        ops[..cut].iter().for_each(|op| disk.act(op));
        disk.cut(&mut dice).write(&folder);
        mediator.serve();
        let at = ops[..cut].last().map_or(0, |op| op.end);
        checked += acknowledged.look(&mediator, at, &when);
        mediator.admin(&["audit", "verify"]);
        mediator.kill();
    }
    println!(
        "{count} power cuts among {} writes, syncs and changes of names: {checked} times something \
              was looked for that had been acknowledged, and found",
        ops.len()
    );
}

/// Devices with a recorded login.
fn devices(mediator: &Mediator) -> BTreeMap<String, u64> {
    mediator
        .events_named("login.succeeded")
        .iter()
        .map(|event| (event["device"].as_str().unwrap().to_owned(), event["seq"].as_u64().unwrap()))
        .collect()
}

/// A console with an open session, and what it needs to use and read credentials.
struct Technician {
    console: Device,
    agent: Device,
    wish: wire::Open,
    web: Web,
    who: Who,
}

const SECRET: &str = "zorro-secret-7";

impl Technician {
    /// Logged in, as if a second factor had been shown; session 1 is open.
    async fn new(mediator: &Mediator) -> Self {
        let (mut agent, enrolled, key) = mediator.agent("pc").await;
        let me = identity();
        let console = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
        console.login("admin", &mediator.password).await.unwrap();
        let database = format!("sqlite:{}", mediator.database().display());
        let mut database = sqlx::SqliteConnection::connect(&database).await.unwrap();
        let shown = "UPDATE login SET mfa = 'totp', mfa_ms = authenticated_ms";
        sqlx::query(shown).execute(&mut database).await.unwrap();
        database.close().await.unwrap();
        let wish = open(1, &enrolled, &key);
        try_open(&console, &mut agent, wish.clone()).await.unwrap();
        let (who, web) = (Who::at(&console, &me).await, Web::connect(mediator).await);
        Self { console, agent, wish, web, who }
    }

    /// Asks for a session; the code of the refusal. Nothing may reach the agent then.
    async fn open(&mut self, session: u8) -> Result<(), String> {
        let wish = wire::Open { session_id: vec![session; 16].into(), ..self.wish.clone() };
        let opened = self.console.ask(Body::Open(wish));
        tokio::pin!(opened);
        let mut is_offered = false;
        let opened = loop {
            tokio::select! {
                opened = &mut opened => break opened,
                request = self.agent.next() => {
                    let (body, responder) = request.into_parts();
                    let Body::Offer(_) = body else { continue };
                    is_offered = true;
                    let noise_msg2 = vec![8; 100].into();
                    responder.reply(Body::Answer(wire::Answer { noise_msg2 }));
                }
            }
        };
        let opened = opened.map(drop).map_err(|failure| failure.code);
        assert_eq!(is_offered, opened.is_ok(), "{opened:?}");
        opened
    }

    /// Uses the credential in session 1.
    async fn take(&self) -> Result<(), String> {
        let wish = wire::UseCredential { session_id: vec![1; 16].into(), name: "login".to_owned() };
        match self.console.ask(Body::UseCredential(wish)).await {
            Ok(Body::UsableCredential(told)) => {
                assert!(!told.sealed.is_empty());
                Ok(())
            }
            Ok(other) => panic!("{other:?}"),
            Err(failure) => Err(failure.code),
        }
    }

    /// Reads it by the API.
    async fn read(&mut self, id: &str) -> Result<(), String> {
        let place = format!("/api/v1/credentials/{id}/secret");
        let told = self.web.ask(&self.who, "GET", &place, None).await;
        let is_told = told.body.to_string().contains(SECRET);
        assert_eq!(is_told, told.status == 200, "{told:?}");
        if is_told { Ok(()) } else { Err(told.code().to_owned()) }
    }
}

/// Events of a name that tell of it, by what tells them apart.
fn count(events: &[Value], name: &str) -> usize {
    events.iter().filter(|event| event["event"] == name).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_or_fails_allows_nothing_and_recovers_by_itself() {
    let shim = Shim::new();
    let mut mediator = Mediator::start();
    mediator.stop();
    mediator.serve_with(|command| shim.on(command));
    let id = mediator.add_credential("main/hq", "login", SECRET);
    let mut technician = Technician::new(&mediator).await;
    let mut acknowledged = Vec::new();
    // Each of the sessions that were granted has a number; one is open.
    let (mut sessions, mut uses, mut reads) = (1, 0, 0);
    // Writes, room and syncs fail; at another moment of the writing each time.
    let modes = ["w", "f", "s"].repeat(rounds(1).div_ceil(10));
    for (n, mode) in modes.iter().enumerate() {
        acknowledged.push(login(&mediator).await.unwrap());
        shim.mode(mode);
        let refused = login(&mediator).await.unwrap_err();
        assert_eq!(refused, "audit_unavailable", "mode {mode}");
        let (code, told) = mediator.try_admin(&["client", "add", "main/never"], "");
        assert_eq!(code, 1, "{told:?}");
        // No session that nobody could read of later, and no secret.
        let number = u8::try_from(2 + n % 200).unwrap();
        let unrecorded = Err("audit_unavailable".to_owned());
        assert_eq!(technician.open(number).await, unrecorded, "mode {mode}");
        assert_eq!(technician.take().await, unrecorded, "mode {mode}");
        assert_eq!(technician.read(&id).await, unrecorded, "mode {mode}");
        let (answer, lines) = mediator.ask(&reveal(&id));
        assert_eq!(lines[0]["error"]["code"], "audit_unavailable", "mode {mode}: {answer}");
        assert!(!answer.contains(SECRET), "mode {mode}: {answer}");
        shim.mode("n");
        let mut recovered = None;
        for _ in 0..50 {
            recovered = login(&mediator).await.ok();
            if recovered.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        acknowledged.push(recovered.unwrap_or_else(|| panic!("mode {mode}: no recovery")));
        technician.open(number).await.unwrap();
        technician.take().await.unwrap();
        technician.read(&id).await.unwrap();
        (sessions, uses, reads) = (sessions + 1, uses + 1, reads + 1);
    }
    let clients = mediator.admin(&["client", "list"]);
    assert!(clients.iter().all(|client| client["client"] != "main/never"));
    mediator.kill();
    mediator.serve();
    let recorded = devices(&mediator);
    assert!(acknowledged.iter().all(|device| recorded.contains_key(device)));
    let events = mediator.events();
    let told = ["session.granted", "credential.used", "credential.read"];
    assert_eq!(told.map(|name| count(&events, name)), [sessions, uses, reads]);
    mediator.admin(&["audit", "verify"]);
    println!(
        "{} faults of the disk: {} logins, {sessions} sessions, {uses} uses and {reads} looks at a \
              credential acknowledged, all recorded",
        modes.len(),
        acknowledged.len()
    );
}

/// A login that works within the time that certificates take to be renewed.
async fn soon(mediator: &Mediator) -> String {
    let mut last = String::new();
    for _ in 0..60 {
        match login(mediator).await {
            Ok(device) => return device,
            Err(error) => last = error,
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("no login: {last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_clock_does_order_is_by_sequence_and_nothing_is_lost() {
    const HOUR: i64 = 3_600;
    const DAY: i64 = 24 * HOUR;
    let shim = Shim::new();
    let mut mediator = Mediator::start();
    mediator.stop();
    mediator.serve_with(|command| shim.on(command));
    let mut acknowledged = Vec::new();
    for (n, seconds) in
        [0, 2 * HOUR, -2 * HOUR, 400 * DAY, 0, 14 * 365 * DAY, -DAY].into_iter().enumerate()
    {
        shim.clock(seconds);
        mediator.admin(&["client", "add", &format!("main/at{n}")]);
        // Devices whose own clock is right cannot follow far: certificates tell the time, too.
        // Once the clocks are about the same again, all works again by itself.
        if seconds.abs() < DAY {
            acknowledged.push(soon(&mediator).await);
        } else if let Ok(device) = login(&mediator).await {
            acknowledged.push(device);
        }
    }
    // Nothing of what is kept was deleted when the clock was ahead.
    let recorded = devices(&mediator);
    let order: Vec<u64> = acknowledged.iter().map(|device| recorded[device]).collect();
    assert!(order.is_sorted() && order.len() >= 4, "{order:?}");
    let events = mediator.events();
    let times: Vec<&str> = events.iter().map(|event| event["time"].as_str().unwrap()).collect();
    assert!(!times.is_sorted() && times.iter().any(|time| *time > "2038-01-20"), "{times:?}");
    assert!(events.iter().enumerate().all(|(n, event)| event["seq"] == n));
    mediator.admin(&["audit", "verify"]);
    // Searching by time finds them wherever they are in the sequence.
    let late = mediator.admin(&["audit", "search", "--since", "2038-01-19T03:14:08Z"]);
    assert!(late.iter().any(|event| event["client"] == "main/at5"), "{late:?}");
    mediator.kill();
    // Started while the clock is wrong, and put right again.
    shim.clock(400 * DAY);
    mediator.serve_with(|command| shim.on(command));
    mediator.admin(&["client", "add", "main/ahead"]);
    shim.clock(0);
    mediator.admin(&["client", "add", "main/right"]);
    mediator.stop();
    mediator.admin(&["audit", "verify"]);
    let told = mediator.admin(&["audit", "verify"]);
    assert_eq!(told[0]["trees"][0]["pruned"], 0);
}
