//! The four programs, set up as their users would, in the two namespaces.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    children::{Running, ask, pause},
    joins,
    world::{Side, World},
};

const READY: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
const MEDIATOR_PORT: u16 = 8443;
const STUN_PORT: u16 = 3478;
const RELAY_PORT: u16 = 9443;
const CLIENT: &str = "bench";
const COMPUTER: &str = "bench-computer";

/// Programs that run, and one session for each carrier. The last that started stops first.
pub(crate) struct Installation {
    sessions: Vec<(String, Session)>,
    agent: Running,
    relay: Running,
    mediator: Running,
    place: Place,
}

struct Session {
    console: Running,
    local: String,
}

/// Where programs and data are.
#[derive(Clone)]
struct Place {
    programs: PathBuf,
    dir: PathBuf,
}

impl Place {
    fn command(&self, world: &World, side: Side, program: &str, args: &[&str]) -> Command {
        let mut command = world.command(side, self.programs.join(program));
        command.args(args).arg("--data-dir").arg(self.dir.join(program));
        command
    }

    fn ask(
        &self,
        world: &World,
        program: &str,
        args: &[&str],
        input: Option<&str>,
    ) -> Result<Value> {
        let side = if program == "console-tunnel" { Side::Near } else { Side::Far };
        ask(&self.command(world, side, program, args), input)
    }

    fn serve(&self, world: &World, program: &str, args: &[&str]) -> Result<Running> {
        let command = self.command(world, Side::Far, program, args);
        let mut running =
            Running::start(program, command, &self.dir.join(format!("{program}.log")))?;
        running.wait("getting ready", READY, |e| text(e, "event") == "ready")?;
        Ok(running)
    }
}

impl Installation {
    /// Mediator, relay, agent, and a console that has logged in. The agent's owner allows
    /// `ports` on loopback.
    pub(crate) fn start(world: &World, programs: &Path, dir: &Path, ports: &[u16]) -> Result<Self> {
        fs::create_dir(dir)?;
        let place = Place { programs: programs.to_owned(), dir: dir.to_owned() };
        let host = Side::Far.ip().to_string();
        let (port, stun) = (MEDIATOR_PORT.to_string(), STUN_PORT.to_string());
        let init = ["init", "--host", &host, "--port", &port, "--stun-port", &stun, "--json"];
        let made = place.ask(world, "mediator", &init, None)?;
        let mediator = place.serve(world, "mediator", &["serve", "--json"])?;

        let token = place.ask(world, "mediator", &["token", "relay", "--json"], None)?;
        place.ask(world, "relay", &["join", "-", "--json"], Some(text(&token, "token")))?;
        let listen = format!("{host}:{RELAY_PORT}");
        let relay = place.serve(world, "relay", &["serve", "--listen", &listen, "--json"])?;

        let client = format!("{}/{CLIENT}", text(&made, "partner"));
        place.ask(world, "mediator", &["client", "add", &client, "--json"], None)?;
        let token = ["token", "agent", "--client", &client, "--json"];
        let token = place.ask(world, "mediator", &token, None)?;
        let enroll = ["enroll", "-", "--name", COMPUTER, "--json"];
        place.ask(world, "agent-tunnel", &enroll, Some(text(&token, "token")))?;
        let policy = format!("[[allow]]\ntargets = [\"127.0.0.1\"]\nports = {ports:?}\n");
        fs::write(dir.join("agent-tunnel/policy.toml"), policy)?;
        let agent = place.serve(world, "agent-tunnel", &["run", "--json"])?;

        let url = format!("https://{host}:{port}");
        let (user, fingerprint) = (text(&made, "admin"), text(&made, "fingerprint"));
        let login = ["login", &url, "--user", user, "--password-stdin", "--fingerprint"];
        let login = [&login[..], &[fingerprint, "--json"]].concat();
        place.ask(world, "console-tunnel", &login, Some(text(&made, "admin_password")))?;
        Ok(Self { sessions: Vec::new(), agent, relay, mediator, place })
    }

    /// A session on one carrier that stays, with a local port that leads to `target`.
    pub(crate) fn open(&mut self, world: &World, carrier: &str, target: &str) -> Result<()> {
        let args = self.forward_args(carrier, target);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let command = self.place.command(world, Side::Near, "console-tunnel", &args);
        let log = self.place.dir.join(format!("console-{carrier}.log"));
        let mut console = Running::start("console-tunnel", command, &log)?;
        let listening = console.wait("listening", READY, |e| text(e, "event") == "listening")?;
        let local = text(&listening, "local_addr").to_owned();
        // A console may say so before it listens, or after.
        console.wait("the carrier", READY, |e| {
            text(e, "event") == "carrier"
                && text(e, "kind") == carrier
                && text(e, "state") == "active"
        })?;
        self.sessions.push((carrier.to_owned(), Session { console, local }));
        Ok(())
    }

    /// What follows `console-tunnel`.
    fn forward_args(&self, carrier: &str, target: &str) -> Vec<String> {
        let spec = format!("127.0.0.1:0:{target}");
        ["forward", COMPUTER, "-L", &spec, "--carrier", carrier, "--reason", "bench", "--json"]
            .map(str::to_owned)
            .into()
    }

    /// Program and arguments of a console that forwards to `target` on whatever carrier is first.
    pub(crate) fn forward_command(&self, target: &str) -> Vec<String> {
        let program = self.place.programs.join("console-tunnel");
        let mut words = vec![program.display().to_string()];
        words.extend(self.forward_args("auto", target));
        let dir = self.place.dir.join("console-tunnel");
        words.extend(["--data-dir".to_owned(), dir.display().to_string()]);
        words
    }

    /// Where the session on this carrier listens.
    pub(crate) fn local(&self, carrier: &str) -> Result<String> {
        Ok(self.session(carrier)?.local.clone())
    }

    /// The processes of the session on this carrier, by name.
    pub(crate) fn pids(&self, carrier: &str) -> Result<Vec<(&'static str, u32)>> {
        let mut pids = vec![
            ("console", self.session(carrier)?.console.pid()),
            ("agent", self.agent.pid()),
            ("mediator", self.mediator.pid()),
        ];
        if carrier == "relayed" {
            pids.push(("relay", self.relay.pid()));
        }
        Ok(pids)
    }

    fn session(&self, carrier: &str) -> Result<&Session> {
        let found = self.sessions.iter().find(|(c, _)| c == carrier);
        found.map(|(_, s)| s).with_context(|| format!("no session on the {carrier} carrier"))
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        self.sessions.clear();
        for running in [&mut self.agent, &mut self.relay, &mut self.mediator] {
            running.stop();
        }
    }
}

/// The relay program alone, with tickets for pairs that are no sessions.
pub(crate) struct LoneRelay {
    relay: Running,
    _mediator: Running,
    /// What both ends of a pair need.
    pub(crate) joins: PathBuf,
}

impl LoneRelay {
    /// Starts it with a mediator that only signs tickets.
    pub(crate) fn start(world: &World, programs: &Path, dir: &Path) -> Result<Self> {
        fs::create_dir(dir)?;
        let place = Place { programs: programs.to_owned(), dir: dir.to_owned() };
        let joins = dir.join("joins");
        let host = Side::Far.ip();
        let mut command = world.command(Side::Far, std::env::current_exe()?);
        command.arg("mediator").arg(format!("{host}:{}", MEDIATOR_PORT + 1)).arg(&joins);
        let mut mediator = Running::start("mediator", command, &dir.join("mediator.log"))?;
        let ready = mediator.wait("getting ready", READY, |e| text(e, "event") == "ready")?;
        place.ask(world, "relay", &["join", "-", "--json"], Some(text(&ready, "token")))?;
        let listen = format!("{host}:{}", RELAY_PORT + 1);
        let relay = place.serve(world, "relay", &["serve", "--listen", &listen, "--json"])?;
        fs::write(joins::address_file(&joins), listen)?;
        let deadline = Instant::now() + READY;
        while !joins.exists() {
            ensure!(Instant::now() < deadline, "the relay did not meet its mediator");
            pause(LOOK);
        }
        Ok(Self { relay, _mediator: mediator, joins })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.relay.pid()
    }
}

/// A string of a JSON object, empty if it is not there.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}
