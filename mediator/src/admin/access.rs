//! Roles and bindings, as the machine's administrator manages them.
//!
//! On behalf of a user (`as_user`) nothing can be granted that this user does not hold: the
//! check is the one that remote administration uses.

use adit_protocol::code::failure;
use adit_runtime::{
    cli::CliError,
    time::{format_ms, unix_ms},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::handle::{ACTOR, AdminContext, bad_name, event};
use crate::{
    authz::Holder,
    names,
    place::store_error,
    roles::{
        Conditions, Permission, Redirectors, Role, Scope,
        mint::{may_grant, plain},
        role::MAX_REDIRECTORS,
    },
    store::{
        StoreError, WriteTx,
        access::{
            When,
            bindings::{self, Binding, Subject},
            roles,
        },
        accounts, computers, fresh_id, tenants,
    },
};

/// An act on access.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum AccessAct {
    /// Lists roles and bindings.
    RoleList { partner: Option<String> },
    /// Shows a role and to whom it is bound.
    RoleShow { partner: Option<String>, role: String },
    /// Makes a role, or with `replace` a new version of one.
    RoleCreate {
        partner: Option<String>,
        role: String,
        permissions: Vec<String>,
        redirectors: Vec<String>,
        conditions: Conditions,
        replace: bool,
    },
    /// Deletes a role and its bindings.
    RoleDelete { partner: Option<String>, role: String },
    /// Binds a role.
    RoleBind(Box<Bind>),
    /// Ends a binding.
    RoleUnbind { binding: String },
    /// Puts a user into a group, or takes it out.
    UserGroup { user: String, group: String, remove: bool },
    /// Lists computers.
    ComputerList { query: String },
    /// Gives a computer a group or tag, or takes it away.
    ComputerLabel { computer: String, group: Option<String>, tag: Option<String>, remove: bool },
    /// Lists requests.
    RequestList { pending: bool },
    /// Decides a request.
    RequestDecide { id: String, approve: bool, length_ms: u64, note: String },
    /// Says which rule allows or denies.
    Explain(super::explain::Question),
}

/// A binding to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bind {
    pub(crate) role: String,
    pub(crate) user: Option<String>,
    pub(crate) group: Option<String>,
    /// Of a group.
    pub(crate) partner: Option<String>,
    pub(crate) scope: ScopeArg,
    pub(crate) conditions: Conditions,
    pub(crate) expires_ms: Option<u64>,
    pub(crate) as_user: Option<String>,
}

/// A scope by names; nothing: the subject's partner.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ScopeArg {
    pub(crate) installation: bool,
    pub(crate) client: Option<String>,
    pub(crate) computers: Option<String>,
    pub(crate) tag: Option<String>,
    pub(crate) computer: Option<String>,
}

/// Does it.
pub(super) async fn handle(context: &AdminContext, act: AccessAct) -> Result<Vec<Value>, CliError> {
    match act {
        AccessAct::RoleList { partner } => list(context, partner).await,
        AccessAct::RoleShow { partner, role } => show(context, partner, &role).await,
        AccessAct::RoleCreate { partner, role, permissions, redirectors, conditions, replace } => {
            let role = new_role(role, &permissions, redirectors, conditions)?;
            create(context, partner, role, replace).await
        }
        AccessAct::RoleDelete { partner, role } => delete(context, partner, role).await,
        AccessAct::RoleBind(wish) => bind(context, *wish).await,
        AccessAct::RoleUnbind { binding } => unbind(context, binding).await,
        AccessAct::UserGroup { user, group, remove } => {
            super::labels::user_group(context, user, group, remove).await
        }
        AccessAct::ComputerList { query } => super::labels::list(context, &query).await,
        AccessAct::ComputerLabel { computer, group, tag, remove } => {
            super::labels::label(context, &computer, group, tag, remove).await
        }
        AccessAct::RequestList { pending } => super::explain::requests(context, pending).await,
        AccessAct::RequestDecide { id, approve, length_ms, note } => {
            super::explain::decide(context, &id, approve, length_ms, note).await
        }
        AccessAct::Explain(question) => super::explain::explain(context, question).await,
    }
}

fn not_found(what: &'static str) -> CliError {
    store_error(StoreError::Missing(what))
}

/// The partner of that name, or the first one.
async fn partner(
    context: &AdminContext,
    name: Option<String>,
) -> Result<tenants::Partner, CliError> {
    let home = context.home().await.map_err(store_error)?;
    context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                match name {
                    Some(name) => {
                        tenants::partner(tx, &name).await?.ok_or(StoreError::Missing("partner"))
                    }
                    None => tenants::partner_by_id(tx, &home).await,
                }
            })
        })
        .await
        .map_err(store_error)
}

fn role_json(role: &Role, builtin: bool) -> Value {
    let redirectors = match &role.redirectors {
        Redirectors::All => json!("all"),
        Redirectors::Only(names) => json!(names),
    };
    json!({
        "role": role.name,
        "builtin": builtin,
        "permissions": role.permissions.iter().map(|p| p.name()).collect::<Vec<_>>(),
        "redirectors": redirectors,
        "conditions": role.conditions,
    })
}

async fn list(context: &AdminContext, name: Option<String>) -> Result<Vec<Value>, CliError> {
    let partner = partner(context, name).await?;
    let own = roles::list(&context.store.readers, &partner.id).await.map_err(store_error)?;
    let builtin = Role::builtins().map(|(role, help)| {
        let mut told = role_json(&role, true);
        if let Some(object) = told.as_object_mut() {
            object.insert("description".to_owned(), help.into());
        }
        told
    });
    Ok(builtin.chain(own.iter().map(|role| role_json(role, false))).collect())
}

async fn show(
    context: &AdminContext,
    name: Option<String>,
    role: &str,
) -> Result<Vec<Value>, CliError> {
    let partner = partner(context, name).await?;
    let pool = &context.store.readers;
    let own = roles::list(pool, &partner.id).await.map_err(store_error)?;
    let builtin = Role::builtin(&tenants::name_key(role));
    let is_builtin = builtin.is_some();
    let same = |own: &Role| tenants::name_key(&own.name) == tenants::name_key(role);
    let role = builtin.or_else(|| own.into_iter().find(same)).ok_or_else(|| not_found("role"))?;
    let mut told = vec![role_json(&role, is_builtin)];
    let users = accounts::list(pool).await.map_err(store_error)?;
    let found = bindings::list(pool, &partner.id).await.map_err(store_error)?;
    for binding in found.iter().filter(|binding| binding.role == role.id) {
        let mut line = binding_json(binding);
        let name = match &binding.subject {
            Subject::User(id) => users.iter().find(|user| user.id == *id).map(|u| u.name.clone()),
            Subject::Group(name) => Some(name.clone()),
        };
        if let Some(object) = line.as_object_mut() {
            object.insert("name".to_owned(), name.into());
        }
        told.push(line);
    }
    Ok(told)
}

/// A binding for people and scripts.
pub(super) fn binding_json(binding: &Binding) -> Value {
    json!({
        "binding": binding.id,
        "subject": binding.subject.kind(),
        "scope": binding.scope.kind(),
        "scope_id": match &binding.scope {
            Scope::Installation => None,
            Scope::Partner(id) => Some(id),
            Scope::Client { client, .. } => Some(client),
            Scope::Group { label, .. } | Scope::Tag { label, .. } => Some(label),
            Scope::Computer { computer, .. } => Some(computer),
        },
        "conditions": binding.conditions,
        "expires": binding.expires_ms.map(format_ms),
    })
}

fn new_role(
    name: String,
    permissions: &[String],
    redirectors: Vec<String>,
    conditions: Conditions,
) -> Result<Role, CliError> {
    let usage = |text: String| CliError::usage("usage", text);
    names::check(&name).map_err(bad_name)?;
    if Role::builtin(&tenants::name_key(&name)).is_some() {
        return Err(usage(format!("{name} is a built-in role, which cannot be changed")));
    }
    let mut parsed = std::collections::BTreeSet::new();
    for permission in permissions {
        let permission: Permission =
            permission.parse().map_err(|error: crate::roles::permission::UnknownPermission| {
                usage(error.to_string())
            })?;
        parsed.insert(permission);
    }
    if parsed.is_empty() {
        return Err(usage("a role needs at least one --permission".to_owned()));
    }
    if redirectors.len() > MAX_REDIRECTORS || redirectors.iter().any(|r| names::check(r).is_err()) {
        return Err(usage("too many redirectors, or one that is no name".to_owned()));
    }
    let redirectors = match redirectors.as_slice() {
        [] => Redirectors::All,
        some => Redirectors::Only(some.iter().cloned().collect()),
    };
    Ok(Role { id: String::new(), name, permissions: parsed, redirectors, conditions })
}

async fn create(
    context: &AdminContext,
    name: Option<String>,
    mut role: Role,
    replace: bool,
) -> Result<Vec<Value>, CliError> {
    let partner = partner(context, name).await?;
    let told = role_json(&role, false);
    context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let known = roles::by_name(tx, &partner.id, &role.name).await?;
                let what = match known {
                    Some(known) if replace => {
                        role.id = known.id;
                        roles::close(tx, &role.id).await?;
                        "role.changed"
                    }
                    Some(_) => return Err(StoreError::Taken("name of the role")),
                    None => {
                        role.id = fresh_id()?;
                        "role.created"
                    }
                };
                roles::insert(tx, &partner.id, &role).await?;
                let done = describe(event(what, &partner.name), &role);
                tx.append(&partner.id, done).await
            })
        })
        .await
        .map_err(store_error)?;
    context.rules_changed().await;
    Ok(vec![told])
}

fn describe(event: adit_ledger::Event, role: &Role) -> adit_ledger::Event {
    let permissions: Vec<&str> = role.permissions.iter().map(|p| p.name()).collect();
    let redirectors = match &role.redirectors {
        Redirectors::All => "all".to_owned(),
        Redirectors::Only(names) => names.iter().cloned().collect::<Vec<_>>().join(" "),
    };
    event
        .extra("role", role.name.as_str())
        .extra("permissions", permissions.join(" "))
        .extra("redirectors", redirectors)
        .extra("conditions", role.conditions.describe())
}

async fn delete(
    context: &AdminContext,
    name: Option<String>,
    role: String,
) -> Result<Vec<Value>, CliError> {
    if Role::builtin(&tenants::name_key(&role)).is_some() {
        let text = format!("{role} is a built-in role, which cannot be deleted");
        return Err(CliError::usage("usage", text));
    }
    let partner = partner(context, name).await?;
    let wanted = role.clone();
    let bindings = context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let role = roles::by_name(tx, &partner.id, &wanted)
                    .await?
                    .ok_or(StoreError::Missing("role"))?;
                roles::close(tx, &role.id).await?;
                let bindings = bindings::close_of_role(tx, &role.id).await?;
                let done = event("role.deleted", &partner.name)
                    .extra("role", role.name.as_str())
                    .extra("bindings", bindings);
                tx.append(&partner.id, done).await?;
                Ok(bindings)
            })
        })
        .await
        .map_err(store_error)?;
    context.rules_changed().await;
    Ok(vec![json!({"role": role, "deleted": true, "bindings": bindings})])
}

/// Names turned into rows.
struct Resolved {
    partner: String,
    partner_name: String,
    subject: Subject,
    name: String,
    role: Role,
    scope: Scope,
}

async fn bind(context: &AdminContext, wish: Bind) -> Result<Vec<Value>, CliError> {
    if wish.expires_ms.is_some_and(|end| end <= unix_ms()) {
        return Err(CliError::usage("usage", "--until: a time to come is expected"));
    }
    let resolved = resolve(context, &wish).await?;
    if let Some(user) = &wish.as_user {
        check_holder(context, user, &resolved, &wish).await?;
    }
    let binding = Binding {
        id: fresh_id().map_err(store_error)?,
        partner: resolved.partner.clone(),
        subject: resolved.subject.clone(),
        role: resolved.role.id.clone(),
        scope: resolved.scope.clone(),
        conditions: wish.conditions.clone(),
        expires_ms: wish.expires_ms,
    };
    let mut told = binding_json(&binding);
    if let Some(object) = told.as_object_mut() {
        object.insert("name".to_owned(), resolved.name.clone().into());
        object.insert("role".to_owned(), resolved.role.name.clone().into());
    }
    let actor = wish.as_user.clone().unwrap_or_else(|| ACTOR.to_owned());
    context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                bindings::insert(tx, &binding).await?;
                tx.append(&resolved.partner, bound(&binding, &resolved, &actor)).await
            })
        })
        .await
        .map_err(store_error)?;
    context.rules_changed().await;
    Ok(vec![told])
}

fn bound(binding: &Binding, resolved: &Resolved, actor: &str) -> adit_ledger::Event {
    let mut done = event("role.bound", &resolved.partner_name)
        .actor(actor)
        .extra("role", resolved.role.name.as_str())
        .extra("binding", binding.id.as_str())
        .extra("scope", binding.scope.kind())
        .extra("conditions", binding.conditions.describe())
        .extra_personal(binding.subject.kind(), resolved.name.as_str());
    match &binding.scope {
        Scope::Installation | Scope::Partner(_) => {}
        Scope::Client { client, .. } => done = done.extra("client_id", client.as_str()),
        Scope::Group { label, .. } | Scope::Tag { label, .. } => {
            done = done.extra("label", label.as_str());
        }
        Scope::Computer { computer, .. } => done = done.computer_id(computer),
    }
    match binding.expires_ms {
        Some(end) => done.extra("expires", format_ms(end)),
        None => done,
    }
}

async fn resolve(context: &AdminContext, wish: &Bind) -> Result<Resolved, CliError> {
    let subject = match (&wish.user, &wish.group) {
        (Some(_), None) => None,
        (None, Some(group)) => {
            names::check(group).map_err(bad_name)?;
            Some(partner(context, wish.partner.clone()).await?)
        }
        _ => return Err(CliError::usage("usage", "give --user or --user-group")),
    };
    let computer = match &wish.scope.computer {
        Some(text) => Some(super::labels::one(context, text).await?),
        None => None,
    };
    let wish = wish.clone();
    context
        .writer
        .write(move |tx| Box::pin(async move { resolve_rows(tx, wish, subject, computer).await }))
        .await
        .map_err(store_error)
}

async fn resolve_rows(
    tx: &mut WriteTx,
    wish: Bind,
    group_of: Option<tenants::Partner>,
    computer: Option<computers::ComputerRow>,
) -> Result<Resolved, StoreError> {
    let (partner, partner_name, subject, name) = match (group_of, wish.group, wish.user) {
        (Some(partner), Some(group), _) => {
            (partner.id, partner.name, Subject::Group(group.clone()), group)
        }
        (_, _, user) => {
            let account = accounts::find(tx, &user.unwrap_or_default()).await?;
            let subject = Subject::User(account.id);
            (account.partner_id, account.partner, subject, account.name)
        }
    };
    let role =
        roles::by_name(tx, &partner, &wish.role).await?.ok_or(StoreError::Missing("role"))?;
    let arg = wish.scope;
    let scope = if arg.installation {
        Scope::Installation
    } else if let Some(path) = arg.client {
        let (of, client) = names::client_path(&path).map_err(|_| StoreError::Missing("client"))?;
        let client = tenants::client(tx, of, client).await?;
        if client.partner_id != partner {
            return Err(StoreError::Missing("client of the user's partner"));
        }
        Scope::Client { partner: partner.clone(), client: client.id }
    } else if let Some(label) = arg.computers {
        Scope::Group { partner: partner.clone(), label }
    } else if let Some(label) = arg.tag {
        Scope::Tag { partner: partner.clone(), label }
    } else if let Some(row) = computer {
        if row.partner_id != partner {
            return Err(StoreError::Missing("computer of the user's partner"));
        }
        Scope::Computer {
            partner: partner.clone(),
            client: row.client_id,
            computer: row.id.to_string(),
        }
    } else {
        Scope::Partner(partner.clone())
    };
    Ok(Resolved { partner, partner_name, subject, name, role, scope })
}

async fn check_holder(
    context: &AdminContext,
    user: &str,
    resolved: &Resolved,
    wish: &Bind,
) -> Result<(), CliError> {
    let pool = &context.store.readers;
    let account = accounts::by_name(pool, user)
        .await
        .map_err(store_error)?
        .ok_or_else(|| not_found("user"))?;
    let holder = Holder::load(pool, &account.partner_id, &account.id, When::Now)
        .await
        .map_err(store_error)?;
    let rules = if holder.disabled { &[] } else { holder.rules.as_slice() };
    let circumstances = plain(&holder.partner, unix_ms());
    may_grant(
        rules,
        &circumstances,
        &resolved.role,
        &resolved.scope,
        &wish.conditions,
        wish.expires_ms,
    )
    .map_err(|error| CliError::refused(failure::NOT_PERMITTED, format!("{user}: {error}")))
}

async fn unbind(context: &AdminContext, binding: String) -> Result<Vec<Value>, CliError> {
    let wanted = binding.clone();
    context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let found =
                    bindings::by_id(tx, &wanted).await?.ok_or(StoreError::Missing("binding"))?;
                bindings::close(tx, &found.id).await?;
                let partner = tenants::partner_by_id(tx, &found.partner).await?;
                let done = event("role.unbound", &partner.name)
                    .extra("binding", found.id.as_str())
                    .extra("scope", found.scope.kind())
                    .extra(found.subject.kind(), found.subject.id());
                tx.append(&partner.id, done).await
            })
        })
        .await
        .map_err(store_error)?;
    context.rules_changed().await;
    Ok(vec![json!({"binding": binding, "unbound": true})])
}
