//! The HTTPS API of the mediator, as whoever is logged in: a short-lived token from the control
//! connection, and with each request a proof by this console's identity (RFC 9449).
//!
//! Goes the console's one way out and trusts whom it trusts. Must never send the token to
//! anybody else.

use std::time::{Duration, Instant};

use adit_net::{proxy::Dialer, tls::connect_web};
use adit_protocol::{
    code::failure::BAD_REQUEST,
    dpop::{Claims, base64url, prove},
    keys::random,
    wire::{self, frame::Body},
};
use adit_runtime::cli::{CliError, VERSION};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header::{self, HeaderName},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::{config::Context, failure, link::Caller};

/// Time to reach the mediator.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for an answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// Bytes of an answer that tells of a failure.
const MAX_PROBLEM: usize = 64 * 1024;
/// Bytes of an answer.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// Times that a nonce, or a moment to wait, is taken up before giving up.
const MAX_TRIES: usize = 4;
/// Longest wait that the mediator may ask for.
const MAX_WAIT: Duration = Duration::from_secs(10);
static DPOP: HeaderName = HeaderName::from_static("dpop");
static DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// Method.
    pub method: Method,
    /// Path and query, encoded.
    pub target: String,
    /// JSON.
    pub body: Option<Value>,
}

/// A connection to the API.
pub struct Api {
    caller: Caller,
    dialer: Dialer,
    sender: Option<SendRequest<Full<Bytes>>>,
    token: Zeroizing<String>,
    nonce: String,
    /// The mediator's time when the token came, and when that was here.
    told: (u64, Instant),
    tasks: JoinSet<()>,
}

impl Api {
    /// As whoever is logged in.
    pub async fn open(context: &Context) -> Result<Self, CliError> {
        let caller = Caller::load(context)?;
        let wish = Body::ApiTokenRequest(wire::ApiTokenRequest {});
        let mut online = caller.connect(vec![wish]).await?;
        let answer = online.first_reply().map_err(|error| caller.explain(error))?;
        let Body::ApiToken(told) = answer else { return Err(failure::unexpected()) };
        Ok(Self {
            dialer: caller.dialer(),
            caller,
            sender: None,
            token: Zeroizing::new(told.token),
            nonce: String::new(),
            told: (told.now_ms, Instant::now()),
            tasks: JoinSet::new(),
        })
    }

    /// Asks; gives what is answered, or its failure.
    pub async fn ask(&mut self, ask: &Ask) -> Result<Value, CliError> {
        let whole = async {
            let body = self.begin(ask).await?;
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            Ok::<_, CliError>(body.map_err(|error| broken(&error))?.to_bytes())
        };
        let body = tokio::time::timeout(ANSWER_TIMEOUT, whole).await;
        let body = body.map_err(|_| broken(&"no answer in time"))??;
        serde_json::from_slice(&body).map_err(|_| failure::unexpected())
    }

    /// Asks for what may be large, and passes it on as it comes. An error after some of it means
    /// that the rest is missing. `patience`: how long nothing may come.
    pub async fn download(
        &mut self,
        ask: &Ask,
        patience: Duration,
        mut sink: impl FnMut(&[u8]) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let begun = tokio::time::timeout(ANSWER_TIMEOUT, self.begin(ask)).await;
        let mut body = begun.map_err(|_| broken(&"no answer in time"))??;
        loop {
            let piece = tokio::time::timeout(patience, body.frame()).await;
            match piece.map_err(|_| broken(&"no answer in time"))? {
                None => return Ok(()),
                Some(frame) => {
                    let frame = frame.map_err(|error| broken(&error))?;
                    if let Some(data) = frame.data_ref() {
                        sink(data)?;
                    }
                }
            }
        }
    }

    /// Asks until it is answered with success.
    async fn begin(&mut self, ask: &Ask) -> Result<Incoming, CliError> {
        // The same through all tries: it is done once.
        let once = (ask.method == Method::POST).then(fresh_id).transpose()?;
        for _ in 0..MAX_TRIES {
            let (status, headers, body) = self.send(ask, once.as_deref()).await?;
            let header = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
            if let Some(nonce) = header(&DPOP_NONCE) {
                self.nonce = nonce.to_owned();
            }
            if status.is_success() {
                return Ok(body);
            }
            // Read to its end, also where it is not needed: the connection can be used again.
            let body = Limited::new(body, MAX_PROBLEM).collect().await;
            let body = body.map_err(|error| broken(&error))?.to_bytes();
            let challenge = header(&header::WWW_AUTHENTICATE).unwrap_or_default();
            if status == StatusCode::UNAUTHORIZED && challenge.contains("use_dpop_nonce") {
                continue;
            }
            let wait = header(&header::RETRY_AFTER).and_then(|wait| wait.parse().ok());
            let wait = wait.map(Duration::from_secs).filter(|wait| *wait <= MAX_WAIT);
            if let Some(wait) = wait.filter(|_| status == StatusCode::TOO_MANY_REQUESTS) {
                tokio::time::sleep(wait).await;
                continue;
            }
            return Err(self.caller.explain(failed(status, &body)));
        }
        Err(CliError::failed("busy", "the mediator asks to wait again and again")
            .hint("try again in a moment"))
    }

    async fn send(
        &mut self,
        ask: &Ask,
        once: Option<&str>,
    ) -> Result<(StatusCode, hyper::HeaderMap, Incoming), CliError> {
        let address = self.caller.account.address();
        let path = ask.target.split('?').next().unwrap_or_default();
        let elapsed = u64::try_from(self.told.1.elapsed().as_millis()).unwrap_or(0);
        let proof = prove(
            &self.caller.identity().signing,
            &Claims {
                method: ask.method.as_str(),
                url: &format!("https://{address}{path}"),
                token: &self.token,
                nonce: &self.nonce,
                id: random().map_err(|_| no_randomness())?,
                // The mediator's time: this computer's clock may be off.
                issued_s: self.told.0.saturating_add(elapsed) / 1_000,
            },
        );
        let authorization = Zeroizing::new(format!("DPoP {}", self.token.as_str()));
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(&ask.target)
            .header(header::HOST, &address)
            .header(header::USER_AGENT, format!("console-tunnel/{VERSION}"))
            .header(header::AUTHORIZATION, authorization.as_str())
            .header(&DPOP, proof);
        if let Some(once) = once {
            request = request.header(&IDEMPOTENCY_KEY, once);
        }
        if ask.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = ask.body.as_ref().map(ToString::to_string).unwrap_or_default();
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| CliError::usage("usage", format!("not a request: {error}")))?;
        let sender = self.sender().await?;
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let (parts, body) = answer.into_parts();
        Ok((parts.status, parts.headers, body))
    }

    /// The connection, made anew when the last one has ended.
    async fn sender(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, CliError> {
        let ready = match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !ready {
            let account = &self.caller.account;
            let dialed = self.dialer.dial(&account.host, account.port, CONNECT_TIMEOUT).await;
            let dialed = dialed.map_err(|error| failure::dial(&error, error.to_string()))?;
            let tls = connect_web(dialed.stream, &account.host, account.trust.into()).await;
            let tls = tls.map_err(|error| failure::tls(&error, error.to_string()))?;
            let (sender, connection) =
                http1::handshake(TokioIo::new(tls)).await.map_err(|error| {
                    CliError::failed("not_a_mediator", format!("mediator: {error}"))
                        .hint("check host and port")
                })?;
            self.tasks.spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "connection to the API ended");
                }
            });
            self.sender = Some(sender);
        }
        self.sender.as_mut().ok_or_else(failure::unexpected)
    }
}

fn broken(error: &dyn std::fmt::Display) -> CliError {
    CliError::no_path("mediator_unreachable", format!("mediator: {error}"))
        .hint("try again; check the network")
}

fn no_randomness() -> CliError {
    CliError::failed("crypto_failed", "the system gives no randomness")
}

fn fresh_id() -> Result<String, CliError> {
    random::<16>().map(|bytes| base64url(&bytes)).map_err(|_| no_randomness())
}

/// What the mediator answered that is no success (RFC 9457).
fn failed(status: StatusCode, body: &[u8]) -> CliError {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |name: &str| problem.get(name).and_then(Value::as_str).unwrap_or_default();
    let told = wire::Failure {
        code: text("code").to_owned(),
        message: match text("detail") {
            "" => format!("mediator answered with status {status}"),
            detail => detail.to_owned(),
        },
        hint: text("hint").to_owned(),
    };
    // On the control connection the programs do not understand each other; here a value that
    // somebody gave is wrong, and the detail says which.
    if told.code == BAD_REQUEST && status.is_client_error() {
        let hint = match told.hint.as_str() {
            "" if told.message.contains("unknown field") => {
                "console and mediator may be of different versions: update what is older"
            }
            "" => "give another value: --help says what is expected",
            hint => hint,
        };
        return CliError::usage(BAD_REQUEST, told.message).hint(hint);
    }
    failure::refused(&told)
}

/// For fuzzing: an answer that is no success, as the mediator or whatever stands before it gives
/// it. Whether it had a code that is known here.
///
/// # Panics
///
/// If it would end the command as if all were well, or tells nothing.
#[must_use]
pub fn fuzz_problem(body: &[u8]) -> bool {
    let error = failed(StatusCode::FORBIDDEN, body);
    assert!(error.exit.code() != 0, "a refusal that ends well");
    assert!(!error.message.is_empty() && !error.code.is_empty(), "it tells nothing");
    error.code != "mediator_refused"
}

/// A part of a path, percent-encoded.
pub fn part(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_~.".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    // `.` and `..` would be taken for directories.
    if out.chars().all(|c| c == '.') { out.replace('.', "%2E") } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_one_part_of_a_path() {
        assert_eq!(part("acme"), "acme");
        assert_eq!(part("a/b?c#d %"), "a%2Fb%3Fc%23d%20%25");
        assert_eq!(part(".."), "%2E%2E");
        assert_eq!(part("ä"), "%C3%A4");
    }

    #[test]
    fn problems_keep_their_code_and_get_their_exit_code() {
        let problem = |code: &str| {
            let body = serde_json::json!({"code": code, "detail": "d", "hint": null}).to_string();
            let error = failed(StatusCode::FORBIDDEN, body.as_bytes());
            (error.code, error.exit.code())
        };
        assert_eq!(problem("not_permitted"), ("not_permitted", 3));
        assert_eq!(problem("not_found"), ("not_found", 4));
        assert_eq!(problem("name_taken"), ("name_taken", 1));
        assert_eq!(problem("weak_password"), ("weak_password", 2));
        assert_eq!(failed(StatusCode::BAD_GATEWAY, b"<html>").code, "mediator_refused");
        assert_eq!(problem("bad_request"), ("bad_request", 2));
    }

    #[test]
    fn a_wrong_value_is_wrong_usage_and_told_as_the_mediator_says_it() {
        let told = |detail: &str| {
            let body = serde_json::json!({"code": "bad_request", "detail": detail}).to_string();
            let error = failed(StatusCode::BAD_REQUEST, body.as_bytes());
            assert_eq!((error.exit.code(), error.message.as_str()), (2, detail));
            error.hint.unwrap()
        };
        assert!(told("conditions: not a time window: \"x\"").contains("--help"));
        assert!(told("body: unknown field `x`").contains("versions"));
    }
}
