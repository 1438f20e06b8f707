//! Debian's Chromium, driven over one line of JSON a command (`tests/browser/driver.mjs`), and an
//! identity provider for it. Both end with the test.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::process::text;

/// Time for an answer: commands have limits of their own, which are shorter.
const ANSWER: Duration = Duration::from_secs(120);

/// A script of `tests/browser` that answers lines.
struct Script {
    child: Child,
    input: ChildStdin,
    /// Its lines; a thread reads them, which ends with the script.
    output: Receiver<String>,
}

impl Script {
    fn start(name: &str, args: &[&str], variables: &[(&str, &str)]) -> Result<(Self, Value)> {
        let directory = modules()?;
        let mut command = Command::new("node");
        command.arg(directory.join(name)).args(args).envs(variables.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start node")?;
        let input = child.stdin.take().context("stdin")?;
        let lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let (to, output) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| to.send(line)));
        let mut script = Self { child, input, output };
        let first = script.line()?;
        Ok((script, first))
    }

    fn line(&mut self) -> Result<Value> {
        let line = self.output.recv_timeout(ANSWER).context("the script ended or hangs")?;
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `tests/browser` with its packages, which `cargo xtask test` installs.
fn modules() -> Result<PathBuf> {
    let directory = match std::env::var_os("ADIT_BROWSER_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("browser"),
    };
    let there = directory.join("node_modules/playwright-core").exists();
    ensure!(there, "{}: npm ci was not run", directory.display());
    Ok(directory)
}

/// A browser with a profile of its own.
pub struct Browser(Script);

impl Browser {
    /// Trusts the certificate whose key has this hash (base64 of SHA-256), and no other.
    pub fn start(profile: &Path, spki: &str) -> Result<Self> {
        let profile = profile.to_str().context("path")?;
        let (script, ready) = Script::start("driver.mjs", &[profile, spki], &[])?;
        ensure!(ready.get("ready").is_some(), "the browser did not start: {ready}");
        Ok(Self(script))
    }

    /// Does one command.
    pub fn tell(&mut self, command: &Value) -> Result<Value> {
        writeln!(self.0.input, "{command}")?;
        let answer = self.0.line()?;
        if let Some(error) = answer.get("error") {
            let seen = if text(command, "do") == "see" { Value::Null } else { self.see_all()? };
            bail!("{command}: {error}\nthe page is {seen}");
        }
        Ok(answer.get("ok").cloned().unwrap_or_default())
    }

    fn see_all(&mut self) -> Result<Value> {
        self.tell(&json!({"do": "see"}))
    }

    /// Opens an address.
    pub fn goto(&mut self, url: &str) -> Result<()> {
        self.tell(&json!({"do": "goto", "url": url})).map(drop)
    }

    /// Types into a field.
    pub fn fill(&mut self, selector: &str, value: &str) -> Result<()> {
        self.tell(&json!({"do": "fill", "selector": selector, "value": value})).map(drop)
    }

    /// Clicks what leads to another page.
    pub fn click(&mut self, selector: &str) -> Result<()> {
        self.tell(&json!({"do": "click", "selector": selector})).map(drop)
    }

    /// Waits until something is there.
    pub fn wait(&mut self, selector: &str) -> Result<()> {
        self.tell(&json!({"do": "wait", "selector": selector})).map(drop)
    }

    /// The page's text; it must hold this.
    pub fn see(&mut self, wanted: &str) -> Result<String> {
        let seen = self.see_all()?;
        let found = text(&seen, "text").to_owned();
        ensure!(found.contains(wanted), "the page lacks {wanted:?}: {seen}");
        Ok(found)
    }

    /// Where it is.
    pub fn url(&mut self) -> Result<String> {
        Ok(text(&self.see_all()?, "url").to_owned())
    }

    /// A picture in both colour schemes, for people.
    pub fn shot(&mut self, directory: &Path, name: &str) -> Result<()> {
        for scheme in ["dark", "light"] {
            let file = directory.join(format!("{name}-{scheme}.png"));
            self.tell(&json!({"do": "scheme", "scheme": scheme}))?;
            self.tell(&json!({"do": "shot", "file": file}))?;
        }
        Ok(())
    }
}

/// An identity provider.
pub struct Provider {
    _script: Script,
    /// Its address.
    pub issuer: String,
}

impl Provider {
    /// With one client `adit`.
    pub fn start(
        (certificate, key): (&Path, &Path),
        redirect: &str,
        secret: &str,
        algorithm: &str,
    ) -> Result<Self> {
        let (certificate, key) =
            (certificate.to_str().context("path")?, key.to_str().context("path")?);
        let args = [certificate, key, redirect, secret];
        let (script, told) =
            Script::start("provider.mjs", &args, &[("ADIT_ID_TOKEN_ALG", algorithm)])?;
        let issuer = text(&told, "issuer").to_owned();
        ensure!(!issuer.is_empty(), "no provider: {told}");
        Ok(Self { _script: script, issuer })
    }
}
