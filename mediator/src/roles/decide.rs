//! The decision itself.

use super::{Conditions, Needs, Object, Permission, Role, Scope, Unmet, conditions::Facts};

/// What somebody wants to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Act<'a> {
    pub(crate) permission: Permission,
    /// For [`Permission::Launch`].
    pub(crate) redirector: Option<&'a str>,
}

impl<'a> Act<'a> {
    /// To launch a redirector.
    pub(crate) fn launch(redirector: &'a str) -> Self {
        Self { permission: Permission::Launch, redirector: Some(redirector) }
    }
    /// Anything that names no redirector.
    pub(crate) fn of(permission: Permission) -> Self {
        Self { permission, redirector: None }
    }
}

/// A binding with its role: what one subject may do in one scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Id of the binding.
    pub(crate) binding: String,
    pub(crate) role: Role,
    pub(crate) scope: Scope,
    /// Beside those of the role.
    pub(crate) conditions: Conditions,
    /// When the binding ends by itself.
    pub(crate) expires_ms: Option<u64>,
}

/// Who asks, and in which circumstances.
#[derive(Clone, Debug, Default)]
pub(crate) struct Context {
    /// The subject's partner: the wall that no rule passes.
    pub(crate) partner: String,
    pub(crate) facts: Facts,
}

/// What comes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict<'a> {
    /// Allowed by this rule until then (milliseconds since 1970; `u64::MAX`: no limit).
    Allow { rule: &'a Rule, until_ms: u64 },
    /// A rule would allow it, were these conditions met.
    Unmet { rule: &'a Rule, unmet: Vec<Unmet> },
    /// Rules cover the object, none permits the act.
    NotPermitted,
    /// For this subject the object does not exist.
    Unknown,
}

impl Rule {
    /// Is it in force, as far as its own end goes?
    pub(crate) fn is_current(&self, now_ms: u64) -> bool {
        self.expires_ms.is_none_or(|end| now_ms < end)
    }

    /// Until when it allows an act of this kind, or what is missing.
    pub(crate) fn check(&self, needs: Needs, facts: &Facts) -> Result<u64, Vec<Unmet>> {
        let own = self.conditions.check(needs, facts);
        let of_role = self.role.conditions.check(needs, facts);
        match (of_role, own) {
            (Ok(a), Ok(b)) => Ok(a.min(b).min(self.expires_ms.unwrap_or(u64::MAX))),
            (a, b) => {
                let mut unmet: Vec<Unmet> = a.err().into_iter().chain(b.err()).flatten().collect();
                unmet.sort_unstable();
                unmet.dedup();
                Err(unmet)
            }
        }
    }

    /// For the log: role, kind of scope and the binding's id; nothing personal.
    pub(crate) fn name(&self) -> String {
        format!("{} on {} ({})", self.role.name, self.scope.kind(), self.binding)
    }
}

/// Decides. Among the rules that allow, the one that allows longest counts.
pub(crate) fn decide<'a>(
    rules: &'a [Rule],
    act: Act<'_>,
    object: &Object,
    context: &Context,
) -> Verdict<'a> {
    if object.partner().is_some_and(|partner| partner != context.partner) {
        return Verdict::Unknown;
    }
    let now = context.facts.now_ms;
    let covering = || rules.iter().filter(|rule| rule.is_current(now) && rule.scope.covers(object));
    let mut allowed: Option<(&Rule, u64)> = None;
    let mut close: Option<(&Rule, Vec<Unmet>)> = None;
    for rule in covering().filter(|rule| rule.role.grants(act.permission, act.redirector)) {
        match rule.check(act.permission.needs(), &context.facts) {
            Ok(until) => {
                let best = allowed
                    .is_none_or(|(best, known)| (until, &best.binding) > (known, &rule.binding));
                if best {
                    allowed = Some((rule, until));
                }
            }
            Err(unmet) => {
                let key = |rule: &Rule, unmet: &[Unmet]| (unmet.len(), rule.binding.clone());
                let closer =
                    close.as_ref().is_none_or(|(known, list)| key(rule, &unmet) < key(known, list));
                if closer {
                    close = Some((rule, unmet));
                }
            }
        }
    }
    match (allowed, close) {
        (Some((rule, until_ms)), _) => Verdict::Allow { rule, until_ms },
        (None, Some((rule, unmet))) => Verdict::Unmet { rule, unmet },
        // What exists for somebody is what that person may see, outside the hours too.
        (None, None) if covering().any(|rule| sees(rule, act, object)) => Verdict::NotPermitted,
        (None, None) => Verdict::Unknown,
    }
}

/// What is listed for somebody is there for that person: a session for whoever may see it, a
/// credential for whoever may do anything with it, also without a look at the computer.
fn sees(rule: &Rule, act: Act<'_>, object: &Object) -> bool {
    use Permission::{
        DeleteCredentials, EditCredentials, EndSessions, JoinSessions, ReadCredentials,
        SeeComputers, SeeSessions, UseCredentials,
    };
    const CREDENTIALS: [Permission; 4] =
        [ReadCredentials, EditCredentials, DeleteCredentials, UseCredentials];
    let listed: &[Permission] = match act.permission {
        EndSessions | JoinSessions => &[SeeSessions],
        act if CREDENTIALS.contains(&act) => &CREDENTIALS,
        _ => &[],
    };
    let grants = |permission: &Permission| rule.role.grants(*permission, None);
    match object {
        Object::Computer { .. } => grants(&SeeComputers) || listed.iter().any(grants),
        _ => true,
    }
}
