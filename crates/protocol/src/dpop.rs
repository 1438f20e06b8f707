//! Proofs of possession for the HTTPS API (RFC 9449): a small JWS, signed by a device's identity
//! or an API key, over one request.
//!
//! [`prove`] makes one; [`Parts::split`] takes one apart and checks the signature, so that its
//! reader sees no JSON that the key's holder did not sign. What the JSON says is for the reader
//! to judge: this crate knows no clock and no JSON.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};

use crate::keys::{PublicKey, SigningKey, sha256};

/// Bytes of a proof that is read.
pub const MAX_PROOF: usize = 4 * 1024;

/// Why a proof cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Not three parts of base64url.
    #[error("not a compact JWS")]
    Malformed,
    /// The signature is not the key's.
    #[error("the signature does not verify")]
    Signature,
}

/// What a proof is about.
#[derive(Debug, Clone, Copy)]
pub struct Claims<'a> {
    /// Method, upper case.
    pub method: &'a str,
    /// URL without query.
    pub url: &'a str,
    /// The access token that is shown with it.
    pub token: &'a str,
    /// The server's nonce; empty: none is known yet.
    pub nonce: &'a str,
    /// A random number: no two proofs have the same.
    pub id: [u8; 16],
    /// Seconds since 1970.
    pub issued_s: u64,
}

/// Base64url without padding (RFC 4648 §5).
pub fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads base64url without padding.
pub fn from_base64url(text: &str) -> Result<Vec<u8>, ProofError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| ProofError::Malformed)
}

/// Base64 with padding (RFC 4648 §4), as PEM has it.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Reads base64 with padding.
pub fn from_base64(text: &str) -> Result<Vec<u8>, ProofError> {
    STANDARD.decode(text).map_err(|_| ProofError::Malformed)
}

/// `ath`: the hash of an access token (RFC 9449 §4.2).
pub fn token_hash(token: &str) -> String {
    base64url(&sha256(token.as_bytes()))
}

/// Makes a proof.
pub fn prove(key: &SigningKey, claims: &Claims<'_>) -> String {
    let header = format!(
        r#"{{"typ":"dpop+jwt","alg":"EdDSA","jwk":{{"kty":"OKP","crv":"Ed25519","x":"{}"}}}}"#,
        base64url(&key.public().0)
    );
    let nonce = match claims.nonce {
        "" => String::new(),
        nonce => format!(r#","nonce":"{}""#, escape(nonce)),
    };
    let payload = format!(
        r#"{{"jti":"{}","htm":"{}","htu":"{}","iat":{},"ath":"{}"{nonce}}}"#,
        base64url(&claims.id),
        escape(claims.method),
        escape(claims.url),
        claims.issued_s,
        token_hash(claims.token),
    );
    let input = format!("{}.{}", base64url(header.as_bytes()), base64url(payload.as_bytes()));
    let signature = key.sign_jws(&input);
    format!("{input}.{}", base64url(&signature))
}

/// Inside a JSON string; what a URL or nonce cannot hold is left out.
fn escape(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() && *c != '"' && *c != '\\').collect()
}

/// A proof taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// JSON of the protected header. It names the key: not to be believed before
    /// [`Parts::verify`].
    pub header: Vec<u8>,
    /// JSON of the claims, the same.
    pub payload: Vec<u8>,
    input: String,
    signature: Vec<u8>,
}

impl Parts {
    /// Takes a proof apart.
    pub fn split(proof: &str) -> Result<Self, ProofError> {
        if proof.len() > MAX_PROOF {
            return Err(ProofError::Malformed);
        }
        let (input, signature) = proof.rsplit_once('.').ok_or(ProofError::Malformed)?;
        let (header, payload) = input.split_once('.').ok_or(ProofError::Malformed)?;
        Ok(Self {
            header: from_base64url(header)?,
            payload: from_base64url(payload)?,
            input: input.to_owned(),
            signature: from_base64url(signature)?,
        })
    }

    /// Checks the signature.
    pub fn verify(&self, key: PublicKey) -> Result<(), ProofError> {
        key.verify_jws(&self.input, &self.signature).map_err(|_| ProofError::Signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_reads_back_and_no_changed_character_verifies() {
        let key = SigningKey::from_seed(&[7; 32]).unwrap();
        let claims = Claims {
            method: "POST",
            url: "https://mediator.example/api/v1/users",
            token: "token",
            nonce: "nonce",
            id: [1; 16],
            issued_s: 1_800_000_000,
        };
        let proof = prove(&key, &claims);
        let parts = Parts::split(&proof).unwrap();
        parts.verify(key.public()).unwrap();
        let other = SigningKey::from_seed(&[8; 32]).unwrap();
        assert_eq!(parts.verify(other.public()), Err(ProofError::Signature));
        let payload = String::from_utf8(parts.payload).unwrap();
        assert!(payload.contains(r#""htu":"https://mediator.example/api/v1/users""#), "{payload}");
        for at in 0..proof.len() {
            let mut bytes = proof.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            let verified = Parts::split(&changed).and_then(|parts| parts.verify(key.public()));
            assert!(verified.is_err(), "{at}");
        }
    }
}
