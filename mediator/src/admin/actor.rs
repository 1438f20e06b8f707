//! Who acts: the machine's administrator through the local socket, or somebody who proved over
//! the network who they are. Every act asks here before it does anything.
//!
//! What belongs to another partner, or is not for this one to see, is told as "not found"; a
//! right that is missing as `not_permitted`. Each denial is recorded. Must never decide by itself:
//! that is [`crate::authz`]'s.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use adit_ledger::{Event, Level};
use adit_protocol::{code::failure, keys::PublicKey};
use adit_runtime::{
    cli::{CliError, Exit},
    time::unix_ms,
};

use super::{AdminContext, handle::no_such_client};
use crate::{
    authz::{Decision, Holder, Spot, facts_now},
    core::types::Refusal,
    place::store_error,
    requests,
    roles::{
        Act, Conditions, Object, Permission, Role, Scope,
        conditions::Facts,
        mint::{holds, may_grant, object_of},
    },
    store::{StoreError, access::When, computers::ComputerRow, tenants},
};

/// The machine's administrator, in the log.
pub(crate) const LOCAL: &str = "local administrator";

/// Who acts.
#[derive(Clone, Debug)]
pub(crate) enum Actor {
    /// Whoever may use the data directory. May do everything.
    Local,
    /// Somebody over the network, within rules.
    Remote(Arc<Remote>),
}

/// What proved who somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A technician's login, and the console's identity.
    Console,
    /// An API key's own key pair.
    Key,
}

/// Somebody over the network.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    pub(crate) kind: Kind,
    /// With the account's or the key's id.
    pub(crate) holder: Holder,
    pub(crate) name: String,
    /// Name of the partner.
    pub(crate) partner: String,
    pub(crate) device: PublicKey,
    pub(crate) source: SocketAddr,
    /// How the second factor was shown, and when.
    pub(crate) mfa: String,
    pub(crate) mfa_ms: Option<u64>,
    /// All that a login takes was shown not long ago; keys have nothing to show again.
    pub(crate) fresh: bool,
    /// What is asked: the operation's id.
    pub(crate) operation: &'static str,
    /// Its refusal is in the log.
    pub(crate) denied: Arc<AtomicBool>,
}

impl Remote {
    /// The circumstances of what is asked now.
    pub(crate) fn facts(&self) -> Facts {
        Facts { mfa_ms: self.mfa_ms, ..facts_now(Some(self.source.ip()), unix_ms()) }
    }

    /// As requests for access know who acts.
    pub(crate) fn as_requester(&self) -> requests::Actor {
        requests::Actor {
            name: self.name.clone(),
            device: Some(self.device.fingerprint().to_string()),
            source: Some(self.source.to_string()),
        }
    }
}

/// There is no such thing, or it is not for this one.
pub(crate) fn not_found(what: &'static str) -> CliError {
    store_error(StoreError::Missing(what))
}

impl Actor {
    /// Who it is, for the log.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Local => LOCAL,
            Self::Remote(remote) => &remote.name,
        }
    }

    /// The one over the network, if it is one.
    pub(crate) fn remote(&self) -> Option<&Remote> {
        match self {
            Self::Local => None,
            Self::Remote(remote) => Some(remote),
        }
    }

    /// The only partner that it reaches; `None`: all.
    pub(crate) fn partner_id(&self) -> Option<&str> {
        self.remote().map(|remote| remote.holder.partner.as_str())
    }

    /// Name of that partner; nothing for one that reaches all.
    pub(crate) fn partner_name(&self) -> &str {
        self.remote().map_or("", |remote| &remote.partner)
    }

    /// The same one with the rules that hold by now, for what is decided once more after a wait:
    /// of somebody disabled meanwhile nothing is permitted.
    pub(crate) async fn anew(&self, context: &AdminContext) -> Result<Self, CliError> {
        let Self::Remote(remote) = self else { return Ok(Self::Local) };
        let holder = remote.holder.anew(&context.store.readers, remote.kind == Kind::Key).await;
        let holder = holder.map_err(store_error)?;
        Ok(Self::Remote(Arc::new(Remote { holder, ..Remote::clone(remote) })))
    }

    /// Refuses everybody but the machine's administrator: for what has no route.
    pub(crate) fn local_only(&self) -> Result<(), CliError> {
        match self {
            Self::Local => Ok(()),
            Self::Remote(_) => Err(not_found("act")),
        }
    }

    /// An event of what it did.
    pub(crate) fn event(&self, name: &str, partner: &str) -> Event {
        self.sign(Event::new(name, Level::Significant).partner(partner).outcome("done"))
    }

    /// Writes into an event who did it.
    pub(crate) fn sign(&self, event: Event) -> Event {
        let event = event.actor(self.name());
        match self {
            Self::Local => event,
            Self::Remote(remote) => event
                .device(remote.device.fingerprint().to_string())
                .source(remote.source.to_string())
                .mfa(remote.mfa.as_str()),
        }
    }

    /// Is this partner's for it to know of?
    pub(crate) fn reaches(&self, partner_id: &str) -> bool {
        self.partner_id().is_none_or(|own| own == partner_id)
    }

    /// Does any of its rules cover a client? Else that is not there for it.
    pub(crate) fn rules_reach(&self, client: &tenants::Client) -> bool {
        let (partner, id) = (client.partner_id.clone(), client.id.clone());
        let object = Object::Client { partner, client: id };
        let covered =
            |remote: &Remote| remote.holder.rules.iter().any(|rule| rule.scope.covers(&object));
        self.remote().is_none_or(covered)
    }

    /// Asks for a permission on a partner as such.
    pub(crate) async fn may(
        &self,
        context: &AdminContext,
        partner_id: &str,
        any_of: &[Permission],
    ) -> Result<(), CliError> {
        self.decide(context, &Object::Partner(partner_id.to_owned()), any_of).await
    }

    /// Asks for a permission on the own partner, whatever is asked about in it.
    pub(crate) async fn may_at_home(
        &self,
        context: &AdminContext,
        any_of: &[Permission],
    ) -> Result<(), CliError> {
        match self.partner_id() {
            None => Ok(()),
            Some(own) => self.may(context, own, any_of).await,
        }
    }

    /// Asks for a permission on the installation.
    pub(crate) async fn may_everywhere(
        &self,
        context: &AdminContext,
        any_of: &[Permission],
    ) -> Result<(), CliError> {
        self.decide(context, &Object::Installation, any_of).await
    }

    /// Does it hold a permission on the installation? Asks, and records no denial: what it may
    /// depends on more than this.
    pub(crate) fn holds_everywhere(&self, permission: Permission) -> bool {
        self.remote().is_none_or(|remote| {
            let (holder, facts) = (&remote.holder, remote.facts());
            holder.decide(Act::of(permission), &Object::Installation, facts).is_allowed()
        })
    }

    /// Asks for a permission on a client.
    pub(crate) async fn may_client(
        &self,
        context: &AdminContext,
        client: &tenants::Client,
        any_of: &[Permission],
    ) -> Result<(), CliError> {
        let (partner, id) = (client.partner_id.clone(), client.id.clone());
        let decided = self.decide(context, &Object::Client { partner, client: id }, any_of).await;
        decided.map_err(|error| match error.exit {
            Exit::NotThere => no_such_client(&client.path()),
            _ => error,
        })
    }

    /// Asks for a permission on a computer.
    pub(crate) async fn may_computer(
        &self,
        context: &AdminContext,
        row: &ComputerRow,
        any_of: &[Permission],
    ) -> Result<(), CliError> {
        self.may_spot(context, &Spot::of(row), any_of).await
    }

    /// Asks for a permission on a computer by its ids.
    pub(crate) async fn may_spot(
        &self,
        context: &AdminContext,
        spot: &Spot,
        any_of: &[Permission],
    ) -> Result<(), CliError> {
        let Self::Remote(remote) = self else { return Ok(()) };
        let pool = &context.store.readers;
        let object = remote.holder.object(pool, spot, When::Now).await;
        self.decide(context, &object.map_err(store_error)?, any_of).await
    }

    /// Asks for a permission on whatever it is.
    pub(crate) async fn may_on(
        &self,
        context: &AdminContext,
        object: &Object,
        any_of: &[Permission],
    ) -> Result<(), CliError> {
        self.decide(context, object, any_of).await
    }

    /// Refuses whoever may manage roles nowhere, before anything is told of what is there.
    pub(crate) async fn may_manage_roles_somewhere(
        &self,
        context: &AdminContext,
    ) -> Result<(), CliError> {
        let Self::Remote(remote) = self else { return Ok(()) };
        let somewhere = remote.holder.rules.iter().map(|rule| object_of(&rule.scope));
        let manage = Act::of(Permission::ManageRoles);
        for object in somewhere {
            if remote.holder.decide(manage, &object, remote.facts()).is_allowed() {
                return Ok(());
            }
        }
        self.may_at_home(context, &[Permission::ManageRoles]).await
    }

    async fn decide(
        &self,
        context: &AdminContext,
        object: &Object,
        any_of: &[Permission],
    ) -> Result<(), CliError> {
        let Self::Remote(remote) = self else { return Ok(()) };
        let mut denied = None;
        for permission in any_of {
            match remote.holder.decide(Act::of(*permission), object, remote.facts()) {
                Decision::Allow { .. } => return Ok(()),
                // What is missing with one permission says more than that another is not held.
                Decision::Deny { rule, refusal, unmet } => {
                    if denied.is_none() || !unmet.is_empty() {
                        denied = Some((rule, refusal));
                    }
                }
            }
        }
        let missing = || Refusal::new(failure::NOT_PERMITTED, "nothing permits it");
        let (rule, refusal) = denied.unwrap_or_else(|| ("default-deny".to_owned(), missing()));
        let seen = matches!(object, Object::Installation)
            || matches!(object, Object::Partner(id) if self.reaches(id));
        let error = match (refusal.code, seen) {
            // One's own partner is no secret, only what may be done there.
            (failure::NO_SUCH_COMPUTER, true) => {
                let text = format!("your roles do not permit {}", names(any_of));
                CliError::refused(failure::NOT_PERMITTED, text)
            }
            (failure::NO_SUCH_COMPUTER, false) => not_found(kind(object)),
            (code, _) => CliError::refused(code, refusal.message),
        };
        self.denied(context, (&rule, error.code), object).await?;
        Err(error)
    }

    /// Records what was denied. Of what is not there for this one only its kind.
    async fn denied(
        &self,
        context: &AdminContext,
        (rule, code): (&str, &str),
        object: &Object,
    ) -> Result<(), CliError> {
        let Self::Remote(remote) = self else { return Ok(()) };
        let record = |event: Event| event.rule(rule).extra("object", kind(object));
        self.record_refused(context, remote, code, record).await?;
        remote.denied.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Records a refusal that no decision recorded: above all of what is not there for this one,
    /// as it looks when somebody tries which of others' names there are.
    pub(crate) async fn refused(
        &self,
        context: &AdminContext,
        code: &'static str,
    ) -> Result<(), CliError> {
        let Self::Remote(remote) = self else { return Ok(()) };
        if remote.denied.load(Ordering::Relaxed) {
            return Ok(());
        }
        let record = |event: Event| event.rule("not-for-this-one");
        self.record_refused(context, remote, code, record).await
    }

    /// The same by the same once a minute, with the number of those that were only counted.
    async fn record_refused(
        &self,
        context: &AdminContext,
        remote: &Remote,
        code: &str,
        more: impl FnOnce(Event) -> Event,
    ) -> Result<(), CliError> {
        let holder = &remote.holder;
        let key = (holder.account.clone(), remote.operation, code.to_owned());
        let Some(due) = context.refusals.note(&holder.partner, key) else { return Ok(()) };
        let unrecorded = due.unrecorded;
        let mut event = Event::new("act.refused", Level::Significant)
            .partner(&remote.partner)
            .outcome("refused")
            .end_reason(code)
            .extra("operation", remote.operation);
        let counts = [("others", unrecorded.others), ("others_of_partner", unrecorded.of_partner)];
        for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            event = event.extra(name, count);
        }
        context.record(&holder.partner, self.sign(more(event))).await?;
        due.written();
        Ok(())
    }

    /// Refuses whoever has not proved lately who they are (R27).
    pub(crate) async fn must_be_fresh(&self, context: &AdminContext) -> Result<(), CliError> {
        if self.remote().is_none_or(|remote| remote.fresh) {
            return Ok(());
        }
        let code = failure::REAUTHENTICATION_REQUIRED;
        let object = Object::Partner(self.partner_id().unwrap_or_default().to_owned());
        self.denied(context, ("fresh-proof", code), &object).await?;
        Err(CliError::refused(code, "show password and second factor again")
            .hint("console-tunnel mfa verify"))
    }

    /// Refuses what lies outside the own rules, and records it.
    pub(crate) async fn refuse(
        &self,
        context: &AdminContext,
        rule: &str,
        text: String,
    ) -> Result<CliError, CliError> {
        self.refuse_as(context, (rule, failure::NOT_PERMITTED), text).await
    }

    /// Refuses with a code of its own, and records it.
    pub(crate) async fn refuse_as(
        &self,
        context: &AdminContext,
        (rule, code): (&str, &'static str),
        text: String,
    ) -> Result<CliError, CliError> {
        let object = Object::Partner(self.partner_id().unwrap_or_default().to_owned());
        self.denied(context, (rule, code), &object).await?;
        Ok(CliError::refused(code, text))
    }

    /// May it give this to others? Never more than it holds itself, and only somebody who proved
    /// lately who they are: whoever sits down at an open console must gain nothing that lasts.
    pub(crate) async fn may_give(
        &self,
        context: &AdminContext,
        gift: &Gift<'_>,
    ) -> Result<(), CliError> {
        let Self::Remote(remote) = self else { return Ok(()) };
        let holder = &remote.holder;
        let rules = if holder.disabled { &[] } else { holder.rules.as_slice() };
        let circumstances = holder.context(remote.facts());
        let Gift { role, scope, conditions, expires_ms, .. } = *gift;
        let judged = match gift.binds {
            true => may_grant(rules, &circumstances, role, scope, conditions, expires_ms),
            false => holds(rules, &circumstances, role, scope, conditions, expires_ms),
        };
        match judged {
            Ok(()) => self.must_be_fresh(context).await,
            Err(error) => Err(self.refuse(context, "beyond-own-rules", error.to_string()).await?),
        }
    }
}

/// What somebody would get.
pub(crate) struct Gift<'a> {
    pub(crate) role: &'a Role,
    pub(crate) scope: &'a Scope,
    pub(crate) conditions: &'a Conditions,
    pub(crate) expires_ms: Option<u64>,
    /// By a binding, which takes the right to bind.
    pub(crate) binds: bool,
}

fn kind(object: &Object) -> &'static str {
    match object {
        Object::Installation => "installation",
        Object::Partner(_) => "partner",
        Object::Client { .. } => "client",
        Object::Computer { .. } => "computer",
    }
}

fn names(any_of: &[Permission]) -> String {
    let names: Vec<&str> = any_of.iter().map(|permission| permission.name()).collect();
    names.join(" or ")
}
