//! A secret on its way to one device, for one session.
//!
//! `ephemeral X25519 key (32) ‖ AES-256-GCM ciphertext ‖ tag (16)`. Key and nonce come by
//! HKDF-SHA256 from the shared secret of the ephemeral and the device's Noise key, salted with
//! both public keys; the context (what the secret is, for which session and device) is HKDF's
//! info and authenticated once more. The key is used once, so is its nonce. Travels inside TLS:
//! this binds it to the device and the session besides.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    agreement, hkdf,
};
use zeroize::Zeroizing;

use crate::{
    ids::SessionId,
    keys::{KeyError, PublicKey, fill_random},
};

/// Bytes of an X25519 key.
const KEY_LEN: usize = 32;
/// Bytes of a tag.
const TAG_LEN: usize = 16;
/// Longest secret, bytes.
pub const MAX_SEALED_SECRET: usize = 64 * 1024;
/// Before the parts of a context.
const LABEL: &[u8] = b"adit/1 sealed credential";

/// What a sealed credential belongs to.
#[derive(Debug, Clone, Copy)]
pub struct CredentialContext<'a> {
    /// The session it is used in.
    pub session: SessionId,
    /// The console that uses it.
    pub console: PublicKey,
    /// Id of the credential.
    pub credential: &'a str,
}

impl CredentialContext<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = LABEL.to_vec();
        for part in [&self.session.0[..], &self.console.0, self.credential.as_bytes()] {
            let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }
}

/// Seals for the device with this public Noise key.
pub fn seal(
    to: &[u8; KEY_LEN],
    context: &CredentialContext<'_>,
    secret: &[u8],
) -> Result<Vec<u8>, KeyError> {
    if secret.len() > MAX_SEALED_SECRET {
        return Err(KeyError::Malformed);
    }
    let mut private = Zeroizing::new([0; KEY_LEN]);
    fill_random(&mut private[..])?;
    let ephemeral = public_of(&private)?;
    let context = context.bytes();
    let (key, nonce) = derive(&private, to, &ephemeral, to, &context)?;
    // Room for the tag as well: a buffer that moved would leave the secret behind.
    let mut out = Vec::with_capacity(KEY_LEN + secret.len() + TAG_LEN);
    out.extend_from_slice(&ephemeral);
    out.extend_from_slice(secret);
    let (_, body) = out.split_at_mut_checked(KEY_LEN).ok_or(KeyError::Crypto)?;
    let tag = key
        .seal_in_place_separate_tag(nonce, Aad::from(&context), body)
        .map_err(|_| KeyError::Crypto)?;
    out.extend_from_slice(tag.as_ref());
    Ok(out)
}

/// Opens with the device's own Noise key.
pub fn open(
    private: &[u8; KEY_LEN],
    context: &CredentialContext<'_>,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    if sealed.len() > KEY_LEN + MAX_SEALED_SECRET + TAG_LEN {
        return Err(KeyError::Malformed);
    }
    let (ephemeral, body) = sealed.split_first_chunk::<KEY_LEN>().ok_or(KeyError::Malformed)?;
    let context = context.bytes();
    let (key, nonce) = derive(private, ephemeral, ephemeral, &public_of(private)?, &context)?;
    let mut opened = Zeroizing::new(body.to_vec());
    let length = key
        .open_in_place(nonce, Aad::from(&context), &mut opened)
        .map_err(|_| KeyError::Malformed)?
        .len();
    opened.truncate(length);
    Ok(opened)
}

fn public_of(private: &[u8; KEY_LEN]) -> Result<[u8; KEY_LEN], KeyError> {
    let key = agreement::PrivateKey::from_private_key(&agreement::X25519, private)
        .map_err(|_| KeyError::InvalidKey)?;
    let public = key.compute_public_key().map_err(|_| KeyError::Crypto)?;
    public.as_ref().try_into().map_err(|_| KeyError::Crypto)
}

fn derive(
    own: &[u8; KEY_LEN],
    peer: &[u8; KEY_LEN],
    ephemeral: &[u8; KEY_LEN],
    device: &[u8; KEY_LEN],
    context: &[u8],
) -> Result<(LessSafeKey, Nonce), KeyError> {
    let own = agreement::PrivateKey::from_private_key(&agreement::X25519, own)
        .map_err(|_| KeyError::InvalidKey)?;
    let peer = agreement::UnparsedPublicKey::new(&agreement::X25519, peer);
    let mut salt = ephemeral.to_vec();
    salt.extend_from_slice(device);
    let prk = agreement::agree(&own, peer, KeyError::InvalidKey, |shared| {
        Ok(hkdf::Salt::new(hkdf::HKDF_SHA256, &salt).extract(shared))
    })?;
    let mut out = Zeroizing::new([0; KEY_LEN + NONCE_LEN]);
    prk.expand(&[context], Len(out.len()))
        .and_then(|okm| okm.fill(&mut out[..]))
        .map_err(|_| KeyError::Crypto)?;
    let (key, nonce) = out.split_first_chunk::<KEY_LEN>().ok_or(KeyError::Crypto)?;
    let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| KeyError::Crypto)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| KeyError::Crypto)?;
    Ok((LessSafeKey::new(key), nonce))
}

struct Len(usize);

impl hkdf::KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_device_opens_it_and_only_for_its_session_and_credential() {
        let (mine, other) = ([7_u8; 32], [8_u8; 32]);
        let context = CredentialContext {
            session: SessionId([1; 16]),
            console: PublicKey([2; 32]),
            credential: "c-1",
        };
        let sealed = seal(&public_of(&mine).unwrap(), &context, b"hunter2").unwrap();
        assert_eq!(open(&mine, &context, &sealed).unwrap().as_slice(), b"hunter2");
        assert!(!sealed.windows(7).any(|window| window == b"hunter2"));
        assert!(open(&other, &context, &sealed).is_err());
        for wrong in [
            CredentialContext { session: SessionId([3; 16]), ..context },
            CredentialContext { console: PublicKey([3; 32]), ..context },
            CredentialContext { credential: "c-2", ..context },
        ] {
            assert!(open(&mine, &wrong, &sealed).is_err(), "{wrong:?}");
        }
        for byte in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[byte] ^= 1;
            assert!(open(&mine, &context, &bad).is_err(), "byte {byte}");
            assert!(open(&mine, &context, &sealed[..byte]).is_err(), "length {byte}");
        }
        assert!(seal(&[0; 32], &context, b"x").is_err(), "a key of low order");
        assert_ne!(sealed, seal(&public_of(&mine).unwrap(), &context, b"hunter2").unwrap());
    }
}
