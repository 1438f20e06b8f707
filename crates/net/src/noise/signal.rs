//! Messages after the end-to-end handshake, carried by the mediator: late candidates.
//!
//! They may be lost or repeated, never accepted twice: nonces must rise strictly.

use adit_protocol::limits::{MAX_NOISE_PAYLOAD, NOISE_TAG};

use super::{HandshakeState, NoiseError};

/// Seals and opens the payloads of `wire::Signal`.
pub struct SignalCipher {
    state: snow::StatelessTransportState,
    next_out: u64,
    /// INVARIANT: every nonce below was accepted or skipped for good.
    next_in: u64,
}

impl SignalCipher {
    /// After both messages of the handshake.
    pub fn new(handshake: HandshakeState) -> Result<Self, NoiseError> {
        let state = handshake.into_stateless_transport_mode()?;
        Ok(Self { state, next_out: 0, next_in: 0 })
    }

    /// Seals a payload; gives nonce and ciphertext.
    pub fn seal(&mut self, payload: &[u8]) -> Result<(u64, Vec<u8>), NoiseError> {
        if payload.len() > MAX_NOISE_PAYLOAD {
            return Err(NoiseError::TooLong);
        }
        let nonce = self.next_out;
        let mut out = vec![0; payload.len() + NOISE_TAG];
        let len = self.state.write_message(nonce, payload, &mut out)?;
        self.next_out = nonce.checked_add(1).ok_or(NoiseError::Nonce)?;
        out.truncate(len);
        Ok((nonce, out))
    }

    /// Opens a payload whose nonce is above all accepted ones.
    pub fn open(&mut self, nonce: u64, sealed: &[u8]) -> Result<Vec<u8>, NoiseError> {
        if nonce < self.next_in {
            return Err(NoiseError::Nonce);
        }
        let mut out = vec![0; sealed.len()];
        let len = self.state.read_message(nonce, sealed, &mut out)?;
        self.next_in = nonce.checked_add(1).ok_or(NoiseError::Nonce)?;
        out.truncate(len);
        Ok(out)
    }
}

impl std::fmt::Debug for SignalCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignalCipher")
    }
}
