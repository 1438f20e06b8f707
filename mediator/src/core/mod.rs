//! The broker as a state machine: no clock, socket, task, database or random source inside.
//!
//! ```text
//! Open ─► requested ─ audit ─► audited ─ Offer ─► offered ─ Answer ─► open ─► ended
//!             └ refused ◄──────────┴──────────────────┘
//! ```
//!
//! Invariants, tested over seeds:
//! - no offer and no grant leaves before [`Broker::handle_audit_committed`] for its own record;
//! - every attempt has exactly one outcome: `session.refused` or, once open, `session.ended`;
//! - an end is told to agent, console and relays until each has acknowledged it, or until no
//!   honest end can still serve the session.

pub(crate) mod broker;
pub(crate) mod ending;
mod events;
mod fold;
mod forget;
pub(crate) mod refusals;
pub(crate) mod relays;
pub(crate) mod report;
pub(crate) mod review;
mod revoke;
pub(crate) mod session;
mod tally;
pub(crate) mod types;

#[cfg(test)]
mod record_tests;
#[cfg(test)]
mod relay_tests;
#[cfg(test)]
mod tests;

pub(crate) use broker::Broker;
