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
/// Bytes of a refused program that are thrown away.
const MAX_DISCARD: u64 = 1024 * 1024;
/// Time for a refusal to be read.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Looks at what a local program sends, before the channel has it.
pub trait Watch: Send {
    /// What of it goes on now. The rest is kept there, and never more than a bounded amount.
    fn pass(&mut self, bytes: Bytes) -> Result<Bytes, Refusal>;

    /// Is anything kept? Nothing would come of it if the program ended now, and its stream would
    /// not be whole.
    fn is_holding(&self) -> bool;
}

/// The channel ends. This is said to the local program, if anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub String);

/// Moves bytes between a local connection and its channel until the channel is over.
/// Nothing is written before `ready`, and at the agent nothing is read either: who has signed
/// nothing gets nothing from the target. The console's first bytes travel with the opening, and are
/// held back where they arrive.
pub(crate) async fn run(
    shared: Arc<Shared>,
    tap: ChannelTap,
    mut stream: TcpStream,
    watch: Option<Box<dyn Watch>>,
    ready: impl Future<Output = Result<(), ChannelCode>>,
) {
    let _ = stream.set_nodelay(true);
    let ChannelTap { id, wake, mut progress } = tap;
    let (read, write) = stream.split();
    let over = wait_over(&mut progress);
    let mut code = ChannelCode::LocalReset;
    let broken = tokio::select! {
        biased;
        () = over => None,
        broken = async {
            // One direction may end regularly long before the other; an error ends both.
            let up = read_local(&shared, id, &wake, read, watch);
            let refusal = &mut code;
            let ready = async {
                ready.await.map_err(|why| {
                    *refusal = why;
                    Broken::Socket
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
            match both.await {
                // Both regular ends are on their way; the machine says when they have arrived.
                Ok(_) => std::future::pending().await,
                Err(broken) => broken,
            }
        } => Some(broken),
    };
    if broken.is_some() {
        shared.with(|resume, _| resume.reset(id, code));
    }
    if let Some(Broken::Refused(Refusal(answer))) = &broken {
        tell(&mut stream, answer).await;
    }
    if progress.borrow().code().is_some() || broken.is_some() {
        // RST instead of FIN (SO_LINGER 0). tokio deprecates it for non-zero times only.
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}

pub(crate) async fn wait_over(progress: &mut watch::Receiver<Progress>) {
    // An error means that the entry is gone, which happens only after the end.
    let _ = progress.wait_for(|p| matches!(p, Progress::Over(_))).await;
}

/// Says to a local program why it is not served.
async fn tell(stream: &mut TcpStream, answer: &str) {
    let told = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // What is left unread would reset the connection before the answer is read.
        tokio::io::copy(&mut stream.take(MAX_DISCARD), &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(ANSWER_DEADLINE, told).await;
}

/// The local connection is over.
enum Broken {
    /// It failed.
    Socket,
    /// What it sent was refused.
    Refused(Refusal),
}

async fn read_local(
    shared: &Shared,
    id: adit_protocol::ids::ChannelId,
    wake: &ChannelWake,
    mut read: ReadHalf<'_>,
    mut watch: Option<Box<dyn Watch>>,
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
        let n = (&mut read)
            .take(capacity as u64)
            .read_buf(&mut buffer)
            .await
            .map_err(|_| Broken::Socket)?;
        if n == 0 {
            // A regular end would make what arrived look like all that was sent.
            if watch.as_ref().is_some_and(|watch| watch.is_holding()) {
                return Err(Broken::Socket);
            }
            shared.with(|resume, now| resume.handle_local_fin(id, now));
            return Ok(());
        }
        let mut data = buffer.split().freeze();
        if let Some(watch) = &mut watch {
            data = watch.pass(data).map_err(Broken::Refused)?;
            if data.is_empty() {
                continue;
            }
        }
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
            write.shutdown().await.map_err(|_| Broken::Socket)?;
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
        write.write_all(only).await.map_err(|_| Broken::Socket)?;
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
        let mut n = write.write_vectored(slices).await.map_err(|_| Broken::Socket)?;
        if n == 0 {
            return Err(Broken::Socket);
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
