//! The client of the control connection: whom it trusts, and what went wrong in words.
//!
//! A bad certificate is never retried with less checking.

use std::{io, sync::Arc};

use adit_protocol::{
    ALPN_CONTROL,
    keys::{Fingerprint, KeyError, PublicKey, SigningKey},
};
use rustls::{
    AlertDescription, CertificateError, ClientConfig,
    client::{AlwaysResolvesClientRawPublicKeys, Resumption},
    crypto::CryptoProvider,
    pki_types::ServerName,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    ALPN_HTTP, ALPN_PUBLIC, ALPN_ROOTED, provider, raw_public_key,
    verify::{Accept, ChainVerifier, Presented},
};

/// Whom a client believes to be the mediator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The installation with this root key.
    Root(Fingerprint),
    /// Whoever the platform's certificate store accepts for the name.
    WebPki,
    /// Nobody: the error tells which root was presented.
    Probe,
}

/// What the handshake showed about the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// The root key at the end of the server's chain. With [`Trust::Root`] it is the pinned one;
    /// with [`Trust::WebPki`] it is what the holder of the WebPKI certificate says it is.
    pub root: Option<PublicKey>,
}

/// Why a control connection was not established.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The server is of another installation than the pinned one, or none is pinned.
    #[error("server has the root key {presented}, which is not the trusted one")]
    UnknownRoot {
        /// Fingerprint of the root key it presented.
        presented: Fingerprint,
    },
    /// The chain does not end in an installation's root.
    #[error(
        "server presents a certificate of {issuer}, not of an installation: another server \
         answers there, or something on the way intercepts tls"
    )]
    Intercepted {
        /// Who issued it, in quotes, or that it does not say.
        issuer: String,
    },
    /// The platform's store does not know the issuer.
    #[error("server certificate is not trusted by this computer: {0}")]
    Untrusted(String),
    /// The certificate is for other names.
    #[error("server certificate is not for \"{0}\"")]
    WrongName(String),
    /// The certificate's time is over.
    #[error("server certificate expired: renew it, or correct this computer's clock")]
    Expired,
    /// The certificate's time has not come.
    #[error("server certificate is not valid yet: correct this computer's clock")]
    NotYetValid,
    /// The certificate is not for servers.
    #[error("server certificate is not for servers")]
    WrongUsage,
    /// The server speaks TLS, but not ours.
    #[error("server does not speak the control protocol: {0}")]
    Incompatible(String),
    /// The server speaks something else.
    #[error("server does not speak tls")]
    NotTls,
    /// Not a name that a certificate can have.
    #[error("\"{0}\" is neither a dns name nor an ip address")]
    InvalidName(String),
    /// The connection broke.
    #[error("connection broke during the tls handshake: {0}")]
    Io(io::Error),
    /// Our own key cannot be used.
    #[error("device key cannot be used: {0}")]
    Key(#[from] KeyError),
    /// The TLS library refused our own configuration.
    #[error("tls cannot be configured: {0}")]
    Config(rustls::Error),
}

impl TlsError {
    /// Does it look like a handshake that found no common ground, or was cut?
    pub fn may_be_interception(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Incompatible(_))
    }

    /// Is it about whom we talk to (and not about the network)?
    pub fn is_trust(&self) -> bool {
        matches!(
            self,
            Self::UnknownRoot { .. }
                | Self::Intercepted { .. }
                | Self::Untrusted(_)
                | Self::WrongName(_)
                | Self::WrongUsage
                | Self::Expired
                | Self::NotYetValid
        )
    }
}

/// Opens TLS for a control connection: the server proves itself by its chain, we prove
/// `identity` by a raw public key. The caller sets the deadline.
pub async fn connect_control<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    server_name: &str,
    trust: Trust,
    identity: &SigningKey,
) -> Result<(TlsStream<S>, PeerInfo), TlsError> {
    let Verified { name, provider, verifier } = Verified::new(server_name, trust)?;
    let own = raw_public_key(identity)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(own)));
    config.alpn_protocols = vec![ALPN_CONTROL.to_vec()];
    if trust == Trust::WebPki {
        config.alpn_protocols.push(ALPN_PUBLIC.to_vec());
    }
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;

    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, io)
        .await
        .map_err(|e| explain(e, server_name, trust, &verifier))?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN_CONTROL) {
        return Err(TlsError::Incompatible("it chose another protocol".to_owned()));
    }
    let root = match verifier.presented() {
        Some(Presented::Root(root)) => Some(root),
        _ => None,
    };
    Ok((stream, PeerInfo { root }))
}

/// What a connection to the mediator is verified by.
struct Verified {
    name: ServerName<'static>,
    provider: Arc<CryptoProvider>,
    verifier: Arc<ChainVerifier>,
}

impl Verified {
    fn new(server_name: &str, trust: Trust) -> Result<Self, TlsError> {
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|_| TlsError::InvalidName(server_name.to_owned()))?;
        let provider = provider();
        let accept = match trust {
            Trust::Root(fingerprint) => Accept::Root(fingerprint),
            Trust::Probe => Accept::Nothing,
            Trust::WebPki => Accept::WebPki(Arc::new(
                rustls_platform_verifier::Verifier::new(provider.clone())
                    .map_err(TlsError::Config)?,
            )),
        };
        let verifier = ChainVerifier::new(accept, provider.clone());
        Ok(Self { name, provider, verifier })
    }
}

/// Opens TLS for the HTTPS API (HTTP/1.1), to whom a control connection would be opened. The
/// caller sets the deadline.
pub async fn connect_web<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    server_name: &str,
    trust: Trust,
) -> Result<TlsStream<S>, TlsError> {
    let Verified { name, provider, verifier } = Verified::new(server_name, trust)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_HTTP.to_vec()];
    if trust != Trust::WebPki {
        config.alpn_protocols.push(ALPN_ROOTED.to_vec());
    }
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, io)
        .await
        .map_err(|e| explain(e, server_name, trust, &verifier))?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN_HTTP) {
        return Err(TlsError::Incompatible("it chose another protocol".to_owned()));
    }
    Ok(stream)
}

/// The library's text for a cut is a link to its documentation.
fn plain(error: io::Error) -> io::Error {
    match error.kind() {
        kind @ io::ErrorKind::UnexpectedEof => io::Error::new(kind, "the other side closed it"),
        _ => error,
    }
}

/// One place that turns what TLS says into what a person can act on.
fn explain(error: io::Error, name: &str, trust: Trust, verifier: &ChainVerifier) -> TlsError {
    use CertificateError as C;
    let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) else {
        return TlsError::Io(plain(error));
    };
    match tls {
        rustls::Error::InvalidCertificate(reason) => match (reason, verifier.presented()) {
            (C::UnknownIssuer, Some(Presented::Root(root))) if trust != Trust::WebPki => {
                TlsError::UnknownRoot { presented: root.fingerprint() }
            }
            (C::UnknownIssuer, Some(Presented::Foreign)) if trust != Trust::WebPki => {
                TlsError::Intercepted { issuer: verifier.issuer() }
            }
            (C::NotValidForName | C::NotValidForNameContext { .. }, _) => {
                TlsError::WrongName(name.to_owned())
            }
            (C::Expired | C::ExpiredContext { .. }, _) => TlsError::Expired,
            (C::NotValidYet | C::NotValidYetContext { .. }, _) => TlsError::NotYetValid,
            (C::InvalidPurpose | C::InvalidPurposeContext { .. }, _) => TlsError::WrongUsage,
            (reason, _) => TlsError::Untrusted(reason.to_string()),
        },
        rustls::Error::InvalidMessage(_) => TlsError::NotTls,
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::NoApplicationProtocol
            | AlertDescription::ProtocolVersion
            | AlertDescription::HandshakeFailure),
        ) => TlsError::Incompatible(format!("{alert:?}")),
        other => TlsError::Incompatible(other.to_string()),
    }
}
