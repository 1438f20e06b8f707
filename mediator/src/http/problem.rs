//! Errors as RFC 9457 tells them. The code is one of docs/errors.md, the words are for people.
//!
//! What failed inside is logged with the request's id and not told.

use adit_protocol::code::failure;
use adit_runtime::cli::{CliError, Exit};
use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::core::types::Refusal;

/// An answer that is no success.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) detail: String,
    pub(crate) hint: Option<String>,
    /// Seconds after which to try again.
    pub(crate) retry_after: Option<u64>,
    /// `WWW-Authenticate`.
    pub(crate) challenge: Option<&'static str>,
}

/// Codes whose status is not what the exit code says.
const STATUS: [(&str, StatusCode); 17] = [
    (failure::NOT_LOGGED_IN, StatusCode::UNAUTHORIZED),
    (failure::NAME_TAKEN, StatusCode::CONFLICT),
    (failure::AMBIGUOUS_COMPUTER, StatusCode::CONFLICT),
    ("ambiguous_relay", StatusCode::CONFLICT),
    ("ambiguous_hold", StatusCode::CONFLICT),
    ("too_many_holds", StatusCode::CONFLICT),
    (failure::REQUEST_PENDING, StatusCode::CONFLICT),
    (failure::ALREADY_DECIDED, StatusCode::CONFLICT),
    (failure::RATE_LIMITED, StatusCode::TOO_MANY_REQUESTS),
    (failure::BUSY, StatusCode::SERVICE_UNAVAILABLE),
    (failure::AUDIT_UNAVAILABLE, StatusCode::SERVICE_UNAVAILABLE),
    ("erasure_unfinished", StatusCode::SERVICE_UNAVAILABLE),
    ("erasure_under_way", StatusCode::SERVICE_UNAVAILABLE),
    (failure::BAD_REQUEST, StatusCode::BAD_REQUEST),
    (failure::INTERNAL, StatusCode::INTERNAL_SERVER_ERROR),
    (failure::AGENT_TIMEOUT, StatusCode::GATEWAY_TIMEOUT),
    ("not_running", StatusCode::SERVICE_UNAVAILABLE),
];

impl Problem {
    /// With a status and a code.
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { status, code, detail, hint: None, retry_after: None, challenge: None }
    }

    /// The request cannot be read.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, failure::BAD_REQUEST, detail)
    }

    /// Not there, or not for this one.
    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, NOT_FOUND, "there is no such thing here")
    }

    /// The path is there, the method is not.
    pub(crate) fn method_not_allowed() -> Self {
        let text = "this path does not take that method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, failure::BAD_REQUEST, text)
    }

    /// Too much at once.
    pub(crate) fn busy() -> Self {
        let text = "too many requests are under way; try again";
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, failure::BUSY, text);
        Self { retry_after: Some(1), ..problem }
    }

    /// What was begun takes longer than anybody waits for an answer.
    pub(crate) fn goes_on() -> Self {
        let text =
            "it takes longer than 30 s and goes on; look whether it is done before you ask again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, failure::BUSY, text)
    }

    /// Too much for too long.
    pub(crate) fn rate_limited(seconds: u64) -> Self {
        let text = "too many requests; wait before the next one";
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, failure::RATE_LIMITED, text);
        Self { retry_after: Some(seconds.max(1)), ..problem }
    }

    /// Something failed that is not told.
    pub(crate) fn internal() -> Self {
        let text = "something failed here; the mediator's log says what";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, failure::INTERNAL, text)
    }
}

/// Code of what is not there, or not for this one.
pub(crate) const NOT_FOUND: &str = "not_found";

impl From<CliError> for Problem {
    fn from(error: CliError) -> Self {
        let known = STATUS.iter().find(|(code, _)| *code == error.code);
        let status = match (known, error.exit) {
            (Some((_, status)), _) => *status,
            (None, Exit::NotThere) => StatusCode::NOT_FOUND,
            (None, Exit::Usage) => StatusCode::BAD_REQUEST,
            (None, Exit::Refused) => StatusCode::FORBIDDEN,
            (None, _) => {
                // Texts of the database and the system stay inside (R39).
                tracing::error!(code = error.code, %error, "a request failed");
                return Self::internal();
            }
        };
        let hint = error.hint.clone().filter(|_| status.is_client_error());
        // What the disk said stays inside, too.
        let detail = match error.code {
            failure::AUDIT_UNAVAILABLE => {
                tracing::error!(%error, "a request was not recorded");
                "it could not be recorded, so nothing was done".to_owned()
            }
            _ => error.message.clone(),
        };
        let retry_after = match status {
            StatusCode::SERVICE_UNAVAILABLE => Some(5),
            StatusCode::TOO_MANY_REQUESTS => Some(60),
            _ => None,
        };
        Self { hint, retry_after, ..Self::new(status, error.code, detail) }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let exit = match refusal.code {
            failure::NO_SUCH_COMPUTER | failure::NO_SUCH_SESSION | failure::NO_SUCH_REQUEST => {
                Exit::NotThere
            }
            failure::BAD_REQUEST => Exit::Usage,
            _ => Exit::Refused,
        };
        CliError::new(refusal.code, exit, refusal.message).into()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "type": format!("urn:adit:error:{}", self.code),
            "title": self.status.canonical_reason().unwrap_or_default(),
            "status": self.status.as_u16(),
            "code": self.code,
            "detail": self.detail,
            "hint": self.hint,
        });
        let mut response = (self.status, body.to_string()).into_response();
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, kind);
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(challenge) = self.challenge {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}
