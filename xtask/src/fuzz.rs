//! `cargo xtask fuzz`: builds the program of `tests/fuzz` and runs each of its targets for a while.
//!
//! Our own crates are instrumented, and with them what they instantiate of others; the rest is
//! built as for tests, which takes minutes less. This program adds the options as cargo's wrapper
//! around rustc. Nothing has to be installed but a C++ compiler, for libFuzzer: the toolchain is
//! the pinned one. There is no address sanitizer: our crates have no unsafe code but an allocator's.
//!
//! The corpus is replayed by the ordinary tests (`tests/tests/corpus.rs`); this looks for more.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::process;

const DEFAULT_SECONDS: u32 = 30;
/// Tells this program that cargo calls it in the place of rustc.
const WRAPPER: &str = "ADIT_FUZZ_RUSTC";
/// Tells the program which decoder it is to fuzz.
const TARGET: &str = "ADIT_FUZZ_TARGET";
/// The program, a decoder's name being no reason to link it again.
const PROGRAM: &str = "decoder";
/// What libFuzzer needs of the compiler.
const INSTRUMENTATION: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];
/// Longest input; what one may take, seconds; what the whole run may take, MiB.
const LIMITS: &[&str] = &["-max_len=70000", "-timeout=10", "-rss_limit_mb=512"];

/// Runs the named targets, or all.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let (seconds, targets) = read(args)?;
    if !cfg!(any(target_os = "linux", target_os = "macos")) {
        bail!("the fuzz targets are built for Linux and macOS only");
    }
    let program = build()?;
    let temporary = Temporary::new()?;
    let (mut summary, mut found) = (Vec::new(), Vec::new());
    for target in &targets {
        println!("==> {target}, {seconds} s");
        let run = one(target, &program, seconds, &temporary.0)?;
        summary.push(format!("{target:<16} {:>12} executions  {}", run.executions, run.coverage));
        found.extend(run.failed.then(|| target.clone()));
    }
    println!("\n{}", summary.join("\n"));
    if !found.is_empty() {
        bail!(
            "found something in {}: the input is in tests/fuzz/artifacts/TARGET; put it into \
             tests/fuzz/corpus/TARGET, and cargo test -p adit-tests --test corpus shows it again",
            found.join(", ")
        );
    }
    Ok(())
}

fn read(args: &[String]) -> Result<(u32, Vec<String>)> {
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
    let all = all_targets()?;
    if let Some(unknown) = targets.iter().find(|t| !all.contains(t)) {
        bail!("no such target: {unknown}; there are {}", all.join(", "));
    }
    Ok((seconds, if targets.is_empty() { all } else { targets }))
}

/// Every decoder has a corpus (`tests/tests/corpus.rs`).
fn all_targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder().join("corpus"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn folder() -> PathBuf {
    process::root().join("tests/fuzz")
}

/// Builds the program; says where it is.
fn build() -> Result<PathBuf> {
    same_versions()?;
    // Apart from what is built for tests: the same crates, compiled otherwise.
    let directory = process::target_dir().join("fuzz");
    let mut cargo = process::cargo_command();
    cargo.env("CARGO_TARGET_DIR", &directory);
    cargo.env("RUSTC_WRAPPER", env::current_exe()?).env(WRAPPER, "1");
    cargo.arg("build").arg("--manifest-path").arg(folder().join("Cargo.toml"));
    process::run(&mut cargo).context("a C++ compiler is needed, such as g++ or clang++")?;
    Ok(directory.join("debug").join(PROGRAM))
}

/// What is fuzzed has the versions that the product has.
fn same_versions() -> Result<()> {
    let changed = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    let (of_product, own) = (process::root().join("Cargo.lock"), folder().join("Cargo.lock"));
    if changed(&own) <= changed(&of_product) {
        std::fs::copy(&of_product, &own).context("Cargo.lock")?;
    }
    Ok(())
}

/// As cargo's wrapper: rustc with its arguments, and more for our own crates.
pub(crate) fn rustc() -> Option<ExitCode> {
    env::var_os(WRAPPER)?;
    let mut args = env::args_os().skip(1);
    let mut rustc = Command::new(args.next()?);
    rustc.args(args);
    let is = |name: &str, test: fn(&str) -> bool| env::var(name).is_ok_and(|value| test(&value));
    if is("CARGO_PKG_NAME", |package| package.starts_with("adit-"))
        && !is("CARGO_CRATE_NAME", |name| name.starts_with("build_script"))
    {
        rustc.args(INSTRUMENTATION);
    }
    let ended = rustc.status().ok().and_then(|status| status.code());
    Some(ended.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

struct Run {
    executions: String,
    coverage: String,
    failed: bool,
}

fn one(target: &str, program: &Path, seconds: u32, temporary: &Path) -> Result<Run> {
    // New finds go to the target directory; what is worth keeping is committed by hand.
    let found = process::target_dir().join("fuzz-corpus").join(target);
    let broken = folder().join("artifacts").join(target);
    std::fs::create_dir_all(&found)?;
    std::fs::create_dir_all(&broken)?;
    let mut fuzz = Command::new(program);
    fuzz.arg(found).arg(folder().join("corpus").join(target));
    fuzz.args(LIMITS).args(["-print_final_stats=1"]);
    fuzz.arg(format!("-max_total_time={seconds}"));
    fuzz.arg(format!("-artifact_prefix={}/", broken.display()));
    fuzz.env("TMPDIR", temporary).env(TARGET, target);
    let output = fuzz.stdin(Stdio::null()).stdout(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let after = |label: &str| {
        let line = text.lines().rev().find_map(|line| line.split_once(label));
        line.map(|(_, rest)| rest.trim().to_owned()).unwrap_or_default()
    };
    if !output.status.success() {
        let from = text.lines().position(|l| l.contains("panicked at") || l.contains("ERROR:"));
        let lines: Vec<&str> = text.lines().skip(from.unwrap_or_default()).take(40).collect();
        println!("{}", lines.join("\n"));
    }
    let coverage = after(" cov: ");
    let coverage = coverage.split(" corp:").next().unwrap_or_default();
    Ok(Run {
        executions: after("stat::number_of_executed_units:"),
        coverage: format!("coverage {coverage}"),
        failed: !output.status.success(),
    })
}

/// Where targets that read files write them: in memory if the system has that.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let outer = if memory.is_dir() { memory.to_path_buf() } else { env::temp_dir() };
        let path = outer.join(format!("adit-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // A target ends without cleaning up. What stays is small.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
