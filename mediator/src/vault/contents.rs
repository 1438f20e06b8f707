//! What a credential holds: bounds, encoding, sealing.
//!
//! Two envelopes: the user name, which whoever may use the credential sees, and the secret with
//! its notes. Table, part, id, version and client are authenticated: no envelope opens in another
//! place, nor an older version in the place of a newer one.

use zeroize::Zeroizing;

use super::{
    VaultError, generate,
    tenant::Key,
    wrap::{Place, WrapError, decrypt, encrypt},
};
use crate::{names, store::credentials::CredentialRow};

/// Bytes of a user name.
pub(crate) const MAX_USER: usize = 104;
/// Bytes of a secret: large enough for every private key in use.
pub(crate) const MAX_SECRET: usize = 16 * 1024;
/// Bytes of notes.
pub(crate) const MAX_NOTES: usize = 4096;
/// Redirectors that one names.
const MAX_REDIRECTORS: usize = 16;
/// Kinds, as stored and told.
pub(crate) const KINDS: [&str; 3] = [PASSWORD, SSH_KEY, "other"];
/// A password.
pub(crate) const PASSWORD: &str = "password";
/// A private key as OpenSSH reads it.
pub(crate) const SSH_KEY: &str = "ssh_key";

/// A text that wipes itself.
pub(crate) type Hidden = Zeroizing<String>;

/// The parts that are sealed.
pub(crate) struct Contents {
    pub(crate) user: Hidden,
    pub(crate) secret: Hidden,
    pub(crate) notes: Hidden,
}

impl Contents {
    /// Checks bounds; `kind` says what the secret must look like.
    pub(crate) fn check(&self, kind: &str) -> Result<(), VaultError> {
        let invalid = |text: &str| Err(VaultError::Invalid(text.to_owned()));
        if !KINDS.contains(&kind) {
            return invalid("a kind is one of password, ssh_key, other");
        }
        if self.user.len() > MAX_USER || self.user.chars().any(char::is_control) {
            return invalid("a user name has at most 104 bytes, without control characters");
        }
        if self.secret.is_empty() || self.secret.len() > MAX_SECRET {
            return invalid("a secret has 1 to 16384 bytes");
        }
        if self.notes.len() > MAX_NOTES {
            return invalid("notes have at most 4096 bytes");
        }
        match kind {
            PASSWORD if self.secret.chars().any(char::is_control) => {
                invalid("a password is one line without control characters")
            }
            SSH_KEY if !self.secret.trim_start().starts_with("-----BEGIN ") => {
                invalid("an ssh_key is a private key file, beginning with -----BEGIN")
            }
            _ => Ok(()),
        }
    }

    /// Checks a secret that is to be stored now for what would be found out only at a launch. What
    /// was stored before can still be renamed.
    pub(crate) fn check_use(&self, kind: &str) -> Result<(), VaultError> {
        if kind != SSH_KEY || !has_passphrase(&self.secret) {
            return Ok(());
        }
        let text = "the SSH key has a passphrase, which nobody can type when it is used: remove it \
            from a copy (ssh-keygen -p -N \"\" -f COPY), store that, and delete the copy; the \
            mediator seals what it stores";
        Err(VaultError::Invalid(text.to_owned()))
    }

    /// Puts them, sealed, into a row whose id, version and client are set.
    pub(crate) fn seal(&self, key: &Key, row: &mut CredentialRow) -> Result<(), WrapError> {
        row.about = encrypt(key, &context(row, ABOUT), self.user.as_bytes())?;
        let length = u32::try_from(self.secret.len()).map_err(|_| WrapError::Long)?;
        let mut body = Zeroizing::new(Vec::with_capacity(4 + self.secret.len() + self.notes.len()));
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(self.secret.as_bytes());
        body.extend_from_slice(self.notes.as_bytes());
        row.secret = encrypt(key, &context(row, SECRET), &body)?;
        Ok(())
    }

    /// Opens all of it.
    pub(crate) fn open(key: &Key, row: &CredentialRow) -> Result<Self, WrapError> {
        let body = decrypt(key, &context(row, SECRET), &row.secret)?;
        let (length, rest) = body.split_first_chunk::<4>().ok_or(WrapError::Damaged)?;
        let length =
            usize::try_from(u32::from_be_bytes(*length)).map_err(|_| WrapError::Damaged)?;
        let (secret, notes) = rest.split_at_checked(length).ok_or(WrapError::Damaged)?;
        Ok(Self { user: user(key, row)?, secret: text(secret)?, notes: text(notes)? })
    }
}

/// First bytes of what an OpenSSH key file holds, and those that follow where nothing encrypts it,
/// in base64: the format's name, then the cipher's, which is `none`.
const OPENSSH: &str = "b3BlbnNzaC1rZXktdjEA";
const OPENSSH_NONE: &str = "AAAABG5vbmU";

/// Whether a private key is encrypted, in any of the three formats that OpenSSH reads.
fn has_passphrase(key: &str) -> bool {
    let mut lines = key.trim_start().lines().map(str::trim);
    let kind = lines.next().unwrap_or_default();
    if kind == "-----BEGIN ENCRYPTED PRIVATE KEY-----" {
        return true;
    }
    let body: Vec<&str> = lines.take_while(|line| !line.starts_with("-----")).collect();
    // RFC 1421, as OpenSSL writes keys of before PKCS #8.
    if body.iter().any(|line| line.starts_with("Proc-Type:") && line.contains("ENCRYPTED")) {
        return true;
    }
    // Lines may be short: what is looked for must not be cut by their ends.
    let begin: Zeroizing<String> = Zeroizing::new(
        body.iter()
            .flat_map(|line| line.chars())
            .take(OPENSSH.len() + OPENSSH_NONE.len())
            .collect(),
    );
    begin.strip_prefix(OPENSSH).is_some_and(|cipher| !cipher.starts_with(OPENSSH_NONE))
}

/// Opens the user name alone.
pub(crate) fn user(key: &Key, row: &CredentialRow) -> Result<Hidden, WrapError> {
    text(&decrypt(key, &context(row, ABOUT), &row.about)?)
}

const ABOUT: &str = "credential.about";
const SECRET: &str = "credential.secret";

fn context(row: &CredentialRow, part: &str) -> Vec<u8> {
    let id = format!("{}:{}", row.id, row.version);
    Place { table: part, row: &id, tenant: &row.client_id }.bytes()
}

fn text(bytes: &[u8]) -> Result<Hidden, WrapError> {
    std::str::from_utf8(bytes)
        .map(|text| Zeroizing::new(text.to_owned()))
        .map_err(|_| WrapError::Damaged)
}

/// Checks what is not sealed.
pub(crate) fn check_open(name: &str, redirectors: &[String]) -> Result<(), VaultError> {
    names::check(name).map_err(|error| VaultError::Invalid(error.to_string()))?;
    let word = |word: &String| {
        !word.is_empty()
            && word.len() <= 64
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    if redirectors.len() > MAX_REDIRECTORS || !redirectors.iter().all(word) {
        let text = "at most 16 redirectors, each a name such as rdp or ssh, are expected";
        return Err(VaultError::Invalid(text.to_owned()));
    }
    Ok(())
}

/// A secret that is made here.
pub(crate) fn generated(length: Option<usize>) -> Result<Hidden, VaultError> {
    let length = length.unwrap_or(generate::DEFAULT_LENGTH);
    if !(generate::MIN_LENGTH..=generate::MAX_LENGTH).contains(&length) {
        let text = "a generated password has 16 to 127 characters".to_owned();
        return Err(VaultError::Invalid(text));
    }
    generate::password(length).ok_or(VaultError::Wrap(WrapError::Random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_open_in_their_place_and_version_only() {
        let key: Key = Zeroizing::new([3; 32]);
        let text = |text: &str| Zeroizing::new(text.to_owned());
        let contents =
            Contents { user: text("ann"), secret: text("hunter2"), notes: text("the safe") };
        let mut row = row();
        contents.seal(&key, &mut row).unwrap();
        let opened = Contents::open(&key, &row).unwrap();
        assert_eq!(opened.user.as_str(), "ann");
        assert_eq!(opened.secret.as_str(), "hunter2");
        assert_eq!(opened.notes.as_str(), "the safe");
        for moved in [
            CredentialRow { id: "2".into(), ..row.clone() },
            CredentialRow { version: 8, ..row.clone() },
            CredentialRow { client_id: "d".into(), ..row.clone() },
            CredentialRow { secret: row.about.clone(), ..row.clone() },
        ] {
            assert!(Contents::open(&key, &moved).is_err());
        }
    }

    fn row() -> CredentialRow {
        CredentialRow {
            id: "1".into(),
            partner_id: "p".into(),
            partner: "p".into(),
            client_id: "c".into(),
            client: "c".into(),
            computer_id: String::new(),
            computer: String::new(),
            name: "n".into(),
            kind: PASSWORD.into(),
            redirectors: Vec::new(),
            automatic: false,
            version: 7,
            key_version: 1,
            about: Vec::new(),
            secret: Vec::new(),
            created_ms: 0,
            changed_ms: 0,
            used_ms: 0,
        }
    }

    #[test]
    fn what_no_viewer_could_take_is_refused() {
        let text = |text: &str| Zeroizing::new(text.to_owned());
        let check = |kind: &str, user: &str, secret: &str| {
            let contents = Contents { user: text(user), secret: text(secret), notes: text("") };
            contents.check(kind).is_ok()
        };
        assert!(check("password", "", "x") && check("other", "u", "a\nb"));
        assert!(check("ssh_key", "u", "-----BEGIN OPENSSH PRIVATE KEY-----\n"));
        for (kind, user, secret) in [
            ("password", "u", ""),
            ("password", "u", "a\nb"),
            ("password", "u\n", "x"),
            ("ssh_key", "u", "x"),
            ("magic", "u", "x"),
            ("password", "u", &"x".repeat(MAX_SECRET + 1)),
        ] {
            assert!(!check(kind, user, secret), "{kind} {user:?}");
        }
        // Only where the secret is new: a user name changes beside any.
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIF\n";
        assert!(check("ssh_key", "u", encrypted) && has_passphrase(encrypted));
        assert!(check_open("web admin", &["rdp".into()]).is_ok());
        assert!(check_open("a/b", &[]).is_err() && check_open("a", &["a b".into()]).is_err());
    }
}
