//! `cargo xtask ci`: the checks that need no root, each with a name, all of them able to fail.
//!
//! A check gives the list of its findings, not the first one. What a check must never do is
//! change the tree.

mod advisories;
mod decisions;
mod deny;
mod edges;
mod error_codes;
pub(crate) mod graph;
mod rules;
mod scan;
mod sources;
mod spdx;
mod tidy;
mod unused;
mod wire;

use std::time::Instant;

use anyhow::{Result, bail};

use crate::process;

/// What a check found: nothing means that it holds.
type Findings = Vec<String>;

struct Check {
    name: &'static str,
    run: fn() -> Result<Findings>,
}

/// Quick ones first, so that a slip is told before the compiler has started.
const CHECKS: &[Check] = &[
    Check { name: "fmt", run: fmt },
    Check { name: "tidy", run: || Ok(tidy::check(&sources::load()?)) },
    Check { name: "error-codes", run: || Ok(error_codes::check(&sources::load()?)) },
    Check { name: "rules", run: || Ok(rules::check(&sources::load()?)) },
    Check { name: "wire", run: wire::check },
    Check { name: "decisions", run: || Ok(decisions::check(&sources::load()?)) },
    Check { name: "edges", run: || Ok(edges::check(&graph::Graph::load(None)?)) },
    Check { name: "unused", run: unused::check_workspace },
    Check { name: "deny", run: deny::check_workspace },
    Check { name: "advisories", run: advisories::check_workspace },
    Check { name: "sbom", run: crate::sbom::check },
    Check { name: "typos", run: typos },
    Check { name: "clippy", run: clippy },
    Check { name: "rustdoc", run: rustdoc },
];

/// Runs the named checks, or all; prints one line each; fails if any found something.
pub(crate) fn run(names: &[String]) -> Result<()> {
    if let [check, options @ ..] = names
        && check == "advisories"
        && options.first().is_some_and(|option| option.starts_with("--"))
    {
        return advisories::run(options);
    }
    let (passed, failed) = run_counted(names)?;
    if failed > 0 {
        bail!("{failed} of {} checks failed", passed + failed);
    }
    Ok(())
}

/// As [`run`], giving how many checks passed and failed.
pub(crate) fn run_counted(names: &[String]) -> Result<(usize, usize)> {
    if let Some(name) = names.iter().find(|n| !CHECKS.iter().any(|c| c.name == n.as_str())) {
        let known: Vec<_> = CHECKS.iter().map(|c| c.name).collect();
        bail!("no such check: {name}; there are {}", known.join(", "));
    }
    let (mut passed, mut failed) = (0, 0);
    for check in CHECKS.iter().filter(|c| names.is_empty() || names.iter().any(|n| n == c.name)) {
        let start = Instant::now();
        let findings = (check.run)().unwrap_or_else(|error| vec![format!("{error:#}")]);
        let seconds = start.elapsed().as_secs_f32();
        if findings.is_empty() {
            passed += 1;
            println!("ok    {:<12} {seconds:6.1} s", check.name);
        } else {
            failed += 1;
            println!("FAIL  {:<12} {seconds:6.1} s", check.name);
            for finding in findings {
                println!("      {}", finding.replace('\n', "\n      "));
            }
        }
    }
    Ok((passed, failed))
}

fn fmt() -> Result<Findings> {
    process::cargo(&["fmt", "--all", "--check"])?;
    Ok(Vec::new())
}

fn clippy() -> Result<Findings> {
    let common = ["clippy", "--quiet", "--locked", "--all-targets"];
    process::cargo(&[&common[..], &["--workspace", "--", "-D", "warnings"]].concat())?;
    // The end-to-end tests are behind a feature, so that a plain `cargo test` needs no root.
    let e2e = ["--package", "adit-tests", "--features", "e2e", "--", "-D", "warnings"];
    process::cargo(&[&common[..], &e2e].concat())?;
    Ok(Vec::new())
}

fn rustdoc() -> Result<Findings> {
    let args = ["doc", "--quiet", "--locked", "--workspace", "--no-deps"];
    let flags = std::env::var("RUSTDOCFLAGS").unwrap_or_default();
    let mut command = process::cargo_command();
    command.env("RUSTDOCFLAGS", format!("{flags} -D warnings"));
    process::run(command.args(args).arg("--document-private-items"))?;
    Ok(Vec::new())
}

/// Spelling, where the `typos` program is installed; its configuration is `typos.toml`.
fn typos() -> Result<Findings> {
    if process::on_path("typos") {
        process::run(std::process::Command::new("typos").current_dir(process::root()))?;
    } else {
        println!("note  typos is not installed: spelling is not checked here");
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_unknown_checks() {
        let error = run(&["nonsense".into()]).unwrap_err().to_string();
        assert!(error.contains("nonsense") && error.contains("edges"), "{error}");
    }
}
