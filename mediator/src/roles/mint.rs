//! Granting to others: never more than one holds oneself.

use super::{
    Act, Conditions, Context, Object, Permission, Role, Rule, Scope, Verdict, conditions::Facts,
    decide,
};

/// Why somebody may not grant a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MayNotGrant {
    /// No right to manage roles there.
    #[error("you may not manage roles there")]
    NoRoles,
    /// The grant would give what the granter lacks.
    #[error("you do not hold {0} there yourself, or only under stricter conditions")]
    NotHeld(Permission),
}

/// May the holder of these rules bind `role` in `scope` with these further conditions until
/// `expires_ms`? Everything that it would give must lie inside what one of the own rules gives.
pub(crate) fn may_grant(
    rules: &[Rule],
    context: &Context,
    role: &Role,
    scope: &Scope,
    conditions: &Conditions,
    expires_ms: Option<u64>,
) -> Result<(), MayNotGrant> {
    let manage = Act::of(Permission::ManageRoles);
    if !matches!(decide(rules, manage, &object_of(scope), context), Verdict::Allow { .. }) {
        return Err(MayNotGrant::NoRoles);
    }
    holds(rules, context, role, scope, conditions, expires_ms)
}

/// Does everything that such a binding would give lie inside what one of these rules gives?
pub(crate) fn holds(
    rules: &[Rule],
    context: &Context,
    role: &Role,
    scope: &Scope,
    conditions: &Conditions,
    expires_ms: Option<u64>,
) -> Result<(), MayNotGrant> {
    let now = context.facts.now_ms;
    let held = |rule: &&Rule| {
        rule.is_current(now)
            && rule.scope.contains(scope)
            && scope.partner().is_none_or(|partner| partner == context.partner)
    };
    for permission in role.permissions.iter().copied() {
        let inside = |rule: &Rule| {
            let has = match permission {
                Permission::Launch => {
                    rule.role.permissions.contains(&permission)
                        && rule.role.redirectors.contains(&role.redirectors)
                }
                other => rule.role.grants(other, None),
            };
            // Each own condition must come from the role or from the binding that is made.
            let as_strict = [&rule.role.conditions, &rule.conditions]
                .into_iter()
                .all(|own| role.conditions.implies(own) || conditions.implies(own));
            let not_longer =
                rule.expires_ms.is_none_or(|end| expires_ms.is_some_and(|wanted| wanted <= end));
            has && as_strict && not_longer
        };
        if !rules.iter().filter(held).any(inside) {
            return Err(MayNotGrant::NotHeld(permission));
        }
    }
    Ok(())
}

/// The object that stands for a scope when somebody wants to manage it.
pub(crate) fn object_of(scope: &Scope) -> Object {
    match scope {
        Scope::Installation => Object::Installation,
        Scope::Partner(partner) | Scope::Group { partner, .. } | Scope::Tag { partner, .. } => {
            Object::Partner(partner.clone())
        }
        Scope::Client { partner, client } | Scope::Computer { partner, client, .. } => {
            Object::Client { partner: partner.clone(), client: client.clone() }
        }
    }
}

/// Circumstances of an act that needs none.
pub(crate) fn plain(partner: &str, now_ms: u64) -> Context {
    let facts = Facts { now_ms, began_ms: now_ms, ..Facts::default() };
    Context { partner: partner.to_owned(), facts }
}
