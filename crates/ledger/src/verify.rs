//! Offline verification of a JSONL export: every line, the order, the root, the head's signature
//! and certificate, and consistency with heads that the verifier holds.
//!
//! Streams in constant memory: one line and the tree's frontier at a time. An export holds one or
//! more trees one after another; each begins at entry 0 (gaps stand for what is not shown) and
//! ends with its head. Must never call an export authentic without a trusted key or head.
//!
//! What it cannot know: *why* contents are missing. Whoever hands over the export may erase
//! personal fields or turn entries into gaps of either kind, and the hashes still fit; that is
//! what erasure and retention need. So the report counts each, and `Trust::complete` refuses what
//! was left out on purpose.

use std::{collections::BTreeMap, fmt, io, io::BufRead, io::Read as _};

use adit_protocol::keys::Fingerprint;

use crate::{
    Entry, Gap, GapKind, Hash, HeadError, MAX_LINE_LEN, MerkleTree, OtherFile, SignedHead,
    entry::LineError, head, other, tree::cover,
};

/// Trees in one export.
pub const MAX_TREES: usize = 100_000;
/// Lines of a file that are looked at before it is said to be no export at all: an export whose
/// first lines were altered has others behind them.
const MAX_LOOK_LINES: usize = 64;

/// What the verifier believes before reading.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Fingerprints of root keys or log keys; if any, each head must be signed by one of these
    /// log keys or by one certified by one of these roots.
    pub keys: Vec<Fingerprint>,
    /// Heads seen earlier; the export must contain and extend each.
    pub heads: Vec<SignedHead>,
    /// Refuse exports that leave entries out (entries pruned by retention are accepted).
    pub complete: bool,
}

/// What makes a tree more than consistent in itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// Nothing: internally consistent only.
    None,
    /// A trusted head's key signed it, and it extends that head.
    Head,
    /// A trusted key signed it.
    Key,
}

/// What one tree of an export holds.
#[derive(Debug, Clone, PartialEq)]
pub struct TreeReport {
    /// The tree's head.
    pub head: SignedHead,
    /// Entries shown, erased ones included.
    pub entries: u64,
    /// Entries whose personal fields were erased.
    pub erased: u64,
    /// Entries whose contents retention deleted.
    pub pruned: u64,
    /// Entries that the export leaves out.
    pub omitted: u64,
    /// Why it may be believed.
    pub anchor: Anchor,
}

impl TreeReport {
    /// What programs print of it as JSON.
    pub fn describe(&self) -> serde_json::Value {
        let anchor = match self.anchor {
            Anchor::None => "none",
            Anchor::Head => "head",
            Anchor::Key => "key",
        };
        serde_json::json!({
            "tree": self.head.tree,
            "size": self.head.size,
            "root": self.head.root.to_string(),
            "log_key": self.head.log_fingerprint().to_string(),
            "entries": self.entries,
            "erased": self.erased,
            "pruned": self.pruned,
            "omitted": self.omitted,
            "anchor": anchor,
        })
    }
}

/// What a verified export holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// In the order of the file.
    pub trees: Vec<TreeReport>,
}

impl Report {
    /// Is there a tree that nothing trusted vouches for?
    pub fn is_internally_consistent_only(&self) -> bool {
        self.trees.iter().any(|tree| tree.anchor == Anchor::None)
    }

    /// What programs print of it as JSON.
    pub fn describe(&self) -> serde_json::Value {
        serde_json::json!({
            "valid": true,
            "internally_consistent_only": self.is_internally_consistent_only(),
            "trees": self.trees.iter().map(TreeReport::describe).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, tree) in self.trees.iter().enumerate() {
            let word = match tree.anchor {
                Anchor::None => "internally consistent only",
                Anchor::Head => "verified, extends the trusted head",
                Anchor::Key => "verified with the trusted key",
            };
            let separator = if index > 0 { "\n" } else { "" };
            write!(
                f,
                "{separator}{}: {word}: {} entries ({} shown, {} erased, {} pruned, {} left out)",
                tree.head.tree,
                tree.head.size,
                tree.entries,
                tree.erased,
                tree.pruned,
                tree.omitted
            )?;
        }
        Ok(())
    }
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Neither its beginning nor what follows looks like an export.
    #[error("this is no audit export that can be verified (format jsonl): {0}")]
    NotAnExport(OtherFile),
    /// A line is not what was written.
    #[error("entry was altered: {0}")]
    Altered(LineError),
    /// All lines fit but not to the signed root.
    #[error("entries do not hash to the signed root: contents and leaf were altered together")]
    RootMismatch,
    /// An entry is missing here and does not come later.
    #[error("entries were dropped: entry {expected} should stand here")]
    Dropped {
        /// Sequence expected.
        expected: u64,
    },
    /// An entry comes later than it should.
    #[error("entries were reordered: entry {expected} should stand here and comes later")]
    Reordered {
        /// Sequence expected.
        expected: u64,
    },
    /// An entry or tree is there twice, or beyond the head.
    #[error("entries were inserted: entry {expected} should stand here, or the head")]
    Inserted {
        /// Sequence expected.
        expected: u64,
    },
    /// The same tree comes twice.
    #[error("tree is in the export twice")]
    DuplicateTree,
    /// The end is missing.
    #[error("export is truncated: {0}")]
    Truncated(&'static str),
    /// The head is older than one that the verifier holds.
    #[error("log was rolled back: the trusted head has {trusted} entries, this one {size}")]
    RolledBack {
        /// Size of the trusted head.
        trusted: u64,
        /// Size here.
        size: u64,
    },
    /// Another history than the one that the verifier holds a head of.
    #[error("two histories: the first {trusted} entries are not those of the trusted head")]
    SplitView {
        /// Size of the trusted head.
        trusted: u64,
    },
    /// Cannot be compared with a trusted head, whose end is inside a gap.
    #[error("trusted head of {trusted} entries ends inside entries left out")]
    NotComparable {
        /// Size of the trusted head.
        trusted: u64,
    },
    /// A trusted head's tree is not in the export.
    #[error(
        "log of a trusted head is not in the export: the head is of another log, or that was left out"
    )]
    MissingTree,
    /// The head is not signed as it says.
    #[error("head was altered: {0}")]
    HeadForged(HeadError),
    /// The head is signed by a key that is not trusted.
    #[error(
        "head is signed by another installation's key than the trusted one: by {log_key}, which no \
         trusted key vouches for"
    )]
    WrongKey {
        /// Who signed.
        log_key: Fingerprint,
    },
    /// A head given as trusted does not verify.
    #[error("trusted head cannot be used: {0}")]
    BadTrustedHead(HeadError),
    /// Entries were left out though all were asked for.
    #[error("export leaves entries out")]
    Incomplete,
    /// More than [`MAX_TREES`].
    #[error("more trees than one export may hold")]
    TooManyTrees,
    /// The export cannot be read.
    #[error("export cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl Fault {
    /// What to do, where that is not to look for who altered the log.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::NotAnExport(other) => Some(other.advice()),
            Self::WrongKey { .. } => Some(
                "give the fingerprint or head of the installation that the export is of; if you \
                 did, the export is another installation's, or forged",
            ),
            Self::MissingTree => {
                Some("give a head of the log that was exported, or export that log, too")
            }
            Self::NotComparable { .. } => Some(
                "export again with audit export --head and the file that holds the head: no gap \
                 then runs across it",
            ),
            Self::Incomplete => Some("export without filters; --complete is for such exports"),
            Self::BadTrustedHead(_) => Some("give the head as it was shown or exported"),
            Self::Io(_) => Some("check the file and its permissions"),
            _ => None,
        }
    }
}

/// The first thing wrong in an export, and where.
#[derive(Debug, thiserror::Error)]
#[error("{}{fault}", self.place())]
pub struct VerifyError {
    /// Line in the file, from 1; 0 where it is no line's fault.
    pub line: u64,
    /// Entry that stands or should stand there.
    pub seq: Option<u64>,
    /// What is wrong.
    pub fault: Fault,
}

impl VerifyError {
    fn place(&self) -> String {
        match (self.line, self.seq) {
            (0, _) => String::new(),
            (line, Some(seq)) => format!("line {line}, entry {seq}: "),
            (line, None) => format!("line {line}: "),
        }
    }
}

/// Verifies an export.
pub fn verify_export(reader: impl BufRead, trust: &Trust) -> Result<Report, VerifyError> {
    check_trusted_heads(trust).map_err(|fault| VerifyError { line: 0, seq: None, fault })?;
    let mut lines = Lines { reader, line: Vec::new(), number: 0 };
    let mut report = Report::default();
    let mut seen = std::collections::BTreeSet::new();
    let mut tree = TreeState::new(trust);
    loop {
        let at = |seq, fault, number| VerifyError { line: number, seq, fault };
        match lines.next() {
            Ok(true) => {}
            Ok(false) => break,
            Err(fault) => {
                let number = lines.number;
                return Err(lines.told(at(None, fault, number)));
            }
        }
        match tree.line(&lines.line) {
            Ok(None) => {}
            Ok(Some(finished)) => {
                let number = lines.number;
                if report.trees.len() >= MAX_TREES {
                    return Err(at(None, Fault::TooManyTrees, number));
                }
                if !seen.insert(finished.head.tree.clone()) {
                    return Err(at(None, Fault::DuplicateTree, number));
                }
                report.trees.push(finished);
                tree = TreeState::new(trust);
            }
            Err((seq, fault)) => {
                let number = lines.number;
                let fault = lines.refine(fault);
                return Err(lines.told(at(seq, fault, number)));
            }
        }
    }
    let end = |fault| VerifyError { line: lines.number, seq: None, fault };
    if lines.number == 0 {
        return Err(end(Fault::NotAnExport(OtherFile::Empty)));
    }
    if report.trees.is_empty() || !tree.is_empty() {
        return Err(end(Fault::Truncated("it does not end with a signed head")));
    }
    if trust.heads.iter().any(|head| !seen.contains(&head.tree)) {
        return Err(end(Fault::MissingTree));
    }
    Ok(report)
}

/// Do two heads show two histories of one tree? Without a proof this is known only of equal sizes.
pub fn is_split_view(a: &SignedHead, b: &SignedHead) -> bool {
    a.tree == b.tree && a.size == b.size && a.root != b.root
}

fn check_trusted_heads(trust: &Trust) -> Result<(), Fault> {
    let mut by_tree = BTreeMap::new();
    for head in &trust.heads {
        head.verify().map_err(Fault::BadTrustedHead)?;
        let root = *by_tree.entry((&head.tree, head.size)).or_insert(head.root);
        if root != head.root {
            return Err(Fault::SplitView { trusted: head.size });
        }
    }
    Ok(())
}

/// Lines of bounded length, each ended by a line feed.
struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// False at the end.
    fn next(&mut self) -> Result<bool, Fault> {
        self.line.clear();
        let limit = MAX_LINE_LEN as u64 + 1;
        let read = (&mut self.reader).take(limit).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(false);
        }
        self.number += 1;
        match self.line.pop() {
            Some(b'\n') => Ok(true),
            _ if read as u64 == limit => Err(Fault::Altered(LineError::TooLong)),
            _ => Err(Fault::Truncated("its last line is not complete")),
        }
    }

    /// Tells a dropped entry from one that comes later, by reading on.
    fn refine(&mut self, fault: Fault) -> Fault {
        let Fault::Dropped { expected } = fault else { return fault };
        let wanted = format!("{{\"v\":1,\"seq\":{expected},");
        while matches!(self.next(), Ok(true)) {
            if self.line.starts_with(wanted.as_bytes()) {
                return Fault::Reordered { expected };
            }
            if self.line.starts_with(head::BEGINS) {
                break;
            }
        }
        Fault::Dropped { expected }
    }

    /// What is wrong with the first line is no alteration if nothing after it looks like an export
    /// either: somebody gave another file.
    fn told(&mut self, error: VerifyError) -> VerifyError {
        let unreadable = matches!(error.fault, Fault::Altered(_) | Fault::Truncated(_));
        if error.line > 1 || !unreadable {
            return error;
        }
        let other = OtherFile::of(&self.line);
        for _ in 0..MAX_LOOK_LINES {
            let head = other == OtherFile::Heads && self.line.starts_with(head::BEGINS);
            if looks_exported(&self.line) && !head {
                return error;
            }
            match self.next() {
                Ok(true) | Err(Fault::Altered(_) | Fault::Truncated(_)) => {}
                Ok(false) | Err(_) => break,
            }
        }
        VerifyError { line: 0, seq: None, fault: Fault::NotAnExport(other) }
    }
}

/// Does a line begin as those of exports do?
fn looks_exported(line: &[u8]) -> bool {
    const BEGINNINGS: [&[u8]; 4] = [b"{\"v\":", b"{\"head\":", b"{\"omitted\":", b"{\"pruned\":"];
    !line.starts_with(other::RECEIPT)
        && BEGINNINGS.iter().any(|beginning| line.starts_with(beginning))
}

/// One tree while its lines come in.
struct TreeState<'a> {
    trust: &'a Trust,
    tree: MerkleTree,
    // Roots at the sizes of trusted heads; None while or if they cannot be known. The tree's name
    // comes last, so the sizes are those of all trees.
    checkpoints: BTreeMap<u64, Option<Hash>>,
    entries: u64,
    erased: u64,
    pruned: u64,
    omitted: u64,
}

type Located = (Option<u64>, Fault);

impl<'a> TreeState<'a> {
    fn new(trust: &'a Trust) -> Self {
        let tree = MerkleTree::new();
        let mut checkpoints: BTreeMap<_, _> =
            trust.heads.iter().map(|head| (head.size, None)).collect();
        checkpoints.entry(0).and_modify(|root| *root = Some(tree.root()));
        Self { trust, tree, checkpoints, entries: 0, erased: 0, pruned: 0, omitted: 0 }
    }

    fn is_empty(&self) -> bool {
        self.tree.size() == 0
    }

    /// Takes a line; the head's gives the finished report.
    fn line(&mut self, line: &[u8]) -> Result<Option<TreeReport>, Located> {
        let expected = self.tree.size();
        let altered = |error| (Some(expected), Fault::Altered(error));
        if line.starts_with(head::BEGINS) {
            let head = SignedHead::parse(line).map_err(|error| (None, Fault::Altered(error)))?;
            return self.head(head).map(Some).map_err(|fault| (None, fault));
        }
        if line.starts_with(b"{\"omitted\":") || line.starts_with(b"{\"pruned\":") {
            let gap = Gap::parse(line).map_err(altered)?;
            return self.gap(&gap).map(|()| None);
        }
        let entry = Entry::parse(line).map_err(altered)?;
        check_order(expected, entry.seq())?;
        self.tree.append(entry.leaf());
        self.entries += 1;
        self.erased += u64::from(entry.is_erased());
        self.note_checkpoint();
        Ok(None)
    }

    fn gap(&mut self, gap: &Gap) -> Result<(), Located> {
        check_order(self.tree.size(), gap.range.begin())?;
        let (begin, end) = (gap.range.begin(), gap.range.end());
        for (node, hash) in cover(begin, end).zip(gap.range.hashes()) {
            self.tree.push_node(node.level, *hash);
            self.note_checkpoint();
        }
        match gap.kind {
            GapKind::Omitted if self.trust.complete => {
                return Err((Some(begin), Fault::Incomplete));
            }
            GapKind::Omitted => self.omitted += end - begin,
            GapKind::Pruned => self.pruned += end - begin,
        }
        Ok(())
    }

    fn note_checkpoint(&mut self) {
        if self.checkpoints.is_empty() {
            return;
        }
        if let Some(root) = self.checkpoints.get_mut(&self.tree.size()) {
            *root = Some(self.tree.root());
        }
    }

    fn head(&self, head: SignedHead) -> Result<TreeReport, Fault> {
        head.verify().map_err(Fault::HeadForged)?;
        let size = self.tree.size();
        if head.size > size {
            return Err(Fault::Truncated("entries before the head are missing"));
        }
        if head.size < size {
            return Err(Fault::Inserted { expected: head.size });
        }
        // The trusted heads come first: they tell which part is not as it was.
        let by_head = self.compare_trusted(&head)?;
        if head.root != self.tree.root() {
            return Err(Fault::RootMismatch);
        }
        let keys = &self.trust.keys;
        let by_key = keys.contains(&head.log_fingerprint())
            || head.root_fingerprint().is_some_and(|root| keys.contains(&root));
        if !by_key && (!keys.is_empty() || by_head == Some(false)) {
            return Err(Fault::WrongKey { log_key: head.log_fingerprint() });
        }
        let anchor = match by_head {
            _ if by_key => Anchor::Key,
            Some(_) => Anchor::Head,
            None => Anchor::None,
        };
        Ok(TreeReport {
            head,
            entries: self.entries,
            erased: self.erased,
            pruned: self.pruned,
            omitted: self.omitted,
            anchor,
        })
    }

    /// Compares with the trusted heads of the same tree. `None`: there are none; `Some(true)`: one
    /// of them shares its log key or root key with this head.
    fn compare_trusted(&self, head: &SignedHead) -> Result<Option<bool>, Fault> {
        let mut same_key = None;
        for trusted in self.trust.heads.iter().filter(|trusted| trusted.tree == head.tree) {
            if trusted.size > head.size {
                return Err(Fault::RolledBack { trusted: trusted.size, size: head.size });
            }
            match self.checkpoints.get(&trusted.size).copied().flatten() {
                Some(root) if root == trusted.root => {}
                Some(_) => return Err(Fault::SplitView { trusted: trusted.size }),
                None => return Err(Fault::NotComparable { trusted: trusted.size }),
            }
            let root = trusted.root_fingerprint();
            let linked = trusted.log_key == head.log_key
                || (root.is_some() && root == head.root_fingerprint());
            same_key = Some(same_key.unwrap_or(false) || linked);
        }
        Ok(same_key)
    }
}

fn check_order(expected: u64, found: u64) -> Result<(), Located> {
    match found.cmp(&expected) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err((Some(expected), Fault::Dropped { expected })),
        std::cmp::Ordering::Less => Err((Some(found), Fault::Inserted { expected })),
    }
}
