//! `cargo xtask paths`: which networks reach each other directly, and what changes of a network do
//! to a session; writes the tables of `docs/paths.md`.
//!
//! The measuring itself is in the package `adit-tests`, so that this tool stays quick to compile.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{process, test};

/// Builds the four programs and runs what was asked for. Success means that the oracle was met.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    if !cfg!(target_os = "linux") {
        bail!("the laboratories need Linux: network namespaces, TUN devices");
    }
    // Before minutes of building, not after them.
    if process::output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!(
            "the laboratories need root (network namespaces): \
             sudo -E env \"PATH=$PATH\" cargo xtask paths"
        );
    }
    let release = args.iter().any(|a| a == "--release");
    let hard = args.iter().any(|a| a == "--hard");
    let rest = args.iter().filter(|a| *a != "--release" && *a != "--hard");
    let profile: &[&str] = if release { &["--release"] } else { &[] };
    test::build(&[profile, &["--package", "adit-tests"]].concat())?;
    let folder = process::target_dir().join(if release { "release" } else { "debug" });
    let mut command = Command::new(folder.join("adit-paths"));
    command.args(hard.then_some("hard")).args(rest);
    command.arg("--docs").arg(process::root().join("docs/paths.md"));
    command.env("ADIT_BIN_DIR", &folder).env("ADIT_E2E_DIR", process::target_dir().join("e2e"));
    let status =
        command.status().with_context(|| format!("cannot start {}", process::text(&command)))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
