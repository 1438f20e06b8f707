//! `cargo xtask faults`: the mediator killed, and its power cut, at random points, many times; a disk
//! that is full or fails, a clock that jumps, keys that are rotated and clients that are erased when
//! the process dies.
//!
//! The same tests run a few rounds in `cargo xtask test`; this is the long form. Those that go through
//! all there is in one round say so by asking for none.

use anyhow::{Context as _, Result, bail};

use crate::process;

const DEFAULT_ROUNDS: u32 = 200;
/// Test binary and test.
const TESTS: [(&str, &str); 6] = [
    ("faults", "killed_at_any_moment_no_acknowledged_record_is_lost"),
    ("disk", "a_power_cut_at_any_write_loses_nothing_that_was_acknowledged"),
    ("disk", "a_disk_that_is_full_or_fails_allows_nothing_and_recovers_by_itself"),
    ("disk", "whatever_the_clock_does_order_is_by_sequence_and_nothing_is_lost"),
    ("secrets", "a_key_rotation_that_is_killed_at_any_moment_leaves_every_credential_readable"),
    ("erasure", "an_erasure_that_is_killed_at_any_moment_is_finished_by_the_next_start"),
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
        test.args(["--", "--nocapture", "--exact", name])
            .env("ADIT_FAULT_ROUNDS", rounds.to_string());
        process::run(&mut test)?;
    }
    Ok(())
}
