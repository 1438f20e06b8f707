//! Networks that change under a running transfer.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{AGAIN, STALL, Scene, Seen, outages::direct_since, scene};
use crate::{
    paths::{
        flow::FlowEnd,
        world::{Felt, Place, RATE, World, during_flow},
    },
    peer,
    process::pause,
};

/// Time for a first direct carrier.
const DIRECT: Duration = Duration::from_secs(5);
/// Transfer goes on for this long after the change was digested.
const REST: Duration = Duration::from_secs(2);
/// After this time an idle session has digested that an end moved.
const ROAMED: Duration = Duration::from_millis(1500);
/// Longer than a NAT with a short timeout remembers.
const FORGOTTEN: Duration = Duration::from_secs(5);
/// How often such a transfer rests.
const RESTS: usize = 3;
/// What somebody who uses it then does not notice.
const AT_ONCE: Duration = Duration::from_millis(300);
/// Networks of most scenes.
pub(super) const PAIR: &str = "port-restricted+port-restricted";

pub(super) fn scenes() -> Vec<Scene> {
    vec![
        scene("udp-dies-agent", "UDP of the agent's network is cut, and comes back", |p| {
            udp_dies(p, "agent")
        }),
        scene("udp-dies-console", "the same at the console", |p| udp_dies(p, "console")),
        scene("udp-dies-download", "UDP dies, IPv4 and IPv6, while only the agent sends", |p| {
            udp_dies_one_way(p, FlowEnd::Far)
        }),
        scene("udp-dies-upload", "the same while only the console sends", |p| {
            udp_dies_one_way(p, FlowEnd::Near)
        }),
        scene(
            "udp-dies-45s",
            "UDP of the agent's network is cut for 45 s: nothing is left of the direct path",
            |p| udp_dies_for(p, "agent", Duration::from_secs(45)),
        ),
        scene("udp-dies-45s-console", "the same at the console", |p| {
            udp_dies_for(p, "console", Duration::from_secs(45))
        }),
        scene(
            "udp-late-agent",
            "a session begins without UDP at the agent; after 14 s it passes",
            |p| udp_late(p, &["agent"], Duration::from_secs(14)),
        ),
        scene("udp-late-console", "the same at the console", |p| {
            udp_late(p, &["console"], Duration::from_secs(14))
        }),
        scene("udp-late-both", "the same at both, after 36 s", |p| {
            udp_late(p, &["agent", "console"], Duration::from_secs(36))
        }),
        Scene {
            long: true,
            ..scene("udp-late-12m", "the same at both, after 12 minutes", |p| {
                udp_late(p, &["agent", "console"], Duration::from_secs(720))
            })
        },
        scene("rebind-agent", "the agent's NAT loses its mappings", |p| rebind(p, "agent", &[])),
        scene("rebind-console", "the same at the console", |p| rebind(p, "console", &[])),
        scene("rebind-ip-agent", "the agent's NAT gets a new address", |p| {
            rebind(p, "agent", &["--ip"])
        }),
        scene("rebind-ip-console", "the same at the console", |p| rebind(p, "console", &["--ip"])),
        scene("roam-agent", "the agent moves to another network", |p| roam(p, "agent")),
        scene("roam-console", "the console moves to another network", |p| roam(p, "console")),
        scene("roam-idle-agent", "the agent moves, while nothing flows", |p| roam_idle(p, "agent")),
        scene("roam-idle-console", "the same at the console", |p| roam_idle(p, "console")),
        scene("short-timeout", "NATs forget after 3 s of silence; idle for 8 s", short_timeout),
        scene(
            "short-timeout-agent",
            "the agent's NAT forgets after 3 s; a transfer rests for 5 s again and again",
            |p| short_timeout_with_rests(p, "agent"),
        ),
        scene("short-timeout-console", "the same at the console", |p| {
            short_timeout_with_rests(p, "console")
        }),
        scene("v6-to-v4", "IPv6 dies under a session on it, since IPv4 is 60 ms slower", |p| {
            family(p, "agent", "v6", "dual:delay4=15+dual:delay4=15")
        }),
        scene("v6-to-v4-console", "the same at the console", |p| {
            family(p, "console", "v6", "dual:delay4=15+dual:delay4=15")
        }),
        scene("v4-to-v6", "IPv4 dies under a session on it, since IPv6 is 60 ms slower", |p| {
            family(p, "agent", "v4", "dual:delay6=15+dual:delay6=15")
        }),
        scene("v4-to-v6-console", "the same at the console", |p| {
            family(p, "console", "v4", "dual:delay6=15+dual:delay6=15")
        }),
        scene("checks-lost", "every check is lost for 40 s, data pass", checks_lost),
        scene("mtu-1280", "the agent's line has an MTU of 1280", |p| mtu(p, "agent", "mtu=1280")),
        scene("mtu-1280-console", "the same at the console", |p| mtu(p, "console", "mtu=1280")),
        scene("mtu-black-hole", "the agent's line has an MTU of 1280, and no ICMP says so", |p| {
            mtu(p, "agent", "mtu=1280:blackhole=1")
        }),
        scene("mtu-black-hole-console", "the same at the console", |p| {
            mtu(p, "console", "mtu=1280:blackhole=1")
        }),
        scene(
            "mtu-shrinks",
            "the agent's line becomes one of 1280 without ICMP, during a transfer",
            |p| shrinks(p, "agent"),
        ),
        scene("mtu-shrinks-console", "the same at the console", |p| shrinks(p, "console")),
    ]
}

pub(super) fn direct_world(place: &Place<'_>, scenario: &str) -> Result<World> {
    let mut world = World::start(place, scenario)?;
    world.open_until("direct", DIRECT)?;
    Ok(world)
}

fn udp_dies(place: &Place<'_>, side: &str) -> Result<Seen> {
    udp_dies_for(place, side, REST)
}

fn udp_dies_for(place: &Place<'_>, side: &str, outage: Duration) -> Result<Seen> {
    let mut world = direct_world(place, PAIR)?;
    let flow = world.flow(RATE)?;
    pause(Duration::from_secs(1));
    let since = Instant::now();
    let before = world.events()?;
    world.ctl(&format!("set {side}-nat allow=no-udp"))?;
    world.wait_active(before, "relayed", DIRECT)?;
    pause(outage);
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

/// Whoever only receives has nothing outstanding by which it could notice.
fn udp_dies_one_way(place: &Place<'_>, sender: FlowEnd) -> Result<Seen> {
    let mut world = direct_world(place, "dual+dual")?;
    let flow = world.flow(RATE)?;
    flow.rest();
    pause(Duration::from_secs(1));
    let begin = Instant::now();
    flow.go(sender);
    pause(Duration::from_secs(2));
    let before = world.events()?;
    world.ctl("set agent-nat allow=no-udp")?;
    world.wait_active(before, "relayed", DIRECT)?;
    pause(REST);
    let back = Instant::now();
    world.ctl("set agent-nat allow=all")?;
    let direct = world.direct_again(back, Duration::from_secs(60))?;
    pause(Duration::from_secs(1));
    let until = Instant::now();
    let flowed = flow.finish()?;
    let stall = flowed.stall_after_rest(sender, begin, until);
    let felt = Felt { stall, direct, bytes: flowed.bytes.0 + flowed.bytes.1 };
    world.close()?;
    Ok(Seen::felt(&felt, STALL, Some(AGAIN)))
}

/// UDP passes only when the session has long been open: nobody has ever seen these sockets, and
/// attempts have become rare.
fn udp_late(place: &Place<'_>, sides: &[&str], after: Duration) -> Result<Seen> {
    let mut world = World::prepare(place, PAIR, false)?;
    let allow = |world: &World, what: &str| {
        sides.iter().try_for_each(|side| world.ctl(&format!("set {side}-nat allow={what}")))
    };
    allow(&world, "no-udp")?;
    world.run_servers()?;
    world.open_until("relayed", DIRECT)?;
    let flow = world.flow(RATE)?;
    pause(after);
    ensure!(world.active()? == "relayed", "{} without UDP", world.active()?);
    let passes = Instant::now();
    allow(&world, "all")?;
    let direct = world.direct_again(passes, AGAIN * 4)?;
    pause(REST);
    let flowed = flow.finish()?;
    let felt =
        Felt { stall: flowed.stall_since(passes), direct, bytes: flowed.bytes.0 + flowed.bytes.1 };
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

fn roam(place: &Place<'_>, who: &'static str) -> Result<Seen> {
    let mut world = direct_world(place, PAIR)?;
    let change = |w: &mut World| w.lab()?.natlab(&["roam", who]).map(drop);
    let felt = during_flow(&mut world, change, AGAIN * 3, REST)?;
    world.close()?;
    Ok(Seen::felt(&felt, STALL, Some(AGAIN)))
}

/// Nobody's data shows that the path is dead: it must be found out all the same, before somebody
/// waits for it.
fn roam_idle(place: &Place<'_>, who: &'static str) -> Result<Seen> {
    let world = direct_world(place, PAIR)?;
    pause(REST);
    world.lab()?.natlab(&["roam", who])?;
    pause(ROAMED);
    let before = Instant::now();
    world.beside_console(|local| peer::echo(local, 1, 16))?;
    let took = before.elapsed();
    let mut seen = Seen::note(format!("first use {ROAMED:?} after it: {} ms", took.as_millis()));
    if took > AT_ONCE {
        seen.problems.push(format!("first use took {took:?}"));
    }
    world.close()?;
    Ok(seen)
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

/// A transfer that is busy for longer than the NAT remembers, and then rests longer than that, again
/// and again. After each rest the end that is not behind this NAT goes on first: its bytes come to a
/// mapping that may be gone, and nothing from inside makes a new one.
fn short_timeout_with_rests(place: &Place<'_>, side: &str) -> Result<Seen> {
    let mut world = direct_world(place, &pair_with(side, "udp_timeout=3:refresh=out"))?;
    let (first, second) = match side {
        "agent" => (FlowEnd::Near, FlowEnd::Far),
        _ => (FlowEnd::Far, FlowEnd::Near),
    };
    let before = world.events()?;
    let flow = world.flow(RATE)?;
    let begin = Instant::now();
    pause(FORGOTTEN);
    let busy_until = Instant::now();
    let mut went_on = Vec::new();
    for _ in 0..RESTS {
        flow.rest();
        pause(FORGOTTEN);
        for end in [first, second] {
            went_on.push((end, Instant::now()));
            flow.go(end);
            pause(Duration::from_secs(1));
        }
    }
    let moves = world.moves(before)?;
    let last = went_on.last().map_or(begin, |(_, at)| *at);
    let left = moves > 0;
    let direct = if left { direct_since(&mut world, last, AGAIN * 2)? } else { None };
    let flowed = flow.finish()?;
    world.close()?;
    let busy = [first, second].map(|end| flowed.stall_after_rest(end, begin, busy_until));
    // Whatever came before this end went on the next time came late.
    let next = |end, since| went_on.iter().find(|(e, at)| *e == end && *at > since);
    let later = went_on.iter().map(|(end, since)| {
        let until = next(*end, *since).map_or(Instant::now(), |(_, at)| *at);
        flowed.stall_after_rest(*end, *since, until)
    });
    let stall = busy.into_iter().chain(later).max().unwrap_or_default();
    let felt = Felt { stall, direct, bytes: flowed.bytes.0 + flowed.bytes.1 };
    let mut seen = Seen::felt(&felt, STALL, left.then_some(AGAIN));
    let _ = write!(seen.note, "; {moves} moves");
    Ok(seen)
}

/// `scenario` makes the family that dies the better one.
fn family(
    place: &Place<'_>,
    side: &'static str,
    dies: &'static str,
    scenario: &str,
) -> Result<Seen> {
    let mut world = direct_world(place, scenario)?;
    // Whichever was first, by now the better one is in use.
    pause(Duration::from_secs(3));
    let is_v6 = |remote: String| remote.starts_with('[');
    let before = world.active_remote()?;
    ensure!(is_v6(before.clone()) == (dies == "v6"), "on {before} before {dies} died");
    let change = |w: &mut World| w.ctl(&format!("set {side}-nat {dies}=off"));
    let felt = during_flow(&mut world, change, Duration::ZERO, AGAIN + REST)?;
    let (kind, after) = (world.active()?, world.active_remote()?);
    world.close()?;
    let mut seen = Seen::felt(&felt, STALL, None);
    if kind != "direct" || is_v6(after.clone()) == (dies == "v6") {
        seen.problems.push(format!("{kind} with {after} after the change"));
    }
    Ok(seen)
}

/// Networks of most scenes, one side's with these options.
pub(super) fn pair_with(side: &str, options: &str) -> String {
    let kind = "port-restricted";
    if side == "agent" {
        format!("{kind}+{kind}:{options}")
    } else {
        format!("{kind}:{options}+{kind}")
    }
}

fn mtu(place: &Place<'_>, side: &str, options: &str) -> Result<Seen> {
    let mut world = direct_world(place, &pair_with(side, options))?;
    let felt = during_flow(&mut world, |_| Ok(()), Duration::ZERO, Duration::from_secs(4))?;
    let mut seen = Seen::felt(&felt, STALL, None);
    world.use_it()?;
    if world.active()? != "direct" {
        seen.problems.push(format!("{} at the end", world.active()?));
    }
    world.close()?;
    Ok(seen)
}

fn shrinks(place: &Place<'_>, side: &str) -> Result<Seen> {
    let mut world = direct_world(place, PAIR)?;
    pause(Duration::from_secs(2));
    let change = |w: &mut World| w.ctl(&format!("set {side}-nat mtu=1280 blackhole=1"));
    let felt = during_flow(&mut world, change, Duration::ZERO, AGAIN)?;
    world.close()?;
    Ok(Seen::felt(&felt, STALL, None))
}

/// Longer than what consent to send lasts without an answer.
fn checks_lost(place: &Place<'_>) -> Result<Seen> {
    let mut world = direct_world(place, PAIR)?;
    let before = world.events()?;
    let change = |w: &mut World| w.ctl("set agent-nat dpi=no-stun");
    let felt = during_flow(&mut world, change, Duration::ZERO, Duration::from_secs(40))?;
    let moves = world.moves(before)?;
    let mut seen = Seen::felt(&felt, STALL, None);
    if moves > 0 || world.active()? != "direct" {
        seen.problems.push(format!("{moves} moves, {} at the end", world.active()?));
    }
    world.close()?;
    Ok(seen)
}
