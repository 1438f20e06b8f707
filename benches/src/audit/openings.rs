//! Openings of sessions: how many a second when all ask at once, how long one takes at half the
//! required rate.

use std::time::{Duration, Instant};

use adit_protocol::wire::{self, frame::Body};
use anyhow::{Context as _, Result, bail};
use tokio::task::JoinSet;

use super::{
    Bar, Plan, percentile,
    site::{Agent, Device, Site, WAIT},
};

/// The bars.
const PER_SECOND: f64 = 1_000.0;
const P99_MS: f64 = 50.0;
/// Of each: no device may ask for more than its allowance.
const PER_CONSOLE: usize = 100;
const CONSOLES: usize = 100;
const AGENTS: usize = 20;

/// Both figures.
pub(super) async fn measure(plan: &Plan) -> Result<Vec<Bar>> {
    let mut site = Site::new(plan, "open")?;
    site.serve()?;
    site.run(&["client", "add", "main/bench"])?;
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
    // What a busy machine changes least.
    let before = site.cpu()?;
    let (rate, times) = open_all(groups.first().context("none")?, &agents, 0, None).await?;
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let each = (site.cpu()? - before) * 1e6 / times.len() as f64;
    eprintln!(
        "all at once: median {:.1} ms; the mediator used {each:.0} us of a processor for each",
        percentile(&times, 50)
    );
    let half = PER_SECOND / 2.0;
    let (_, times) = open_all(groups.get(1).context("none")?, &agents, 1, Some(half)).await?;
    eprintln!("at half the rate: median {:.1} ms", percentile(&times, 50));
    let p99 = percentile(&times, 99);
    Ok(vec![
        Bar::at_least("openings with durable audit, a second", rate, PER_SECOND),
        Bar::at_most(format!("p99 of an opening at {half:.0} a second, ms"), p99, P99_MS),
    ])
}

/// Each console opens its share, all at once or at a pace; openings a second, and milliseconds,
/// sorted.
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
                let mut start = Instant::now();
                if let Some(pace) = pace {
                    #[expect(clippy::cast_precision_loss, reason = "thousands")]
                    let due = began + Duration::from_secs_f64(index as f64 / pace);
                    tokio::time::sleep_until(due.into()).await;
                    // From when it was due: a wish that had to wait for the one before waits, too.
                    start = due;
                }
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
    times.sort_by(f64::total_cmp);
    Ok((rate, times))
}

pub(super) fn wish(group: u8, index: usize, agent: &Agent) -> wire::Open {
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
        agent_identity: agent.device.identity.signing.public().to_bytes(),
        ..wire::Open::default()
    }
}
