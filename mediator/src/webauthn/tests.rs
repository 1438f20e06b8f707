//! The standard's own test vectors (WebAuthn Level 3 §16, `vectors.json`), and any change to them.

use serde_json::Value;

use super::{
    KeyError, RelyingParty,
    ceremony::{Assertion, Credential, Registration, register, shown},
    to_base64,
};

struct Vector {
    name: String,
    created: (Vec<u8>, Registration),
    got: (Vec<u8>, Assertion),
}

fn party() -> RelyingParty {
    RelyingParty { id: "example.org".into(), origin: "https://example.org".into() }
}

fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

fn vectors() -> Vec<Vector> {
    let all: Value = serde_json::from_str(include_str!("vectors.json")).unwrap();
    let one = |vector: &Value| {
        let (create, get) = (&vector["create"], &vector["get"]);
        let text = |value: &Value| to_base64(&bytes(value));
        Vector {
            name: vector["name"].as_str().unwrap().to_owned(),
            created: (
                bytes(&create["challenge"]),
                Registration {
                    client_data: text(&create["client_data"]),
                    attestation: text(&create["attestation"]),
                },
            ),
            got: (
                bytes(&get["challenge"]),
                Assertion {
                    id: text(&vector["id"]),
                    client_data: text(&get["client_data"]),
                    authenticator_data: text(&get["authenticator_data"]),
                    signature: text(&get["signature"]),
                },
            ),
        }
    };
    all.as_array().unwrap().iter().map(one).collect()
}

fn good() -> impl Iterator<Item = (Vector, Credential)> {
    vectors().into_iter().filter_map(|vector| {
        let (credential, _) = register(&vector.created.1, &vector.created.0, &party()).ok()?;
        Some((vector, credential))
    })
}

#[test]
fn the_standards_vectors_are_judged_as_it_says() {
    let mut accepted = Vec::new();
    for vector in vectors() {
        let made = register(&vector.created.1, &vector.created.0, &party());
        // Pages inside pages are never ours.
        if vector.name.ends_with("Origin") {
            assert_eq!(made.unwrap_err(), KeyError::Origin, "{}", vector.name);
            continue;
        }
        let (credential, counter) = made.unwrap();
        assert_eq!(counter, 0);
        let stored = Credential::from_bytes(&credential.to_bytes()).unwrap();
        let counter = shown(&vector.got.1, &vector.got.0, &party(), &stored, 0);
        assert_eq!(counter, Ok(0), "{}", vector.name);
        accepted.push(vector.name);
    }
    assert_eq!(
        accepted,
        [
            "none-es256",
            "packed-self-es256",
            "none-es256-long-credential-id",
            "packed-rs256",
            "packed-eddsa"
        ]
    );
}

/// Another question, page, site, key or ceremony; a counter that went back.
#[test]
fn what_was_made_for_something_else_is_refused_with_the_reason() {
    let all: Vec<_> = good().collect();
    for (n, (vector, credential)) in all.iter().enumerate() {
        let (challenge, answer) = &vector.got;
        let check = |challenge: &[u8], party: &RelyingParty, last| {
            shown(answer, challenge, party, credential, last)
        };
        assert_eq!(check(&[0; 32], &party(), 0), Err(KeyError::Challenge));
        assert_eq!(check(&challenge[..31], &party(), 0), Err(KeyError::Challenge));
        let page = RelyingParty { origin: "https://example.org:8443".into(), ..party() };
        assert_eq!(check(challenge, &page, 0), Err(KeyError::Origin));
        let site = RelyingParty { id: "example.com".into(), ..party() };
        assert_eq!(check(challenge, &site, 0), Err(KeyError::RelyingParty));
        assert_eq!(check(challenge, &party(), 1), Err(KeyError::Counter));
        let (_, other) = &all[(n + 1) % all.len()];
        assert_eq!(
            shown(answer, challenge, &party(), other, 0),
            Err(KeyError::Credential),
            "{}",
            vector.name
        );
        let registration = Registration {
            client_data: answer.client_data.clone(),
            attestation: vector.created.1.attestation.clone(),
        };
        assert_eq!(register(&registration, challenge, &party()), Err(KeyError::Type));
    }
}

/// Each bit of what is signed or signs counts; nothing that is read can panic.
#[test]
fn any_flipped_bit_is_refused() {
    for (vector, credential) in good() {
        let (challenge, answer) = &vector.got;
        for part in 0..3 {
            let texts = [&answer.client_data, &answer.authenticator_data, &answer.signature];
            let whole = super::from_base64(texts[part]).unwrap();
            for bit in (0..whole.len() * 8).step_by(3) {
                let mut bytes = whole.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                let mut changed = answer.clone();
                let place = match part {
                    0 => &mut changed.client_data,
                    1 => &mut changed.authenticator_data,
                    _ => &mut changed.signature,
                };
                *place = to_base64(&bytes);
                let judged = shown(&changed, challenge, &party(), &credential, 0);
                assert!(judged.is_err(), "{} part {part} bit {bit}", vector.name);
            }
        }
        let (challenge, answer) = &vector.created;
        let whole = super::from_base64(&answer.attestation).unwrap();
        for cut in 0..whole.len() {
            let short = Registration {
                client_data: answer.client_data.clone(),
                attestation: to_base64(&whole[..cut]),
            };
            assert!(register(&short, challenge, &party()).is_err(), "cut at {cut}");
        }
    }
}
