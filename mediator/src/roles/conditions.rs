//! What must be so beside the permission, and what is missing.

use std::{fmt, net::IpAddr, str::FromStr};

use adit_protocol::code::failure;
use serde::{Deserialize, Serialize};

use super::{Needs, hours::Hours};

/// Networks in one condition.
pub(crate) const MAX_NETWORKS: usize = 64;

/// A condition that is not met. Ordered by which one is told first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Unmet {
    Source,
    Hours,
    Reason,
    Ticket,
    SecondFactor,
    Approval,
    /// The longest time is over.
    Length,
}

impl Unmet {
    /// The stable code (docs/errors.md); also the end reason of a session that lost it.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Source => failure::SOURCE_NOT_ALLOWED,
            Self::Hours => failure::OUTSIDE_HOURS,
            Self::Reason => failure::REASON_REQUIRED,
            Self::Ticket => failure::TICKET_REQUIRED,
            Self::SecondFactor => failure::MFA_REQUIRED,
            Self::Approval => failure::APPROVAL_REQUIRED,
            Self::Length => failure::TIME_LIMIT,
        }
    }

    /// In words.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::Source => "not from this network",
            Self::Hours => "not at this time",
            Self::Reason => "a reason is required",
            Self::Ticket => "a ticket number is required",
            Self::SecondFactor => "a fresh second factor is required",
            Self::Approval => "somebody else has to approve it first",
            Self::Length => "the longest permitted time is over",
        }
    }
}

/// Conditions of a role or a binding; absent ones ask for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Conditions {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) reason: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ticket: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) approval: bool,
    #[serde(skip_serializing_if = "Option::is_none", with = "text")]
    pub(crate) hours: Option<Hours>,
    /// Longest age of the second factor, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mfa_age_ms: Option<u64>,
    /// Networks to come from; empty: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) networks: Vec<Network>,
    /// Longest session, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) length_ms: Option<u64>,
}

/// What is known of an act, for its conditions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Now, milliseconds since 1970.
    pub(crate) now_ms: u64,
    /// When the act began: for a session that goes on, its start.
    pub(crate) began_ms: u64,
    pub(crate) source: Option<IpAddr>,
    /// When the second factor was shown.
    pub(crate) mfa_ms: Option<u64>,
    pub(crate) reason: bool,
    pub(crate) ticket: bool,
    /// Until when somebody else has approved it.
    pub(crate) approved_until_ms: Option<u64>,
}

impl Conditions {
    /// Refuses times of no length: they would be no condition but a lock.
    pub(crate) fn check_times(&self) -> Result<(), &'static str> {
        match (self.length_ms, self.mfa_age_ms) {
            (Some(0), _) => Err("conditions: the longest session must be more than nothing"),
            (_, Some(0)) => Err("conditions: the second factor's age must be more than nothing"),
            _ => Ok(()),
        }
    }

    /// Checks; gives the time until which they stay met (`u64::MAX`: no limit).
    pub(crate) fn check(&self, needs: Needs, facts: &Facts) -> Result<u64, Vec<Unmet>> {
        let mut unmet = Vec::new();
        let mut until = u64::MAX;
        if !self.networks.is_empty() {
            let inside = |ip: IpAddr| self.networks.iter().any(|network| network.contains(ip));
            if !facts.source.is_some_and(inside) {
                unmet.push(Unmet::Source);
            }
        }
        if let Some(hours) = &self.hours {
            match hours.open_until(facts.now_ms) {
                Some(end) => until = until.min(end),
                None => unmet.push(Unmet::Hours),
            }
        }
        if needs == Needs::Everything {
            if self.reason && !facts.reason {
                unmet.push(Unmet::Reason);
            }
            if self.ticket && !facts.ticket {
                unmet.push(Unmet::Ticket);
            }
        }
        if let Some(age) = self.mfa_age_ms.filter(|_| needs != Needs::Gates) {
            // Fresh when the act began: a session does not end because the factor grows old.
            let fresh = |at: u64| facts.began_ms.saturating_sub(at) <= age;
            if !facts.mfa_ms.is_some_and(fresh) {
                unmet.push(Unmet::SecondFactor);
            }
        }
        if needs == Needs::Everything {
            if self.approval {
                match facts.approved_until_ms.filter(|end| *end > facts.now_ms) {
                    Some(end) => until = until.min(end),
                    None => unmet.push(Unmet::Approval),
                }
            }
            if let Some(length) = self.length_ms {
                let end = facts.began_ms.saturating_add(length);
                until = until.min(end);
                if end <= facts.now_ms {
                    unmet.push(Unmet::Length);
                }
            }
        }
        if unmet.is_empty() { Ok(until) } else { Err(unmet) }
    }

    /// May somebody who proves who they are be kept out for ever: by networks that nobody comes
    /// from, hours that never come, or somebody else whom nobody can ask?
    pub(crate) fn may_keep_out(&self) -> bool {
        !self.networks.is_empty() || self.hours.is_some() || self.approval
    }

    /// Whatever meets these conditions meets `other` as well.
    pub(crate) fn implies(&self, other: &Self) -> bool {
        let at_most = |mine: Option<u64>, theirs: Option<u64>| match (mine, theirs) {
            (_, None) => true,
            (Some(mine), Some(theirs)) => mine <= theirs,
            (None, Some(_)) => false,
        };
        (self.reason || !other.reason)
            && (self.ticket || !other.ticket)
            && (self.approval || !other.approval)
            && (other.hours.is_none() || self.hours == other.hours)
            && at_most(self.mfa_age_ms, other.mfa_age_ms)
            && at_most(self.length_ms, other.length_ms)
            && (other.networks.is_empty()
                || !self.networks.is_empty()
                    && self
                        .networks
                        .iter()
                        .all(|mine| other.networks.iter().any(|theirs| theirs.covers(mine))))
    }

    /// For people: what is asked for, or nothing.
    pub(crate) fn describe(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        for (asked, word) in
            [(self.reason, "reason"), (self.ticket, "ticket"), (self.approval, "approval")]
        {
            if asked {
                parts.push(word.to_owned());
            }
        }
        if let Some(hours) = &self.hours {
            parts.push(format!("hours {hours}"));
        }
        if let Some(age) = self.mfa_age_ms {
            parts.push(format!("second factor within {} s", age / 1000));
        }
        if !self.networks.is_empty() {
            let networks: Vec<String> = self.networks.iter().map(ToString::to_string).collect();
            parts.push(format!("from {}", networks.join(" ")));
        }
        if let Some(length) = self.length_ms {
            parts.push(format!("at most {} s", length / 1000));
        }
        parts.join(", ")
    }
}

/// Hours as text in JSON.
mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Hours;

    #[expect(clippy::ref_option, reason = "the form that serde calls")]
    pub(super) fn serialize<S: Serializer>(
        hours: &Option<Hours>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match hours {
            Some(hours) => serializer.collect_str(hours),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Hours>, D::Error> {
        let text: Option<String> = Option::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

/// An address range: `192.0.2.0/24`, `2001:db8::/32`, or one address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Network {
    base: IpAddr,
    length: u8,
}

impl Network {
    fn bits(ip: IpAddr) -> (u128, u8) {
        match ip.to_canonical() {
            IpAddr::V4(ip) => (u128::from(u32::from(ip)) << 96, 32),
            IpAddr::V6(ip) => (u128::from(ip), 128),
        }
    }

    fn mask(length: u8) -> u128 {
        u128::MAX.checked_shl(u32::from(128 - length.min(128))).unwrap_or(0)
    }

    /// Is the address inside?
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        let ((mine, width), (theirs, other)) = (Self::bits(self.base), Self::bits(ip));
        width == other && (mine ^ theirs) & Self::mask(self.length) == 0
    }

    fn covers(&self, inner: &Self) -> bool {
        self.length <= inner.length && self.contains(inner.base)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.length)
    }
}

/// Not a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a network: write it like 192.0.2.0/24 or 2001:db8::/32")]
pub(crate) struct InvalidNetwork;

impl FromStr for Network {
    type Err = InvalidNetwork;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (base, length) = match text.split_once('/') {
            Some((base, length)) => (base, Some(length)),
            None => (text, None),
        };
        let base: IpAddr = base.parse().map_err(|_| InvalidNetwork)?;
        let base = base.to_canonical();
        let width = Self::bits(base).1;
        let length = match length {
            Some(length) => length.parse().map_err(|_| InvalidNetwork)?,
            None => width,
        };
        if length > width { Err(InvalidNetwork) } else { Ok(Self { base, length }) }
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl TryFrom<String> for Network {
    type Error = InvalidNetwork;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}
