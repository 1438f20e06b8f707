//! QUIC configurations of direct carriers: raw public keys both ways, AES-256 only.
//!
//! Each end accepts only keys whose hash came through the end-to-end handshake. The caller sets
//! transport parameters; endpoints must not grease the QUIC bit (RFC 9443 §3).

use std::sync::Arc;

use adit_protocol::{
    ALPN_DIRECT,
    keys::{KeyError, SigningKey, sha256},
};
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::{
    client::{AlwaysResolvesClientRawPublicKeys, Resumption},
    crypto::aws_lc_rs::cipher_suite,
    pki_types::CertificateDer,
    server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage},
};

use super::{provider, raw_public_key, verify::RawKeyVerifier};

/// Asked for each connecting console: is the key with this hash of a live session?
pub type AllowClient = Arc<dyn Fn(&[u8; 32]) -> bool + Send + Sync>;

/// Why a configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum QuicConfigError {
    /// Our own key cannot be used.
    #[error("session key cannot be used: {0}")]
    Key(#[from] KeyError),
    /// The TLS library refused.
    #[error("tls cannot be configured: {0}")]
    Tls(#[from] rustls::Error),
    /// The library lacks the suite of Initial packets.
    #[error("no initial cipher suite")]
    NoInitial(#[from] NoInitialCipherSuite),
}

/// Console: presents its per-session key, accepts the agent's by the hash from message 2.
pub fn quic_client_config(
    key: &SigningKey,
    server_spki_sha256: [u8; 32],
) -> Result<quinn::ClientConfig, QuicConfigError> {
    let provider = provider();
    let allow = Arc::new(move |key: adit_protocol::keys::PublicKey| {
        let hash = key.fingerprint().0;
        aws_lc_rs::constant_time::verify_slices_are_equal(&hash, &server_spki_sha256).is_ok()
    });
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(RawKeyVerifier::new(&provider, allow))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
            raw_public_key(key)?,
        )));
    config.alpn_protocols = vec![ALPN_DIRECT.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    let crypto = QuicClientConfig::with_initial(Arc::new(config), initial_suite()?)?;
    Ok(quinn::ClientConfig::new(Arc::new(crypto)))
}

/// Agent: presents its key, accepts the per-session keys that `allow` knows.
pub fn quic_server_config(
    key: &SigningKey,
    allow: AllowClient,
) -> Result<quinn::ServerConfig, QuicConfigError> {
    let provider = provider();
    let allow = Arc::new(move |key: adit_protocol::keys::PublicKey| allow(&key.fingerprint().0));
    let mut config = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(RawKeyVerifier::new(&provider, allow))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(raw_public_key(key)?)));
    config.alpn_protocols = vec![ALPN_DIRECT.to_vec()];
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    let crypto = QuicServerConfig::with_initial(Arc::new(config), initial_suite()?)?;
    Ok(quinn::ServerConfig::with_crypto(Arc::new(crypto)))
}

/// SHA-256 of the raw public key that the peer proved to hold.
pub fn peer_spki_sha256(connection: &quinn::Connection) -> Option<[u8; 32]> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    identity.first().map(|spki| sha256(spki))
}

/// Initial packets are AES-128 with keys from public bytes (RFC 9001 §5.2): no secret.
fn initial_suite() -> Result<rustls::quic::Suite, rustls::Error> {
    cipher_suite::TLS13_AES_128_GCM_SHA256
        .tls13()
        .and_then(|suite| suite.quic_suite())
        .ok_or_else(|| rustls::Error::General("no QUIC initial suite".to_owned()))
}
