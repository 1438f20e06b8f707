//! TLS to a receiver: 1.3 only, its certificate checked against the configured authority or the
//! system's. Must never go on without a valid certificate.

use std::{path::Path, sync::Arc};

use adit_net::{
    proxy::Dialer,
    tls::{read_pem_chain, web_provider},
};
use rustls::{ClientConfig, RootCertStore, client::Resumption, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{CONNECT_TIMEOUT, ForwardError, admits};

/// Largest file with certificates.
const MAX_CA_BYTES: u64 = 1024 * 1024;

/// Connects to a receiver.
pub(super) async fn connect(
    dialer: &Dialer,
    (host, port): (&str, u16),
    ca: Option<&Path>,
    alpn: &[u8],
) -> Result<TlsStream<TcpStream>, ForwardError> {
    // Read each time: a renewed authority counts at once.
    let mut config = config(ca)?;
    if !alpn.is_empty() {
        config.alpn_protocols = vec![alpn.to_vec()];
    }
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| ForwardError::Tls(format!("\"{host}\" cannot stand in a certificate")))?;
    let dialed = dialer.dial_where(host, port, CONNECT_TIMEOUT, &admits).await?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, dialed.stream);
    tokio::time::timeout(CONNECT_TIMEOUT, handshake)
        .await
        .map_err(|_| ForwardError::Timeout)?
        .map_err(|error| ForwardError::Tls(error.to_string()))
}

fn config(ca: Option<&Path>) -> Result<ClientConfig, ForwardError> {
    let wrong = |error: rustls::Error| ForwardError::Tls(error.to_string());
    let provider = web_provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(wrong)?;
    let mut config = match ca {
        Some(path) => builder.with_root_certificates(roots(path)?).with_no_client_auth(),
        None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(
                rustls_platform_verifier::Verifier::new(provider).map_err(wrong)?,
            ))
            .with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn roots(path: &Path) -> Result<RootCertStore, ForwardError> {
    let bad = |what: String| ForwardError::File(format!("{}: {what}", path.display()));
    let pem = read_bounded(path, MAX_CA_BYTES)?;
    let mut roots = RootCertStore::empty();
    for cert in read_pem_chain(&pem).map_err(|error| bad(error.to_string()))? {
        roots.add(cert).map_err(|error| bad(error.to_string()))?;
    }
    Ok(roots)
}

/// A small file as a whole.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, ForwardError> {
    use std::io::Read as _;
    let bad = |what: String| ForwardError::File(format!("{}: {what}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| bad(error.to_string()))?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| bad(error.to_string()))?;
    if bytes.len() as u64 > limit {
        return Err(bad("it is too large".to_owned()));
    }
    Ok(bytes)
}
