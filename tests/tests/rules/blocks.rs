//! What crosses a relay: two sessions of the same plaintext have no block in common, so no key
//! and nonce was used twice (NIST SP 800-38D §8).

use std::{
    collections::HashSet,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use adit_tests::{
    capture::Needles,
    peer::{self, TcpServer},
    process::text,
    site::{POLICY_LOOPBACK, SOON, Site, free_tcp_port, to_port},
};
use anyhow::{Result, ensure};

/// Bytes each way in each session.
const BULK: u64 = 2_000_000;
const SEED: u64 = 91;
const BLOCK: usize = 16;

/// Stands before a relay and keeps what crosses, both ways.
struct Recorder {
    addr: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    fn start(relay: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (addr, heard) = (listener.local_addr()?, Arc::<Mutex<Vec<u8>>>::default());
        let all = Arc::clone(&heard);
        thread::spawn(move || -> std::io::Result<()> {
            loop {
                let (near, _) = listener.accept()?;
                let far = TcpStream::connect(relay)?;
                for (from, to) in
                    [(near.try_clone()?, far.try_clone()?), (far.try_clone()?, near.try_clone()?)]
                {
                    let heard = Arc::clone(&all);
                    thread::spawn(move || pass(from, to, &heard));
                }
            }
        });
        Ok(Self { addr, heard })
    }

    /// What was heard since the last time.
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, heard: &Mutex<Vec<u8>>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n) = from.read(&mut buffer) {
        let got = buffer.get(..n).unwrap_or_default();
        heard.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(got);
        if n == 0 || to.write_all(got).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn two_sessions_of_the_same_bytes_share_no_block_at_the_relay() -> Result<()> {
    let mut site = Site::local("rules-blocks")?;
    site.start_mediator()?;
    let port = free_tcp_port()?;
    let recorder = Recorder::start(SocketAddr::from(([127, 0, 0, 1], port)))?;
    let token = site.ask("mediator", &["token", "relay", "--json"], "")?;
    let join = ["join", "-", "--advertise", &recorder.addr.to_string(), "--json"];
    site.ask("relay", &join, text(&token, "token"))?;
    let listen = format!("127.0.0.1:{port}");
    site.serve("relay", &["serve", "--listen", &listen, "--json"])?;
    site.start_agent("agent", POLICY_LOOPBACK)?;
    site.login("console")?;
    let server = TcpServer::start("127.0.0.1:0")?;

    let mut sessions = Vec::new();
    for _ in 0..2 {
        let mut forward = site.forward(&["-L", &to_port(server.port()), "--carrier", "relayed"])?;
        forward.wait_active("relayed", SOON)?;
        let fetched = peer::fetch(forward.local()?, SEED, BULK, 0, |_| {})?;
        ensure!(fetched["intact"] == true, "{fetched}");
        let pushed = peer::push(forward.local()?, SEED, BULK, 0)?;
        ensure!(pushed["intact"] == true, "{pushed}");
        forward.close()?;
        let heard = recorder.take();
        ensure!(heard.len() as u64 > 4 * BULK, "the recorder missed: {} bytes", heard.len());
        sessions.push(heard);
    }
    let plain = Needles::of_pattern(SEED, usize::try_from(BULK)?);
    let leaks: usize = sessions.iter().map(|heard| plain.count(heard)).sum();
    ensure!(leaks == 0, "{leaks} blocks of plaintext at the relay");
    fs::write(site.artifacts().join("first.bin"), &sessions[0])?;
    let first: HashSet<&[u8]> = sessions[0].windows(BLOCK).collect();
    let shared: Vec<_> =
        sessions[1].windows(BLOCK).enumerate().filter(|(_, w)| first.contains(w)).collect();
    ensure!(
        shared.is_empty(),
        "{} blocks in common, the first: {:?}",
        shared.len(),
        shared.first()
    );
    Ok(())
}
