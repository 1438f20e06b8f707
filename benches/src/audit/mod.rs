//! The audit log's speed: openings with durable audit, a flood of logins beside other work,
//! verifying a million entries, searching ten million.
//!
//! ```text
//! cargo xtask bench audit                       (or adit-bench audit --events 1000000)
//! adit-bench audit --only search --dir /var/tmp/adit-audit-10m      (kept, used again)
//! ```
//!
//! Everything is asked of a real mediator over TLS on loopback, with its data on a real file
//! system. Openings are whole as far as the mediator goes: the wish, the decision, two audit
//! records and the session's row durable on disk, signed head, grant, offer with proof, answer,
//! `Granted`. What is not in it: the work of the ends themselves (Noise, checking the grant),
//! which are stand-ins here. Searches go through the HTTPS API, each with its proof of
//! possession and its own record. What is verified is an export, by the command.
//!
//! The large log is written directly into a database that the mediator made, with its own log
//! key, by the code that seals and hashes entries: same tables, indexes, nodes and heads, but an
//! hour sooner. Must never report a figure of another run.

mod entries;
pub(crate) mod flood;
mod large;
mod openings;
mod site;
mod web;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::number;

/// Entries that are verified.
const VERIFIED: u64 = 1_000_000;

/// What is measured, and where.
struct Plan {
    programs: PathBuf,
    /// Where data is; on a disk.
    place: PathBuf,
    /// Entries that are searched.
    events: u64,
    /// Data directory of the long log, kept.
    kept: Option<PathBuf>,
}

/// A figure and what it has to be.
struct Bar {
    name: String,
    figure: f64,
    bar: f64,
    at_least: bool,
}

impl Bar {
    fn at_most(name: impl Into<String>, figure: f64, bar: f64) -> Self {
        Self { name: name.into(), figure, bar, at_least: false }
    }

    fn at_least(name: impl Into<String>, figure: f64, bar: f64) -> Self {
        Self { name: name.into(), figure, bar, at_least: true }
    }
}

/// Runs the parts and prints the figures; false if a bar was missed.
pub(crate) fn run(words: &[&str]) -> Result<bool> {
    let me = std::env::current_exe()?;
    let mut plan = Plan {
        programs: me.parent().context("no directory")?.to_owned(),
        place: std::env::temp_dir(),
        events: 10_000_000,
        kept: None,
    };
    let mut only = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match *word {
            "--events" => plan.events = number(value()?)?,
            "--programs" => plan.programs = PathBuf::from(value()?),
            "--place" => plan.place = PathBuf::from(value()?),
            "--dir" => plan.kept = Some(PathBuf::from(value()?)),
            "--only" => only.push(*value()?),
            other => bail!("no such option: {other}"),
        }
    }
    let known = ["openings", "flood", "verify", "search"];
    if let Some(odd) = only.iter().find(|part| !known.contains(part)) {
        bail!("no such part: {odd}; there are {}", known.join(", "));
    }
    on_a_disk(plan.kept.as_deref().and_then(Path::parent).unwrap_or(&plan.place))?;
    on_a_disk(&plan.place)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let wanted = |part| only.is_empty() || only.contains(&part);
    let mut bars = Vec::new();
    if wanted("openings") {
        bars.extend(runtime.block_on(openings::measure(&plan))?);
    }
    if wanted("flood") {
        bars.extend(runtime.block_on(flood::measure(&plan))?);
    }
    if wanted("verify") {
        bars.extend(runtime.block_on(large::verify(&plan, VERIFIED.min(plan.events)))?);
    }
    if wanted("search") {
        bars.extend(runtime.block_on(large::search(&plan))?);
    }
    let mut good = true;
    println!("{:<58} {:>9}   {:>10}", "measured", "figure", "bar");
    for Bar { name, figure, bar, at_least } in bars {
        let met = if at_least { figure >= bar } else { figure <= bar };
        good &= met;
        let (bound, word) =
            (if at_least { "at least" } else { "at most" }, if met { "met" } else { "MISSED" });
        println!("{name:<58} {figure:>9.1}   {bound:>8} {bar:<6.0} {word}");
    }
    println!("{}", if good { "every bar is met" } else { "a bar was MISSED" });
    Ok(good)
}

/// A disk that forgets at a power cut would make syncing free.
fn on_a_disk(place: &Path) -> Result<()> {
    /// `f_type` of tmpfs and ramfs (statfs(2)).
    const MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];
    let kind = rustix::fs::statfs(place).with_context(|| place.display().to_string())?.f_type;
    ensure!(
        !MEMORY.iter().any(|memory| i128::from(kind) == i128::from(*memory)),
        "{} is in memory: name a directory on a disk with --place",
        place.display()
    );
    Ok(())
}

/// Of sorted figures, the one that so many per cent do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or(f64::NAN)
}
