//! The mediator under faults: killed while it records, flooded with connections that stall.

mod common;

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
    time::Instant,
};

use adit_protocol::{
    code::failure,
    ids::SessionId,
    keys::random,
    wire::{self, frame::Body},
};
use common::{Device, Mediator, hello, identity, open};

/// What was acknowledged: the name of its record, and what that names it by.
type Told = Vec<(&'static str, String)>;
/// A device with its login, session of its own making, act of an administrator: as many as it gets
/// done before the process dies.
type Racing = tokio::task::JoinSet<Told>;

const FIELDS: [(&str, &str); 4] = [
    ("login.succeeded", "device"),
    ("session.granted", "session_id"),
    ("session.ended", "session_id"),
    ("credential.added", "credential_id"),
];

#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
async fn race_logins(mediator: &Mediator, racing: &mut Racing) {
    for _ in 0..6 {
        let me = identity();
        let device = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
        let password = mediator.password.clone();
        racing.spawn(async move {
            let device_key = me.signing.public().fingerprint().to_string();
            let user = "admin".to_owned();
            let login = Body::Login(wire::Login { user, password, ..Default::default() });
            // All of the device: with a part of it alone the connection would be gone by now.
            let done = matches!(told(&device, login).await, Some(Body::LoggedIn(_)));
            done.then_some(("login.succeeded", device_key)).into_iter().collect()
        });
    }
}

/// Sessions that begin and end, one after the other.
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
fn race_sessions(console: Device, mut agent: Device, wish: wire::Open, racing: &mut Racing) {
    use adit_protocol::wire::session_event::Event;
    racing.spawn(async move {
        let mut done = Vec::new();
        for _ in 0..20 {
            let id = SessionId(random().unwrap());
            let wish = wire::Open { session_id: id.0.to_vec().into(), ..wish.clone() };
            if !granted(&console, &mut agent, wish).await {
                break;
            }
            done.push(("session.granted", id.to_string()));
            let end = wire::SessionEnd { reason: "closed".into(), ..wire::SessionEnd::default() };
            let events = vec![wire::SessionEvent { at_ms: 1, event: Some(Event::End(end)) }];
            let report = wire::SessionReport { session_id: id.0.to_vec().into(), events };
            if told(&console, Body::SessionReport(report)).await.is_none() {
                break;
            }
            done.push(("session.ended", id.to_string()));
        }
        done
    });
}

/// The answer, if one comes before the end.
async fn told(device: &Device, body: Body) -> Option<Body> {
    device.peer.request(body, common::WAIT).await.ok()
}

/// Was it granted, also if everything ended in the next moment?
async fn granted(console: &Device, agent: &mut Device, wish: wire::Open) -> bool {
    let opened = console.peer.request(Body::Open(wish), common::WAIT);
    tokio::pin!(opened);
    loop {
        tokio::select! {
            answer = &mut opened => return matches!(answer, Ok(Body::Granted(_))),
            Some(request) = agent.incoming.recv() => {
                let (body, responder) = request.into_parts();
                responder.reply(match body {
                    Body::Offer(_) => Body::Answer(wire::Answer { noise_msg2: vec![8; 100].into() }),
                    _ => Body::Done(wire::Done {}),
                });
            }
        }
    }
}

/// What the machine's administrator adds, through the local socket.
#[expect(clippy::indexing_slicing, reason = "JSON values give null for what is not there")]
fn race_acts(mediator: &Mediator, round: u32, racing: &mut Racing) {
    let socket = mediator.dir.path().join("mediator.sock");
    racing.spawn_blocking(move || {
        let mut told = Vec::new();
        for n in 0..20 {
            let wish = serde_json::json!({
                "act": "credentials", "what": "add", "client": "main/hq", "computer": null,
                "name": format!("c{round}-{n}"), "kind": "password", "user": "root",
                "secret": "a secret", "length": null, "notes": "", "redirectors": [],
                "automatic": false,
            });
            let Ok(mut stream) = std::os::unix::net::UnixStream::connect(&socket) else { break };
            let mut answer = String::new();
            let asked = stream.write_all(format!("{wish}\n").as_bytes());
            if asked.and_then(|()| stream.read_to_string(&mut answer)).is_err() {
                break;
            }
            let reply: Option<serde_json::Value> =
                answer.lines().next().and_then(|line| serde_json::from_str(line).ok());
            let id = reply.as_ref().and_then(|line| line["reply"]["credential_id"].as_str());
            let Some(id) = id else { break };
            told.push(("credential.added", id.to_owned()));
        }
        told
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_no_acknowledged_record_is_lost() {
    let mut mediator = Mediator::start();
    let (agent, enrolled, key) = mediator.agent("pc").await;
    drop(agent);
    let mut acknowledged = BTreeSet::new();
    // `cargo xtask faults` asks for more.
    let rounds: u32 =
        std::env::var("ADIT_FAULT_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    for round in 0..rounds {
        let agent = mediator.connect(&key, hello(1, &key, &enrolled.device_id)).await.unwrap();
        let (console, me, _) = mediator.console().await;
        let device = me.signing.public().fingerprint().to_string();
        acknowledged.insert(("login.succeeded", device));
        // All of these are under way when the process dies.
        let mut racing = Racing::new();
        race_logins(&mediator, &mut racing).await;
        race_sessions(console, agent, open(1, &enrolled, &key), &mut racing);
        race_acts(&mediator, round, &mut racing);
        for _ in 0..round % 7 {
            acknowledged.extend(racing.join_next().await.unwrap().unwrap());
        }
        // Within the milliseconds in which the next batch is made, written and told.
        tokio::time::sleep(std::time::Duration::from_micros(u64::from(round) * 977 % 9_000)).await;
        mediator.kill();
        acknowledged.extend(racing.join_all().await.into_iter().flatten());
        mediator.serve();
    }
    let mut recorded = BTreeSet::new();
    for event in mediator.events() {
        for (name, field) in FIELDS.into_iter().filter(|(name, _)| event["event"] == *name) {
            recorded.insert((name, event[field].as_str().unwrap().to_owned()));
        }
    }
    let lost: Vec<_> = acknowledged.difference(&recorded).collect();
    assert!(lost.is_empty(), "{} of {} are lost: {lost:?}", lost.len(), acknowledged.len());
    for (name, _) in FIELDS {
        let count = acknowledged.iter().filter(|(of, _)| *of == name).count();
        println!("{rounds} kills: {count} {name} acknowledged, all recorded");
        assert!(count >= usize::try_from(rounds / 2).unwrap(), "only {count} {name}");
    }
    mediator.admin(&["audit", "verify"]);
}

#[tokio::test]
async fn connections_that_stall_keep_nobody_out() {
    let mediator = Mediator::start();
    let address = ("127.0.0.1", mediator.port);
    let stalled: Vec<TcpStream> =
        (0..2_000).map(|_| TcpStream::connect(address).unwrap()).collect();
    let started = Instant::now();
    let (_device, _, _) = mediator.console().await;
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    // The oldest have given way.
    let mut first = &stalled[0];
    first.set_read_timeout(Some(common::WAIT)).unwrap();
    assert!(matches!(first.read(&mut [0; 1]), Ok(0) | Err(_)));
}

#[tokio::test]
async fn garbage_on_the_port_harms_nobody() {
    let mediator = Mediator::start();
    let pid = mediator.pid();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 1], &[0; 4096]] {
        let mut stream = TcpStream::connect(("127.0.0.1", mediator.port)).unwrap();
        stream.write_all(garbage).unwrap();
    }
    // Past TLS as well, as a device and as a browser, and past the first message.
    for seed in 0..64 {
        malformed(&mediator, seed).await;
    }
    let me = identity();
    let device = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
    let odd = Body::RelayReport(wire::RelayReport::default());
    assert!(device.ask(odd).await.is_err());
    device.login("admin", &mediator.password).await.unwrap();
    // Nor did it come back in the meantime.
    assert_eq!(mediator.pid(), pid);
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
}

/// One connection whose bytes are wrong behind TLS.
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]
async fn malformed(mediator: &Mediator, seed: u64) {
    use prost::Message as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut random = seed;
    let mut next = move || {
        random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        random >> 33
    };
    let framed = |id, body| {
        let frame = wire::Frame { id, reply: false, body: Some(body) }.encode_to_vec();
        [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], &frame].concat()
    };
    let me = identity();
    let mut bytes = framed(1, Body::Hello(hello(2, &me, &[])));
    let good = bytes.len();
    let wish = wire::RequestAccess { reason: "x".repeat(300), ..Default::default() };
    bytes.extend(framed(2, Body::RequestAccess(wish)));
    let wish = wire::Open { viewer: "x".repeat(300), ..Default::default() };
    bytes.extend(framed(3, Body::Open(wish)));
    // Every other one says who it is first.
    let from = if seed.is_multiple_of(2) { good } else { 0 };
    for _ in 0..1 + next() % 6 {
        let at = from + usize::try_from(next()).unwrap() % (bytes.len() - from);
        bytes[at] = u8::try_from(next() & 0xff).unwrap();
    }
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", mediator.port)).await.unwrap();
    let trust = adit_net::tls::Trust::Root(mediator.fingerprint.parse().unwrap());
    let mut stream = if seed % 4 == 3 {
        adit_net::tls::connect_web(tcp, "127.0.0.1", trust).await.unwrap()
    } else {
        adit_net::tls::connect_control(tcp, "127.0.0.1", trust, &me.signing).await.unwrap().0
    };
    // It may hang up before all is said.
    let _ = stream.write_all(&bytes).await;
    let _ = stream.shutdown().await;
    let mut told = Vec::new();
    let ended = tokio::time::timeout(common::WAIT, stream.read_to_end(&mut told)).await;
    assert!(ended.is_ok(), "{seed}: it stays open");
}

/// What is to be kept by order is not deleted because an older database comes back.
#[tokio::test]
async fn a_restored_backup_ends_no_hold_and_shortens_no_retention() {
    let mut mediator = Mediator::start();
    let outside = tempfile::tempdir().unwrap();
    let file = outside.path().join("backup.db");
    let file = file.to_str().unwrap();
    let retention = |args: &[&str]| mediator.admin(&[&["audit", "retention"], args].concat());
    for partner in ["held", "longer", "shorter", "anew", "freed"] {
        mediator.admin(&["client", "add", &format!("{partner}/hq")]);
    }
    // With terms of their own already: rows that the backup brings along.
    retention(&["set", "longer", "--days", "130"]);
    retention(&["set", "shorter", "--days", "300"]);
    retention(&["set", "anew", "--days", "125"]);
    retention(&["hold", "freed", "--reason", "case 1"]);
    mediator.admin(&["backup", file]);
    retention(&["hold", "main", "--reason", "case 2"]);
    retention(&["hold", "held", "--reason", "case 3"]);
    retention(&["hold", "held", "--reason", "case 5"]);
    retention(&["set", "held", "--days", "150"]);
    retention(&["set", "longer", "--days", "200"]);
    retention(&["set", "shorter", "--days", "140"]);
    retention(&["hold", "anew", "--reason", "case 4"]);
    retention(&["release", "freed"]);
    mediator.admin(&["client", "add", "late/hq"]);
    retention(&["hold", "late", "--reason", "not in the backup"]);
    mediator.kill();
    mediator.admin(&["restore", file]);
    mediator.serve();
    let listed = mediator.admin(&["audit", "retention", "show"]);
    let of = |name: &str| {
        let found = listed.iter().find(|policy| policy["partner"] == name).unwrap();
        let reason = found["hold_reason"].as_str().unwrap();
        (found["days"].as_u64().unwrap(), found["hold"].as_bool().unwrap(), reason.to_owned())
    };
    assert_eq!(of("main"), (120, true, "case 2".to_owned()));
    assert_eq!(of("held"), (150, true, "case 3; case 5".to_owned()));
    assert_eq!(of("longer"), (200, false, String::new()));
    assert_eq!(of("anew"), (125, true, "case 4".to_owned()));
    // What was lifted since holds on until somebody lifts it again.
    assert_eq!(of("shorter"), (300, false, String::new()));
    assert_eq!(of("freed"), (120, true, "case 1".to_owned()));
    assert_eq!(listed.len(), 6, "{listed:?}");
    let restored = mediator.events_named("backup.restored").remove(0);
    assert_eq!(restored["extra"]["kept_again"], 6, "{restored}");
}

#[tokio::test]
async fn a_backup_restores_and_goes_on_in_a_new_tree() {
    let mut mediator = Mediator::start();
    let outside = tempfile::tempdir().unwrap();
    let file = outside.path().join("backup.db");
    let file = file.to_str().unwrap();
    let (_console, me, session_token) = mediator.console().await;
    let token = mediator.token(&["agent", "--client", "main/hq"]);
    let many = mediator.token(&["agent", "--client", "main/hq", "--uses", "9"]);
    for user in ["gone", "here", "member"] {
        mediator.admin(&["user", "add", user]);
    }
    mediator.admin(&["user", "group", "member", "night"]);
    let bind = ["role", "bind", "owner", "--user", "here"];
    let binding = mediator.admin(&bind)[0]["binding"].as_str().unwrap().to_owned();
    mediator.admin(&["backup", file]);
    // Withdrawn since.
    mediator.admin(&["user", "disable", "gone"]);
    mediator.admin(&["role", "unbind", &binding]);
    mediator.admin(&["user", "group", "member", "night", "--remove"]);
    let stolen = identity().signing.public().fingerprint().to_string();
    mediator.admin(&["device", "disable", &stolen]);
    mediator.admin(&["client", "lockdown", "main/hq"]);
    mediator.admin(&["user", "add", "late"]);
    mediator.enroll(&identity(), &token, 1, "pc").await.unwrap();
    let (code, _) = mediator.try_admin(&["restore", file], "");
    assert_eq!(code, 1, "restored under a running server");
    mediator.kill();
    let restored = mediator.admin(&["restore", file]);
    assert_eq!(restored[0]["withdrawals_kept"], true, "{restored:?}");
    mediator.serve();
    let users = mediator.admin(&["user", "list"]);
    assert_eq!(users.len(), 4, "{users:?}");
    // What was withdrawn stays so: the user, the right, the group, the device, the lockdown.
    let gone = users.iter().find(|user| user["user"] == "gone").unwrap();
    assert_eq!(gone["enabled"], false, "{gone}");
    let again = mediator.events_named("backup.restored").remove(0);
    assert_eq!(again["extra"]["withdrawn_again"], 5, "{again}");
    assert_eq!(mediator.try_admin(&["role", "unbind", &binding], "").0, 4, "it holds again");
    assert!(mediator.admin(&["client", "list"])[0]["locked"].as_bool().unwrap());
    mediator.admin(&["client", "unlock", "main/hq"]);
    let refused = mediator.enroll(&identity(), &many, 1, "rogue").await.unwrap_err();
    assert_eq!(refused.code, failure::TOKEN_SPENT);
    // What ended or was used up since the backup does not come back.
    let hello = wire::Hello { session_token, ..hello(2, &me, &[]) };
    let console = mediator.connect(&me, hello).await.unwrap();
    let refused = console.ask(Body::WhoAmI(wire::WhoAmI {})).await.unwrap_err();
    assert_eq!(refused.code, failure::NOT_LOGGED_IN);
    let refused = mediator.enroll(&identity(), &token, 1, "rogue").await.unwrap_err();
    assert_eq!(refused.code, failure::TOKEN_SPENT);
    let started = mediator.events_named("tree.started");
    assert_eq!(started.len(), 2);
    assert!(started[1]["extra"]["previous_root"].is_string());
    let verified = mediator.admin(&["audit", "verify", "--key", &mediator.fingerprint]);
    assert_eq!(verified[0]["internally_consistent_only"], false);
}

#[tokio::test]
async fn commands_work_with_the_server_stopped_and_say_what_is_wrong() {
    let mut mediator = Mediator::start();
    mediator.kill();
    mediator.admin(&["client", "add", "acme/lab"]);
    assert_eq!(mediator.admin(&["client", "list"]).len(), 2);
    for (args, stdin, exit, code) in [
        (&["client", "add", "ACME/Lab"][..], "", 1, "name_taken"),
        (&["client", "add", "acme"][..], "", 2, "usage"),
        (&["token", "agent", "--client", "acme/none"][..], "", 4, "not_found"),
        (&["user", "add", "u", "--password-stdin"][..], "too short\n", 2, "weak_password"),
        (&["user", "add", "u", "--role", "king"][..], "", 2, "usage"),
        (&["user", "disable", "nobody"][..], "", 4, "not_found"),
        (&["session", "end", "x"][..], "", 2, "usage"),
        // None would mean that nobody is connected.
        (&["session", "list"][..], "", 4, "not_running"),
    ] {
        let (exit_code, lines) = mediator.try_admin(args, stdin);
        assert_eq!(exit_code, exit, "{args:?} {lines:?}");
        assert_eq!(lines.last().unwrap()["error"]["code"], code, "{args:?}");
    }
    mediator.admin(&["user", "add", "u", "--partner", "acme"]);
    let trees = mediator.admin(&["audit", "verify"])[0]["trees"].as_array().unwrap().len();
    assert_eq!(trees, 2);
}

#[tokio::test]
async fn a_database_that_was_put_back_is_not_served() {
    let mut mediator = Mediator::start();
    let copy = mediator.dir.path().join("copy.db");
    mediator.admin(&["backup", copy.to_str().unwrap()]);
    mediator.admin(&["user", "add", "u"]);
    mediator.stop();
    std::fs::copy(&copy, mediator.database()).unwrap();
    let (code, lines) = mediator.try_admin(&["audit", "verify"], "");
    assert_eq!(code, 1);
    assert!(lines[0]["error"]["message"].as_str().unwrap().contains("rolled back"), "{lines:?}");
    let (code, lines) = mediator.try_admin(&["serve"], "");
    assert_eq!(code, 1);
    assert_eq!(lines[0]["error"]["code"], "audit_rolled_back");
}

/// The answer to an offer, as an agent that agrees gives it.
async fn agree(agent: &mut Device) {
    loop {
        let (body, responder) = agent.next().await.into_parts();
        if matches!(body, Body::Offer(_)) {
            responder.reply(Body::Answer(wire::Answer { noise_msg2: vec![8; 100].into() }));
            return;
        }
        responder.reply(Body::Done(wire::Done {}));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_reports_by_one_agent_delays_nobody_elses_grant() {
    use adit_protocol::wire::session_event::Event;
    let mediator = Mediator::start();
    let (mut hostile, hostile_enrolled, hostile_identity) = mediator.agent("hostile").await;
    let (mut agent, enrolled, agent_identity) = mediator.agent("pc").await;
    let (console, _, _) = mediator.console().await;
    let wish = common::open(1, &hostile_enrolled, &hostile_identity);
    let (granted, ()) = tokio::join!(console.ask(Body::Open(wish)), agree(&mut hostile));
    granted.unwrap();
    let change = wire::CarrierChange {
        kind: "relayed".into(),
        state: "active".into(),
        detail: "x".repeat(200),
        ..wire::CarrierChange::default()
    };
    let event = wire::SessionEvent { at_ms: 1, event: Some(Event::Carrier(change)) };
    let report = wire::SessionReport { session_id: vec![1; 16].into(), events: vec![event; 64] };
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (peer, report) = (hostile.peer.clone(), report.clone());
        flood.spawn(async move {
            while !peer.is_closed() {
                let _ = peer.request(Body::SessionReport(report.clone()), common::WAIT).await;
            }
        });
    }
    for n in 2..8 {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let started = Instant::now();
        let wish = common::open(n, &enrolled, &agent_identity);
        let (granted, ()) = tokio::join!(console.ask(Body::Open(wish)), agree(&mut agent));
        assert!(matches!(granted.unwrap(), Body::Granted(_)));
        assert!(started.elapsed().as_millis() < 1_000, "{:?}", started.elapsed());
    }
    flood.abort_all();
    let told = mediator.events_named("session.carrier").len();
    assert!(told > 4_000, "only {told} reports: no flood");
}

#[tokio::test]
async fn damage_has_one_name_wherever_it_is() {
    let mut mediator = Mediator::start();
    for n in 0..60 {
        mediator.admin(&["client", "add", &format!("partner{}/client{n}", n % 7)]);
    }
    mediator.stop();
    let good = std::fs::read(mediator.database()).unwrap();
    let pages = good.len() / 4096;
    assert!(pages > 20, "only {pages} pages");
    let page = |n: usize| n * 4096..(n + 1) * 4096;
    let serve_after = |bytes: &[u8]| {
        for end in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(mediator.database().with_extension(format!("db{end}")));
        }
        std::fs::write(mediator.database(), bytes).unwrap();
        let (code, lines) = mediator.try_admin(&["serve"], "");
        (code, lines.last().unwrap()["error"]["code"].as_str().unwrap().to_owned())
    };
    for at in [1, pages / 3, pages / 2, pages - 2] {
        let mut bytes = good.clone();
        bytes[page(at)].fill(0xa5);
        assert_eq!(serve_after(&bytes), (1, "database_corrupt".into()), "page {at} of {pages}");
    }
    assert_eq!(
        serve_after(b"this is no database, though it is long enough"),
        (1, "database_corrupt".into())
    );
    assert_eq!(serve_after(&good[..good.len() / 2]), (1, "database_corrupt".into()));
    std::fs::remove_file(mediator.database()).unwrap();
    let (code, lines) = mediator.try_admin(&["serve"], "");
    assert_eq!((code, &lines[0]["error"]["code"]), (1, &"file_missing".into()));
    let (code, lines) = mediator.try_admin(&["user", "list"], "");
    assert_eq!((code, &lines[0]["error"]["code"]), (1, &"file_missing".into()));
}

#[tokio::test]
async fn a_reader_that_has_enough_is_no_failure() {
    use std::process::{Command, Stdio};
    let mediator = Mediator::start();
    for n in 0..40 {
        mediator.admin(&["client", "add", &format!("main/client{n}")]);
    }
    for format in ["jsonl", "csv"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mediator"))
            .args(["audit", "export", "--format", format, "--data-dir"])
            .arg(mediator.dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let done = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!((done.status.code(), said.as_str()), (Some(0), ""), "{format}");
    }
    // A mistyped directory is not valid.
    let (code, _) = mediator.try_admin(&["config", "check"], "");
    assert_eq!(code, 0);
    let typo = Command::new(env!("CARGO_BIN_EXE_mediator"))
        .args(["config", "check", "--data-dir"])
        .arg(mediator.dir.path().join("typo"))
        .output()
        .unwrap();
    assert_eq!(typo.status.code(), Some(2), "{typo:?}");
}
