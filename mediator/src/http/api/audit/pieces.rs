//! An export, or a backup, on its way to whoever reads it: piece by piece, as fast as they are
//! read.
//!
//! A reader is waited for, but not for ever, nor at any pace: an export that is kept open is a
//! place that others do not have. Must never let what was cut off look complete.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use adit_protocol::code::failure;
use adit_runtime::cli::CliError;
use axum::body::Bytes;
use futures_util::stream;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::TaskTracker;

use super::turns::Place;
use crate::{
    admin::export::{self, Out, Selection},
    http::Web,
};

/// Pieces of an export that wait for the reader, and bytes of one.
const PIECES: usize = 2;
const MAX_PIECE: usize = 64 * 1024;
/// How long a reader may read nothing.
pub(super) const READER_DEADLINE: Duration = Duration::from_secs(30);
/// How long it is waited for in all, and how much longer for each KiB that it has read: whoever
/// reads less than 32 KiB a second is not waited for to the end of a long log, nor for what was
/// read faster before: never more than the grace is left.
const GRACE: Duration = Duration::from_secs(60);
const EACH_KIB: Duration = Duration::from_micros(31_250);

pub(in crate::http::api) type Piece = Result<Bytes, std::io::Error>;

/// The reader at the other end of a connection, which is not waited for without end.
pub(in crate::http::api) struct Reader {
    sender: mpsc::Sender<Bytes>,
    deadline: Duration,
    /// How long it may still be waited for in all.
    patience: Duration,
}

impl Reader {
    fn new(sender: mpsc::Sender<Bytes>, deadline: Duration) -> Self {
        Self { sender, deadline, patience: GRACE }
    }
}

impl Out for Reader {
    async fn piece(&mut self, text: String) -> Result<(), CliError> {
        self.bytes(Bytes::from(text)).await
    }
}

impl Reader {
    /// Takes bytes; an error ends the answer.
    pub(in crate::http::api) async fn bytes(&mut self, mut rest: Bytes) -> Result<(), CliError> {
        let gone = |text| CliError::failed(failure::INTERNAL, text);
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(MAX_PIECE));
            let earned = EACH_KIB * u32::try_from(piece.len() / 1024).unwrap_or(0);
            let (asked, wait) = (Instant::now(), self.deadline.min(self.patience));
            match tokio::time::timeout(wait, self.sender.send(piece)).await {
                // Only for what it makes others wait, not for what it takes to read the log.
                Ok(Ok(())) => {
                    let left = self.patience.saturating_sub(asked.elapsed());
                    self.patience = (left + earned).min(GRACE);
                }
                Ok(Err(_)) => return Err(gone("the reader has gone")),
                Err(_) => return Err(gone("the reader reads nothing, or too slowly")),
            }
        }
        Ok(())
    }
}

/// Reads as fast as the reader takes it, and ends when that has gone or takes nothing.
pub(super) fn pieces(
    web: Arc<Web>,
    selection: Selection,
    place: Place,
) -> impl stream::Stream<Item = Piece> {
    let tasks = web.exports.tasks().clone();
    stream(&tasks, move |reader| async move {
        // Held by who reads the log, not by the answer, which lies where nobody fetches it.
        let _place = place;
        export::export(&web.admin.store, &selection, reader).await.map(|_| ())
    })
}

/// An answer of what `all` makes, in a task of its own.
pub(in crate::http::api) fn stream<F, Fut>(
    tasks: &TaskTracker,
    all: F,
) -> impl stream::Stream<Item = Piece> + use<F, Fut>
where
    F: FnOnce(Reader) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), CliError>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(PIECES);
    let complete = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&complete);
    tasks.spawn(async move { send(sender, &complete, all).await });
    answer(receiver, told)
}

/// Sends what `all` makes. INVARIANT: the answer ends only after it is known whether that was all.
async fn send<Fut: Future<Output = Result<(), CliError>>>(
    sender: mpsc::Sender<Bytes>,
    complete: &AtomicBool,
    all: impl FnOnce(Reader) -> Fut,
) {
    let reader = Reader::new(sender.clone(), READER_DEADLINE);
    match all(reader).await {
        Ok(()) => complete.store(true, Ordering::Release),
        Err(error) => tracing::warn!(%error, "an answer was cut off"),
    }
    drop(sender);
}

/// An answer that was cut must not look complete.
fn answer(
    receiver: mpsc::Receiver<Bytes>,
    complete: Arc<AtomicBool>,
) -> impl stream::Stream<Item = Piece> {
    stream::unfold(Some(receiver), move |receiver| {
        let complete = Arc::clone(&complete);
        async move {
            let mut receiver = receiver?;
            match receiver.recv().await {
                Some(piece) => Some((Ok(piece), Some(receiver))),
                None if complete.load(Ordering::Acquire) => None,
                None => Some((Err(std::io::Error::other("cut off")), None)),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;

    #[tokio::test]
    async fn a_reader_that_reads_nothing_is_given_up_and_its_answer_is_not_complete() {
        let (sender, receiver) = mpsc::channel(PIECES);
        let deadline = Duration::from_millis(20);
        let mut reader = Reader::new(sender, deadline);
        let whole = "x".repeat(PIECES * MAX_PIECE);
        reader.piece(whole.clone()).await.unwrap();
        reader.piece("more".to_owned()).await.unwrap_err();
        drop(reader);
        let mut told = std::pin::pin!(answer(receiver, Arc::new(AtomicBool::new(false))));
        let mut got = 0;
        while let Some(Ok(piece)) = told.next().await {
            assert!(piece.len() <= MAX_PIECE);
            got += piece.len();
        }
        assert_eq!(got, whole.len());
        let (sender, receiver) = mpsc::channel(PIECES);
        drop(Reader::new(sender, deadline));
        assert_eq!(answer(receiver, Arc::new(AtomicBool::new(true))).count().await, 0);
        let (sender, receiver) = mpsc::channel(PIECES);
        drop(Reader::new(sender, deadline));
        let told: Vec<_> = answer(receiver, Arc::new(AtomicBool::new(false))).collect().await;
        assert!(matches!(told.as_slice(), [Err(_)]));
    }

    /// Each piece is in time by itself.
    #[tokio::test(start_paused = true)]
    async fn a_reader_that_reads_a_little_now_and_then_is_given_up() {
        /// 64 MB: at the slower paces more than it is waited for.
        const MANY: usize = 1_000;
        let cases = [(25_000, false), (2_100, false), (2_000, true), (100, true)];
        for (pause_ms, lasts) in cases {
            let (sender, mut receiver) = mpsc::channel(PIECES);
            let mut reader = Reader::new(sender, READER_DEADLINE);
            let sent = async {
                for piece in 0..MANY {
                    reader.piece("x".repeat(MAX_PIECE)).await.map_err(|_| piece)?;
                }
                Ok(())
            };
            let mut sent = std::pin::pin!(sent);
            let slow = async {
                while receiver.recv().await.is_some() {
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                }
            };
            let told: Result<(), usize> = tokio::select! {
                told = &mut sent => told,
                () = slow => panic!("the sender is there"),
            };
            assert_eq!(told.is_ok(), lasts, "{pause_ms}: {told:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_read_fast_is_waited_for_no_longer_than_others() {
        let (sender, mut receiver) = mpsc::channel(PIECES);
        let mut reader = Reader::new(sender, READER_DEADLINE);
        let piece = || "x".repeat(MAX_PIECE);
        for _ in 0..1_000 {
            reader.piece(piece()).await.unwrap();
            receiver.recv().await.unwrap();
        }
        let began = Instant::now();
        let mut slow = std::pin::pin!(async {
            while receiver.recv().await.is_some() {
                tokio::time::sleep(READER_DEADLINE - Duration::from_secs(1)).await;
            }
        });
        loop {
            let told = tokio::select! {
                told = reader.piece(piece()) => told,
                () = &mut slow => panic!("the sender is there"),
            };
            if told.is_err() {
                break;
            }
        }
        assert!(began.elapsed() < 2 * GRACE, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn an_answer_does_not_end_before_it_is_known_to_be_complete() {
        for good in [true, false] {
            let (sender, receiver) = mpsc::channel(PIECES);
            let complete = Arc::new(AtomicBool::new(false));
            let mut told = std::pin::pin!(answer(receiver, Arc::clone(&complete)));
            let mut sent = std::pin::pin!(send(sender, &complete, async |mut reader: Reader| {
                reader.piece("all".to_owned()).await?;
                drop(reader);
                // As when another thread looks in between.
                tokio::task::yield_now().await;
                good.then_some(()).ok_or_else(|| CliError::failed(failure::INTERNAL, "cut"))
            }));
            assert!((&mut sent).now_or_never().is_none());
            assert!(matches!(told.next().await, Some(Ok(_))));
            assert!(told.next().now_or_never().is_none(), "ended too early");
            sent.await;
            let end = told.next().await;
            assert!(if good { end.is_none() } else { matches!(end, Some(Err(_))) });
        }
    }
}
