//! A credential used in a session: decided, recorded, sealed for the session's console.
//!
//! Whoever may use a credential need not be able to read it: the secret goes to the console that
//! holds the session, for its viewer, and is never shown. What that means on a machine which the
//! technician controls is in docs/credentials.md. The right is asked for anew at that moment, for
//! the computer and redirector of the session; launching alone does not give it.

use adit_ledger::Event;
use adit_protocol::{
    code::failure,
    ids::SessionId,
    keys::PublicKey,
    sealed::{self, CredentialContext},
    target::BUILTIN_REDIRECTORS,
    wire,
};

use super::{
    Asker, Vault, VaultError,
    contents::{Contents, MAX_SECRET},
    no_such_credential,
    wrap::WrapError,
};
use crate::{
    authz::{Decision, Spot},
    core::types::Refusal,
    roles::{Act, Permission},
    store::{
        StoreError, WriteTx,
        access::When,
        credentials::{self, CredentialRow},
        tenants,
    },
};

/// The session that a credential is asked for.
pub(crate) struct For {
    pub(crate) session: SessionId,
    pub(crate) spot: Spot,
    /// As in the session's own records: computer, first target, application.
    pub(crate) computer: String,
    pub(crate) target: Option<String>,
    pub(crate) viewer: String,
    pub(crate) redirector: String,
    pub(crate) reason: Option<String>,
    pub(crate) ticket: Option<String>,
    pub(crate) console: PublicKey,
    /// The Noise key that this console's identity certified.
    pub(crate) noise: [u8; 32],
}

impl Vault {
    /// The credential of this name, or without a name the only one that is used by itself.
    pub(crate) async fn use_in(
        &self,
        asker: &Asker,
        of: &For,
        name: &str,
    ) -> Result<wire::UsableCredential, VaultError> {
        let Some(holder) = &asker.holder else { return Err(no_such_credential().into()) };
        let pool = &self.store.readers;
        let (partner, client) = (of.spot.partner.as_str(), of.spot.client.as_str());
        let all = credentials::of_computer(pool, (partner, client), &of.spot.computer).await?;
        let row = choose(all, &of.redirector, name)?;
        let act = Act { permission: Permission::UseCredentials, redirector: Some(&of.redirector) };
        let facts = asker.facts.clone();
        let rule = match holder.computer(pool, act, &of.spot, facts, When::Now).await? {
            Decision::Allow { rule, .. } => rule,
            // One that is used by itself is not asked for by a person.
            Decision::Deny { .. } if name.is_empty() => return Err(no_such_credential().into()),
            Decision::Deny { rule, refusal, .. } => {
                let event = about(asker, "credential.refused", of, &row)
                    .outcome("refused")
                    .end_reason(refusal.code)
                    .rule(rule)
                    .extra("act", "credentials.use");
                let partner = row.partner_id.clone();
                let _room = self.writer.room(1).await?;
                let written = self.writer.write(move |tx| {
                    Box::pin(async move { tx.append(&partner, event).await.map(|_| ()) })
                });
                written.await?;
                let hidden = refusal.code == failure::NO_SUCH_COMPUTER;
                return Err(if hidden { no_such_credential() } else { refusal }.into());
            }
        };
        let key = self.data_key(&row.client_id).await?;
        let contents = Contents::open(&key, &row)?;
        let context =
            CredentialContext { session: of.session, console: of.console, credential: &row.id };
        const { assert!(MAX_SECRET <= sealed::MAX_SEALED_SECRET) };
        let sealed = sealed::seal(&of.noise, &context, contents.secret.as_bytes())
            .map_err(|_| WrapError::Random)?;
        let event = about(asker, "credential.used", of, &row).outcome("granted").rule(&rule);
        let (id, version, partner) = (row.id.clone(), row.version, row.partner_id.clone());
        let written = self.writer.write(move |tx| {
            Box::pin(async move { record(tx, &partner, (&id, version), event).await })
        });
        written.await?;
        Ok(wire::UsableCredential {
            credential_id: row.id,
            name: row.name,
            kind: row.kind,
            user: contents.user.as_str().to_owned(),
            sealed: sealed.into(),
        })
    }
}

async fn record(
    tx: &mut WriteTx,
    partner: &str,
    (id, version): (&str, u64),
    event: Event,
) -> Result<(), StoreError> {
    if !credentials::used(tx, id, version).await? {
        return Err(StoreError::Missing("credential of that version any more"));
    }
    tx.append(partner, event).await.map(|_| ())
}

/// Says where, with what and for what session, so that it can be understood alone.
fn about(asker: &Asker, name: &str, of: &For, row: &CredentialRow) -> Event {
    let mut event = asker
        .event(name, row)
        .session_id(of.session.to_string())
        .redirector(&of.redirector)
        .computer_id(&of.spot.computer)
        .computer(&of.computer);
    event.target.clone_from(&of.target);
    event.viewer = (!of.viewer.is_empty()).then(|| of.viewer.clone());
    event
}

/// One of the computer's own comes before one of its client.
fn choose(
    all: Vec<CredentialRow>,
    redirector: &str,
    name: &str,
) -> Result<CredentialRow, VaultError> {
    let viewer = BUILTIN_REDIRECTORS.iter().any(|known| known.name == redirector);
    let fits = |row: &CredentialRow| match row.redirectors.as_slice() {
        // Not for forwards, where no viewer of ours takes it.
        [] => viewer,
        named => named.iter().any(|named| named == redirector),
    };
    let (named, key) = (!name.is_empty(), tenants::name_key(name));
    let mut found: Vec<CredentialRow> = all
        .into_iter()
        .filter(|row| match named {
            true => tenants::name_key(&row.name) == key,
            false => row.automatic,
        })
        .collect();
    let known = !found.is_empty();
    found.retain(fits);
    if found.iter().any(|row| !row.computer_id.is_empty()) {
        found.retain(|row| !row.computer_id.is_empty());
    }
    match (found.pop(), found.len()) {
        (Some(row), 0) => Ok(row),
        (None, _) if named && known => {
            let text = format!("the credential is not for {redirector}");
            Err(Refusal::new(failure::NO_SUCH_CREDENTIAL, text).into())
        }
        _ => Err(no_such_credential().into()),
    }
}
