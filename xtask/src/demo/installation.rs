//! The four programs of the demonstration, set up and started as their users would.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{
    children::{Running, finish},
    report::{Summary, say},
    stop::Stop,
};

/// Time for a program to say that it does its job.
const READY: Duration = Duration::from_secs(20);
/// Tries to find two free UDP ports in a row.
const PORT_TRIES: u32 = 100;
/// How often the idle demonstration looks whether everything still runs.
const LOOK: Duration = Duration::from_millis(500);

/// Client of the demonstration and name of its computer.
pub(crate) const CLIENT: &str = "demo";
pub(crate) const COMPUTER: &str = "demo-computer";

/// Programs, data and what `init` said. Dropping it stops everything and removes the data.
pub(crate) struct Installation {
    programs: PathBuf,
    // Declared before `data`, so that it is dropped first: programs stop, then their data goes.
    running: Vec<(&'static str, Running)>,
    data: TempDir,
    stop: Stop,
    pub(crate) fingerprint: String,
    pub(crate) admin: String,
    partner: String,
    url: String,
}

impl Installation {
    /// An empty one.
    pub(crate) fn new(programs: &Path, stop: &Stop) -> Result<Self> {
        Ok(Self {
            programs: programs.to_owned(),
            running: Vec::new(),
            data: TempDir::new()?,
            stop: stop.clone(),
            fingerprint: String::new(),
            admin: String::new(),
            partner: String::new(),
            url: String::new(),
        })
    }

    /// Directory that holds all data.
    pub(crate) fn dir(&self) -> &Path {
        &self.data.0
    }

    /// The mediator's address.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A program with its data directory.
    pub(crate) fn program(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join(program));
        let dir = self.dir().join(program);
        command.args(args).arg("--data-dir").arg(dir);
        // Whatever the user has set for programs of their own is not for these.
        for (name, _) in std::env::vars_os() {
            let upper = name.to_string_lossy().to_ascii_uppercase();
            if upper.starts_with("ADIT_") || upper.ends_with("_PROXY") {
                command.env_remove(name);
            }
        }
        command
    }

    /// Runs a program to its end and reads the one JSON object it prints.
    fn ask(&self, program: &str, args: &[&str], input: Option<&str>) -> Result<Value> {
        self.stop.check()?;
        let name =
            format!("{program} {}", args.iter().take(2).copied().collect::<Vec<_>>().join(" "));
        let out = finish(&name, &self.program(program, args), input)?;
        let line = out.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("null");
        serde_json::from_str(line).with_context(|| format!("{name} printed no JSON: {line}"))
    }

    /// Starts a program that stays, and waits until it does its job.
    pub(crate) fn serve(&mut self, program: &'static str, args: &[&str]) -> Result<()> {
        let log = self.dir().join(format!("{program}.log"));
        let command = self.program(program, args);
        let mut running = Running::start(program, &command, &log, &self.stop)?;
        running.wait("getting ready", READY, |e| text(e, "event") == "ready")?;
        self.running.push((program, running));
        Ok(())
    }

    /// Keeps a child until the end.
    pub(crate) fn keep(&mut self, name: &'static str, running: Running) {
        self.running.push((name, running));
    }

    /// What Ctrl-C is watched with.
    pub(crate) fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Mediator, relay, agent and a console that has logged in. The agent's owner allows the
    /// given loopback ports and nothing else.
    pub(crate) fn start(&mut self, ports: &[u16]) -> Result<()> {
        say("mediator: keys, database, first administrator");
        let (port, stun) = free_ports()?;
        let (port, stun) = (port.to_string(), stun.to_string());
        let init = ["init", "--host", "127.0.0.1", "--port", &port, "--stun-port", &stun, "--json"];
        let made = self.ask("mediator", &init, None)?;
        self.fingerprint = text(&made, "fingerprint").to_owned();
        self.admin = text(&made, "admin").to_owned();
        self.partner = text(&made, "partner").to_owned();
        self.url = format!("https://127.0.0.1:{port}");
        let password = text(&made, "admin_password").to_owned();
        ensure!(!self.fingerprint.is_empty() && !password.is_empty(), "init said {made}");
        secret(&self.dir().join("admin-password"), &password)?;
        self.serve("mediator", &["serve", "--json"])?;

        say("relay: joins with a single-use token");
        let token = self.ask("mediator", &["token", "relay", "--json"], None)?;
        self.ask("relay", &["join", "-", "--json"], Some(text(&token, "token")))?;
        self.serve("relay", &["serve", "--listen", "127.0.0.1:0", "--json"])?;

        say("agent: enrols with a single-use token, dials out");
        let client = format!("{}/{CLIENT}", self.partner);
        self.ask("mediator", &["client", "add", &client, "--json"], None)?;
        let token = ["token", "agent", "--client", &client, "--json"];
        let token = self.ask("mediator", &token, None)?;
        let enroll = ["enroll", "-", "--name", COMPUTER, "--json"];
        self.ask("agent-tunnel", &enroll, Some(text(&token, "token")))?;
        let policy = format!("[[allow]]\ntargets = [\"127.0.0.1\"]\nports = {ports:?}\n");
        fs::write(self.dir().join("agent-tunnel/policy.toml"), policy)?;
        self.serve("agent-tunnel", &["run", "--json"])?;

        say("console: logs in, knowing the mediator's fingerprint");
        let (url, admin, fingerprint) =
            (self.url.clone(), self.admin.clone(), self.fingerprint.clone());
        let login = ["login", &url, "--user", &admin, "--password-stdin", "--fingerprint"];
        let login = [&login[..], &[&fingerprint, "--json"]].concat();
        self.ask("console-tunnel", &login, Some(&password))?;
        Ok(())
    }

    /// One session with a local port for each of the given ports of the computer.
    pub(crate) fn forward(&mut self, ports: &[u16]) -> Result<Session> {
        let specs: Vec<_> = ports.iter().map(|p| format!("127.0.0.1:0:127.0.0.1:{p}")).collect();
        let mut args = vec!["forward", COMPUTER, "--json", "--reason", "cargo xtask demo"];
        specs.iter().for_each(|spec| args.extend(["-L", spec]));
        let command = self.program("console-tunnel", &args);
        let log = self.dir().join("console-tunnel.log");
        let mut console = Running::start("console-tunnel", &command, &log, &self.stop)?;
        let granted = console.wait("the grant", READY, |e| text(e, "event") == "granted")?;
        let mut locals = Vec::new();
        for port in ports {
            let target = format!("127.0.0.1:{port}");
            let event = console.wait("listening", READY, |e| {
                text(e, "event") == "listening" && text(e, "target") == target
            })?;
            let local: SocketAddr = text(&event, "local_addr").parse().context("local_addr")?;
            locals.push((*port, local));
        }
        Ok(Session { console: std::cell::RefCell::new(console), granted, locals })
    }

    /// The verified audit, oldest event first; with `ended`, waits until the session's end is in.
    pub(crate) fn audit(&self, ended: bool) -> Result<Vec<Value>> {
        let deadline = Instant::now() + READY;
        loop {
            let export = self.program("mediator", &["audit", "export", "--format", "jsonl"]);
            let lines = finish("mediator audit export", &export, None)?;
            let events: Vec<Value> = lines
                .lines()
                .filter_map(|l| serde_json::from_str(l).ok())
                .filter(|e: &Value| e.get("event").is_some())
                .collect();
            let there = |name: &str| events.iter().any(|e| text(e, "event") == name);
            if there("session.granted") && (there("session.ended") || !ended) {
                let args = ["audit", "verify", "--key", &self.fingerprint];
                finish("mediator audit verify", &self.program("mediator", &args), None)?;
                return Ok(events);
            }
            if Instant::now() > deadline {
                bail!("the audit lacks the session: {} events", events.len());
            }
            self.stop.check()?;
            self.stop.pause(LOOK);
        }
    }

    /// Stays until Ctrl-C, or fails when a program ends by itself.
    pub(crate) fn watch(&mut self, session: &Session, stop: &Stop) -> Result<()> {
        while !stop.asked() {
            for (_, running) in &mut self.running {
                running.check()?;
            }
            session.console.borrow_mut().check()?;
            stop.pause(LOOK);
        }
        Ok(())
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        // The newest first: consoles before agents, the mediator last.
        while let Some((_, mut running)) = self.running.pop() {
            running.stop();
        }
    }
}

/// An open session of the console.
pub(crate) struct Session {
    console: std::cell::RefCell<Running>,
    granted: Value,
    locals: Vec<(u16, SocketAddr)>,
}

impl Session {
    /// The local address that leads to a port of the computer.
    pub(crate) fn local(&self, port: u16) -> Option<SocketAddr> {
        self.locals.iter().find(|(p, _)| *p == port).map(|(_, local)| *local)
    }

    /// When the direct carrier took over, since the start, if it does in time.
    pub(crate) fn wait_direct(&self, time: Duration) -> Option<u64> {
        let direct = |e: &Value| {
            text(e, "event") == "carrier"
                && text(e, "kind") == "direct"
                && text(e, "state") == "active"
        };
        let event = self.console.borrow_mut().try_wait(time, direct).ok().flatten()?;
        event.get("since_start_ms").and_then(Value::as_f64).map(|ms| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "to show")]
            let ms = ms.max(0.0) as u64;
            ms
        })
    }

    /// What its events say.
    pub(crate) fn summary(&self) -> Summary {
        let events = self.console.borrow().events();
        let carriers = events.into_iter().filter(|e| text(e, "event") == "carrier").collect();
        Summary { granted: self.granted.clone(), carriers }
    }

    /// Ends it as Ctrl-C would.
    pub(crate) fn close(self, place: &mut Installation) -> Result<()> {
        place.stop.check()?;
        self.console.into_inner().stop();
        Ok(())
    }
}

/// A string of a JSON object, empty if it is not there.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A directory for us alone that goes with us.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("adit-demo-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        // Fails if it is there: nobody else's directory is ever used.
        builder.create(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("note: {} stays behind: {error}", self.0.display());
        }
    }
}

/// Writes a file that only we can read.
fn secret(path: &Path, text: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    std::io::Write::write_all(&mut options.open(path)?, text.as_bytes())?;
    Ok(())
}

/// A free TCP port, and a UDP port that is free together with the next one.
fn free_ports() -> Result<(u16, u16)> {
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    for _ in 0..PORT_TRIES {
        let first = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = first.local_addr()?.port();
        let next = port.checked_add(1).map(|next| UdpSocket::bind((Ipv4Addr::LOCALHOST, next)));
        if matches!(next, Some(Ok(_))) {
            return Ok((tcp, port));
        }
    }
    bail!("no two free UDP ports in a row")
}
