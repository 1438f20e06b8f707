//! A session in a laboratory that something is about to happen to.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    flow::{Flow, FlowServer},
    oracle,
    pair::{self, Bench},
};
use crate::{
    lab::{Lab, LabServer, enter},
    peer::{self, TcpServer},
    process::{Process, pause, run, text},
    site::{READY, Site},
};

/// Where services beside the agent listen, inside its host.
const SERVICE: &str = "127.0.0.1:7000";
const FLOWS: &str = "127.0.0.1:7002";
/// Where the console listens for them, inside its host.
const LOCAL: &str = "127.0.0.1:7001";
const LOCAL_FLOWS: &str = "127.0.0.1:7003";
/// Bytes a second of a flow, each way, unless a test says otherwise.
pub const RATE: u64 = 500_000;
/// A path that is taken for direct and left at once was none.
const STAYS: Duration = Duration::from_millis(500);
/// How often waits look.
const LOOK: Duration = Duration::from_millis(10);

/// Where and with what a world is made.
pub struct Place<'a> {
    /// What all share.
    pub bench: &'a Bench,
    /// The natlab of this thread.
    pub server: &'a Arc<LabServer>,
    /// Artifacts directory.
    pub name: String,
    /// The laboratory's seed.
    pub seed: u64,
}

/// A laboratory with all four programs.
pub struct World {
    /// The console's `forward`, while a session is open.
    pub console: Option<Process>,
    service: Option<TcpServer>,
    flows: Option<FlowServer>,
    /// The installation.
    pub site: Site,
}

impl World {
    /// A laboratory whose programs are not started yet.
    pub fn prepare(place: &Place<'_>, scenario: &str, pcap: bool) -> Result<Self> {
        let dir = crate::site::artifacts_path(&place.name);
        fs::create_dir_all(&dir)?;
        let pcap = pcap.then(|| dir.join("internet.pcap"));
        let lab = place.server.up(scenario, place.seed, pcap.as_deref())?;
        let console = scenario.split('+').next().unwrap_or_default();
        let v6_only = oracle::KINDS.iter().any(|k| k.name == console && k.v6_only());
        let site = place.bench.site(&place.name, lab, v6_only)?;
        Ok(Self { console: None, service: None, flows: None, site })
    }

    /// A laboratory with everything started but the console.
    pub fn start(place: &Place<'_>, scenario: &str) -> Result<Self> {
        let mut world = Self::prepare(place, scenario, false)?;
        world.run_servers()?;
        Ok(world)
    }

    /// Starts mediator, relays, agent and the services beside it.
    pub fn run_servers(&mut self) -> Result<()> {
        pair::start(&mut self.site)?;
        let (service, flows) = self.lab()?.within("agent", || {
            Ok((TcpServer::start(SERVICE)?, FlowServer::bind(FLOWS.parse()?)?))
        })?;
        (self.service, self.flows) = (Some(service), Some(flows));
        Ok(())
    }

    /// Address of the forward to the echo service, beside the console.
    pub fn local() -> Result<SocketAddr> {
        Ok(LOCAL.parse()?)
    }

    /// The laboratory.
    pub fn lab(&self) -> Result<&Lab> {
        self.site.laboratory()
    }

    /// Opens a session and waits for `granted`.
    pub fn open(&mut self, options: &[&str]) -> Result<()> {
        self.open_as("console", options)
    }

    /// The same from another console of the same host.
    pub fn open_as(&mut self, instance: &str, options: &[&str]) -> Result<()> {
        let (one, two) = (format!("{LOCAL}:{SERVICE}"), format!("{LOCAL_FLOWS}:{FLOWS}"));
        let args = [&["forward", "agent", "--json", "-L", &one, "-L", &two], options].concat();
        let mut console = self.site.spawn(instance, &args)?;
        console.event("granted", READY)?;
        console.wait("both listeners", READY, |e| text(e, "local_addr") == LOCAL_FLOWS)?;
        self.console = Some(console);
        Ok(())
    }

    /// Opens a session and waits until it is direct, or relayed.
    pub fn open_until(&mut self, kind: &str, time: Duration) -> Result<Value> {
        self.open(&[])?;
        self.wait_active(0, kind, time)
    }

    /// The console's process.
    pub fn console(&mut self) -> Result<&mut Process> {
        self.console.as_mut().context("no session is open")
    }

    /// Number of events so far.
    pub fn events(&mut self) -> Result<usize> {
        Ok(self.console()?.count())
    }

    /// How often another carrier was taken into use, in events after the first `skip`.
    pub fn moves(&mut self, skip: usize) -> Result<usize> {
        let events = self.console()?.events();
        Ok(events.iter().skip(skip).filter(|e| text(e, "state") == "active").count())
    }

    /// Waits until a carrier of that kind is active, in events after the first `skip`.
    pub fn wait_active(&mut self, skip: usize, kind: &str, time: Duration) -> Result<Value> {
        let wanted = |e: &Value| {
            text(e, "event") == "carrier" && text(e, "state") == "active" && text(e, "kind") == kind
        };
        self.console()?.wait_after(skip, &format!("{kind} active"), time, wanted)
    }

    /// How long after `since` a direct carrier was active again, and stayed so for a moment, if it
    /// was within `time`.
    pub fn direct_again(&mut self, since: Instant, time: Duration) -> Result<Option<Duration>> {
        let deadline = Instant::now() + time;
        loop {
            let events = self.console()?.timed_events();
            let last = events.iter().rfind(|(_, e)| text(e, "state") == "active");
            let found = last.filter(|(at, e)| *at >= since && text(e, "kind") == "direct");
            if let Some((at, _)) = found
                && at.elapsed() >= STAYS
            {
                return Ok(Some(*at - since));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            pause(LOOK);
        }
    }

    /// Whether the carrier in use is direct, or becomes so within `time`.
    pub fn stays_direct(&mut self, time: Duration) -> Result<bool> {
        let deadline = Instant::now() + time;
        while self.active()? != "direct" {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            pause(LOOK);
        }
        Ok(true)
    }

    /// Kind of the carrier that is in use.
    pub fn active(&mut self) -> Result<String> {
        let events = self.console()?.events();
        let last = events.iter().rfind(|e| text(e, "state") == "active");
        Ok(last.map(|e| text(e, "kind").to_owned()).unwrap_or_default())
    }

    /// The peer's address on the carrier that is in use.
    pub fn active_remote(&mut self) -> Result<String> {
        let events = self.console()?.events();
        let last = events.iter().rfind(|e| text(e, "state") == "active");
        Ok(last.map(|e| text(e, "remote").to_owned()).unwrap_or_default())
    }

    /// The relay that is in use.
    pub fn relay_in_use(&mut self) -> Result<&'static str> {
        let events = self.console()?.events();
        let last = events.iter().rfind(|e| text(e, "state") == "active");
        let remote = last.map(|e| text(e, "relay").to_owned()).unwrap_or_default();
        Ok(if remote.starts_with(crate::lab::RELAY2) { "relay2" } else { "relay" })
    }

    /// A numbered stream both ways.
    pub fn flow(&self, rate: u64) -> Result<Flow> {
        let server = self.flows.as_ref().context("the services do not run")?;
        self.lab()?.within("console", || Flow::start(server, LOCAL_FLOWS.parse()?, 5, rate))
    }

    /// Runs a job beside the console with the address of the forward to the echo service.
    pub fn beside_console<T: Send>(
        &self,
        job: impl FnOnce(SocketAddr) -> Result<T> + Send,
    ) -> Result<T> {
        self.lab()?.within("console", || job(LOCAL.parse()?))
    }

    /// Small and larger transfers both ways.
    pub fn use_it(&self) -> Result<()> {
        self.beside_console(|local| {
            peer::echo(local, 3, 100)?;
            let down = peer::fetch(local, 3, 200_000, 0, |_| {})?;
            let up = peer::push(local, 4, 200_000, 0)?;
            ensure!(down["intact"] == true && up["intact"] == true, "bytes changed: {down} {up}");
            Ok(())
        })
    }

    /// Runs a tool on a host, which must succeed.
    pub fn tool(&self, host: &str, words: &[&str]) -> Result<String> {
        let (program, args) = words.split_first().context("no command")?;
        let mut command = Command::new(program);
        command.args(args);
        let done = run(program, &self.lab()?.on(host, &command), "")?;
        ensure!(done.code == 0, "{words:?} on {host}: {}{}", done.stdout, done.stderr);
        Ok(done.stdout)
    }

    /// Changes the network.
    pub fn ctl(&self, words: &str) -> Result<()> {
        self.lab()?.ctl(&words.split(' ').collect::<Vec<_>>()).map(drop)
    }

    /// The process of a role.
    pub fn process(&mut self, role: &str) -> Result<&mut Process> {
        match role {
            "console" => self.console(),
            other => self.site.process(other),
        }
    }

    /// The namespace of a host, for threads of a test.
    pub fn namespace(&self, host: &str) -> Result<PathBuf> {
        Ok(self.lab()?.namespace(host))
    }

    /// Ctrl-C at the console: it must end without an error.
    pub fn close_console(&mut self) -> Result<()> {
        if let Some(mut console) = self.console.take() {
            let status = console.interrupt()?;
            ensure!(status.code() == Some(0), "console: {status}\n{}", console.last_words());
        }
        Ok(())
    }

    /// Closes the console; then nobody may have complained.
    pub fn close(mut self) -> Result<()> {
        self.close_console()?;
        self.site.kill_all();
        let complaints = pair::complaints(&self.site)?;
        ensure!(complaints.is_empty(), "{}", complaints.join("; "));
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(console) = &mut self.console {
            let _ = console.kill();
        }
        if let Some(service) = self.service.take() {
            let _ = service.stop();
        }
        self.site.kill_all();
    }
}

/// What a change did to a flow.
pub struct Felt {
    /// The longest pause from the change on.
    pub stall: Duration,
    /// Until a direct carrier was active again.
    pub direct: Option<Duration>,
    /// Bytes moved.
    pub bytes: u64,
}

/// Moves bytes both ways, makes the change, waits until direct again (at most `wait`), and goes on
/// for `rest`. Not a byte may be missing.
pub fn during_flow(
    world: &mut World,
    change: impl FnOnce(&mut World) -> Result<()>,
    wait: Duration,
    rest: Duration,
) -> Result<Felt> {
    let flow = world.flow(RATE)?;
    pause(Duration::from_secs(1));
    let since = Instant::now();
    change(world)?;
    let direct = if wait.is_zero() { None } else { world.direct_again(since, wait)? };
    pause(rest);
    let flowed = flow.finish()?;
    let stall = flowed.stall_since(since);
    Ok(Felt { stall, direct, bytes: flowed.bytes.0 + flowed.bytes.1 })
}

/// Runs a job in a thread of its own inside a namespace, in the background.
pub fn in_background<T: Send + 'static>(
    namespace: PathBuf,
    job: impl FnOnce() -> Result<T> + Send + 'static,
) -> thread::JoinHandle<Result<T>> {
    thread::spawn(move || {
        enter(&namespace)?;
        job()
    })
}
