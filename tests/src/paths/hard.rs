//! What is a matter of luck, many times: representatives of the hard class a hundred times each,
//! and, if wanted, all other hard pairs just as often.

use std::{fmt::Write as _, time::Duration};

use anyhow::Result;

use super::{
    matrix::{self, Options},
    oracle::{self, Case, Class},
    pair::Outcome,
};

/// Pairs that stand for all hard ones, and what each stands for.
pub const REPRESENTATIVES: &[(&str, &str)] = &[
    ("port-restricted+symmetric", "birthday; the agent's ports are random"),
    ("symmetric+port-restricted", "birthday; the console's ports are random"),
    ("fw+cgnat-symmetric", "birthday through two NATs"),
    ("symmetric-addr+cgnat", "birthday; a new port for each address"),
    ("linux+linux-random", "birthday between kernels"),
    ("port-restricted+symmetric-seq", "prediction of the agent's port"),
    ("symmetric-seq+dual", "prediction of the console's port"),
    ("port-restricted+linux-noinput", "a race at the agent"),
    ("linux-noinput+port-restricted", "a race at the console"),
    ("linux-noinput+linux-noinput", "a race at both"),
    ("linux-noinput+symmetric", "birthday against a router that notices what comes first"),
];
/// Runs of 100 that must be direct in time.
const ENOUGH_PERCENT: usize = 95;

/// Times of those that were in time, of how many.
struct Luck {
    scenario: String,
    times: Vec<f64>,
    runs: usize,
    late: Vec<u64>,
}

/// Runs each representative often, with `others` all other hard pairs, too, or those of `only`; a
/// table in Markdown, and what was not enough.
pub fn run(
    test: &str,
    runs: u64,
    others: bool,
    only: &[String],
    options: &Options,
) -> Result<(String, Vec<String>)> {
    let mut table = String::from(
        "| Console + agent | What it takes | Direct within 10 s | Median | 95 % | Slowest |\n\
         |---|---|--:|--:|--:|--:|\n",
    );
    let mut problems = Vec::new();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| o == name);
    for (scenario, what) in REPRESENTATIVES.iter().filter(|(name, _)| wanted(name)) {
        let Some(case) = oracle::case(scenario) else { continue };
        let luck = Luck::of(test, &case, runs, options)?;
        println!("{scenario}: {} of {runs}", luck.times.len());
        table.push_str(&luck.row(scenario, what));
        problems.extend(luck.problem());
    }
    if others || !only.is_empty() {
        let is_other = |case: &Case| {
            case.verdict.class == Class::Hard
                && wanted(&case.scenario)
                && !REPRESENTATIVES.iter().any(|(name, _)| *name == case.scenario)
        };
        for case in oracle::cases().into_iter().filter(is_other) {
            let luck = Luck::of(test, &case, runs, options)?;
            println!("{}: {} of {runs}", case.scenario, luck.times.len());
            table.push_str(&luck.row(&case.scenario, &case.verdict.why));
            problems.extend(luck.problem());
        }
    }
    Ok((table, problems))
}

impl Luck {
    fn of(test: &str, case: &Case, runs: u64, options: &Options) -> Result<Self> {
        let limit = Class::Hard.direct_within().unwrap_or(Duration::MAX).as_secs_f64() * 1e3;
        let report = matrix::repeat(test, case, runs, options)?;
        let mut times: Vec<_> =
            report.iter().filter_map(|o| o.direct_ms).filter(|ms| *ms <= limit).collect();
        times.sort_by(f64::total_cmp);
        let late = |o: &&Outcome| o.direct_ms.is_none_or(|ms| ms > limit);
        Ok(Self {
            scenario: case.scenario.clone(),
            times,
            runs: report.len(),
            late: report.iter().filter(late).map(|o| o.seed).collect(),
        })
    }

    fn row(&self, name: &str, what: &str) -> String {
        let times = &self.times;
        let at =
            |percent: usize| times.get((times.len() * percent / 100).min(times.len().max(1) - 1));
        let s = |ms: Option<&f64>| ms.map_or("–".to_owned(), |ms| format!("{:.1} s", ms / 1e3));
        let mut row = String::new();
        let _ = writeln!(
            row,
            "| {name} | {what} | {} of {} | {} | {} | {} |",
            times.len(),
            self.runs,
            s(at(50)),
            s(at(95)),
            s(times.last())
        );
        row
    }

    fn problem(&self) -> Option<String> {
        let enough = self.times.len() * 100 >= self.runs * ENOUGH_PERCENT;
        (!enough).then(|| {
            let Self { scenario, times, runs, late } = self;
            format!("{scenario}: {} of {runs}; seeds {late:?}", times.len())
        })
    }
}
