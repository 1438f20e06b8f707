//! Envelopes: each secret under a data key of its own, the data key under a wrapping key.
//!
//! AES-256-GCM for both. The wrapping keys are in a file of the data directory or in the
//! configuration, never in the database: the database and its backups alone open nothing. An
//! envelope names its wrapping key; the newest key seals, the older ones still open until
//! [`WrappingKeys::rewrap`] has moved everything. Table, row and tenant are authenticated, so that
//! an envelope that is moved to another row does not open. Must never be printed or logged.

use std::sync::{Arc, PoisonError, RwLock};

use adit_protocol::keys::{fill_random, sha256};
use adit_runtime::{cli::CliError, datadir::DataDir};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

/// File of the wrapping keys: one a line, the newest last.
pub(crate) const WRAPPING_KEYS: &str = "wrapping.keys";
/// Configuration key, and so the variable `ADIT_MEDIATOR_WRAPPING_KEY`.
pub(crate) const WRAPPING_KEY: &str = "wrapping.key";
/// Bytes of a key (AES-256).
pub(super) const KEY_LEN: usize = 32;
/// Bytes of an authentication tag.
const TAG_LEN: usize = 16;
/// First byte of an envelope.
const VERSION: u8 = 1;
/// Bytes of a wrapping key's name inside an envelope.
const NAME_LEN: usize = 8;
/// version ‖ name ‖ nonce ‖ sealed data key
const HEAD_LEN: usize = 1 + NAME_LEN + NONCE_LEN + KEY_LEN + TAG_LEN;
/// Longest secret.
pub(crate) const MAX_SECRET: usize = 64 * 1024;
/// Before what is hashed to a key's name.
const NAME_LABEL: &[u8] = b"adit/1 wrapping key";
/// Before what is authenticated beside a secret.
const CONTEXT_LABEL: &[u8] = b"adit/1 envelope";
/// Wrapping keys in one file.
const MAX_KEYS: usize = 64;

/// Why an envelope was not made or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WrapError {
    /// Not an envelope, altered, or of another row.
    #[error("a stored secret is damaged or not in its place")]
    Damaged,
    /// The wrapping key is not here.
    #[error("the wrapping key of a stored secret is missing: put back {WRAPPING_KEYS}")]
    UnknownKey,
    /// Too long.
    #[error("a secret has more than {MAX_SECRET} bytes")]
    Long,
    /// No randomness.
    #[error("the system gives no randomness")]
    Random,
}

/// Where a secret belongs: authenticated with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// Table of the row.
    pub(crate) table: &'a str,
    /// Id of the row.
    pub(crate) row: &'a str,
    /// Id of the partner or client.
    pub(crate) tenant: &'a str,
}

impl Place<'_> {
    pub(super) fn bytes(self) -> Vec<u8> {
        let mut bytes = CONTEXT_LABEL.to_vec();
        for part in [self.table, self.row, self.tenant] {
            let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes
    }
}

/// One wrapping key.
struct WrappingKey {
    name: [u8; NAME_LEN],
    key: Zeroizing<[u8; KEY_LEN]>,
}

impl WrappingKey {
    fn new(key: Zeroizing<[u8; KEY_LEN]>) -> Self {
        let mut input = Zeroizing::new(NAME_LABEL.to_vec());
        input.extend_from_slice(&key[..]);
        let mut name = [0; NAME_LEN];
        name.iter_mut().zip(sha256(&input)).for_each(|(to, from)| *to = from);
        Self { name, key }
    }

    fn generate() -> Result<Self, WrapError> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        fill_random(&mut key[..]).map_err(|_| WrapError::Random)?;
        Ok(Self::new(key))
    }
}

/// The wrapping keys of an installation, oldest first.
#[derive(Clone)]
pub(crate) struct WrappingKeys {
    keys: Arc<RwLock<Vec<Arc<WrappingKey>>>>,
    /// The newest is in the configuration: only its administrator replaces it.
    configured: bool,
}

impl WrappingKeys {
    /// Reads the file, made with a first key if it is not there; `configured` is the newest.
    pub(crate) fn load(dir: &DataDir, configured: Option<&str>) -> Result<Self, CliError> {
        let mut keys = match dir.has(WRAPPING_KEYS) {
            true => parse_file(&dir.read_secret(WRAPPING_KEYS)?)?,
            false if configured.is_some() => Vec::new(),
            false => vec![first(dir)?],
        };
        if let Some(text) = configured {
            let key = parse_key(text).ok_or_else(|| {
                CliError::usage("config_invalid", format!("{WRAPPING_KEY} is no key"))
                    .hint("64 hexadecimal digits are expected, e.g. of openssl rand -hex 32")
            })?;
            keys.push(WrappingKey::new(key));
        }
        if keys.is_empty() {
            return Err(damaged());
        }
        Ok(Self { configured: configured.is_some(), ..Self::of(keys) })
    }

    fn of(keys: Vec<WrappingKey>) -> Self {
        let keys = keys.into_iter().map(Arc::new).collect();
        Self { keys: Arc::new(RwLock::new(keys)), configured: false }
    }

    /// Adds a fresh key to the file, which seals from now on; nothing where the newest one is
    /// configured.
    pub(crate) fn rotate(&self, dir: &DataDir) -> Result<(), CliError> {
        if self.configured {
            return Ok(());
        }
        let fresh = WrappingKey::generate().map_err(crypto)?;
        let mut keys = match dir.has(WRAPPING_KEYS) {
            true => parse_file(&dir.read_secret(WRAPPING_KEYS)?)?,
            false => Vec::new(),
        };
        if keys.len() >= MAX_KEYS {
            return Err(full());
        }
        keys.push(fresh);
        write(dir, &keys)?;
        if let Some(fresh) = keys.pop() {
            self.keys.write().unwrap_or_else(PoisonError::into_inner).push(Arc::new(fresh));
        }
        Ok(())
    }

    /// Name of the key that seals, for a column by which rows of older keys are found.
    pub(crate) fn current(&self) -> String {
        self.newest().map_or_else(String::new, |key| hex(&key.name))
    }

    /// Whether envelopes under the key of this name can be opened.
    pub(crate) fn knows(&self, name: &str) -> bool {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.iter().any(|key| hex(&key.name) == name)
    }

    /// Seals a secret for its place.
    pub(crate) fn seal(&self, place: Place<'_>, secret: &[u8]) -> Result<Vec<u8>, WrapError> {
        if secret.len() > MAX_SECRET {
            return Err(WrapError::Long);
        }
        let mut data_key = Zeroizing::new([0; KEY_LEN]);
        fill_random(&mut data_key[..]).map_err(|_| WrapError::Random)?;
        let mut envelope = self.head(place, &data_key)?;
        envelope.extend(encrypt(&data_key, &place.bytes(), secret)?);
        Ok(envelope)
    }

    /// Opens an envelope at its place.
    pub(crate) fn open(
        &self,
        place: Place<'_>,
        envelope: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, WrapError> {
        let (data_key, body) = self.data_key(place, envelope)?;
        decrypt(&data_key, &place.bytes(), body)
    }

    /// The same envelope under the newest key; the secret itself is not opened.
    pub(crate) fn rewrap(&self, place: Place<'_>, envelope: &[u8]) -> Result<Vec<u8>, WrapError> {
        let (data_key, body) = self.data_key(place, envelope)?;
        let mut fresh = self.head(place, &data_key)?;
        fresh.extend_from_slice(body);
        Ok(fresh)
    }

    fn head(&self, place: Place<'_>, data_key: &[u8; KEY_LEN]) -> Result<Vec<u8>, WrapError> {
        let key = self.newest().ok_or(WrapError::UnknownKey)?;
        let mut head = Vec::with_capacity(HEAD_LEN);
        head.push(VERSION);
        head.extend_from_slice(&key.name);
        let sealed = encrypt(&key.key, &place.bytes(), data_key)?;
        head.extend(sealed);
        Ok(head)
    }

    fn data_key<'e>(
        &self,
        place: Place<'_>,
        envelope: &'e [u8],
    ) -> Result<(Zeroizing<[u8; KEY_LEN]>, &'e [u8]), WrapError> {
        let (head, body) = envelope.split_at_checked(HEAD_LEN).ok_or(WrapError::Damaged)?;
        let (version, rest) = head.split_first().ok_or(WrapError::Damaged)?;
        let (name, sealed) = rest.split_at_checked(NAME_LEN).ok_or(WrapError::Damaged)?;
        if *version != VERSION {
            return Err(WrapError::Damaged);
        }
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        let key = keys.iter().find(|key| key.name == *name).ok_or(WrapError::UnknownKey)?;
        let opened = decrypt(&key.key, &place.bytes(), sealed)?;
        let mut data_key = Zeroizing::new([0; KEY_LEN]);
        if opened.len() != KEY_LEN {
            return Err(WrapError::Damaged);
        }
        data_key.copy_from_slice(&opened);
        Ok((data_key, body))
    }

    fn newest(&self) -> Option<Arc<WrappingKey>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }
}

/// nonce ‖ ciphertext ‖ tag
pub(super) fn encrypt(
    key: &[u8; KEY_LEN],
    context: &[u8],
    secret: &[u8],
) -> Result<Vec<u8>, WrapError> {
    let mut nonce = [0; NONCE_LEN];
    fill_random(&mut nonce).map_err(|_| WrapError::Random)?;
    // Room for the tag as well: a buffer that moved would leave the secret behind.
    let mut sealed = Vec::with_capacity(NONCE_LEN + secret.len() + TAG_LEN);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(secret);
    let (_, body) = sealed.split_at_mut_checked(NONCE_LEN).ok_or(WrapError::Damaged)?;
    let tag = cipher(key)?
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), body)
        .map_err(|_| WrapError::Damaged)?;
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

pub(super) fn decrypt(
    key: &[u8; KEY_LEN],
    context: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, WrapError> {
    let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or(WrapError::Damaged)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| WrapError::Damaged)?;
    let mut opened = Zeroizing::new(body.to_vec());
    let length = cipher(key)?
        .open_in_place(nonce, Aad::from(context), &mut opened)
        .map_err(|_| WrapError::Damaged)?
        .len();
    opened.truncate(length);
    Ok(opened)
}

fn cipher(key: &[u8; KEY_LEN]) -> Result<LessSafeKey, WrapError> {
    let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| WrapError::Damaged)?;
    Ok(LessSafeKey::new(key))
}

fn first(dir: &DataDir) -> Result<WrappingKey, CliError> {
    let key = WrappingKey::generate().map_err(crypto)?;
    write(dir, std::slice::from_ref(&key))?;
    Ok(key)
}

fn write(dir: &DataDir, keys: &[WrappingKey]) -> Result<(), CliError> {
    let mut text = Zeroizing::new(String::with_capacity(keys.len() * (2 * KEY_LEN + 1)));
    for key in keys {
        push_hex(&mut text, &key.key[..]);
        text.push('\n');
    }
    dir.write_atomic(WRAPPING_KEYS, text.as_bytes(), 0o600)
}

fn parse_file(bytes: &[u8]) -> Result<Vec<WrappingKey>, CliError> {
    let text = std::str::from_utf8(bytes).map_err(|_| damaged())?;
    let keys: Option<Vec<WrappingKey>> = text
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| parse_key(line).map(WrappingKey::new))
        .collect();
    keys.filter(|keys| !keys.is_empty() && keys.len() <= MAX_KEYS).ok_or_else(damaged)
}

fn parse_key(text: &str) -> Option<Zeroizing<[u8; KEY_LEN]>> {
    let digits = text.trim().as_bytes();
    let mut key = Zeroizing::new([0; KEY_LEN]);
    if digits.len() != 2 * KEY_LEN {
        return None;
    }
    for (to, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        *to = u8::try_from(digit(high)? * 16 + digit(low)?).ok()?;
    }
    Some(key)
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        text.extend(
            [byte >> 4, byte & 15].into_iter().filter_map(|n| char::from_digit(n.into(), 16)),
        );
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    push_hex(&mut text, bytes);
    text
}

fn damaged() -> CliError {
    CliError::failed("key_damaged", format!("{WRAPPING_KEYS} is damaged"))
        .hint("restore it from a backup; it is never written over")
}

fn full() -> CliError {
    let text = format!("{WRAPPING_KEYS} has {MAX_KEYS} keys, as many as it may; nothing was done");
    CliError::failed("too_many_keys", text).hint(
        "the oldest are the first lines, and only backups from before a rotation need them: copy \
         the file to where those backups are, remove from its top the keys of backups that you no \
         longer keep, and rotate again",
    )
}

fn crypto(error: WrapError) -> CliError {
    CliError::failed("crypto_failed", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: usize) -> WrappingKeys {
        WrappingKeys::of((0..count).map(|_| WrappingKey::generate().unwrap()).collect())
    }

    const HERE: Place<'static> = Place { table: "factor", row: "1", tenant: "p" };

    #[test]
    fn an_envelope_opens_at_its_place_only_and_not_when_a_bit_is_changed() {
        let keys = keys(1);
        let sealed = keys.seal(HERE, b"secret").unwrap();
        assert_eq!(keys.open(HERE, &sealed).unwrap().as_slice(), b"secret");
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        for place in [
            Place { table: "other", ..HERE },
            Place { row: "2", ..HERE },
            Place { tenant: "q", ..HERE },
            // Parts do not flow into each other.
            Place { table: "factor1", row: "", tenant: "p" },
        ] {
            assert_eq!(keys.open(place, &sealed), Err(WrapError::Damaged));
        }
        for byte in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[byte] ^= 1;
            assert!(keys.open(HERE, &bad).is_err(), "byte {byte}");
            assert!(keys.open(HERE, &sealed[..byte]).is_err(), "length {byte}");
        }
        assert_ne!(sealed, keys.seal(HERE, b"secret").unwrap());
        assert_eq!(self::keys(1).open(HERE, &sealed), Err(WrapError::UnknownKey));
    }

    /// What the answer says to do does it, without a restart.
    #[test]
    fn a_full_file_of_keys_says_what_to_do_and_nothing_is_lost_by_it() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temporary.path().join("d")).unwrap();
        let keys = WrappingKeys::load(&dir, None).unwrap();
        let (first, oldest) = (keys.seal(HERE, b"old backup").unwrap(), keys.current());
        for _ in 1..MAX_KEYS {
            keys.rotate(&dir).unwrap();
        }
        let (sealed, newest) = (keys.seal(HERE, b"secret").unwrap(), keys.current());
        let read = || String::from_utf8(dir.read_secret(WRAPPING_KEYS).unwrap().to_vec()).unwrap();
        let full = read();
        let told = keys.rotate(&dir).unwrap_err();
        assert!(told.code == "too_many_keys" && told.hint.unwrap().contains("from its top"));
        assert_eq!((read(), keys.current()), (full.clone(), newest.clone()));
        // A full file is no damaged one.
        assert_eq!(WrappingKeys::load(&dir, None).unwrap().current(), newest);
        let rest: String = full.split_inclusive('\n').skip(1).collect();
        std::fs::write(dir.file(WRAPPING_KEYS).unwrap(), rest).unwrap();
        keys.rotate(&dir).unwrap();
        let again = WrappingKeys::load(&dir, None).unwrap();
        assert_eq!((again.current(), again.knows(&oldest)), (keys.current(), false));
        assert_eq!(again.open(HERE, &sealed).unwrap().as_slice(), b"secret");
        assert_eq!(again.open(HERE, &first), Err(WrapError::UnknownKey));
        // With the copy what is in that backup opens again.
        std::fs::write(dir.file(WRAPPING_KEYS).unwrap(), full).unwrap();
        let restored = WrappingKeys::load(&dir, None).unwrap();
        assert_eq!(restored.open(HERE, &first).unwrap().as_slice(), b"old backup");
    }

    #[test]
    fn keys_rotate_and_old_envelopes_move_without_being_opened() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temporary.path().join("d")).unwrap();
        let keys = WrappingKeys::load(&dir, None).unwrap();
        let (sealed, before) = (keys.seal(HERE, b"secret").unwrap(), keys.current());
        keys.rotate(&dir).unwrap();
        assert_ne!(keys.current(), before);
        let again = WrappingKeys::load(&dir, None).unwrap();
        assert_eq!((again.current(), again.knows(&before)), (keys.current(), true));
        let moved = again.rewrap(HERE, &sealed).unwrap();
        for envelope in [&sealed, &moved] {
            assert_eq!(again.open(HERE, envelope).unwrap().as_slice(), b"secret");
        }
        let text = String::from_utf8(dir.read_secret(WRAPPING_KEYS).unwrap().to_vec()).unwrap();
        let newest = text.lines().last().unwrap();
        let only = WrappingKeys::of(vec![WrappingKey::new(parse_key(newest).unwrap())]);
        assert_eq!(only.open(HERE, &moved).unwrap().as_slice(), b"secret");
        assert_eq!(only.open(HERE, &sealed), Err(WrapError::UnknownKey));
        // One that is configured takes over, the file's still open.
        let configured = WrappingKeys::load(&dir, Some(&"0a".repeat(32))).unwrap();
        assert_eq!(configured.open(HERE, &sealed).unwrap().as_slice(), b"secret");
        assert_ne!(configured.current(), again.current());
        let newest = configured.current();
        configured.rotate(&dir).unwrap();
        assert_eq!(configured.current(), newest);
        assert_eq!(WrappingKeys::load(&dir, Some("zz")).err().unwrap().code, "config_invalid");
        std::fs::write(dir.file(WRAPPING_KEYS).unwrap(), "junk").unwrap();
        assert_eq!(WrappingKeys::load(&dir, None).err().unwrap().code, "key_damaged");
    }
}
