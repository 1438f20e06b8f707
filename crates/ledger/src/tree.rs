//! The Merkle tree (RFC 9162 §2.1) as compact ranges: the roots of the largest complete subtrees
//! that cover a run of leaves. From them follow the root, a frontier to restart from, and short
//! stand-ins for entries that an export leaves out.
//!
//! Must never hold all leaves: memory is logarithmic in the size.

use crate::{Hash, MAX_INTEGER};

/// Largest tree.
pub const MAX_TREE_SIZE: u64 = MAX_INTEGER;

/// A complete subtree: 2^`level` leaves from `index`·2^`level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId {
    /// 0 is a leaf.
    pub level: u32,
    /// Position among the nodes of its level.
    pub index: u64,
}

impl NodeId {
    /// Its first leaf.
    pub fn begin(self) -> u64 {
        self.index.checked_shl(self.level).unwrap_or(u64::MAX)
    }

    /// One after its last leaf.
    pub fn end(self) -> u64 {
        self.index.saturating_add(1).checked_shl(self.level).unwrap_or(u64::MAX)
    }
}

/// The largest complete subtrees that cover leaves `begin..end`, left to right.
pub fn cover(begin: u64, end: u64) -> impl Iterator<Item = NodeId> {
    let mut at = begin;
    std::iter::from_fn(move || {
        let room = end.checked_sub(at).filter(|room| *room > 0)?;
        let level = at.trailing_zeros().min(room.ilog2());
        let node = NodeId { level, index: at >> level };
        at += 1 << level;
        Some(node)
    })
}

/// Hash of a run of leaves as RFC 9162 §2.1.1 splits it, from the hashes of its [`cover`]. The
/// run must begin where such a split may begin: at 0 or at a multiple of a larger power of two.
pub(crate) fn fold(hashes: &[Hash]) -> Hash {
    let (last, rest) = match hashes.split_last() {
        None => return Hash::of(b""),
        Some((last, rest)) => (*last, rest),
    };
    rest.iter().rev().fold(last, |right, left| Hash::node(*left, right))
}

/// Hashes of the [`cover`] of `begin..end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompactRange {
    begin: u64,
    end: u64,
    // INVARIANT: one hash for each node of cover(begin, end)
    hashes: Vec<Hash>,
}

impl CompactRange {
    /// No leaves yet, the first will be `begin`.
    pub fn new(begin: u64) -> Self {
        Self { begin, end: begin, hashes: Vec::new() }
    }

    /// From stored hashes; `None` if their number does not fit.
    pub fn from_hashes(begin: u64, end: u64, hashes: Vec<Hash>) -> Option<Self> {
        let fits =
            begin <= end && end <= MAX_TREE_SIZE && cover(begin, end).count() == hashes.len();
        fits.then_some(Self { begin, end, hashes })
    }

    /// First leaf.
    pub fn begin(&self) -> u64 {
        self.begin
    }

    /// One after the last leaf.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Hashes of the cover, left to right.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// Adds the next leaf. `made` gets every complete subtree that this completes, leaf first.
    pub fn push_leaf(&mut self, leaf: Hash, made: impl FnMut(NodeId, Hash)) {
        self.push_node(0, leaf, made);
    }

    /// Adds all leaves of a range that begins where this one ends; false if it does not.
    #[must_use]
    pub fn append(&mut self, next: &CompactRange) -> bool {
        if next.begin != self.end {
            return false;
        }
        for (node, hash) in cover(next.begin, next.end).zip(&next.hashes) {
            self.push_node(node.level, *hash, |_, _| ());
        }
        true
    }

    /// Adds a complete subtree at `end`, which must be a multiple of its size: callers take it
    /// from a cover that begins at `end`.
    pub(crate) fn push_node(
        &mut self,
        level: u32,
        mut hash: Hash,
        mut made: impl FnMut(NodeId, Hash),
    ) {
        let mut node = NodeId { level, index: self.end >> level };
        self.end = self.end.saturating_add(1 << level);
        made(node, hash);
        // The left sibling begins one subtree before; a range that begins later lacks it.
        while node.index % 2 == 1 && node.begin() - (1 << node.level) >= self.begin {
            let Some(left) = self.hashes.pop() else { break };
            hash = Hash::node(left, hash);
            node = NodeId { level: node.level + 1, index: node.index / 2 };
            made(node, hash);
        }
        self.hashes.push(hash);
    }
}

/// A tree that grows: its frontier, which gives the root and is all that a restart needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MerkleTree {
    range: CompactRange,
}

impl Default for MerkleTree {
    fn default() -> Self {
        Self::new()
    }
}

impl MerkleTree {
    /// The empty tree.
    pub fn new() -> Self {
        Self { range: CompactRange::new(0) }
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.range.end
    }

    /// All leaves as a range, for exports that leave them out.
    pub fn range(&self) -> &CompactRange {
        &self.range
    }

    /// RFC 9162's Merkle Tree Hash of all leaves.
    pub fn root(&self) -> Hash {
        fold(&self.range.hashes)
    }

    /// Adds a leaf and gives its index.
    pub fn append(&mut self, leaf: Hash) -> u64 {
        self.append_with(leaf, |_, _| ())
    }

    /// Like [`MerkleTree::append`]; `made` gets every complete subtree that the leaf completes
    /// (itself first), so that a store can keep them and prove in logarithmic time.
    pub fn append_with(&mut self, leaf: Hash, made: impl FnMut(NodeId, Hash)) -> u64 {
        let index = self.range.end;
        self.range.push_leaf(leaf, made);
        index
    }

    /// Adds all leaves of a range that begins at this size; false if it does not.
    #[must_use]
    pub fn append_range(&mut self, range: &CompactRange) -> bool {
        self.range.append(range)
    }

    pub(crate) fn push_node(&mut self, level: u32, hash: Hash) {
        self.range.push_node(level, hash, |_, _| ());
    }

    /// Size (8 bytes, big-endian) and the frontier's hashes, for a store.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.range.end.to_be_bytes().to_vec();
        self.range.hashes.iter().for_each(|hash| out.extend_from_slice(&hash.0));
        out
    }

    /// Reads [`MerkleTree::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (size, rest) = bytes.split_first_chunk::<8>()?;
        let hashes = hashes_from_bytes(rest)?;
        CompactRange::from_hashes(0, u64::from_be_bytes(*size), hashes).map(|range| Self { range })
    }
}

/// Splits bytes into at most 128 hashes; `None` if they do not divide.
pub(crate) fn hashes_from_bytes(bytes: &[u8]) -> Option<Vec<Hash>> {
    let (hashes, rest) = bytes.as_chunks::<32>();
    (rest.is_empty() && hashes.len() <= 128).then(|| hashes.iter().map(|h| Hash(*h)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(index: u64) -> Hash {
        Hash::leaf(&index.to_be_bytes())
    }

    /// RFC 9162 §2.1.1, word by word.
    fn naive(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Hash::of(b""),
            [one] => *one,
            many => {
                let (left, right) = many.split_at(1 << (many.len() - 1).ilog2());
                Hash::node(naive(left), naive(right))
            }
        }
    }

    #[test]
    fn roots_equal_the_definition_and_restarts_change_nothing() {
        let leaves: Vec<_> = (0..200).map(leaf).collect();
        let mut tree = MerkleTree::new();
        for size in 0..leaves.len() {
            assert_eq!(tree.root(), naive(&leaves[..size]));
            tree = MerkleTree::from_bytes(&tree.to_bytes()).unwrap();
            assert_eq!(tree.append(leaves[size]), size as u64);
        }
    }

    #[test]
    fn ranges_join_at_any_cut() {
        let range = |begin, end| {
            let mut range = CompactRange::new(begin);
            (begin..end).for_each(|i| range.push_leaf(leaf(i), |_, _| ()));
            assert_eq!(range.hashes.len(), cover(begin, end).count());
            range
        };
        for end in 0..40 {
            for cut in 0..=end {
                let mut left = range(0, cut);
                assert!(left.append(&range(cut, end)));
                assert_eq!(left, range(0, end));
                let mut middle = range(cut / 2, cut);
                assert!(middle.append(&range(cut, end)));
                assert_eq!(middle, range(cut / 2, end));
            }
        }
    }

    /// The eight leaves and roots that RFC 6962 implementations have long been tested with.
    #[test]
    fn known_roots() {
        let leaves: [&[u8]; 8] = [
            b"",
            &[0],
            &[0x10],
            &[0x20, 0x21],
            &[0x30, 0x31],
            &[0x40, 0x41, 0x42, 0x43],
            &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
            &[
                0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d,
                0x6e, 0x6f,
            ],
        ];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut tree = MerkleTree::new();
        for (leaf, root) in leaves.iter().zip(roots) {
            tree.append(Hash::leaf(leaf));
            assert_eq!(tree.root().to_string(), root);
        }
    }
}
