//! The agent on a customer's computer. It dials out, never listens on the network, and lets
//! consoles reach what its owner's policy allows: the mediator can narrow that, never widen it.
//!
//! - [`policy`]: the owner's word, pure decisions
//! - [`gate`]: policy, kill switch, resolution, consent and audit before every dial
//! - [`consent`]: questions to the person at the computer
//! - [`sessions`]: offers and sessions, the only module that knows `adit-endpoint`
//! - [`run`]: the running agent
//! - [`enroll`], [`commands`], [`service`], [`cli`]: the command line
//! - [`enrollment`], [`kill_switch`], [`settings`]: what is on disk
//!
//! Invariants: no message of the mediator changes policy, trust, proxy or mediator; nothing is
//! dialled that policy, grant and audit have not all passed; whatever is unclear is refused.

pub mod cli;
pub mod commands;
pub mod consent;
pub mod enroll;
pub mod enrollment;
pub mod failure;
pub mod gate;
pub mod host;
pub mod kill_switch;
pub mod policy;
pub mod run;
pub mod service;
pub mod sessions;
pub mod settings;
