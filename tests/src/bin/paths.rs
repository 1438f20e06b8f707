//! `adit-paths`: the matrix of networks, the hard pairs often, and changes of a network, for
//! `cargo xtask paths`.

use std::{fs, path::PathBuf, process::ExitCode};

use adit_tests::paths::{
    changes, docs, hard,
    matrix::{self, Options},
    oracle, truth,
};
use anyhow::{Context as _, Result, bail};

/// Runs of each representative of the hard class.
const HARD_RUNS: u64 = 100;

struct Args {
    options: Options,
    only: Vec<String>,
    what: Option<String>,
    json: Option<PathBuf>,
    docs: Option<PathBuf>,
    runs: u64,
    long: bool,
    others: bool,
}

fn main() -> Result<ExitCode> {
    let args = parse()?;
    let misses = match args.what.as_deref() {
        Some("matrix") => pairs(&args)?,
        Some("changes") => scenes(&args)?,
        Some("hard") => luck(&args)?,
        Some("oracle") => theory(&args),
        Some("netcheck") => told(&args)?,
        None => [pairs(&args)?, scenes(&args)?, told(&args)?].concat(),
        Some(other) => bail!("oracle, matrix, changes, netcheck or hard, not {other}"),
    };
    for miss in &misses {
        println!("MISSED {miss}");
    }
    println!("{} missed", misses.len());
    Ok(if misses.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn parse() -> Result<Args> {
    let options = Options { jobs: 6, seed: 1, retries: 0, log_level: None };
    let mut found = Args {
        options,
        only: Vec::new(),
        what: None,
        json: None,
        docs: None,
        runs: HARD_RUNS,
        long: false,
        others: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--jobs" => found.options.jobs = value()?.parse()?,
            "--seed" => found.options.seed = value()?.parse()?,
            "--retries" => found.options.retries = value()?.parse()?,
            "--log-level" => found.options.log_level = Some(value()?),
            "--json" => found.json = Some(value()?.into()),
            "--docs" => found.docs = Some(value()?.into()),
            "--runs" => found.runs = value()?.parse()?,
            "--long" => found.long = true,
            "--others" => found.others = true,
            word if word.starts_with('-') => bail!("no such option: {word}"),
            word if found.what.is_none() => found.what = Some(word.to_owned()),
            word => found.only.push(word.to_owned()),
        }
    }
    Ok(found)
}

impl Args {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|o| matches(o, name))
    }

    fn write(&self, part: &str, text: &str) -> Result<()> {
        match &self.docs {
            // What is only a part of the whole is not written down.
            Some(file) if self.only.is_empty() => docs::replace(file, part, text),
            _ => Ok(()),
        }
    }
}

fn pairs(args: &Args) -> Result<Vec<String>> {
    let cases = oracle::cases().into_iter().filter(|c| args.wants(&c.scenario)).collect();
    let report = matrix::run("paths", cases, &args.options)?;
    println!("{}\n{}", report.matrix(), report.times());
    if let Some(file) = &args.json {
        let lines: Vec<_> =
            report.results.iter().map(|(case, o)| o.json(case).to_string()).collect();
        fs::write(file, lines.join("\n"))?;
    }
    args.write("oracle", &oracle::reasons())?;
    args.write("matrix", &report.markdown())?;
    args.write("times", &report.times())?;
    Ok(report.misses())
}

fn scenes(args: &Args) -> Result<Vec<String>> {
    let mut scenes = changes::scenes();
    scenes.retain(|s| args.wants(s.name) && (args.long || !s.long || !args.only.is_empty()));
    let report = changes::run("changes", scenes, &args.options)?;
    println!("{}in {:.0} s", report.table(), report.took.as_secs_f32());
    args.write("changes", &report.table())?;
    Ok(report.misses())
}

/// What is expected of each pair, and why; no laboratory is needed.
fn theory(args: &Args) -> Vec<String> {
    for case in oracle::cases().iter().filter(|c| args.wants(&c.scenario)) {
        println!("{:48} {:10} {}", case.scenario, case.verdict.class, case.verdict.why);
    }
    Vec::new()
}

fn luck(args: &Args) -> Result<Vec<String>> {
    let (table, problems) = hard::run("hard", args.runs, args.others, &args.only, &args.options)?;
    println!("{table}");
    args.write("hard", &table)?;
    Ok(problems)
}

/// What `netcheck` says of each kind.
fn told(args: &Args) -> Result<Vec<String>> {
    let truths = truth::TRUTHS.iter().filter(|t| args.wants(t.kind)).copied().collect();
    let report = truth::run("netcheck", truths, &args.options)?;
    println!("{}", report.table());
    args.write("netcheck", &report.table())?;
    Ok(report.misses())
}

/// `*` stands for one side, or for the rest of a name.
fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.split_once('+'), name.split_once('+')) {
        (Some(("*", agent)), Some((_, a))) => a == agent,
        (Some((console, "*")), Some((c, _))) => c == console,
        _ => pattern == name || pattern.strip_suffix('*').is_some_and(|p| name.starts_with(p)),
    }
}
