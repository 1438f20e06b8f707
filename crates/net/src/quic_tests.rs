//! Two endpoints over loopback, with the keys a session would use.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    client::{
        AlwaysResolvesClientRawPublicKeys,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs as lc, verify_tls13_signature_with_raw_key},
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer,
        UnixTime,
    },
    server::AlwaysResolvesServerRawPublicKeys,
    sign::CertifiedKey,
};
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::*;
use crate::{
    stun::encode_binding_request,
    udp::{DemuxSocket, StunDatagram},
};

const SOON: Duration = Duration::from_secs(10);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![lc::cipher_suite::TLS13_AES_256_GCM_SHA384],
        ..lc::default_provider()
    })
}

fn initial_suite() -> rustls::quic::Suite {
    lc::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().unwrap().quic_suite().unwrap()
}

fn raw_key() -> Arc<CertifiedKey> {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    let key = provider().key_provider.load_private_key(der).unwrap();
    let spki = key.public_key().unwrap().to_vec();
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key))
}

#[derive(Debug)]
struct AnyKey;

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn server_config() -> ServerConfig {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(raw_key())));
    config.alpn_protocols = vec![b"test".to_vec()];
    let crypto = QuicServerConfig::with_initial(Arc::new(config), initial_suite()).unwrap();
    ServerConfig::with_crypto(Arc::new(crypto))
}

fn client_config() -> ClientConfig {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyKey))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(raw_key())));
    config.alpn_protocols = vec![b"test".to_vec()];
    let crypto = QuicClientConfig::with_initial(Arc::new(config), initial_suite()).unwrap();
    ClientConfig::new(Arc::new(crypto))
}

fn endpoint(server: bool) -> (QuicEndpoint, SocketAddr, mpsc::Receiver<StunDatagram>) {
    let (socket, stun) = DemuxSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr();
    (QuicEndpoint::new(socket, server.then(server_config)).unwrap(), addr, stun)
}

/// Echoes the first stream and the first datagram of the first connection, then waits for its
/// end and says how it ended.
async fn echo(server: Arc<QuicEndpoint>) -> quinn::ConnectionError {
    let connection = server.accept().await.unwrap().await.unwrap();
    let (mut send, mut receive) = connection.accept_bi().await.unwrap();
    let bytes = receive.read_to_end(64 * 1024 * 1024).await.unwrap();
    send.write_all(&bytes).await.unwrap();
    send.finish().unwrap();
    connection.send_datagram(connection.read_datagram().await.unwrap()).unwrap();
    connection.closed().await
}

#[tokio::test]
async fn admitted_endpoints_exchange_streams_and_datagrams_among_stun() {
    let ((server, server_addr, mut stun), (client, client_addr, _)) =
        (endpoint(true), endpoint(false));
    let (server, mut tasks) = (Arc::new(server), JoinSet::new());
    assert!(server.socket().admit(client_addr) && client.socket().admit(server_addr));
    tasks.spawn(echo(server));
    let work = async {
        let connection = client.dial(server_addr, client_config()).unwrap().await.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        let sent = vec![0x5A; 4 * 1024 * 1024];
        let write = async {
            for part in sent.chunks(64 * 1024) {
                send.write_all(part).await.unwrap();
                client.socket().send_stun(server_addr, &encode_binding_request([3; 12]));
            }
            send.finish().unwrap();
        };
        let (_, got) = tokio::join!(write, receive.read_to_end(64 * 1024 * 1024));
        assert!(got.unwrap() == sent);
        connection.send_datagram(Bytes::from_static(b"ping")).unwrap();
        assert_eq!(connection.read_datagram().await.unwrap(), "ping");
        assert_eq!(stun.recv().await.unwrap().from, client_addr);
    };
    timeout(SOON, work).await.expect("done in time");

    // Dropping the endpoint tells the peer at once, long before the idle timeout.
    let dropped = Instant::now();
    drop(client);
    let end = timeout(SOON, tasks.join_next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(end, quinn::ConnectionError::ApplicationClosed(_)), "{end}");
    assert!(dropped.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_first_flight_that_overtakes_admission_is_not_lost() {
    let ((server, server_addr, _s), (client, client_addr, _c)) = (endpoint(true), endpoint(false));
    client.socket().admit(server_addr);
    let connecting = client.dial(server_addr, client_config()).unwrap();
    // The flight is in the server's hands once a STUN message sent after it is.
    let mut stun = _s;
    let mut connecting = std::pin::pin!(connecting);
    let poll_once = timeout(Duration::from_millis(20), &mut connecting).await;
    assert!(poll_once.is_err(), "nobody is admitted yet");
    client.socket().send_stun(server_addr, &encode_binding_request([1; 12]));
    timeout(SOON, stun.recv()).await.unwrap().unwrap();
    let admitted = Instant::now();
    server.socket().admit(client_addr);
    let incoming = timeout(SOON, server.accept()).await.unwrap().unwrap();
    let (a, b) = tokio::join!(connecting, incoming.accept().unwrap());
    a.unwrap();
    b.unwrap();
    // A repetition would take at least the first probe timeout: three initial round trips.
    assert!(admitted.elapsed() < INITIAL_RTT * 2, "{:?}", admitted.elapsed());
}

/// Packets that make a bare endpoint answer.
fn provocations() -> Vec<Vec<u8>> {
    let mut unknown_version = vec![0; 1_200];
    unknown_version[..6].copy_from_slice(&[0xC0, 0x1A, 0x2A, 0x3A, 0x4A, 8]);
    unknown_version[14] = 8;
    let mut garbage_initial = unknown_version.clone();
    garbage_initial[1..5].copy_from_slice(&[0, 0, 0, 1]);
    // Looks like a packet of a connection that is gone: provokes a stateless reset.
    let short = vec![0x41; 100];
    let zeros = vec![0; 64];
    vec![unknown_version, garbage_initial, short, zeros]
}

/// Sends the provocations, then one STUN message; after it is received a marker is sent back.
/// Whatever was said to the provocations was said before the marker.
async fn answers(
    server: &QuicEndpoint,
    stun: &mut mpsc::Receiver<StunDatagram>,
    raw: &UdpSocket,
) -> usize {
    for packet in provocations() {
        raw.send_to(&packet, server.socket().local_addr()).await.unwrap();
    }
    raw.send_to(&encode_binding_request([1; 12]), server.socket().local_addr()).await.unwrap();
    let from = timeout(SOON, stun.recv()).await.unwrap().unwrap().from;
    tokio::task::yield_now().await;
    assert!(server.socket().send_stun(from, b"marker"));
    let mut buffer = [0; 2_000];
    let mut answers = 0;
    loop {
        let len = timeout(SOON, raw.recv(&mut buffer)).await.unwrap().unwrap();
        if &buffer[..len] == b"marker" {
            return answers;
        }
        answers += 1;
    }
}

#[tokio::test]
async fn says_nothing_to_strangers_and_something_to_the_admitted() {
    let (server, _, mut stun) = endpoint(true);
    let raw = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    assert_eq!(answers(&server, &mut stun, &raw).await, 0);
    // The provocations do provoke: otherwise the line above would prove nothing.
    server.socket().admit(raw.local_addr().unwrap());
    assert!(answers(&server, &mut stun, &raw).await > 0);
    server.socket().revoke(raw.local_addr().unwrap());
    assert_eq!(answers(&server, &mut stun, &raw).await, 0);
    assert!(server.socket().dropped().dark == 0, "held packets wait for eviction");
}

#[tokio::test]
async fn a_real_client_that_is_not_admitted_gets_no_handshake() {
    let (server, server_addr, _stun) = endpoint(true);
    let bare = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut config = client_config();
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(Duration::from_millis(400).try_into().unwrap()));
    config.transport_config(Arc::new(transport));
    let ended = timeout(SOON, bare.connect_with(config, server_addr, SERVER_NAME).unwrap()).await;
    assert!(matches!(ended.unwrap(), Err(quinn::ConnectionError::TimedOut)));
    assert_eq!(server.open_connections(), 0);
}

#[tokio::test]
async fn dialling_an_unchecked_address_is_refused() {
    let (client, ..) = endpoint(false);
    let stranger = "127.0.0.1:9".parse().unwrap();
    let refused = client.dial(stranger, client_config());
    assert!(matches!(refused, Err(DialError::NotAdmitted(_))));
}
