//! Files that only named recipients can read: the format of age, version 1, with X25519 recipients.
//!
//! A known format instead of one of our own: whoever needs a backup on the worst of days opens it
//! with any program that knows age. A file is a header, in which each recipient finds the file's
//! key, authenticated with that key; then pieces of 64 KiB under ChaCha20-Poly1305, numbered, the
//! last one marked, so that a file that was cut is known for it. Must never write a key into what
//! is read by others, nor give away a byte that was not authenticated.

use std::io::{BufRead, Read, Write};

use adit_protocol::keys::fill_random;
use aws_lc_rs::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    agreement::{PrivateKey, UnparsedPublicKey, X25519, agree},
    hkdf::{HKDF_SHA256, KeyType, Salt},
    hmac,
};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use zeroize::{Zeroize, Zeroizing};

/// The first line.
const VERSION: &str = "age-encryption.org/v1";
/// Before the arguments of a recipient's stanza.
const STANZA: &str = "-> ";
/// Before the header's authentication.
const FOOTER: &str = "---";
/// The only kind of recipient.
const KIND: &str = "X25519";
/// What is hashed to the key that wraps a file's key.
const WRAP_LABEL: &str = "age-encryption.org/v1/X25519";
/// Bytes of a file's key, of a piece and of its tag, of the nonce before the pieces, of an X25519
/// key.
const FILE_KEY_LEN: usize = 16;
const PIECE: usize = 64 * 1024;
const TAG_LEN: usize = 16;
const PAYLOAD_NONCE_LEN: usize = 16;
const POINT_LEN: usize = 32;
/// Human-readable parts of recipients and identities (Bech32, BIP 173).
const RECIPIENT: &str = "age";
const IDENTITY: &str = "age-secret-key-";
/// What shows that something is, or has in it, the wrong half of a key.
const SECRET: &str = "secret-key";
/// Recipients of one file.
pub(crate) const MAX_RECIPIENTS: usize = 16;
/// Bytes of a header that is read, and of one of its lines.
const MAX_HEADER: u64 = 64 * 1024;

/// Why a file was not sealed or opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgeError {
    /// No recipient.
    #[error("\"{0}\" is no recipient: age1… is expected, as mediator backup-key prints it")]
    Recipient(String),
    /// Too many, or none.
    #[error("1 to {MAX_RECIPIENTS} recipients are expected")]
    Recipients,
    /// No identity.
    #[error("there is no line AGE-SECRET-KEY-1… in it")]
    Identity,
    /// Not such a file.
    #[error("it is no file in the format of age")]
    Format,
    /// For others.
    #[error("it is for other recipients")]
    NotForUs,
    /// Altered or cut.
    #[error("it is damaged, or its end is missing")]
    Damaged,
    /// No randomness.
    #[error("the system gives no randomness")]
    Random,
    /// Reading or writing.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Whom a file is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recipient([u8; POINT_LEN]);

impl Recipient {
    /// Of its text.
    pub(crate) fn parse(text: &str) -> Result<Self, AgeError> {
        let text = text.trim();
        // The wrong half of a key is not told to anybody, wherever it stands in what was pasted.
        let secret = text.to_ascii_lowercase().contains(SECRET);
        let shown =
            if secret { "AGE-SECRET-KEY-…".to_owned() } else { text.chars().take(80).collect() };
        let wrong = || AgeError::Recipient(shown.clone());
        let bytes = bech32_decode(RECIPIENT, text).ok_or_else(wrong)?;
        let point: [u8; POINT_LEN] = bytes.as_slice().try_into().map_err(|_| wrong())?;
        // What any secret leads to the same key with is nobody's.
        let known = PrivateKey::generate(&X25519).map_err(|_| AgeError::Random)?;
        shared(&known, &point).map_err(|_| wrong())?;
        Ok(Self(point))
    }

    /// All of a list, each once.
    pub(crate) fn parse_all(texts: &[String]) -> Result<Vec<Self>, AgeError> {
        if texts.is_empty() || texts.len() > MAX_RECIPIENTS {
            return Err(AgeError::Recipients);
        }
        texts.iter().map(|text| Self::parse(text)).collect()
    }
}

impl std::fmt::Display for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&bech32_encode(RECIPIENT, &self.0))
    }
}

/// Who can open what is for its recipient. Its text is given once, by [`Identity::generate`].
pub(crate) struct Identity(PrivateKey, Recipient);

impl Identity {
    /// A fresh one, with the text that is kept of it.
    pub(crate) fn generate() -> Result<(Self, Zeroizing<String>), AgeError> {
        let mut secret = Zeroizing::new([0; POINT_LEN]);
        fill_random(&mut secret[..]).map_err(|_| AgeError::Random)?;
        let text = Zeroizing::new(bech32_encode(IDENTITY, &secret[..]).to_uppercase());
        Ok((Self::of(&secret[..])?, text))
    }

    fn of(secret: &[u8]) -> Result<Self, AgeError> {
        let key = PrivateKey::from_private_key(&X25519, secret).map_err(|_| AgeError::Identity)?;
        let public = key.compute_public_key().map_err(|_| AgeError::Identity)?;
        let point = public.as_ref().try_into().map_err(|_| AgeError::Identity)?;
        Ok(Self(key, Recipient(point)))
    }

    /// All of a file of identities; comments and empty lines are skipped.
    pub(crate) fn read(text: &str) -> Result<Vec<Self>, AgeError> {
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let one = |line: &str| {
            let bytes = Zeroizing::new(bech32_decode(IDENTITY, line).ok_or(AgeError::Identity)?);
            Self::of(&bytes)
        };
        let found = lines.map(one).collect::<Result<Vec<_>, _>>()?;
        if found.is_empty() || found.len() > MAX_RECIPIENTS {
            return Err(AgeError::Identity);
        }
        Ok(found)
    }

    /// Whom to seal for.
    pub(crate) fn recipient(&self) -> &Recipient {
        &self.1
    }

    /// The file's key, if this stanza is for it.
    fn unwrap(&self, stanza: &Stanza) -> Option<Zeroizing<[u8; FILE_KEY_LEN]>> {
        let secret = shared(&self.0, &stanza.share).ok()?;
        let key = wrap_key(&secret, &stanza.share, &self.1)?;
        let mut body = Zeroizing::new(stanza.body);
        let opened = cipher(&key[..])?
            .open_in_place(
                Nonce::assume_unique_for_key([0; NONCE_LEN]),
                Aad::empty(),
                &mut body[..],
            )
            .ok()?;
        let mut file_key = Zeroizing::new([0; FILE_KEY_LEN]);
        file_key.copy_from_slice(opened.get(..FILE_KEY_LEN)?);
        Some(file_key)
    }
}

/// How one recipient finds the file's key.
struct Stanza {
    share: [u8; POINT_LEN],
    body: [u8; FILE_KEY_LEN + TAG_LEN],
}

/// Seals what is written, piece by piece. INVARIANT: fewer bytes than a piece wait, but for a whole
/// one that may be the last.
pub(crate) struct Sealer {
    pieces: Pieces,
    waiting: Zeroizing<Vec<u8>>,
}

impl Sealer {
    /// For these recipients; with the file's beginning.
    pub(crate) fn new(recipients: &[Recipient]) -> Result<(Self, Vec<u8>), AgeError> {
        if recipients.is_empty() || recipients.len() > MAX_RECIPIENTS {
            return Err(AgeError::Recipients);
        }
        let mut file_key = Zeroizing::new([0; FILE_KEY_LEN]);
        let mut nonce = [0; PAYLOAD_NONCE_LEN];
        fill_random(&mut file_key[..]).map_err(|_| AgeError::Random)?;
        fill_random(&mut nonce).map_err(|_| AgeError::Random)?;
        let mut header = format!("{VERSION}\n");
        for recipient in recipients {
            header.push_str(&stanza(recipient, &file_key)?);
        }
        header.push_str(FOOTER);
        let tag = header_tag(&file_key, &header).ok_or(AgeError::Random)?;
        header.push_str(&format!(" {}\n", STANDARD_NO_PAD.encode(tag)));
        let mut begun = header.into_bytes();
        begun.extend_from_slice(&nonce);
        let pieces = Pieces::new(&file_key, &nonce).ok_or(AgeError::Random)?;
        Ok((Self { pieces, waiting: Zeroizing::new(Vec::with_capacity(PIECE)) }, begun))
    }

    /// Seals more; gives what is ready.
    pub(crate) fn more(&mut self, mut plain: &[u8]) -> Result<Vec<u8>, AgeError> {
        let mut ready = Vec::new();
        while !plain.is_empty() {
            if self.waiting.len() == PIECE {
                self.pieces.seal(&self.waiting, false, &mut ready)?;
                self.waiting.zeroize();
            }
            let room = PIECE.saturating_sub(self.waiting.len()).min(plain.len());
            let (now, later) = plain.split_at(room);
            self.waiting.extend_from_slice(now);
            plain = later;
        }
        Ok(ready)
    }

    /// Seals the end.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>, AgeError> {
        let mut ready = Vec::new();
        self.pieces.seal(&self.waiting, true, &mut ready)?;
        Ok(ready)
    }
}

/// Whether what comes is such a file. Takes nothing of it away.
pub(crate) fn is_sealed(from: &mut impl BufRead) -> std::io::Result<bool> {
    Ok(from.fill_buf()?.starts_with(VERSION.as_bytes()))
}

/// Opens a sealed file for whoever has one of these identities. An error after some of it was
/// written means that what was written is not all.
pub(crate) fn open(
    identities: &[Identity],
    mut from: impl Read,
    mut to: impl Write,
) -> Result<(), AgeError> {
    let (header, stanzas, tag) = read_header(&mut from)?;
    let all = stanzas.iter().flat_map(|stanza| identities.iter().map(move |i| (i, stanza)));
    let mut keys = all.filter_map(|(identity, stanza)| identity.unwrap(stanza));
    let file_key = keys.next().ok_or(AgeError::NotForUs)?;
    let wanted = header_tag(&file_key, &header).ok_or(AgeError::Damaged)?;
    aws_lc_rs::constant_time::verify_slices_are_equal(&wanted, &tag)
        .map_err(|_| AgeError::Damaged)?;
    let mut nonce = [0; PAYLOAD_NONCE_LEN];
    from.read_exact(&mut nonce).map_err(|_| AgeError::Damaged)?;
    let mut pieces = Pieces::new(&file_key, &nonce).ok_or(AgeError::Damaged)?;
    let (mut piece, mut next) = (Zeroizing::new(Vec::new()), Zeroizing::new(Vec::new()));
    fill(&mut from, &mut piece)?;
    let mut first = true;
    loop {
        fill(&mut from, &mut next)?;
        let last = next.is_empty();
        let opened = pieces.open(&mut piece, last)?;
        // Only a file of nothing ends with an empty piece.
        if opened.is_empty() && !(first && last) {
            return Err(AgeError::Damaged);
        }
        to.write_all(opened)?;
        if last {
            return Ok(());
        }
        first = false;
        std::mem::swap(&mut piece, &mut next);
    }
}

/// One sealed piece, or less at the end.
fn fill(from: &mut impl Read, piece: &mut Vec<u8>) -> Result<(), AgeError> {
    piece.clear();
    let most = u64::try_from(PIECE + TAG_LEN).unwrap_or(u64::MAX);
    from.take(most).read_to_end(piece)?;
    Ok(())
}

/// What is authenticated, the stanzas that are understood, and the tag.
fn read_header(from: &mut impl Read) -> Result<(String, Vec<Stanza>, Vec<u8>), AgeError> {
    let mut limited = from.take(MAX_HEADER);
    let mut line = || {
        let (mut line, mut byte) = (Vec::new(), [0]);
        loop {
            match limited.read(&mut byte) {
                Ok(1) if byte == *b"\n" => break,
                Ok(1) => line.extend_from_slice(&byte),
                Ok(_) => return Err(AgeError::Format),
                Err(error) => return Err(error.into()),
            }
        }
        String::from_utf8(line).map_err(|_| AgeError::Format)
    };
    let first = line()?;
    if first != VERSION {
        return Err(AgeError::Format);
    }
    let (mut header, mut stanzas) = (format!("{first}\n"), Vec::new());
    loop {
        let begun = line()?;
        if let Some(tag) = begun.strip_prefix(FOOTER).and_then(|rest| rest.strip_prefix(' ')) {
            header.push_str(FOOTER);
            let tag = STANDARD_NO_PAD.decode(tag).map_err(|_| AgeError::Format)?;
            return Ok((header, stanzas, tag));
        }
        let arguments = begun.strip_prefix(STANZA).ok_or(AgeError::Format)?.to_owned();
        header.push_str(&format!("{begun}\n"));
        let mut body = String::new();
        loop {
            let part = line()?;
            header.push_str(&format!("{part}\n"));
            body.push_str(&part);
            // A body ends with a line that is not full.
            if part.len() < 64 {
                break;
            }
        }
        if let Some(share) = arguments.strip_prefix(KIND).and_then(|rest| rest.strip_prefix(' ')) {
            let exact = |text: &str| STANDARD_NO_PAD.decode(text).map_err(|_| AgeError::Format);
            let share = exact(share)?.as_slice().try_into().map_err(|_| AgeError::Format)?;
            let body = exact(&body)?.as_slice().try_into().map_err(|_| AgeError::Format)?;
            stanzas.push(Stanza { share, body });
        }
    }
}

/// A recipient's lines of a header.
fn stanza(
    recipient: &Recipient,
    file_key: &Zeroizing<[u8; FILE_KEY_LEN]>,
) -> Result<String, AgeError> {
    let own = PrivateKey::generate(&X25519).map_err(|_| AgeError::Random)?;
    let public = own.compute_public_key().map_err(|_| AgeError::Random)?;
    let share: [u8; POINT_LEN] = public.as_ref().try_into().map_err(|_| AgeError::Random)?;
    let secret = shared(&own, &recipient.0)?;
    let key = wrap_key(&secret, &share, recipient).ok_or(AgeError::Random)?;
    let mut body = Zeroizing::new([0; FILE_KEY_LEN]);
    body.copy_from_slice(&file_key[..]);
    let tag = cipher(&key[..])
        .ok_or(AgeError::Random)?
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key([0; NONCE_LEN]),
            Aad::empty(),
            &mut body[..],
        )
        .map_err(|_| AgeError::Random)?;
    let sealed = [&body[..], tag.as_ref()].concat();
    let (share, sealed) = (STANDARD_NO_PAD.encode(share), STANDARD_NO_PAD.encode(sealed));
    Ok(format!("{STANZA}{KIND} {share}\n{sealed}\n"))
}

fn shared(own: &PrivateKey, theirs: &[u8; POINT_LEN]) -> Result<Zeroizing<Vec<u8>>, AgeError> {
    // All zeroes, of a point of low order, is an error of the library.
    agree(own, UnparsedPublicKey::new(&X25519, theirs), AgeError::Damaged, |secret| {
        Ok(Zeroizing::new(secret.to_vec()))
    })
}

/// A length, for the library.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn derive(secret: &[u8], salt: &[u8], info: &str) -> Option<Zeroizing<[u8; 32]>> {
    let key = Salt::new(HKDF_SHA256, salt).extract(secret);
    let info = [info.as_bytes()];
    let mut out = Zeroizing::new([0; 32]);
    key.expand(&info, Length(out.len())).ok()?.fill(&mut out[..]).ok()?;
    Some(out)
}

fn wrap_key(
    secret: &[u8],
    share: &[u8; POINT_LEN],
    recipient: &Recipient,
) -> Option<Zeroizing<[u8; 32]>> {
    derive(secret, &[&share[..], &recipient.0[..]].concat(), WRAP_LABEL)
}

fn header_tag(file_key: &Zeroizing<[u8; FILE_KEY_LEN]>, header: &str) -> Option<Vec<u8>> {
    let key = derive(&file_key[..], b"", "header")?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key[..]);
    Some(hmac::sign(&key, header.as_bytes()).as_ref().to_vec())
}

fn cipher(key: &[u8]) -> Option<LessSafeKey> {
    UnboundKey::new(&CHACHA20_POLY1305, key).ok().map(LessSafeKey::new)
}

/// The numbered pieces. INVARIANT: no number twice, and none after the last.
struct Pieces {
    key: LessSafeKey,
    number: u64,
}

impl Pieces {
    fn new(file_key: &Zeroizing<[u8; FILE_KEY_LEN]>, nonce: &[u8]) -> Option<Self> {
        let key = derive(&file_key[..], nonce, "payload")?;
        Some(Self { key: cipher(&key[..])?, number: 0 })
    }

    fn nonce(&mut self, last: bool) -> Result<Nonce, AgeError> {
        let mut nonce = [0; NONCE_LEN];
        let number = self.number.to_be_bytes();
        // 11 bytes of number, one that marks the last piece.
        let (begin, end) = (NONCE_LEN - 1 - number.len(), NONCE_LEN - 1);
        nonce.get_mut(begin..end).ok_or(AgeError::Damaged)?.copy_from_slice(&number);
        if let Some(mark) = nonce.last_mut() {
            *mark = u8::from(last);
        }
        self.number = self.number.checked_add(1).ok_or(AgeError::Damaged)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    fn seal(&mut self, plain: &[u8], last: bool, out: &mut Vec<u8>) -> Result<(), AgeError> {
        let nonce = self.nonce(last)?;
        let from = out.len();
        out.extend_from_slice(plain);
        let body = out.get_mut(from..).ok_or(AgeError::Damaged)?;
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::empty(), body);
        out.extend_from_slice(tag.map_err(|_| AgeError::Damaged)?.as_ref());
        Ok(())
    }

    fn open<'a>(&mut self, piece: &'a mut [u8], last: bool) -> Result<&'a [u8], AgeError> {
        let nonce = self.nonce(last)?;
        let opened = self.key.open_in_place(nonce, Aad::empty(), piece);
        opened.map(|plain| &*plain).map_err(|_| AgeError::Damaged)
    }
}

const ALPHABET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
/// Characters of a Bech32 checksum.
const CHECKSUM: usize = 6;

/// BIP 173, without the length limit of addresses, as age uses it.
fn polymod(values: impl Iterator<Item = u8>) -> u32 {
    const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
    values.fold(1_u32, |sum, value| {
        let top = sum >> 25;
        let sum = (sum & 0x01ff_ffff) << 5 ^ u32::from(value);
        let picked = GENERATOR.iter().enumerate().filter(|(bit, _)| top >> bit & 1 == 1);
        picked.fold(sum, |sum, (_, part)| sum ^ part)
    })
}

fn expanded(name: &str) -> impl Iterator<Item = u8> + '_ {
    let high = name.bytes().map(|byte| byte >> 5);
    high.chain([0]).chain(name.bytes().map(|byte| byte & 31))
}

/// Groups of bits as others; `pad`: what is left over is filled up, else it must be nothing.
fn regroup(bytes: &[u8], (from, to): (u32, u32), pad: bool) -> Option<Vec<u8>> {
    let (mut waiting, mut bits, mut out) = (0_u32, 0_u32, Vec::with_capacity(bytes.len() * 2));
    let mask = (1_u32 << to) - 1;
    for byte in bytes {
        waiting = (waiting << from | u32::from(*byte)) & 0xffff;
        bits += from;
        while bits >= to {
            bits -= to;
            out.push(u8::try_from(waiting >> bits & mask).ok()?);
        }
    }
    let rest = waiting << (to - bits) & mask;
    match pad {
        true if bits > 0 => out.push(u8::try_from(rest).ok()?),
        false if bits >= from || rest != 0 => return None,
        _ => {}
    }
    Some(out)
}

fn bech32_encode(name: &str, bytes: &[u8]) -> String {
    let values = regroup(bytes, (8, 5), true).unwrap_or_default();
    let sum = polymod(expanded(name).chain(values.iter().copied()).chain([0; CHECKSUM])) ^ 1;
    let check = (0..CHECKSUM).rev().map(|place| u8::try_from(sum >> (5 * place) & 31).unwrap_or(0));
    let letter = |value: u8| ALPHABET.get(usize::from(value)).map_or('?', |c| char::from(*c));
    let text: String = values.iter().copied().chain(check).map(letter).collect();
    format!("{name}1{text}")
}

fn bech32_decode(name: &str, text: &str) -> Option<Vec<u8>> {
    // One case throughout (BIP 173).
    if text.len() > 256 || (text.to_lowercase() != text && text.to_uppercase() != text) {
        return None;
    }
    let lower = Zeroizing::new(text.to_lowercase());
    let data = lower.strip_prefix(name)?.strip_prefix('1')?;
    let value = |c: u8| ALPHABET.iter().position(|known| *known == c).map(u8::try_from);
    let values: Zeroizing<Vec<u8>> =
        Zeroizing::new(data.bytes().map(|c| value(c)?.ok()).collect::<Option<Vec<u8>>>()?);
    if polymod(expanded(name).chain(values.iter().copied())) != 1 {
        return None;
    }
    regroup(values.get(..values.len().checked_sub(CHECKSUM)?)?, (5, 8), false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoders::{BACKUP_IDENTITY, BACKUP_RECIPIENT, BACKUP_TEXT, backup_examples};

    fn sealed(recipients: &[Recipient], plain: &[u8], step: usize) -> Vec<u8> {
        let (mut sealer, mut out) = Sealer::new(recipients).unwrap();
        for part in plain.chunks(step) {
            out.extend(sealer.more(part).unwrap());
        }
        out.extend(sealer.finish().unwrap());
        out
    }

    fn opened(identities: &[Identity], sealed: &[u8]) -> Result<Vec<u8>, AgeError> {
        let mut out = Vec::new();
        open(identities, sealed, &mut out).map(|()| out)
    }

    #[test]
    fn what_another_program_sealed_opens() {
        let identities = Identity::read(BACKUP_IDENTITY).unwrap();
        assert_eq!(identities[0].recipient().to_string(), BACKUP_RECIPIENT);
        assert_eq!(opened(&identities, &backup_examples()[0]).unwrap(), BACKUP_TEXT);
    }

    #[test]
    fn each_recipient_opens_all_of_it_and_nobody_else_any() {
        let (own, text) = Identity::generate().unwrap();
        let (other, _) = Identity::generate().unwrap();
        assert_eq!(Identity::read(&text).unwrap()[0].recipient(), own.recipient());
        let both = [own.recipient().clone(), other.recipient().clone()];
        let (own, other) = ([own], [other]);
        let (stranger, _) = Identity::generate().unwrap();
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            let plain: Vec<u8> = (0..=250).cycle().take(length).collect();
            for step in [1_000, PIECE, 5 * PIECE] {
                let file = sealed(&both, &plain, step);
                assert_eq!(opened(&own, &file).unwrap(), plain, "{length} {step}");
                assert_eq!(opened(&other, &file).unwrap(), plain, "{length} {step}");
            }
        }
        let file = sealed(&both, b"x", 1);
        assert!(matches!(opened(&[stranger], &file), Err(AgeError::NotForUs)));
    }

    #[test]
    fn what_is_altered_or_cut_is_not_taken_for_whole() {
        let (own, _) = Identity::generate().unwrap();
        let file = sealed(&[own.recipient().clone()], &vec![7; 2 * PIECE + 9], PIECE);
        let own = [own];
        for place in (0..file.len()).step_by(97) {
            let mut altered = file.clone();
            altered[place] ^= 1;
            assert!(opened(&own, &altered).is_err(), "{place}");
        }
        let ends = [0, 10, file.len() - PIECE, file.len() - 9 - TAG_LEN, file.len() - 1];
        for end in ends {
            assert!(opened(&own, &file[..end]).is_err(), "{end}");
        }
        let more = [&file[..], b"x"].concat();
        assert!(opened(&own, &more).is_err());
    }

    #[test]
    fn recipients_with_a_wrong_letter_or_nobodys_key_are_none() {
        let (_, secret) = Identity::generate().unwrap();
        let told = Recipient::parse(&secret).unwrap_err().to_string();
        assert!(!told.contains(&secret[IDENTITY.len() + 1..]), "{told}");
        let (own, _) = Identity::generate().unwrap();
        let text = own.recipient().to_string();
        let small = secret.to_lowercase();
        for pasted in [
            format!(" {}", &secret[..]),
            format!("\n\u{a0}{small}"),
            format!("{text} {}", &secret[..]),
            format!("{text}\n{small}"),
            format!("\"{}\"", &secret[..]),
        ] {
            let told = Recipient::parse(&pasted).unwrap_err().to_string().to_lowercase();
            assert!(!told.contains(&small[IDENTITY.len() + 1..]), "{told}");
        }
        assert_eq!(Recipient::parse(&format!(" {text}\n")).unwrap(), *own.recipient());
        assert_eq!(Recipient::parse(&text).unwrap(), *own.recipient());
        let wrong = text.replace(&text[10..11], if &text[10..11] == "q" { "p" } else { "q" });
        let zero = bech32_encode(RECIPIENT, &[0; POINT_LEN]);
        for bad in ["", "age1", "ssh-ed25519 AAAA", &wrong, &zero, &format!("{text}q")] {
            assert!(Recipient::parse(bad).is_err(), "{bad}");
        }
        assert!(Recipient::parse_all(&[]).is_err());
        assert!(Identity::read("# nothing\n").is_err());
        assert!(Identity::read(&text).is_err());
    }
}
