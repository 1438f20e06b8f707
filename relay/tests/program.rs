//! The program itself, against a small mediator of the test: join, serve, report, cut, drain.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod support;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use adit_control::{Incoming, Options, Peer, server::expect_hello, start};
use adit_net::{
    identity::NoiseKeypair,
    noise::join::join_relay,
    tls::{Accepted, LiveCert, RootAuthority, ServerTls},
};
use adit_protocol::{
    ids::{RelayId, SessionId, TokenId},
    keys::{KeyCert, NoiseCert, PublicKey, Purpose, SigningKey},
    ticket::{Role, Share, Ticket},
    token::{EnrollToken, TokenKind},
    wire::{self, frame::Body},
};
use serde_json::Value;
use support::{PATIENCE, read_all, session};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

const RELAY: RelayId = RelayId([9; 16]);
const LIFE_MS: u64 = 3_600_000;

/// What the relay told, in order.
enum Told {
    Hello(Box<wire::Hello>, Peer),
    Report(wire::RelayReport),
}

struct Mediator {
    root: SigningKey,
    ticket_key: SigningKey,
    tls: ServerTls,
    listener: TcpListener,
}

impl Mediator {
    async fn new() -> Self {
        let (root, ticket_key) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let now_ms = adit_runtime::time::unix_ms();
        let hosts = ["127.0.0.1".to_owned()];
        let cert = RootAuthority::new(&root)
            .unwrap()
            .issue_server_cert(&hosts, now_ms - LIFE_MS, now_ms + LIFE_MS)
            .unwrap();
        let tls = ServerTls::new(LiveCert::new(cert.chain, cert.key).unwrap(), None).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { root, ticket_key, tls, listener }
    }

    fn token(&self) -> EnrollToken {
        EnrollToken {
            kind: TokenKind::Relay,
            id: TokenId([1; 16]),
            root: self.root.public().fingerprint(),
            seed: SigningKey::generate().unwrap().seed().clone(),
            hosts: vec![self.listener.local_addr().unwrap().to_string()],
        }
    }

    fn welcome(&self) -> wire::Welcome {
        let now_ms = adit_runtime::time::unix_ms();
        let cert = |purpose, key: &SigningKey| {
            let not_before_ms = now_ms - LIFE_MS;
            let cert = KeyCert { key: key.public(), not_before_ms, not_after_ms: now_ms + LIFE_MS };
            KeyCert::issue(&self.root, purpose, &cert)
        };
        wire::Welcome {
            now_ms,
            key_certs: vec![
                cert(Purpose::Grant, &self.root),
                cert(Purpose::Ticket, &self.ticket_key),
                cert(Purpose::Log, &self.root),
            ],
            ..wire::Welcome::default()
        }
    }

    /// Serves one connection after another until dropped.
    async fn serve(self: Arc<Self>, told: mpsc::Sender<Told>) {
        let mut connections = JoinSet::new();
        loop {
            let (socket, _) = self.listener.accept().await.unwrap();
            let (this, told) = (Arc::clone(&self), told.clone());
            connections.spawn(async move {
                let Ok(Accepted::Control { stream, peer: key }) = this.tls.accept(socket).await
                else {
                    return;
                };
                let (peer, incoming, driver) = start(stream, Options::server());
                tokio::join!(driver, this.talk(key, peer, incoming, told));
            });
        }
    }

    async fn talk(
        &self,
        key: PublicKey,
        peer: Peer,
        mut incoming: Incoming,
        told: mpsc::Sender<Told>,
    ) {
        let Ok((hello, responder)) = expect_hello(&mut incoming, PATIENCE).await else { return };
        responder.reply(Body::Welcome(self.welcome()));
        told.send(Told::Hello(Box::new(hello), peer)).await.unwrap();
        while let Some(request) = incoming.recv().await {
            let (body, responder) = request.into_parts();
            match body {
                Body::Enroll(enroll) => {
                    assert_eq!(enroll.kind, 3);
                    assert!(NoiseCert::open(key, enroll.noise_cert.as_ref().unwrap()).is_ok());
                    responder.reply(Body::Enrolled(wire::Enrolled {
                        device_id: RELAY.to_bytes(),
                        name: enroll.name,
                        ..wire::Enrolled::default()
                    }));
                }
                Body::RelayReport(report) => {
                    told.send(Told::Report(report)).await.unwrap();
                    responder.reply(Body::Done(wire::Done {}));
                }
                _ => responder.reply(Body::Done(wire::Done {})),
            }
        }
    }
}

fn relay(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_relay"));
    command.args(args).arg("--json").env("ADIT_DATA_DIR", dir).env_remove("ADIT_TOKEN");
    command
}

async fn output(mut command: Command) -> Output {
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    timeout(PATIENCE, run).await.unwrap().unwrap()
}

fn last_line(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap_or("null"))
        .unwrap_or_else(|e| panic!("{e}: {text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

struct Serving {
    child: Child,
    ready: Value,
}

impl Serving {
    async fn start(dir: &Path) -> Self {
        Self::start_logging(dir, Stdio::null()).await
    }

    async fn start_logging(dir: &Path, log: impl Into<Stdio>) -> Self {
        let mut command = relay(dir, &["serve", "--listen", "127.0.0.1:0"]);
        command.stdout(Stdio::piped()).stderr(log).env_remove("ADIT_LOG");
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).unwrap();
            line
        });
        let line = timeout(PATIENCE, line).await.expect("not ready").unwrap();
        Self { child, ready: serde_json::from_str(&line).unwrap() }
    }

    fn listen(&self) -> String {
        self.ready["listen"][0].as_str().unwrap().to_owned()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    async fn stop(mut self) -> (Option<i32>, Duration) {
        let start = Instant::now();
        self.signal(rustix::process::Signal::TERM);
        let wait = tokio::task::spawn_blocking(move || self.child.wait().unwrap());
        (timeout(PATIENCE, wait).await.unwrap().unwrap().code(), start.elapsed())
    }
}

async fn hello(told: &mut mpsc::Receiver<Told>) -> (wire::Hello, Peer) {
    loop {
        match timeout(PATIENCE, told.recv()).await.unwrap().unwrap() {
            Told::Hello(hello, peer) => return (*hello, peer),
            Told::Report(_) => {}
        }
    }
}

async fn report_of(told: &mut mpsc::Receiver<Told>, session: SessionId) -> wire::RelaySession {
    loop {
        if let Told::Report(report) = timeout(PATIENCE, told.recv()).await.unwrap().unwrap()
            && let Some(found) = report.sessions.iter().find(|s| s.session_id[..] == session.0)
        {
            return found.clone();
        }
    }
}

async fn join(
    mediator: &Mediator,
    hello: &wire::Hello,
    address: &str,
    session: SessionId,
    role: Role,
) -> Result<TcpStream, adit_net::noise::join::JoinError> {
    let info = hello.relay.as_ref().unwrap();
    let relay = PublicKey::from_slice(&info.identity).unwrap();
    let noise = NoiseCert::open(relay, info.noise_cert.as_ref().unwrap()).unwrap();
    let key = NoiseKeypair::generate().unwrap();
    let now_ms = adit_runtime::time::unix_ms();
    let ticket = Ticket {
        relay,
        session,
        role,
        joiner: key.public,
        not_before_ms: now_ms - 60_000,
        expires_ms: now_ms + 600_000,
        share: Share::default(),
    };
    let mut stream = TcpStream::connect(address).await?;
    join_relay(&mut stream, &noise, &key, &ticket.sign(&mediator.ticket_key), 0).await?;
    Ok(stream)
}

#[tokio::test]
async fn joins_once_serves_reports_is_told_to_cut_and_drains() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("relay");
    let mediator = Arc::new(Mediator::new().await);
    let (tell, mut told) = mpsc::channel(64);
    let mut serving = JoinSet::new();
    serving.spawn(Arc::clone(&mediator).serve(tell));
    let token = mediator.token().encode();

    let not_joined = output(relay(&dir, &["serve"])).await;
    assert_eq!(not_joined.status.code(), Some(4));
    let joined = output(relay(&dir, &["join", &token, "--region", "eu"])).await;
    assert_eq!(joined.status.code(), Some(0), "{joined:?}");
    assert_eq!(last_line(&joined)["relay_id"], RELAY.to_string());
    let again = output(relay(&dir, &["join", &token])).await;
    assert_eq!((again.status.code(), last_line(&again)), (Some(0), last_line(&joined)));
    let other = EnrollToken { id: TokenId([2; 16]), ..mediator.token() }.encode();
    let refused = output(relay(&dir, &["join", &other])).await;
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(last_line(&refused)["error"]["code"], "already_joined");
    let (enrolling, _) = hello(&mut told).await;
    assert_eq!(enrolling.role, 4);

    let serve = Serving::start(&dir).await;
    assert_eq!(serve.ready["event"], "ready");
    let (said, peer) = hello(&mut told).await;
    let info = said.relay.clone().unwrap();
    assert_eq!((said.role, info.region.as_str()), (3, "eu"));
    assert_eq!(info.addresses, [serve.listen()]);
    let second = output(relay(&dir, &["serve"])).await;
    assert_eq!(last_line(&second)["error"]["code"], "already_running");

    // A pair, its bytes, and the order to cut it.
    let at = serve.listen();
    let mut console = join(&mediator, &said, &at, session(1), Role::Console).await.unwrap();
    let mut agent = join(&mediator, &said, &at, session(1), Role::Agent).await.unwrap();
    console.write_all(&[7; 1000]).await.unwrap();
    agent.read_exact(&mut [0; 1000]).await.unwrap();
    let mut first = report_of(&mut told, session(1)).await;
    while first.bytes_up == 0 {
        first = report_of(&mut told, session(1)).await;
    }
    assert_eq!((first.bytes_up, first.bytes_down, first.ended), (1000, 0, false));
    let status = last_line(&output(relay(&dir, &["status"])).await);
    assert_eq!((&status["state"], &status["pairs"]), (&"serving".into(), &1.into()));
    let cut = wire::RelayCut { session_id: session(1).to_bytes() };
    let done = peer.request(Body::RelayCut(cut), PATIENCE).await.unwrap();
    assert!(matches!(done, Body::Done(_)));
    assert!(read_all(&mut agent).await.is_err(), "a cut looked like an end");
    assert!(report_of(&mut told, session(1)).await.ended);
    assert!(join(&mediator, &said, &at, session(1), Role::Agent).await.is_err());

    // Without the mediator it goes on with what it knows.
    serving.shutdown().await;
    peer.close();
    let mut console = join(&mediator, &said, &at, session(2), Role::Console).await.unwrap();
    let mut agent = join(&mediator, &said, &at, session(2), Role::Agent).await.unwrap();
    console.write_all(b"x").await.unwrap();
    agent.read_exact(&mut [0]).await.unwrap();
    let (tell, mut told) = mpsc::channel(64);
    serving.spawn(Arc::clone(&mediator).serve(tell));
    hello(&mut told).await;

    // Draining: no address is advertised any more, the pair is waited for.
    let incomplete = output(relay(&dir, &["drain", "--deadline", "200ms"])).await;
    assert_eq!(last_line(&incomplete)["error"]["code"], "drain_incomplete");
    let (drained, _) = hello(&mut told).await;
    assert_eq!(drained.relay.unwrap().addresses, [""; 0]);
    assert!(join(&mediator, &said, &at, session(3), Role::Agent).await.is_err());
    drop((console, agent));
    let complete = last_line(&output(relay(&dir, &["drain", "--deadline", "10s"])).await);
    assert_eq!(complete["drained"], true);

    let (code, took) = serve.stop().await;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn joining_again_changes_what_is_advertised_and_says_so() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("relay");
    let mediator = Arc::new(Mediator::new().await);
    let (tell, mut told) = mpsc::channel(64);
    let mut serving = JoinSet::new();
    serving.spawn(Arc::clone(&mediator).serve(tell));
    for bad in ["bad host", "0.0.0.0:1", "a:0", "no:good:1", "x!:1"] {
        let wrong = output(relay(&dir, &["join", "adit1-x", "--advertise", bad])).await;
        assert_eq!(wrong.status.code(), Some(2), "{bad}");
        assert_eq!(last_line(&wrong)["error"]["code"], "usage", "{bad}");
    }
    let token = mediator.token().encode();
    let joined = last_line(&output(relay(&dir, &["join", &token, "--advertise", "foo"])).await);
    assert_eq!((&joined["region"], &joined["changed"]), (&Value::Null, &false.into()));
    assert_eq!(joined["advertise"], serde_json::json!(["foo:443"]), "the port is told");
    hello(&mut told).await;

    // With the token that was used, or without any.
    let region = ["join", &token, "--region", "eu"];
    let changed = last_line(&output(relay(&dir, &region)).await);
    assert_eq!((&changed["region"], &changed["changed"]), (&"eu".into(), &true.into()));
    let moved = last_line(&output(relay(&dir, &["join", "--advertise", "bar:8443"])).await);
    assert_eq!(moved["changed"], true);
    assert_eq!(moved["advertise"], serde_json::json!(["bar:8443"]));
    let same = last_line(&output(relay(&dir, &["join", "--region", "eu"])).await);
    assert_eq!(same["changed"], false);

    let serve = Serving::start(&dir).await;
    let info = hello(&mut told).await.0.relay.unwrap();
    assert_eq!((info.addresses, info.region.as_str()), (vec!["bar:8443".to_owned()], "eu"));
    serve.stop().await;
}

#[tokio::test]
async fn hangup_reloads_log_level_and_limits_and_a_mistake_changes_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("relay");
    let mediator = Arc::new(Mediator::new().await);
    let (tell, mut told) = mpsc::channel(64);
    let mut serving = JoinSet::new();
    serving.spawn(Arc::clone(&mediator).serve(tell));
    output(relay(&dir, &["join", &mediator.token().encode()])).await;
    hello(&mut told).await;
    let configure = |text: &str| std::fs::write(dir.join("relay.toml"), text).unwrap();
    configure("[log]\nlevel = \"error\"");
    let log = temp.path().join("log");
    let serve = Serving::start_logging(&dir, std::fs::File::create(&log).unwrap()).await;
    let (said, _) = hello(&mut told).await;
    let at = serve.listen();
    let _first = join(&mediator, &said, &at, session(1), Role::Console).await.unwrap();
    let hang_up = async |text: &str, seen: &str| {
        configure(text);
        serve.signal(rustix::process::Signal::HUP);
        let started = Instant::now();
        while !std::fs::read_to_string(&log).unwrap().contains(seen) {
            assert!(started.elapsed() < PATIENCE, "{seen} is not logged");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    hang_up("[log]\nlevel = \"loud\"", "configuration not reloaded").await;
    assert!(!std::fs::read_to_string(&log).unwrap().contains("\"INFO\""));
    let _second = join(&mediator, &said, &at, session(2), Role::Console).await.unwrap();
    hang_up("[log]\nlevel = \"info\"\n[limits]\nmax_pairs = 2", "as configured").await;
    assert!(join(&mediator, &said, &at, session(3), Role::Console).await.is_err());
    serve.stop().await;
}

#[tokio::test]
async fn damaged_keys_have_one_code() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("relay");
    let mediator = Arc::new(Mediator::new().await);
    let (tell, _told) = mpsc::channel(64);
    let mut serving = JoinSet::new();
    serving.spawn(Arc::clone(&mediator).serve(tell));
    output(relay(&dir, &["join", &mediator.token().encode()])).await;
    for damage in [Some("short"), None] {
        match damage {
            Some(text) => std::fs::write(dir.join("identity.key"), text).unwrap(),
            None => std::fs::remove_file(dir.join("identity.key")).unwrap(),
        }
        for arguments in [&["serve"][..], &["join"]] {
            let failed = output(relay(&dir, arguments)).await;
            assert_eq!(failed.status.code(), Some(1));
            assert_eq!(last_line(&failed)["error"]["code"], "identity_damaged", "{arguments:?}");
        }
    }
}

#[tokio::test]
async fn wrong_usage_is_found_before_anything_is_dialled() {
    let temp = tempfile::tempdir().unwrap();
    for (arguments, code) in [
        (&["serve", "--log-level", "nonsense"][..], "log_level_invalid"),
        (&["serve", "--proxy", "nonsense"], "proxy_invalid"),
        (&["join", "adit1-x", "--proxy", "http://a b"], "proxy_invalid"),
        (&["config", "check", "--proxy", "ftp://p:1"], "proxy_invalid"),
        (&["config", "check", "--data-dir", "/nonexistent/typo"], "data_dir_missing"),
    ] {
        let failed = output(relay(temp.path(), arguments)).await;
        assert_eq!(failed.status.code(), Some(2), "{arguments:?}");
        assert_eq!(last_line(&failed)["error"]["code"], code, "{arguments:?}");
    }
}

#[tokio::test]
async fn another_users_directory_has_one_code_whatever_is_asked() {
    use std::os::unix::{fs::PermissionsExt, process::CommandExt};
    /// The user "nobody".
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        // Only root can be somebody else.
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = temp.path().join("program");
    std::fs::copy(env!("CARGO_BIN_EXE_relay"), &program).unwrap();
    let dir = temp.path().join("d");
    adit_runtime::datadir::DataDir::open(&dir).unwrap();
    for arguments in [
        &["serve"][..],
        &["status"],
        &["drain"],
        &["config", "show"],
        &["config", "check"],
        &["join", "adit1-x"],
        &["join"],
    ] {
        let mut command = Command::new(&program);
        command.args(arguments).args(["--json", "--data-dir"]).arg(&dir).current_dir("/");
        command.env_remove("ADIT_TOKEN").uid(NOBODY).gid(NOBODY);
        let failed = output(command).await;
        let error = &last_line(&failed)["error"];
        assert_eq!(error["code"], "data_dir_denied", "{arguments:?}");
        assert!(error["message"].as_str().unwrap().contains("belongs to root"), "{error}");
    }
}

#[tokio::test]
async fn last_bytes_are_reported_when_stopped() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("relay");
    let mediator = Arc::new(Mediator::new().await);
    let (tell, mut told) = mpsc::channel(64);
    let mut serving = JoinSet::new();
    serving.spawn(Arc::clone(&mediator).serve(tell));
    let joined = output(relay(&dir, &["join", &mediator.token().encode()])).await;
    assert_eq!(joined.status.code(), Some(0), "{joined:?}");
    hello(&mut told).await;
    let serve = Serving::start(&dir).await;
    let (said, _) = hello(&mut told).await;
    let at = serve.listen();
    let mut console = join(&mediator, &said, &at, session(1), Role::Console).await.unwrap();
    let mut agent = join(&mediator, &said, &at, session(1), Role::Agent).await.unwrap();
    agent.write_all(&[7; 500]).await.unwrap();
    console.read_exact(&mut [0; 500]).await.unwrap();
    let (code, took) = serve.stop().await;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(read_all(&mut console).await.is_err(), "stopping looked like an end");
    let mut last = report_of(&mut told, session(1)).await;
    while !last.ended {
        last = report_of(&mut told, session(1)).await;
    }
    assert_eq!((last.bytes_up, last.bytes_down), (0, 500));
}

#[tokio::test]
async fn tokens_and_mediators_that_are_wrong_are_told_apart() {
    let temp = tempfile::tempdir().unwrap();
    let mediator = Arc::new(Mediator::new().await);
    let (tell, _told) = mpsc::channel(64);
    let mut serving = JoinSet::new();
    serving.spawn(Arc::clone(&mediator).serve(tell));
    let stranger = SigningKey::generate().unwrap();
    let cases = [
        ("adit1-nonsense".to_owned(), 3, "token_invalid"),
        (
            EnrollToken { kind: TokenKind::Agent, ..mediator.token() }.encode().to_string(),
            3,
            "token_wrong_role",
        ),
        (
            EnrollToken { root: stranger.public().fingerprint(), ..mediator.token() }
                .encode()
                .to_string(),
            3,
            "mediator_untrusted",
        ),
        (
            EnrollToken { hosts: vec!["127.0.0.1:1".into()], ..mediator.token() }
                .encode()
                .to_string(),
            5,
            "mediator_unreachable",
        ),
    ];
    for (token, exit, code) in cases {
        let failed = output(relay(&temp.path().join(code), &["join", &token])).await;
        assert_eq!(last_line(&failed)["error"]["code"], code);
        assert_eq!(failed.status.code(), Some(exit), "{code}");
    }
}
