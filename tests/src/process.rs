//! Programs as children: their JSON lines as events, their messages in a log, their end.
//!
//! On Linux the kernel kills a child when the test that started it ends, however it ends.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// How often waits look whether the child is still there.
const TICK: Duration = Duration::from_millis(20);
/// Time in which a program must stop after SIGTERM (the contract says 5 s).
pub const STOP_TIME: Duration = Duration::from_secs(5);
/// Time in which a command that runs to its end must do so.
pub const COMMAND_TIME: Duration = Duration::from_secs(60);

/// A running program.
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
    log: PathBuf,
}

#[derive(Default)]
struct Output {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    events: Vec<(Instant, Value)>,
    text: String,
    ended: bool,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a command that ran to its end left.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// All of standard output.
    pub stdout: String,
    /// All of standard error.
    pub stderr: String,
}

impl Finished {
    /// The last JSON object on standard output.
    pub fn json(&self) -> Value {
        self.lines().pop().unwrap_or_default()
    }

    /// All JSON lines of standard output.
    pub fn lines(&self) -> Vec<Value> {
        self.stdout.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }

    /// The stable code of the failure, empty if it did not report one.
    pub fn error_code(&self) -> String {
        let code = self.json().pointer("/error/code").and_then(Value::as_str).map(str::to_owned);
        code.unwrap_or_default()
    }
}

impl Process {
    /// Starts a command. Its messages go to `log`, appended, and so do its lines.
    pub fn start(name: &str, command: &Command, log: &Path) -> Result<Self> {
        let mut command = bound_to_us(command);
        let file = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file.try_clone()?);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let output = Arc::new(Output::default());
        let out = child.stdout.take().context("stdout")?;
        let shared = Arc::clone(&output);
        thread::spawn(move || collect(&shared, out, file));
        Ok(Self { name: name.to_owned(), child, output, log: log.to_owned() })
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for an event. An error if the program ends or time runs out.
    pub fn wait(
        &mut self,
        what: &str,
        time: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        self.wait_after(0, what, time, wanted)
    }

    /// As [`Self::wait`], but only events after the first `skip` count (see [`Self::count`]).
    pub fn wait_after(
        &mut self,
        skip: usize,
        what: &str,
        time: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + time;
        loop {
            let ended = {
                let lines = self.output.lock();
                let found = lines.events.iter().skip(skip).find(|(_, e)| wanted(e));
                if let Some((_, event)) = found {
                    return Ok(event.clone());
                }
                let ended = lines.ended;
                if !ended {
                    drop(self.output.changed.wait_timeout(lines, TICK));
                }
                ended
            };
            if ended || Instant::now() >= deadline {
                let why = if ended { "it ended" } else { "time ran out" };
                bail!("{} did not say {what}: {why}\n{}", self.name, self.last_words());
            }
        }
    }

    /// Waits for the event of that name.
    pub fn event(&mut self, name: &str, time: Duration) -> Result<Value> {
        self.wait(name, time, |e| text(e, "event") == name)
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Value> {
        self.output.lock().events.iter().map(|(_, e)| e.clone()).collect()
    }

    /// All events so far with the time we read them.
    pub fn timed_events(&self) -> Vec<(Instant, Value)> {
        self.output.lock().events.clone()
    }

    /// How many events there are so far.
    pub fn count(&self) -> usize {
        self.output.lock().events.len()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends a signal by name, such as `TERM`, `INT` or `HUP`.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let status = Command::new("kill").args(["-s", signal, &self.id().to_string()]).status()?;
        if !status.success() {
            bail!("cannot send {signal} to {}", self.name);
        }
        Ok(())
    }

    /// SIGSTOP, as if its machine slept, and waits until each of its threads stands still: the
    /// signal by itself only asks for that.
    pub fn freeze(&self) -> Result<()> {
        self.signal("STOP")?;
        let deadline = Instant::now() + STOP_TIME;
        while !self.stands_still()? {
            if Instant::now() >= deadline {
                bail!("{} does not stand still", self.name);
            }
            thread::park_timeout(TICK);
        }
        Ok(())
    }

    fn stands_still(&self) -> Result<bool> {
        for task in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            // A thread that ended meanwhile does nothing either.
            let status = fs::read_to_string(task?.path().join("stat")).unwrap_or_default();
            // The name before may hold anything (proc(5)).
            let state = status.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            if state.is_some_and(|state| state != 'T') {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Ctrl-C, and the exit status it leaves.
    pub fn interrupt(&mut self) -> Result<ExitStatus> {
        self.signal("INT")?;
        self.exit(STOP_TIME)
    }

    /// Waits for its end.
    pub fn exit(&mut self, time: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + time;
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.drain();
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} did not end within {time:?}\n{}", self.name, self.last_words());
            }
            thread::park_timeout(TICK);
        }
    }

    /// What it said, for messages.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let mut lines: Vec<_> = log.lines().rev().take(12).collect();
        lines.reverse();
        format!("{}:\n  {}", self.log.display(), lines.join("\n  "))
    }

    /// Until all that it printed has been read.
    fn drain(&self) {
        let deadline = Instant::now() + STOP_TIME;
        let mut lines = self.output.lock();
        while !lines.ended && Instant::now() < deadline {
            lines = match self.output.changed.wait_timeout(lines, TICK) {
                Ok((lines, _)) => lines,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.runs() {
            let _ = self.signal("TERM");
            if self.exit(STOP_TIME).is_err() {
                let _ = self.kill();
            }
        }
    }
}

fn collect(output: &Output, from: impl std::io::Read, mut log: File) {
    let mut reader = BufReader::new(from);
    let mut line = String::new();
    while matches!(reader.read_line(&mut line), Ok(n) if n > 0) {
        let _ = log.write_all(line.as_bytes());
        let mut lines = output.lock();
        if let Ok(event) = serde_json::from_str(&line) {
            lines.events.push((Instant::now(), event));
        }
        lines.text.push_str(&line);
        drop(lines);
        output.changed.notify_all();
        line.clear();
    }
    output.lock().ended = true;
    output.changed.notify_all();
}

/// Runs a command to its end, with `input` on its standard input. Only a hang is an error.
pub fn run(name: &str, command: &Command, input: &str) -> Result<Finished> {
    run_within(COMMAND_TIME, name, command, input)
}

/// As [`run`], with a deadline of its own.
pub fn run_within(time: Duration, name: &str, command: &Command, input: &str) -> Result<Finished> {
    let mut command = bound_to_us(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that refuses early does not read it.
        let _ = stdin.write_all(input.as_bytes());
    }
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let read = |from: Option<Box<dyn std::io::Read + Send>>| {
        thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(mut from) = from {
                let _ = from.read_to_end(&mut text);
            }
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let out = read(out.map(|o| Box::new(o) as _));
    let err = read(err.map(|e| Box::new(e) as _));
    let deadline = Instant::now() + time;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("{name} hangs; stderr: {}", err.join().unwrap_or_default());
        }
        thread::park_timeout(TICK);
    };
    let text = |t: thread::JoinHandle<String>| t.join().unwrap_or_default();
    Ok(Finished { code: status.code().unwrap_or(-1), stdout: text(out), stderr: text(err) })
}

/// Waits for a time, whole: parking alone may end early.
pub fn pause(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
}

/// A string of a JSON object, empty if it is not there.
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The command, killed by the kernel when the thread that starts it ends.
fn bound_to_us(command: &Command) -> Command {
    let mut bound = Command::new("setpriv");
    bound.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bound.env(name, value),
            None => bound.env_remove(name),
        };
    }
    bound
}

/// Files of processes, on Linux, of those whose command line or environment holds the text.
pub fn told_by_processes(secret: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        for file in ["cmdline", "environ"] {
            let path = entry.path().join(file);
            let Ok(bytes) = fs::read(&path) else { continue };
            if bytes.windows(secret.len()).any(|window| window == secret.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn waits_for_events_and_says_why_none_comes() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = "echo oops >&2; echo '{\"event\":\"ready\"}'; sleep 0.1; exit 3";
        let mut child = Process::start("child", &shell(script), &log).unwrap();
        child.event("ready", COMMAND_TIME).unwrap();
        let error = child.event("more", COMMAND_TIME).unwrap_err().to_string();
        assert!(error.contains("it ended") && error.contains("oops"), "{error}");
        assert_eq!(child.exit(STOP_TIME).unwrap().code(), Some(3));
    }

    #[test]
    fn whoever_is_frozen_does_nothing_until_it_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = "while :; do echo '{\"event\":\"ready\"}'; done";
        let mut child = Process::start("child", &shell(script), &log).unwrap();
        child.event("ready", COMMAND_TIME).unwrap();
        child.freeze().unwrap();
        assert!(child.stands_still().unwrap());
        child.signal("CONT").unwrap();
        let before = child.count();
        child.wait_after(before, "more", COMMAND_TIME, |_| true).unwrap();
        assert!(!child.stands_still().unwrap());
    }

    #[test]
    fn gives_code_output_and_error() {
        let script = "cat; echo '{\"error\":{\"code\":\"busy\"}}'; exit 1";
        let done = run("child", &shell(script), "hello\n").unwrap();
        assert_eq!((done.code, done.error_code().as_str()), (1, "busy"));
        assert!(done.stdout.starts_with("hello\n"));
    }
}
