//! The rules of docs/security-rules.md that only the programs themselves can show.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "JSON values give null for what is not there; figures of tests"
)]

mod audit;
mod blocks;
mod certificates;
mod durable;
mod kill;
mod revocation;
mod secrets;
mod service;
mod tickets;
mod tls;

use std::net::SocketAddr;

use adit_tests::site::Site;
use anyhow::Result;

/// The ports that anybody can reach: the mediator's and the relay's.
fn both_ports(site: &Site) -> Result<[SocketAddr; 2]> {
    Ok([SocketAddr::from(([127, 0, 0, 1], site.port)), site.relay_addr("relay")?])
}
