//! HTTP/1.1 and HTTP/2 on connections whose TLS handshake is complete.
//!
//! A connection that has not authenticated gives way when too many such wait, as every other;
//! what it may hold is bounded: streams, header bytes, body bytes, idle time, life.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, body::Body, http::Request};
use http_body_util::Limited;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Web, guard::Guard, router};
use crate::serve::Admitted;

/// Bytes of a request's body.
pub(crate) const MAX_BODY: usize = 256 * 1024;
/// Time for a request's head, and between requests.
const HEAD_DEADLINE: Duration = Duration::from_secs(20);
/// Silence after which an HTTP/2 client is asked whether it is there, and time for its answer.
const PING_AFTER: Duration = Duration::from_secs(20);
/// Streams of one connection.
const MAX_STREAMS: u32 = 64;
/// Bytes of a request's headers.
const MAX_HEADERS: usize = 32 * 1024;
/// Headers of a request.
const MAX_HEADER_COUNT: usize = 64;
/// After so long a connection takes no further request.
const LIFE: Duration = Duration::from_secs(3600);
/// Time for requests under way when the connection ends.
const GRACE: Duration = Duration::from_secs(2);

/// Where a request comes from.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    pub(crate) proved: Proved,
}

/// The connection's place among those that have proved nothing.
#[derive(Clone, Default)]
pub(crate) struct Proved(Arc<Mutex<Option<Admitted>>>);

impl Proved {
    /// Somebody proved who they are: the connection need not give way any more.
    pub(crate) fn note(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Serves HTTP.
pub(crate) struct Server {
    router: Router,
    guard: Guard,
    stop: CancellationToken,
}

/// Streams of HTTP/2 are tasks of their connection.
#[derive(Clone)]
struct Streams(TaskTracker);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

impl Server {
    /// For all connections. `tasks`: what was begun is done there to its end.
    pub(crate) fn new(web: Arc<Web>, stop: CancellationToken, tasks: TaskTracker) -> Self {
        Self { router: router(web), guard: Guard::new(tasks), stop }
    }

    /// Serves one connection until it ends.
    pub(crate) async fn serve<S>(
        self: Arc<Self>,
        stream: S,
        alpn: &[u8],
        address: SocketAddr,
        admitted: Admitted,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let must_go = admitted.must_go();
        let client = Client { address, proved: Proved(Arc::new(Mutex::new(Some(admitted)))) };
        let server = Arc::clone(&self);
        let service = service_fn(move |request| {
            let (server, client) = (Arc::clone(&server), client.clone());
            async move { Ok::<_, std::convert::Infallible>(server.answer(request, client).await) }
        });
        let io = TokioIo::new(stream);
        let over = self.over(must_go);
        let ended = if alpn == b"h2" {
            let streams = Streams(TaskTracker::new());
            let mut builder = http2::Builder::new(streams);
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .max_header_list_size(u32::try_from(MAX_HEADERS).unwrap_or(u32::MAX))
                .keep_alive_interval(PING_AFTER)
                .keep_alive_timeout(PING_AFTER);
            let connection = builder.serve_connection(io, service);
            tokio::pin!(connection);
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = over => {
                    connection.as_mut().graceful_shutdown();
                    tokio::time::timeout(GRACE, connection).await.unwrap_or(Ok(()))
                }
            }
        } else {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_DEADLINE)
                .max_buf_size(MAX_HEADERS)
                .max_headers(MAX_HEADER_COUNT);
            let connection = builder.serve_connection(io, service);
            tokio::pin!(connection);
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = over => {
                    connection.as_mut().graceful_shutdown();
                    tokio::time::timeout(GRACE, connection).await.unwrap_or(Ok(()))
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%address, %error, "web connection ended");
        }
    }

    /// When a connection takes no more requests.
    async fn over(&self, must_go: CancellationToken) {
        tokio::select! {
            () = must_go.cancelled() => {}
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(LIFE) => {}
        }
    }

    async fn answer(&self, request: Request<Incoming>, client: Client) -> axum::response::Response {
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(client);
        let body = Body::new(Limited::new(body, MAX_BODY));
        self.guard.answer(self.router.clone(), Request::from_parts(parts, body)).await
    }
}
