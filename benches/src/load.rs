//! Source, sink and echo: the same small protocol behind every tunnel.
//!
//! A client sends a command of nine bytes (letter, length) and gets a `K`; then bytes flow one
//! way, or come back one by one. Blocking and one thread each: nothing of it is a tunnel's.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

/// Bytes given to and taken from the kernel at once.
const CHUNK: usize = 256 * 1024;
/// Round trips that do not count.
const WARM_UP: usize = 200;
/// Nothing here takes as long.
const PATIENCE: Duration = Duration::from_secs(120);
const READY: u8 = b'K';

/// Serves until killed; on `banner` every connection gets one byte at once.
pub(crate) fn serve(addr: &str, banner: &str) -> Result<()> {
    let banner = TcpListener::bind(banner)?;
    let listener = TcpListener::bind(addr)?;
    println!(
        "{}",
        json!({"event": "ready", "addr": listener.local_addr()?, "banner": banner.local_addr()?})
    );
    thread::spawn(move || {
        for stream in banner.incoming().flatten() {
            thread::spawn(move || greet(stream));
        }
    });
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = answer(stream) {
                eprintln!("connection failed: {error:#}");
            }
        });
    }
    Ok(())
}

fn greet(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(&[READY])?;
    stream.read(&mut [0]).map(drop)
}

/// The served end of one connection.
pub(crate) fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut command = [0; 9];
    stream.read_exact(&mut command)?;
    let [what, amount @ ..] = command;
    let amount = u64::from_be_bytes(amount);
    stream.write_all(&[READY])?;
    match what {
        b'U' => {
            take(&mut stream, amount)?;
            stream.write_all(&[READY])?;
            wait_end(&mut stream)?;
        }
        b'D' => {
            give(&mut stream, amount)?;
            wait_end(&mut stream)?;
        }
        b'P' => {
            let mut byte = [0];
            while stream.read(&mut byte)? == 1 {
                stream.write_all(&byte)?;
            }
        }
        other => bail!("unknown command {other}"),
    }
    Ok(())
}

/// The client closes first: no connection is cut with bytes under way.
fn wait_end(stream: &mut TcpStream) -> Result<()> {
    let n = stream.read(&mut [0])?;
    ensure!(n == 0, "bytes after the end");
    Ok(())
}

/// Connects, measures and prints what came out.
pub(crate) fn run(addr: &str, what: &str, amount: u64) -> Result<()> {
    measure(TcpStream::connect(addr)?, what, amount)
}

/// The asking end of one connection.
pub(crate) fn measure(mut stream: TcpStream, what: &str, amount: u64) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let letter = match what {
        "up" => b'U',
        "down" => b'D',
        "ping" => b'P',
        other => bail!("up, down or ping, not {other}"),
    };
    let [a, b, c, d, e, f, g, h] = amount.to_be_bytes();
    stream.write_all(&[letter, a, b, c, d, e, f, g, h])?;
    expect_ready(&mut stream)?;
    let start = Instant::now();
    match letter {
        b'U' => {
            give(&mut stream, amount)?;
            expect_ready(&mut stream)?;
        }
        b'D' => take(&mut stream, amount)?,
        _ => return ping(&mut stream, usize::try_from(amount)?),
    }
    println!("{}", json!({"seconds": start.elapsed().as_secs_f64()}));
    Ok(())
}

fn ping(stream: &mut TcpStream, count: usize) -> Result<()> {
    let mut times = Vec::with_capacity(count);
    for i in 0..WARM_UP + count {
        let start = Instant::now();
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        if i >= WARM_UP {
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |part: usize| times.get(times.len() * part / 100).copied();
    println!("{}", json!({"median_us": at(50), "p95_us": at(95), "least_us": at(0)}));
    Ok(())
}

fn give(stream: &mut TcpStream, amount: u64) -> io::Result<()> {
    let buffer = vec![0x5a; CHUNK];
    let mut left = amount;
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        stream.write_all(buffer.get(..n).unwrap_or_default())?;
        left -= n as u64;
    }
    Ok(())
}

fn take(stream: &mut TcpStream, amount: u64) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut got = 0;
    while got < amount {
        let n = stream.read(&mut buffer)?;
        ensure!(n > 0, "the stream ended after {got} of {amount} bytes");
        got += n as u64;
    }
    ensure!(got == amount, "{got} bytes came instead of {amount}");
    Ok(())
}

fn expect_ready(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte).context("no answer through the tunnel")?;
    ensure!(byte == [READY], "an answer that the far end did not give");
    Ok(())
}
