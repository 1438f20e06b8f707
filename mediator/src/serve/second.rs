//! Whether what somebody shows is a second factor of the account, and using it up.
//!
//! Judged only after the first factor was right. What counts once is used up in the transaction
//! that makes or refreshes the login: of two that show the same code one fails, also across a
//! restart.

use zeroize::Zeroizing;

use crate::{
    config::MfaRule,
    mfa::{
        self, KeyShown, Shown, recovery,
        totp::{AppClock, Code, TotpSecret},
    },
    store::{
        StoreError, WriteTx,
        factors::{self, FactorRow},
    },
    vault::wrap::{WrapError, WrappingKeys},
    webauthn::{KeyError, ceremony, ceremony::Credential},
};

/// What it comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// The account has no second factor.
    NotNeeded,
    /// It has, and nothing was shown.
    Missing,
    /// It has security keys and must use them, and something else was shown.
    Weak,
    /// It has, and this is none; with the word for the record.
    Wrong(&'static str),
    /// A one-time code of this factor at another time than its own: to be noted.
    OutOfTime(Missed),
    /// A one-time code of this factor, not used up yet.
    Step { factor: String, clock: AppClock },
    /// The hash of a recovery code, which may be there.
    Recovery([u8; 32]),
    /// A security key, and its counter.
    Key { factor: String, counter: u32 },
}

/// A right code of another time, and what is known of the app since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missed {
    pub(crate) factor: String,
    pub(crate) clock: AppClock,
}

impl Missed {
    /// Spends the code, and lets the next one tell what the app's clock shows.
    pub(crate) async fn note(&self, tx: &mut WriteTx) -> Result<(), StoreError> {
        factors::miss_step(tx, &self.factor, &self.clock).await
    }
}

/// A wrong code, as recorded.
pub(crate) const WRONG_CODE: &str = "second_factor";
/// A code that was right at another time, as recorded.
pub(crate) const OUT_OF_TIME: &str = "code_out_of_time";
const WRONG: Judged = Judged::Wrong(WRONG_CODE);

impl Judged {
    /// As recorded.
    pub(crate) fn method(&self) -> &'static str {
        match self {
            Self::NotNeeded | Self::Missing | Self::Weak | Self::Wrong(_) | Self::OutOfTime(_) => {
                mfa::NONE
            }
            Self::Step { .. } => mfa::TOTP,
            Self::Recovery(_) => mfa::RECOVERY,
            Self::Key { .. } => mfa::WEBAUTHN,
        }
    }

    /// Uses it up; false if that was done already.
    pub(crate) async fn use_up(&self, tx: &mut WriteTx, account: &str) -> Result<bool, StoreError> {
        match self {
            Self::NotNeeded => Ok(true),
            Self::Missing | Self::Weak | Self::Wrong(_) | Self::OutOfTime(_) => Ok(false),
            Self::Step { factor, clock } => factors::use_step(tx, factor, clock).await,
            Self::Recovery(hash) => factors::use_recovery(tx, account, *hash).await,
            Self::Key { factor, counter } => {
                factors::use_counter(tx, factor, u64::from(*counter)).await
            }
        }
    }
}

/// Judges what was shown by the factors of the account that the first factor fits, and the rule
/// that it is under.
pub(crate) fn judge(
    keys: &WrappingKeys,
    account: &str,
    factors: &[FactorRow],
    (shown, rule): (&Shown, MfaRule),
    now_ms: u64,
) -> Result<Judged, WrapError> {
    let confirmed: Vec<&FactorRow> = factors.iter().filter(|factor| factor.confirmed).collect();
    if confirmed.is_empty() {
        return Ok(Judged::NotNeeded);
    }
    let has_key = confirmed.iter().any(|factor| factor.kind == mfa::WEBAUTHN);
    let only_keys = rule == MfaRule::PhishingResistant && has_key;
    match shown {
        Shown::Key(shown) => key(keys, &confirmed, shown),
        _ if only_keys => Ok(Judged::Weak),
        Shown::Nothing => Ok(Judged::Missing),
        Shown::Junk => Ok(WRONG),
        Shown::Recovery(code) => Ok(Judged::Recovery(recovery::hash(account, code))),
        Shown::Totp(code) => {
            let mut judged = WRONG;
            for app in confirmed.iter().filter(|factor| factor.kind == mfa::TOTP) {
                let factor = app.id.clone();
                match one_time(keys, app, code, now_ms)? {
                    Code::Right(clock) => return Ok(Judged::Step { factor, clock }),
                    Code::OutOfTime(clock) => judged = Judged::OutOfTime(Missed { factor, clock }),
                    Code::Wrong => {}
                }
            }
            Ok(judged)
        }
    }
}

fn key(
    keys: &WrappingKeys,
    confirmed: &[&FactorRow],
    shown: &KeyShown,
) -> Result<Judged, WrapError> {
    for factor in confirmed.iter().filter(|factor| factor.kind == mfa::WEBAUTHN) {
        let credential = credential(keys, factor)?;
        if credential.id != shown.assertion.id {
            continue;
        }
        let (challenge, party) = (&shown.challenge, &shown.party);
        return Ok(
            match ceremony::shown(
                &shown.assertion,
                challenge,
                party,
                &credential,
                factor.clock.last_step,
            ) {
                Ok(counter) => Judged::Key { factor: factor.id.clone(), counter },
                // Two devices have the same key: the record says so.
                Err(KeyError::Counter) => Judged::Wrong("security_key_copied"),
                Err(error) => {
                    tracing::info!(%error, "a security key was not accepted");
                    Judged::Wrong("security_key")
                }
            },
        );
    }
    Ok(Judged::Wrong("security_key"))
}

/// A security key as it is stored.
pub(crate) fn credential(keys: &WrappingKeys, factor: &FactorRow) -> Result<Credential, WrapError> {
    let stored = keys.open(factor.place(), &factor.secret)?;
    Credential::from_bytes(&stored).ok_or(WrapError::Damaged)
}

/// What a code is to a factor.
pub(crate) fn one_time(
    keys: &WrappingKeys,
    factor: &FactorRow,
    code: &Zeroizing<String>,
    now_ms: u64,
) -> Result<Code, WrapError> {
    let secret = keys.open(factor.place(), &factor.secret)?;
    let secret = TotpSecret::from_slice(&secret).ok_or(WrapError::Damaged)?;
    Ok(secret.judge(code, now_ms, factor.clock))
}
