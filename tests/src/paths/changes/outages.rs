//! An end without any network for a while, or asleep, or with another idea of the time.
//!
//! While there is no path nothing can move; a stall is what lasts longer than that.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{
    AGAIN, STALL, Scene, Seen,
    network::{PAIR, direct_world},
    scene,
};
use crate::{
    clock::Clock,
    paths::{
        flow::Flow,
        world::{Felt, Place, RATE, World},
    },
    process::pause,
};

/// Transfer goes on for so long after the end of an outage.
const REST: Duration = Duration::from_secs(6);
/// How often an end's return is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// How far clocks jump, and how long they stay there.
const JUMP: i64 = 3 * 3600;
const STAY: Duration = Duration::from_secs(3);

pub(super) fn scenes() -> Vec<Scene> {
    vec![
        scene("sleep-agent", "the agent's computer sleeps for 10 s", |p| sleep(p, "agent", 10)),
        scene("sleep-console", "the console's computer sleeps for 10 s", |p| {
            sleep(p, "console", 10)
        }),
        Scene {
            long: true,
            ..scene("sleep-minute", "both computers sleep for a minute", |p| sleep(p, "both", 60))
        },
        Scene {
            long: true,
            ..scene("sleep-minute-agent", "the agent's computer sleeps for a minute", |p| {
                sleep(p, "agent", 60)
            })
        },
        Scene {
            long: true,
            ..scene("sleep-minute-console", "the console's computer sleeps for a minute", |p| {
                sleep(p, "console", 60)
            })
        },
        scene("link-agent", "the agent's interface goes down for 3 s", |p| link(p, "agent")),
        scene("link-console", "the console's interface goes down for 3 s", |p| link(p, "console")),
        scene("silence-20s", "the agent has no network at all for 20 s", |p| {
            silence(p, "agent", 20)
        }),
        scene("silence-20s-console", "the same at the console", |p| silence(p, "console", 20)),
        Scene {
            long: true,
            ..scene("silence-9m", "the agent has no network at all for 9 minutes", |p| {
                silence(p, "agent", 9 * 60)
            })
        },
        Scene {
            long: true,
            ..scene("silence-9m-console", "the same at the console", |p| {
                silence(p, "console", 9 * 60)
            })
        },
        scene("clock-agent", "the agent's clock jumps by hours, to and fro", |p| clock(p, "agent")),
        scene("clock-console", "the console's clock jumps by hours, to and fro", |p| {
            clock(p, "console")
        }),
    ]
}

/// What remained to be felt once there was a path again.
fn felt_after(flow: Flow, back: Instant, direct: Option<Duration>) -> Result<Felt> {
    let flowed = flow.finish()?;
    let bytes = flowed.bytes.0 + flowed.bytes.1;
    Ok(Felt { stall: flowed.stall_after(back), direct, bytes })
}

/// How long after `back` a direct carrier was in use, looked at until it is or time runs out. What
/// was in use before need not be told again.
pub(super) fn direct_since(
    world: &mut World,
    back: Instant,
    time: Duration,
) -> Result<Option<Duration>> {
    loop {
        let after = back.elapsed();
        if world.active()? == "direct" && after > Duration::from_secs(1) {
            return Ok(Some(after));
        }
        if after > time {
            return Ok(None);
        }
        pause(LOOK);
    }
}

fn sleep(place: &Place<'_>, who: &'static str, seconds: u64) -> Result<Seen> {
    let mut world = direct_world(place, PAIR)?;
    let roles: &[&str] = if who == "both" { &["agent", "console"] } else { &[who] };
    let flow = world.flow(RATE)?;
    pause(Duration::from_secs(1));
    for role in roles {
        world.process(role)?.signal("STOP")?;
    }
    pause(Duration::from_secs(seconds));
    let awake = Instant::now();
    for role in roles {
        world.process(role)?.signal("CONT")?;
    }
    let direct = direct_since(&mut world, awake, AGAIN * 2)?;
    pause(REST);
    let felt = felt_after(flow, awake, direct)?;
    world.close()?;
    Ok(Seen::felt(&felt, STALL, Some(AGAIN)))
}

fn link(place: &Place<'_>, side: &'static str) -> Result<Seen> {
    let mut world = direct_world(place, PAIR)?;
    let gateway = world.lab()?.info()["hosts"][side]["gw4"].as_str().unwrap_or_default().to_owned();
    let flow = world.flow(RATE)?;
    pause(Duration::from_secs(1));
    world.tool(side, &["ip", "link", "set", "eth0", "down"])?;
    pause(Duration::from_secs(3));
    world.tool(side, &["ip", "link", "set", "eth0", "up"])?;
    let route = ["ip", "route", "replace", "default", "via", &gateway, "dev", "eth0", "onlink"];
    world.tool(side, &route)?;
    let up = Instant::now();
    let direct = direct_since(&mut world, up, AGAIN * 2)?;
    pause(REST);
    let felt = felt_after(flow, up, direct)?;
    world.close()?;
    Ok(Seen::felt(&felt, STALL, Some(AGAIN)))
}

fn silence(place: &Place<'_>, side: &str, seconds: u64) -> Result<Seen> {
    let mut world = direct_world(place, PAIR)?;
    let flow = world.flow(RATE)?;
    pause(Duration::from_secs(1));
    world.ctl(&format!("set {side} off=1"))?;
    pause(Duration::from_secs(seconds));
    let back = Instant::now();
    world.ctl(&format!("set {side} off=0"))?;
    let direct = direct_since(&mut world, back, AGAIN * 4)?;
    pause(REST);
    let felt = felt_after(flow, back, direct)?;
    world.close()?;
    // That there is a path again nobody tells: both ends ask from time to time.
    Ok(Seen::felt(&felt, AGAIN, Some(AGAIN)))
}

/// A session does not know the time of day; neither does the next one mind.
fn clock(place: &Place<'_>, who: &'static str) -> Result<Seen> {
    let mut world = World::prepare(place, PAIR, false)?;
    let clock = Clock::new(world.site.artifacts())?;
    world.site.clock = Some((who.to_owned(), clock.path().to_owned()));
    world.run_servers()?;
    world.open_until("direct", AGAIN)?;
    let before = world.events()?;
    let flow = world.flow(RATE)?;
    pause(Duration::from_secs(1));
    let since = Instant::now();
    for offset in [JUMP, -JUMP, 8 * JUMP, 0] {
        clock.set(offset)?;
        pause(STAY);
        ensure!(world.console()?.runs(), "the session ended at an offset of {offset} s");
    }
    clock.set(JUMP)?;
    pause(STAY);
    let felt = felt_after(flow, since, None)?;
    let mut seen = Seen::felt(&felt, STALL, None);
    let events = world.console()?.events();
    let lost = events.iter().skip(before).filter(|e| e["state"] == "lost").count();
    if lost > 0 || world.active()? != "direct" {
        seen.problems.push(format!("{lost} carriers lost, {} at the end", world.active()?));
    }
    world.close_console()?;
    world.open_until("direct", AGAIN)?;
    world.use_it()?;
    world.close()?;
    Ok(seen)
}
