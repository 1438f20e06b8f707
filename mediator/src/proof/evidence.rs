//! Evidence as it goes to the ends of a session, and what ties the heads that they hold together.

use adit_ledger::{
    Entry, Evidence, Link, SignedHead,
    evidence::{MAX_LINKS, followed},
};
use adit_protocol::wire;

use super::Forest;
use crate::store::{Columns, StoreError, bigint};

/// Bytes of a tree's id as devices tell it.
const MAX_TREE: usize = adit_ledger::head::MAX_TREE_ID_LEN;

/// A head that a device says it holds, if it can be one.
pub(crate) fn seen_head(told: Option<wire::SeenHead>) -> Option<wire::SeenHead> {
    told.filter(|seen| !seen.tree.is_empty() && seen.tree.len() <= MAX_TREE)
}

impl Forest {
    /// Head, inclusion of the entry, and what ties these heads seen before to it. A head that
    /// cannot be tied is left out: whoever holds it asks, or refuses.
    pub(crate) async fn evidence(
        &self,
        partner: &str,
        (seq, line): (u64, &str),
        seen: &[wire::SeenHead],
    ) -> Result<wire::AuditEvidence, StoreError> {
        let head = self.head(partner).ok_or(StoreError::Missing("audit log"))?;
        self.evidence_in(partner, &head, (seq, line), seen).await
    }

    /// The head that evidence shows.
    pub(crate) fn head_of(&self, audit: &wire::AuditEvidence) -> Option<wire::SeenHead> {
        let head = SignedHead::parse(&audit.head).ok()?;
        Some(wire::SeenHead { tree: head.tree, size: head.size })
    }

    async fn evidence_in(
        &self,
        partner: &str,
        head: &SignedHead,
        (seq, line): (u64, &str),
        seen: &[wire::SeenHead],
    ) -> Result<wire::AuditEvidence, StoreError> {
        let entry = Entry::parse(line.as_bytes())
            .map_err(|error| StoreError::Corrupt(format!("entry {seq} of a log: {error}")))?;
        let inclusion = self.inclusion((partner, &head.tree), seq, head.size).await?;
        let now = wire::SeenHead { tree: head.tree.clone(), size: head.size };
        let mut links: Vec<Link> = Vec::new();
        for seen in seen {
            match self.links(partner, seen, &now).await {
                Ok(found) => {
                    for link in found {
                        if links.len() < MAX_LINKS && !links.contains(&link) {
                            links.push(link);
                        }
                    }
                }
                Err(error) => tracing::debug!(%error, tree = %seen.tree, "no link to a head"),
            }
        }
        Ok(Evidence { head: head.clone(), entry, inclusion, links }.to_wire())
    }

    /// What ties two heads of a partner's log together.
    pub(crate) async fn links(
        &self,
        partner: &str,
        old: &wire::SeenHead,
        new: &wire::SeenHead,
    ) -> Result<Vec<Link>, StoreError> {
        let mut links = Vec::new();
        let (mut tree, mut size) = (new.tree.clone(), new.size);
        while tree != old.tree {
            if links.len() >= MAX_LINKS {
                return Err(StoreError::Missing("head"));
            }
            let entry = self.first_entry(partner, &tree).await?;
            let (previous, named, _) = followed(&entry).ok_or(StoreError::Missing("head"))?;
            let proof = self.inclusion((partner, &tree), 0, size).await?;
            links.push(Link::Started { tree, entry: Box::new(entry), proof });
            (tree, size) = (previous, named);
        }
        // Nobody reads another partner's tree, not even that it is there.
        self.require_owner(partner, &tree).await?;
        if old.size != size {
            let (small, large) = (old.size.min(size), old.size.max(size));
            let proof = self.consistency((partner, &tree), small, large).await?;
            links.push(Link::Grown { tree, proof });
        }
        Ok(links)
    }

    async fn require_owner(&self, partner: &str, tree: &str) -> Result<(), StoreError> {
        if self.head(partner).is_some_and(|head| head.tree == tree) {
            return Ok(());
        }
        sqlx::query("SELECT id FROM audit_tree WHERE id = $1 AND partner_id = $2")
            .bind(tree.to_owned())
            .bind(partner.to_owned())
            .fetch_optional(self.pool())
            .await?
            .map(|_| ())
            .ok_or(StoreError::Missing("head"))
    }

    async fn first_entry(&self, partner: &str, tree: &str) -> Result<Entry, StoreError> {
        self.require_owner(partner, tree).await?;
        let row = sqlx::query("SELECT line FROM audit_entry WHERE tree = $1 AND seq = $2")
            .bind(tree.to_owned())
            .bind(bigint(0))
            .fetch_optional(self.pool())
            .await?
            .ok_or(StoreError::Missing("entry"))?;
        Entry::parse(row.text("line")?.as_bytes())
            .map_err(|error| StoreError::Corrupt(format!("first entry of a log: {error}")))
    }

    /// That a computer's agent was enrolled with its key: in the partner's log, or in one that it
    /// follows.
    pub(crate) async fn enrolment(
        &self,
        partner: &str,
        computer: &str,
        seen: Option<wire::SeenHead>,
    ) -> Result<wire::AuditEvidence, StoreError> {
        let head = self.head(partner).ok_or(StoreError::Missing("enrolment"))?;
        let kept = self.kept_enrolment(partner, computer).await?;
        if head.tree == kept.tree {
            let seen: Vec<_> = seen.into_iter().collect();
            return self.evidence_in(partner, &head, (kept.seq, &kept.line), &seen).await;
        }
        self.enrolment_before(partner, &kept).await
    }

    /// The same in the head that other evidence shows, or tied to it.
    pub(crate) async fn enrolment_beside(
        &self,
        partner: &str,
        computer: &str,
        shown: &wire::AuditEvidence,
    ) -> Result<wire::AuditEvidence, StoreError> {
        let head = SignedHead::parse(&shown.head)
            .map_err(|error| StoreError::Corrupt(format!("head that is shown: {error}")))?;
        let kept = self.kept_enrolment(partner, computer).await?;
        if head.tree == kept.tree {
            return self.evidence_in(partner, &head, (kept.seq, &kept.line), &[]).await;
        }
        let mut old = self.enrolment_before(partner, &kept).await?;
        if let Some(before) = self.head_of(&old) {
            let now = wire::SeenHead { tree: head.tree, size: head.size };
            let links = self.links(partner, &before, &now).await?;
            old.links = links.iter().take(MAX_LINKS).map(Link::to_wire).collect();
        }
        Ok(old)
    }

    /// In a log that was there before a backup was restored: in its own last head.
    async fn enrolment_before(
        &self,
        partner: &str,
        kept: &KeptEnrolment,
    ) -> Result<wire::AuditEvidence, StoreError> {
        let row = sqlx::query("SELECT head FROM audit_tree WHERE id = $1 AND partner_id = $2")
            .bind(kept.tree.clone())
            .bind(partner.to_owned())
            .fetch_optional(self.pool())
            .await?
            .ok_or(StoreError::Missing("enrolment"))?;
        let old = super::forest::read_head(&row.text("head")?)?;
        self.evidence_in(partner, &old, (kept.seq, &kept.line), &[]).await
    }

    async fn kept_enrolment(
        &self,
        partner: &str,
        computer: &str,
    ) -> Result<KeptEnrolment, StoreError> {
        let row = sqlx::query(
            "SELECT tree, seq, line FROM enrolment WHERE computer_id = $1 AND partner_id = $2",
        )
        .bind(computer.to_owned())
        .bind(partner.to_owned())
        .fetch_optional(self.pool())
        .await?
        .ok_or(StoreError::Missing("enrolment"))?;
        Ok(KeptEnrolment {
            tree: row.text("tree")?,
            seq: row.number("seq")?,
            line: row.text("line")?,
        })
    }
}

/// Where a computer's enrolment is in the log.
struct KeptEnrolment {
    tree: String,
    seq: u64,
    line: String,
}

/// Keeps what proves a computer's enrolment: the entry without what is personal in it.
pub(crate) async fn keep_enrolment(
    tx: &mut crate::store::WriteTx,
    partner: &str,
    computer: &str,
    seq: u64,
) -> Result<(), StoreError> {
    let row = sqlx::query(
        "SELECT e.tree AS tree, e.line AS line FROM audit_entry e \
         JOIN audit_tree t ON t.id = e.tree \
         WHERE t.partner_id = $1 AND t.current = $2 AND e.seq = $3",
    )
    .bind(partner.to_owned())
    .bind(1_i16)
    .bind(bigint(seq))
    .fetch_one(tx.sql())
    .await?;
    let (tree, line) = (row.text("tree")?, row.text("line")?);
    let mut entry = Entry::parse(line.as_bytes())
        .map_err(|error| StoreError::Corrupt(format!("entry {seq} of a log: {error}")))?;
    entry.erase();
    sqlx::query(
        "INSERT INTO enrolment (computer_id, partner_id, tree, seq, line) \
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(computer.to_owned())
    .bind(partner.to_owned())
    .bind(tree)
    .bind(bigint(seq))
    .bind(entry.to_line())
    .execute(tx.sql())
    .await?;
    Ok(())
}
