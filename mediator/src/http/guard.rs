//! What holds for every request and answer, whoever asks and whatever is asked.
//!
//! INVARIANT: every answer carries the headers of R43 and a request id; none tells of a panic
//! more than that something failed.

use std::{panic::AssertUnwindSafe, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Request, header},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tower_service::Service;

use super::{
    Problem,
    limit::{Buckets, Rate, UnderWay},
    server::Client,
};
use crate::serve::Source;

/// Time for an answer to begin.
const DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of a request's path and query.
const MAX_TARGET: usize = 4 * 1024;
/// Requests of one source, whoever sends them.
const PER_SOURCE: Rate = Rate { per_second: 200, burst: 1_000 };
/// Requests under way in all, and of one source.
const MAX_UNDER_WAY: usize = 512;
const MAX_UNDER_WAY_PER_SOURCE: usize = 64;

/// Name of a request in answers and in the log.
pub(crate) static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// On every answer, unless the handler sets its own.
const HEADERS: [(HeaderName, &str); 8] = [
    (header::CACHE_CONTROL, "no-store"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (header::STRICT_TRANSPORT_SECURITY, "max-age=63072000"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Limits of all sources.
pub(super) struct Guard {
    rate: Buckets<Source>,
    under_way: UnderWay<Source>,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            rate: Buckets::new(PER_SOURCE),
            under_way: UnderWay::new(MAX_UNDER_WAY, MAX_UNDER_WAY_PER_SOURCE),
        }
    }
}

impl Guard {
    /// Answers a request through the router, if the limits let it.
    pub(super) async fn answer(&self, router: Router, mut request: Request<Body>) -> Response {
        let id = request_id();
        let source = request.extensions().get::<Client>().map(|client| client.address.ip());
        if let Some(id) = &id {
            request.headers_mut().insert(REQUEST_ID.clone(), id.clone());
        }
        let mut response = match source.map(Source::of) {
            None => Problem::internal().into_response(),
            Some(source) => self.limited(source, router, request).await,
        };
        protect(response.headers_mut());
        if let Some(id) = id {
            response.headers_mut().insert(REQUEST_ID.clone(), id);
        }
        response
    }

    async fn limited(&self, source: Source, router: Router, request: Request<Body>) -> Response {
        if let Err(wait) = self.rate.take(source) {
            return Problem::rate_limited(wait.as_secs() + 1).into_response();
        }
        let Some(_under_way) = self.under_way.begin(source) else {
            return Problem::busy().into_response();
        };
        let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        if target > MAX_TARGET {
            return Problem::bad_request("the path and query are too long").into_response();
        }
        run(router, request).await
    }
}

async fn run(mut router: Router, request: Request<Body>) -> Response {
    let call = AssertUnwindSafe(router.call(request)).catch_unwind();
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(Ok(response))) => response,
        Ok(Err(_)) => {
            // The panic's own text is in the log already; the connection goes on.
            tracing::error!("a handler panicked");
            Problem::internal().into_response()
        }
        Err(_) => Problem::busy().into_response(),
    }
}

fn protect(headers: &mut HeaderMap) {
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

fn request_id() -> Option<HeaderValue> {
    let bytes: [u8; 8] = adit_protocol::keys::random().ok()?;
    HeaderValue::from_str(&format!("{:016x}", u64::from_be_bytes(bytes))).ok()
}
