//! TLS to a receiver: its certificate checked against the configured authority alone, or the
//! system's. Must never go on without a valid certificate.

use std::path::Path;

use adit_net::{
    proxy::Dialer,
    tls::{Authorities, outgoing, read_pem_chain},
};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{CONNECT_TIMEOUT, ForwardError, admits};

/// Largest file with certificates.
const MAX_CA_BYTES: u64 = 1024 * 1024;

/// Connects to a receiver.
pub(super) async fn connect(
    dialer: &Dialer,
    (host, port): (&str, u16),
    ca: Option<&Path>,
    alpn: &[&[u8]],
) -> Result<TlsStream<TcpStream>, ForwardError> {
    // Read each time: a renewed authority counts at once.
    let authorities = match ca {
        Some(path) => Authorities::Only(authorities(path)?),
        None => Authorities::SystemAnd(Vec::new()),
    };
    let tls = outgoing(authorities, alpn).map_err(|error| ForwardError::Tls(error.to_string()))?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| ForwardError::Tls(format!("\"{host}\" cannot stand in a certificate")))?;
    let dialed = dialer.dial_where(host, port, CONNECT_TIMEOUT, &admits).await?;
    tokio::time::timeout(CONNECT_TIMEOUT, tls.connect(name, dialed.stream))
        .await
        .map_err(|_| ForwardError::Timeout)?
        .map_err(|error| ForwardError::Tls(error.to_string()))
}

fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, ForwardError> {
    let pem = read_bounded(path, MAX_CA_BYTES)?;
    read_pem_chain(&pem).map_err(|error| ForwardError::File(format!("{}: {error}", path.display())))
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
