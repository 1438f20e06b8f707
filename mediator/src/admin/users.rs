//! Accounts of technicians.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use adit_protocol::code::failure;
use adit_runtime::cli::CliError;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    Secret,
    actor::{Actor, Gift, not_found},
    handle::{AdminContext, bad_name},
    last::{self, Held},
};
use crate::{
    config::MfaRule,
    core::{
        ending::{PASSWORD_CHANGED, USER_DISABLED},
        types::Affected,
    },
    names, password,
    place::store_error,
    roles::{Conditions, Permission, Rule, Scope},
    store::{
        StoreError,
        access::{
            When,
            bindings::{self, Binding},
            roles,
        },
        accounts::{self, AccountRow, MfaPolicy},
        tenants,
    },
};

/// Passwords hashed at the same time: each takes 19 MiB and most of a tenth of a second (R42).
static HASHING: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(2);
/// Names that were taken, by partner. A name is good once in an installation, because it is all that
/// a login says; so whoever may add users learns of others' names, but of few.
static TAKEN: Mutex<BTreeMap<String, Met>> = Mutex::new(BTreeMap::new());
/// How many a partner may meet within [`TAKEN_WITHIN`]; then it adds nobody for the rest of it. As
/// many may be added at once, since each may turn out to be taken.
const MAX_TAKEN: u32 = 20;
const TAKEN_WITHIN: Duration = Duration::from_secs(3600);

/// What a partner met of others' names.
struct Met {
    taken: u32,
    /// Names whose answer is not there yet.
    asked: u32,
    since: Instant,
}

/// Instead of a role: nothing is bound.
const NO_ROLE: &str = "none";

/// Adds a user, with the given or a generated password.
pub(super) async fn add(
    (context, actor): (&AdminContext, &Actor),
    user: String,
    partner: Option<String>,
    (role, mfa): (String, bool),
    secret: Option<Secret>,
) -> Result<Vec<Value>, CliError> {
    names::check(&user).map_err(bad_name)?;
    actor.may_at_home(context, MANAGE).await?;
    let partner = super::access::partner(context, actor, partner).await?;
    // Before anything is worked on; what comes to nothing is given back.
    let guess = actor.partner_id().map(Guess::new).transpose()?;
    let mut judged = None;
    if role != NO_ROLE
        && let Some(own) = actor.partner_id()
    {
        let role = super::access::role(context, own, &role).await?;
        let scope = Scope::Partner(own.to_owned());
        let conditions = &Conditions::default();
        let gift = Gift { role: &role, scope: &scope, conditions, expires_ms: None, binds: true };
        actor.may_give(context, &gift).await?;
        judged = Some(role);
    }
    let beside = mfa || context.accounts.mfa >= MfaRule::Required;
    let of = (user.as_str(), partner.name.as_str());
    let Hashed { hash, short, generated } = hashed(of, secret, beside).await?;
    let (name, role_name, by) = (user.clone(), role.clone(), actor.clone());
    let added = context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let partner = tenants::partner_by_id(tx, &partner.id).await?;
                let id = accounts::insert(tx, &partner, &name, &role_name, &hash).await?;
                accounts::set_short_password(tx, &id, short).await?;
                if mfa {
                    accounts::set_mfa_policy(tx, &id, MfaPolicy::Required).await?;
                }
                if role_name != NO_ROLE {
                    let role = roles::by_name(tx, &partner.id, &role_name)
                        .await?
                        .ok_or(StoreError::Missing("role"))?;
                    // The name may mean another role by now, which nobody judged.
                    if judged.is_some_and(|judged| judged != role) {
                        return Err(StoreError::Missing("role"));
                    }
                    bindings::insert(tx, &Binding::on_partner(&partner.id, id, role.id)?).await?;
                }
                let added = by
                    .event("user.added", &partner.name)
                    .extra("role", role_name)
                    .extra_personal("user", name);
                tx.append(&partner.id, added).await?;
                Ok(partner.name)
            })
        })
        .await;
    let partner = match added {
        Ok(partner) => partner,
        Err(error) => {
            return Err(not_added((context, actor), (user, &role), (error, guess)).await?);
        }
    };
    let mut told = json!({"user": user, "partner": partner, "role": role});
    show_generated(&mut told, generated);
    Ok(vec![told])
}

/// Why a user was not added. A name that is taken, wherever, is recorded and counted.
async fn not_added(
    (context, actor): (&AdminContext, &Actor),
    (user, role): (String, &str),
    (error, guess): (StoreError, Option<Guess<'_>>),
) -> Result<CliError, CliError> {
    if matches!(error, StoreError::Missing("role")) {
        let text = format!("there is no role \"{role}\"");
        return Ok(CliError::usage("usage", text).hint("mediator role list"));
    }
    if let (StoreError::Taken(_), Some(own)) = (&error, actor.partner_id()) {
        if let Some(guess) = guess {
            guess.was_taken();
        }
        let event = actor.event("user.add_refused", actor.partner_name());
        let event = event.outcome("refused").end_reason(failure::NAME_TAKEN);
        context.record(own, event.extra_personal("user", user)).await?;
    }
    Ok(store_error(error))
}

/// A name that a partner wants to give: counted from before it is known whether it is taken, so
/// that no number of requests at once learns of more names than one after another.
struct Guess<'a> {
    partner: &'a str,
    taken: bool,
}

impl<'a> Guess<'a> {
    fn new(partner: &'a str) -> Result<Self, CliError> {
        let mut table = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        table.retain(|_, met| met.asked > 0 || met.since.elapsed() < TAKEN_WITHIN);
        let fresh = || Met { taken: 0, asked: 0, since: Instant::now() };
        let met = table.entry(partner.to_owned()).or_insert_with(fresh);
        if met.since.elapsed() >= TAKEN_WITHIN {
            (met.taken, met.since) = (0, Instant::now());
        }
        if met.taken >= MAX_TAKEN {
            let text = "too many names were taken; add no user for an hour";
            return Err(CliError::refused(failure::RATE_LIMITED, text));
        }
        if met.taken.saturating_add(met.asked) >= MAX_TAKEN {
            let text = "too many users are being added at once; add one after another";
            return Err(CliError::refused(failure::BUSY, text));
        }
        met.asked += 1;
        Ok(Self { partner, taken: false })
    }

    fn was_taken(mut self) {
        self.taken = true;
    }
}

impl Drop for Guess<'_> {
    fn drop(&mut self) {
        let mut table = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(met) = table.get_mut(self.partner) else { return };
        met.asked = met.asked.saturating_sub(1);
        met.taken = met.taken.saturating_add(u32::from(self.taken));
        if met.asked == 0 && met.taken == 0 {
            table.remove(self.partner);
        }
    }
}

/// Who may see users: whoever manages them or what they may do, and whoever audits.
const SEE: &[Permission] =
    &[Permission::ManageUsers, Permission::ManageRoles, Permission::ReadAudit];
/// Who may change them.
pub(super) const MANAGE: &[Permission] = &[Permission::ManageUsers];

/// All users, or the one of that name.
pub(super) async fn list(
    (context, actor): (&AdminContext, &Actor),
    only: Option<&str>,
) -> Result<Vec<Value>, CliError> {
    actor.may_at_home(context, SEE).await?;
    let pool = &context.store.readers;
    let mut told = Vec::new();
    let rows = match only {
        None => accounts::list(pool, actor.partner_id()).await.map_err(store_error)?,
        Some(user) => vec![find(context, actor, user).await?],
    };
    for row in rows {
        let rules = bindings::rules(pool, &row.partner_id, &row.id, When::Now)
            .await
            .map_err(store_error)?;
        let roles: Vec<String> = rules.iter().map(Rule::name).collect();
        told.push(json!({
            "user": row.name,
            "partner": row.partner,
            "roles": roles,
            "enabled": !row.disabled,
            "mfa": match (row.factors, row.requires_mfa(context.accounts.mfa)) {
                (0, false) => "none",
                (0, true) => "required",
                _ => "set_up",
            },
        }));
    }
    Ok(told)
}

/// A user that this actor may know of.
pub(super) async fn find(
    context: &AdminContext,
    actor: &Actor,
    user: &str,
) -> Result<AccountRow, CliError> {
    let found = accounts::by_name(&context.store.readers, user).await.map_err(store_error)?;
    found.filter(|row| actor.reaches(&row.partner_id)).ok_or_else(|| not_found("user"))
}

/// A user that this actor may change.
pub(super) async fn managed(
    context: &AdminContext,
    actor: &Actor,
    user: &str,
) -> Result<AccountRow, CliError> {
    actor.may_at_home(context, MANAGE).await?;
    find(context, actor, user).await
}

/// Whoever sets a password or takes the second factor away could log in as that user: only those
/// may who hold at least as much.
pub(super) async fn may_impersonate(
    context: &AdminContext,
    actor: &Actor,
    row: &AccountRow,
) -> Result<(), CliError> {
    // Whoever sits down at somebody's open console must not gain an account that lasts (R27).
    actor.must_be_fresh(context).await?;
    let Some(remote) = actor.remote().filter(|remote| remote.holder.account != row.id) else {
        return Ok(());
    };
    let pool = &context.store.readers;
    let rules = bindings::rules(pool, &remote.holder.partner, &row.id, When::Now).await;
    for Rule { role, scope, conditions, expires_ms, .. } in &rules.map_err(store_error)? {
        let gift = Gift { role, scope, conditions, expires_ms: *expires_ms, binds: false };
        actor.may_give(context, &gift).await?;
    }
    Ok(())
}

/// Disables or enables a user. Over the network nobody disables the last one who could enable
/// others again: only the machine's administrator could undo that.
pub(super) async fn disable(
    (context, actor): (&AdminContext, &Actor),
    user: String,
    disabled: bool,
) -> Result<Vec<Value>, CliError> {
    managed(context, actor, &user).await?;
    let (name, by) = (user.clone(), actor.clone());
    let account = context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let account = accounts::find(tx, &name).await?;
                let held = Held::before(tx, &by, &account.partner_id, last::USERS).await?;
                accounts::set_disabled(tx, &account.id, disabled).await?;
                held.after(tx).await?;
                let what = if disabled { "user.disabled" } else { "user.enabled" };
                let done = by.event(what, &account.partner).extra_personal("user", name);
                tx.append(&account.partner_id, done).await?;
                Ok(account.id)
            })
        })
        .await;
    let account = match account {
        Ok(account) => account,
        Err(error) => return Err(last::told((context, actor), error).await),
    };
    let mut ended = 0;
    if disabled {
        ended = context.end_sessions(Affected::Account(account), USER_DISABLED).await;
    }
    Ok(vec![json!({"user": user, "enabled": !disabled, "sessions_ended": ended})])
}

/// Sets a user's password; logins and live sessions end.
pub(super) async fn password(
    (context, actor): (&AdminContext, &Actor),
    user: String,
    secret: Option<Secret>,
) -> Result<Vec<Value>, CliError> {
    let there = managed(context, actor, &user).await?;
    may_impersonate(context, actor, &there).await?;
    // A short password goes on asking for the second factor when that is removed.
    let beside = there.requires_mfa(context.accounts.mfa);
    let of = (user.as_str(), there.partner.as_str());
    let Hashed { hash, short, generated } = hashed(of, secret, beside).await?;
    let (name, by) = (user.clone(), actor.clone());
    let account = context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let account = accounts::find(tx, &name).await?;
                accounts::set_password(tx, &account.id, &hash).await?;
                accounts::set_short_password(tx, &account.id, short).await?;
                let done =
                    by.event("user.password_set", &account.partner).extra_personal("user", name);
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

pub(super) struct Hashed {
    pub(super) hash: String,
    /// Too short to be the only factor.
    pub(super) short: bool,
    pub(super) generated: Option<Zeroizing<String>>,
}

/// `beside`: a second factor is required as well.
pub(super) async fn hashed(
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
    let permit = HASHING.acquire().await.map_err(|_| crypto())?;
    // The permit goes along: a request that is dropped still counts until its work is done.
    let hash = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        password::hash(&text)
    });
    let hash = hash.await;
    let hash = hash.ok().flatten().ok_or_else(crypto)?;
    Ok(Hashed { hash, short, generated })
}

pub(super) fn show_generated(told: &mut Value, generated: Option<Zeroizing<String>>) {
    if let (Some(object), Some(password)) = (told.as_object_mut(), generated) {
        object.insert("password".to_owned(), password.as_str().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(partner: &str) -> Option<String> {
        Guess::new(partner).err().map(|error| error.code.to_owned())
    }

    #[test]
    fn many_names_asked_for_at_once_tell_no_more_than_one_after_another() {
        let partner = "a partner of this test";
        let guesses: Vec<_> = (0..64).filter_map(|_| Guess::new(partner).ok()).collect();
        assert_eq!(guesses.len(), MAX_TAKEN as usize);
        assert_eq!(refused(partner).as_deref(), Some(failure::BUSY));
        assert_eq!(refused("another partner of this test"), None);
        // None was taken: nothing is counted.
        drop(guesses);
        for _ in 0..3 {
            let guesses: Vec<_> = (0..MAX_TAKEN).map(|_| Guess::new(partner).unwrap()).collect();
            drop(guesses);
        }
        // All but one were.
        let mut guesses: Vec<_> = (0..MAX_TAKEN).map(|_| Guess::new(partner).unwrap()).collect();
        drop(guesses.pop());
        guesses.into_iter().for_each(Guess::was_taken);
        let last = Guess::new(partner).unwrap();
        assert_eq!(refused(partner).as_deref(), Some(failure::BUSY));
        last.was_taken();
        assert_eq!(refused(partner).as_deref(), Some(failure::RATE_LIMITED));
    }
}
