//! Secrets at rest.
//!
//! - [`wrap`]: envelopes under keys that are not in the database
//! - [`tenant`]: the keys of clients, by which their credentials can be destroyed everywhere
//! - [`contents`]: what a credential holds, sealed; [`generate`]: passwords for computers
//! - [`acts`]: everything that is done with credentials, by whoever asks
//! - [`launch`]: a credential used in a session, without being read
//! - [`rotate`]: other keys over the same secrets
//!
//! Must never write a secret in the clear, nor a wrapping key into the database; must never give
//! a secret away before the record of that is durable.

pub(crate) mod acts;
pub(crate) mod contents;
pub(crate) mod generate;
pub(crate) mod launch;
pub(crate) mod rotate;
pub(crate) mod tenant;
pub(crate) mod wrap;

use adit_protocol::{code::failure, limits::MAX_TEXT};
use adit_runtime::cli::CliError;

use crate::{
    admin,
    authz::Holder,
    core::types::Refusal,
    place::store_error,
    requests::Actor,
    roles::conditions::Facts,
    store::{Store, StoreError, Writer},
};

/// What acts on credentials work on.
#[derive(Clone)]
pub(crate) struct Vault {
    pub(crate) store: Store,
    pub(crate) writer: Writer,
    pub(crate) keys: tenant::TenantKeys,
}

/// Who acts. Without a holder: the machine's administrator, who may do everything.
pub(crate) struct Asker {
    pub(crate) actor: Actor,
    pub(crate) holder: Option<Holder>,
    pub(crate) facts: Facts,
    /// How the second factor was shown, for the log.
    pub(crate) mfa: Option<String>,
    /// Why, as given.
    pub(crate) reason: Option<String>,
    /// Ticket number, as given.
    pub(crate) ticket: Option<String>,
}

impl Asker {
    /// Why it is asked; what is too long or empty counts as not given.
    pub(crate) fn give(&mut self, reason: Option<String>, ticket: Option<String>) {
        let given = |text: &String| !text.trim().is_empty() && text.len() <= MAX_TEXT;
        self.reason = reason.filter(given);
        self.ticket = ticket.filter(given);
        self.facts.reason = self.reason.is_some();
        self.facts.ticket = self.ticket.is_some();
    }
}

impl From<&admin::actor::Actor> for Asker {
    fn from(actor: &admin::actor::Actor) -> Self {
        match actor.remote() {
            Some(remote) => Self {
                actor: remote.as_requester(),
                holder: Some(remote.holder.clone()),
                facts: remote.facts(),
                mfa: Some(remote.mfa.clone()),
                reason: None,
                ticket: None,
            },
            None => {
                let name = actor.name().to_owned();
                let actor = Actor { name, device: None, source: None };
                Self {
                    actor,
                    holder: None,
                    facts: Facts::default(),
                    mfa: None,
                    reason: None,
                    ticket: None,
                }
            }
        }
    }
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    /// Told to whoever asks.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// What was given cannot be taken.
    #[error("{0}")]
    Invalid(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key.
    #[error(transparent)]
    Key(#[from] tenant::TenantKeyError),
    /// An envelope.
    #[error(transparent)]
    Wrap(#[from] wrap::WrapError),
}

impl From<Refusal> for VaultError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl VaultError {
    /// What a device or a client of the API is told; what it is not told is logged here.
    pub(crate) fn refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            Self::Invalid(text) => Refusal::new(failure::BAD_REQUEST, text),
            Self::Store(StoreError::Taken(what)) => {
                Refusal::new(failure::NAME_TAKEN, format!("{what} is taken"))
            }
            Self::Store(StoreError::Missing(what)) => {
                Refusal::new(failure::NO_SUCH_CREDENTIAL, format!("there is no such {what}"))
            }
            Self::Store(error @ StoreError::Unavailable(_)) => {
                tracing::error!(%error, "an act on a credential was not recorded");
                Refusal::new(failure::AUDIT_UNAVAILABLE, "it could not be recorded")
            }
            error => {
                tracing::error!(%error, "credentials cannot be read");
                Refusal::new(failure::INTERNAL, "the credential cannot be opened")
            }
        }
    }

    /// For the machine's administrator.
    pub(crate) fn cli(self) -> CliError {
        match self {
            Self::Store(error) => store_error(error),
            Self::Key(tenant::TenantKeyError::File(error)) => error,
            Self::Key(error) => CliError::failed("tenant_key_missing", error.to_string())
                .hint("put back the folder tenants of the data directory, if the client exists"),
            Self::Wrap(error) => CliError::failed("crypto_failed", error.to_string()),
            Self::Invalid(text) => CliError::usage("usage", text),
            Self::Refused(refusal) => match refusal.code {
                failure::NO_SUCH_CREDENTIAL => CliError::not_there(refusal.code, refusal.message),
                code => CliError::refused(code, refusal.message),
            },
        }
    }
}

/// There is none, or none that may be seen: both are told in these words.
pub(crate) fn no_such_credential() -> Refusal {
    Refusal::new(failure::NO_SUCH_CREDENTIAL, "there is no such credential")
}
