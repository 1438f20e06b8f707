//! Ed25519 keys, fingerprints, and signatures bound to a context.
//!
//! A signature is always over `context ‖ 0x00 ‖ payload`; contexts differ for every kind of
//! thing signed, so that none can be taken for another. Secret halves are wiped and have no
//! `Debug` that shows them.

use std::{fmt, str::FromStr};

use aws_lc_rs::{
    digest,
    rand::{SecureRandom, SystemRandom},
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use bytes::Bytes;
use prost::Message;
use zeroize::Zeroizing;

use crate::wire;

/// DER of an Ed25519 SubjectPublicKeyInfo up to the key (RFC 8410 §4).
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// DER of an Ed25519 PKCS #8 private key up to the seed (RFC 8410 §7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// What a signature is for.
pub mod context {
    /// Root certifies a mediator key.
    pub const KEY_CERT: &str = "adit/1 key cert";
    /// Identity certifies its Noise key.
    pub const NOISE_KEY: &str = "adit/1 noise key";
    /// Token seed redeems a token.
    pub const ENROLL: &str = "adit/1 enroll";
    /// Grant key signs a grant.
    pub const GRANT: &str = "adit/1 grant";
    /// Grant key renews a grant.
    pub const LEASE: &str = "adit/1 lease";
    /// Ticket key signs a relay ticket.
    pub const TICKET: &str = "adit/1 ticket";
    /// Log key signs a tree head.
    pub const TREE_HEAD: &str = "adit/1 tree head";
    /// Log key certifies that something was destroyed.
    pub const DESTRUCTION: &str = "adit/1 destruction";
    /// Identity signs a receipt.
    pub const RECEIPT: &str = "adit/1 receipt";
}

/// Why a key, certificate or signature was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The bytes are no Ed25519 key.
    #[error("not an Ed25519 public key")]
    InvalidKey,
    /// The text is no fingerprint.
    #[error("not a fingerprint: \"sha256:\" and 64 hexadecimal digits are expected")]
    InvalidFingerprint,
    /// The signature does not fit.
    #[error("signature does not verify")]
    BadSignature,
    /// The signed payload cannot be read.
    #[error("signed payload cannot be read")]
    Malformed,
    /// The certificate is for another purpose.
    #[error("key is certified for another purpose")]
    WrongPurpose,
    /// The certificate is not valid yet or no longer.
    #[error("key certificate is outside its validity period")]
    OutsideValidity,
    /// The system gave no randomness or refused the key.
    #[error("cryptographic library failed")]
    Crypto,
}

/// SHA-256.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, data).as_ref());
    out
}

/// Fills a buffer with randomness of the operating system.
pub fn fill_random(out: &mut [u8]) -> Result<(), KeyError> {
    SystemRandom::new().fill(out).map_err(|_| KeyError::Crypto)
}

/// `N` random bytes.
pub fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut out = [0; N];
    fill_random(&mut out)?;
    Ok(out)
}

/// An Ed25519 public key: a device's identity, or a key of the mediator.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// From a message field.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, KeyError> {
        bytes.try_into().map(Self).map_err(|_| KeyError::InvalidKey)
    }

    /// From DER SubjectPublicKeyInfo, as raw public keys travel in TLS (RFC 7250).
    pub fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        der.strip_prefix(&SPKI_PREFIX).ok_or(KeyError::InvalidKey).and_then(Self::from_slice)
    }

    /// DER SubjectPublicKeyInfo.
    pub fn to_spki(self) -> [u8; 44] {
        let mut out = [0; 44];
        let (head, key) = out.split_at_mut(SPKI_PREFIX.len());
        head.copy_from_slice(&SPKI_PREFIX);
        key.copy_from_slice(&self.0);
        out
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    pub fn fingerprint(self) -> Fingerprint {
        Fingerprint(sha256(&self.to_spki()))
    }

    /// For a message field.
    pub fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }

    /// Checks a signature made by [`SigningKey::sign`].
    pub fn verify(self, context: &str, payload: &[u8], signature: &[u8]) -> Result<(), KeyError> {
        UnparsedPublicKey::new(&ED25519, self.0)
            .verify(&signed_bytes(context, payload), signature)
            .map_err(|_| KeyError::BadSignature)
    }

    /// Checks a signature made by [`SigningKey::sign_jws`].
    pub(crate) fn verify_jws(self, input: &str, signature: &[u8]) -> Result<(), KeyError> {
        UnparsedPublicKey::new(&ED25519, self.0)
            .verify(input.as_bytes(), signature)
            .map_err(|_| KeyError::BadSignature)
    }

    /// Checks an envelope and gives its payload.
    pub fn open<'a>(self, context: &str, signed: &'a wire::Signed) -> Result<&'a Bytes, KeyError> {
        self.verify(context, &signed.payload, &signed.signature)?;
        Ok(&signed.payload)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint())
    }
}

/// `sha256:` and the hash of a public key in hexadecimal: what people compare and pin.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// From a message field.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, KeyError> {
        bytes.try_into().map(Self).map_err(|_| KeyError::InvalidFingerprint)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Fingerprint {
    type Err = KeyError;
    fn from_str(s: &str) -> Result<Self, KeyError> {
        let hex = s.trim().strip_prefix("sha256:").ok_or(KeyError::InvalidFingerprint)?;
        let digits: Option<Vec<u8>> =
            hex.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
        let digits = digits.filter(|d| d.len() == 64).ok_or(KeyError::InvalidFingerprint)?;
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair.iter().fold(0, |acc, d| acc << 4 | d);
        }
        Ok(Self(out))
    }
}

/// An Ed25519 key pair. The seed is wiped on drop.
pub struct SigningKey {
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// A new random key.
    pub fn generate() -> Result<Self, KeyError> {
        Self::from_seed(&Zeroizing::new(random::<32>()?)[..])
    }

    /// From the 32-byte seed (RFC 8032 §5.1.5).
    pub fn from_seed(seed: &[u8]) -> Result<Self, KeyError> {
        let seed = Zeroizing::new(<[u8; 32]>::try_from(seed).map_err(|_| KeyError::InvalidKey)?);
        let pair =
            Ed25519KeyPair::from_seed_unchecked(&seed[..]).map_err(|_| KeyError::InvalidKey)?;
        let public = PublicKey::from_slice(pair.public_key().as_ref())?;
        Ok(Self { seed, pair, public })
    }

    /// The seed, to be stored as a secret.
    pub fn seed(&self) -> &Zeroizing<[u8; 32]> {
        &self.seed
    }

    /// PKCS #8, as TLS libraries take it.
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([&PKCS8_PREFIX[..], &self.seed[..]].concat())
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs `context ‖ 0x00 ‖ payload`.
    pub fn sign(&self, context: &str, payload: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        out.copy_from_slice(self.pair.sign(&signed_bytes(context, payload)).as_ref());
        out
    }

    /// Signs the signing input of a JWS (RFC 7515 §5.1). No context begins like one, so neither
    /// signature can be taken for the other.
    pub(crate) fn sign_jws(&self, input: &str) -> [u8; 64] {
        let mut out = [0; 64];
        out.copy_from_slice(self.pair.sign(input.as_bytes()).as_ref());
        out
    }

    /// Signs a message into an envelope.
    pub fn seal(&self, context: &str, message: &impl Message) -> wire::Signed {
        let payload = Bytes::from(message.encode_to_vec());
        let signature = Bytes::copy_from_slice(&self.sign(context, &payload));
        wire::Signed { payload, signature }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public.fingerprint())
    }
}

fn signed_bytes(context: &str, payload: &[u8]) -> Vec<u8> {
    [context.as_bytes(), &[0], payload].concat()
}

/// What a key certified by the root may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Purpose {
    /// Authenticate the mediator in TLS.
    Tls = 1,
    /// Sign grants and leases.
    Grant = 2,
    /// Sign relay tickets.
    Ticket = 3,
    /// Sign audit tree heads.
    Log = 4,
}

/// The root's statement that a key may be used for a purpose and time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyCert {
    /// The certified key.
    pub key: PublicKey,
    /// Milliseconds since 1970.
    pub not_before_ms: u64,
    /// Milliseconds since 1970.
    pub not_after_ms: u64,
}

impl KeyCert {
    /// Certifies a key.
    pub fn issue(root: &SigningKey, purpose: Purpose, cert: &KeyCert) -> wire::Signed {
        root.seal(
            context::KEY_CERT,
            &wire::KeyCertBody {
                purpose: purpose as u32,
                public_key: cert.key.to_bytes(),
                not_before_ms: cert.not_before_ms,
                not_after_ms: cert.not_after_ms,
            },
        )
    }

    /// Checks signature and purpose; the caller checks the time with [`KeyCert::check_time`].
    pub fn open(
        root: PublicKey,
        purpose: Purpose,
        signed: &wire::Signed,
    ) -> Result<Self, KeyError> {
        let body = wire::KeyCertBody::decode(root.open(context::KEY_CERT, signed)?.clone())
            .map_err(|_| KeyError::Malformed)?;
        if body.purpose != purpose as u32 {
            return Err(KeyError::WrongPurpose);
        }
        Ok(Self {
            key: PublicKey::from_slice(&body.public_key)?,
            not_before_ms: body.not_before_ms,
            not_after_ms: body.not_after_ms,
        })
    }

    /// Is the certificate valid at this time (milliseconds since 1970)?
    pub fn check_time(&self, now_ms: u64) -> Result<(), KeyError> {
        if (self.not_before_ms..self.not_after_ms).contains(&now_ms) {
            Ok(())
        } else {
            Err(KeyError::OutsideValidity)
        }
    }
}

/// A device's statement that an X25519 key is its Noise key.
pub struct NoiseCert;

impl NoiseCert {
    /// Certifies a Noise key by the device's identity.
    pub fn issue(identity: &SigningKey, noise_key: [u8; 32], now_ms: u64) -> wire::Signed {
        let noise_key = Bytes::copy_from_slice(&noise_key);
        identity.seal(context::NOISE_KEY, &wire::NoiseKeyBody { noise_key, issued_ms: now_ms })
    }

    /// The Noise key that `identity` certified.
    pub fn open(identity: PublicKey, signed: &wire::Signed) -> Result<[u8; 32], KeyError> {
        let body = wire::NoiseKeyBody::decode(identity.open(context::NOISE_KEY, signed)?.clone())
            .map_err(|_| KeyError::Malformed)?;
        body.noise_key.as_ref().try_into().map_err(|_| KeyError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_holds_for_its_context_only() {
        let key = SigningKey::generate().unwrap();
        let sig = key.sign(context::GRANT, b"x");
        assert_eq!(key.public().verify(context::GRANT, b"x", &sig), Ok(()));
        assert_eq!(key.public().verify(context::LEASE, b"x", &sig), Err(KeyError::BadSignature));
        assert_eq!(key.public().verify(context::GRANT, b"y", &sig), Err(KeyError::BadSignature));
    }

    #[test]
    fn key_cert_is_bound_to_purpose_time_and_root() {
        let (root, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let key = SigningKey::generate().unwrap().public();
        let cert = KeyCert { key, not_before_ms: 10, not_after_ms: 20 };
        let signed = KeyCert::issue(&root, Purpose::Grant, &cert);
        assert_eq!(KeyCert::open(root.public(), Purpose::Grant, &signed), Ok(cert));
        assert_eq!(
            KeyCert::open(root.public(), Purpose::Log, &signed),
            Err(KeyError::WrongPurpose)
        );
        assert!(KeyCert::open(other.public(), Purpose::Grant, &signed).is_err());
        assert!(cert.check_time(9).is_err() && cert.check_time(20).is_err());
        assert!(cert.check_time(10).is_ok());
    }

    #[test]
    fn fingerprint_reads_back() {
        let f = SigningKey::generate().unwrap().public().fingerprint();
        assert_eq!(f.to_string().parse(), Ok(f));
        assert!("sha256:12".parse::<Fingerprint>().is_err());
    }

    #[test]
    fn spki_and_seed_read_back() {
        let key = SigningKey::generate().unwrap();
        assert_eq!(PublicKey::from_spki(&key.public().to_spki()), Ok(key.public()));
        assert_eq!(SigningKey::from_seed(&key.seed()[..]).unwrap().public(), key.public());
        assert!(!format!("{key:?}").contains("seed"));
    }
}
