//! Kill switches on live tunnels, each within 5 s: from another's console by the HTTPS API, and by the
//! endpoint's owner, also while the mediator is away.

use std::time::Instant;

use adit_tests::{
    peer::TcpServer,
    process::text,
    site::{Forward, SOON, Site, to_port},
};
use anyhow::{Result, ensure};
use serde_json::Value;

use crate::revocation::{PASSWORD, ends, in_use, is_cut};

/// A user of the role, logged in on a console of that name.
fn user(site: &Site, name: &str, role: &str) -> Result<()> {
    let add = ["user", "add", name, "--role", role, "--password-stdin", "--json"];
    site.ask("mediator", &add, PASSWORD)?;
    site.ask("mediator", &["user", "mfa", "optional", name, "--json"], "")?;
    let login = ["login", &site.url, "--user", name, "--password-stdin", "--fingerprint"];
    site.ask(name, &[&login[..], &[&site.fingerprint, "--json"]].concat(), PASSWORD).map(drop)
}

#[test]
fn an_administrators_console_ends_live_tunnels_within_5_s() -> Result<()> {
    let mut site = Site::local("rules-kill")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    user(&site, "boss", "administrator")?;
    user(&site, "ann", "technician")?;
    let (spec, client) = (to_port(server.port()), site.client());
    let whoami = site.ask("ann", &["whoami", "--json"], "")?;
    let device = text(&whoami, "device_key").to_owned();
    ensure!(device.starts_with("sha256:"), "{whoami}");
    let admin = |words: &[&str]| site.ask("boss", &[&["admin"], words, &["--json"]].concat(), "");
    let others = site.forward(&["-L", &spec])?;
    let open = || -> Result<Forward> { site.forward_from("ann", "agent", &["-L", &spec]) };
    for (what, reason, undo) in [
        (&["session", "end"][..], "ended_by_administrator", &[][..]),
        (&["client", "lockdown", &client], "client_locked", &["client", "unlock", &client]),
        (&["device", "disable", &device], "device_disabled", &["device", "enable", &device]),
        (&["user", "logout", "ann"], "logged_out", &[]),
        (&["user", "disable", "ann"], "user_disabled", &["user", "enable", "ann"]),
    ] {
        let forward = open()?;
        let cut = in_use(forward.local()?)?;
        let session = forward.session.clone();
        let what = match what {
            ["session", "end"] => [what, &[session.as_str()]].concat(),
            _ => what.to_vec(),
        };
        let since = Instant::now();
        admin(&what)?;
        is_cut(cut, since)?;
        ends(&site, forward, reason)?;
        if reason != "ended_by_administrator" {
            let again = site.run("ann", &["open", "agent", "ssh", "--no-launch", "--json"], "")?;
            ensure!(again.code == 3, "{reason}: {again:?}");
        }
        if !undo.is_empty() {
            admin(undo)?;
        }
        if ["device_disabled", "logged_out", "user_disabled"].contains(&reason) {
            let login = ["login", &site.url, "--user", "ann", "--password-stdin", "--json"];
            site.ask("ann", &login, PASSWORD)?;
        }
    }
    // What was another's stayed, but for the client's lockdown.
    let ended = site.audited("the other's end", |e| {
        text(e, "event") == "session.ended" && text(e, "session_id") == others.session
    })?;
    ensure!(text(&ended, "end_reason") == "client_locked", "{ended}");
    // Whoever did it, on which device, is on record.
    for event in ["client.locked", "device.disabled", "user.logged_out", "user.disabled"] {
        let record = site.audited(event, |e| text(e, "event") == event)?;
        ensure!(text(&record, "actor") == "boss" && !text(&record, "device").is_empty());
    }
    Ok(())
}

#[test]
fn the_endpoints_owner_ends_live_tunnels_also_without_the_mediator() -> Result<()> {
    let mut site = Site::local("rules-lock")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let spec = to_port(server.port());
    let lock = |site: &Site| -> Result<Value> { site.ask("agent", &["lock", "--json"], "") };
    let forward = site.forward(&["-L", &spec])?;
    let cut = in_use(forward.local()?)?;
    let since = Instant::now();
    let locked = lock(&site)?;
    ensure!(locked["ended_sessions"] == 1, "{locked}");
    is_cut(cut, since)?;
    ends(&site, forward, "locked_by_owner")?;
    let refused = site.run("console", &["forward", "agent", "-L", &spec, "--json"], "")?;
    ensure!(refused.code == 3 && refused.error_code() == "policy_refused", "{refused:?}");
    site.ask("agent", &["unlock", "--json"], "")?;

    // The mediator cannot be reached: the lock needs nobody.
    let mut forward = site.forward(&["-L", &spec])?;
    let cut = in_use(forward.local()?)?;
    site.kill("mediator")?;
    let since = Instant::now();
    lock(&site)?;
    is_cut(cut, since)?;
    forward.process.event("closed", SOON)?;
    // It is told when the mediator is back, and holds, also after the agent's own restart.
    site.restart("mediator")?;
    let session = forward.session.clone();
    let ended = site.audited("the end", |e| {
        text(e, "event") == "session.ended" && text(e, "session_id") == session
    })?;
    ensure!(text(&ended, "end_reason") == "locked_by_owner", "{ended}");
    site.kill("agent")?;
    site.restart("agent")?;
    site.wait_online("console", "agent")?;
    let refused = site.run("console", &["forward", "agent", "-L", &spec, "--json"], "")?;
    ensure!(refused.code == 3 && refused.error_code() == "policy_refused", "{refused:?}");
    site.ask("agent", &["unlock", "--json"], "")?;
    site.forward(&["-L", &spec])?.close().map(drop)
}
