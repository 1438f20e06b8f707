//! CPU seconds per GB of the copying engine, spliced and copied in turns, and its latency.
//!
//! `cargo run --release -p adit-relay --example splice_bench [GB] [ROUNDS]`; a source and a sink
//! run as processes of their own. In network namespaces start `… load ADDRESS GB` in the other
//! one and give `LISTEN=ADDRESS:PORT`.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::{Child, Command},
    sync::Arc,
    time::Instant,
};

use adit_relay::splice::{Engine, Leg, Meter, prepare, run};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

const CHUNK: usize = 256 * 1024;
const GB: u64 = 1_000_000_000;
const ROUND_TRIPS: u32 = 2_000;

#[tokio::main(worker_threads = 2)]
async fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let number =
        |i: usize, default: u64| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    if args.get(1).is_some_and(|a| a == "load") {
        let addr = args.get(2).cloned().unwrap_or_default();
        return load(&addr, number(3, 4) * GB);
    }
    let (gb, rounds) = (number(1, 4), number(2, 3));
    let listen = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:0".into());
    for round in 1..=rounds {
        for splice in [true, false] {
            let listener = TcpListener::bind(&listen).await?;
            let mut child = spawn_load(listener.local_addr()?, gb)?;
            let (console, _) = listener.accept().await?;
            let (agent, _) = listener.accept().await?;
            prepare(&console)?;
            prepare(&agent)?;
            let mut engine = Engine::new(64);
            engine.splice = splice;
            let meter = Arc::new(Meter::default());
            let (start, cpu) = (Instant::now(), cpu_seconds());
            let (console, agent) = (Leg::Raw(console), Leg::Raw(agent));
            // On a worker, as in the relay: the main thread does not drive the sockets itself.
            let mut pair = JoinSet::new();
            let metered = Arc::clone(&meter);
            pair.spawn(async move {
                run((console, 0), agent, &engine, &metered, &CancellationToken::new()).await
            });
            let outcome = pair.join_next().await;
            let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
            if let Some(child) = &mut child {
                child.wait()?;
            }
            #[expect(clippy::cast_precision_loss, reason = "a figure to look at")]
            let moved = meter.read().0 as f64 / 1e9;
            println!(
                "round {round} {:6}: {:.1} Gb/s, {:.3} CPU s/GB, {outcome:?}",
                if splice { "splice" } else { "copy" },
                moved * 8.0 / wall,
                cpu / moved,
            );
        }
    }
    Ok(())
}

fn spawn_load(addr: SocketAddr, gb: u64) -> io::Result<Option<Child>> {
    if std::env::var_os("LISTEN").is_some() {
        return Ok(None);
    }
    let me = std::env::current_exe()?;
    Command::new(me).args(["load", &addr.to_string(), &gb.to_string()]).spawn().map(Some)
}

/// Source and sink, blocking and one thread each: one-byte round trips first, then bulk.
fn load(addr: &str, bytes: u64) -> io::Result<()> {
    let mut source = TcpStream::connect(addr)?;
    let mut sink = TcpStream::connect(addr)?;
    source.set_nodelay(true)?;
    sink.set_nodelay(true)?;
    let (start, mut byte) = (Instant::now(), [7]);
    for _ in 0..ROUND_TRIPS {
        source.write_all(&byte)?;
        sink.read_exact(&mut byte)?;
        sink.write_all(&byte)?;
        source.read_exact(&mut byte)?;
    }
    println!("one-byte round trip {:?}", start.elapsed() / ROUND_TRIPS);
    let sending = std::thread::spawn(move || {
        let buffer = vec![0x5a; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let n = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            source.write_all(buffer.get(..n).unwrap_or_default())?;
            left -= n as u64;
        }
        source.shutdown(Shutdown::Write)?;
        source.read(&mut [0]).map(drop)
    });
    let (mut buffer, mut got) = (vec![0; CHUNK], 0u64);
    loop {
        match sink.read(&mut buffer)? {
            0 => break,
            n => got += n as u64,
        }
    }
    sink.shutdown(Shutdown::Write)?;
    sending.join().map_err(|_| io::Error::other("source failed"))??;
    if got == bytes { Ok(()) } else { Err(io::Error::other("bytes were lost")) }
}

/// User and system time of this process, from clock ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|f| f.parse::<f64>().ok()).sum();
    ticks / 100.0
}
