//! Webhook: HTTPS POSTs of JSON lines, one batch each; an answer 2xx confirms.
//!
//! Headers: `Adit-Tree`, `Adit-Partner`, `Adit-Sequence: FIRST-LAST`, and either
//! `Adit-Signature: t=SECONDS,v1=HEX` (HMAC-SHA-256 of `SECONDS.BODY` with the shared secret) or
//! `Authorization: Bearer SECRET`. Must never follow a redirect or keep the secret in memory
//! longer than a request.

use adit_net::proxy::Dialer;
use aws_lc_rs::hmac;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use zeroize::Zeroizing;

use super::{Batch, ForwardError, Receiver, WEBHOOK, tls, unix_seconds};
use crate::audit::settings::{WebhookAuth, WebhookTarget};

/// Bytes of lines in one request.
const MAX_BYTES: usize = 512 * 1024;
/// Entries in one request.
const MAX_ENTRIES: usize = 500;
/// Bytes of the secret.
const SECRET: std::ops::RangeInclusive<usize> = 16..=1024;

/// The webhook that is configured.
pub(crate) struct Webhook {
    target: WebhookTarget,
    dialer: Dialer,
}

impl Webhook {
    /// Posts to a target.
    pub(crate) fn new(target: WebhookTarget, dialer: Dialer) -> Self {
        Self { target, dialer }
    }

    fn secret(&self) -> Result<Zeroizing<Vec<u8>>, ForwardError> {
        let bytes = Zeroizing::new(tls::read_bounded(&self.target.secret, 4096)?);
        let secret = Zeroizing::new(bytes.trim_ascii().to_vec());
        if SECRET.contains(&secret.len()) && secret.iter().all(u8::is_ascii_graphic) {
            return Ok(secret);
        }
        Err(ForwardError::File(format!(
            "{}: a secret of {} to {} visible ASCII characters is expected",
            self.target.secret.display(),
            SECRET.start(),
            SECRET.end()
        )))
    }

    fn request(&self, batch: &Batch) -> Result<Request<Full<Bytes>>, ForwardError> {
        let mut body = String::new();
        for row in &batch.entries {
            body.push_str(&row.line);
            body.push('\n');
        }
        let (first, last) = (batch.entries.first(), batch.entries.last());
        let sequence =
            format!("{}-{}", first.map_or(0, |row| row.seq), last.map_or(0, |row| row.seq));
        let secret = self.secret()?;
        let (name, value) = match self.target.auth {
            WebhookAuth::Hmac => {
                let time = unix_seconds();
                ("adit-signature", format!("t={time},v1={}", sign(&secret, time, &body)))
            }
            WebhookAuth::Bearer => {
                ("authorization", format!("Bearer {}", String::from_utf8_lossy(&secret)))
            }
        };
        let value = Zeroizing::new(value);
        let mut proof = http::HeaderValue::from_str(&value)
            .map_err(|error| ForwardError::File(error.to_string()))?;
        proof.set_sensitive(true);
        // A partner's name may have any letters; a header may not.
        let partner: String = batch.partner.chars().filter(char::is_ascii_graphic).collect();
        Request::post(&self.target.path)
            .header(header::HOST, &self.target.authority)
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .header(header::USER_AGENT, concat!("adit-mediator/", env!("CARGO_PKG_VERSION")))
            .header("adit-tree", &batch.tree)
            .header("adit-partner", partner)
            .header("adit-sequence", sequence)
            .header(name, proof)
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ForwardError::File(error.to_string()))
    }
}

impl Receiver for Webhook {
    fn name(&self) -> &'static str {
        WEBHOOK
    }
    fn max_bytes(&self) -> usize {
        MAX_BYTES
    }
    fn max_entries(&self) -> usize {
        MAX_ENTRIES
    }

    async fn deliver(&mut self, batch: &Batch) -> Result<(), ForwardError> {
        let request = self.request(batch)?;
        let place = (self.target.host.as_str(), self.target.port);
        let ca = self.target.ca.as_deref();
        let stream = tls::connect(&self.dialer, place, ca, &[b"http/1.1"]).await?;
        let wrong = |error: hyper::Error| ForwardError::Refused(error.to_string());
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(wrong)?;
        let exchange = sender.send_request(request);
        tokio::pin!(exchange);
        let answer = tokio::select! {
            biased;
            answer = &mut exchange => answer,
            // Whatever it ended with, the answer knows.
            _ = connection => exchange.await,
        };
        let status = answer.map_err(wrong)?.status();
        if status.is_success() { Ok(()) } else { Err(ForwardError::Refused(status.to_string())) }
    }
}

/// Lower-case hexadecimal HMAC of `time.body`.
fn sign(secret: &[u8], time: u64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let mut context = hmac::Context::with_key(&key);
    context.update(format!("{time}.").as_bytes());
    context.update(body.as_bytes());
    context.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
