//! Starts a viewer, waits for its end, and says what that end means. Never through a shell, never
//! with our stdout when that carries JSON.

use std::{
    collections::VecDeque,
    io::{PipeReader, Read, Write},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use adit_runtime::cli::CliError;
use tokio::process::{Child, ChildStdin, Command};
use zeroize::Zeroizing;

use super::{Choice, Shell, credential::Handover, table};

/// Time for a viewer in this terminal to notice that its connection is gone.
const LEAVE_TERMINAL: Duration = Duration::from_secs(3);
/// Bytes of a viewer's output that are kept, to tell why it failed.
const KEPT_OUTPUT: usize = 4096;
/// Lines of it that are told.
const TOLD_LINES: usize = 4;
/// Longest of these lines, characters.
const TOLD_LINE: usize = 200;
/// Time for the last of its output to arrive once it has ended.
const LAST_OUTPUT: Duration = Duration::from_millis(200);
/// What to do about a viewer that fails.
const ADVICE: &str = "try its command by hand against --no-launch, or configure another viewer in \
     console-tunnel.toml";

/// A started viewer.
pub struct Launched {
    /// Its process.
    pub pid: u32,
    /// To wait for it.
    pub viewer: Viewer,
}

/// A running viewer.
pub struct Viewer {
    child: Child,
    shell: Shell,
    command: Vec<String>,
    pid: u32,
    started: Instant,
    output: Option<Arc<Mutex<Tail>>>,
    /// What handed it its credential: ends with it.
    _handover: Option<Handover>,
}

/// How a viewer ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The argument vector.
    pub command: Vec<String>,
    /// Its process.
    pub pid: u32,
    /// Exit status; `None` if a signal ended it.
    pub exit_status: Option<i32>,
    /// For people.
    pub how: String,
    /// Set if that was a failure: why.
    pub failed: Option<CliError>,
}

/// Starts the viewer of a command that [`Choice::command`] made.
/// The credential, if there is one, goes neither into its arguments nor into its environment.
pub fn launch(
    choice: &Choice,
    command: Vec<String>,
    mut handover: Option<Handover>,
) -> Result<Launched, CliError> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| CliError::failed("internal", "a viewer's command is empty"))?;
    let failed = |error: std::io::Error| {
        CliError::failed("viewer_failed", format!("cannot start {program}: {error}")).hint(ADVICE)
    };
    let mut process = Command::new(program);
    process.args(arguments);
    let mut output = None;
    match choice.shell {
        Shell::Terminal => {}
        // What it prints is a message, not the asked-for output.
        Shell::Standard => _ = process.stdout(Stdio::from(std::io::stderr())),
        Shell::Window => {
            let (reader, writer) = std::io::pipe().map_err(failed)?;
            let other = writer.try_clone().map_err(failed)?;
            process.stdin(Stdio::null()).stdout(other).stderr(writer);
            output = Some(Tail::follow(reader).map_err(failed)?);
        }
        // Whatever it hands over to outlives us and our pipes.
        Shell::HandsOver => {
            process.stdin(Stdio::null()).stdout(Stdio::from(std::io::stderr()));
        }
    }
    let mut secret = None;
    if let Some(handover) = &mut handover {
        process.envs(handover.variables.drain(..));
        secret = handover.stdin.take();
    }
    if secret.is_some() {
        process.stdin(Stdio::piped());
    }
    let mut child = process.spawn().map_err(failed)?;
    if let (Some(secret), Some(stdin)) = (secret, child.stdin.take()) {
        write_secret(stdin, secret).map_err(failed)?;
    }
    let pid = child.id().unwrap_or(0);
    let (shell, started) = (choice.shell, Instant::now());
    Ok(Launched {
        pid,
        viewer: Viewer { child, shell, command, pid, started, output, _handover: handover },
    })
}

/// In a thread of its own: a viewer that does not read must keep nobody waiting.
fn write_secret(stdin: ChildStdin, secret: Zeroizing<String>) -> std::io::Result<()> {
    #[cfg(unix)]
    let mut stdin = std::fs::File::from(stdin.into_owned_fd()?);
    #[cfg(windows)]
    let mut stdin = std::fs::File::from(stdin.into_owned_handle()?);
    #[cfg(unix)]
    rustix::io::ioctl_fionbio(&stdin, false)?;
    std::thread::Builder::new().name("viewer input".to_owned()).spawn(move || {
        // One that ended already says so by its exit.
        let _ = stdin.write_all(secret.as_bytes());
    })?;
    Ok(())
}

impl Viewer {
    /// Waits until the viewer ends; for ever if its exit says nothing. May be called again.
    pub async fn ended(&mut self) -> Ended {
        let status = self.child.wait().await;
        let after = self.started.elapsed();
        if self.shell == Shell::HandsOver && status.as_ref().is_ok_and(ExitStatus::success) {
            std::future::pending::<()>().await;
        }
        let name = self.program();
        let (exit_status, how, failed) = match &status {
            Ok(status) if status.success() => (Some(0), "viewer exited".to_owned(), false),
            Ok(status) => {
                let failed = status.code().is_none_or(|code| table::is_failure(name, code, after));
                (status.code(), format!("viewer exited: {status}"), failed)
            }
            Err(error) => (None, format!("viewer was lost: {error}"), true),
        };
        let failed = match failed {
            true => Some(self.failure(&how).await),
            false => None,
        };
        Ended { command: self.command.clone(), pid: self.pid, exit_status, how, failed }
    }

    async fn failure(&self, how: &str) -> CliError {
        let mut message = format!("{}: {how}", self.program());
        if let Some(output) = &self.output {
            let all = async {
                while !lock(output).ended {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            // A child of its own may hold the pipe: then what has come must do.
            let _ = tokio::time::timeout(LAST_OUTPUT, all).await;
            let lines = lock(output).lines();
            if !lines.is_empty() {
                message.push_str(&format!("; it said: {}", lines.join(" | ")));
            }
        }
        CliError::failed("viewer_failed", message).hint(ADVICE)
    }

    fn program(&self) -> &str {
        let program = self.command.first().map(String::as_str).unwrap_or_default();
        std::path::Path::new(program).file_name().and_then(|name| name.to_str()).unwrap_or(program)
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

/// The end of what a viewer printed, which also goes to our stderr as it comes.
#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
    ended: bool,
}

impl Tail {
    /// Reads in a thread of its own, which ends with the pipe or with the process.
    fn follow(mut reader: PipeReader) -> std::io::Result<Arc<Mutex<Self>>> {
        let tail = Arc::new(Mutex::new(Self::default()));
        let kept = Arc::clone(&tail);
        std::thread::Builder::new().name("viewer output".to_owned()).spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                let read = buffer.get(..count).unwrap_or_default();
                lock(&kept).push(read);
                // If nobody can read it, nobody misses it.
                let _ = std::io::stderr().write_all(read);
            }
            lock(&kept).ended = true;
        })?;
        Ok(tail)
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let excess = self.bytes.len().saturating_sub(KEPT_OUTPUT);
        self.bytes.drain(..excess);
    }

    /// The last lines that say something, without what a terminal would act on.
    fn lines(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let clean = |line: &str| {
            let printable = line.chars().filter(|c| !c.is_control());
            printable.take(TOLD_LINE).collect::<String>().trim().to_owned()
        };
        let lines = text.split(['\n', '\r']).map(clean).filter(|line| !line.is_empty());
        let mut last: VecDeque<String> = VecDeque::new();
        for line in lines {
            last.push_back(line);
            if last.len() > TOLD_LINES {
                last.pop_front();
            }
        }
        last.into()
    }
}

fn lock(tail: &Mutex<Tail>) -> std::sync::MutexGuard<'_, Tail> {
    tail.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(shell: Shell, text: &str) -> Launched {
        let command = ["sh", "-c", text].map(str::to_owned).to_vec();
        let choice = Choice {
            kind: "rdp".to_owned(),
            program: "sh".into(),
            template: command.clone(),
            shell,
        };
        launch(&choice, command, None).unwrap()
    }

    #[tokio::test]
    async fn a_viewer_that_fails_says_why_in_few_harmless_words() {
        let noise = "i=0; while [ $i -lt 600 ]; do echo noise $i; i=$((i+1)); done >&2;";
        let text = format!("{noise} printf '\\033[2Jcannot \\007open display\\n' >&2; exit 131");
        let ended = script(Shell::Window, &text).viewer.ended().await;
        assert_eq!(ended.exit_status, Some(131));
        let error = ended.failed.unwrap();
        assert_eq!((error.code, error.exit.code()), ("viewer_failed", 1));
        assert!(error.message.ends_with("[2Jcannot open display"), "{}", error.message);
        assert!(error.message.len() < 1000 && !error.message.contains('\u{1b}'));
    }

    #[tokio::test]
    async fn killed_viewers_failed_and_quiet_ends_did_not() {
        let ended = script(Shell::Window, "kill -9 $$").viewer.ended().await;
        assert!(ended.exit_status.is_none() && ended.failed.is_some(), "{ended:?}");
        let ended = script(Shell::Window, "exit 0").viewer.ended().await;
        assert!(ended.exit_status == Some(0) && ended.failed.is_none(), "{ended:?}");
    }
}
