//! Why a policy file is not accepted, and why a policy says no. Texts of denials reach consoles
//! and the audit: they say what was refused, and nothing else about the policy.

use std::net::IpAddr;

use adit_protocol::{keys::Fingerprint, target::Target};

/// Why `policy.toml` is not in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// It cannot be read as a policy.
    #[error("line {line}: {reason}")]
    Invalid {
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// It cannot be read at all.
    #[error("{0}")]
    Unreadable(String),
}

/// Why something is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// `[trust].consoles` does not name the console.
    #[error("the endpoint owner does not trust the console {0}")]
    Console(Fingerprint),
    /// No entry names the target.
    #[error("the endpoint owner's policy does not allow {0:?}")]
    Unlisted(Target),
    /// The target leads to an address that must be named by itself (requirement R15).
    #[error("the endpoint owner's policy does not name {1}, to which {0:?} leads, by its address")]
    Special(Target, IpAddr),
    /// The entry that names the target does so at other hours.
    #[error("the endpoint owner's policy does not allow {0:?} at this hour")]
    Hours(Target),
    /// The entry wants the consent of a person.
    #[error("{0:?} needs the consent of the person at the computer")]
    Consent(Target),
    /// The session is for nothing that could be reached now.
    #[error("the endpoint owner's policy allows nothing of what is asked for")]
    Nothing,
}

impl Denial {
    /// The target that is refused, if it is about one.
    pub fn target(&self) -> Option<&Target> {
        match self {
            Self::Console(_) | Self::Nothing => None,
            Self::Unlisted(t) | Self::Special(t, _) | Self::Hours(t) | Self::Consent(t) => Some(t),
        }
    }

    /// Short stable name of the rule, for audit records.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Console(_) => "trust.consoles",
            Self::Unlisted(_) | Self::Nothing => "not_allowed",
            Self::Special(..) => "special_address",
            Self::Hours(_) => "hours",
            Self::Consent(_) => "consent",
        }
    }
}
