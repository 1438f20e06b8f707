//! What outsiders write into the audit does nothing there, each event says what it must, and
//! without the audit nothing is granted (ASVS 16.2 to 16.4).

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use adit_tests::{
    peer::{self, TcpServer},
    process::{run, text},
    site::{SOON, Site, to_port},
};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// A new line, a terminal sequence, a change of direction, a formula and separators.
const HOSTILE: &str = "=HYPERLINK(\"http://x\")\u{1b}[2J\u{202e}\n2026-01-01T00:00:00Z  INFO \
    forged|cef=1,\"csv\"\r\n{\"event\":\"forged\"}";
/// Beginnings that make a spreadsheet compute.
const FORMULA: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

#[test]
fn hostile_names_and_reasons_are_inert_wherever_they_are_shown() -> Result<()> {
    let mut site = Site::local("rules-injection")?;
    site.start()?;
    let (url, fingerprint) = (site.url.clone(), site.fingerprint.clone());
    let login = ["login", &url, "--user", HOSTILE, "--password-stdin", "--fingerprint"];
    let done = site.run("console2", &[&login[..], &[&fingerprint]].concat(), "no password\n")?;
    ensure!(done.code != 0, "{done:?}");
    let mut shown = vec![("login".to_owned(), done.stdout + &done.stderr)];
    let server = TcpServer::start("127.0.0.1:0")?;
    let spec = to_port(server.port());
    for option in ["--reason", "--ticket"] {
        let args = ["forward", "agent", "-L", &spec, option, HOSTILE];
        let mut forward = site.spawn("console", &args)?;
        // Refused or granted: what counts is what becomes of the text.
        let _ = forward.exit(SOON / 5);
        drop(forward);
    }
    site.audited("the failed login", |e| text(e, "event") == "login.failed")?;
    for (format, is_line) in [
        ("jsonl", (|l| serde_json::from_str::<Value>(l).is_ok()) as fn(&str) -> bool),
        ("ocsf", |l| serde_json::from_str::<Value>(l).is_ok()),
        ("cef", |l| l.starts_with("CEF:") || l.contains(" CEF:")),
        ("csv", |l| cells(l).iter().all(|c| !c.starts_with(FORMULA))),
    ] {
        let done = site.run("mediator", &["audit", "export", "--format", format], "")?;
        ensure!(done.code == 0, "{done:?}");
        let odd: Vec<_> = done.stdout.lines().filter(|l| !is_line(l)).collect();
        ensure!(odd.is_empty(), "{format}: {odd:#?}");
        shown.push((format.to_owned(), done.stdout));
    }
    for (instance, args) in [
        ("mediator", &["session", "list"][..]),
        ("mediator", &["user", "list"]),
        ("mediator", &["client", "list"]),
        ("mediator", &["audit", "search"]),
        ("console", &["audit", "search"]),
        ("console", &["computers"]),
        ("console", &["sessions"]),
    ] {
        let done = site.run(instance, args, "")?;
        shown.push((args.join(" "), done.stdout + &done.stderr));
    }
    site.stop_all();
    for log in fs::read_dir(site.artifacts())?.flatten() {
        shown.push((log.path().display().to_string(), fs::read_to_string(log.path())?));
    }
    for (place, said) in &shown {
        let moves = |c: char| (c.is_control() && !"\n\r\t".contains(c)) || c == '\u{202e}';
        ensure!(!said.contains(moves), "{place} shows it raw: {:?}", said.find(moves));
        let forged = said.lines().find(|l| l.starts_with("2026-01-01T00:00:00Z"));
        ensure!(forged.is_none(), "a forged line in {place}: {forged:?}");
        let forged = said.lines().find(|l| l.starts_with("{\"event\":\"forged\""));
        ensure!(forged.is_none(), "a forged event in {place}: {forged:?}");
    }
    Ok(())
}

/// The cells of a line of CSV.
fn cells(line: &str) -> Vec<String> {
    let (mut cells, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match (c, quoted) {
            ('"', _) => quoted = !quoted,
            (',', false) => cells.push(String::new()),
            (c, _) => cells.last_mut().map(|cell| cell.push(c)).unwrap_or_default(),
        }
    }
    cells
}

#[test]
fn each_event_says_who_what_where_when_and_how_it_ended() -> Result<()> {
    let mut site = Site::local("rules-events")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let forward = site.forward(&["-L", &to_port(server.port())])?;
    peer::echo(forward.local()?, 1, 10)?;
    let session = forward.session.clone();
    forward.close()?;
    let unknown = ["forward", "nowhere", "-L", "0:127.0.0.1:9", "--json"];
    ensure!(site.run("console", &unknown, "")?.code == 4);
    site.audited("the end", |e| {
        text(e, "event") == "session.ended" && text(e, "session_id") == session
    })?;
    let events = site.audit()?;
    for event in &events {
        let name = text(event, "event");
        for key in ["time", "event"] {
            ensure!(!text(event, key).is_empty(), "no {key}: {event}");
        }
        ensure!(text(event, "time").ends_with('Z'), "not UTC: {event}");
        ensure!(event["seq"].is_u64() && event["level"].is_u64(), "{event}");
        let by_session = ["session.requested", "session.granted", "session.ended"];
        if by_session.contains(&name) {
            let about = ["computer", "target", "session_id", "outcome"];
            for key in ["actor", "device", "source"].into_iter().chain(about) {
                ensure!(!text(event, key).is_empty(), "no {key}: {event}");
            }
        }
        // A console that finds no such computer has not asked for a session.
        let unasked = name == "session.refused" && text(event, "computer") == "nowhere";
        if name.starts_with("session.") {
            ensure!(text(event, "session_id").is_empty() == unasked, "no session: {event}");
        }
        // Whoever does something, from wherever, it says how it ended.
        if !text(event, "actor").is_empty() {
            ensure!(!text(event, "outcome").is_empty(), "no outcome: {event}");
        }
        if name.starts_with("login.") {
            for key in ["actor", "device", "source", "outcome"] {
                ensure!(!text(event, key).is_empty(), "no {key}: {event}");
            }
        }
    }
    for name in ["login.succeeded", "session.requested", "session.granted", "session.refused"] {
        ensure!(events.iter().any(|e| text(e, "event") == name), "no {name}");
    }
    Ok(())
}

/// A small file system of its own.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        let place = at.display().to_string();
        let words = ["-t", "tmpfs", "-o", "size=8m,mode=0700", "adit-small", &place];
        let done = run("mount", Command::new("mount").args(words), "")?;
        ensure!(done.code == 0, "mount: {}", done.stderr);
        Ok(Self(at.to_owned()))
    }

    /// Takes all that is left.
    fn fill(&self) -> Result<()> {
        let mut file = File::create(self.0.join("filling"))?;
        while file.write_all(&[1; 4096]).is_ok() {}
        // Smaller pieces for what is left of the last block.
        while file.write_all(&[1]).is_ok() {}
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        Ok(fs::remove_file(self.0.join("filling"))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn without_room_for_its_record_nothing_is_granted() -> Result<()> {
    /// The log in front of the database may have room that was used before.
    const TRIES: u32 = 60;
    let mut site = Site::local("rules-full")?;
    let disk = SmallDisk::mount(&site.data_dir("mediator"))?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let spec = to_port(server.port());
    let live = site.forward(&["-L", &spec])?;
    peer::echo(live.local()?, 1, 10)?;
    disk.fill()?;
    let (mut granted, mut refused) = (vec![live.session.clone()], 0);
    for _ in 0..TRIES {
        let mut console = site.spawn("console", &["forward", "agent", "-L", &spec, "--json"])?;
        let event = console.wait("an answer", SOON, |e| {
            text(e, "event") == "granted" || e.get("error").is_some()
        })?;
        if text(&event, "event") == "granted" {
            granted.push(text(&event, "session_id").to_owned());
            continue;
        }
        let code = event.pointer("/error/code").and_then(Value::as_str);
        ensure!(code == Some("audit_unavailable"), "{event}");
        ensure!(console.exit(SOON)?.code() == Some(1));
        refused += 1;
        if refused == 3 {
            break;
        }
    }
    ensure!(refused == 3, "{} grants on a full disk", granted.len());
    // What lives goes on; its record waits at its ends.
    peer::echo(live.local()?, 1, 10)?;
    // A login is recorded or does not happen either.
    let done = login_again(&site)?;
    ensure!(done != 0, "a login without its record");

    disk.empty()?;
    let deadline = std::time::Instant::now() + SOON;
    loop {
        match site.forward(&["-L", &spec]) {
            Ok(forward) => break forward.close().map(drop)?,
            Err(error) if std::time::Instant::now() > deadline => bail!("{error}"),
            Err(_) => {}
        }
    }
    live.close()?;
    for session in granted {
        for name in ["session.granted", "session.ended"] {
            site.audited(&format!("{name} of {session}"), |e| {
                text(e, "event") == name && text(e, "session_id") == session
            })?;
        }
    }
    site.stop_all();
    Ok(())
}

fn login_again(site: &Site) -> Result<i32> {
    let (user, password) = &site.admin;
    let args = ["login", &site.url, "--user", user, "--password-stdin", "--fingerprint"];
    let args = [&args[..], &[&site.fingerprint, "--json"]].concat();
    let done = site.run("console3", &args, password).context("login")?;
    Ok(done.code)
}
