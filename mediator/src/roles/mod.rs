//! Who may do what, as a pure model: permissions, conditions, roles, scopes, rules, decisions.
//!
//! ```text
//! subject ── binding ──► role (permissions, redirectors, conditions) × scope (+ conditions)
//! a decision is: some rule of the subject covers the object, has the permission, and all its
//! conditions are met
//! ```
//!
//! Invariants, tested over random worlds: nothing is allowed without a rule (deny by default);
//! there are no denying rules, so a further binding never takes access away; nobody reaches an
//! object of another partner, whatever the bindings say; what somebody grants is never more than
//! what that person holds ([`mint::may_grant`]).
//!
//! Must never read a clock, a socket or the database: time, source and rules are given.

pub(crate) mod conditions;
pub(crate) mod decide;
pub(crate) mod hours;
pub(crate) mod mint;
pub(crate) mod permission;
pub(crate) mod role;
pub(crate) mod scope;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use conditions::{Conditions, Unmet};
pub(crate) use decide::{Act, Context, Rule, Verdict, decide};
pub(crate) use permission::{Needs, Permission};
pub(crate) use role::{Redirectors, Role};
pub(crate) use scope::{Object, Scope};
