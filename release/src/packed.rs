//! Packed crates as `Cargo.lock` has them.
//!
//! Cargo compares a crate's digest when it downloads it, and believes what lies in its cache later:
//! what is compiled would be what somebody put there, while the statement names the lock file.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use toml::{Table, Value};

use crate::provenance::sha256;

/// Fails if a packed crate that the lock file names has other bytes, in any registry's folder of
/// the cache. Those that are not there are fetched or missed by cargo itself.
pub(crate) fn check(lock: &Path, cache: &Path) -> Result<()> {
    let text = fs::read_to_string(lock).with_context(|| lock.display().to_string())?;
    let table: Table = text.parse().context("Cargo.lock")?;
    let registries: Vec<_> = match fs::read_dir(cache) {
        Ok(entries) => entries.collect::<Result<_, _>>()?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| cache.display().to_string()),
    };
    let packages = table.get("package").and_then(Value::as_array).into_iter().flatten();
    for package in packages {
        let field = |name: &str| package.get(name).and_then(Value::as_str);
        // Crates of the workspace have no digest.
        let Some(digest) = field("checksum") else { continue };
        let (name, version) = field("name").zip(field("version")).context("Cargo.lock: a name")?;
        for registry in &registries {
            let file = registry.path().join(format!("{name}-{version}.crate"));
            if file.exists() {
                ensure!(
                    sha256(&file)? == digest,
                    "{} is not what Cargo.lock names; remove it, and see how it came there",
                    file.display()
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

    use super::*;

    #[test]
    fn a_packed_crate_with_other_bytes_is_found() {
        let root = tempfile::tempdir().unwrap();
        let (lock, cache) = (root.path().join("Cargo.lock"), root.path().join("cache"));
        let file = cache.join("mirror/some-1.0.0.crate");
        let packed = root.path().join("packed");
        fs::write(&packed, "bytes").unwrap();
        let digest = sha256(&packed).unwrap();
        let text = format!(
            "version = 4\n[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n\
             [[package]]\nname = \"some\"\nversion = \"1.0.0\"\nchecksum = \"{digest}\"\n"
        );
        fs::write(&lock, text).unwrap();
        // Nothing is fetched yet.
        check(&lock, &cache).unwrap();
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        check(&lock, &cache).unwrap();
        fs::write(&file, "bytes").unwrap();
        check(&lock, &cache).unwrap();
        fs::write(&file, "other bytes").unwrap();
        let error = check(&lock, &cache).unwrap_err().to_string();
        assert!(error.contains("some-1.0.0.crate is not what Cargo.lock names"), "{error}");
    }
}
