//! Output on stdout: JSON lines with `--json`, else text for people.
//! Never messages or progress (those are stderr's), never a panic on a closed pipe.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

use serde::Serialize;

use crate::cli::{CliError, escape_json};

/// Where the asked-for output of a command goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// One JSON object per line instead of text.
    pub json: bool,
}

impl Output {
    /// Output in the form that `--json` chose.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// With `--json`, writes `value` as one flushed line; otherwise nothing.
    pub fn emit(&self, value: &impl Serialize) -> Result<(), CliError> {
        if !self.json {
            return Ok(());
        }
        let line = serde_json::to_string(value).map_err(|error| {
            CliError::failed("output_failed", format!("cannot encode: {error}"))
        })?;
        let mut line = escape_json(line);
        line.push('\n');
        write_stdout(line.as_bytes())
    }

    /// Without `--json`, writes `text` and a newline; otherwise nothing. Text from peers goes
    /// through [`crate::cli::escape_text`] first.
    pub fn human(&self, text: impl Display) -> Result<(), CliError> {
        if self.json {
            return Ok(());
        }
        write_stdout(format!("{text}\n").as_bytes())
    }

    /// Whether text on stdout may be coloured: a terminal, no `NO_COLOR`, no `--json`.
    pub fn color(&self) -> bool {
        !self.json && color_allowed() && std::io::stdout().is_terminal()
    }
}

/// Whether the user allows colour at all: `NO_COLOR` absent or empty, `TERM` not `dumb`.
pub fn color_allowed() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes all of `bytes` to stdout and flushes. A reader that went away gives the quiet error.
pub(crate) fn write_stdout(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            CliError::broken_pipe()
        } else {
            CliError::failed("output_failed", format!("cannot write to stdout: {error}"))
        }
    })
}
