//! What can be permitted: a fixed list, whose names stand in roles, in the log and in
//! docs/access.md.

use std::{fmt, str::FromStr};

/// One thing that somebody may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(crate) enum Permission {
    SeeComputers,
    /// Of the redirectors that the role names.
    Launch,
    SeeSessions,
    JoinSessions,
    EndSessions,
    ReadCredentials,
    EditCredentials,
    DeleteCredentials,
    UseCredentials,
    ReadAudit,
    ExportAudit,
    ManageUsers,
    ManageRoles,
    ManageTokens,
    ManageRelays,
    ManagePolicy,
    ApproveRequests,
}

/// Which conditions of a rule an act is held to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Needs {
    /// Looking, ending and approving: time window and source network.
    Gates,
    /// Changing what others may do, and taking evidence away: also a fresh second factor.
    SecondFactor,
    /// Reaching a computer or a secret: everything, reason and approval included.
    Everything,
}

impl Permission {
    /// All there are, in the order of the documentation.
    pub(crate) const ALL: [Self; 17] = [
        Self::SeeComputers,
        Self::Launch,
        Self::SeeSessions,
        Self::JoinSessions,
        Self::EndSessions,
        Self::ReadCredentials,
        Self::EditCredentials,
        Self::DeleteCredentials,
        Self::UseCredentials,
        Self::ReadAudit,
        Self::ExportAudit,
        Self::ManageUsers,
        Self::ManageRoles,
        Self::ManageTokens,
        Self::ManageRelays,
        Self::ManagePolicy,
        Self::ApproveRequests,
    ];

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SeeComputers => "computers.see",
            Self::Launch => "launch",
            Self::SeeSessions => "sessions.see",
            Self::JoinSessions => "sessions.join",
            Self::EndSessions => "sessions.end",
            Self::ReadCredentials => "credentials.read",
            Self::EditCredentials => "credentials.edit",
            Self::DeleteCredentials => "credentials.delete",
            Self::UseCredentials => "credentials.use",
            Self::ReadAudit => "audit.read",
            Self::ExportAudit => "audit.export",
            Self::ManageUsers => "users.manage",
            Self::ManageRoles => "roles.manage",
            Self::ManageTokens => "tokens.manage",
            Self::ManageRelays => "relays.manage",
            Self::ManagePolicy => "policy.manage",
            Self::ApproveRequests => "requests.approve",
        }
    }

    /// What it is, for people.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::SeeComputers => "find computers and see their state",
            Self::Launch => "open redirectors (all, or those that the role names)",
            Self::SeeSessions => "see the sessions of others",
            Self::JoinSessions => "take part in a session of another",
            Self::EndSessions => "end sessions of others",
            Self::ReadCredentials => "see a stored credential",
            Self::EditCredentials => "add and change stored credentials",
            Self::DeleteCredentials => "delete stored credentials",
            Self::UseCredentials => "use a stored credential without seeing it",
            Self::ReadAudit => "search the audit log",
            Self::ExportAudit => "take the audit log away",
            Self::ManageUsers => "add, change and disable users",
            Self::ManageRoles => "make roles and bind them, within the own permissions",
            Self::ManageTokens => "make enrolment tokens",
            Self::ManageRelays => "add and remove relays",
            Self::ManagePolicy => "change settings and policies",
            Self::ApproveRequests => "approve or deny requests for access",
        }
    }

    /// Which conditions hold for it.
    pub(crate) fn needs(self) -> Needs {
        match self {
            Self::SeeComputers
            | Self::SeeSessions
            | Self::EndSessions
            | Self::ReadAudit
            | Self::ApproveRequests => Needs::Gates,
            Self::ExportAudit
            | Self::EditCredentials
            | Self::DeleteCredentials
            | Self::ManageUsers
            | Self::ManageRoles
            | Self::ManageTokens
            | Self::ManageRelays
            | Self::ManagePolicy => Needs::SecondFactor,
            Self::Launch | Self::JoinSessions | Self::ReadCredentials | Self::UseCredentials => {
                Needs::Everything
            }
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No such permission.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no permission \"{0}\"; mediator role permissions lists them")]
pub(crate) struct UnknownPermission(pub(crate) String);

impl FromStr for Permission {
    type Err = UnknownPermission;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|permission| permission.name() == text)
            .ok_or_else(|| UnknownPermission(text.chars().take(64).collect()))
    }
}
