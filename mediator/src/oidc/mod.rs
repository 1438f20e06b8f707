//! Logging in through an identity provider (OpenID Connect Core 1.0): authorization code with
//! PKCE, state and nonce.
//!
//! - [`begin`]: where the browser is sent, and what must come back
//! - [`token`]: whether an ID token is what it says
//! - [`remote`]: talking to the provider
//!
//! A provider says who somebody is there, never who that is here: its subject counts for the one
//! account that it was linked with, by that account's own person or an administrator. That it
//! asked for a second factor counts if the administrator said which claim tells so, and if it says
//! when. Each provider sends browsers back to an address of its own, so that what one was asked
//! is never answered by another (RFC 9700 §4.4.2).

pub(crate) mod remote;
pub(crate) mod token;

use adit_protocol::keys::sha256;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{admin::Secret, mfa, store::tenants, webauthn::to_base64};
use token::Claims;

/// Random bytes for one login.
pub(crate) const RANDOM_LEN: usize = 96;
/// Values in one list of claims.
const MAX_VALUES: usize = 16;

/// An identity provider as it is configured.
#[derive(Clone, Debug)]
pub(crate) struct Provider {
    pub(crate) id: String,
    pub(crate) partner_id: String,
    pub(crate) name: String,
    pub(crate) issuer: String,
    pub(crate) client_id: String,
    pub(crate) secret_file: String,
    pub(crate) ca_file: String,
    /// The provider's own authority, PEM, where it is no file.
    pub(crate) ca: String,
    /// Only addresses that everybody can reach are connected to: it was set up by somebody who
    /// speaks for a partner, not for the networks of this machine.
    pub(crate) public_only: bool,
    /// Its secret is in the database, sealed.
    pub(crate) is_sealed: bool,
    /// The secret, opened for one exchange.
    pub(crate) secret: Option<Secret>,
    pub(crate) mfa: MfaClaims,
}

/// Where this provider sends browsers back to. The name is unique, and known before the provider
/// is registered there.
pub(crate) fn callback_path(provider: &str) -> String {
    let mut path = "/login/oidc/callback/".to_owned();
    percent(&mut path, &tenants::name_key(provider));
    path
}

/// Which claims say that the provider asked for a second factor; none: it never counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MfaClaims {
    /// Values of `acr`.
    pub(crate) acr: Vec<String>,
    /// Values of `amr` (RFC 8176).
    pub(crate) amr: Vec<String>,
    /// What it asks for then resists phishing.
    pub(crate) phishing_resistant: bool,
}

impl MfaClaims {
    /// Is this short enough?
    pub(crate) fn is_bounded(&self) -> bool {
        let good = |list: &[String]| {
            list.len() <= MAX_VALUES && list.iter().all(|value| value.len() <= 256)
        };
        good(&self.acr) && good(&self.amr)
    }

    /// How the second factor was shown and when (seconds since 1970), if the token says so. We ask
    /// for `max_age`, so a provider must say when (OpenID Connect Core §2); a factor of nobody
    /// knows when counts for nothing.
    pub(crate) fn shown(&self, claims: &Claims) -> Option<(&'static str, u64)> {
        let acr = claims.acr.as_ref().is_some_and(|acr| self.acr.contains(acr));
        let amr = claims.amr.iter().any(|amr| self.amr.contains(amr));
        let method = match (acr || amr, self.phishing_resistant) {
            (false, _) => return None,
            (true, false) => mfa::OIDC,
            (true, true) => mfa::OIDC_PHISHING_RESISTANT,
        };
        claims.auth_time.map(|at| (method, at))
    }
}

/// Why the browser is sent there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// To log in; and the device code that waits, if there is one.
    Login {
        /// As typed.
        device: String,
    },
    /// To link the account that is logged in.
    Link {
        /// Its id.
        account: String,
    },
}

/// A browser that was sent to a provider.
#[derive(Clone)]
pub(crate) struct Begun {
    pub(crate) provider: String,
    pub(crate) why: Why,
    pub(crate) nonce: String,
    pub(crate) verifier: Zeroizing<String>,
    state: String,
}

impl Begun {
    /// Is it this one that came back?
    pub(crate) fn fits(&self, state: &str) -> bool {
        let (mine, theirs) = (self.state.as_bytes(), state.as_bytes());
        aws_lc_rs::constant_time::verify_slices_are_equal(mine, theirs).is_ok()
    }
}

/// Where to send a browser (RFC 6749 §4.1.1, RFC 7636 §4.3).
pub(crate) fn begin(
    provider: &Provider,
    (endpoint, redirect): (&str, &str),
    why: Why,
    random: &[u8; RANDOM_LEN],
) -> (Begun, String) {
    let (state, rest) = random.split_at(32);
    let (nonce, verifier) = rest.split_at(32);
    let begun = Begun {
        provider: provider.id.clone(),
        why,
        nonce: to_base64(nonce),
        verifier: Zeroizing::new(to_base64(verifier)),
        state: to_base64(state),
    };
    let challenge = to_base64(&sha256(begun.verifier.as_bytes()));
    let query = encode(&[
        ("response_type", "code"),
        ("client_id", &provider.client_id),
        ("redirect_uri", redirect),
        ("scope", "openid"),
        ("state", &begun.state),
        ("nonce", &begun.nonce),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
        // Who logs in shows themselves now, not once this morning.
        ("max_age", "600"),
    ]);
    let separator = if endpoint.contains('?') { '&' } else { '?' };
    (begun, format!("{endpoint}{separator}{query}"))
}

/// `application/x-www-form-urlencoded`.
pub(crate) fn encode(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        percent(&mut text, name);
        text.push('=');
        percent(&mut text, value);
    }
    text
}

fn percent(text: &mut String, part: &str) {
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_provider_has_an_address_of_its_own() {
        assert_eq!(callback_path("Directory"), "/login/oidc/callback/directory");
        assert_eq!(callback_path("A/B ü"), "/login/oidc/callback/a%2Fb%20%C3%BC");
    }

    #[test]
    fn a_second_factor_there_counts_only_with_the_time_at_which_it_was_shown() {
        let claims = |more: serde_json::Value| -> Claims {
            let mut all =
                serde_json::json!({"iss": "i", "sub": "s", "aud": "a", "exp": 1, "iat": 1});
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(all).unwrap()
        };
        let rule =
            MfaClaims { acr: vec!["high".into()], amr: vec!["otp".into()], ..Default::default() };
        let shown = |more| rule.shown(&claims(more));
        let both = serde_json::json!({"amr": ["pwd", "otp"], "auth_time": 7});
        assert_eq!(shown(both), Some((mfa::OIDC, 7)));
        assert_eq!(shown(serde_json::json!({"acr": "high", "auth_time": 7})), Some((mfa::OIDC, 7)));
        assert_eq!(shown(serde_json::json!({"amr": ["pwd", "otp"]})), None);
        assert_eq!(shown(serde_json::json!({"amr": ["pwd"], "auth_time": 7})), None);
    }
}
