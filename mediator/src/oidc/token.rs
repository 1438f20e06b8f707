//! ID tokens: signature, issuer, audience, time, nonce (OpenID Connect Core §3.1.3.7).
//!
//! Keys come from the provider's own key set over TLS. A key knows its algorithm; the header can
//! only agree, so that neither `none` nor a symmetric algorithm is ever tried. Pure: time is given.

use serde::Deserialize;
use serde_json::Value;

use crate::{
    signatures::{Form, VerifyKey},
    webauthn::from_base64,
};

/// Bytes of a token.
const MAX_TOKEN: usize = 16 * 1024;
/// Keys of a key set that are looked at.
const MAX_KEYS: usize = 32;
/// Clocks may differ by so much, seconds.
const SKEW_S: u64 = 60;
/// A token that was made longer ago was not made for this login, seconds.
const MAX_AGE_S: u64 = 10 * 60;
/// The person logged in there at most so long ago, seconds: we ask for 600.
const MAX_AUTH_AGE_S: u64 = 10 * 60 + 60;
/// Bytes of a subject (§2 allows 255).
pub(crate) const MAX_SUBJECT: usize = 255;

/// Why a token does not count. One word for the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// Not a token.
    #[error("malformed")]
    Malformed,
    /// An algorithm that is not taken.
    #[error("algorithm")]
    Algorithm,
    /// Made with a key that the provider does not have.
    #[error("unknown_key")]
    UnknownKey,
    /// The signature is wrong.
    #[error("signature")]
    Signature,
    /// Another issuer.
    #[error("issuer")]
    Issuer,
    /// For somebody else.
    #[error("audience")]
    Audience,
    /// Too late, too early, or of an old login.
    #[error("time")]
    Time,
    /// Of another login.
    #[error("nonce")]
    Nonce,
}

/// A key of a provider (RFC 7517).
pub(crate) struct Key {
    id: Option<String>,
    key: VerifyKey,
}

/// Reads a key set; keys of other kinds are passed over.
pub(crate) fn keys(set: &[u8]) -> Option<Vec<Key>> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set = serde_json::from_slice(set).ok()?;
    Some(set.keys.iter().take(MAX_KEYS).filter_map(one_key).collect())
}

fn one_key(jwk: &Value) -> Option<Key> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let bytes = |name: &str| text(name).and_then(from_base64);
    if text("use").is_some_and(|purpose| purpose != "sig") {
        return None;
    }
    let key = match (text("kty")?, text("crv")) {
        ("EC", Some("P-256")) => VerifyKey::p256(&bytes("x")?, &bytes("y")?),
        ("OKP", Some("Ed25519")) => VerifyKey::ed25519(&bytes("x")?),
        ("RSA", _) => VerifyKey::rsa(&bytes("n")?, &bytes("e")?),
        _ => return None,
    };
    let key = key.ok()?;
    if text("alg").is_some_and(|name| name != key.jose_name()) {
        return None;
    }
    Some(Key { id: text("kid").map(str::to_owned), key })
}

/// What a token must say.
pub(crate) struct Expected<'a> {
    pub(crate) issuer: &'a str,
    pub(crate) client_id: &'a str,
    pub(crate) nonce: &'a str,
    pub(crate) now_s: u64,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

/// What a token says, as far as it is used.
#[derive(Deserialize, Debug, PartialEq, Eq)]
pub(crate) struct Claims {
    iss: String,
    /// Who it is there.
    pub(crate) sub: String,
    aud: Value,
    azp: Option<String>,
    exp: u64,
    iat: u64,
    nonce: Option<String>,
    /// When the person logged in there, seconds since 1970.
    pub(super) auth_time: Option<u64>,
    pub(crate) acr: Option<String>,
    #[serde(default)]
    pub(crate) amr: Vec<String>,
}

/// Checks a token.
pub(crate) fn verify(
    token: &str,
    keys: &[Key],
    expected: &Expected<'_>,
) -> Result<Claims, TokenError> {
    if token.len() > MAX_TOKEN {
        return Err(TokenError::Malformed);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
    let part = |text: &str| from_base64(text).ok_or(TokenError::Malformed);
    let header: Header =
        serde_json::from_slice(&part(header)?).map_err(|_| TokenError::Malformed)?;
    // Extensions that must be understood are not (RFC 7515 §4.1.11).
    if header.crit.is_some() {
        return Err(TokenError::Malformed);
    }
    let payload = part(payload)?;
    let signature = part(signature)?;
    check_signature(&header, keys, signed.as_bytes(), &signature)?;
    let claims: Claims = serde_json::from_slice(&payload).map_err(|_| TokenError::Malformed)?;
    check(&claims, expected)?;
    Ok(claims)
}

fn check_signature(
    header: &Header,
    keys: &[Key],
    signed: &[u8],
    signature: &[u8],
) -> Result<(), TokenError> {
    if !["RS256", "ES256", "EdDSA"].contains(&header.alg.as_str()) {
        return Err(TokenError::Algorithm);
    }
    let named = |key: &&Key| match (&header.kid, &key.id) {
        (Some(wanted), Some(id)) => wanted == id,
        (Some(_), None) => false,
        (None, _) => true,
    };
    let mut fitting = keys.iter().filter(named).peekable();
    if fitting.peek().is_none() {
        return Err(TokenError::UnknownKey);
    }
    let mut fitting = fitting.filter(|key| key.key.jose_name() == header.alg).peekable();
    if fitting.peek().is_none() {
        return Err(TokenError::Algorithm);
    }
    match fitting.any(|key| key.key.verify(Form::Fixed, signed, signature)) {
        true => Ok(()),
        false => Err(TokenError::Signature),
    }
}

fn check(claims: &Claims, expected: &Expected<'_>) -> Result<(), TokenError> {
    if claims.iss != expected.issuer {
        return Err(TokenError::Issuer);
    }
    let audiences: Vec<&str> = match &claims.aud {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let party = claims.azp.as_deref();
    if !audiences.contains(&expected.client_id)
        || party.is_some_and(|party| party != expected.client_id)
        || (audiences.len() > 1 && party.is_none())
    {
        return Err(TokenError::Audience);
    }
    let now = expected.now_s;
    let old = |at: u64, age: u64| now.saturating_sub(at) > age + SKEW_S;
    if now >= claims.exp.saturating_add(SKEW_S)
        || claims.iat > now.saturating_add(SKEW_S)
        || old(claims.iat, MAX_AGE_S)
        || claims.auth_time.is_some_and(|at| old(at, MAX_AUTH_AGE_S) || at > now + SKEW_S)
    {
        return Err(TokenError::Time);
    }
    if claims.nonce.as_deref() != Some(expected.nonce) {
        return Err(TokenError::Nonce);
    }
    let good = !claims.sub.is_empty() && claims.sub.len() <= MAX_SUBJECT;
    if !good || claims.sub.chars().any(char::is_control) {
        return Err(TokenError::Malformed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
    };
    use serde_json::json;

    use super::*;
    use crate::webauthn::to_base64;

    enum Signer {
        Es256(EcdsaKeyPair),
        EdDsa(Ed25519KeyPair),
    }

    impl Signer {
        fn es256() -> Self {
            Self::Es256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
        }

        fn jwk(&self, id: &str) -> Value {
            match self {
                Self::Es256(pair) => {
                    let point = pair.public_key().as_ref();
                    json!({"kty": "EC", "crv": "P-256", "kid": id, "use": "sig", "alg": "ES256",
                        "x": to_base64(&point[1..33]), "y": to_base64(&point[33..])})
                }
                Self::EdDsa(pair) => json!({"kty": "OKP", "crv": "Ed25519", "kid": id,
                    "x": to_base64(pair.public_key().as_ref())}),
            }
        }

        fn token(&self, header: &Value, claims: &Value) -> String {
            let part = |value: &Value| to_base64(value.to_string().as_bytes());
            let signed = format!("{}.{}", part(header), part(claims));
            let signature = match self {
                Self::Es256(pair) => {
                    pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap().as_ref().to_vec()
                }
                Self::EdDsa(pair) => pair.sign(signed.as_bytes()).as_ref().to_vec(),
            };
            format!("{signed}.{}", to_base64(&signature))
        }
    }

    const EXPECTED: Expected<'_> = Expected {
        issuer: "https://id.example",
        client_id: "adit",
        nonce: "n-1",
        now_s: 1_000_000,
    };

    fn claims() -> Value {
        json!({"iss": "https://id.example", "sub": "ann", "aud": "adit", "exp": 1_000_300,
            "iat": 1_000_000, "nonce": "n-1", "acr": "mfa", "amr": ["pwd", "hwk"]})
    }

    fn set(keys: &[Value]) -> Vec<Key> {
        super::keys(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_good_token_is_accepted_and_every_claim_counts() {
        let signer = Signer::es256();
        let keys = set(&[signer.jwk("k")]);
        let header = json!({"alg": "ES256", "kid": "k"});
        let good = verify(&signer.token(&header, &claims()), &keys, &EXPECTED).unwrap();
        assert_eq!((good.sub.as_str(), good.acr.as_deref()), ("ann", Some("mfa")));
        for (name, value, why) in [
            ("iss", json!("https://id.example/"), TokenError::Issuer),
            ("aud", json!("other"), TokenError::Audience),
            ("aud", json!(["adit", "other"]), TokenError::Audience),
            ("azp", json!("other"), TokenError::Audience),
            ("exp", json!(999_900), TokenError::Time),
            ("iat", json!(1_000_100), TokenError::Time),
            ("iat", json!(990_000), TokenError::Time),
            ("auth_time", json!(900_000), TokenError::Time),
            ("auth_time", json!(1_000_100), TokenError::Time),
            ("nonce", json!("n-2"), TokenError::Nonce),
            ("nonce", Value::Null, TokenError::Nonce),
            ("sub", json!(""), TokenError::Malformed),
            ("sub", json!("a\nb"), TokenError::Malformed),
            ("sub", json!("x".repeat(256)), TokenError::Malformed),
        ] {
            let mut claims = claims();
            claims[name] = value;
            let judged = verify(&signer.token(&header, &claims), &keys, &EXPECTED);
            assert_eq!(judged.unwrap_err(), why, "{name}");
        }
        let mut several = claims();
        several["aud"] = json!(["adit", "other"]);
        several["azp"] = json!("adit");
        verify(&signer.token(&header, &several), &keys, &EXPECTED).unwrap();
    }

    #[test]
    fn no_other_algorithm_or_key_is_taken_whatever_the_header_says() {
        let (signer, other) = (Signer::es256(), Signer::EdDsa(Ed25519KeyPair::generate().unwrap()));
        let keys = set(&[signer.jwk("k"), other.jwk("o")]);
        let why = |signer: &Signer, header: Value| {
            verify(&signer.token(&header, &claims()), &keys, &EXPECTED).err()
        };
        assert_eq!(why(&other, json!({"alg": "EdDSA", "kid": "o"})), None);
        assert_eq!(why(&signer, json!({"alg": "ES256"})), None);
        let ed = |alg: &str| json!({"alg": alg, "kid": "k"});
        for alg in ["none", "None", "HS256", "ES384", "PS256", ""] {
            assert_eq!(why(&signer, ed(alg)), Some(TokenError::Algorithm), "{alg}");
        }
        // The key's own algorithm holds.
        assert_eq!(why(&signer, ed("EdDSA")), Some(TokenError::Algorithm));
        assert_eq!(why(&other, ed("ES256")), Some(TokenError::Signature));
        assert_eq!(why(&signer, json!({"alg": "ES256", "kid": "x"})), Some(TokenError::UnknownKey));
        assert_eq!(
            why(&signer, json!({"alg": "ES256", "kid": "k", "crit": ["b64"]})),
            Some(TokenError::Malformed)
        );
        let token = signer.token(&json!({"alg": "ES256", "kid": "k"}), &claims());
        for cut in 0..token.len() {
            assert!(verify(&token[..cut], &keys, &EXPECTED).is_err());
        }
        let unsigned = token.rsplit_once('.').unwrap().0;
        assert!(verify(&format!("{unsigned}."), &keys, &EXPECTED).is_err());
    }
}
