//! The end-to-end handshake between console and agent: prologue, payload checks, key schedule.
//!
//! `Noise_IK_25519_AESGCM_SHA256`; offer and answer pass through the mediator. The session's
//! root secret needs both payload randoms and the ML-KEM secret, which only the two ends know;
//! the handshake hash, which the mediator also knows, is merely the salt.

use aws_lc_rs::hkdf;
use prost::Message;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{
    ids::{CarrierNumber, ComputerId, SessionId},
    keys::{KeyError, PublicKey},
    target::Target,
    wire,
};

/// Noise protocol name of the end-to-end handshake and of relay joins.
pub const NOISE_IK: &str = "Noise_IK_25519_AESGCM_SHA256";
/// Noise protocol name of the relayed carrier.
pub const NOISE_NNPSK0: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
/// First part of every prologue.
pub const VERSION_TAG: &[u8] = b"adit/1";

/// What both ends must agree on before a word is exchanged.
#[derive(Debug, Clone)]
pub struct HandshakeContext<'a> {
    /// Picked by the console.
    pub session: SessionId,
    /// Partner id.
    pub tenant: &'a str,
    /// The computer.
    pub computer: ComputerId,
    /// The console's identity.
    pub console: PublicKey,
    /// The agent's identity.
    pub agent: PublicKey,
    /// Name of the redirector.
    pub redirector: &'a str,
    /// Targets in the order of the grant.
    pub targets: &'a [Target],
    /// SOCKS: any target.
    pub any_target: bool,
}

impl HandshakeContext<'_> {
    /// The Noise prologue: every part length-prefixed, so that no two contexts collide.
    pub fn prologue(&self) -> Vec<u8> {
        let targets: Vec<String> = self.targets.iter().map(|t| format!("{t:?}")).collect();
        let any: &[u8] = if self.any_target { b"*" } else { b"" };
        prologue(&[
            VERSION_TAG,
            &self.session.0,
            self.tenant.as_bytes(),
            &self.computer.0,
            &self.console.0,
            &self.agent.0,
            self.redirector.as_bytes(),
            targets.join(",").as_bytes(),
            any,
        ])
    }
}

/// Prologue of a relayed carrier's handshake.
pub fn relayed_prologue(session: SessionId, carrier: CarrierNumber) -> Vec<u8> {
    prologue(&[VERSION_TAG, b"relayed", &session.0, &carrier.0.to_be_bytes()])
}

/// Prologue of a relay join's handshake.
pub fn join_prologue() -> Vec<u8> {
    prologue(&[VERSION_TAG, b"join"])
}

fn prologue(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        out.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// Reads a payload whose random must be whole.
pub fn decode_init(payload: &[u8]) -> Result<(wire::HandshakeInit, [u8; 32]), KeyError> {
    let init = wire::HandshakeInit::decode(payload).map_err(|_| KeyError::Malformed)?;
    let random = init.random.as_ref().try_into().map_err(|_| KeyError::Malformed)?;
    Ok((init, random))
}

/// Reads a payload whose random must be whole.
pub fn decode_reply(payload: &[u8]) -> Result<(wire::HandshakeReply, [u8; 32]), KeyError> {
    let reply = wire::HandshakeReply::decode(payload).map_err(|_| KeyError::Malformed)?;
    let random = reply.random.as_ref().try_into().map_err(|_| KeyError::Malformed)?;
    Ok((reply, random))
}

/// Keys of a session, all derived from its root secret.
#[derive(Zeroize, ZeroizeOnDrop, Clone)]
pub struct SessionKeys {
    /// Pre-shared key of every relayed carrier.
    pub relay_psk: [u8; 32],
    /// MESSAGE-INTEGRITY key of checks that the console sends and the agent answers.
    pub stun_console: [u8; 32],
    /// MESSAGE-INTEGRITY key of checks that the agent sends and the console answers.
    pub stun_agent: [u8; 32],
    /// USERNAME of checks: a random tag that says nothing.
    pub stun_tag: [u8; 16],
}

impl SessionKeys {
    /// HKDF-SHA256 (RFC 5869): salt = handshake hash, input = r1 ‖ r2 ‖ KEM secret.
    pub fn derive(
        handshake_hash: &[u8],
        r1: &[u8; 32],
        r2: &[u8; 32],
        kem_secret: &[u8],
    ) -> Result<Self, KeyError> {
        let mut input = [&r1[..], &r2[..], kem_secret].concat();
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, handshake_hash).extract(&input);
        input.zeroize();
        let mut keys = Self {
            relay_psk: [0; 32],
            stun_console: [0; 32],
            stun_agent: [0; 32],
            stun_tag: [0; 16],
        };
        expand(&root, b"adit/1 relayed carrier psk", &mut keys.relay_psk)?;
        expand(&root, b"adit/1 stun console", &mut keys.stun_console)?;
        expand(&root, b"adit/1 stun agent", &mut keys.stun_agent)?;
        expand(&root, b"adit/1 stun tag", &mut keys.stun_tag)?;
        Ok(keys)
    }
}

struct Len(usize);
impl hkdf::KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand(root: &hkdf::Prk, label: &[u8], out: &mut [u8]) -> Result<(), KeyError> {
    root.expand(&[label], Len(out.len()))
        .and_then(|okm| okm.fill(out))
        .map_err(|_| KeyError::Crypto)
}

impl std::fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKeys")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Transport;

    #[test]
    fn contexts_that_differ_anywhere_have_different_prologues() {
        let key = PublicKey([1; 32]);
        let target = Target::parse("a:1", Transport::Tcp).unwrap();
        let udp = Target::parse("a:1", Transport::Udp).unwrap();
        let base = HandshakeContext {
            session: SessionId([1; 16]),
            tenant: "ab",
            computer: ComputerId([2; 16]),
            console: key,
            agent: key,
            redirector: "c",
            targets: &[],
            any_target: false,
        };
        let all = [
            base.prologue(),
            HandshakeContext { tenant: "a", redirector: "bc", ..base.clone() }.prologue(),
            HandshakeContext { session: SessionId([3; 16]), ..base.clone() }.prologue(),
            HandshakeContext { computer: ComputerId([3; 16]), ..base.clone() }.prologue(),
            HandshakeContext { console: PublicKey([2; 32]), ..base.clone() }.prologue(),
            HandshakeContext { agent: PublicKey([2; 32]), ..base.clone() }.prologue(),
            HandshakeContext { targets: &[target], ..base.clone() }.prologue(),
            HandshakeContext { targets: &[udp], ..base.clone() }.prologue(),
            HandshakeContext { any_target: true, ..base }.prologue(),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn each_secret_changes_every_key() {
        let k = |h: &[u8], r1, r2, kem: &[u8]| SessionKeys::derive(h, &r1, &r2, kem).unwrap();
        let base = k(b"h", [1; 32], [2; 32], b"kem");
        for other in [
            k(b"i", [1; 32], [2; 32], b"kem"),
            k(b"h", [0; 32], [2; 32], b"kem"),
            k(b"h", [1; 32], [0; 32], b"kem"),
            k(b"h", [1; 32], [2; 32], b"ken"),
        ] {
            assert_ne!(base.relay_psk, other.relay_psk);
            assert_ne!(base.stun_console, other.stun_console);
            assert_ne!(base.stun_tag, other.stun_tag);
        }
        assert_ne!(base.stun_console, base.stun_agent);
    }
}
