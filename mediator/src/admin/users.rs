//! Accounts of technicians.

use adit_runtime::cli::CliError;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    Secret,
    handle::{AdminContext, bad_name, event},
};
use crate::{
    core::{
        ending::{PASSWORD_CHANGED, USER_DISABLED},
        types::Affected,
    },
    names, password,
    place::store_error,
    roles::Rule,
    store::{
        StoreError,
        access::{
            When,
            bindings::{self, Binding},
            roles,
        },
        accounts::{self, MfaPolicy},
        tenants,
    },
};

/// Instead of a role: nothing is bound.
const NO_ROLE: &str = "none";

/// Adds a user, with the given or a generated password.
pub(super) async fn add(
    context: &AdminContext,
    user: String,
    partner: Option<String>,
    (role, mfa): (String, bool),
    secret: Option<Secret>,
) -> Result<Vec<Value>, CliError> {
    names::check(&user).map_err(bad_name)?;
    let beside = mfa || context.accounts.mfa_required;
    let of = partner.clone().unwrap_or_default();
    let Hashed { hash, short, generated } = hashed((&user, &of), secret, beside).await?;
    let home = context.home().await.map_err(store_error)?;
    let (name, role_name) = (user.clone(), role.clone());
    let added = context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let partner = match partner {
                    Some(name) => {
                        tenants::partner(tx, &name).await?.ok_or(StoreError::Missing("partner"))?
                    }
                    None => tenants::partner_by_id(tx, &home).await?,
                };
                let id = accounts::insert(tx, &partner, &name, &role_name, &hash).await?;
                accounts::set_short_password(tx, &id, short).await?;
                if mfa {
                    accounts::set_mfa_policy(tx, &id, MfaPolicy::Required).await?;
                }
                if role_name != NO_ROLE {
                    let role = roles::by_name(tx, &partner.id, &role_name)
                        .await?
                        .ok_or(StoreError::Missing("role"))?;
                    bindings::insert(tx, &Binding::on_partner(&partner.id, id, role.id)?).await?;
                }
                let added = event("user.added", &partner.name)
                    .extra("role", role_name)
                    .extra_personal("user", name);
                tx.append(&partner.id, added).await?;
                Ok(partner.name)
            })
        })
        .await;
    let partner = added.map_err(|error| match error {
        StoreError::Missing("role") => {
            let text = format!("there is no role \"{role}\"");
            CliError::usage("usage", text).hint("mediator role list")
        }
        error => store_error(error),
    })?;
    let mut told = json!({"user": user, "partner": partner, "role": role});
    show_generated(&mut told, generated);
    Ok(vec![told])
}

/// All users.
pub(super) async fn list(context: &AdminContext) -> Result<Vec<Value>, CliError> {
    let pool = &context.store.readers;
    let mut told = Vec::new();
    for row in accounts::list(pool).await.map_err(store_error)? {
        let rules = bindings::rules(pool, &row.partner_id, &row.id, When::Now)
            .await
            .map_err(store_error)?;
        let roles: Vec<String> = rules.iter().map(Rule::name).collect();
        told.push(json!({
            "user": row.name,
            "partner": row.partner,
            "roles": roles,
            "enabled": !row.disabled,
            "mfa": match (row.factors, row.requires_mfa(context.accounts.mfa_required)) {
                (0, false) => "none",
                (0, true) => "required",
                _ => "set_up",
            },
        }));
    }
    Ok(told)
}

/// Disables or enables a user.
pub(super) async fn disable(
    context: &AdminContext,
    user: String,
    disabled: bool,
) -> Result<Vec<Value>, CliError> {
    let name = user.clone();
    let account = context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let account = accounts::find(tx, &name).await?;
                accounts::set_disabled(tx, &account.id, disabled).await?;
                let what = if disabled { "user.disabled" } else { "user.enabled" };
                let done = event(what, &account.partner).extra_personal("user", name);
                tx.append(&account.partner_id, done).await?;
                Ok(account.id)
            })
        })
        .await
        .map_err(store_error)?;
    let mut ended = 0;
    if disabled {
        ended = context.end_sessions(Affected::Account(account), USER_DISABLED).await;
    }
    Ok(vec![json!({"user": user, "enabled": !disabled, "sessions_ended": ended})])
}

/// Sets a user's password; logins and live sessions end.
pub(super) async fn password(
    context: &AdminContext,
    user: String,
    secret: Option<Secret>,
) -> Result<Vec<Value>, CliError> {
    let there = accounts::by_name(&context.store.readers, &user).await.map_err(store_error)?;
    let there = there.ok_or_else(|| store_error(StoreError::Missing("user")))?;
    // A short password goes on asking for the second factor when that is removed.
    let beside = there.requires_mfa(context.accounts.mfa_required);
    let of = (user.as_str(), there.partner.as_str());
    let Hashed { hash, short, generated } = hashed(of, secret, beside).await?;
    let name = user.clone();
    let account = context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let account = accounts::find(tx, &name).await?;
                accounts::set_password(tx, &account.id, &hash).await?;
                accounts::set_short_password(tx, &account.id, short).await?;
                let done =
                    event("user.password_set", &account.partner).extra_personal("user", name);
                tx.append(&account.partner_id, done).await?;
                Ok(account.id)
            })
        })
        .await
        .map_err(store_error)?;
    context.end_sessions(Affected::Account(account), PASSWORD_CHANGED).await;
    let mut told = json!({"user": user});
    show_generated(&mut told, generated);
    Ok(vec![told])
}

struct Hashed {
    hash: String,
    /// Too short to be the only factor.
    short: bool,
    generated: Option<Zeroizing<String>>,
}

/// `beside`: a second factor is required as well.
async fn hashed(
    (user, partner): (&str, &str),
    secret: Option<Secret>,
    beside: bool,
) -> Result<Hashed, CliError> {
    let crypto = || CliError::failed("crypto_failed", "cannot hash the password");
    let (text, generated) = match secret {
        Some(secret) => {
            let min = if beside { password::MIN_CHARS_WITH_FACTOR } else { password::MIN_CHARS };
            password::check(secret.expose(), user, partner, min)
                .map_err(|error| CliError::usage("weak_password", error.to_string()))?;
            (Zeroizing::new(secret.expose().to_owned()), None)
        }
        None => {
            let generated = password::generate().ok_or_else(crypto)?;
            (generated.clone(), Some(generated))
        }
    };
    let short = password::is_short(&text);
    let hash = tokio::task::spawn_blocking(move || password::hash(&text)).await;
    let hash = hash.ok().flatten().ok_or_else(crypto)?;
    Ok(Hashed { hash, short, generated })
}

fn show_generated(told: &mut Value, generated: Option<Zeroizing<String>>) {
    if let (Some(object), Some(password)) = (told.as_object_mut(), generated) {
        object.insert("password".to_owned(), password.as_str().into());
    }
}
