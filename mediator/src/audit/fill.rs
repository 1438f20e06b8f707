//! Once after an update: entries of earlier versions get their search keys, in small steps
//! between other writes.

use std::time::Duration;

use crate::store::{Store, StoreError, Writer, audit, tenants};
use adit_ledger::Entry;

/// Set when it is done.
const FILLED: &str = "audit_keys_filled";
/// Entries in one step.
const STEP: u32 = 200;
const PAUSE: Duration = Duration::from_millis(20);

/// Fills what is missing, or leaves it to the next start.
pub(crate) async fn run(store: Store, writer: Writer) -> Result<(), StoreError> {
    if tenants::setting(&store.readers, FILLED).await?.is_some() {
        return Ok(());
    }
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
    writer.write(|tx| Box::pin(async move { tenants::set(tx, FILLED, "1").await })).await?;
    tracing::info!("the audit log can be searched in full");
    Ok(())
}
