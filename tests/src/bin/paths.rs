//! `adit-paths`: the matrix of networks and the changes of a network, for `cargo xtask paths`.

use std::{fs, process::ExitCode};

use adit_tests::paths::{
    changes,
    matrix::{self, Options},
    oracle,
};
use anyhow::{Context as _, Result, bail};

fn main() -> Result<ExitCode> {
    let mut options = Options { jobs: 6, seed: 1, retries: 0, log_level: None };
    let (mut only, mut json, mut what) = (Vec::new(), None, None);
    let mut long = false;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--jobs" => options.jobs = value()?.parse()?,
            "--seed" => options.seed = value()?.parse()?,
            "--retries" => options.retries = value()?.parse()?,
            "--log-level" => options.log_level = Some(value()?),
            "--json" => json = Some(value()?),
            "--long" => long = true,
            word if word.starts_with('-') => bail!("no such option: {word}"),
            word if what.is_none() => what = Some(word.to_owned()),
            word => only.push(word.to_owned()),
        }
    }
    match what.as_deref() {
        Some("matrix") => pairs(&only, json, &options),
        Some("changes") => scenes(&only, long, &options),
        other => bail!("matrix or changes, not {other:?}"),
    }
}

fn pairs(only: &[String], json: Option<String>, options: &Options) -> Result<ExitCode> {
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| matches(o, name));
    let cases = oracle::cases().into_iter().filter(|c| wanted(&c.scenario)).collect();
    let report = matrix::run("paths", cases, options)?;
    println!("{}", report.matrix());
    if let Some(file) = json {
        let lines: Vec<_> =
            report.results.iter().map(|(case, o)| o.json(case).to_string()).collect();
        fs::write(file, lines.join("\n"))?;
    }
    Ok(verdict(&report.misses()))
}

fn scenes(only: &[String], long: bool, options: &Options) -> Result<ExitCode> {
    let named = |name: &str| only.iter().any(|o| matches(o, name));
    let mut scenes = changes::scenes();
    scenes.retain(|s| if only.is_empty() { long || !s.long } else { named(s.name) });
    let report = changes::run("changes", scenes, options)?;
    println!("{}in {:.0} s", report.table(), report.took.as_secs_f32());
    Ok(verdict(&report.misses()))
}

fn verdict(misses: &[String]) -> ExitCode {
    for miss in misses {
        println!("MISSED {miss}");
    }
    println!("{} missed", misses.len());
    if misses.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `*` stands for one side, or for the rest of a name.
fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.split_once('+'), name.split_once('+')) {
        (Some(("*", agent)), Some((_, a))) => a == agent,
        (Some((console, "*")), Some((c, _))) => c == console,
        _ => pattern == name || pattern.strip_suffix('*').is_some_and(|p| name.starts_with(p)),
    }
}
