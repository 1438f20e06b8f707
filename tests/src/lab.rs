//! A natlab laboratory: console and agent behind NATs, mediator and relays on a public network.
//! See `tests/natlab/README.md`.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    fd::AsFd as _,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use serde_json::Value;

use crate::process::{run, text};

/// Addresses of the host that the mediator runs on.
pub const MED1: &str = "203.0.113.10";
/// Another address of it: two tell address-dependent NATs from others.
pub const MED1_MORE: &str = "203.0.113.11";
/// The same for IPv6.
pub const MED1_V6: &str = "2001:db8:113::10";
/// Address of the host that the first relay runs on.
pub const RELAY1: &str = "203.0.113.30";
/// The same for IPv6.
pub const RELAY1_V6: &str = "2001:db8:113::30";
/// Address of the host that the second relay runs on.
pub const RELAY2: &str = "203.0.113.40";
/// The same for IPv6.
pub const RELAY2_V6: &str = "2001:db8:113::40";
/// Where iproute2 keeps named namespaces.
const NAMED_NAMESPACES: &str = "/run/netns";
/// Time for the network's control socket to answer.
const CTL_TIME: Duration = Duration::from_secs(5);

/// A laboratory that is up; dropping it takes it down.
pub struct Lab {
    name: String,
    info: Value,
    server: Option<Arc<LabServer>>,
}

impl Lab {
    /// Starts a scenario; with `pcap`, records all that crosses the public network.
    pub fn up(scenario: &str, pcap: Option<&Path>) -> Result<Self> {
        let mut command = natlab();
        command.args(["up", "--owner", &std::process::id().to_string()]);
        if let Some(pcap) = pcap {
            command.arg("--pcap").arg(pcap);
        }
        let done = run("natlab up", command.arg(scenario), "")?;
        if done.code != 0 {
            bail!("natlab up {scenario}: {}{}", done.stdout, done.stderr);
        }
        let info: Value = serde_json::from_str(&done.stdout).context("natlab up")?;
        Ok(Self { name: text(&info, "lab").to_owned(), info, server: None })
    }
    /// What natlab said about hosts and addresses.
    pub fn info(&self) -> &Value {
        &self.info
    }

    /// URL of the HTTP CONNECT proxy that is a side's only way out, if it is.
    pub fn proxy(&self, host: &str) -> Option<&str> {
        let proxies = self.info.get("proxy")?;
        let shared = || proxies.get("shared").filter(|_| ["console", "agent"].contains(&host));
        proxies.get(host).or_else(shared)?.as_str()
    }

    /// A command on a host; it replaces itself, so that its process id is the program's.
    pub fn on(&self, host: &str, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net={}", self.namespace(host).display())).arg("--");
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    /// Runs `job` in a thread of its own inside a host: sockets that it makes stay there.
    pub fn within<T: Send>(&self, host: &str, job: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = self.namespace(host);
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                enter(&namespace)?;
                job()
            });
            inside.join().unwrap_or_else(|_| bail!("a thread inside {host} panicked"))
        })
    }

    /// The network namespace of a host.
    pub fn namespace(&self, host: &str) -> PathBuf {
        Path::new(NAMED_NAMESPACES).join(format!("{}-{host}", self.name))
    }

    /// Changes the network while it runs, such as `set agent-nat allow=no-udp`.
    pub fn ctl(&self, words: &[&str]) -> Result<String> {
        let ask = || -> Result<String> {
            let mut socket = UnixStream::connect(Path::new(text(&self.info, "state")).join("ctl"))?;
            socket.set_read_timeout(Some(CTL_TIME))?;
            writeln!(socket, "{}", words.join(" "))?;
            socket.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = ask().with_context(|| format!("natlab ctl {words:?}"))?;
        match answer.strip_prefix("error:") {
            Some(error) => bail!("natlab ctl {words:?}: {error}"),
            None => Ok(answer),
        }
    }

    /// Other commands of natlab for this laboratory, such as `rebind agent` or `roam`.
    pub fn natlab(&self, words: &[&str]) -> Result<String> {
        let mut command = natlab();
        let done = run("natlab", command.args(["--lab", &self.name]).args(words), "")?;
        if done.code != 0 {
            bail!("natlab {words:?}: {}{}", done.stdout, done.stderr);
        }
        Ok(done.stdout)
    }
}

/// Moves the calling thread into a network namespace.
pub fn enter(namespace: &Path) -> Result<()> {
    let file = File::open(namespace).with_context(|| namespace.display().to_string())?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            let _ = server.ask(&format!("down {}", self.name));
        } else {
            let _ = run("natlab down", natlab().args(["down", &self.name]), "");
        }
    }
}

/// A natlab that stays and makes one laboratory after the other.
pub struct LabServer {
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    child: Child,
}

impl LabServer {
    /// Starts one.
    pub fn start() -> Result<Self> {
        let mut command = natlab();
        command.args(["serve", "--owner", &std::process::id().to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Self { pipes: Mutex::new((stdin, stdout)), child })
    }

    /// Starts a scenario; with `pcap`, records all that crosses the public network.
    pub fn up(self: &Arc<Self>, scenario: &str, seed: u64, pcap: Option<&Path>) -> Result<Lab> {
        let pcap = pcap.map(|p| p.display().to_string()).unwrap_or_default();
        let info = self.ask(&format!("up {scenario} {seed} {pcap}"))?;
        let name = text(&info, "lab").to_owned();
        Ok(Lab { name, info, server: Some(Arc::clone(self)) })
    }

    fn ask(&self, line: &str) -> Result<Value> {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(pipes.0, "{line}")?;
        let mut answer = String::new();
        pipes.1.read_line(&mut answer)?;
        let answer: Value =
            serde_json::from_str(&answer).with_context(|| format!("natlab {line}"))?;
        match answer.get("error") {
            Some(error) => bail!("natlab {line}: {error}"),
            None => Ok(answer),
        }
    }
}

impl Drop for LabServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn natlab() -> Command {
    Command::new(folder().join("natlab/natlab"))
}

/// The folder `tests`.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
