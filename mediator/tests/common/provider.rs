//! An identity provider that describes itself and lets nobody in: what browsers that were sent to
//! one bring back to the mediator is all that a test needs.

use std::path::PathBuf;

use super::{Mediator, web_tls};
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};

/// It, while this lives.
pub struct Provider {
    pub issuer: String,
    pub ca: PathBuf,
    _dir: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl Provider {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        let acceptor = web_tls(&ca);
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
