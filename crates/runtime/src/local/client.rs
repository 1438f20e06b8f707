//! The asking side.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncWriteExt, BufReader};

use super::wire::{Line, push_line, read_line};
use super::{MAX_REPLY_BYTES, MAX_REQUEST_BYTES, platform};
use crate::cli::CliError;
use crate::datadir::denied;

/// For an answer to be complete, unless the caller gives another limit.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Nobody listens: start the program, or do without it.
    #[error("no program runs on {0}")]
    NotRunning(PathBuf),
    /// The program answered with an error.
    #[error(transparent)]
    Failed(CliError),
    /// No complete answer in time.
    #[error("the running program did not answer within {0:?}")]
    TimedOut(Duration),
    /// The request is larger than [`MAX_REQUEST_BYTES`].
    #[error("the request is larger than {MAX_REQUEST_BYTES} bytes")]
    TooLarge,
    /// The answer is not of this protocol, too large, or cut.
    #[error("the running program answered with something else: {0}")]
    Protocol(String),
    /// The socket cannot be used.
    #[error("cannot reach the running program: {0}")]
    Io(#[from] std::io::Error),
}

impl From<LocalError> for CliError {
    fn from(error: LocalError) -> Self {
        let message = error.to_string();
        match error {
            LocalError::Failed(error) => error,
            LocalError::NotRunning(_) => Self::not_there("not_running", message)
                .hint("start it, or give the right --data-dir"),
            LocalError::Io(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                Self::failed("data_dir_denied", message).hint("run this as the program's user")
            }
            LocalError::TimedOut(_) => Self::failed("local_timeout", message)
                .hint("try again; see the running program's log"),
            _ => Self::failed("local_failed", message)
                .hint("restart the program if it is of another version; see its log"),
        }
    }
}

/// Calls a running program.
#[derive(Debug)]
pub struct LocalClient;

impl LocalClient {
    /// Sends `request` to the socket at `path` and gives the replies.
    pub async fn call(path: &Path, request: Value) -> Result<Vec<Value>, LocalError> {
        Self::call_within(path, request, CALL_TIMEOUT).await
    }

    /// [`Self::call`] with another limit of time.
    pub async fn call_within(
        path: &Path,
        request: Value,
        limit: Duration,
    ) -> Result<Vec<Value>, LocalError> {
        let call = exchange(path, &request);
        tokio::time::timeout(limit, call).await.map_err(|_| LocalError::TimedOut(limit))?
    }
}

async fn exchange(path: &Path, request: &Value) -> Result<Vec<Value>, LocalError> {
    let mut bytes = Vec::new();
    push_line(&mut bytes, request)?;
    if bytes.len() > MAX_REQUEST_BYTES {
        return Err(LocalError::TooLarge);
    }
    let mut stream = match platform::connect(path).await {
        Ok(stream) => stream,
        Err(error) if not_running(&error) => return Err(LocalError::NotRunning(path.to_owned())),
        Err(error) => {
            let directory = path.parent().and_then(denied);
            return Err(directory.map_or_else(|| error.into(), LocalError::Failed));
        }
    };
    stream.write_all(&bytes).await?;
    let mut reader = BufReader::new(stream);
    let mut replies = Vec::new();
    let mut left = MAX_REPLY_BYTES;
    let mut line = Vec::new();
    loop {
        let read = read_line(&mut reader, &mut line, left).await;
        if !read.map_err(|error| LocalError::Protocol(error.to_string()))? {
            return Err(LocalError::Protocol("it ended too early".to_owned()));
        }
        left = left.saturating_sub(line.len());
        let answer = serde_json::from_slice(&line);
        match answer.map_err(|error| LocalError::Protocol(error.to_string()))? {
            Line::Reply(value) => replies.push(value.into_owned()),
            Line::Done(_) => return Ok(replies),
            Line::Error(error) => return Err(LocalError::Failed(error.into())),
        }
    }
}

/// A socket that is not there, or left behind by a program that died.
fn not_running(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
}
