//! Build, check, test and demonstrate: what people and CI run, as one program.
//!
//! `cargo xtask ci` holds the rules of the house, `cargo xtask test` everything CI runs,
//! `cargo xtask demo` the main job on this machine. Nothing here may be imported by a program,
//! and it stays small: it is compiled before anything else can be.

mod bench;
mod ci;
mod demo;
mod faults;
mod fuzz;
mod packages;
mod paths;
mod process;
mod release;
mod sbom;
mod test;
mod timing;

use std::{env, process::ExitCode};

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask COMMAND

  demo [--once] [--release]   the main job on this machine: mediator, relay, agent and console
                              on loopback, a redirector opened and used; stays up until Ctrl-C
                              (--once: stop after the first round)
  test [STAGE…]               everything that CI runs (Linux, root); stages: packages, ci, unit,
                              programs, e2e; more arguments after -- go to the end-to-end tests
  ci [CHECK…]                 formatting, lints, docs, dependencies, licences, house rules
  ci advisories [--db DIR] [--max-age DAYS]
                              Cargo.lock against a checkout of the RustSec advisory database
  fuzz [--seconds N] [TARGET…]  builds the fuzz targets and runs each for 30 s, or so many
                              (Linux, macOS; needs a C++ compiler)
  faults [--rounds N]         kills the mediator and cuts its power at random points, 200 times each
  timing                      an unknown user is answered in the time of a known one: 5 % over 200
                              tries, in a release build (a quiet machine)
  paths [oracle|matrix|changes|--hard] [--long] [--jobs N] [--seed N] [--runs N] [NAME…]
                              every pair of networks against theory, then changes of a network
                              (Linux, root); --hard: what is luck, a hundred times; --long: scenes
                              that take minutes; writes the tables of docs/paths.md
  sbom [--target TRIPLE] [--output DIR]
                              a bill of materials of each program (CycloneDX 1.6, JSON), of what
                              cargo resolves and Cargo.lock holds; into target/sbom
  release                     the four programs, built from a clean clone of HEAD, with bills of
                              materials, checksums and provenance, into target/dist
  release keygen|sign|verify|reproduce
                              keys; signing what was built elsewhere; the check of a release; two
                              builds in different surroundings, compared bit for bit
                              (docs/release.md; cargo xtask release --help)
  bench [--quick] [ARGS…]     side-by-side benchmarks (Linux, root), writes
                              target/bench/report.md; fails if a bar is missed

Examples
  cargo xtask demo --once
  cargo xtask ci tidy edges
  cargo xtask test e2e -- loopback::
  cargo xtask paths matrix 'port-restricted+*' same/dual
";

fn main() -> ExitCode {
    if let Some(ended) = fuzz::rustc() {
        return ended;
    }
    let args: Vec<String> = env::args().skip(1).collect();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<ExitCode> {
    let Some((command, rest)) = args.split_first() else {
        eprint!("{USAGE}");
        return Ok(ExitCode::from(2));
    };
    // It has options enough for a help of its own.
    let own_help = command == "release";
    if !own_help && rest.iter().take_while(|a| *a != "--").any(|a| a == "--help" || a == "-h") {
        print!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    }
    match command.as_str() {
        "demo" => demo::run(rest)?,
        "test" => test::run(rest)?,
        "ci" => ci::run(rest)?,
        "fuzz" => fuzz::run(rest)?,
        "faults" => faults::run(rest)?,
        "timing" => timing::run(rest)?,
        "bench" => return bench::run(rest),
        "paths" => return paths::run(rest),
        "release" => return release::run(rest),
        "sbom" => sbom::run(rest)?,
        "help" | "--help" | "-h" => print!("{USAGE}"),
        other => bail!("no such command: {other}\n\n{USAGE}"),
    }
    Ok(ExitCode::SUCCESS)
}
