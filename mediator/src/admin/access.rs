//! Roles and bindings, as the machine's administrator manages them.
//!
//! On behalf of a user (`as_user`) nothing can be granted that this user does not hold: the
//! check is the one that remote administration uses.

use std::collections::BTreeMap;

use adit_protocol::code::failure;
use adit_runtime::{
    cli::CliError,
    time::{format_ms, unix_ms},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    actor::{Actor, Gift, not_found},
    handle::{AdminContext, Who, bad_name, no_such_client},
    last::{self, Held, USERS_AND_ROLES},
};
use crate::{
    authz::Holder,
    names,
    place::store_error,
    requests::{self, Wish},
    roles::{
        Conditions, Permission, Redirectors, Role, Scope,
        mint::{may_grant, object_of, plain},
        role::{BUILTIN, MAX_REDIRECTORS},
    },
    store::{
        StoreError, WriteTx,
        access::{
            When,
            bindings::{self, Binding, Subject},
            roles,
        },
        accounts, api, fresh_id, tenants,
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
    /// Lists bindings.
    BindingList { partner: Option<String> },
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
    /// Removes a computer: its sessions end, its agent is not enrolled any more.
    ComputerRemove { computer: String },
    /// Gives a computer another name.
    ComputerRename { computer: String, name: String },
    /// Lists requests.
    RequestList { pending: bool },
    /// Asks for access.
    RequestMake {
        computer: String,
        redirector: String,
        reason: String,
        ticket: String,
        length_ms: u64,
    },
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
    /// An API key, by id.
    #[serde(default)]
    pub(crate) key: Option<String>,
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
pub(super) async fn handle(who: Who<'_>, act: AccessAct) -> Result<Vec<Value>, CliError> {
    match act {
        AccessAct::RoleList { partner } => list(who, partner).await,
        AccessAct::RoleShow { partner, role } => show(who, partner, &role).await,
        AccessAct::RoleCreate { partner, role, permissions, redirectors, conditions, replace } => {
            let role = new_role(role, &permissions, redirectors, conditions)?;
            create(who, partner, role, replace).await
        }
        AccessAct::RoleDelete { partner, role } => delete(who, partner, role).await,
        AccessAct::BindingList { partner } => binding_list(who, partner).await,
        AccessAct::RoleBind(wish) => bind(who, *wish).await,
        AccessAct::RoleUnbind { binding } => unbind(who, binding).await,
        AccessAct::UserGroup { user, group, remove } => {
            super::labels::user_group(who, user, group, remove).await
        }
        AccessAct::ComputerList { query } => super::labels::list(who, &query).await,
        AccessAct::ComputerLabel { computer, group, tag, remove } => {
            super::labels::label(who, &computer, group, tag, remove).await
        }
        AccessAct::ComputerRemove { computer } => super::computers::remove(who, &computer).await,
        AccessAct::ComputerRename { computer, name } => {
            super::computers::rename(who, &computer, name).await
        }
        AccessAct::RequestList { pending } => super::explain::requests(who, pending).await,
        AccessAct::RequestMake { computer, redirector, reason, ticket, length_ms } => {
            let wish = Wish { redirector, reason, ticket, length_ms };
            super::explain::make(who, &computer, wish).await
        }
        AccessAct::RequestDecide { id, approve, length_ms, note } => {
            super::explain::decide(who, &id, approve, length_ms, note).await
        }
        AccessAct::Explain(question) => super::explain::explain(who, question).await,
    }
}

/// The partner of that name, or the actor's own, or the first one.
pub(super) async fn partner(
    context: &AdminContext,
    actor: &Actor,
    name: Option<String>,
) -> Result<tenants::Partner, CliError> {
    let home = match actor.remote() {
        Some(remote) => {
            let own = tenants::name_key(&remote.partner);
            if name.is_some_and(|name| tenants::name_key(&name) != own) {
                return Err(not_found("partner"));
            }
            let id = remote.holder.partner.clone();
            return Ok(tenants::Partner { id, name: remote.partner.clone() });
        }
        None => context.home().await.map_err(store_error)?,
    };
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

/// The partner's role of that name.
pub(super) async fn role(
    context: &AdminContext,
    partner: &str,
    name: &str,
) -> Result<Role, CliError> {
    if let Some(role) = Role::builtin(&tenants::name_key(name)) {
        return Ok(role);
    }
    let own = roles::list(&context.store.readers, partner).await.map_err(store_error)?;
    let same = |own: &Role| tenants::name_key(&own.name) == tenants::name_key(name);
    own.into_iter().find(same).ok_or_else(|| not_found("role"))
}

/// Who may see roles and bindings.
const SEE: &[Permission] =
    &[Permission::ManageRoles, Permission::ManageUsers, Permission::ReadAudit];
/// Who may change them.
const MANAGE: &[Permission] = &[Permission::ManageRoles];

fn role_json(role: &Role, builtin: bool) -> Value {
    let redirectors = match &role.redirectors {
        Redirectors::All => json!("all"),
        Redirectors::Only(names) => json!(names),
    };
    // Not refused: a later version may have them.
    let unknown = match &role.redirectors {
        Redirectors::All => Vec::new(),
        Redirectors::Only(names) => {
            names.iter().filter(|name| !requests::is_redirector(name)).collect()
        }
    };
    json!({
        "role": role.name,
        "builtin": builtin,
        "permissions": role.permissions.iter().map(|p| p.name()).collect::<Vec<_>>(),
        "redirectors": redirectors,
        "unknown_redirectors": unknown,
        "conditions": role.conditions,
    })
}

async fn list((context, actor): Who<'_>, name: Option<String>) -> Result<Vec<Value>, CliError> {
    actor.may_at_home(context, SEE).await?;
    let partner = partner(context, actor, name).await?;
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
    (context, actor): Who<'_>,
    name: Option<String>,
    role: &str,
) -> Result<Vec<Value>, CliError> {
    actor.may_at_home(context, SEE).await?;
    let partner = partner(context, actor, name).await?;
    let pool = &context.store.readers;
    let is_builtin = Role::builtin(&tenants::name_key(role)).is_some();
    let role = self::role(context, &partner.id, role).await?;
    let mut told = vec![role_json(&role, is_builtin)];
    let named = Names::load(context, &partner.id).await?;
    let found = bindings::list(pool, &partner.id).await.map_err(store_error)?;
    told.extend(found.iter().filter(|b| b.role == role.id).map(|b| named.line(b, None)));
    Ok(told)
}

/// All bindings of a partner, with the names of subjects and roles.
async fn binding_list(
    (context, actor): Who<'_>,
    name: Option<String>,
) -> Result<Vec<Value>, CliError> {
    actor.may_at_home(context, SEE).await?;
    let partner = partner(context, actor, name).await?;
    let pool = &context.store.readers;
    let named = Names::load(context, &partner.id).await?;
    let roles = roles::list(pool, &partner.id).await.map_err(store_error)?;
    let role_name = |id: &str| match id.strip_prefix(BUILTIN) {
        Some(name) => Some(name.to_owned()),
        None => roles.iter().find(|role| role.id == id).map(|role| role.name.clone()),
    };
    let found = bindings::list(pool, &partner.id).await.map_err(store_error)?;
    // A binding whose role is gone gives nothing.
    let held = found.iter().filter_map(|b| Some(named.line(b, Some(role_name(&b.role)?))));
    Ok(held.collect())
}

/// Names of those to whom roles are bound.
struct Names {
    users: BTreeMap<String, String>,
    keys: BTreeMap<String, String>,
}

impl Names {
    async fn load(context: &AdminContext, partner: &str) -> Result<Self, CliError> {
        let pool = &context.store.readers;
        let users = accounts::list(pool, Some(partner)).await.map_err(store_error)?;
        let keys = api::list(pool, Some(partner)).await.map_err(store_error)?;
        Ok(Self {
            users: users.into_iter().map(|user| (user.id, user.name)).collect(),
            keys: keys.into_iter().map(|key| (key.id, key.name)).collect(),
        })
    }

    fn line(&self, binding: &Binding, role: Option<String>) -> Value {
        let mut line = binding_json(binding);
        let name = match &binding.subject {
            Subject::User(id) => self.users.get(id),
            Subject::Group(name) => Some(name),
            Subject::Key(id) => self.keys.get(id),
        };
        if let Some(object) = line.as_object_mut() {
            object.insert("name".to_owned(), name.cloned().into());
            if let Some(role) = role {
                object.insert("role".to_owned(), role.into());
            }
        }
        line
    }
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
    check_times(&conditions)?;
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

fn check_times(conditions: &Conditions) -> Result<(), CliError> {
    let zero = |text| CliError::usage("usage", text).hint("leave it out to ask for nothing");
    conditions.check_times().map_err(zero)
}

async fn create(
    (context, actor): Who<'_>,
    name: Option<String>,
    mut role: Role,
    replace: bool,
) -> Result<Vec<Value>, CliError> {
    actor.may_at_home(context, MANAGE).await?;
    let partner = partner(context, actor, name).await?;
    let scope = Scope::Partner(partner.id.clone());
    let there = self::role(context, &partner.id, &role.name).await;
    if replace && there.is_err() && actor.remote().is_some() {
        return Err(not_found("role"));
    }
    let mut judged = Vec::new();
    if let Ok(there) = there
        && replace
    {
        let conditions = &Conditions::default();
        let gift = Gift { role: &role, scope: &scope, conditions, expires_ms: None, binds: true };
        actor.may_give(context, &gift).await?;
        // Whoever has the role gets what it now holds, wherever it is bound.
        judged = of_role(context, &partner.id, &there.id).await?;
        for binding in &judged {
            let Binding { scope, conditions, expires_ms, .. } = binding;
            let gift =
                Gift { role: &role, scope, conditions, expires_ms: *expires_ms, binds: true };
            actor.may_give(context, &gift).await?;
        }
    }
    let by = actor.clone();
    let told = role_json(&role, false);
    let created = context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let held = Held::before(tx, &by, &partner.id, USERS_AND_ROLES).await?;
                let known = roles::by_name(tx, &partner.id, &role.name).await?;
                let what = match known {
                    Some(known) if replace => {
                        same_bindings(tx, &known.id, &judged, &by).await?;
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
                held.after(tx).await?;
                let done = describe(by.event(what, &partner.name), &role);
                tx.append(&partner.id, done).await
            })
        })
        .await;
    if let Err(error) = created {
        return Err(last::told((context, actor), error).await);
    }
    context.rules_changed().await;
    Ok(vec![told])
}

/// The bindings of a role that hold.
async fn of_role(
    context: &AdminContext,
    partner: &str,
    role: &str,
) -> Result<Vec<Binding>, CliError> {
    let found = bindings::list(&context.store.readers, partner).await.map_err(store_error)?;
    Ok(found.into_iter().filter(|binding| binding.role == role).collect())
}

/// What is changed in the transaction must be what was judged before it.
async fn same_bindings(
    tx: &mut WriteTx,
    role: &str,
    judged: &[Binding],
    by: &Actor,
) -> Result<(), StoreError> {
    if by.remote().is_none() {
        return Ok(());
    }
    let now = bindings::ids_of_role(tx, role).await?;
    match now.iter().all(|id| judged.iter().any(|binding| binding.id == *id)) {
        true => Ok(()),
        // Bound elsewhere meanwhile.
        false => Err(StoreError::Missing("role in that state; try again")),
    }
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
    (context, actor): Who<'_>,
    name: Option<String>,
    role: String,
) -> Result<Vec<Value>, CliError> {
    if Role::builtin(&tenants::name_key(&role)).is_some() {
        let text = format!("{role} is a built-in role, which cannot be deleted");
        return Err(CliError::usage("usage", text));
    }
    actor.may_at_home(context, MANAGE).await?;
    let partner = partner(context, actor, name).await?;
    let known = self::role(context, &partner.id, &role).await?;
    // Its bindings end with it: each takes the right to end it where it holds.
    let judged = of_role(context, &partner.id, &known.id).await?;
    for binding in &judged {
        actor.may_on(context, &object_of(&binding.scope), MANAGE).await?;
    }
    let (wanted, by) = (role.clone(), actor.clone());
    let bindings = context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let role = roles::by_name(tx, &partner.id, &wanted)
                    .await?
                    .ok_or(StoreError::Missing("role"))?;
                same_bindings(tx, &role.id, &judged, &by).await?;
                let held = Held::before(tx, &by, &partner.id, USERS_AND_ROLES).await?;
                roles::close(tx, &role.id).await?;
                let bindings = bindings::close_of_role(tx, &role.id).await?;
                held.after(tx).await?;
                let done = by
                    .event("role.deleted", &partner.name)
                    .extra("role", role.name.as_str())
                    .extra("bindings", bindings);
                tx.append(&partner.id, done).await?;
                Ok(bindings)
            })
        })
        .await;
    let bindings = match bindings {
        Ok(bindings) => bindings,
        Err(error) => return Err(last::told((context, actor), error).await),
    };
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

async fn bind((context, actor): Who<'_>, wish: Bind) -> Result<Vec<Value>, CliError> {
    if wish.expires_ms.is_some_and(|end| end <= unix_ms()) {
        return Err(CliError::usage("usage", "--until: a time to come is expected"));
    }
    check_times(&wish.conditions)?;
    if actor.remote().is_some() {
        actor.may_manage_roles_somewhere(context).await?;
    }
    let resolved = resolve(context, actor, &wish).await?;
    let gift = Gift {
        role: &resolved.role,
        scope: &resolved.scope,
        conditions: &wish.conditions,
        expires_ms: wish.expires_ms,
        binds: true,
    };
    actor.may_give(context, &gift).await?;
    if let (Some(user), Actor::Local) = (&wish.as_user, actor) {
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
    let (by, on_behalf) = (actor.clone(), wish.as_user.clone());
    context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                bindings::insert(tx, &binding).await?;
                let client = client_of(tx, &binding.scope).await?;
                let done = in_client(bound(&binding, &resolved, &by), client);
                let done = match on_behalf {
                    Some(user) if by.remote().is_none() => done.actor(user),
                    _ => done,
                };
                tx.append(&resolved.partner, done).await
            })
        })
        .await
        .map_err(store_error)?;
    context.rules_changed().await;
    Ok(vec![told])
}

/// The client in which all of a scope lies. Groups and tags are the partner's own: what is bound
/// there outlasts any client, and so does the record of it.
async fn client_of(tx: &mut WriteTx, scope: &Scope) -> Result<Option<String>, StoreError> {
    match scope {
        Scope::Client { client, .. } | Scope::Computer { client, .. } => {
            Ok(Some(tenants::client_by_id(tx, client).await?.path()))
        }
        Scope::Installation | Scope::Partner(_) | Scope::Group { .. } | Scope::Tag { .. } => {
            Ok(None)
        }
    }
}

/// What is within one client is told so that it goes when the client is erased.
fn in_client(event: adit_ledger::Event, client: Option<String>) -> adit_ledger::Event {
    match client {
        Some(path) => event.client(path),
        None => event,
    }
}

fn bound(binding: &Binding, resolved: &Resolved, by: &Actor) -> adit_ledger::Event {
    let mut done = by
        .event("role.bound", &resolved.partner_name)
        .extra("role", resolved.role.name.as_str())
        .extra("binding", binding.id.as_str())
        .extra("scope", binding.scope.kind())
        .extra("conditions", binding.conditions.describe())
        .extra_personal(binding.subject.kind(), resolved.name.as_str());
    match &binding.scope {
        Scope::Installation | Scope::Partner(_) => {}
        Scope::Client { client, .. } => done = done.extra("client_id", client.as_str()),
        Scope::Group { label, .. } | Scope::Tag { label, .. } => {
            done = done.extra_personal("label", label.as_str());
        }
        Scope::Computer { computer, .. } => done = done.computer_id(computer),
    }
    match binding.expires_ms {
        Some(end) => done.extra("expires", format_ms(end)),
        None => done,
    }
}

async fn resolve(context: &AdminContext, actor: &Actor, wish: &Bind) -> Result<Resolved, CliError> {
    let pool = &context.store.readers;
    let (of, subject, name) = match (&wish.user, &wish.group, &wish.key) {
        (Some(user), None, None) => {
            let account = super::users::find(context, actor, user).await?;
            let of = tenants::Partner { id: account.partner_id, name: account.partner };
            (of, Subject::User(account.id), account.name)
        }
        (None, Some(group), None) => {
            names::check(group).map_err(bad_name)?;
            let of = partner(context, actor, wish.partner.clone()).await?;
            (of, Subject::Group(group.clone()), group.clone())
        }
        (None, None, Some(key)) => {
            let found = api::by_id(pool, key).await.map_err(store_error)?;
            let key = found.filter(|key| actor.reaches(&key.partner_id) && !key.revoked);
            let key = key.ok_or_else(|| not_found("API key"))?;
            let of = tenants::Partner { id: key.partner_id, name: key.partner };
            (of, Subject::Key(key.id), key.name)
        }
        _ => return Err(CliError::usage("usage", "give a user, a group of users or an API key")),
    };
    let role = role(context, &of.id, &wish.role).await?;
    let scope = scope(context, actor, &of.id, &wish.scope).await?;
    Ok(Resolved { partner: of.id, partner_name: of.name, subject, name, role, scope })
}

/// A scope of the partner, by names.
pub(super) async fn scope(
    context: &AdminContext,
    actor: &Actor,
    partner: &str,
    arg: &ScopeArg,
) -> Result<Scope, CliError> {
    let own = || partner.to_owned();
    Ok(if arg.installation {
        Scope::Installation
    } else if let Some(path) = &arg.client {
        let client = super::handle::client(context, actor, path).await?;
        if !actor.rules_reach(&client) {
            return Err(no_such_client(path));
        }
        if client.partner_id != partner {
            return Err(not_found("client of the user's partner"));
        }
        Scope::Client { partner: own(), client: client.id }
    } else if let Some(label) = &arg.computers {
        Scope::Group { partner: own(), label: label.clone() }
    } else if let Some(label) = &arg.tag {
        super::labels::check_tag_of_agents(label)?;
        Scope::Tag { partner: own(), label: label.clone() }
    } else if let Some(computer) = &arg.computer {
        let row = super::labels::one(context, actor, computer).await?;
        if row.partner_id != partner {
            return Err(not_found("computer of the user's partner"));
        }
        let (client, computer) = (row.client_id, row.id.to_string());
        Scope::Computer { partner: own(), client, computer }
    } else {
        Scope::Partner(own())
    })
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

async fn unbind((context, actor): Who<'_>, binding: String) -> Result<Vec<Value>, CliError> {
    if let Some(own) = actor.partner_id() {
        let pool = &context.store.readers;
        let found = bindings::list(pool, own).await.map_err(store_error)?;
        let found = found.into_iter().find(|known| known.id == binding);
        actor.may_manage_roles_somewhere(context).await?;
        let found = found.ok_or_else(|| not_found("binding"))?;
        actor.may_on(context, &object_of(&found.scope), MANAGE).await?;
    }
    let (wanted, by) = (binding.clone(), actor.clone());
    let unbound = context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let found =
                    bindings::by_id(tx, &wanted).await?.ok_or(StoreError::Missing("binding"))?;
                let held = Held::before(tx, &by, &found.partner, USERS_AND_ROLES).await?;
                bindings::close(tx, &found.id).await?;
                held.after(tx).await?;
                let partner = tenants::partner_by_id(tx, &found.partner).await?;
                let done = by
                    .event("role.unbound", &partner.name)
                    .extra("binding", found.id.as_str())
                    .extra("scope", found.scope.kind());
                let done = match &found.subject {
                    // A name that people gave; of the others it is an id.
                    Subject::Group(name) => done.extra_personal("group", name.as_str()),
                    subject => done.extra(subject.kind(), subject.id()),
                };
                let client = match client_of(tx, &found.scope).await {
                    // Nobody is to keep a right because its record cannot name a client.
                    Err(StoreError::Missing(_)) => None,
                    found => found?,
                };
                tx.append(&partner.id, in_client(done, client)).await
            })
        })
        .await;
    if let Err(error) = unbound {
        return Err(last::told((context, actor), error).await);
    }
    context.rules_changed().await;
    Ok(vec![json!({"binding": binding, "unbound": true})])
}
