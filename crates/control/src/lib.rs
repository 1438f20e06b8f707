//! The control connection: requests and pushes both ways over one stream, and keeping it up.
//!
//! Frames are length-delimited protobuf (`docs/protocol.md`). [`start`] gives a handle, what
//! comes in, and a future that drives the connection until it ends; the caller owns that future.
//!
//! Invariants:
//! - no request waits for another: replies come in any order;
//! - everything is bounded: frames, frames and bytes queued, requests under way, silence, and
//!   the time that a peer may take to read;
//! - when the driver ends, however it ends, every waiting request ends too.

mod backoff;
pub mod client;
mod clock;
mod driver;
mod peer;
pub mod server;
mod weight;

use std::time::Duration;

use adit_protocol::{
    limits::{KEEPALIVE_IDLE, MAX_CONTROL_FRAME},
    wire,
};

pub use backoff::Backoff;
pub use clock::{MAX_SKEW, MediatorClock, Skew};
pub use driver::start;
pub use peer::{Incoming, Peer, Request, RequestError, Responder};

/// Frames queued for sending; requests and pushes leave [`QUEUE_RESERVE`] of them to replies.
pub const QUEUE_FRAMES: usize = 1024;
/// Frames of the queue that only replies may use: every request under way can be answered.
pub const QUEUE_RESERVE: usize = 320;
/// Bytes queued for sending.
pub const QUEUE_BYTES: usize = 8 * 1024 * 1024;
/// Largest frame that a server reads from a client that has proved nothing yet.
pub const MAX_HELLO_FRAME: usize = 16 * 1024;
/// Largest frames' worth of requests and pushes that may wait to be handled; one more is begun.
pub const INCOMING_LARGEST: usize = 8;
/// Bytes that one request or push may take in memory: its lists, that is, which can take far more
/// there than on the wire.
pub const MAX_IN_MEMORY: usize = 4 * MAX_CONTROL_FRAME;
/// Time in which a peer must read what one write batch holds.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(20);
/// Time to send what is queued when we close.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// How a connection is driven.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Silence of two and a half such intervals ends the connection; `None` waits for ever.
    pub keepalive: Option<Duration>,
    /// Whether we send a `Ping` each interval (one side does).
    pub pings: bool,
    /// Largest frame read at first. A `Welcome` to an agent or relay and [`Peer::trust`] raise it
    /// to the protocol's.
    pub max_frame: usize,
    /// Time in which a peer must read what one write batch holds.
    pub write_deadline: Duration,
}

impl Options {
    /// For the side that dialled.
    pub fn client() -> Self {
        Self {
            keepalive: Some(KEEPALIVE_IDLE),
            pings: true,
            max_frame: MAX_CONTROL_FRAME,
            write_deadline: WRITE_DEADLINE,
        }
    }

    /// For the side that was dialled.
    pub fn server() -> Self {
        Self { pings: false, max_frame: MAX_HELLO_FRAME, ..Self::client() }
    }
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// We closed it.
    #[error("closed by this side")]
    Local,
    /// The peer closed it in good order.
    #[error("closed by the other side")]
    Remote,
    /// It broke.
    #[error("connection lost: {0}")]
    Lost(String),
    /// It ended in the middle of a frame.
    #[error("connection ended in the middle of a frame")]
    Truncated,
    /// The peer announced a frame that is too large.
    #[error("peer sent a frame larger than allowed")]
    Oversized,
    /// The peer sent what is no frame.
    #[error("peer sent a frame that cannot be read")]
    Garbage,
    /// Nothing came for two and a half keepalive intervals.
    #[error("nothing received for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// The peer does not read.
    #[error("peer does not read what it is sent")]
    Stalled,
    /// The peer sends faster than it is served, beyond all bounds.
    #[error("peer sent more than it may have under way")]
    Flooded,
    /// The driver was dropped.
    #[error("connection was dropped")]
    Dropped,
}

/// A failure to be sent as a reply.
pub fn failure(code: &str, message: impl Into<String>) -> wire::Failure {
    wire::Failure { code: code.to_owned(), message: message.into(), hint: String::new() }
}
