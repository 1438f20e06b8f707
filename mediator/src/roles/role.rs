//! Roles: named sets of permissions with conditions. Six are built in and cannot be changed.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Conditions, Permission};

/// Redirectors that a role names.
pub(crate) const MAX_REDIRECTORS: usize = 64;
/// Ids of built-in roles begin with this; those of others are ids.
pub(crate) const BUILTIN: &str = "builtin:";

/// Everything.
pub(crate) const OWNER: &str = "owner";
/// Everything but reading credentials and relays.
pub(crate) const ADMINISTRATOR: &str = "administrator";
/// Opens redirectors.
pub(crate) const TECHNICIAN: &str = "technician";
/// Sees everything, does nothing.
pub(crate) const AUDITOR: &str = "auditor";
/// The client's own person: approves, watches, ends.
pub(crate) const CLIENT_REPRESENTATIVE: &str = "client-representative";
/// Relays, nothing else.
pub(crate) const RELAY_OPERATOR: &str = "relay-operator";

/// Which redirectors a role may launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Redirectors {
    /// All, those that are added later too.
    All,
    /// These.
    Only(BTreeSet<String>),
}

impl Redirectors {
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(name),
        }
    }

    pub(crate) fn contains(&self, inner: &Self) -> bool {
        match (self, inner) {
            (Self::All, _) => true,
            (Self::Only(_), Self::All) => false,
            (Self::Only(mine), Self::Only(theirs)) => theirs.is_subset(mine),
        }
    }
}

/// A role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Role {
    /// `builtin:NAME`, or an id.
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) permissions: BTreeSet<Permission>,
    pub(crate) redirectors: Redirectors,
    pub(crate) conditions: Conditions,
}

impl Role {
    /// Does it have the permission (for this redirector)? Whoever may launch may also see.
    pub(crate) fn grants(&self, permission: Permission, redirector: Option<&str>) -> bool {
        match permission {
            Permission::Launch => {
                self.permissions.contains(&Permission::Launch)
                    && redirector.is_some_and(|name| self.redirectors.has(name))
            }
            Permission::SeeComputers => {
                self.permissions.contains(&Permission::SeeComputers)
                    || self.permissions.contains(&Permission::Launch)
            }
            other => self.permissions.contains(&other),
        }
    }

    /// The built-in role of this name.
    pub(crate) fn builtin(name: &str) -> Option<Self> {
        let (name, _, permissions) = BUILTINS.iter().find(|(known, ..)| *known == name)?;
        Some(Self {
            id: format!("{BUILTIN}{name}"),
            name: (*name).to_owned(),
            permissions: permissions.iter().copied().collect(),
            redirectors: Redirectors::All,
            conditions: Conditions::default(),
        })
    }

    /// All built-in roles with what they are for.
    pub(crate) fn builtins() -> impl Iterator<Item = (Self, &'static str)> {
        BUILTINS.iter().filter_map(|(name, help, _)| Some((Self::builtin(name)?, *help)))
    }
}

use Permission::{
    ApproveRequests, DeleteCredentials, EditCredentials, EndSessions, ExportAudit, JoinSessions,
    Launch, ManagePolicy, ManageRelays, ManageRoles, ManageTokens, ManageUsers, ReadAudit,
    SeeComputers, SeeSessions, UseCredentials,
};

const BUILTINS: [(&str, &str, &[Permission]); 6] = [
    (OWNER, "may do everything", &Permission::ALL),
    (
        ADMINISTRATOR,
        "runs a partner: computers, users, roles, tokens, audit; sees no stored secret",
        &[
            SeeComputers,
            Launch,
            SeeSessions,
            JoinSessions,
            EndSessions,
            EditCredentials,
            DeleteCredentials,
            UseCredentials,
            ReadAudit,
            ExportAudit,
            ManageUsers,
            ManageRoles,
            ManageTokens,
            ManagePolicy,
            ApproveRequests,
        ],
    ),
    (TECHNICIAN, "opens redirectors on computers", &[SeeComputers, Launch, UseCredentials]),
    (
        AUDITOR,
        "sees computers, sessions and the audit log, and changes nothing",
        &[SeeComputers, SeeSessions, ReadAudit, ExportAudit],
    ),
    (
        CLIENT_REPRESENTATIVE,
        "the client's own person: approves requests, sees and ends sessions, reads the log",
        &[SeeComputers, SeeSessions, EndSessions, ReadAudit, ApproveRequests],
    ),
    (RELAY_OPERATOR, "adds and removes relays", &[ManageRelays]),
];
