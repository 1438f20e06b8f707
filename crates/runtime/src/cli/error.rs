//! The one error that reaches the user: a stable code, an exit code, what, why, what to do.
//! Nothing converts into it by itself: whoever fails says in which words.

use std::fmt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::escape::escape_text;

/// Code of the error that is reported by silence: whoever read stdout has gone.
const BROKEN_PIPE: &str = "broken_pipe";

/// Time for whoever tells the outcome to write it and end the process.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(2);

/// Exit codes of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It failed.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// Refused: authentication, authorisation, policy, a key that is not the known one.
    Refused = 3,
    /// Not there or not online.
    NotThere = 4,
    /// No network path.
    NoPath = 5,
    /// Interrupted by the user.
    Interrupted = 130,
}

impl Exit {
    /// The number the process exits with.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The exit with this number; anything unknown counts as failed.
    pub fn from_code(code: u8) -> Self {
        match code {
            2 => Self::Usage,
            3 => Self::Refused,
            4 => Self::NotThere,
            5 => Self::NoPath,
            130 => Self::Interrupted,
            _ => Self::Failed,
        }
    }
}

/// An error for the person or script that gave the command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    /// Stable, lower-case, with underscores; listed in docs/errors.md.
    pub code: &'static str,
    /// What the process exits with.
    pub exit: Exit,
    /// What happened and why.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl CliError {
    /// An error with exit code 1.
    pub fn failed(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(code, Exit::Failed, message)
    }

    /// Wrong usage or configuration: exit code 2.
    pub fn usage(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(code, Exit::Usage, message)
    }

    /// Refused: exit code 3.
    pub fn refused(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(code, Exit::Refused, message)
    }

    /// Not there or not online: exit code 4.
    pub fn not_there(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(code, Exit::NotThere, message)
    }

    /// No network path: exit code 5.
    pub fn no_path(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(code, Exit::NoPath, message)
    }

    /// Interrupted by the user: exit code 130.
    pub fn interrupted() -> Self {
        Self::new("interrupted", Exit::Interrupted, "interrupted")
    }

    /// An error with any exit code.
    pub fn new(code: &'static str, exit: Exit, message: impl Into<String>) -> Self {
        Self { code, exit, message: message.into(), hint: None }
    }

    /// An address that could not be listened on; a port in use has its own code.
    pub fn bind(address: impl fmt::Display, error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                Self::failed("port_in_use", format!("cannot listen on {address}: it is in use"))
                    .hint("stop the program that uses it, or choose another port (0: any free one)")
            }
            std::io::ErrorKind::PermissionDenied => {
                Self::failed("port_denied", format!("cannot listen on {address}: {error}"))
                    .hint("ports below 1024 need privileges: choose another port or run as root")
            }
            _ => Self::failed("listen_failed", format!("cannot listen on {address}: {error}")),
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn broken_pipe() -> Self {
        Self::failed(BROKEN_PIPE, "whoever read the output has gone")
    }
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    error: ErrorBody<'a>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    code: &'a str,
    message: &'a str,
    hint: Option<&'a str>,
}

impl<'a> From<&'a CliError> for ErrorObject<'a> {
    fn from(error: &'a CliError) -> Self {
        let body =
            ErrorBody { code: error.code, message: &error.message, hint: error.hint.as_deref() };
        Self { error: body }
    }
}

/// Whether the outcome of this process's command is told, or being told.
static TOLD: AtomicBool = AtomicBool::new(false);

/// Tells the outcome of a command, text to stderr or an object as stdout's last line, and gives
/// the exit code. A closed stdout is told by nothing and counts as done.
///
/// Once in a process: who comes second waits for the first to end it.
pub fn report(result: Result<(), CliError>, json: bool) -> ExitCode {
    if TOLD.swap(true, Ordering::SeqCst) {
        std::thread::park_timeout(LAST_WORDS);
    }
    let Err(error) = result else { return ExitCode::SUCCESS };
    if error.code == BROKEN_PIPE {
        return ExitCode::SUCCESS;
    }
    if json {
        // The failure to tell of a failure has nobody left to hear it; the exit code says it.
        let _ = crate::output::Output::new(true).emit(&ErrorObject::from(&error));
    } else {
        use std::io::Write;
        let _ = std::io::stderr().lock().write_all(human(&error).as_bytes());
    }
    ExitCode::from(error.exit.code())
}

fn human(error: &CliError) -> String {
    let mut text = format!("error: {} ({})\n", escape_text(&error.message), error.code);
    if let Some(hint) = &error.hint {
        text.push_str(&format!("  try: {}\n", escape_text(hint)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn human_text_says_what_why_and_what_to_do_without_control_characters() {
        let error = CliError::not_there("computer_offline", "pc\u{1b}[1m is not online")
            .hint("start agent-tunnel there");
        assert_eq!(
            human(&error),
            "error: pc\\u{1b}[1m is not online (computer_offline)\n  try: start agent-tunnel there\n"
        );
    }

    #[test]
    fn json_object_has_the_shape_of_the_contract() {
        let error = CliError::refused("key_changed", "other key");
        let text = serde_json::to_string(&ErrorObject::from(&error)).unwrap();
        assert_eq!(text, r#"{"error":{"code":"key_changed","message":"other key","hint":null}}"#);
    }

    #[test]
    fn exit_codes_round_trip() {
        for code in [1, 2, 3, 4, 5, 130] {
            assert_eq!(Exit::from_code(code).code(), code);
        }
        assert_eq!(Exit::from_code(77), Exit::Failed);
    }
}
