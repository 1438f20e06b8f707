//! Groups and tags of computers, groups of users.

use adit_runtime::{cli::CliError, time::format_ms};
use serde_json::{Value, json};

use super::handle::{AdminContext, bad_name, event};
use crate::{
    names,
    place::store_error,
    store::{
        StoreError,
        access::{
            When,
            labels::{self, Kind, MAX_LABELS},
        },
        accounts,
        computers::{self, ComputerRow},
    },
};

/// The one computer that is meant.
pub(super) async fn one(context: &AdminContext, text: &str) -> Result<ComputerRow, CliError> {
    let mut found = computers::find(&context.store.readers, text).await.map_err(store_error)?;
    match (found.pop(), found.is_empty()) {
        (Some(row), true) if !text.is_empty() => Ok(row),
        (Some(_), false) => {
            let text = format!("several computers match {text}");
            Err(CliError::failed("ambiguous_computer", text)
                .hint("give PARTNER/CLIENT/COMPUTER or the id"))
        }
        _ => Err(CliError::not_there("no_such_computer", "there is no such computer")),
    }
}

/// Computers with their groups and tags.
pub(super) async fn list(context: &AdminContext, query: &str) -> Result<Vec<Value>, CliError> {
    let pool = &context.store.readers;
    let mut told = Vec::new();
    for row in computers::find(pool, query).await.map_err(store_error)? {
        let id = row.id.to_string();
        let (groups, tags) =
            labels::of_computer(pool, &id, When::Now).await.map_err(store_error)?;
        told.push(json!({
            "computer_id": id,
            "computer": row.name,
            "client": row.client_path(),
            "groups": groups,
            "tags": tags,
            "os": row.os,
            "last_seen": format_ms(row.last_seen_ms),
        }));
    }
    Ok(told)
}

/// Gives a computer a group or tag, or takes it away.
pub(super) async fn label(
    context: &AdminContext,
    computer: &str,
    group: Option<String>,
    tag: Option<String>,
    remove: bool,
) -> Result<Vec<Value>, CliError> {
    let row = one(context, computer).await?;
    let (kind, label) = match (group, tag) {
        (Some(group), None) => {
            names::check(&group).map_err(bad_name)?;
            (Kind::Group, group)
        }
        (None, Some(tag)) => {
            let parts = tag.split_once('=').map(|(key, value)| [key, value]);
            let good = |parts: [&str; 2]| parts.iter().all(|part| names::check(part).is_ok());
            if !parts.is_some_and(good) {
                return Err(CliError::usage("tag_invalid", "a tag is written KEY=VALUE"));
            }
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
    let (told, computer) = (label.clone(), id.clone());
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
                    let done = event(what, &row.partner)
                        .client(row.client_path())
                        .computer(&row.name)
                        .computer_id(&computer)
                        .extra(kind.name(), label);
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

/// Puts a user into a group, or takes it out.
pub(super) async fn user_group(
    context: &AdminContext,
    user: String,
    group: String,
    remove: bool,
) -> Result<Vec<Value>, CliError> {
    names::check(&group).map_err(bad_name)?;
    let (name, label) = (user.clone(), group.clone());
    let changed = context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let account = accounts::find(tx, &name).await?;
                let changed = match remove {
                    true => labels::remove_user(tx, &account.id, &label).await?,
                    false => labels::add_user(tx, &account.partner_id, &account.id, &label).await?,
                };
                if changed {
                    let what = if remove { "user.ungrouped" } else { "user.grouped" };
                    let done = event(what, &account.partner)
                        .extra("group", label)
                        .extra_personal("user", account.name);
                    tx.append(&account.partner_id, done).await?;
                }
                Ok::<_, StoreError>(changed)
            })
        })
        .await
        .map_err(store_error)?;
    context.rules_changed().await;
    Ok(vec![json!({"user": user, "group": group, "member": !remove, "changed": changed})])
}
