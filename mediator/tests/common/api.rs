//! A small client of the HTTPS API: HTTP/1.1 with proofs of possession, as a script would do it.

use adit_net::{
    identity::DeviceIdentity,
    tls::{Trust, connect_web},
};
use adit_protocol::{
    dpop::{Claims, base64url, prove},
    keys::{Fingerprint, SigningKey, random},
    wire::{self, frame::Body},
};
use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Mediator;

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or("")
    }
}

/// A connection, with or without somebody.
pub struct Web {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    nonce: String,
    _tasks: JoinSet<()>,
}

/// Who asks: a token, and the key that it is bound to.
pub struct Who {
    pub token: String,
    pub key: SigningKey,
}

impl Who {
    /// Whoever is logged in on a console.
    pub async fn at(device: &super::Device, me: &DeviceIdentity) -> Self {
        let token = match device.ask(Body::ApiTokenRequest(wire::ApiTokenRequest {})).await {
            Ok(Body::ApiToken(told)) => told.token,
            other => panic!("{other:?}"),
        };
        Self { token, key: SigningKey::from_seed(&me.signing.seed()[..]).unwrap() }
    }
}

pub fn now_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

impl Web {
    pub async fn connect(mediator: &Mediator) -> Self {
        Self::connect_from(mediator, "127.0.0.1").await
    }

    /// Takes next to nothing of an answer that is not read.
    pub async fn connect_narrow(mediator: &Mediator) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4 * 1024).unwrap();
        // The sender's buffer is a number of segments, and those of a loopback are large.
        socket2::SockRef::from(&socket).set_tcp_mss(536).unwrap();
        Self::over(mediator, socket, "127.0.0.1").await
    }

    /// From another of the machine's own addresses.
    pub async fn connect_from(mediator: &Mediator, source: &str) -> Self {
        Self::over(mediator, tokio::net::TcpSocket::new_v4().unwrap(), source).await
    }

    async fn over(mediator: &Mediator, socket: tokio::net::TcpSocket, source: &str) -> Self {
        socket.bind(std::net::SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
        let tcp = socket.connect(([127, 0, 0, 1], mediator.port).into()).await.unwrap();
        let root: Fingerprint = mediator.fingerprint.parse().unwrap();
        let tls = connect_web(tcp, "127.0.0.1", Trust::Root(root)).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _ = connection.await;
        });
        let host = format!("127.0.0.1:{}", mediator.port);
        let mut web = Self { sender, host, nonce: String::new(), _tasks: tasks };
        web.send("GET", "/api/v1/openapi.json", &[], None).await;
        web
    }

    /// One request as it is; remembers the nonce of the answer.
    pub async fn send(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, String)],
        body: Option<&str>,
    ) -> Answer {
        let (parts, body) = self.begin(method, target, headers, body).await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// The same, without reading what is answered.
    pub async fn begin(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, String)],
        body: Option<&str>,
    ) -> hyper::Response<hyper::body::Incoming> {
        let mut request = Request::builder().method(method).uri(target).header("host", &self.host);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if body.is_some() && headers.iter().all(|(name, _)| *name != "content-type") {
            request = request.header("content-type", "application/json");
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default().to_owned()));
        self.sender.ready().await.unwrap();
        let answer = self.sender.send_request(request.body(body).unwrap()).await.unwrap();
        if let Some(nonce) = answer.headers().get("dpop-nonce") {
            self.nonce = nonce.to_str().unwrap().to_owned();
        }
        answer
    }

    /// A proof for a request.
    pub fn proof(&self, who: &Who, method: &str, target: &str) -> String {
        let path = target.split('?').next().unwrap();
        prove(
            &who.key,
            &Claims {
                method,
                url: &format!("https://{}{path}", self.host),
                token: &who.token,
                nonce: &self.nonce,
                id: random().unwrap(),
                issued_s: now_s(),
            },
        )
    }

    /// One request by somebody; waits when it is told to.
    pub async fn ask(
        &mut self,
        who: &Who,
        method: &str,
        target: &str,
        body: Option<&Value>,
    ) -> Answer {
        self.ask_with(who, method, target, body, &[]).await
    }

    pub async fn ask_with(
        &mut self,
        who: &Who,
        method: &str,
        target: &str,
        body: Option<&Value>,
        more: &[(&str, String)],
    ) -> Answer {
        let text = body.map(ToString::to_string);
        loop {
            let mut headers = vec![
                ("authorization", format!("DPoP {}", who.token)),
                ("dpop", self.proof(who, method, target)),
            ];
            headers.extend_from_slice(more);
            let answer = self.send(method, target, &headers, text.as_deref()).await;
            match answer.headers.get("retry-after") {
                Some(wait) if answer.status == 429 => {
                    let wait = wait.to_str().unwrap().parse().unwrap();
                    tokio::time::sleep(std::time::Duration::from_secs(wait)).await;
                }
                _ if answer.status == 401 && nonce_asked(&answer) => {}
                _ => return answer,
            }
        }
    }
}

fn nonce_asked(answer: &Answer) -> bool {
    let challenge = answer.headers.get("www-authenticate").and_then(|value| value.to_str().ok());
    challenge.is_some_and(|challenge| challenge.contains("use_dpop_nonce"))
}

/// A fresh key pair and the text that registers it.
pub fn key_pair() -> (SigningKey, String) {
    let key = SigningKey::generate().unwrap();
    let text = base64url(&key.public().0);
    (key, text)
}

/// Registers an API key as somebody who may.
pub async fn register(web: &mut Web, by: &Who, name: &str, role: &str, scope: &Value) -> Who {
    let (key, public_key) = key_pair();
    let wish = json!({"name": name, "public_key": public_key, "role": role, "scope": scope});
    let made = web.ask(by, "POST", "/api/v1/api-keys", Some(&wish)).await;
    assert_eq!(made.status, 200, "{made:?}");
    Who { token: made.body["token"].as_str().unwrap().to_owned(), key }
}
