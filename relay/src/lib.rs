//! The relay: checks a ticket, pairs two connections, copies without looking.
//!
//! A connection becomes a join by a Noise handshake to the relay's key with a ticket of the
//! mediator (`docs/protocol.md`, "Relay join"); two joins of one session and slot become a pair;
//! a pair is copied until it ends. The relay holds no database: tickets are verified by
//! published keys, and everything it knows of a session is gone with its connections.
//!
//! - [`core`]: the rules as state machines
//! - [`splice`]: moving bytes between the two ends of a pair
//! - [`join`], [`trust`]: a connection's way to a join, and whose tickets count
//! - [`hub`]: drives the rules, owns the connections
//! - [`listen`], [`control`]: towards clients, towards the mediator
//! - [`config`], [`capacity`], [`enrolment`], [`metrics`], [`errors`], [`cmd`]: the program
//!
//! Invariants: nothing a client sends is parsed beyond its join; nothing of it is kept; every
//! table and wait has a limit; without the mediator the relay goes on with what it knows.

pub mod capacity;
pub mod cmd;
pub mod config;
pub mod control;
pub mod core;
pub mod enrolment;
pub mod errors;
pub mod hub;
pub mod join;
pub mod listen;
pub mod metrics;
pub mod splice;
pub mod trust;
