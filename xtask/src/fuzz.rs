//! `cargo xtask fuzz`: runs the fuzz targets of `tests/fuzz` for a while each.
//!
//! The corpus is replayed by the ordinary tests (`tests/tests/corpus.rs`); this looks for more.

use anyhow::{Context as _, Result, bail};

use crate::process;

const DEFAULT_SECONDS: u32 = 30;

/// Runs the named targets, or all.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut seconds = DEFAULT_SECONDS;
    let mut targets = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seconds" => {
                let value = args.next().context("--seconds needs a number")?;
                seconds = value.parse().with_context(|| format!("not a number: {value}"))?;
            }
            other if other.starts_with('-') => bail!("no such option: {other}"),
            target => targets.push(target.to_owned()),
        }
    }
    if !process::on_path("cargo-fuzz") {
        bail!("cargo-fuzz is not installed: cargo install cargo-fuzz --locked");
    }
    let all = all_targets()?;
    if let Some(unknown) = targets.iter().find(|t| !all.contains(t)) {
        bail!("no such target: {unknown}; there are {}", all.join(", "));
    }
    for target in if targets.is_empty() { &all } else { &targets } {
        println!("==> {target}, {seconds} s");
        let mut fuzz = process::cargo_command();
        // libFuzzer's instrumentation is an unstable option, which this opens on stable.
        fuzz.env("RUSTC_BOOTSTRAP", "1").current_dir(process::root().join("tests/fuzz"));
        fuzz.args(["fuzz", "run", "--fuzz-dir", ".", target]);
        // New finds go to the target directory; what is worth keeping is committed by hand.
        let found = process::target_dir().join("fuzz-corpus").join(target);
        std::fs::create_dir_all(&found)?;
        fuzz.arg(found).arg(format!("corpus/{target}")).args(["--", "-max_len=70000"]);
        process::run(fuzz.arg(format!("-max_total_time={seconds}")))?;
    }
    Ok(())
}

fn all_targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(process::root().join("tests/fuzz/fuzz_targets"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs") {
            names.extend(path.file_stem().map(|s| s.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}
