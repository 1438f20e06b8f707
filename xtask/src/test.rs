//! `cargo xtask test`: everything that CI runs, in stages; the first that fails ends it.
//!
//! Nothing is ever skipped: a stage that cannot run on this machine fails and says why.

mod count;

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use count::Count;

use crate::{ci, packages, process};

struct Stage {
    name: &'static str,
    what: &'static str,
    needs_root: bool,
    run: fn(&[String]) -> Result<Count>,
}

const STAGES: &[Stage] = &[
    Stage {
        name: "packages",
        what: "servers, clients and tools of the end-to-end tests",
        needs_root: true,
        run: |_| packages::install().map(|()| Count::default()),
    },
    Stage { name: "ci", what: "cargo xtask ci", needs_root: false, run: |_| checks() },
    Stage { name: "unit", what: "tests of all crates", needs_root: false, run: |_| unit() },
    Stage { name: "programs", what: "the four programs", needs_root: false, run: |_| programs() },
    Stage {
        name: "e2e",
        what: "the programs on loopback, in network namespaces, with real clients",
        needs_root: true,
        run: end_to_end,
    },
];

/// Packages of the four programs.
pub(crate) const PROGRAMS: &[&str] = &["adit-mediator", "adit-relay", "adit-agent", "adit-console"];
/// Test binaries of `adit-tests` that need the feature `e2e`.
const E2E: &[&str] = &[
    "loopback",
    "refusals",
    "rules",
    "hostile",
    "console",
    "admin",
    "admin_whole",
    "credentials",
    "explain",
    "pages",
    "faults",
    "natlab",
    "paths",
    "clients",
    "syslog",
    "doors",
];

/// nextest's profile, what a test weighs there (.config/nextest.toml), and how many tests that
/// only wait may run beside the others.
const PROFILE: &str = "xtask";
const WEIGHT: usize = 10;
const WAITING: usize = 3;

/// Runs the named stages, or all.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let split = args.iter().position(|a| a == "--").unwrap_or(args.len());
    let (names, rest) = args.split_at(split);
    if let Some(name) = names.iter().find(|n| !STAGES.iter().any(|s| s.name == n.as_str())) {
        let known: Vec<_> = STAGES.iter().map(|s| s.name).collect();
        bail!("no such stage: {name}; there are {}", known.join(", "));
    }
    let chosen = |s: &&Stage| names.is_empty() || names.iter().any(|n| n == s.name);
    let stages: Vec<_> = STAGES.iter().filter(chosen).collect();
    demand_root(&stages)?;
    let (mut total, mut times) = (Count::default(), Vec::new());
    let mut broken = None;
    for stage in stages {
        println!("\n==> {}: {}", stage.name, stage.what);
        let start = Instant::now();
        let result = (stage.run)(rest.get(1..).unwrap_or_default());
        times.push((stage.name, start.elapsed()));
        match result {
            Ok(count) => total.add(&count),
            Err(error) => {
                // A stage that could not even count is one failure.
                total.add(&Count { failed: 1, ..Count::default() });
                broken = Some((stage.name, format!("{error:#}")));
            }
        }
        if broken.is_none() && total.failed + total.skipped > 0 {
            broken = Some((stage.name, "see above".to_owned()));
        }
        if broken.is_some() {
            break;
        }
    }
    report(&times, &total, broken)
}

fn report(times: &[(&str, Duration)], total: &Count, broken: Option<(&str, String)>) -> Result<()> {
    println!();
    for (name, time) in times {
        println!("{name:<10} {:7.1} s", time.as_secs_f32());
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    match broken {
        None => Ok(()),
        Some((stage, why)) if total.failed == 0 => {
            bail!("stage {stage} failed: {} tests were skipped ({why})", total.skipped)
        }
        Some((stage, why)) => bail!("stage {stage} failed: {why}"),
    }
}

/// Says which stages need root, with the command, instead of leaving them out.
fn demand_root(stages: &[&Stage]) -> Result<()> {
    let needy: Vec<_> = stages.iter().filter(|s| s.needs_root).map(|s| s.name).collect();
    if needy.is_empty() {
        return Ok(());
    }
    let rest: Vec<_> = STAGES.iter().filter(|s| !s.needs_root).map(|s| s.name).collect();
    let rest = format!("the others run without: cargo xtask test {}", rest.join(" "));
    let needy = needy.join(", ");
    if !cfg!(target_os = "linux") {
        bail!("the stages {needy} need Linux (network namespaces, Debian packages); {rest}");
    }
    let uid = process::output(Command::new("id").arg("-u"))?;
    if uid.trim() != "0" {
        bail!(
            "the stages {needy} need root (network namespaces, packages): \
             sudo -E env \"PATH=$PATH\" cargo xtask test; {rest}"
        );
    }
    Ok(())
}

fn checks() -> Result<Count> {
    let (passed, failed) = ci::run_counted(&[])?;
    Ok(Count { passed, failed, skipped: 0 })
}

fn unit() -> Result<Count> {
    if !nextest() {
        return tests(&["--workspace"], &[]);
    }
    let processors = thread::available_parallelism().map_or(2, usize::from);
    let threads = (processors * WEIGHT + WAITING).to_string();
    let args = ["--workspace", "--profile", PROFILE, "--test-threads", &threads];
    let mut count = tests(&args, &[])?;
    // nextest leaves them out.
    if count.failed == 0 {
        let mut docs = process::cargo_command();
        docs.args(["test", "--doc", "--workspace", "--locked", "--quiet"]);
        count.add(&count::run(&mut docs)?);
    }
    Ok(count)
}

fn programs() -> Result<Count> {
    build(&[])?;
    Ok(Count::default())
}

/// Builds the four programs in the dev profile (or what `more` says): dependencies are optimised
/// enough there, and it shares its artifacts with the tests.
pub(crate) fn build(more: &[&str]) -> Result<()> {
    let mut args = vec!["build", "--locked"];
    PROGRAMS.iter().for_each(|program| args.extend(["--package", program]));
    args.extend(more);
    process::cargo(&args)
}

fn end_to_end(rest: &[String]) -> Result<Count> {
    // Also when this stage is run alone: what was built hours ago would be tested otherwise.
    build(&[])?;
    // With the other, what they use has the same features as in the unit stage: it is built there.
    let mut args = vec!["--package", "adit-tests", "--package", "adit-xtask"];
    args.extend(["--features", "adit-tests/e2e"]);
    E2E.iter().for_each(|test| args.extend(["--test", test]));
    // Named tests leave the others out on purpose.
    let chosen =
        |count: Count| Count { skipped: if rest.is_empty() { count.skipped } else { 0 }, ..count };
    // One at a time: they measure times and share two cores with what they test. Those that
    // mostly wait may be two: .config/nextest.toml.
    if nextest() {
        let threads = (2 * WEIGHT).to_string();
        // They also measure real time on machines that others load: a second try tells a
        // regression from a moment without processor. nextest names what needed it.
        args.extend(["--profile", PROFILE, "--test-threads", &threads, "--retries", "1"]);
        args.extend(rest.iter().map(String::as_str));
        tests(&args, &[]).map(chosen)
    } else {
        let rest = rest.iter().map(String::as_str);
        tests(&args, &["--test-threads=1"].into_iter().chain(rest).collect::<Vec<_>>()).map(chosen)
    }
}

fn nextest() -> bool {
    process::on_path("cargo-nextest")
}

/// Runs tests of the workspace and counts them. Where there is `tini`, it adopts and reaps what
/// tests leave behind: PID 1 of a container often does not.
fn tests(args: &[&str], own: &[&str]) -> Result<Count> {
    let cargo = process::cargo_command();
    let mut command = if cfg!(target_os = "linux") && process::on_path("tini") {
        let mut command = Command::new("tini");
        command.args(["-s", "--"]).arg(cargo.get_program());
        command
    } else {
        Command::new(cargo.get_program())
    };
    command.current_dir(process::root());
    let target = process::target_dir();
    command.env("ADIT_BIN_DIR", target.join("debug"));
    command.env("ADIT_E2E_DIR", target.join("e2e"));
    command.env("VNCDOTOOL", packages::venv_bin().join("vncdotool"));
    if nextest() {
        command.args(["nextest", "run", "--locked", "--no-fail-fast"]).args(args);
    } else {
        command.args(["test", "--locked"]).args(args).arg("--").args(own);
    }
    count::run(&mut command).context("cargo test")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::{E2E, PROFILE, WAITING, WEIGHT, process};

    /// One that is only in the manifest is compiled by the checks and run by nobody.
    #[test]
    fn every_end_to_end_test_is_run() {
        let manifest = process::root().join("tests").join("Cargo.toml");
        let manifest: toml::Table = fs::read_to_string(manifest).unwrap().parse().unwrap();
        let named: BTreeSet<_> = manifest["test"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|test| test.get("required-features").is_some())
            .map(|test| test["name"].as_str().unwrap())
            .collect();
        assert_eq!(named, E2E.iter().copied().collect());
    }

    /// A name in nextest's settings that is nobody's any more changes nothing, and says nothing.
    #[test]
    fn settings_of_nextest_name_what_there_is() {
        let settings = fs::read_to_string(process::root().join(".config/nextest.toml")).unwrap();
        let named = |before: &str| -> Vec<String> {
            let parts = settings.split(before).skip(1);
            parts.map(|rest| rest.split(')').next().unwrap().to_owned()).collect()
        };
        assert!(settings.contains(&format!("[profile.{PROFILE}]")));
        assert!(settings.contains(&format!("threads-required = {WEIGHT}\n")));
        for binary in named("binary(") {
            assert!(E2E.contains(&binary.as_str()), "{binary}");
        }
        let folder = process::root().join("mediator").join("tests");
        let sources: String = fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok())
            .collect();
        let waiting = named("test(=");
        assert!(!waiting.is_empty() && waiting.len() <= WAITING);
        for test in waiting {
            assert!(sources.contains(&format!("fn {test}(")), "{test}");
        }
    }
}
