//! What a relay's ticket is worth in the wrong hands: whoever copies it, or the bytes of a join,
//! gets nothing, and the session to which it belongs does not notice (R29).

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use adit_net::{
    identity::{DeviceIdentity, NoiseKeypair},
    noise::join::{JoinError, join_relay},
};
use adit_protocol::{
    code::JoinStatus,
    keys::SigningKey,
    ticket::{Role, Share, Ticket},
    wire,
};
use adit_tests::{
    peer::{self, TcpServer},
    process::{pause, text},
    site::{POLICY_LOOPBACK, SOON, Site, free_tcp_port, to_port},
};
use anyhow::{Context as _, Result, ensure};

/// What is moved while thieves are at work: bytes, and how many in a second.
const BYTES: u64 = 6_000_000;
const RATE: u64 = 1_000_000;
/// A pause that a person would notice.
const NOTICED_MS: f64 = 500.0;
/// Time for the relay to say no.
const ANSWER: Duration = Duration::from_secs(12);
/// What is kept of each connection: its join is at the beginning.
const KEPT: usize = 4096;

type Heard = Arc<Mutex<Vec<Vec<u8>>>>;

/// Stands before a relay, passes everything on and keeps how each connection begins.
fn eavesdrop(relay: SocketAddr) -> Result<(SocketAddr, Heard)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (addr, heard) = (listener.local_addr()?, Heard::default());
    let all = Arc::clone(&heard);
    thread::spawn(move || -> std::io::Result<()> {
        loop {
            let (near, _) = listener.accept()?;
            let far = TcpStream::connect(relay)?;
            let at = {
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(Vec::new());
                all.len() - 1
            };
            let (from, to) = (far.try_clone()?, near.try_clone()?);
            thread::spawn(move || pass(from, to, |_| {}));
            let all = Arc::clone(&all);
            thread::spawn(move || {
                pass(near, far, |bytes| {
                    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(kept) = all.get_mut(at).filter(|kept| kept.len() < KEPT) {
                        kept.extend_from_slice(bytes);
                    }
                });
            });
        }
    });
    Ok((addr, heard))
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut hear: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let got = buffer.get(..n).unwrap_or_default();
        hear(got);
        if to.write_all(got).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_captured_ticket_admits_nobody_and_harms_no_session() -> Result<()> {
    let mut site = Site::local("rules-tickets")?;
    site.start_mediator()?;
    let port = free_tcp_port()?;
    let relay = SocketAddr::from(([127, 0, 0, 1], port));
    let (before_it, heard) = eavesdrop(relay)?;
    let token = site.ask("mediator", &["token", "relay", "--json"], "")?;
    let join = ["join", "-", "--advertise", &before_it.to_string(), "--json"];
    site.ask("relay", &join, text(&token, "token"))?;
    site.serve("relay", &["serve", "--listen", &relay.to_string(), "--json"])?;
    site.start_agent("agent", POLICY_LOOPBACK)?;
    site.login("console")?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let mut forward = site.forward(&["-L", &to_port(server.port()), "--carrier", "relayed"])?;
    forward.wait_active("relayed", SOON)?;
    let local = forward.local()?;
    let carriers = forward.process.count();
    let moving = thread::spawn(move || peer::fetch(local, 5, BYTES, RATE, |_| {}));
    pause(Duration::from_millis(500));

    // What crossed the network, once more: as it was, and cut off after each of its messages.
    let joins = heard.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ensure!(joins.len() >= 2, "{} connections to the relay", joins.len());
    for recorded in &joins {
        for end in [64, 400, recorded.len()] {
            replay(relay, recorded.get(..end).unwrap_or(recorded))?;
        }
    }
    // The tickets themselves, as whoever reads the memory of an end has them.
    steal(&site, relay, &forward.session)?;

    let moved = moving.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    ensure!(moved["intact"] == true, "{moved}");
    let gap = moved["max_gap_ms"].as_f64().context("gap")?;
    ensure!(gap < NOTICED_MS, "the session stood still for {gap} ms");
    let later = forward.process.events();
    let lost: Vec<_> = later.iter().skip(carriers).filter(|e| text(e, "state") == "lost").collect();
    ensure!(lost.is_empty(), "carriers were lost: {lost:?}");
    forward.close()?;
    Ok(())
}

/// The relay may begin to answer; what was recorded does not fit its answer, so that nothing
/// follows.
fn replay(relay: SocketAddr, bytes: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(relay)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut got = Vec::new();
    // A reset says as little as an end, and may come before everything is sent.
    let _ = stream
        .write_all(bytes)
        .and_then(|()| stream.shutdown(std::net::Shutdown::Write))
        .and_then(|()| stream.read_to_end(&mut got));
    ensure!(got.len() < KEPT, "{} bytes for a replayed join", got.len());
    Ok(())
}

/// Joins with copies of both ends' tickets, but without the keys that they name.
fn steal(site: &Site, relay: SocketAddr, session: &str) -> Result<()> {
    let hex = std::fs::read_to_string(site.data_dir("mediator").join("ticket.key"))?;
    let digits = hex.trim().as_bytes().as_chunks::<2>().0;
    let byte = |d: &[u8; 2]| Ok(u8::from_str_radix(std::str::from_utf8(d)?, 16)?);
    let mediator = SigningKey::from_seed(&digits.iter().map(byte).collect::<Result<Vec<_>>>()?)?;
    let identity = |name: &str| -> Result<DeviceIdentity> {
        DeviceIdentity::load(&site.data_dir(name))?.with_context(|| format!("{name} has no key"))
    };
    let at = identity("relay")?;
    let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let thief = NoiseKeypair::generate()?;
    for (role, holder) in [(Role::Console, "console"), (Role::Agent, "agent")] {
        let ticket = Ticket {
            relay: at.signing.public(),
            session: session.parse()?,
            role,
            joiner: identity(holder)?.noise.public,
            not_before_ms: now - 60_000,
            expires_ms: now + 60_000,
            share: Share::default(),
        };
        let stolen = ticket.sign(&mediator);
        for slot in [0, 1] {
            let outcome = present(relay, &at.noise.public, &thief, &stolen, slot)?;
            let refused = matches!(outcome, Err(JoinError::Refused(JoinStatus::BadTicket)));
            ensure!(refused, "{role:?}, slot {slot}: {outcome:?}");
        }
        // It is the missing key for which they were refused.
        let own = Ticket { session: "0".repeat(32).parse()?, joiner: thief.public, ..ticket };
        let outcome = present(relay, &at.noise.public, &thief, &own.sign(&mediator), 0)?;
        ensure!(outcome.is_ok(), "a ticket of its own: {outcome:?}");
    }
    Ok(())
}

fn present(
    relay: SocketAddr,
    relay_key: &[u8; 32],
    key: &NoiseKeypair,
    ticket: &wire::Signed,
    slot: u32,
) -> Result<Result<(), JoinError>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stream = tokio::net::TcpStream::connect(relay).await?;
        Ok(join_relay(&mut stream, relay_key, key, ticket, slot).await)
    })
}
