//! The primitives of Noise by aws-lc: X25519, AES-256-GCM, SHA-256, and nothing else.
//!
//! Never panics: a key that the library refuses makes every later operation fail.

use aws_lc_rs::{
    aead, agreement as ag, digest,
    rand::{SecureRandom, SystemRandom},
};
use snow::{
    Error,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::CryptoResolver,
    types::{Cipher, Dh, Hash, Random},
};
use zeroize::{Zeroize, Zeroizing};

const KEY: usize = 32;
const TAG: usize = 16;

/// Resolver for [`snow::Builder`].
#[derive(Default)]
pub struct AwsLc;

impl CryptoResolver for AwsLc {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Rng(SystemRandom::new())))
    }
    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(X25519::default()) as _)
    }
    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256)
            .then(|| Box::new(Sha256(digest::Context::new(&digest::SHA256))) as _)
    }
    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::AESGCM).then(|| Box::new(AesGcm(None)) as _)
    }
}

struct Rng(SystemRandom);

impl Random for Rng {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        self.0.fill(dest).map_err(|_| Error::Rng)
    }
}

/// INVARIANT: `key` is `None` unless `secret` and `public` belong to it.
#[derive(Default)]
struct X25519 {
    secret: Zeroizing<[u8; KEY]>,
    public: [u8; KEY],
    key: Option<ag::PrivateKey>,
}

impl X25519 {
    fn load(&mut self, secret: &[u8]) -> Option<()> {
        let key = ag::PrivateKey::from_private_key(&ag::X25519, secret).ok()?;
        let public = key.compute_public_key().ok()?;
        self.public = public.as_ref().try_into().ok()?;
        *self.secret = secret.try_into().ok()?;
        self.key = Some(key);
        Some(())
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }
    fn pub_len(&self) -> usize {
        KEY
    }
    fn priv_len(&self) -> usize {
        KEY
    }
    fn set(&mut self, secret: &[u8]) {
        self.key = None;
        if self.load(secret).is_none() {
            self.key = None;
            self.secret.zeroize();
            self.public = [0; KEY];
        }
    }
    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        let mut secret = Zeroizing::new([0u8; KEY]);
        rng.try_fill_bytes(&mut secret[..])?;
        self.load(&secret[..]).ok_or(Error::Dh)
    }
    fn pubkey(&self) -> &[u8] {
        &self.public
    }
    fn privkey(&self) -> &[u8] {
        &self.secret[..]
    }
    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let key = self.key.as_ref().ok_or(Error::Dh)?;
        // snow hands over buffers of the largest curve.
        let public = public.get(..KEY).ok_or(Error::Dh)?;
        let out = out.get_mut(..KEY).ok_or(Error::Dh)?;
        // The library refuses an all-zero shared secret (RFC 7748 §6.1).
        ag::agree(key, ag::UnparsedPublicKey::new(&ag::X25519, public), Error::Dh, |secret| {
            if secret.len() != out.len() {
                return Err(Error::Dh);
            }
            out.copy_from_slice(secret);
            Ok(())
        })
    }
}

struct Sha256(digest::Context);

impl Hash for Sha256 {
    fn name(&self) -> &'static str {
        "SHA256"
    }
    fn block_len(&self) -> usize {
        64
    }
    fn hash_len(&self) -> usize {
        32
    }
    fn reset(&mut self) {
        self.0 = digest::Context::new(&digest::SHA256);
    }
    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }
    fn result(&mut self, out: &mut [u8]) {
        let hash = self.0.clone().finish();
        out.iter_mut().zip(hash.as_ref()).for_each(|(o, h)| *o = *h);
    }
}

struct AesGcm(Option<aead::LessSafeKey>);

impl Cipher for AesGcm {
    fn name(&self) -> &'static str {
        "AESGCM"
    }
    fn set(&mut self, key: &[u8; KEY]) {
        self.0 = aes_key(key);
    }
    fn encrypt(&self, n: u64, ad: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
        let len = plain.len() + TAG;
        let sealed = self.0.as_ref().and_then(|key| {
            let (body, tag) = out.get_mut(..len)?.split_at_mut_checked(plain.len())?;
            let aad = aead::Aad::from(ad);
            key.seal_out_of_place_scatter(nonce(n), aad, plain, body, &[], tag).ok()
        });
        if sealed.is_none() {
            // snow has no way to hear of it: send nothing meaningful, the peer will refuse it.
            out.fill(0);
        }
        len
    }
    fn decrypt(&self, n: u64, ad: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let len = sealed.len().checked_sub(TAG).ok_or(Error::Decrypt)?;
        let (body, tag) = sealed.split_at_checked(len).ok_or(Error::Decrypt)?;
        let out = out.get_mut(..len).ok_or(Error::Decrypt)?;
        let key = self.0.as_ref().ok_or(Error::Decrypt)?;
        key.open_separate_gather(nonce(n), aead::Aad::from(ad), body, tag, out)
            .map_err(|_| Error::Decrypt)?;
        Ok(len)
    }
}

pub(super) fn aes_key(key: &[u8; KEY]) -> Option<aead::LessSafeKey> {
    aead::UnboundKey::new(&aead::AES_256_GCM, key).ok().map(aead::LessSafeKey::new)
}

/// 32 zero bits and the counter, big-endian (Noise specification §12.4).
pub(super) fn nonce(n: u64) -> aead::Nonce {
    let mut bytes = [0u8; aead::NONCE_LEN];
    bytes.iter_mut().skip(4).zip(n.to_be_bytes()).for_each(|(b, n)| *b = n);
    aead::Nonce::assume_unique_for_key(bytes)
}
