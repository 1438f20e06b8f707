//! What must not work, and how it says so: code, exit status, audit record, and nothing hangs.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "JSON values give null for what is not there; figures of tests"
)]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use adit_tests::{
    peer::{self, End, TcpServer},
    process::{Finished, text},
    site::{POLICY_LOOPBACK, READY, SOON, Site, free_tcp_port, to_port},
};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

fn refused_with(done: &Finished, exit: i32, codes: &[&str]) -> Result<()> {
    let code = done.error_code();
    ensure!(
        done.code == exit && codes.contains(&code.as_str()),
        "expected exit {exit} and one of {codes:?}, got {} and {code:?}\n{}{}",
        done.code,
        done.stdout,
        done.stderr
    );
    let message = done.json().pointer("/error/message").and_then(Value::as_str).map(str::len);
    ensure!(message > Some(0), "no message: {}", done.stdout);
    Ok(())
}

fn is(name: &'static str) -> impl Fn(&Value) -> bool {
    move |e| text(e, "event") == name
}

#[test]
fn wrong_passwords_and_unknown_users_fail_alike_and_are_audited() -> Result<()> {
    let mut site = Site::local("wrong-password")?;
    site.start_mediator()?;
    let (url, fingerprint) = (site.url.clone(), site.fingerprint.clone());
    let login = |user: &str| {
        let args = ["login", &url, "--user", user, "--password-stdin", "--fingerprint"];
        site.run("console", &[&args[..], &[&fingerprint, "--json"]].concat(), "not the password\n")
    };
    let (known, unknown) = (login(&site.admin.0)?, login("nobody")?);
    refused_with(&known, 3, &["login_failed"])?;
    refused_with(&unknown, 3, &["login_failed"])?;
    ensure!(known.json() == unknown.json(), "they can be told apart: {known:?} {unknown:?}");
    site.audited("the failed login", is("login.failed"))?;
    refused_with(&site.run("console", &["computers", "--json"], "")?, 3, &["not_logged_in"])
}

#[test]
fn a_mediator_that_is_not_known_is_not_trusted() -> Result<()> {
    let mut site = Site::local("unknown-mediator")?;
    site.start_mediator()?;
    let password = site.admin.1.clone();
    let login = ["login", &site.url, "--user", &site.admin.0, "--password-stdin", "--json"];
    let done = site.run("console", &login, &password)?;
    refused_with(&done, 3, &["unknown_mediator"])?;
    ensure!(done.stdout.contains(&site.fingerprint), "the message lacks the fingerprint: {done:?}");
    let wrong = format!("sha256:{}", "0a".repeat(32));
    let login = [&login[..], &["--fingerprint", &wrong]].concat();
    let done = site.run("console", &login, &password)?;
    refused_with(&done, 3, &["fingerprint_mismatch"])
}

#[test]
fn computers_that_are_offline_or_unknown() -> Result<()> {
    let mut site = Site::local("offline")?;
    site.start()?;
    site.kill("agent")?;
    let forward = ["forward", "agent", "-L", "127.0.0.1:0:127.0.0.1:22", "--json"];
    let done = site.run("console", &forward, "")?;
    refused_with(&done, 4, &["agent_offline"])?;
    site.audited("the refusal", |e| is("session.refused")(e) && text(e, "computer") == "agent")?;
    let unknown = ["forward", "nowhere", "-L", "127.0.0.1:0:127.0.0.1:22", "--json"];
    refused_with(&site.run("console", &unknown, "")?, 4, &["no_such_computer"])
}

#[test]
fn redirectors_and_viewers_that_do_not_exist() -> Result<()> {
    let mut site = Site::local("no-redirector")?;
    site.start()?;
    let open = ["open", "agent", "telepathy", "--json"];
    refused_with(&site.run("console", &open, "")?, 4, &["no_such_redirector"])?;
    let config = "[viewers.rdp]\ncommand = [\"/nonexistent/viewer\", \"{host}\"]\n";
    fs::write(site.data_dir("console").join("console-tunnel.toml"), config)?;
    let open = ["open", "agent", "rdp", "--json"];
    let done = site.run("console", &open, "")?;
    ensure!(done.code != 0, "{done:?}");
    ensure!(["no_viewer", "viewer_failed"].contains(&done.error_code().as_str()), "{done:?}");
    Ok(())
}

#[test]
fn wrong_usage_exits_with_two() -> Result<()> {
    let site = Site::local("usage")?;
    for (instance, args) in [
        ("mediator", &["serv"][..]),
        ("relay", &["serve", "--listen", "nonsense"]),
        ("agent", &["run", "--nonsense"]),
        ("console", &["forward", "agent", "-L", "1:2"]),
    ] {
        let done = site.run(instance, args, "")?;
        ensure!(done.code == 2, "{instance} {args:?}: {done:?}");
        ensure!(!done.stderr.is_empty() || !done.stdout.is_empty(), "{instance} says nothing");
    }
    Ok(())
}

#[test]
fn a_port_in_use() -> Result<()> {
    let mut site = Site::local("port-in-use")?;
    site.start()?;
    let taken = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let taken = TcpListener::bind(taken)?;
    let spec = format!("127.0.0.1:{}:127.0.0.1:22", taken.local_addr()?.port());
    let done = site.run("console", &["forward", "agent", "-L", &spec, "--json"], "")?;
    refused_with(&done, 1, &["port_in_use"])
}

#[test]
fn targets_that_refuse_or_do_not_resolve_reset_the_connection() -> Result<()> {
    let mut site = Site::local("targets")?;
    site.start_mediator()?;
    site.start_relay("relay")?;
    let policy = POLICY_LOOPBACK;
    site.start_agent("agent", policy)?;
    site.login("console")?;
    let closed = format!("127.0.0.1:0:127.0.0.1:{}", free_tcp_port()?);
    for (spec, code) in [
        (closed.as_str(), "target_refused"),
        ("127.0.0.1:0:no-such-host.invalid:9", "target_unresolved"),
    ] {
        if code == "target_unresolved" {
            let policy = format!("{policy}\n[[allow]]\ntargets = [\"*.invalid\"]\nports = [9]\n");
            fs::write(site.data_dir("agent").join("policy.toml"), policy)?;
            site.process("agent")?.signal("HUP")?;
        }
        let mut forward = site.forward(&["-L", spec])?;
        let local = forward.local()?;
        let end = thread::spawn(move || peer::refused(local, Duration::from_secs(30)));
        forward.process.wait(code, Duration::from_secs(30), |e| {
            text(e, "event") == "channel"
                && text(e, "state") == "refused"
                && text(e, "reason") == code
        })?;
        let end = end.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        ensure!(end == End::Reset, "{spec}: the connection ended with {end:?}");
        forward.close()?;
    }
    Ok(())
}

#[test]
fn the_agents_policy_is_not_widened() -> Result<()> {
    let mut site = Site::local("policy")?;
    site.start_mediator()?;
    site.start_relay("relay")?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let allowed = free_tcp_port()?;
    site.start_agent(
        "agent",
        &format!("[[allow]]\ntargets = [\"127.0.0.1\"]\nports = [{allowed}]\n"),
    )?;
    site.login("console")?;
    let mut console =
        site.spawn("console", &["forward", "agent", "-L", &to_port(server.port()), "--json"])?;
    // Refused when opened, or when used; never served.
    let event = console.wait("listening or an error", READY, |e| {
        text(e, "event") == "listening" || e.get("error").is_some()
    })?;
    if let Ok(local) = text(&event, "local_addr").parse() {
        let end = peer::refused(local, SOON)?;
        ensure!(end == End::Reset, "{end:?}");
        console.wait("policy_refused", SOON, |e| text(e, "reason") == "policy_refused")?;
    } else {
        ensure!(
            event.pointer("/error/code").and_then(Value::as_str) == Some("policy_refused"),
            "{event}"
        );
        ensure!(console.exit(SOON)?.code() == Some(3));
    }
    drop(console);
    let target = format!("127.0.0.1:{}", server.port());
    let refusal = site.audited("the refusal", |e| {
        text(e, "target") == target
            && (text(e, "event").contains("refused") || text(e, "outcome") == "refused")
    })?;
    ensure!(refusal.to_string().contains("policy"), "{refusal}");

    // The owner changes the word, and it holds at once.
    fs::write(site.data_dir("agent").join("policy.toml"), POLICY_LOOPBACK)?;
    site.process("agent")?.signal("HUP")?;
    let forward = site.forward(&["-L", &to_port(server.port())])?;
    peer::echo(forward.local()?, 1, 10)?;
    // An invalid file keeps the last valid one.
    fs::write(site.data_dir("agent").join("policy.toml"), "nonsense = 1\n")?;
    site.process("agent")?.signal("HUP")?;
    peer::echo(forward.local()?, 1, 10)?;
    Ok(())
}

#[test]
fn tokens_that_are_spent_expired_foreign_or_of_another_role() -> Result<()> {
    let mut site = Site::local("tokens")?;
    site.start_mediator()?;
    let enroll = |instance: &str, token: &str| {
        site.run(instance, &["enroll", "-", "--name", instance, "--json"], token)
    };
    let token = site.agent_token(&[])?;
    ensure!(enroll("agent-first", &token)?.code == 0);
    refused_with(&enroll("agent-second", &token)?, 3, &["token_spent"])?;

    let short = site.agent_token(&["--ttl", "1s"])?;
    thread::park_timeout(Duration::from_millis(2100));
    refused_with(&enroll("agent-late", &short)?, 3, &["token_expired"])?;

    let relay = site.ask("mediator", &["token", "relay", "--json"], "")?;
    refused_with(&enroll("agent-relay", text(&relay, "token"))?, 3, &["token_wrong_role"])?;
    let agent = site.agent_token(&[])?;
    let join = site.run("relay", &["join", "-", "--advertise", "127.0.0.1:1", "--json"], &agent)?;
    refused_with(&join, 3, &["token_wrong_role"])?;

    let mut other = Site::local("tokens-foreign")?;
    other.start_mediator()?;
    // Its root key and secret with our address: what a forger could make.
    let foreign = other.agent_token(&[])?;
    drop(other);
    let done = enroll("agent-foreign", &foreign)?;
    ensure!(
        done.code != 0 && !site.data_dir("agent-foreign").join("enrollment.json").exists(),
        "{done:?}"
    );

    let done = enroll("agent-broken", &format!("{}x", &agent))?;
    ensure!([2, 3].contains(&done.code), "{done:?}");
    ensure!(done.error_code() == "token_invalid", "{done:?}");
    ensure!(!done.stdout.contains(&agent) && !done.stderr.contains(&agent), "it prints the token");
    Ok(())
}

#[test]
fn an_agents_changed_key_is_refused_until_trusted() -> Result<()> {
    let mut site = Site::local("changed-key")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    site.forward(&["-L", &to_port(server.port())])?.close()?;
    // Another computer under the same name: what a mediator in other hands would offer.
    site.process("agent")?.signal("TERM")?;
    site.process("agent")?.exit(SOON)?;
    site.running.retain(|(name, _)| name != "agent");
    let client = site.client();
    site.ask("mediator", &["client", "erase", &client, "--yes", "--json"], "")?;
    site.ask("mediator", &["client", "add", &client, "--json"], "")?;
    fs::remove_dir_all(site.data_dir("agent"))?;
    let enrolled = site.start_agent("agent", POLICY_LOOPBACK)?;

    let spec = to_port(server.port());
    let done = site.run("console", &["forward", "agent", "-L", &spec, "--json"], "")?;
    ensure!(done.code == 3, "{done:?}");
    ensure!(done.error_code() == "agent_key_changed", "{done:?}");
    ensure!(!done.stdout.contains("listening"), "{done:?}");
    site.ask("console", &["trust", "agent", text(&enrolled, "agent_key"), "--json"], "")?;
    let forward = site.forward(&["-L", &spec])?;
    peer::echo(forward.local()?, 1, 10)?;
    Ok(())
}

/// Runs a statement on the database of the mediator, which must not run: nobody can rename or move
/// a computer otherwise.
fn change(site: &Site, statement: &'static str) -> Result<()> {
    use sqlx::{ConnectOptions as _, Connection as _};
    let path = site.data_dir("mediator").join("mediator.db");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        let mut db = options.connect().await?;
        let done = sqlx::raw_sql(statement).execute(&mut db).await?;
        ensure!(done.rows_affected() > 0, "nothing changed");
        db.close().await?;
        Ok(())
    })
}

/// Ids of computers that sessions were granted for.
fn granted_for(site: &Site) -> Result<Vec<String>> {
    let granted = site.audit()?.into_iter().filter(is("session.granted"));
    Ok(granted.map(|event| text(&event, "computer_id").to_owned()).collect())
}

/// A console holds descriptions since its login. What it asks for by an outdated one must come to
/// the same as if it held none, and never to a session with another computer than is meant.
#[test]
fn a_console_with_outdated_descriptions_reaches_the_computer_that_is_meant() -> Result<()> {
    let mut site = Site::local("outdated-book")?;
    site.start_mediator()?;
    site.start_relay("relay")?;
    let first = site.start_agent("agent", POLICY_LOOPBACK)?;
    let second = site.start_agent("agent2", POLICY_LOOPBACK)?;
    let consoles = ["console", "console2", "console3"];
    consoles.iter().try_for_each(|console| site.login(console))?;
    ensure!(site.data_dir("console").join("book").exists(), "nothing was learnt at login");
    let server = TcpServer::start("127.0.0.1:0")?;
    let spec = to_port(server.port());
    let reaches = |site: &Site, console: &str, computer: &str, meant: &Value| -> Result<()> {
        let forward = site.forward_from(console, computer, &["-L", &spec])?;
        ensure!(forward.granted["first_contact"] == true, "{}", forward.granted);
        ensure!(
            text(&forward.granted, "agent_key") == text(meant, "agent_key"),
            "{computer} is not {meant}: {}",
            forward.granted
        );
        peer::echo(forward.local()?, 1, 10)?;
        forward.close().map(drop)
    };

    // Renamed, and its name given to another one that is online, too.
    site.kill("mediator")?;
    change(
        &site,
        "UPDATE computer SET name = 'old', name_key = 'old' WHERE name = 'agent'; \
         UPDATE computer SET name = 'agent', name_key = 'agent' WHERE name = 'agent2'",
    )?;
    site.restart("mediator")?;
    wait_all_online(&site, "console4")?;
    reaches(&site, "console", "agent", &second)?;
    ensure!(granted_for(&site)? == [text(&second, "computer_id")], "a wrong one was granted");
    let stale =
        |e: &Value| is("session.refused")(e) && text(e, "end_reason") == "stale_description";
    site.audited("the outdated request", stale)?;
    // By its id it is found under its new name.
    reaches(&site, "console", text(&first, "computer_id"), &first)?;

    // Moved to another client.
    site.kill("mediator")?;
    site.ask("mediator", &["client", "add", &format!("{}/other", site.partner), "--json"], "")?;
    change(
        &site,
        "UPDATE computer SET client_id = (SELECT id FROM client WHERE name = 'other') \
         WHERE name = 'old'",
    )?;
    site.restart("mediator")?;
    wait_all_online(&site, "console4")?;
    let gone = format!("{}/old", site.client());
    let done = site.run("console2", &["forward", &gone, "-L", &spec, "--json"], "")?;
    refused_with(&done, 4, &["no_such_computer"])?;
    reaches(&site, "console2", "other/old", &first)?;

    // Installed anew: another id and key under the known name.
    site.kill("agent2")?;
    let client = site.client();
    site.ask("mediator", &["client", "erase", &client, "--yes", "--json"], "")?;
    site.ask("mediator", &["client", "add", &client, "--json"], "")?;
    fs::remove_dir_all(site.data_dir("agent2"))?;
    let anew = site.start_agent("agent2", POLICY_LOOPBACK)?;
    reaches(&site, "console3", "agent2", &anew)?;
    // And gone.
    refused_with(
        &site.run("console3", &["forward", "agent", "-L", &spec, "--json"], "")?,
        4,
        &["no_such_computer"],
    )
}

/// Waits as somebody whose descriptions are of no matter.
fn wait_all_online(site: &Site, console: &str) -> Result<()> {
    for _ in 0..300 {
        let listed =
            site.login(console).and_then(|()| site.run(console, &["computers", "--json"], ""));
        if listed.is_ok_and(|done| {
            let lines = done.lines();
            lines.len() == 2 && lines.iter().all(|computer| computer["online"] == true)
        }) {
            return Ok(());
        }
        thread::park_timeout(Duration::from_millis(200));
    }
    anyhow::bail!("the agents do not come back")
}

#[test]
fn a_damaged_address_book_is_made_anew() -> Result<()> {
    let mut site = Site::local("damaged-book")?;
    site.start()?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let book = site.data_dir("console").join("book");
    for damage in [&b""[..], b"adit-book 1\n", &[0xff; 5000]] {
        fs::write(&book, damage)?;
        let forward = site.forward(&["-L", &to_port(server.port())])?;
        peer::echo(forward.local()?, 1, 10)?;
        forward.close()?;
        ensure!(fs::read(&book)?.len() > 200, "it was not made anew");
    }
    site.ask("console", &["logout", "--json"], "")?;
    ensure!(!book.exists(), "a logout leaves what the person could see");
    Ok(())
}

#[test]
fn a_mediator_with_another_key_is_refused_by_all() -> Result<()> {
    let mut site = Site::local("other-mediator")?;
    site.start()?;
    site.kill("mediator")?;
    let (port, stun) = (site.port.to_string(), site.stun_port.to_string());
    let init = ["init", "--host", "127.0.0.1", "--port", &port, "--stun-port", &stun, "--json"];
    site.ask("mediator-other", &init, "")?;
    site.serve("mediator-other", &["serve", "--json"])?;
    let done = site.run("console", &["computers", "--json"], "")?;
    refused_with(&done, 3, &["mediator_key_changed"])?;
    thread::park_timeout(Duration::from_secs(3));
    let status = site.ask("agent", &["status", "--json"], "")?;
    ensure!(text(&status, "state") != "online", "{status}");
    // The right one comes back, and all is well.
    site.kill("mediator-other")?;
    site.restart("mediator")?;
    // The agent waits minutes before it asks a stranger again; its owner need not.
    site.kill("agent")?;
    site.restart("agent")?;
    site.wait_online("console", "agent")?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let forward = site.forward(&["-L", &to_port(server.port())])?;
    peer::echo(forward.local()?, 1, 10)?;
    Ok(())
}

#[test]
fn data_directories_that_cannot_be_used() -> Result<()> {
    let mut site = Site::local("data-dirs")?;
    site.start_mediator()?;
    for (instance, args) in [
        ("mediator-none", &["serve", "--json"][..]),
        ("relay-none", &["serve", "--json"]),
        ("agent-none", &["run", "--json"]),
    ] {
        let done = site.run(instance, args, "")?;
        ensure!([1, 2, 3, 4].contains(&done.code), "{instance}: {done:?}");
        ensure!(!done.error_code().is_empty(), "{instance}: {done:?}");
    }
    // A second server on the same data.
    let done = site.run("mediator", &["serve", "--json"], "")?;
    refused_with(&done, 1, &["already_running"])?;
    // A database that is none.
    site.process("mediator")?.signal("TERM")?;
    site.process("mediator")?.exit(SOON)?;
    let database = fs::read_dir(site.data_dir("mediator"))?
        .flatten()
        .find(|f| f.path().extension().is_some_and(|e| e == "db"));
    let database = database.ok_or_else(|| anyhow::anyhow!("no database"))?.path();
    fs::write(&database, b"this is no database, and it is longer than a header".repeat(100))?;
    let done = site.run("mediator", &["serve", "--json"], "")?;
    ensure!(done.code == 1 && !done.error_code().is_empty(), "{done:?}");
    Ok(())
}

#[test]
fn one_forward_outside_the_policy_refuses_the_opening_and_is_named() -> Result<()> {
    let mut site = Site::local("several-targets")?;
    site.start_mediator()?;
    site.start_relay("relay")?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let allowed = format!("127.0.0.1:0:127.0.0.1:{}", server.port());
    let policy = format!("[[allow]]\ntargets = [\"127.0.0.1\"]\nports = [{}]\n", server.port());
    site.start_agent("agent", &policy)?;
    site.login("console")?;
    let outside = "127.0.0.1:0:192.0.2.9:3306";
    let both = ["forward", "agent", "-L", &allowed, "-L", outside, "--json"];
    let done = site.run("console", &both, "")?;
    refused_with(&done, 3, &["policy_refused"])?;
    let told = done.json().to_string();
    ensure!(told.contains("192.0.2.9:3306") && !done.stdout.contains("listening"), "{done:?}");
    let both_named =
        |e: &Value| e.to_string().contains("192.0.2.9:3306") && text(e, "redirector") == "tcp";
    site.audited("the attempt", |e| is("session.requested")(e) && both_named(e))?;
    let refusal = site.audited("the refusal", |e| is("session.refused")(e) && both_named(e))?;
    ensure!(text(&refusal, "end_reason") == "policy_refused", "{refusal}");
    ensure!(refusal.to_string().contains("does not allow tcp:192.0.2.9:3306"), "{refusal}");
    let forward = site.forward(&["-L", &allowed])?;
    peer::echo(forward.local()?, 1, 10)?;
    Ok(())
}

#[test]
fn a_viewer_whose_target_refuses_says_so() -> Result<()> {
    let mut site = Site::local("viewer-target")?;
    site.start()?;
    // Nothing else may listen where VNC servers do, for the time of the test.
    if TcpListener::bind("127.0.0.1:5900").is_err() {
        return Ok(());
    }
    // As viewers do: connects, finds the connection reset, and fails in its own way.
    let script = "exec 3<>/dev/tcp/{host}/{port}; read -r -u 3 line; exit 7";
    let config = format!("[viewers.vnc]\ncommand = [\"bash\", \"-c\", \"{script}\"]\n");
    fs::write(site.data_dir("console").join("console-tunnel.toml"), config)?;
    let done = site.run("console", &["open", "agent", "vnc", "--json"], "")?;
    refused_with(&done, 4, &["target_refused"])?;
    ensure!(done.json().to_string().contains("127.0.0.1:5900"), "{done:?}");
    let refused = |e: &Value| text(e, "event") == "channel" && text(e, "state") == "refused";
    ensure!(done.lines().iter().any(refused), "{done:?}");
    let ended = site.audited("the end", is("session.ended"))?;
    ensure!(text(&ended, "end_reason") == "target_refused", "{ended}");
    site.audited("the refused channel", |e| {
        text(e, "target") == "127.0.0.1:5900" && e.to_string().contains("target_refused")
    })?;
    Ok(())
}

#[test]
fn commands_that_wait_say_that_they_were_interrupted() -> Result<()> {
    let mut site = Site::local("interrupted")?;
    site.start_mediator()?;
    let (url, fingerprint) = (site.url.clone(), site.fingerprint.clone());
    let login = ["login", &url, "--fingerprint", &fingerprint, "--json"];
    let by_password = [&login[..], &["--user", "admin", "--password-stdin"]].concat();
    let on_page = [&login[..], &["--web", "--no-browser"]].concat();
    let client = site.client();
    for (instance, args) in [
        ("console", &by_password[..]),
        ("console", &on_page),
        ("agent-new", &["enroll", "-", "--json"]),
        ("relay-new", &["join", "-", "--json"]),
        ("mediator", &["user", "add", "jane", "--password-stdin", "--json"]),
        ("mediator", &["credential", "add", &client, "c", "--json"]),
    ] {
        for signal in ["INT", "TERM"] {
            let what = format!("{instance} {} {signal}", args.join(" "));
            let mut command = site.command(instance, args);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut child = command.spawn()?;
            thread::park_timeout(Duration::from_millis(1500));
            ensure!(child.try_wait()?.is_none(), "{what}: it does not wait");
            let sent =
                Command::new("kill").args(["-s", signal, &child.id().to_string()]).status()?;
            ensure!(sent.success());
            // Its input stays open: the signal alone ends it.
            let input = child.stdin.take();
            let begun = Instant::now();
            let done = child.wait_with_output()?;
            drop(input);
            ensure!(begun.elapsed() < Duration::from_secs(5), "{what}: {:?}", begun.elapsed());
            let said = String::from_utf8_lossy(&done.stdout).into_owned();
            let last = said.lines().last().unwrap_or_default();
            let error: Value = serde_json::from_str(last).unwrap_or_default();
            ensure!(error["error"]["code"] == "interrupted", "{what}: {said}");
            ensure!(done.status.code() == Some(130), "{what}: {}", done.status);
        }
    }
    Ok(())
}

/// Whenever Ctrl-C comes, from the first moment to a tunnel that stands: it says that it was
/// interrupted, or that all is well after a grant, and no session is left that nobody has.
#[test]
fn an_interrupt_at_any_moment_of_an_opening_leaves_no_session() -> Result<()> {
    const STEP: Duration = Duration::from_millis(2);
    const STEPS: u32 = 30;
    let mut site = Site::local("interrupt-sweep")?;
    site.start()?;
    let forward = ["forward", "agent", "-L", "127.0.0.1:0:127.0.0.1:9", "--json"];
    let (mut interrupted, mut granted) = (0, 0);
    for step in 0..STEPS {
        let mut command = site.command("console", &forward);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn()?;
        let id = child.id().to_string();
        // Programs need some time until they listen to signals at all.
        thread::park_timeout(Duration::from_millis(20) + STEP * step);
        ensure!(Command::new("kill").args(["-s", "INT", &id]).status()?.success());
        let begun = Instant::now();
        let done = child.wait_with_output()?;
        ensure!(begun.elapsed() < Duration::from_secs(5), "step {step}: {:?}", begun.elapsed());
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(!String::from_utf8_lossy(&done.stderr).contains("panicked"), "{done:?}");
        let has_grant = said.lines().any(|line| line.contains("\"granted\""));
        match done.status.code() {
            Some(0) if has_grant => granted += 1,
            Some(130) if !has_grant => interrupted += 1,
            // Before the program has asked for its signals, the signal itself ends it.
            None if said.is_empty() => interrupted += 1,
            _ => bail!("step {step}: {} after {said}", done.status),
        }
    }
    ensure!(interrupted > 0, "all of {granted} were granted before the signal came");
    // Well before an agent that waits for a console in vain gives up.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let events = site.audit()?;
        let ids = |name: &str| -> BTreeSet<String> {
            let named = events.iter().filter(|e| text(e, "event") == name);
            named.map(|e| text(e, "session_id").to_owned()).collect()
        };
        let left: Vec<_> =
            ids("session.granted").difference(&ids("session.ended")).cloned().collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "sessions are left: {left:?}");
        thread::park_timeout(Duration::from_millis(200));
    }
}

/// One session is granted, the next is being asked for, and nobody answers any more: what is waited
/// for one after another takes 3 s in all.
#[test]
fn an_interrupt_is_heard_in_time_by_whoever_waits_for_stalled_programs() -> Result<()> {
    const ATTEMPTS: usize = 10;
    let mut site = Site::local("interrupt-stalled")?;
    site.start()?;
    let forward = ["forward", "agent", "-L", "127.0.0.1:0:127.0.0.1:9", "-U"];
    let forward = [&forward[..], &["127.0.0.1:0:127.0.0.1:9", "--json"]].concat();
    let others =
        [site.process("agent")?.id(), site.process("mediator")?.id()].map(|id| id.to_string());
    let signal = |signal: &str, ids: &[String]| -> Result<()> {
        ensure!(Command::new("kill").args(["-s", signal]).args(ids).status()?.success());
        Ok(())
    };
    for _ in 0..ATTEMPTS {
        let mut command = site.command("console", &forward);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let mut said = BufReader::new(child.stdout.take().context("stdout")?);
        let mut line = String::new();
        while !line.contains("\"granted\"") {
            line.clear();
            ensure!(said.read_line(&mut line)? > 0, "nothing was granted");
        }
        signal("STOP", &others)?;
        // The second may have been quicker.
        thread::park_timeout(Duration::from_millis(300));
        let begun = Instant::now();
        let sent = signal("INT", &[child.id().to_string()]);
        let ended = sent.and_then(|()| Ok(child.wait()?));
        let took = begun.elapsed();
        signal("CONT", &others)?;
        ensure!(ended?.success());
        ensure!(took < Duration::from_secs(4), "{took:?}");
        let mut rest = String::new();
        said.read_to_string(&mut rest)?;
        if !rest.contains("\"granted\"") {
            return Ok(());
        }
        site.wait_online("console", "agent")?;
    }
    bail!("the second session was granted before anybody could be stopped, {ATTEMPTS} times")
}

#[test]
fn an_interrupted_password_prompt_leaves_a_terminal_that_echoes() -> Result<()> {
    let mut site = Site::local("terminal")?;
    site.start_mediator()?;
    let (url, fingerprint) = (site.url.clone(), site.fingerprint.clone());
    let args = ["login", &url, "--user", "admin", "--fingerprint", &fingerprint, "--json"];
    let command = site.command("console", &args);
    let words: Vec<String> = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    // The shell outlives Ctrl-C, to look at the terminal that is left.
    let line = format!("trap : INT; {}; echo left $?; stty -a", words.join(" "));
    let mut terminal = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut keys = terminal.stdin.take().ok_or_else(|| anyhow::anyhow!("no terminal"))?;
    thread::park_timeout(Duration::from_secs(2));
    keys.write_all(b"half a pass\x03")?;
    keys.flush()?;
    thread::park_timeout(Duration::from_secs(2));
    drop(keys);
    let seen = String::from_utf8_lossy(&terminal.wait_with_output()?.stdout).into_owned();
    ensure!(seen.contains("left 130") && seen.contains("\"interrupted\""), "{seen}");
    ensure!(!seen.contains("half a pass"), "{seen}");
    ensure!(seen.contains(" echo ") && !seen.contains("-echo "), "{seen}");
    Ok(())
}

/// Who drains a relay, in a fixed order.
fn drained_by(told: &Value) -> Vec<&str> {
    let named = told["drained_by"].as_array().into_iter().flatten();
    let mut named: Vec<&str> = named.filter_map(Value::as_str).collect();
    named.sort_unstable();
    named
}

#[test]
fn a_relay_is_drained_and_resumed_where_each_began() -> Result<()> {
    let mut site = Site::local("drain")?;
    site.start()?;
    let list = |site: &Site| site.ask("mediator", &["relay", "list", "--json"], "");
    let wait = |site: &Site, what: &str, by: &[&str]| -> Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            let relay = list(site)?;
            let own = site.ask("relay", &["status", "--json"], "")?;
            let same = [&relay, &own].iter().all(|told| drained_by(told) == by);
            if same && relay["online"] == true && own["registered"] == true {
                ensure!(relay["draining"] == !by.is_empty(), "{relay}");
                ensure!((text(&own, "state") == "draining") != by.is_empty(), "{own}");
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{what}: {relay} {own}");
            thread::park_timeout(Duration::from_millis(100));
        }
    };
    let name = text(&list(&site)?, "name").to_owned();
    ensure!(!name.is_empty());
    wait(&site, "the beginning", &[])?;
    site.ask("relay", &["drain", "--json"], "")?;
    wait(&site, "drained there", &["relay"])?;
    // The mediator's word does not end what the relay's machine wants, and says so.
    let told = site.ask("mediator", &["relay", "resume", &name, "--json"], "")?;
    ensure!(told["draining"] == true && told["drained_by"][0] == "relay", "{told}");
    wait(&site, "still drained", &["relay"])?;
    site.ask("mediator", &["relay", "drain", &name, "--json"], "")?;
    wait(&site, "drained by both", &["mediator", "relay"])?;
    let told = site.ask("relay", &["resume", "--json"], "")?;
    ensure!(told["draining"] == true && told["drained_by"][0] == "mediator", "{told}");
    wait(&site, "drained by the mediator", &["mediator"])?;
    let told = site.ask("mediator", &["relay", "resume", &name, "--json"], "")?;
    ensure!(told["draining"] == false, "{told}");
    wait(&site, "resumed", &[])?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let forward = site.forward(&["-L", &to_port(server.port()), "--carrier", "relayed"])?;
    peer::echo(forward.local()?, 1, 10)?;
    let done = site.run("mediator", &["relay", "drain", "nowhere", "--json"], "")?;
    refused_with(&done, 4, &["not_found"])
}
