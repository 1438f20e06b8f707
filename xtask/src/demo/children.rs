//! Child processes that end with us, however we end, and whose output we read line by line.
//!
//! They are in a process group of their own, so that Ctrl-C reaches only us and they stop in
//! order. On Linux the kernel kills them when we are killed (`setpriv --pdeathsig`).

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::stop::Stop;
use crate::process;

/// How long a program may take to stop after being asked (the contract says 5 s).
const STOP_TIME: Duration = Duration::from_secs(6);
/// How often waits look at the clock, the child and Ctrl-C.
const TICK: Duration = Duration::from_millis(50);

/// A running program.
pub(crate) struct Running {
    name: String,
    child: Child,
    lines: Arc<Lines>,
    log: PathBuf,
    stop: Stop,
}

#[derive(Default)]
struct Lines {
    events: Mutex<Vec<Value>>,
    changed: Condvar,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Vec<Value>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Starts a program whose JSON lines are read and whose messages go to `log`.
    pub(crate) fn start(name: &str, command: &Command, log: &Path, stop: &Stop) -> Result<Self> {
        let file = File::create(log).with_context(|| log.display().to_string())?;
        let mut command = guarded(command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let lines = Arc::new(Lines::default());
        if let Some(out) = child.stdout.take() {
            let lines = Arc::clone(&lines);
            thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    if let Ok(event) = serde_json::from_str(&line) {
                        lines.lock().push(event);
                        lines.changed.notify_all();
                    }
                }
            });
        }
        Ok(Self { name: name.into(), child, lines, log: log.into(), stop: stop.clone() })
    }

    /// The first event that `wanted` accepts, waiting for it.
    pub(crate) fn wait(
        &mut self,
        what: &str,
        time: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        match self.try_wait(time, wanted)? {
            Some(event) => Ok(event),
            None => bail!(
                "{}: {what} took more than {} s\n{}",
                self.name,
                time.as_secs(),
                self.last_words()
            ),
        }
    }

    /// As [`Self::wait`], but time running out is no error.
    pub(crate) fn try_wait(
        &mut self,
        time: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Option<Value>> {
        let deadline = Instant::now() + time;
        loop {
            {
                let events = self.lines.lock();
                if let Some(event) = events.iter().find(|e| wanted(e)) {
                    return Ok(Some(event.clone()));
                }
                let _ = self.lines.changed.wait_timeout(events, TICK);
            }
            self.stop.check()?;
            self.check()?;
            if Instant::now() >= deadline {
                return Ok(None);
            }
        }
    }

    /// All events so far.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.lines.lock().clone()
    }

    /// An error if the program has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended ({status})\n{}", self.name, self.last_words());
        }
        Ok(())
    }

    /// Asks the program to stop, and kills it if it does not.
    pub(crate) fn stop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        interrupt(&mut self.child);
        let deadline = Instant::now() + STOP_TIME;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::park_timeout(TICK);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let mut lines: Vec<_> = text.lines().rev().take(8).collect();
        lines.reverse();
        let error = self.lines.lock().iter().rfind(|e| e.get("error").is_some()).cloned();
        let error = error.map(|e| format!("    {e}\n")).unwrap_or_default();
        format!("{error}    {}", lines.join("\n    "))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs a command to its end and gives its standard output; with `input` on its stdin.
pub(crate) fn finish(name: &str, command: &Command, input: Option<&str>) -> Result<String> {
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
        bail!("{name} failed ({})\n{}{}", out.status, stdout, stderr.trim_end());
    }
    Ok(stdout)
}

/// The command in a process group of its own, bound to our life where the system can.
fn guarded(command: &Command) -> Command {
    let words = command.get_args();
    let mut guarded = if cfg!(target_os = "linux") && process::on_path("setpriv") {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(words);
        setpriv
    } else {
        let mut plain = Command::new(command.get_program());
        plain.args(words);
        plain
    };
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => guarded.env(name, value),
            None => guarded.env_remove(name),
        };
    }
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut guarded, 0);
    guarded
}

fn interrupt(child: &mut Child) {
    if cfg!(unix) {
        let kill = format!("kill -TERM {}", child.id());
        let _ = Command::new("sh").args(["-c", &kill]).status();
    } else {
        let _ = child.kill();
    }
}
