//! Whatever a browser could send as an answer of a security key, for fuzzing and replay.

use super::{
    RelyingParty, authenticator,
    ceremony::{Assertion, Credential, Registration, register, shown},
    client, from_base64,
};

/// A key of `example.org` that was registered and shown: the answers and their challenges.
#[derive(Debug, Clone)]
pub struct KeyFixture {
    /// Challenge of the registration.
    pub created: Vec<u8>,
    /// Answer to it, JSON.
    pub registration: Vec<u8>,
    /// Challenge of the assertion.
    pub got: Vec<u8>,
    /// Answer to it, JSON.
    pub assertion: Vec<u8>,
}

/// Reads the bytes as each part of an answer, and as a whole one. Whether it was accepted.
///
/// # Panics
///
/// If an assertion is accepted that the key did not sign, or a key does not read back.
pub fn webauthn(data: &[u8], fixture: &KeyFixture) -> bool {
    let party = RelyingParty { id: "example.org".into(), origin: "https://example.org".into() };
    let mut accepted = false;
    for bytes in authenticator::of_attestation(data).into_iter().chain([data.to_vec()]) {
        accepted |= authenticator::read(&bytes, &party.id).is_ok();
    }
    accepted |= client::check(data, client::CREATE, &fixture.created, &party).is_ok();
    accepted |= client::check(data, client::GET, &fixture.got, &party).is_ok();
    let registered = |json: &[u8]| {
        let answer: Registration = serde_json::from_slice(json).ok()?;
        register(&answer, &fixture.created, &party).ok().map(|(credential, _)| credential)
    };
    if let Some(credential) = registered(data) {
        assert_eq!(Credential::from_bytes(&credential.to_bytes()).as_ref(), Some(&credential));
        accepted = true;
    }
    let good = serde_json::from_slice::<Assertion>(&fixture.assertion).ok();
    let answer = serde_json::from_slice::<Assertion>(data).ok();
    let key = registered(&fixture.registration);
    if let (Some(good), Some(answer), Some(key)) = (good, answer, key)
        && shown(&answer, &fixture.got, &party, &key, 0).is_ok()
    {
        // The signature itself may be written differently: ECDSA is malleable.
        let signed = |answer: &Assertion| {
            (from_base64(&answer.client_data), from_base64(&answer.authenticator_data))
        };
        assert!(signed(&answer) == signed(&good), "accepted, and never signed");
        accepted = true;
    }
    accepted
}
