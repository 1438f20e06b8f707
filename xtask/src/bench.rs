//! `cargo xtask bench`: builds what is measured as it is shipped, then runs the benchmarks.
//!
//! The measuring itself is the package `adit-benches`, so that this tool stays quick to compile.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{process, test};

/// Builds the four programs and the bench in release, and runs it with the given arguments.
/// Success means that every bar was met.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    if !cfg!(target_os = "linux") {
        bail!("the benchmarks need Linux: network namespaces, /proc");
    }
    // Before minutes of building, not after them.
    if process::output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!(
            "the benchmarks need root (network namespaces): \
             sudo -E env \"PATH=$PATH\" cargo xtask bench"
        );
    }
    test::build(&["--release", "--package", "adit-benches"])?;
    let bench = process::target_dir().join("release/adit-bench");
    let status = Command::new(&bench)
        .args(args)
        .status()
        .with_context(|| format!("cannot start {}", bench.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
