//! TLS of every TCP port, and of QUIC carriers: one suite, one hybrid key exchange.
//!
//! - [`RootAuthority`]: the installation's root certificate, and the mediator's below it
//! - [`ServerTls`]: one port, told apart by ALPN
//! - [`connect_control`]: the client of the control connection
//! - [`quic_client_config`], [`quic_server_config`]: direct carriers with raw public keys
//! - [`connect_web`]: the client of the HTTPS API
//! - [`connect_cover`]: TLS around a relay join, which protects nothing
//!
//! Never falls back: no older version, no other suite, no resumption, no early data, no
//! certificate that is accepted "this once".

mod authority;
mod client;
mod cover;
mod direct;
mod inspect;
mod issuer;
mod outgoing;
mod server;
#[cfg(test)]
mod tests;
mod verify;

use std::sync::Arc;

use adit_protocol::keys::{KeyError, SigningKey};
use rustls::{
    crypto::{CryptoProvider, aws_lc_rs as lc},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};

pub use authority::{AuthorityError, IssuedCert, RootAuthority, read_pem_chain, read_pem_key};
pub use client::{PeerInfo, TlsError, Trust, connect_control, connect_web};
pub use cover::connect_cover;
pub use direct::{
    AllowClient, QuicConfigError, peer_spki_sha256, quic_client_config, quic_server_config,
};
pub use inspect::interceptor;
pub use outgoing::{Authorities, outgoing};
pub use server::{AcceptError, Accepted, InvalidCert, LiveCert, ServerTls};

/// Offered besides the control protocol by clients that go by public authorities: asks for the
/// certificate of one. Never chosen, so that both kinds of clients speak the same protocol.
const ALPN_PUBLIC: &[u8] = b"adit/public";
/// Offered besides `http/1.1` by web clients that go by the installation's root: asks for the
/// certificate below it. Never chosen.
const ALPN_ROOTED: &[u8] = b"adit/rooted";
/// HTTP/1.1.
const ALPN_HTTP: &[u8] = b"http/1.1";

/// Only `TLS13_AES_256_GCM_SHA384`, only X25519MLKEM768: control connections and carriers.
pub fn provider() -> Arc<CryptoProvider> {
    with_groups(vec![lc::kx_group::X25519MLKEM768])
}

/// The same suite, for web clients that do not speak the hybrid exchange yet.
pub fn web_provider() -> Arc<CryptoProvider> {
    with_groups(vec![lc::kx_group::X25519MLKEM768, lc::kx_group::X25519])
}

fn with_groups(
    kx_groups: Vec<&'static dyn rustls::crypto::SupportedKxGroup>,
) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![lc::cipher_suite::TLS13_AES_256_GCM_SHA384],
        kx_groups,
        ..lc::default_provider()
    })
}

/// A key as TLS presents it without a certificate (RFC 7250).
fn raw_public_key(key: &SigningKey) -> Result<Arc<CertifiedKey>, KeyError> {
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_pkcs8().to_vec()));
    let signer = lc::sign::any_eddsa_type(match &der {
        PrivateKeyDer::Pkcs8(key) => key,
        _ => return Err(KeyError::InvalidKey),
    })
    .map_err(|_| KeyError::InvalidKey)?;
    let spki = CertificateDer::from(key.public().to_spki().to_vec());
    Ok(Arc::new(CertifiedKey::new(vec![spki], signer)))
}
