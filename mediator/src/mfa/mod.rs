//! Second factors: what a person shows beside the password.
//!
//! - [`totp`]: one-time codes of an authenticator app
//! - [`recovery`]: codes on paper for when that is lost
//!
//! Security keys are in `webauthn`.
//!
//! Must never read a clock or the database: time, secrets and the last step are given.

pub(crate) mod recovery;
pub(crate) mod totp;

use crate::webauthn::{RelyingParty, ceremony::Assertion};

/// Kinds of factors, as stored.
pub(crate) const TOTP: &str = "totp";
/// Security keys and passkeys.
pub(crate) const WEBAUTHN: &str = "webauthn";
/// How a login was proved beyond the password, as recorded: not at all.
pub(crate) const NONE: &str = "none";
/// By a recovery code.
pub(crate) const RECOVERY: &str = "recovery";
/// The identity provider asked for it.
pub(crate) const OIDC: &str = "oidc";
/// The same, and what it asked for resists phishing.
pub(crate) const OIDC_PHISHING_RESISTANT: &str = "oidc_phishing_resistant";

/// Does a proof of this method hold against a page that looks like ours?
pub(crate) fn resists_phishing(method: &str) -> bool {
    [WEBAUTHN, OIDC_PHISHING_RESISTANT].contains(&method)
}

/// A security key's answer, and what it must answer.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct KeyShown {
    pub(crate) assertion: Assertion,
    pub(crate) challenge: [u8; 32],
    pub(crate) party: RelyingParty,
}

/// What somebody typed where a code is asked for.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Nothing.
    Nothing,
    /// Six digits.
    Totp(zeroize::Zeroizing<String>),
    /// A recovery code, in its one form.
    Recovery(zeroize::Zeroizing<String>),
    /// A security key.
    Key(Box<KeyShown>),
    /// None of these.
    Junk,
}

impl Shown {
    /// From a text of at most a few dozen characters.
    pub(crate) fn parse(text: &str) -> Self {
        if text.trim().is_empty() {
            return Self::Nothing;
        }
        if let Some(code) = totp::digits(text) {
            return Self::Totp(code);
        }
        recovery::normalise(text).map_or(Self::Junk, Self::Recovery)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told_apart_by_their_form() {
        assert!(matches!(Shown::parse(" "), Shown::Nothing));
        assert!(matches!(Shown::parse("123 456"), Shown::Totp(code) if *code == "123456"));
        let code = "abcd-efgh-ijkm-npqr-stuv-wxyz";
        assert!(matches!(Shown::parse(&code.to_uppercase()), Shown::Recovery(_)));
        for junk in ["12345", "1234567", "１２３４５６", "abcd-efgh", &"a".repeat(10_000), "l0l0"]
        {
            assert!(matches!(Shown::parse(junk), Shown::Junk), "{junk}");
        }
    }
}
