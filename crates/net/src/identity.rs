//! A device's keys: made once, kept in its data directory, wiped from memory.
//!
//! Never overwrites a key that exists, never writes one that others can read, and never
//! repairs a damaged one silently: a device with a new key is a different device.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use adit_protocol::{
    keys::{KeyError, NoiseCert, SigningKey, fill_random, random},
    wire,
};
use aws_lc_rs::agreement;
use zeroize::{Zeroize, Zeroizing};

/// File of the Ed25519 seed.
pub const IDENTITY_FILE: &str = "identity.key";
/// File of the X25519 key and the time it was certified.
pub const NOISE_FILE: &str = "noise.key";

/// Why an identity could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system refused.
    #[error("cannot {what} {}: {error}", path.display())]
    Io {
        /// read, write
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file does not hold a key.
    #[error("{} is damaged: restore it from a backup", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
    /// The cryptographic library refused.
    #[error("cannot make a key: {0}")]
    Key(#[from] KeyError),
}

/// An X25519 key pair for Noise handshakes.
pub struct NoiseKeypair {
    /// The secret half.
    pub private: Zeroizing<[u8; 32]>,
    /// The public half.
    pub public: [u8; 32],
}

impl NoiseKeypair {
    /// A new random key.
    pub fn generate() -> Result<Self, KeyError> {
        let mut private = Zeroizing::new([0; 32]);
        fill_random(&mut private[..])?;
        Self::from_private(private)
    }

    /// From the secret half.
    pub fn from_private(private: Zeroizing<[u8; 32]>) -> Result<Self, KeyError> {
        let key = agreement::PrivateKey::from_private_key(&agreement::X25519, &private[..])
            .map_err(|_| KeyError::InvalidKey)?;
        let public = key.compute_public_key().map_err(|_| KeyError::Crypto)?;
        let public = public.as_ref().try_into().map_err(|_| KeyError::Crypto)?;
        Ok(Self { private, public })
    }
}

impl std::fmt::Debug for NoiseKeypair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NoiseKeypair")
    }
}

/// What a device is known by.
#[derive(Debug)]
pub struct DeviceIdentity {
    /// Ed25519: pinned by others, authenticates TLS, signs receipts and the Noise key.
    pub signing: SigningKey,
    /// X25519: handshakes with peers and relays.
    pub noise: NoiseKeypair,
    /// The identity's signature under the Noise key.
    pub noise_cert: wire::Signed,
}

impl DeviceIdentity {
    /// New random keys; `now_ms` (since 1970) is written into the Noise key's certificate.
    pub fn generate(now_ms: u64) -> Result<Self, KeyError> {
        Self::from_parts(SigningKey::generate()?, NoiseKeypair::generate()?, now_ms)
    }

    /// From keys that exist.
    pub fn from_parts(
        signing: SigningKey,
        noise: NoiseKeypair,
        issued_ms: u64,
    ) -> Result<Self, KeyError> {
        let noise_cert = NoiseCert::issue(&signing, noise.public, issued_ms);
        Ok(Self { signing, noise, noise_cert })
    }

    /// Reads the identity of a data directory; `None` if there is none yet.
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = dir.join(IDENTITY_FILE);
        let Some(seed) = read_secret(&path)? else { return Ok(None) };
        let damaged = |path: &Path| IdentityError::Damaged { path: path.to_owned() };
        let signing = SigningKey::from_seed(&seed).map_err(|_| damaged(&path))?;
        let path = dir.join(NOISE_FILE);
        let raw = read_secret(&path)?.ok_or_else(|| damaged(&path))?;
        let (key, issued) = raw.split_at_checked(32).ok_or_else(|| damaged(&path))?;
        let mut private = Zeroizing::new([0; 32]);
        private.copy_from_slice(key);
        let issued = u64::from_be_bytes(issued.try_into().map_err(|_| damaged(&path))?);
        let noise = NoiseKeypair::from_private(private).map_err(|_| damaged(&path))?;
        Ok(Some(Self::from_parts(signing, noise, issued)?))
    }

    /// Writes a new identity; fails if the directory holds one.
    pub fn save(&self, dir: &Path, issued_ms: u64) -> Result<(), IdentityError> {
        let mut noise = Zeroizing::new(Vec::with_capacity(40));
        noise.extend_from_slice(&self.noise.private[..]);
        noise.extend_from_slice(&issued_ms.to_be_bytes());
        // The identity goes last: what exists without it was never used, and is replaced.
        let noise_path = dir.join(NOISE_FILE);
        if !dir.join(IDENTITY_FILE).exists() {
            match fs::remove_file(&noise_path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("replace", &noise_path, e));
                }
                _ => {}
            }
        }
        write_new_secret(&noise_path, &noise)?;
        write_new_secret(&dir.join(IDENTITY_FILE), &self.signing.seed()[..])
    }

    /// Reads the identity of a data directory, or makes one.
    pub fn load_or_create(dir: &Path, now_ms: u64) -> Result<Self, IdentityError> {
        if let Some(identity) = Self::load(dir)? {
            return Ok(identity);
        }
        let identity = Self::generate(now_ms)?;
        identity.save(dir, now_ms)?;
        Ok(identity)
    }
}

fn io_error(what: &'static str, path: &Path, error: io::Error) -> IdentityError {
    IdentityError::Io { what, path: path.to_owned(), error }
}

/// Reads a file of secret bytes; `None` if it does not exist.
pub fn read_secret(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error("read", path, e)),
    }
}

/// Writes a file of secret bytes, 0600, whole or not at all; fails if the path exists.
pub fn write_new_secret(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let mut suffix = random::<8>()?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temp = path.with_file_name(format!(".{name}.{:016x}", u64::from_be_bytes(suffix)));
    suffix.zeroize();
    let result = write_synced(&temp, bytes).and_then(|()| fs::hard_link(&temp, path));
    let removed = fs::remove_file(&temp);
    result.and(removed).and_then(|()| sync_parent(path)).map_err(|e| io_error("write", path, e))
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    // Windows has no handle of a directory to flush; its rename is journalled.
    if cfg!(unix)
        && let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty())
    {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_survives_a_restart_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let made = DeviceIdentity::load_or_create(dir.path(), 7).unwrap();
        let read = DeviceIdentity::load_or_create(dir.path(), 9).unwrap();
        assert_eq!(made.signing.public(), read.signing.public());
        assert_eq!(made.noise.public, read.noise.public);
        assert_eq!(made.noise_cert, read.noise_cert);
        assert_eq!(NoiseCert::open(read.signing.public(), &read.noise_cert), Ok(read.noise.public));
        assert!(DeviceIdentity::generate(1).unwrap().save(dir.path(), 1).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file stays");
        #[cfg(unix)]
        for file in [IDENTITY_FILE, NOISE_FILE] {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn damaged_identity_is_reported_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        DeviceIdentity::load_or_create(dir.path(), 7).unwrap();
        for file in [NOISE_FILE, IDENTITY_FILE] {
            fs::write(dir.path().join(file), b"short").unwrap();
            let error = DeviceIdentity::load_or_create(dir.path(), 7).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");
        }
    }

    #[test]
    fn creation_cut_short_before_the_identity_starts_afresh() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NOISE_FILE), b"left over").unwrap();
        DeviceIdentity::load_or_create(dir.path(), 7).unwrap();
        assert!(DeviceIdentity::load(dir.path()).unwrap().is_some());
    }
}
