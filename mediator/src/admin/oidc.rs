//! Identity providers and the accounts linked with them. A provider decides who somebody is: whoever
//! sets one up manages settings and users of the partner, whoever links users holds at least what
//! they hold.
//! On the mediator's machine its secret is in a file there; over the network it is given once, sealed
//! at once, and never shown again. Must never let a partner send the mediator where only the
//! mediator's own networks reach.

use adit_net::tls::read_pem_chain;
use adit_protocol::code::failure;
use adit_runtime::cli::CliError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Secret,
    handle::{Who, bad_name},
    users,
};
use crate::{
    names,
    oidc::{MfaClaims, Provider, callback_path, remote::https, token::MAX_SUBJECT},
    place::store_error,
    roles::Permission,
    store::{StoreError, oidc, tenants},
};

/// Bytes of an issuer, a client id, a path or a secret.
const MAX_TEXT: usize = 1024;
/// Bytes of an authority's certificates.
const MAX_CA: usize = 64 * 1024;

const SEE: &[Permission] =
    &[Permission::ManagePolicy, Permission::ManageUsers, Permission::ReadAudit];

/// An act on identity providers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum OidcAct {
    /// Adds a provider.
    Add {
        name: String,
        partner: Option<String>,
        issuer: String,
        client_id: String,
        #[serde(default)]
        secret_file: String,
        #[serde(default)]
        ca_file: String,
        /// Instead of a file.
        #[serde(default)]
        secret: Option<Secret>,
        /// Instead of a file: PEM.
        #[serde(default)]
        ca: String,
        mfa: MfaClaims,
    },
    /// Lists them.
    List,
    /// Removes one, and all links with it.
    Remove { name: String },
    /// Links a user with a subject of a provider.
    Link { user: String, provider: String, subject: String },
    /// Ends a user's links with a provider.
    Unlink { user: String, provider: String },
}

/// Does it.
pub(super) async fn handle(who: Who<'_>, act: OidcAct) -> Result<Vec<Value>, CliError> {
    match act {
        OidcAct::Add {
            name,
            partner,
            issuer,
            client_id,
            secret_file,
            ca_file,
            secret,
            ca,
            mfa,
        } => {
            let new = Provider {
                id: String::new(),
                partner_id: String::new(),
                name,
                issuer,
                client_id,
                secret_file,
                ca_file,
                ca,
                public_only: !who.1.holds_everywhere(Permission::ManagePolicy),
                is_sealed: secret.is_some(),
                secret,
                mfa,
            };
            add(who, partner, new).await
        }
        OidcAct::List => list(who).await,
        OidcAct::Remove { name } => remove(who, name).await,
        OidcAct::Link { user, provider, subject } => link(who, user, &provider, subject).await,
        OidcAct::Unlink { user, provider } => unlink(who, user, &provider).await,
    }
}

/// It is a setting, and it says who users are.
async fn may_set_up((context, actor): Who<'_>) -> Result<(), CliError> {
    for permission in [Permission::ManagePolicy, Permission::ManageUsers] {
        actor.may_at_home(context, &[permission]).await?;
    }
    Ok(())
}

async fn add(
    (context, actor): Who<'_>,
    partner: Option<String>,
    new: Provider,
) -> Result<Vec<Value>, CliError> {
    may_set_up((context, actor)).await?;
    actor.must_be_fresh(context).await?;
    names::check(&new.name).map_err(bad_name)?;
    https(&new.issuer).map_err(|error| CliError::usage("usage", error.to_string()))?;
    let texts = [&new.issuer, &new.client_id, &new.secret_file, &new.ca_file];
    let good = |text: &&&String| text.len() <= MAX_TEXT && !text.chars().any(char::is_control);
    if texts.iter().filter(good).count() < texts.len() || !new.mfa.is_bounded() {
        return Err(CliError::usage("usage", "a value is too long"));
    }
    for file in [&new.secret_file, &new.ca_file] {
        // The server does not run where this was typed.
        if !file.is_empty() && !std::path::Path::new(file).is_absolute() {
            return Err(CliError::usage("usage", format!("{file} is not an absolute path")));
        }
    }
    if actor.remote().is_some() && !(new.secret_file.is_empty() && new.ca_file.is_empty()) {
        return Err(CliError::usage("usage", "files of the mediator's machine are its own"));
    }
    let secret_length = new.secret.as_ref().map_or(0, |secret| secret.expose().len());
    if secret_length > MAX_TEXT || new.ca.len() > MAX_CA {
        return Err(CliError::usage("usage", "a value is too long"));
    }
    if !new.ca.is_empty() && !read_pem_chain(new.ca.as_bytes()).is_ok_and(|all| !all.is_empty()) {
        let text = "ca: certificates in PEM are expected";
        return Err(CliError::usage("usage", text));
    }
    let (keys, public_only) = (context.keys.clone(), new.public_only);
    let home = match actor.partner_id() {
        Some(own) => own.to_owned(),
        None => context.home().await.map_err(store_error)?,
    };
    let by = actor.clone();
    let (name, issuer) = (new.name.clone(), new.issuer.clone());
    let added = context.writer.write(move |tx| {
        Box::pin(async move {
            let partner = match partner {
                Some(name) => {
                    tenants::partner(tx, &name).await?.ok_or(StoreError::Missing("partner"))?
                }
                None => tenants::partner_by_id(tx, &home).await?,
            };
            let done = by
                .event("oidc.provider_added", &partner.name)
                .extra("provider", new.name.as_str())
                .extra("issuer", new.issuer.as_str());
            let secret = new.secret.clone();
            let new = Provider { partner_id: partner.id.clone(), ..new };
            let id = oidc::insert(tx, new).await?;
            if let Some(secret) = secret {
                let sealed = Vec::new();
                let row =
                    oidc::SecretRow { provider: id.clone(), partner: partner.id.clone(), sealed };
                let sealed = keys.seal(row.place(), secret.expose().as_bytes());
                let sealed = sealed.map_err(|error| StoreError::Corrupt(error.to_string()))?;
                oidc::put_secret(tx, &oidc::SecretRow { sealed, ..row }, &keys.current()).await?;
            }
            tx.append(&partner.id, done).await?;
            Ok((id, partner.name))
        })
    });
    let (id, partner) = added.await.map_err(store_error)?;
    let callback = callback_path(&name);
    Ok(vec![json!({
        "provider": name,
        "id": id,
        "partner": partner,
        "issuer": issuer,
        "callback_path": callback,
        "public_only": public_only,
    })])
}

async fn list((context, actor): Who<'_>) -> Result<Vec<Value>, CliError> {
    actor.may_at_home(context, SEE).await?;
    let found = oidc::list(&context.store.readers).await.map_err(store_error)?;
    let own = found.iter().filter(|provider| actor.reaches(&provider.partner_id));
    let told = own.map(|provider| {
        let kept = |file: &str, here: bool| match (here, file) {
            (true, _) => "stored",
            (false, "") => "none",
            (false, _) => "file",
        };
        let mut told = json!({
            "provider": provider.name,
            "issuer": provider.issuer,
            "client_id": provider.client_id,
            "callback_path": callback_path(&provider.name),
            "secret": kept(&provider.secret_file, provider.is_sealed),
            "authority": kept(&provider.ca_file, !provider.ca.is_empty()),
            "public_only": provider.public_only,
            "mfa": provider.mfa,
        });
        // Files of this machine are nobody else's business.
        if let Some(object) = told.as_object_mut().filter(|_| actor.remote().is_none()) {
            object.insert("secret_file".to_owned(), provider.secret_file.clone().into());
            object.insert("ca_file".to_owned(), provider.ca_file.clone().into());
        }
        told
    });
    Ok(told.collect())
}

/// By name, if it is of a partner that this one may know of.
async fn find((context, actor): Who<'_>, name: &str) -> Result<Provider, CliError> {
    let found = oidc::by_name(&context.store.readers, name).await.map_err(store_error)?;
    let found = found.filter(|provider| actor.reaches(&provider.partner_id));
    found.ok_or_else(|| store_error(StoreError::Missing("identity provider")))
}

async fn remove(who: Who<'_>, name: String) -> Result<Vec<Value>, CliError> {
    may_set_up(who).await?;
    let provider = find(who, &name).await?;
    let (context, by) = (who.0, who.1.clone());
    let done = context.writer.write(move |tx| {
        Box::pin(async move {
            let partner = tenants::partner_by_id(tx, &provider.partner_id).await?;
            if !oidc::remove(tx, &provider.id).await? {
                return Err(StoreError::Missing("identity provider"));
            }
            let done = by
                .event("oidc.provider_removed", &partner.name)
                .extra("provider", provider.name.as_str());
            tx.append(&partner.id, done).await.map(|_| ())
        })
    });
    done.await.map_err(store_error)?;
    Ok(vec![json!({"provider": name, "removed": true})])
}

async fn link(
    who: Who<'_>,
    user: String,
    provider: &str,
    subject: String,
) -> Result<Vec<Value>, CliError> {
    let row = users::managed(who.0, who.1, &user).await?;
    let provider = find(who, provider).await?;
    // Whoever that is there is that user from now on.
    users::may_impersonate(who.0, who.1, &row).await?;
    if subject.is_empty()
        || subject.len() > MAX_SUBJECT
        || subject.chars().any(char::is_control)
        || row.partner_id != provider.partner_id
    {
        let text = "a subject of at most 255 bytes, and a user of the provider's partner, are \
             expected";
        return Err(CliError::usage("usage", text));
    }
    let (context, by) = (who.0, who.1.clone());
    let (name, told) = (provider.name.clone(), subject.clone());
    let done = context.writer.write(move |tx| {
        Box::pin(async move {
            let account = (row.id.as_str(), row.partner_id.as_str());
            // Done already: nothing that anybody would have to know of.
            if !oidc::link(tx, (&provider.id, &subject), account).await? {
                return Ok(());
            }
            let done = by
                .event("user.linked", &row.partner)
                .extra("provider", provider.name.as_str())
                .extra_personal("user", row.name.clone())
                .extra_personal("subject", subject);
            tx.append(&row.partner_id, done).await.map(|_| ())
        })
    });
    done.await.map_err(|error| match error {
        StoreError::Taken(oidc::LINKED) => {
            let text = format!("the subject {told} of {name} is linked with another user");
            CliError::failed(failure::NAME_TAKEN, text)
                .hint("end that link first: oidc unlink USER PROVIDER")
        }
        error => store_error(error),
    })?;
    Ok(vec![json!({"user": user, "provider": name, "subject": told})])
}

async fn unlink(who: Who<'_>, user: String, provider: &str) -> Result<Vec<Value>, CliError> {
    let row = users::managed(who.0, who.1, &user).await?;
    let provider = find(who, provider).await?;
    let (context, by) = (who.0, who.1.clone());
    let name = provider.name.clone();
    let done = context.writer.write(move |tx| {
        Box::pin(async move {
            let ended = oidc::unlink(tx, &provider.id, &row.id).await?;
            let done = by
                .event("user.unlinked", &row.partner)
                .extra("provider", provider.name.as_str())
                .extra("links", ended)
                .extra_personal("user", row.name.clone());
            tx.append(&row.partner_id, done).await?;
            Ok(ended)
        })
    });
    let ended = done.await.map_err(store_error)?;
    Ok(vec![json!({"user": user, "provider": name, "links_ended": ended})])
}
