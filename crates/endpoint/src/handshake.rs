//! The end-to-end handshake between console and agent, which merely passes through the mediator.
//!
//! Console: [`Offer::begin`], then [`Offer::finish`] with the agent's answer. Agent: [`answer`].
//! Both end in [`Established`]: the session's keys and what the peer said of itself. Nothing else
//! of the session may have an effect before the peer proved possession of these keys.

use std::time::Duration;

use adit_net::{
    identity::DeviceIdentity,
    noise::{self, HandshakeState, NoiseError, signal::SignalCipher},
};
use adit_protocol::{
    candidate::Candidate,
    handshake::{HandshakeContext, SessionKeys, decode_init, decode_reply},
    keys::{KeyError, NoiseCert, PublicKey, random, sha256},
    nat::NatSummary,
    wire,
};
use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use bytes::Bytes;
use prost::Message;
use zeroize::Zeroizing;

use crate::{
    relaying::{rtts_from_wire, rtts_to_wire},
    relays::{RelayKey, Rtts},
};

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// A signature, certificate or payload.
    #[error("peer's handshake is not acceptable: {0}")]
    Key(#[from] KeyError),
    /// The Noise messages do not fit: another key, or not the context that both ends agreed on.
    #[error("handshake does not verify: {0}")]
    Noise(#[from] NoiseError),
    /// The key in use is not the one that the identity certified.
    #[error("peer's Noise key is not certified by its identity")]
    OtherKey,
    /// The post-quantum key or ciphertext is not one.
    #[error("peer's ML-KEM key is malformed")]
    Kem,
}

/// What an end says of itself in the handshake.
pub(crate) struct Own<'a> {
    pub(crate) identity: &'a DeviceIdentity,
    pub(crate) quic_key_sha256: [u8; 32],
    pub(crate) candidates: &'a [Candidate],
    pub(crate) nat: Option<&'a NatSummary>,
    pub(crate) direct: bool,
    /// Measured round trips to relays.
    pub(crate) relay_rtts: &'a [(RelayKey, Duration)],
    /// Head of the partner's audit log that this end saw; empty: none.
    pub(crate) head: Bytes,
}

/// The result of the handshake.
pub(crate) struct Established {
    pub(crate) keys: SessionKeys,
    pub(crate) cipher: SignalCipher,
    pub(crate) peer_quic_sha256: [u8; 32],
    pub(crate) candidates: Vec<Candidate>,
    /// What the peer knows of its NAT.
    pub(crate) nat: Option<NatSummary>,
    /// The peer wants and can do a direct carrier.
    pub(crate) direct: bool,
    /// The peer's round trips to relays.
    pub(crate) relay_rtts: Rtts,
    /// Head of the partner's audit log that the peer saw; empty: none.
    pub(crate) head: Bytes,
    /// Names this handshake in receipts.
    pub(crate) hash: [u8; 32],
}

/// Console: between the two messages.
pub(crate) struct Offer {
    state: HandshakeState,
    random: Zeroizing<[u8; 32]>,
    kem: DecapsulationKey,
}

impl Offer {
    /// Makes message 1 for the agent whose identity certified `agent_noise`.
    pub(crate) fn begin(
        context: &HandshakeContext<'_>,
        own: &Own<'_>,
        agent_noise: &wire::Signed,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let agent_key = NoiseCert::open(context.agent, agent_noise)?;
        let random = Zeroizing::new(random::<32>()?);
        let kem = DecapsulationKey::generate(&ML_KEM_768).map_err(|_| HandshakeError::Kem)?;
        let kem_public =
            kem.encapsulation_key().and_then(|k| k.key_bytes()).map_err(|_| HandshakeError::Kem)?;
        let init = wire::HandshakeInit {
            random: Bytes::copy_from_slice(&random[..]),
            kem_public: Bytes::copy_from_slice(kem_public.as_ref()),
            noise_cert: Some(own.identity.noise_cert.clone()),
            quic_key_sha256: Bytes::copy_from_slice(&own.quic_key_sha256),
            candidates: own.candidates.iter().map(Candidate::to_wire).collect(),
            direct: own.direct,
            relay_rtts: rtts_to_wire(own.relay_rtts),
            nat: own.nat.map(NatSummary::to_wire),
            head: own.head.clone(),
        };
        let mut state = noise::ik_initiator(&context.prologue(), &own.identity.noise, &agent_key)?;
        let message = noise::write_message(&mut state, &init.encode_to_vec())?;
        Ok((Self { state, random, kem }, message))
    }

    /// Reads the agent's message 2.
    pub(crate) fn finish(mut self, message2: &[u8]) -> Result<Established, HandshakeError> {
        let payload = Zeroizing::new(noise::read_message(&mut self.state, message2)?);
        let (reply, r2) = decode_reply(&payload)?;
        let secret = self
            .kem
            .decapsulate(Ciphertext::from(reply.kem_ciphertext.as_ref()))
            .map_err(|_| HandshakeError::Kem)?;
        let hash = noise::handshake_hash(&self.state);
        Ok(Established {
            keys: SessionKeys::derive(&hash, &self.random, &r2, secret.as_ref())?,
            cipher: SignalCipher::new(self.state)?,
            peer_quic_sha256: fixed(&reply.quic_key_sha256)?,
            candidates: Candidate::list_from_wire(&reply.candidates),
            nat: reply.nat.as_ref().map(NatSummary::from_wire),
            direct: reply.direct,
            relay_rtts: rtts_from_wire(&reply.relay_rtts),
            head: reply.head,
            hash,
        })
    }
}

/// Agent: reads message 1, which must come from the console that the context names, and makes
/// message 2. The caller has checked the grant, and that this message 1 was not seen before.
pub(crate) fn answer(
    context: &HandshakeContext<'_>,
    own: &Own<'_>,
    message1: &[u8],
) -> Result<(Established, Vec<u8>), HandshakeError> {
    let mut state = noise::ik_responder(&context.prologue(), &own.identity.noise)?;
    let payload = Zeroizing::new(noise::read_message(&mut state, message1)?);
    let (init, r1) = decode_init(&payload)?;
    require_certified(context.console, &state, init.noise_cert.as_ref())?;

    let kem_key =
        EncapsulationKey::new(&ML_KEM_768, &init.kem_public).map_err(|_| HandshakeError::Kem)?;
    let (ciphertext, secret) = kem_key.encapsulate().map_err(|_| HandshakeError::Kem)?;
    let r2 = Zeroizing::new(random::<32>()?);
    let reply = wire::HandshakeReply {
        random: Bytes::copy_from_slice(&r2[..]),
        kem_ciphertext: Bytes::copy_from_slice(ciphertext.as_ref()),
        quic_key_sha256: Bytes::copy_from_slice(&own.quic_key_sha256),
        candidates: own.candidates.iter().map(Candidate::to_wire).collect(),
        direct: own.direct,
        relay_rtts: rtts_to_wire(own.relay_rtts),
        nat: own.nat.map(NatSummary::to_wire),
        head: own.head.clone(),
    };
    let message2 = noise::write_message(&mut state, &reply.encode_to_vec())?;
    let hash = noise::handshake_hash(&state);
    let established = Established {
        keys: SessionKeys::derive(&hash, &r1, &r2, secret.as_ref())?,
        cipher: SignalCipher::new(state)?,
        peer_quic_sha256: fixed(&init.quic_key_sha256)?,
        candidates: Candidate::list_from_wire(&init.candidates),
        nat: init.nat.as_ref().map(NatSummary::from_wire),
        direct: init.direct,
        relay_rtts: rtts_from_wire(&init.relay_rtts),
        head: init.head,
        hash,
    };
    Ok((established, message2))
}

/// The key that Noise proved must be the one that the granted console's identity certified.
fn require_certified(
    console: PublicKey,
    state: &HandshakeState,
    cert: Option<&wire::Signed>,
) -> Result<(), HandshakeError> {
    let certified = NoiseCert::open(console, cert.ok_or(KeyError::Malformed)?)?;
    if noise::remote_static(state) == Some(certified) {
        Ok(())
    } else {
        Err(HandshakeError::OtherKey)
    }
}

fn fixed(bytes: &[u8]) -> Result<[u8; 32], KeyError> {
    bytes.try_into().map_err(|_| KeyError::Malformed)
}

/// What the grant names message 1 by.
pub(crate) fn message_hash(message1: &[u8]) -> [u8; 32] {
    sha256(message1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use adit_protocol::ids::{ComputerId, SessionId};

    fn context<'a>(console: &DeviceIdentity, agent: &DeviceIdentity) -> HandshakeContext<'a> {
        HandshakeContext {
            session: SessionId([1; 16]),
            tenant: "t",
            computer: ComputerId([2; 16]),
            console: console.signing.public(),
            agent: agent.signing.public(),
            redirector: "ssh",
            targets: &[],
            any_target: false,
        }
    }

    fn own(identity: &DeviceIdentity) -> Own<'_> {
        Own {
            identity,
            quic_key_sha256: [3; 32],
            candidates: &[],
            nat: None,
            direct: true,
            relay_rtts: &[],
            head: Bytes::new(),
        }
    }

    #[test]
    fn both_ends_derive_the_same_keys() {
        let (c, a) = (DeviceIdentity::generate(0).unwrap(), DeviceIdentity::generate(0).unwrap());
        let (offer, m1) = Offer::begin(&context(&c, &a), &own(&c), &a.noise_cert).unwrap();
        let (at_agent, m2) = answer(&context(&c, &a), &own(&a), &m1).unwrap();
        let at_console = offer.finish(&m2).unwrap();
        assert_eq!(at_agent.keys.relay_psk, at_console.keys.relay_psk);
        assert_eq!(at_agent.keys.stun_tag, at_console.keys.stun_tag);
        assert_ne!(at_agent.keys.stun_console, at_agent.keys.stun_agent);
    }

    /// R08: whatever a hostile mediator changes on the way, one end refuses.
    #[test]
    fn swapped_keys_and_contexts_are_refused() {
        let (c, a) = (DeviceIdentity::generate(0).unwrap(), DeviceIdentity::generate(0).unwrap());
        let evil = DeviceIdentity::generate(0).unwrap();
        // Another agent key under the pinned identity.
        assert!(Offer::begin(&context(&c, &a), &own(&c), &evil.noise_cert).is_err());
        let (offer, m1) = Offer::begin(&context(&c, &a), &own(&c), &a.noise_cert).unwrap();
        // Another redirector, target, console.
        let other = HandshakeContext { redirector: "rdp", ..context(&c, &a) };
        assert!(answer(&other, &own(&a), &m1).is_err());
        let any = HandshakeContext { any_target: true, ..context(&c, &a) };
        assert!(answer(&any, &own(&a), &m1).is_err());
        assert!(answer(&context(&evil, &a), &own(&a), &m1).is_err());
        // The mediator answers in the agent's place.
        assert!(answer(&context(&c, &a), &own(&evil), &m1).is_err());
        // A console that has another's certificate but not its key.
        let forged = Own {
            identity: &DeviceIdentity {
                signing: adit_protocol::keys::SigningKey::generate().unwrap(),
                noise: adit_net::identity::NoiseKeypair::generate().unwrap(),
                noise_cert: c.noise_cert.clone(),
            },
            ..own(&c)
        };
        let (_, stolen) = Offer::begin(&context(&c, &a), &forged, &a.noise_cert).unwrap();
        assert!(matches!(
            answer(&context(&c, &a), &own(&a), &stolen),
            Err(HandshakeError::OtherKey)
        ));
        // Changed bytes on the way back.
        let (_, mut m2) = answer(&context(&c, &a), &own(&a), &m1).unwrap();
        let last = m2.len() - 1;
        m2[last] ^= 1;
        assert!(offer.finish(&m2).is_err());
    }
}
