//! The audit log out of the database: exports, verification, copies. Reads only, beside a
//! running server too.

use std::{
    io::{BufReader, Read},
    path::Path,
};

use adit_ledger::{
    Entry, Gap, GapKind, Report, SignedHead, Trust, VerifyError,
    export::{cef, csv, jsonl::JsonlExport, ocsf},
    tree::CompactRange,
    verify_export,
};
use adit_protocol::wire::SeenHead;
use adit_runtime::cli::CliError;
use tokio::sync::mpsc;

use crate::{
    audit::search::Filter,
    place::store_error,
    store::{Store, audit},
};

/// Version of this program in exports.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Entries read at once.
const PAGE: u32 = 500;
/// Pieces of an export that may wait for the verifier.
const PIECES: usize = 16;

/// Forms of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Verifiable: one event a line, then the signed head
    Jsonl,
    /// For spreadsheets
    Csv,
    /// ArcSight Common Event Format
    Cef,
    /// Open Cybersecurity Schema Framework
    Ocsf,
}

/// Which entries, in which form.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) format: Format,
    /// Others are left out.
    pub(crate) filter: Filter,
    /// Name of the only partner.
    pub(crate) partner: Option<String>,
    /// Heads that readers hold: no gap runs across one, so that they can compare.
    pub(crate) heads: Vec<SeenHead>,
}

/// What an export must know of heads.
pub(crate) fn seen(heads: &[SignedHead]) -> Vec<SeenHead> {
    heads.iter().map(|head| SeenHead { tree: head.tree.clone(), size: head.size }).collect()
}

/// Sizes of those heads that are of a tree.
fn sizes(heads: &[SeenHead], tree: &str) -> Vec<u64> {
    heads.iter().filter(|head| head.tree == tree).map(|head| head.size).collect()
}

/// Who takes an export, piece by piece; may keep the export waiting.
pub(crate) trait Out: Send {
    /// Takes a piece; an error ends the export.
    fn piece(&mut self, text: String) -> impl Future<Output = Result<(), CliError>> + Send;
}

impl<F: FnMut(String) -> Result<(), CliError> + Send> Out for F {
    async fn piece(&mut self, text: String) -> Result<(), CliError> {
        self(text)
    }
}

/// Writes an export piece by piece; gives the number of entries shown.
pub(crate) async fn export(
    store: &Store,
    selection: &Selection,
    mut out: impl Out,
) -> Result<u64, CliError> {
    let trees = audit::trees(&store.readers).await.map_err(store_error)?;
    let wanted =
        |name: &str| selection.partner.as_deref().is_none_or(|p| p.eq_ignore_ascii_case(name));
    let trees: Vec<_> = trees.into_iter().filter(|tree| wanted(&tree.partner)).collect();
    if trees.is_empty() {
        return Err(CliError::not_there("not_found", "there is no audit log of such a partner"));
    }
    if selection.format == Format::Csv {
        out.piece(csv::header()).await?;
    }
    let mut shown = 0;
    for tree in trees {
        shown += export_tree(store, selection, &tree, &mut out).await?;
    }
    Ok(shown)
}

async fn export_tree(
    store: &Store,
    selection: &Selection,
    tree: &audit::TreeRow,
    out: &mut impl Out,
) -> Result<u64, CliError> {
    let broken = |reason: String| {
        let text = format!("audit log {}: {reason}", tree.id);
        CliError::failed("audit_corrupt", text).hint("run mediator audit verify")
    };
    let mut lines = JsonlExport::new(&sizes(&selection.heads, &tree.id));
    let all = selection.filter == Filter::default();
    let (mut next, mut shown) = (0, 0);
    while next < tree.head.size {
        let page = audit::entries(&store.readers, &tree.id, next, tree.head.size, PAGE)
            .await
            .map_err(store_error)?;
        let Some(last) = page.last() else { break };
        next = last.seq.saturating_add(1);
        let mut text = String::new();
        for row in &page {
            let parsed = if all && selection.format == Format::Jsonl || row.line.is_empty() {
                None
            } else {
                let entry = Entry::parse(row.line.as_bytes())
                    .map_err(|error| broken(format!("entry {}: {error}", row.seq)))?;
                Some(entry)
            };
            let pruned = row.line.is_empty();
            let inside =
                !pruned && parsed.as_ref().is_none_or(|entry| selection.filter.matches(entry));
            shown += u64::from(inside);
            match (selection.format, inside) {
                (Format::Jsonl, true) => lines
                    .line(row.seq, &row.line, &mut text)
                    .map_err(|error| broken(error.to_string()))?,
                (Format::Jsonl, false) => {
                    let kind = if pruned { GapKind::Pruned } else { GapKind::Omitted };
                    lines.skip(kind, row.leaf, &mut text);
                }
                (_, false) => {}
                (format, true) => text.extend(parsed.map(|entry| readable(format, &entry))),
            }
        }
        out.piece(text).await?;
    }
    if selection.format == Format::Jsonl {
        let mut text = String::new();
        lines.finish(&tree.head, &mut text).map_err(|error| broken(error.to_string()))?;
        out.piece(text).await?;
    }
    Ok(shown)
}

fn readable(format: Format, entry: &Entry) -> String {
    match format {
        Format::Csv => csv::row(entry),
        Format::Cef => format!("{}\n", cef::line(entry, VERSION).trim_end()),
        Format::Ocsf => format!("{}\n", ocsf::line(entry, VERSION).trim_end()),
        Format::Jsonl => String::new(),
    }
}

/// Verifies what the database holds, as if it had been exported in full.
pub(crate) async fn verify_store(
    store: &Store,
    trust: Trust,
) -> Result<Result<Report, VerifyError>, CliError> {
    let (sender, receiver) = mpsc::channel::<String>(PIECES);
    let heads = seen(&trust.heads);
    let verifier = tokio::task::spawn_blocking(move || {
        verify_export(BufReader::new(Pieces { receiver, piece: Vec::new(), at: 0 }), &trust)
    });
    let sent = raw(store, &heads, sender).await;
    let verified = verifier
        .await
        .map_err(|_| CliError::failed("internal", "the verifier stopped unexpectedly"))?;
    sent?;
    Ok(verified)
}

/// All lines as they are stored, without any check, gaps for what was pruned, then each head. A
/// verifier that found a fault stops listening.
async fn raw(store: &Store, heads: &[SeenHead], out: mpsc::Sender<String>) -> Result<(), CliError> {
    for tree in audit::trees(&store.readers).await.map_err(store_error)? {
        let mut lines = RawLines { gap: None, splits: sizes(heads, &tree.id) };
        let (mut next, end) = (0, tree.head.size);
        let pool = &store.readers;
        while let Some(page) =
            audit::lines(pool, &tree.id, next, end, PAGE).await.map_err(store_error)?
        {
            let mut text = String::with_capacity(page.text.len() + 1);
            if page.whole {
                lines.flush(&mut text);
                text.push_str(&page.text);
                text.push('\n');
            } else {
                let rows = audit::entries(pool, &tree.id, next, end, PAGE).await;
                rows.map_err(store_error)?.iter().for_each(|row| lines.push(row, &mut text));
            }
            next = page.last.saturating_add(1);
            if out.send(text).await.is_err() {
                return Ok(());
            }
        }
        let mut text = String::new();
        lines.flush(&mut text);
        text.push_str(&format!("{}\n", tree.head.to_line()));
        if out.send(text).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Lines for the verifier: unlike an export's, what is missing or out of order stays so.
struct RawLines {
    gap: Option<CompactRange>,
    splits: Vec<u64>,
}

impl RawLines {
    fn push(&mut self, row: &audit::EntryRow, out: &mut String) {
        let goes_on = self.gap.as_ref().is_some_and(|gap| gap.end() == row.seq);
        if !row.line.is_empty() || !goes_on || self.splits.contains(&row.seq) {
            self.flush(out);
        }
        if row.line.is_empty() {
            let gap = self.gap.get_or_insert(CompactRange::new(row.seq));
            gap.push_leaf(row.leaf, |_, _| ());
        } else {
            out.push_str(&row.line);
            out.push('\n');
        }
    }

    fn flush(&mut self, out: &mut String) {
        if let Some(range) = self.gap.take() {
            out.push_str(&Gap { kind: GapKind::Pruned, range }.to_line());
            out.push('\n');
        }
    }
}

struct Pieces {
    receiver: mpsc::Receiver<String>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.at >= self.piece.len() {
            match self.receiver.blocking_recv() {
                Some(piece) => (self.piece, self.at) = (piece.into_bytes(), 0),
                None => return Ok(0),
            }
        }
        let rest = self.piece.get(self.at..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(rest) {
            *to = *from;
        }
        self.at += count;
        Ok(count)
    }
}

/// Copies the database to a new file that only its owner can read.
pub(crate) async fn copy_database(store: &Store, file: &Path) -> Result<(), CliError> {
    let failed = |what: &str| {
        CliError::failed("backup_failed", format!("cannot write {}: {what}", file.display()))
            .hint("give the path of a file that does not exist yet")
    };
    if file.exists() {
        return Err(failed("it exists"));
    }
    let mut name = file.file_name().ok_or_else(|| failed("it has no name"))?.to_owned();
    name.push(".part");
    let part = file.with_file_name(name);
    crate::store::private_file(&part).map_err(|error| failed(&error.to_string()))?;
    let copied = store.copy_to(&part).await.map_err(store_error);
    let moved = copied.and_then(|()| {
        std::fs::File::open(&part)
            .and_then(|copy| copy.sync_all())
            .and_then(|()| std::fs::rename(&part, file))
            .map_err(|error| failed(&error.to_string()))
    });
    if moved.is_err() {
        // Best effort: what is left is named .part.
        let _ = std::fs::remove_file(&part);
    }
    moved
}
