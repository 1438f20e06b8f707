//! The main job on one machine: redirectors carry bytes both ways, over both carriers, audited.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "JSON values give null for what is not there; figures of tests"
)]

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    process::Command,
    thread,
    time::Duration,
};

use adit_tests::{
    peer::{self, TcpServer},
    process::{run, text},
    site::{SOON, Site, to_port},
};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

const BULK: u64 = 64 * 1024 * 1024;
/// Time for a direct carrier where nothing is in its way.
const DIRECT: Duration = Duration::from_secs(3);

fn number(event: &Value, key: &str) -> Result<f64> {
    event.get(key).and_then(Value::as_f64).with_context(|| format!("{key} is no number: {event}"))
}

#[test]
fn forward_carries_bulk_both_ways_and_is_audited() -> Result<()> {
    let mut site = Site::local("forward")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let forward = site.forward(&["-L", &to_port(server.port()), "--reason", "a reason"])?;
    peer::echo(forward.local()?, 20, 1000)?;
    let fetched = peer::fetch(forward.local()?, 1, BULK, 0, |_| {})?;
    ensure!(fetched["intact"] == true, "{fetched}");
    let pushed = peer::push(forward.local()?, 2, BULK, 0)?;
    ensure!(pushed["intact"] == true && pushed["bytes"] == BULK, "{pushed}");
    let session = forward.session.clone();
    let closed = forward.close()?;
    ensure!(number(&closed, "bytes_up")? > BULK as f64, "{closed}");
    ensure!(number(&closed, "bytes_down")? > BULK as f64, "{closed}");

    let of_session = |name: &'static str| {
        move |e: &Value, s: &str| text(e, "event") == name && text(e, "session_id") == s
    };
    let granted = site.audited("the grant", |e| of_session("session.granted")(e, &session))?;
    ensure!(text(&granted, "actor").contains(&site.admin.0), "{granted}");
    ensure!(text(&granted, "reason") == "a reason", "{granted}");
    ensure!(text(&granted, "redirector") == "tcp", "{granted}");
    let target = format!("127.0.0.1:{}", server.port());
    ensure!(text(&granted, "target") == target, "{granted}");
    let ended = site.audited("the end", |e| of_session("session.ended")(e, &session))?;
    ensure!(number(&ended, "bytes_up")? > BULK as f64, "{ended}");
    ensure!(number(&ended, "bytes_down")? > BULK as f64, "{ended}");
    ensure!(number(&ended, "duration_ms")? > 0.0, "{ended}");
    ensure!(!text(&ended, "end_reason").is_empty(), "{ended}");
    let events = site.audit()?;
    let asked = events.iter().position(|e| of_session("session.granted")(e, &session));
    let over = events.iter().position(|e| of_session("session.ended")(e, &session));
    ensure!(asked < over, "the end stands before the grant");
    Ok(())
}

#[test]
fn events_come_in_order_and_have_the_contracts_shape() -> Result<()> {
    let mut site = Site::local("events")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let mut forward = site.forward(&["-L", &to_port(server.port())])?;
    forward.wait_active("direct", DIRECT)?;
    peer::echo(forward.local()?, 1, 10)?;
    forward.process.wait("the channel's end", SOON, |e| {
        text(e, "event") == "channel" && text(e, "state") == "closed"
    })?;
    forward.process.signal("INT")?;
    forward.process.exit(SOON)?;
    let events = forward.process.events();
    let position = |name: &str, state: &str| {
        let found = events.iter().position(|e| {
            text(e, "event") == name && (state.is_empty() || text(e, "state") == state)
        });
        found.with_context(|| format!("no {name} {state} in {events:?}"))
    };
    ensure!(position("granted", "")? == 0);
    ensure!(position("granted", "")? < position("listening", "")?);
    ensure!(position("listening", "")? < position("channel", "open")?);
    ensure!(position("channel", "open")? < position("channel", "closed")?);
    ensure!(position("closed", "")? == events.len() - 1, "events after closed: {events:?}");
    let mut before = 0.0;
    for event in &events {
        let now = number(event, "since_start_ms")?;
        ensure!(now >= before, "since_start_ms goes back: {events:?}");
        before = now;
    }
    let granted = &forward.granted;
    for key in ["session_id", "computer", "redirector", "grant_expires"] {
        ensure!(!text(granted, key).is_empty(), "granted lacks {key}: {granted}");
    }
    ensure!(text(granted, "agent_key").starts_with("sha256:"), "{granted}");
    ensure!(number(granted, "audit_ms")? >= 0.0);
    ensure!(granted["first_contact"] == true, "{granted}");
    let direct =
        events.iter().rfind(|e| text(e, "kind") == "direct").context("no direct carrier")?;
    ensure!(text(direct, "cipher") == "AES-256-GCM", "{direct}");
    ensure!(text(direct, "remote").parse::<std::net::SocketAddr>().is_ok(), "{direct}");
    ensure!(
        !site.forward(&["-L", &to_port(server.port())])?.granted["first_contact"]
            .as_bool()
            .unwrap_or(true)
    );
    Ok(())
}

#[test]
fn session_starts_relayed_and_keeps_the_relay_as_standby() -> Result<()> {
    let mut site = Site::local("standby")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let mut forward = site.forward(&["-L", &to_port(server.port())])?;
    // One channel lives through the change and notices nothing.
    let local = forward.local()?;
    let bulk = thread::spawn(move || peer::fetch(local, 3, 8 << 20, 4 << 20, |_| {}));
    forward.wait_active("direct", DIRECT)?;
    forward.process.wait("relayed standby", SOON, |e| {
        text(e, "kind") == "relayed" && text(e, "state") == "standby"
    })?;
    let fetched = bulk.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    ensure!(fetched["intact"] == true, "{fetched}");
    // It does not go to and fro where nothing happens to either path.
    let events = forward.process.events();
    let changes = events.iter().filter(|e| text(e, "state") == "active").count();
    ensure!(changes <= 4, "{changes} changes of the carrier in two quiet seconds: {events:?}");
    Ok(())
}

#[test]
fn carriers_can_be_chosen() -> Result<()> {
    let mut site = Site::local("carriers")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    for (carrier, other) in [("relayed", "direct"), ("direct", "relayed")] {
        let mut forward = site.forward(&["-L", &to_port(server.port()), "--carrier", carrier])?;
        forward.wait_active(carrier, SOON)?;
        let fetched = peer::fetch(forward.local()?, 4, BULK / 4, 0, |_| {})?;
        ensure!(fetched["intact"] == true, "{carrier}: {fetched}");
        ensure!(!forward.was_active(other), "{other} was active with --carrier {carrier}");
        forward.close()?;
    }
    Ok(())
}

#[test]
fn half_closed_streams_and_many_channels_at_once() -> Result<()> {
    let mut site = Site::local("channels")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let forward = site.forward(&["-L", &to_port(server.port())])?;
    let local = forward.local()?;
    // `push` closes its half and waits for the answer on the other.
    let all: Vec<_> = (0..50)
        .map(|n| {
            thread::spawn(move || -> Result<bool> {
                peer::echo(local, 5, 100)?;
                Ok(peer::push(local, n, 100_000, 0)?["intact"] == true)
            })
        })
        .collect();
    for one in all {
        ensure!(one.join().map_err(|_| anyhow::anyhow!("panicked"))??, "bytes changed");
    }
    forward.close()?;
    Ok(())
}

#[test]
fn udp_forward_carries_datagrams_of_all_sizes() -> Result<()> {
    let mut site = Site::local("udp")?;
    site.start()?;
    let server = peer::udp_server("127.0.0.1:0")?;
    let forward = site.forward(&["-U", &to_port(server.port())])?;
    let sizes = [1, 100, 1200, 1500, 9000, 60_000];
    peer::udp_echo(forward.local()?, &sizes.repeat(3))?;
    let session = forward.session.clone();
    forward.close()?;
    let granted = site.audited("the grant", |e| text(e, "session_id") == session)?;
    ensure!(text(&granted, "redirector") == "udp", "{granted}");
    Ok(())
}

#[test]
fn socks_reaches_targets_and_audits_each() -> Result<()> {
    let mut site = Site::local("socks")?;
    site.start()?;
    let (first, second) = (web_server("first")?, web_server("second")?);
    let forward = site.forward(&["-D", "127.0.0.1:0"])?;
    let proxy = format!("socks5h://{}", forward.local()?);
    for (port, body) in [(first, "first"), (second, "second"), (first, "first")] {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--noproxy", "", "-x", &proxy, &format!("http://127.0.0.1:{port}/")]);
        let done = run("curl", &curl, "")?;
        ensure!(done.code == 0 && done.stdout == body, "{done:?}");
    }
    let session = forward.session.clone();
    forward.close()?;
    for port in [first, second] {
        let target = format!("127.0.0.1:{port}");
        site.audited(&target, |e| text(e, "session_id") == session && text(e, "target") == target)?;
    }
    Ok(())
}

/// An HTTP server that answers everything with one word.
fn web_server(body: &'static str) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let length = body.len();
            let _ = write!(stream, "HTTP/1.0 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
        }
    });
    Ok(port)
}

#[test]
fn open_listens_for_a_redirector_and_launches_what_is_configured() -> Result<()> {
    let mut site = Site::local("open")?;
    site.start()?;
    let mut open = site.spawn("console", &["open", "agent", "ssh", "--no-launch", "--json"])?;
    let listening = open.event("listening", SOON)?;
    ensure!(text(&listening, "target") == "127.0.0.1:22", "{listening}");
    ensure!(open.interrupt()?.code() == Some(0));

    let seen = site.artifacts().join("viewer-arguments");
    let viewer = site.artifacts().join("viewer");
    std::fs::write(&viewer, format!("#!/bin/sh\nprintf '%s\\n' \"$@\" > {}\n", seen.display()))?;
    run("chmod", Command::new("chmod").arg("755").arg(&viewer), "")?;
    let config =
        format!("[viewers.rdp]\ncommand = [\"{}\", \"/v:{{host}}:{{port}}\"]\n", viewer.display());
    std::fs::write(site.data_dir("console").join("console-tunnel.toml"), config)?;
    let mut open = site.spawn("console", &["open", "agent", "rdp", "--json"])?;
    let listening = open.event("listening", SOON)?;
    open.event("viewer", SOON)?;
    ensure!(open.exit(SOON)?.code() == Some(0), "{}", open.last_words());
    let arguments = std::fs::read_to_string(seen)?;
    ensure!(arguments.trim() == format!("/v:{}", text(&listening, "local_addr")), "{arguments}");
    Ok(())
}

#[test]
fn computers_lists_what_is_online() -> Result<()> {
    let mut site = Site::local("computers")?;
    site.start()?;
    let listed = site.run("console", &["computers", "--json"], "")?;
    let line = listed.json();
    ensure!(text(&line, "name") == "agent" && line["online"] == true, "{}", listed.stdout);
    ensure!(text(&line, "client") == site.client(), "{line}");
    site.kill("agent")?;
    for _ in 0..100 {
        let line = site.ask("console", &["computers", "--json"], "")?;
        if line["online"] == false {
            return Ok(());
        }
        thread::park_timeout(Duration::from_millis(100));
    }
    anyhow::bail!("a killed agent stays online")
}
