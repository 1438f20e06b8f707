//! Other keys over the same secrets.
//!
//! A new wrapping key: second factors in the database, tenant keys in their files. New data keys:
//! each client's credentials are sealed anew in a transaction of its own. Either may be
//! interrupted anywhere and done again: what is not sealed anew still opens with the keys of
//! before, which stay until everything is.

use super::{Vault, VaultError, acts::corrupt, contents::Contents};
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
}

impl Vault {
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
        done.tenant_keys = self.keys.rewrap()?;
        if data_keys {
            let all = credentials::keys(&self.store.readers).await?;
            done.clients = u64::try_from(all.len()).unwrap_or(u64::MAX);
            progress(&done);
            for row in all {
                let client = row.client_id.clone();
                let tenant = self.keys.read(&client)?;
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
                let event = by
                    .event("vault.rotated", &partner.name)
                    .extra("key", name)
                    .extra("secrets", told.factors)
                    .extra("tenant_keys", told.tenant_keys)
                    .extra("data_keys", told.data_keys)
                    .extra("credentials", told.credentials);
                tx.append(&home, event).await?;
                Ok(told)
            })
        });
        Ok(written.await?)
    }
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
