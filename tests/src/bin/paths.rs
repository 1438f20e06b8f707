//! `adit-paths`: the matrix of networks and the changes of a network, for `cargo xtask paths`.

use std::{fs, process::ExitCode};

use adit_tests::paths::{
    matrix::{self, Options},
    oracle,
};
use anyhow::{Context as _, Result, bail};

fn main() -> Result<ExitCode> {
    let mut options = Options { jobs: 8, seed: 1, retries: 0, log_level: None };
    let (mut only, mut json) = (Vec::new(), None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--jobs" => options.jobs = value()?.parse()?,
            "--seed" => options.seed = value()?.parse()?,
            "--retries" => options.retries = value()?.parse()?,
            "--log-level" => options.log_level = Some(value()?),
            "--json" => json = Some(value()?),
            word if word.starts_with('-') => bail!("no such option: {word}"),
            scenario => only.push(scenario.to_owned()),
        }
    }
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| matches(o, name));
    let cases = oracle::cases().into_iter().filter(|c| wanted(&c.scenario)).collect();
    let report = matrix::run("paths", cases, &options)?;
    println!("{}", report.matrix());
    let misses = report.misses();
    for miss in &misses {
        println!("MISSED {miss}");
    }
    if let Some(file) = json {
        let lines: Vec<_> =
            report.results.iter().map(|(case, o)| o.json(case).to_string()).collect();
        fs::write(file, lines.join("\n"))?;
    }
    println!("{} missed", misses.len());
    Ok(if misses.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `*` stands for one side.
fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.split_once('+'), name.split_once('+')) {
        (Some(("*", agent)), Some((_, a))) => a == agent,
        (Some((console, "*")), Some((c, _))) => c == console,
        _ => pattern == name || pattern.strip_suffix('*').is_some_and(|p| name.starts_with(p)),
    }
}
