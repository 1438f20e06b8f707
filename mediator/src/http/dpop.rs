//! Proofs of possession as RFC 9449 asks for them: EdDSA only, each good once.
//!
//! Every proof carries a nonce of this process (RFC 9449 §8), so that none outlives a restart or
//! an error of a clock; within a nonce's life each proof's id counts once. Must never take a
//! proof whose id it cannot remember: when there is no room, it is busy.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use adit_protocol::{
    dpop::{MAX_PROOF, Parts, base64url, from_base64url, token_hash},
    keys::{PublicKey, random, sha256},
};
use aws_lc_rs::hmac;
use serde::Deserialize;

/// How long a nonce is given out.
const STEP: Duration = Duration::from_secs(60);
/// How many steps it is good for beyond its own.
const STEPS: u64 = 4;
/// How far a proof's time may be off, seconds.
pub(crate) const MAX_SKEW_S: u64 = 300;
/// Ids remembered in all.
const MAX_IDS: usize = 400_000;
/// Characters of a proof's id.
const ID_CHARS: std::ops::RangeInclusive<usize> = 8..=128;
/// Bytes of a nonce's authenticator.
const TAG: usize = 16;

/// Why a proof is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// It cannot be read, or is not signed by its key.
    #[error("the DPoP header holds no proof that verifies")]
    Unreadable,
    /// Another algorithm or type.
    #[error("a proof is a JWS of type dpop+jwt, alg EdDSA, with an Ed25519 public key as jwk")]
    Kind,
    /// Of another request.
    #[error("the proof is for another method or URL")]
    OtherRequest,
    /// Of another token.
    #[error("the proof is for another token")]
    OtherToken,
    /// Its time is off.
    #[error("the proof's time is more than 5 minutes off: check the clock")]
    Time,
    /// Without the nonce, or with an old one: try again with the one in the answer.
    #[error("the proof needs the nonce of this answer's DPoP-Nonce header")]
    Nonce,
    /// Seen before.
    #[error("the proof was used before")]
    Replayed,
    /// Too many proofs.
    #[error("too many proofs at once")]
    Busy,
}

#[derive(Deserialize)]
struct Header {
    typ: String,
    alg: String,
    jwk: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Payload {
    jti: String,
    htm: String,
    htu: String,
    iat: f64,
    ath: String,
    #[serde(default)]
    nonce: String,
}

/// What a proof must be about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) hosts: &'a [String],
    pub(crate) token: &'a str,
    pub(crate) now_s: u64,
}

/// Judges proofs.
pub(crate) struct Proofs {
    key: hmac::Key,
    started: Instant,
    used: Mutex<Used>,
}

#[derive(Default)]
struct Used {
    count: usize,
    by_step: BTreeMap<u64, HashSet<[u8; 16]>>,
}

/// A proof that holds, and was not used up yet.
#[derive(Debug, PartialEq)]
pub(crate) struct Checked {
    /// Whose.
    pub(crate) key: PublicKey,
    id: String,
    step: u64,
}

impl Proofs {
    /// With a fresh key for nonces; `None` without randomness.
    pub(crate) fn new() -> Option<Self> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &random::<32>().ok()?);
        Some(Self { key, started: Instant::now(), used: Mutex::default() })
    }

    fn step(&self) -> u64 {
        self.started.elapsed().as_secs() / STEP.as_secs()
    }

    /// The nonce that proofs should carry now.
    pub(crate) fn nonce(&self) -> String {
        self.nonce_of(self.step())
    }

    fn nonce_of(&self, step: u64) -> String {
        let tag = hmac::sign(&self.key, &step.to_be_bytes());
        let tag = tag.as_ref().get(..TAG).unwrap_or_default();
        base64url(&[&step.to_be_bytes()[..], tag].concat())
    }

    /// The step of a nonce that still holds.
    fn step_of(&self, nonce: &str, now: u64) -> Option<u64> {
        let bytes = from_base64url(nonce).ok()?;
        let step = u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
        let fresh = step <= now && step + STEPS >= now;
        // The tag covers the step alone: comparing texts in constant time guards it.
        let own = self.nonce_of(step);
        let same =
            aws_lc_rs::constant_time::verify_slices_are_equal(own.as_bytes(), nonce.as_bytes());
        (fresh && same.is_ok()).then_some(step)
    }

    /// Checks a proof, and gives the key that made it. It is good once: [`Proofs::spend`].
    pub(crate) fn check(&self, proof: &str, expected: &Expected<'_>) -> Result<Checked, Refused> {
        if proof.len() > MAX_PROOF {
            return Err(Refused::Unreadable);
        }
        let parts = Parts::split(proof).map_err(|_| Refused::Unreadable)?;
        let header: Header = serde_json::from_slice(&parts.header).map_err(|_| Refused::Kind)?;
        let key = key_of(&header)?;
        parts.verify(key).map_err(|_| Refused::Unreadable)?;
        let claims: Payload =
            serde_json::from_slice(&parts.payload).map_err(|_| Refused::Unreadable)?;
        if claims.htm != expected.method || !is_url(&claims.htu, expected) {
            return Err(Refused::OtherRequest);
        }
        if claims.ath != token_hash(expected.token) {
            return Err(Refused::OtherToken);
        }
        // NaN is not inside either.
        #[expect(clippy::cast_precision_loss, reason = "seconds fit for millions of years")]
        let off = (claims.iat - expected.now_s as f64).abs();
        let now = self.step();
        let step = self.step_of(&claims.nonce, now).ok_or(Refused::Nonce)?;
        #[expect(clippy::cast_precision_loss, reason = "a small constant")]
        let near = off <= MAX_SKEW_S as f64;
        if !near {
            return Err(Refused::Time);
        }
        if !ID_CHARS.contains(&claims.jti.len()) {
            return Err(Refused::Unreadable);
        }
        Ok(Checked { key, id: claims.jti, step })
    }

    /// Uses a proof up: each id once in the life of its nonce. Only for keys that are known, or
    /// strangers would fill the table; before anything is done.
    pub(crate) fn spend(&self, checked: &Checked) -> Result<(), Refused> {
        self.spend_at(checked, self.step())
    }

    fn spend_at(&self, checked: &Checked, now: u64) -> Result<(), Refused> {
        let Checked { key, id, step } = checked;
        let hash = sha256(&[&key.0[..], id.as_bytes()].concat());
        let mut short = [0; 16];
        short.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(oldest) = used.by_step.first_entry()
            && oldest.key() + STEPS < now
        {
            let gone = oldest.remove().len();
            used.count -= gone;
        }
        if used.count >= MAX_IDS {
            return Err(Refused::Busy);
        }
        if !used.by_step.entry(*step).or_default().insert(short) {
            return Err(Refused::Replayed);
        }
        used.count += 1;
        Ok(())
    }
}

fn key_of(header: &Header) -> Result<PublicKey, Refused> {
    let text = |name: &str| header.jwk.get(name).and_then(serde_json::Value::as_str);
    let right = header.typ == "dpop+jwt"
        && header.alg == "EdDSA"
        && text("kty") == Some("OKP")
        && text("crv") == Some("Ed25519")
        // A private key in a header is one that everybody has (RFC 9449 §4.3).
        && !header.jwk.contains_key("d");
    let key = text("x").filter(|_| right).and_then(|x| from_base64url(x).ok());
    key.and_then(|key| PublicKey::from_slice(&key).ok()).ok_or(Refused::Kind)
}

/// Is it the URL of this request at this mediator? The port may be another: it may be mapped.
fn is_url(url: &str, expected: &Expected<'_>) -> bool {
    let Ok(url) = url.parse::<axum::http::Uri>() else { return false };
    let host = url.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    url.scheme_str() == Some("https")
        && url.path() == expected.path
        && url.query().is_none()
        && expected.hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
}

/// For fuzzing: whether a proof holds but for its nonce, which nobody can foresee.
pub(crate) fn fuzz_proof(proof: &str) -> bool {
    let Some(proofs) = Proofs::new() else { return false };
    let hosts = ["mediator.example".to_owned()];
    let (method, path) = ("GET", "/api/v1/me");
    let expected = Expected { method, path, hosts: &hosts, token: "token", now_s: 1_800_000_000 };
    let judged = proofs.check(proof, &expected);
    assert!(judged.is_err(), "accepted without a nonce");
    judged == Err(Refused::Nonce)
}

#[cfg(test)]
mod tests {
    use adit_protocol::{
        dpop::{Claims, prove},
        keys::SigningKey,
    };

    use super::*;

    const NOW: u64 = 1_800_000_000;

    struct Case {
        proofs: Proofs,
        key: SigningKey,
        hosts: Vec<String>,
    }

    impl Case {
        fn new() -> Self {
            let key = SigningKey::from_seed(&[1; 32]).unwrap();
            let hosts = vec!["mediator.example".to_owned(), "2001:db8::1".to_owned()];
            Self { proofs: Proofs::new().unwrap(), key, hosts }
        }

        fn check(&self, id: u8, change: impl FnOnce(&mut Claims<'_>)) -> Result<(), Refused> {
            let nonce = self.proofs.nonce();
            let mut claims = Claims {
                method: "GET",
                url: "https://Mediator.Example:8443/api/v1/users",
                token: "t",
                nonce: &nonce,
                id: [id; 16],
                issued_s: NOW,
            };
            change(&mut claims);
            self.judge(&prove(&self.key, &claims))
        }

        fn judge(&self, proof: &str) -> Result<(), Refused> {
            let expected = Expected {
                method: "GET",
                path: "/api/v1/users",
                hosts: &self.hosts,
                token: "t",
                now_s: NOW,
            };
            let checked = self.proofs.check(proof, &expected)?;
            assert_eq!(checked.key, self.key.public());
            self.proofs.spend(&checked)
        }
    }

    #[test]
    fn a_proof_from_before_a_restart_is_worth_nothing() {
        let (before, after) = (Case::new(), Case::new());
        let nonce = before.proofs.nonce();
        let claims = Claims {
            method: "GET",
            url: "https://mediator.example/api/v1/users",
            token: "t",
            nonce: &nonce,
            id: [1; 16],
            issued_s: NOW,
        };
        let proof = prove(&before.key, &claims);
        assert_eq!(before.judge(&proof), Ok(()));
        assert_eq!(after.judge(&proof), Err(Refused::Nonce));
    }

    #[test]
    fn a_proof_is_for_one_request_one_token_one_time() {
        let case = Case::new();
        assert_eq!(case.check(1, |_| ()), Ok(()));
        assert_eq!(case.check(1, |_| ()), Err(Refused::Replayed));
        assert_eq!(case.check(2, |c| c.method = "POST"), Err(Refused::OtherRequest));
        for url in [
            "https://mediator.example/api/v1/roles",
            "https://elsewhere.example/api/v1/users",
            "http://mediator.example/api/v1/users",
            "https://mediator.example/api/v1/users?x=1",
            "/api/v1/users",
        ] {
            assert_eq!(case.check(3, |c| c.url = url), Err(Refused::OtherRequest), "{url}");
        }
        assert_eq!(case.check(4, |c| c.url = "https://[2001:db8::1]/api/v1/users"), Ok(()));
        assert_eq!(case.check(5, |c| c.token = "u"), Err(Refused::OtherToken));
        assert_eq!(case.check(6, |c| c.issued_s -= MAX_SKEW_S + 1), Err(Refused::Time));
        assert_eq!(case.check(7, |c| c.issued_s += MAX_SKEW_S + 1), Err(Refused::Time));
        assert_eq!(case.check(8, |c| c.nonce = ""), Err(Refused::Nonce));
    }

    #[test]
    fn other_algorithms_and_keys_in_the_header_are_refused() {
        let case = Case::new();
        let nonce = case.proofs.nonce();
        let claims = Claims {
            method: "GET",
            url: "https://mediator.example/api/v1/users",
            token: "t",
            nonce: &nonce,
            id: [1; 16],
            issued_s: NOW,
        };
        let proof = prove(&case.key, &claims);
        let (head, rest) = proof.split_once('.').unwrap();
        let head = String::from_utf8(from_base64url(head).unwrap()).unwrap();
        for (from, to) in [
            ("EdDSA", "none"),
            ("EdDSA", "HS256"),
            ("dpop+jwt", "JWT"),
            ("Ed25519", "X25519"),
            ("\"kty\"", "\"d\":\"x\",\"kty\""),
        ] {
            let changed = format!("{}.{rest}", base64url(head.replace(from, to).as_bytes()));
            assert_eq!(case.judge(&changed), Err(Refused::Kind), "{to}");
        }
        for proof in ["", "a", "a.b", "a.b.c", "....", &"x".repeat(MAX_PROOF + 1)] {
            assert!(case.judge(proof).is_err());
        }
    }

    #[test]
    fn nonces_and_what_was_used_with_them_go_together() {
        let case = Case::new();
        let (key, now) = (case.key.public(), 100);
        assert_eq!(case.proofs.step_of(&case.proofs.nonce_of(now), now), Some(now));
        assert_eq!(case.proofs.step_of(&case.proofs.nonce_of(now - STEPS), now), Some(now - STEPS));
        assert_eq!(case.proofs.step_of(&case.proofs.nonce_of(now - STEPS - 1), now), None);
        assert_eq!(case.proofs.step_of(&case.proofs.nonce_of(now + 1), now), None);
        let of = |id: &str, step| Checked { key, id: id.to_owned(), step };
        case.proofs.spend_at(&of("a", now), now).unwrap();
        assert_eq!(case.proofs.spend_at(&of("a", now), now + STEPS), Err(Refused::Replayed));
        case.proofs.spend_at(&of("b", now + STEPS + 1), now + STEPS + 1).unwrap();
        assert_eq!(case.proofs.used.lock().unwrap().count, 1);
    }
}
