//! Passwords: rules, hashing, and generated ones. Never logged, wiped from memory.

use std::time::Duration;

use adit_protocol::keys::fill_random;
use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::{PasswordHasher, phc::PasswordHash},
};
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

/// Characters of a password that is the only factor (NIST SP 800-63B-4 §3.1.1.2).
pub(crate) const MIN_CHARS: usize = 15;
/// The same beside a second factor.
pub(crate) const MIN_CHARS_WITH_FACTOR: usize = 8;
/// Bytes of a password.
pub(crate) const MAX_BYTES: usize = 1024;
/// Characters of a generated password: 5 bits each.
const GENERATED_CHARS: usize = 24;
/// Blocks of 1 KiB that comparing with a hash may take: no more than a damaged database may ask.
const MAX_BLOCKS: usize = 64 * 1024;
/// Memory for comparing that nobody needed for so long is given back.
const KEPT: Duration = Duration::from_secs(60);
/// Letters and digits that are not mistaken for one another.
pub(crate) const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// What the dictionaries of common passwords, names and English words lack: other languages'
/// favourites, and what is on everybody's mind here.
const CONTEXT: [&str; 20] = [
    "passwort",
    "kennwort",
    "qwertz",
    "azerty",
    "motdepasse",
    "contrasena",
    "hallo",
    "geheim",
    "willkommen",
    "sommer",
    "winter",
    "adit",
    "tunnel",
    "mediator",
    "console",
    "relay",
    "remote",
    "technician",
    "administrator",
    "support",
];

/// Why a password is not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WeakPassword {
    /// Too short.
    #[error("password has fewer than {0} characters")]
    Short(usize),
    /// Too long.
    #[error("password has more than {MAX_BYTES} bytes")]
    Long,
    /// Guessed first.
    #[error("password is too easy to guess: use several words, or let one be generated")]
    Common,
}

/// Is the password good enough for this user? No character is asked for; what is among the first
/// hundred million guesses (a million beside a second factor) of somebody who knows the user is
/// refused: common passwords, words, names, dates, keyboard rows, repetitions, and these spelt
/// with digits.
pub(crate) fn check(
    password: &str,
    user: &str,
    partner: &str,
    min_chars: usize,
) -> Result<(), WeakPassword> {
    if password.len() > MAX_BYTES {
        return Err(WeakPassword::Long);
    }
    let password = normalised(password);
    if password.chars().count() < min_chars {
        return Err(WeakPassword::Short(min_chars));
    }
    let words: Vec<&str> = CONTEXT.into_iter().chain([user, partner]).collect();
    let least = if min_chars < MIN_CHARS { zxcvbn::Score::Two } else { zxcvbn::Score::Three };
    match zxcvbn::zxcvbn(&password, &words).score() >= least {
        true => Ok(()),
        false => Err(WeakPassword::Common),
    }
}

/// Is it too short to be the only factor?
pub(crate) fn is_short(password: &str) -> bool {
    normalised(password).chars().count() < MIN_CHARS
}

/// The same characters however they were typed (NFC, RFC 8265 §4.2.2).
fn normalised(password: &str) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(4 * MAX_BYTES));
    text.extend(password.nfc());
    text
}

/// A random password.
pub(crate) fn generate() -> Option<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0_u8; GENERATED_CHARS]);
    fill_random(&mut bytes[..]).ok()?;
    let mut text = Zeroizing::new(String::with_capacity(GENERATED_CHARS));
    for byte in bytes.iter() {
        text.push(char::from(*ALPHABET.get(usize::from(byte & 31))?));
    }
    Some(text)
}

/// Hashes a password (argon2id, 19 MiB, 2 passes, 1 lane). Takes some 70 ms of a processor.
pub(crate) fn hash(password: &str) -> Option<String> {
    let password = normalised(password);
    Argon2::default().hash_password(password.as_bytes()).ok().map(|hash| hash.to_string())
}

/// The memory that comparing takes, kept between one password and the next: taken anew each time
/// it is thousands of page faults. What was in it is wiped as soon as nothing follows.
#[derive(Default)]
pub(crate) struct Memory {
    blocks: Vec<Block>,
    used: bool,
}

impl Memory {
    fn blocks(&mut self, count: usize) -> Option<&mut [Block]> {
        if count > MAX_BLOCKS {
            return None;
        }
        if self.blocks.len() < count {
            self.blocks.resize(count, Block::new());
        }
        self.used = true;
        self.blocks.get_mut(..count)
    }

    /// How long it may stay as it is while nobody needs it; `None`: for ever.
    pub(crate) fn patience(&self) -> Option<Duration> {
        if self.used {
            return Some(Duration::ZERO);
        }
        (!self.blocks.is_empty()).then_some(KEPT)
    }

    /// Wipes it; if that is done, gives it back.
    pub(crate) fn fade(&mut self) {
        if self.used {
            self.blocks.fill(Block::new());
            self.used = false;
        } else {
            self.blocks = Vec::new();
        }
    }
}

/// Checks a password against a hash. Takes as long whatever the outcome.
pub(crate) fn verify_in(memory: &mut Memory, password: &str, hash: &str) -> bool {
    let password = normalised(password);
    compare(memory, &password, hash).unwrap_or(false)
}

/// `None`: the hash is not one of ours.
fn compare(memory: &mut Memory, password: &str, hash: &str) -> Option<bool> {
    let hash = PasswordHash::new(hash).ok()?;
    let (salt, expected) = (hash.salt?, hash.hash?);
    let version = match hash.version {
        Some(version) => Version::try_from(version).ok()?,
        None => Version::default(),
    };
    let algorithm = Algorithm::try_from(hash.algorithm.as_str()).ok()?;
    let params = Params::try_from(&hash).ok()?;
    let blocks = memory.blocks(params.block_count())?;
    let mut found = Zeroizing::new(vec![0; expected.as_bytes().len()]);
    let argon = Argon2::new(algorithm, version, params);
    argon.hash_password_into_with_memory(password.as_bytes(), &salt, &mut found, blocks).ok()?;
    let same = aws_lc_rs::constant_time::verify_slices_are_equal(&found, expected.as_bytes());
    Some(same.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verify(password: &str, hash: &str) -> bool {
        verify_in(&mut Memory::default(), password, hash)
    }

    fn alone(password: &str, user: &str) -> Result<(), WeakPassword> {
        check(password, user, "acme", MIN_CHARS)
    }

    #[test]
    fn rules_ask_for_length_and_refuse_the_obvious() {
        assert_eq!(alone("short", "u"), Err(WeakPassword::Short(15)));
        for obvious in [
            "aaaaaaaaaaaaaaaaaaa",
            "passwordpassword",
            "123456789012345678",
            "qwertyuiopasdfgh",
            "P@ssw0rdP@ssw0rd",
            "administrator123",
            "acmeacmeacmeacme",
            "aditaditaditadit",
            "passwortpasswort",
        ] {
            assert_eq!(alone(obvious, "u"), Err(WeakPassword::Common), "{obvious}");
        }
        assert_eq!(alone("margaretmargaret1", "margaret"), Err(WeakPassword::Common));
        assert_eq!(alone("horse battery staple", "u"), Ok(()));
        // Nothing but length: no digit, no capital, any character.
        assert_eq!(alone("lenkrad vierzig gurke", "u"), Ok(()));
        assert_eq!(alone("любовь утюг грамота", "u"), Ok(()));
        assert_eq!(alone(&"x1 ab9 kd ".repeat(10), "u"), Ok(()));
        assert_eq!(alone(&"ab1 cd".repeat(200), "u"), Err(WeakPassword::Long));
        let beside = |password| check(password, "u", "acme", MIN_CHARS_WITH_FACTOR);
        assert_eq!(beside("kx7 pwq"), Err(WeakPassword::Short(8)));
        assert_eq!(beside("kx7 pwqz"), Ok(()));
        assert_eq!(beside("password"), Err(WeakPassword::Common));
        assert!(is_short("kx7 pwqz") && !is_short("horse battery staple"));
    }

    #[test]
    fn the_same_characters_typed_otherwise_are_the_same_password() {
        let (composed, decomposed) = ("b\u{e4}rendienst am see", "ba\u{308}rendienst am see");
        assert!(verify(decomposed, &hash(composed).unwrap()));
        assert_eq!(is_short(composed), is_short(decomposed));
    }

    #[test]
    fn generated_passwords_pass_the_rules_and_hashes_verify() {
        let password = generate().unwrap();
        assert_eq!(alone(&password, "admin"), Ok(()));
        let hash = hash(&password).unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(verify(&password, &hash) && !verify("other", &hash) && !verify("x", "junk"));
    }

    /// What one password left in the memory must not decide about the next.
    #[test]
    fn memory_that_is_used_again_decides_as_new_memory_does() {
        let hash = hash("horse battery staple").unwrap();
        // As another program would have made it: other costs, another length.
        let small =
            "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
        let mut memory = Memory::default();
        for _ in 0..2 {
            for _ in 0..2 {
                assert!(verify_in(&mut memory, "horse battery staple", &hash));
                assert!(verify_in(&mut memory, "password", small));
                assert!(!verify_in(&mut memory, "another", &hash));
            }
            assert_eq!(memory.patience(), Some(Duration::ZERO));
            memory.fade();
            assert!(memory.blocks.iter().all(|block| block.as_ref() == [0_u64; 128]));
            assert_eq!(memory.patience(), Some(KEPT));
        }
        memory.fade();
        assert_eq!((memory.patience(), memory.blocks.capacity()), (None, 0));
        let greedy = "$argon2id$v=19$m=4000000,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
        assert!(!verify_in(&mut memory, "password", greedy) && memory.blocks.is_empty());
    }
}
