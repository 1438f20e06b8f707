//! The answering side, in the running program.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::platform::{Listener, Stream};
use super::wire::{Line, push_line, read_line};
use super::{
    MAX_CONNECTIONS, MAX_REPLY_BYTES, MAX_REQUEST_BYTES, REPLY_TIMEOUT, REQUEST_TIMEOUT,
    socket_path,
};
use crate::cli::CliError;
use crate::datadir::{DataDir, FileLock};

/// For requests that are being answered when the program stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Rest after an accept that failed, e.g. because file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Discarded of a connection's input after its request, so that closing does not reset it.
const MAX_DRAIN_BYTES: u64 = 64 * 1024;

/// The bound local socket. Dropping it removes the socket file.
#[derive(Debug)]
pub struct LocalServer {
    listener: Listener,
    // INVARIANT: held while the socket file exists; a stale one is replaced under it only.
    _lock: FileLock,
}

impl LocalServer {
    /// Binds the socket of the program `name`. A socket file that a dead program left is
    /// replaced; a living program is `already_running`.
    pub fn bind(directory: &DataDir, name: &str) -> Result<Self, CliError> {
        let lock = directory.lock(&format!("{name}.sock"))?;
        let path = socket_path(directory.path(), name);
        let listener = Listener::bind(&path).map_err(|error| failed(&path, &error))?;
        Ok(Self { listener, _lock: lock })
    }

    /// Answers requests with `handler` until `stop`, then gives those under way 2 s.
    pub async fn serve<H, F>(mut self, handler: H, stop: CancellationToken)
    where
        H: Fn(Value) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Vec<Value>, CliError>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            // Ended connections are taken out, or the set grows for ever.
            while let Some(ended) = connections.try_join_next() {
                log_end(ended);
            }
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Ok(permit) = Arc::clone(&free).acquire_owned() => tokio::select! {
                    () = stop.cancelled() => break,
                    stream = self.listener.accept() => stream.map(|stream| (stream, permit)),
                },
            };
            match accepted {
                Ok((stream, permit)) => {
                    let handler = Arc::clone(&handler);
                    connections.spawn(async move {
                        let _permit = permit;
                        answer(stream, handler.as_ref()).await
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept a local connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        let rest = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, rest).await.is_err() {
            debug!("local requests were cut off by the stop");
        }
    }
}

fn log_end(ended: Result<std::io::Result<()>, tokio::task::JoinError>) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "local connection failed"),
        Err(error) => tracing::error!(%error, "a local request panicked"),
    }
}

async fn answer<H, F>(mut stream: Stream, handler: &H) -> std::io::Result<()>
where
    H: Fn(Value) -> F,
    F: Future<Output = Result<Vec<Value>, CliError>>,
{
    let mut line = Vec::new();
    let result = {
        let mut reader = BufReader::new(&mut stream);
        // One byte less than the limit, for the newline.
        let read = read_line(&mut reader, &mut line, MAX_REQUEST_BYTES - 1);
        match tokio::time::timeout(REQUEST_TIMEOUT, read).await {
            Err(_) => Err(bad_request("the request did not arrive in time")),
            Ok(Ok(false)) => return Ok(()),
            Ok(Ok(true)) => serde_json::from_slice(&line)
                .map_err(|error| bad_request(&format!("the request is no JSON: {error}"))),
            Ok(Err(error)) => Err(bad_request(&format!("cannot read the request: {error}"))),
        }
    };
    let result = match result {
        Ok(request) => handler(request).await,
        Err(error) => Err(error),
    };
    let bytes = encode(result)?;
    tokio::time::timeout(REPLY_TIMEOUT, async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await?;
        // Unread input would turn the close into a reset that eats the answer.
        let mut rest = stream.take(MAX_DRAIN_BYTES);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.map(|_| ())
    })
    .await
    .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

fn encode(result: Result<Vec<Value>, CliError>) -> std::io::Result<Vec<u8>> {
    use std::borrow::Cow;
    let mut bytes = Vec::new();
    let replies = match result {
        Ok(replies) => replies,
        Err(error) => {
            push_line(&mut bytes, &Line::Error(error.into()))?;
            return Ok(bytes);
        }
    };
    for reply in &replies {
        push_line(&mut bytes, &Line::Reply(Cow::Borrowed(reply)))?;
        if bytes.len() > MAX_REPLY_BYTES - MAX_DONE_BYTES {
            let error = CliError::failed("reply_too_large", "the answer is larger than 64 MiB")
                .hint("ask for less, e.g. a shorter time");
            bytes.clear();
            push_line(&mut bytes, &Line::Error(error.into()))?;
            return Ok(bytes);
        }
    }
    push_line(&mut bytes, &Line::Done(true))?;
    Ok(bytes)
}

/// Room for the last line of an answer.
const MAX_DONE_BYTES: usize = 64;

fn bad_request(message: &str) -> CliError {
    CliError::usage("local_bad_request", message)
}

fn failed(path: &Path, error: &std::io::Error) -> CliError {
    let message = format!("cannot make the local socket {}: {error}", path.display());
    CliError::failed("local_socket_failed", message)
        .hint("choose a --data-dir with a shorter path on a local file system")
}
