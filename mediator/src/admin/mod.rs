//! What the machine's administrator may do: one request type, one handler.
//!
//! The command line sends a request to the running server through the local socket, or handles
//! it itself under the data directory's lock when no server runs. Every act is recorded in the
//! transaction that does it.

pub(crate) mod access;
pub(crate) mod accounts;
pub(crate) mod actor;
pub(crate) mod api_keys;
pub(crate) mod backup;
mod computers;
pub(crate) mod credentials;
mod devices;
pub(crate) mod explain;
pub(crate) mod export;
pub(crate) mod handle;
mod labels;
mod last;
pub(crate) mod oidc;
mod partners;
mod refusals;
pub(crate) mod relays;
mod tokens;
mod users;
pub(crate) mod vault;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub(crate) use handle::{AdminContext, handle};
pub(crate) use labels::told_computer;
pub(crate) use refusals::{Refusals, tell_untold};

/// A secret on its way through the local socket; never printed.
#[derive(Clone)]
pub(crate) struct Secret(Zeroizing<String>);

impl Secret {
    pub(crate) fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// An act of the machine's administrator.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum AdminRequest {
    /// Adds a client, and its partner if it is new.
    ClientAdd { path: String },
    /// Lists clients.
    ClientList,
    /// Deletes a client and its personal data.
    ClientErase { path: String },
    /// Deletes a partner with all of its clients and users.
    PartnerErase {
        partner: String,
        /// Its name once more, from those who ask over the network.
        #[serde(default)]
        confirm: Option<String>,
    },
    /// Rewrites the database without traces of what was deleted.
    Compact,
    /// Lists erasures with their certificates, or shows one.
    CertificateList {
        #[serde(default)]
        only: Option<String>,
    },
    /// Makes a token for agents of a client.
    TokenAgent { client: String, uses: u64, ttl_ms: u64 },
    /// Makes a token for a relay.
    TokenRelay { region: String, uses: u64, ttl_ms: u64 },
    /// Lists tokens that are good.
    TokenList,
    /// Makes a token worthless.
    TokenRevoke { token: String },
    /// Lists partners.
    PartnerList,
    /// Adds a partner with its first user.
    PartnerAdd { partner: String, owner: String },
    /// Manages API keys.
    ApiKeys(api_keys::ApiKeyAct),
    /// Manages relays.
    Relays(relays::RelayAct),
    /// Adds a user.
    UserAdd {
        user: String,
        partner: Option<String>,
        role: String,
        /// A second factor is required from the beginning.
        #[serde(default)]
        mfa: bool,
        password: Option<Secret>,
    },
    /// Lists users, or shows one.
    UserList {
        #[serde(default)]
        only: Option<String>,
    },
    /// Disables or enables a user; disabling ends sessions.
    UserDisable { user: String, disabled: bool },
    /// Sets a password.
    UserPassword { user: String, password: Option<Secret> },
    /// Manages second factors, logins and kill switches.
    Accounts(accounts::AccountAct),
    /// Manages credentials of clients.
    Credentials(credentials::CredentialAct),
    /// Manages identity providers.
    Oidc(oidc::OidcAct),
    /// Manages roles, labels and requests, or explains a decision.
    Access(access::AccessAct),
    /// Ends a session.
    SessionEnd { session: String },
    /// Lists open sessions.
    SessionList,
    /// Records that the log was read.
    AuditRead { how: String },
    /// Manages levels, retention and forwarding of the log.
    Audit(crate::audit::acts::AuditAct),
    /// Writes a copy of the database.
    Backup {
        file: String,
        /// Whom it is sealed for; none: it is not.
        #[serde(default)]
        recipients: Vec<String>,
    },
    /// Tells what runs.
    Status,
}
