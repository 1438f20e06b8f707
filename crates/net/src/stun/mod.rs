//! STUN (RFC 8489): discovery of reflexive addresses, NAT behaviour (RFC 5780), and the checks
//! by which console and agent prove a path to each other.
//!
//! Nothing here trusts a packet for having parsed: a check counts only after
//! [`verify_integrity`] said yes with the key of the right direction, and an answer only for a
//! transaction that is outstanding.

pub mod client;
mod codec;
pub mod explore;
mod filtering;
mod integrity;
mod rate;
pub mod server;

pub use client::{Mapping, MappingBehaviour, StunClient};
pub use codec::{
    Change, MAX_STUN, StunClass, StunPacket, encode_behaviour_request, encode_behaviour_response,
    encode_binding_request, encode_binding_response, encode_check, encode_check_response,
    looks_like_stun, parse,
};
pub use filtering::{FilteringBehaviour, FilteringProbe};
pub use integrity::verify_integrity;
pub use server::{StunSockets, serve};
