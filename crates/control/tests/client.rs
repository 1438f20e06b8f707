//! The dialling side against a small mediator over loopback TLS.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use adit_control::{
    Options, RequestError,
    client::{ATTEMPT_TIMEOUT, Ahead, ConnectConfig, ConnectError, Event, Persistent, connect},
    failure, server, start,
};
use adit_net::{
    identity::DeviceIdentity,
    proxy::Dialer,
    tls::{Accepted, LiveCert, RootAuthority, ServerTls, TlsError, Trust},
};
use adit_protocol::{
    PROTOCOL_VERSION,
    code::failure as codes,
    keys::{KeyCert, PublicKey, Purpose, SigningKey},
    wire::{self, Done, WhoAmI, frame::Body},
};
use tokio::{net::TcpListener, task::JoinSet};

const DAY: u64 = 86_400_000;

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// What the mediator answers to hello.
type Answer = Arc<Mutex<Body>>;

struct Mediator {
    root: SigningKey,
    grant: PublicKey,
    answer: Answer,
    address: SocketAddr,
    tasks: JoinSet<()>,
}

fn welcome(root: &SigningKey, grant: PublicKey) -> wire::Welcome {
    let cert = KeyCert { key: grant, not_before_ms: now_ms() - DAY, not_after_ms: now_ms() + DAY };
    let old = KeyCert { key: PublicKey([1; 32]), not_before_ms: 0, not_after_ms: 5 };
    let certs = [Purpose::Grant, Purpose::Ticket, Purpose::Log];
    wire::Welcome {
        now_ms: now_ms() + 1_000_000,
        key_certs: certs
            .into_iter()
            .flat_map(|p| [KeyCert::issue(root, p, &old), KeyCert::issue(root, p, &cert)])
            .collect(),
        keepalive_ms: 30_000,
        ..Default::default()
    }
}

async fn serve(listener: TcpListener, tls: ServerTls, answer: Answer) {
    let mut connections = JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (tls, answer) = (tls.clone(), answer.clone());
        connections.spawn(async move {
            let Ok(Accepted::Control { stream, .. }) = tls.accept(tcp).await else { return };
            let (peer, mut incoming, driver) = start(stream, Options::server());
            let handle = async {
                let hello = server::expect_hello(&mut incoming, Duration::from_secs(5)).await;
                let (_, responder) = hello.unwrap();
                let answer = answer.lock().unwrap().clone();
                let refused = matches!(answer, Body::Failure(_));
                responder.reply(answer);
                if refused {
                    peer.close();
                }
                while let Some(request) = incoming.recv().await {
                    match request.body {
                        // How the tests cut a connection.
                        Body::Logout(_) => peer.close(),
                        _ => request.reply(Body::Done(Done {})),
                    }
                }
            };
            tokio::join!(driver, handle);
        });
    }
}

impl Mediator {
    async fn new() -> Self {
        let root = SigningKey::generate().unwrap();
        let grant = SigningKey::generate().unwrap().public();
        let hosts = ["127.0.0.1".to_owned()];
        let cert = RootAuthority::new(&root).unwrap();
        let cert = cert.issue_server_cert(&hosts, now_ms() - DAY, now_ms() + DAY).unwrap();
        let tls = ServerTls::new(LiveCert::new(cert.chain, cert.key).unwrap(), None).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(Mutex::new(Body::Welcome(welcome(&root, grant))));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, tls, answer.clone()));
        Self { root, grant, answer, address, tasks }
    }

    fn config(&self) -> ConnectConfig {
        ConnectConfig {
            hosts: vec!["127.0.0.1:1".into(), self.address.to_string()],
            trust: Trust::Root(self.root.public().fingerprint()),
            identity: Arc::new(DeviceIdentity::generate(1).unwrap()),
            dialer: Dialer::direct(),
            hello: wire::Hello { role: 1, protocol: PROTOCOL_VERSION, ..Default::default() },
            ahead: Ahead::default(),
            pipelined: Vec::new(),
            timeout: ATTEMPT_TIMEOUT,
        }
    }

    fn refuse(&self, code: &str) {
        *self.answer.lock().unwrap() = Body::Failure(failure(code, "no"));
    }

    fn accept(&self) {
        *self.answer.lock().unwrap() = Body::Welcome(welcome(&self.root, self.grant));
    }
}

async fn refused(config: &ConnectConfig) -> ConnectError {
    connect(config).await.map(|_| ()).unwrap_err()
}

#[tokio::test]
async fn connects_to_the_host_that_is_up_with_certified_keys_and_pipelined_answers() {
    let mediator = Mediator::new().await;
    let mut config = mediator.config();
    config.ahead = vec![Body::WhoAmI(WhoAmI {}); 2].into();
    config.pipelined = vec![Body::WhoAmI(WhoAmI {}); 3];
    let (mut connected, driver) = connect(&config).await.unwrap();
    assert_eq!(connected.root, mediator.root.public());
    assert_eq!(connected.keys.grant, mediator.grant);
    assert_eq!(connected.remote, Some(mediator.address));
    assert_eq!(connected.replies, vec![Ok(Body::Done(Done {})); 3]);
    let off = connected.clock.now_ms().abs_diff(now_ms() + 1_000_000);
    assert!(off < 60_000, "{off}");
    assert_eq!(connected.ahead.len(), 2);
    let ahead = connected.ahead.remove(1);
    let ask = connected.peer.request(Body::WhoAmI(WhoAmI {}), Duration::from_secs(5));
    let both = async { (ahead.await, ask.await) };
    tokio::select! {
        (ahead, answer) = both => {
            assert_eq!((&ahead, &answer), (&Ok(Body::Done(Done {})), &Ok(Body::Done(Done {}))));
        }
        reason = driver => panic!("{reason}"),
    }
}

#[tokio::test]
async fn refusals_and_wrong_keys_are_told_apart() {
    let mediator = Mediator::new().await;
    mediator.refuse(codes::NOT_ENROLLED);
    let mut config = mediator.config();
    config.pipelined = vec![Body::WhoAmI(WhoAmI {})];
    let error = refused(&config).await;
    assert_eq!(error.failure().unwrap().code, codes::NOT_ENROLLED);
    assert!(error.is_fatal());
    mediator.refuse(codes::BUSY);
    assert!(!refused(&config).await.is_fatal());

    // Keys that another root certified.
    let other = SigningKey::generate().unwrap();
    *mediator.answer.lock().unwrap() = Body::Welcome(welcome(&other, other.public()));
    let error = refused(&config).await;
    assert!(matches!(error, ConnectError::Keys { .. }) && error.is_fatal(), "{error}");
    // No longer valid by the mediator's own time.
    let mut late = welcome(&mediator.root, mediator.grant);
    late.now_ms += 2 * DAY;
    *mediator.answer.lock().unwrap() = Body::Welcome(late);
    assert!(matches!(refused(&config).await, ConnectError::Keys { .. }));
    *mediator.answer.lock().unwrap() = Body::Done(Done {});
    assert!(matches!(refused(&config).await, ConnectError::NoWelcome { .. }));

    config.trust = Trust::Root(other.public().fingerprint());
    let error = refused(&config).await;
    assert!(error.is_fatal(), "the wrong key tells more than the host that is down");
    let ConnectError::Tls { error: TlsError::UnknownRoot { presented }, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(presented, mediator.root.public().fingerprint());
    config.hosts = vec!["127.0.0.1:1".into()];
    let error = refused(&config).await;
    assert!(matches!(error, ConnectError::Dial { .. }) && !error.is_fatal(), "{error}");
    config.hosts = vec!["a:b:c".into()];
    assert!(matches!(refused(&config).await, ConnectError::InvalidHost(_)));
    config.hosts.clear();
    assert!(matches!(refused(&config).await, ConnectError::NoHost));
}

#[tokio::test]
async fn persistent_connection_comes_back_and_is_patient_with_refusals() {
    let mediator = Mediator::new().await;
    let config = mediator.config();
    let (persistent, mut events, driver) = Persistent::start(move || config.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(driver);
    let Some(Event::Up(connected)) = events.recv().await else { panic!("not up") };
    // A poke finds a live connection and leaves it alone.
    persistent.poke();
    let ask = Body::WhoAmI(WhoAmI {});
    assert!(connected.peer.request(ask.clone(), Duration::from_secs(5)).await.is_ok());

    let cut = Body::Logout(wire::Logout {});
    let cut = connected.peer.request(cut, Duration::from_secs(5)).await;
    assert!(matches!(cut, Err(RequestError::Closed | RequestError::Failed(_))), "{cut:?}");
    let Some(Event::Down { error, retry_in }) = events.recv().await else { panic!("not down") };
    assert!(!error.is_fatal() && retry_in <= Duration::from_millis(1500), "{error}");
    mediator.refuse(codes::NOT_ENROLLED);
    persistent.poke();
    let Some(Event::Down { error, retry_in }) = events.recv().await else { panic!("not down") };
    assert!(error.is_fatal() && retry_in >= Duration::from_secs(60), "{error}");
    mediator.accept();
    persistent.poke();
    assert!(matches!(events.recv().await, Some(Event::Up(_))));
    drop(events);
    drop(mediator.tasks);
    tokio::time::timeout(Duration::from_secs(5), tasks.join_next())
        .await
        .expect("ends")
        .unwrap()
        .unwrap();
}
