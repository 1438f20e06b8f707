//! A real mediator process, and devices made of the control client.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

pub mod api;
pub mod provider;

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use adit_control::{
    Incoming, Peer, RequestError,
    client::{Ahead, ConnectConfig, ConnectError, connect},
};
use adit_net::{
    identity::{DeviceIdentity, NoiseKeypair},
    noise::join::JoinResponder,
    proxy::Dialer,
    tls::Trust,
};
use adit_protocol::{
    code::JoinStatus,
    keys::Fingerprint,
    token::EnrollToken,
    wire::{self, frame::Body},
};
use bytes::Bytes;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, rustls};

pub const WAIT: Duration = Duration::from_secs(20);

/// A mediator with its data directory.
pub struct Mediator {
    pub dir: tempfile::TempDir,
    pub fingerprint: String,
    pub password: String,
    pub port: u16,
    child: Option<Child>,
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mediator"));
    command.env_remove("ADIT_DATA_DIR").env("ADIT_LOG", "info");
    command
}

impl Mediator {
    /// Initialised, with the client `main/hq`, and serving.
    pub fn start() -> Self {
        let mut mediator = Self::init();
        mediator.serve();
        mediator.admin(&["client", "add", "main/hq"]);
        mediator
    }

    pub fn init() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = program()
            .args(["init", "--host", "127.0.0.1", "--port", "0", "--stun-port", "0", "--json"])
            .arg("--data-dir")
            .arg(dir.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let told: Value = serde_json::from_slice(&made.stdout).unwrap();
        // Most tests are about something else than second factors.
        let file = dir.path().join("mediator.toml");
        let mut file = std::fs::OpenOptions::new().append(true).open(file).unwrap();
        file.write_all(b"\n[accounts]\nmfa = \"once_set_up\"\n").unwrap();
        Self {
            dir,
            fingerprint: told["fingerprint"].as_str().unwrap().to_owned(),
            password: told["admin_password"].as_str().unwrap().to_owned(),
            port: 0,
            child: None,
        }
    }

    pub fn serve(&mut self) {
        self.serve_logging("info", Stdio::null());
    }

    pub fn serve_logging(&mut self, level: &str, log: Stdio) {
        self.serve_with(|command| {
            command.env("ADIT_LOG", level).stderr(log);
        });
    }

    /// Serves with a changed command.
    pub fn serve_with(&mut self, change: impl FnOnce(&mut Command)) {
        let mut command = program();
        command
            .args(["serve", "--json", "--data-dir"])
            .arg(self.dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).expect("mediator did not become ready");
        assert_eq!(ready["event"], "ready");
        self.port = u16::try_from(ready["port"].as_u64().unwrap()).unwrap();
        self.child = Some(child);
    }

    /// kill -9
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, as an administrator stops it.
    pub fn stop(&mut self) {
        let pid = self.pid().to_string();
        let told = Command::new("kill").arg(&pid).status().unwrap();
        assert!(told.success());
        let status = self.child.take().unwrap().wait().unwrap();
        assert!(status.success(), "{status}");
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Runs an administrator's command; its JSON lines.
    pub fn admin(&self, args: &[&str]) -> Vec<Value> {
        let (code, lines) = self.try_admin(args, "");
        assert_eq!(code, 0, "{args:?}: {lines:?}");
        lines
    }

    pub fn try_admin(&self, args: &[&str], stdin: &str) -> (i32, Vec<Value>) {
        let mut child = program()
            .args(args)
            .args(["--json", "--data-dir"])
            .arg(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // A command that fails early does not read.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        let done = child.wait_with_output().unwrap();
        let text = String::from_utf8(done.stdout).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (done.status.code().unwrap(), lines)
    }

    /// The audit log's events, without the head.
    pub fn events(&self) -> Vec<Value> {
        let mut lines = self.admin(&["audit", "export"]);
        lines.pop().unwrap();
        lines
    }

    pub fn events_named(&self, name: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["event"] == name).collect()
    }

    pub fn token(&self, args: &[&str]) -> EnrollToken {
        let told = self.admin(&[&["token"], args].concat());
        EnrollToken::decode(told[0]["token"].as_str().unwrap()).unwrap()
    }

    pub fn database(&self) -> PathBuf {
        self.dir.path().join("mediator.db")
    }

    pub async fn connect(
        &self,
        identity: &Arc<DeviceIdentity>,
        hello: wire::Hello,
    ) -> Result<Device, ConnectError> {
        let fingerprint: Fingerprint = self.fingerprint.parse().unwrap();
        let config = ConnectConfig {
            hosts: vec![format!("127.0.0.1:{}", self.port)],
            trust: Trust::Root(fingerprint),
            identity: Arc::clone(identity),
            dialer: Dialer::direct(),
            hello,
            ahead: Ahead::default(),
            pipelined: Vec::new(),
            timeout: WAIT,
        };
        let (connected, driver) = connect(&config).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(driver);
        Ok(Device {
            peer: connected.peer,
            incoming: connected.incoming,
            welcome: connected.welcome,
            keys: connected.keys,
            _tasks: tasks,
        })
    }

    /// Enrols a device with a token.
    pub async fn enroll(
        &self,
        identity: &Arc<DeviceIdentity>,
        token: &EnrollToken,
        kind: u32,
        name: &str,
    ) -> Result<wire::Enrolled, wire::Failure> {
        let device = self.connect(identity, hello(4, identity, &[])).await.unwrap();
        let enroll = wire::Enroll {
            proof: Some(token.redeem(identity.signing.public()).unwrap()),
            kind,
            name: name.to_owned(),
            noise_cert: Some(identity.noise_cert.clone()),
            ..wire::Enroll::default()
        };
        match device.ask(Body::Enroll(enroll)).await {
            Ok(Body::Enrolled(enrolled)) => Ok(enrolled),
            Ok(other) => panic!("{other:?}"),
            Err(failure) => Err(failure),
        }
    }

    /// An enrolled and connected agent.
    pub async fn agent(&self, name: &str) -> (Device, wire::Enrolled, Arc<DeviceIdentity>) {
        let token = self.token(&["agent", "--client", "main/hq"]);
        let identity = identity();
        let enrolled = self.enroll(&identity, &token, 1, name).await.unwrap();
        let hello = hello(1, &identity, &enrolled.device_id);
        let device = self.connect(&identity, hello).await.unwrap();
        (device, enrolled, identity)
    }

    /// A console, logged in as the administrator.
    pub async fn console(&self) -> (Device, Arc<DeviceIdentity>, String) {
        let identity = identity();
        let device = self.connect(&identity, hello(2, &identity, &[])).await.unwrap();
        let logged_in = device.login("admin", &self.password).await.unwrap();
        (device, identity, logged_in.session_token)
    }
}

impl Drop for Mediator {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A connected device.
pub struct Device {
    pub peer: Peer,
    pub incoming: Incoming,
    pub welcome: wire::Welcome,
    pub keys: adit_control::client::MediatorKeys,
    _tasks: JoinSet<adit_control::CloseReason>,
}

impl Device {
    pub async fn ask(&self, body: Body) -> Result<Body, wire::Failure> {
        match self.peer.request(body, WAIT).await {
            Ok(body) => Ok(body),
            Err(RequestError::Failed(failure)) => Err(failure),
            Err(error) => panic!("{error}"),
        }
    }

    pub async fn login(&self, user: &str, password: &str) -> Result<wire::LoggedIn, wire::Failure> {
        self.login_with(user, password, "").await
    }

    pub async fn login_with(
        &self,
        user: &str,
        password: &str,
        code: &str,
    ) -> Result<wire::LoggedIn, wire::Failure> {
        let login = wire::Login {
            user: user.to_owned(),
            password: password.to_owned(),
            totp: code.to_owned(),
        };
        match self.ask(Body::Login(login)).await? {
            Body::LoggedIn(told) => Ok(told),
            other => panic!("{other:?}"),
        }
    }

    pub async fn next(&mut self) -> adit_control::Request {
        tokio::time::timeout(WAIT, self.incoming.recv()).await.unwrap().unwrap()
    }
}

pub fn identity() -> Arc<DeviceIdentity> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    Arc::new(DeviceIdentity::generate(u64::try_from(now).unwrap()).unwrap())
}

pub fn hello(role: u32, identity: &DeviceIdentity, device_id: &[u8]) -> wire::Hello {
    wire::Hello {
        role,
        protocol: 1,
        version: "test".to_owned(),
        device_id: Bytes::copy_from_slice(device_id),
        noise_cert: Some(identity.noise_cert.clone()),
        ..wire::Hello::default()
    }
}

/// A wish to open `ssh` on a computer.
pub fn open(session: u8, enrolled: &wire::Enrolled, agent: &DeviceIdentity) -> wire::Open {
    wire::Open {
        session_id: vec![session; 16].into(),
        computer_id: enrolled.device_id.clone(),
        redirector: "ssh".to_owned(),
        targets: vec![wire::Target { host: "127.0.0.1".to_owned(), port: 22, protocol: 6 }],
        reason: "a reason".to_owned(),
        ticket: "T-1".to_owned(),
        viewer: "ssh".to_owned(),
        noise_msg1: vec![7; 200].into(),
        agent_identity: agent.signing.public().to_bytes(),
        ..wire::Open::default()
    }
}

/// Asks for a session, and answers for the agent meanwhile.
pub async fn try_open(
    console: &Device,
    agent: &mut Device,
    wish: wire::Open,
) -> Result<(), wire::Failure> {
    let opened = console.ask(Body::Open(wish));
    tokio::pin!(opened);
    loop {
        tokio::select! {
            done = &mut opened => return done.map(|_| ()),
            request = agent.next() => {
                let (body, responder) = request.into_parts();
                match body {
                    Body::Offer(_) => {
                        let noise_msg2 = vec![8; 100].into();
                        responder.reply(Body::Answer(wire::Answer { noise_msg2 }));
                    }
                    _ => responder.reply(Body::Done(wire::Done {})),
                }
            }
        }
    }
}

/// A web server's TLS on the loopback address; whoever is to trust it finds its certificate in `ca`.
pub fn web_tls(ca: &Path) -> TlsAcceptor {
    web_tls_but(ca, "127.0.0.1", |_| {})
}

/// The same with a certificate for that host that is changed; it is added to what is in `ca`.
pub fn web_tls_but(
    ca: &Path,
    host: &str,
    change: impl FnOnce(&mut rcgen::CertificateParams),
) -> TlsAcceptor {
    let mut params = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
    change(&mut params);
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(ca).unwrap();
    file.write_all(cert.pem().as_bytes()).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(adit_net::tls::web_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// Answers joins with a device's Noise key, as its relay would.
pub async fn relay_listener(identity: &DeviceIdentity) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let key = NoiseKeypair::from_private(identity.noise.private.clone()).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut responder = JoinResponder::new(&key).unwrap();
            let mut message = vec![0; usize::from(stream.read_u16().await.unwrap_or(0))];
            let read = stream.read_exact(&mut message).await;
            if read.is_ok() && responder.handle_message1(&message).is_ok() {
                let reply = responder.reply(JoinStatus::BadTicket).unwrap();
                stream.write_u16(reply.len().try_into().unwrap()).await.unwrap();
                stream.write_all(&reply).await.unwrap();
            }
        }
    });
    (address, tasks)
}
