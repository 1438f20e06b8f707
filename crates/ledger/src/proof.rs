//! Inclusion and consistency proofs (RFC 9162 §2.1.3 and §2.1.4).
//!
//! A [`ProofPlan`] says which stored subtrees a proof needs, so that an asynchronous store can
//! fetch them by itself; [`LeafSource`] is the same for memory. Verification follows the RFC's
//! algorithms over leaf *hashes*: the `ct-merkle` crate wants leaf contents, which pruned entries
//! no longer have, and asserts on sizes that a peer may choose; it is the tests' second opinion.

use crate::{
    Hash,
    tree::{MAX_TREE_SIZE, NodeId, cover, fold, hashes_from_bytes},
};

/// Hashes in a path: no tree of 2^53 leaves needs more.
const MAX_PATH_LEN: usize = 64;

/// Which subtrees a proof is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofPlan {
    // Runs of leaves, in the proof's order; each becomes one hash.
    runs: Vec<(u64, u64)>,
}

impl ProofPlan {
    /// For leaf `index` in the tree of `size` leaves.
    pub fn inclusion(index: u64, size: u64) -> Option<Self> {
        if index >= size || size > MAX_TREE_SIZE {
            return None;
        }
        let (mut begin, mut end) = (0, size);
        let mut runs = Vec::new();
        while end - begin > 1 {
            let middle = begin + split(end - begin);
            if index < middle {
                runs.push((middle, end));
                end = middle;
            } else {
                runs.push((begin, middle));
                begin = middle;
            }
        }
        runs.reverse();
        Some(Self { runs })
    }

    /// That the tree of `old` leaves is the beginning of the tree of `new` leaves.
    pub fn consistency(old: u64, new: u64) -> Option<Self> {
        if old > new || new > MAX_TREE_SIZE {
            return None;
        }
        let (mut begin, mut end) = (0, new);
        let mut runs = Vec::new();
        while old != 0 && end != old {
            let middle = begin + split(end - begin);
            if old <= middle {
                runs.push((middle, end));
                end = middle;
            } else {
                runs.push((begin, middle));
                begin = middle;
            }
        }
        // The old root itself is known to the verifier; a part of it is not.
        if begin != 0 {
            runs.push((begin, end));
        }
        runs.reverse();
        Some(Self { runs })
    }

    /// The complete subtrees to fetch, in the order that [`ProofPlan::assemble`] takes them.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.runs.iter().flat_map(|(begin, end)| cover(*begin, *end))
    }

    /// The proof's hashes; `None` if there are too few nodes.
    pub fn assemble(&self, nodes: &[Hash]) -> Option<Vec<Hash>> {
        let mut rest = nodes;
        self.runs
            .iter()
            .map(|(begin, end)| {
                let (run, after) = rest.split_at_checked(cover(*begin, *end).count())?;
                rest = after;
                Some(fold(run))
            })
            .collect()
    }
}

/// Largest power of two below `len` (`len` > 1).
fn split(len: u64) -> u64 {
    1 << len.saturating_sub(1).checked_ilog2().unwrap_or(0)
}

/// Where leaf hashes are kept.
pub trait LeafSource {
    /// Why one could not be read.
    type Error;

    /// Hash of a leaf.
    fn leaf(&mut self, index: u64) -> Result<Hash, Self::Error>;

    /// Hash of a complete subtree. Stores that keep inner nodes answer at once; this default
    /// reads all its leaves.
    fn node(&mut self, node: NodeId) -> Result<Hash, Self::Error> {
        let mut range = crate::tree::CompactRange::new(node.begin());
        for index in node.begin()..node.end() {
            range.push_leaf(self.leaf(index)?, |_, _| ());
        }
        Ok(fold(range.hashes()))
    }
}

/// Why a proof could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError<E> {
    /// No such leaf, or the old tree is larger than the new one.
    #[error("proof is asked for leaves that the tree does not have")]
    OutOfRange,
    /// The source failed.
    #[error("stored leaf cannot be read: {0}")]
    Source(E),
}

fn run<S: LeafSource>(
    plan: Option<ProofPlan>,
    source: &mut S,
) -> Result<Vec<Hash>, ProofError<S::Error>> {
    let plan = plan.ok_or(ProofError::OutOfRange)?;
    let nodes: Result<Vec<_>, _> = plan.nodes().map(|node| source.node(node)).collect();
    plan.assemble(&nodes.map_err(ProofError::Source)?).ok_or(ProofError::OutOfRange)
}

/// That a leaf is in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InclusionProof {
    /// Which leaf.
    pub index: u64,
    /// Leaves of the tree.
    pub size: u64,
    /// Sibling hashes, the leaf's own first.
    pub path: Vec<Hash>,
}

impl InclusionProof {
    /// Proves from stored leaves.
    pub fn prove<S: LeafSource>(
        source: &mut S,
        index: u64,
        size: u64,
    ) -> Result<Self, ProofError<S::Error>> {
        run(ProofPlan::inclusion(index, size), source).map(|path| Self { index, size, path })
    }

    /// Is `leaf` at `index` in the tree of `size` leaves with this root? (RFC 9162 §2.1.3.2)
    /// The caller compares `index` and `size` with what it expects.
    #[must_use]
    pub fn verify(&self, leaf: Hash, root: Hash) -> bool {
        if self.index >= self.size || self.size > MAX_TREE_SIZE {
            return false;
        }
        let (mut first, mut last) = (self.index, self.size - 1);
        let mut hash = leaf;
        for sibling in &self.path {
            if last == 0 {
                return false;
            }
            if first & 1 == 1 || first == last {
                hash = Hash::node(*sibling, hash);
                while first & 1 == 0 && first != 0 {
                    (first, last) = (first >> 1, last >> 1);
                }
            } else {
                hash = Hash::node(hash, *sibling);
            }
            (first, last) = (first >> 1, last >> 1);
        }
        last == 0 && hash == root
    }

    /// Index, size (8 bytes each, big-endian), path.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_bytes(self.index, self.size, &self.path)
    }

    /// Reads [`InclusionProof::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        from_bytes(bytes).map(|(index, size, path)| Self { index, size, path })
    }
}

/// That a tree is the beginning of a larger one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsistencyProof {
    /// Leaves of the older tree.
    pub old_size: u64,
    /// Leaves of the newer tree.
    pub new_size: u64,
    /// Hashes in the order of RFC 9162 §2.1.4.1.
    pub path: Vec<Hash>,
}

impl ConsistencyProof {
    /// Proves from stored leaves.
    pub fn prove<S: LeafSource>(
        source: &mut S,
        old_size: u64,
        new_size: u64,
    ) -> Result<Self, ProofError<S::Error>> {
        run(ProofPlan::consistency(old_size, new_size), source).map(|path| Self {
            old_size,
            new_size,
            path,
        })
    }

    /// Does the tree with root `new` begin with the tree with root `old`? (RFC 9162 §2.1.4.2)
    #[must_use]
    pub fn verify(&self, old: Hash, new: Hash) -> bool {
        if self.old_size > self.new_size || self.new_size > MAX_TREE_SIZE {
            return false;
        }
        if self.old_size == self.new_size {
            return self.path.is_empty() && old == new;
        }
        if self.old_size == 0 {
            return self.path.is_empty() && old == Hash::of(b"");
        }
        let (mut first, mut last) = (self.old_size - 1, self.new_size - 1);
        while first & 1 == 1 {
            (first, last) = (first >> 1, last >> 1);
        }
        let mut path = self.path.iter().copied();
        let start = if self.old_size.is_power_of_two() { Some(old) } else { path.next() };
        let Some(start) = start else { return false };
        let (mut old_hash, mut new_hash) = (start, start);
        for hash in path {
            if last == 0 {
                return false;
            }
            if first & 1 == 1 || first == last {
                old_hash = Hash::node(hash, old_hash);
                new_hash = Hash::node(hash, new_hash);
                while first & 1 == 0 && first != 0 {
                    (first, last) = (first >> 1, last >> 1);
                }
            } else {
                new_hash = Hash::node(new_hash, hash);
            }
            (first, last) = (first >> 1, last >> 1);
        }
        last == 0 && old_hash == old && new_hash == new
    }

    /// Old size, new size (8 bytes each, big-endian), path.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_bytes(self.old_size, self.new_size, &self.path)
    }

    /// Reads [`ConsistencyProof::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        from_bytes(bytes).map(|(old_size, new_size, path)| Self { old_size, new_size, path })
    }
}

fn to_bytes(a: u64, b: u64, path: &[Hash]) -> Vec<u8> {
    let mut out = [a.to_be_bytes(), b.to_be_bytes()].concat();
    path.iter().for_each(|hash| out.extend_from_slice(&hash.0));
    out
}

fn from_bytes(bytes: &[u8]) -> Option<(u64, u64, Vec<Hash>)> {
    let (a, rest) = bytes.split_first_chunk::<8>()?;
    let (b, rest) = rest.split_first_chunk::<8>()?;
    let path = hashes_from_bytes(rest).filter(|path| path.len() <= MAX_PATH_LEN)?;
    Some((u64::from_be_bytes(*a), u64::from_be_bytes(*b), path))
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small test trees")]
mod tests {
    use ct_merkle::mem_backed_tree::MemoryBackedTree;
    use sha2::Sha256;

    use super::*;
    use crate::MerkleTree;

    struct Leaves(Vec<Hash>);

    impl LeafSource for Leaves {
        type Error = u64;
        fn leaf(&mut self, index: u64) -> Result<Hash, u64> {
            self.0.get(index as usize).copied().ok_or(index)
        }
    }

    fn digest(hash: Hash) -> ct_merkle::digest::Output<Sha256> {
        hash.0.into()
    }

    #[test]
    fn proofs_equal_another_implementation_and_verify_in_both() {
        const SIZE: u64 = 70;
        let data: Vec<_> = (0..SIZE).map(|i| i.to_be_bytes()).collect();
        let mut leaves = Leaves(data.iter().map(|d| Hash::leaf(d)).collect());
        let (mut ours, mut theirs) = (MerkleTree::new(), MemoryBackedTree::<Sha256, _>::new());
        let mut roots = vec![ours.root()];
        for new in 1..=SIZE {
            ours.append(leaves.0[new as usize - 1]);
            theirs.push(data[new as usize - 1]);
            roots.push(ours.root());
            assert_eq!(theirs.root().as_bytes()[..], ours.root().0);
            for index in 0..new {
                let proof = InclusionProof::prove(&mut leaves, index, new).unwrap();
                let other = theirs.prove_inclusion(index as usize);
                assert_eq!(other.as_bytes(), &proof.to_bytes()[16..]);
                assert!(proof.verify(leaves.0[index as usize], ours.root()));
                assert!(!proof.verify(leaves.0[(index as usize + 1) % 70], ours.root()));
                theirs.root().verify_inclusion(&data[index as usize], index, &other).unwrap();
            }
            for old in 1..new {
                let proof = ConsistencyProof::prove(&mut leaves, old, new).unwrap();
                let other = theirs.prove_consistency((new - old) as usize);
                assert_eq!(other.as_bytes(), &proof.to_bytes()[16..]);
                assert!(proof.verify(roots[old as usize], ours.root()));
                let old_root = ct_merkle::RootHash::<Sha256>::new(digest(roots[old as usize]), old);
                theirs.root().verify_consistency(&old_root, &other).unwrap();
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn changed_proofs_fail(size in 2_u64..300, seed: u64, bit in 0_usize..2048) {
            let mut leaves = Leaves((0..size).map(|i| Hash::leaf(&i.to_be_bytes())).collect());
            let mut tree = MerkleTree::new();
            let old = seed % (size - 1) + 1;
            let mut old_root = tree.root();
            for (index, leaf) in leaves.0.iter().enumerate() {
                tree.append(*leaf);
                if index as u64 + 1 == old {
                    old_root = tree.root();
                }
            }
            let proof = ConsistencyProof::prove(&mut leaves, old, size).unwrap();
            let mut bytes = proof.to_bytes();
            let at = bit % (bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            let changed = ConsistencyProof::from_bytes(&bytes).unwrap();
            // Sizes are compared by the caller with those of the heads.
            if at >= 128 {
                proptest::prop_assert!(!changed.verify(old_root, tree.root()));
            }
            let index = seed % size;
            let proof = InclusionProof::prove(&mut leaves, index, size).unwrap();
            let mut bytes = proof.to_bytes();
            let at = bit % (bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            let changed = InclusionProof::from_bytes(&bytes).unwrap();
            if at >= 128 {
                let leaf = leaves.0[index as usize];
                proptest::prop_assert!(!changed.verify(leaf, tree.root()));
            }
        }

        #[test]
        fn hostile_proofs_are_refused_without_panic(a: u64, b: u64, len in 0_usize..66) {
            let path = vec![Hash::of(b"x"); len];
            let (x, y) = (Hash::of(b"y"), Hash::of(b"z"));
            let inclusion = InclusionProof { index: a, size: b, path: path.clone() };
            let consistency = ConsistencyProof { old_size: a, new_size: b, path };
            proptest::prop_assert!(!inclusion.verify(x, y));
            proptest::prop_assert!(!consistency.verify(x, y));
        }
    }
}
