//! Periodic exports to a directory: each file goes on where the last one ended, ends with a
//! signed head, and verifies by itself; what earlier files hold stands as a gap with its hashes.
//!
//! A file has its name only when it is whole and on disk; then the cursor moves. Must never take a
//! name from outside: files are called by tree and sequence numbers.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use adit_ledger::{GapKind, MerkleTree, export::jsonl::JsonlExport, tree::CompactRange};
use adit_runtime::datadir::Part;
use tokio_util::sync::CancellationToken;

use super::{Cursor, EXPORT, ForwardError, PAGE, cursor, save_cursor};
use crate::store::{Store, Writer, audit};

/// Exports until told to stop.
pub(crate) async fn run(
    store: Store,
    writer: Writer,
    (dir, every): (PathBuf, Duration),
    stop: CancellationToken,
) {
    loop {
        match round(&store, &writer, &dir).await {
            Ok(0) => {}
            Ok(files) => tracing::info!(files, dir = %dir.display(), "audit log exported"),
            Err(error) => tracing::warn!(%error, dir = %dir.display(), "audit log not exported"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// One file for each log that grew.
pub(in crate::audit) async fn round(
    store: &Store,
    writer: &Writer,
    dir: &Path,
) -> Result<usize, ForwardError> {
    let mut files = 0;
    for tree in audit::trees(&store.readers).await? {
        let from = cursor(&store.readers, EXPORT, &tree.id).await?;
        if tree.head.size <= from.next_seq {
            continue;
        }
        let frontier = write(store, &tree, from, dir).await?;
        let next = Cursor { next_seq: tree.head.size, frontier };
        save_cursor(writer, EXPORT, tree.id, next).await?;
        files += 1;
    }
    Ok(files)
}

/// Writes a file; gives the frontier for the next one.
async fn write(
    store: &Store,
    tree: &audit::TreeRow,
    from: Cursor,
    dir: &Path,
) -> Result<Vec<u8>, ForwardError> {
    let wrong = |what: &str| ForwardError::File(format!("audit log {}: {what}", tree.id));
    let (mut merkle, before) = match from.next_seq {
        0 => (MerkleTree::new(), CompactRange::new(0)),
        _ => {
            let merkle = MerkleTree::from_bytes(&from.frontier)
                .filter(|merkle| merkle.size() == from.next_seq)
                .ok_or_else(|| wrong("the frontier of the last export cannot be read"))?;
            let before = merkle.range().clone();
            (merkle, before)
        }
    };
    let last = tree.head.size.saturating_sub(1);
    let name = format!("audit-{}-{:012}-{last:012}.jsonl", tree.id, from.next_seq);
    let mut file = Part::create(&dir.join(&name))?;
    let mut lines = JsonlExport::new(&[]);
    let mut text = String::new();
    lines
        .skip_range(GapKind::Omitted, before, &mut text)
        .map_err(|error| wrong(&error.to_string()))?;
    let mut next = from.next_seq;
    while next < tree.head.size {
        let page = audit::entries(&store.readers, &tree.id, next, tree.head.size, PAGE).await?;
        let Some(end) = page.last() else { break };
        next = end.seq.saturating_add(1);
        for row in &page {
            merkle.append(row.leaf);
            if row.line.is_empty() {
                lines.skip(GapKind::Pruned, row.leaf, &mut text);
            } else {
                lines
                    .line(row.seq, &row.line, &mut text)
                    .map_err(|error| wrong(&error.to_string()))?;
            }
        }
        file.write(std::mem::take(&mut text).as_bytes())?;
    }
    lines.finish(&tree.head, &mut text).map_err(|error| wrong(&error.to_string()))?;
    file.write(text.as_bytes())?;
    if merkle.root() != tree.head.root {
        return Err(wrong("entries do not hash to its head; see mediator audit verify"));
    }
    file.finish()?;
    Ok(merkle.to_bytes())
}
