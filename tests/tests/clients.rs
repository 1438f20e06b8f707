//! Real clients and servers (ssh, VNC, RDP) through `console-tunnel forward`: the recipes of
//! `tests/e2e`, each of which prints PASS only if what was typed arrived.

use std::{process::Command, time::Duration};

use adit_tests::{lab::folder, process::run_within, site::Site};
use anyhow::{Result, ensure};

/// A desktop has to start.
const TIME: Duration = Duration::from_secs(180);

fn recipe(name: &str) -> Result<()> {
    let mut site = Site::local(&format!("client-{name}"))?;
    site.start()?;
    let forward = ["forward", "agent", "-L", "127.0.0.1:%L:127.0.0.1:%R"];
    let forward = site.command("console", &forward);
    let words: Vec<_> = std::iter::once(forward.get_program())
        .chain(forward.get_args())
        .map(|w| w.to_string_lossy().into_owned())
        .collect();
    ensure!(words.iter().all(|w| !w.contains([' ', '\''])), "a path with spaces: {words:?}");
    let dir = site.artifacts().join("run");
    let mut script = Command::new("bash");
    script.arg(folder().join(format!("e2e/{name}.sh")));
    script.env("FWD_CMD", words.join(" ")).env("E2E_DIR", &dir);
    let done = run_within(TIME, name, &script, "")?;
    std::fs::write(site.artifacts().join("recipe.log"), format!("{}{}", done.stdout, done.stderr))?;
    let passed = done.stdout.lines().any(|l| l == format!("PASS {name}"));
    ensure!(done.code == 0 && passed, "{}\n{}", done.stdout, done.stderr);
    Ok(())
}

#[test]
fn ssh_and_scp() -> Result<()> {
    recipe("ssh")
}

#[test]
fn vnc() -> Result<()> {
    recipe("vnc")
}

#[test]
fn rdp() -> Result<()> {
    recipe("rdp")
}
