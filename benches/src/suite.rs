//! The measurements: who takes part, in which order, how often.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    children::{Running, ask, pause},
    cpu,
    installation::{Installation, LoneRelay, text},
    number,
    report::Report,
    ssh::Ssh,
    world::{Side, World},
};

/// Time for what a measurement left behind: buffers, timers, closing connections.
const REST: Duration = Duration::from_millis(200);
const READY: Duration = Duration::from_secs(20);
const LOAD_PORT: u16 = 7001;
const BANNER_PORT: u16 = 7002;
const QUINN_PORT: u16 = 7003;
/// Round trips in one round.
const PINGS: u32 = 1_000;
/// Rounds of them for each round of bulk. The best counts: where the scheduler happens to put the
/// processes makes a difference of twice and more, and everyone must have had the best place.
const PING_ROUNDS: u32 = 12;
/// Time between them.
const PING_REST: Duration = Duration::from_millis(30);
/// The relay alone is fast and its cost small against the kernel's ticks of 10 ms.
const RELAY_TIMES: u64 = 4;
/// Openings in one round.
const OPENINGS: u32 = 5;
/// The parts that `--only` names.
const PARTS: [&str; 5] = ["relayed", "relay", "direct", "ping", "open"];

/// The command line.
pub(crate) struct Options {
    rounds: u32,
    bytes: u64,
    only: Vec<String>,
    programs: PathBuf,
    report: PathBuf,
}

impl Options {
    /// Reads the command line.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let me = std::env::current_exe()?;
        let beside = me.parent().context("no directory")?;
        let mut options = Self {
            rounds: 5,
            bytes: 2_000_000_000,
            only: Vec::new(),
            programs: beside.to_owned(),
            report: beside.with_file_name("bench").join("report.md"),
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} wants a value"));
            match *word {
                "--quick" => (options.rounds, options.bytes) = (3, 500_000_000),
                "--rounds" => options.rounds = number::<u32>(value()?)?.max(1),
                "--gb" => options.bytes = gigabytes(value()?)?,
                "--only" => options.only.push((*value()?).to_owned()),
                "--programs" => options.programs = value()?.into(),
                "--report" => options.report = value()?.into(),
                other => bail!("no such option: {other}"),
            }
        }
        if let Some(wrong) = options.only.iter().find(|o| !PARTS.contains(&o.as_str())) {
            bail!("no such part: {wrong}; there are {}", PARTS.join(", "));
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|o| o == part)
    }
}

fn gigabytes(text: &str) -> Result<u64> {
    let gb: f64 = number(text)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let bytes = (gb.clamp(0.01, 1_000.0) * 1e9) as u64;
    Ok(bytes)
}

/// One transfer.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    pub(crate) gigabytes: f64,
    /// CPU seconds by process.
    pub(crate) cpu: BTreeMap<&'static str, f64>,
}

/// One opening, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    pub(crate) total: f64,
    pub(crate) own: f64,
    pub(crate) audit: f64,
    pub(crate) granted: f64,
    pub(crate) connect: f64,
}

/// Everything measured; vectors in the order of the rounds.
#[derive(Default)]
pub(crate) struct Figures {
    /// By contestant and direction.
    pub(crate) bulk: BTreeMap<(&'static str, &'static str), Vec<Sample>>,
    /// By contestant: the median of each round, microseconds.
    pub(crate) ping: BTreeMap<&'static str, Vec<f64>>,
    pub(crate) open: Vec<Opening>,
    /// Runnable processes, averaged over a minute, before and after.
    pub(crate) load: (Option<f64>, Option<f64>),
}

/// Measures, writes the report, prints it; the exit code says whether every bar was met.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let world = World::new()?;
    let dir = TempDir::new()?;
    let mut figures = Figures { load: (cpu::load_average(), None), ..Figures::default() };
    measure(options, &world, &dir.0, &mut figures)?;
    figures.load.1 = cpu::load_average();
    let report = Report::new(&figures, options.rounds, options.bytes);
    let text = report.to_string();
    if let Some(parent) = options.report.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&options.report, &text)?;
    print!("{text}");
    eprintln!("written to {}", options.report.display());
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(options: &Options, world: &World, dir: &Path, figures: &mut Figures) -> Result<()> {
    let target = format!("127.0.0.1:{LOAD_PORT}");
    let banner = format!("127.0.0.1:{BANNER_PORT}");
    let me = std::env::current_exe()?;
    let mut command = world.command(Side::Far, &me);
    command.args(["load-serve", &target, &banner]);
    let mut load = Running::start("load server", command, &dir.join("load.log"))?;
    load.wait("getting ready", READY, |e| text(e, "event") == "ready")?;

    let bench = Bench { options, world, me };
    if options.wants("relay") {
        say("the relay alone");
        bench.relay_alone(
            &LoneRelay::start(world, &options.programs, &dir.join("lone"))?,
            figures,
        )?;
    }
    if options.only == ["relay"] {
        return Ok(());
    }
    say("mediator, relay, agent and console");
    let ports = [LOAD_PORT, BANNER_PORT];
    let mut adit = Installation::start(world, &options.programs, &dir.join("adit"), &ports)?;
    if options.wants("open") {
        say("opening, to the first byte");
        bench.openings(&adit, &banner, figures)?;
    }
    if options.only == ["open"] {
        return Ok(());
    }
    let ping = options.wants("ping");
    let mut peers = Vec::new();
    if ping || options.wants("relayed") {
        adit.open(world, "relayed", &target)?;
        peers.push(Peer::adit(&adit, "relayed")?);
    }
    let ssh = Ssh::start(world, &dir.join("ssh"), &target)?;
    peers.push(Peer {
        name: "ssh",
        local: ssh.local().to_owned(),
        pids: ssh.pids()?,
        bulk: "relayed",
    });
    let mut quinn = None;
    if ping || options.wants("direct") {
        adit.open(world, "direct", &target)?;
        peers.push(Peer::adit(&adit, "direct")?);
        let started = quinn.insert(Quinn::start(&bench, dir, &target)?);
        peers.push(started.peer());
    }
    if ping {
        say("one-byte round trips");
        bench.pings(&peers, figures)?;
    }
    let takes_part: Vec<&Peer> = peers.iter().filter(|p| options.wants(p.bulk)).collect();
    bench.bulk(&takes_part, figures)
}

/// Who carries bytes.
struct Peer {
    name: &'static str,
    local: String,
    pids: Vec<(&'static str, u32)>,
    /// The part in which it carries bulk.
    bulk: &'static str,
}

impl Peer {
    fn adit(adit: &Installation, carrier: &'static str) -> Result<Self> {
        let (local, pids) = (adit.local(carrier)?, adit.pids(carrier)?);
        Ok(Self { name: carrier, local, pids, bulk: carrier })
    }
}

struct Quinn {
    near: Running,
    far: Running,
    local: String,
}

impl Quinn {
    fn start(bench: &Bench<'_>, dir: &Path, target: &str) -> Result<Self> {
        let ready = |e: &Value| text(e, "event") == "ready";
        let addr = format!("{}:{QUINN_PORT}", Side::Far.ip());
        let mut command = bench.world.command(Side::Far, &bench.me);
        command.args(["quinn-serve", &addr, target]);
        let mut far = Running::start("quinn-serve", command, &dir.join("quinn-serve.log"))?;
        let key = far.wait("getting ready", READY, ready)?;
        let key = key.get("key").context("no key")?.to_string();
        let mut command = bench.world.command(Side::Near, &bench.me);
        command.args(["quinn-forward", "127.0.0.1:0", &addr, &key]);
        let mut near = Running::start("quinn-forward", command, &dir.join("quinn-forward.log"))?;
        let local = text(&near.wait("getting ready", READY, ready)?, "addr").to_owned();
        Ok(Self { near, far, local })
    }

    fn peer(&self) -> Peer {
        let pids = vec![("near", self.near.pid()), ("far", self.far.pid())];
        Peer { name: "quinn", local: self.local.clone(), pids, bulk: "direct" }
    }
}

struct Bench<'a> {
    options: &'a Options,
    world: &'a World,
    me: PathBuf,
}

impl Bench<'_> {
    fn bulk(&self, peers: &[&Peer], figures: &mut Figures) -> Result<()> {
        for round in 0..self.options.rounds {
            say(&format!("bulk, round {} of {}", round + 1, self.options.rounds));
            for peer in in_turn(peers, round) {
                for direction in ["up", "down"] {
                    let amount = self.options.bytes.to_string();
                    let sample = self.sample(&peer.pids, self.options.bytes, || {
                        let mut command = self.world.command(Side::Near, &self.me);
                        command.args(["load", &peer.local, direction, &amount]);
                        ask(&command, None)
                    });
                    let sample = sample.with_context(|| format!("{} {direction}", peer.name))?;
                    figures.bulk.entry((peer.name, direction)).or_default().push(sample);
                }
            }
            self.world.check()?;
        }
        Ok(())
    }

    /// One transfer and what it cost these processes.
    fn sample(
        &self,
        processes: &[(&'static str, u32)],
        bytes: u64,
        transfer: impl FnOnce() -> Result<Value>,
    ) -> Result<Sample> {
        pause(REST);
        let read = || -> Result<BTreeMap<&'static str, f64>> {
            let mut times = BTreeMap::new();
            for (name, pid) in processes {
                *times.entry(*name).or_default() += cpu::seconds(&[*pid])?;
            }
            Ok(times)
        };
        let before = read()?;
        let done = transfer()?;
        let mut cpu = read()?;
        for (name, time) in &mut cpu {
            *time -= before.get(name).copied().unwrap_or_default();
        }
        #[expect(clippy::cast_precision_loss, reason = "a terabyte at most")]
        let gigabytes = bytes as f64 / 1e9;
        Ok(Sample { seconds: float(&done, "seconds")?, gigabytes, cpu })
    }

    fn relay_alone(&self, lone: &LoneRelay, figures: &mut Figures) -> Result<()> {
        let joins = lone.joins.display().to_string();
        let bytes = self.options.bytes * RELAY_TIMES;
        let amount = bytes.to_string();
        let mut pair = 0u32;
        for _ in 0..self.options.rounds {
            for direction in ["up", "down"] {
                let index = pair.to_string();
                pair = (pair + 1) % crate::joins::SESSIONS;
                let mut far = self.world.command(Side::Far, &self.me);
                far.args(["join", &joins, &index, "agent"]);
                let log = lone.joins.with_extension("log");
                let _far = Running::start("far end", far, &log)?;
                let sample = self.sample(&[("relay", lone.pid())], bytes, || {
                    let mut near = self.world.command(Side::Near, &self.me);
                    near.args(["join", &joins, &index, "console", direction, &amount]);
                    ask(&near, None)
                })?;
                figures.bulk.entry(("relay alone", direction)).or_default().push(sample);
            }
        }
        self.world.check()
    }

    /// On one processor, all of them: a byte that changes processors pays three times as much
    /// for being woken there, and which contestant the scheduler spares that is luck.
    fn pings(&self, peers: &[Peer], figures: &mut Figures) -> Result<()> {
        let all = std::thread::available_parallelism()?.get();
        cpu::place_family("0")?;
        let done = self.pings_here(peers, figures);
        cpu::place_family(&format!("0-{}", all - 1))?;
        done
    }

    fn pings_here(&self, peers: &[Peer], figures: &mut Figures) -> Result<()> {
        let peers: Vec<&Peer> = peers.iter().collect();
        for round in 0..self.options.rounds * PING_ROUNDS {
            for peer in in_turn(&peers, round) {
                pause(PING_REST);
                let mut command = self.world.command(Side::Near, &self.me);
                command.args(["load", &peer.local, "ping", &PINGS.to_string()]);
                let median = float(&ask(&command, None)?, "median_us")?;
                figures.ping.entry(peer.name).or_default().push(median);
            }
        }
        Ok(())
    }

    fn openings(&self, adit: &Installation, target: &str, figures: &mut Figures) -> Result<()> {
        for _ in 0..self.options.rounds * OPENINGS {
            pause(REST);
            let mut command = self.world.command(Side::Near, &self.me);
            command.arg("first-byte").args(adit.forward_command(target));
            let took = ask(&command, None)?;
            figures.open.push(Opening {
                total: float(&took, "total_ms")?,
                own: float(&took, "own_ms")?,
                audit: float(&took, "audit_ms")?,
                granted: float(&took, "granted_ms")?,
                connect: float(&took, "connect_ms")?,
            });
        }
        Ok(())
    }
}

/// Each round begins with another one: nobody always has the cold or the warm place.
fn in_turn<'a>(peers: &[&'a Peer], round: u32) -> Vec<&'a Peer> {
    let mut peers = peers.to_vec();
    if let Some(n) = (round as usize).checked_rem(peers.len()) {
        peers.rotate_left(n);
    }
    peers
}

fn float(value: &Value, key: &str) -> Result<f64> {
    value.get(key).and_then(Value::as_f64).with_context(|| format!("no {key} in {value}"))
}

fn say(text: &str) {
    eprintln!("bench: {text}");
}

/// A directory for us alone that goes with us.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("adit-bench-{}", std::process::id()));
        // Fails if it is there: nobody else's directory is ever used.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| path.display().to_string())?;
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
