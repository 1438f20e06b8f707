//! Groups and tags of computers, groups of users.

use adit_runtime::{
    cli::{CliError, escape_text},
    time::format_ms,
};
use serde_json::{Value, json};

use super::{
    actor::{Actor, Gift},
    handle::{AdminContext, Who, bad_name},
    last::{self, Held, USERS_AND_ROLES},
    users,
};
use crate::{
    authz::Spot,
    names,
    place::store_error,
    roles::{Act, Permission, Rule, Scope},
    store::{
        access::{
            When,
            bindings::{self, Subject},
            labels::{self, Kind, MAX_LABELS},
        },
        accounts,
        computers::{self, ComputerRow},
    },
};

/// Of a tag's key and value each: what devices tell of themselves is cut there.
const MAX_TAG_CHARS: usize = 128;

/// The one computer that is meant.
pub(super) async fn one(
    context: &AdminContext,
    actor: &Actor,
    text: &str,
) -> Result<ComputerRow, CliError> {
    let mut found = computers::find(&context.store.readers, text).await.map_err(store_error)?;
    if let Some(remote) = actor.remote() {
        // Computers that this one may not see do not exist, and make no name ambiguous.
        let pool = &context.store.readers;
        let mut seen = Vec::new();
        for row in found.into_iter().filter(|row| actor.reaches(&row.partner_id)) {
            let object = remote.holder.object(pool, &Spot::of(&row), When::Now).await;
            let act = Act::of(Permission::SeeComputers);
            let object = object.map_err(store_error)?;
            if remote.holder.decide(act, &object, remote.facts()).is_allowed() {
                seen.push(row);
            }
        }
        found = seen;
    }
    match (found.pop(), found.is_empty()) {
        (Some(row), true) if !text.is_empty() => Ok(row),
        (Some(_), false) => {
            let text = format!("several computers match {text}");
            Err(CliError::failed("ambiguous_computer", text)
                .hint("give PARTNER/CLIENT/COMPUTER or the id"))
        }
        _ => Err(match text {
            "" => CliError::not_there("no_such_computer", "there is no such computer"),
            text => CliError::not_there("no_such_computer", format!("there is no computer {text}")),
        }),
    }
}

/// Computers with their groups and tags.
pub(super) async fn list((context, actor): Who<'_>, query: &str) -> Result<Vec<Value>, CliError> {
    let pool = &context.store.readers;
    let mut told = Vec::new();
    let rows = match actor {
        Actor::Local => computers::find(pool, query).await.map_err(store_error)?,
        Actor::Remote(_) => vec![one(context, actor, query).await?],
    };
    for row in rows {
        told.push(told_computer(context, &row).await?);
    }
    Ok(told)
}

/// A computer with its labels.
pub(crate) async fn told_computer(
    context: &AdminContext,
    row: &ComputerRow,
) -> Result<Value, CliError> {
    let id = row.id.to_string();
    let labels = labels::of_computer(&context.store.readers, &id, When::Now).await;
    let (groups, tags) = labels.map_err(store_error)?;
    Ok(json!({
        "computer_id": id,
        "computer": row.name,
        "client": row.client_path(),
        "groups": groups,
        "tags": tags,
        "os": row.os,
        "last_seen": format_ms(row.last_seen_ms),
        "clock_offset_ms": context.clock_offset(row.identity),
    }))
}

/// Who may label computers: it changes what others may do.
const LABEL: &[Permission] = &[Permission::ManagePolicy, Permission::ManageRoles];

/// Refuses what is no tag.
pub(super) fn check_tag(tag: &str) -> Result<(), CliError> {
    let parts = tag.split_once('=').map(|(key, value)| [key, value]);
    match parts.is_some_and(|parts| parts.iter().all(|part| names::check(part).is_ok())) {
        true => Ok(()),
        false => Err(CliError::usage("tag_invalid", "a tag is written KEY=VALUE")),
    }
}

/// Refuses what cannot be a tag of any computer. Agents bring tags of their own when they enrol,
/// of whatever is printable: `path=/dc1/r2`.
pub(super) fn check_tag_of_agents(tag: &str) -> Result<(), CliError> {
    let is_tag = tag.split_once('=').is_some_and(|parts| {
        let fits = |part: &str| (1..=MAX_TAG_CHARS).contains(&part.chars().count());
        <[&str; 2]>::from(parts).iter().all(|part| fits(part) && escape_text(part) == **part)
    });
    match is_tag {
        true => Ok(()),
        false => Err(CliError::usage("tag_invalid", "a tag is written KEY=VALUE")),
    }
}

/// Gives a computer a group or tag, or takes it away.
pub(super) async fn label(
    (context, actor): Who<'_>,
    computer: &str,
    group: Option<String>,
    tag: Option<String>,
    remove: bool,
) -> Result<Vec<Value>, CliError> {
    let row = one(context, actor, computer).await?;
    actor.may_computer(context, &row, LABEL).await?;
    let (kind, label) = match (group, tag) {
        (Some(group), None) => {
            names::check(&group).map_err(bad_name)?;
            (Kind::Group, group)
        }
        (None, Some(tag)) => {
            check_tag(&tag)?;
            (Kind::Tag, tag)
        }
        _ => return Err(CliError::usage("usage", "give a group or a tag")),
    };
    let id = row.id.to_string();
    let known =
        labels::of_computer(&context.store.readers, &id, When::Now).await.map_err(store_error)?;
    if !remove && known.0.len() + known.1.len() >= MAX_LABELS {
        return Err(CliError::usage(
            "usage",
            format!("a computer has at most {MAX_LABELS} labels"),
        ));
    }
    if !remove {
        // Whoever holds the group or tag then holds this computer.
        let pool = &context.store.readers;
        let rules = bindings::of_label(pool, &row.partner_id, kind.name(), &label).await;
        let scope = Scope::Computer {
            partner: row.partner_id.clone(),
            client: row.client_id.clone(),
            computer: id.clone(),
        };
        gives(context, actor, &rules.map_err(store_error)?, Some(&scope)).await?;
    }
    let (told, computer, by) = (label.clone(), id.clone(), actor.clone());
    let changed = context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let changed = match remove {
                    true => labels::remove(tx, &computer, kind, &label).await?,
                    false => labels::add(tx, &row.partner_id, &computer, kind, &label).await?,
                };
                if changed {
                    let what = if remove { "computer.unlabelled" } else { "computer.labelled" };
                    let done = by
                        .event(what, &row.partner)
                        .client(row.client_path())
                        .computer(&row.name)
                        .computer_id(&computer)
                        .extra_personal(kind.name(), label);
                    tx.append(&row.partner_id, done).await?;
                }
                Ok(changed)
            })
        })
        .await
        .map_err(store_error)?;
    context.rules_changed().await;
    Ok(vec![json!({"computer_id": id, kind.name(): told, "set": !remove, "changed": changed})])
}

/// Refuses to give others what the actor lacks: these rules, in this scope or their own.
async fn gives(
    context: &AdminContext,
    actor: &Actor,
    rules: &[Rule],
    scope: Option<&Scope>,
) -> Result<(), CliError> {
    for rule in rules {
        let gift = Gift {
            role: &rule.role,
            scope: scope.unwrap_or(&rule.scope),
            conditions: &rule.conditions,
            expires_ms: rule.expires_ms,
            binds: false,
        };
        actor.may_give(context, &gift).await?;
    }
    Ok(())
}

/// Puts a user into a group, or takes it out.
pub(super) async fn user_group(
    (context, actor): Who<'_>,
    user: String,
    group: String,
    remove: bool,
) -> Result<Vec<Value>, CliError> {
    names::check(&group).map_err(bad_name)?;
    let row = users::managed(context, actor, &user).await?;
    if !remove {
        let subject = Subject::Group(group.clone());
        let pool = &context.store.readers;
        let rules = bindings::of_subject(pool, &row.partner_id, &subject).await;
        gives(context, actor, &rules.map_err(store_error)?, None).await?;
    }
    let (name, label, by) = (user.clone(), group.clone(), actor.clone());
    let changed = context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let account = accounts::find(tx, &name).await?;
                let held = Held::before(tx, &by, &account.partner_id, USERS_AND_ROLES).await?;
                let changed = match remove {
                    true => labels::remove_user(tx, &account.id, &label).await?,
                    false => labels::add_user(tx, &account.partner_id, &account.id, &label).await?,
                };
                held.after(tx).await?;
                if changed {
                    let what = if remove { "user.ungrouped" } else { "user.grouped" };
                    let done = by
                        .event(what, &account.partner)
                        .extra_personal("group", label)
                        .extra_personal("user", account.name);
                    tx.append(&account.partner_id, done).await?;
                }
                Ok(changed)
            })
        })
        .await;
    let changed = match changed {
        Ok(changed) => changed,
        Err(error) => return Err(last::told((context, actor), error).await),
    };
    context.rules_changed().await;
    Ok(vec![json!({"user": user, "group": group, "member": !remove, "changed": changed})])
}
