//! TLS to servers of others: identity providers, collectors of logs.
//!
//! TLS 1.3 with AES-256-GCM, as everywhere, and a certificate of an authority that the caller
//! names. Never a client identity, never without checking the name.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, client::Resumption, pki_types::CertificateDer};
use tokio_rustls::TlsConnector;

use super::{TlsError, web_provider};

/// Whose certificates count.
#[derive(Clone, Debug)]
pub enum Authorities {
    /// Those of this computer's store, and these.
    SystemAnd(Vec<CertificateDer<'static>>),
    /// These alone.
    Only(Vec<CertificateDer<'static>>),
}

/// A connector for these protocols.
pub fn outgoing(authorities: Authorities, alpn: &[&[u8]]) -> Result<TlsConnector, TlsError> {
    let provider = web_provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?;
    let mut config = match authorities {
        Authorities::SystemAnd(further) => {
            let verifier =
                rustls_platform_verifier::Verifier::new_with_extra_roots(further, provider)
                    .map_err(TlsError::Config)?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
                .with_no_client_auth()
        }
        Authorities::Only(these) => {
            let mut roots = RootCertStore::empty();
            for authority in these {
                roots.add(authority).map_err(TlsError::Config)?;
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}
