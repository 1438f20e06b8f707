//! A small mediator: enrols, welcomes, acknowledges, and lets a test send offers.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use adit_control::{Options, Peer, failure, server, start};
use adit_net::tls::{Accepted, LiveCert, RootAuthority, ServerTls};
use adit_protocol::{
    code::failure as codes,
    grant::Grant,
    ids::{ComputerId, SessionId, TokenId},
    keys::{KeyCert, PublicKey, Purpose, SigningKey, sha256},
    target::{Target, Transport},
    token::{EnrollToken, TokenKind},
    wire::{self, Done, frame::Body},
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdout, Command},
    sync::mpsc,
    task::JoinSet,
};
use zeroize::Zeroizing;

const DAY: u64 = 86_400_000;
pub(crate) const COMPUTER: ComputerId = ComputerId([7; 16]);
/// For anything that ought to happen soon.
pub(crate) const SOON: Duration = Duration::from_secs(20);

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// What the mediator heard.
#[derive(Debug)]
pub(crate) enum Heard {
    Enroll(wire::Enroll),
    Online(Peer, wire::Hello),
    CheckIn(wire::CheckIn),
}

pub(crate) struct Mediator {
    pub(crate) root: SigningKey,
    pub(crate) grant: SigningKey,
    pub(crate) address: SocketAddr,
    pub(crate) heard: mpsc::Receiver<Heard>,
    /// If set, enrolments are refused with this code.
    pub(crate) refuse: Arc<Mutex<Option<&'static str>>>,
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Shared {
    welcome: wire::Welcome,
    heard: mpsc::Sender<Heard>,
    refuse: Arc<Mutex<Option<&'static str>>>,
}

impl Mediator {
    pub(crate) async fn start() -> Self {
        let root = SigningKey::generate().unwrap();
        let grant = SigningKey::generate().unwrap();
        let hosts = ["127.0.0.1".to_owned()];
        let cert = RootAuthority::new(&root).unwrap();
        let cert = cert.issue_server_cert(&hosts, now_ms() - DAY, now_ms() + DAY).unwrap();
        let tls = ServerTls::new(LiveCert::new(cert.chain, cert.key).unwrap(), None).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let key = grant.public();
        let cert = KeyCert { key, not_before_ms: now_ms() - DAY, not_after_ms: now_ms() + DAY };
        let purposes = [Purpose::Grant, Purpose::Ticket, Purpose::Log];
        let welcome = wire::Welcome {
            now_ms: now_ms(),
            key_certs: purposes.into_iter().map(|p| KeyCert::issue(&root, p, &cert)).collect(),
            keepalive_ms: 30_000,
            check_in_ms: 60_000,
            ..Default::default()
        };
        let (sender, heard) = mpsc::channel(64);
        let refuse = Arc::<Mutex<Option<&'static str>>>::default();
        let shared = Shared { welcome, heard: sender, refuse: refuse.clone() };
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(listener, tls, shared));
        Self { root, grant, address, heard, refuse, _tasks: tasks }
    }

    pub(crate) fn token(&self, kind: TokenKind) -> Zeroizing<String> {
        let root = self.root.public().fingerprint();
        token(kind, root, vec![self.address.to_string()])
    }

    /// The next that `pick` wants; other things are dropped.
    pub(crate) async fn hear<T>(&mut self, mut pick: impl FnMut(Heard) -> Option<T>) -> T {
        let next = async {
            loop {
                if let Some(wanted) = pick(self.heard.recv().await.unwrap()) {
                    return wanted;
                }
            }
        };
        tokio::time::timeout(SOON, next).await.expect("nothing of the kind was heard")
    }

    /// An offer whose grant is good but whose handshake is not.
    pub(crate) fn offer(
        &self,
        agent: PublicKey,
        computer: ComputerId,
        target: &str,
    ) -> wire::Offer {
        let msg1 = b"no handshake";
        let grant = Grant {
            session: SessionId([9; 16]),
            tenant: "p".into(),
            computer,
            console: SigningKey::generate().unwrap().public(),
            agent,
            redirector: "ssh".into(),
            targets: vec![Target::parse(target, Transport::Tcp).unwrap()],
            any_target: false,
            msg1_sha256: sha256(msg1),
            issued_ms: now_ms(),
            expires_ms: now_ms() + 60_000,
            user: "eve\n\u{1b}[2J".into(),
            reason: String::new(),
            ticket: String::new(),
            audit_seq: 1,
            audit_leaf: [0; 32],
        };
        wire::Offer {
            grant: Some(grant.sign(&self.grant)),
            noise_msg1: msg1.to_vec().into(),
            relays: Vec::new(),
            ..Default::default()
        }
    }
}

pub(crate) fn token(
    kind: TokenKind,
    root: adit_protocol::keys::Fingerprint,
    hosts: Vec<String>,
) -> Zeroizing<String> {
    let seed = Zeroizing::new([5; 32]);
    EnrollToken { kind, id: TokenId([6; 16]), root, seed, hosts }.encode()
}

async fn listen(listener: TcpListener, tls: ServerTls, shared: Shared) {
    let mut connections = JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (tls, shared) = (tls.clone(), shared.clone());
        connections.spawn(async move {
            let Ok(Accepted::Control { stream, peer: identity }) = tls.accept(tcp).await else {
                return;
            };
            let (peer, mut incoming, driver) = start(stream, Options::server());
            let handle = async {
                let hello = server::expect_hello(&mut incoming, SOON).await;
                let (hello, responder) = hello.unwrap();
                responder.reply(Body::Welcome(shared.welcome.clone()));
                if hello.role == 1 {
                    shared.heard.send(Heard::Online(peer.clone(), hello)).await.unwrap();
                }
                while let Some(request) = incoming.recv().await {
                    let (body, responder) = request.into_parts();
                    let (answer, heard) = shared.answer(body, identity);
                    responder.reply(answer);
                    if let Some(heard) = heard {
                        shared.heard.send(heard).await.unwrap();
                    }
                }
            };
            tokio::join!(driver, handle);
        });
    }
}

impl Shared {
    fn answer(&self, body: Body, identity: PublicKey) -> (Body, Option<Heard>) {
        match body {
            Body::Enroll(enroll) => {
                let key = SigningKey::from_seed(&[5; 32]).unwrap().public();
                let proof = enroll.proof.as_ref().unwrap();
                key.open(adit_protocol::keys::context::ENROLL, proof).unwrap();
                let refused = *self.refuse.lock().unwrap();
                let answer = match refused {
                    Some(code) => Body::Failure(failure(code, "no\u{1b}[2J")),
                    None => Body::Enrolled(wire::Enrolled {
                        device_id: COMPUTER.to_bytes(),
                        name: enroll.name.clone(),
                        client: "p/c".into(),
                        partner: "p".into(),
                        partner_id: "p".into(),
                    }),
                };
                assert_ne!(identity.0, [0; 32]);
                (answer, Some(Heard::Enroll(enroll)))
            }
            Body::CheckIn(check_in) => {
                let reply = wire::CheckInReply { now_ms: now_ms(), end_sessions: Vec::new() };
                (Body::CheckInReply(reply), Some(Heard::CheckIn(check_in)))
            }
            Body::SessionReport(_) | Body::Ping(_) => (Body::Done(Done {}), None),
            _ => (Body::Failure(failure(codes::BAD_REQUEST, "not here")), None),
        }
    }
}

/// The program, as a user starts it.
pub(crate) fn agent(dir: &Path, arguments: &[&str]) -> Command {
    agent_program(Path::new(env!("CARGO_BIN_EXE_agent-tunnel")), dir, arguments)
}

/// The same from another file.
pub(crate) fn agent_program(program: &Path, dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).arg("--data-dir").arg(dir).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for variable in
        ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "ADIT_TOKEN", "ADIT_LOG"]
    {
        command.env_remove(variable);
    }
    command
}

/// Runs to the end: exit code, objects on stdout, stderr.
pub(crate) async fn finish(mut command: Command) -> (i32, Vec<Value>, String) {
    let output = tokio::time::timeout(SOON, command.output()).await.expect("it hangs").unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let lines = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code().unwrap(), lines, String::from_utf8(output.stderr).unwrap())
}

/// A running agent.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_logging(dir, Stdio::inherit())
    }

    pub(crate) fn start_logging(dir: &Path, log: impl Into<Stdio>) -> Self {
        let mut child = agent(dir, &["run", "--json"]).stderr(log).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next event of this name.
    pub(crate) async fn event(&mut self, name: &str) -> Value {
        let next = async {
            loop {
                let line = self.lines.next_line().await.unwrap().expect("it ended");
                let event: Value = serde_json::from_str(&line).unwrap();
                if event["event"] == name {
                    return event;
                }
            }
        };
        tokio::time::timeout(SOON, next).await.expect("no such event")
    }

    #[cfg(unix)]
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}
