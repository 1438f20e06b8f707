//! Logging in: passwords checked a few at a time, failures slowed down, all of it recorded.
//!
//! - [`attempt`]: a password and a second factor in one message, as consoles send them
//! - [`page`]: the same in two steps, for the page, and logins that rest on the page's
//! - [`again`]: showing them again
//! - [`guess`]: what keeps guesses few
//! - [`turns`]: whose password is compared next; [`hashing`]: by whom, behind everything else
//!
//! A console (or browser) with which a user logged in before has failures and delays of its own:
//! guesses from elsewhere do not keep the user out. An unknown user costs what a known one costs
//! and gets the same answer. A second factor is asked for only after a right password, so that the
//! question tells a stranger nothing; a wrong code is answered as a wrong password is, and counted
//! so. Only the hash of a session token is kept, bound to the console's identity, or to the
//! browser's secret cookie in its place.

mod again;
mod attempt;
mod guess;
mod hashing;
pub(crate) mod page;
mod turns;

use std::net::SocketAddr;

use adit_ledger::{Event, Level};
use adit_protocol::{
    code::failure,
    keys::{PublicKey, sha256},
};
use adit_runtime::time::unix_ms;
use zeroize::Zeroizing;

use crate::{
    config::AccountSettings,
    core::types::Refusal,
    password,
    serve::seldom::Seldom,
    store::{
        Store, StoreError, Writer,
        accounts::{self, LoginId, LoginRow},
    },
    vault::wrap::WrappingKeys,
};
use guess::Guesses;

/// Uses closer together than this are not written, milliseconds; less if a login may not be idle
/// for much longer.
const TOUCH_MS: u64 = 60_000;
/// Bytes of a user name that is looked up.
const MAX_USER: usize = 256;
/// Bytes of a one-time or recovery code.
const MAX_CODE: usize = 64;

/// The one answer to everything that is not right.
fn wrong() -> Refusal {
    let text = "wrong user, password or code; a code counts once, while it is shown: wait for the \
                next one; after many failures wait up to 15 minutes";
    Refusal::new(failure::LOGIN_FAILED, text)
}

fn code_asked() -> Refusal {
    let text = "a one-time code or a recovery code is required as well";
    Refusal::new(failure::MFA_REQUIRED, text)
}

/// The second factor is a security key, which only a browser can ask for.
fn page_asked() -> Refusal {
    let text = "this account's second factor is a security key: log in on the web page";
    Refusal::new(failure::WEB_LOGIN_REQUIRED, text)
}

fn busy() -> Refusal {
    Refusal::new(failure::BUSY, "too many logins at the moment; try again")
}

fn unavailable(error: &StoreError) -> Refusal {
    tracing::error!(%error, "login not recorded");
    Refusal::new(failure::AUDIT_UNAVAILABLE, "the login could not be recorded")
}

fn device_disabled() -> Refusal {
    Refusal::new(failure::DEVICE_DISABLED, "an administrator disabled this device")
}

/// Checks passwords and session tokens.
pub(crate) struct Logins {
    store: Store,
    writer: Writer,
    /// Partner whose log tells of unknown users.
    home: String,
    guesses: Guesses,
    /// Devices that are switched off and tried lately.
    refused: Seldom,
    /// Sources that came back from identity providers with nothing good lately.
    failed_there: Seldom,
    /// Hash of a password that nobody has.
    nobody: String,
    pub(crate) settings: AccountSettings,
    pub(crate) keys: WrappingKeys,
}

/// Why a login is looked up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// The person wants something.
    Act,
    /// A program keeps up what the person began: that is no sign of the person, and goes on.
    Upkeep,
}

/// Where an attempt comes from: a console's proved identity, or what a browser's secret cookie
/// hashes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) device: PublicKey,
    pub(crate) source: SocketAddr,
}

impl Logins {
    pub(crate) fn new(
        (store, writer): (Store, Writer),
        home: String,
        at_once: usize,
        settings: AccountSettings,
        keys: WrappingKeys,
    ) -> Option<Self> {
        let nobody = password::hash(&password::generate()?)?;
        let guesses = Guesses::new(at_once)?;
        let (refused, failed_there) = (Seldom::default(), Seldom::default());
        Some(Self { store, writer, home, guesses, refused, failed_there, nobody, settings, keys })
    }

    /// The login of a session token, if it may be used now by this device.
    pub(crate) async fn session(
        &self,
        id: LoginId,
        device: PublicKey,
        for_what: Use,
    ) -> Result<LoginRow, Refusal> {
        let gone = || {
            let text = "not logged in, or the login is over; log in again";
            Refusal::new(failure::NOT_LOGGED_IN, text)
        };
        let row = accounts::login(&self.store.readers, id, device)
            .await
            .map_err(|error| {
                tracing::error!(%error, "cannot read logins");
                Refusal::new(failure::INTERNAL, "logins cannot be read")
            })?
            .ok_or_else(gone)?;
        let now = unix_ms();
        if row.account.disabled || now >= row.expires_ms {
            return Err(gone());
        }
        if for_what == Use::Upkeep {
            return Ok(row);
        }
        let idle = now.saturating_sub(row.used_ms);
        if idle >= self.settings.idle_ms {
            return Err(gone());
        }
        if idle >= TOUCH_MS.min(self.settings.idle_ms / 4) {
            // Only postpones the idle limit; a failure shows at the next use.
            let _ = self
                .writer
                .submit(move |tx| Box::pin(async move { accounts::touch_login(tx, id).await }));
        }
        Ok(row)
    }

    /// Ends a login.
    pub(crate) async fn logout(&self, row: &LoginRow, from: Origin) -> Result<(), Refusal> {
        let event = login_event("logout", from)
            .partner(&row.account.partner)
            .actor(&row.account.name)
            .outcome("done");
        let (id, partner_id) = (row.id, row.account.partner_id.clone());
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    accounts::delete_login(tx, id).await?;
                    tx.append(&partner_id, event).await
                })
            })
            .await
            .map_err(|error| unavailable(&error))?;
        Ok(())
    }
}

fn login_event(name: &str, from: Origin) -> Event {
    Event::new(name, Level::Significant)
        .device(from.device.fingerprint().to_string())
        .source(from.source.to_string())
}

/// Hash of a session token as text.
pub(crate) fn token_id(token: &str) -> LoginId {
    sha256(token.as_bytes())
}

/// A secret as text.
pub(crate) fn token_text(secret: &[u8; 32]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(64));
    for byte in secret {
        for nibble in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(nibble.into(), 16));
        }
    }
    text
}
