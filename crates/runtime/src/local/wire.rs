//! Lines on the local socket.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

use crate::cli::{CliError, Exit};

/// Codes from another build that this one does not have in its text; more become
/// [`UNKNOWN_CODE`], so that nobody can fill memory with them.
const MAX_FOREIGN_CODES: usize = 64;

const MAX_CODE_BYTES: usize = 64;

const UNKNOWN_CODE: &str = "failed";

/// A line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line<'a> {
    /// One of the replies.
    Reply(Cow<'a, Value>),
    /// The answer is complete.
    Done(bool),
    /// The request failed.
    Error(WireError),
}

/// A [`CliError`] on its way to the client.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WireError {
    code: String,
    exit: u8,
    message: String,
    hint: Option<String>,
}

impl From<CliError> for WireError {
    fn from(error: CliError) -> Self {
        let CliError { code, exit, message, hint } = error;
        Self { code: code.to_owned(), exit: exit.code(), message, hint }
    }
}

impl From<WireError> for CliError {
    fn from(error: WireError) -> Self {
        let new = Self::new(static_code(&error.code), Exit::from_code(error.exit), error.message);
        Self { hint: error.hint, ..new }
    }
}

/// Codes live as long as the program: each distinct one is kept once, and only a few.
fn static_code(code: &str) -> &'static str {
    static CODES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if code.is_empty() || code.len() > MAX_CODE_BYTES || !code.bytes().all(plain) {
        return UNKNOWN_CODE;
    }
    let mut codes = CODES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(known) = codes.get(code) {
        return known;
    }
    if codes.len() >= MAX_FOREIGN_CODES {
        return UNKNOWN_CODE;
    }
    let kept: &'static str = Box::leak(code.to_owned().into_boxed_str());
    codes.insert(kept);
    kept
}

/// Appends `value` and a newline to `buffer`.
pub(super) fn push_line(buffer: &mut Vec<u8>, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *buffer, value).map_err(io::Error::other)?;
    buffer.push(b'\n');
    Ok(())
}

/// Reads one line without its newline into `line`, at most `max` bytes. `false` at a clean end;
/// an end within a line is an error.
pub(super) async fn read_line(
    reader: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
    max: usize,
) -> io::Result<bool> {
    line.clear();
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return if line.is_empty() {
                Ok(false)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        let newline = available.iter().position(|byte| *byte == b'\n');
        let taken = newline.unwrap_or(available.len());
        if line.len() + taken > max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "line too long"));
        }
        line.extend(available.iter().take(taken));
        reader.consume(taken + usize::from(newline.is_some()));
        if newline.is_some() {
            return Ok(true);
        }
    }
}

/// For fuzzing: whether a line is one of an answer, which must read back as it was.
#[doc(hidden)]
pub fn fuzz_line(data: &[u8]) -> bool {
    let Ok(line) = serde_json::from_slice::<Line<'_>>(data) else { return false };
    let mut text = Vec::new();
    let written = push_line(&mut text, &line).is_ok();
    assert!(written && text.pop() == Some(b'\n') && !text.contains(&b'\n'), "not one line");
    let again = serde_json::from_slice::<Line<'_>>(&text);
    assert!(again.is_ok(), "it does not read back");
    if let Line::Error(error) = line {
        let error = CliError::from(error);
        assert!(error.code.len() <= MAX_CODE_BYTES);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_cross_the_socket_unchanged_and_hostile_codes_do_not() {
        let error = CliError::refused("policy_denied", "no").hint("ask");
        let text = serde_json::to_string(&WireError::from(error.clone())).unwrap();
        let back: WireError = serde_json::from_str(&text).unwrap();
        assert_eq!(CliError::from(back), error);
        assert_eq!(static_code("a\u{1b}[2J"), UNKNOWN_CODE);
        assert_eq!(static_code(&"a".repeat(65)), UNKNOWN_CODE);
    }

    #[tokio::test]
    async fn lines_are_limited_and_never_cut() {
        let mut line = Vec::new();
        let mut reader: &[u8] = b"one\n\ntwo";
        assert!(read_line(&mut reader, &mut line, 3).await.unwrap());
        assert_eq!(line, b"one");
        assert!(read_line(&mut reader, &mut line, 3).await.unwrap());
        assert!(read_line(&mut reader, &mut line, 3).await.is_err());
        assert!(read_line(&mut &b"four\n"[..], &mut line, 3).await.is_err());
        assert!(!read_line(&mut &b""[..], &mut line, 3).await.unwrap());
    }
}
