//! What is a matter of luck, a hundred times: representatives of the hard class.

use std::{fmt::Write as _, time::Duration};

use anyhow::Result;

use super::{
    matrix::{self, Options},
    oracle::{self, Class},
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

/// Runs each representative often; a table in Markdown, and what was not enough.
pub fn run(
    test: &str,
    runs: u64,
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
        let limit = Class::Hard.direct_within().unwrap_or(Duration::MAX).as_secs_f64() * 1e3;
        let report = matrix::repeat(test, &case, runs, options)?;
        let mut times: Vec<_> =
            report.iter().filter_map(|o| o.direct_ms).filter(|ms| *ms <= limit).collect();
        times.sort_by(f64::total_cmp);
        let at =
            |percent: usize| times.get((times.len() * percent / 100).min(times.len().max(1) - 1));
        let s = |ms: Option<&f64>| ms.map_or("–".to_owned(), |ms| format!("{:.1} s", ms / 1e3));
        let _ = writeln!(
            table,
            "| {scenario} | {what} | {} of {runs} | {} | {} | {} |",
            times.len(),
            s(at(50)),
            s(at(95)),
            s(times.last())
        );
        if times.len() * 100 < report.len() * ENOUGH_PERCENT {
            let failed: Vec<_> = report.iter().filter(|o| late(o, limit)).map(|o| o.seed).collect();
            problems.push(format!("{scenario}: {} of {runs}; seeds {failed:?}", times.len()));
        }
    }
    Ok((table, problems))
}

fn late(outcome: &Outcome, limit: f64) -> bool {
    outcome.direct_ms.is_none_or(|ms| ms > limit)
}
