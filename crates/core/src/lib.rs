//! Adit's sans-IO state machines: no clock, no socket, no task, no randomness inside.
//!
//! - [`punch`]: which address pairs carry packets both ways
//! - [`path`]: which carrier to use, and which no longer answers
//! - [`resume`]: channels that move between carriers without losing a byte

pub mod path;
pub mod punch;
pub mod resume;
