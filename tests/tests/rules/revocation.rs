//! What is withdrawn ends within 5 s, also where bytes flow already (ASVS 7.4.2).

use std::{
    fs::{self, Permissions},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use adit_tests::{
    peer::TcpServer,
    process::text,
    site::{Forward, SOON, Site, to_port},
};
use anyhow::{Result, ensure};

/// Time for a withdrawal to arrive everywhere.
const WITHDRAWN: Duration = Duration::from_secs(5);
/// Where a console keeps its token.
const TOKEN: &str = "session.token";
pub(crate) const PASSWORD: &str = "nine words of which nobody thinks";

/// A connection through the tunnel that has carried something.
pub(crate) fn in_use(local: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(local)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"echo\nx")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// The connection ends, not regularly, within the time.
pub(crate) fn is_cut(mut stream: TcpStream, since: Instant) -> Result<()> {
    let end = stream.read(&mut [0]);
    ensure!(end.is_err(), "a regular end: {end:?}");
    ensure!(since.elapsed() < WITHDRAWN, "after {:?}: {end:?}", since.elapsed());
    Ok(())
}

/// What is deleted takes its live tunnels along: the computer, and the client with all it has.
#[test]
fn deleting_a_computer_or_its_client_ends_live_tunnels_within_5_s() -> Result<()> {
    for act in ["computer", "client"] {
        let mut site = Site::local(&format!("rules-deleted-{act}"))?;
        site.start()?;
        let server = TcpServer::start("127.0.0.1:0")?;
        let forward = site.forward(&["-L", &to_port(server.port())])?;
        let cut = in_use(forward.local()?)?;
        let client = site.client();
        let since = Instant::now();
        let words = match act {
            "computer" => ["computer", "remove", "agent", "--yes", "--json"],
            _ => ["client", "erase", &client, "--yes", "--json"],
        };
        site.ask("mediator", &words, "")?;
        is_cut(cut, since)?;
        if act == "computer" {
            ends(&site, forward, "computer_removed")?;
        }
        let again =
            site.run("console", &["forward", "agent", "-L", "0:127.0.0.1:9", "--json"], "")?;
        ensure!(again.code == 4, "{act}: {again:?}");
    }
    Ok(())
}

pub(crate) fn ends(site: &Site, mut forward: Forward, reason: &str) -> Result<()> {
    let closed = forward.process.event("closed", SOON)?;
    ensure!(forward.process.exit(SOON)?.code() != Some(0), "{closed}");
    let session = forward.session.clone();
    let ended = site.audited("the end", |e| {
        text(e, "event") == "session.ended" && text(e, "session_id") == session
    })?;
    ensure!(text(&ended, "end_reason") == reason, "{ended}");
    Ok(())
}

#[test]
fn disabled_users_and_ended_sessions_lose_their_tunnels_within_5_s() -> Result<()> {
    let mut site = Site::local("rules-withdrawn")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    site.ask("mediator", &["user", "add", "ann", "--password-stdin", "--json"], PASSWORD)?;
    site.ask("mediator", &["user", "mfa", "optional", "ann", "--json"], "")?;
    let url = site.url.clone();
    let args = ["login", &url, "--user", "ann", "--password-stdin", "--fingerprint"];
    let args = [&args[..], &[&site.fingerprint, "--json"]].concat();
    site.ask("console2", &args, PASSWORD)?;

    let spec = to_port(server.port());
    let mut ours = site.forward(&["-L", &spec])?;
    let anns = site.forward_from("console2", "agent", &["-L", &spec])?;
    let (kept, cut) = (in_use(ours.local()?)?, in_use(anns.local()?)?);
    let since = Instant::now();
    site.ask("mediator", &["user", "disable", "ann", "--json"], "")?;
    is_cut(cut, since)?;
    ends(&site, anns, "user_disabled")?;
    let done = site.run("console2", &["computers", "--json"], "")?;
    ensure!(done.code == 3 && done.error_code() == "not_logged_in", "{done:?}");

    // Nobody else noticed, until an administrator ends this one too.
    ensure!(ours.process.runs());
    let since = Instant::now();
    site.ask("mediator", &["session", "end", &ours.session, "--json"], "")?;
    is_cut(kept, since)?;
    ends(&site, ours, "ended_by_administrator")
}

/// R26: whoever loses a right while at work loses what it gave.
#[test]
fn a_right_that_is_withdrawn_ends_its_tunnel_within_5_s() -> Result<()> {
    let mut site = Site::local("rules-right")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let add = ["user", "add", "bob", "--role", "none", "--password-stdin", "--json"];
    site.ask("mediator", &add, PASSWORD)?;
    site.ask("mediator", &["user", "mfa", "optional", "bob", "--json"], "")?;
    let bind = ["role", "bind", "technician", "--user", "bob", "--json"];
    let binding = site.ask("mediator", &bind, "")?;
    let url = site.url.clone();
    let args = ["login", &url, "--user", "bob", "--password-stdin", "--fingerprint"];
    let args = [&args[..], &[&site.fingerprint, "--json"]].concat();
    site.ask("console2", &args, PASSWORD)?;

    let spec = to_port(server.port());
    let mut ours = site.forward(&["-L", &spec])?;
    let bobs = site.forward_from("console2", "agent", &["-L", &spec])?;
    let cut = in_use(bobs.local()?)?;
    let since = Instant::now();
    site.ask("mediator", &["role", "unbind", text(&binding, "binding"), "--json"], "")?;
    is_cut(cut, since)?;
    ends(&site, bobs, "permission_withdrawn")?;
    ensure!(ours.process.runs(), "another's session ended, too");
    ours.close().map(drop)
}

#[test]
fn logging_out_ends_the_consoles_tunnels_within_5_s() -> Result<()> {
    let mut site = Site::local("rules-logout")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let forward = site.forward(&["-L", &to_port(server.port())])?;
    let cut = in_use(forward.local()?)?;
    let token = fs::read(site.data_dir("console").join(TOKEN))?;
    let since = Instant::now();
    site.ask("console", &["logout", "--json"], "")?;
    is_cut(cut, since)?;
    ends(&site, forward, "logged_out")?;
    // The token is worth nothing any more, even if somebody kept it.
    let kept = site.data_dir("console").join(TOKEN);
    fs::write(&kept, token)?;
    fs::set_permissions(&kept, Permissions::from_mode(0o600))?;
    let done = site.run("console", &["computers", "--json"], "")?;
    ensure!(done.code == 3 && done.error_code() == "not_logged_in", "{done:?}");
    Ok(())
}
