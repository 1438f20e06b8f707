//! The keys of clients: a tenant key in a file beside the database, and under it the data key in
//! the database.
//!
//! ```text
//! wrapping key (wrapping.keys or the configuration)
//!   └ tenant key (tenants/CLIENT.key, made with the client's first credential, never changed)
//!       └ data key (table client_key; `vault rotate --data-keys` makes another)
//!           └ user names, secrets, notes (table credential)
//! ```
//!
//! A copy of the database holds none of the upper two. So destroying a tenant key makes the
//! client's credentials unreadable in every backup that was ever made, while the wrapping key and
//! other clients' credentials stay. Must never write a tenant key in the clear, nor over one that
//! is there.

use std::sync::{Arc, Mutex, PoisonError};

use adit_protocol::keys::fill_random;
use adit_runtime::{cli::CliError, datadir::DataDir};
use zeroize::Zeroizing;

use super::wrap::{KEY_LEN, Place, WrapError, WrappingKeys, decrypt, encrypt};
use crate::store::credentials::KeyRow;

/// Folder of the tenant keys in the data directory.
pub(crate) const FOLDER: &str = "tenants";

/// A key of a client.
pub(crate) type Key = Zeroizing<[u8; KEY_LEN]>;

/// Why a key of a client cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TenantKeyError {
    /// It was destroyed, or its file was lost.
    #[error("the key of this client is gone: its credentials cannot be opened any more")]
    Gone,
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] CliError),
    /// It does not open.
    #[error(transparent)]
    Wrap(#[from] WrapError),
}

/// A client's key that stays under the wrapping key of before: its file cannot be opened.
#[derive(Clone, Debug)]
pub(crate) struct Skipped {
    /// Id of the client.
    pub(crate) client: String,
    /// In the data directory.
    pub(crate) file: String,
    /// Why, without what the system says.
    pub(crate) error: String,
}

impl Skipped {
    pub(crate) fn new(client: &str, error: &TenantKeyError) -> Self {
        let text = error.to_string();
        tracing::error!(client, error = text, "a tenant key cannot be opened");
        let error = match error {
            // What the disk said stays in this log.
            TenantKeyError::File(_) => "the file cannot be read".to_owned(),
            _ => text,
        };
        Self { client: client.to_owned(), file: format!("{FOLDER}/{client}.key"), error }
    }
}

/// The tenant keys of an installation.
#[derive(Clone)]
pub(crate) struct TenantKeys {
    keys: WrappingKeys,
    dir: DataDir,
    /// Two that store a client's first credential at once must not make two keys.
    making: Arc<Mutex<()>>,
}

impl TenantKeys {
    /// Those in a data directory.
    pub(crate) fn new(keys: WrappingKeys, dir: DataDir) -> Self {
        Self { keys, dir, making: Arc::default() }
    }

    /// The keys above these.
    pub(crate) fn wrapping(&self) -> &WrappingKeys {
        &self.keys
    }

    /// A client's key.
    pub(crate) fn read(&self, client: &str) -> Result<Key, TenantKeyError> {
        let name = file_name(client)?;
        if !self.dir.has(&name) {
            return Err(TenantKeyError::Gone);
        }
        let sealed = self.dir.read_secret(&name)?;
        to_key(&self.keys.open(place(client), &sealed)?)
    }

    /// The same, not while it is destroyed: half written over it would pass for damaged.
    pub(crate) fn read_alone(&self, client: &str) -> Result<Key, TenantKeyError> {
        let _alone = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        self.read(client)
    }

    /// A client's key, made and on disk if there was none.
    pub(crate) fn read_or_make(&self, client: &str) -> Result<Key, TenantKeyError> {
        let _alone = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let name = file_name(client)?;
        match self.read(client) {
            Err(TenantKeyError::Gone) => {}
            found => {
                // What is sealed with it must not outlive it.
                self.dir.settle(&name)?;
                return found;
            }
        }
        let key = fresh()?;
        let sealed = self.keys.seal(place(client), &key[..])?;
        self.dir.write_atomic(&name, &sealed, 0o600)?;
        Ok(key)
    }

    /// Destroys a client's key: written over, then removed, both on disk when this returns. False
    /// if there was none.
    pub(crate) fn destroy(&self, client: &str) -> Result<bool, TenantKeyError> {
        let _alone = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        // What a copying file system keeps all the same is sealed with the wrapping key.
        Ok(self.dir.destroy(&file_name(client)?)?)
    }

    /// Clients that have a key.
    pub(crate) fn clients(&self) -> Result<Vec<String>, CliError> {
        let folder = self.dir.file(FOLDER)?;
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                let text = format!("cannot read {}: {error}", folder.display());
                return Err(CliError::failed("data_dir_unreadable", text));
            }
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let ids = names.filter_map(|name| Some(name.strip_suffix(".key")?.to_owned()));
        // What somebody else put there is nobody's key.
        Ok(ids.filter(|id| file_name(id).is_ok()).collect())
    }

    /// Seals all tenant keys with the newest wrapping key; may be interrupted and done again. One
    /// that cannot be opened is left as it is, and told: it must not keep the others from it. What
    /// cannot be written ends it.
    pub(crate) fn rewrap(&self) -> Result<(u64, Vec<Skipped>), TenantKeyError> {
        let (mut count, mut skipped) = (0, Vec::new());
        for client in self.clients()? {
            let _alone = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            let name = file_name(&client)?;
            match self.rewrapped(&client) {
                Ok(fresh) => {
                    self.dir.write_atomic(&name, &fresh, 0o600)?;
                    count += 1;
                }
                // Erased meanwhile.
                Err(TenantKeyError::Gone) => {}
                Err(error) => skipped.push(Skipped::new(&client, &error)),
            }
        }
        Ok((count, skipped))
    }

    /// The same key under the newest wrapping key. All of it is opened: the envelope alone says
    /// nothing about what is damaged behind it.
    fn rewrapped(&self, client: &str) -> Result<Vec<u8>, TenantKeyError> {
        let name = file_name(client)?;
        if !self.dir.has(&name) {
            return Err(TenantKeyError::Gone);
        }
        let sealed = self.dir.read_secret(&name)?;
        let fresh = self.keys.rewrap(place(client), &sealed)?;
        to_key(&self.keys.open(place(client), &fresh)?)?;
        Ok(fresh)
    }

    /// Whether all tenant keys can be opened with the wrapping keys that are here.
    pub(crate) fn check(&self) -> Result<bool, CliError> {
        for client in self.clients()? {
            match self.read(&client) {
                Err(TenantKeyError::Wrap(WrapError::UnknownKey)) => return Ok(false),
                Err(TenantKeyError::File(error)) => return Err(error),
                // One damaged file must not keep everybody from working.
                Err(error) => tracing::error!(client, %error, "a tenant key cannot be opened"),
                Ok(_) => {}
            }
        }
        Ok(true)
    }

    /// A fresh data key and its row.
    pub(crate) fn new_data_key(
        &self,
        tenant: &Key,
        (client, partner): (&str, &str),
        version: u64,
    ) -> Result<(Key, KeyRow), TenantKeyError> {
        let key = fresh()?;
        let sealed = encrypt(tenant, &data_key_context(client, partner, version), &key[..])?;
        let (client_id, partner_id) = (client.to_owned(), partner.to_owned());
        Ok((key, KeyRow { client_id, partner_id, version, sealed }))
    }

    /// Opens a data key.
    pub(crate) fn data_key(&self, tenant: &Key, row: &KeyRow) -> Result<Key, TenantKeyError> {
        let context = data_key_context(&row.client_id, &row.partner_id, row.version);
        to_key(&decrypt(tenant, &context, &row.sealed)?)
    }
}

fn place(client: &str) -> Place<'_> {
    Place { table: "tenant_key", row: client, tenant: client }
}

fn data_key_context(client: &str, partner: &str, version: u64) -> Vec<u8> {
    let row = format!("{client}:{version}");
    Place { table: "client_key", row: &row, tenant: partner }.bytes()
}

fn file_name(client: &str) -> Result<String, TenantKeyError> {
    // Ids of ours; what is none must not become a path.
    let good = |c: char| c.is_ascii_hexdigit() || c == '-';
    if client.is_empty() || client.len() > 64 || !client.chars().all(good) {
        return Err(TenantKeyError::Gone);
    }
    Ok(format!("{FOLDER}/{client}.key"))
}

fn fresh() -> Result<Key, TenantKeyError> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    fill_random(&mut key[..]).map_err(|_| WrapError::Random)?;
    Ok(key)
}

fn to_key(bytes: &[u8]) -> Result<Key, TenantKeyError> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    if bytes.len() != KEY_LEN {
        return Err(WrapError::Damaged.into());
    }
    key.copy_from_slice(bytes);
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "00000000-0000-7000-8000-000000000001";

    #[test]
    fn a_destroyed_key_opens_nothing_and_a_rotated_wrapping_key_changes_nothing() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temporary.path().join("d")).unwrap();
        let wrapping = WrappingKeys::load(&dir, None).unwrap();
        let keys = TenantKeys::new(wrapping.clone(), dir.clone());
        assert!(matches!(keys.read(CLIENT), Err(TenantKeyError::Gone)));
        let tenant = keys.read_or_make(CLIENT).unwrap();
        assert_eq!(keys.read_or_make(CLIENT).unwrap(), tenant);
        let (data, row) = keys.new_data_key(&tenant, (CLIENT, "p"), 1).unwrap();
        assert_eq!(keys.data_key(&tenant, &row).unwrap(), data);
        // Of another client, or an older version in the place of a newer one.
        for moved in [
            KeyRow { client_id: "other".into(), ..row.clone() },
            KeyRow { version: 2, ..row.clone() },
            KeyRow { partner_id: "q".into(), ..row.clone() },
        ] {
            assert!(keys.data_key(&tenant, &moved).is_err());
        }
        wrapping.rotate(&dir).unwrap();
        let (count, skipped) = keys.rewrap().unwrap();
        assert!(count == 1 && skipped.is_empty(), "{skipped:?}");
        assert_eq!(keys.read(CLIENT).unwrap(), tenant);
        assert!(keys.check().unwrap());
        assert!(keys.destroy(CLIENT).unwrap() && !keys.destroy(CLIENT).unwrap());
        assert!(matches!(keys.read(CLIENT), Err(TenantKeyError::Gone)));
        let fresh = keys.read_or_make(CLIENT).unwrap();
        assert!(keys.data_key(&fresh, &row).is_err());
        for hostile in ["", "../root", "a/b", ".."] {
            assert!(keys.read_or_make(hostile).is_err(), "{hostile}");
        }
    }
}
