//! Whether a code that somebody shows is a second factor of the account, and using it up.
//!
//! Judged only after the password was right. What counts once is used up in the transaction that
//! makes or refreshes the login: of two that show the same code one fails, also across a restart.

use zeroize::Zeroizing;

use crate::{
    mfa::{self, Shown, recovery, totp::TotpSecret},
    store::{
        StoreError, WriteTx,
        factors::{self, FactorRow},
    },
    vault::wrap::{WrapError, WrappingKeys},
};

/// What a code comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// The account has no second factor.
    NotNeeded,
    /// It has, and nothing was shown.
    Missing,
    /// It has, and this is none.
    Wrong,
    /// A one-time code of this factor, not used up yet.
    Step { factor: String, step: u64 },
    /// The hash of a recovery code, which may be there.
    Recovery([u8; 32]),
}

impl Judged {
    /// As recorded.
    pub(super) fn method(&self) -> &'static str {
        match self {
            Self::NotNeeded | Self::Missing | Self::Wrong => mfa::NONE,
            Self::Step { .. } => mfa::TOTP,
            Self::Recovery(_) => mfa::RECOVERY,
        }
    }

    /// Uses it up; false if that was done already.
    pub(super) async fn use_up(&self, tx: &mut WriteTx, account: &str) -> Result<bool, StoreError> {
        match self {
            Self::NotNeeded => Ok(true),
            Self::Missing | Self::Wrong => Ok(false),
            Self::Step { factor, step } => factors::use_step(tx, factor, *step).await,
            Self::Recovery(hash) => factors::use_recovery(tx, account, *hash).await,
        }
    }
}

/// Judges what was shown by the factors of the account that the password fits.
pub(super) fn judge(
    keys: &WrappingKeys,
    account: &str,
    factors: &[FactorRow],
    shown: &Shown,
    now_ms: u64,
) -> Result<Judged, WrapError> {
    let mut confirmed = factors.iter().filter(|factor| factor.confirmed).peekable();
    if confirmed.peek().is_none() {
        return Ok(Judged::NotNeeded);
    }
    match shown {
        Shown::Nothing => Ok(Judged::Missing),
        Shown::Junk => Ok(Judged::Wrong),
        Shown::Recovery(code) => Ok(Judged::Recovery(recovery::hash(account, code))),
        Shown::Totp(code) => {
            for factor in confirmed.filter(|factor| factor.kind == mfa::TOTP) {
                if let Some(step) = step(keys, factor, code, now_ms)? {
                    return Ok(Judged::Step { factor: factor.id.clone(), step });
                }
            }
            Ok(Judged::Wrong)
        }
    }
}

/// The step of a factor's code, if it is right and later than the last one.
pub(super) fn step(
    keys: &WrappingKeys,
    factor: &FactorRow,
    code: &Zeroizing<String>,
    now_ms: u64,
) -> Result<Option<u64>, WrapError> {
    let secret = keys.open(factor.place(), &factor.secret)?;
    let secret = TotpSecret::from_slice(&secret).ok_or(WrapError::Damaged)?;
    Ok(secret.check(code, now_ms, factor.last_step))
}
