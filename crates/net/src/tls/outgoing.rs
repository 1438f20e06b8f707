//! TLS to servers of others: identity providers, collectors of logs.
//!
//! The system's authorities and those that an administrator adds; TLS 1.3 with AES-256-GCM, as
//! everywhere. Never a client identity, never without checking the name.

use std::sync::Arc;

use rustls::{ClientConfig, client::Resumption, pki_types::CertificateDer};
use tokio_rustls::TlsConnector;

use super::{TlsError, web_provider};

/// A connector for these protocols.
pub fn outgoing(
    further_roots: Vec<CertificateDer<'static>>,
    alpn: &[&[u8]],
) -> Result<TlsConnector, TlsError> {
    let provider = web_provider();
    let verifier =
        rustls_platform_verifier::Verifier::new_with_extra_roots(further_roots, provider.clone())
            .map_err(TlsError::Config)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}
