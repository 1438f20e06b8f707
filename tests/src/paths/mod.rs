//! Paths in laboratories: which pairs of networks go direct, how fast, and what changes of the
//! network do to a session.
//!
//! - [`oracle`]: what theory says of each pair, derived from what the two sides do with packets
//! - [`pair`]: one pair, tried with all four programs in a laboratory of its own
//! - [`matrix`]: all pairs, several at once, compared with the oracle
//! - [`hard`]: what is a matter of luck, a hundred times
//! - [`world`]: a session in a laboratory that something is about to happen to
//! - [`flow`]: a numbered stream both ways through it
//! - [`changes`]: what happens, and what a session may feel of it
//! - [`truth`]: what `netcheck` says of each kind
//! - [`docs`]: where the results are written down
//!
//! `cargo xtask paths` runs them and writes the tables of `docs/paths.md`.

#![allow(clippy::indexing_slicing, reason = "JSON values give null for what is not there")]

pub mod changes;
pub mod docs;
pub mod flow;
pub mod hard;
pub mod matrix;
pub mod oracle;
pub mod pair;
pub mod truth;
pub mod world;
