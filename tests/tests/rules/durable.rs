//! Durable before visible, by the system calls of the programs themselves: strace(1) sees a write
//! before it is done and a sync once it is done, so the order of its lines is theirs. Syncs are made
//! slow, so that whoever does not wait for them is far ahead.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use adit_tests::{
    peer::TcpServer,
    process::{Process, pause},
    site::{SOON, Site, to_port},
};
use anyhow::{Context as _, Result, bail, ensure};

/// Microseconds that each sync takes longer.
const SLOW_US: u32 = 150_000;
/// Calls that make bytes durable, or give them away.
const CALLS: &str = "trace=write,writev,pwrite64,pwritev,sendto,sendmsg,fsync,fdatasync";
const SYNCS: &[&str] = &["fsync", "fdatasync"];
/// Bytes of a frame with proofs or tickets, more than of any answer that says only yes.
const LARGE: usize = 512;
/// What goes through the channel first.
const FIRST: &[u8] = b"the first bytes of the channel";

/// Running programs under strace.
struct Trace {
    strace: Process,
    file: PathBuf,
    messages: PathBuf,
}

/// One call. The numbers are lines: of its beginning, and of its end.
struct Call {
    pid: u32,
    name: String,
    text: String,
    begun: usize,
    ended: usize,
    result: i64,
}

impl Trace {
    fn of(site: &Site, name: &str, pids: &[u32]) -> Result<Self> {
        let file = site.artifacts().join(format!("{name}.strace"));
        let messages = site.artifacts().join(format!("{name}.strace.log"));
        let mut command = Command::new("strace");
        command.args(["-f", "-yy", "-s", "65536", "-e", CALLS, "-e"]);
        command.arg(format!("inject=fsync,fdatasync:delay_enter={SLOW_US}"));
        command.arg("-o").arg(&file);
        for pid in pids {
            command.args(["-p", &pid.to_string()]);
        }
        let strace = Process::start("strace", &command, &messages)?;
        let mut trace = Self { strace, file, messages };
        let deadline = Instant::now() + SOON;
        loop {
            let said = fs::read_to_string(&trace.messages)?;
            if pids.iter().all(|pid| said.contains(&format!("Process {pid} attached"))) {
                return Ok(trace);
            }
            ensure!(trace.strace.runs() && Instant::now() < deadline, "strace: {said}");
            pause(Duration::from_millis(20));
        }
    }

    /// Lets the programs go; what they called, in the order of its beginnings.
    fn calls(mut self) -> Result<Vec<Call>> {
        self.strace.interrupt()?;
        let text = String::from_utf8_lossy(&fs::read(&self.file)?).into_owned();
        // Some listen for both kinds of addresses.
        let text = text.replace("[::ffff:127.0.0.1]", "127.0.0.1").replace("<TCPv6:", "<TCP:");
        let mut calls: Vec<Call> = Vec::new();
        for (line, told) in text.lines().enumerate() {
            let Some((pid, told)) = told.trim_start().split_once(' ') else { continue };
            let (pid, told) = (pid.parse()?, told.trim_start());
            if let Some(rest) = told.strip_prefix("<... ") {
                let name = rest.split(' ').next().unwrap_or_default();
                let under_way = |call: &&mut Call| call.pid == pid && call.ended == usize::MAX;
                // It was under way when strace came, or is of no interest.
                let Some(call) = calls.iter_mut().rev().find(under_way) else { continue };
                ensure!(call.name == name, "{} does not go on as {name}", call.name);
                (call.ended, call.result) = (line, result(told));
            } else if let Some((name, _)) = told.split_once('(') {
                let whole = !told.ends_with("<unfinished ...>");
                calls.push(Call {
                    pid,
                    name: name.to_owned(),
                    text: told.to_owned(),
                    begun: line,
                    ended: if whole { line } else { usize::MAX },
                    result: if whole { result(told) } else { -1 },
                });
            }
        }
        ensure!(!calls.is_empty(), "strace saw nothing: {}", fs::read_to_string(&self.messages)?);
        Ok(calls)
    }
}

/// What a call gave; failures are negative.
fn result(told: &str) -> i64 {
    let after = told.rsplit_once(" = ").map_or("", |(_, after)| after);
    after.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(-1)
}

impl Call {
    /// The descriptor's file or socket.
    fn on(&self) -> &str {
        let first = self.text.split_once('(').map_or("", |(_, rest)| rest);
        first.split_once(">, ").map_or(first, |(descriptor, _)| descriptor)
    }

    fn is_sync(&self) -> bool {
        SYNCS.contains(&self.name.as_str())
    }
}

/// The sync that makes a write durable: the first of that file that begins after it, and succeeds.
fn durable<'a>(calls: &'a [Call], file: &str, words: &str) -> Result<&'a Call> {
    let is_it = |call: &&Call| call.on().contains(file) && call.text.contains(words);
    let written = calls.iter().find(|call| !call.is_sync() && is_it(call));
    let written = written.with_context(|| format!("{words} is not written to {file}"))?;
    let after = |call: &&Call| call.is_sync() && call.on().contains(file);
    let mut after = calls.iter().filter(after).filter(|call| call.begun > written.ended);
    match after.next() {
        Some(sync) if sync.result == 0 && sync.ended != usize::MAX => Ok(sync),
        _ => bail!("{words} is written to {file} and not durable when all was done"),
    }
}

/// The first bytes that went to a socket.
fn first_to<'a>(calls: &'a [Call], socket: &str, least: usize) -> Result<&'a Call> {
    let given = |call: &&Call| {
        let many = usize::try_from(call.result).is_ok_and(|sent| sent >= least);
        !call.is_sync() && call.on().contains(socket) && many
    };
    calls.iter().find(given).with_context(|| format!("nothing went to {socket}"))
}

/// Nothing is delivered at either end before that end's own receipt is on disk; that the other
/// end's has come as well no trace can show, and `crates/endpoint/src/receipts.rs` does.
#[test]
fn receipts_are_on_disk_before_the_first_byte_at_both_ends() -> Result<()> {
    let mut site = Site::local("durable-receipts")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let forward = site.forward(&["-L", &to_port(server.port())])?;
    let (local, agent) = (forward.local()?, site.process("agent")?.id());
    let trace = Trace::of(&site, "receipts", &[agent, forward.process.id()])?;
    let mut stream = TcpStream::connect(local)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(&[b"echo\n", FIRST].concat())?;
    let mut back = [0; FIRST.len()];
    stream.read_exact(&mut back)?;
    ensure!(back == *FIRST, "{:?}", String::from_utf8_lossy(&back));
    let calls = trace.calls()?;
    for (end, socket) in [
        ("agent", format!("->127.0.0.1:{}]", server.port())),
        ("console", format!("TCP:[127.0.0.1:{}->", local.port())),
    ] {
        let file = format!("{}/receipts/", site.data_dir(end).display());
        let words = format!("\\\"receipt\\\":\\\"open\\\",\\\"role\\\":\\\"{end}\\\"");
        let synced = durable(&calls, &file, &words)?;
        let first = first_to(&calls, &socket, 1)?;
        ensure!(first.text.contains("first bytes"), "{end}: {}", first.text);
        ensure!(
            synced.ended < first.begun,
            "{end}: bytes went out at {} before the receipt was durable at {}",
            first.begun,
            synced.ended
        );
    }
    drop(stream);
    forward.close().map(drop)
}

/// The offer goes to the agent, and what the console is told to the console, only once the
/// records of the grant are on the mediator's disk.
#[test]
fn a_grant_leaves_the_mediator_once_its_record_is_on_disk() -> Result<()> {
    let mut site = Site::local("durable-grant")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let pids = [site.process("mediator")?.id(), site.process("agent")?.id()];
    let trace = Trace::of(&site, "grant", &pids)?;
    let forward = site.forward(&["-L", &to_port(server.port())])?;
    let calls = trace.calls()?;
    let written = "session.granted";
    let synced = durable(&calls, "mediator.db-wal", written)?;
    // The agent's own end of its connection tells which of the mediator's is its.
    let mediator = format!("->127.0.0.1:{}]", site.port);
    let agent = first_to(&calls, &mediator, 1)?.on();
    let agent = agent.split("TCP:[127.0.0.1:").nth(1).and_then(|on| on.split("->").next());
    let agent = format!("TCP:[127.0.0.1:{}->127.0.0.1:{}]", site.port, agent.context("port")?);
    let offer = first_to(&calls, &agent, LARGE)?;
    ensure!(
        synced.ended < offer.begun,
        "the offer went out at {} before its record was durable at {}",
        offer.begun,
        synced.ended
    );
    // Nor does anybody hear of it while the disk is at it.
    let ours = format!("TCP:[127.0.0.1:{}->", site.port);
    let record = calls.iter().find(|call| call.text.contains(written) && !call.is_sync());
    let record = record.context("the record")?;
    let early = calls.iter().find(|call| {
        let at = record.begun..synced.ended;
        at.contains(&call.begun)
            && call.on().contains(&ours)
            && usize::try_from(call.result).is_ok_and(|sent| sent >= LARGE)
    });
    ensure!(early.is_none(), "{} bytes went out early", early.map_or(0, |call| call.result));
    forward.close().map(drop)
}
