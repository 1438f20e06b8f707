//! The audit log's commands and receivers, with a real mediator: search, levels, retention,
//! syslog over TLS and webhook through outages and kill -9.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use adit_ledger::Entry;
use adit_protocol::wire::{self, frame::Body};
use common::{
    Mediator,
    api::{Web, Who},
    hello, identity, open, try_open,
};
use serde_json::json;
use sqlx::Connection as _;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

type Got = Arc<Mutex<BTreeMap<String, Vec<u64>>>>;

/// What a receiver does to those who come.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Takes,
    /// Cuts the connection after some bytes.
    Cuts,
    /// Takes, and ends the connection without saying that TLS ends.
    TakesInSilence,
}

/// A receiver that can go away and come back.
struct Receiver {
    dir: tempfile::TempDir,
    port: u16,
    got: Got,
    visits: Arc<AtomicUsize>,
    acceptor: TlsAcceptor,
    running: Option<JoinSet<()>>,
    webhook: bool,
}

impl Receiver {
    async fn new(webhook: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let acceptor = common::web_tls(&dir.path().join("ca.pem"));
        std::fs::write(dir.path().join("secret"), "0123456789abcdef\n").unwrap();
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        Self {
            dir,
            port,
            got: Got::default(),
            visits: Arc::default(),
            acceptor,
            running: None,
            webhook,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn start(&mut self, manner: Manner) {
        self.stop().await;
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let (acceptor, got) = (self.acceptor.clone(), Arc::clone(&self.got));
        let (visits, webhook) = (Arc::clone(&self.visits), self.webhook);
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut visitors = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, got) = (acceptor.clone(), Arc::clone(&got));
                visits.fetch_add(1, Ordering::Relaxed);
                visitors.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    if webhook {
                        post(stream, manner, &got).await
                    } else {
                        syslog(stream, manner, &got).await
                    }
                });
            }
        });
        self.running = Some(running);
    }

    async fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.shutdown().await;
        }
    }

    /// Waits until all entries of each partner's log came, each log's in its order.
    async fn has_all_of(&self, mediator: &Mediator) {
        let deadline = Instant::now() + Duration::from_secs(60);
        // As many as each log's head says. What is looked at now is itself an entry that comes
        // later.
        let wanted: BTreeMap<String, u64> = mediator
            .admin(&["audit", "export"])
            .iter()
            .filter_map(|line| {
                let head = &line["head"];
                Some((head["tree"].as_str()?.to_owned(), head["size"].as_u64()?))
            })
            .collect();
        assert!(!wanted.is_empty(), "no log has a head");
        let came = || -> BTreeMap<String, u64> {
            let got = self.got.lock().unwrap();
            let next = |seqs: &Vec<u64>| seqs.iter().max().map_or(0, |last| last + 1);
            got.iter().map(|(tree, seqs)| (tree.clone(), next(seqs))).collect()
        };
        let all = |came: &BTreeMap<String, u64>| {
            wanted.iter().all(|(tree, size)| came.get(tree).is_some_and(|next| next >= size))
        };
        while !all(&came()) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(all(&came()), "{:?} of {wanted:?} came", came());
        for (tree, seqs) in &*self.got.lock().unwrap() {
            let mut next = 0;
            for seq in seqs {
                assert!(*seq <= next, "entry {seq} of {tree} came where {next} was next");
                next = next.max(seq + 1);
            }
        }
    }
}

async fn syslog<S>(mut stream: S, manner: Manner, got: &Got)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut bytes = Vec::new();
    if manner == Manner::Cuts {
        let mut some = [0; 700];
        let _ = stream.read_exact(&mut some).await;
        return;
    }
    if stream.read_to_end(&mut bytes).await.is_err() {
        return;
    }
    let mut rest = bytes.as_slice();
    while let Some(space) = rest.iter().position(|byte| *byte == b' ') {
        let length: usize = std::str::from_utf8(&rest[..space]).unwrap().parse().unwrap();
        let message = std::str::from_utf8(&rest[space + 1..space + 1 + length]).unwrap();
        rest = &rest[space + 1 + length..];
        assert!(message.starts_with('<') && message.contains(">1 "), "{message}");
        let value = |key: &str| {
            let (_, after) = message.split_once(&format!("{key}=\"")).unwrap();
            after.split_once('"').unwrap().0.to_owned()
        };
        let (_, line) = message.split_once("] ").unwrap();
        // The line verifies by itself.
        let entry = adit_ledger::Entry::parse(line.as_bytes()).unwrap();
        assert_eq!(entry.seq().to_string(), value("seq"));
        got.lock().unwrap().entry(value("tree")).or_default().push(entry.seq());
    }
    assert!(rest.is_empty());
    if manner == Manner::Takes {
        let _ = stream.shutdown().await;
    }
}

async fn post<S>(mut stream: S, manner: Manner, got: &Got)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut bytes = Vec::new();
    let (head, mut body) = loop {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
            break (head, bytes[end + 4..].to_vec());
        }
    };
    let header = |name: &str| {
        let (_, after) = head.split_once(&format!("\r\n{name}: ")).unwrap();
        after.split("\r\n").next().unwrap().to_owned()
    };
    let length: usize = header("content-length").parse().unwrap();
    while body.len() < length {
        if stream.read_buf(&mut body).await.unwrap_or(0) == 0 {
            return;
        }
    }
    if manner == Manner::Cuts {
        let moved =
            "HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
        let _ = stream.write_all(moved.as_bytes()).await;
        return;
    }
    let proof = header("adit-signature");
    let (time, mac) = proof.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"0123456789abcdef");
    let signed = [time.as_bytes(), b".", &body].concat();
    let expected = aws_lc_rs::hmac::sign(&key, &signed);
    let expected: String = expected.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(mac, expected);
    for line in std::str::from_utf8(&body).unwrap().lines() {
        let entry = adit_ledger::Entry::parse(line.as_bytes()).unwrap();
        got.lock().unwrap().entry(header("adit-tree")).or_default().push(entry.seq());
    }
    let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
    let _ = stream.shutdown().await;
}

fn configure(mediator: &Mediator, lines: &str) {
    let file = mediator.dir.path().join("mediator.toml");
    let mut text = std::fs::read_to_string(&file).unwrap();
    text.push_str("\n[audit]\n");
    text.push_str(lines);
    std::fs::write(file, text).unwrap();
}

fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

/// Outages of every kind while entries are made; in the end nothing is missing.
async fn survives(mut receiver: Receiver, lines: String) {
    let mut mediator = Mediator::start();
    mediator.stop();
    configure(&mediator, &lines);
    receiver.start(Manner::Takes).await;
    mediator.serve();
    let mut client = 0;
    let mut add = |mediator: &Mediator, count: usize| {
        for _ in 0..count {
            client += 1;
            // Of two partners, each with a log of its own.
            let partner = if client % 3 == 0 { "other" } else { "main" };
            mediator.admin(&["client", "add", &format!("{partner}/client{client}")]);
        }
    };
    add(&mediator, 5);
    receiver.has_all_of(&mediator).await;
    // Away, back but rude, the mediator killed, away, killed while it delivers.
    receiver.stop().await;
    add(&mediator, 5);
    receiver.start(Manner::Cuts).await;
    let before = receiver.visits.load(Ordering::Relaxed);
    add(&mediator, 5);
    while receiver.visits.load(Ordering::Relaxed) == before {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    mediator.kill();
    mediator.serve();
    add(&mediator, 5);
    receiver.start(Manner::Takes).await;
    for _ in 0..3 {
        add(&mediator, 2);
        tokio::time::sleep(Duration::from_millis(200)).await;
        mediator.kill();
        mediator.serve();
    }
    receiver.has_all_of(&mediator).await;
    let told = mediator.admin(&["audit", "forwarding"]);
    let delivered = told.iter().filter_map(|line| line["delivered"].as_u64()).sum::<u64>();
    assert!(delivered > 30, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn syslog_has_no_gap_after_outages_and_crashes() {
    let receiver = Receiver::new(false).await;
    let lines = format!(
        "syslog = \"127.0.0.1:{}\"\nsyslog_ca = {}\n",
        receiver.port,
        quoted(&receiver.file("ca.pem"))
    );
    survives(receiver, lines).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_never_says_goodbye_confirms_only_if_the_administrator_says_so() {
    let mut receiver = Receiver::new(false).await;
    let lines = format!(
        "syslog = \"127.0.0.1:{}\"\nsyslog_ca = {}\n",
        receiver.port,
        quoted(&receiver.file("ca.pem"))
    );
    let mut mediator = Mediator::start();
    mediator.stop();
    configure(&mediator, &lines);
    receiver.start(Manner::TakesInSilence).await;
    mediator.serve();
    while receiver.visits.load(Ordering::Relaxed) < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(mediator.admin(&["audit", "forwarding"]).is_empty());
    mediator.stop();
    let file = mediator.dir.path().join("mediator.toml");
    let text = std::fs::read_to_string(&file).unwrap() + "syslog_confirm = \"close\"\n";
    std::fs::write(file, text).unwrap();
    mediator.serve();
    receiver.has_all_of(&mediator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_has_no_gap_after_outages_and_crashes() {
    let receiver = Receiver::new(true).await;
    let lines = format!(
        "webhook = \"https://127.0.0.1:{}/adit?x=1\"\nwebhook_ca = {}\nwebhook_secret = {}\n",
        receiver.port,
        quoted(&receiver.file("ca.pem")),
        quoted(&receiver.file("secret"))
    );
    survives(receiver, lines).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_that_are_not_who_they_should_be_get_nothing() {
    let (mut receiver, other) = (Receiver::new(false).await, Receiver::new(false).await);
    let mut mediator = Mediator::start();
    mediator.stop();
    let lines = format!(
        "syslog = \"127.0.0.1:{}\"\nsyslog_ca = {}\n",
        receiver.port,
        quoted(&other.file("ca.pem"))
    );
    configure(&mediator, &lines);
    receiver.start(Manner::Takes).await;
    mediator.serve();
    while receiver.visits.load(Ordering::Relaxed) < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(receiver.got.lock().unwrap().is_empty());
    // What does not forward keeps nobody from working.
    mediator.admin(&["client", "add", "main/works"]);
    for bad in
        ["webhook = \"http://127.0.0.1/\"", "webhook = \"https://u:p@h/\"", "retention = \"30d\""]
    {
        let before = std::fs::read_to_string(mediator.dir.path().join("mediator.toml")).unwrap();
        let (_, rest) = bad.split_once(" = ").unwrap();
        let key = bad.split(' ').next().unwrap();
        std::fs::write(
            mediator.dir.path().join("mediator.toml"),
            format!("{before}{key} = {rest}\nwebhook_secret = \"/nothing\"\n"),
        )
        .unwrap();
        let (code, told) = mediator.try_admin(&["config", "check"], "");
        assert_eq!(code, 2, "{bad}: {told:?}");
        std::fs::write(mediator.dir.path().join("mediator.toml"), before).unwrap();
    }
}

/// R04: an authority that is known vouches for nothing that is expired, early, of another name or
/// for another purpose.
#[tokio::test(flavor = "multi_thread")]
async fn receivers_with_a_flaw_in_their_certificate_get_nothing() {
    let mut receiver = Receiver::new(false).await;
    let mut mediator = Mediator::start();
    mediator.stop();
    let ca = receiver.file("ca.pem");
    let good = receiver.acceptor.clone();
    let flawed = [
        common::web_tls_but(&ca, "127.0.0.1", |made| {
            made.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }),
        common::web_tls_but(&ca, "127.0.0.1", |made| {
            made.not_before = rcgen::date_time_ymd(2090, 1, 1);
        }),
        common::web_tls_but(&ca, "127.0.0.2", |_| {}),
        common::web_tls_but(&ca, "127.0.0.1", |made| {
            made.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        }),
    ];
    let lines = format!("syslog = \"127.0.0.1:{}\"\nsyslog_ca = {}\n", receiver.port, quoted(&ca));
    configure(&mediator, &lines);
    for (n, acceptor) in flawed.into_iter().enumerate() {
        receiver.acceptor = acceptor;
        receiver.start(Manner::Takes).await;
        receiver.visits.store(0, Ordering::Relaxed);
        mediator.serve();
        while receiver.visits.load(Ordering::Relaxed) < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        mediator.stop();
        assert!(receiver.got.lock().unwrap().is_empty(), "flaw {n}");
    }
    // It was the certificates.
    receiver.acceptor = good;
    receiver.start(Manner::Takes).await;
    mediator.serve();
    receiver.has_all_of(&mediator).await;
}

/// Two courts, two holds: each is there by itself, whoever releases one says which, and nothing is
/// erased before the last is over; on the machine and from afar.
#[tokio::test]
async fn each_legal_hold_is_released_by_itself_and_the_last_one_frees() {
    let mediator = Mediator::start();
    let (console, me, _) = mediator.console().await;
    let (who, mut web) = (Who::at(&console, &me).await, Web::connect(&mediator).await);
    mediator.admin(&["client", "add", "main/gone"]);
    mediator.admin(&["client", "add", "other/hq"]);
    let retention =
        |args: &[&str]| mediator.try_admin(&[&["audit", "retention"], args].concat(), "");
    let code = |told: &[serde_json::Value]| told[0]["error"]["code"].as_str().unwrap().to_owned();
    let kept = || {
        let told = retention(&["show"]).1;
        told.into_iter().find(|policy| policy["partner"] == "main").unwrap()
    };
    let erase = || mediator.try_admin(&["client", "erase", "main/gone", "--yes"], "");
    // One on the machine, one from afar.
    let (done, told) = retention(&["hold", "main", "--reason", "case 7"]);
    assert_eq!((done, &told[0]["hold"]), (0, &true.into()), "{told:?}");
    let first = told[0]["hold_id"].as_str().unwrap().to_owned();
    let wish = json!({"hold": true, "reason": "case 8"});
    let told = web.ask(&who, "PUT", "/api/v1/audit/hold", Some(&wish)).await;
    let second = told.body["hold_id"].as_str().unwrap().to_owned();
    assert_eq!(told.body["holds"].as_array().unwrap().len(), 2, "{told:?}");
    // Said again it is the same one.
    let told = web.ask(&who, "PUT", "/api/v1/audit/hold", Some(&wish)).await;
    assert_eq!(told.body["hold_id"], second.as_str(), "{told:?}");
    let foreign = retention(&["hold", "other", "--reason", "case 9"]).1;
    let foreign = foreign[0]["hold_id"].as_str().unwrap();
    let listed = kept();
    assert_eq!(listed["hold_reason"], "case 7; case 8");
    let of = |n: usize, field: &str| listed["holds"][n][field].as_str().unwrap().to_owned();
    assert_eq!((of(0, "hold_id"), of(0, "reason")), (first.clone(), "case 7".into()));
    assert_eq!(
        (of(0, "created_by"), of(1, "created_by")),
        ("local administrator".into(), "admin".into())
    );
    assert!(of(0, "created") <= of(1, "created"), "{listed}");
    // Without a name nobody knows which: refused, with both, and both stay.
    let (refused, told) = retention(&["release", "main"]);
    assert_eq!((refused, code(&told).as_str()), (1, "ambiguous_hold"), "{told:?}");
    let message = told[0]["error"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("{first} (case 7)")), "{message}");
    assert!(message.contains(&format!("{second} (case 8)")), "{message}");
    let release = |id: &str| json!({"hold": false, "hold_id": id});
    let nameless = web.ask(&who, "PUT", "/api/v1/audit/hold", Some(&json!({"hold": false}))).await;
    assert_eq!((nameless.status, nameless.code()), (409, "ambiguous_hold"), "{nameless:?}");
    // Nor is there one of another partner, or one that never was.
    for id in [foreign, "nothing"] {
        let refused = web.ask(&who, "PUT", "/api/v1/audit/hold", Some(&release(id))).await;
        assert_eq!((refused.status, refused.code()), (404, "not_found"), "{refused:?}");
        let (refused, told) = retention(&["release", "main", id]);
        assert_eq!((refused, code(&told).as_str()), (4, "not_found"), "{told:?}");
    }
    let named = json!({"hold": true, "hold_id": first});
    assert_eq!(web.ask(&who, "PUT", "/api/v1/audit/hold", Some(&named)).await.status, 400);
    assert_eq!(kept(), listed);
    // One is over: the other holds all.
    let told = web.ask(&who, "PUT", "/api/v1/audit/hold", Some(&release(&first))).await;
    assert_eq!((told.status, &told.body["hold"]), (200, &true.into()), "{told:?}");
    assert_eq!(kept()["hold_reason"], "case 8");
    let (refused, told) = erase();
    assert_eq!((refused, code(&told).as_str()), (3, "legal_hold"), "{told:?}");
    // The only one need not be named, nor is it an error that there is none.
    for left in [Some(&second), None] {
        let (done, told) = retention(&["release", "main"]);
        assert_eq!((done, &told[0]["hold"]), (0, &false.into()), "{told:?}");
        assert_eq!(told[0]["hold_id"].as_str(), left.map(String::as_str), "{told:?}");
    }
    assert_eq!(erase().0, 0);
    // The log says which; what changed nothing is not in it.
    for name in ["audit.hold_set", "audit.hold_released"] {
        let events = mediator.events_named(name).into_iter();
        let told = events.filter(|event| event["partner"] == "main" && event["outcome"] == "done");
        let told: Vec<_> = told.map(|event| event["extra"]["hold"].clone()).collect();
        assert_eq!(told, [first.as_str(), second.as_str()], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn search_levels_and_retention_by_command() {
    let mediator = Mediator::start();
    let me = identity();
    let device = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
    device.login("admin", &mediator.password).await.unwrap();
    assert!(device.login("admin", "wrong").await.is_err());
    let names = |args: &[&str]| -> Vec<String> {
        mediator
            .admin(&[&["audit", "search"], args].concat())
            .iter()
            .filter_map(|event| event["event"].as_str().map(str::to_owned))
            .collect()
    };
    assert_eq!(names(&["--event", "login.failed"]), ["login.failed"]);
    assert_eq!(names(&["--user", "ADMIN", "--since", "1h", "--limit", "1"]), ["login.failed"]);
    assert_eq!(names(&["--client", "main/HQ"]), ["client.added"]);
    assert_eq!(names(&["--user", "nobody"]), [""; 0]);
    // What there is not is no event that never happened; what only an earlier version wrote is.
    let file = mediator.dir.path().join("none.jsonl");
    let to = ["--output", file.to_str().unwrap()];
    for (command, to) in [("search", &[][..]), ("export", &to)] {
        let wrong = [&["audit", command, "--event", "login.failed,login.fialed"], to].concat();
        let (code, told) = mediator.try_admin(&wrong, "");
        let error = &told[0]["error"];
        assert_eq!((code, &error["code"], told.len()), (2, &"usage".into(), 1), "{told:?}");
        assert!(error["message"].as_str().unwrap().contains("\"login.fialed\""), "{error}");
        assert!(error["hint"].as_str().unwrap().contains("did you mean login.failed"), "{error}");
    }
    assert!(!file.exists());
    let (who, mut web) = (Who::at(&device, &me).await, Web::connect(&mediator).await);
    for target in ["events?limit=1&", "export?"] {
        let target = format!("/api/v1/audit/{target}event=session.start");
        let told = web.ask(&who, "GET", &target, None).await;
        assert_eq!((told.status, told.code()), (400, "bad_request"), "{told:?}");
        assert!(told.body["hint"].as_str().unwrap().contains("session.granted"), "{told:?}");
    }
    let database = format!("sqlite:{}", mediator.database().display());
    let mut database = sqlx::SqliteConnection::connect(&database).await.unwrap();
    let done =
        sqlx::query("UPDATE audit_entry SET event = 'login.old' WHERE event = 'login.failed'");
    assert_eq!(done.execute(&mut database).await.unwrap().rows_affected(), 1);
    assert_eq!(names(&["--event", "login.old"]), ["login.failed"]);
    let told = web.ask(&who, "GET", "/api/v1/audit/events?event=login.old", None).await;
    assert_eq!((told.status, told.body["items"].as_array().unwrap().len()), (200, 1), "{told:?}");
    let done =
        sqlx::query("UPDATE audit_entry SET event = 'login.failed' WHERE event = 'login.old'");
    assert_eq!(done.execute(&mut database).await.unwrap().rows_affected(), 1);
    database.close().await.unwrap();
    let first = mediator.admin(&["audit", "search", "--limit", "2"]);
    let next = first[2]["next"].as_str().unwrap();
    let second = mediator.admin(&["audit", "search", "--limit", "1", "--after", next]);
    assert!(second[0]["seq"].as_u64() < first[1]["seq"].as_u64());
    // Looks are kept of those whose level says so.
    let look = async |query: &str| {
        let list = wire::ListComputers { query: query.into(), ..Default::default() };
        device.ask(Body::ListComputers(list)).await.unwrap();
    };
    look("before").await;
    mediator.admin(&["audit", "level", "admin", "5"]);
    look("meanwhile").await;
    mediator.admin(&["audit", "level", "admin", "2"]);
    look("after").await;
    let looks = mediator.admin(&["audit", "search", "--event", "computers.listed"]);
    assert_eq!(looks.len(), 1, "{looks:?}");
    assert_eq!((&looks[0]["level"], &looks[0]["actor"]), (&5.into(), &"admin".into()));
    assert_eq!(looks[0]["extra_personal"]["query"], "meanwhile");
    assert_eq!(names(&["--event", "user.audit_level"]), ["user.audit_level"; 2]);
    let (code, _) = mediator.try_admin(&["audit", "level", "admin", "6"], "");
    assert_eq!(code, 2);
    let (code, told) =
        mediator.try_admin(&["audit", "retention", "set", "main", "--days", "9"], "");
    assert_eq!(code, 2, "{told:?}");
    mediator.admin(&["audit", "retention", "set", "main", "--days", "365"]);
    mediator.admin(&["audit", "retention", "hold", "main", "--reason", "case 7"]);
    let told = mediator.admin(&["audit", "retention", "show"]);
    assert_eq!((&told[0]["days"], &told[0]["hold"]), (&365.into(), &true.into()));
    mediator.admin(&["audit", "retention", "release", "main"]);
    let recorded = names(&["--event", "audit.retention_set,audit.hold_set,audit.hold_released"]);
    assert_eq!(recorded.len(), 3);
    // A part of the log, in a file that is there as a whole or not at all.
    let file = mediator.dir.path().join("part.jsonl");
    let path = file.to_str().unwrap();
    mediator.admin(&["audit", "export", "--user", "admin", "--output", path]);
    let verified = mediator.admin(&["audit", "verify", "--file", path]);
    assert!(verified[0]["trees"][0]["omitted"].as_u64() > Some(0), "{verified:?}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("client.added") && text.contains("login.failed"));
    // Another file is no altered log, another installation's key no alteration.
    let error = |(code, told): (i32, Vec<serde_json::Value>)| {
        let error = told.last().unwrap()["error"].clone();
        let word = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        (code, word("code"), format!("{} {}", word("message"), word("hint")))
    };
    let other = mediator.dir.path().join("other.csv");
    let other = other.to_str().unwrap();
    mediator.admin(&["audit", "export", "--format", "csv", "--output", other]);
    for wrong in
        ["", "\u{ff}\u{d8}JFIF\n", "{\"a\": 1}\n", &std::fs::read_to_string(other).unwrap()]
    {
        std::fs::write(other, wrong).unwrap();
        let (code, kind, told) =
            error(mediator.try_admin(&["audit", "verify", "--file", other], ""));
        assert_eq!((code, kind.as_str()), (1, "audit_invalid"), "{told}");
        assert!(told.contains("no audit export") && told.contains("jsonl"), "{told}");
        let head = ["audit", "verify", "--file", path, "--head", other];
        let (code, kind, told) = error(mediator.try_admin(&head, ""));
        assert_eq!((code, kind.as_str()), (2, "head_invalid"), "{told}");
        assert!(told.contains("no signed head"), "{told}");
    }
    let folder = mediator.dir.path().to_str().unwrap();
    let (code, kind, told) = error(mediator.try_admin(&["audit", "verify", "--file", folder], ""));
    assert!(
        (code, kind.as_str()) == (1, "file_unreadable") && told.contains("directory"),
        "{told}"
    );
    let foreign = format!("sha256:{}", "00".repeat(32));
    for args in [
        &["audit", "verify", "--key", &foreign][..],
        &["audit", "verify", "--file", path, "--key", &foreign],
    ] {
        let (code, kind, told) = error(mediator.try_admin(args, ""));
        assert_eq!((code, kind.as_str()), (1, "audit_invalid"), "{told}");
        assert!(told.contains("another installation's key"), "{told}");
        assert!(!told.contains("altered"), "{told}");
    }
}

/// What is done by hand in the database is found by the command; what only misleads a search is not
/// in the way of an export.
#[tokio::test]
async fn every_change_in_the_database_is_found_by_the_command() {
    let mut mediator = Mediator::start();
    for n in 0..9 {
        mediator.admin(&["client", "add", &format!("main/c{n}")]);
    }
    mediator.stop();
    let good = std::fs::read(mediator.database()).unwrap();
    let change = async |statements: &[&str]| {
        for end in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(mediator.database().with_extension(format!("db{end}")));
        }
        std::fs::write(mediator.database(), &good).unwrap();
        let file = format!("sqlite:{}", mediator.database().display());
        let mut database = sqlx::SqliteConnection::connect(&file).await.unwrap();
        for statement in statements {
            let statement = sqlx::AssertSqlSafe((*statement).to_owned());
            let done = sqlx::query(statement).execute(&mut database).await.unwrap();
            assert!(done.rows_affected() > 0, "{statements:?}");
        }
        database.close().await.unwrap();
    };
    let verify = || mediator.try_admin(&["audit", "verify", "--key", &mediator.fingerprint], "");
    change(&[]).await;
    assert_eq!(verify().0, 0);
    let last = "(SELECT MAX(seq) FROM audit_entry)";
    for statements in [
        &["UPDATE audit_entry SET line = replace(line, 'client.added', 'client.moved') \
           WHERE event = 'client.added'"][..],
        &["UPDATE audit_entry SET line = (SELECT line FROM audit_entry WHERE seq = 4) \
           WHERE seq = 5"],
        &["DELETE FROM audit_entry WHERE seq = 5"],
        &[&format!("DELETE FROM audit_entry WHERE seq = {last}")],
        &[
            "UPDATE audit_entry SET seq = 9000 WHERE seq = 5",
            "UPDATE audit_entry SET seq = 5 WHERE seq = 6",
            "UPDATE audit_entry SET seq = 6 WHERE seq = 9000",
        ],
        &[&format!(
            "INSERT INTO audit_entry (tree, seq, time_ms, event, leaf, line, log_no) \
             SELECT tree, seq + 1, time_ms, event, leaf, line, log_no FROM audit_entry \
             WHERE seq = {last}"
        )],
        &["UPDATE audit_tree SET head = replace(head, '\"size\":1', '\"size\":2')"],
        &["DELETE FROM audit_entry", "DELETE FROM audit_tree"],
        &["UPDATE audit_tree SET head = replace(head, '\"root\":\"', '\"root\":\"00')"],
    ] {
        change(statements).await;
        let (code, told) = verify();
        let found = told.last().unwrap()["error"]["code"].as_str().unwrap_or_default().to_owned();
        assert_eq!(code, 1, "{statements:?}: {told:?}");
        assert!(["audit_invalid", "database_corrupt"].contains(&found.as_str()), "{told:?}");
    }
    // Contents that are gone before their time leave their hash, as retention's do: they are counted.
    change(&["UPDATE audit_entry SET line = '' WHERE seq = 5"]).await;
    let (code, told) = verify();
    assert_eq!((code, &told[0]["trees"][0]["pruned"]), (0, &1.into()), "{told:?}");
    // An index is no evidence: who changes that alone hides something from a search, not from an
    // export, which reads the lines.
    change(&["UPDATE audit_entry SET event = 'x', client_key = NULL WHERE event = 'client.added'"])
        .await;
    assert_eq!(verify().0, 0);
    let found = |args: &[&str]| {
        let told = mediator.admin(&[&["audit"], args, &["--client", "main/c5"]].concat());
        told.iter().filter(|line| line["event"] == "client.added").count()
    };
    assert_eq!((found(&["search"]), found(&["export"])), (0, 1));
}

/// The same is done by two users, of whom one is recorded as little as can be: only what may be
/// left out is missing.
#[tokio::test]
async fn at_level_0_access_and_security_events_stay() {
    use adit_protocol::wire::session_event::Event;
    let mediator = Mediator::start();
    let (mut agent, enrolled, key) = mediator.agent("pc").await;
    let mut recorded = Vec::new();
    for (n, (user, level)) in (1_u8..).zip([("all", "5"), ("none", "0")]) {
        let added = mediator.admin(&["user", "add", user, "--role", "administrator"]);
        let password = added[0]["password"].as_str().unwrap();
        mediator.admin(&["audit", "level", user, level]);
        let me = identity();
        let device = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
        assert!(device.login(user, "wrong").await.is_err());
        device.login(user, password).await.unwrap();
        device.ask(Body::ListComputers(wire::ListComputers::default())).await.unwrap();
        try_open(&device, &mut agent, open(n, &enrolled, &key)).await.unwrap();
        let session_id: Vec<u8> = vec![n; 16];
        let change = wire::CarrierChange {
            kind: "relayed".into(),
            state: "active".into(),
            ..wire::CarrierChange::default()
        };
        let events = [
            Event::Carrier(change),
            Event::Channel(wire::ChannelEnd {
                channel: 1,
                outcome: "closed".into(),
                ..Default::default()
            }),
            Event::End(wire::SessionEnd { reason: "closed".into(), ..Default::default() }),
        ];
        let events = events.map(|event| wire::SessionEvent { at_ms: 1, event: Some(event) });
        let report = wire::SessionReport { session_id: session_id.into(), events: events.to_vec() };
        device.ask(Body::SessionReport(report)).await.unwrap();
        let who = Who::at(&device, &me).await;
        let mut web = Web::connect(&mediator).await;
        assert_eq!(web.ask(&who, "GET", "/api/v1/computers", None).await.status, 200);
        assert_eq!(web.ask(&who, "GET", "/api/v1/audit/events", None).await.status, 200);
        assert_eq!(web.ask(&who, "DELETE", "/api/v1/relays/none", None).await.status / 100, 4);
        let lock = serde_json::json!({"reason": "x"});
        for (method, body) in [("PUT", Some(&lock)), ("DELETE", None)] {
            let done = web.ask(&who, method, "/api/v1/clients/main/hq/lockdown", body).await;
            assert_eq!(done.status, 200, "{done:?}");
        }
        let mine = mediator.events().into_iter().filter(|event| event["actor"] == user);
        let mut names: Vec<String> =
            mine.map(|event| event["event"].as_str().unwrap().to_owned()).collect();
        names.sort();
        recorded.push(names);
    }
    let [all, none] = recorded.try_into().unwrap();
    for name in [
        "login.failed",
        "login.succeeded",
        "session.requested",
        "session.granted",
        "session.carrier",
        "session.ended",
        "computers.listed",
        "audit.read",
        "client.locked",
    ] {
        assert!(all.iter().any(|kept| kept == name), "no {name}: {all:?}");
    }
    let optional = ["session.carrier", "computers.listed"];
    let kept: Vec<_> = all.into_iter().filter(|name| !optional.contains(&name.as_str())).collect();
    assert_eq!(none, kept);
}

/// As an administrator sets it up: files appear by themselves, go on where the last one ended, also
/// after a crash, and each verifies by the command.
#[tokio::test]
async fn a_running_mediator_exports_by_itself_without_gaps() {
    let mut mediator = Mediator::start();
    mediator.stop();
    let out = tempfile::tempdir().unwrap();
    let lines = format!("export_dir = {}\nexport_every = \"1s\"\n", quoted(out.path()));
    configure(&mediator, &lines);
    let exported = || {
        let mut seen = Vec::new();
        for file in std::fs::read_dir(out.path()).unwrap() {
            let file = file.unwrap().path();
            if file.extension().is_some_and(|end| end == "jsonl") {
                let text = std::fs::read_to_string(&file).unwrap();
                let entries = text.lines().filter(|line| line.starts_with("{\"v\":1"));
                seen.extend(entries.map(|line| Entry::parse(line.as_bytes()).unwrap().seq()));
            }
        }
        seen.sort_unstable();
        seen
    };
    for round in 0..3 {
        mediator.serve();
        mediator.admin(&["client", "add", &format!("main/export{round}")]);
        let size = u64::try_from(mediator.events().len()).unwrap();
        let deadline = Instant::now() + common::WAIT;
        while exported().len() < usize::try_from(size).unwrap() {
            assert!(Instant::now() < deadline, "{} of {size}", exported().len());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let seen = exported();
        let all: Vec<u64> = (0..seen.len() as u64).collect();
        assert_eq!(seen, all, "round {round}: each entry once");
        mediator.kill();
    }
    let mut files = 0;
    for file in std::fs::read_dir(out.path()).unwrap() {
        let file = file.unwrap().path();
        let path = file.to_str().unwrap();
        let verify = ["audit", "verify", "--file", path, "--key", &mediator.fingerprint];
        assert_eq!(mediator.admin(&verify)[0]["trees"][0]["anchor"], "key", "{path}");
        files += 1;
    }
    assert!(files >= 3, "{files} files");
}
