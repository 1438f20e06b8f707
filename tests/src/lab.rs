//! A natlab laboratory: console and agent behind NATs, mediator and relays on a public network.
//! See `tests/natlab/README.md`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process::{run, text};

/// Address of the host that the mediator runs on.
pub const MED1: &str = "203.0.113.10";
/// Address of the host that the first relay runs on.
pub const RELAY1: &str = "203.0.113.30";
/// Address of the host that the second relay runs on.
pub const RELAY2: &str = "203.0.113.40";

/// A laboratory that is up; dropping it takes it down.
pub struct Lab {
    name: String,
    info: Value,
}

impl Lab {
    /// Starts a scenario; with `pcap`, records all that crosses the public network.
    pub fn up(scenario: &str, pcap: Option<&Path>) -> Result<Self> {
        let mut command = natlab();
        command.args(["up", "--owner", &std::process::id().to_string()]);
        if let Some(pcap) = pcap {
            command.arg("--pcap").arg(pcap);
        }
        let done = run("natlab up", command.arg(scenario), "")?;
        if done.code != 0 {
            bail!("natlab up {scenario}: {}{}", done.stdout, done.stderr);
        }
        let info: Value = serde_json::from_str(&done.stdout).context("natlab up")?;
        Ok(Self { name: text(&info, "lab").to_owned(), info })
    }

    /// What natlab said about hosts and addresses.
    pub fn info(&self) -> &Value {
        &self.info
    }

    /// A command on a host; it replaces itself, so that its process id is the program's.
    pub fn on(&self, host: &str, command: &Command) -> Command {
        let mut inside = natlab();
        inside.args(["--lab", &self.name, "exec", host, "--"]);
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    /// Changes the network while it runs, such as `set agent-nat allow=no-udp`.
    pub fn ctl(&self, words: &[&str]) -> Result<String> {
        let mut command = natlab();
        let done = run("natlab ctl", command.args(["--lab", &self.name, "ctl"]).args(words), "")?;
        if done.code != 0 {
            bail!("natlab ctl {words:?}: {}{}", done.stdout, done.stderr);
        }
        Ok(done.stdout)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = run("natlab down", natlab().args(["down", &self.name]), "");
    }
}

fn natlab() -> Command {
    Command::new(folder().join("natlab/natlab"))
}

/// The folder `tests`.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
