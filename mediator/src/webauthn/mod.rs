//! WebAuthn (Level 3) as a second factor: a security key, or a passkey of the system.
//!
//! - [`authenticator`]: what the authenticator signs, and its public key
//! - [`client`]: what the browser says beside it
//! - [`ceremony`]: registering a key, and showing it
//!
//! The signature covers the origin that the browser saw, so that a page of another name gets
//! nothing that is of use here. No attestation is asked for and none is judged: which make of key
//! somebody uses is not a matter of access. Must never read a clock, the database or randomness.

pub(crate) mod authenticator;
pub(crate) mod ceremony;
pub(crate) mod client;
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

/// Longest credential id (§6.1).
pub(crate) const MAX_CREDENTIAL_ID: usize = 1023;
/// Bytes of any one part of an answer.
pub(crate) const MAX_PART: usize = 16 * 1024;

/// Who we are to browsers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RelyingParty {
    /// Host name without port.
    pub(crate) id: String,
    /// `https://host[:port]`.
    pub(crate) origin: String,
}

/// Why an answer does not count. One word for the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyError {
    /// It cannot be read.
    #[error("malformed")]
    Malformed,
    /// Of the other ceremony.
    #[error("type")]
    Type,
    /// Of another question.
    #[error("challenge")]
    Challenge,
    /// Made for another page.
    #[error("origin")]
    Origin,
    /// Made for another site.
    #[error("relying_party")]
    RelyingParty,
    /// Nobody touched the key.
    #[error("presence")]
    Presence,
    /// The key is of a kind that was not asked for.
    #[error("algorithm")]
    Algorithm,
    /// Not the account's key.
    #[error("credential")]
    Credential,
    /// The signature is wrong.
    #[error("signature")]
    Signature,
    /// The counter went back: two devices have the same key.
    #[error("counter")]
    Counter,
}

/// base64url without padding.
pub(crate) fn to_base64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The same, read; bounded.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    (text.len() <= 2 * MAX_PART).then(|| URL_SAFE_NO_PAD.decode(text).ok())?
}
