//! An identity provider that describes itself and lets nobody in: what browsers that were sent to
//! one bring back to the mediator is all that a test needs.

use std::{path::PathBuf, sync::Arc};

use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::{TlsAcceptor, rustls};

use super::Mediator;

/// It, while this lives.
pub struct Provider {
    pub issuer: String,
    ca: PathBuf,
    _dir: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl Provider {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, made.cert.pem()).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder_with_provider(adit_net::tls::web_provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("https://{}", listener.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        let own = issuer.clone();
        tasks.spawn(async move {
            let mut visitors = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, own) = (acceptor.clone(), own.clone());
                visitors.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let answer = service_fn(|request: Request<Incoming>| {
                        let answer = answer(&own, request.uri().path());
                        async { Ok::<_, std::convert::Infallible>(answer) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer)
                        .await;
                });
            }
        });
        Self { issuer, ca, _dir: dir, _tasks: tasks }
    }

    /// Adds it to a mediator; its id there.
    pub fn add_to(&self, mediator: &Mediator, name: &str) -> String {
        let ca = self.ca.to_str().unwrap();
        let add = ["oidc", "add", name, "--issuer", &self.issuer, "--client-id", "adit"];
        let added = mediator.admin(&[&add[..], &["--ca-file", ca]].concat());
        added[0]["id"].as_str().unwrap().to_owned()
    }
}

fn answer(issuer: &str, path: &str) -> Response<Full<Bytes>> {
    let told = match path {
        "/.well-known/openid-configuration" => json!({
            "issuer": issuer,
            "authorization_endpoint": format!("{issuer}/authorize"),
            "token_endpoint": format!("{issuer}/token"),
            "jwks_uri": format!("{issuer}/keys"),
        }),
        "/keys" => json!({"keys": []}),
        // No code is good.
        _ => json!({"error": "invalid_grant"}),
    };
    Response::new(Full::new(Bytes::from(told.to_string())))
}
