//! A mediator that was taken over, with all its keys: what it hides, swaps, shows twice or alters
//! is refused by the ends or exposed by what they keep (docs/threat-model.md).

#![allow(clippy::indexing_slicing, reason = "JSON values give null for what is not there")]

mod forge;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use adit_tests::{
    peer::{self, TcpServer},
    process::{Finished, text},
    site::{POLICY_LOOPBACK, SOON, Site, to_port},
};
use anyhow::{Result, ensure};
use forge::Forger;

fn refused_with(done: &Finished, code: &str) -> Result<()> {
    ensure!(
        done.code == 3 && done.error_code() == code,
        "expected {code}, got {} {:?}\n{}{}",
        done.code,
        done.error_code(),
        done.stdout,
        done.stderr
    );
    Ok(())
}

/// A session that moves bytes, and its end; its id.
fn session(site: &Site, console: &str, computer: &str, server: &TcpServer) -> Result<String> {
    let spec = to_port(server.port());
    let forward = site.forward_from(console, computer, &["-L", &spec])?;
    peer::echo(forward.local()?, 3, 500)?;
    let session = forward.session.clone();
    forward.close()?;
    Ok(session)
}

fn try_open(site: &Site, console: &str, computer: &str) -> Result<Finished> {
    site.run(console, &["forward", computer, "-L", "127.0.0.1:0:127.0.0.1:9", "--json"], "")
}

/// What an instance kept, in a file.
fn kept(site: &Site, instance: &str, what: &[&str]) -> Result<String> {
    let done = site.run(instance, what, "")?;
    ensure!(done.code == 0 && !done.stdout.is_empty(), "{instance} {what:?}: {done:?}");
    let path = site.artifacts().join(format!("{instance}-{}.jsonl", what[0]));
    fs::write(&path, done.stdout)?;
    Ok(path.display().to_string())
}

/// `audit verify` with these options, against the root key.
fn verify(site: &Site, options: &[&str]) -> Result<Finished> {
    let args = [&["audit", "verify", "--key", &site.fingerprint, "--json"], options].concat();
    site.run("mediator", &args, "")
}

/// The whole log, in a file.
fn export(site: &Site) -> Result<String> {
    let file = site.artifacts().join("log.jsonl").display().to_string();
    let _ = fs::remove_file(&file);
    site.ask("mediator", &["audit", "export", "--output", &file, "--json"], "")?;
    Ok(file)
}

/// The same by a console that knows no mediator.
fn verify_at_a_desk(site: &Site, log: &str, options: &[&str]) -> Result<Finished> {
    let args = ["audit", "verify", log, "--key", &site.fingerprint, "--json"];
    site.run("desk", &[&args[..], options].concat(), "")
}

fn server() -> Result<TcpServer> {
    TcpServer::start("127.0.0.1:0")
}

#[test]
fn honest_receipts_agree_with_the_log_and_with_each_other() -> Result<()> {
    let mut site = Site::local("receipts")?;
    site.start()?;
    let server = server()?;
    session(&site, "console", "agent", &server)?;
    let (console, agent) = (all_four(&site, "console")?, all_four(&site, "agent")?);
    for line in fs::read_to_string(&console)?.lines() {
        ensure!(line.contains("\"receipt\":"), "{line}");
    }
    let done = verify(&site, &["--receipts", &console, "--receipts", &agent])?;
    ensure!(done.code == 0, "{}{}", done.stdout, done.stderr);
    let heads = kept(&site, "agent", &["witness", "show"])?;
    ensure!(verify(&site, &["--head", &heads])?.code == 0, "the agent's head does not verify");
    // An auditor needs no mediator for it: an export, and what the ends kept.
    let log = export(&site)?;
    let given = ["--head", &heads, "--receipts", &console, "--receipts", &agent];
    let done = verify_at_a_desk(&site, &log, &given)?;
    ensure!(done.code == 0, "{}{}", done.stdout, done.stderr);
    let told = done.stdout.lines().last().unwrap_or_default();
    ensure!(told.contains("\"receipts\":4") && told.contains("\"findings_count\":0"), "{told}");
    let events = site.audit()?;
    ensure!(
        events.iter().all(|e| !text(e, "event").starts_with("receipt.")),
        "honest receipts alarmed the mediator: {events:?}"
    );
    Ok(())
}

/// Receipts of an instance, in a file, once both ends' opens and closes are among them. They come
/// before the session is over, or from the mediator as soon as it has them: never by chance.
fn all_four(site: &Site, instance: &str) -> Result<String> {
    let deadline = Instant::now() + SOON;
    loop {
        let file = kept(site, instance, &["receipts", "export"])?;
        let kinds = fs::read_to_string(&file)?;
        let lacks = ["open", "close"]
            .iter()
            .flat_map(|kind| ["console", "agent"].map(|role| (kind, role)))
            .map(|(kind, role)| format!("\"receipt\":\"{kind}\",\"role\":\"{role}\""))
            .find(|wanted| !kinds.contains(wanted));
        match lacks {
            None => return Ok(file),
            Some(wanted) => {
                ensure!(Instant::now() < deadline, "{instance} lacks {wanted}:\n{kinds}");
            }
        }
        adit_tests::process::pause(Duration::from_millis(100));
    }
}

/// The agent does not see the end of a session: its machine sleeps. What it signs when it is back
/// reaches the console through the mediator.
#[test]
fn a_close_receipt_that_does_not_come_in_time_comes_by_the_mediator() -> Result<()> {
    let mut site = Site::local("late-receipt")?;
    site.start()?;
    let server = server()?;
    let spec = to_port(server.port());
    let forward = site.forward_from("console", "agent", &["-L", &spec])?;
    // The channel is open when the agent falls asleep: it has signed no end of it.
    let mut channel = TcpStream::connect(forward.local()?)?;
    channel.set_read_timeout(Some(SOON))?;
    channel.write_all(b"echo\nx")?;
    channel.read_exact(&mut [0])?;
    let late = forward.session.replace('-', "");
    site.process("agent")?.freeze()?;
    let closed = forward.close();
    // It could not have signed meanwhile, and what the console has is all it can have.
    let first = kept(&site, "console", &["receipts", "export"]);
    site.process("agent")?.signal("CONT")?;
    closed?;
    drop(channel);
    let closes = |file: &str| -> Result<bool> {
        let text = fs::read_to_string(file)?;
        let agents = "\"receipt\":\"close\",\"role\":\"agent\"";
        Ok(text.lines().any(|line| line.contains(agents) && line.contains(&late)))
    };
    ensure!(!closes(&first?)?, "the agent slept, and signed nevertheless");
    let deadline = Instant::now() + 2 * SOON;
    loop {
        // Whichever console runs next asks.
        session(&site, "console", "agent", &server)?;
        let file = kept(&site, "console", &["receipts", "export"])?;
        if closes(&file)? {
            let done = verify(&site, &["--receipts", &file])?;
            ensure!(done.code == 0, "{}{}", done.stdout, done.stderr);
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the agent's close receipt never came");
        adit_tests::process::pause(Duration::from_millis(500));
    }
}

#[test]
fn another_partners_log_is_believed_by_neither_end() -> Result<()> {
    let mut site = Site::local("other-partner")?;
    site.start_mediator()?;
    site.start_relay("relay")?;
    let enrolled = site.start_agent("agent", POLICY_LOOPBACK)?;
    site.login("console")?;
    let server = server()?;
    session(&site, "console", "agent", &server)?;
    let client = format!("shadow/{}", adit_tests::site::CLIENT);
    site.ask("mediator", &["client", "add", &client, "--json"], "")?;
    let args = ["user", "add", "eve", "--partner", "shadow", "--role", "administrator", "--json"];
    let eve = text(&site.ask("mediator", &args, "")?, "password").to_owned();
    site.ask("mediator", &["user", "mfa", "optional", "eve", "--json"], "")?;
    site.kill("mediator")?;
    Forger::open(&site)?.move_to_partner("shadow")?;
    site.restart("mediator")?;
    site.process("agent")?.event("online", SOON)?;
    // The console knows whose log it is to see, also at the next login.
    refused_with(&again(|| try_open(&site, "console", "agent"))?, "audit_foreign")?;
    let shown = site.run("console", &["witness", "show"], "")?;
    ensure!(shown.stderr.contains("audit_foreign"), "no alert at the console: {shown:?}");
    let (user, password) = site.admin.clone();
    let login = |site: &Site, console: &str, user: &str, password: &str| {
        let args = ["login", &site.url, "--user", user, "--password-stdin", "--fingerprint"];
        let args = [&args[..], &[&site.fingerprint, "--json"]].concat();
        site.run(console, &args, password)
    };
    refused_with(&login(&site, "console", &user, &password)?, "audit_foreign")?;
    // Nor is it led past that by another name.
    site.kill("mediator")?;
    Forger::open(&site)?.tell_another_name(&user, "somebody")?;
    site.restart("mediator")?;
    site.process("agent")?.event("online", SOON)?;
    refused_with(&login(&site, "console", &user, &password)?, "audit_foreign")?;
    refused_with(&again(|| try_open(&site, "console", "agent"))?, "audit_foreign")?;
    // One that never saw another log is refused by the agent, which was enrolled for its own.
    let done = login(&site, "console2", "eve", &eve)?;
    ensure!(done.code == 0, "{done:?}");
    site.ask("console2", &["trust", "agent", text(&enrolled, "agent_key"), "--json"], "")?;
    refused_with(&again(|| try_open(&site, "console2", "agent"))?, "audit_foreign")?;
    let status = site.ask("agent", &["status", "--json"], "")?;
    ensure!(status["audit_alerts"].to_string().contains("audit_foreign"), "no alert: {status}");
    // Until its owner accepts it, the agent says so; what was stays on record.
    let told = |site: &Site| site.run("agent", &["status"], "").map(|done| done.stdout);
    ensure!(status["audit_alert"]["code"] == "audit_foreign", "{status}");
    ensure!(told(&site)?.contains("AUDIT:"), "{}", told(&site)?);
    site.kill("agent")?;
    site.ask("agent", &["witness", "accept", "--json"], "")?;
    site.restart("agent")?;
    let status = site.ask("agent", &["status", "--json"], "")?;
    ensure!(status["audit_alert"].is_null(), "{status}");
    ensure!(status["audit_alerts"].to_string().contains("audit_foreign"), "no record: {status}");
    ensure!(!told(&site)?.contains("AUDIT:"), "{}", told(&site)?);
    Ok(())
}

#[test]
fn an_enrolment_in_a_second_tree_is_not_believed() -> Result<()> {
    let mut site = Site::local("second-tree")?;
    site.start()?;
    let computer =
        text(&site.ask("console", &["computers", "agent", "--json"], "")?, "computer_id")
            .to_owned();
    let evil = site.start_agent("agent-evil", POLICY_LOOPBACK)?;
    site.start_agent("agent2", POLICY_LOOPBACK)?;
    let server = server()?;
    // The console has seen the log, and has not met the computer yet.
    session(&site, "console", "agent2", &server)?;
    for instance in ["agent", "agent-evil", "mediator"] {
        site.kill(instance)?;
    }
    Forger::open(&site)?.enrol_apart("agent", "agent-evil")?;
    let file = site.data_dir("agent-evil").join("enrollment.json");
    let own = fs::read_to_string(&file)?;
    fs::write(&file, own.replace(text(&evil, "computer_id"), &computer))?;
    site.restart("mediator")?;
    site.restart("agent-evil")?;
    refused_with(&again(|| try_open(&site, "console", "agent"))?, "audit_forked")?;
    let shown = site.run("console", &["witness", "show"], "")?;
    ensure!(shown.stderr.contains("apart"), "no evidence at the console: {shown:?}");
    Ok(())
}

#[test]
fn a_hidden_session_is_found_by_both_ends_and_by_their_receipts() -> Result<()> {
    let mut site = Site::local("hidden-session")?;
    site.start()?;
    let server = server()?;
    let hidden = session(&site, "console", "agent", &server)?;
    site.audited("the end", |e| {
        text(e, "event") == "session.ended" && text(e, "session_id") == hidden
    })?;
    site.kill("mediator")?;
    Forger::open(&site)?.rewrite(|event| event.session_id.as_deref() != Some(&hidden))?;
    // Its own keys vouch for what it says now.
    ensure!(verify(&site, &[])?.code == 0, "the forged log is meant to be consistent in itself");
    for instance in ["console", "agent"] {
        let receipts = kept(&site, instance, &["receipts", "export"])?;
        let done = verify(&site, &["--receipts", &receipts])?;
        ensure!(done.code == 1 && done.error_code() == "receipts_mismatch", "{done:?}");
        ensure!(done.stdout.contains("not in the log"), "{}", done.stdout);
        let heads = kept(&site, instance, &["witness", "show"])?;
        let done = verify(&site, &["--head", &heads])?;
        ensure!(done.code == 1 && done.error_code() == "audit_invalid", "{done:?}");
    }
    site.restart("mediator")?;
    site.process("agent")?.event("online", SOON)?;
    let done = again(|| try_open(&site, "console", "agent"))?;
    refused_with(&done, "audit_forked")?;
    let shown = site.run("console", &["witness", "show"], "")?;
    ensure!(shown.stderr.contains("audit_forked"), "no alert at the console: {shown:?}");
    Ok(())
}

/// The agent may still be on its way back.
fn again(what: impl Fn() -> Result<Finished>) -> Result<Finished> {
    for _ in 0..50 {
        let done = what()?;
        if done.error_code() != "agent_offline" {
            return Ok(done);
        }
        adit_tests::process::pause(Duration::from_millis(200));
    }
    what()
}

#[test]
fn an_altered_record_is_refused_and_contradicts_the_receipts() -> Result<()> {
    let mut site = Site::local("altered-record")?;
    site.start()?;
    let server = server()?;
    let altered = session(&site, "console", "agent", &server)?;
    site.kill("mediator")?;
    Forger::open(&site)?.alter(|event| {
        if event.session_id.as_deref() == Some(&altered) && event.target.is_some() {
            event.target = Some("127.0.0.1:443".to_owned());
        }
    })?;
    let receipts = kept(&site, "agent", &["receipts", "export"])?;
    let done = verify(&site, &["--receipts", &receipts])?;
    ensure!(done.code == 1 && done.stdout.contains("differ in target"), "{done:?}");
    let done = verify_at_a_desk(&site, &export(&site)?, &["--receipts", &receipts])?;
    ensure!(done.code == 1 && done.error_code() == "receipts_mismatch", "{done:?}");
    site.restart("mediator")?;
    refused_with(&again(|| try_open(&site, "console", "agent"))?, "audit_forked")
}

#[test]
fn a_key_swapped_before_first_contact_is_not_in_the_log() -> Result<()> {
    let mut site = Site::local("swapped-key")?;
    site.start()?;
    site.kill("mediator")?;
    Forger::open(&site)?.swap_agent_key()?;
    site.restart("mediator")?;
    refused_with(&try_open(&site, "console", "agent")?, "audit_unproven")
}

#[test]
fn two_histories_cannot_be_shown_to_two_ends() -> Result<()> {
    let mut site = Site::local("two-histories")?;
    site.start()?;
    site.start_agent("agent2", POLICY_LOOPBACK)?;
    site.login("console2")?;
    let server = server()?;
    session(&site, "console", "agent", &server)?;
    site.kill("mediator")?;
    let before = Forger::open(&site)?.copy()?;
    // One history for the second console and the first agent …
    site.restart("mediator")?;
    site.wait_online("console2", "agent")?;
    session(&site, "console2", "agent", &server)?;
    site.kill("mediator")?;
    // … another one for everybody else, of about the same length.
    Forger::open(&site)?.put_back(&before)?;
    site.restart("mediator")?;
    site.wait_online("console", "agent2")?;
    session(&site, "console", "agent2", &server)?;
    // The first agent remembers; and so does the second console, who tells the second agent.
    refused_with(&again(|| try_open(&site, "console", "agent"))?, "audit_forked")?;
    refused_with(&again(|| try_open(&site, "console2", "agent2"))?, "audit_forked")?;
    // It is on record at both ends of each attempt.
    for agent in ["agent", "agent2"] {
        let status = site.ask(agent, &["status", "--json"], "")?;
        let alerts = status["audit_alerts"].to_string();
        ensure!(alerts.contains("audit_forked"), "{agent} was not alarmed: {status}");
    }
    let mut heads = Vec::new();
    for console in ["console", "console2"] {
        let shown = site.run(console, &["witness", "show"], "")?;
        ensure!(shown.stderr.contains("audit_forked"), "no alert at {console}: {shown:?}");
        heads.push(kept(&site, console, &["witness", "show"])?);
    }
    // And an auditor who holds what both were shown needs nothing else: each head is signed, the
    // log goes on from one of them, and no log goes on from both.
    ensure!(verify(&site, &["--head", &heads[0]])?.code == 0, "the first console's own history");
    for given in [&heads[1..], &heads[..]] {
        let options: Vec<&str> = given.iter().flat_map(|head| ["--head", head]).collect();
        let done = verify(&site, &options)?;
        ensure!(done.code == 1 && done.error_code() == "audit_invalid", "{done:?}");
        ensure!(done.stdout.contains("two histories"), "{done:?}");
    }
    Ok(())
}
