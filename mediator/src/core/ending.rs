//! Who ended a session, and in whose words.
//!
//! An end's word is recorded as that end's word: what only the mediator decides, no end may
//! claim.

use std::borrow::Cow;

use adit_protocol::{code::failure, ticket::Role};

/// Ends that the mediator decides. `lease_expired` is not among them: each end has a clock of its
/// own for its lease.
pub(crate) const MEDIATOR_WORDS: [&str; 17] = [
    ENDED_BY_ADMINISTRATOR,
    USER_DISABLED,
    PASSWORD_CHANGED,
    CLIENT_ERASED,
    COMPUTER_REMOVED,
    LOGGED_OUT,
    PERMISSION_WITHDRAWN,
    AGENT_LOST_SESSION,
    TIME_LIMIT,
    failure::DEVICE_DISABLED,
    failure::CLIENT_LOCKED,
    MFA_RESET,
    failure::OUTSIDE_HOURS,
    failure::SOURCE_NOT_ALLOWED,
    failure::MFA_REQUIRED,
    failure::APPROVAL_REQUIRED,
    failure::NOT_PERMITTED,
];
/// The machine's administrator ended it.
pub(crate) const ENDED_BY_ADMINISTRATOR: &str = "ended_by_administrator";
/// The technician's account was disabled.
pub(crate) const USER_DISABLED: &str = "user_disabled";
/// The technician's password was changed.
pub(crate) const PASSWORD_CHANGED: &str = "password_changed";
/// The technician's second factors were removed by an administrator.
pub(crate) const MFA_RESET: &str = "mfa_reset";
/// The client was erased.
pub(crate) const CLIENT_ERASED: &str = "client_erased";
/// The computer was removed.
pub(crate) const COMPUTER_REMOVED: &str = "computer_removed";
/// The login under which it was opened is over.
pub(crate) const LOGGED_OUT: &str = "logged_out";
/// The lease was not renewed.
pub(crate) const PERMISSION_WITHDRAWN: &str = "permission_withdrawn";
/// The agent does not serve it any more.
pub(crate) const AGENT_LOST_SESSION: &str = "agent_lost_session";
/// The longest time that the technician's right allows is over.
pub(crate) const TIME_LIMIT: &str = failure::TIME_LIMIT;

/// Before one of those words when an end says it.
const CLAIMED: &str = "claimed_";

/// Who says that a session is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EndedBy {
    /// The mediator decided it.
    Mediator,
    /// The session's console.
    Console,
    /// The agent.
    Agent,
    /// A person who is neither: the name.
    Person(String),
}

impl EndedBy {
    pub(super) fn role(role: Option<Role>) -> Self {
        match role {
            Some(Role::Console) => Self::Console,
            Some(Role::Agent) => Self::Agent,
            None => Self::Mediator,
        }
    }

    /// As in `reported_by`.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Agent => "agent",
            Self::Mediator | Self::Person(_) => "mediator",
        }
    }
}

/// Why a session is over, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) reason: String,
    pub(crate) by: EndedBy,
}

impl Ending {
    /// Decided here.
    pub(super) fn decided(reason: &str) -> Self {
        Self { reason: reason.to_owned(), by: EndedBy::Mediator }
    }

    /// Told by somebody else.
    pub(super) fn told(reason: &str, by: EndedBy) -> Self {
        Self { reason: claim(reason).into_owned(), by }
    }
}

/// A word of others, marked where it is the mediator's own.
pub(super) fn claim(reason: &str) -> Cow<'_, str> {
    match MEDIATOR_WORDS.contains(&reason) {
        true => Cow::Owned(format!("{CLAIMED}{reason}")),
        false => Cow::Borrowed(reason),
    }
}
