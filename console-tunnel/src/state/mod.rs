//! What the console keeps in its data directory: account, session token, known agents; and the
//! computers that it knows by them.
//!
//! Secrets are files of their own, 0600, and never part of anything that is printed.

pub mod account;
pub mod book;
pub mod computer;
pub mod known;
pub mod recent;

pub use account::{Account, MediatorTrust};
pub use computer::{KnownComputer, KnownRedirector, Selector};
pub use known::{KnownAgents, Verdict};
