//! Everything that is done with credentials but using them: list, add, change, delete, read.
//!
//! One implementation for the machine's administrator, the HTTPS API and the console, each of
//! whom comes as an [`Asker`]. Each act, denied ones too, is recorded with the credential's id;
//! a secret leaves only after its record is durable, and to people only with a fresh second
//! factor (R27).

use std::collections::{BTreeMap, BTreeSet};

use adit_ledger::Event;
use adit_protocol::code::failure;
use adit_runtime::time::format_ms;
use serde_json::{Value, json};

use super::{
    Asker, Vault, VaultError,
    contents::{self, Contents, Hidden},
    no_such_credential,
    tenant::{Key, TenantKeyError},
};
use crate::{
    authz::{Decision, Spot},
    core::types::Refusal,
    names,
    roles::{Act, Object, Permission, conditions::Facts},
    store::{
        StoreError,
        access::When,
        credentials::{self, CredentialRow, FILTER},
        fresh_id, tenants,
    },
};

/// How long ago the second factor may have been shown for a look at a secret, milliseconds.
pub(crate) const FRESH_MS: u64 = 10 * 60_000;
/// What makes a credential appear in a list.
const VISIBLE_BY: [Permission; 4] = [
    Permission::UseCredentials,
    Permission::ReadCredentials,
    Permission::EditCredentials,
    Permission::DeleteCredentials,
];

/// A secret that is given or made.
pub(crate) enum NewSecret {
    Given(Hidden),
    /// A password of so many characters.
    Generated(Option<usize>),
}

impl NewSecret {
    fn take(self) -> Result<Hidden, VaultError> {
        match self {
            Self::Given(secret) => Ok(secret),
            Self::Generated(length) => contents::generated(length),
        }
    }
}

/// A credential to be added.
pub(crate) struct New {
    /// `partner/client`.
    pub(crate) client: String,
    /// Name or id; none: for all computers of the client.
    pub(crate) computer: Option<String>,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) user: Hidden,
    pub(crate) secret: NewSecret,
    pub(crate) notes: Hidden,
    pub(crate) redirectors: Vec<String>,
    pub(crate) automatic: bool,
}

/// What is to become different.
#[derive(Default)]
pub(crate) struct Change {
    pub(crate) name: Option<String>,
    pub(crate) user: Option<Hidden>,
    pub(crate) secret: Option<NewSecret>,
    pub(crate) notes: Option<Hidden>,
    pub(crate) redirectors: Option<Vec<String>>,
    pub(crate) automatic: Option<bool>,
}

/// What a list shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish {
    /// Only those of this client: `partner/client`.
    pub(crate) client: Option<String>,
    /// The last one of the page before: name and id.
    pub(crate) after: Option<(String, String)>,
}

impl Asker {
    /// An event of this person's about a credential.
    pub(super) fn event(&self, name: &str, row: &CredentialRow) -> Event {
        let mut event = self
            .actor
            .event(name)
            .partner(&row.partner)
            .client(row.client_path())
            .credential_id(&row.id)
            .extra("kind", row.kind.as_str())
            .extra("version", row.version)
            .extra_personal("credential", row.name.as_str());
        if !row.computer_id.is_empty() {
            event = event.computer_id(&row.computer_id).computer(&row.computer);
        }
        event.mfa.clone_from(&self.mfa);
        event.reason.clone_from(&self.reason);
        event.ticket.clone_from(&self.ticket);
        event
    }

    fn partner_id(&self) -> Option<&str> {
        self.holder.as_ref().map(|holder| holder.partner.as_str())
    }
}

impl Vault {
    /// Those that the asker may use, read, change or delete, with what of it.
    pub(crate) async fn list(&self, asker: &Asker, wish: &Wish) -> Result<Vec<Value>, VaultError> {
        let pool = &self.store.readers;
        let client = match &wish.client {
            Some(path) => match (self.client(asker, path).await, &asker.holder) {
                (Ok(client), _) => Some(client.id),
                // As with a client of which nothing is to be seen.
                (Err(VaultError::Refused(_)), Some(_)) => return Ok(Vec::new()),
                (Err(error), _) => return Err(error),
            },
            None => None,
        };
        let after = wish.after.clone().unwrap_or_default();
        let after = (after.0.as_str(), after.1.as_str());
        let mut found: BTreeMap<(String, String), (CredentialRow, BTreeSet<&str>)> =
            BTreeMap::new();
        for permission in VISIBLE_BY {
            let clause = asker.holder.as_ref().map(|holder| {
                // What could be done, once reason and second factor are given.
                let facts = Facts {
                    reason: true,
                    ticket: true,
                    mfa_ms: Some(asker.facts.now_ms),
                    approved_until_ms: Some(u64::MAX),
                    ..asker.facts.clone()
                };
                holder.filter(permission, facts, &FILTER)
            });
            for row in credentials::list(pool, clause, client.as_deref(), after).await? {
                let key = (tenants::name_key(&row.name), row.id.clone());
                found.entry(key).or_insert((row, BTreeSet::new())).1.insert(permission.name());
            }
        }
        let mut keys = BTreeMap::new();
        let mut told = Vec::new();
        for (row, may) in found.into_values().take(credentials::MAX_LISTED as usize) {
            if !keys.contains_key(&row.client_id) {
                keys.insert(row.client_id.clone(), self.data_key(&row.client_id).await.ok());
            }
            let key = keys.get(&row.client_id).and_then(Option::as_ref);
            let user = key.and_then(|key| contents::user(key, &row).ok());
            let mut line = told_of(&row, user.as_deref().map(String::as_str));
            if let Some(object) = line.as_object_mut() {
                object.insert("may".to_owned(), json!(may));
            }
            told.push(line);
        }
        Ok(told)
    }

    /// Adds one.
    pub(crate) async fn add(&self, asker: &Asker, new: New) -> Result<Value, VaultError> {
        contents::check_open(&new.name, &new.redirectors)?;
        let client = self.client(asker, &new.client).await?;
        let computer = match &new.computer {
            Some(text) => tenants::computer_of(&self.store.readers, &client.id, text).await?,
            None => None,
        };
        let missing = new.computer.is_some() && computer.is_none();
        let contents = Contents { user: new.user, secret: new.secret.take()?, notes: new.notes };
        contents.check(&new.kind)?;
        contents.check_use(&new.kind)?;
        let (computer_id, computer) = computer.unwrap_or_default();
        let mut row = CredentialRow {
            id: fresh_id()?,
            partner_id: client.partner_id.clone(),
            partner: client.partner.clone(),
            client_id: client.id.clone(),
            client: client.name.clone(),
            computer_id,
            computer,
            name: new.name,
            kind: new.kind,
            redirectors: new.redirectors,
            automatic: new.automatic,
            version: 1,
            key_version: 0,
            about: Vec::new(),
            secret: Vec::new(),
            created_ms: 0,
            changed_ms: 0,
            used_ms: 0,
        };
        match self.allow(asker, Permission::EditCredentials, &row).await {
            // Whose rules do not reach the place learns nothing of what is there.
            Err(VaultError::Refused(hidden)) if hidden == no_such_credential() => {
                return Err(no_such_place().into());
            }
            allowed => allowed?,
        }
        if missing {
            let text = "the client has no such computer";
            return Err(Refusal::new(failure::NO_SUCH_COMPUTER, text).into());
        }
        let tenant = self.keys.read_or_make(&client.id)?;
        let event = asker.event("credential.added", &row);
        let keys = self.keys.clone();
        let done = self.writer.write(move |tx| {
            Box::pin(async move {
                if credentials::count(tx, &row.client_id).await? >= credentials::MAX_PER_CLIENT {
                    return Err(StoreError::Taken("room for credentials of the client"));
                }
                let known = credentials::key_in(tx, &row.client_id).await?;
                let (key, version) = match known {
                    Some(known) => (keys.data_key(&tenant, &known), known.version),
                    None => {
                        let ids = (row.client_id.as_str(), row.partner_id.as_str());
                        let (key, fresh) = keys.new_data_key(&tenant, ids, 1).map_err(corrupt)?;
                        credentials::put_key(tx, &fresh).await?;
                        (Ok(key), 1)
                    }
                };
                row.key_version = version;
                contents.seal(&key.map_err(corrupt)?, &mut row).map_err(corrupt)?;
                credentials::insert(tx, &row).await?;
                tx.append(&row.partner_id, event).await?;
                (row.created_ms, row.changed_ms) = (tx.now_ms(), tx.now_ms());
                Ok(told_of(&row, Some(contents.user.as_str())))
            })
        });
        Ok(done.await?)
    }

    /// Changes one.
    pub(crate) async fn edit(
        &self,
        asker: &Asker,
        which: &str,
        change: Change,
    ) -> Result<Value, VaultError> {
        let mut row = self.find(asker, which).await?;
        self.allow(asker, Permission::EditCredentials, &row).await?;
        let key = self.data_key(&row.client_id).await?;
        let mut contents = Contents::open(&key, &row)?;
        let mut changed = Vec::new();
        let Change { name, user, secret, notes, redirectors, automatic } = change;
        if let Some(name) = name {
            row.name = name;
            changed.push("name");
        }
        if let Some(user) = user {
            contents.user = user;
            changed.push("user");
        }
        if let Some(secret) = secret {
            contents.secret = secret.take()?;
            contents.check_use(&row.kind)?;
            changed.push("secret");
        }
        if let Some(notes) = notes {
            contents.notes = notes;
            changed.push("notes");
        }
        if let Some(redirectors) = redirectors {
            row.redirectors = redirectors;
            changed.push("redirectors");
        }
        if let Some(automatic) = automatic {
            row.automatic = automatic;
            changed.push("automatic");
        }
        if changed.is_empty() {
            return Err(VaultError::Invalid("nothing is to be changed".to_owned()));
        }
        contents::check_open(&row.name, &row.redirectors)?;
        contents.check(&row.kind)?;
        row.version = row.version.saturating_add(1);
        let event = asker.event("credential.changed", &row).extra("changed", changed.join(" "));
        let (keys, tenant) = (self.keys.clone(), self.keys.read(&row.client_id)?);
        let done = self.writer.write(move |tx| {
            Box::pin(async move {
                // The data key may have been changed since.
                let known = credentials::key_in(tx, &row.client_id).await?;
                let known = known.ok_or(StoreError::Missing("credential"))?;
                let key = keys.data_key(&tenant, &known).map_err(corrupt)?;
                row.key_version = known.version;
                contents.seal(&key, &mut row).map_err(corrupt)?;
                if !credentials::replace(tx, &row).await? {
                    return Err(StoreError::Missing("credential of that version any more"));
                }
                tx.append(&row.partner_id, event).await?;
                row.changed_ms = tx.now_ms();
                Ok(told_of(&row, Some(contents.user.as_str())))
            })
        });
        Ok(done.await?)
    }

    /// Deletes one.
    pub(crate) async fn delete(&self, asker: &Asker, which: &str) -> Result<Value, VaultError> {
        let row = self.find(asker, which).await?;
        self.allow(asker, Permission::DeleteCredentials, &row).await?;
        let event = asker.event("credential.deleted", &row);
        let (id, told) = (row.id.clone(), json!({"credential_id": row.id, "deleted": true}));
        let done = self.writer.write(move |tx| {
            Box::pin(async move {
                if !credentials::delete(tx, &id).await? {
                    return Err(StoreError::Missing("credential"));
                }
                tx.append(&row.partner_id, event).await.map(|_| ())
            })
        });
        done.await?;
        Ok(told)
    }

    /// Shows one with its secret. The record of it is durable before.
    pub(crate) async fn reveal(&self, asker: &Asker, which: &str) -> Result<Value, VaultError> {
        let row = self.find(asker, which).await?;
        self.allow(asker, Permission::ReadCredentials, &row).await?;
        if let Some(refusal) = stale(asker) {
            self.refused(asker, &row, "credential.read", refusal.code, "step-up").await?;
            return Err(refusal.into());
        }
        let contents = Contents::open(&self.data_key(&row.client_id).await?, &row)?;
        let event = asker.event("credential.read", &row);
        let partner = row.partner_id.clone();
        let written = self
            .writer
            .write(move |tx| Box::pin(async move { tx.append(&partner, event).await.map(|_| ()) }));
        written.await?;
        let mut told = told_of(&row, Some(contents.user.as_str()));
        if let Some(object) = told.as_object_mut() {
            object.insert("secret".to_owned(), contents.secret.as_str().into());
            object.insert("notes".to_owned(), contents.notes.as_str().into());
        }
        Ok(told)
    }

    /// By id, or for the command line by `PARTNER/CLIENT[/COMPUTER]/NAME`.
    pub(super) async fn find(
        &self,
        asker: &Asker,
        which: &str,
    ) -> Result<CredentialRow, VaultError> {
        let pool = &self.store.readers;
        let parts: Vec<&str> = which.split('/').collect();
        let found = match parts.as_slice() {
            [id] if id.len() <= 64 => credentials::by_id(pool, asker.partner_id(), id).await?,
            [partner, client, name] => {
                credentials::by_name(pool, (partner, client), None, name).await?
            }
            [partner, client, computer, name] => {
                credentials::by_name(pool, (partner, client), Some(computer), name).await?
            }
            _ => None,
        };
        let mine = |row: &CredentialRow| asker.partner_id().is_none_or(|id| id == row.partner_id);
        Ok(found.filter(mine).ok_or_else(no_such_credential)?)
    }

    /// The decision, denials recorded. Where the asker's rules do not reach, there is nothing.
    async fn allow(
        &self,
        asker: &Asker,
        permission: Permission,
        row: &CredentialRow,
    ) -> Result<(), VaultError> {
        let Some(holder) = &asker.holder else { return Ok(()) };
        let spot = Spot {
            partner: row.partner_id.clone(),
            client: row.client_id.clone(),
            computer: row.computer_id.clone(),
        };
        let (act, facts) = (Act::of(permission), asker.facts.clone());
        let decision = match row.computer_id.is_empty() {
            false => holder.computer(&self.store.readers, act, &spot, facts, When::Now).await?,
            true => {
                let object = Object::Client { partner: spot.partner, client: spot.client };
                holder.decide(act, &object, facts)
            }
        };
        match decision {
            Decision::Allow { .. } => Ok(()),
            Decision::Deny { rule, refusal, .. } => {
                self.refused(asker, row, permission.name(), refusal.code, &rule).await?;
                let hidden = refusal.code == failure::NO_SUCH_COMPUTER;
                Err(if hidden { no_such_credential() } else { refusal }.into())
            }
        }
    }

    /// Records what was not allowed.
    pub(super) async fn refused(
        &self,
        asker: &Asker,
        row: &CredentialRow,
        act: &str,
        code: &str,
        rule: &str,
    ) -> Result<(), StoreError> {
        let event = asker
            .event("credential.refused", row)
            .outcome("refused")
            .end_reason(code)
            .rule(rule)
            .extra("act", act);
        // In the asker's log, which is the credential's: nobody gets here from another partner.
        let partner = row.partner_id.clone();
        let _room = self.writer.room(1).await?;
        let written = self
            .writer
            .write(move |tx| Box::pin(async move { tx.append(&partner, event).await.map(|_| ()) }));
        written.await
    }

    /// A client's data key.
    pub(super) async fn data_key(&self, client: &str) -> Result<Key, VaultError> {
        let row = credentials::key(&self.store.readers, client).await?;
        let row = row.ok_or(TenantKeyError::Gone)?;
        Ok(self.keys.data_key(&self.keys.read(client)?, &row)?)
    }

    async fn client(&self, asker: &Asker, path: &str) -> Result<tenants::Client, VaultError> {
        let (partner, client) =
            names::client_path(path).map_err(|error| VaultError::Invalid(error.to_string()))?;
        let found = tenants::find_client(&self.store.readers, partner, client).await?;
        let mine = |found: &tenants::Client| {
            asker.partner_id().is_none_or(|partner| partner == found.partner_id)
        };
        Ok(found.filter(mine).ok_or_else(no_such_place)?)
    }
}

/// There is no place for a credential, or none that the asker's rules reach.
fn no_such_place() -> Refusal {
    Refusal::new(failure::NO_SUCH_CREDENTIAL, "there is no such client, or computer of it")
}

/// Why a person must show more before a secret is shown.
fn stale(asker: &Asker) -> Option<Refusal> {
    asker.holder.as_ref()?;
    let fresh = |at: u64| asker.facts.now_ms.saturating_sub(at) <= FRESH_MS;
    match asker.facts.mfa_ms {
        Some(at) if fresh(at) => None,
        Some(_) => {
            let text = "show password and second factor again: console-tunnel mfa verify";
            Some(Refusal::new(failure::REAUTHENTICATION_REQUIRED, text))
        }
        None => {
            let text = "secrets are shown only after a second factor was";
            Some(Refusal::new(failure::MFA_REQUIRED, text))
        }
    }
}

/// What may be told of a credential to everybody who sees it in a list.
pub(super) fn told_of(row: &CredentialRow, user: Option<&str>) -> Value {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "credential_id": row.id,
        "name": row.name,
        "kind": row.kind,
        "client": row.client_path(),
        "computer_id": some(&row.computer_id),
        "computer": some(&row.computer),
        "user": user.and_then(some),
        "redirectors": row.redirectors,
        "automatic": row.automatic,
        "version": row.version,
        "created": format_ms(row.created_ms),
        "changed": format_ms(row.changed_ms),
        "used": (row.used_ms > 0).then(|| format_ms(row.used_ms)),
    })
}

/// A sealed thing that does not open, inside a transaction.
pub(super) fn corrupt(error: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("credential: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{authz::Holder, requests::Actor};

    #[test]
    fn a_secret_is_shown_to_people_only_with_a_second_factor_shown_just_now() {
        let asker = |person: bool, mfa_ms: Option<u64>| Asker {
            actor: Actor { name: "a".into(), device: None, source: None },
            holder: person.then(|| Holder {
                account: "a".into(),
                partner: "p".into(),
                disabled: false,
                rules: Vec::new(),
            }),
            facts: Facts { now_ms: 2 * FRESH_MS, mfa_ms, ..Facts::default() },
            mfa: None,
            reason: None,
            ticket: None,
        };
        let code = |person, mfa_ms| stale(&asker(person, mfa_ms)).map(|refusal| refusal.code);
        assert_eq!(code(true, None), Some(failure::MFA_REQUIRED));
        assert_eq!(code(true, Some(FRESH_MS - 1)), Some(failure::REAUTHENTICATION_REQUIRED));
        assert_eq!(code(true, Some(FRESH_MS)), None);
        // The machine's administrator, who holds the keys anyway.
        assert_eq!(code(false, None), None);
    }
}
