//! What the two ends of a session are shown of the log before they believe a grant, and how the
//! heads that different people saw are tied together.
//!
//! [`Evidence`] is a signed head, one entry, and the proof that the entry is in the head's tree.
//! [`relate`] says whether two heads belong to one history: with a consistency proof within a
//! tree, and where the log was begun anew (a restored backup) with the new tree's first entry,
//! which names the head that it follows. Must never take a head's word for its own past.

use adit_protocol::{grant::Grant, keys::PublicKey, wire};

use crate::{
    ConsistencyProof, Entry, Event, Hash, HeadError, InclusionProof, MAX_LINE_LEN, SignedHead,
    Value, entry::LineError, event::MAX_TEXT_LEN, event::cut,
};

/// Links in one message: the heads of two ends, and some restored backups.
pub const MAX_LINKS: usize = 16;
/// Name of the entry that a grant rests on.
pub const GRANTED: &str = "session.granted";
/// Name of the entry that an agent's enrolment left.
pub const ENROLLED: &str = "enroll.succeeded";
/// Name of a tree's first entry.
const STARTED: &str = "tree.started";

/// Why evidence proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// There is none.
    #[error("no proof that it is in the audit log")]
    Missing,
    /// The head, the entry or a proof cannot be read.
    #[error("proof cannot be read: {0}")]
    Line(#[from] LineError),
    /// A proof cannot be read.
    #[error("proof cannot be read")]
    Malformed,
    /// The head is not signed as it should be.
    #[error("head of the audit log: {0}")]
    Head(#[from] HeadError),
    /// The head is of another installation.
    #[error("head of the audit log is signed for another installation")]
    Foreign,
    /// The entry is not in the tree.
    #[error("entry is not in the audit log")]
    NotIncluded,
    /// The entry is not the one that the grant names.
    #[error("entry is not the one that the grant names")]
    OtherEntry,
    /// The entry tells another story than the grant.
    #[error("entry and grant differ in {0}")]
    Differs(&'static str),
}

/// Why two heads cannot be believed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Discord {
    /// Nothing ties them together.
    #[error("no proof that the two heads belong to one history")]
    Unproven,
    /// They show two histories.
    #[error("the two heads show two histories")]
    Fork,
    /// The log goes on from an earlier point than one that was seen.
    #[error("the log goes on from {named} entries, but {seen} were seen")]
    RolledBack {
        /// Entries that the new tree knows of.
        named: u64,
        /// Entries that were seen.
        seen: u64,
    },
    /// A head is not signed as it should be.
    #[error("head of the audit log: {0}")]
    Head(HeadError),
}

/// How a head stands to another of the same history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The same entries.
    Same,
    /// It has more.
    Newer,
    /// It has fewer.
    Older,
}

/// What ties heads together.
#[derive(Debug, Clone, PartialEq)]
pub enum Link {
    /// Within a tree.
    Grown {
        /// The tree.
        tree: String,
        /// Between two of its sizes.
        proof: ConsistencyProof,
    },
    /// The tree follows another one, which its first entry names.
    Started {
        /// The newer tree.
        tree: String,
        /// Its first entry.
        entry: Box<Entry>,
        /// That it is the first.
        proof: InclusionProof,
    },
}

/// A head, an entry, and the proof that it is in there.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// The head.
    pub head: SignedHead,
    /// The entry.
    pub entry: Entry,
    /// That it is in the head's tree.
    pub inclusion: InclusionProof,
    /// What ties heads seen before to this one.
    pub links: Vec<Link>,
}

impl Link {
    /// Reads a message.
    pub fn from_wire(link: &wire::HeadLink) -> Result<Self, EvidenceError> {
        let tree = link.tree.clone();
        if link.start.is_empty() {
            let proof = ConsistencyProof::from_bytes(&link.consistency);
            return Ok(Self::Grown { tree, proof: proof.ok_or(EvidenceError::Malformed)? });
        }
        let proof = InclusionProof::from_bytes(&link.inclusion).ok_or(EvidenceError::Malformed)?;
        Ok(Self::Started { tree, entry: Box::new(Entry::parse(&link.start)?), proof })
    }

    /// Reads several, at most [`MAX_LINKS`].
    pub fn list_from_wire(links: &[wire::HeadLink]) -> Result<Vec<Self>, EvidenceError> {
        links.iter().take(MAX_LINKS).map(Self::from_wire).collect()
    }

    /// As a message.
    pub fn to_wire(&self) -> wire::HeadLink {
        match self {
            Self::Grown { tree, proof } => wire::HeadLink {
                tree: tree.clone(),
                consistency: proof.to_bytes().into(),
                ..Default::default()
            },
            Self::Started { tree, entry, proof } => wire::HeadLink {
                tree: tree.clone(),
                start: entry.to_line().into(),
                inclusion: proof.to_bytes().into(),
                ..Default::default()
            },
        }
    }
}

impl Evidence {
    /// Reads a message. Checks nothing but its form.
    pub fn from_wire(audit: Option<&wire::AuditEvidence>) -> Result<Self, EvidenceError> {
        let audit = audit.ok_or(EvidenceError::Missing)?;
        if audit.entry.len() > MAX_LINE_LEN {
            return Err(EvidenceError::Malformed);
        }
        Ok(Self {
            head: SignedHead::parse(&audit.head)?,
            entry: Entry::parse(&audit.entry)?,
            inclusion: InclusionProof::from_bytes(&audit.inclusion)
                .ok_or(EvidenceError::Malformed)?,
            links: Link::list_from_wire(&audit.links)?,
        })
    }

    /// As a message.
    pub fn to_wire(&self) -> wire::AuditEvidence {
        wire::AuditEvidence {
            head: self.head.to_line().into(),
            entry: self.entry.to_line().into(),
            inclusion: self.inclusion.to_bytes().into(),
            links: self.links.iter().map(Link::to_wire).collect(),
        }
    }

    /// The head is of this installation and the entry is in its tree.
    pub fn check(&self, root: PublicKey) -> Result<(), EvidenceError> {
        check_head(&self.head, root)?;
        let fits = self.inclusion.size == self.head.size
            && self.inclusion.index == self.entry.seq()
            && self.inclusion.verify(self.entry.leaf(), self.head.root);
        if fits { Ok(()) } else { Err(EvidenceError::NotIncluded) }
    }

    /// The same, and the entry is the record of exactly this grant.
    pub fn check_grant(&self, root: PublicKey, grant: &Grant) -> Result<(), EvidenceError> {
        self.check(root)?;
        if (self.entry.seq(), self.entry.leaf().0) != (grant.audit_seq, grant.audit_leaf) {
            return Err(EvidenceError::OtherEntry);
        }
        same_story(self.entry.event(), grant)
    }

    /// The entry is the enrolment of this agent under this id.
    pub fn check_enrolment(
        &self,
        root: PublicKey,
        computer: &str,
        agent: PublicKey,
    ) -> Result<(), EvidenceError> {
        self.check(root)?;
        let event = self.entry.event();
        let identity = Value::Text(agent.fingerprint().to_string());
        let facts = [
            (event.name == ENROLLED, "what happened"),
            (event.outcome.as_deref() == Some("granted"), "outcome"),
            (event.computer_id.as_deref() == Some(computer), "computer"),
            (event.extra.get("identity") == Some(&identity), "key"),
        ];
        all(&facts)
    }
}

/// A head that this installation's log key signed.
pub fn check_head(head: &SignedHead, root: PublicKey) -> Result<(), EvidenceError> {
    head.verify()?;
    match &head.key_cert {
        Some(cert) if cert.root == root => Ok(()),
        _ => Err(EvidenceError::Foreign),
    }
}

fn all(facts: &[(bool, &'static str)]) -> Result<(), EvidenceError> {
    match facts.iter().find(|(holds, _)| !holds) {
        None => Ok(()),
        Some((_, what)) => Err(EvidenceError::Differs(what)),
    }
}

fn same_story(event: &Event, grant: &Grant) -> Result<(), EvidenceError> {
    let text = |given: &str| {
        let mut text = given.to_owned();
        cut(&mut text, MAX_TEXT_LEN);
        (!text.is_empty()).then_some(text)
    };
    let device = grant.console.fingerprint().to_string();
    let targets: Vec<String> = grant.targets.iter().map(ToString::to_string).collect();
    let any = event.extra.get("any_target") == Some(&Value::from("yes"));
    all(&[
        (event.name == GRANTED, "what happened"),
        (event.outcome.as_deref() == Some("granted"), "outcome"),
        (event.session_id == Some(grant.session.to_string()), "session"),
        (event.computer_id == Some(grant.computer.to_string()), "computer"),
        (event.redirector.as_deref() == Some(grant.redirector.as_str()), "redirector"),
        (event.device.as_deref() == Some(device.as_str()), "console"),
        (event.actor == text(&grant.user), "technician"),
        (event.reason == text(&grant.reason), "reason"),
        (event.ticket == text(&grant.ticket), "ticket"),
        (any == grant.any_target, "any target"),
        (targets_of(event) == targets, "targets"),
    ])
}

/// All targets that a session's entry names: the list beside the first one, if there are several.
pub fn targets_of(event: &Event) -> Vec<String> {
    let list = |key: &str| match event.extra_personal.get(key) {
        Some(Value::Text(text)) => Some(text.split(',').map(str::to_owned)),
        _ => None,
    };
    let mut targets: Vec<String> = list("targets").into_iter().flatten().collect();
    for n in 2.. {
        let Some(more) = list(&format!("targets_{n}")) else { break };
        targets.extend(more);
    }
    if targets.is_empty() {
        targets.extend(event.target.clone());
    }
    targets
}

/// How `new` stands to a head seen before. Both must have been verified.
pub fn relate(seen: &SignedHead, new: &SignedHead, links: &[Link]) -> Result<Order, Discord> {
    if seen.tree == new.tree {
        return grown((&seen.tree, seen.size, seen.root), (new.size, new.root), links);
    }
    // From the new tree back to the one that was seen.
    let (mut tree, mut size, mut root) = (new.tree.clone(), new.size, new.root);
    for _ in 0..MAX_LINKS {
        let (previous, named, named_root) =
            started(&tree, size, root, links).ok_or(Discord::Unproven)?;
        (tree, size, root) = (previous, named, named_root);
        if tree == seen.tree {
            if size < seen.size {
                return Err(Discord::RolledBack { named: size, seen: seen.size });
            }
            grown((&tree, seen.size, seen.root), (size, root), links)?;
            return Ok(Order::Newer);
        }
    }
    Err(Discord::Unproven)
}

fn grown(
    (tree, seen, seen_root): (&str, u64, Hash),
    (new, new_root): (u64, Hash),
    links: &[Link],
) -> Result<Order, Discord> {
    if seen == new {
        return if seen_root == new_root { Ok(Order::Same) } else { Err(Discord::Fork) };
    }
    let ((old, old_root), (large, large_root), order) = if seen < new {
        ((seen, seen_root), (new, new_root), Order::Newer)
    } else {
        ((new, new_root), (seen, seen_root), Order::Older)
    };
    let mut offered = false;
    for link in links {
        let Link::Grown { tree: of, proof } = link else { continue };
        if of == tree && (proof.old_size, proof.new_size) == (old, large) {
            offered = true;
            if proof.verify(old_root, large_root) {
                return Ok(order);
            }
        }
    }
    Err(if offered { Discord::Fork } else { Discord::Unproven })
}

/// The tree, size and root that a tree's first entry says it follows.
fn started(tree: &str, size: u64, root: Hash, links: &[Link]) -> Option<(String, u64, Hash)> {
    links.iter().find_map(|link| {
        let Link::Started { tree: of, entry, proof } = link else { return None };
        let first = of == tree && entry.seq() == 0 && (proof.index, proof.size) == (0, size);
        if !first || !proof.verify(entry.leaf(), root) {
            return None;
        }
        followed(entry)
    })
}

/// What a tree's first entry says it follows.
pub fn followed(entry: &Entry) -> Option<(String, u64, Hash)> {
    let event = entry.event();
    let (Some(Value::Text(tree)), Some(Value::Integer(size)), Some(Value::Text(root))) = (
        event.extra.get("previous_tree"),
        event.extra.get("previous_size"),
        event.extra.get("previous_root"),
    ) else {
        return None;
    };
    (event.name == STARTED).then_some(())?;
    Some((tree.clone(), u64::try_from(*size).ok()?, root.parse().ok()?))
}
