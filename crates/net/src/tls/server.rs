//! One TCP port for control connections and web pages, told apart by ALPN.
//!
//! Certificates can be replaced while connections are accepted. Nothing is said before the
//! handshake is complete, and a handshake that dawdles is dropped.

use std::{io, sync::Arc, time::Duration};

use adit_protocol::{ALPN_CONTROL, keys::PublicKey};
use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use super::{ALPN_HTTP, ALPN_PUBLIC, ALPN_ROOTED, provider, verify::RawKeyVerifier, web_provider};

/// ALPN of web clients (RFC 7301 registry).
const ALPN_WEB: [&[u8]; 2] = [b"h2", ALPN_HTTP];
/// Time for the whole handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Why a connection was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The client spoke something else than our TLS, or broke off.
    #[error("tls handshake failed: {0}")]
    Handshake(io::Error),
    /// The client took too long.
    #[error("tls handshake not complete within {} s", HANDSHAKE_DEADLINE.as_secs())]
    Timeout,
    /// The client offered no protocol that is spoken here.
    #[error("client offered no protocol that is spoken here")]
    NoProtocol,
    /// The client's raw public key is missing or of another kind.
    #[error("client presented no Ed25519 raw public key")]
    NoClientKey,
}

/// Why a server cannot present a certificate.
#[derive(Debug, thiserror::Error)]
#[error("certificate and key cannot be used: {0}")]
pub struct InvalidCert(rustls::Error);

/// A certificate that can be replaced while it is in use.
#[derive(Debug)]
pub struct LiveCert(ArcSwap<CertifiedKey>);

impl LiveCert {
    /// With its first certificate.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Arc<Self>, InvalidCert> {
        Ok(Arc::new(Self(ArcSwap::from(certified(chain, key)?))))
    }

    /// New handshakes present this from now on; on an error the old one stays.
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), InvalidCert> {
        self.0.store(certified(chain, key)?);
        Ok(())
    }
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, InvalidCert> {
    CertifiedKey::from_der(chain, key, &provider()).map(Arc::new).map_err(InvalidCert)
}

impl ResolvesServerCert for LiveCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// A connection whose handshake is complete.
#[derive(Debug)]
pub enum Accepted<S> {
    /// A device, by the key that it proved to hold.
    Control {
        /// The connection.
        stream: TlsStream<S>,
        /// The device's identity.
        peer: PublicKey,
    },
    /// A browser or an API client.
    Web {
        /// The connection.
        stream: TlsStream<S>,
        /// `h2` or `http/1.1`.
        alpn: Vec<u8>,
    },
}

/// Accepts TLS connections on one port.
#[derive(Clone)]
pub struct ServerTls {
    control: Arc<ServerConfig>,
    public: Option<Arc<ServerConfig>>,
    web: Option<Arc<ServerConfig>>,
    /// Web, with the certificate that ends in the root.
    rooted: Option<Arc<ServerConfig>>,
    deadline: Duration,
}

impl ServerTls {
    /// `control` must end in the root certificate; `web` may be another, or none to refuse
    /// web clients.
    pub fn new(control: Arc<LiveCert>, web: Option<Arc<LiveCert>>) -> Result<Self, rustls::Error> {
        let config = |cert: Arc<LiveCert>| {
            ServerConfig::builder_with_provider(web_provider())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .map(|c| c.with_no_client_auth().with_cert_resolver(cert))
                .map(|web| Arc::new(strict(web, &ALPN_WEB)))
        };
        let rooted = web.as_ref().map(|_| config(Arc::clone(&control))).transpose()?;
        let web = web.map(config);
        Ok(Self {
            control: control_config(control)?,
            public: None,
            web: web.transpose()?,
            rooted,
            deadline: HANDSHAKE_DEADLINE,
        })
    }

    /// Control clients that go by public authorities instead of the root are presented this: a
    /// chain of such an authority, with the root certificate at its end.
    pub fn with_public(mut self, public: Arc<LiveCert>) -> Result<Self, rustls::Error> {
        self.public = Some(control_config(public)?);
        Ok(self)
    }

    /// Another deadline than 10 s for the whole handshake.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Completes the handshake on a connection.
    pub async fn accept<S>(&self, io: S) -> Result<Accepted<S>, AcceptError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        tokio::time::timeout(self.deadline, self.handshake(io))
            .await
            .map_err(|_| AcceptError::Timeout)?
    }

    async fn handshake<S>(&self, io: S) -> Result<Accepted<S>, AcceptError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let start = LazyConfigAcceptor::new(Default::default(), io)
            .await
            .map_err(AcceptError::Handshake)?;
        let hello = start.client_hello();
        let offers = |wanted: &[&[u8]]| {
            hello.alpn().is_some_and(|mut offered| offered.any(|p| wanted.contains(&p)))
        };
        if offers(&[ALPN_CONTROL]) {
            let public = self.public.as_ref().filter(|_| offers(&[ALPN_PUBLIC]));
            let config = Arc::clone(public.unwrap_or(&self.control));
            let stream = start.into_stream(config).await.map_err(AcceptError::Handshake)?;
            let key = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
            let key = key.and_then(|spki| PublicKey::from_spki(spki).ok());
            let peer = key.ok_or(AcceptError::NoClientKey)?;
            return Ok(Accepted::Control { stream, peer });
        }
        let web = if offers(&[ALPN_ROOTED]) { &self.rooted } else { &self.web };
        let web = web.clone().filter(|_| offers(&ALPN_WEB)).ok_or(AcceptError::NoProtocol)?;
        let stream = start.into_stream(web).await.map_err(AcceptError::Handshake)?;
        let alpn = stream.get_ref().1.alpn_protocol().unwrap_or_default().to_vec();
        Ok(Accepted::Web { stream, alpn })
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls")
    }
}

fn control_config(cert: Arc<LiveCert>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = provider();
    // Any identity may connect: who it is decides the control connection's `Hello`.
    let any = RawKeyVerifier::new(&provider, Arc::new(|_| true));
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(any)
        .with_cert_resolver(cert);
    Ok(Arc::new(strict(config, &[ALPN_CONTROL])))
}

/// No tickets, no early data, no resumption: each connection proves its keys anew.
fn strict(mut config: ServerConfig, alpn: &[&[u8]]) -> ServerConfig {
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config
}
