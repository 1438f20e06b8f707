//! Child processes that end with the bench, and whose JSON lines are read as they come.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long a program may take to stop after being asked (the contract says 5 s).
const STOP_TIME: Duration = Duration::from_secs(6);
/// How often an ending child is looked at.
const TICK: Duration = Duration::from_millis(10);
/// Lines of a log that an error shows.
const LAST_LINES: usize = 8;

/// A running program.
pub(crate) struct Running {
    name: String,
    child: Child,
    lines: Receiver<Value>,
    log: PathBuf,
}

impl Running {
    /// Starts a program whose messages go to `log`.
    pub(crate) fn start(name: &str, command: Command, log: &Path) -> Result<Self> {
        let mut command = guarded(&command);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(log).with_context(|| log.display().to_string())?);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let (send, lines) = channel();
        if let Some(out) = child.stdout.take() {
            // Ends when the program closes its output.
            thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    if let Ok(value) = serde_json::from_str(&line)
                        && send.send(value).is_err()
                    {
                        return;
                    }
                }
            });
        }
        Ok(Self { name: name.to_owned(), child, lines, log: log.to_owned() })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line that `wanted` accepts; those before it are dropped.
    pub(crate) fn wait(
        &mut self,
        what: &str,
        time: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + time;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if wanted(&line) => return Ok(line),
                Ok(line) if line.get("error").is_some() => {
                    bail!("{}: {line}\n{}", self.name, self.last_words());
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = time.as_secs();
                    bail!(
                        "{}: {what} took more than {seconds} s\n{}",
                        self.name,
                        self.last_words()
                    );
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    bail!("{} ended ({status})\n{}", self.name, self.last_words());
                }
            }
        }
    }

    /// Asks the program to stop, and kills it if it does not.
    pub(crate) fn stop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + STOP_TIME;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            pause(TICK);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let mut lines: Vec<_> = text.lines().rev().take(LAST_LINES).collect();
        lines.reverse();
        format!("    {}", lines.join("\n    "))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs a command to its end and gives its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    finish(command, None)
}

/// As [`output`], with `input` on its standard input.
pub(crate) fn finish(command: &Command, input: Option<&str>) -> Result<String> {
    let name = text(command);
    let mut command = guarded(command);
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes())?;
    }
    let out = child.wait_with_output()?;
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        bail!("{name} failed ({})\n{stdout}{}", out.status, stderr.trim_end());
    }
    Ok(stdout)
}

/// As [`finish`], reading the last line as JSON.
pub(crate) fn ask(command: &Command, input: Option<&str>) -> Result<Value> {
    let out = finish(command, input)?;
    let line = out.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("null");
    serde_json::from_str(line).with_context(|| format!("{} printed: {line}", text(command)))
}

/// Waits without anything to wait for.
pub(crate) fn pause(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|l| !l.is_zero()) {
        thread::park_timeout(left);
    }
}

/// In a process group of its own, so that Ctrl-C reaches only us; killed by the kernel when we
/// are; without what the user has set for programs of their own.
fn guarded(command: &Command) -> Command {
    let mut guarded = Command::new("setpriv");
    guarded.args(["--pdeathsig", "KILL", "--"]);
    guarded.arg(command.get_program()).args(command.get_args());
    for (name, _) in std::env::vars_os() {
        let upper = name.to_string_lossy().to_ascii_uppercase();
        if upper.starts_with("ADIT_") || upper.ends_with("_PROXY") {
            guarded.env_remove(name);
        }
    }
    guarded.process_group(0);
    guarded
}

fn text(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(std::ffi::OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
