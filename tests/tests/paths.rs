//! Every pair of networks against what theory says of it, with the real programs, each pair in a
//! laboratory of its own. See `docs/paths.md`; by hand: `cargo xtask paths`.

use std::fs;

use adit_tests::{
    paths::{
        changes,
        matrix::{self, Options},
        oracle, truth,
    },
    site::artifacts_path,
};
use anyhow::{Result, ensure};

/// Laboratories at once: each idles most of its time, and all share two processors in CI.
const JOBS: usize = 6;
/// Scenes at once: they move bytes and measure pauses.
const CHANGES_AT_ONCE: usize = 4;

#[test]
fn every_pair_of_networks_meets_the_oracle() -> Result<()> {
    // Each pair that is a matter of luck has a second try; the rate of luck is measured by
    // `cargo xtask paths --hard`.
    let options = Options { jobs: JOBS, seed: 1, retries: 1, log_level: None };
    let report = matrix::run("paths", oracle::cases(), &options)?;
    println!("{}\n{}", report.matrix(), report.times());
    fs::write(artifacts_path("paths").join("matrix.txt"), report.matrix())?;
    let misses = report.misses();
    ensure!(misses.is_empty(), "{} missed:\n{}", misses.len(), misses.join("\n"));
    Ok(())
}

#[test]
fn changes_of_a_network_cost_no_byte_and_no_second() -> Result<()> {
    let options = Options { jobs: CHANGES_AT_ONCE, seed: 1, retries: 1, log_level: None };
    let mut scenes = changes::scenes();
    scenes.retain(|scene| !scene.long);
    let report = changes::run("changes", scenes, &options)?;
    println!("{}", report.table());
    fs::write(artifacts_path("changes").join("changes.md"), report.table())?;
    let misses = report.misses();
    ensure!(misses.is_empty(), "{} missed:\n{}", misses.len(), misses.join("\n"));
    Ok(())
}

#[test]
fn netcheck_tells_the_truth_of_every_kind_of_network() -> Result<()> {
    let options = Options { jobs: CHANGES_AT_ONCE, seed: 1, retries: 1, log_level: None };
    let report = truth::run("netcheck", truth::TRUTHS.to_vec(), &options)?;
    println!("{}", report.table());
    let misses = report.misses();
    ensure!(misses.is_empty(), "{} missed:\n{}", misses.len(), misses.join("\n"));
    Ok(())
}
