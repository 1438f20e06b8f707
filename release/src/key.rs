//! Ed25519 keys in files, as OpenSSL reads and writes them: PKCS#8 and SubjectPublicKeyInfo in PEM.
//!
//! A private key is created for its owner alone, refused if others can read it, overwritten in
//! memory after use, and never printed: its type has no `Debug`.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::{
    digest,
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

/// What precedes the 32 bytes of an Ed25519 key in SubjectPublicKeyInfo (RFC 8410 §4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
const PRIVATE: &str = "PRIVATE KEY";
const PUBLIC: &str = "PUBLIC KEY";
/// No key file is longer.
const MAX_KEY_FILE: u64 = 16 * 1024;
/// Columns of PEM (RFC 7468 §2).
const COLUMNS: usize = 64;
/// Reads the key from standard input.
const STDIN: &str = "-";

/// A private key, in memory while a release is signed.
pub(crate) struct SigningKey(Ed25519KeyPair);

/// A public key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PublicKey([u8; 32]);

impl SigningKey {
    /// From a file that only its owner can read, or from standard input.
    pub(crate) fn load(file: &Path) -> Result<Self> {
        // Room for all of it: a string that grows leaves copies behind.
        let room = usize::try_from(MAX_KEY_FILE)?;
        let mut text = Zeroizing::new(String::with_capacity(room));
        if file == Path::new(STDIN) {
            stdin()?.take(MAX_KEY_FILE).read_to_string(&mut text)?;
        } else {
            let open = fs::File::open(file).with_context(|| file.display().to_string())?;
            // Of what is open, not of what the name leads to by then.
            check_private(&open.metadata()?).with_context(|| file.display().to_string())?;
            open.take(MAX_KEY_FILE).read_to_string(&mut text)?;
        }
        Self::parse(&text).with_context(|| file.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let der = Zeroizing::new(from_pem(PRIVATE, text)?);
        // What OpenSSL writes does not repeat the public key.
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der)
            .map(Self)
            .map_err(|_| anyhow::anyhow!("is no Ed25519 key in PKCS#8"))
    }

    pub(crate) fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.0.sign(bytes).as_ref().to_vec()
    }

    pub(crate) fn public(&self) -> Result<PublicKey> {
        Ok(PublicKey(self.0.public_key().as_ref().try_into()?))
    }
}

/// Standard input without the buffer of the whole process, which would keep the key.
#[cfg(unix)]
fn stdin() -> Result<fs::File> {
    use std::os::fd::AsFd as _;
    Ok(std::io::stdin().as_fd().try_clone_to_owned()?.into())
}

/// Standard input without the buffer of the whole process, which would keep the key.
#[cfg(windows)]
fn stdin() -> Result<fs::File> {
    use std::os::windows::io::AsHandle as _;
    Ok(std::io::stdin().as_handle().try_clone_to_owned()?.into())
}

impl PublicKey {
    pub(crate) fn load(file: &Path) -> Result<Self> {
        let mut text = String::new();
        let open = fs::File::open(file).with_context(|| file.display().to_string())?;
        open.take(MAX_KEY_FILE).read_to_string(&mut text)?;
        Self::parse(&text).with_context(|| file.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let der = from_pem(PUBLIC, text)?;
        let key = der.strip_prefix(&SPKI_PREFIX).context("is no Ed25519 key")?;
        Ok(Self(key.try_into().context("is no Ed25519 key")?))
    }

    pub(crate) fn verify(&self, bytes: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(bytes, signature).is_ok()
    }

    /// As all fingerprints of Adit: SHA-256 of the SubjectPublicKeyInfo.
    pub(crate) fn fingerprint(&self) -> String {
        format!("sha256:{}", hex(digest::digest(&digest::SHA256, &self.spki()).as_ref()))
    }

    pub(crate) fn to_pem(self) -> String {
        to_pem(PUBLIC, &self.spki()).to_string()
    }

    fn spki(&self) -> Vec<u8> {
        [&SPKI_PREFIX[..], &self.0].concat()
    }
}

/// Makes a key pair: `file`, for its owner alone, and the public half beside it.
pub(crate) fn generate(file: &Path) -> Result<PublicKey> {
    let made = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new());
    let der = made.map_err(|_| anyhow::anyhow!("no randomness"))?;
    let text = to_pem(PRIVATE, der.as_ref());
    let key = SigningKey::parse(&text)?.public()?;
    let public = beside(file);
    ensure!(!public.exists(), "{} exists", public.display());
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut open = options.open(file).with_context(|| file.display().to_string())?;
    open.write_all(text.as_bytes())?;
    open.sync_all()?;
    let mut options = OpenOptions::new();
    let mut open = options.write(true).create_new(true).open(&public);
    let open = open.as_mut().map_err(|error| anyhow::anyhow!("{}: {error}", public.display()))?;
    open.write_all(key.to_pem().as_bytes())?;
    Ok(key)
}

/// Where the public half of a key lies.
pub(crate) fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(unix)]
fn check_private(metadata: &fs::Metadata) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    ensure!(metadata.is_file(), "is no file");
    ensure!(metadata.permissions().mode() & 0o077 == 0, "others can read this key: chmod 600");
    Ok(())
}

#[cfg(not(unix))]
fn check_private(metadata: &fs::Metadata) -> Result<()> {
    ensure!(metadata.is_file(), "is no file");
    Ok(())
}

fn from_pem(label: &str, text: &str) -> Result<Vec<u8>> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let body = text.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end));
    let (body, _) = body.with_context(|| format!("holds no {label} in PEM"))?;
    let mut joined = Zeroizing::new(String::with_capacity(body.len()));
    joined.extend(body.chars().filter(|c| !c.is_ascii_whitespace()));
    STANDARD.decode(joined.as_bytes()).ok().context("is no PEM")
}

fn to_pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut text = Zeroizing::new(String::with_capacity(2 * body.len() + 128));
    let _ = writeln!(text, "-----BEGIN {label}-----");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at_checked(COLUMNS).unwrap_or((rest, ""));
        let _ = writeln!(text, "{line}");
        rest = more;
    }
    let _ = writeln!(text, "-----END {label}-----");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_owners_alone_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("release.key");
        let public = generate(&file).unwrap();
        assert_eq!(SigningKey::load(&file).unwrap().public().unwrap(), public);
        assert_eq!(PublicKey::load(&beside(&file)).unwrap(), public);
        assert!(generate(&file).is_err(), "overwritten");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
            fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
            let error = format!("{:#}", SigningKey::load(&file).err().unwrap());
            assert!(error.contains("others can read"), "{error}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_without_telling_it() {
        for text in
            ["", "secretsecret", "-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----"]
        {
            let error = format!("{:#}", SigningKey::parse(text).err().unwrap());
            assert!(!error.contains("secret"), "{error}");
            assert!(PublicKey::parse(text).is_err());
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn keys_of_openssl_are_read_and_ours_are_read_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        let openssl = |args: &[&str]| {
            let mut command = std::process::Command::new("openssl");
            let told = command.args(args).output().unwrap();
            assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
            String::from_utf8(told.stdout).unwrap()
        };
        let public = |file: &Path| openssl(&["pkey", "-in", file.to_str().unwrap(), "-pubout"]);
        openssl(&["genpkey", "-algorithm", "ed25519", "-out", theirs.to_str().unwrap()]);
        assert_eq!(SigningKey::load(&theirs).unwrap().public().unwrap().to_pem(), public(&theirs));
        assert_eq!(generate(&ours).unwrap().to_pem(), public(&ours));
    }
}
