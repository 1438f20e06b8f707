//! The mediator this console talks to, whom it believes to be it, and who is logged in.
//!
//! The pinned key outlives a logout: a mediator with another key is refused at the next login.

use std::{fmt, str::FromStr};

use adit_net::{proxy::format_host_port, tls::Trust};
use adit_protocol::{code::failure as codes, keys::Fingerprint, limits::MAX_TEXT};
use adit_runtime::{
    cli::{CliError, escape_text},
    datadir::DataDir,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

const ACCOUNT_FILE: &str = "account.toml";
const TOKEN_FILE: &str = "session.token";
const MAX_ACCOUNT_BYTES: u64 = 64 * 1024;
/// Users of one console whose partners are remembered.
const MAX_PINS: usize = 64;

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
    /// Whose audit log this console believes, for each user who ever logged in here; outlives a
    /// logout.
    pub pins: Vec<Pin>,
}

/// The partner of a user, as it was told at the first login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Whose.
    pub user: String,
    /// Id of the partner, the tenant of grants.
    pub partner_id: String,
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
    /// As written while only the last user's was remembered.
    #[serde(default, skip_serializing)]
    pin: Option<Pin>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pins: Vec<Pin>,
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
        let AccountFile { host, port, trust, user, partner, pin, mut pins } = file;
        pins.extend(pin);
        let trust = trust.parse().map_err(damaged)?;
        Ok(Some(Self { host, port, trust, user, partner, pins }))
    }

    /// Writes the account.
    pub fn save(&self, directory: &DataDir) -> Result<(), CliError> {
        let file = AccountFile {
            host: self.host.clone(),
            port: self.port,
            trust: self.trust.to_string(),
            user: self.user.clone(),
            partner: self.partner.clone(),
            pin: None,
            pins: self.pins.clone(),
        };
        let text = toml::to_string(&file)
            .map_err(|error| CliError::failed("internal", format!("cannot encode: {error}")))?;
        directory.write_atomic(ACCOUNT_FILE, text.as_bytes(), 0o600)
    }

    /// The partner whose audit log is believed for the user who is logged in.
    pub fn pinned(&self) -> Option<&str> {
        let user = self.user.as_deref()?;
        let pin = self.pins.iter().find(|pin| is_same_user(&pin.user, user))?;
        Some(&pin.partner_id)
    }

    /// Remembers the partner of the user who is logged in, the first time. An error if another one
    /// is remembered: a mediator that was taken over would lead to a partner of its own making.
    pub fn pin_partner(&mut self, partner_id: &str) -> Result<(), CliError> {
        let Some(user) = self.user.clone().filter(|_| is_partner_id(partner_id)) else {
            return Ok(());
        };
        match self.pinned() {
            Some(known) if known == partner_id => Ok(()),
            Some(known) => Err(foreign(&user, known, partner_id)),
            None if self.pins.len() >= MAX_PINS => Err(crowded()),
            None => {
                self.pins.push(Pin { user, partner_id: partner_id.to_owned() });
                Ok(())
            }
        }
    }

    /// Whether the mediator may say that this user logged in, of that partner. The name is the
    /// mediator's word alone: with another one it could lead past what is remembered. So it is the
    /// name that was `asked` for; or, where none was, nobody who is new here from a partner who is
    /// new here, too.
    pub fn admit(&self, asked: Option<&str>, user: &str, partner: &str) -> Result<(), CliError> {
        match asked {
            Some(asked) if is_same_user(asked, user) => Ok(()),
            Some(asked) => Err(another_user(asked, user)),
            None => {
                let is_known =
                    |pin: &Pin| is_same_user(&pin.user, user) || pin.partner_id == partner;
                match self.pins.is_empty() || self.pins.iter().any(is_known) {
                    true => Ok(()),
                    false => Err(stranger(user, partner)),
                }
            }
        }
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

fn is_partner_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TEXT && !text.contains(char::is_whitespace)
}

fn is_same_user(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

fn foreign(user: &str, known: &str, told: &str) -> CliError {
    let (user, told) = (escape_text(user), escape_text(told));
    let message = format!(
        "the mediator says that {user} belongs to partner {told}; this console knows {known}"
    );
    CliError::refused(codes::AUDIT_FOREIGN, message).hint(
        "do not go on; tell your administrator. If the account was moved to another partner on \
         purpose: console-tunnel witness accept, then log in again",
    )
}

fn another_user(asked: &str, told: &str) -> CliError {
    let (asked, told) = (escape_text(asked), escape_text(told));
    let message = format!("the mediator says that {told} logged in, not {asked}");
    CliError::refused(codes::AUDIT_FOREIGN, message).hint(
        "do not go on; tell your administrator. If you did log in as that user, say so: --user",
    )
}

fn stranger(user: &str, partner: &str) -> CliError {
    let (user, partner) = (escape_text(user), escape_text(partner));
    let message = format!(
        "the mediator says that {user} logged in, of partner {partner}; this console knows neither"
    );
    CliError::refused(codes::AUDIT_FOREIGN, message).hint(format!(
        "if you did log in as {user}, say so: console-tunnel login HOST --web --user {user}. If \
         not, do not go on; tell your administrator"
    ))
}

fn crowded() -> CliError {
    let message = format!("the partners of {MAX_PINS} users are remembered here: it takes no more");
    CliError::refused(codes::AUDIT_FOREIGN, message)
        .hint("give this user a data directory of their own: --data-dir")
}

/// Remembers the partner of somebody who logged in with a version that did not: that of the first
/// session. What cannot be written now is with the next one.
pub fn pin_first(directory: &DataDir, partner_id: Option<&str>) {
    let Some(partner_id) = partner_id else { return };
    let Ok(Some(mut account)) = Account::load(directory) else { return };
    if account.pinned().is_none()
        && account.pin_partner(partner_id).is_ok()
        && account.pinned().is_some()
    {
        let _ = account.save(directory);
    }
}

/// Forgets whose log is believed; for the owner of this console, after looking into it.
pub fn forget_pin(directory: &DataDir) -> Result<(), CliError> {
    match Account::load(directory)? {
        Some(account) if !account.pins.is_empty() => {
            Account { pins: Vec::new(), ..account }.save(directory)
        }
        _ => Ok(()),
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

    fn pin(user: &str, partner_id: &str) -> Pin {
        Pin { user: user.into(), partner_id: partner_id.into() }
    }

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
                pins: vec![pin("ann", "p1"), pin("bob", "p2")],
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
    fn another_partner_under_the_same_name_is_refused_also_after_a_logout() {
        let mut account = Account {
            host: "m".into(),
            port: 1,
            trust: MediatorTrust::WebPki,
            user: Some("ann".into()),
            partner: "main".into(),
            pins: Vec::new(),
        };
        account.pin_partner("").unwrap();
        assert_eq!(account.pinned(), None);
        account.pin_partner("p1").unwrap();
        account.pin_partner("p1").unwrap();
        assert_eq!(account.pin_partner("p2").unwrap_err().code, codes::AUDIT_FOREIGN);
        account.user = None;
        assert_eq!(account.pinned(), None);
        account.user = Some("Ann".into());
        assert_eq!(account.pin_partner("p2").unwrap_err().code, codes::AUDIT_FOREIGN);
        // Another account has a partner of its own.
        account.user = Some("bob".into());
        account.pin_partner("p2").unwrap();
        assert_eq!(account.pinned(), Some("p2"));
        // And takes nobody's place.
        account.user = Some("ann".into());
        assert_eq!(account.pin_partner("p2").unwrap_err().code, codes::AUDIT_FOREIGN);
        for n in 2..MAX_PINS {
            account.user = Some(format!("u{n}"));
            account.pin_partner("p1").unwrap();
        }
        account.user = Some("one more".into());
        assert_eq!(account.pin_partner("p1").unwrap_err().code, codes::AUDIT_FOREIGN);
        assert_eq!(account.pins.len(), MAX_PINS);
    }

    #[test]
    fn the_mediators_word_for_who_logged_in_leads_past_no_pin() {
        let account = |pins| Account {
            host: "m".into(),
            port: 1,
            trust: MediatorTrust::WebPki,
            user: None,
            partner: String::new(),
            pins,
        };
        let known = account(vec![pin("ann", "p1")]);
        // By name.
        known.admit(Some("Ann"), "ann", "p1").unwrap();
        known.admit(Some("bob"), "bob", "p2").unwrap();
        for told in ["bob", "", "ann2"] {
            let error = known.admit(Some("ann"), told, "p2").unwrap_err();
            assert_eq!(error.code, codes::AUDIT_FOREIGN, "{told}");
        }
        // On a page: whoever is known, and whoever belongs to a partner that is.
        account(Vec::new()).admit(None, "ann", "p1").unwrap();
        known.admit(None, "ANN", "p2").unwrap(); // What is remembered of ann is looked at next.
        known.admit(None, "bob", "p1").unwrap();
        for partner in ["p2", ""] {
            let error = known.admit(None, "bob", partner).unwrap_err();
            assert_eq!(error.code, codes::AUDIT_FOREIGN, "{partner}");
        }
    }

    #[test]
    fn what_was_remembered_of_one_user_still_is() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = DataDir::open(temporary.path().join("d")).unwrap();
        let text = "host = \"m\"\nport = 1\ntrust = \"webpki\"\npartner = \"\"\n\
                    [pin]\nuser = \"ann\"\npartner_id = \"p1\"\n";
        directory.write_atomic(ACCOUNT_FILE, text.as_bytes(), 0o600).unwrap();
        let account = Account::load(&directory).unwrap().unwrap();
        assert_eq!(account.pins, [pin("ann", "p1")]);
        account.save(&directory).unwrap();
        assert_eq!(Account::load(&directory).unwrap(), Some(account));
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
