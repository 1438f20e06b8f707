//! Kill switches on live tunnels, direct and relayed, each within 5 s: from another's console, by a
//! program with a key for the API, at the mediator's own machine, and by the endpoint's owner, also while
//! the mediator is away.

use std::{
    fs,
    process::Command,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use adit_protocol::{
    dpop::{Claims, from_base64, prove},
    keys::{SigningKey, random},
};
use adit_tests::{
    peer::TcpServer,
    process::{run, text},
    site::{Forward, SOON, Site, to_port},
};
use anyhow::{Context as _, Result, bail, ensure};
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

/// A program with an API key of its own, which knows curl(1).
struct Program {
    key: SigningKey,
    token: String,
    url: String,
}

impl Program {
    /// One with a key that the console's user makes.
    fn registered(site: &Site, by: &str, role: &str) -> Result<Self> {
        let file = site.artifacts().join("key.pem");
        let path = file.to_str().context("path")?;
        let create = ["admin", "api-key", "create", "program", "--key-file", path];
        let made = site.ask(by, &[&create[..], &["--role", role, "--json"]].concat(), "")?;
        let pem = fs::read_to_string(&file)?;
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = from_base64(&body)?;
        let (_, seed) = der.split_last_chunk::<32>().context("key")?;
        let key = SigningKey::from_seed(seed)?;
        let url = format!("{}/api/v1", site.url);
        Ok(Self { key, token: text(&made, "token").to_owned(), url })
    }

    /// A request, with a proof; again with the nonce that the first answer tells.
    fn ask(&self, method: &str, path: &str, body: Option<&str>) -> Result<()> {
        let url = format!("{}{path}", self.url);
        let mut nonce = String::new();
        for _ in 0..2 {
            let issued_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            let (token, id) = (self.token.as_str(), random()?);
            let claims = Claims { method, url: &url, token, nonce: &nonce, id, issued_s };
            let mut curl = Command::new("curl");
            curl.args(["-sk", "-i", "--http1.1", "--max-time", "10", "-X", method, &url]);
            curl.args(["-H", &format!("Authorization: DPoP {token}")]);
            curl.args(["-H", &format!("DPoP: {}", prove(&self.key, &claims))]);
            if let Some(body) = body {
                curl.args(["-H", "Content-Type: application/json", "-d", body]);
            }
            let done = run("curl", &curl, "")?;
            if done.stdout.starts_with("HTTP/1.1 200") {
                return Ok(());
            }
            ensure!(done.stdout.starts_with("HTTP/1.1 401"), "{method} {path}: {done:?}");
            let header = done.stdout.lines().find_map(|line| {
                line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("dpop-nonce"))
            });
            nonce = header.context("no nonce")?.1.trim().to_owned();
        }
        bail!("{method} {path}: refused with a nonce, too")
    }
}

/// Where a kill switch is thrown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// Another's console.
    Console,
    /// A program with a key for the API.
    Program,
    /// The mediator's own machine.
    Mediator,
}

#[test]
fn every_switch_from_everywhere_cuts_direct_and_relayed_tunnels_within_5_s() -> Result<()> {
    let mut site = Site::local("rules-switches")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    user(&site, "boss", "administrator")?;
    user(&site, "ann", "technician")?;
    let program = Program::registered(&site, "boss", "administrator")?;
    let (spec, client) = (to_port(server.port()), site.client());
    let whoami = site.ask("ann", &["whoami", "--json"], "")?;
    let device = text(&whoami, "device_key").to_owned();
    let why = Some(r#"{"reason":"a test"}"#);
    let (mut slowest, mut cut) = (std::time::Duration::ZERO, 0);
    for carrier in ["direct", "relayed"] {
        for from in [From::Console, From::Program, From::Mediator] {
            for (switch, reason) in [
                ("session", "ended_by_administrator"),
                ("client", "client_locked"),
                ("device", "device_disabled"),
                ("user", "user_disabled"),
            ] {
                let options = ["-L", &spec, "--carrier", carrier];
                let mut forward = site.forward_from("ann", "agent", &options)?;
                forward.wait_active(carrier, SOON)?;
                let tunnel = in_use(forward.local()?)?;
                let session = forward.session.clone();
                let (words, undo): (Vec<&str>, Vec<&str>) = match switch {
                    "session" => (vec!["session", "end", &session], Vec::new()),
                    "client" => {
                        (vec!["client", "lockdown", &client], vec!["client", "unlock", &client])
                    }
                    "device" => {
                        (vec!["device", "disable", &device], vec!["device", "enable", &device])
                    }
                    _ => (vec!["user", "disable", "ann"], vec!["user", "enable", "ann"]),
                };
                let by_person = |words: &[&str]| {
                    site.ask("boss", &[&["admin"], words, &["--json"]].concat(), "").map(drop)
                };
                let at_mediator = |words: &[&str]| {
                    site.ask("mediator", &[words, &["--json"]].concat(), "").map(drop)
                };
                let since = Instant::now();
                match (from, switch) {
                    (From::Console, _) => by_person(&words)?,
                    (From::Mediator, _) => at_mediator(&words)?,
                    (From::Program, "session") => {
                        program.ask("DELETE", &format!("/sessions/{session}"), None)?;
                    }
                    (From::Program, "client") => {
                        program.ask("PUT", &format!("/clients/{client}/lockdown"), why)?;
                    }
                    (From::Program, "device") => {
                        program.ask("POST", &format!("/devices/{device}/disable"), why)?;
                    }
                    (From::Program, _) => program.ask("POST", "/users/ann/disable", None)?,
                }
                is_cut(tunnel, since).with_context(|| format!("{carrier} {from:?} {switch}"))?;
                (slowest, cut) = (slowest.max(since.elapsed()), cut + 1);
                ends(&site, forward, reason)
                    .with_context(|| format!("{carrier} {from:?} {switch}"))?;
                // Whoever threw a switch turns it back: what one did, the other cannot undo.
                match (undo.is_empty(), from) {
                    (true, _) => {}
                    (false, From::Mediator) => at_mediator(&undo)?,
                    (false, _) => by_person(&undo)?,
                }
                if ["device", "user"].contains(&switch) {
                    let login = ["login", &site.url, "--user", "ann", "--password-stdin", "--json"];
                    site.ask("ann", &login, PASSWORD)?;
                }
            }
        }
    }
    println!("{cut} live tunnels cut, the slowest after {slowest:?}");
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
