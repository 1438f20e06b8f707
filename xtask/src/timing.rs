//! `cargo xtask timing`: that an unknown user is answered in the time of a known one, as strictly as
//! rule R22 says it: within 5 % over 200 tries.
//!
//! The same test runs in `cargo xtask test` with a tolerance that busy machines keep. This one needs
//! a quiet machine, and builds the mediator as it is shipped.

use std::process::Command;

use anyhow::{Result, bail};

use crate::process;

/// Test binary and test.
const BINARY: &str = "accounts";
const TEST: &str = "unknown_users_and_known_ones_are_answered_in_the_same_time";

/// Runs the test.
pub(crate) fn run(args: &[String]) -> Result<()> {
    if !args.is_empty() {
        bail!("usage: cargo xtask timing");
    }
    println!("==> {TEST}: 5 % over 200 tries; leave the machine alone meanwhile");
    process::run(&mut command())
}

/// By its whole name: others beside it would take the processor from it.
fn command() -> Command {
    let mut test = process::cargo_command();
    test.args(["test", "--locked", "--release", "-p", "adit-mediator", "--features", "timing"]);
    test.args(["--test", BINARY, "--", "--nocapture", "--exact", TEST]);
    test
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A filter that matches nothing succeeds, and a feature that nobody reads changes nothing.
    #[test]
    fn the_strict_form_of_the_test_is_what_is_run() {
        let asked = process::text(&command());
        assert!(
            asked.ends_with(&format!(
                "test --locked --release -p adit-mediator --features timing \
                 --test accounts -- --nocapture --exact {TEST}"
            )),
            "{asked}"
        );
        let file = process::root().join(format!("mediator/tests/{BINARY}.rs"));
        let text = std::fs::read_to_string(file).unwrap();
        let (_, body) = text.split_once(&format!("async fn {TEST}()")).unwrap();
        for strict in ["TRIES: usize = if cfg!(feature = \"timing\") { 200 }", "{ 0.05 }"] {
            assert!(body.contains(strict), "no {strict}");
        }
        let manifest = std::fs::read_to_string(process::root().join("mediator/Cargo.toml"));
        let manifest: toml::Table = manifest.unwrap().parse().unwrap();
        assert!(manifest["features"].get("timing").is_some());
    }
}
