//! What moves the frames of one connection: reading, writing and keepalive side by side.
//!
//! Reading never waits for whoever handles requests, and writing never waits for reading: a
//! peer that breaks a bound loses the connection, it does not stop it.

use std::{
    future::Future,
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use adit_protocol::{
    code::failure as codes,
    limits::{MAX_CONTROL_FRAME, MAX_CONTROL_IN_FLIGHT},
    wire::{Done, Frame, frame::Body},
};
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf},
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec, LengthDelimitedCodecError};

use crate::{
    CLOSE_DEADLINE, CloseReason, MAX_IN_MEMORY, Options, QUEUE_FRAMES, failure,
    peer::{Incoming, Peer, Request, Shared},
    weight,
};

/// Pushes and requests that may wait to be handled; more than all requests under way.
const INCOMING_FRAMES: usize = 2 * MAX_CONTROL_IN_FLIGHT;
/// Bytes after which a write batch is flushed, so that its deadline means something.
const BATCH_BYTES: usize = 64 * 1024;

/// Starts the protocol on a stream. The future drives the connection until it ends; dropping it
/// ends the connection.
pub fn start<S>(
    stream: S,
    options: Options,
) -> (Peer, Incoming, impl Future<Output = CloseReason> + Send + use<S>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (queue, queued) = mpsc::channel(QUEUE_FRAMES);
    let (deliver, delivered) = mpsc::channel(INCOMING_FRAMES);
    let shared = Shared::new(queue, &options);
    let peer = Peer(shared.clone());
    let driver = drive(stream, options, Ended(shared), queued, deliver);
    (peer, Incoming(delivered), driver)
}

/// Wakes everyone who waits when the driver ends, also when it is dropped.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.finish(CloseReason::Dropped);
    }
}

async fn drive<S: AsyncRead + AsyncWrite + Send>(
    stream: S,
    options: Options,
    ended: Ended,
    queued: mpsc::Receiver<Bytes>,
    deliver: mpsc::Sender<Request>,
) -> CloseReason {
    let shared = &ended.0;
    shared.received_now();
    let (read, write) = tokio::io::split(stream);
    let reason = tokio::select! {
        reason = read_frames(shared, read, deliver) => reason,
        reason = write_frames(shared, write, queued, options.write_deadline) => reason,
        reason = keep_alive(shared, options.pings) => reason,
        () = shared.aborted.cancelled() => CloseReason::Stalled,
    };
    // An abort said why before anyone else noticed.
    let reason = shared.reason.get().cloned().unwrap_or(reason);
    shared.finish(reason.clone());
    reason
}

fn codec(max_frame: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().length_field_length(4).max_frame_length(max_frame).new_codec()
}

async fn read_frames<S: AsyncRead>(
    shared: &Arc<Shared>,
    read: ReadHalf<S>,
    deliver: mpsc::Sender<Request>,
) -> CloseReason {
    let mut max_frame = shared.max_frame.subscribe();
    let mut frames = FramedRead::new(read, codec(*max_frame.borrow_and_update()));
    loop {
        let frame = tokio::select! {
            biased;
            // Before the frame that follows: the peer may send it as soon as it is trusted.
            Ok(()) = max_frame.changed() => {
                let max_frame = *max_frame.borrow_and_update();
                frames.decoder_mut().set_max_frame_length(max_frame);
                continue;
            }
            frame = frames.next() => frame,
        };
        match frame {
            Some(Ok(bytes)) => {
                if let Err(reason) = handle_frame(shared, bytes, &deliver) {
                    return reason;
                }
            }
            Some(Err(error)) => return explain(&error),
            None => return CloseReason::Remote,
        }
    }
}

fn explain(error: &io::Error) -> CloseReason {
    let inner = error.get_ref();
    if inner.is_some_and(|e| e.is::<LengthDelimitedCodecError>()) {
        return CloseReason::Oversized;
    }
    // The codec's way to say that the stream ended within a frame.
    if error.kind() == io::ErrorKind::Other && error.to_string().contains("bytes remaining") {
        return CloseReason::Truncated;
    }
    lost(error)
}

/// In plain words: the TLS library's text for a cut connection is a link to its documentation.
fn lost(error: &io::Error) -> CloseReason {
    CloseReason::Lost(match error.kind() {
        io::ErrorKind::UnexpectedEof => "the other side ended it without a word".to_owned(),
        _ => error.to_string(),
    })
}

fn handle_frame(
    shared: &Arc<Shared>,
    bytes: BytesMut,
    deliver: &mpsc::Sender<Request>,
) -> Result<(), CloseReason> {
    let size = bytes.len();
    let Frame { id, reply, body } = Frame::decode(bytes).map_err(|_| CloseReason::Garbage)?;
    shared.received_now();
    match (reply, body) {
        (true, _) if id == 0 => Err(CloseReason::Garbage),
        (true, body) => {
            shared.handle_reply(id, body);
            Ok(())
        }
        (false, Some(Body::Ping(_))) if id != 0 => {
            shared.answer(id, Body::Done(Done {}));
            Ok(())
        }
        (false, Some(body)) => match weight::of(&body, size) {
            weight if weight > MAX_IN_MEMORY => Err(CloseReason::Oversized),
            weight => accept(shared, id, body, weight, deliver),
        },
        // A later version's message: additive evolution only.
        (false, None) if id == 0 => Ok(()),
        (false, None) => {
            let text = "message is not known to this version";
            shared.answer(id, Body::Failure(failure(codes::BAD_REQUEST, text)));
            Ok(())
        }
    }
}

fn accept(
    shared: &Arc<Shared>,
    id: u64,
    body: Body,
    size: usize,
    deliver: &mpsc::Sender<Request>,
) -> Result<(), CloseReason> {
    if shared.incoming_bytes.load(Ordering::Relaxed) > shared.max_incoming_bytes() {
        return Err(CloseReason::Flooded);
    }
    if id != 0 && shared.answering.load(Ordering::Relaxed) >= MAX_CONTROL_IN_FLIGHT {
        let text = "too many requests under way";
        shared.answer(id, Body::Failure(failure(codes::BUSY, text)));
        return Ok(());
    }
    match deliver.try_reserve() {
        Ok(place) => {
            place.send(Request::new(shared, id, body, size));
            Ok(())
        }
        Err(mpsc::error::TrySendError::Full(())) => Err(CloseReason::Flooded),
        Err(mpsc::error::TrySendError::Closed(())) => {
            if id != 0 {
                let text = "no requests are answered here";
                shared.answer(id, Body::Failure(failure(codes::BAD_REQUEST, text)));
            }
            Ok(())
        }
    }
}

async fn write_frames<S: AsyncWrite>(
    shared: &Arc<Shared>,
    write: WriteHalf<S>,
    mut queued: mpsc::Receiver<Bytes>,
    deadline: Duration,
) -> CloseReason {
    let mut frames = FramedWrite::new(write, codec(MAX_CONTROL_FRAME));
    frames.set_backpressure_boundary(BATCH_BYTES);
    loop {
        let first = tokio::select! {
            biased;
            frame = queued.recv() => frame,
            () = shared.closing.cancelled() => None,
        };
        let Some(first) = first else { break };
        match timeout(deadline, batch(shared, &mut frames, first, &mut queued)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return lost(&error),
            Err(_) => return CloseReason::Stalled,
        }
    }
    let rest = async {
        while let Ok(frame) = queued.try_recv() {
            batch(shared, &mut frames, frame, &mut queued).await?;
        }
        SinkExt::<Bytes>::close(&mut frames).await
    };
    // We end it either way; what could not be sent by now is lost as with any broken connection.
    let _ = timeout(CLOSE_DEADLINE, rest).await;
    CloseReason::Local
}

async fn batch<S: AsyncWrite>(
    shared: &Shared,
    frames: &mut FramedWrite<WriteHalf<S>, LengthDelimitedCodec>,
    first: Bytes,
    queued: &mut mpsc::Receiver<Bytes>,
) -> io::Result<()> {
    let mut next = Some(first);
    let mut size = 0;
    while let Some(frame) = next.take() {
        size += frame.len();
        shared.queued_bytes.fetch_sub(frame.len(), Ordering::Relaxed);
        frames.feed(frame).await?;
        if size < BATCH_BYTES {
            next = queued.try_recv().ok();
        }
    }
    SinkExt::<Bytes>::flush(frames).await
}

async fn keep_alive(shared: &Shared, pings: bool) -> CloseReason {
    let mut setting = shared.keepalive.subscribe();
    let mut since = Instant::now();
    let mut pinged = since;
    let mut current = *setting.borrow();
    loop {
        let wanted = *setting.borrow_and_update();
        if wanted != current {
            // A shorter interval counts from its setting, or the past would end the connection.
            current = wanted;
            since = Instant::now();
        }
        let Some(interval) = current else {
            if setting.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            continue;
        };
        let silent_at = shared.last_received().max(since) + interval.mul_f32(2.5);
        let ping_at = pinged + interval;
        let now = Instant::now();
        if now >= silent_at {
            return CloseReason::Silent(interval.mul_f32(2.5));
        }
        if pings && now >= ping_at {
            pinged = now;
            shared.ping();
            continue;
        }
        let wake = if pings { silent_at.min(ping_at) } else { silent_at };
        tokio::select! {
            () = sleep_until(wake) => {}
            changed = setting.changed() => if changed.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_connection_is_told_in_plain_words() {
        let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "see https://docs.rs/a/b");
        let text = explain(&cut).to_string();
        assert_eq!(text, "connection lost: the other side ended it without a word");
    }
}
