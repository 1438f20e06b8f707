//! Adit's audit log: events, a Merkle tree, signed heads, receipts, and offline verification.
//!
//! How it works:
//! 1. An [`Event`] says what happened. [`Entry::seal`] gives it a sequence number, a time and a
//!    salt, bounds and cleans every field, and computes its leaf hash:
//!    `SHA-256(0x00 ‖ public ‖ SHA-256(salt ‖ personal))` (RFC 9162 §2.1.1), where *public* and
//!    *personal* are the two halves of the entry's JSONL line, byte for byte. Erasure deletes the
//!    salt and the personal half and keeps its hash.
//! 2. The leaves of a partner form one [`tree::MerkleTree`]; sequence number = leaf index.
//! 3. A [`SignedHead`] signs tree, size and root with the log key that the installation's root
//!    key certifies.
//! 4. [`verify::verify_export`] reads an export line by line and names the first bad entry.
//!
//! Invariants: no IO, no runtime, no clock, no randomness (times, salts and keys are given);
//! no panic on any input; everything bounded by a named limit; one value has one encoding.

pub mod entry;
pub mod event;
pub mod evidence;
pub mod export;
pub mod hash;
pub mod head;
mod json;
mod other;
pub mod proof;
pub mod receipt;
pub mod reconcile;
pub mod time;
pub mod tree;
pub mod verify;

pub use entry::{Entry, Gap, GapKind};
pub use event::{Event, Level, Value};
pub use evidence::{Discord, Evidence, EvidenceError, Link, Order};
pub use hash::Hash;
pub use head::{HeadError, HeadsError, RootCert, SignedHead, read_heads};
pub use other::OtherFile;
pub use proof::{ConsistencyProof, InclusionProof};
pub use receipt::{Mismatch, Receipt};
pub use reconcile::{Finding, Reconciled, Reconciler};
pub use tree::MerkleTree;
pub use verify::{Anchor, Report, Trust, VerifyError, verify_export};

/// Longest line of an export without its line feed. Sealed entries and gaps always fit.
pub const MAX_LINE_LEN: usize = 64 * 1024;
/// Largest integer in a line: what every JSON reader keeps exact (RFC 8259 §6).
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// Feeds arbitrary bytes to every decoder of this crate and checks that what they accept encodes
/// to the same bytes. For fuzzing; false means a decoder accepted two encodings of one value.
pub fn fuzz_line(data: &[u8]) -> bool {
    let mut sound = true;
    if let Ok(entry) = Entry::parse(data) {
        sound &= entry.to_line().as_bytes() == data;
    }
    if let Ok(gap) = Gap::parse(data) {
        sound &= gap.to_line().as_bytes() == data;
    }
    if let Ok(head) = SignedHead::parse(data) {
        sound &= head.to_line().as_bytes() == data;
    }
    if let Ok(receipt) = Receipt::parse(data) {
        sound &= receipt.to_line().as_bytes() == data;
    }
    if let Some(tree) = MerkleTree::from_bytes(data) {
        sound &= tree.to_bytes() == data;
    }
    if let Some(proof) = InclusionProof::from_bytes(data) {
        sound &= proof.to_bytes() == data;
        sound &= !proof.verify(Hash::of(b"leaf"), Hash::of(b"root"));
    }
    if let Some(proof) = ConsistencyProof::from_bytes(data) {
        sound &= proof.to_bytes() == data;
        let _ = proof.verify(Hash::of(b"old"), Hash::of(b"new"));
    }
    let _ = verify_export(data, &Trust::default());
    sound
}
