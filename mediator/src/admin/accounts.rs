//! Second factors, logins and kill switches, as the machine's administrator manages them.
//!
//! What withdraws something is durable first and then ends live sessions: a mediator that stops
//! in between finds them withdrawn when it starts.

use adit_protocol::code::failure;
use adit_runtime::{
    cli::CliError,
    time::{format_ms, unix_ms},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{actor::Actor, handle::AdminContext, users};
use crate::{
    core::{
        ending::{LOGGED_OUT, MFA_RESET},
        types::Affected,
    },
    mfa,
    place::store_error,
    roles::Permission,
    store::{
        StoreError, WriteTx,
        accounts::{self, MfaPolicy},
        erasures, factors, locks, tenants,
    },
};

/// Bytes of a reason.
const MAX_REASON: usize = adit_protocol::limits::MAX_TEXT;

/// An act on accounts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum AccountAct {
    /// Shows the second factors of a user.
    MfaStatus { user: String },
    /// Requires a second factor before there is one, or not.
    MfaRequire { user: String, required: bool },
    /// Requires a second factor that resists phishing.
    MfaPhishingResistant { user: String },
    /// Removes all second factors.
    MfaReset { user: String },
    /// Lists the logins and live sessions of a user.
    Logins { user: String },
    /// Ends them.
    Logout { user: String },
    /// Lists devices with which somebody logged in, and those that are disabled.
    DeviceList,
    /// Disables or enables a device.
    Device {
        device: String,
        disabled: bool,
        reason: String,
        /// For the users of this partner only, as its own people do it.
        #[serde(default)]
        partner: Option<String>,
        /// For everybody, over the network.
        #[serde(default)]
        everywhere: bool,
    },
    /// Locks a client down or unlocks it.
    ClientLock { path: String, locked: bool, reason: String },
    /// Makes a new wrapping key and seals all secrets with it.
    VaultRotate {
        /// Also makes new data keys of clients.
        #[serde(default)]
        data_keys: bool,
    },
}

/// What acts get.
type Who<'a> = (&'a AdminContext, &'a Actor);

/// What is missing where nothing is to be unlocked.
const NOT_LOCKED: &str = "locked client";
const BEING_ERASED: &str = "client that stays";
/// Who may lock a client down: those who may end its sessions, too.
const LOCK: &[Permission] = &[Permission::ManagePolicy, Permission::EndSessions];

/// Does it.
pub(super) async fn handle(
    (context, actor): (&AdminContext, &Actor),
    act: AccountAct,
) -> Result<Vec<Value>, CliError> {
    let who = (context, actor);
    match act {
        AccountAct::MfaStatus { user } => mfa_status(who, &user).await,
        AccountAct::MfaRequire { user, required: true } => {
            mfa_policy(who, user, MfaPolicy::Required).await
        }
        AccountAct::MfaRequire { user, required: false } => {
            mfa_policy(who, user, MfaPolicy::OnceSetUp).await
        }
        AccountAct::MfaPhishingResistant { user } => {
            mfa_policy(who, user, MfaPolicy::PhishingResistant).await
        }
        AccountAct::MfaReset { user } => mfa_reset(who, user).await,
        AccountAct::Logins { user } => logins(who, &user).await,
        AccountAct::Logout { user } => logout(who, user).await,
        AccountAct::DeviceList => super::devices::list(who).await,
        AccountAct::Device { device, disabled, reason, partner, everywhere } => {
            let of = (partner, everywhere);
            super::devices::set(who, &device, of, (disabled, checked(reason)?)).await
        }
        AccountAct::ClientLock { path, locked, reason } => {
            client_lock(who, path, locked, reason).await
        }
        AccountAct::VaultRotate { data_keys } => super::vault::rotate(who, data_keys).await,
    }
}

async fn mfa_status((context, actor): Who<'_>, user: &str) -> Result<Vec<Value>, CliError> {
    let pool = &context.store.readers;
    let account = users::managed(context, actor, user).await?;
    let there = factors::of_account(pool, &account.id).await.map_err(store_error)?;
    let left = factors::recovery_left(pool, &account.id).await.map_err(store_error)?;
    let told = there.iter().map(|factor| {
        json!({
            "factor": factor.id,
            "kind": factor.kind,
            "name": factor.name,
            "confirmed": factor.confirmed,
            "created": format_ms(factor.created_ms),
            "used": (factor.used_ms > 0).then(|| format_ms(factor.used_ms)),
        })
    });
    Ok(vec![json!({
        "user": account.name,
        "policy": account.mfa.name(),
        "required": account.requires_mfa(context.accounts.mfa),
        "factors": told.collect::<Vec<_>>(),
        "recovery_codes_left": left,
    })])
}

async fn mfa_policy(
    (context, actor): Who<'_>,
    user: String,
    policy: MfaPolicy,
) -> Result<Vec<Value>, CliError> {
    let row = users::managed(context, actor, &user).await?;
    // Who lowers what is asked for makes it easier to be that user.
    let loosens = match policy {
        MfaPolicy::OnceSetUp => true,
        _ => row.mfa == MfaPolicy::PhishingResistant && policy != MfaPolicy::PhishingResistant,
    };
    if loosens {
        users::may_impersonate(context, actor, &row).await?;
    }
    let (name, by) = (user.clone(), actor.clone());
    let ended = context.writer.write(move |tx| {
        Box::pin(async move {
            let account = accounts::find(tx, &name).await?;
            accounts::set_mfa_policy(tx, &account.id, policy).await?;
            let ended = match policy {
                MfaPolicy::Default | MfaPolicy::OnceSetUp => Vec::new(),
                MfaPolicy::Required => {
                    accounts::end_logins_without_mfa(tx, &account.id, &[mfa::NONE]).await?
                }
                MfaPolicy::PhishingResistant => {
                    let weak = [mfa::NONE, mfa::TOTP, mfa::RECOVERY, mfa::OIDC];
                    accounts::end_logins_without_mfa(tx, &account.id, &weak).await?
                }
            };
            let done = by
                .event("user.mfa_policy", &account.partner)
                .extra("policy", policy.name())
                .extra_personal("user", name);
            tx.append(&account.partner_id, done).await?;
            Ok(ended)
        })
    });
    let mut sessions = 0;
    for login in ended.await.map_err(store_error)? {
        sessions += context.end_sessions(Affected::Login(login), failure::MFA_REQUIRED).await;
    }
    Ok(vec![json!({"user": user, "policy": policy.name(), "sessions_ended": sessions})])
}

async fn mfa_reset((context, actor): Who<'_>, user: String) -> Result<Vec<Value>, CliError> {
    let row = users::managed(context, actor, &user).await?;
    users::may_impersonate(context, actor, &row).await?;
    let (name, by) = (user.clone(), actor.clone());
    let done = context.writer.write(move |tx| {
        Box::pin(async move {
            let account = accounts::find(tx, &name).await?;
            let removed = factors::remove_all(tx, &account.id).await?;
            accounts::end_logins(tx, &account.id).await?;
            let done = by
                .event("user.mfa_reset", &account.partner)
                .extra("factors", removed)
                .extra_personal("user", name);
            tx.append(&account.partner_id, done).await?;
            Ok((account.id, removed))
        })
    });
    let (account, removed) = done.await.map_err(store_error)?;
    let ended = context.end_sessions(Affected::Account(account), MFA_RESET).await;
    Ok(vec![json!({"user": user, "factors_removed": removed, "sessions_ended": ended})])
}

async fn logins((context, actor): Who<'_>, user: &str) -> Result<Vec<Value>, CliError> {
    let account = users::managed(context, actor, user).await?;
    let now = unix_ms();
    let found = accounts::logins(&context.store.readers, &account.id, now).await;
    let mut told: Vec<Value> = found
        .map_err(store_error)?
        .iter()
        .map(|login| {
            let idle = now.saturating_sub(login.used_ms) >= context.accounts.idle_ms;
            json!({
                "kind": "login",
                "user": account.name,
                "device": login.device.fingerprint().to_string(),
                "since": format_ms(login.created_ms),
                "used": format_ms(login.used_ms),
                "expires": format_ms(login.expires_ms),
                "idle": idle,
                "mfa": login.proof.mfa,
                "mfa_at": login.proof.mfa_ms.map(format_ms),
            })
        })
        .collect();
    let Some(broker) = &context.broker else { return Ok(told) };
    let id = account.id.clone();
    let sessions = broker.ask(move |driver, _| {
        let own = driver.broker.open_sessions().filter(|session| session.who.account_id == id);
        own.map(|session| {
            json!({
                "kind": "session",
                "user": session.who.account,
                "device": session.who.device.fingerprint().to_string(),
                "session_id": session.id.to_string(),
                "computer": session.place.computer,
                "client": session.place.client,
                "redirector": session.redirector,
                "since": format_ms(session.started_ms),
                "mfa": session.who.mfa,
            })
        })
        .collect::<Vec<_>>()
    });
    told.extend(sessions.await.unwrap_or_default());
    Ok(told)
}

async fn logout((context, actor): Who<'_>, user: String) -> Result<Vec<Value>, CliError> {
    users::managed(context, actor, &user).await?;
    let (name, by) = (user.clone(), actor.clone());
    let account = context.writer.write(move |tx| {
        Box::pin(async move {
            let account = accounts::find(tx, &name).await?;
            accounts::end_logins(tx, &account.id).await?;
            let done = by.event("user.logged_out", &account.partner).extra_personal("user", name);
            tx.append(&account.partner_id, done).await?;
            Ok(account.id)
        })
    });
    let account = account.await.map_err(store_error)?;
    let ended = context.end_sessions(Affected::Account(account), LOGGED_OUT).await;
    Ok(vec![json!({"user": user, "sessions_ended": ended})])
}

async fn client_lock(
    (context, actor): Who<'_>,
    path: String,
    locked: bool,
    reason: String,
) -> Result<Vec<Value>, CliError> {
    let reason = checked(reason)?;
    let found = super::handle::client(context, actor, &path).await?;
    actor.may_client(context, &found, LOCK).await?;
    let by = actor.clone();
    let done = context
        .writer
        .write(move |tx| Box::pin(async move { lock(tx, (&by, &found), locked, reason).await }));
    let client = done.await.map_err(|error| match error {
        StoreError::Missing(NOT_LOCKED) => {
            CliError::not_there("not_found", format!("client {path} is not locked down"))
                .hint("client list shows which are")
        }
        StoreError::Missing(BEING_ERASED) => {
            let text = format!("client {path} is being erased, and stays locked until it is");
            CliError::failed("erasure_unfinished", text)
                .hint("the mediator does it by itself, once no legal hold is on the partner")
        }
        error => store_error(error),
    })?;
    let mut ended = 0;
    if locked {
        ended = context.end_sessions(Affected::Client(client), failure::CLIENT_LOCKED).await;
    }
    Ok(vec![json!({"client": path, "locked": locked, "sessions_ended": ended})])
}

async fn lock(
    tx: &mut WriteTx,
    (by, client): (&Actor, &tenants::Client),
    locked: bool,
    reason: String,
) -> Result<String, StoreError> {
    let client = tenants::client_by_id(tx, &client.id).await?;
    let name = match locked {
        true => {
            locks::lock_client(tx, &client.id, &reason).await?;
            "client.locked"
        }
        // What was done there meanwhile would be erased, too.
        false if erasures::is_begun(tx, &client.partner_id, &client.id).await? => {
            return Err(StoreError::Missing(BEING_ERASED));
        }
        false if locks::unlock_client(tx, &client.id).await? => "client.unlocked",
        false => return Err(StoreError::Missing(NOT_LOCKED)),
    };
    let done = by.event(name, &client.partner).client(client.path());
    let done = if reason.is_empty() { done } else { done.reason(reason) };
    tx.append(&client.partner_id, done).await?;
    Ok(client.id)
}

fn checked(reason: String) -> Result<String, CliError> {
    if reason.len() > MAX_REASON || reason.chars().any(char::is_control) {
        let text = format!("a reason has at most {MAX_REASON} bytes, without control characters");
        return Err(CliError::usage("usage", text));
    }
    Ok(reason)
}
