//! One pair of networks: all four programs in a laboratory of its own, until it is known what
//! becomes of their session.

use std::{
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::oracle::{Case, Class};
use crate::{
    lab::{Lab, LabServer, MED1, MED1_V6},
    peer::{self, TcpServer},
    process::{Process, pause, text},
    site::Site,
};

/// Where the console listens, inside its host.
const LOCAL: &str = "127.0.0.1:7001";
/// Where the service beside the agent listens, inside its host.
const SERVICE: &str = "127.0.0.1:7000";
/// Bytes moved each way once the outcome is known.
const BYTES: u64 = 200_000;
/// Time to the first byte.
const FIRST_BYTE: Duration = Duration::from_secs(20);
/// Time for the bytes.
const TRANSFER: Duration = Duration::from_secs(20);
/// How often waits look.
const LOOK: Duration = Duration::from_millis(10);

impl Class {
    /// Time in which a pair of the class becomes direct.
    pub fn direct_within(self) -> Option<Duration> {
        match self {
            Self::Easy => Some(Duration::from_secs(3)),
            Self::Hard => Some(Duration::from_secs(10)),
            Self::Impossible => None,
        }
    }
}

/// What became of a pair.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// From the start of the console's command to the first byte that came back.
    pub first_byte_ms: Option<f64>,
    /// From the same to the direct carrier.
    pub direct_ms: Option<f64>,
    /// Kind of the carrier that was in use at the end.
    pub carrier: String,
    /// What was not as it must be; empty: all well.
    pub problems: Vec<String>,
    /// The laboratory's seed.
    pub seed: u64,
}

impl Outcome {
    /// For machines.
    pub fn json(&self, case: &Case) -> Value {
        json!({
            "scenario": case.scenario, "class": case.verdict.class.to_string(),
            "why": case.verdict.why, "first_byte_ms": self.first_byte_ms,
            "direct_ms": self.direct_ms, "carrier": self.carrier,
            "problems": self.problems, "seed": self.seed,
        })
    }
}

/// What all pairs share: an installation that is set up and stopped.
pub struct Bench {
    like: Site,
    server: Arc<LabServer>,
    /// More arguments of agent and console, such as a log level.
    pub log_level: Option<String>,
}

impl Bench {
    /// Sets up an installation with two relays, an agent and a console, and stops it.
    pub fn new(test: &str) -> Result<Self> {
        let server = Arc::new(LabServer::start()?);
        let mut like = Site::lab(test, "open+open")?;
        like.start_mediator()?;
        like.start_relay("relay")?;
        like.start_relay("relay2")?;
        like.start_agent("agent", crate::site::POLICY_LOOPBACK)?;
        like.login("console")?;
        like.stop_all();
        Ok(Self { like, server, log_level: None })
    }

    /// With a natlab of its own, for another thread.
    pub fn another(&self) -> Result<Arc<LabServer>> {
        Ok(Arc::new(LabServer::start()?))
    }

    /// The natlab of the thread that made this.
    pub fn server(&self) -> &Arc<LabServer> {
        &self.server
    }

    /// A site of a scenario: its programs are to be started with [`start`].
    pub fn site(&self, test: &str, lab: Lab, console_v6_only: bool) -> Result<Site> {
        let mut site = Site::prepared(test, lab, &self.like)?;
        site.log_level.clone_from(&self.log_level);
        if console_v6_only {
            let account = site.data_dir("console").join("account.toml");
            let v4 = fs::read_to_string(&account)?;
            let v6 = v4.replace(&format!("\"{MED1}\""), &format!("\"{MED1_V6}\""));
            ensure!(v4 != v6, "the console's account does not name the mediator");
            fs::write(account, v6)?;
        }
        Ok(site)
    }

    /// Tries a pair. What it leaves is in the artifacts directory `name`.
    pub fn try_pair(&self, server: &Arc<LabServer>, name: &str, case: &Case, seed: u64) -> Outcome {
        let mut outcome = Outcome { seed, ..Outcome::default() };
        if let Err(error) = self.attempt(server, name, case, &mut outcome) {
            outcome.problems.push(format!("{error:#}"));
        }
        outcome
    }

    fn attempt(
        &self,
        server: &Arc<LabServer>,
        name: &str,
        case: &Case,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let lab = server.up(&case.scenario, outcome.seed, None)?;
        let mut site = self.site(name, lab, case.console_v6_only)?;
        start(&mut site)?;
        let service = site.laboratory()?.within("agent", || TcpServer::start(SERVICE))?;
        let used = use_it(&site, case, outcome);
        service.stop()?;
        site.kill_all();
        outcome.problems.extend(complaints(&site)?);
        used
    }
}

/// Starts mediator, relays and agent.
pub fn start(site: &mut Site) -> Result<()> {
    site.restart_all(&["mediator"])?;
    site.restart_all(&["relay", "relay2", "agent"])
}

fn use_it(site: &Site, case: &Case, outcome: &mut Outcome) -> Result<()> {
    let lab = site.laboratory()?;
    let begin = Instant::now();
    let spec = format!("{LOCAL}:{SERVICE}");
    let mut console = site.spawn("console", &["forward", "agent", "--json", "-L", &spec])?;
    let local = LOCAL.parse()?;
    let first = thread::scope(|scope| {
        let first = scope.spawn(|| lab.within("console", || peer::first_byte(local, FIRST_BYTE)));
        follow(&mut console, case.verdict.class, outcome)?;
        first.join().unwrap_or_else(|_| bail!("a thread panicked"))
    });
    outcome.first_byte_ms = Some((first? - begin).as_secs_f64() * 1e3);
    let moved = lab.within("console", || {
        let down = peer::fetch(local, 3, BYTES, 0, |_| {})?;
        let up = peer::push(local, 4, BYTES, 0)?;
        Ok((down, up))
    });
    let (down, up) = moved.with_context(|| format!("no transfer within {TRANSFER:?}"))?;
    ensure!(down["intact"] == true && up["intact"] == true, "bytes changed: {down} {up}");
    outcome.carrier = active(&console);
    judge(case, outcome);
    let status = console.interrupt()?;
    ensure!(status.code() == Some(0), "the console ended with {status}");
    Ok(())
}

/// Until the outcome is known.
fn follow(console: &mut Process, class: Class, outcome: &mut Outcome) -> Result<()> {
    console.wait("relayed or direct", FIRST_BYTE, is_active)?;
    let Some(time) = class.direct_within() else { return Ok(()) };
    // A late direct carrier is worth knowing, too.
    let deadline = Instant::now() + time.max(Duration::from_secs(6));
    while Instant::now() < deadline && console.runs() {
        if let Some(after) = direct_ms(console) {
            outcome.direct_ms = Some(after);
            return Ok(());
        }
        pause(LOOK);
    }
    Ok(())
}

fn is_active(event: &Value) -> bool {
    text(event, "event") == "carrier" && text(event, "state") == "active"
}

fn direct_ms(console: &Process) -> Option<f64> {
    let events = console.events();
    let direct = events.iter().find(|e| is_active(e) && text(e, "kind") == "direct")?;
    direct.get("since_start_ms")?.as_f64()
}

fn active(console: &Process) -> String {
    let events = console.events();
    let last = events.iter().rfind(|e| is_active(e));
    last.map(|e| text(e, "kind").to_owned()).unwrap_or_default()
}

fn judge(case: &Case, outcome: &mut Outcome) {
    let problem = match (case.verdict.class.direct_within(), outcome.carrier.as_str()) {
        (None, "direct") => Some("direct, though that is impossible".to_owned()),
        (None, _) => None,
        (Some(limit), "direct") => {
            let after = outcome.direct_ms.unwrap_or(f64::INFINITY);
            (after > limit.as_secs_f64() * 1e3).then(|| format!("direct only after {after:.0} ms"))
        }
        (Some(limit), other) => match outcome.direct_ms {
            None => Some(format!("{other}, not direct within {limit:?}")),
            Some(after) => Some(format!("{other} again after direct at {after:.0} ms")),
        },
    };
    outcome.problems.extend(problem);
}

/// Panics and errors in the programs' logs.
pub fn complaints(site: &Site) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(site.artifacts())? {
        let path = entry?.path();
        let log = fs::read_to_string(&path).unwrap_or_default();
        let bad = |l: &&str| l.contains("panicked at") || l.contains("\"level\":\"ERROR\"");
        if let Some(line) = log.lines().find(bad) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.push(format!("{name}: {line}"));
        }
    }
    Ok(found)
}
