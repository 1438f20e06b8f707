//! An installation as its users set it up: mediator, relays, agents, consoles.
//!
//! Each instance has a name, which is its data directory's, and, in a laboratory, a host. Logs
//! are kept in `$ADIT_E2E_DIR/<test>/`, data directories go with the test.

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    lab::{Lab, MED1, MED1_MORE, MED1_V6, RELAY1, RELAY1_V6, RELAY2, RELAY2_V6},
    process::{Finished, Process, run, text},
};

/// Time for a program to do its job.
pub const READY: Duration = Duration::from_secs(20);
/// Time for what has no deadline of its own.
pub const SOON: Duration = Duration::from_secs(15);
/// The client that agents belong to, under the first partner.
pub const CLIENT: &str = "acme";
/// Tries to find two free UDP ports in a row.
const PORT_TRIES: u32 = 100;
/// How often waits without an event look again.
const LOOK: Duration = Duration::from_millis(50);

/// A policy that allows all of the agent's own host.
pub const POLICY_LOOPBACK: &str = "[[allow]]\ntargets = [\"127.0.0.1\", \"::1\"]\n\
    ports = [\"1-65535\"]\nprotocols = [\"tcp\", \"udp\"]\n";

/// An installation.
pub struct Site {
    /// Programs that stay, by instance; the newest stops first.
    pub running: Vec<(String, Process)>,
    lab: Option<Lab>,
    data: TempDir,
    artifacts: PathBuf,
    programs: PathBuf,
    /// The mediator's address for consoles.
    pub url: String,
    /// The mediator's port for control.
    pub port: u16,
    /// The first of its STUN ports.
    pub stun_port: u16,
    /// Fingerprint of the root key.
    pub fingerprint: String,
    /// The administrator's name and password.
    pub admin: (String, String),
    /// The first partner's name.
    pub partner: String,
    /// Log level of the programs, if not their own.
    pub log_level: Option<String>,
    /// A laboratory's proxies are told by variable instead of by option.
    pub proxy_from_environment: bool,
    /// Another proxy than the laboratory's.
    pub proxy_instead: Option<String>,
    /// The instance that goes by another clock, and the clock's directory.
    pub clock: Option<(String, PathBuf)>,
}

impl Site {
    /// On this machine.
    pub fn local(test: &str) -> Result<Self> {
        Self::new(test, None)
    }

    /// In a laboratory of that scenario; all that crosses the public network is recorded.
    pub fn lab(test: &str, scenario: &str) -> Result<Self> {
        let artifacts = artifacts(test)?;
        let lab = Lab::up(scenario, Some(&artifacts.join("internet.pcap")))?;
        Self::new(test, Some(lab))
    }

    /// In a laboratory that is up, with copies of the data directories of `like`, a site that was
    /// set up before and is stopped: same keys, same addresses, nothing to enrol.
    pub fn prepared(test: &str, lab: Lab, like: &Self) -> Result<Self> {
        let mut made = Self::new(test, Some(lab))?;
        made.data = memory_dir()?;
        fs::create_dir_all(&made.artifacts)?;
        copy_files(like.data.path(), made.data.path())?;
        made.url.clone_from(&like.url);
        made.fingerprint.clone_from(&like.fingerprint);
        made.admin.clone_from(&like.admin);
        made.partner.clone_from(&like.partner);
        (made.port, made.stun_port) = (like.port, like.stun_port);
        Ok(made)
    }

    fn new(test: &str, lab: Option<Lab>) -> Result<Self> {
        let programs = match env::var_os("ADIT_BIN_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => beside_us().context("the four programs are not built")?,
        };
        let artifacts = if lab.is_some() { artifacts_path(test) } else { artifacts(test)? };
        Ok(Self {
            running: Vec::new(),
            lab,
            data: tempfile::Builder::new().prefix("adit-e2e-").tempdir()?,
            artifacts,
            programs,
            url: String::new(),
            port: 0,
            stun_port: 0,
            fingerprint: String::new(),
            admin: Default::default(),
            partner: String::new(),
            log_level: None,
            proxy_from_environment: false,
            proxy_instead: None,
            clock: None,
        })
    }

    /// The laboratory, if there is one.
    pub fn laboratory(&self) -> Result<&Lab> {
        self.lab.as_ref().context("this site has no laboratory")
    }

    /// Where logs and captures are kept.
    pub fn artifacts(&self) -> &Path {
        &self.artifacts
    }

    /// An instance's data directory.
    pub fn data_dir(&self, instance: &str) -> PathBuf {
        self.data.path().join(instance)
    }

    /// A command of one of the four programs for an instance, on its host.
    pub fn command(&self, instance: &str, args: &[&str]) -> Command {
        let (program, host) = match instance {
            i if i.starts_with("mediator") => ("mediator", "med1"),
            i if i.starts_with("relay2") => ("relay", "relay2"),
            i if i.starts_with("relay") => ("relay", "relay1"),
            i if i.starts_with("agent") => ("agent-tunnel", "agent"),
            _ => ("console-tunnel", "console"),
        };
        let mut command = Command::new(self.programs.join(program));
        command.args(args).arg("--data-dir").arg(self.data_dir(instance));
        let proxy = self.lab.as_ref().and_then(|lab| lab.proxy(host));
        let proxy = proxy.map(|own| self.proxy_instead.as_deref().unwrap_or(own));
        if let Some(proxy) = proxy.filter(|_| !self.proxy_from_environment) {
            command.args(["--proxy", proxy]);
        }
        if let Some(level) = &self.log_level {
            command.args(["--log-level", level]);
        }
        // What the machine has set for programs of its own is not for these.
        for (name, _) in env::vars_os() {
            let upper = name.to_string_lossy().to_ascii_uppercase();
            if upper.starts_with("ADIT_") || upper.ends_with("_PROXY") {
                command.env_remove(name);
            }
        }
        if let Some(proxy) = proxy.filter(|_| self.proxy_from_environment) {
            command.env("HTTPS_PROXY", proxy);
        }
        if let Some((_, dir)) = self.clock.as_ref().filter(|(who, _)| who == instance) {
            command.envs(crate::clock::environment(dir));
        }
        self.on(host, command)
    }

    /// The command on a host of the laboratory, or here if there is none.
    pub fn on(&self, host: &str, command: Command) -> Command {
        match &self.lab {
            Some(lab) => lab.on(host, &command),
            None => command,
        }
    }

    /// Runs an instance's command to its end.
    pub fn run(&self, instance: &str, args: &[&str], input: &str) -> Result<Finished> {
        run(&format!("{instance} {}", args.join(" ")), &self.command(instance, args), input)
    }

    /// As [`Self::run`]; it must succeed. Gives the last JSON line.
    pub fn ask(&self, instance: &str, args: &[&str], input: &str) -> Result<Value> {
        let done = self.run(instance, args, input)?;
        let what = args.join(" ");
        ensure!(done.code == 0, "{instance} {what}: {}\n{}{}", done.code, done.stdout, done.stderr);
        Ok(done.json())
    }

    /// Starts an instance that stays and waits until it does its job.
    pub fn serve(&mut self, instance: &str, args: &[&str]) -> Result<Value> {
        let mut process = self.spawn(instance, args)?;
        let ready = process.event("ready", READY)?;
        self.running.push((instance.to_owned(), process));
        Ok(ready)
    }

    /// Starts an instance's command and hands it out.
    pub fn spawn(&self, instance: &str, args: &[&str]) -> Result<Process> {
        let log = self.artifacts.join(format!("{instance}.log"));
        Process::start(instance, &self.command(instance, args), &log)
    }

    /// A running instance.
    pub fn process(&mut self, instance: &str) -> Result<&mut Process> {
        let found = self.running.iter_mut().find(|(name, _)| name == instance);
        found.map(|(_, p)| p).with_context(|| format!("{instance} does not run"))
    }

    /// SIGKILL for a running instance.
    pub fn kill(&mut self, instance: &str) -> Result<()> {
        self.process(instance)?.kill()?;
        self.running.retain(|(name, _)| name != instance);
        Ok(())
    }

    /// SIGKILL for all that runs, for sites whose data nobody wants.
    pub fn kill_all(&mut self) {
        for (_, process) in &mut self.running {
            let _ = process.kill();
        }
        self.running.clear();
    }

    /// Stops all that runs, the newest first.
    pub fn stop_all(&mut self) {
        while self.running.pop().is_some() {}
    }

    /// Starts several killed or prepared instances at the same time and waits for all of them.
    pub fn restart_all(&mut self, instances: &[&str]) -> Result<()> {
        let first = self.running.len();
        for instance in instances {
            let process = self.spawn_again(instance)?;
            self.running.push(((*instance).to_owned(), process));
        }
        for (_, process) in self.running.iter_mut().skip(first) {
            process.event("ready", READY)?;
        }
        Ok(())
    }

    /// Starts a killed instance again.
    pub fn restart(&mut self, instance: &str) -> Result<Value> {
        let mut process = self.spawn_again(instance)?;
        let ready = process.event("ready", READY)?;
        self.running.push((instance.to_owned(), process));
        Ok(ready)
    }

    /// Starts a killed instance again and hands it out, whether it becomes ready or not.
    pub fn spawn_again(&self, instance: &str) -> Result<Process> {
        let (host, port) = (self.relay_host(instance), self.relay_port(instance)?);
        let listen = if self.lab.is_some() {
            format!("0.0.0.0:{port},[::]:{port}")
        } else {
            format!("{host}:{port}")
        };
        match instance {
            i if i.starts_with("mediator") => self.spawn(i, &["serve", "--json"]),
            i if i.starts_with("relay") => self.spawn(i, &["serve", "--listen", &listen, "--json"]),
            i if i.starts_with("agent") => self.spawn(i, &["run", "--json"]),
            other => bail!("{other} is no server"),
        }
    }

    /// Mediator, one relay, one agent named `agent` that may reach its own host, one console.
    pub fn start(&mut self) -> Result<()> {
        self.start_mediator()?;
        self.start_relay("relay")?;
        self.start_agent("agent", POLICY_LOOPBACK)?;
        self.login("console")
    }

    /// Sets up and starts the mediator, with one client.
    pub fn start_mediator(&mut self) -> Result<()> {
        let (host, hosts, port, stun) = match self.lab {
            Some(_) => (MED1, format!("{MED1},{MED1_V6}"), 443, 3478),
            None => {
                let (port, stun) = free_ports()?;
                ("127.0.0.1", "127.0.0.1".to_owned(), port, stun)
            }
        };
        let (port_arg, stun_arg) = (port.to_string(), stun.to_string());
        let args =
            ["init", "--host", &hosts, "--port", &port_arg, "--stun-port", &stun_arg, "--json"];
        let made = self.ask("mediator", &args, "")?;
        self.fingerprint = text(&made, "fingerprint").to_owned();
        self.admin = (text(&made, "admin").to_owned(), text(&made, "admin_password").to_owned());
        self.partner = text(&made, "partner").to_owned();
        if self.lab.is_some() {
            // Two addresses, as a mediator ought to have.
            let file = self.data_dir("mediator").join("mediator.toml");
            let more = format!(
                "[server]\nlisten = [\"{MED1}\", \"{MED1_MORE}\", \"{MED1_V6}\"]\nstun_443 = true\n"
            );
            let old = fs::read_to_string(&file)?;
            ensure!(old.contains("[server]\n"), "{}: {old}", file.display());
            fs::write(&file, old.replacen("[server]\n", &more, 1))?;
        }
        self.url = format!("https://{host}:{port}");
        (self.port, self.stun_port) = (port, stun);
        self.serve("mediator", &["serve", "--json"])?;
        self.ask("mediator", &["client", "add", &self.client(), "--json"], "")?;
        Ok(())
    }

    /// `partner/client`.
    pub fn client(&self) -> String {
        format!("{}/{CLIENT}", self.partner)
    }

    /// A new token for an agent of the client, with more options.
    pub fn agent_token(&self, more: &[&str]) -> Result<String> {
        let client = self.client();
        let args = [&["token", "agent", "--client", &client, "--json"], more].concat();
        Ok(text(&self.ask("mediator", &args, "")?, "token").to_owned())
    }

    /// Joins and starts a relay.
    pub fn start_relay(&mut self, instance: &str) -> Result<()> {
        let token = self.ask("mediator", &["token", "relay", "--json"], "")?;
        let port = if self.lab.is_some() { 443 } else { free_tcp_port()? };
        let mut advertise = format!("{}:{port}", self.relay_host(instance));
        if self.lab.is_some() {
            let v6 = if instance == "relay2" { RELAY2_V6 } else { RELAY1_V6 };
            advertise = format!("{advertise},[{v6}]:{port}");
        }
        let join = ["join", "-", "--advertise", &advertise, "--json"];
        self.ask(instance, &join, text(&token, "token"))?;
        fs::write(self.data.path().join(format!("{instance}.port")), port.to_string())?;
        self.restart(instance)?;
        Ok(())
    }

    /// Address of a relay.
    pub fn relay_addr(&self, instance: &str) -> Result<SocketAddr> {
        Ok(format!("{}:{}", self.relay_host(instance), self.relay_port(instance)?).parse()?)
    }

    fn relay_host(&self, instance: &str) -> &'static str {
        match &self.lab {
            None => "127.0.0.1",
            Some(_) if instance == "relay2" => RELAY2,
            Some(_) => RELAY1,
        }
    }

    fn relay_port(&self, instance: &str) -> Result<u16> {
        if !instance.starts_with("relay") {
            return Ok(0);
        }
        let file = self.data.path().join(format!("{instance}.port"));
        Ok(fs::read_to_string(file)?.parse()?)
    }

    /// Enrols and starts an agent; its computer has the instance's name. Gives what `enroll` said.
    pub fn start_agent(&mut self, instance: &str, policy: &str) -> Result<Value> {
        let token = self.agent_token(&[])?;
        let enroll = ["enroll", "-", "--name", instance, "--json"];
        let enrolled = self.ask(instance, &enroll, &token)?;
        fs::write(self.data_dir(instance).join("policy.toml"), policy)?;
        self.serve(instance, &["run", "--json"])?;
        Ok(enrolled)
    }

    /// Logs a console in as the administrator.
    pub fn login(&self, instance: &str) -> Result<()> {
        let (user, password) = &self.admin;
        let args = ["login", &self.url, "--user", user, "--password-stdin", "--fingerprint"];
        let args = [&args[..], &[&self.fingerprint, "--json"]].concat();
        self.ask(instance, &args, password).map(drop)
    }

    /// Opens a forward to the computer `agent` and waits until all of it listens.
    pub fn forward(&self, options: &[&str]) -> Result<Forward> {
        self.forward_from("console", "agent", options)
    }

    /// Opens a forward from a console to a computer.
    pub fn forward_from(&self, console: &str, computer: &str, options: &[&str]) -> Result<Forward> {
        let args = [&["forward", computer, "--json"], options].concat();
        let mut process = self.spawn(console, &args)?;
        let granted = process.event("granted", READY)?;
        let count = options.iter().filter(|o| ["-L", "-U", "-D"].contains(o)).count();
        let mut locals = Vec::new();
        for n in 0..count {
            let seen = std::cell::Cell::new(0);
            let event = process.wait("listening", SOON, |e| {
                let found = text(e, "event") == "listening";
                seen.set(if found { seen.get() + 1 } else { seen.get() });
                found && seen.get() == n + 1
            });
            locals.push(text(&event?, "local_addr").parse().context("local_addr")?);
        }
        Ok(Forward { process, session: text(&granted, "session_id").to_owned(), granted, locals })
    }

    /// Waits until the mediator tells a console that a computer is there: after its restart, and
    /// the longer the slower the disk, agents come back in a time of their own.
    pub fn wait_online(&self, console: &str, computer: &str) -> Result<()> {
        let deadline = Instant::now() + 2 * READY;
        loop {
            let done = self.run(console, &["computers", "--json"], "")?;
            let is_it = |told: &Value| text(told, "name") == computer && told["online"] == true;
            if done.code == 0 && done.lines().iter().any(is_it) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{computer} does not come back: {done:?}");
            thread::park_timeout(LOOK);
        }
    }

    /// Exports the audit and verifies it with the root key. Gives its events, the oldest first.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let args = ["audit", "verify", "--key", &self.fingerprint];
        let verified = self.run("mediator", &args, "")?;
        ensure!(verified.code == 0, "audit verify: {}{}", verified.stdout, verified.stderr);
        let lines = self.run("mediator", &["audit", "export", "--format", "jsonl"], "")?;
        ensure!(lines.code == 0, "audit export: {}", lines.stderr);
        Ok(lines.lines().into_iter().filter(|e| e.get("event").is_some()).collect())
    }

    /// Waits until the audit holds an event that is wanted.
    pub fn audited(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + SOON;
        loop {
            let events = self.audit()?;
            if let Some(event) = events.iter().find(|e| wanted(e)) {
                return Ok(event.clone());
            }
            if Instant::now() >= deadline {
                let told = events.iter().filter(|e| text(e, "event") != "audit.read").rev().take(8);
                let last: Vec<_> = told.map(Value::to_string).collect();
                bail!("the audit lacks {what}; its last events:\n{}", last.join("\n"));
            }
            thread::park_timeout(LOOK);
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // Consoles and agents before the mediator, all before the laboratory.
        self.stop_all();
    }
}

/// An open session of `console-tunnel forward`.
pub struct Forward {
    /// The console.
    pub process: Process,
    /// Its `granted` event.
    pub granted: Value,
    /// The session's id.
    pub session: String,
    /// Local addresses, in the order of the options.
    pub locals: Vec<SocketAddr>,
}

impl Forward {
    /// The first local address.
    pub fn local(&self) -> Result<SocketAddr> {
        self.locals.first().copied().context("no local address")
    }

    /// Waits until a carrier of that kind is active.
    pub fn wait_active(&mut self, kind: &str, time: Duration) -> Result<Value> {
        self.wait_active_after(0, kind, time)
    }

    /// As [`Self::wait_active`], for events after the first `skip`.
    pub fn wait_active_after(&mut self, skip: usize, kind: &str, time: Duration) -> Result<Value> {
        self.process.wait_after(skip, &format!("{kind} active"), time, |e| {
            text(e, "event") == "carrier" && text(e, "kind") == kind && text(e, "state") == "active"
        })
    }

    /// Kind of the carrier that is active now.
    pub fn active(&self) -> Option<String> {
        let events = self.process.events();
        let active = events.iter().rfind(|e| text(e, "state") == "active");
        active.map(|e| text(e, "kind").to_owned())
    }

    /// Whether a carrier of that kind has ever been active.
    pub fn was_active(&self, kind: &str) -> bool {
        let active = |e: &Value| text(e, "state") == "active" && text(e, "kind") == kind;
        self.process.events().iter().any(active)
    }

    /// Ctrl-C; the exit code must be 0. Gives the `closed` event.
    pub fn close(mut self) -> Result<Value> {
        let status = self.process.interrupt()?;
        ensure!(status.code() == Some(0), "{status} after Ctrl-C\n{}", self.process.last_words());
        let closed = self.process.events().into_iter().rfind(|e| text(e, "event") == "closed");
        closed.context("no closed event")
    }
}

/// `-L` value for any free local port to a port of the agent's loopback.
pub fn to_port(port: u16) -> String {
    format!("127.0.0.1:0:127.0.0.1:{port}")
}

/// The nearest directory above our own program that has the four programs: tests are in
/// target/PROFILE/deps, programs in target/PROFILE.
fn beside_us() -> Option<PathBuf> {
    let ours = env::current_exe().ok()?;
    ours.ancestors().find(|dir| dir.join("mediator").is_file()).map(Path::to_owned)
}

/// A directory in memory where there is one: what a disk costs is not what many short tests
/// measure.
fn memory_dir() -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("adit-e2e-");
    Ok(builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir())?)
}

/// Copies files and directories with their modes; sockets stay behind.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, to) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            fs::create_dir(&to)?;
            fs::set_permissions(&to, entry.metadata()?.permissions())?;
            copy_files(&entry.path(), &to)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &to)?;
        }
    }
    Ok(())
}

/// Where a test leaves what it leaves.
pub fn artifacts_path(test: &str) -> PathBuf {
    let dir =
        env::var_os("ADIT_E2E_DIR").map_or_else(|| env::temp_dir().join("adit-e2e"), Into::into);
    dir.join(test)
}

/// A fresh directory for what a test leaves.
fn artifacts(test: &str) -> Result<PathBuf> {
    let dir = artifacts_path(test);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// A free TCP port of loopback.
pub fn free_tcp_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A free TCP port, and a UDP port that is free together with the next one.
fn free_ports() -> Result<(u16, u16)> {
    for _ in 0..PORT_TRIES {
        let first = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = first.local_addr()?.port();
        let next = port.checked_add(1).map(|next| UdpSocket::bind((Ipv4Addr::LOCALHOST, next)));
        if matches!(next, Some(Ok(_))) {
            return Ok((free_tcp_port()?, port));
        }
    }
    bail!("no two free UDP ports in a row")
}
