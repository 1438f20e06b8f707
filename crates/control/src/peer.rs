//! Handles of a control connection: asking, telling, and answering.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use adit_protocol::{
    code::failure as codes,
    limits::{MAX_CONTROL_FRAME, MAX_CONTROL_IN_FLIGHT},
    wire::{Failure, Frame, frame::Body},
};
use bytes::Bytes;
use prost::Message;
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{CloseReason, INCOMING_LARGEST, MAX_HELLO_FRAME, QUEUE_BYTES, QUEUE_RESERVE, failure};

/// Why a request got no answer, or a push was not sent.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// The peer answered with a failure.
    #[error("{}", .0.message)]
    Failed(Failure),
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The connection ended.
    #[error("control connection ended")]
    Closed,
    /// Too much is queued.
    #[error("control connection is too busy")]
    Busy,
    /// The message is larger than the protocol allows.
    #[error("message is too large")]
    TooLarge,
    /// The answer is of a kind that this version does not know.
    #[error("answer cannot be read")]
    UnknownAnswer,
}

/// `Hello.role` of those who are welcomed only when they are known.
const AGENT: u32 = 1;
const RELAY: u32 = 3;

/// What waits for a reply.
pub(crate) enum Waiting {
    Request(oneshot::Sender<Option<Body>>),
    Ping(Instant),
}

/// What handles and driver share.
pub(crate) struct Shared {
    pub(crate) queue: mpsc::Sender<Bytes>,
    pub(crate) queued_bytes: AtomicUsize,
    /// INVARIANT: `None` once the connection ended; nobody waits any more.
    waiting: Mutex<Option<HashMap<u64, Waiting>>>,
    next_id: AtomicU64,
    asking: Semaphore,
    /// Requests of the peer that we have not answered.
    pub(crate) answering: AtomicUsize,
    pub(crate) closing: CancellationToken,
    pub(crate) aborted: CancellationToken,
    pub(crate) closed: CancellationToken,
    pub(crate) reason: OnceLock<CloseReason>,
    pub(crate) keepalive: watch::Sender<Option<Duration>>,
    pub(crate) max_frame: watch::Sender<usize>,
    /// Bytes of frames that came in and wait to be handled.
    pub(crate) incoming_bytes: AtomicUsize,
    rtt_us: AtomicU64,
    last_received: Mutex<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(queue: mpsc::Sender<Bytes>, options: &crate::Options) -> Arc<Self> {
        Arc::new(Self {
            queue,
            queued_bytes: AtomicUsize::new(0),
            waiting: Mutex::new(Some(HashMap::new())),
            next_id: AtomicU64::new(1),
            asking: Semaphore::new(MAX_CONTROL_IN_FLIGHT),
            answering: AtomicUsize::new(0),
            closing: CancellationToken::new(),
            aborted: CancellationToken::new(),
            closed: CancellationToken::new(),
            reason: OnceLock::new(),
            keepalive: watch::Sender::new(options.keepalive),
            max_frame: watch::Sender::new(options.max_frame),
            incoming_bytes: AtomicUsize::new(0),
            rtt_us: AtomicU64::new(0),
            last_received: Mutex::new(Instant::now()),
        })
    }

    /// Encodes and queues a frame, within the bounds that its kind has.
    fn send(&self, frame: &Frame) -> Result<(), RequestError> {
        if self.closed.is_cancelled() || self.closing.is_cancelled() && !frame.reply {
            return Err(RequestError::Closed);
        }
        let bytes = Bytes::from(frame.encode_to_vec());
        if bytes.len() > MAX_CONTROL_FRAME {
            return Err(RequestError::TooLarge);
        }
        let size = bytes.len();
        let full = !frame.reply && self.queue.capacity() <= QUEUE_RESERVE;
        let queued = self.queued_bytes.fetch_add(size, Ordering::Relaxed);
        if full || queued + size > QUEUE_BYTES || self.queue.try_send(bytes).is_err() {
            self.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            return Err(RequestError::Busy);
        }
        Ok(())
    }

    /// Answers a request; an answer that finds no room means that the peer does not read.
    pub(crate) fn answer(&self, id: u64, body: Body) {
        let result = self.send(&Frame { id, reply: true, body: Some(body) });
        match result {
            Err(RequestError::TooLarge) => {
                let body = Body::Failure(failure(codes::INTERNAL, "answer is too large"));
                let _ = self.send(&Frame { id, reply: true, body: Some(body) });
            }
            Err(RequestError::Busy) => self.abort(CloseReason::Stalled),
            _ => {}
        }
    }

    /// Ends the connection at once.
    pub(crate) fn abort(&self, reason: CloseReason) {
        let _ = self.reason.set(reason);
        self.aborted.cancel();
    }

    fn wait_for(&self, waiting: Waiting) -> Option<u64> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        lock(&self.waiting).as_mut()?.insert(id, waiting);
        Some(id)
    }

    pub(crate) fn handle_reply(&self, id: u64, body: Option<Body>) {
        let waiting = lock(&self.waiting).as_mut().and_then(|w| w.remove(&id));
        match waiting {
            Some(Waiting::Request(sender)) => {
                // Who asked may have given up in this moment.
                let _ = sender.send(body);
            }
            Some(Waiting::Ping(sent)) => {
                let rtt = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.rtt_us.store(rtt.max(1), Ordering::Relaxed);
            }
            // Came after its deadline.
            None => {}
        }
    }

    pub(crate) fn ping(&self) {
        // Pings of which the answer never came are forgotten: silence ends the connection.
        if let Some(waiting) = lock(&self.waiting).as_mut() {
            waiting.retain(|_, w| matches!(w, Waiting::Request(_)));
        }
        if let Some(id) = self.wait_for(Waiting::Ping(Instant::now())) {
            let body = Some(Body::Ping(adit_protocol::wire::Ping {}));
            // A full queue means that there is traffic, or that the write deadline is near.
            let _ = self.send(&Frame { id, reply: false, body });
        }
    }

    pub(crate) fn received_now(&self) {
        *lock(&self.last_received) = Instant::now();
    }

    pub(crate) fn last_received(&self) -> Instant {
        *lock(&self.last_received)
    }

    /// Bytes of frames that may wait to be handled: little for those who have proved nothing, or
    /// a few thousand of them would fill the memory.
    pub(crate) fn max_incoming_bytes(&self) -> usize {
        let max_frame = *self.max_frame.borrow();
        if max_frame <= MAX_HELLO_FRAME { max_frame } else { max_frame * INCOMING_LARGEST }
    }

    /// Wakes everyone who waits; nothing can be sent any more.
    pub(crate) fn finish(&self, reason: CloseReason) {
        let _ = self.reason.set(reason);
        self.closed.cancel();
        lock(&self.waiting).take();
        self.asking.close();
    }
}

/// The other side of a control connection.
#[derive(Clone)]
pub struct Peer(pub(crate) Arc<Shared>);

impl Peer {
    /// Asks and waits for the answer. May be cancelled.
    pub async fn request(&self, body: Body, timeout: Duration) -> Result<Body, RequestError> {
        tokio::time::timeout(timeout, self.exchange(body))
            .await
            .map_err(|_| RequestError::Timeout(timeout))?
    }

    async fn exchange(&self, body: Body) -> Result<Body, RequestError> {
        let _turn = self.0.asking.acquire().await.map_err(|_| RequestError::Closed)?;
        let (sender, answer) = oneshot::channel();
        let id = self.0.wait_for(Waiting::Request(sender)).ok_or(RequestError::Closed)?;
        let _forget = Forget(&self.0, id);
        self.0.send(&Frame { id, reply: false, body: Some(body) })?;
        match answer.await {
            Ok(Some(Body::Failure(failure))) => Err(RequestError::Failed(failure)),
            Ok(Some(body)) => Ok(body),
            Ok(None) => Err(RequestError::UnknownAnswer),
            Err(_) => Err(RequestError::Closed),
        }
    }

    /// Tells without expecting an answer.
    pub fn push(&self, body: Body) -> Result<(), RequestError> {
        self.0.send(&Frame { id: 0, reply: false, body: Some(body) })
    }

    /// The peer has proved that it belongs here: it may send frames as large as the protocol
    /// allows.
    pub fn trust(&self) {
        self.0.max_frame.send_replace(MAX_CONTROL_FRAME);
    }

    /// Ends the connection after what is queued was sent.
    pub fn close(&self) {
        self.0.closing.cancel();
    }

    /// Whether the connection ended.
    pub fn is_closed(&self) -> bool {
        self.0.closed.is_cancelled()
    }

    /// Waits until the connection ended.
    pub async fn closed(&self) {
        self.0.closed.cancelled().await;
    }

    /// Why the connection ended; `None` while it lives.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.is_closed().then(|| self.0.reason.get().cloned()).flatten()
    }

    /// Changes the keepalive interval; a shorter one pings at once.
    pub fn set_keepalive(&self, interval: Duration) {
        self.0.keepalive.send_if_modified(|current| {
            let changed = *current != Some(interval);
            *current = Some(interval);
            changed
        });
    }

    /// The last measured round trip.
    pub fn rtt(&self) -> Option<Duration> {
        match self.0.rtt_us.load(Ordering::Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(us)),
        }
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("closed", &self.is_closed()).finish()
    }
}

/// Takes a request off the list when its caller stops waiting.
struct Forget<'a>(&'a Shared, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = lock(&self.0.waiting).as_mut() {
            waiting.remove(&self.1);
        }
    }
}

/// What the other side asks and tells.
#[derive(Debug)]
pub struct Incoming(pub(crate) mpsc::Receiver<Request>);

impl Incoming {
    /// The next request or push; `None` when the connection ended.
    pub async fn recv(&mut self) -> Option<Request> {
        let request = self.0.recv().await?;
        let shared = &request.responder.shared;
        shared.incoming_bytes.fetch_sub(request.size, Ordering::Relaxed);
        Some(request)
    }
}

/// A request or push of the other side. A request that is dropped without an answer is
/// answered with a failure.
pub struct Request {
    /// What it says.
    pub body: Body,
    responder: Responder,
    /// Bytes of its frame.
    size: usize,
}

impl Request {
    pub(crate) fn new(shared: &Arc<Shared>, id: u64, body: Body, size: usize) -> Self {
        if id != 0 {
            shared.answering.fetch_add(1, Ordering::Relaxed);
        }
        shared.incoming_bytes.fetch_add(size, Ordering::Relaxed);
        // Whoever welcomes an agent or relay knows it; consoles and the unenrolled are welcomed
        // before they have shown anything.
        let of_device =
            matches!(&body, Body::Hello(hello) if hello.role == AGENT || hello.role == RELAY);
        let responder = Responder { shared: shared.clone(), id, of_device, open: id != 0 };
        Self { body, responder, size }
    }

    /// Answers.
    pub fn reply(self, body: Body) {
        self.responder.reply(body);
    }

    /// Refuses.
    pub fn fail(self, failure: Failure) {
        self.responder.fail(failure);
    }

    /// Whether no answer is expected.
    pub fn is_push(&self) -> bool {
        self.responder.id == 0
    }

    /// What it says and how to answer it, apart.
    pub fn into_parts(self) -> (Body, Responder) {
        (self.body, self.responder)
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The body may hold a password.
        write!(f, "Request({})", self.responder.id)
    }
}

/// Answers one request; does nothing for a push.
pub struct Responder {
    shared: Arc<Shared>,
    id: u64,
    /// It answers the `Hello` of an agent or relay.
    of_device: bool,
    open: bool,
}

impl Responder {
    /// Answers.
    pub fn reply(mut self, body: Body) {
        if self.of_device && matches!(body, Body::Welcome(_)) {
            self.shared.max_frame.send_replace(MAX_CONTROL_FRAME);
        }
        self.send(body);
    }

    /// Refuses.
    pub fn fail(self, failure: Failure) {
        self.reply(Body::Failure(failure));
    }

    fn send(&mut self, body: Body) {
        if std::mem::take(&mut self.open) {
            self.shared.answering.fetch_sub(1, Ordering::Relaxed);
            self.shared.answer(self.id, body);
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.send(Body::Failure(failure(codes::INTERNAL, "request was not answered")));
    }
}

impl std::fmt::Debug for Responder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Responder({})", self.id)
    }
}
