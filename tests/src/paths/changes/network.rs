//! Networks that change under a running transfer.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{AGAIN, STALL, Scene, Seen, scene};
use crate::{
    paths::world::{Felt, Place, RATE, World, during_flow},
    process::pause,
};

/// Time for a first direct carrier.
const DIRECT: Duration = Duration::from_secs(5);
/// Transfer goes on for this long after the change was digested.
const REST: Duration = Duration::from_secs(2);
/// Networks of most scenes.
const PAIR: &str = "port-restricted+port-restricted";

pub(super) fn scenes() -> Vec<Scene> {
    vec![
        scene("udp-dies-agent", "UDP of the agent's network is cut, and comes back", |p| {
            udp_dies(p, "agent")
        }),
        scene("udp-dies-console", "the same at the console", |p| udp_dies(p, "console")),
        scene("rebind-agent", "the agent's NAT loses its mappings", |p| rebind(p, "agent", &[])),
        scene("rebind-console", "the same at the console", |p| rebind(p, "console", &[])),
        scene("rebind-ip-agent", "the agent's NAT gets a new address", |p| {
            rebind(p, "agent", &["--ip"])
        }),
        scene("rebind-ip-console", "the same at the console", |p| rebind(p, "console", &["--ip"])),
        scene("roam-agent", "the agent moves to another network", roam),
        scene("short-timeout", "NATs forget after 3 s of silence; idle for 8 s", short_timeout),
        scene("sleep-agent", "the agent's computer sleeps for 10 s", |p| sleep(p, "agent", 10)),
        scene("sleep-console", "the console's computer sleeps for 10 s", |p| {
            sleep(p, "console", 10)
        }),
        Scene {
            long: true,
            ..scene("sleep-minute", "both computers sleep for a minute", |p| sleep(p, "both", 60))
        },
        scene("link-agent", "the agent's interface goes down for 3 s", |p| link(p, "agent")),
        scene("link-console", "the console's interface goes down for 3 s", |p| link(p, "console")),
        scene("v6-to-v4", "IPv6 dies under a session on it", |p| family(p, "v6")),
        scene("v4-to-v6", "IPv4 dies under a session, IPv6 remains", |p| family(p, "v4")),
        scene("silence-20s", "the agent has no network at all for 20 s", |p| silence(p, 20)),
        Scene {
            long: true,
            ..scene("silence-9m", "the agent has no network at all for 9 minutes", |p| {
                silence(p, 9 * 60)
            })
        },
        scene("mtu-1280", "the agent's line has an MTU of 1280", |p| mtu(p, "mtu=1280")),
        scene("mtu-black-hole", "the same, and no ICMP says so", |p| {
            mtu(p, "mtu=1280:blackhole=1")
        }),
        scene(
            "mtu-shrinks",
            "the line's MTU becomes 1280 without ICMP, during a transfer",
            shrinks,
        ),
    ]
}

fn direct_world(place: &Place<'_>, scenario: &str) -> Result<World> {
    let mut world = World::start(place, scenario)?;
    world.open_until("direct", DIRECT)?;
    Ok(world)
}

fn udp_dies(place: &Place<'_>, side: &str) -> Result<Seen> {
    let mut world = direct_world(place, PAIR)?;
    let flow = world.flow(RATE)?;
    pause(Duration::from_secs(1));
    let since = Instant::now();
    let before = world.events()?;
    world.ctl(&format!("set {side}-nat allow=no-udp"))?;
    world.wait_active(before, "relayed", DIRECT)?;
    pause(REST);
    let back = Instant::now();
    world.ctl(&format!("set {side}-nat allow=all"))?;
    let direct = world.direct_again(back, Duration::from_secs(60))?;
    pause(Duration::from_secs(1));
    let flowed = flow.finish()?;
    let felt =
        Felt { stall: flowed.stall_since(since), direct, bytes: flowed.bytes.0 + flowed.bytes.1 };
    world.close()?;
    Ok(Seen::felt(&felt, STALL, Some(AGAIN)))
}

fn rebind(place: &Place<'_>, side: &'static str, options: &[&str]) -> Result<Seen> {
    let mut world = direct_world(place, PAIR)?;
    let words = [&["rebind", side], options].concat();
    let change = |w: &mut World| w.lab()?.natlab(&words).map(drop);
    let felt = during_flow(&mut world, change, AGAIN * 3, REST)?;
    world.close()?;
    Ok(Seen::felt(&felt, STALL, Some(AGAIN)))
}

fn roam(place: &Place<'_>) -> Result<Seen> {
    let mut world = direct_world(place, PAIR)?;
    let change = |w: &mut World| w.lab()?.natlab(&["roam"]).map(drop);
    let felt = during_flow(&mut world, change, AGAIN * 3, REST)?;
    world.close()?;
    Ok(Seen::felt(&felt, STALL, Some(AGAIN)))
}

fn short_timeout(place: &Place<'_>) -> Result<Seen> {
    let mut world = direct_world(place, "short-timeout")?;
    pause(Duration::from_secs(8));
    let before = Instant::now();
    world.use_it()?;
    let mut seen = Seen::note(format!("first use after it: {} ms", before.elapsed().as_millis()));
    if world.active()? != "direct" {
        seen.problems.push(format!("{} after 8 s of silence", world.active()?));
    }
    if before.elapsed() > STALL {
        seen.problems.push(format!("first use took {:?}", before.elapsed()));
    }
    world.close()?;
    Ok(seen)
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
    pause(Duration::from_secs(6));
    let direct = world.active()? == "direct";
    let flowed = flow.finish()?;
    // The pause while asleep is no stall: what counts is what comes after the first second.
    let felt = Felt {
        stall: flowed.stall_since(awake).saturating_sub(Duration::from_secs(seconds)),
        direct: direct.then_some(Duration::ZERO),
        bytes: flowed.bytes.0 + flowed.bytes.1,
    };
    world.close()?;
    let mut seen = Seen::felt(&felt, STALL, None);
    if !direct {
        seen.problems.push("not direct 6 s after waking up".to_owned());
    }
    seen.direct = None;
    Ok(seen)
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
    let up = Instant::now();
    world.tool(side, &route)?;
    pause(Duration::from_secs(6));
    let direct = world.active()? == "direct";
    let flowed = flow.finish()?;
    let felt = Felt {
        stall: flowed.stall_since(up).saturating_sub(Duration::from_secs(3)),
        direct: None,
        bytes: flowed.bytes.0 + flowed.bytes.1,
    };
    world.close()?;
    let mut seen = Seen::felt(&felt, STALL * 2, None);
    if !direct {
        seen.problems.push("not direct 6 s after the interface was up again".to_owned());
    }
    Ok(seen)
}

fn family(place: &Place<'_>, dies: &'static str) -> Result<Seen> {
    let mut world = direct_world(place, "dual+dual")?;
    let change = |w: &mut World| w.ctl(&format!("set agent-nat {dies}=off"));
    let felt = during_flow(&mut world, change, Duration::ZERO, AGAIN + REST)?;
    let direct = world.active()? == "direct";
    world.close()?;
    let mut seen = Seen::felt(&felt, STALL, None);
    if !direct {
        seen.problems.push("not direct after the change".to_owned());
    }
    Ok(seen)
}

fn silence(place: &Place<'_>, seconds: u64) -> Result<Seen> {
    let mut world = direct_world(place, PAIR)?;
    let flow = world.flow(RATE)?;
    pause(Duration::from_secs(1));
    world.ctl("set agent off=1")?;
    pause(Duration::from_secs(seconds));
    let back = Instant::now();
    world.ctl("set agent off=0")?;
    let direct = loop {
        // What was active before need not be told again.
        if world.active()? == "direct" && back.elapsed() > Duration::from_secs(1) {
            break Some(back.elapsed());
        }
        if back.elapsed() > AGAIN * 4 {
            break None;
        }
        pause(Duration::from_millis(50));
    };
    pause(REST);
    let flowed = flow.finish()?;
    let felt = Felt {
        stall: flowed.stall_since(back).saturating_sub(Duration::from_secs(seconds)),
        direct,
        bytes: flowed.bytes.0 + flowed.bytes.1,
    };
    world.close()?;
    Ok(Seen::felt(&felt, AGAIN, Some(AGAIN)))
}

fn mtu(place: &Place<'_>, option: &str) -> Result<Seen> {
    let mut world = direct_world(place, &format!("port-restricted+port-restricted:{option}"))?;
    let felt = during_flow(&mut world, |_| Ok(()), Duration::ZERO, Duration::from_secs(4))?;
    let mut seen = Seen::felt(&felt, STALL, None);
    world.use_it()?;
    if world.active()? != "direct" {
        seen.problems.push(format!("{} at the end", world.active()?));
    }
    world.close()?;
    Ok(seen)
}

fn shrinks(place: &Place<'_>) -> Result<Seen> {
    let mut world = direct_world(place, PAIR)?;
    pause(Duration::from_secs(2));
    let change = |w: &mut World| w.ctl("set agent-nat mtu=1280 blackhole=1");
    let felt = during_flow(&mut world, change, Duration::ZERO, AGAIN)?;
    world.close()?;
    Ok(Seen::felt(&felt, STALL, None))
}
