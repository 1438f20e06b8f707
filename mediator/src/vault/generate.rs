//! Passwords for computers that nobody has to type.

use adit_protocol::keys::fill_random;
use zeroize::Zeroizing;

/// Characters without those that are mistaken for one another, and without those that shells,
/// command prompts, XML or URLs take for something else.
pub(crate) const ALPHABET: &[u8] =
    b"abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789-_+.:@=#";
/// Fewest characters.
pub(crate) const MIN_LENGTH: usize = 16;
/// Characters without another wish: 144 bits.
pub(crate) const DEFAULT_LENGTH: usize = 24;
/// Most characters: what every system takes.
pub(crate) const MAX_LENGTH: usize = 127;
/// Bytes from here on would make some characters likelier than others.
const FAIR: u8 = {
    #[expect(clippy::cast_possible_truncation, reason = "some sixty")]
    let count = ALPHABET.len() as u8;
    u8::MAX - (u8::MAX % count + 1) % count
};

/// A password in which each character is as likely as any other, and which has all four kinds that
/// password rules ask for; `None` without randomness.
pub(crate) fn password(length: usize) -> Option<Zeroizing<String>> {
    let length = length.clamp(MIN_LENGTH, MAX_LENGTH);
    loop {
        let text = draw(length)?;
        // Another draw, not another character: all that pass stay equally likely.
        let has = |kind: fn(&char) -> bool| text.chars().any(|c| kind(&c));
        if has(char::is_ascii_lowercase)
            && has(char::is_ascii_uppercase)
            && has(char::is_ascii_digit)
            && has(char::is_ascii_punctuation)
            && text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric())
        {
            return Some(text);
        }
    }
}

fn draw(length: usize) -> Option<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(length));
    let mut bytes = Zeroizing::new([0_u8; 64]);
    while text.len() < length {
        fill_random(&mut bytes[..]).ok()?;
        for byte in bytes.iter().filter(|byte| **byte <= FAIR) {
            if text.len() < length {
                let index = usize::from(*byte) % ALPHABET.len();
                text.push(char::from(*ALPHABET.get(index)?));
            }
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_passwords_are_long_of_all_kinds_and_without_bias() {
        assert_eq!((usize::from(FAIR) + 1) % ALPHABET.len(), 0);
        let mut counts = [0_u32; 256];
        for _ in 0..4000 {
            for byte in draw(64).unwrap().bytes() {
                counts[usize::from(byte)] += 1;
            }
        }
        let expected = 4000.0 * 64.0 / ALPHABET.len() as f64;
        // Chi squared with one degree less than characters; 130 is far beyond chance.
        let chi: f64 = ALPHABET
            .iter()
            .map(|byte| (f64::from(counts[usize::from(*byte)]) - expected).powi(2) / expected)
            .sum();
        assert!(chi < 130.0, "{chi}");
        for length in [0, 16, 24, 1000] {
            let password = password(length).unwrap();
            assert_eq!(password.len(), length.clamp(MIN_LENGTH, MAX_LENGTH));
            assert!(password.bytes().all(|byte| ALPHABET.contains(&byte)));
        }
        assert_ne!(password(24), password(24));
    }
}
