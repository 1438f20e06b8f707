//! What a rule covers: a part of the tree partner → client → computer, or a named set of a
//! partner's computers.

use std::collections::BTreeSet;

/// Where a binding holds.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(crate) enum Scope {
    /// Everything of the installation that the subject's partner does not keep from it.
    Installation,
    /// A partner.
    Partner(String),
    /// A client.
    Client { partner: String, client: String },
    /// A group of a partner's computers, by name.
    Group { partner: String, label: String },
    /// A partner's computers with a tag `key=value`.
    Tag { partner: String, label: String },
    /// A computer.
    Computer { partner: String, client: String, computer: String },
}

/// What an act is about. All by id; labels by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Object {
    /// The installation itself: relays, partners.
    Installation,
    /// A partner as such.
    Partner(String),
    /// A client as such.
    Client { partner: String, client: String },
    /// A computer, and what belongs to it.
    Computer {
        partner: String,
        client: String,
        computer: String,
        groups: BTreeSet<String>,
        tags: BTreeSet<String>,
    },
}

impl Object {
    /// The partner it belongs to.
    pub(crate) fn partner(&self) -> Option<&str> {
        match self {
            Self::Installation => None,
            Self::Partner(partner)
            | Self::Client { partner, .. }
            | Self::Computer { partner, .. } => Some(partner),
        }
    }
}

impl Scope {
    /// The word for its kind, as stored and printed.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Installation => "installation",
            Self::Partner(_) => "partner",
            Self::Client { .. } => "client",
            Self::Group { .. } => "group",
            Self::Tag { .. } => "tag",
            Self::Computer { .. } => "computer",
        }
    }

    /// The partner it lies in.
    pub(crate) fn partner(&self) -> Option<&str> {
        match self {
            Self::Installation => None,
            Self::Partner(partner)
            | Self::Client { partner, .. }
            | Self::Group { partner, .. }
            | Self::Tag { partner, .. }
            | Self::Computer { partner, .. } => Some(partner),
        }
    }

    /// Does it cover the object?
    pub(crate) fn covers(&self, object: &Object) -> bool {
        match (self, object) {
            (Self::Installation, _) => true,
            (Self::Partner(mine), _) => object.partner() == Some(mine),
            (
                Self::Client { partner: p, client: c },
                Object::Client { partner, client } | Object::Computer { partner, client, .. },
            ) => p == partner && c == client,
            (Self::Group { partner: p, label }, Object::Computer { partner, groups, .. }) => {
                p == partner && groups.contains(label)
            }
            (Self::Tag { partner: p, label }, Object::Computer { partner, tags, .. }) => {
                p == partner && tags.contains(label)
            }
            (
                Self::Computer { partner: p, computer: k, .. },
                Object::Computer { partner, computer, .. },
            ) => p == partner && k == computer,
            _ => false,
        }
    }

    /// Does everything that `inner` can ever cover lie in here? A computer does not lie in a
    /// group or tag for ever: those contain only themselves.
    pub(crate) fn contains(&self, inner: &Self) -> bool {
        match (self, inner) {
            (Self::Installation, _) => true,
            (Self::Partner(mine), _) => inner.partner() == Some(mine),
            (Self::Client { partner: p, client: c }, Self::Computer { partner, client, .. }) => {
                p == partner && c == client
            }
            _ => self == inner,
        }
    }
}
