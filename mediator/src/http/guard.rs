//! What holds for every request and answer, whoever asks and whatever is asked.
//!
//! INVARIANT: every answer carries the headers of R43 and a request id; none tells of a panic
//! more than that something failed. INVARIANT: what may change something is done to its end even
//! if whoever asked has gone or waits no longer: between the record of an act and the sessions
//! that it ends nothing may be dropped.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use hyper::body::{Frame, SizeHint};
use tokio::time::Sleep;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use super::{
    Problem,
    limit::{Buckets, UnderWay},
    server::Client,
};
use crate::{bucket::Rate, serve::Source};

/// Time for an answer to begin.
const DEADLINE: Duration = Duration::from_secs(30);
/// Time for the body of a request that may change something: nobody keeps such a task waiting.
const BODY_DEADLINE: Duration = Duration::from_secs(20);
/// Bytes of a request's path and query.
const MAX_TARGET: usize = 4 * 1024;
/// Requests of one source, whoever sends them.
const PER_SOURCE: Rate = Rate::per_second(200, 1_000);
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
    under_way: Arc<UnderWay<Source>>,
    /// What may change something.
    acts: TaskTracker,
    body_deadline: Duration,
}

impl Guard {
    /// Acts are tasks of this tracker, which whoever stops the program waits for.
    pub(super) fn new(acts: TaskTracker) -> Self {
        Self {
            rate: Buckets::new(PER_SOURCE),
            under_way: Arc::new(UnderWay::new(MAX_UNDER_WAY, [MAX_UNDER_WAY_PER_SOURCE])),
            acts,
            body_deadline: BODY_DEADLINE,
        }
    }

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
        let Ok(under_way) = self.under_way.begin([source]) else {
            return Problem::busy().into_response();
        };
        let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        if target > MAX_TARGET {
            return Problem::bad_request("the path and query are too long").into_response();
        }
        if [Method::GET, Method::HEAD].contains(request.method()) {
            let answer = tokio::time::timeout(DEADLINE, run(router, request)).await;
            answer.unwrap_or_else(|_| Problem::busy().into_response())
        } else {
            let deadline = self.body_deadline;
            let act = self.acts.spawn(async move {
                // Counts as long as it lasts, not as long as somebody waits for it.
                let _under_way = under_way;
                run(router, request.map(|body| Timely::body(body, deadline))).await
            });
            match tokio::time::timeout(DEADLINE, act).await {
                Ok(done) => done.unwrap_or_else(|_| Problem::internal().into_response()),
                Err(_) => Problem::goes_on().into_response(),
            }
        }
    }
}

async fn run(mut router: Router, request: Request<Body>) -> Response {
    match AssertUnwindSafe(router.call(request)).catch_unwind().await {
        Ok(Ok(response)) => response,
        Err(_) => {
            // The panic's own text is in the log already; the connection goes on.
            tracing::error!("a handler panicked");
            Problem::internal().into_response()
        }
    }
}

/// A body that must have come by a time.
struct Timely {
    body: Body,
    over: Pin<Box<Sleep>>,
}

impl Timely {
    fn body(body: Body, within: Duration) -> Body {
        Body::new(Self { body, over: Box::pin(tokio::time::sleep(within)) })
    }
}

impl HttpBody for Timely {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        let late = || axum::Error::new(std::io::Error::from(std::io::ErrorKind::TimedOut));
        self.over.as_mut().poll(context).map(|()| Some(Err(late())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::routing;
    use tokio::sync::{Notify, oneshot};

    use super::*;
    use crate::http::server::Proved;

    fn request(method: Method, body: Body) -> Request<Body> {
        let address = "192.0.2.1:1".parse().unwrap();
        let mut request = Request::builder().method(method).uri("/act").body(body).unwrap();
        request.extensions_mut().insert(Client { address, proved: Proved::default() });
        request
    }

    #[tokio::test]
    async fn an_act_is_done_to_its_end_when_its_asker_has_gone() {
        let tasks = TaskTracker::new();
        let guard = Guard::new(tasks.clone());
        let (committed, ended) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let (go_on, waits) = oneshot::channel::<()>();
        let waits = Arc::new(std::sync::Mutex::new(Some(waits)));
        let act = {
            let (committed, ended) = (Arc::clone(&committed), Arc::clone(&ended));
            async move || {
                committed.notify_one();
                let waits = waits.lock().unwrap().take().unwrap();
                waits.await.unwrap();
                ended.store(true, Ordering::SeqCst);
            }
        };
        let router = Router::new().route("/act", routing::post(act));
        let answer = guard.answer(router, request(Method::POST, Body::empty()));
        tokio::select! {
            _ = answer => panic!("it waits"),
            // The client goes between what is recorded and what it brings about.
            () = committed.notified() => {}
        }
        assert_eq!(tasks.len(), 1);
        go_on.send(()).unwrap();
        tasks.close();
        tasks.wait().await;
        assert!(ended.load(Ordering::SeqCst));
        assert!(guard.under_way.begin([Source::of([192, 0, 2, 1].into())]).is_ok());
    }

    #[tokio::test]
    async fn a_body_that_never_comes_keeps_no_task() {
        let tasks = TaskTracker::new();
        let deadline = Duration::from_millis(20);
        let guard = Guard { body_deadline: deadline, ..Guard::new(tasks.clone()) };
        let router = Router::new().route("/act", routing::post(async |_: Bytes| "done"));
        let never =
            Body::from_stream(futures_util::stream::pending::<Result<Bytes, axum::Error>>());
        let answer = guard.answer(router, request(Method::POST, never)).await;
        assert_eq!(answer.status(), 400);
        tasks.close();
        tasks.wait().await;
    }
}
