//! Recovery codes: ten on paper, each good once in the place of a one-time code.
//!
//! Only hashes are kept. With 120 bits a code needs no slow hash (NIST SP 800-63B-4 §3.1.2.2 asks
//! for one below 112); the account is hashed along, so that equal rows of two accounts tell
//! nothing.

use adit_protocol::keys::{fill_random, sha256};
use zeroize::Zeroizing;

use crate::password::ALPHABET;

/// Codes made at a time.
pub(crate) const COUNT: usize = 10;
/// Characters of a code: 5 bits each.
const CHARS: usize = 24;
/// Characters between hyphens.
const GROUP: usize = 4;
/// Characters looked at: a code with separators.
const MAX_TEXT: usize = 64;
/// Before what is hashed.
const LABEL: &[u8] = b"adit/1 recovery code";

/// Fresh codes as people read them; `None` without randomness.
pub(crate) fn generate() -> Option<Vec<Zeroizing<String>>> {
    (0..COUNT).map(|_| one()).collect()
}

fn one() -> Option<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0_u8; CHARS]);
    fill_random(&mut bytes[..]).ok()?;
    let mut text = Zeroizing::new(String::with_capacity(CHARS + CHARS / GROUP));
    for (n, byte) in bytes.iter().enumerate() {
        if n > 0 && n % GROUP == 0 {
            text.push('-');
        }
        text.push(char::from(*ALPHABET.get(usize::from(byte & 31))?));
    }
    Some(text)
}

/// The one form of a code: lower case, without separators.
pub(crate) fn normalise(text: &str) -> Option<Zeroizing<String>> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let mut code = Zeroizing::new(String::with_capacity(MAX_TEXT));
    code.extend(
        text.chars()
            .filter(|c| *c != '-' && !c.is_ascii_whitespace())
            .map(|c| c.to_ascii_lowercase()),
    );
    let good = code.len() == CHARS && code.bytes().all(|byte| ALPHABET.contains(&byte));
    good.then_some(code)
}

/// What is stored of a code in its one form.
pub(crate) fn hash(account: &str, code: &str) -> [u8; 32] {
    let mut input = Zeroizing::new(LABEL.to_vec());
    input.reserve_exact(account.len() + 1 + code.len());
    input.extend_from_slice(account.as_bytes());
    input.push(0);
    input.extend_from_slice(code.as_bytes());
    sha256(&input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_differ_and_are_read_however_they_are_typed() {
        let codes = generate().unwrap();
        let mut hashes: Vec<_> =
            codes.iter().map(|code| hash("a", &normalise(code).unwrap())).collect();
        let typed = codes[0].to_uppercase().replace('-', " ");
        assert_eq!(hash("a", &normalise(&typed).unwrap()), hashes[0]);
        assert_ne!(hash("b", &normalise(&typed).unwrap()), hashes[0]);
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), COUNT);
        assert!(codes.iter().all(|code| code.len() == 29));
        assert_eq!(normalise("abcd"), None);
    }
}
