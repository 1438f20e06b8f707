//! Adit's sans-IO state machines: no clock, no socket, no task, no randomness inside.
//!
//! - [`resume`]: channels that move between carriers without losing a byte

pub mod path;
pub mod punch;
pub mod resume;
