//! The relay: checks a ticket, pairs two connections, copies without looking.
//!
//! - [`core`]: the rules as state machines
//! - [`splice`]: moving bytes between the two ends of a pair

pub mod core;
pub mod splice;
