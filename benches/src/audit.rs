//! The audit log's speed: openings with durable audit, searching ten million entries, verifying a
//! million.
//!
//! ```text
//! cargo xtask bench audit                       (or adit-bench audit --events 1000000)
//! ```
//!
//! Openings are real ones as far as the mediator goes: TLS control connections of consoles and
//! agents over loopback, login, the decision, two audit records and the session's row durable on
//! disk, signed head, grant, offer with proof, answer, `Granted`. What is not in it: the work of
//! the ends themselves (Noise, checking the grant), which are stand-ins here.
//!
//! The large log is written directly into a database that the mediator made, by the same code
//! that seals and hashes entries, with its own log key: the mediator would need an hour. Search
//! and verification are the mediator's own commands; the time that a command takes to do nothing
//! is measured beside them. Must never report a figure of another run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use adit_control::client::{ConnectConfig, connect};
use adit_ledger::{Entry, Event, Level, MerkleTree, SignedHead};
use adit_net::{identity::DeviceIdentity, proxy::Dialer, tls::Trust};
use adit_protocol::{
    keys::{Fingerprint, SigningKey},
    token::EnrollToken,
    wire::{self, frame::Body},
};
use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use serde_json::Value;
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection};
use tokio::task::JoinSet;

use crate::{
    children::{Running, ask},
    installation::text,
    number,
};

const WAIT: Duration = Duration::from_secs(30);
/// The bars.
const OPENINGS_PER_SECOND: f64 = 1_000.0;
const P99_MS: f64 = 50.0;
const SEARCH_MS: f64 = 200.0;
const VERIFY_SECONDS: f64 = 10.0;
/// Of each: no device may ask for more than its allowance.
const PER_CONSOLE: usize = 100;
const CONSOLES: usize = 100;
const AGENTS: usize = 20;
/// Entries that are verified.
const VERIFIED: u64 = 1_000_000;
/// Entries in one transaction of the filling.
const FILL: u64 = 50_000;

/// Runs the parts and prints the figures; false if a bar was missed.
pub(crate) fn run(words: &[&str]) -> Result<bool> {
    let me = std::env::current_exe()?;
    let mut programs = me.parent().context("no directory")?.to_owned();
    let mut events = 10_000_000_u64;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match *word {
            "--events" => events = number(value()?)?,
            "--programs" => programs = PathBuf::from(value()?),
            other => bail!("no such option: {other}"),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut bars = Vec::new();
    runtime.block_on(openings(&programs, &mut bars))?;
    runtime.block_on(large(&programs, "verify", VERIFIED.min(events), &mut bars))?;
    runtime.block_on(large(&programs, "search", events, &mut bars))?;
    let mut good = true;
    for (name, figure, bar, at_least) in bars {
        let met = if at_least { figure >= bar } else { figure <= bar };
        good &= met;
        let word = if met { "met" } else { "MISSED" };
        println!("{name:<44} {figure:>10.1}   bar {bar:>7.0}   {word}");
    }
    Ok(good)
}

/// Name, figure, bar, and whether more is better.
type Bars = Vec<(String, f64, f64, bool)>;

/// A mediator in a directory that goes when this does.
struct Site {
    dir: PathBuf,
    program: PathBuf,
    fingerprint: String,
    password: String,
    running: Option<Running>,
    port: u16,
}

impl Site {
    fn new(programs: &Path, name: &str) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("adit-bench-{name}-{}", std::process::id()));
        let program = programs.join("mediator");
        let mut command = Command::new(&program);
        command
            .args(["init", "--host", "127.0.0.1", "--port", "0", "--stun-port", "0", "--json"])
            .arg("--data-dir")
            .arg(&dir);
        let made = ask(&command, None)?;
        Ok(Self {
            fingerprint: text(&made, "fingerprint").to_owned(),
            password: text(&made, "admin_password").to_owned(),
            dir,
            program,
            running: None,
            port: 0,
        })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).arg("--json").arg("--data-dir").arg(&self.dir);
        command
    }

    fn serve(&mut self) -> Result<()> {
        let log = self.dir.with_extension("log");
        let mut running = Running::start("mediator", self.command(&["serve"]), &log)?;
        let ready = running.wait("getting ready", WAIT * 20, |e| text(e, "event") == "ready")?;
        self.port = u16::try_from(ready.get("port").and_then(Value::as_u64).unwrap_or(0))?;
        self.running = Some(running);
        Ok(())
    }

    async fn connect(&self, me: &Arc<DeviceIdentity>, role: u32, id: &[u8]) -> Result<Device> {
        let fingerprint: Fingerprint = self.fingerprint.parse()?;
        let hello = wire::Hello {
            role,
            protocol: 1,
            version: "bench".to_owned(),
            device_id: Bytes::copy_from_slice(id),
            noise_cert: Some(me.noise_cert.clone()),
            ..wire::Hello::default()
        };
        let config = ConnectConfig {
            hosts: vec![format!("127.0.0.1:{}", self.port)],
            trust: Trust::Root(fingerprint),
            identity: Arc::clone(me),
            dialer: Dialer::direct(),
            hello,
            pipelined: Vec::new(),
            ahead: Default::default(),
            timeout: WAIT,
        };
        let (connected, driver) = connect(&config).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            driver.await;
        });
        Ok(Device { peer: connected.peer, incoming: Some(connected.incoming), tasks })
    }

    /// An agent that says yes to every offer.
    async fn agent(&self, name: &str) -> Result<Agent> {
        let told = ask(&self.command(&["token", "agent", "--client", "main/bench"]), None)?;
        let token = EnrollToken::decode(text(&told, "token"))?;
        let me = identity()?;
        let device = self.connect(&me, 4, &[]).await?;
        let enroll = wire::Enroll {
            proof: Some(token.redeem(me.signing.public())?),
            kind: 1,
            name: name.to_owned(),
            noise_cert: Some(me.noise_cert.clone()),
            ..wire::Enroll::default()
        };
        let Body::Enrolled(enrolled) = device.peer.request(Body::Enroll(enroll), WAIT).await?
        else {
            bail!("not enrolled");
        };
        let mut device = self.connect(&me, 1, &enrolled.device_id).await?;
        let mut incoming = device.incoming.take().context("no requests")?;
        device.tasks.spawn(async move {
            while let Some(request) = incoming.recv().await {
                let (body, responder) = request.into_parts();
                responder.reply(match body {
                    Body::Offer(_) => {
                        Body::Answer(wire::Answer { noise_msg2: vec![8; 100].into() })
                    }
                    _ => Body::Done(wire::Done {}),
                });
            }
        });
        Ok(Agent { id: enrolled.device_id, identity: me, _device: device })
    }

    async fn console(&self) -> Result<Device> {
        let me = identity()?;
        let device = self.connect(&me, 2, &[]).await?;
        let login = wire::Login {
            user: "admin".to_owned(),
            password: self.password.clone(),
            totp: String::new(),
        };
        match device.peer.request(Body::Login(login), WAIT).await? {
            Body::LoggedIn(_) => Ok(device),
            _ => bail!("not logged in"),
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.running = None;
        // Best effort: what is left is in the system's directory for such files.
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_file(self.dir.with_extension("log"));
    }
}

struct Device {
    peer: adit_control::Peer,
    incoming: Option<adit_control::Incoming>,
    tasks: JoinSet<()>,
}

struct Agent {
    id: Bytes,
    identity: Arc<DeviceIdentity>,
    _device: Device,
}

fn identity() -> Result<Arc<DeviceIdentity>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    Ok(Arc::new(DeviceIdentity::generate(u64::try_from(now)?)?))
}

async fn openings(programs: &Path, bars: &mut Bars) -> Result<()> {
    let mut site = Site::new(programs, "open")?;
    site.serve()?;
    ask(&site.command(&["client", "add", "main/bench"]), None)?;
    let mut agents = Vec::new();
    for n in 0..AGENTS {
        agents.push(site.agent(&format!("pc-{n}")).await?);
    }
    eprintln!("logging {CONSOLES} consoles in, twice");
    let mut groups = Vec::new();
    for _ in 0..2 {
        let mut consoles = Vec::new();
        for _ in 0..CONSOLES {
            consoles.push(site.console().await?);
        }
        groups.push(consoles);
    }
    let (rate, _) = open_all(groups.first().context("none")?, &agents, 0, None).await?;
    bars.push(("openings with durable audit, a second".into(), rate, OPENINGS_PER_SECOND, true));
    let half = OPENINGS_PER_SECOND / 2.0;
    let (_, mut times) = open_all(groups.get(1).context("none")?, &agents, 1, Some(half)).await?;
    times.sort_by(f64::total_cmp);
    let p99 = times.get(times.len() * 99 / 100).copied().unwrap_or(f64::MAX);
    bars.push((format!("p99 of an opening at {half:.0} a second, ms"), p99, P99_MS, false));
    Ok(())
}

/// Each console opens its share, all at once or at a pace; openings a second, and milliseconds.
async fn open_all(
    consoles: &[Device],
    agents: &[Agent],
    group: u8,
    pace: Option<f64>,
) -> Result<(f64, Vec<f64>)> {
    let began = Instant::now();
    let mut work = JoinSet::new();
    for (c, console) in consoles.iter().enumerate() {
        let peer = console.peer.clone();
        let wishes: Vec<_> = (0..PER_CONSOLE)
            .map(|n| {
                let index = n * consoles.len() + c;
                let agent = agents.get(index % agents.len().max(1)).context("no agents")?;
                Ok((index, wish(group, index, agent)))
            })
            .collect::<Result<_>>()?;
        work.spawn(async move {
            let mut times = Vec::new();
            for (index, wish) in wishes {
                if let Some(pace) = pace {
                    #[expect(clippy::cast_precision_loss, reason = "thousands")]
                    let at = began + Duration::from_secs_f64(index as f64 / pace);
                    tokio::time::sleep_until(at.into()).await;
                }
                let start = Instant::now();
                match peer.request(Body::Open(wish), WAIT).await? {
                    Body::Granted(_) => times.push(start.elapsed().as_secs_f64() * 1e3),
                    other => bail!("not granted: {other:?}"),
                }
            }
            Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = work.join_next().await {
        times.extend(done??);
    }
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
    Ok((rate, times))
}

fn wish(group: u8, index: usize, agent: &Agent) -> wire::Open {
    let mut session = [group; 16];
    for (to, from) in session.iter_mut().zip(index.to_be_bytes()) {
        *to = from;
    }
    wire::Open {
        session_id: session.to_vec().into(),
        computer_id: agent.id.clone(),
        redirector: "ssh".to_owned(),
        targets: vec![wire::Target { host: "127.0.0.1".to_owned(), port: 22, protocol: 6 }],
        reason: "bench".to_owned(),
        viewer: "ssh".to_owned(),
        noise_msg1: vec![7; 200].into(),
        agent_identity: agent.identity.signing.public().to_bytes(),
        ..wire::Open::default()
    }
}

/// Searches or verifies a log of so many entries.
async fn large(programs: &Path, what: &str, events: u64, bars: &mut Bars) -> Result<()> {
    let mut site = Site::new(programs, what)?;
    eprintln!("writing {events} entries to {what}");
    fill(&site.dir, events).await?;
    site.serve()?;
    let timed = |args: &[&str]| -> Result<f64> {
        let start = Instant::now();
        let done = site.command(args).output()?;
        ensure!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stdout));
        Ok(start.elapsed().as_secs_f64())
    };
    if what == "verify" {
        let seconds = timed(&["audit", "verify"])?;
        bars.push((format!("verifying {events} entries, s"), seconds, VERIFY_SECONDS, false));
        return Ok(());
    }
    let nothing = timed(&["status"])? * 1e3;
    eprintln!("a command that asks the mediator for its state takes {nothing:.0} ms");
    for (name, args) in [
        ("by person", &["--user", "person17"][..]),
        ("by computer", &["--computer", "pc-4711"]),
        ("by person and redirector, both common", &["--user", "person1", "--redirector", "rdp"]),
        (
            "by event, person and time",
            &[
                "--event",
                "login.failed",
                "--user",
                "person3",
                "--since",
                "2000-01-02T00:00:00Z",
                "--until",
                "2000-01-03T00:00:00Z",
            ],
        ),
        ("by session", &["--session", "session-123456"]),
        ("nobody", &["--user", "nobody"]),
    ] {
        let args = [&["audit", "search", "--limit", "100"], args].concat();
        let mut times = Vec::new();
        for _ in 0..5 {
            times.push(timed(&args)? * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let median = times.get(2).copied().unwrap_or(f64::MAX);
        bars.push((format!("search {name}, ms"), median, SEARCH_MS, false));
    }
    Ok(())
}

/// Makes the home partner's log this long.
async fn fill(dir: &Path, events: u64) -> Result<()> {
    let file = dir.join("mediator.db");
    let mut db = sqlx::sqlite::SqliteConnectOptions::new().filename(&file).connect().await?;
    for pragma in ["PRAGMA synchronous=OFF", "PRAGMA cache_size=-200000", "PRAGMA temp_store=FILE"]
    {
        sqlx::query(pragma).execute(&mut db).await?;
    }
    let indexes: Vec<(String, String)> = sqlx::query(
        "SELECT name, sql FROM sqlite_master WHERE tbl_name = 'audit_entry' AND type = 'index' \
         AND sql IS NOT NULL",
    )
    .fetch_all(&mut db)
    .await?
    .iter()
    .map(|row| (row.get("name"), row.get("sql")))
    .collect();
    for (name, _) in &indexes {
        sqlx::query(sqlx::AssertSqlSafe(format!("DROP INDEX {name}"))).execute(&mut db).await?;
    }
    let row =
        sqlx::query("SELECT id, number, frontier, head FROM audit_tree").fetch_one(&mut db).await?;
    let (id, log): (String, i64) = (row.get("id"), row.get("number"));
    let frontier: Vec<u8> = row.get("frontier");
    let head = SignedHead::parse(row.get::<String, _>("head").as_bytes())?;
    let mut tree = MerkleTree::from_bytes(&frontier).context("no frontier")?;
    while tree.size() < events {
        let until = events.min(tree.size() + FILL);
        let mut write = db.begin().await?;
        while tree.size() < until {
            add(&mut write, &id, log, &mut tree).await?;
        }
        write.commit().await?;
    }
    for (_, sql) in indexes {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut db).await?;
    }
    sqlx::query("DELETE FROM audit_block").execute(&mut db).await?;
    sqlx::query(
        "INSERT INTO audit_block (log_no, block, min_ms, max_ms, due_ms) SELECT $1, seq / 1024, \
         MIN(time_ms), MAX(time_ms), MIN(time_ms) FROM audit_entry GROUP BY seq / 1024",
    )
    .bind(log)
    .execute(&mut db)
    .await?;
    let key = log_key(&dir.join("log.key"))?;
    let signed =
        SignedHead::sign(&key, &id, tree.size(), tree.root(), head.time_ms, head.key_cert)?;
    sqlx::query("UPDATE audit_tree SET frontier = $1, head = $2 WHERE id = $3")
        .bind(tree.to_bytes())
        .bind(signed.to_line())
        .bind(&id)
        .execute(&mut db)
        .await?;
    db.close().await?;
    Ok(())
}

async fn add(db: &mut SqliteConnection, id: &str, log: i64, tree: &mut MerkleTree) -> Result<()> {
    let n = tree.size();
    let names = ["session.granted", "session.ended", "session.requested", "login.failed"];
    let name = names.get(usize::try_from(n % 4)?).copied().unwrap_or_default();
    let (person, pc) = (format!("person{}", n % 97), format!("pc-{}", n % 10_007));
    let (client, session) = (format!("main/client{}", n % 211), format!("session-{}", n / 3));
    let redirector = if n % 5 < 2 { "rdp" } else { "ssh" };
    // A second apart from the year 2000 on.
    let time = 946_684_800_000 + n * 1_000;
    let event = Event::new(name, Level::Significant)
        .partner("main")
        .client(client.as_str())
        .computer(pc.as_str())
        .computer_id(format!("00000000-0000-7000-8000-{:012}", n % 10_007))
        .session_id(session.as_str())
        .redirector(redirector)
        .actor(person.as_str())
        .source("192.0.2.7:50123")
        .target("127.0.0.1:3389")
        .reason("a ticket's worth of words about why")
        .outcome("granted");
    let entry = Entry::seal(n, time, event, [7; 16]);
    let mut nodes = Vec::new();
    tree.append_with(entry.leaf(), |node, hash| nodes.push((node, hash)));
    let computer = entry.event().computer_id.clone();
    sqlx::query(
        "INSERT INTO audit_entry (tree, seq, time_ms, event, session_id, leaf, line, log_no, \
         actor_key, computer_key, computer_id, client_key, redirector) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(id)
    .bind(i64::try_from(n)?)
    .bind(i64::try_from(time)?)
    .bind(name)
    .bind(session)
    .bind(entry.leaf().0.to_vec())
    .bind(entry.to_line())
    .bind(log)
    .bind(person)
    .bind(pc)
    .bind(computer)
    .bind(client)
    .bind(redirector)
    .execute(&mut *db)
    .await?;
    // Inner nodes as the mediator keeps them.
    for (node, hash) in nodes.into_iter().filter(|(node, _)| node.level >= 4) {
        sqlx::query(
            "INSERT INTO audit_node (tree, level, idx, hash) VALUES ($1, $2, $3, $4) \
             ON CONFLICT DO NOTHING",
        )
        .bind(id)
        .bind(i64::from(node.level))
        .bind(i64::try_from(node.index)?)
        .bind(hash.0.to_vec())
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

/// The log key as the mediator keeps it: 64 hexadecimal digits.
fn log_key(file: &Path) -> Result<SigningKey> {
    let text = fs::read_to_string(file)?;
    let seed: Vec<u8> = text
        .trim()
        .as_bytes()
        .chunks(2)
        .map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?))
        .collect::<Result<_>>()?;
    Ok(SigningKey::from_seed(&seed)?)
}
