//! A real rsyslog receives the audit log over TLS, with each of its two drivers. It goes away and
//! comes back, the mediator is killed meanwhile: what it stored is the log, whole and in order.

#![allow(clippy::indexing_slicing, reason = "JSON values give null for what is not there")]

use std::{
    fs,
    io::Write as _,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use adit_ledger::{Entry, MerkleTree, SignedHead};
use adit_tests::{
    process::{pause, run},
    site::{SOON, Site, free_tcp_port},
};
use anyhow::{Context as _, Result, ensure};

/// Between looks at what arrived.
const LOOK: Duration = Duration::from_millis(100);

/// One that stores what is between the structured data and the end of each message.
struct Rsyslog {
    dir: tempfile::TempDir,
    port: u16,
    running: Option<Child>,
}

impl Rsyslog {
    /// With this driver for TLS, and what its module wants to be told beside.
    fn new(driver: &str, more: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name).display().to_string();
        let mut openssl = Command::new("openssl");
        openssl
            .args(["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec", "-pkeyopt"])
            .args(["ec_paramgen_curve:P-256", "-subj", "/CN=127.0.0.1", "-addext"])
            .args(["subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", &at("key.pem"), "-out"])
            .arg(at("ca.pem"));
        let made = run("openssl", &openssl, "")?;
        ensure!(made.code == 0, "openssl: {}", made.stderr);
        let port = free_tcp_port()?;
        fs::write(
            dir.path().join("rsyslog.conf"),
            format!(
                "global(workDirectory=\"{}\" maxMessageSize=\"128k\"\n\
                 DefaultNetstreamDriver=\"{driver}\" DefaultNetstreamDriverCAFile=\"{}\"\n\
                 DefaultNetstreamDriverCertFile=\"{}\" DefaultNetstreamDriverKeyFile=\"{}\")\n\
                 module(load=\"imtcp\" StreamDriver.Name=\"{driver}\" StreamDriver.Mode=\"1\"\n\
                 StreamDriver.AuthMode=\"anon\" {more})\n\
                 template(name=\"line\" type=\"string\" string=\"%structured-data% %msg%\\n\")\n\
                 input(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\")\n\
                 action(type=\"omfile\" file=\"{}\" template=\"line\")\n",
                dir.path().display(),
                at("ca.pem"),
                at("ca.pem"),
                at("key.pem"),
                at("stored"),
            ),
        )?;
        Ok(Self { dir, port, running: None })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&mut self) -> Result<()> {
        let mut command = Command::new("rsyslogd");
        command.args(["-n", "-f"]).arg(self.file("rsyslog.conf"));
        command.arg("-i").arg(self.file("pid"));
        self.running = Some(command.spawn().context("rsyslogd: cargo xtask test packages")?);
        let deadline = Instant::now() + SOON;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            ensure!(Instant::now() < deadline, "rsyslogd does not listen");
            pause(LOOK);
        }
        Ok(())
    }

    /// Like an administrator: what it has read, it writes.
    fn stop(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            let id = running.id().to_string();
            ensure!(Command::new("kill").arg(id).status()?.success());
            running.wait()?;
        }
        Ok(())
    }

    /// The lines of the log that it stored, each once, in the order in which they came first.
    fn stored(&self) -> Result<Vec<Entry>> {
        let text = fs::read_to_string(self.file("stored")).unwrap_or_default();
        let mut entries: Vec<Entry> = Vec::new();
        for line in text.lines() {
            let (_, line) = line.split_once("] ").with_context(|| line.to_owned())?;
            let entry = Entry::parse(line.trim_start().as_bytes())
                .map_err(|error| anyhow::anyhow!("{error}: {line}"))?;
            match usize::try_from(entry.seq())?.cmp(&entries.len()) {
                std::cmp::Ordering::Equal => entries.push(entry),
                // At least once: the same again.
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Greater => {
                    anyhow::bail!("entry {} came where {} was next", entry.seq(), entries.len())
                }
            }
        }
        Ok(entries)
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.kill();
            let _ = running.wait();
        }
    }
}

fn configure(data_dir: &Path, rsyslog: &Rsyslog, confirm: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new().append(true).open(data_dir.join("mediator.toml"))?;
    let ca = rsyslog.file("ca.pem");
    write!(
        file,
        "\n[audit]\nsyslog = \"127.0.0.1:{}\"\nsyslog_ca = \"{}\"\n\
         syslog_confirm = \"{confirm}\"\n",
        rsyslog.port,
        ca.display()
    )?;
    Ok(())
}

/// The newest head of the log.
fn head(site: &Site) -> Result<SignedHead> {
    let export = site.run("mediator", &["audit", "export", "--format", "jsonl"], "")?;
    let last = export.stdout.lines().last().context("an empty export")?;
    SignedHead::parse(last.as_bytes()).map_err(|error| anyhow::anyhow!("{error}: {last}"))
}

#[test]
fn rsyslog_has_the_whole_log_after_outages() -> Result<()> {
    has_the_whole_log(Rsyslog::new("ossl", "")?, "close_notify")
}

/// Which never says that TLS ends, and by itself speaks no TLS 1.3.
#[test]
fn rsyslog_with_its_other_driver_has_the_whole_log_after_outages() -> Result<()> {
    has_the_whole_log(Rsyslog::new("gtls", "gnutlsPriorityString=\"NORMAL\"")?, "close")
}

fn has_the_whole_log(mut rsyslog: Rsyslog, confirm: &str) -> Result<()> {
    let mut site = Site::local(&format!("syslog-{confirm}"))?;
    site.start_mediator()?;
    site.kill("mediator")?;
    configure(&site.data_dir("mediator"), &rsyslog, confirm)?;
    rsyslog.start()?;
    site.restart("mediator")?;
    let mut clients = 0;
    let mut add = |site: &Site, count: usize| -> Result<()> {
        for _ in 0..count {
            clients += 1;
            let name = format!("{}/client{clients}", site.partner);
            site.ask("mediator", &["client", "add", &name, "--json"], "")?;
        }
        Ok(())
    };
    add(&site, 3)?;
    let has = |rsyslog: &Rsyslog, size: u64| -> Result<()> {
        let deadline = Instant::now() + SOON;
        while (rsyslog.stored()?.len() as u64) < size {
            ensure!(Instant::now() < deadline, "{} of {size} came", rsyslog.stored()?.len());
            pause(LOOK);
        }
        Ok(())
    };
    has(&rsyslog, head(&site)?.size)?;
    // Away while entries are made and the mediator dies; back; away and back at once.
    rsyslog.stop()?;
    add(&site, 5)?;
    site.kill("mediator")?;
    site.restart("mediator")?;
    add(&site, 2)?;
    rsyslog.start()?;
    has(&rsyslog, head(&site)?.size)?;
    add(&site, 2)?;
    rsyslog.stop()?;
    rsyslog.start()?;
    let head = head(&site)?;
    has(&rsyslog, head.size)?;
    // What it stored hashes to the signed head.
    let mut tree = MerkleTree::new();
    for entry in rsyslog.stored()?.iter().take(usize::try_from(head.size)?) {
        tree.append(entry.leaf());
    }
    ensure!((tree.size(), tree.root()) == (head.size, head.root), "not the log's entries");
    Ok(())
}
