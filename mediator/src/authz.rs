//! The one decision point: may this person do this, here, now, and by which rule?
//!
//! Everything that grants, lists, renews, reviews or explains asks here; the rules themselves
//! are in [`crate::roles`], their rows in the store. Deny by default: what cannot be read is not
//! allowed. Must never be by-passed by a check of a role's name elsewhere.

use std::net::IpAddr;

use adit_protocol::code::failure;
use sqlx::AnyPool;

use crate::{
    core::{
        ending::{COMPUTER_REMOVED, PERMISSION_WITHDRAWN},
        review::Live,
        types::{Place, Refusal},
    },
    roles::{
        Act, Context, Object, Permission, Rule, Scope, Unmet, Verdict, conditions::Facts, decide,
    },
    store::{
        StoreError,
        access::{
            When, bindings,
            filter::{self, Clause},
            labels, requests,
        },
        accounts, api,
        computers::{self, ComputerRow},
        locks,
    },
};

/// The outcome, with the rule that decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Allowed until then, milliseconds since 1970; `u64::MAX`: no limit.
    Allow { rule: String, until_ms: u64 },
    /// Denied.
    Deny { rule: String, refusal: Refusal, unmet: Vec<Unmet> },
}

impl Decision {
    /// Just yes or no.
    pub(crate) fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }
}

/// A computer by its ids.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    pub(crate) partner: String,
    pub(crate) client: String,
    pub(crate) computer: String,
}

impl Spot {
    /// Of a computer's row.
    pub(crate) fn of(row: &ComputerRow) -> Self {
        Self {
            partner: row.partner_id.clone(),
            client: row.client_id.clone(),
            computer: row.id.to_string(),
        }
    }

    /// Of a session's computer; sessions do not pass the wall between partners.
    pub(crate) fn of_place(partner: &str, place: &Place) -> Self {
        Self {
            partner: partner.to_owned(),
            client: place.client_id.clone(),
            computer: place.computer_id.to_string(),
        }
    }
}

/// A person with the rules that hold for it.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) account: String,
    pub(crate) partner: String,
    pub(crate) disabled: bool,
    pub(crate) rules: Vec<Rule>,
}

impl Holder {
    /// Reads what holds (or held) for an account.
    pub(crate) async fn load(
        pool: &AnyPool,
        partner: &str,
        account: &str,
        when: When,
    ) -> Result<Self, StoreError> {
        let rules = bindings::rules(pool, partner, account, when).await?;
        // Whether an account was disabled is known for now only.
        let disabled = match when {
            When::Now => !accounts::enabled(pool, account).await?,
            When::At(_) => false,
        };
        Ok(Self { account: account.to_owned(), partner: partner.to_owned(), disabled, rules })
    }

    /// Reads what holds for an API key.
    pub(crate) async fn load_key(
        pool: &AnyPool,
        partner: &str,
        key: &str,
    ) -> Result<Self, StoreError> {
        let rules = bindings::rules_of_key(pool, partner, key).await?;
        let disabled = !api::enabled(pool, key).await?;
        Ok(Self { account: key.to_owned(), partner: partner.to_owned(), disabled, rules })
    }

    /// The same account or API key with what holds for it by now.
    pub(crate) async fn anew(&self, pool: &AnyPool, is_key: bool) -> Result<Self, StoreError> {
        match is_key {
            true => Self::load_key(pool, &self.partner, &self.account).await,
            false => Self::load(pool, &self.partner, &self.account, When::Now).await,
        }
    }

    /// Decides about a computer.
    pub(crate) async fn computer(
        &self,
        pool: &AnyPool,
        act: Act<'_>,
        spot: &Spot,
        facts: Facts,
        when: When,
    ) -> Result<Decision, StoreError> {
        self.judged(pool, act, spot, facts, when).await.map(|(decision, _)| decision)
    }

    /// As [`Self::computer`], with the circumstances as they were judged: approvals included.
    pub(crate) async fn judged(
        &self,
        pool: &AnyPool,
        act: Act<'_>,
        spot: &Spot,
        mut facts: Facts,
        when: When,
    ) -> Result<(Decision, Facts), StoreError> {
        let object = self.object(pool, spot, when).await?;
        let asks = |rule: &Rule| rule.conditions.approval || rule.role.conditions.approval;
        if let Some(redirector) = act.redirector
            && self.rules.iter().any(asks)
        {
            facts.approved_until_ms =
                requests::approved_until(pool, &self.account, &spot.computer, redirector, when)
                    .await?;
        }
        let decision = self.decide(act, &object, facts.clone());
        // After the decision: whoever may not know of the computer learns nothing of the client.
        if decision.is_allowed()
            && matches!(act.permission, Permission::Launch | Permission::JoinSessions)
            && when == When::Now
            && locks::client(pool, &spot.client).await?
        {
            let text = "an administrator has locked this client down";
            return Ok((deny("client-lockdown", failure::CLIENT_LOCKED, text), facts));
        }
        Ok((decision, facts))
    }

    /// The computer with the labels that these rules may ask for.
    pub(crate) async fn object(
        &self,
        pool: &AnyPool,
        spot: &Spot,
        when: When,
    ) -> Result<Object, StoreError> {
        let labelled = |rule: &Rule| matches!(rule.scope, Scope::Group { .. } | Scope::Tag { .. });
        let (groups, tags) = if self.rules.iter().any(labelled) {
            labels::of_computer(pool, &spot.computer, when).await?
        } else {
            Default::default()
        };
        Ok(Object::Computer {
            partner: spot.partner.clone(),
            client: spot.client.clone(),
            computer: spot.computer.clone(),
            groups,
            tags,
        })
    }

    /// Decides about anything.
    pub(crate) fn decide(&self, act: Act<'_>, object: &Object, facts: Facts) -> Decision {
        if self.disabled {
            return deny("disabled-account", failure::NOT_PERMITTED, "the account is disabled");
        }
        match decide(&self.rules, act, object, &self.context(facts)) {
            Verdict::Allow { rule, until_ms } => Decision::Allow { rule: rule.name(), until_ms },
            Verdict::Unmet { rule, unmet } => {
                let code = unmet.first().map_or(failure::NOT_PERMITTED, |unmet| unmet.code());
                let texts: Vec<&str> = unmet.iter().map(|unmet| unmet.message()).collect();
                Decision::Deny {
                    rule: rule.name(),
                    refusal: Refusal::new(code, texts.join("; ")),
                    unmet,
                }
            }
            Verdict::NotPermitted => {
                let what = act.redirector.unwrap_or(act.permission.name());
                let text = format!("your roles do not permit {what} here");
                deny("default-deny", failure::NOT_PERMITTED, &text)
            }
            // Another tenant's computer does not exist, nor one that no role covers.
            Verdict::Unknown => {
                deny("not-visible", failure::NO_SUCH_COMPUTER, "there is no such computer")
            }
        }
    }

    /// What lists show: the same decision, matched by the database.
    pub(crate) fn filter(
        &self,
        permission: Permission,
        facts: Facts,
        columns: &filter::Columns,
    ) -> Clause {
        let rules: &[Rule] = if self.disabled { &[] } else { &self.rules };
        filter::computers(rules, Act::of(permission), &self.context(facts), columns)
    }

    /// The circumstances of this person's act.
    pub(crate) fn context(&self, facts: Facts) -> Context {
        Context { partner: self.partner.clone(), facts }
    }

    /// Whether a session may go on, until when, or the reason for its end.
    pub(crate) async fn goes_on(
        &self,
        pool: &AnyPool,
        live: &Live,
        now_ms: u64,
    ) -> Result<Result<u64, &'static str>, StoreError> {
        // One that was removed while no mediator ran, too.
        if computers::by_id(pool, live.place.computer_id).await?.is_none() {
            return Ok(Err(COMPUTER_REMOVED));
        }
        // By the age, not by the wall clock: setting that must not make a session longer.
        let began_ms = now_ms.saturating_sub(live.age_ms);
        let factor_age = |at: u64| live.began_ms.saturating_sub(at);
        let facts = Facts {
            now_ms,
            began_ms,
            source: source_ip(&live.who.source),
            mfa_ms: live.basis.mfa_ms.map(|at| began_ms.saturating_sub(factor_age(at))),
            reason: live.basis.reason,
            ticket: live.basis.ticket,
            approved_until_ms: None,
        };
        let spot = Spot::of_place(&self.partner, &live.place);
        let act = Act::launch(&live.redirector);
        Ok(match self.computer(pool, act, &spot, facts, When::Now).await? {
            Decision::Allow { until_ms, .. } => Ok(until_ms),
            Decision::Deny { unmet, .. } => {
                Err(unmet.first().map_or(PERMISSION_WITHDRAWN, |unmet| unmet.code()))
            }
        })
    }
}

fn deny(rule: &str, code: &'static str, text: &str) -> Decision {
    let refusal = Refusal::new(code, text);
    Decision::Deny { rule: rule.to_owned(), refusal, unmet: Vec::new() }
}

/// Circumstances of an act that begins now.
pub(crate) fn facts_now(source: Option<IpAddr>, now_ms: u64) -> Facts {
    Facts { now_ms, began_ms: now_ms, source, ..Facts::default() }
}

/// The address in `ip:port`.
fn source_ip(text: &str) -> Option<IpAddr> {
    text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::{Conditions, Role};

    fn holder(disabled: bool) -> Holder {
        let rule = Rule {
            binding: "b".into(),
            role: Role::builtin("technician").unwrap(),
            scope: Scope::Partner("p".into()),
            conditions: Conditions { reason: true, ..Conditions::default() },
            expires_ms: None,
        };
        Holder { account: "a".into(), partner: "p".into(), disabled, rules: vec![rule] }
    }

    fn computer(partner: &str) -> Object {
        Object::Computer {
            partner: partner.into(),
            client: "c".into(),
            computer: "k".into(),
            groups: Default::default(),
            tags: Default::default(),
        }
    }

    #[test]
    fn refusals_say_what_to_add_and_tell_nothing_of_others() {
        let facts = Facts { reason: true, ..Facts::default() };
        let code = |holder: &Holder, act: Act<'_>, partner: &str, facts: &Facts| match holder
            .decide(act, &computer(partner), facts.clone())
        {
            Decision::Allow { rule, .. } => rule,
            Decision::Deny { refusal, .. } => refusal.code.to_owned(),
        };
        let (ssh, end) = (Act::launch("ssh"), Act::of(Permission::EndSessions));
        let who = holder(false);
        assert_eq!(code(&who, ssh, "p", &facts), "technician on partner (b)");
        assert_eq!(code(&who, ssh, "p", &Facts::default()), failure::REASON_REQUIRED);
        assert_eq!(code(&who, end, "p", &facts), failure::NOT_PERMITTED);
        assert_eq!(code(&who, ssh, "q", &facts), failure::NO_SUCH_COMPUTER);
        assert_eq!(code(&holder(true), ssh, "p", &facts), failure::NOT_PERMITTED);
        let nobody = Holder { rules: Vec::new(), ..holder(false) };
        assert_eq!(code(&nobody, ssh, "p", &facts), failure::NO_SUCH_COMPUTER);
    }
}
