//! JSONL with all that verification needs; what is left out is represented by subtree hashes.
//!
//! Must be given every entry of the tree from 0 in order, shown or not.

use crate::{Entry, Gap, GapKind, Hash, SignedHead, tree::CompactRange};

/// Why entries cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// An entry was skipped or given twice.
    #[error("entry {found} was given where {expected} is next")]
    OutOfOrder {
        /// Next entry.
        expected: u64,
        /// Given entry.
        found: u64,
    },
    /// The head has another size.
    #[error("head has {head} entries, the export {given}")]
    WrongSize {
        /// Of the head.
        head: u64,
        /// Given so far.
        given: u64,
    },
}

/// Writes the lines of one tree.
#[derive(Debug)]
pub struct JsonlExport {
    next: u64,
    gap: Option<Gap>,
    // Sizes of earlier heads, ascending: no gap runs across one, so that holders of these heads
    // can compare.
    splits: Vec<u64>,
}

impl JsonlExport {
    /// Starts a tree. `splits`: sizes of heads that readers may hold.
    pub fn new(splits: &[u64]) -> Self {
        let mut splits = splits.to_vec();
        splits.sort_unstable();
        Self { next: 0, gap: None, splits }
    }

    /// The sequence number to give next.
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// Writes an entry.
    pub fn entry(&mut self, entry: &Entry, out: &mut String) -> Result<(), ExportError> {
        self.line(entry.seq(), &entry.to_line(), out)
    }

    /// Writes an entry whose line is at hand as it was stored.
    pub fn line(&mut self, seq: u64, line: &str, out: &mut String) -> Result<(), ExportError> {
        if seq != self.next {
            return Err(ExportError::OutOfOrder { expected: self.next, found: seq });
        }
        self.flush(out);
        push_line(out, line);
        self.next += 1;
        Ok(())
    }

    /// Leaves the next entry out.
    pub fn skip(&mut self, kind: GapKind, leaf: Hash, out: &mut String) {
        let next = self.next;
        let at_split = self.splits.binary_search(&next).is_ok();
        if at_split || self.gap.as_ref().is_some_and(|gap| gap.kind != kind) {
            self.flush(out);
        }
        let range = CompactRange::new(next);
        let gap = self.gap.get_or_insert(Gap { kind, range });
        gap.range.push_leaf(leaf, |_, _| ());
        self.next += 1;
    }

    /// Leaves out all entries of a range that begins here; for stores that keep inner nodes.
    pub fn skip_range(
        &mut self,
        kind: GapKind,
        range: CompactRange,
        out: &mut String,
    ) -> Result<(), ExportError> {
        if range.begin() != self.next {
            return Err(ExportError::OutOfOrder { expected: self.next, found: range.begin() });
        }
        self.flush(out);
        if range.end() > range.begin() {
            self.next = range.end();
            push_line(out, &Gap { kind, range }.to_line());
        }
        Ok(())
    }

    /// Ends the tree with its head.
    pub fn finish(mut self, head: &SignedHead, out: &mut String) -> Result<(), ExportError> {
        if head.size != self.next {
            return Err(ExportError::WrongSize { head: head.size, given: self.next });
        }
        self.flush(out);
        push_line(out, &head.to_line());
        Ok(())
    }

    fn flush(&mut self, out: &mut String) {
        if let Some(gap) = self.gap.take() {
            push_line(out, &gap.to_line());
        }
    }
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}
