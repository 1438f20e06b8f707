//! Side-by-side benchmarks of the four programs: what they cost, next to `ssh -L` and to bare
//! quinn, in one run and in turns, so that what else the machine does meets all of them.
//!
//! Two network namespaces of their own, joined by a veth pair with an MTU of 1,500 and the
//! kernel's default offloads: console and source in one, agent, sink, relay and mediator in the
//! other. TCP is cubic everywhere. CPU time is what `/proc` says of every process of a tunnel;
//! source and sink are processes of their own and are not counted.
//!
//! The real release programs are measured, with their default settings. Nothing here may make
//! one contestant's work easier than another's.

mod audit;
mod children;
mod cpu;
mod first_byte;
mod installation;
mod joins;
mod load;
mod mediator;
mod quinn_forward;
mod report;
mod ssh;
mod suite;
mod world;

use std::{env, process::ExitCode};

use anyhow::{Context as _, Result, bail};

const USAGE: &str = "\
adit-bench [--quick] [--rounds N] [--gb N] [--only NAME]… [--programs DIR] [--report FILE]

  --quick      a short version: fewer rounds, fewer bytes
  --rounds N   rounds of every measurement
  --gb N       gigabytes (10^9 bytes) each way in each round
  --only NAME  relayed, relay, direct, ping, open; all without it
  audit [--events N] [--only openings|flood|verify|search]… [--place DIR] [--dir DIR]
               openings with durable audit, others' requests in a flood of logins, verification
               and search of a long log; --place: where data is, on a disk; --dir: keep the long
               log there, or use the one that was kept
  --programs   where mediator, relay, agent-tunnel and console-tunnel are
  --report     where to write the report
";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The first word names a part that runs as a process of its own; without one it is the bench.
fn run(args: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--help" | "-h", ..] => print!("{USAGE}"),
        ["audit", rest @ ..] => {
            return Ok(if audit::run(rest)? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        ["audit-flood", port, key, seconds, from] => audit::flood::run(port, key, seconds, from)?,
        ["load-serve", addr, banner] => load::serve(addr, banner)?,
        ["load", addr, what, amount] => load::run(addr, what, number(amount)?)?,
        ["quinn-serve", addr, target] => quinn_forward::serve(addr, target)?,
        ["quinn-forward", local, remote, key] => quinn_forward::forward(local, remote, key)?,
        ["mediator", addr, joins] => mediator::run(addr, joins)?,
        ["join", file, index, "agent"] => joins::agent(file, number(index)?)?,
        ["join", file, index, "console", what, amount] => {
            joins::console(file, number(index)?, what, number(amount)?)?;
        }
        ["first-byte", program, rest @ ..] => first_byte::run(program, rest)?,
        [first, ..] if !first.starts_with('-') => bail!("no such part: {first}\n\n{USAGE}"),
        _ => return suite::run(&suite::Options::parse(&words).with_context(|| USAGE)?),
    }
    Ok(ExitCode::SUCCESS)
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().ok().with_context(|| format!("{text} is not a number"))
}
