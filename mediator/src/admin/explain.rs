//! Which rule allows or denies, now or at a past time; and requests for access.

use std::net::IpAddr;

use adit_protocol::code::failure;
use adit_runtime::{
    cli::{CliError, Exit},
    time::{format_ms, unix_ms},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    actor::{Actor, Kind, LOCAL, not_found},
    handle::Who,
};
use crate::{
    authz::{Decision, Holder, Spot},
    core::types::Refusal,
    place::store_error,
    requests::{self, By, Judgement, RequestError, Wish, is_redirector},
    roles::{Act, Needs, Permission, Rule, Unmet, conditions::Facts},
    store::{
        access::{
            When,
            filter::{self, Clause},
            requests::{self as rows, Request},
        },
        accounts, tenants,
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

/// Who may ask why others may do something.
const SEE: &[Permission] =
    &[Permission::ManageRoles, Permission::ManageUsers, Permission::ReadAudit];

/// The rule that the log names for what no computer has.
const MALFORMED: &str = "malformed";

/// Decides as for the user, and tells how each rule came out.
pub(super) async fn explain(
    (context, actor): Who<'_>,
    question: Question,
) -> Result<Vec<Value>, CliError> {
    let pool = &context.store.readers;
    // Everybody may ask about oneself.
    let own = actor.remote().is_some_and(|remote| {
        remote.kind == Kind::Console
            && tenants::name_key(&remote.name) == tenants::name_key(&question.user)
    });
    if !own {
        actor.may_at_home(context, SEE).await?;
    }
    let account = accounts::by_name(pool, &question.user).await.map_err(store_error)?;
    let account = account
        .filter(|account| actor.reaches(&account.partner_id))
        .ok_or_else(|| not_found("user"))?;
    let row = super::labels::one(context, actor, &question.computer).await?;
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
    // Each rule is held to what the decision was held to, approvals included.
    let (decision, facts) =
        holder.judged(pool, act, &spot, facts, when).await.map_err(store_error)?;
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
    let decision = if is_redirector(&question.redirector) { decision } else { nowhere(&question) };
    Ok(vec![told(&question, &row.client_path(), &row.name, now_ms, decision, lines)])
}

/// Opening it is refused before any rule is asked, and under the same name in the log.
fn nowhere(question: &Question) -> Decision {
    let known: Vec<&str> = requests::redirectors().collect();
    let text = format!(
        "no computer has a redirector {}; there are {}",
        question.redirector,
        known.join(", ")
    );
    let refusal = Refusal::new(failure::NO_SUCH_REDIRECTOR, text);
    Decision::Deny { rule: MALFORMED.to_owned(), refusal, unmet: Vec::new() }
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
        "known": is_redirector(&question.redirector),
        "at": format_ms(at_ms),
        "rules": rules,
    })
}

/// Requests of all partners.
pub(super) async fn requests(
    (context, actor): Who<'_>,
    pending: bool,
) -> Result<Vec<Value>, CliError> {
    let clause = match actor.remote() {
        None => Clause { text: "1 = 1".to_owned(), values: Vec::new() },
        Some(remote) => {
            let (holder, facts) = (&remote.holder, remote.facts());
            let mut clause = holder.filter(Permission::ApproveRequests, facts, &filter::COMPUTER);
            let own = clause.bind(holder.account.as_str());
            clause.text =
                format!("((r.account_id = {own} AND r.partner_id = $1) OR {})", clause.text);
            clause
        }
    };
    let found = rows::list(&context.store.readers, pending, &clause).await.map_err(store_error)?;
    Ok(found.iter().map(request_json).collect())
}

/// Asks for access, as somebody who lacks only the approval.
pub(super) async fn make(
    (context, actor): Who<'_>,
    computer: &str,
    wish: Wish,
) -> Result<Vec<Value>, CliError> {
    let Actor::Remote(remote) = actor else {
        return Err(CliError::usage("usage", "requests are made by users"));
    };
    if remote.kind != Kind::Console {
        let text = "an API key opens no session, and asks for none".to_owned();
        return Err(actor.refuse(context, "api-key", text).await?);
    }
    if !is_redirector(&wish.redirector) {
        let text = "there is no such redirector";
        return Err(CliError::not_there(failure::NO_SUCH_REDIRECTOR, text));
    }
    let row = super::labels::one(context, actor, computer).await?;
    let (pool, who) = (&context.store.readers, remote.as_requester());
    let made =
        requests::make(pool, &context.writer, (&remote.holder, &who), &row, wish, remote.facts());
    Ok(vec![request_json(&made.await.map_err(request_error)?)])
}

/// Approves or denies.
pub(super) async fn decide(
    (context, actor): Who<'_>,
    id: &str,
    approve: bool,
    length_ms: u64,
    note: String,
) -> Result<Vec<Value>, CliError> {
    let (holder, who, facts) = match actor {
        Actor::Local => {
            let who = requests::Actor { name: LOCAL.to_owned(), device: None, source: None };
            (None, who, Facts::default())
        }
        Actor::Remote(remote) => (Some(&remote.holder), remote.as_requester(), remote.facts()),
    };
    let by = actor.remote().map_or(By::Local, |remote| match remote.kind {
        Kind::Console => By::Device(remote.device),
        Kind::Key => By::Key,
    });
    let decided = requests::decide(
        &context.store.readers,
        &context.writer,
        (holder, &who),
        id,
        Judgement { approve, length_ms, note, by },
        facts,
    );
    let decided = decided.await.map_err(request_error)?;
    if !approve {
        context.rules_changed().await;
    }
    Ok(vec![request_json(&decided)])
}

fn request_error(error: RequestError) -> CliError {
    match error {
        RequestError::Store(error) => store_error(error),
        RequestError::Refused(refusal, hint) => {
            let exit = match refusal.code {
                failure::NO_SUCH_REQUEST | failure::NO_SUCH_COMPUTER => Exit::NotThere,
                failure::BAD_REQUEST | failure::REASON_REQUIRED => Exit::Usage,
                failure::BUSY | failure::REQUEST_PENDING => Exit::Failed,
                _ => Exit::Refused,
            };
            let error = CliError::new(refusal.code, exit, refusal.message);
            if hint.is_empty() { error } else { error.hint(hint) }
        }
    }
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
