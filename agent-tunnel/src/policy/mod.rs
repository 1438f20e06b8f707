//! The endpoint owner's word: what consoles may reach through this agent, and when.
//!
//! Deny by default: what no `[[allow]]` entry names is unreachable. Nothing that comes from the
//! network changes a policy; the grant of the mediator can only narrow what is decided here.
//!
//! - [`Policy::parse`] reads `policy.toml`
//! - [`Policy::check_target`] decides about a target as named, before anything is resolved
//! - [`Policy::filter`] decides about the addresses that the name resolved to
//! - [`PolicyStore`] keeps the last valid policy for the time when the file is broken
//!
//! No clock inside: the local time is given.

mod error;
mod hours;
mod parse;
mod render;
mod rule;
mod store;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use adit_protocol::{
    keys::{Fingerprint, PublicKey},
    limits::OFFLINE_GRACE,
    target::{Target, Transport},
};

pub use error::{Denial, PolicyError};
pub use hours::{Hours, LocalTime};
pub use rule::{NamePattern, PortRange, TargetRule};
pub use store::{Loaded, POLICY_FILE, PolicyStore, Source};

/// The policy that `enroll` writes, and that holds while there is no file.
pub const DEFAULT_TEXT: &str = include_str!("default.toml");

/// What the endpoint owner allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How long sessions may last without the mediator; never above the protocol's limit.
    pub offline_grace: Duration,
    /// If present, no other console is answered.
    pub consoles: Option<BTreeSet<Fingerprint>>,
    /// The union of these is reachable.
    pub allow: Vec<Allow>,
}

/// One `[[allow]]` entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// Addresses and names.
    pub targets: Vec<TargetRule>,
    /// Ports.
    pub ports: Vec<PortRange>,
    /// TCP, UDP.
    pub transports: BTreeSet<Transport>,
    /// When, in local time; always if absent.
    pub hours: Option<Hours>,
    /// Only after the person at the computer agreed.
    pub consent: bool,
}

impl Default for Policy {
    /// The computer's own RDP, VNC, SSH, HTTP and HTTPS ports on loopback.
    fn default() -> Self {
        let ports = adit_protocol::target::BUILTIN_REDIRECTORS.iter();
        Self {
            offline_grace: OFFLINE_GRACE,
            consoles: None,
            allow: vec![Allow {
                targets: rule::LOCALHOST.into_iter().map(TargetRule::address).collect(),
                ports: ports.map(|r| PortRange::single(r.port)).collect(),
                transports: BTreeSet::from([Transport::Tcp]),
                hours: None,
                consent: false,
            }],
        }
    }
}

impl Policy {
    /// Is this console answered at all?
    pub fn check_console(&self, console: PublicKey) -> Result<(), Denial> {
        match &self.consoles {
            Some(trusted) if !trusted.contains(&console.fingerprint()) => {
                Err(Denial::Console(console.fingerprint()))
            }
            _ => Ok(()),
        }
    }

    /// May this target be reached, as far as its name or address tells? For a name that no name
    /// rule matches, the answer depends on what it resolves to: then only ports, transports and
    /// hours are checked here, and [`Policy::filter`] decides.
    pub fn check_target(&self, target: &Target, now: LocalTime) -> Result<(), Denial> {
        let host = Host::of(target);
        self.decide(target, now, |rule| match &host {
            Host::Address(ip) => rule.allows_address(*ip),
            Host::Local => rule::LOCALHOST.into_iter().any(|ip| rule.allows_address(ip)),
            Host::Name(name) => match rule {
                TargetRule::Name(pattern) => pattern.matches(name),
                TargetRule::Net(_) => true,
            },
        })
    }

    /// Of the addresses that the target stands for, those that may be dialled, in their order.
    /// Never empty.
    pub fn filter(
        &self,
        target: &Target,
        resolved: &[IpAddr],
        now: LocalTime,
    ) -> Result<Vec<IpAddr>, Denial> {
        let mut first = None;
        let mut allowed = Vec::new();
        for ip in resolved.iter().map(IpAddr::to_canonical) {
            match self.check_address(target, ip, now) {
                Ok(()) if !allowed.contains(&ip) => allowed.push(ip),
                Ok(()) => {}
                Err(denial) => first = first.or(Some(denial)),
            }
        }
        match first {
            _ if !allowed.is_empty() => Ok(allowed),
            Some(denial) => Err(denial),
            None => Err(Denial::Unlisted(target.clone())),
        }
    }

    /// May `target` be reached at `ip`, to which it resolved (or which it is)?
    fn check_address(&self, target: &Target, ip: IpAddr, now: LocalTime) -> Result<(), Denial> {
        if rule::never_dialled(ip) {
            return Err(Denial::Special(target.clone(), ip));
        }
        let name = match Host::of(target) {
            Host::Name(name) => Some(name),
            // A name of the computer itself must never lead elsewhere, whoever resolved it.
            Host::Local if !ip.is_loopback() => return Err(Denial::Special(target.clone(), ip)),
            Host::Address(own) if own != ip => return Err(Denial::Unlisted(target.clone())),
            Host::Local | Host::Address(_) => None,
        };
        let by_name = |pattern: &NamePattern| name.as_ref().is_some_and(|n| pattern.matches(n));
        let decision = self.decide(target, now, |rule| match rule {
            TargetRule::Net(_) => rule.allows_address(ip),
            TargetRule::Name(pattern) => by_name(pattern) && !rule::is_special(ip),
        });
        match decision {
            Err(Denial::Unlisted(target)) if rule::is_special(ip) => {
                Err(Denial::Special(target, ip))
            }
            decision => decision,
        }
    }

    /// The same with all consent given: what may be reached if the person at the computer agrees.
    pub fn as_if_consented(&self) -> Self {
        let allow = self.allow.iter().map(|entry| Allow { consent: false, ..entry.clone() });
        Self { allow: allow.collect(), ..self.clone() }
    }

    /// Is anything reachable at all at this time?
    pub fn open_at(&self, now: LocalTime) -> bool {
        self.allow.iter().any(|entry| {
            !entry.consent && entry.hours.as_ref().is_none_or(|hours| hours.contains(now))
        })
    }

    /// Goes through the entries; the first that allows wins. If none does, the denial is the
    /// one of the entry that came nearest, so that the owner learns which condition failed.
    fn decide(
        &self,
        target: &Target,
        now: LocalTime,
        matches: impl Fn(&TargetRule) -> bool,
    ) -> Result<(), Denial> {
        let mut nearest = Denial::Unlisted(target.clone());
        for entry in &self.allow {
            let covers = entry.transports.contains(&target.transport())
                && entry.ports.iter().any(|range| range.contains(target.port()))
                && entry.targets.iter().any(&matches);
            if !covers {
                continue;
            }
            if entry.hours.as_ref().is_some_and(|hours| !hours.contains(now)) {
                if !matches!(nearest, Denial::Consent(_)) {
                    nearest = Denial::Hours(target.clone());
                }
            } else if entry.consent {
                nearest = Denial::Consent(target.clone());
            } else {
                return Ok(());
            }
        }
        Err(nearest)
    }
}

/// What a target's host is to the policy.
enum Host {
    Address(IpAddr),
    /// `localhost` and names below it: the computer itself, never asked of a resolver
    /// (RFC 6761 §6.3).
    Local,
    Name(String),
}

impl Host {
    fn of(target: &Target) -> Self {
        match target.ip() {
            Some(ip) => Self::Address(ip.to_canonical()),
            None if is_localhost(target.host()) => Self::Local,
            None => Self::Name(target.host().to_owned()),
        }
    }
}

/// Is it a name of the computer itself (RFC 6761 §6.3)?
pub fn is_localhost(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}

/// The addresses of `localhost`.
pub fn localhost() -> [IpAddr; 2] {
    rule::LOCALHOST
}
