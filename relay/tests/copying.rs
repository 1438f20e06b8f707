//! What a pair does with bytes, ends and resets, spliced and copied, raw and in TLS.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod support;

use std::{sync::Arc, time::Duration};

use adit_net::{identity::NoiseKeypair, tls::provider};
use adit_protocol::ticket::Role;
use adit_relay::{core::pairing::Limits, splice::Engine};
use support::{PATIENCE, TestRelay, limits, pattern, read_all, session};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

const MUCH: usize = 3 * 1024 * 1024 + 17;

fn engines() -> [Engine; 3] {
    let spliced = Engine::new(64);
    let without_pipes = Engine::new(0);
    let mut copied = Engine::new(0);
    copied.splice = false;
    [spliced, without_pipes, copied]
}

#[tokio::test]
async fn bytes_arrive_whole_both_ways_and_half_closes_pass() {
    for engine in engines() {
        let relay = TestRelay::with_engine(limits(), engine);
        let (console, agent) = relay.pair(session(1)).await;
        exchange(console, agent).await;
        relay.eventually("an end", |hub| hub.counts().pairs == 0).await;
        let report = relay.hub.poll_report();
        assert_eq!(report.len(), 1);
        assert!(report[0].ended);
        assert_eq!((report[0].bytes_up, report[0].bytes_down), (MUCH as u64, 5));
    }
}

/// The console sends much and ends its direction; then the agent answers and ends.
async fn exchange<A, B>(mut console: A, mut agent: B)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let bytes = pattern(1, MUCH);
    let send = async {
        console.write_all(&bytes).await.unwrap();
        console.shutdown().await.unwrap();
    };
    let (received, ()) = tokio::join!(read_all(&mut agent), send);
    assert!(received.unwrap() == bytes, "bytes differ");
    agent.write_all(b"reply").await.unwrap();
    agent.shutdown().await.unwrap();
    assert_eq!(read_all(&mut console).await.unwrap(), b"reply");
}

#[tokio::test]
async fn bytes_before_the_pair_wait_in_the_kernel() {
    let relay = TestRelay::start(limits());
    let mut console = relay.join(session(1), Role::Console).await;
    let bytes = pattern(2, 64 * 1024);
    console.write_all(&bytes).await.unwrap();
    console.shutdown().await.unwrap();
    let mut agent = relay.join(session(1), Role::Agent).await;
    assert!(read_all(&mut agent).await.unwrap() == bytes);
}

#[tokio::test]
async fn reset_is_passed_on_and_never_looks_like_an_end() {
    for engine in engines() {
        let relay = TestRelay::with_engine(limits(), engine);
        let (mut console, mut agent) = relay.pair(session(1)).await;
        console.write_all(b"half a rec").await.unwrap();
        agent.read_exact(&mut [0; 10]).await.unwrap();
        socket2::SockRef::from(&console).set_linger(Some(Duration::ZERO)).unwrap();
        drop(console);
        let error = read_all(&mut agent).await.expect_err("a reset looked like an end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        relay.eventually("an end", |hub| hub.counts().pairs == 0).await;
    }
}

#[tokio::test]
async fn reset_is_noticed_while_the_other_end_does_not_read() {
    let relay = TestRelay::start(limits());
    let (console, mut agent) = relay.pair(session(1)).await;
    let full = timeout(Duration::from_millis(500), async {
        let chunk = [0; 65_536];
        loop {
            console.writable().await.unwrap();
            let _ = console.try_write(&chunk);
        }
    });
    assert!(full.await.is_err());
    socket2::SockRef::from(&console).set_linger(Some(Duration::ZERO)).unwrap();
    drop(console);
    relay.eventually("an end", |hub| hub.counts().pairs == 0).await;
    assert!(read_all(&mut agent).await.is_err());
}

#[tokio::test]
async fn idle_pair_is_reset_and_holds_no_pipe_before() {
    let idle = Duration::from_millis(600);
    let relay = TestRelay::start(Limits { idle, ..limits() });
    let (mut console, mut agent) = relay.pair(session(1)).await;
    for _ in 0..10 {
        // More than goes without a pipe.
        console.write_all(&[7; 16_384]).await.unwrap();
        agent.read_exact(&mut [0; 16_384]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        relay.hub.collect();
    }
    assert_eq!(relay.hub.counts().pairs, 1, "ended although bytes moved");
    #[cfg(target_os = "linux")]
    assert_eq!(relay.hub.pipes(), (1, 1), "an idle pair holds a pipe");
    assert!(read_all(&mut agent).await.is_err());
    assert!(read_all(&mut console).await.is_err());
}

#[tokio::test]
async fn stopping_resets_what_is_open() {
    let relay = TestRelay::start(limits());
    let (mut console, mut agent) = relay.pair(session(1)).await;
    relay.eventually("a pair", |hub| hub.counts().pairs == 1).await;
    assert!(relay.tasks.stop_within(Duration::from_secs(5)).await);
    assert!(read_all(&mut console).await.is_err());
    assert!(read_all(&mut agent).await.is_err());
}

#[tokio::test]
async fn joins_in_tls_pair_with_raw_ones_and_with_each_other() {
    let relay = TestRelay::start(limits());
    let console = tls_join(&relay, 1, Role::Console).await;
    exchange(console, relay.join(session(1), Role::Agent).await).await;
    let agent = tls_join(&relay, 2, Role::Agent).await;
    exchange(relay.join(session(2), Role::Console).await, agent).await;
    let agent = tls_join(&relay, 3, Role::Agent).await;
    exchange(tls_join(&relay, 3, Role::Console).await, agent).await;
}

#[tokio::test]
async fn tls_that_ends_without_closing_is_a_reset() {
    let relay = TestRelay::start(limits());
    let console = tls_join(&relay, 1, Role::Console).await;
    let mut agent = relay.join(session(1), Role::Agent).await;
    relay.eventually("a pair", |hub| hub.counts().pairs == 1).await;
    // TCP's end without TLS's close_notify (RFC 8446 §6.1).
    console.into_inner().0.shutdown().await.unwrap();
    assert!(read_all(&mut agent).await.is_err());
}

async fn tls_join(relay: &TestRelay, n: u32, role: Role) -> TlsStream<TcpStream> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&tokio_rustls::rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    let name = ServerName::try_from("relay.example").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let connecting = connector.connect(name, relay.connect().await);
    let mut stream = timeout(PATIENCE, connecting).await.unwrap().unwrap();
    let key = NoiseKeypair::generate().unwrap();
    let ticket = relay.ticket(session(n), role, &key).sign(&relay.ticket_key);
    relay.join_over(&mut stream, &key, &ticket, 0).await.unwrap();
    stream
}

/// Who the relay is, Noise proves inside.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("not tls 1.3".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
