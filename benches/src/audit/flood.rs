//! What a flood of logins does to everybody else: other requests with and without it, in turns.
//!
//! The flood is more passwords than may be checked, from new devices of a user whom nobody knows: each
//! that gets a place is hashed like any other (argon2id). Those who find no room ask again after
//! a short pause, so that the flood costs the mediator and not this program's own processor.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use adit_control::RequestError;
use adit_protocol::{
    code::failure,
    wire::{self, frame::Body},
};
use anyhow::{Context as _, Result, bail, ensure};
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    Bar, Plan, openings, percentile,
    site::{Address, Agent, Device, Site, WAIT, login},
    web::Web,
};

/// Others' time may at most double.
const TIMES: f64 = 2.0;
/// Turns without and with a flood, and how long each is.
const TURNS: usize = 5;
const TURN: Duration = Duration::from_secs(4);
/// Who floods, and how soon one who is sent away comes again.
const FLOODERS: usize = 32;
const AGAIN: Duration = Duration::from_millis(250);
/// Consoles that work meanwhile, how often each lists computers and opens a session: a hundred
/// sessions in all, fewer than one console may hold.
const CONSOLES: usize = 8;
const LISTS: Duration = Duration::from_millis(110);
const OPENINGS: Duration = Duration::from_millis(450);
/// Between two reads of the API.
const READS: Duration = Duration::from_millis(60);

/// Milliseconds of each kind of request.
#[derive(Default)]
struct Times {
    lists: Vec<f64>,
    openings: Vec<f64>,
    reads: Vec<f64>,
}

/// Three figures: how many times longer the 99th percentile is.
pub(super) async fn measure(plan: &Plan) -> Result<Vec<Bar>> {
    let mut site = Site::new(plan, "flood")?;
    site.serve()?;
    site.run(&["client", "add", "main/bench"])?;
    let (mut consoles, mut agents) = (Vec::new(), Vec::new());
    for n in 0..CONSOLES {
        consoles.push(site.console().await?);
        agents.push(Arc::new(site.agent(&format!("pc-{n}")).await?));
    }
    let address = site.address()?;
    let mut web = Web::open(&site, consoles.first().context("none")?).await?;
    let (mut usual, mut flooded) = (Times::default(), Times::default());
    let mut next = 0;
    let mut checked = 0;
    // The first turn warms up.
    for turn in 0..=2 * TURNS {
        let flood = (turn > 0 && turn % 2 == 0).then(|| Flood::start(address));
        let mut times = Times::default();
        work(&consoles, &agents, &mut web, &mut next, &mut times).await?;
        if let Some(flood) = flood {
            checked += flood.stop().await?;
        }
        let into = match turn {
            0 => continue,
            turn if turn % 2 == 0 => &mut flooded,
            _ => &mut usual,
        };
        into.lists.extend(times.lists);
        into.openings.extend(times.openings);
        into.reads.extend(times.reads);
    }
    let seconds = TURN.as_secs_f64() * f64::from(u8::try_from(TURNS)?);
    let rate = f64::from(u32::try_from(checked)?) / seconds;
    eprintln!("the flood had {rate:.0} passwords checked a second");
    ensure!(rate > 1.0, "that was no flood");
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
        Bar::at_most(format!("{name}, p99 in a flood of logins, times"), flooded.1 / usual.1, TIMES)
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

/// Devices that try passwords without end.
struct Flood {
    tasks: JoinSet<Result<()>>,
    /// Passwords that were checked.
    checked: Arc<Semaphore>,
}

impl Flood {
    fn start(address: Address) -> Self {
        let mut tasks = JoinSet::new();
        let checked = Arc::new(Semaphore::new(0));
        for _ in 0..FLOODERS {
            let checked = Arc::clone(&checked);
            tasks.spawn(async move {
                loop {
                    let device = address.stranger().await?;
                    while !device.peer.is_closed() {
                        let wish = login("nobody-of-this-name", "a wrong password that is long");
                        match device.peer.request(wish, WAIT).await {
                            Err(RequestError::Failed(told)) if told.code == failure::BUSY => {
                                tokio::time::sleep(AGAIN).await;
                            }
                            Err(RequestError::Failed(told))
                                if told.code == failure::LOGIN_FAILED =>
                            {
                                checked.add_permits(1);
                            }
                            Err(RequestError::Failed(told)) => bail!("refused: {told:?}"),
                            Ok(other) => bail!("logged in: {other:?}"),
                            Err(_) => break,
                        }
                    }
                }
            });
        }
        Self { tasks, checked }
    }

    async fn stop(mut self) -> Result<usize> {
        if let Some(ended) = self.tasks.try_join_next() {
            ended??;
        }
        self.tasks.shutdown().await;
        Ok(self.checked.available_permits())
    }
}
