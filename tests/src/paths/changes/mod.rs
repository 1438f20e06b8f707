//! What happens to networks, and what a session may feel of it: a table of scenes, each with a
//! laboratory of its own, several at once.

mod hostile;
mod mapping;
mod network;
mod outages;
mod relays;
mod restricted;

use std::{
    collections::VecDeque,
    fmt::Write as _,
    fs,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    matrix::Options,
    pair::Bench,
    world::{Felt, Place},
};
use crate::site::artifacts_path;

/// A stall that is allowed where another path exists.
const STALL: Duration = Duration::from_secs(1);
/// Time to be direct again.
const AGAIN: Duration = Duration::from_secs(5);

/// What takes longest begins first, so that all are done at about the same time.
const SLOW: &[&str] = &[
    "checks-lost",
    "udp-dies-45s",
    "udp-dies-45s-console",
    "udp-late-both",
    "map-life",
    "map-life-agent",
    "worst-case",
    "silence-20s",
    "silence-20s-console",
    "short-timeout-agent",
    "short-timeout-console",
    "clock-agent",
    "clock-console",
    "map-pmp",
    "map-pcp",
];

/// One thing that happens.
pub struct Scene {
    /// A word, for the table and for the command line.
    pub name: &'static str,
    /// What happens, in a line.
    pub what: &'static str,
    /// Only in long runs.
    pub long: bool,
    /// Measures how fast something is: nothing else runs beside it.
    pub alone: bool,
    run: fn(&Place<'_>) -> Result<Seen>,
}

const fn scene(
    name: &'static str,
    what: &'static str,
    run: fn(&Place<'_>) -> Result<Seen>,
) -> Scene {
    Scene { name, what, long: false, alone: false, run }
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Longest pause of the stream.
    pub stall: Option<Duration>,
    /// Time until direct again.
    pub direct: Option<Duration>,
    /// More, in words.
    pub note: String,
    /// What was not as it must be.
    pub problems: Vec<String>,
}

impl Seen {
    fn note(note: impl Into<String>) -> Self {
        Self { note: note.into(), ..Self::default() }
    }

    /// A stall of at most `stall`, and direct again within `again`, if that is to be.
    fn felt(felt: &Felt, stall: Duration, again: Option<Duration>) -> Self {
        let mut seen = Self {
            stall: Some(felt.stall),
            direct: felt.direct,
            note: format!("{} kB", felt.bytes / 1000),
            problems: Vec::new(),
        };
        if felt.stall > stall {
            seen.problems.push(format!("stalled for {:?}, allowed {stall:?}", felt.stall));
        }
        match (again, felt.direct) {
            (Some(limit), None) => seen.problems.push(format!("not direct again within {limit:?}")),
            (Some(limit), Some(after)) if after > limit => {
                seen.problems.push(format!("direct again only after {after:?}"));
            }
            _ => {}
        }
        seen
    }
}

/// All scenes.
pub fn scenes() -> Vec<Scene> {
    let all = [
        network::scenes(),
        mapping::scenes(),
        outages::scenes(),
        relays::scenes(),
        restricted::scenes(),
        hostile::scenes(),
    ];
    all.into_iter().flatten().collect()
}

/// What came of all scenes.
pub struct Report {
    /// In the order of the scenes.
    pub results: Vec<(Scene, Seen, u64)>,
    /// How long it took.
    pub took: Duration,
}

type Queue = Mutex<VecDeque<(usize, Scene)>>;
type Done = Mutex<Vec<(usize, Scene, Seen, u64)>>;

/// Plays scenes. What failing ones leave is kept in the artifacts directory `test`.
pub fn run(test: &str, scenes: Vec<Scene>, options: &Options) -> Result<Report> {
    let begin = Instant::now();
    let _ = fs::remove_dir_all(artifacts_path(test));
    let mut bench = Bench::new(&format!("{test}/setup"))?;
    bench.log_level.clone_from(&options.log_level);
    let (alone, mut beside): (VecDeque<_>, VecDeque<_>) =
        scenes.into_iter().enumerate().partition(|(_, scene)| scene.alone);
    let slow = |scene: &Scene| scene.long || SLOW.contains(&scene.name);
    beside.make_contiguous().sort_by_key(|(_, scene)| !slow(scene));
    let done = Done::default();
    for (queue, jobs) in [(beside, options.jobs), (alone, 1)] {
        let queue: Queue = Mutex::new(queue);
        thread::scope(|scope| -> Result<()> {
            let workers: Vec<_> = (0..jobs)
                .map(|_| scope.spawn(|| play(test, &bench, &queue, &done, options)))
                .collect();
            workers.into_iter().try_for_each(|w| w.join().unwrap_or(Ok(())))
        })?;
    }
    let mut results = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, ..)| *at);
    let results = results.into_iter().map(|(_, scene, seen, seed)| (scene, seen, seed)).collect();
    Ok(Report { results, took: begin.elapsed() })
}

fn play(test: &str, bench: &Bench, queue: &Queue, done: &Done, options: &Options) -> Result<()> {
    let server = bench.another()?;
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some((at, scene)) = next else { return Ok(()) };
        let mut seen = Seen::default();
        let mut seed = options.seed;
        for n in 0..=options.retries {
            seed = options.seed + n;
            let name = format!("{test}/{}-{seed}", scene.name);
            let place = Place { bench, server: &server, name: name.clone(), seed };
            seen = (scene.run)(&place).unwrap_or_else(|error| Seen {
                problems: vec![format!("{error:#}")],
                ..Seen::default()
            });
            if seen.problems.is_empty() {
                let _ = fs::remove_dir_all(artifacts_path(&name));
                break;
            }
        }
        done.lock().unwrap_or_else(PoisonError::into_inner).push((at, scene, seen, seed));
    }
}

impl Report {
    /// What was not as it must be: a paragraph each.
    pub fn misses(&self) -> Vec<String> {
        let missed = self.results.iter().filter(|(_, seen, _)| !seen.problems.is_empty());
        let tell = |(scene, seen, seed): &(Scene, Seen, u64)| {
            format!("{} (seed {seed}; {}): {}", scene.name, scene.what, seen.problems.join("; "))
        };
        missed.map(tell).collect()
    }

    /// A table, in Markdown.
    pub fn table(&self) -> String {
        let mut out = String::from(
            "| Scene | What happens | Stall | Direct again | |\n|---|---|--:|--:|---|\n",
        );
        for (scene, seen, _) in &self.results {
            let ms =
                |d: Option<Duration>| d.map_or("–".into(), |d| format!("{} ms", d.as_millis()));
            let mark = if seen.problems.is_empty() { "" } else { " **missed**" };
            let _ = writeln!(
                out,
                "| `{}` | {} | {} | {} | {}{mark} |",
                scene.name,
                scene.what,
                ms(seen.stall),
                ms(seen.direct),
                seen.note
            );
        }
        out
    }
}
