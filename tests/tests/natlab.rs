//! The whole installation behind NATs, in network namespaces, with every packet recorded.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "JSON values give null for what is not there; figures of tests"
)]

use std::{process::Command, thread, time::Duration};

use adit_tests::{
    capture::{Needles, read},
    process::{Process, run, text},
    site::{Forward, READY, SOON, Site},
};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Time for a direct carrier where the NATs allow one.
const DIRECT: Duration = Duration::from_secs(3);
/// Port of the server beside the agent.
const PORT: &str = "7000";
const SEED: &str = "77";

/// An installation in a laboratory, with a server beside the agent.
struct World {
    // Dropped before the site: it runs in the site's laboratory.
    _server: Process,
    site: Site,
}

impl World {
    fn new(test: &str, scenario: &str) -> Result<Self> {
        let mut site = Site::lab(test, scenario)?;
        site.start()?;
        let at = format!("127.0.0.1:{PORT}");
        let serve = site.on("agent", peer(&["serve", &at, &at]));
        let mut server = Process::start("server", &serve, &site.artifacts().join("server.log"))?;
        server.event("ready", READY)?;
        Ok(Self { site, _server: server })
    }

    fn forward(&self) -> Result<Forward> {
        self.site.forward(&["-L", &format!("127.0.0.1:0:127.0.0.1:{PORT}")])
    }

    /// A client beside the console, until it is done.
    fn client(&self, args: &[&str]) -> Result<Value> {
        let done = run("client", &self.site.on("console", peer(args)), "")?;
        ensure!(done.code == 0, "{args:?}: {}{}", done.stdout, done.stderr);
        Ok(done.json())
    }

    /// Small and bulk bytes both ways; then nothing of it is on the wire.
    fn use_it(&self, forward: &Forward) -> Result<()> {
        let local = forward.local()?.to_string();
        self.client(&["echo", &local, "5", "100"])?;
        let fetched = self.client(&["fetch", &local, SEED, "1000000", "0"])?;
        ensure!(fetched["intact"] == true, "{fetched}");
        let pushed = self.client(&["push", &local, SEED, "1000000", "0"])?;
        ensure!(pushed["intact"] == true, "{pushed}");
        let pcap = read(&self.site.artifacts().join("internet.pcap"))?;
        ensure!(pcap.len() > 2_000_000, "the capture misses packets: {} bytes", pcap.len());
        let leaks = Needles::of_pattern(SEED.parse()?, 1_000_000).count(&pcap);
        ensure!(leaks == 0, "{leaks} blocks of plaintext on the wire");
        Ok(())
    }
}

fn peer(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit-peer"));
    command.args(args);
    command
}

fn goes_direct(test: &str, scenario: &str) -> Result<()> {
    let world = World::new(test, scenario)?;
    let mut forward = world.forward()?;
    let direct = forward.wait_active("direct", DIRECT)?;
    let after = direct["since_start_ms"].as_f64().context("since_start_ms")?;
    ensure!(after <= DIRECT.as_secs_f64() * 1e3, "direct only after {after} ms");
    world.use_it(&forward)?;
    forward.close()?;
    Ok(())
}

fn stays_relayed(test: &str, scenario: &str) -> Result<()> {
    let world = World::new(test, scenario)?;
    let mut forward = world.forward()?;
    forward.wait_active("relayed", SOON)?;
    world.use_it(&forward)?;
    // Time enough for a direct carrier, if one could come about.
    thread::park_timeout(DIRECT);
    ensure!(!forward.was_active("direct"), "direct where no direct path can be");
    world.use_it(&forward)?;
    forward.close()?;
    Ok(())
}

#[test]
fn open_and_open_go_direct() -> Result<()> {
    goes_direct("natlab-open", "open+open")
}

#[test]
fn port_restricted_nats_go_direct() -> Result<()> {
    goes_direct("natlab-port-restricted", "port-restricted+port-restricted")
}

#[test]
fn symmetric_nats_stay_relayed() -> Result<()> {
    stays_relayed("natlab-symmetric", "symmetric+symmetric")
}

#[test]
fn blocked_udp_stays_relayed() -> Result<()> {
    stays_relayed("natlab-udp-blocked", "udp-blocked+open")
}

#[test]
fn udp_that_dies_costs_no_byte_and_no_second() -> Result<()> {
    let world = World::new("natlab-udp-dies", "port-restricted+port-restricted")?;
    let mut forward = world.forward()?;
    forward.wait_active("direct", DIRECT)?;
    let local = forward.local()?.to_string();
    let fetch = peer(&["fetch", &local, SEED, "20000000", "2000000"]);
    let log = world.site.artifacts().join("client.log");
    let mut client = Process::start("client", &world.site.on("console", fetch), &log)?;
    client.wait("two megabytes", SOON, |e| e["bytes"].as_u64() > Some(2_000_000))?;
    let before = forward.process.count();
    world.site.laboratory()?.ctl(&["set", "agent-nat", "allow=no-udp"])?;
    forward.wait_active_after(before, "relayed", SOON)?;
    let done = client.event("done", Duration::from_secs(30))?;
    ensure!(done["intact"] == true, "{done}");
    let gap = done["max_gap_ms"].as_f64().context("max_gap_ms")?;
    ensure!(gap < 1000.0, "stalled for {gap} ms");
    // It comes back when UDP does.
    let before = forward.process.count();
    world.site.laboratory()?.ctl(&["set", "agent-nat", "allow=all"])?;
    forward.wait_active_after(before, "direct", Duration::from_secs(60))?;
    world.use_it(&forward)?;
    let session = forward.session.clone();
    forward.close()?;
    let ended = world.site.audited("the end", |e| {
        text(e, "event") == "session.ended" && text(e, "session_id") == session
    })?;
    let carriers = ended["carriers"].to_string();
    ensure!(carriers.contains("relayed") && carriers.contains("direct"), "{ended}");
    Ok(())
}

#[test]
fn targets_without_a_route_are_unreachable() -> Result<()> {
    let mut site = Site::lab("natlab-unreachable", "open+open")?;
    site.start_mediator()?;
    site.start_relay("relay")?;
    let policy = "[[allow]]\ntargets = [\"198.51.100.77\"]\nports = [9]\n";
    site.start_agent("agent", policy)?;
    site.login("console")?;
    let mut route = Command::new("ip");
    route.args(["route", "add", "unreachable", "198.51.100.77/32"]);
    ensure!(run("ip route", &site.on("agent", route), "")?.code == 0);
    let mut forward = site.forward(&["-L", "127.0.0.1:0:198.51.100.77:9"])?;
    let local = forward.local()?.to_string();
    let echo = run("echo", &site.on("console", peer(&["echo", &local, "1", "1"])), "")?;
    ensure!(echo.code != 0, "something answered");
    forward.process.wait("target_unreachable", SOON, |e| {
        text(e, "event") == "channel" && text(e, "reason") == "target_unreachable"
    })?;
    forward.close()?;
    Ok(())
}

#[test]
fn a_leak_would_be_found() -> Result<()> {
    let site = Site::lab("natlab-leak", "open+open")?;
    let leak = peer(&["leak", "203.0.113.10:9", SEED, "100000"]);
    ensure!(run("leak", &site.on("console", leak), "")?.code == 0);
    let pcap = site.artifacts().join("internet.pcap");
    let needles = Needles::of_pattern(SEED.parse()?, 100_000);
    for _ in 0..50 {
        // Packets are written as they pass.
        if read(&pcap).is_ok_and(|bytes| needles.count(&bytes) > 5_000) {
            return Ok(());
        }
        thread::park_timeout(Duration::from_millis(100));
    }
    anyhow::bail!("the capture does not show what was sent in the clear")
}
