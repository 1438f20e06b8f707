//! `cargo xtask demo`: the main job on this machine, with the real programs.
//!
//! Starts a mediator, a relay, an agent and a console on loopback with data in a temporary
//! directory, opens redirectors to an HTTP server of its own and to the machine's sshd, moves bytes
//! both ways, compares them, and shows what happened. It must never touch anything outside its
//! directory, leave a process behind, or call a failure a success.

mod children;
mod http;
mod installation;
mod measure;
mod report;
mod sshd;
mod stop;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use installation::Installation;
use report::{Report, say};
use stop::Stop;

use crate::{process, test};

/// How long a direct path may take before the demonstration goes on with the relayed one.
const DIRECT_WAIT: Duration = Duration::from_secs(5);
/// Bytes moved each way.
const BULK: u64 = 64 * 1024 * 1024;
/// Round trips measured.
const PINGS: u32 = 50;

/// Runs the demonstration.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let (mut once, mut release) = (false, false);
    for arg in args {
        match arg.as_str() {
            "--once" => once = true,
            "--release" => release = true,
            other => bail!("no such option: {other}; there are --once and --release"),
        }
    }
    let stop = Stop::listen()?;
    let start = Instant::now();
    say("building the four programs");
    test::build(if release { &["--release"] } else { &[] })?;
    let programs = process::target_dir().join(if release { "release" } else { "debug" });
    say(&format!("built in {:.0} s", start.elapsed().as_secs_f32()));
    let outcome = demonstrate(&programs, once, &stop);
    if stop.asked() {
        // What broke after Ctrl-C broke because of it.
        eprintln!();
        say("stopped, everything cleaned up");
        return Ok(());
    }
    outcome
}

fn demonstrate(programs: &Path, once: bool, stop: &Stop) -> Result<()> {
    let web = http::Server::start().context("the demonstration's HTTP server")?;
    let mut place = Installation::new(programs, stop)?;
    let ssh = sshd::Sshd::start(&place.dir().join("sshd"), &mut place)?;
    let mut ports = vec![web.port()];
    ports.extend(ssh.as_ref().map(sshd::Sshd::port));
    let mut report = Report::default();

    place.start(&ports)?;
    say("opening redirectors");
    let session = place.forward(&ports)?;
    let local = session.local(web.port()).context("no local port for the HTTP server")?;
    report.first_byte = measure::first_byte(local)?;
    report.direct = session.wait_direct(DIRECT_WAIT);
    report.ping = measure::round_trips(local, PINGS)?;
    say(&format!("moving {} MiB each way", BULK >> 20));
    report.down = measure::download(local, BULK)?;
    report.up = measure::upload(local, BULK)?;
    if let Some(ssh) = &ssh {
        let local = session.local(ssh.port()).context("no local port for sshd")?;
        report.ssh = Some(ssh.log_in(local).context("ssh through the redirector")?);
    }
    report.session = Some(session.summary());

    if !once {
        report.print(&place, &place.audit(false)?);
        report.hints(&place, &session, web.port(), ssh.as_ref());
        place.watch(&session, stop)?;
        return Ok(());
    }
    session.close(&mut place)?;
    report.print(&place, &place.audit(true)?);
    Ok(())
}
