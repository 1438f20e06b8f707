//! Finds the commit for `--version`. Must never fail a build: without git it says "unknown".

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=ADIT_COMMIT");
    println!("cargo:rerun-if-changed=build.rs");
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && std::path::Path::new(&head).exists()
    {
        // Changes with each commit, so that the stamp is not stale; an absent path would make
        // every build run this again.
        println!("cargo:rerun-if-changed={head}");
    }
    let commit = std::env::var("ADIT_COMMIT")
        .ok()
        .filter(|commit| !commit.is_empty())
        .or_else(|| git(&["rev-parse", "--short=12", "HEAD"]))
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=ADIT_COMMIT={commit}");
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty() && !text.contains('\n')).then(|| text.to_owned())
}
