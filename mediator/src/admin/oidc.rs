//! Identity providers and the accounts linked with them. For the machine's administrator alone:
//! a provider decides who somebody is, and its secret is in a file of this machine.

use adit_runtime::cli::CliError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    handle::{Who, bad_name},
    users,
};
use crate::{
    names,
    oidc::{MfaClaims, Provider, callback_path, remote::https, token::MAX_SUBJECT},
    place::store_error,
    store::{StoreError, oidc, tenants},
};

/// Bytes of an issuer, a client id or a path.
const MAX_TEXT: usize = 1024;

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
        secret_file: String,
        ca_file: String,
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
    who.1.local_only()?;
    match act {
        OidcAct::Add { name, partner, issuer, client_id, secret_file, ca_file, mfa } => {
            let new = Provider {
                id: String::new(),
                partner_id: String::new(),
                name,
                issuer,
                client_id,
                secret_file,
                ca_file,
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

async fn add(
    (context, actor): Who<'_>,
    partner: Option<String>,
    new: Provider,
) -> Result<Vec<Value>, CliError> {
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
    let (home, by) = (context.home().await.map_err(store_error)?, actor.clone());
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
            let new = Provider { partner_id: partner.id.clone(), ..new };
            let id = oidc::insert(tx, new).await?;
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
    })])
}

async fn list((context, _): Who<'_>) -> Result<Vec<Value>, CliError> {
    let found = oidc::list(&context.store.readers).await.map_err(store_error)?;
    let told = found.iter().map(|provider| {
        json!({
            "provider": provider.name,
            "issuer": provider.issuer,
            "client_id": provider.client_id,
            "callback_path": callback_path(&provider.name),
            "secret_file": provider.secret_file,
            "ca_file": provider.ca_file,
            "mfa": provider.mfa,
        })
    });
    Ok(told.collect())
}

async fn find((context, _): Who<'_>, name: &str) -> Result<Provider, CliError> {
    let found = oidc::by_name(&context.store.readers, name).await.map_err(store_error)?;
    found.ok_or_else(|| store_error(StoreError::Missing("identity provider")))
}

async fn remove(who: Who<'_>, name: String) -> Result<Vec<Value>, CliError> {
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
    let provider = find(who, provider).await?;
    let row = users::find(who.0, who.1, &user).await?;
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
            oidc::link(tx, (&provider.id, &subject), account).await?;
            let done = by
                .event("user.linked", &row.partner)
                .extra("provider", provider.name.as_str())
                .extra_personal("user", row.name.clone())
                .extra_personal("subject", subject);
            tx.append(&row.partner_id, done).await.map(|_| ())
        })
    });
    done.await.map_err(store_error)?;
    Ok(vec![json!({"user": user, "provider": name, "subject": told})])
}

async fn unlink(who: Who<'_>, user: String, provider: &str) -> Result<Vec<Value>, CliError> {
    let provider = find(who, provider).await?;
    let row = users::find(who.0, who.1, &user).await?;
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
