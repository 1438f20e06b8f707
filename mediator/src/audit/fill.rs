//! Once after an update: logs of earlier versions get what they lack, in small steps between
//! other writes: entries their search keys, trees their inner nodes.

use std::time::Duration;

use crate::{
    proof,
    store::{Store, StoreError, Writer, audit, tenants},
};
use adit_ledger::{Entry, MerkleTree};

/// Set when entries have their keys.
const FILLED: &str = "audit_keys_filled";
/// Set when trees have their nodes.
const BUILT: &str = "audit_nodes_built";
/// Entries in one step.
const STEP: u32 = 200;
/// Leaves in one step; they make a sixth as many nodes.
const LEAVES: u64 = 4_096;
const PAUSE: Duration = Duration::from_millis(20);

/// Fills what is missing, or leaves it to the next start.
pub(crate) async fn run(store: Store, writer: Writer) -> Result<(), StoreError> {
    let lacks = async |name| tenants::setting(&store.readers, name).await.map(|set| set.is_none());
    // Without nodes every proof of an old entry reads the log.
    if lacks(BUILT).await? {
        build(&store, &writer).await?;
        done(&writer, BUILT).await?;
        tracing::info!("the audit log's proofs are quick");
    }
    if lacks(FILLED).await? {
        fill(&store, &writer).await?;
        done(&writer, FILLED).await?;
        tracing::info!("the audit log can be searched in full");
    }
    Ok(())
}

async fn done(writer: &Writer, name: &'static str) -> Result<(), StoreError> {
    writer.write(move |tx| Box::pin(async move { tenants::set(tx, name, "1").await })).await
}

async fn fill(store: &Store, writer: &Writer) -> Result<(), StoreError> {
    for tree in audit::trees(&store.readers).await? {
        let mut next = 0;
        loop {
            let page = audit::entries(&store.readers, &tree.id, next, tree.head.size, STEP).await?;
            let Some(last) = page.last() else { break };
            next = last.seq.saturating_add(1);
            let id = tree.id.clone();
            writer
                .write(move |tx| {
                    Box::pin(async move {
                        // Lines that cannot be read are for `audit verify`.
                        let entries =
                            page.iter().filter_map(|r| Entry::parse(r.line.as_bytes()).ok());
                        for entry in entries {
                            audit::refresh_keys(tx, &id, &entry).await?;
                        }
                        Ok(())
                    })
                })
                .await?;
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// What entries complete that come meanwhile, the writer stores; the rest up to the head of now
/// is stored here, from the first leaf on, and what is there stays.
async fn build(store: &Store, writer: &Writer) -> Result<(), StoreError> {
    for log in audit::trees(&store.readers).await? {
        let mut tree = MerkleTree::new();
        while tree.size() < log.head.size {
            let end = log.head.size.min(tree.size().saturating_add(LEAVES));
            let leaves = audit::leaves(&store.readers, &log.id, tree.size(), end).await?;
            let mut nodes = Vec::new();
            for leaf in &leaves {
                tree.append_with(*leaf, |node, hash| nodes.push((node, hash)));
            }
            if tree.size() != end {
                // A leaf is missing: `audit verify` says which.
                break;
            }
            let id = log.id.clone();
            writer
                .write(move |tx| {
                    Box::pin(async move { proof::forest::keep(tx.sql(), &id, &nodes).await })
                })
                .await?;
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}
