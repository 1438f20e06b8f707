//! The relayed carrier: records in Noise messages over a joined TCP stream.

use std::{io, sync::Arc, time::Duration};

use adit_net::noise::{
    RecordOpener, RecordSealer,
    records::{FRAME_HEADER, take_frame},
};
use adit_protocol::{
    ids::CarrierNumber,
    limits::{MAX_NOISE_MESSAGE, MAX_NOISE_PAYLOAD},
};
use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::{
    carrier::{CarrierEnd, Life, fill_message, take_in_message},
    shared::Shared,
};

/// Bytes read from the connection at once.
const READ_SIZE: usize = 256 * 1024;
/// Bytes not yet sent that the kernel may hold. More would stand before a keystroke, and before
/// everything else when the path gets worse.
const NOT_SENT_LOWAT: u32 = 128 * 1024;
/// Paced, so much is sent at once as takes this long, but not less than [`MIN_PIECE`].
const PIECE: Duration = Duration::from_millis(1000 / PIECES_PER_S);
const PIECES_PER_S: u64 = 200;
/// See [`PIECE`].
const MIN_PIECE: usize = 4 * 1024;
/// What the kernel sent and nobody acknowledged for so long has no connection any more. The path
/// machine leaves such a carrier long before.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// A relayed carrier after its handshake.
pub(crate) struct Relayed<S> {
    pub(crate) number: CarrierNumber,
    pub(crate) stream: S,
    pub(crate) sealer: RecordSealer,
    pub(crate) opener: RecordOpener,
    /// Bytes that were read along with the handshake.
    pub(crate) received: BytesMut,
    pub(crate) transmit: Arc<Notify>,
    pub(crate) life: Arc<Life>,
}

/// Runs until the connection ends or breaks a rule.
pub(crate) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Shared,
    carrier: Relayed<S>,
) -> CarrierEnd {
    let Relayed { number, stream, sealer, opener, received, transmit, life } = carrier;
    let (read, write) = tokio::io::split(stream);
    let end = tokio::select! {
        end = receive(shared, number, read, opener, received, &life) => end,
        end = send(shared, number, write, sealer, &transmit, &life) => end,
    };
    end.err().unwrap_or(CarrierEnd::Closed)
}

async fn receive(
    shared: &Shared,
    number: CarrierNumber,
    mut read: impl AsyncRead + Unpin,
    mut opener: RecordOpener,
    mut buffer: BytesMut,
    life: &Life,
) -> Result<(), CarrierEnd> {
    loop {
        while let Some(body) = opener.open_next(&mut buffer)? {
            let body = body.freeze();
            shared.with(|resume, now| take_in_message(resume, number, body, life, now))?;
            shared.driver_room().await;
        }
        if buffer.capacity() - buffer.len() < MAX_NOISE_MESSAGE {
            buffer.reserve(READ_SIZE);
        }
        if read.read_buf(&mut buffer).await? == 0 {
            return Err(CarrierEnd::Closed);
        }
    }
}

async fn send(
    shared: &Shared,
    number: CarrierNumber,
    mut write: impl AsyncWrite + Unpin,
    mut sealer: RecordSealer,
    transmit: &Notify,
    life: &Life,
) -> Result<(), CarrierEnd> {
    let mut frame = BytesMut::with_capacity(FRAME_HEADER + MAX_NOISE_MESSAGE);
    let mut next = Instant::now();
    loop {
        frame.clear();
        frame.resize(FRAME_HEADER, 0);
        let pace = life.pace();
        let limit = piece(pace);
        let some = shared.with(|resume, now| fill_message(resume, number, &mut frame, limit, now));
        if !some {
            transmit.notified().await;
            continue;
        }
        sealer.seal_in_place(&mut frame, 0)?;
        life.count_sent();
        write.write_all(&frame).await?;
        write.flush().await?;
        if let Some(took) = (frame.len() as u64 * 1_000_000).checked_div(pace) {
            // A late timer is made up for, an idle time is not.
            let now = Instant::now();
            next = next.max(now - PIECE) + Duration::from_micros(took);
            if next > now {
                sleep_until(next).await;
            }
        }
    }
}

/// Bytes that are sent at once.
fn piece(pace: u64) -> usize {
    if pace == 0 {
        return MAX_NOISE_PAYLOAD;
    }
    let bytes = usize::try_from(pace / PIECES_PER_S).unwrap_or(usize::MAX);
    bytes.clamp(MIN_PIECE, MAX_NOISE_PAYLOAD)
}

/// Reads one whole frame of the handshake.
pub(crate) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
) -> io::Result<BytesMut> {
    loop {
        if let Some(frame) = take_frame(buffer) {
            return Ok(frame);
        }
        buffer.reserve(MAX_NOISE_MESSAGE + FRAME_HEADER);
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Keeps queues in the kernel short, and lets it notice a dead connection.
pub(crate) fn tune(stream: &tokio::net::TcpStream) {
    // Without any of these the connection still works.
    let _ = stream.set_nodelay(true);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let socket = socket2::SockRef::from(stream);
        let _ = socket.set_tcp_notsent_lowat(NOT_SENT_LOWAT);
        let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    }
}
