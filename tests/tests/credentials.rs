//! Stored credentials at real viewers: OpenSSH with a password and with a key, while every command
//! line and environment of the machine is looked at. Needs root, for users and an SSH server on
//! port 22 of the loopback address.

#![cfg(target_os = "linux")]
#![allow(clippy::indexing_slicing, reason = "JSON values give null for what is not there")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use adit_tests::{
    process::{text, told_by_processes},
    site::{POLICY_LOOPBACK, READY, Site},
};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// A user of this machine, for the time of the test.
struct User(&'static str);

impl User {
    fn add(name: &'static str, password: &str) -> Result<Self> {
        let _ = Command::new("useradd").args(["-m", "-s", "/bin/sh", name]).output()?;
        let mut child = Command::new("chpasswd").stdin(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("stdin")?;
        std::io::Write::write_all(&mut stdin, format!("{name}:{password}\n").as_bytes())?;
        drop(stdin);
        ensure!(child.wait()?.success(), "the test's user cannot be made");
        Ok(Self(name))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = Command::new("userdel").args(["-r", "-f", self.0]).output();
    }
}

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sshd(site: &Site, key: &str) -> Result<Server> {
    let folder = site.artifacts();
    let (host_key, keys) = (folder.join("host_key"), folder.join("authorized"));
    let _ = fs::remove_file(&host_key);
    make_key(&host_key)?;
    fs::write(&keys, key)?;
    fs::create_dir_all("/run/sshd")?;
    let config = folder.join("sshd_config");
    let lines = format!(
        "Port 22\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\n\
         PidFile none\nPasswordAuthentication yes\nKbdInteractiveAuthentication no\nUsePAM no\n",
        host_key.display(),
        keys.display()
    );
    fs::write(&config, lines)?;
    let log = fs::File::create(folder.join("sshd.log"))?;
    let mut command = Command::new("/usr/sbin/sshd");
    command.args(["-D", "-e", "-f"]).arg(&config).stderr(log).stdin(Stdio::null());
    Ok(Server(command.spawn()?))
}

fn make_key(file: &Path) -> Result<()> {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(file);
    ensure!(command.status()?.success());
    Ok(())
}

const PASSWORD: &str = "Adit-e2e-pw-7714";

#[test]
fn openssh_gets_a_password_and_a_key_that_no_process_list_shows() -> Result<()> {
    let mut site = Site::local("credentials")?;
    site.start_mediator()?;
    // All that can be said is said.
    site.log_level = Some("trace".to_owned());
    site.start_relay("relay")?;
    site.start_agent("agent", POLICY_LOOPBACK)?;
    site.login("console")?;
    let user = User::add("adite2e", PASSWORD)?;
    let key = site.artifacts().join("key");
    let _ = fs::remove_file(&key);
    make_key(&key)?;
    let _server = sshd(&site, &fs::read_to_string(key.with_extension("pub"))?)?;

    let client = site.client();
    let add = ["credential", "add", &client, "login", "--user", user.0, "--json"];
    site.ask("mediator", &add, PASSWORD)?;
    let secret_key = fs::read_to_string(&key)?;
    let kind = ["--kind", "ssh_key", "--redirector", "ssh"];
    let args = ["credential", "add", &client, "key", "--user", user.0, "--json"];
    site.ask("mediator", &[&args[..], &kind].concat(), &secret_key)?;
    fs::remove_file(&key)?;
    // The line of the key file that is the secret itself.
    let key_line = secret_key.lines().nth(2).context("key")?.to_owned();

    for (name, secret) in [("login", PASSWORD), ("key", key_line.as_str())] {
        let told = site.artifacts().join(format!("whoami-{name}"));
        let _ = fs::remove_file(&told);
        viewer(&site, &told)?;
        let why = ["--reason", "disk full", "--ticket", "T-17"];
        let open = ["open", "agent", "ssh", "--credential", name, "--json"];
        let open = [&open[..], &why].concat();
        let mut opened = site.spawn("console", &open)?;
        let mut running = vec![opened.id()];
        for instance in ["agent", "relay", "mediator"] {
            running.push(site.process(instance)?.id());
        }
        opened.wait("the viewer", READY, |e| text(e, "event") == "viewer")?;
        running.into_iter().try_for_each(no_core_dump)?;
        let begun = Instant::now();
        let mut looks = 0;
        while !told.exists() && begun.elapsed() < Duration::from_secs(20) {
            let found = told_by_processes(secret);
            ensure!(found.is_empty(), "{name} is told by {found:?}");
            looks += 1;
        }
        ensure!(told.exists() && looks > 3, "{name}: {:?}", opened.events());
        ensure!(fs::read_to_string(&told)?.trim() == user.0, "{name}");
        opened.wait("the end", READY, |e| text(e, "event") == "closed")?;
        let events = format!("{:?}", opened.events());
        ensure!(!events.contains(secret), "the console tells {name}");
        let granted = opened.events().into_iter().find(|e| text(e, "event") == "granted");
        let session = text(&granted.context("granted")?, "session_id").to_owned();
        let records = every_field(&site, &session)?;
        ensure!(!Value::from(records).to_string().contains(secret), "the log tells {name}");
        for instance in ["console", "agent", "relay", "mediator"] {
            logged_without(&site, instance, secret).context(name)?;
        }
    }
    // Nothing of the way is left.
    let rest = fs::read_dir(std::env::temp_dir())?.flatten();
    let rest = rest.filter(|entry| entry.path().join("answer").exists()).count();
    ensure!(rest == 0, "a private folder is left");
    Ok(())
}

/// What is in a program's memory stays there when it crashes.
fn no_core_dump(process: u32) -> Result<()> {
    let limits = fs::read_to_string(format!("/proc/{process}/limits"))?;
    let line = limits.lines().find(|line| line.starts_with("Max core file size"));
    let line = line.context("no such limit")?;
    ensure!(line.split_whitespace().skip(4).take(2).eq(["0", "0"]), "{process}: {line}");
    Ok(())
}

/// What a program said on its standard error holds the secret neither as text nor as numbers.
fn logged_without(site: &Site, instance: &str, secret: &str) -> Result<()> {
    let log = fs::read_to_string(site.artifacts().join(format!("{instance}.log")))?;
    if site.log_level.is_some() && instance != "mediator" {
        ensure!(log.contains("TRACE"), "{instance} does not say all that it can");
    }
    let each = |form: fn(&u8) -> String, between| {
        secret.bytes().map(|byte| form(&byte)).collect::<Vec<_>>().join(between)
    };
    let forms =
        [secret.to_owned(), each(|b| b.to_string(), ", "), each(|b| format!("{b:02x}"), "")];
    for form in forms {
        ensure!(!log.contains(&form), "the log of {instance} tells it");
    }
    Ok(())
}

/// The records of a session say all that design and auditors ask for: who, by what right, why, from
/// where, on what, with which application and credential, by which way, how much, when, and how it
/// ended. Gives them.
fn every_field(site: &Site, session: &str) -> Result<Vec<Value>> {
    let of_session = |e: &Value| text(e, "session_id") == session;
    site.audited("the end", |e| of_session(e) && text(e, "event") == "session.ended")?;
    let mut records: Vec<Value> = site.audit()?.into_iter().filter(of_session).collect();
    records.sort_by_key(|e| e["seq"].as_u64());
    let computer = site.ask("console", &["computers", "agent", "--json"], "")?;
    for record in &records {
        ensure!(record["seq"].is_u64() && record["level"].is_u64(), "{record}");
        ensure!(text(record, "time").ends_with('Z'), "{record}");
        for (key, value) in [
            ("partner", site.partner.as_str()),
            ("client", &site.client()),
            ("actor", &site.admin.0),
            ("computer", "agent"),
            ("computer_id", text(&computer, "computer_id")),
            ("redirector", "ssh"),
        ] {
            ensure!(text(record, key) == value, "{key}: {record}");
        }
        ensure!(text(record, "device").starts_with("sha256:"), "{record}");
        ensure!(text(record, "source").starts_with("127.0.0.1:"), "{record}");
        // What the end that was asked last still had to tell.
        let accounted = text(record, "event") == "session.accounted";
        ensure!(accounted || !text(record, "outcome").is_empty(), "{record}");
    }
    let named = |name: &str| -> Result<&Value> {
        let mut found = records.iter().filter(|e| text(e, "event") == name);
        found.next().with_context(|| format!("no {name}: {records:#?}"))
    };
    let [requested, granted, ended] =
        [named("session.requested")?, named("session.granted")?, named("session.ended")?];
    for record in [requested, granted, ended] {
        for (key, value) in [
            ("viewer", "ssh"),
            ("target", "127.0.0.1:22"),
            ("reason", "disk full"),
            ("ticket", "T-17"),
        ] {
            ensure!(text(record, key) == value, "{key}: {record}");
        }
        ensure!(!text(record, "mfa").is_empty(), "mfa: {record}");
    }
    for record in [granted, ended] {
        ensure!(!text(record, "rule").is_empty(), "rule: {record}");
    }
    // Start and end: two times, and how long it took by a clock that nobody sets.
    ensure!(text(granted, "time") < text(ended, "time"), "{granted} {ended}");
    let summed = named("session.accounted").unwrap_or(ended);
    for key in ["bytes_up", "bytes_down", "duration_ms"] {
        ensure!(summed[key].as_u64().is_some_and(|n| n > 0), "{key}: {summed}");
    }
    ensure!(!text(ended, "end_reason").is_empty(), "{ended}");
    let kinds = ended["carriers"].as_array().context("carriers")?;
    ensure!(kinds.iter().any(|kind| kind == "relayed"), "{ended}");
    // Which relay, and which pair of addresses was chosen.
    let carriers: Vec<_> =
        records.iter().filter(|e| text(e, "event") == "session.carrier").collect();
    ensure!(carriers.iter().any(|e| !text(e, "relay").is_empty()), "no relay: {carriers:#?}");
    ensure!(carriers.iter().any(|e| text(e, "pair").contains(' ')), "no pair: {carriers:#?}");
    let used = named("credential.used")?;
    ensure!(!text(used, "credential_id").is_empty(), "{used}");
    Ok(records)
}

/// The console's viewer: OpenSSH that writes down who it is at the target, and stays a moment.
fn viewer(site: &Site, told: &std::path::Path) -> Result<()> {
    let data = site.data_dir("console");
    let told = told.display();
    let command = format!(
        "[viewers.ssh]\ncommand = [\"ssh\", \"-p{{port}}\", \"-oHostKeyAlias={{alias}}\", \
         \"-oUser={{user}}\", \"-oStrictHostKeyChecking=no\", \"-oUserKnownHostsFile=/dev/null\", \
         \"{{host}}\", \"sleep 1; umask 0; id -un > {told}.part; mv {told}.part {told}; sleep 1\"]\n"
    );
    fs::write(data.join("console-tunnel.toml"), command)?;
    // The target's user writes there.
    let mut folder = site.artifacts();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777))?;
    while let Some(parent) = folder.parent().filter(|parent| parent.starts_with("/tmp")) {
        if fs::metadata(parent)?.permissions().mode() & 0o001 == 0 {
            fs::set_permissions(parent, fs::Permissions::from_mode(0o755))?;
        }
        folder = parent;
    }
    Ok(())
}
