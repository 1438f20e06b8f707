//! What Adit's programs say to each other: wire messages, ids, limits, keys, grants, tickets.
//!
//! Everything here is pure: no IO, no runtime, no clock. Each decoder takes bytes that a peer
//! sent and gives a typed value or an error, never a panic. The formats are described in
//! `docs/protocol.md`; a change here without a change there fails `cargo xtask ci`.
//!
//! - [`wire`]: protobuf messages of the control connection and of all payloads
//! - [`ids`]: typed identifiers
//! - [`keys`]: Ed25519 identities, fingerprints, signed envelopes, certified keys
//! - [`grant`], [`ticket`], [`token`]: what the mediator signs and gives out
//! - [`handshake`]: prologues, key schedule, payload checks of the end-to-end handshake
//! - [`record`]: what flows inside a carrier
//! - [`sealed`]: a credential's way to the console that uses it
//! - [`target`], [`candidate`], [`nat`], [`code`], [`limits`]

pub mod candidate;
pub mod code;
pub mod dpop;
pub mod grant;
pub mod handshake;
pub mod ids;
pub mod keys;
pub mod limits;
pub mod nat;
pub mod record;
pub mod sealed;
pub mod target;
pub mod ticket;
pub mod token;

/// Protobuf messages, generated from `proto/adit.proto`.
#[expect(missing_docs, reason = "generated; the meaning is in adit.proto and docs/protocol.md")]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/adit.v1.rs"));
}

/// ALPN of the control connection and protocol version.
pub const ALPN_CONTROL: &[u8] = b"adit/1";
/// ALPN of the direct (QUIC) carrier.
pub const ALPN_DIRECT: &[u8] = b"adit-direct/1";
/// Protocol version sent in `Hello`.
pub const PROTOCOL_VERSION: u32 = 1;
