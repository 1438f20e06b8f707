//! No secret and no token in logs, audit, metrics, errors or arguments, at the most talkative
//! level (ASVS 14.2.1, 16.2.5).

use std::{
    cell::RefCell,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
};

use adit_tests::{
    peer::TcpServer,
    process::{Finished, text},
    site::{POLICY_LOOPBACK, READY, SOON, Site, free_tcp_port, to_port},
};
use anyhow::{Result, ensure};

const PASSWORD: &str = "seeded-password-of-bea-4711";
const GUESS: &str = "seeded-guess-at-the-password-0815";
const PLAINTEXT: &str = "seeded-words-inside-the-tunnel-1337";
/// What is shorter would be found by chance.
const SHORTEST: usize = 16;
/// Endings of the files that hold secrets, as text or bytes.
const SECRET_FILES: &[&str] = &[".key", ".token"];

/// Runs commands and keeps what they say.
struct Ear<'a> {
    site: &'a Site,
    heard: RefCell<Vec<(String, Vec<u8>)>>,
}

impl Ear<'_> {
    fn run(&self, instance: &str, args: &[&str], input: &str) -> Result<Finished> {
        let done = self.site.run(instance, args, input)?;
        let name = format!("{instance} {}", args.join(" "));
        self.keep(&name, format!("{}{}", done.stdout, done.stderr).into_bytes());
        Ok(done)
    }

    /// Runs a command whose output is a secret: only what it says besides counts.
    fn make(&self, args: &[&str]) -> Result<String> {
        let done = self.site.run("mediator", args, "")?;
        ensure!(done.code == 0, "{args:?}: {}", done.stderr);
        self.keep(&args.join(" "), done.stderr.clone().into_bytes());
        Ok(text(&done.json(), "token").to_owned())
    }

    fn keep(&self, name: &str, bytes: Vec<u8>) {
        self.heard.borrow_mut().push((name.to_owned(), bytes));
    }
}

#[test]
fn no_secret_is_ever_told() -> Result<()> {
    let mut site = Site::local("rules-secrets")?;
    site.log_level = Some("trace".to_owned());
    site.start_mediator()?;
    let metrics = free_tcp_port()?;
    let config = site.data_dir("mediator").join("mediator.toml");
    let with_metrics =
        fs::read_to_string(&config)? + &format!("\n[metrics]\nlisten = \"127.0.0.1:{metrics}\"\n");
    fs::write(config, with_metrics)?;
    site.kill("mediator")?;
    site.restart("mediator")?;
    let mut secrets = [PASSWORD, GUESS, PLAINTEXT, &site.admin.1].map(|s| s.into()).to_vec();
    let heard = scenario(&mut site, &mut secrets)?;
    let ear = Ear { site: &site, heard: RefCell::new(heard) };
    for format in ["jsonl", "csv", "cef", "ocsf"] {
        let done = ear.run("mediator", &["audit", "export", "--format", format], "")?;
        ensure!(done.code == 0 && done.stdout.contains("session.granted"), "{format}: {done:?}");
    }
    ear.keep("metrics", page(metrics, "/metrics")?);
    for (instance, process) in &site.running {
        ear.keep(
            &format!("arguments of {instance}"),
            fs::read(format!("/proc/{}/cmdline", process.id()))?,
        );
    }
    let kept = ear.heard.into_inner();
    for instance in ["mediator", "relay", "agent", "console"] {
        collect(&site.data_dir(instance), &mut secrets)?;
    }
    ensure!(secrets.len() > 10, "too few secrets to look for: {}", secrets.len());
    site.stop_all();
    let mut told = kept;
    for log in fs::read_dir(site.artifacts())?.flatten() {
        told.push((log.path().display().to_string(), fs::read(log.path())?));
    }
    // The mediator keeps hashes, not what it is given.
    let database = fs::read(site.data_dir("mediator").join("mediator.db"))?;
    let talk: usize = told.iter().map(|(_, bytes)| bytes.len()).sum();
    ensure!(talk > 100_000, "only {talk} bytes were told: is the level trace?");
    let only_hashed = [PASSWORD, GUESS, &site.admin.1];
    for form in only_hashed.iter().flat_map(|s| forms(s.as_bytes())) {
        ensure!(!holds(&database, &form), "the database holds {}", String::from_utf8_lossy(&form));
    }
    for secret in &secrets {
        for form in forms(secret) {
            for (place, bytes) in &told {
                ensure!(
                    !holds(bytes, &form),
                    "{place} tells {:?} as {:?}",
                    String::from_utf8_lossy(secret),
                    String::from_utf8_lossy(&form)
                );
            }
        }
    }
    Ok(())
}

/// Everything that handles secrets, once.
fn scenario(site: &mut Site, secrets: &mut Vec<Vec<u8>>) -> Result<Vec<(String, Vec<u8>)>> {
    let client = site.client();
    let relay = free_tcp_port()?.to_string();
    let (url, fingerprint) = (site.url.clone(), site.fingerprint.clone());
    let at = format!("127.0.0.1:{relay}");
    let ear = Ear { site, heard: RefCell::default() };
    let relay_token = ear.make(&["token", "relay", "--json"])?;
    let agent_token = ear.make(&["token", "agent", "--client", &client, "--json"])?;
    let join = ["join", "-", "--advertise", &at, "--json"];
    ensure!(ear.run("relay", &join, &relay_token)?.code == 0);
    let enroll = ["enroll", "-", "--name", "agent", "--json"];
    ensure!(ear.run("agent", &enroll, &agent_token)?.code == 0);
    ensure!(ear.run("agent-second", &enroll, &agent_token)?.code == 3, "the token is spent");
    secrets.extend([relay_token, agent_token].map(String::into_bytes));
    let add = ["user", "add", "bea", "--password-stdin", "--json"];
    ensure!(ear.run("mediator", &add, PASSWORD)?.code == 0);
    ensure!(ear.run("mediator", &["user", "mfa", "optional", "bea"], "")?.code == 0);
    let login = ["login", &url, "--user", "bea", "--password-stdin", "--fingerprint", &fingerprint];
    ensure!(ear.run("console", &login, GUESS)?.code == 3);
    let done = ear.run("console", &login, PASSWORD)?;
    ensure!(done.code == 0, "{done:?}");
    for instance in ["mediator", "relay", "agent", "console"] {
        ensure!(ear.run(instance, &["config", "show"], "")?.code == 0);
    }
    let heard = ear.heard.into_inner();

    fs::write(site.data_dir("agent").join("policy.toml"), POLICY_LOOPBACK)?;
    site.serve("relay", &["serve", "--listen", &at, "--json"])?;
    site.serve("agent", &["run", "--json"])?;
    let server = TcpServer::start("127.0.0.1:0")?;
    let mut forward = site.forward(&["-L", &to_port(server.port())])?;
    forward.wait_active("direct", READY)?;
    let mut stream = TcpStream::connect(forward.local()?)?;
    stream.set_read_timeout(Some(SOON))?;
    write!(stream, "echo\n{PLAINTEXT}")?;
    stream.read_exact(&mut [0; PLAINTEXT.len()])?;
    drop(stream);
    forward.close()?;
    Ok(heard)
}

/// All secrets in a data directory.
fn collect(dir: &Path, secrets: &mut Vec<Vec<u8>>) -> Result<()> {
    let before = secrets.len();
    for entry in fs::read_dir(dir)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if SECRET_FILES.iter().any(|ending| name.ends_with(ending)) {
            let content = fs::read(entry.path())?;
            match std::str::from_utf8(&content) {
                // Without the lines around PEM.
                Ok(text) => secrets.extend(
                    text.lines().filter(|l| !l.starts_with('-')).map(|l| l.as_bytes().to_vec()),
                ),
                Err(_) => secrets.push(content),
            }
        }
    }
    secrets.retain(|s| s.len() >= SHORTEST);
    ensure!(secrets.len() > before, "{} holds no secret that we know", dir.display());
    Ok(())
}

/// A secret as itself, in digits, as a list of numbers, and as the bytes that its digits mean.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let list = |bytes: &[u8]| {
        bytes.iter().take(SHORTEST).map(u8::to_string).collect::<Vec<_>>().join(", ").into_bytes()
    };
    let mut forms = vec![secret.to_vec(), list(secret)];
    forms.extend([hex(secret).into_bytes(), hex(secret).to_uppercase().into_bytes()]);
    let byte = |d: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = secret.as_chunks::<2>().0.iter().map(byte).collect();
    if let Some(bytes) = bytes.filter(|b| b.len() >= SHORTEST) {
        forms.extend([list(&bytes), bytes]);
    }
    forms
}

fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|w| w == wanted)
}

fn page(port: u16, path: &str) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(SOON))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut page = Vec::new();
    stream.read_to_end(&mut page)?;
    ensure!(page.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&page));
    Ok(page)
}
