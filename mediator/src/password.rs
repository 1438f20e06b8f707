//! Passwords: rules, hashing, and generated ones. Never logged, wiped from memory.

use adit_protocol::keys::fill_random;
use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use zeroize::Zeroizing;

/// Characters of a password that is the only factor (NIST SP 800-63B-4 §3.1.1.2).
pub(crate) const MIN_CHARS: usize = 15;
/// Bytes of a password.
pub(crate) const MAX_BYTES: usize = 1024;
/// Characters of a generated password: 5 bits each.
const GENERATED_CHARS: usize = 24;
/// Letters and digits that are not mistaken for one another.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// Different characters that a password must have at least.
const MIN_DIFFERENT: usize = 5;
/// Beginnings of what everybody tries first.
const COMMON: [&str; 8] =
    ["password", "passwort", "qwertz", "qwerty", "letmein", "welcome", "administrator", "123456"];

/// Why a password is not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WeakPassword {
    /// Too short.
    #[error("password has fewer than {MIN_CHARS} characters")]
    Short,
    /// Too long.
    #[error("password has more than {MAX_BYTES} bytes")]
    Long,
    /// Guessed first.
    #[error("password is too easy to guess: use several words, or let one be generated")]
    Common,
}

/// Is the password good enough for this user?
pub(crate) fn check(password: &str, user: &str) -> Result<(), WeakPassword> {
    if password.len() > MAX_BYTES {
        return Err(WeakPassword::Long);
    }
    if password.chars().count() < MIN_CHARS {
        return Err(WeakPassword::Short);
    }
    let plain = Zeroizing::new(password.to_lowercase());
    let different: std::collections::BTreeSet<char> = plain.chars().collect();
    let user = user.to_lowercase();
    // What is left without the parts that everybody tries must still be long.
    let mut rest = Zeroizing::new(plain.to_string());
    for part in COMMON.iter().copied().chain((user.len() > 2).then_some(user.as_str())) {
        rest = Zeroizing::new(rest.replace(part, ""));
    }
    if different.len() < MIN_DIFFERENT || rest.chars().count() * 2 < MIN_CHARS {
        return Err(WeakPassword::Common);
    }
    Ok(())
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
    Argon2::default().hash_password(password.as_bytes()).ok().map(|hash| hash.to_string())
}

/// Checks a password against a hash. Takes as long whatever the outcome.
pub(crate) fn verify(password: &str, hash: &str) -> bool {
    PasswordHash::new(hash)
        .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_ask_for_length_and_refuse_the_obvious() {
        assert_eq!(check("short", "u"), Err(WeakPassword::Short));
        assert_eq!(check("aaaaaaaaaaaaaaaaaaa", "u"), Err(WeakPassword::Common));
        assert_eq!(check("Password123456password", "u"), Err(WeakPassword::Common));
        assert_eq!(check("margaretmargaret1", "margaret"), Err(WeakPassword::Common));
        assert_eq!(check("horse battery staple", "u"), Ok(()));
        assert_eq!(check(&"ab1 cd".repeat(200), "u"), Err(WeakPassword::Long));
    }

    #[test]
    fn generated_passwords_pass_the_rules_and_hashes_verify() {
        let password = generate().unwrap();
        assert_eq!(check(&password, "admin"), Ok(()));
        let hash = hash(&password).unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(verify(&password, &hash) && !verify("other", &hash) && !verify("x", "junk"));
    }
}
