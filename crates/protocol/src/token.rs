//! Enrolment tokens: `adit1-` and base64url of who to call, whom to trust, and a seed.
//!
//! The seed never leaves the device: redeeming is a signature by it ([`EnrollToken::redeem`]),
//! and the mediator stores only its public half.

use std::fmt;

use bytes::Bytes;
use zeroize::Zeroizing;

use crate::{
    ids::TokenId,
    keys::{Fingerprint, KeyError, PublicKey, SigningKey, context, sha256},
    wire,
};

const PREFIX: &str = "adit1-";
const VERSION: u8 = 1;
const CHECK_LEN: usize = 4;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// Longest token text.
pub const MAX_TOKEN_LEN: usize = 2048;

/// What a token enrols.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TokenKind {
    /// An agent.
    Agent = 1,
    /// A relay.
    Relay = 3,
}

/// The text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// Does not begin with `adit1-`.
    #[error("not an enrolment token: it begins with \"adit1-\"")]
    Prefix,
    /// Cut off or mistyped.
    #[error("enrolment token is incomplete or mistyped: copy it again, whole")]
    Damaged,
    /// The library refused.
    #[error("cryptographic library failed")]
    Crypto,
}

/// A token's content.
pub struct EnrollToken {
    /// What it enrols.
    pub kind: TokenKind,
    /// Which token.
    pub id: TokenId,
    /// The installation's root key.
    pub root: Fingerprint,
    /// Seed of the redeeming key.
    pub seed: Zeroizing<[u8; 32]>,
    /// Mediator addresses, `host:port`.
    pub hosts: Vec<String>,
}

impl EnrollToken {
    /// Key whose public half the mediator stores.
    pub fn key(&self) -> Result<SigningKey, KeyError> {
        SigningKey::from_seed(&self.seed[..])
    }

    /// Signs (token id, device identity, root).
    pub fn redeem(&self, identity: PublicKey) -> Result<wire::Signed, KeyError> {
        Ok(self.key()?.seal(
            context::ENROLL,
            &wire::EnrollBody {
                token_id: self.id.to_bytes(),
                identity: identity.to_bytes(),
                root: Bytes::copy_from_slice(&self.root.0),
            },
        ))
    }

    /// The text that an administrator hands out.
    pub fn encode(&self) -> Zeroizing<String> {
        let mut raw = Zeroizing::new(vec![VERSION, self.kind as u8]);
        raw.extend(self.id.0);
        raw.extend(self.root.0);
        raw.extend(&self.seed[..]);
        raw.extend(self.hosts.join(",").as_bytes());
        let check = sha256(&raw);
        raw.extend(check.iter().take(CHECK_LEN));
        Zeroizing::new(format!("{PREFIX}{}", &*encode64(&raw)))
    }

    /// Reads a token; white space around and inside is ignored, since mail programs wrap lines.
    pub fn decode(text: &str) -> Result<Self, InvalidToken> {
        let text: Zeroizing<String> =
            Zeroizing::new(text.chars().filter(|c| !c.is_whitespace()).collect());
        let body = text.strip_prefix(PREFIX).ok_or(InvalidToken::Prefix)?;
        let raw = (body.len() <= MAX_TOKEN_LEN)
            .then(|| decode64(body))
            .flatten()
            .ok_or(InvalidToken::Damaged)?;
        Self::from_raw(&raw).ok_or(InvalidToken::Damaged)
    }

    fn from_raw(raw: &[u8]) -> Option<Self> {
        let (content, check) = raw.split_at_checked(raw.len().checked_sub(CHECK_LEN)?)?;
        if sha256(content).get(..CHECK_LEN)? != check {
            return None;
        }
        let (head, rest) = content.split_at_checked(2)?;
        let (id, rest) = rest.split_at_checked(16)?;
        let (root, rest) = rest.split_at_checked(32)?;
        let (seed, hosts) = rest.split_at_checked(32)?;
        let kind = match head {
            [VERSION, 1] => TokenKind::Agent,
            [VERSION, 3] => TokenKind::Relay,
            _ => return None,
        };
        let hosts: Vec<String> =
            std::str::from_utf8(hosts).ok()?.split(',').map(str::to_owned).collect();
        if hosts.iter().any(|h| h.is_empty() || h.chars().any(char::is_control)) {
            return None;
        }
        Some(Self {
            kind,
            id: TokenId::from_slice(id).ok()?,
            root: Fingerprint::from_slice(root).ok()?,
            seed: Zeroizing::new(seed.try_into().ok()?),
            hosts,
        })
    }
}

impl fmt::Debug for EnrollToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrollToken")
            .field("kind", &self.kind)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// base64url without padding (RFC 4648 §5).
fn encode64(data: &[u8]) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(data.len().div_ceil(3) * 4));
    for chunk in data.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |w, b| w << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..=chunk.len() {
            let index = (word >> (18 - 6 * i) & 63) as usize;
            out.push(char::from(*ALPHABET.get(index).unwrap_or(&b'A')));
        }
    }
    out
}

fn decode64(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() / 4 * 3 + 3));
    for chunk in text.as_bytes().chunks(4) {
        let mut word = 0u32;
        for c in chunk {
            word = word << 6 | u32::try_from(ALPHABET.iter().position(|a| a == c)?).ok()?;
        }
        word <<= 6 * (4 - chunk.len());
        let [_, a, b, c] = word.to_be_bytes();
        out.extend([a, b, c].iter().take(chunk.len().checked_sub(1).filter(|n| *n > 0)?));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> EnrollToken {
        EnrollToken {
            kind: TokenKind::Agent,
            id: TokenId([7; 16]),
            root: Fingerprint([8; 32]),
            seed: Zeroizing::new([9; 32]),
            hosts: vec!["mediator.example:443".into(), "[2001:db8::1]:443".into()],
        }
    }

    #[test]
    fn reads_back_even_when_wrapped() {
        let text = token().encode();
        let wrapped = format!(" {}\r\n {}\n", &text[..40], &text[40..]);
        let t = EnrollToken::decode(&wrapped).unwrap();
        assert_eq!((t.id, t.root, &t.hosts), (token().id, token().root, &token().hosts));
        assert_eq!(t.seed[..], token().seed[..]);
    }

    #[test]
    fn any_changed_or_missing_character_is_noticed() {
        let text = token().encode();
        for i in 0..text.len() {
            let mut bad = text.as_bytes().to_vec();
            bad[i] = if bad[i] == b'x' { b'y' } else { b'x' };
            assert!(EnrollToken::decode(std::str::from_utf8(&bad).unwrap()).is_err(), "{i}");
            assert!(EnrollToken::decode(&text[..i]).is_err(), "{i}");
        }
    }
}
