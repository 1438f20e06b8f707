//! The beginning of a control connection on the side that was dialled.

use std::time::Duration;

use adit_protocol::{PROTOCOL_VERSION, code::failure as codes, wire, wire::frame::Body};

use crate::{Incoming, Responder, failure};

/// Why a connection did not begin as it must.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Nothing came in time.
    #[error("client did not say hello in time")]
    Timeout,
    /// The connection ended first.
    #[error("client left without a hello")]
    Closed,
    /// The first message was another.
    #[error("client began with another message than hello")]
    Unexpected,
    /// The client speaks another version.
    #[error("client speaks protocol version {0}")]
    Version(u32),
}

/// Waits for the client's first message, which must be a `Hello` request of our version. Other
/// beginnings are answered with a failure; the caller then closes the connection.
pub async fn expect_hello(
    incoming: &mut Incoming,
    deadline: Duration,
) -> Result<(wire::Hello, Responder), HelloError> {
    let first = tokio::time::timeout(deadline, incoming.recv())
        .await
        .map_err(|_| HelloError::Timeout)?
        .ok_or(HelloError::Closed)?;
    if first.is_push() {
        return Err(HelloError::Unexpected);
    }
    match first.into_parts() {
        (Body::Hello(hello), responder) if hello.protocol != PROTOCOL_VERSION => {
            let text = format!("protocol version {} is not spoken here", hello.protocol);
            responder.fail(failure(codes::UNSUPPORTED_VERSION, text));
            Err(HelloError::Version(hello.protocol))
        }
        (Body::Hello(hello), responder) => Ok((hello, responder)),
        (_, responder) => {
            responder.fail(failure(codes::BAD_REQUEST, "hello is expected first"));
            Err(HelloError::Unexpected)
        }
    }
}
