//! The local socket: how `status`, `sessions end` or `token` reach the running program.
//!
//! A connection carries one request, a line of JSON, and its answer: lines `{"reply":…}`, then
//! `{"done":true}` or `{"error":{…}}`, so that a cut answer never looks complete. Only the
//! owner of the data directory gets in: the socket is 0600 in a 0700 directory and the peer's
//! user is checked. Never reachable over the network.

mod client;
mod platform;
mod server;
mod wire;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use client::{LocalClient, LocalError};
pub use server::LocalServer;
#[doc(hidden)]
pub use wire::fuzz_line;

/// Connections served at a time; more wait in the system's queue.
pub const MAX_CONNECTIONS: usize = 64;

/// A request, with its newline.
pub const MAX_REQUEST_BYTES: usize = 1024 * 1024;

/// All lines of an answer together.
pub const MAX_REPLY_BYTES: usize = 64 * 1024 * 1024;

/// For a client to send its request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// For a client to take its answer.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Path of the socket of the program `name` in a data directory.
pub fn socket_path(data_dir: &Path, name: &str) -> PathBuf {
    data_dir.join(format!("{name}.sock"))
}

#[cfg(test)]
mod tests;
