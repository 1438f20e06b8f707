//! All pairs, several laboratories at once, compared with the oracle.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    oracle::{Case, Class, KINDS},
    pair::{Bench, Outcome},
};
use crate::site::artifacts_path;

/// How to run.
pub struct Options {
    /// Laboratories at once.
    pub jobs: usize,
    /// Seed of the laboratories.
    pub seed: u64,
    /// How often a pair that is hard may be tried again.
    pub retries: u64,
    /// Log level of the programs.
    pub log_level: Option<String>,
}

/// What the first byte may take in the median of the pairs, also in programs that are not optimized
/// and on a busy machine.
const FIRST_BYTE: Duration = Duration::from_secs(1);

/// What became of all pairs.
pub struct Report {
    /// In the order of the cases.
    pub results: Vec<(Case, Outcome)>,
    /// How long it took.
    pub took: Duration,
    logs: PathBuf,
}

/// Tries all cases. What failing ones leave is kept in the artifacts directory `test`.
pub fn run(test: &str, cases: Vec<Case>, options: &Options) -> Result<Report> {
    let begin = Instant::now();
    let logs = artifacts_path(test);
    let _ = fs::remove_dir_all(&logs);
    let mut bench = Bench::new(&format!("{test}/setup"))?;
    bench.log_level.clone_from(&options.log_level);
    let queue: Mutex<VecDeque<_>> = Mutex::new(cases.into_iter().enumerate().collect());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..options.jobs)
            .map(|_| scope.spawn(|| work(test, &bench, &queue, &done, options)))
            .collect();
        workers.into_iter().try_for_each(|w| w.join().unwrap_or(Ok(())))
    })?;
    let mut results = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, ..)| *at);
    let results = results.into_iter().map(|(_, case, outcome)| (case, outcome)).collect();
    Ok(Report { results, took: begin.elapsed(), logs })
}

/// Tries one case with many seeds.
pub fn repeat(test: &str, case: &Case, runs: u64, options: &Options) -> Result<Vec<Outcome>> {
    let mut bench = Bench::new(&format!("{test}/setup"))?;
    bench.log_level.clone_from(&options.log_level);
    let seeds = Mutex::new(options.seed..options.seed + runs);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| -> Result<()> {
        let work = || -> Result<()> {
            let server = bench.another()?;
            loop {
                let seed = seeds.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(seed) = seed else { return Ok(()) };
                let name = format!("{test}/{}-{seed}", case.scenario);
                let outcome = bench.try_pair(&server, &name, case, seed);
                if outcome.problems.is_empty() {
                    let _ = fs::remove_dir_all(artifacts_path(&name));
                }
                done.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
            }
        };
        let workers: Vec<_> = (0..options.jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|w| w.join().unwrap_or(Ok(())))
    })?;
    Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner))
}

type Queue = Mutex<VecDeque<(usize, Case)>>;
type Done = Mutex<Vec<(usize, Case, Outcome)>>;

fn work(test: &str, bench: &Bench, queue: &Queue, done: &Done, options: &Options) -> Result<()> {
    let server = bench.another()?;
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some((at, case)) = next else { return Ok(()) };
        let hard = case.verdict.class == Class::Hard;
        let tries = if hard { options.retries + 1 } else { 1 };
        let mut outcome = Outcome::default();
        for n in 0..tries {
            let seed = options.seed + n;
            let name = format!("{test}/{}-{seed}", case.scenario.replace(['/', ':'], "_"));
            outcome = bench.try_pair(&server, &name, &case, seed);
            if outcome.problems.is_empty() {
                let _ = fs::remove_dir_all(artifacts_path(&name));
                break;
            }
        }
        done.lock().unwrap_or_else(PoisonError::into_inner).push((at, case, outcome));
    }
}

impl Report {
    /// What missed the oracle: a paragraph each, none if all is well.
    pub fn misses(&self) -> Vec<String> {
        let missed = self.results.iter().filter(|(_, outcome)| !outcome.problems.is_empty());
        let tell = |(case, outcome): &(Case, Outcome)| {
            let Case { scenario, verdict, .. } = case;
            format!(
                "{scenario} (seed {}): {}; expected {}: {}; logs in {}/{}-{}",
                outcome.seed,
                outcome.problems.join("; "),
                verdict.class,
                verdict.why,
                self.logs.display(),
                scenario.replace(['/', ':'], "_"),
                outcome.seed,
            )
        };
        missed.map(tell).chain(self.late_first_bytes()).collect()
    }

    /// Nothing is waited for before the first byte: neither a router that opens ports, nor one that
    /// is looked for in vain, which takes seconds.
    fn late_first_bytes(&self) -> Option<String> {
        let mut first: Vec<_> =
            self.results.iter().filter_map(|(_, outcome)| outcome.first_byte_ms).collect();
        first.sort_by(f64::total_cmp);
        let median = first.get(first.len() / 2).copied().unwrap_or_default();
        let late = median > FIRST_BYTE.as_secs_f64() * 1e3;
        late.then(|| format!("first bytes came after {median:.0} ms in the median"))
    }

    /// The matrix in Markdown: time to direct in seconds, `relayed`, or `**missed**`.
    pub fn markdown(&self) -> String {
        let mut out = String::from("| Console \\ agent |");
        KINDS.iter().for_each(|k| out.push_str(&format!(" {} |", k.name)));
        out.push_str("\n|---|");
        KINDS.iter().for_each(|_| out.push_str("--:|"));
        for console in KINDS {
            let _ = write!(out, "\n| **{}** |", console.name);
            for agent in KINDS {
                let scenario = format!("{}+{}", console.name, agent.name);
                let found = self.results.iter().find(|(case, _)| case.scenario == scenario);
                let cell = found.map(|(case, outcome)| marked(case, outcome)).unwrap_or_default();
                let _ = write!(out, " {cell} |");
            }
        }
        out.push_str("\n\n| One LAN or one carrier | | Why |\n|---|--:|---|\n");
        for (case, outcome) in self.results.iter().filter(|(c, _)| c.scenario.contains('/')) {
            let cell = marked(case, outcome);
            let _ = writeln!(out, "| {} | {cell} | {} |", case.scenario, case.verdict.why);
        }
        out
    }

    /// Times to the first byte and to direct, by class: a table in Markdown.
    pub fn times(&self) -> String {
        let mut out = String::from(
            "| Class | Pairs | First byte, median | 95 % | Direct, median | 95 % | Slowest |\n\
             |---|--:|--:|--:|--:|--:|--:|\n",
        );
        for class in [Class::Easy, Class::Hard, Class::Impossible] {
            let of = self.results.iter().filter(|(case, _)| case.verdict.class == class);
            let outcomes: Vec<_> = of.map(|(_, outcome)| outcome).collect();
            let sorted = |mut times: Vec<f64>| {
                times.sort_by(f64::total_cmp);
                times
            };
            let first = sorted(outcomes.iter().filter_map(|o| o.first_byte_ms).collect());
            let direct = sorted(outcomes.iter().filter_map(|o| o.direct_ms).collect());
            let at = |of: &[f64], percent: usize| {
                let last = of.len().saturating_sub(1);
                of.get((of.len() * percent / 100).min(last))
                    .map_or("–".into(), |t| format!("{t:.0} ms"))
            };
            let _ = writeln!(
                out,
                "| {class} | {} | {} | {} | {} | {} | {} |",
                outcomes.len(),
                at(&first, 50),
                at(&first, 95),
                at(&direct, 50),
                at(&direct, 95),
                at(&direct, 100)
            );
        }
        out
    }

    /// The matrix as text: `D` direct, `r` relayed, a time in tenths of a second, `!` missed.
    pub fn matrix(&self) -> String {
        let mut out = String::new();
        let _ = write!(out, "{:16}", "console \\ agent");
        KINDS.iter().for_each(|k| out.push_str(&format!(" {:>6.6}", k.name)));
        for console in KINDS {
            let _ = write!(out, "\n{:16}", console.name);
            for agent in KINDS {
                let scenario = format!("{}+{}", console.name, agent.name);
                let found = self.results.iter().find(|(case, _)| case.scenario == scenario);
                let cell = found.map(|(_, outcome)| cell(outcome)).unwrap_or_default();
                let _ = write!(out, " {cell:>6}");
            }
        }
        for (case, outcome) in self.results.iter().filter(|(c, _)| c.scenario.contains('/')) {
            let _ = write!(out, "\n{:48} {:>6}", case.scenario, cell(outcome));
        }
        let _ = write!(out, "\n{} pairs in {:.0} s", self.results.len(), self.took.as_secs_f32());
        out
    }
}

/// A cell of the table: hard ones in italics.
fn marked(case: &Case, outcome: &Outcome) -> String {
    let text = match (outcome.carrier.as_str(), outcome.direct_ms) {
        ("direct", Some(ms)) => format!("{:.1}", ms / 1e3),
        ("relayed", _) => "r".to_owned(),
        _ => "?".to_owned(),
    };
    match (outcome.problems.is_empty(), case.verdict.class) {
        (false, _) => format!("**{text}!**"),
        (true, Class::Hard) => format!("*{text}*"),
        (true, _) => text,
    }
}

/// A cell of the matrix.
pub fn cell(outcome: &Outcome) -> String {
    let mark = if outcome.problems.is_empty() { "" } else { "!" };
    match (outcome.carrier.as_str(), outcome.direct_ms) {
        ("direct", Some(ms)) => format!("D{:.1}{mark}", ms / 1e3),
        ("relayed", _) => format!("r{mark}"),
        (other, _) => format!("{other}?{mark}"),
    }
}
