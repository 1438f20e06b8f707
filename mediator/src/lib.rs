//! The mediator: authenticates agents, consoles and relays, decides, writes the audit record,
//! and brokers sessions.
//!
//! - `core`: the broker, a state machine without IO
//! - `store`: SQLite, the one writer, the audit log on disk
//! - `serve`: sockets; drives the broker and answers devices
//! - `http`: the API and pages
//! - `proof`: evidence for the ends of sessions, receipts
//! - `mfa`: second factors; `vault`: secrets at rest
//! - `admin`: what the machine's administrator may do, through one request type
//! - `audit`: the log's search, levels, retention and forwarding
//! - `age`: files that only named recipients can read
//! - `cli`: the command line
//!
//! Invariants: nothing is granted before its audit record is durable; session data never comes
//! here; what a peer sends is bounded, and nobody who is not authenticated gets more than a
//! refusal.

pub(crate) mod admin;
pub(crate) mod age;
pub(crate) mod audit;
pub(crate) mod authz;
pub(crate) mod bucket;
pub mod cli;
pub(crate) mod config;
pub(crate) mod core;
#[doc(hidden)]
pub mod decoders;
pub(crate) mod http;
pub(crate) mod init;
pub(crate) mod installation;
pub(crate) mod mfa;
pub(crate) mod names;
pub(crate) mod oidc;
pub(crate) mod pages;
pub(crate) mod password;
pub(crate) mod place;
pub(crate) mod proof;
pub(crate) mod requests;
pub(crate) mod restore;
pub(crate) mod roles;
pub(crate) mod serve;
pub(crate) mod signatures;
pub(crate) mod store;
pub(crate) mod tenancy;
pub(crate) mod vault;
pub(crate) mod webauthn;
pub mod wipe;
