//! What each end refuses (R01 to R04), over in-memory streams and loopback.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use adit_protocol::keys::{PublicKey, SigningKey};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::{
    ClientConfig, RootCertStore,
    client::AlwaysResolvesClientRawPublicKeys,
    crypto::{CryptoProvider, aws_lc_rs as lc},
    pki_types::ServerName,
    server::AlwaysResolvesServerRawPublicKeys,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::TlsConnector;

use super::*;

const DAY: u64 = 86_400_000;

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

fn hosts() -> Vec<String> {
    vec!["mediator.example".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()]
}

fn live(cert: IssuedCert) -> Arc<LiveCert> {
    LiveCert::new(cert.chain, cert.key).unwrap()
}

fn server_with(
    root: &SigningKey,
    from: u64,
    until: u64,
    usage: ExtendedKeyUsagePurpose,
) -> ServerTls {
    let cert = live(RootAuthority::new(root).unwrap().issue(&hosts(), from, until, usage).unwrap());
    ServerTls::new(cert.clone(), Some(cert)).unwrap()
}

fn server(root: &SigningKey) -> ServerTls {
    let now = now_ms();
    server_with(root, now - DAY, now + DAY, ExtendedKeyUsagePurpose::ServerAuth)
}

/// One connection; what the client and the server made of it.
async fn meet(
    server: &ServerTls,
    name: &str,
    trust: Trust,
    identity: &SigningKey,
) -> (Result<PeerInfo, TlsError>, Result<PublicKey, AcceptError>) {
    let (near, far) = duplex(64 * 1024);
    tokio::join!(
        async {
            let (mut stream, info) = connect_control(near, name, trust, identity).await?;
            stream.write_all(b"x").await.map_err(TlsError::Io)?;
            Ok(info)
        },
        async {
            match server.accept(far).await? {
                Accepted::Control { mut stream, peer } => {
                    stream.read_u8().await.map_err(AcceptError::Handshake)?;
                    Ok(peer)
                }
                Accepted::Web { .. } => panic!("control became web"),
            }
        }
    )
}

#[tokio::test]
async fn both_ends_learn_each_others_keys() {
    let (root, device) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    for name in ["mediator.example", "127.0.0.1", "::1"] {
        let trust = Trust::Root(root.public().fingerprint());
        let (client, server) = meet(&server(&root), name, trust, &device).await;
        assert_eq!(client.unwrap().root, Some(root.public()));
        assert_eq!(server.unwrap(), device.public());
    }
}

#[tokio::test]
async fn wrong_root_name_date_and_usage_are_refused_and_told_apart() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let (root, device) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let (pin, now) = (Trust::Root(root.public().fingerprint()), now_ms());
    let good = || server(&root);

    let other = Trust::Root(device.public().fingerprint());
    let (client, accepted) = meet(&good(), "mediator.example", other, &device).await;
    assert!(accepted.is_err());
    let presented = root.public().fingerprint();
    assert!(matches!(client, Err(TlsError::UnknownRoot { presented: p }) if p == presented));

    let (client, _) = meet(&good(), "mediator.example", Trust::Probe, &device).await;
    assert!(matches!(client, Err(TlsError::UnknownRoot { presented: p }) if p == presented));
    let (client, _) = meet(&good(), "other.example", Trust::Probe, &device).await;
    assert!(matches!(client, Err(TlsError::WrongName(_))), "{client:?}");

    let (client, _) = meet(&good(), "other.example", pin, &device).await;
    assert!(matches!(client, Err(TlsError::WrongName(_))), "{client:?}");
    let expired = server_with(&root, now - 2 * DAY, now - DAY, ServerAuth);
    let (client, _) = meet(&expired, "mediator.example", pin, &device).await;
    assert!(matches!(client, Err(TlsError::Expired)), "{client:?}");
    let early = server_with(&root, now + DAY, now + 2 * DAY, ServerAuth);
    let (client, _) = meet(&early, "mediator.example", pin, &device).await;
    assert!(matches!(client, Err(TlsError::NotYetValid)), "{client:?}");
    let wrong_usage = server_with(&root, now - DAY, now + DAY, ClientAuth);
    let (client, _) = meet(&wrong_usage, "mediator.example", pin, &device).await;
    assert!(matches!(client, Err(TlsError::WrongUsage)), "{client:?}");

    // The platform's store knows no installation.
    let (client, _) = meet(&good(), "mediator.example", Trust::WebPki, &device).await;
    assert!(matches!(client, Err(TlsError::Untrusted(_))), "{client:?}");
    assert!(client.unwrap_err().is_trust());
}

#[tokio::test]
async fn pinned_root_appended_to_a_foreign_leaf_is_refused() {
    let (root, thief) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let now = now_ms();
    let mut cert = RootAuthority::new(&thief)
        .unwrap()
        .issue_server_cert(&hosts(), now - DAY, now + DAY)
        .unwrap();
    *cert.chain.last_mut().unwrap() = RootAuthority::new(&root).unwrap().certificate().clone();
    let server = ServerTls::new(live(cert), None).unwrap();
    let trust = Trust::Root(root.public().fingerprint());
    let (client, _) = meet(&server, "mediator.example", trust, &thief).await;
    assert!(client.is_err_and(|e| e.is_trust()));
}

#[tokio::test]
async fn an_inspecting_proxy_without_our_key_exchange_is_told_from_a_mediator() {
    let cert = rcgen::generate_simple_self_signed(hosts()).unwrap();
    let key = PrivatePkcs8KeyDer::from(cert.signing_key.serialize_der());
    let provider = rustls::crypto::CryptoProvider {
        kx_groups: vec![rustls::crypto::aws_lc_rs::kx_group::X25519],
        ..rustls::crypto::aws_lc_rs::default_provider()
    };
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.cert.into()], PrivateKeyDer::Pkcs8(key))
        .unwrap();
    let proxy = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (near, far) = duplex(16_384);
    let (found, _) = tokio::join!(interceptor(near, "mediator.example"), proxy.accept(far));
    assert!(found.is_some_and(|issuer| issuer.contains("rcgen")));

    let root = SigningKey::generate().unwrap();
    let now = now_ms();
    let cert = RootAuthority::new(&root).unwrap();
    let cert = cert.issue_server_cert(&hosts(), now - DAY, now + DAY).unwrap();
    let mediator = ServerTls::new(live(cert), None).unwrap();
    let (near, far) = duplex(16_384);
    let look = interceptor(near, "mediator.example");
    let (found, _) = tokio::join!(look, mediator.accept(far));
    assert_eq!(found, None);
}

#[tokio::test]
async fn server_of_another_kind_is_called_intercepted_or_not_tls() {
    let device = SigningKey::generate().unwrap();
    let cert = rcgen::generate_simple_self_signed(hosts()).unwrap();
    let key = PrivatePkcs8KeyDer::from(cert.signing_key.serialize_der());
    let cert = LiveCert::new(vec![cert.cert.into()], PrivateKeyDer::Pkcs8(key)).unwrap();
    let server = ServerTls::new(cert, None).unwrap();
    let trust = Trust::Root(device.public().fingerprint());
    let (client, _) = meet(&server, "mediator.example", trust, &device).await;
    assert!(matches!(client, Err(TlsError::Intercepted { .. })), "{client:?}");

    let (near, mut far) = duplex(4096);
    let (client, _) = tokio::join!(connect_control(near, "a.example", trust, &device), async {
        far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        far.shutdown().await.unwrap();
    });
    assert!(matches!(client, Err(TlsError::NotTls)), "{:?}", client.err());
    let (near, far) = duplex(4096);
    drop(far);
    let client = connect_control(near, "a.example", trust, &device).await;
    let error = client.err().unwrap();
    assert!(matches!(error, TlsError::Io(_)) && !error.to_string().contains("://"), "{error}");
}

fn client_config(
    root: &SigningKey,
    provider: CryptoProvider,
    versions: &[&'static rustls::SupportedProtocolVersion],
    identity: Option<&SigningKey>,
    alpn: &[&[u8]],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(RootAuthority::new(root).unwrap().certificate().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(key) => config.with_client_cert_resolver(Arc::new(
            AlwaysResolvesClientRawPublicKeys::new(raw_public_key(key).unwrap()),
        )),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config
}

/// Another client's attempt; `true` if it got through on both ends.
async fn other_client(server: &ServerTls, config: ClientConfig) -> Option<Vec<u8>> {
    let (near, far) = duplex(64 * 1024);
    let name = ServerName::try_from("mediator.example").unwrap();
    let (client, accepted) = tokio::join!(
        async {
            let mut stream = TlsConnector::from(Arc::new(config)).connect(name, near).await?;
            stream.read_u8().await?;
            Ok::<_, io::Error>(stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec))
        },
        async {
            let (Accepted::Web { mut stream, .. } | Accepted::Control { mut stream, .. }) =
                server.accept(far).await?;
            stream.write_all(b"x").await.map_err(AcceptError::Handshake)?;
            stream.flush().await.map_err(AcceptError::Handshake)?;
            Ok::<_, AcceptError>(())
        }
    );
    assert_eq!(client.is_ok(), accepted.is_ok());
    client.ok().flatten()
}

#[tokio::test]
async fn other_suites_are_refused_on_both_protocols() {
    let (root, device) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let server = server(&root);
    let only = |suites: &[rustls::SupportedCipherSuite]| CryptoProvider {
        cipher_suites: suites.to_vec(),
        ..lc::default_provider()
    };
    for alpn in [&b"adit/1"[..], b"http/1.1"] {
        let id = (alpn == b"adit/1").then_some(&device);
        let try_with = |suite| {
            let tls13: &[_] = &[&rustls::version::TLS13];
            client_config(&root, only(&[suite]), tls13, id, &[alpn])
        };
        let strong = lc::cipher_suite::TLS13_AES_256_GCM_SHA384;
        assert_eq!(other_client(&server, try_with(strong)).await.as_deref(), Some(alpn));
        for weak in [
            lc::cipher_suite::TLS13_AES_128_GCM_SHA256,
            lc::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ] {
            assert_eq!(other_client(&server, try_with(weak)).await, None, "{weak:?}");
        }
    }
}

/// A `ClientHello` of TLS 1.2 (RFC 5246 §7.4.1.2) that offers ALPN and strong suites.
fn hello_of_tls12(alpn: &[u8]) -> Vec<u8> {
    let len16 =
        |body: &[u8]| [&u16::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat();
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &len16(body)].concat();
    let protocol = [&[u8::try_from(alpn.len()).unwrap()], alpn].concat();
    let extensions = [
        extension(10, &len16(&[0, 0x1d])),
        extension(11, &[1, 0]),
        extension(13, &len16(&[4, 3, 8, 4])),
        extension(16, &len16(&protocol)),
    ]
    .concat();
    let suites = len16(&[0xc0, 0x2c, 0xc0, 0x30]);
    let body = [&[3, 3][..], &[7; 32], &[0], &suites, &[1, 0], &len16(&extensions)].concat();
    let handshake = [&[1, 0][..], &len16(&body)].concat();
    [&[0x16, 3, 1][..], &len16(&handshake)].concat()
}

#[tokio::test]
async fn tls_1_2_is_refused_with_an_alert_on_both_protocols() {
    let server = server(&SigningKey::generate().unwrap());
    for alpn in [&b"adit/1"[..], b"http/1.1", b"h2"] {
        let (mut near, far) = duplex(4096);
        near.write_all(&hello_of_tls12(alpn)).await.unwrap();
        let error = server.accept(far).await.unwrap_err();
        assert!(matches!(error, AcceptError::Handshake(_)), "{error}");
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        // Fatal, protocol_version (RFC 8446 §6.2).
        assert_eq!(answer.get(..1), Some(&[0x15][..]), "{answer:?}");
        assert_eq!(answer.get(5..), Some(&[2, 70][..]), "{answer:?}");
    }
}

#[tokio::test]
async fn protocols_are_told_apart_and_strangers_refused() {
    let (root, device) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let server = server(&root);
    let tls13: &[_] = &[&rustls::version::TLS13];
    let config = |id, alpn: &[&[u8]]| client_config(&root, lc::default_provider(), tls13, id, alpn);
    let web = other_client(&server, config(None, &[b"h2", b"http/1.1"])).await;
    assert_eq!(web.as_deref(), Some(&b"h2"[..]));
    assert_eq!(other_client(&server, config(None, &[])).await, None);
    assert_eq!(other_client(&server, config(None, &[b"smtp"])).await, None);
    assert_eq!(other_client(&server, config(None, &[b"adit/1"])).await, None, "no client key");
    let control = other_client(&server, config(Some(&device), &[b"adit/1"])).await;
    assert_eq!(control.as_deref(), Some(&b"adit/1"[..]));
}

#[tokio::test]
async fn plain_http_and_dawdlers_get_nothing() {
    let root = SigningKey::generate().unwrap();
    let server = server(&root).with_deadline(Duration::from_millis(50));
    let (mut near, far) = duplex(4096);
    near.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(matches!(server.accept(far).await, Err(AcceptError::Handshake(_))));
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();
    assert!(answer.len() <= 7, "at most an alert: {answer:?}");
    let (_near, far) = duplex(4096);
    assert!(matches!(server.accept(far).await, Err(AcceptError::Timeout)));
}

#[tokio::test]
async fn certificate_is_replaced_while_serving_and_a_bad_one_changes_nothing() {
    let (root, device) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let (now, authority) = (now_ms(), RootAuthority::new(&root).unwrap());
    let issue =
        |host: &str| authority.issue_server_cert(&[host.to_owned()], now - DAY, now + DAY).unwrap();
    let cert = live(issue("one.example"));
    let server = ServerTls::new(cert.clone(), None).unwrap();
    let pin = Trust::Root(root.public().fingerprint());
    assert!(meet(&server, "one.example", pin, &device).await.0.is_ok());
    let (one, two) = (issue("one.example"), issue("two.example"));
    assert!(cert.replace(one.chain, two.key).is_err(), "key of another certificate");
    assert!(meet(&server, "one.example", pin, &device).await.0.is_ok());
    let two = issue("two.example");
    let (chain, key) =
        (read_pem_chain(two.chain_pem.as_bytes()), read_pem_key(two.key_pem.as_bytes()));
    cert.replace(chain.unwrap(), key.unwrap()).unwrap();
    assert!(meet(&server, "two.example", pin, &device).await.0.is_ok());
    assert!(meet(&server, "one.example", pin, &device).await.0.is_err());
}

#[test]
fn root_certificate_follows_from_the_key_alone() {
    let root = SigningKey::generate().unwrap();
    let one = RootAuthority::new(&root).unwrap().certificate().clone();
    assert_eq!(&one, RootAuthority::new(&root).unwrap().certificate());
    let authority = RootAuthority::new(&root).unwrap();
    for bad in [vec![], vec!["a b".to_owned()], vec!["*".repeat(300)], vec![String::new()]] {
        assert!(authority.issue_server_cert(&bad, 0, 1).is_err());
    }
}

fn quic_endpoint(server: Option<quinn::ServerConfig>) -> quinn::Endpoint {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let runtime = Arc::new(quinn::TokioRuntime);
    quinn::Endpoint::new(Default::default(), server, socket, runtime).unwrap()
}

/// Connects; what each end made of it. A client hears of a refusal only after the handshake.
async fn quic(
    client: quinn::ClientConfig,
    server: quinn::ServerConfig,
) -> (bool, Option<[u8; 32]>) {
    let (near, far) = (quic_endpoint(None), quic_endpoint(Some(server)));
    let to = far.local_addr().unwrap();
    tokio::join!(
        async {
            let Ok(connection) = near.connect_with(client, to, "adit").unwrap().await else {
                return false;
            };
            connection.accept_uni().await.is_ok()
        },
        async {
            let connection = far.accept().await?.await.ok()?;
            let mut stream = connection.open_uni().await.ok()?;
            stream.write_all(b"x").await.ok()?;
            stream.finish().ok()?;
            let _ = stream.stopped().await;
            peer_spki_sha256(&connection)
        }
    )
}

#[tokio::test]
async fn quic_ends_accept_only_the_keys_they_were_told() {
    let (console, agent) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let (console_hash, agent_hash) =
        (console.public().fingerprint().0, agent.public().fingerprint().0);
    let serve = |hash: [u8; 32]| {
        quic_server_config(&agent, Arc::new(move |h: &[u8; 32]| *h == hash)).unwrap()
    };
    let dial = |hash| quic_client_config(&console, hash).unwrap();
    assert_eq!(quic(dial(agent_hash), serve(console_hash)).await, (true, Some(console_hash)));
    assert_eq!(quic(dial(console_hash), serve(console_hash)).await, (false, None));
    let (client, peer) = quic(dial(agent_hash), serve(agent_hash)).await;
    assert!(!client && peer.is_none(), "unknown console");
}

#[tokio::test]
async fn quic_refuses_a_client_without_aes_256() {
    let (console, agent) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let server = quic_server_config(&agent, Arc::new(|_: &[u8; 32]| true)).unwrap();
    let weak = Arc::new(CryptoProvider {
        cipher_suites: vec![lc::cipher_suite::TLS13_AES_128_GCM_SHA256],
        ..lc::default_provider()
    });
    let mut config = ClientConfig::builder_with_provider(weak.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verify::RawKeyVerifier::new(&weak, Arc::new(|_| true)))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
            raw_public_key(&console).unwrap(),
        )));
    config.alpn_protocols = vec![adit_protocol::ALPN_DIRECT.to_vec()];
    let crypto = QuicClientConfig::try_from(config).unwrap();
    let (client, peer) = quic(quinn::ClientConfig::new(Arc::new(crypto)), server).await;
    assert!(!client && peer.is_none());
}

/// A client that would resume and send early data, were it given anything to do so with.
fn eager_client(key: &SigningKey) -> quinn::ClientConfig {
    let provider = provider();
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verify::RawKeyVerifier::new(
            &provider,
            Arc::new(|_| true),
        ))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
            raw_public_key(key).unwrap(),
        )));
    config.alpn_protocols = vec![adit_protocol::ALPN_DIRECT.to_vec()];
    config.enable_early_data = true;
    let crypto = QuicClientConfig::with_initial(Arc::new(config), initial_suite()).unwrap();
    quinn::ClientConfig::new(Arc::new(crypto))
}

/// A server that gives whoever comes what early data take.
fn generous_server(key: &SigningKey) -> quinn::ServerConfig {
    let provider = provider();
    let verifier = verify::RawKeyVerifier::new(&provider, Arc::new(|_| true));
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(
            raw_public_key(key).unwrap(),
        )));
    config.alpn_protocols = vec![adit_protocol::ALPN_DIRECT.to_vec()];
    config.max_early_data_size = u32::MAX;
    let crypto = QuicServerConfig::with_initial(Arc::new(config), initial_suite()).unwrap();
    quinn::ServerConfig::with_crypto(Arc::new(crypto))
}

fn initial_suite() -> rustls::quic::Suite {
    lc::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().unwrap().quic_suite().unwrap()
}

/// Whether the client could send early data at its second visit.
async fn early_at_the_second_visit(
    client: quinn::ClientConfig,
    server: quinn::ServerConfig,
) -> bool {
    let (near, far) = (quic_endpoint(None), quic_endpoint(Some(server)));
    let to = far.local_addr().unwrap();
    for visit in 0..2 {
        let connecting = near.connect_with(client.clone(), to, "adit.invalid").unwrap();
        let connecting = match connecting.into_0rtt() {
            Ok(_) => return visit > 0,
            Err(connecting) => connecting,
        };
        let accept = async { far.accept().await.unwrap().await.unwrap() };
        let (connected, accepted) = tokio::join!(connecting, accept);
        let connected = connected.unwrap();
        let mut stream = accepted.open_uni().await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.finish().unwrap();
        connected.accept_uni().await.unwrap().read_to_end(9).await.unwrap();
        // Tickets come with the first packets after the handshake.
        tokio::time::sleep(Duration::from_millis(100)).await;
        connected.close(0_u32.into(), b"");
    }
    false
}

#[tokio::test]
async fn quic_gives_nobody_what_early_data_take_and_does_not_use_it() {
    let (console, agent) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let (eager, generous) = (eager_client(&console), generous_server(&agent));
    assert!(early_at_the_second_visit(eager.clone(), generous.clone()).await, "nothing is shown");
    let ours = quic_server_config(&agent, Arc::new(|_: &[u8; 32]| true)).unwrap();
    assert!(!early_at_the_second_visit(eager, ours).await, "our server gives tickets");
    let ours = quic_client_config(&console, agent.public().fingerprint().0).unwrap();
    assert!(!early_at_the_second_visit(ours, generous).await, "our client keeps tickets");
}
