//! Other keys over the same secrets.
//!
//! A new wrapping key: second factors in the database, tenant keys in their files. New data keys:
//! each client's credentials are sealed anew in a transaction of its own. Either may be
//! interrupted anywhere and done again: what is not sealed anew still opens with the keys of
//! before, which stay until everything is. A client's key whose file is damaged is passed over, told
//! and recorded; the rotation is not done before that one is, too.

use adit_runtime::datadir::DataDir;

use super::{
    Vault, VaultError,
    acts::corrupt,
    contents::Contents,
    tenant::{Skipped, TenantKeyError},
};
use crate::{
    admin::actor::Actor,
    store::{StoreError, WriteTx, credentials, factors, oidc, tenants},
};

/// What was sealed anew.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rotated {
    /// Name of the wrapping key that seals now.
    pub(crate) key: String,
    /// Second factors, and secrets at identity providers.
    pub(crate) factors: u64,
    /// Clients' keys.
    pub(crate) tenant_keys: u64,
    /// Clients for which a data key is to be made.
    pub(crate) clients: u64,
    /// Data keys that were made.
    pub(crate) data_keys: u64,
    /// Credentials under them.
    pub(crate) credentials: u64,
    /// Whether it went on with the wrapping key of a rotation that had not been done.
    pub(crate) resumed: bool,
    /// Clients whose keys were not, for their files are damaged: by path where that is known.
    pub(crate) skipped: Vec<Skipped>,
}

/// Why a client's key was not sealed anew, in the log and told.
const TENANT_KEY_DAMAGED: &str = "tenant_key_damaged";

/// Setting: name of the wrapping key of a rotation that was begun; empty when it is done.
const UNFINISHED: &str = "vault_rotation";

impl Vault {
    /// Adds a wrapping key, unless the newest is of a rotation that did not finish: then that one
    /// goes on. Keys that seal nothing would fill the file. Tells whether it does.
    pub(crate) async fn another_wrapping_key(&self, dir: &DataDir) -> Result<bool, VaultError> {
        let keys = self.keys.wrapping();
        let unfinished = tenants::setting(&self.store.readers, UNFINISHED).await?;
        if unfinished.is_some_and(|name| name == keys.current()) {
            return Ok(true);
        }
        keys.rotate(dir).map_err(TenantKeyError::from)?;
        let name = keys.current();
        let noted = self
            .writer
            .write(move |tx| Box::pin(async move { tenants::set(tx, UNFINISHED, &name).await }));
        noted.await?;
        Ok(false)
    }

    /// Seals everything with the newest wrapping key; with `data_keys` also makes a new data key
    /// for each client. `progress` hears of each step.
    pub(crate) async fn reseal(
        &self,
        home: &str,
        by: &Actor,
        data_keys: bool,
        progress: &(dyn Fn(&Rotated) + Sync),
    ) -> Result<Rotated, VaultError> {
        let mut done = Rotated { key: self.keys.wrapping().current(), ..Rotated::default() };
        (done.tenant_keys, done.skipped) = self.keys.rewrap()?;
        if data_keys {
            let all = credentials::keys(&self.store.readers).await?;
            done.clients = u64::try_from(all.len()).unwrap_or(u64::MAX);
            progress(&done);
            for row in all {
                let client = row.client_id.clone();
                let tenant = match self.keys.read_alone(&client) {
                    Ok(tenant) => tenant,
                    // Erased meanwhile; or lost, and then nothing under it opens any more.
                    Err(TenantKeyError::Gone) => {
                        tracing::warn!(client, "a client without a key keeps its data key");
                        continue;
                    }
                    Err(error) => {
                        if !done.skipped.iter().any(|one| one.client == client) {
                            done.skipped.push(Skipped::new(&client, &error));
                        }
                        continue;
                    }
                };
                let keys = self.keys.clone();
                let moved = self.writer.write(move |tx| {
                    Box::pin(async move { another_data_key(tx, &keys, &tenant, &client).await })
                });
                if let Some(count) = moved.await? {
                    done.data_keys += 1;
                    done.credentials += count;
                    progress(&done);
                }
            }
        }
        let (wrapping, home, by) = (self.keys.wrapping().clone(), home.to_owned(), by.clone());
        let mut told = done.clone();
        let written = self.writer.write(move |tx| {
            Box::pin(async move {
                let name = wrapping.current();
                for factor in factors::all(tx).await? {
                    let sealed = wrapping
                        .rewrap(factor.place(), &factor.secret)
                        .map_err(|error| StoreError::Corrupt(format!("second factor: {error}")))?;
                    factors::reseal(tx, &factor.id, sealed, &name).await?;
                    told.factors += 1;
                }
                for row in oidc::secrets(tx).await? {
                    let sealed = wrapping.rewrap(row.place(), &row.sealed).map_err(|error| {
                        StoreError::Corrupt(format!("secret at an identity provider: {error}"))
                    })?;
                    oidc::put_secret(tx, &oidc::SecretRow { sealed, ..row }, &name).await?;
                    told.factors += 1;
                }
                let partner = tenants::partner_by_id(tx, &home).await?;
                let skipped = u64::try_from(told.skipped.len()).unwrap_or(u64::MAX);
                let event = match skipped == 0 {
                    true => {
                        tenants::set(tx, UNFINISHED, "").await?;
                        by.event("vault.rotated", &partner.name)
                    }
                    false => by
                        .event("vault.rotation_failed", &partner.name)
                        .outcome("failed")
                        .end_reason(TENANT_KEY_DAMAGED)
                        .extra("tenant_keys_skipped", skipped),
                };
                let event = event
                    .extra("key", name)
                    .extra("secrets", told.factors)
                    .extra("tenant_keys", told.tenant_keys)
                    .extra("data_keys", told.data_keys)
                    .extra("credentials", told.credentials);
                for one in &mut told.skipped {
                    record_skipped(tx, &by, (&home, &partner.name), one).await?;
                }
                tx.append(&home, event).await?;
                Ok(told)
            })
        });
        Ok(written.await?)
    }
}

/// In the log of the client's partner; of a client that nobody knows in the installation's.
async fn record_skipped(
    tx: &mut WriteTx,
    by: &Actor,
    (home, partner): (&str, &str),
    one: &mut Skipped,
) -> Result<(), StoreError> {
    let about = |partner: &str| {
        by.event("vault.rotation_failed", partner)
            .outcome("failed")
            .end_reason(TENANT_KEY_DAMAGED)
            .extra("client_id", one.client.as_str())
            .extra("file", one.file.as_str())
    };
    match tenants::client_by_id(tx, &one.client).await {
        Ok(client) => {
            let path = format!("{}/{}", client.partner, client.name);
            tx.append(&client.partner_id, about(&client.partner).client(&path)).await?;
            one.client = path;
        }
        Err(StoreError::Missing(_)) => {
            tx.append(home, about(partner)).await?;
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// `None` if the client was erased meanwhile.
async fn another_data_key(
    tx: &mut WriteTx,
    keys: &super::tenant::TenantKeys,
    tenant: &super::tenant::Key,
    client: &str,
) -> Result<Option<u64>, StoreError> {
    let Some(old) = credentials::key_in(tx, client).await? else { return Ok(None) };
    let before = keys.data_key(tenant, &old).map_err(corrupt)?;
    let ids = (client, old.partner_id.as_str());
    let version = old.version.saturating_add(1);
    let (after, row) = keys.new_data_key(tenant, ids, version).map_err(corrupt)?;
    let mut count = 0;
    for mut credential in credentials::of_client(tx, client).await? {
        let contents = Contents::open(&before, &credential).map_err(corrupt)?;
        credential.key_version = version;
        contents.seal(&after, &mut credential).map_err(corrupt)?;
        credentials::reseal(tx, &credential).await?;
        count += 1;
    }
    credentials::put_key(tx, &row).await?;
    Ok(Some(count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        store::{
            credentials::KeyRow,
            tests::{Fixture, Running},
        },
        vault::{tenant::TenantKeys, wrap::WrappingKeys},
    };

    async fn client_with_key(running: &Running, vault: &Vault, name: &'static str) -> String {
        let partner = running.partner(name).await;
        let (ids, keys) = (partner.clone(), vault.keys.clone());
        let made = running.writer.write(move |tx| {
            Box::pin(async move {
                let client = tenants::create_client(tx, &ids, "c").await?;
                let tenant = keys.read_or_make(&client.id).map_err(corrupt)?;
                let (_, row) =
                    keys.new_data_key(&tenant, (&client.id, &ids.id), 1).map_err(corrupt)?;
                credentials::put_key(tx, &row).await?;
                Ok(client.id)
            })
        });
        made.await.unwrap()
    }

    async fn version(vault: &Vault, client: &str) -> u64 {
        let all: Vec<KeyRow> = credentials::keys(&vault.store.readers).await.unwrap();
        all.into_iter().find(|row| row.client_id == client).unwrap().version
    }

    /// A client's key goes before its rows do: others' rotation must not fail for it. And one that
    /// failed is gone on with: keys in between would seal nothing.
    #[tokio::test]
    async fn a_rotation_passes_over_erased_clients_and_one_that_failed_goes_on() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temporary.path().join("d")).unwrap();
        let wrapping = WrappingKeys::load(&dir, None).unwrap();
        let vault = Vault {
            store: running.store.clone(),
            writer: running.writer.clone(),
            keys: TenantKeys::new(wrapping.clone(), dir.clone()),
        };
        let gone = client_with_key(&running, &vault, "gone").await;
        let stays = client_with_key(&running, &vault, "stays").await;
        let home = running.partner("home").await.id;
        vault.keys.destroy(&gone).unwrap();
        let before = wrapping.current();
        vault.another_wrapping_key(&dir).await.unwrap();
        let newest = wrapping.current();
        assert_ne!(newest, before);
        // It stops before its end: nobody of that id has a log.
        vault.reseal("nobody", &Actor::Local, true, &|_| {}).await.unwrap_err();
        assert_eq!(version(&vault, &stays).await, 2);
        for _ in 0..3 {
            vault.another_wrapping_key(&dir).await.unwrap();
            assert_eq!(wrapping.current(), newest);
        }
        let done = vault.reseal(&home, &Actor::Local, true, &|_| {}).await.unwrap();
        assert_eq!((done.key.as_str(), done.data_keys), (newest.as_str(), 1));
        assert_eq!((version(&vault, &gone).await, version(&vault, &stays).await), (1, 3));
        // That one is done: the next one makes a key.
        vault.another_wrapping_key(&dir).await.unwrap();
        assert_ne!(wrapping.current(), newest);
        running.close().await;
    }

    /// Neither the envelope's head nor what it holds may be damaged and pass for sealed anew.
    #[tokio::test]
    async fn a_damaged_key_of_a_client_is_told_recorded_and_done_when_it_is_back() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temporary.path().join("d")).unwrap();
        let wrapping = WrappingKeys::load(&dir, None).unwrap();
        let vault = Vault {
            store: running.store.clone(),
            writer: running.writer.clone(),
            keys: TenantKeys::new(wrapping.clone(), dir.clone()),
        };
        let home = running.partner("home").await.id;
        let mut clients = Vec::new();
        for name in ["head", "body", "short", "good"] {
            clients.push(client_with_key(&running, &vault, name).await);
        }
        let file = |client: &String| dir.file(&format!("tenants/{client}.key")).unwrap();
        let whole: Vec<_> = clients.iter().map(|id| std::fs::read(file(id)).unwrap()).collect();
        let opened: Vec<_> = clients.iter().map(|id| vault.keys.read(id).unwrap()).collect();
        for (number, client) in clients.iter().take(3).enumerate() {
            let mut bytes = whole[number].clone();
            let last = bytes.len() - 1;
            match number {
                0 => bytes[0] ^= 1,
                1 => bytes[last] ^= 1,
                _ => bytes.truncate(5),
            }
            std::fs::write(file(client), &bytes).unwrap();
        }
        let damaged: Vec<_> =
            clients.iter().map(|id| std::fs::read(file(id)).unwrap()).take(3).collect();
        let events = async |name: &str| {
            let rows: Vec<String> =
                sqlx::query_scalar("SELECT line FROM audit_entry WHERE event = $1 ORDER BY tree")
                    .bind(name.to_owned())
                    .fetch_all(&running.store.readers)
                    .await
                    .unwrap();
            rows
        };
        let mut newest = None;
        for round in 1..=2 {
            assert_eq!(vault.another_wrapping_key(&dir).await.unwrap(), round == 2);
            let current = wrapping.current();
            assert_eq!(newest.get_or_insert(current.clone()), &current);
            let done = vault.reseal(&home, &Actor::Local, true, &|_| {}).await.unwrap();
            assert_eq!((done.tenant_keys, done.data_keys), (1, 1), "{done:?}");
            let mut told: Vec<_> =
                done.skipped.iter().map(|one| (one.client.as_str(), one.file.clone())).collect();
            told.sort();
            let name = |id: &String| format!("tenants/{id}.key");
            let expected = [
                ("body/c", name(&clients[1])),
                ("head/c", name(&clients[0])),
                ("short/c", name(&clients[2])),
            ];
            assert_eq!(told, expected);
            // Nothing was made of them.
            for (client, was) in clients.iter().zip(&damaged) {
                assert_eq!(&std::fs::read(file(client)).unwrap(), was);
                assert_eq!(version(&vault, client).await, 1);
            }
            assert!(events("vault.rotated").await.is_empty());
            let failed = events("vault.rotation_failed").await;
            assert_eq!(failed.len(), 4 * round, "{failed:?}");
            for (path, file) in &expected {
                let one = |line: &&String| line.contains(path) && line.contains(file.as_str());
                assert_eq!(failed.iter().filter(one).count(), round, "{path}: {failed:?}");
            }
        }
        // Put back, they are done with the same key, and the rotation with them.
        for (client, bytes) in clients.iter().zip(&whole).take(3) {
            std::fs::write(file(client), bytes).unwrap();
        }
        assert!(vault.another_wrapping_key(&dir).await.unwrap());
        let done = vault.reseal(&home, &Actor::Local, true, &|_| {}).await.unwrap();
        assert_eq!((done.tenant_keys, done.data_keys), (4, 4), "{done:?}");
        assert!(done.skipped.is_empty() && Some(done.key) == newest);
        // The envelope names its wrapping key.
        let sealed_with = |client: &String| std::fs::read(file(client)).unwrap()[1..9].to_vec();
        for (client, was) in clients.iter().zip(&opened) {
            assert_eq!(&vault.keys.read(client).unwrap(), was);
            assert_eq!(sealed_with(client), sealed_with(&clients[3]));
        }
        assert_eq!(events("vault.rotated").await.len(), 1);
        assert!(!vault.another_wrapping_key(&dir).await.unwrap());
        running.close().await;
    }
}
