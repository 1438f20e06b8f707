//! The audit trees' inner nodes: those of the last entries in memory, all of them in the store,
//! so that a proof takes a logarithmic number of look-ups.
//!
//! [`Grove`] belongs to the writer and follows its transactions; [`Forest`] is what everybody
//! else reads: heads of what is on disk, never of what is being written.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock},
};

use adit_ledger::{
    ConsistencyProof, Hash, InclusionProof, MerkleTree, SignedHead,
    proof::ProofPlan,
    tree::{CompactRange, NodeId, cover},
};
use sqlx::{AnyConnection, AnyPool};

use crate::store::{Columns, StoreError, bigint};

/// Nodes of this level and above are stored; those below are made of their leaves.
const STORED_LEVEL: u32 = 4;
/// Leaves whose nodes are kept in memory, at least this many and at most twice as many a tree.
const KEPT_LEAVES: u64 = 4096;

/// A tree as it is on disk, with the nodes of its last leaves.
#[derive(Clone)]
struct Grown {
    id: String,
    head: Arc<SignedHead>,
    size: u64,
    /// Its subtrees before the leaves whose nodes are kept.
    base: CompactRange,
    nodes: BTreeMap<NodeId, Hash>,
}

/// What everybody reads. Clones share it.
#[derive(Clone)]
pub(crate) struct Forest(Arc<Inner>);

struct Inner {
    pool: AnyPool,
    /// By partner id.
    trees: RwLock<BTreeMap<String, Grown>>,
}

/// The writer's side: what a transaction adds.
pub(crate) struct Grove {
    forest: Forest,
    /// Partners whose trees grew in this transaction.
    touched: BTreeSet<String>,
    grown: Vec<Growth>,
}

struct Growth {
    partner: String,
    id: String,
    base: MerkleTree,
    tree: MerkleTree,
    nodes: Vec<(NodeId, Hash)>,
    head: Option<SignedHead>,
}

impl Grove {
    /// With the trees as they are on disk.
    pub(crate) async fn load(
        connection: &mut AnyConnection,
        pool: AnyPool,
    ) -> Result<Self, StoreError> {
        let rows =
            sqlx::query("SELECT id, partner_id, frontier, head FROM audit_tree WHERE current = $1")
                .bind(1_i16)
                .fetch_all(connection)
                .await?;
        let mut trees = BTreeMap::new();
        for row in rows {
            let tree = frontier(&row.blob("frontier")?)?;
            let head = read_head(&row.text("head")?)?;
            let grown = Grown {
                id: row.text("id")?,
                head: Arc::new(head),
                size: tree.size(),
                base: range_of(&tree),
                nodes: BTreeMap::new(),
            };
            trees.insert(row.text("partner_id")?, grown);
        }
        let forest = Forest(Arc::new(Inner { pool, trees: RwLock::new(trees) }));
        Ok(Self { forest, touched: BTreeSet::new(), grown: Vec::new() })
    }

    /// After a failure: the same readers, the trees as they are on disk.
    pub(crate) async fn reload(
        &mut self,
        connection: &mut AnyConnection,
    ) -> Result<(), StoreError> {
        let fresh = Self::load(connection, self.forest.0.pool.clone()).await?;
        let trees = std::mem::take(&mut *fresh.forest.write());
        *self.forest.write() = trees;
        self.begin();
        Ok(())
    }

    /// For those who read.
    pub(crate) fn forest(&self) -> Forest {
        self.forest.clone()
    }

    /// A transaction begins.
    pub(crate) fn begin(&mut self) {
        self.touched.clear();
        self.grown.clear();
    }

    /// A partner's tree grows, or another one takes its place.
    pub(crate) fn touch(&mut self, partner: &str) {
        if !self.touched.contains(partner) {
            self.touched.insert(partner.to_owned());
        }
    }

    /// Computes and stores the nodes that the transaction's entries complete; before the heads
    /// are signed, since what is stored as the frontier must be that of the last commit.
    pub(crate) async fn gather(
        &mut self,
        connection: &mut AnyConnection,
    ) -> Result<(), StoreError> {
        for partner in std::mem::take(&mut self.touched) {
            let row = sqlx::query(
                "SELECT id, frontier FROM audit_tree WHERE partner_id = $1 AND current = $2",
            )
            .bind(partner.clone())
            .bind(1_i16)
            .fetch_optional(&mut *connection)
            .await?;
            let Some(row) = row else { continue };
            let (id, base) = (row.text("id")?, frontier(&row.blob("frontier")?)?);
            let (tree, nodes) = (base.clone(), Vec::new());
            let mut growth = Growth { partner, id, base, tree, nodes, head: None };
            growth.read(connection).await?;
            self.grown.push(growth);
        }
        Ok(())
    }

    /// Notes the heads that were signed.
    pub(crate) async fn signed(
        &mut self,
        connection: &mut AnyConnection,
    ) -> Result<(), StoreError> {
        for growth in &mut self.grown {
            let row = sqlx::query("SELECT head FROM audit_tree WHERE id = $1")
                .bind(growth.id.clone())
                .fetch_one(&mut *connection)
                .await?;
            growth.head = Some(read_head(&row.text("head")?)?);
        }
        Ok(())
    }

    /// The transaction is on disk.
    pub(crate) fn committed(&mut self) {
        for growth in self.grown.drain(..) {
            self.forest.grow(growth);
        }
    }
}

impl Growth {
    async fn read(&mut self, connection: &mut AnyConnection) -> Result<(), StoreError> {
        let rows =
            sqlx::query("SELECT leaf FROM audit_entry WHERE tree = $1 AND seq >= $2 ORDER BY seq")
                .bind(self.id.clone())
                .bind(bigint(self.tree.size()))
                .fetch_all(&mut *connection)
                .await?;
        for row in rows {
            let leaf = leaf_of(&row)?;
            self.tree.append_with(leaf, |node, hash| self.nodes.push((node, hash)));
        }
        keep(connection, &self.id, &self.nodes).await
    }
}

/// Stores those of a tree's nodes that are kept.
pub(crate) async fn keep(
    connection: &mut AnyConnection,
    tree: &str,
    nodes: &[(NodeId, Hash)],
) -> Result<(), StoreError> {
    for (node, hash) in nodes.iter().filter(|(node, _)| node.level >= STORED_LEVEL) {
        sqlx::query(
            "INSERT INTO audit_node (tree, level, idx, hash) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (tree, level, idx) DO UPDATE SET hash = excluded.hash",
        )
        .bind(tree.to_owned())
        .bind(i16::try_from(node.level).unwrap_or(i16::MAX))
        .bind(bigint(node.index))
        .bind(hash.0.to_vec())
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

impl Forest {
    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Grown>> {
        self.0.trees.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Grown>> {
        self.0.trees.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pool(&self) -> &AnyPool {
        &self.0.pool
    }

    fn grow(&self, growth: Growth) {
        let Growth { partner, id, base, tree, nodes, head } = growth;
        let Some(head) = head.map(Arc::new) else { return };
        let mut trees = self.write();
        let grown = trees.entry(partner).or_insert_with(|| Grown {
            id: String::new(),
            head: Arc::clone(&head),
            size: 0,
            base: CompactRange::new(0),
            nodes: BTreeMap::new(),
        });
        if grown.id != id || grown.size != base.size() {
            (grown.id, grown.base) = (id, range_of(&base));
            grown.nodes.clear();
        }
        grown.nodes.extend(nodes);
        (grown.size, grown.head) = (tree.size(), head);
        grown.trim();
    }

    /// The head of a partner's log, as it is on disk.
    pub(crate) fn head(&self, partner: &str) -> Option<Arc<SignedHead>> {
        self.read().get(partner).map(|grown| Arc::clone(&grown.head))
    }

    /// That entry `seq` is in the partner's tree of `size` leaves.
    pub(crate) async fn inclusion(
        &self,
        (partner, tree): (&str, &str),
        seq: u64,
        size: u64,
    ) -> Result<InclusionProof, StoreError> {
        let plan = ProofPlan::inclusion(seq, size).ok_or(StoreError::Missing("entry"))?;
        let path = self.path(partner, tree, &plan).await?;
        Ok(InclusionProof { index: seq, size, path })
    }

    /// That the tree of `old` leaves is the beginning of that of `new`.
    pub(crate) async fn consistency(
        &self,
        (partner, tree): (&str, &str),
        old: u64,
        new: u64,
    ) -> Result<ConsistencyProof, StoreError> {
        let plan = ProofPlan::consistency(old, new).ok_or(StoreError::Missing("entry"))?;
        let path = self.path(partner, tree, &plan).await?;
        Ok(ConsistencyProof { old_size: old, new_size: new, path })
    }

    /// From memory, else from the store.
    async fn path(
        &self,
        partner: &str,
        tree: &str,
        plan: &ProofPlan,
    ) -> Result<Vec<Hash>, StoreError> {
        let kept = {
            let trees = self.read();
            let grown = trees.get(partner).filter(|grown| grown.id == tree);
            grown.and_then(|grown| plan.nodes().map(|node| grown.node(node)).collect())
        };
        let nodes: Vec<Hash> = match kept {
            Some(nodes) => nodes,
            None => {
                let mut nodes = Vec::new();
                for node in plan.nodes() {
                    nodes.push(stored(&self.0.pool, tree, node).await?);
                }
                nodes
            }
        };
        plan.assemble(&nodes).ok_or(StoreError::Missing("entry"))
    }
}

impl Grown {
    fn node(&self, node: NodeId) -> Option<Hash> {
        self.nodes.get(&node).copied().or_else(|| {
            let mut base = cover(0, self.base.end()).zip(self.base.hashes());
            base.find(|(id, _)| *id == node).map(|(_, hash)| *hash)
        })
    }

    /// Forgets all but the last leaves' nodes.
    fn trim(&mut self) {
        if self.size - self.base.end() <= 2 * KEPT_LEAVES {
            return;
        }
        let begin = self.size - KEPT_LEAVES;
        let hashes: Option<Vec<Hash>> = cover(0, begin).map(|node| self.node(node)).collect();
        let range = hashes.and_then(|hashes| CompactRange::from_hashes(0, begin, hashes));
        if let Some(range) = range {
            self.base = range;
            self.nodes.retain(|node, _| node.end() > begin);
        }
    }
}

/// A node of the store. Until a tree older than its nodes has them (`audit::fill`), its leaves
/// are read.
async fn stored(pool: &AnyPool, tree: &str, node: NodeId) -> Result<Hash, StoreError> {
    if node.level >= STORED_LEVEL {
        let row =
            sqlx::query("SELECT hash FROM audit_node WHERE tree = $1 AND level = $2 AND idx = $3")
                .bind(tree.to_owned())
                .bind(i16::try_from(node.level).unwrap_or(i16::MAX))
                .bind(bigint(node.index))
                .fetch_optional(pool)
                .await?;
        if let Some(row) = row {
            return Hash::from_slice(&row.blob("hash")?)
                .ok_or_else(|| StoreError::Corrupt("node of an audit tree".into()));
        }
    }
    /// Leaves read at once.
    const PAGE: u64 = 4096;
    let (mut at, mut range) = (node.begin(), MerkleTree::new());
    while at < node.end() {
        let end = node.end().min(at + PAGE);
        let rows = sqlx::query(
            "SELECT leaf FROM audit_entry WHERE tree = $1 AND seq >= $2 AND seq < $3 ORDER BY seq",
        )
        .bind(tree.to_owned())
        .bind(bigint(at))
        .bind(bigint(end))
        .fetch_all(pool)
        .await?;
        if u64::try_from(rows.len()).ok() != Some(end - at) {
            return Err(StoreError::Missing("entry"));
        }
        for row in rows {
            range.append(leaf_of(&row)?);
        }
        at = end;
    }
    // A complete subtree's root does not depend on where it stands.
    Ok(range.root())
}

fn frontier(bytes: &[u8]) -> Result<MerkleTree, StoreError> {
    if bytes.is_empty() {
        return Ok(MerkleTree::new());
    }
    MerkleTree::from_bytes(bytes).ok_or_else(|| StoreError::Corrupt("frontier of a log".into()))
}

fn range_of(tree: &MerkleTree) -> CompactRange {
    let bytes = tree.to_bytes();
    let hashes = bytes.get(8..).unwrap_or_default().chunks(32).filter_map(Hash::from_slice);
    CompactRange::from_hashes(0, tree.size(), hashes.collect())
        .unwrap_or_else(|| CompactRange::new(0))
}

pub(super) fn read_head(line: &str) -> Result<SignedHead, StoreError> {
    SignedHead::parse(line.as_bytes())
        .map_err(|error| StoreError::Corrupt(format!("head of a log: {error}")))
}

fn leaf_of(row: &sqlx::any::AnyRow) -> Result<Hash, StoreError> {
    Hash::from_slice(&row.blob("leaf")?)
        .ok_or_else(|| StoreError::Corrupt("leaf of an entry".into()))
}
