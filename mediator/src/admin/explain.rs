//! Which rule allows or denies, now or at a past time; and requests for access.

use std::net::IpAddr;

use adit_protocol::code::failure;
use adit_runtime::{
    cli::{CliError, Exit},
    time::{format_ms, unix_ms},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::handle::{ACTOR, AdminContext};
use crate::{
    authz::{Decision, Holder, Spot},
    place::store_error,
    requests::{self, Actor, Judgement, RequestError},
    roles::{Act, Needs, Rule, Unmet, conditions::Facts},
    store::{
        StoreError,
        access::{
            When,
            filter::Clause,
            requests::{self as rows, Request},
        },
        accounts,
    },
};

/// What is asked: may this user open that redirector there?
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    pub(crate) user: String,
    pub(crate) computer: String,
    pub(crate) redirector: String,
    /// A past time, milliseconds since 1970.
    pub(crate) at_ms: Option<u64>,
    /// As if a reason were given.
    pub(crate) reason: bool,
    /// As if a ticket number were given.
    pub(crate) ticket: bool,
    /// As if the user came from there.
    pub(crate) source: Option<IpAddr>,
}

/// Decides as for the user, and tells how each rule came out.
pub(super) async fn explain(
    context: &AdminContext,
    question: Question,
) -> Result<Vec<Value>, CliError> {
    let pool = &context.store.readers;
    let account = accounts::by_name(pool, &question.user)
        .await
        .map_err(store_error)?
        .ok_or_else(|| store_error(StoreError::Missing("user")))?;
    let row = super::labels::one(context, &question.computer).await?;
    let (now_ms, when) = match question.at_ms {
        Some(at) => (at, When::At(at)),
        None => (unix_ms(), When::Now),
    };
    let facts = Facts {
        now_ms,
        began_ms: now_ms,
        source: question.source,
        mfa_ms: None,
        reason: question.reason,
        ticket: question.ticket,
        approved_until_ms: None,
    };
    let holder =
        Holder::load(pool, &account.partner_id, &account.id, when).await.map_err(store_error)?;
    let (act, spot) = (Act::launch(&question.redirector), Spot::of(&row));
    let decision =
        holder.computer(pool, act, &spot, facts.clone(), when).await.map_err(store_error)?;
    let object = holder.object(pool, &spot, when).await.map_err(store_error)?;
    let lines: Vec<Value> = holder
        .rules
        .iter()
        .map(|rule| {
            let missing = match rule.check(Needs::Everything, &facts) {
                Ok(_) => Vec::new(),
                Err(unmet) => unmet.iter().map(|unmet| unmet.code()).collect(),
            };
            json!({
                "rule": rule.name(),
                "covers": spot.partner == holder.partner && rule.scope.covers(&object),
                "permits": rule.role.grants(act.permission, act.redirector),
                "current": rule.is_current(now_ms),
                "missing": missing,
                "conditions": conditions(rule),
            })
        })
        .collect();
    Ok(vec![told(&question, &row.client_path(), &row.name, now_ms, decision, lines)])
}

fn conditions(rule: &Rule) -> String {
    let parts = [rule.role.conditions.describe(), rule.conditions.describe()];
    parts.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(", ")
}

fn told(
    question: &Question,
    client: &str,
    computer: &str,
    at_ms: u64,
    decision: Decision,
    rules: Vec<Value>,
) -> Value {
    let (allowed, rule, until, code, message, missing) = match decision {
        Decision::Allow { rule, until_ms } => {
            let until = (until_ms != u64::MAX).then(|| format_ms(until_ms));
            (true, rule, until, None, None, Vec::new())
        }
        Decision::Deny { rule, refusal, unmet } => {
            let missing: Vec<&str> = unmet.iter().map(|unmet: &Unmet| unmet.code()).collect();
            (false, rule, None, Some(refusal.code), Some(refusal.message), missing)
        }
    };
    json!({
        "allowed": allowed,
        "rule": rule,
        "code": code,
        "message": message,
        "missing": missing,
        "until": until,
        "user": question.user,
        "computer": computer,
        "client": client,
        "redirector": question.redirector,
        "at": format_ms(at_ms),
        "rules": rules,
    })
}

/// Requests of all partners.
pub(super) async fn requests(
    context: &AdminContext,
    pending: bool,
) -> Result<Vec<Value>, CliError> {
    let all = Clause { text: "1 = 1".to_owned(), values: Vec::new() };
    let found = rows::list(&context.store.readers, pending, &all).await.map_err(store_error)?;
    Ok(found.iter().map(request_json).collect())
}

/// Approves or denies.
pub(super) async fn decide(
    context: &AdminContext,
    id: &str,
    approve: bool,
    length_ms: u64,
    note: String,
) -> Result<Vec<Value>, CliError> {
    let actor = Actor { name: ACTOR.to_owned(), device: None, source: None };
    let decided = requests::decide(
        &context.store.readers,
        &context.writer,
        (None, &actor),
        id,
        Judgement { approve, length_ms, note },
        Facts::default(),
    )
    .await
    .map_err(|error| match error {
        RequestError::Store(error) => store_error(error),
        RequestError::Refused(refusal) => {
            let exit = match refusal.code {
                failure::NO_SUCH_REQUEST => Exit::NotThere,
                failure::BAD_REQUEST => Exit::Usage,
                _ => Exit::Refused,
            };
            CliError::new(refusal.code, exit, refusal.message)
        }
    })?;
    if !approve {
        context.rules_changed().await;
    }
    Ok(vec![request_json(&decided)])
}

fn request_json(request: &Request) -> Value {
    let decision = request.decision.as_ref();
    json!({
        "request": request.id,
        "state": request.state(unix_ms()),
        "user": request.user,
        "client": request.client,
        "computer": request.computer,
        "redirector": request.redirector,
        "reason": request.reason,
        "ticket": request.ticket,
        "asked": format_ms(request.asked_ms),
        "length_ms": request.length_ms,
        "decided_by": decision.map(|decision| decision.by.clone()),
        "until": decision.filter(|d| d.approved).map(|decision| format_ms(decision.until_ms)),
    })
}
