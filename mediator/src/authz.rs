//! The one decision: may this person use this redirector of this computer?
//!
//! Everything that grants, lists or renews asks here. Deny by default. Today there is one rule;
//! roles with scopes take its place here and nowhere else.

use adit_protocol::code::failure;

use crate::core::types::Refusal;

/// May use computers.
pub(crate) const TECHNICIAN: &str = "technician";
/// May also see and end others' sessions, and read the audit log.
pub(crate) const ADMINISTRATOR: &str = "administrator";
/// The roles there are.
pub(crate) const ROLES: [&str; 2] = [TECHNICIAN, ADMINISTRATOR];

/// Who asks.
pub(crate) struct Subject<'a> {
    pub(crate) partner_id: &'a str,
    pub(crate) role: &'a str,
    pub(crate) disabled: bool,
}

/// What is asked for.
pub(crate) struct Object<'a> {
    pub(crate) partner_id: &'a str,
    pub(crate) redirector: &'a str,
}

/// The outcome, with the rule that decided.
pub(crate) enum Decision {
    /// Allowed.
    Allow { rule: String },
    /// Denied.
    Deny { rule: String, refusal: Refusal },
}

/// Decides.
pub(crate) fn decide(subject: &Subject<'_>, object: &Object<'_>) -> Decision {
    if subject.disabled {
        let refusal = Refusal::new(failure::NOT_PERMITTED, "the account is disabled");
        return Decision::Deny { rule: "disabled-account".to_owned(), refusal };
    }
    if subject.partner_id != object.partner_id {
        // Another tenant's computer does not exist.
        let refusal = Refusal::new(failure::NO_SUCH_COMPUTER, "there is no such computer");
        return Decision::Deny { rule: "other-tenant".to_owned(), refusal };
    }
    if ROLES.contains(&subject.role) {
        return Decision::Allow { rule: format!("{}-of-partner", subject.role) };
    }
    let text = format!("your role does not permit {}", object.redirector);
    Decision::Deny {
        rule: "default-deny".to_owned(),
        refusal: Refusal::new(failure::NOT_PERMITTED, text),
    }
}

/// May this role see and end sessions of others?
pub(crate) fn may_end_others(role: &str) -> bool {
    role == ADMINISTRATOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_partner_enabled_and_known_role() {
        let object = Object { partner_id: "p", redirector: "ssh" };
        for (partner_id, role, disabled, allowed) in [
            ("p", TECHNICIAN, false, true),
            ("p", ADMINISTRATOR, false, true),
            ("q", ADMINISTRATOR, false, false),
            ("p", TECHNICIAN, true, false),
            ("p", "", false, false),
            ("p", "auditor", false, false),
        ] {
            let decision = decide(&Subject { partner_id, role, disabled }, &object);
            assert_eq!(matches!(decision, Decision::Allow { .. }), allowed);
        }
    }
}
