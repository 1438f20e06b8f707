//! Networks that let little through, and what is said where nothing gets through.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Scene, Seen, network::pair_with, scene};
use crate::{
    paths::world::{Place, World},
    process::{pause, text},
};

/// Time to be usable.
const SOON: Duration = Duration::from_secs(10);

pub(super) fn scenes() -> Vec<Scene> {
    vec![
        scene(
            "proxy-auth",
            "only an HTTP proxy that wants a password, from the environment",
            |p| relayed(p, "proxy:auth=1+proxy:auth=1", true),
        ),
        scene("proxy-wrong", "the proxy's password is wrong", wrong_password),
        scene("proxy-intercepts", "the proxy ends TLS itself", intercepts),
        scene("port-443", "only port 443 gets out, TCP and UDP, and netcheck says so", only_443),
        scene("dpi-tls", "only TCP 443 gets out, and only what looks like TLS", |p| {
            relayed(p, "tcp443:dpi=tls+tcp443:dpi=tls", false)
        }),
        scene("thirty-interfaces", "thirty more interfaces on both computers", interfaces),
        scene("map-life", "the console's NAT ends mappings after 10 s, however busy", |p| {
            map_life(p, "console", 10, 45)
        }),
        scene("map-life-agent", "the same at the agent", |p| map_life(p, "agent", 10, 45)),
        Scene {
            long: true,
            ..scene(
                "map-life-50",
                "the console's NAT ends mappings after 50 s, however busy",
                |p| map_life(p, "console", 50, 170),
            )
        },
        scene("jitter", "two equal paths with ±5 ms of jitter", jitter),
    ]
}

fn relayed(place: &Place<'_>, scenario: &str, environment: bool) -> Result<Seen> {
    let mut world = World::prepare(place, scenario, false)?;
    world.site.proxy_from_environment = environment;
    world.run_servers()?;
    world.open_until("relayed", SOON)?;
    world.use_it()?;
    world.close()?;
    Ok(Seen::note("relayed"))
}

fn wrong_password(place: &Place<'_>) -> Result<Seen> {
    let mut world = World::prepare(place, "proxy:auth=1+open", false)?;
    world.run_servers()?;
    world.site.proxy_instead = Some("http://lab:wrong@100.64.1.9:3128".to_owned());
    let done = world.site.run("console", &["computers", "--json"], "")?;
    ensure!(done.code == 5, "exit code {}: {}{}", done.code, done.stdout, done.stderr);
    let error = done.json();
    let message = text(&error["error"], "message").to_owned();
    ensure!(message.contains("407") || message.contains("password"), "{error}");
    Ok(Seen::note(format!("`{}`: {message}", done.error_code())))
}

fn intercepts(place: &Place<'_>) -> Result<Seen> {
    let mut world = World::prepare(place, "proxy:intercept=1+open", false)?;
    world.run_servers()?;
    let done = world.site.run("console", &["computers", "--json"], "")?;
    ensure!(done.code != 0, "a console trusts an intercepting proxy: {}", done.stdout);
    let error = done.json();
    let words = format!("{} {}", text(&error["error"], "message"), text(&error["error"], "hint"));
    ensure!(
        words.contains("intercept") && words.contains("\"Example Proxy CA\""),
        "the error does not name the interception and whose it is: {error}"
    );
    Ok(Seen::note(format!("`{}`: {}", done.error_code(), text(&error["error"], "message"))))
}

/// STUN on 443 is answered; peers, on other ports, are not reached.
fn only_443(place: &Place<'_>) -> Result<Seen> {
    let mut world = World::start(place, "port443+port-restricted")?;
    let told = world.site.ask("console", &["netcheck", "--json"], "")?;
    let public = told["public"].to_string();
    let right = told["udp_443_only"] == true && told["direct"] == "no";
    ensure!(right && public.contains("198.51.100.10"), "{told}");
    world.open_until("relayed", SOON)?;
    world.use_it()?;
    let why = world.site.ask("console", &["explain", "agent", "--json"], "")?;
    let reason = text(&why["reasons"][0], "code").to_owned();
    ensure!(why["carrier"] == "relayed" && !reason.is_empty(), "{why}");
    world.use_it()?;
    world.close()?;
    Ok(Seen::note(format!("relayed (`{reason}`); seen as {}", public.replace(['[', ']', '"'], ""))))
}

fn interfaces(place: &Place<'_>) -> Result<Seen> {
    let mut world = World::prepare(place, "port-restricted+port-restricted", false)?;
    for (side, net) in [("console", 71), ("agent", 72)] {
        let mut script = String::new();
        for n in 0..15 {
            script += &format!(
                "ip link add j{n} type veth peer name k{n}\nip addr add 10.{net}.{n}.1/24 dev j{n}\n\
                 ip addr add 10.{net}.{}.1/24 dev k{n}\nip link set j{n} up\nip link set k{n} up\n",
                n + 100
            );
        }
        world.tool(side, &["sh", "-e", "-c", &script])?;
    }
    world.run_servers()?;
    let direct = world.open_until("direct", SOON)?;
    let after = direct["since_start_ms"].as_f64().unwrap_or(f64::INFINITY);
    let mut seen = Seen::note(format!("direct after {after:.0} ms"));
    if after > 3000.0 {
        seen.problems.push(format!("direct only after {after:.0} ms"));
    }
    world.use_it()?;
    world.close()?;
    Ok(seen)
}

/// What a person at a screen or a shell does not notice.
const GAP: Duration = Duration::from_millis(250);

fn map_life(place: &Place<'_>, side: &str, life: u64, seconds: u64) -> Result<Seen> {
    let mut world = World::start(place, &pair_with(side, &format!("map_life={life}")))?;
    world.open_until("direct", SOON)?;
    let begin = std::time::Instant::now();
    let flow = world.flow(crate::paths::world::RATE)?;
    pause(Duration::from_secs(seconds));
    let is_direct = world.stays_direct(super::AGAIN)?;
    let flowed = flow.finish()?;
    let first = flowed.stall_since(begin);
    // The first end of a mapping teaches when the next one comes: then nothing is lost at all.
    let later = flowed.stall_since(begin + Duration::from_secs(life * 2));
    let mut seen = Seen::note(format!("at the second end and later: {} ms", later.as_millis()));
    seen.stall = Some(first);
    if first > GAP {
        seen.problems.push(format!("a gap of {first:?}"));
    }
    if !is_direct {
        seen.problems.push("not direct in the end".to_owned());
    }
    world.close()?;
    Ok(seen)
}

fn jitter(place: &Place<'_>) -> Result<Seen> {
    let line = "dual:delay=20:jitter=5";
    let mut world = World::start(place, &format!("{line}+{line}"))?;
    world.open_until("direct", SOON)?;
    pause(Duration::from_secs(4));
    let before = world.events()?;
    let flow = world.flow(crate::paths::world::RATE)?;
    pause(Duration::from_secs(12));
    flow.finish()?;
    let events = world.console()?.events();
    let moves = events.iter().skip(before).filter(|e| text(e, "state") == "active").count();
    let mut seen = Seen::note(format!("{moves} moves in 12 s"));
    if moves > 1 {
        seen.problems.push(format!("moved {moves} times in 12 s"));
    }
    world.close()?;
    Ok(seen)
}
