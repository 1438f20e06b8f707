//! Time-based one-time codes (RFC 6238): SHA-1, six digits, 30 s, one step of skew.
//!
//! Each code counts once (RFC 6238 §5.2): only steps after the last accepted one are tried, and
//! the caller makes that step durable together with what it permits.

use adit_protocol::keys::fill_random;
use totp_rs::{Algorithm, Builder};
use zeroize::Zeroizing;

/// Bytes of a secret (RFC 4226 §4 R6).
pub(crate) const SECRET_LEN: usize = 20;
/// Seconds of a step (RFC 6238 §5.2).
const STEP_S: u64 = 30;
/// Steps before and after the present one that are accepted (RFC 6238 §5.2).
const SKEW: u64 = 1;
/// Digits of a code.
const DIGITS: u8 = 6;
/// Characters looked at: six digits with spaces.
const MAX_TEXT: usize = 16;
/// Who issues, in the authenticator's list.
const ISSUER: &str = "Adit";

/// The secret that the authenticator app holds, too.
pub(crate) struct TotpSecret(Zeroizing<[u8; SECRET_LEN]>);

impl TotpSecret {
    /// A fresh one; `None` without randomness.
    pub(crate) fn generate() -> Option<Self> {
        let mut bytes = Zeroizing::new([0; SECRET_LEN]);
        fill_random(&mut bytes[..]).ok()?;
        Some(Self(bytes))
    }

    /// From its stored bytes.
    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut own = Zeroizing::new([0; SECRET_LEN]);
        (bytes.len() == SECRET_LEN).then(|| own.copy_from_slice(bytes))?;
        Some(Self(own))
    }

    /// For the store.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0[..]
    }

    /// `otpauth://` URL for the app.
    pub(crate) fn url(&self, user: &str, partner: &str) -> Option<Zeroizing<String>> {
        // The label's parts are separated by a colon.
        let account = format!("{user} ({partner})").replace(':', "_");
        let totp = self.builder().with_account_name(account).with_issuer(Some(ISSUER));
        totp.build().ok()?.to_url().ok().map(Zeroizing::new)
    }

    /// The step of a right code, if it is later than `last_step`.
    pub(crate) fn check(&self, code: &str, unix_ms: u64, last_step: u64) -> Option<u64> {
        let totp = self.builder().build().ok()?;
        let present = unix_ms / 1000 / STEP_S;
        let is_right = |step: &u64| totp.check(code, step.saturating_mul(STEP_S)) == Some(*step);
        (present.saturating_sub(SKEW)..=present.saturating_add(SKEW))
            .filter(|step| *step > last_step)
            .find(is_right)
    }

    /// Without skew: the steps are tried one by one.
    fn builder(&self) -> Builder {
        Builder::new()
            .with_algorithm(Algorithm::SHA1)
            .with_digits(DIGITS)
            .with_skew(0)
            .with_step_duration(STEP_S)
            .with_secret(*self.0)
    }
}

/// Six digits, with or without spaces.
pub(crate) fn digits(text: &str) -> Option<Zeroizing<String>> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let code: Zeroizing<String> =
        Zeroizing::new(text.chars().filter(|c| !c.is_ascii_whitespace()).collect());
    let good = code.len() == usize::from(DIGITS) && code.bytes().all(|b| b.is_ascii_digit());
    good.then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(secret: &TotpSecret, step: u64) -> String {
        secret.builder().build().unwrap().generate(step * STEP_S).to_string()
    }

    #[test]
    fn agrees_with_the_standard_and_names_itself_to_the_app() {
        let secret = TotpSecret::from_slice(b"12345678901234567890").unwrap();
        // RFC 6238 appendix B, the last six of eight digits.
        for (time, right) in [(59, "287082"), (1_111_111_109, "081804"), (20_000_000_000, "353130")]
        {
            assert_eq!(secret.check(right, time * 1000, 0), Some(time / STEP_S));
        }
        let url = secret.url("jane:x", "acme & co").unwrap();
        assert!(
            url.starts_with("otpauth://totp/Adit:jane_x%20%28acme") && url.contains("issuer=Adit"),
            "{}",
            *url
        );
        assert!(url.contains("secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"));
        assert!(TotpSecret::from_slice(&[0; 19]).is_none());
    }

    /// Over random steps, skews and orders of use: accepted steps only grow, and no code counts
    /// after a later one or twice.
    #[test]
    fn a_code_counts_once_and_only_in_its_time() {
        for seed in 0..200_u64 {
            let secret = TotpSecret::generate().unwrap();
            let present = 1_000_000 + seed * 7919;
            let now = (present * STEP_S + seed % STEP_S) * 1000;
            for offset in 0..7 {
                let step = present + offset - 3;
                let found = secret.check(&code(&secret, step), now, 0);
                assert_eq!(found.is_some(), step.abs_diff(present) <= 1, "seed {seed} {offset}");
            }
            let mut last = 0;
            for draw in 0..6 {
                let step = present - 1 + (seed / 3_u64.pow(draw)) % 3;
                let found = secret.check(&code(&secret, step), now, last);
                assert_eq!(found, (step > last).then_some(step), "seed {seed}");
                last = found.unwrap_or(last);
            }
        }
    }
}
