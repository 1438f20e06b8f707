//! Roles, bindings, requests for access, explanations.

use serde_json::json;

use super::{
    Api, Call,
    Method::{Delete, Get, Post, Put},
    Nothing, One, Operation, Page,
    kinds::*,
    page,
    people::scope_arg,
};
use crate::{
    admin::{
        AdminRequest,
        access::{AccessAct, Bind},
        explain::Question,
    },
    http::Problem,
    roles::{Conditions, Permission},
};

type Answer<T> = Result<One<T>, Problem>;

const ROLES: &[&str] = &["roles.manage"];
const SEE: &[&str] = &["roles.manage", "users.manage", "audit.read"];
const APPROVE: &[&str] = &["requests.approve"];

pub(super) fn mount(api: &mut Api) {
    let op = |method, path, id, summary, needs| Operation { method, path, id, summary, needs };
    let text = "List what can be permitted";
    api.operation(op(Get, "/permissions", "permissions.list", text, &[]), permissions);
    api.operation(op(Get, "/roles", "roles.list", "List roles", SEE), roles);
    api.operation(op(Post, "/roles", "roles.create", "Make a role", ROLES), create);
    api.operation(op(Get, "/roles/{role}", "roles.show", "Show a role", SEE), show);
    let text = "Put a role in the place of the one of this name; live sessions are judged anew";
    api.operation(op(Put, "/roles/{role}", "roles.replace", text, ROLES), replace);
    let text = "Delete a role and its bindings";
    api.operation(op(Delete, "/roles/{role}", "roles.delete", text, ROLES), delete);
    api.operation(op(Get, "/bindings", "bindings.list", "List bindings", SEE), bindings);
    let text = "Bind a role, within the own rules";
    api.operation(op(Post, "/bindings", "bindings.create", text, ROLES), bind);
    let text = "End a binding; live sessions are judged anew";
    api.operation(op(Delete, "/bindings/{binding}", "bindings.delete", text, ROLES), unbind);
    let text = "List requests: the own, and those one may decide";
    api.operation(op(Get, "/requests", "requests.list", text, &[]), requests);
    let text = "Ask for access that needs approval";
    api.operation(op(Post, "/requests", "requests.make", text, &["launch"]), make);
    let text = "Approve a request";
    api.operation(
        op(Post, "/requests/{request}/approve", "requests.approve", text, APPROVE),
        approve,
    );
    let text = "Deny a request, or take an approval back";
    api.operation(op(Post, "/requests/{request}/deny", "requests.deny", text, APPROVE), deny);
    let text = "Which rule lets a user open a redirector, or does not";
    api.operation(op(Get, "/explain", "explain", text, SEE), explain);
}

async fn permissions(call: Call<Paging, Nothing>) -> Result<Page<PermissionKind>, Problem> {
    let all = Permission::ALL.map(
        |permission| json!({"permission": permission.name(), "meaning": permission.meaning()}),
    );
    page(all.to_vec(), call.query.page(), "permission")
}

async fn roles(call: Call<Paging, Nothing>) -> Result<Page<Role>, Problem> {
    let act = AdminRequest::Access(AccessAct::RoleList { partner: None });
    call.page(act, call.query.page(), "role").await
}

/// Conditions as acts take them.
fn conditions(given: &ConditionsOf) -> Result<Conditions, Problem> {
    serde_json::to_value(given)
        .and_then(serde_json::from_value)
        .map_err(|error| Problem::bad_request(format!("conditions: {error}")))
}

fn role_act(role: String, content: RoleContent, replace: bool) -> Result<AdminRequest, Problem> {
    let conditions = conditions(&content.conditions)?;
    let RoleContent { permissions, redirectors, .. } = content;
    let partner = None;
    Ok(AdminRequest::Access(AccessAct::RoleCreate {
        partner,
        role,
        permissions,
        redirectors,
        conditions,
        replace,
    }))
}

async fn create(call: Call<Nothing, NewRole>) -> Answer<Role> {
    let NewRole { role, permissions, redirectors, conditions } = call.body.clone();
    let content = RoleContent { permissions, redirectors, conditions };
    call.one(role_act(role, content, false)?).await.map(One)
}

async fn show(call: Call<Nothing, Nothing>) -> Answer<Role> {
    let act = AccessAct::RoleShow { partner: None, role: call.part("role") };
    call.one(AdminRequest::Access(act)).await.map(One)
}

async fn replace(call: Call<Nothing, RoleContent>) -> Answer<Role> {
    call.one(role_act(call.part("role"), call.body.clone(), true)?).await.map(One)
}

async fn delete(call: Call<Nothing, Nothing>) -> Answer<DeletedRole> {
    let act = AccessAct::RoleDelete { partner: None, role: call.part("role") };
    call.one(AdminRequest::Access(act)).await.map(One)
}

async fn bindings(call: Call<Paging, Nothing>) -> Result<Page<Binding>, Problem> {
    let act = AdminRequest::Access(AccessAct::BindingList { partner: None });
    call.page(act, call.query.page(), "binding").await
}

/// Milliseconds since 1970.
pub(super) fn time(name: &str, text: Option<&str>) -> Result<Option<u64>, Problem> {
    let bad = || Problem::bad_request(format!("{name}: a time as in RFC 3339 is expected"));
    let Some(text) = text else { return Ok(None) };
    let time: jiff::Timestamp = text.parse().map_err(|_| bad())?;
    u64::try_from(time.as_millisecond()).map(Some).map_err(|_| bad())
}

async fn bind(call: Call<Nothing, NewBinding>) -> Answer<Binding> {
    let NewBinding { role, user, group, key, scope, conditions: given, expires } =
        call.body.clone();
    let wish = Bind {
        role,
        user,
        group,
        key,
        partner: None,
        scope: scope_arg(scope),
        conditions: conditions(&given)?,
        expires_ms: time("expires", expires.as_deref())?,
        as_user: None,
    };
    call.one(AdminRequest::Access(AccessAct::RoleBind(Box::new(wish)))).await.map(One)
}

async fn unbind(call: Call<Nothing, Nothing>) -> Answer<Unbound> {
    let act = AccessAct::RoleUnbind { binding: call.part("binding") };
    call.one(AdminRequest::Access(act)).await.map(One)
}

async fn requests(call: Call<RequestQuery, Nothing>) -> Result<Page<AccessRequest>, Problem> {
    let act = AdminRequest::Access(AccessAct::RequestList { pending: call.query.pending });
    let paging = (call.query.limit, call.query.cursor.as_deref());
    call.page(act, paging, "request").await
}

async fn make(call: Call<Nothing, NewRequest>) -> Answer<AccessRequest> {
    let NewRequest { computer, redirector, reason, ticket, length_ms } = call.body.clone();
    let act = AccessAct::RequestMake { computer, redirector, reason, ticket, length_ms };
    call.one(AdminRequest::Access(act)).await.map(One)
}

async fn approve(call: Call<Nothing, Judgement>) -> Answer<AccessRequest> {
    decide(&call, true).await
}

async fn deny(call: Call<Nothing, Judgement>) -> Answer<AccessRequest> {
    decide(&call, false).await
}

async fn decide(call: &Call<Nothing, Judgement>, approve: bool) -> Answer<AccessRequest> {
    let Judgement { length_ms, note } = call.body.clone();
    let act = AccessAct::RequestDecide { id: call.part("request"), approve, length_ms, note };
    call.one(AdminRequest::Access(act)).await.map(One)
}

async fn explain(call: Call<ExplainQuery, Nothing>) -> Answer<Explanation> {
    let ExplainQuery { user, computer, redirector, at, reason, ticket, source } =
        call.query.clone();
    let at_ms = time("at", at.as_deref())?;
    let question = Question { user, computer, redirector, at_ms, reason, ticket, source };
    call.one(AdminRequest::Access(AccessAct::Explain(question))).await.map(One)
}
