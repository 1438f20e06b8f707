//! What a flood of logins does to everybody else: other requests with and without it, in turns.
//!
//! The flood is more passwords than are compared, from new devices of a user whom nobody knows: each
//! that gets its turn is hashed like any other (argon2id), and whoever is sent away asks again at
//! once. It comes from one address, and from many of which none does much. Its clients are a
//! process of their own that takes what others leave of the processors: who attacks does so from
//! elsewhere, and only what the mediator does about it is measured. What the two take of the
//! processors is told beside the figures.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use adit_control::RequestError;
use adit_protocol::{
    code::failure,
    wire::{self, frame::Body},
};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinSet,
};

use super::{
    Bar, Plan, openings, percentile,
    site::{Address, Agent, Device, Site, WAIT, login},
    web::Web,
};
use crate::{children, cpu, number};

/// Others' time may at most double.
const TIMES: f64 = 2.0;
/// Turns without and with a flood, and how long each is.
const TURNS: usize = 5;
const TURN: Duration = Duration::from_secs(4);
/// Time for a flood to be there before others are measured in it.
const AHEAD: Duration = Duration::from_secs(1);
/// Who floods from one address, and who from an address each.
const FLOODERS: u8 = 32;
const ADDRESSES: u8 = 200;
/// Pause after a connection that was not taken.
const AGAIN: Duration = Duration::from_millis(20);
/// Consoles that work meanwhile, how often each lists computers and opens a session: a hundred
/// sessions in all, fewer than one console may hold.
const CONSOLES: usize = 16;
const LISTS: Duration = Duration::from_millis(220);
const OPENINGS: Duration = Duration::from_millis(450);
/// Between two reads of the API.
const READS: Duration = Duration::from_millis(30);

/// Milliseconds of each kind of request.
#[derive(Default)]
struct Times {
    lists: Vec<f64>,
    openings: Vec<f64>,
    reads: Vec<f64>,
}

/// From where a flood comes.
#[derive(Clone, Copy)]
enum Sources {
    One,
    Many,
}

impl Sources {
    fn arg(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Many => "many",
        }
    }

    fn told(self) -> &'static str {
        match self {
            Self::One => "a flood of logins from one address",
            Self::Many => "a flood of logins from 200 addresses",
        }
    }
}

/// Three figures of each kind of flood: how many times longer the 99th percentile is.
pub(super) async fn measure(plan: &Plan) -> Result<Vec<Bar>> {
    let mut bars = beside(plan, Sources::One).await?;
    bars.extend(beside(plan, Sources::Many).await?);
    Ok(bars)
}

async fn beside(plan: &Plan, from: Sources) -> Result<Vec<Bar>> {
    let mut site = Site::new(plan, "flood")?;
    site.serve()?;
    site.run(&["client", "add", "main/bench"])?;
    let (mut consoles, mut agents) = (Vec::new(), Vec::new());
    for n in 0..CONSOLES {
        consoles.push(site.console().await?);
        agents.push(Arc::new(site.agent(&format!("pc-{n}")).await?));
    }
    let mut web = Web::open(&site, consoles.first().context("none")?).await?;
    let (mut usual, mut flooded) = (Times::default(), Times::default());
    let (mut next, mut used, mut flood) = (0, [0.0; 2], Sum::default());
    // The first turn warms up.
    for turn in 0..=2 * TURNS {
        let with = turn > 0 && turn % 2 == 0;
        let running = match with {
            true => Some(start(&site, from).await?),
            false => None,
        };
        let before = site.cpu()?;
        let mut times = Times::default();
        work(&consoles, &agents, &mut web, &mut next, &mut times).await?;
        let spent = site.cpu()? - before;
        if let Some(running) = running {
            flood.add(&running.await??);
        }
        if turn == 0 {
            continue;
        }
        let into = if with { &mut flooded } else { &mut usual };
        if let Some(used) = used.get_mut(usize::from(with)) {
            *used += spent;
        }
        into.lists.extend(times.lists);
        into.openings.extend(times.openings);
        into.reads.extend(times.reads);
    }
    let seconds = TURN.as_secs_f64() * f64::from(u8::try_from(TURNS)?);
    let per_cent = used.map(|used| used * 100.0 / seconds);
    eprintln!(
        "{} had {:.0} passwords compared a second and {:.0} sent away, with {:.0} % of a \
         processor for its own; the mediator used {:.0} % without it, {:.0} % with it",
        from.told(),
        flood.checked / flood.seconds,
        flood.busy / flood.seconds,
        flood.cpu * 100.0 / flood.seconds,
        per_cent[0],
        per_cent[1],
    );
    ensure!(flood.checked > flood.seconds && flood.busy > 0.0, "that was no flood");
    let bar = |name: &str, usual: Vec<f64>, flooded: Vec<f64>| {
        let of = |mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            (percentile(&times, 50), percentile(&times, 99))
        };
        let (usual, flooded) = (of(usual), of(flooded));
        eprintln!(
            "{name}: median {:.1} ms, with the flood {:.1}; p99 {:.1} ms, with the flood {:.1}",
            usual.0, flooded.0, usual.1, flooded.1
        );
        let name = format!("{name}, p99 in {}, times", from.told());
        Bar::at_most(name, flooded.1 / usual.1, TIMES)
    };
    Ok(vec![
        bar("listing computers", usual.lists, flooded.lists),
        bar("opening a session", usual.openings, flooded.openings),
        bar("reading by the API", usual.reads, flooded.reads),
    ])
}

/// One turn of everybody's usual work.
async fn work(
    consoles: &[Device],
    agents: &[Arc<Agent>],
    web: &mut Web<'_>,
    next: &mut usize,
    times: &mut Times,
) -> Result<()> {
    let until = Instant::now() + TURN;
    let (mut lists, mut openings) = (JoinSet::new(), JoinSet::new());
    for (console, agent) in consoles.iter().zip(agents) {
        let peer = console.peer.clone();
        lists.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < until {
                let start = Instant::now();
                let wish = Body::ListComputers(wire::ListComputers::default());
                match peer.request(wish, WAIT).await? {
                    Body::Computers(_) => times.push(start.elapsed().as_secs_f64() * 1e3),
                    other => bail!("no computers: {other:?}"),
                }
                tokio::time::sleep_until((start + LISTS).into()).await;
            }
            Ok(times)
        });
        let (peer, agent) = (console.peer.clone(), Arc::clone(agent));
        let first = *next;
        *next += 1_000;
        openings.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < until {
                let start = Instant::now();
                let wish = openings::wish(2, first + times.len(), &agent);
                match peer.request(Body::Open(wish), WAIT).await? {
                    Body::Granted(_) => times.push(start.elapsed().as_secs_f64() * 1e3),
                    other => bail!("not granted: {other:?}"),
                }
                tokio::time::sleep_until((start + OPENINGS).into()).await;
            }
            Ok(times)
        });
    }
    while Instant::now() < until {
        let start = Instant::now();
        times.reads.push(web.get("/api/v1/computers").await?.ms);
        tokio::time::sleep_until((start + READS).into()).await;
    }
    while let Some(done) = lists.join_next().await {
        times.lists.extend(done??);
    }
    while let Some(done) = openings.join_next().await {
        times.openings.extend(done??);
    }
    Ok(())
}

/// What floods did, all together.
#[derive(Default)]
struct Sum {
    checked: f64,
    busy: f64,
    cpu: f64,
    seconds: f64,
}

impl Sum {
    fn add(&mut self, told: &serde_json::Value) {
        let of = |name: &str| told.get(name).and_then(serde_json::Value::as_f64).unwrap_or(0.0);
        self.checked += of("checked");
        self.busy += of("busy");
        self.cpu += of("cpu");
        self.seconds += of("seconds");
    }
}

type Running = tokio::task::JoinHandle<Result<serde_json::Value>>;

/// Begins a flood that lasts a little longer than a turn, and waits until it is there.
async fn start(site: &Site, from: Sources) -> Result<Running> {
    let mut command = Command::new("chrt");
    command.args(["--idle", "0"]).arg(std::env::current_exe()?);
    command.args(["audit-flood", &site.port.to_string(), &site.fingerprint]);
    command.args([(AHEAD + TURN + AHEAD).as_secs().to_string(), from.arg().to_owned()]);
    let running = tokio::task::spawn_blocking(move || children::ask(&command, None));
    tokio::time::sleep(AHEAD).await;
    Ok(running)
}

/// The process that floods: tells how many passwords were compared and how many sent away.
pub(crate) fn run(port: &str, fingerprint: &str, seconds: &str, from: &str) -> Result<()> {
    let from = match from {
        "one" => Sources::One,
        "many" => Sources::Many,
        other => bail!("a flood from {other:?}"),
    };
    let (address, seconds) = (Address::new(number(port)?, fingerprint)?, number::<u64>(seconds)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let [checked, busy] = runtime.block_on(flood(address, Duration::from_secs(seconds), from))?;
    let cpu = cpu::seconds(&[std::process::id()])?;
    let told = json!({"checked": checked, "busy": busy, "cpu": cpu, "seconds": seconds});
    println!("{told}");
    Ok(())
}

async fn flood(address: Address, time: Duration, from: Sources) -> Result<[u64; 2]> {
    let counts: Arc<[AtomicU64; 2]> = Arc::default();
    let mut tasks = JoinSet::new();
    match from {
        Sources::One => {
            for _ in 0..FLOODERS {
                tasks.spawn(try_passwords(address, Arc::clone(&counts)));
            }
        }
        Sources::Many => {
            for n in 1..=ADDRESSES {
                let way = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
                let near = address.at(way.local_addr()?.port());
                tasks.spawn(pass(way, Ipv4Addr::new(127, 1, 0, n), address.port()));
                tasks.spawn(try_passwords(near, Arc::clone(&counts)));
            }
        }
    }
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        Some(ended) = tasks.join_next() => ended??,
    }
    tasks.shutdown().await;
    Ok([0, 1].map(|which: usize| counts.get(which).map_or(0, |n| n.load(Ordering::Relaxed))))
}

/// A device that tries passwords without end.
async fn try_passwords(address: Address, counts: Arc<[AtomicU64; 2]>) -> Result<()> {
    let [checked, busy] = &*counts;
    loop {
        // Whose connection is not taken is sent away, too.
        let Ok(device) = address.stranger().await else {
            busy.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        while !device.peer.is_closed() {
            let wish = login("nobody-of-this-name", "a wrong password that is long");
            match device.peer.request(wish, WAIT).await {
                Err(RequestError::Failed(told)) if told.code == failure::BUSY => {
                    busy.fetch_add(1, Ordering::Relaxed);
                }
                Err(RequestError::Failed(told)) if told.code == failure::LOGIN_FAILED => {
                    checked.fetch_add(1, Ordering::Relaxed);
                }
                Err(RequestError::Failed(told)) => bail!("refused: {told:?}"),
                Ok(other) => bail!("logged in: {other:?}"),
                Err(_) => break,
            }
        }
    }
}

/// Passes on what comes, from an address of this machine that nobody else uses.
async fn pass(way: TcpListener, from: Ipv4Addr, to: u16) -> Result<()> {
    loop {
        let (mut near, _) = way.accept().await?;
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((from, 0)))?;
        let mut far = socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, to))).await?;
        // An end of it ends one connection; the flooder makes the next.
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    }
}
