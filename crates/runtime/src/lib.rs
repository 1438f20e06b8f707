//! Process plumbing that the four programs share. No module here knows what a session is.
//!
//! - [`cli`]: errors with exit codes, global options, parsing, completions and man pages
//! - [`output`]: the asked-for output on stdout, one JSON object a line with `--json`
//! - [`people`]: the same for people, as lines and tables
//! - [`config`]: TOML, environment and flags, with the origin of each value
//! - [`datadir`]: the data directory, atomic writes, secrets, the lock of a running program
//! - [`dumps`]: none of them
//! - [`interrupt`]: Ctrl-C while a command waits, for whatever it waits
//! - [`local`]: the socket through which local commands talk to a running program
//! - [`logging`], [`metrics`]: what operators see
//! - [`shutdown`], [`supervise`]: signals, and tasks that are never lost
//! - [`secretio`]: secrets from stdin, files and the environment
//! - [`time`]: RFC 3339 timestamps
//!
//! Invariants: stdout carries nothing but the asked-for output; secrets are never printed or
//! logged; everything that reads from outside has a limit and a deadline.

pub mod cli;
pub mod config;
pub mod datadir;
pub mod dumps;
pub mod interrupt;
pub mod local;
pub mod logging;
pub mod metrics;
pub mod output;
pub mod people;
pub mod secretio;
pub mod shutdown;
pub mod supervise;
pub mod time;
