//! How long it takes from the start of the console to the first byte of the target: starts the
//! program it is given, connects as soon as it listens, reads one byte, and stops it.

use std::{
    io::{BufReader, Read as _},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

/// Prints what it took, in milliseconds.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<()> {
    let start = Instant::now();
    let mut child = Command::new(program).args(args).stdout(Stdio::piped()).spawn()?;
    let out = BufReader::new(child.stdout.take().context("no output")?);
    let measured = measure(out, start);
    kill_process(Pid::from_child(&child), Signal::TERM)?;
    child.wait()?;
    println!("{}", measured?);
    Ok(())
}

fn measure(out: impl std::io::BufRead, start: Instant) -> Result<Value> {
    let mut audit_ms = None;
    let mut granted_ms = None;
    for line in out.lines() {
        let event: Value = serde_json::from_str(&line?)?;
        let since_start = event.get("since_start_ms").and_then(Value::as_f64);
        match event.get("event").and_then(Value::as_str) {
            Some("granted") => {
                audit_ms = event.get("audit_ms").and_then(Value::as_f64);
                granted_ms = since_start;
            }
            Some("listening") => {
                let seen = start.elapsed();
                let addr: SocketAddr = event
                    .get("local_addr")
                    .and_then(Value::as_str)
                    .context("no local_addr")?
                    .parse()?;
                let mut stream = TcpStream::connect(addr)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.read_exact(&mut [0])?;
                let total = start.elapsed();
                let connect_ms = (total - seen).as_secs_f64() * 1e3;
                return Ok(json!({
                    "total_ms": total.as_secs_f64() * 1e3,
                    "own_ms": since_start.context("no since_start_ms")? + connect_ms,
                    "listening_ms": since_start,
                    "granted_ms": granted_ms,
                    "audit_ms": audit_ms.context("no audit_ms")?,
                    "connect_ms": connect_ms,
                }));
            }
            _ => {
                if event.get("error").is_some() {
                    bail!("{event}");
                }
            }
        }
    }
    bail!("it ended before it listened")
}
