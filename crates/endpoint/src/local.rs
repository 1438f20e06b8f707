//! The local connection of a channel: the application's at the console, the target's at the
//! agent. Bytes are read when the session has room and written as they arrive; an irregular end
//! of the channel becomes a reset, so that a cut stream never looks complete.

use std::{io::IoSlice, sync::Arc, time::Duration};

use adit_core::resume::Deliverable;
use adit_protocol::{code::ChannelCode, ticket::Role};
use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
};

use crate::shared::{ChannelTap, ChannelWake, Progress, Shared};

/// Bytes read at once.
const READ_SIZE: usize = 64 * 1024;
/// A read buffer with less room than this is replaced.
const MIN_ROOM: usize = 8 * 1024;
/// Pieces written at once.
const MAX_SLICES: usize = 64;

/// Moves bytes between a local connection and its channel until the channel is over.
/// Nothing is written before `ready`, and at the agent nothing is read either: who has signed
/// nothing gets nothing from the target. The console's first bytes travel with the opening, and are
/// held back where they arrive.
pub(crate) async fn run(
    shared: Arc<Shared>,
    tap: ChannelTap,
    mut stream: TcpStream,
    ready: impl Future<Output = Result<(), ChannelCode>>,
) {
    let _ = stream.set_nodelay(true);
    let ChannelTap { id, wake, mut progress } = tap;
    let (read, write) = stream.split();
    let over = wait_over(&mut progress);
    let mut code = ChannelCode::LocalReset;
    let broken = tokio::select! {
        biased;
        () = over => false,
        () = async {
            // One direction may end regularly long before the other; an error ends both.
            let up = read_local(&shared, id, &wake, read);
            let refusal = &mut code;
            let ready = async {
                ready.await.map_err(|why| {
                    *refusal = why;
                    Broken
                })
            };
            let down = write_local(&shared, id, &wake, write);
            let both = async {
                if shared.role() == Role::Agent {
                    ready.await?;
                    tokio::try_join!(up, down)
                } else {
                    let down = async {
                        ready.await?;
                        down.await
                    };
                    tokio::try_join!(up, down)
                }
            };
            if both.await.is_ok() {
                // Both regular ends are on their way; the machine says when they have arrived.
                std::future::pending::<()>().await;
            }
        } => true,
    };
    if broken {
        shared.with(|resume, _| resume.reset(id, code));
    }
    if progress.borrow().code().is_some() || broken {
        // RST instead of FIN (SO_LINGER 0). tokio deprecates it for non-zero times only.
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}

pub(crate) async fn wait_over(progress: &mut watch::Receiver<Progress>) {
    // An error means that the entry is gone, which happens only after the end.
    let _ = progress.wait_for(|p| matches!(p, Progress::Over(_))).await;
}

/// The local connection failed.
struct Broken;

async fn read_local(
    shared: &Shared,
    id: adit_protocol::ids::ChannelId,
    wake: &ChannelWake,
    mut read: ReadHalf<'_>,
) -> Result<(), Broken> {
    let mut buffer = BytesMut::new();
    let mut capacity = shared.with(|resume, _| resume.local_capacity(id));
    loop {
        if capacity == 0 {
            wake.capacity.notified().await;
            capacity = shared.with(|resume, _| resume.local_capacity(id));
            continue;
        }
        if buffer.capacity() < MIN_ROOM {
            buffer.reserve(READ_SIZE);
        }
        let n =
            (&mut read).take(capacity as u64).read_buf(&mut buffer).await.map_err(|_| Broken)?;
        if n == 0 {
            shared.with(|resume, now| resume.handle_local_fin(id, now));
            return Ok(());
        }
        let data = buffer.split().freeze();
        capacity = shared.with(|resume, now| {
            resume.handle_local_data(id, data, now);
            resume.local_capacity(id)
        });
    }
}

async fn write_local(
    shared: &Shared,
    id: adit_protocol::ids::ChannelId,
    wake: &ChannelWake,
    mut write: WriteHalf<'_>,
) -> Result<(), Broken> {
    let mut pieces: Vec<Bytes> = Vec::with_capacity(MAX_SLICES);
    let mut written = 0;
    loop {
        let fin = shared.with(|resume, now| {
            if written > 0 {
                resume.handle_delivered(id, written, now);
            }
            while pieces.len() < MAX_SLICES {
                match resume.take_deliverable(id) {
                    Some(Deliverable::Bytes(bytes)) => pieces.push(bytes),
                    Some(Deliverable::Fin) => return pieces.is_empty(),
                    None => break,
                }
            }
            false
        });
        if fin {
            write.shutdown().await.map_err(|_| Broken)?;
            shared.with(|resume, now| resume.handle_fin_delivered(id, now));
            return Ok(());
        }
        written = 0;
        if pieces.is_empty() {
            wake.deliver.notified().await;
            continue;
        }
        written = write_all(&mut write, &mut pieces).await?;
    }
}

async fn write_all(write: &mut WriteHalf<'_>, pieces: &mut Vec<Bytes>) -> Result<usize, Broken> {
    let mut written = 0;
    if let [only] = pieces.as_slice() {
        write.write_all(only).await.map_err(|_| Broken)?;
        written = only.len();
        pieces.clear();
        return Ok(written);
    }
    let mut done = 0;
    while done < pieces.len() {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces.iter().skip(done)) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        let slices = slices.get(..count).unwrap_or_default();
        let mut n = write.write_vectored(slices).await.map_err(|_| Broken)?;
        if n == 0 {
            return Err(Broken);
        }
        written += n;
        while let Some(piece) = pieces.get_mut(done) {
            if n < piece.len() {
                piece.advance(n);
                break;
            }
            n -= piece.len();
            done += 1;
        }
    }
    pieces.clear();
    Ok(written)
}
