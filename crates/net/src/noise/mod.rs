//! Noise handshakes and the relayed carrier's records.
//!
//! - [`ik_initiator`], [`ik_responder`]: end-to-end handshake and relay joins
//! - [`signal`]: what is trickled after the end-to-end handshake
//! - [`records`]: the relayed carrier's handshake and records
//! - [`join`]: joining a relay, both sides
//!
//! Only `25519_AESGCM_SHA256`, all of it by aws-lc. Secrets never travel in handshake hashes,
//! which whoever carries the messages knows; they travel in payloads.

pub mod join;
pub mod records;
mod resolver;
pub mod signal;

use adit_protocol::{handshake::NOISE_IK, limits::MAX_NOISE_MESSAGE};
pub use resolver::AwsLc;
pub use snow::HandshakeState;

use crate::identity::NoiseKeypair;

pub use records::{RecordOpener, RecordSealer, RelayedHandshake};

/// Why a handshake or record was not accepted or could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoiseError {
    /// The peer's message does not authenticate: wrong key, wrong context, or altered.
    #[error("handshake or record does not authenticate: wrong key or altered on the way")]
    Refused,
    /// The message is too short, too long, or out of turn.
    #[error("noise message is malformed")]
    Malformed,
    /// Our own payload does not fit into a message.
    #[error("payload does not fit into a noise message")]
    TooLong,
    /// A counter is used up, or a nonce did not rise.
    #[error("noise nonce is used up or was used before")]
    Nonce,
    /// The library refused a key or gave no randomness.
    #[error("cryptographic library failed")]
    Crypto,
}

impl From<snow::Error> for NoiseError {
    fn from(error: snow::Error) -> Self {
        match error {
            snow::Error::Decrypt | snow::Error::Dh => Self::Refused,
            snow::Error::Input => Self::Malformed,
            snow::Error::State(snow::error::StateProblem::Exhausted) => Self::Nonce,
            snow::Error::State(_) => Self::Malformed,
            _ => Self::Crypto,
        }
    }
}

/// A builder for one of the two patterns with our primitives.
pub fn builder<'a>(pattern: &str, prologue: &'a [u8]) -> Result<snow::Builder<'a>, NoiseError> {
    let params = pattern.parse().map_err(|_| NoiseError::Crypto)?;
    Ok(snow::Builder::with_resolver(params, Box::new(AwsLc)).prologue(prologue)?)
}

/// Starts `Noise_IK` towards a known key.
pub fn ik_initiator(
    prologue: &[u8],
    own: &NoiseKeypair,
    remote: &[u8; 32],
) -> Result<HandshakeState, NoiseError> {
    Ok(builder(NOISE_IK, prologue)?
        .local_private_key(&own.private[..])?
        .remote_public_key(remote)?
        .build_initiator()?)
}

/// Waits for `Noise_IK` from whoever knows our key.
pub fn ik_responder(prologue: &[u8], own: &NoiseKeypair) -> Result<HandshakeState, NoiseError> {
    Ok(builder(NOISE_IK, prologue)?.local_private_key(&own.private[..])?.build_responder()?)
}

/// Writes our next handshake message.
pub fn write_message(state: &mut HandshakeState, payload: &[u8]) -> Result<Vec<u8>, NoiseError> {
    // Keys and tags of one handshake message: at most two keys and two tags.
    const OVERHEAD: usize = 128;
    let mut out = vec![0; (payload.len() + OVERHEAD).min(MAX_NOISE_MESSAGE)];
    let len = state.write_message(payload, &mut out).map_err(|e| match e {
        snow::Error::Input => NoiseError::TooLong,
        e => e.into(),
    })?;
    out.truncate(len);
    Ok(out)
}

/// Reads the peer's next handshake message and gives its payload.
pub fn read_message(state: &mut HandshakeState, message: &[u8]) -> Result<Vec<u8>, NoiseError> {
    if message.len() > MAX_NOISE_MESSAGE {
        return Err(NoiseError::Malformed);
    }
    let mut out = vec![0; message.len()];
    let len = state.read_message(message, &mut out)?;
    out.truncate(len);
    Ok(out)
}

/// The key that the peer proved to hold.
pub fn remote_static(state: &HandshakeState) -> Option<[u8; 32]> {
    state.get_remote_static()?.try_into().ok()
}

/// Hash over everything that was said so far; no secret.
pub fn handshake_hash(state: &HandshakeState) -> [u8; 32] {
    let mut out = [0; 32];
    out.iter_mut().zip(state.get_handshake_hash()).for_each(|(o, h)| *o = *h);
    out
}
