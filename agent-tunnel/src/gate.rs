//! The agent's last word on every session and channel: kill switch, trusted consoles, policy,
//! name resolution, consent of the person at the computer, audit of targets that the grant does
//! not name.
//!
//! Order matters: nothing is resolved that the policy excludes by itself, nobody is asked about
//! what the policy refuses, nothing is audited as dialled that was refused, nothing is dialled
//! that is not audited. Addresses are handed
//! on as decided: whoever dials never resolves again.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use adit_protocol::{code::ChannelCode, grant::Grant, ids::SessionId, target::Target};
use tokio::sync::OnceCell;
use tracing::{info, warn};

use crate::{
    consent::{Consent, Verdict},
    kill_switch::{KillSwitch, LOCKED},
    policy::{Denial, Loaded, LocalTime, Policy, is_localhost, localhost},
};

/// Targets of one session that were audited one by one.
const MAX_KNOWN_TARGETS: usize = 4096;
/// Addresses of one name that are given to be tried.
const MAX_ADDRESSES: usize = 4;
/// Addresses of all targets that channels of one session were let through to. Whoever answers for
/// a name can give others each time.
const MAX_PASSED: usize = 4 * MAX_KNOWN_TARGETS;
/// Targets of one session that the person at the computer is asked about.
const MAX_ASKED_TARGETS: usize = 32;
/// Targets named in the refusal of a session.
const MAX_TOLD_DENIALS: usize = 4;
/// Questions of one session that nobody answered; after them nobody is asked any more.
const MAX_UNANSWERED: u32 = 3;

/// A boxed future.
pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the gate needs of the world.
pub trait Outside: Send + Sync + 'static {
    /// The computer's clock.
    fn now(&self) -> LocalTime;
    /// Addresses of a name; empty if it does not resolve.
    fn resolve(&self, host: String) -> Boxed<Vec<IpAddr>>;
    /// Asks the mediator for a durable audit record of the target; `false` without one.
    fn audit(&self, session: SessionId, target: Target) -> Boxed<bool>;
    /// Tells the mediator what was refused, if it can be told.
    fn report_refusal(&self, session: SessionId, target: Target, rule: &'static str);
}

/// The policy in force, shared by all sessions.
#[derive(Debug)]
pub struct Rules {
    loaded: RwLock<Arc<Loaded>>,
    kill_switch: KillSwitch,
    consent: Consent,
}

impl Rules {
    /// These rules until others are [set](Self::set).
    pub fn new(loaded: Loaded, kill_switch: KillSwitch, consent: Consent) -> Self {
        Self { loaded: RwLock::new(Arc::new(loaded)), kill_switch, consent }
    }

    /// The policy in force.
    pub fn loaded(&self) -> Arc<Loaded> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another policy in force.
    pub fn set(&self, loaded: Loaded) {
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
    }

    /// Where the person at the computer is asked.
    pub fn consent(&self) -> &Consent {
        &self.consent
    }

    /// The kill switch.
    pub fn kill_switch(&self) -> &KillSwitch {
        &self.kill_switch
    }
}

/// The gate of one session.
pub struct SessionGate {
    rules: Arc<Rules>,
    outside: Arc<dyn Outside>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Targets with their audit, under way or done. INVARIANT: at most `MAX_KNOWN_TARGETS`.
    known: BTreeMap<Target, Arc<OnceCell<()>>>,
    /// What channels were let through to, and whether by consent, to be judged again when the
    /// rules change. INVARIANT: at most `MAX_PASSED`.
    passed: BTreeSet<(Target, IpAddr, bool)>,
    /// Targets with their consent, asked for or given. INVARIANT: at most `MAX_ASKED_TARGETS`.
    asked: BTreeMap<Target, Arc<OnceCell<bool>>>,
    unanswered: u32,
}

impl SessionGate {
    /// For one session.
    pub fn new(rules: Arc<Rules>, outside: Arc<dyn Outside>) -> Arc<Self> {
        Arc::new(Self { rules, outside, state: Mutex::default() })
    }

    /// May a session with this grant start? The text of the refusal reaches the console.
    pub fn admit(&self, grant: &Grant) -> Result<(), String> {
        if self.rules.kill_switch.is_locked() {
            return Err(LOCKED.to_owned());
        }
        let loaded = self.rules.loaded();
        admissible(&loaded.policy, grant, self.outside.now()).map_err(|denials| {
            let mut texts: Vec<String> = Vec::new();
            for denial in &denials {
                warn!(session_id = %grant.session, user = %grant.user, rule = denial.rule(),
                    %denial, "session refused");
                texts.push(denial.to_string());
            }
            let more = texts.len().saturating_sub(MAX_TOLD_DENIALS);
            texts.truncate(MAX_TOLD_DENIALS);
            if more > 0 {
                texts.push(format!("and {more} more"));
            }
            texts.join("; ")
        })
    }

    /// The addresses that a channel may dial, in order of preference. Never empty.
    pub async fn permit(
        self: Arc<Self>,
        grant: Grant,
        target: Target,
    ) -> Result<Vec<SocketAddr>, ChannelCode> {
        self.check_target(&grant, &target)
            .map_err(|denial| self.refuse(&grant, &target, &denial))?;
        let resolved = match target.ip() {
            Some(ip) => vec![ip],
            None if is_localhost(target.host()) => localhost().to_vec(),
            None => self.outside.resolve(target.host().to_owned()).await,
        };
        if resolved.is_empty() {
            return Err(ChannelCode::TargetUnresolved);
        }
        let denied = |denial| self.refuse(&grant, &target, &Refusal::Denied(denial));
        let by_consent = match self.addresses(&target, &resolved, false) {
            Ok(_) => false,
            Err(denial) => {
                // What no consent would open is refused for its own reason, and nobody is asked.
                self.addresses(&target, &resolved, true).map_err(|_| denied(denial))?;
                let consented = self.consented(&grant, &target).await;
                consented.map_err(|refusal| self.refuse(&grant, &target, &refusal))?;
                true
            }
        };
        self.audited(&grant, &target).await?;
        // Minutes may have passed since the first look; the owner may have turned the key.
        self.check_target(&grant, &target)
            .map_err(|denial| self.refuse(&grant, &target, &denial))?;
        let mut addresses = self.addresses(&target, &resolved, by_consent).map_err(denied)?;
        addresses.truncate(MAX_ADDRESSES);
        self.pass(&target, &addresses, by_consent)?;
        Ok(addresses.into_iter().map(|ip| SocketAddr::new(ip, target.port())).collect())
    }

    /// Do the rules as they are now still allow the session, with all it was let through to?
    /// The reason if not.
    pub fn still_admitted(&self, grant: &Grant) -> Result<(), &'static str> {
        if self.rules.kill_switch.is_locked() {
            return Err("locked_by_owner");
        }
        let (loaded, now) = (self.rules.loaded(), self.outside.now());
        let (policy, consented) = (&loaded.policy, loaded.policy.as_if_consented());
        let passed = &self.state().passed;
        let still = |(target, ip, by_consent): &(Target, IpAddr, bool)| {
            let policy = if *by_consent { &consented } else { policy };
            policy.filter(target, &[*ip], now).is_ok()
        };
        let fits = still_useful(policy, grant, now) && passed.iter().all(still);
        if fits { Ok(()) } else { Err("policy_changed") }
    }

    /// Notes what a channel is let through to: what cannot be judged again is not let through.
    fn pass(&self, target: &Target, to: &[IpAddr], by_consent: bool) -> Result<(), ChannelCode> {
        let passed = &mut self.state().passed;
        let mut new: Vec<_> = to.iter().map(|ip| (target.clone(), *ip, by_consent)).collect();
        new.retain(|one| !passed.contains(one));
        if passed.len() + new.len() > MAX_PASSED {
            return Err(ChannelCode::TooMany);
        }
        passed.extend(new);
        Ok(())
    }

    fn check_target(&self, grant: &Grant, target: &Target) -> Result<(), Refusal> {
        if self.rules.kill_switch.is_locked() {
            return Err(Refusal::Locked(target.clone()));
        }
        let loaded = self.rules.loaded();
        let policy = loaded.policy.as_if_consented();
        let console = policy.check_console(grant.console);
        console
            .and_then(|()| policy.check_target(target, self.outside.now()))
            .map_err(Refusal::Denied)
    }

    /// Those of the resolved addresses that the policy allows, with or without consent.
    fn addresses(
        &self,
        target: &Target,
        resolved: &[IpAddr],
        consented: bool,
    ) -> Result<Vec<IpAddr>, Denial> {
        let (loaded, now) = (self.rules.loaded(), self.outside.now());
        if consented {
            loaded.policy.as_if_consented().filter(target, resolved, now)
        } else {
            loaded.policy.filter(target, resolved, now)
        }
    }

    /// Asks the person at the computer, once for each target of a session: a yes and a no are
    /// remembered, and who never answers is left alone.
    async fn consented(&self, grant: &Grant, target: &Target) -> Result<(), Refusal> {
        let refused = |verdict| Refusal::Consent(target.clone(), verdict);
        let cell = {
            let mut state = self.state();
            // Questions that were given up leave empty cells behind.
            state.asked.retain(|_, cell| cell.initialized() || Arc::strong_count(cell) > 1);
            let known = state.asked.get(target).is_some_and(|cell| cell.initialized());
            let full = state.asked.len() >= MAX_ASKED_TARGETS && !state.asked.contains_key(target);
            if !known && (full || state.unanswered >= MAX_UNANSWERED) {
                return Err(refused(Verdict::Busy));
            }
            state.asked.entry(target.clone()).or_default().clone()
        };
        let ask = || async {
            match self.rules.consent.ask(grant, target).await {
                Verdict::Allowed => Ok(true),
                Verdict::Refused => Ok(false),
                verdict => {
                    let mut state = self.state();
                    state.unanswered += u32::from(verdict == Verdict::TimedOut);
                    Err(refused(verdict))
                }
            }
        };
        match cell.get_or_try_init(ask).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(refused(Verdict::Refused)),
            Err(refusal) => Err(refusal),
        }
    }

    /// Targets named in the grant were audited with it; others one by one, once a session.
    async fn audited(&self, grant: &Grant, target: &Target) -> Result<(), ChannelCode> {
        if grant.targets.contains(target) {
            return Ok(());
        }
        let cell = {
            let known = &mut self.state().known;
            // Refused and given-up audits leave empty cells behind.
            if known.len() >= MAX_KNOWN_TARGETS {
                known.retain(|_, cell| cell.initialized() || Arc::strong_count(cell) > 1);
            }
            if known.len() >= MAX_KNOWN_TARGETS && !known.contains_key(target) {
                return Err(ChannelCode::TooMany);
            }
            known.entry(target.clone()).or_default().clone()
        };
        let audit = || async {
            let asked = self.outside.audit(grant.session, target.clone());
            if asked.await { Ok(()) } else { Err(ChannelCode::Audit) }
        };
        cell.get_or_try_init(audit).await.copied()
    }

    /// Every refusal with one of these codes is reported here, with its rule; the session does
    /// not report it again.
    fn refuse(&self, grant: &Grant, asked: &Target, refusal: &Refusal) -> ChannelCode {
        let (target, rule, code) = match refusal {
            Refusal::Locked(target) => (target, "locked", ChannelCode::Policy),
            Refusal::Denied(denial) => {
                (denial.target().unwrap_or(asked), denial.rule(), ChannelCode::Policy)
            }
            Refusal::Consent(target, Verdict::TimedOut) => {
                (target, "consent_timeout", ChannelCode::ConsentTimeout)
            }
            Refusal::Consent(target, _) => (target, "consent_refused", ChannelCode::ConsentRefused),
        };
        info!(session_id = %grant.session, user = %grant.user, to = ?target, rule, "channel refused");
        self.outside.report_refusal(grant.session, target.clone(), rule);
        code
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Refusal {
    Locked(Target),
    Denied(Denial),
    Consent(Target, Verdict),
}

/// The console is trusted and every target that is asked for could be reached now, perhaps by
/// consent: that is asked for when a channel opens, by a console that has proved who it is. Who
/// asks for several learns at once which of them is not to be had, not at its first use.
fn admissible(policy: &Policy, grant: &Grant, now: LocalTime) -> Result<(), Vec<Denial>> {
    let policy = policy.as_if_consented();
    policy.check_console(grant.console).map_err(|denial| vec![denial])?;
    let any = grant.any_target && policy.open_at(now);
    let denials: Vec<Denial> =
        grant.targets.iter().filter_map(|target| policy.check_target(target, now).err()).collect();
    match denials.is_empty() {
        _ if any => Ok(()),
        true if grant.targets.is_empty() => Err(vec![Denial::Nothing]),
        true => Ok(()),
        false => Err(denials),
    }
}

/// What a live session needs to go on: one of its targets at least. What it was let through to
/// is judged beside this, target by target.
fn still_useful(policy: &Policy, grant: &Grant, now: LocalTime) -> bool {
    let policy = policy.as_if_consented();
    let reachable = |target| policy.check_target(target, now).is_ok();
    let any = grant.any_target && policy.open_at(now);
    policy.check_console(grant.console).is_ok() && (any || grant.targets.iter().any(reachable))
}

#[cfg(test)]
mod tests;
