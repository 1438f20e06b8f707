//! Key pairs of API keys: made here, kept in a file that only its owner can read, as PKCS #8 in
//! PEM (RFC 5958, RFC 7468), which other programs can use. Only the public half leaves.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use adit_protocol::{code::failure, dpop::base64url, keys::SigningKey};
use adit_runtime::{
    cli::{CliError, Exit},
    people, secretio,
};
use zeroize::Zeroizing;

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";
/// Bytes of an Ed25519 private key in PKCS #8; its seed is the last 32.
const PKCS8_LEN: usize = 48;
/// Bytes of such a file.
const MAX_FILE: u64 = 4 * 1024;

/// A key in a file. Made before it is registered, so that none is registered that was lost; what
/// was made in vain is removed.
#[derive(Debug)]
pub struct KeyFile {
    public: String,
    file: PathBuf,
    is_new: bool,
}

impl KeyFile {
    /// The key in a file, which is made if it is not there.
    pub fn of(file: &Path) -> Result<Self, CliError> {
        let is_new = !file.exists();
        let key = if is_new { make(file)? } else { read(file)? };
        Ok(Self { public: base64url(&key.public().0), file: file.to_owned(), is_new })
    }

    /// Its public half.
    pub fn public(&self) -> &str {
        &self.public
    }

    /// It was never sent: removes what was made.
    pub fn not_used(&self) {
        if self.is_new && std::fs::remove_file(&self.file).is_err() {
            people::note(&format!("{} holds a key that is not used", self.file.display()));
        }
    }

    /// It was sent, and this came back. Only a refusal says that it is not registered.
    pub fn after(&self, error: &CliError) {
        let refused = match error.exit {
            Exit::Usage | Exit::Refused | Exit::NotThere => true,
            _ => error.code == failure::NAME_TAKEN,
        };
        if refused {
            self.not_used();
        } else if self.is_new {
            people::note(&format!(
                "nothing says whether the key in {} was registered: see admin api-key list; the \
                 command takes the same file again",
                self.file.display()
            ));
        }
    }
}

fn bad(file: &Path, why: &str) -> CliError {
    CliError::usage("secret_invalid", format!("{}: {why}", file.display()))
        .hint("give an Ed25519 private key in PKCS #8 (PEM), or a file that does not exist yet")
}

fn read(file: &Path) -> Result<SigningKey, CliError> {
    secretio::warn_if_exposed(file);
    let length = std::fs::metadata(file).map_or(0, |data| data.len());
    if length > MAX_FILE {
        return Err(bad(file, "too large for a key"));
    }
    let text = std::fs::read_to_string(file)
        .map(Zeroizing::new)
        .map_err(|error| bad(file, &error.to_string()))?;
    let body = text.split(BEGIN).nth(1).and_then(|rest| rest.split(END).next());
    let body = body.ok_or_else(|| bad(file, "no private key in PEM"))?;
    let body: Zeroizing<String> =
        Zeroizing::new(body.chars().filter(|c| !c.is_whitespace()).collect());
    let der = adit_protocol::dpop::from_base64(&body).map(Zeroizing::new);
    let der = der.map_err(|_| bad(file, "no private key in PEM"))?;
    let key = match der.split_last_chunk::<32>() {
        Some((_, seed)) if der.len() == PKCS8_LEN => SigningKey::from_seed(seed).ok(),
        _ => None,
    };
    let key = key.filter(|key| *key.to_pkcs8() == *der);
    key.ok_or_else(|| bad(file, "not an Ed25519 key"))
}

fn make(file: &Path) -> Result<SigningKey, CliError> {
    let failed = |error: std::io::Error| {
        CliError::failed("output_failed", format!("{}: {error}", file.display()))
    };
    let key = SigningKey::generate()
        .map_err(|_| CliError::failed("crypto_failed", "the system gives no randomness"))?;
    let body = Zeroizing::new(adit_protocol::dpop::base64(&key.to_pkcs8()));
    let text = Zeroizing::new(format!("{BEGIN}\n{}\n{END}\n", body.as_str()));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut out = options.open(file).map_err(failed)?;
    out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(failed)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_read_back_and_private() {
        let temporary = tempfile::tempdir().unwrap();
        let file = temporary.path().join("key.pem");
        let made = KeyFile::of(&file).unwrap();
        let read = KeyFile::of(&file).unwrap();
        assert_eq!(read.public(), made.public());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        for text in ["", "x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(KeyFile::of(&file).unwrap_err().code, "secret_invalid", "{text}");
        }
    }

    #[test]
    fn only_a_refused_key_that_was_made_for_it_is_removed() {
        let temporary = tempfile::tempdir().unwrap();
        let file = temporary.path().join("key.pem");
        for (error, stays) in [
            (CliError::usage("bad_request", "x"), false),
            (CliError::refused("not_permitted", "x"), false),
            (CliError::not_there("not_found", "x"), false),
            (CliError::failed("name_taken", "x"), false),
            (CliError::failed("internal", "x"), true),
            (CliError::no_path("mediator_unreachable", "x"), true),
        ] {
            let key = KeyFile::of(&file).unwrap();
            key.after(&error);
            assert_eq!(file.exists(), stays, "{}", error.code);
            let _ = std::fs::remove_file(&file);
        }
        drop(KeyFile::of(&file).unwrap());
        KeyFile::of(&file).unwrap().after(&CliError::usage("bad_request", "x"));
        KeyFile::of(&file).unwrap().not_used();
        assert!(file.exists(), "it was there before");
    }
}
