//! Ports that a gateway opens on request: by each protocol, renewed while they are wanted, given
//! back afterwards. The other side has a new port for each flow, so that the mapping is needed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{STALL, Scene, Seen, scene};
use crate::{
    paths::world::{Place, World, during_flow},
    process::pause,
};

/// Time for a direct carrier by a mapping that was just asked for.
const SOON: Duration = Duration::from_secs(5);
/// The transfer lasts for some lives of a mapping.
const LEASE: u64 = 6;
const LONG: Duration = Duration::from_secs(20);
/// Time for the gateway to be told that a mapping is not needed any more.
const RELEASED: Duration = Duration::from_secs(3);

pub(super) fn scenes() -> Vec<Scene> {
    vec![
        scene("map-pmp", "NAT-PMP: mappings end after 6 s unless they are renewed", |p| {
            mapped(p, "pmp", "nat-pmp")
        }),
        scene("map-pcp", "the same with PCP", |p| mapped(p, "pcp", "pcp")),
        scene("map-upnp", "UPnP: found, used, given back", upnp),
    ]
}

fn mapped(place: &Place<'_>, kind: &str, protocol: &str) -> Result<Seen> {
    let mut world = World::start(place, &format!("symmetric+{kind}:lease={LEASE}"))?;
    world.open_until("direct", SOON)?;
    let status = world.site.ask("agent", &["status", "--json"], "")?;
    ensure!(status["port_mapping"].to_string().contains(protocol), "{status:#}");
    let felt = during_flow(&mut world, |_| Ok(()), Duration::ZERO, LONG)?;
    let mut seen = Seen::felt(&felt, STALL, None);
    if world.active()? != "direct" {
        seen.problems.push(format!("{} at the end", world.active()?));
    }
    let held = forwarded(&world)?;
    ensure!(held > 0, "the NAT knows of no mapping on request");
    world.close_console()?;
    // Agents keep theirs for the next session.
    world.process("agent")?.signal("TERM")?;
    pause(RELEASED);
    let left = forwarded(&world)?;
    seen.note = format!("{}; {held} mapping held, {left} left", seen.note);
    if left > 0 {
        seen.problems.push(format!("{left} mappings were not given back"));
    }
    world.close()?;
    Ok(seen)
}

/// Mappings on request at the agent's NAT.
fn forwarded(world: &World) -> Result<usize> {
    let maps: Value = serde_json::from_str(&world.lab()?.ctl(&["maps", "agent-nat"])?)?;
    let all = maps.as_array().context("maps")?;
    Ok(all.iter().filter(|m| m["fixed"] == true).count())
}

fn upnp(place: &Place<'_>) -> Result<Seen> {
    let mut world = World::start(place, "symmetric+linux-upnp")?;
    world.open_until("direct", SOON)?;
    let status = world.site.ask("agent", &["status", "--json"], "")?;
    ensure!(status["port_mapping"].to_string().contains("upnp"), "{status:#}");
    let rules = |world: &World| -> Result<usize> {
        let rules = world.tool("agent-router", &["nft", "list", "ruleset"])?;
        Ok(rules.lines().filter(|l| l.contains("dnat to")).count())
    };
    let held = rules(&world)?;
    ensure!(held > 0, "the router knows of no mapping");
    world.use_it()?;
    world.close_console()?;
    world.process("agent")?.signal("TERM")?;
    pause(RELEASED);
    let left = rules(&world)?;
    let mut seen = Seen::note(format!("{held} mapping held, {left} left"));
    if left > 0 {
        seen.problems.push(format!("{left} mappings were not given back"));
    }
    world.close()?;
    Ok(seen)
}
