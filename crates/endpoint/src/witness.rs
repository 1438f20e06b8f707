//! This end as a witness of the audit log: the last head that it saw of each partner's log, what
//! the mediator must prove of a new one, and what happens if it does not.
//!
//! Every grant shows a head. It must go on from the one that was seen before, and from the one
//! that the other end of the session saw. What cannot be proved is refused, told, and written
//! down together with the signed heads, which are the evidence. Must never forget a head because
//! of what a mediator says.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use adit_ledger::{
    Discord, Evidence, EvidenceError, Link, Order, SignedHead,
    evidence::{check_head, relate},
};
use adit_protocol::{
    code::failure,
    grant::Grant,
    ids::ComputerId,
    keys::{Fingerprint, PublicKey},
    wire,
};
use bytes::Bytes;
use serde_json::json;
use tracing::{error, warn};

use crate::{
    Endpoint,
    alerts::Fork,
    keeper::{KeepError, Keeper},
    link::ControlLink,
};

/// Time for the mediator to tie two heads together.
const PROVE: Duration = Duration::from_secs(5);
/// Heads of others' logs that change under our hands this often are not followed.
const MAX_ROUNDS: usize = 8;
/// Logs whose heads are kept: whoever has many of them is shown too many partners.
const MAX_LOGS: usize = 256;

/// Why a session or a first contact is refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Doubt {
    /// There is no proof that it is in the log.
    #[error("not proved to be in the audit log: {0}")]
    Unproven(EvidenceError),
    /// Two heads that do not belong to one history.
    #[error("audit log: {why} (known: {} entries; shown: {} entries)", known.size, shown.size)]
    Discord {
        /// What does not fit.
        why: Discord,
        /// The head that was seen before, here or at the other end.
        known: Box<SignedHead>,
        /// The head that is shown now.
        shown: Box<SignedHead>,
    },
    /// The log of a partner that is not this end's.
    #[error("audit log: of partner {shown}, but this end belongs to partner {own}")]
    Foreign {
        /// The partner's id that was told at enrolment or login.
        own: String,
        /// What is shown instead, cut.
        shown: String,
    },
    /// No head of a further log is kept.
    #[error(
        "audit log: heads of {MAX_LOGS} logs are kept, and this is another one; after looking \
         into it, witness accept makes room"
    )]
    TooMany,
}

impl Doubt {
    /// Stable code (docs/errors.md).
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unproven(_) | Self::TooMany => failure::AUDIT_UNPROVEN,
            Self::Discord { .. } => failure::AUDIT_FORKED,
            Self::Foreign { .. } => failure::AUDIT_FOREIGN,
        }
    }

    fn heads(&self) -> Option<(&SignedHead, &SignedHead)> {
        match self {
            Self::Discord { known, shown, .. } => Some((known, shown)),
            _ => None,
        }
    }
}

impl Doubt {
    /// For the other end.
    pub(crate) fn to_wire(&self) -> wire::HeadAlert {
        let line = |head: &SignedHead| Bytes::from(head.to_line());
        let heads = self.heads().map(|(known, shown)| (line(known), line(shown)));
        let (known, shown) = heads.unwrap_or_default();
        wire::HeadAlert { code: self.code().to_owned(), known, shown }
    }
}

impl From<EvidenceError> for Doubt {
    fn from(error: EvidenceError) -> Self {
        Self::Unproven(error)
    }
}

/// What was shown and believed.
pub(crate) struct Shown {
    pub(crate) head: SignedHead,
    links: Vec<Link>,
}

/// Whose log: the installation's root and the partner.
type Log = (Fingerprint, String);

/// The heads that this end saw.
pub(crate) struct Witness {
    keeper: Arc<Keeper>,
    heads: Mutex<BTreeMap<Log, SignedHead>>,
}

impl Witness {
    /// Reads what was seen. What cannot be read is an error: forgetting is what a mediator that
    /// changed its past would wish for.
    pub(crate) fn load(keeper: Arc<Keeper>) -> Result<Self, KeepError> {
        let heads = parse(&keeper.read_heads()?)?;
        Ok(Self { keeper, heads: Mutex::new(heads) })
    }

    fn heads(&self) -> MutexGuard<'_, BTreeMap<Log, SignedHead>> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What another process of this device saw meanwhile counts too.
    pub(crate) fn refresh(&self) -> Result<(), KeepError> {
        let stored = parse(&self.keeper.read_heads()?)?;
        let mut heads = self.heads();
        for (log, head) in stored {
            let newer = heads.get(&log).is_none_or(|known| {
                known.tree != head.tree && known.time_ms < head.time_ms
                    || known.tree == head.tree && known.size < head.size
            });
            if newer {
                heads.insert(log, head);
            }
        }
        Ok(())
    }

    /// The head seen last of a partner's log.
    pub(crate) fn seen(&self, root: Fingerprint, tenant: &str) -> Option<SignedHead> {
        self.heads().get(&(root, tenant.to_owned())).cloned()
    }

    /// All heads of an installation, to be told when connecting.
    pub(crate) fn of(&self, root: Fingerprint) -> Vec<wire::SeenHead> {
        let heads = self.heads();
        heads.iter().filter(|((of, _), _)| *of == root).map(|(_, head)| told(head)).collect()
    }

    /// The partners of an installation whose logs were seen.
    pub(crate) fn partners(&self, root: Fingerprint) -> Vec<String> {
        let heads = self.heads();
        heads.keys().filter(|(of, _)| *of == root).map(|(_, tenant)| tenant.clone()).collect()
    }

    /// Puts `new` in the place of exactly `known`; `false` if another one came between.
    fn replace(
        &self,
        log: &Log,
        known: Option<&SignedHead>,
        new: &SignedHead,
    ) -> Result<bool, Doubt> {
        let mut heads = self.heads();
        if heads.get(log) != known {
            return Ok(false);
        }
        if known.is_none() && heads.len() >= MAX_LOGS {
            return Err(Doubt::TooMany);
        }
        heads.insert(log.clone(), new.clone());
        self.keeper.heads(render(&heads));
        Ok(true)
    }
}

/// A head as devices tell which one they hold.
pub(crate) fn told(head: &SignedHead) -> wire::SeenHead {
    wire::SeenHead { tree: head.tree.clone(), size: head.size }
}

/// A line for each log: root, partner, head.
fn render(heads: &BTreeMap<Log, SignedHead>) -> String {
    heads
        .iter()
        .map(|((root, tenant), head)| format!("{root} {tenant} {}\n", head.to_line()))
        .collect()
}

fn parse(text: &str) -> Result<BTreeMap<Log, SignedHead>, KeepError> {
    let damaged = |n: usize| {
        let reason = format!("line {n} is no signed head of an audit log");
        KeepError::damaged(std::path::Path::new("witness"), reason)
    };
    let mut heads = BTreeMap::new();
    for (n, line) in (1..).zip(text.lines()) {
        let mut parts = line.splitn(3, ' ');
        let (Some(root), Some(tenant), Some(head)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(damaged(n));
        };
        let root: Fingerprint = root.parse().map_err(|_| damaged(n))?;
        let head = SignedHead::parse(head.as_bytes()).map_err(|_| damaged(n))?;
        head.verify().map_err(|_| damaged(n))?;
        heads.insert((root, tenant.to_owned()), head);
    }
    Ok(heads)
}

/// Accepts a log that does not go on from the head seen: the next head shown is believed. For the
/// device's owner, after a restored backup; not while the program runs. Works with a file that
/// cannot be read, too: it is put aside as it is. Gives the lines that it had.
pub fn accept(directory: &std::path::Path) -> Result<Vec<String>, KeepError> {
    let (keeper, _) = Keeper::start(Some(directory.to_owned()))?;
    let (known, damaged) = match keeper.read_heads().and_then(|text| parse(&text)) {
        Ok(heads) => (heads.values().map(SignedHead::to_line).collect::<Vec<_>>(), None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    keeper.forget_heads()?;
    keeper.accepted(&known, damaged.as_deref());
    Ok(known)
}

/// What this device saw and what alarmed it, without running.
pub fn read(directory: &std::path::Path) -> Result<(Vec<String>, Vec<String>), KeepError> {
    let (keeper, _) = Keeper::start(Some(directory.to_owned()))?;
    let heads = parse(&keeper.read_heads()?)?;
    Ok((heads.values().map(SignedHead::to_line).collect(), keeper.alerts(MAX_TOLD)))
}

/// What will do beside a head that goes on from the one seen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Also {
    Nothing,
    /// The head of another log that the one seen goes on from.
    Earlier,
}

/// Alerts told at once.
const MAX_TOLD: usize = 20;

impl Endpoint {
    /// Heads that this device saw of an installation's logs, for `Hello`.
    pub fn seen_heads(&self, root: Fingerprint) -> Vec<wire::SeenHead> {
        self.witness.of(root)
    }

    /// The last alerts about audit logs, oldest first, as JSON objects.
    pub fn alerts(&self) -> Vec<String> {
        self.keeper.alerts(MAX_TOLD)
    }

    /// The last alert that the device's owner has not accepted, as a JSON object.
    pub fn standing_alert(&self) -> Option<String> {
        self.keeper.standing()
    }

    /// The signed head seen last, to be told to the other end.
    pub(crate) fn seen_head(&self, root: Fingerprint, tenant: &str) -> Option<SignedHead> {
        if let Err(error) = self.witness.refresh() {
            warn!(%error, "heads that other processes saw are not known");
        }
        self.witness.seen(root, tenant)
    }

    /// The grant must be in the log, and the log must go on from what was seen.
    pub(crate) async fn check_record(
        &self,
        root: PublicKey,
        grant: &Grant,
        audit: Option<&wire::AuditEvidence>,
    ) -> Result<Shown, Doubt> {
        self.require_own(&grant.tenant)?;
        let evidence = Evidence::from_wire(audit)?;
        evidence.check_grant(root, grant)?;
        self.adopt_partner(root.fingerprint(), grant).await?;
        let Evidence { head, links, .. } = evidence;
        self.follow(root, &grant.tenant, (&head, &links), Also::Nothing).await?;
        self.partner.adopt(&grant.tenant);
        Ok(Shown { head, links })
    }

    /// An agent's enrolment must be in the log. Gives the number and time of its entry.
    pub async fn check_enrolment(
        &self,
        tenant: &str,
        computer: ComputerId,
        agent: PublicKey,
    ) -> Result<(u64, u64), Doubt> {
        self.require_own(tenant)?;
        let missing = || Doubt::Unproven(EvidenceError::Missing);
        let (Some(peer), Some((keys, _))) = (self.control.peer(), self.control.last()) else {
            return Err(missing());
        };
        let seen = self.seen_head(keys.root.fingerprint(), tenant);
        let asked = wire::EnrolmentRequest {
            computer_id: computer.to_bytes(),
            seen: seen.as_ref().map(told),
        };
        let answer = peer.request(wire::frame::Body::EnrolmentRequest(asked), PROVE).await;
        let Ok(wire::frame::Body::EnrolmentProof(proof)) = answer else { return Err(missing()) };
        let evidence = Evidence::from_wire(proof.audit.as_ref())?;
        evidence.check_enrolment(keys.root, &computer.to_string(), agent)?;
        let Evidence { head, links, entry, .. } = &evidence;
        // Enrolments stay in the logs of before when a backup was restored.
        self.follow(keys.root, tenant, (head, links), Also::Earlier).await?;
        Ok((entry.seq(), entry.time_ms()))
    }

    /// The same, as it is shown with a grant: in the head that the grant's own entry was found in,
    /// or in one that is tied to it.
    pub(crate) async fn check_enrolment_shown(
        &self,
        grant: &Grant,
        (root, shown): (PublicKey, &Shown),
        proof: &wire::AuditEvidence,
    ) -> Result<(u64, u64), Doubt> {
        let evidence = Evidence::from_wire(Some(proof))?;
        evidence.check_enrolment(root, &grant.computer.to_string(), grant.agent)?;
        let Evidence { head, entry, links, .. } = &evidence;
        let order = ordered(&self.control, head, &shown.head, links).await;
        order.map_err(|why| doubt(why, head, &shown.head))?;
        Ok((entry.seq(), entry.time_ms()))
    }

    /// The head that the other end saw must be of the same history as the one shown here.
    pub(crate) async fn check_peer_head(
        &self,
        root: PublicKey,
        told: &[u8],
        shown: &Shown,
    ) -> Result<(), Doubt> {
        if told.is_empty() {
            return Ok(()); // it saw none before
        }
        let head = SignedHead::parse(told).map_err(EvidenceError::from)?;
        check_head(&head, root)?;
        let order = ordered(&self.control, &head, &shown.head, &shown.links).await;
        order.map(|_| ()).map_err(|why| doubt(why, &head, &shown.head))
    }

    /// Takes a new head in the place of the one seen last, if it goes on from it.
    async fn follow(
        &self,
        root: PublicKey,
        tenant: &str,
        (head, links): (&SignedHead, &[Link]),
        also: Also,
    ) -> Result<(), Doubt> {
        if tenant.is_empty() || tenant.contains(char::is_whitespace) {
            return Err(Doubt::Unproven(EvidenceError::Malformed));
        }
        let log = (root.fingerprint(), tenant.to_owned());
        for _ in 0..MAX_ROUNDS {
            let known = self.witness.seen(root.fingerprint(), tenant);
            if let Some(known) = known.as_ref().filter(|known| known.tree != head.tree)
                && also == Also::Earlier
            {
                match ordered(&self.control, head, known, links).await {
                    Ok(_) => return Ok(()),
                    Err(Discord::Unproven) => {}
                    Err(why) => return Err(doubt(why, known, head)),
                }
            }
            let order = match &known {
                None => Order::Newer,
                Some(known) => ordered(&self.control, known, head, links)
                    .await
                    .map_err(|why| doubt(why, known, head))?,
            };
            if order != Order::Newer || self.witness.replace(&log, known.as_ref(), head)? {
                return Ok(());
            }
        }
        Err(Doubt::Unproven(EvidenceError::Missing))
    }

    /// Tells of a refusal and writes it down with the heads that show why.
    pub(crate) fn alarm(&self, doubt: &Doubt, session: &str, found_by: &str) {
        let text = doubt.to_string();
        self.note_alarm((doubt.code(), &text), session, found_by, doubt.heads());
    }

    /// A first contact whose enrolment is not proved.
    pub fn alarm_of_enrolment(&self, doubt: &Doubt, computer: ComputerId) {
        self.alarm(doubt, &format!("first contact with {computer}"), "console");
    }

    /// The other end refuses a session for what it was shown.
    pub(crate) fn alarm_of_peer(&self, session: &str, alert: &wire::HeadAlert) {
        // It is the peer's word: only what the installation signed is kept as a head.
        let root = self.control.last().map(|(keys, _)| keys.root);
        let signed = |line: &Bytes| {
            let head = SignedHead::parse(line).ok()?;
            check_head(&head, root?).ok().map(|()| head)
        };
        let heads = signed(&alert.known).zip(signed(&alert.shown));
        let heads = heads.as_ref().map(|(known, shown)| (known, shown));
        let text = "the other end refuses the session for what the mediator showed it";
        self.note_alarm((code_of(alert), text), session, "peer", heads);
    }

    pub(crate) fn note_alarm(
        &self,
        (code, text): (&str, &str),
        session: &str,
        found_by: &str,
        heads: Option<(&SignedHead, &SignedHead)>,
    ) {
        let time = self.control.last().map_or(0, |(_, clock)| clock.now_ms());
        let line = json!({
            "time_ms": time,
            "code": code,
            "session_id": session,
            "found_by": found_by,
            "message": text,
            "known": heads.map(|(known, _)| known.to_line()),
            "shown": heads.map(|(_, shown)| shown.to_line()),
        });
        let evidence = heads.is_some_and(|(known, shown)| {
            self.keeper.fork(&Fork { known, shown, told: found_by == "peer" }, &line)
        });
        if evidence || self.keeper.alert(line) {
            error!(code, session_id = session, found_by, "audit log: {text}");
        }
    }
}

/// What the other end calls it, if that is a code of ours.
pub(crate) fn code_of(alert: &wire::HeadAlert) -> &'static str {
    let codes = [failure::AUDIT_FORKED, failure::AUDIT_FOREIGN];
    codes.into_iter().find(|code| *code == alert.code).unwrap_or(failure::AUDIT_UNPROVEN)
}

fn doubt(why: Discord, known: &SignedHead, shown: &SignedHead) -> Doubt {
    Doubt::Discord { why, known: Box::new(known.clone()), shown: Box::new(shown.clone()) }
}

/// How the new head stands to a known one; asks the mediator for what it did not send along.
async fn ordered(
    control: &ControlLink,
    known: &SignedHead,
    new: &SignedHead,
    links: &[Link],
) -> Result<Order, Discord> {
    match relate(known, new, links) {
        Err(Discord::Unproven) => {}
        certain => return certain,
    }
    let Some(peer) = control.peer() else { return Err(Discord::Unproven) };
    // Of a head that is older the newer one is the one to start from.
    let older = known.tree == new.tree && new.size < known.size;
    let (old, new_told) = if older { (new, known) } else { (known, new) };
    let asked = wire::HeadRequest { old: Some(told(old)), new: Some(told(new_told)) };
    match peer.request(wire::frame::Body::HeadRequest(asked), PROVE).await {
        Ok(wire::frame::Body::HeadProof(proof)) => {
            let links = Link::list_from_wire(&proof.links).map_err(|_| Discord::Unproven)?;
            relate(known, new, &links)
        }
        _ => Err(Discord::Unproven),
    }
}

#[cfg(test)]
mod tests;
