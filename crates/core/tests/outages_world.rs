//! Sessions without UDP for seconds or hours: direct within five seconds of UDP's return, and what
//! waiting for it costs. In the simulated network, over thousands of seeds.
//!
//! `ADIT_SEEDS=n` runs another number of seeds, `ADIT_SEED=n` a single one; `--nocapture` prints
//! the figures.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test: its world is its own, an index is one of two sides"
)]

mod world;

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use world::{AGENT, CONSOLE, Class, Cut, Kind, Plan, World, ms};

const SEEDS: u64 = 2000;
const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/seeds/outages_world.txt");
const AGAIN: Duration = Duration::from_secs(5);
/// Of runs in which packets are lost, so many must be in time.
const LOSSY_SHARE: (usize, usize) = (98, 100);
/// What an end may send in a minute once an outage is old: to servers, and to the peer.
/// Where a NAT shows ever new ports, each of which is a reason to try again, it may be more.
const ASKED_PER_MINUTE: usize = 60;
const CHECKS_PER_MINUTE: [usize; 2] = [120, 250];

fn seeds() -> Vec<u64> {
    let variable = |name| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    if let Some(seed) = variable("ADIT_SEED") {
        return vec![seed];
    }
    let all = variable("ADIT_SEEDS").unwrap_or(SEEDS);
    let kept = kept().into_iter().filter(|seed| *seed >= all);
    (0..all).chain(kept).collect()
}

fn kept() -> Vec<u64> {
    let kept = std::fs::read_to_string(REGRESSIONS).unwrap_or_default();
    kept.lines().filter_map(|line| line.split('#').next()?.trim().parse().ok()).collect()
}

/// Failing seeds stay in the file that is always replayed; it is committed.
fn keep(seed: u64) {
    if !kept().contains(&seed) {
        let before = std::fs::read_to_string(REGRESSIONS).unwrap_or_default();
        let _ = std::fs::write(REGRESSIONS, format!("{before}{seed}\n"));
    }
}

/// Two networks between which theory says that punching works.
fn easy(rng: &mut StdRng, seed: u64) -> Plan {
    loop {
        let mut kind = || Kind::ALL[rng.random_range(0..Kind::ALL.len())];
        let random = Plan::random(seed);
        let plan = Plan {
            kinds: [kind(), kind()],
            same_lan: false,
            v6: false,
            change: None,
            quiet: true,
            announce_ms: 200,
            // As many as an end offers (`host_candidates` in the endpoint).
            junk: random.junk.min(8),
            loss_percent: if seed.is_multiple_of(4) { random.loss_percent } else { 0 },
            ..random
        };
        if plan.class() == Class::Easy {
            return plan;
        }
    }
}

/// Anything between the two is as likely as anything else of the same order.
fn duration(rng: &mut StdRng, from: f64, to: f64) -> Duration {
    Duration::from_secs_f64(rng.random_range(from.ln()..to.ln()).exp())
}

fn cuts(rng: &mut StdRng) -> [Option<Cut>; 2] {
    let mut one = || if rng.random() { Cut::Inside } else { Cut::Outside };
    let both = [Some(one()), Some(one())];
    match rng.random_range(0..3) {
        0 => [both[0], None],
        1 => [None, both[1]],
        _ => both,
    }
}

/// How long after `since` the session was direct, if it is within twice the time.
fn direct_after(world: &mut World, since: Duration) -> Option<Duration> {
    world.run_until(since + AGAIN * 2, World::is_direct);
    world.is_direct().then(|| world.elapsed() - since)
}

/// What happened since, of a single seed.
fn tell(world: &World, since: Duration) {
    if std::env::var_os("ADIT_SEED").is_none() {
        return;
    }
    println!("moves {:?}\n{:#?}", world.flow.moves, world.flow.carriers);
    for (i, side) in world.sides.iter().enumerate() {
        for (at, event) in side.events.iter().filter(|(at, _)| *at >= since) {
            println!("{i} {:?} {event:?}", *at - since);
        }
        for sent in side.sent.iter().filter(|s| s.at >= since) {
            println!("{i} {:?} to {} {:?}", sent.at - since, sent.to, sent.message);
        }
    }
}

#[derive(Default)]
struct Tally {
    times: Vec<Duration>,
    lossy: (usize, usize),
    failed: Vec<String>,
}

impl Tally {
    fn add(&mut self, seed: u64, plan: &Plan, after: Option<Duration>, what: &str) {
        let in_time = after.is_some_and(|after| after <= AGAIN);
        if plan.loss_percent > 0 {
            self.lossy.0 += usize::from(in_time);
            self.lossy.1 += 1;
        } else if !in_time {
            keep(seed);
            self.failed.push(format!("seed {seed}: {after:?} {what} {:?}", plan.kinds));
        }
        self.times.extend(after);
    }

    fn judge(mut self) {
        if self.times.is_empty() && self.failed.is_empty() {
            return; // a single seed of the other kind
        }
        self.times.sort_unstable();
        let last = self.times.len().saturating_sub(1);
        let at = |percent: usize| self.times.get(last * percent / 100).copied().unwrap_or_default();
        println!(
            "{} runs: direct after {:?} in the median, {:?} in 95 of 100, {:?} at worst; with \
             loss {} of {} in time",
            self.times.len(),
            at(50),
            at(95),
            at(100),
            self.lossy.0,
            self.lossy.1
        );
        assert!(self.failed.is_empty(), "{:#?}", self.failed);
        let (in_time, all) = self.lossy;
        assert!(in_time * LOSSY_SHARE.1 >= all * LOSSY_SHARE.0, "{in_time} of {all} with loss");
    }
}

#[test]
fn a_session_begun_without_udp_is_direct_within_5_s_of_its_return() {
    let mut tally = Tally::default();
    let mut most = [(0, 0); 2];
    for seed in seeds() {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x1a7e);
        let plan = easy(&mut rng, seed);
        let (cuts, seen) = (cuts(&mut rng), rng.random());
        // Hours are slow to simulate.
        let passes =
            duration(&mut rng, 2.0, if seed.is_multiple_of(20) { 18_000.0 } else { 300.0 });
        let mut world = World::without_udp(plan.clone(), seed, cuts, seen);
        world.run_until(passes, |_| false);
        assert!(!world.is_direct(), "seed {seed}: direct without UDP");
        if passes > Duration::from_secs(1800) {
            let of = |counted: Vec<Duration>| {
                let last = counted.iter().filter(|at| **at + Duration::from_secs(600) >= passes);
                last.count() / 10
            };
            let symmetric = usize::from(plan.kinds.iter().any(|kind| kind.is_symmetric()));
            let most = &mut most[symmetric];
            for side in &world.sides {
                let checks = of(side.sent.iter().map(|s| s.at).collect());
                *most = (most.0.max(of(side.asked.clone())), most.1.max(checks));
            }
        }
        world.sides.iter_mut().for_each(|side| side.cut = None);
        let after = direct_after(&mut world, passes);
        tell(&world, passes);
        tally.add(seed, &plan, after, &format!("{cuts:?} seen before: {seen}, cut for {passes:?}"));
    }
    for (of, (asked, checks)) in ["an end", "one with ever new ports"].iter().zip(most) {
        println!("{of} without UDP for long: {asked} requests, {checks} checks a minute");
    }
    for ((asked, checks), allowed) in most.into_iter().zip(CHECKS_PER_MINUTE) {
        assert!(asked <= ASKED_PER_MINUTE && checks <= allowed, "{asked}, {checks}");
    }
    tally.judge();
}

#[test]
fn a_session_that_lost_udp_is_direct_within_5_s_of_its_return() {
    let mut tally = Tally::default();
    for seed in seeds().into_iter().filter(|seed| seed.is_multiple_of(2)) {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x10_57);
        let plan = easy(&mut rng, seed);
        let mut world = World::new(plan.clone(), seed);
        let lost = duration(&mut rng, 6.0, 120.0);
        world.run_until(lost, |_| false);
        // The whole of an end's network, or the way between the two alone, of which no server
        // knows anything.
        let between = rng.random_range(0..3) == 0;
        let cuts = cuts(&mut rng);
        let longest = if between || !seed.is_multiple_of(20) { 600.0 } else { 7200.0 };
        let passes = lost + duration(&mut rng, 8.0, longest);
        if between {
            world.udp_dead = true;
        } else {
            (world.sides[CONSOLE].cut, world.sides[AGENT].cut) = (cuts[0], cuts[1]);
        }
        world.run_until(passes, |_| false);
        world.udp_dead = false;
        world.sides.iter_mut().for_each(|side| side.cut = None);
        let after = direct_after(&mut world, passes);
        tell(&world, passes);
        let cuts = if between { "between".to_owned() } else { format!("{cuts:?}") };
        tally.add(seed, &plan, after, &format!("{cuts}, lost {lost:?} until {passes:?}"));
    }
    tally.judge();
}

#[test]
fn who_has_a_path_asks_no_server() {
    let mut world = World::new(Plan::of([Kind::PortRestricted, Kind::PortRestricted]), 5);
    world.run_until(Duration::from_secs(3600), |_| false);
    assert!(world.is_direct());
    for side in &world.sides {
        assert!(side.asked.len() <= 2 && side.asked.iter().all(|at| *at < ms(2500)));
    }
}
