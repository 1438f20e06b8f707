//! Whose certificate is accepted: each program meets the real mediator with a certificate that
//! is wrong in one way, and refuses it (RFC 9525, ASVS 12.3.4).

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use adit_net::tls::RootAuthority;
use adit_protocol::keys::SigningKey;
use adit_tests::{
    process::{run, text},
    site::{POLICY_LOOPBACK, SOON, Site},
};
use anyhow::{Result, ensure};
use tempfile::TempDir;

const DAY_MS: u64 = 86_400_000;
/// Time in which a program that trusts the mediator would be ready long since.
const WOULD_BE_READY: Duration = Duration::from_secs(3);

/// How a certificate is wrong.
#[derive(Clone, Copy, Debug)]
enum Flaw {
    Expired,
    NotYetValid,
    OtherName,
    UnknownAuthority,
    ForClients,
}

#[test]
fn every_program_refuses_a_certificate_with_any_flaw() -> Result<()> {
    let mut site = Site::local("rules-certificates")?;
    site.start()?;
    let dir = site.data_dir("mediator");
    let good = [fs::read(dir.join("server.crt"))?, fs::read(dir.join("server.key"))?];
    for flaw in [
        Flaw::Expired,
        Flaw::NotYetValid,
        Flaw::OtherName,
        Flaw::UnknownAuthority,
        Flaw::ForClients,
    ] {
        site.kill_all();
        spoil(&dir, flaw)?;
        site.restart("mediator")?;
        let (mut agent, mut relay) = (site.spawn_again("agent")?, site.spawn_again("relay")?);
        let done = site.run("console", &["computers", "--json"], "")?;
        let code = done.error_code();
        let untrusted = ["mediator_untrusted", "mediator_key_changed"].contains(&code.as_str());
        ensure!(done.code == 3 && untrusted, "the console, {flaw:?}: {done:?}");
        thread::park_timeout(WOULD_BE_READY);
        for program in [&mut agent, &mut relay] {
            let name = program.name().to_owned();
            // A relay that meets a stranger before anybody else ends; its service starts it again.
            let refuses = program.runs() || program.exit(SOON)?.code() == Some(3);
            ensure!(refuses, "the {name} failed, {flaw:?}");
            let events = program.events();
            let took_it = events.iter().any(|e| text(e, "event") == "ready");
            ensure!(!took_it, "the {name} took it, {flaw:?}: {events:?}");
        }
    }
    // It was the certificate that they refused.
    site.kill_all();
    fs::write(dir.join("server.crt"), &good[0])?;
    fs::write(dir.join("server.key"), &good[1])?;
    site.restart_all(&["mediator", "relay", "agent"])?;
    ensure!(site.run("console", &["computers", "--json"], "")?.code == 0);
    Ok(())
}

/// Puts a certificate with that flaw in the place of the mediator's own.
fn spoil(dir: &Path, flaw: Flaw) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let now = u64::try_from(now)?;
    let root = match flaw {
        Flaw::UnknownAuthority => SigningKey::generate()?,
        _ => SigningKey::from_seed(&seed(dir)?)?,
    };
    let (from, until) = match flaw {
        Flaw::Expired => (now - 9 * DAY_MS, now - DAY_MS),
        Flaw::NotYetValid => (now + DAY_MS, now + 9 * DAY_MS),
        _ => (now - DAY_MS, now + 9 * DAY_MS),
    };
    let host = if matches!(flaw, Flaw::OtherName) { "127.0.0.2" } else { "127.0.0.1" };
    let authority = RootAuthority::new(&root)?;
    let issued = authority.issue_server_cert(&[host.to_owned()], from, until)?;
    let (chain, key) = if matches!(flaw, Flaw::ForClients) {
        let pem = authority.certificate_pem();
        let (leaf, key) = Authority::of_root(&seed(dir)?, pem)?.issue("clientAuth")?;
        (leaf + pem, key)
    } else {
        (issued.chain_pem.clone(), issued.key_pem.to_string())
    };
    // The mediator goes by this line, and would issue another certificate itself.
    let note = format!("# {} {} 127.0.0.1\n", now - DAY_MS, now + 90 * DAY_MS);
    fs::write(dir.join("server.crt"), note + &chain)?;
    Ok(fs::write(dir.join("server.key"), key)?)
}

/// The seed of the installation's root key.
fn seed(dir: &Path) -> Result<Vec<u8>> {
    let text = fs::read_to_string(dir.join("root.key"))?;
    let digits = text.trim().as_bytes().as_chunks::<2>().0;
    let byte = |d: &[u8; 2]| Ok(u8::from_str_radix(std::str::from_utf8(d)?, 16)?);
    digits.iter().map(byte).collect()
}

/// A public name: a console accepts what the system's authorities vouch for, and goes on
/// refusing everything else; agents and relays go by the installation's root all the same.
#[test]
fn a_console_accepts_a_mediator_that_the_systems_authorities_know() -> Result<()> {
    let mut site = Site::local("rules-authority")?;
    site.start_mediator()?;
    let dir = site.data_dir("mediator");
    let (authority, other) = (Authority::new()?, Authority::new()?);
    let (chain, key) = authority.issue("serverAuth")?;
    let at = |name: &str| dir.join(name).display().to_string();
    fs::write(at("public.pem"), chain)?;
    fs::write(at("public.key"), key)?;
    let config = fs::read_to_string(at("mediator.toml"))?;
    let public =
        format!("certificate = {:?}\nprivate_key = {:?}\n", at("public.pem"), at("public.key"));
    fs::write(at("mediator.toml"), config.replace("[server]\n", &format!("[server]\n{public}")))?;
    site.kill("mediator")?;
    site.restart("mediator")?;

    let (user, password) = &site.admin;
    let login = ["login", &site.url, "--user", user, "--password-stdin", "--json"];
    let trusting = |authority: &Authority, args: &[&str], input: &str| {
        let mut command = site.command("console", args);
        run("console", command.env("SSL_CERT_FILE", authority.file("root.pem")), input)
    };
    let done = trusting(&other, &login, password)?;
    ensure!(done.code == 3 && done.error_code() == "unknown_mediator", "{done:?}");
    let done = trusting(&authority, &login, password)?;
    ensure!(done.code == 0 && done.json()["trust"] == "webpki", "{done:?}");
    let computers = ["computers", "--json"];
    ensure!(trusting(&authority, &computers, "")?.code == 0);
    let done = trusting(&other, &computers, "")?;
    ensure!(done.code == 3 && done.error_code() == "mediator_untrusted", "{done:?}");

    site.start_relay("relay")?;
    site.start_agent("agent", POLICY_LOOPBACK)?;
    // With a flaw it is not accepted from this authority either.
    let (chain, key) = authority.issue("clientAuth")?;
    fs::write(at("public.pem"), chain)?;
    fs::write(at("public.key"), key)?;
    site.process("mediator")?.signal("HUP")?;
    let deadline = Instant::now() + SOON;
    let code = loop {
        let mut command = site.command("console", &computers);
        let bundle = authority.file("root.pem");
        let done = run("console", command.env("SSL_CERT_FILE", bundle), "")?;
        if done.code != 0 || Instant::now() > deadline {
            break done.error_code();
        }
    };
    ensure!(code == "mediator_untrusted", "{code:?}");
    Ok(())
}

/// A certificate authority of another program's making.
struct Authority(TempDir);

impl Authority {
    fn new() -> Result<Self> {
        let made = Self(tempfile::tempdir()?);
        openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=authority \
             -days 30 -keyout {} -out {}",
            made.file("root.key"),
            made.file("root.pem")
        ))?;
        Ok(made)
    }

    /// Around an installation's root key.
    fn of_root(seed: &[u8], pem: &str) -> Result<Self> {
        /// PKCS #8 around an Ed25519 seed (RFC 8410 §7).
        const PKCS8: [u8; 16] =
            [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        let made = Self(tempfile::tempdir()?);
        fs::write(made.file("root.der"), [&PKCS8[..], seed].concat())?;
        fs::write(made.file("root.pem"), pem)?;
        openssl(&format!(
            "pkey -inform DER -in {} -out {}",
            made.file("root.der"),
            made.file("root.key")
        ))?;
        Ok(made)
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Certificate and key for 127.0.0.1, for that purpose.
    fn issue(&self, usage: &str) -> Result<(String, String)> {
        let extensions = format!(
            "subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\nkeyUsage=digitalSignature\n"
        );
        fs::write(self.file("extensions"), extensions)?;
        openssl(&format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=127.0.0.1 \
             -keyout {} -out {}",
            self.file("leaf.key"),
            self.file("leaf.csr")
        ))?;
        openssl(&format!(
            "x509 -req -in {} -CA {} -CAkey {} -set_serial 7 -days 30 -extfile {} -out {}",
            self.file("leaf.csr"),
            self.file("root.pem"),
            self.file("root.key"),
            self.file("extensions"),
            self.file("leaf.pem")
        ))?;
        Ok((fs::read_to_string(self.file("leaf.pem"))?, fs::read_to_string(self.file("leaf.key"))?))
    }
}

fn openssl(words: &str) -> Result<()> {
    let done = run("openssl", Command::new("openssl").args(words.split_whitespace()), "")?;
    ensure!(done.code == 0, "openssl {words}: {}", done.stderr);
    Ok(())
}
