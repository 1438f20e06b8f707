//! Signatures of others: security keys (COSE) and identity providers (JOSE).
//!
//! Three algorithms and no more: ES256, EdDSA with Ed25519, RS256. A key knows its one algorithm;
//! what a message says about it can only agree. Verifies, and must never sign.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
};

/// Bytes of a coordinate on P-256, and of an Ed25519 key.
const COORDINATE: usize = 32;
/// Bytes of an RSA modulus: 2048 to 8192 bits.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;
/// Bytes of an RSA exponent.
const MAX_EXPONENT: usize = 8;

/// A key that is none of the three, or is not well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the public key is of another kind, or not well formed")]
pub(crate) struct BadKey;

/// A public key with its one algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VerifyKey {
    /// ECDSA on P-256 with SHA-256: an uncompressed point.
    Es256(Vec<u8>),
    /// Ed25519.
    EdDsa(Vec<u8>),
    /// RSA PKCS #1 v1.5 with SHA-256.
    Rs256 {
        /// Modulus.
        n: Vec<u8>,
        /// Exponent.
        e: Vec<u8>,
    },
}

/// How ECDSA signatures are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// ASN.1 (WebAuthn §6.5.5).
    Asn1,
    /// r ‖ s (RFC 7518 §3.4).
    Fixed,
}

impl VerifyKey {
    /// From the coordinates of a point on P-256.
    pub(crate) fn p256(x: &[u8], y: &[u8]) -> Result<Self, BadKey> {
        if x.len() != COORDINATE || y.len() != COORDINATE {
            return Err(BadKey);
        }
        let point = [&[4][..], x, y].concat();
        // Refuses what is not on the curve.
        ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &point).map_err(|_| BadKey)?;
        Ok(Self::Es256(point))
    }

    /// From an Ed25519 key.
    pub(crate) fn ed25519(x: &[u8]) -> Result<Self, BadKey> {
        ParsedPublicKey::new(&ED25519, x).map_err(|_| BadKey)?;
        Ok(Self::EdDsa(x.to_vec()))
    }

    /// From modulus and exponent, big-endian.
    pub(crate) fn rsa(n: &[u8], e: &[u8]) -> Result<Self, BadKey> {
        let strip = |number: &[u8]| -> Vec<u8> {
            number.iter().copied().skip_while(|byte| *byte == 0).collect()
        };
        let (n, e) = (strip(n), strip(e));
        let good = MODULUS.contains(&n.len()) && (1..=MAX_EXPONENT).contains(&e.len());
        good.then_some(Self::Rs256 { n, e }).ok_or(BadKey)
    }

    /// Name in JOSE headers (RFC 7518 §3.1, RFC 8037 §3.1).
    pub(crate) fn jose_name(&self) -> &'static str {
        match self {
            Self::Es256(_) => "ES256",
            Self::EdDsa(_) => "EdDSA",
            Self::Rs256 { .. } => "RS256",
        }
    }

    /// Is it this key's signature over the message?
    pub(crate) fn verify(&self, form: Form, message: &[u8], signature: &[u8]) -> bool {
        let parsed = match (self, form) {
            (Self::Es256(point), Form::Asn1) => {
                ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
            }
            (Self::Es256(point), Form::Fixed) => {
                ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            }
            (Self::EdDsa(key), _) => ParsedPublicKey::new(&ED25519, key),
            (Self::Rs256 { n, e }, _) => {
                let key = RsaPublicKeyComponents { n, e };
                return key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok();
            }
        };
        parsed.is_ok_and(|key| key.verify_sig(message, signature).is_ok())
    }
}
