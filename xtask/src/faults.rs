//! `cargo xtask faults`: the mediator killed, and its power cut, at random points, many times.
//!
//! The same tests run a few rounds in `cargo xtask test`; this is the long form.

use anyhow::{Context as _, Result, bail};

use crate::process;

const DEFAULT_ROUNDS: u32 = 200;
/// Test binary and test.
const TESTS: [(&str, &str); 2] = [
    ("faults", "killed_at_any_moment_no_acknowledged_record_is_lost"),
    ("disk", "a_power_cut_at_any_write_loses_nothing_that_was_acknowledged"),
];

/// Runs the tests.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let rounds = match args {
        [] => DEFAULT_ROUNDS,
        [option, value] if option == "--rounds" => {
            value.parse().with_context(|| format!("not a number: {value}"))?
        }
        _ => bail!("usage: cargo xtask faults [--rounds N]"),
    };
    for (binary, name) in TESTS {
        println!("==> {name}, {rounds} rounds");
        let mut test = process::cargo_command();
        test.args(["test", "--locked", "-p", "adit-mediator", "--test", binary]);
        test.args(["--", "--exact", name]).env("ADIT_FAULT_ROUNDS", rounds.to_string());
        process::run(&mut test)?;
    }
    Ok(())
}
