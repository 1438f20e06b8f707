//! The relay's decisions as state machines: no clock, socket, task or random source inside.
//!
//! - [`pairing`]: who may wait, who is paired with whom, who must go
//! - [`admission`]: quotas of connections that have proved nothing yet
//! - [`replay`]: messages 1 that were seen already
//! - [`usage`]: bytes of each session, as reported to the mediator

pub mod admission;
pub mod pairing;
pub mod replay;
pub mod usage;
