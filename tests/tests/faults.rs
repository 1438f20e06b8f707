//! Programs that are killed and ports that get rubbish: the others go on, nothing acknowledged is
//! lost.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "JSON values give null for what is not there; figures of tests"
)]

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use adit_tests::{
    peer::{self, TcpServer},
    process::text,
    site::{Forward, READY, SOON, Site, to_port},
};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sqlx::{Connection as _, SqliteConnection};

/// A paced transfer in the background; the receiver hears how far it is.
fn transfer(
    local: SocketAddr,
    bytes: u64,
    rate: u64,
) -> (JoinHandle<Result<Value>>, mpsc::Receiver<u64>) {
    let (send, receive) = mpsc::channel();
    let fetch = move || peer::fetch(local, 11, bytes, rate, |n| _ = send.send(n));
    (thread::spawn(fetch), receive)
}

fn intact(transfer: JoinHandle<Result<Value>>) -> Result<Value> {
    let result = transfer.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    ensure!(result["intact"] == true, "{result}");
    Ok(result)
}

/// A new session works.
fn works(site: &Site, server: &TcpServer) -> Result<()> {
    let forward = site.forward(&["-L", &to_port(server.port())])?;
    peer::echo(forward.local()?, 3, 100)?;
    forward.close()?;
    Ok(())
}

#[test]
fn sessions_outlive_the_mediator() -> Result<()> {
    let mut site = Site::local("mediator-killed")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let mut forwards: Vec<Forward> = Vec::new();
    for carrier in ["relayed", "direct"] {
        let why = ["--reason", "outliving", "--ticket", "T-1"];
        let spec = to_port(server.port());
        let args = [&["-L", &spec, "--carrier", carrier], &why[..]].concat();
        let mut forward = site.forward(&args)?;
        forward.wait_active(carrier, SOON)?;
        forwards.push(forward);
    }
    for (forward, carrier) in forwards.iter().zip(["relayed", "direct"]) {
        // On record before the mediator dies.
        site.audited("the carrier", |e| {
            text(e, "event") == "session.carrier"
                && text(e, "session_id") == forward.session
                && e["carriers"][0] == carrier
                && text(e, "outcome") == "active"
        })?;
    }
    let transfers: Vec<_> = forwards
        .iter()
        .map(|f| Ok(transfer(f.local()?, 12 << 20, 3 << 20).0))
        .collect::<Result<_>>()?;
    site.kill("mediator")?;
    for forward in &forwards {
        // Open channels and new ones.
        peer::echo(forward.local()?, 5, 100)?;
    }
    for transfer in transfers {
        intact(transfer)?;
    }
    site.restart("mediator")?;
    site.wait_online("console", "agent")?;
    let listed = site.run("console", &["sessions", "--json"], "")?.lines();
    let carriers: BTreeSet<&str> = listed.iter().map(|line| text(line, "carrier")).collect();
    ensure!(carriers == BTreeSet::from(["direct", "relayed"]), "{listed:?}");
    let sessions: Vec<_> = forwards.iter().map(|f| f.session.clone()).collect();
    for forward in forwards {
        peer::echo(forward.local()?, 5, 100)?;
        forward.close()?;
    }
    for session in sessions {
        // Its end reaches the audit although it began under the mediator's former life, and says
        // all that it would say without that.
        let end = site.audited("the end", |e| {
            text(e, "event") == "session.ended" && text(e, "session_id") == session
        })?;
        for (key, value) in [("reason", "outliving"), ("ticket", "T-1")] {
            ensure!(text(&end, key) == value, "{key}: {end}");
        }
        ensure!(!text(&end, "rule").is_empty(), "no rule: {end}");
        ensure!(end["carriers"].as_array().is_some_and(|kinds| !kinds.is_empty()), "{end}");
    }
    works(&site, &server)
}

/// While the mediator is away the ends keep what they have to tell, the agent's receipts also when it
/// dies meanwhile; all is there when the mediator is back.
#[test]
fn what_ends_while_the_mediator_is_away_is_told_when_it_is_back() -> Result<()> {
    let mut site = Site::local("spooled")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    for agent_dies in [false, true] {
        let forward = site.forward(&["-L", &to_port(server.port())])?;
        peer::echo(forward.local()?, 1, 100)?;
        let session = forward.session.clone();
        site.kill("mediator")?;
        // Channels of which the mediator cannot hear.
        peer::echo(forward.local()?, 2, 1_000)?;
        peer::echo(forward.local()?, 2, 1_000)?;
        forward.close()?;
        if agent_dies {
            site.kill("agent")?;
        }
        site.restart("mediator")?;
        if agent_dies {
            site.restart("agent")?;
        }
        site.wait_online("console", "agent")?;
        let of_session = |e: &Value| text(e, "session_id") == session;
        site.audited("the end", |e| of_session(e) && text(e, "event") == "session.ended")?;
        if !agent_dies {
            // What an agent has not told of its channels dies with it; its receipts do not.
            site.audited("bytes of a channel while the mediator was away", |e| {
                of_session(e)
                    && text(e, "event") == "channel.closed"
                    && e["bytes_up"].as_u64() >= Some(2_000)
            })?;
        }
        // Three channels, two ends, opening and closing: each found its counterpart.
        let deadline = Instant::now() + 2 * SOON;
        loop {
            let matched = receipts(&site, &session, 1)?;
            if matched == 12 {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "agent killed: {agent_dies}; {matched} receipts, and {} alone",
                receipts(&site, &session, 0)?
            );
            adit_tests::process::pause(Duration::from_millis(200));
        }
        let strange = site.audit()?.into_iter().find(|e| text(e, "event").starts_with("receipt."));
        ensure!(strange.is_none(), "{strange:?}");
    }
    works(&site, &server)
}

/// How many of a session's receipts the mediator has in this state: 0 alone, 1 compared.
fn receipts(site: &Site, session: &str, state: i64) -> Result<i64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let file = site.data_dir("mediator").join("mediator.db");
        let mut db =
            SqliteConnection::connect(&format!("sqlite:{}?mode=ro", file.display())).await?;
        let count =
            sqlx::query_scalar("SELECT COUNT(*) FROM receipt WHERE session_id = $1 AND state = $2");
        Ok(count.bind(session).bind(state).fetch_one(&mut db).await?)
    })
}

#[test]
fn acknowledged_audit_records_survive_kills() -> Result<()> {
    let mut site = Site::local("audit-killed")?;
    site.start()?;
    let mut granted = Vec::new();
    for round in 0..4 {
        let mut consoles = Vec::new();
        for _ in 0..3 {
            consoles.push(site.spawn(
                "console",
                &["forward", "agent", "-L", &to_port(9), "--json", "--reason", "round"],
            )?);
        }
        // Killed in the middle: the first has its grant, the others may be anywhere.
        let first = consoles.first_mut().context("no console")?;
        first.event("granted", READY)?;
        site.kill("mediator")?;
        for console in &consoles {
            let events = console.events();
            let grants = events.iter().filter(|e| text(e, "event") == "granted");
            granted.extend(grants.map(|e| text(e, "session_id").to_owned()));
        }
        drop(consoles);
        site.restart("mediator")?;
        site.wait_online("console", "agent")?;
        let audit = site.audit().with_context(|| format!("round {round}"))?;
        for session in &granted {
            ensure!(
                audit
                    .iter()
                    .any(|e| text(e, "event") == "session.granted"
                        && text(e, "session_id") == session),
                "round {round}: the grant of {session} is lost"
            );
        }
    }
    Ok(())
}

#[test]
fn a_session_outlives_its_only_relay() -> Result<()> {
    let mut site = Site::local("relay-killed")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let mut forward = site.forward(&["-L", &to_port(server.port()), "--carrier", "relayed"])?;
    forward.wait_active("relayed", SOON)?;
    let (fetching, progress) = transfer(forward.local()?, 24 << 20, 4 << 20);
    progress.recv_timeout(SOON)?;
    let before = forward.process.count();
    site.kill("relay")?;
    thread::park_timeout(Duration::from_secs(1));
    site.restart("relay")?;
    forward.wait_active_after(before, "relayed", SOON)?;
    intact(fetching)?;
    peer::push(forward.local()?, 5, 1 << 20, 0)?;
    forward.close()?;
    works(&site, &server)
}

#[test]
fn a_session_moves_to_the_other_relay() -> Result<()> {
    let mut site = Site::local("relay-of-two")?;
    site.start_mediator()?;
    site.start_relay("relay")?;
    site.start_relay("relay2")?;
    site.start_agent("agent", adit_tests::site::POLICY_LOOPBACK)?;
    site.login("console")?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let mut forward = site.forward(&["-L", &to_port(server.port()), "--carrier", "relayed"])?;
    let active = forward.wait_active("relayed", SOON)?;
    let (fetching, progress) = transfer(forward.local()?, 16 << 20, 4 << 20);
    progress.recv_timeout(SOON)?;
    let used = [("relay", site.relay_addr("relay")?), ("relay2", site.relay_addr("relay2")?)]
        .into_iter()
        .find(|(_, addr)| active.to_string().contains(&addr.to_string()));
    let (used, _) = used.with_context(|| format!("which relay? {active}"))?;
    let before = forward.process.count();
    site.kill(used)?;
    forward.wait_active_after(before, "relayed", SOON)?;
    intact(fetching)?;
    Ok(())
}

#[test]
fn a_session_on_a_direct_carrier_does_not_notice_the_relays_end() -> Result<()> {
    let mut site = Site::local("relay-killed-direct")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let mut forward = site.forward(&["-L", &to_port(server.port())])?;
    forward.wait_active("direct", SOON)?;
    let (fetching, progress) = transfer(forward.local()?, 12 << 20, 4 << 20);
    progress.recv_timeout(SOON)?;
    site.kill("relay")?;
    let result = intact(fetching)?;
    ensure!(result["max_gap_ms"].as_f64() < Some(500.0), "{result}");
    Ok(())
}

#[test]
fn a_killed_agent_ends_its_sessions_and_comes_back() -> Result<()> {
    let mut site = Site::local("agent-killed")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let mut forward = site.forward(&["-L", &to_port(server.port())])?;
    let (fetching, progress) = transfer(forward.local()?, 200 << 20, 4 << 20);
    progress.recv_timeout(SOON)?;
    site.kill("agent")?;
    site.restart("agent")?;
    // It does not outlive the agent's process: the console is told, and the stream is not
    // mistaken for a complete one.
    forward.process.event("closed", SOON)?;
    let result = fetching.join().map_err(|_| anyhow::anyhow!("panicked"))?;
    ensure!(result.is_err() || result.as_ref().is_ok_and(|r| r["intact"] == false), "{result:?}");
    let ended =
        |e: &Value| text(e, "event") == "session.ended" && text(e, "session_id") == forward.session;
    site.audited("the end", ended)?;
    site.wait_online("console", "agent")?;
    works(&site, &server)
}

#[test]
fn a_killed_console_is_noticed_and_others_go_on() -> Result<()> {
    let mut site = Site::local("console-killed")?;
    site.start()?;
    site.login("console2")?;
    // Ten minutes by default: a console may only have lost its network.
    let config = "[session]\nresume_window = \"3s\"\n";
    fs::write(site.data_dir("agent").join("agent-tunnel.toml"), config)?;
    site.kill("agent")?;
    site.restart("agent")?;
    site.wait_online("console", "agent")?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let other = site.forward_from("console2", "agent", &["-L", &to_port(server.port())])?;
    let mut forward = site.forward(&["-L", &to_port(server.port())])?;
    let (_fetching, progress) = transfer(forward.local()?, 200 << 20, 4 << 20);
    progress.recv_timeout(SOON)?;
    forward.process.kill()?;
    let ended =
        |e: &Value| text(e, "event") == "session.ended" && text(e, "session_id") == forward.session;
    let ended = site.audited("the end", ended)?;
    ensure!(ended["bytes_down"].as_u64() > Some(0), "{ended}");
    peer::echo(other.local()?, 5, 100)?;
    other.close()?;
    works(&site, &server)
}

#[test]
fn servers_stop_cleanly_within_five_seconds() -> Result<()> {
    let mut site = Site::local("stop")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let _forward = site.forward(&["-L", &to_port(server.port())])?;
    for instance in ["agent", "relay", "mediator"] {
        let process = site.process(instance)?;
        process.signal("TERM")?;
        let status = process.exit(Duration::from_secs(5))?;
        ensure!(status.code() == Some(0), "{instance}: {status}\n{}", process.last_words());
    }
    Ok(())
}

/// Deterministic rubbish.
fn rubbish(seed: u64) -> Vec<u8> {
    let lengths = [1, 3, 5, 48, 500, 1024, 1025, 16_384, 70_000];
    let length =
        lengths.get(usize::try_from(seed).unwrap_or(0) % lengths.len()).copied().unwrap_or(1);
    let mut bytes = vec![0; length];
    peer::fill(&mut bytes, seed, 0);
    match seed % 4 {
        // The beginning of a TLS record that announces more than it may.
        0 => bytes.splice(0..1, [0x16, 0x03, 0x01, 0xff, 0xff]).for_each(drop),
        // Length prefixes beyond every limit, and of nothing.
        1 => bytes.splice(0..1, [0xff, 0xff, 0xff, 0xff]).for_each(drop),
        2 => bytes.splice(0..1, [0, 0, 0, 0]).for_each(drop),
        _ => {}
    }
    bytes
}

#[test]
fn rubbish_on_every_port_harms_nothing() -> Result<()> {
    let mut site = Site::local("rubbish")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let mut forward = site.forward(&["-L", &to_port(server.port())])?;
    forward.wait_active("direct", SOON)?;
    let tcp = [SocketAddr::from(([127, 0, 0, 1], site.port)), site.relay_addr("relay")?];
    let mut kept = Vec::new();
    for addr in tcp {
        for seed in 0..120 {
            let mut stream = TcpStream::connect(addr)?;
            stream.set_write_timeout(Some(SOON))?;
            // It may hang up early: that is its right.
            let _ = stream.write_all(&rubbish(seed));
            // Half of them stay open, as slow attackers would.
            if seed % 2 == 0 {
                kept.push(stream);
            }
        }
    }
    for (port, _) in [site.stun_port, site.stun_port + 1].iter().zip(0..) {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        for seed in 0..300 {
            // Larger than a datagram can be: not sent, which is fine too.
            let _ = socket.send_to(&rubbish(seed), ("127.0.0.1", *port));
        }
    }
    for port in udp_ports(site.process("agent")?.id())? {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        for seed in 0..300 {
            let _ = socket.send_to(&rubbish(seed), ("127.0.0.1", port));
        }
        let binding = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
        let initial = [&[0xc3, 0, 0, 0, 1, 8][..], &[9; 1194]].concat();
        for probe in [binding, initial] {
            socket.send_to(&probe, ("127.0.0.1", port))?;
        }
        ensure!(socket.recv(&mut [0; 2000]).is_err(), "the agent's UDP port {port} is not dark");
    }
    peer::echo(forward.local()?, 20, 1000)?;
    works(&site, &server)?;
    for instance in ["mediator", "relay", "agent"] {
        ensure!(site.process(instance)?.runs(), "{instance} is gone");
    }
    forward.close()?;
    // Who does not join or log in is shown the door.
    for stream in &mut kept {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let gone = stream.read_to_end(&mut Vec::new());
        let open = gone.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
        ensure!(!open, "a connection that sent rubbish stays open");
    }
    Ok(())
}

/// UDP ports that a process is bound to on IPv4.
fn udp_ports(process: u32) -> Result<Vec<u16>> {
    let mut sockets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd"))?.flatten() {
        let link = fs::read_link(entry.path()).unwrap_or_default();
        let link = link.to_string_lossy().into_owned();
        let inode = link.strip_prefix("socket:[").and_then(|l| l.strip_suffix(']'));
        sockets.extend(inode.map(str::to_owned));
    }
    let table = fs::read_to_string(format!("/proc/{process}/net/udp"))?;
    let port = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let (local, inode) = (words.get(1)?, words.get(9)?);
        let port = u16::from_str_radix(local.split(':').nth(1)?, 16).ok()?;
        sockets.iter().any(|s| s == inode).then_some(port)
    };
    let ports: Vec<_> = table.lines().filter_map(port).collect();
    ensure!(!ports.is_empty(), "the agent has no UDP port");
    Ok(ports)
}
