//! What is signed or sealed: certified keys, enrolments, credentials.

use adit_control::client::MediatorKeys;
use adit_protocol::{
    ids::SessionId,
    keys::{KeyCert, NoiseCert, PublicKey, Purpose, context},
    sealed::{CredentialContext, open, seal},
    wire,
};
use bytes::Bytes;
use prost::Message as _;

use super::{noise_key, signing_key};

/// Certified keys and enrolments behind a signature that holds, keys as TLS shows them.
pub(super) fn certified(data: &[u8]) -> bool {
    let Some(key) = signing_key() else { return false };
    let signed = |context: &str| wire::Signed {
        payload: Bytes::copy_from_slice(data),
        signature: Bytes::copy_from_slice(&key.sign(context, data)),
    };
    let spki = PublicKey::from_spki(data);
    if let Ok(spki) = spki {
        assert_eq!(spki.to_spki().as_slice(), data, "two encodings of one key");
    }
    let cert = signed(context::KEY_CERT);
    let purposes = [Purpose::Grant, Purpose::Ticket, Purpose::Log];
    let of = purposes.map(|purpose| KeyCert::open(key.public(), purpose, &cert).is_ok());
    assert!(of.iter().filter(|is| **is).count() <= 1, "a key for two purposes");
    let _ = MediatorKeys::open(key.public(), &[cert], 1);
    let noise = NoiseCert::open(key.public(), &signed(context::NOISE_KEY));
    let body = wire::EnrollBody::decode(data);
    spki.is_ok() | of.contains(&true) | noise.is_ok() | body.is_ok()
}

pub(super) fn valid_certified() -> Vec<Vec<u8>> {
    let Some(key) = signing_key() else { return Vec::new() };
    let cert = KeyCert { key: key.public(), not_before_ms: 1, not_after_ms: 2 };
    let purposes = [Purpose::Grant, Purpose::Ticket, Purpose::Log];
    let certs = purposes.map(|purpose| KeyCert::issue(&key, purpose, &cert).payload.to_vec());
    let noise = NoiseCert::issue(&key, [7; 32], 1).payload.to_vec();
    certs.into_iter().chain([noise, key.public().to_spki().to_vec()]).collect()
}

const SECRET: &[u8] = b"hunter2";
const PRIVATE: [u8; 32] = [9; 32];

const CONTEXT: CredentialContext<'_> = CredentialContext {
    session: SessionId([3; 16]),
    console: PublicKey([2; 32]),
    credential: "c-1",
};

/// Credentials on their way to a console: nothing opens but what was sealed.
pub(super) fn sealed(data: &[u8]) -> bool {
    let opened = open(&PRIVATE, &CONTEXT, data);
    if let Ok(opened) = &opened {
        assert_eq!(opened.as_slice(), SECRET, "opened, and never sealed");
    }
    opened.is_ok()
}

pub(super) fn valid_sealed() -> Vec<Vec<u8>> {
    let sealed = noise_key(9).and_then(|own| seal(&own.public, &CONTEXT, SECRET).ok());
    sealed.into_iter().collect()
}
