//! CPU seconds per GB of the copying engine, spliced and copied in turns, and its latency.
//!
//! `cargo run --release -p adit-relay --example splice_bench [GB] [ROUNDS]`; a source and a sink
//! run as processes of their own. In network namespaces start `… load ADDRESS GB` in the other
//! one and give `LISTEN=ADDRESS:PORT`.

use std::{
    io,
    net::SocketAddr,
    process::{Child, Command},
    time::Instant,
};

use adit_relay::splice::{Engine, Leg, Meter, prepare, run};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
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
        return load(&addr, number(3, 4) * GB).await;
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
            let meter = Meter::default();
            let (start, cpu) = (Instant::now(), cpu_seconds());
            let (console, agent) = (Leg::Raw(console), Leg::Raw(agent));
            let outcome = run(console, agent, &engine, &meter, &CancellationToken::new()).await;
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

/// Source and sink: one-byte round trips first, then bulk.
async fn load(addr: &str, bytes: u64) -> io::Result<()> {
    let mut source = TcpStream::connect(addr).await?;
    let mut sink = TcpStream::connect(addr).await?;
    source.set_nodelay(true)?;
    sink.set_nodelay(true)?;
    let (start, mut byte) = (Instant::now(), [7]);
    for _ in 0..ROUND_TRIPS {
        source.write_all(&byte).await?;
        sink.read_exact(&mut byte).await?;
        sink.write_all(&byte).await?;
        source.read_exact(&mut byte).await?;
    }
    println!("one-byte round trip {:?}", start.elapsed() / ROUND_TRIPS);
    let send = async {
        let buffer = vec![0x5a; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let n = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            source.write_all(buffer.get(..n).unwrap_or_default()).await?;
            left -= n as u64;
        }
        source.shutdown().await?;
        source.read(&mut [0]).await.map(drop)
    };
    let receive = async {
        let (mut buffer, mut got) = (vec![0; CHUNK], 0u64);
        loop {
            match sink.read(&mut buffer).await? {
                0 => break,
                n => got += n as u64,
            }
        }
        sink.shutdown().await?;
        if got == bytes { Ok(()) } else { Err(io::Error::other("bytes were lost")) }
    };
    tokio::try_join!(send, receive).map(drop)
}

/// User and system time of this process, from clock ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|f| f.parse::<f64>().ok()).sum();
    ticks / 100.0
}
