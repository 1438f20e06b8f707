//! Finding out why a control connection's TLS fails: whether somebody on the way ends it.
//!
//! Inspecting proxies rarely speak the hybrid key exchange, so that they fail before they show a
//! certificate, like a connection that broke. Asked with ordinary key exchanges they show theirs,
//! while a mediator, which has none to offer then, shows nothing. Must never carry a byte of
//! anything: no handshake of this ends well.

use std::sync::Arc;

use adit_protocol::ALPN_CONTROL;
use rustls::{ClientConfig, client::Resumption, crypto::aws_lc_rs as lc, pki_types::ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::verify::{Accept, ChainVerifier, Presented};

/// Whether a certificate is shown that belongs to no installation, and who issued it: in quotes,
/// or that it does not say. The caller sets the deadline.
pub async fn interceptor<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    server_name: &str,
) -> Option<String> {
    let name = ServerName::try_from(server_name.to_owned()).ok()?;
    let provider = Arc::new(lc::default_provider());
    // Refuses whatever is shown, and remembers it.
    let verifier = ChainVerifier::new(Accept::Nothing, provider.clone());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13]);
    let mut config = builder
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_CONTROL.to_vec()];
    config.resumption = Resumption::disabled();
    let refused = TlsConnector::from(Arc::new(config)).connect(name, io).await.is_err();
    let foreign = refused && verifier.presented() == Some(Presented::Foreign);
    foreign.then(|| verifier.issuer())
}
