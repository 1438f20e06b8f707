//! Starts a viewer and waits for its end. Never through a shell, never with our stdout when that
//! carries JSON.

use std::{process::Stdio, time::Duration};

use adit_runtime::cli::CliError;
use tokio::process::{Child, Command};

use super::{Choice, Shell, Values};

/// Time for a viewer in this terminal to notice that its connection is gone.
const LEAVE_TERMINAL: Duration = Duration::from_secs(3);

/// A started viewer.
pub struct Launched {
    /// The argument vector.
    pub command: Vec<String>,
    /// Its process.
    pub pid: u32,
    /// To wait for it.
    pub viewer: Viewer,
}

/// A running viewer.
pub struct Viewer {
    child: Child,
    shell: Shell,
}

/// Starts a viewer.
pub fn launch(choice: &Choice, values: &Values) -> Result<Launched, CliError> {
    let command = choice.command(values)?;
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| CliError::failed("internal", "a viewer's command is empty"))?;
    let mut process = Command::new(program);
    process.args(arguments);
    match choice.shell {
        Shell::Terminal => {}
        // What it prints is a message, not the asked-for output.
        Shell::Standard => _ = process.stdout(Stdio::from(std::io::stderr())),
        Shell::Window | Shell::HandsOver => {
            process.stdin(Stdio::null()).stdout(Stdio::from(std::io::stderr()));
        }
    }
    let child = process.spawn().map_err(|error| {
        CliError::failed("viewer_failed", format!("cannot start {program}: {error}"))
            .hint("use --no-launch, or configure another viewer in console-tunnel.toml")
    })?;
    let pid = child.id().unwrap_or(0);
    Ok(Launched { command, pid, viewer: Viewer { child, shell: choice.shell } })
}

impl Viewer {
    /// Waits until the viewer ends; for ever if its exit says nothing. May be called again.
    pub async fn ended(&mut self) -> String {
        let status = self.child.wait().await;
        if self.shell == Shell::HandsOver && status.as_ref().is_ok_and(|s| s.success()) {
            std::future::pending::<()>().await;
        }
        match status {
            Ok(status) if status.success() => "viewer exited".to_owned(),
            Ok(status) => format!("viewer exited: {status}"),
            Err(error) => format!("viewer was lost: {error}"),
        }
    }

    /// After the session: a viewer in this terminal must be gone before we are. Others stay, to
    /// show their own message.
    pub async fn leave(mut self) {
        if self.shell != Shell::Terminal {
            return;
        }
        if tokio::time::timeout(LEAVE_TERMINAL, self.child.wait()).await.is_err() {
            // It cannot be told to stop more politely than this in a portable way.
            let _ = self.child.kill().await;
        }
    }

    /// Whether it writes to our terminal.
    pub fn in_terminal(&self) -> bool {
        self.shell == Shell::Terminal
    }
}
