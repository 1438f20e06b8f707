//! The harness of the end-to-end tests: the real programs, on this machine or in a laboratory of
//! network namespaces, started, watched, killed and questioned from outside.
//!
//! - [`process`]: programs as children that end with us; JSON lines they print as events
//! - [`site`]: an installation: mediator, relays, agents, consoles, each with a data directory
//! - [`lab`]: natlab, the network namespaces
//! - [`peer`]: what sits at both ends of a forward: echo, bulk that is compared, datagrams
//! - [`paths`]: pairs and changes of networks, against what theory says
//! - [`browser`]: Chromium, and an identity provider
//! - [`capture`]: packets, searched for plaintext
//! - [`clock`]: a program's time of day, moved
//!
//! It knows the programs' contract only and imports none of their code. Tests that use it are
//! behind the feature `e2e`, which `cargo xtask test` turns on; nothing is ever skipped.
//!
//! [`decoders`] is apart: what the fuzz targets and the replay of their corpus call.

pub mod browser;
pub mod capture;
pub mod clock;
pub mod decoders;
pub mod lab;
pub mod paths;
pub mod peer;
pub mod process;
pub mod site;
