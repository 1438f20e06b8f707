//! The mediator this console talks to, whom it believes to be it, and who is logged in.
//!
//! The pinned key outlives a logout: a mediator with another key is refused at the next login.

use std::{fmt, str::FromStr};

use adit_net::{proxy::format_host_port, tls::Trust};
use adit_protocol::keys::Fingerprint;
use adit_runtime::{cli::CliError, datadir::DataDir};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

const ACCOUNT_FILE: &str = "account.toml";
const TOKEN_FILE: &str = "session.token";
const MAX_ACCOUNT_BYTES: u64 = 64 * 1024;

/// Whom the console believes to be the mediator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediatorTrust {
    /// Whoever the system's certificate store accepts for the name.
    WebPki,
    /// The installation with this root key.
    Root(Fingerprint),
}

impl From<MediatorTrust> for Trust {
    fn from(trust: MediatorTrust) -> Self {
        match trust {
            MediatorTrust::WebPki => Self::WebPki,
            MediatorTrust::Root(fingerprint) => Self::Root(fingerprint),
        }
    }
}

impl fmt::Display for MediatorTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WebPki => f.write_str("webpki"),
            Self::Root(fingerprint) => fingerprint.fmt(f),
        }
    }
}

impl FromStr for MediatorTrust {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "webpki" => Ok(Self::WebPki),
            _ => text.parse().map(Self::Root).map_err(|error| format!("{error}")),
        }
    }
}

/// What `login` leaves behind; without a user after `logout`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Name or address of the mediator.
    pub host: String,
    /// Its control port.
    pub port: u16,
    /// Whom the console believes to be it.
    pub trust: MediatorTrust,
    /// Who is logged in.
    pub user: Option<String>,
    /// The user's partner.
    pub partner: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountFile {
    host: String,
    port: u16,
    trust: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default)]
    partner: String,
}

impl Account {
    /// Reads the account; `None` if nobody ever logged in.
    pub fn load(directory: &DataDir) -> Result<Option<Self>, CliError> {
        let Some(bytes) = directory.read(ACCOUNT_FILE, MAX_ACCOUNT_BYTES)? else {
            return Ok(None);
        };
        let damaged = |reason: String| {
            let path = directory.path().join(ACCOUNT_FILE);
            CliError::failed("state_damaged", format!("{} is damaged: {reason}", path.display()))
                .hint("remove it and log in again")
        };
        let text = str::from_utf8(&bytes).map_err(|error| damaged(error.to_string()))?;
        let file: AccountFile =
            toml::from_str(text).map_err(|error| damaged(error.message().to_owned()))?;
        let AccountFile { host, port, trust, user, partner } = file;
        let trust = trust.parse().map_err(damaged)?;
        Ok(Some(Self { host, port, trust, user, partner }))
    }

    /// Writes the account.
    pub fn save(&self, directory: &DataDir) -> Result<(), CliError> {
        let file = AccountFile {
            host: self.host.clone(),
            port: self.port,
            trust: self.trust.to_string(),
            user: self.user.clone(),
            partner: self.partner.clone(),
        };
        let text = toml::to_string(&file)
            .map_err(|error| CliError::failed("internal", format!("cannot encode: {error}")))?;
        directory.write_atomic(ACCOUNT_FILE, text.as_bytes(), 0o600)
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format_host_port(&self.host, self.port)
    }

    /// What known agents and cached computers belong to: the installation, so far as it is known.
    pub fn installation(&self) -> String {
        match self.trust {
            MediatorTrust::Root(fingerprint) => fingerprint.to_string(),
            MediatorTrust::WebPki => format!("webpki:{}", self.address()),
        }
    }
}

/// Keeps the session token.
pub fn save_token(directory: &DataDir, token: &str) -> Result<(), CliError> {
    directory.write_atomic(TOKEN_FILE, token.as_bytes(), 0o600)
}

/// The session token; `None` if nobody is logged in.
pub fn load_token(directory: &DataDir) -> Result<Option<Zeroizing<String>>, CliError> {
    if !directory.has(TOKEN_FILE) {
        return Ok(None);
    }
    let mut bytes = directory.read_secret(TOKEN_FILE)?;
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(token) if !token.is_empty() => Ok(Some(Zeroizing::new(token))),
        Ok(_) => Ok(None),
        Err(error) => {
            drop(Zeroizing::new(error.into_bytes()));
            Ok(None)
        }
    }
}

/// Forgets the session token.
pub fn remove_token(directory: &DataDir) -> Result<(), CliError> {
    let path = directory.file(TOKEN_FILE)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(CliError::failed(
            "data_dir_unwritable",
            format!("cannot remove {}: {error}", path.display()),
        )),
        _ => Ok(()),
    }
}

/// Nobody is logged in: what to do.
pub fn not_logged_in(account: Option<&Account>) -> CliError {
    let command = match account {
        Some(account) => format!("console-tunnel login {} --user USER", account.address()),
        None => "console-tunnel login HOST --user USER".to_owned(),
    };
    CliError::refused("not_logged_in", "you are not logged in").hint(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_and_token_read_back_and_the_token_is_private() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = DataDir::open(temporary.path().join("d")).unwrap();
        assert_eq!(Account::load(&directory).unwrap(), None);
        for trust in [MediatorTrust::WebPki, MediatorTrust::Root(Fingerprint([9; 32]))] {
            let account = Account {
                host: "::1".into(),
                port: 8443,
                trust,
                user: Some("ann".into()),
                partner: "main".into(),
            };
            account.save(&directory).unwrap();
            assert_eq!(Account::load(&directory).unwrap(), Some(account.clone()));
            assert_eq!(account.address(), "[::1]:8443");
        }
        save_token(&directory, "secret").unwrap();
        assert_eq!(load_token(&directory).unwrap().unwrap().as_str(), "secret");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let path = directory.file(TOKEN_FILE).unwrap();
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        remove_token(&directory).unwrap();
        remove_token(&directory).unwrap();
        assert!(load_token(&directory).unwrap().is_none());
    }

    #[test]
    fn a_damaged_account_is_reported() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = DataDir::open(temporary.path().join("d")).unwrap();
        for text in ["x", "host = 1", "host=\"a\"\nport=1\ntrust=\"anybody\"", "\u{fffd}"] {
            directory.write_atomic(ACCOUNT_FILE, text.as_bytes(), 0o600).unwrap();
            assert_eq!(Account::load(&directory).unwrap_err().code, "state_damaged", "{text}");
        }
    }
}
