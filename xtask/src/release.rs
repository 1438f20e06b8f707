//! `cargo xtask release`: hands over to the package `adit-release`, which signs and verifies, so
//! that this tool stays free of cryptography and quick to compile.

use std::{env, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::process;

/// Runs it with the given arguments, in the directory where they were given: paths among them are
/// relative to it. Gives its exit code.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let mut command = process::cargo_command();
    command.args(["run", "--quiet", "--locked", "--package", "adit-release", "--manifest-path"]);
    command.arg(process::root().join("Cargo.toml")).arg("--").args(args);
    command.current_dir(env::current_dir()?);
    command.env("ADIT_XTASK", env::current_exe()?);
    let status = command.status().context("cannot start cargo")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
