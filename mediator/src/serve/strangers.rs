//! Records of those who come from a network that is not allowed: one per source and minute, so
//! that a flood of them fills no disk.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use adit_ledger::{Event, Level};
use adit_protocol::code::failure;
use adit_runtime::time::unix_ms;

use super::{half_open::Source, logins::Origin, run::Shared};

/// Time for which a source is recorded once, milliseconds.
const ONCE_IN_MS: u64 = 60_000;
/// Sources that are remembered.
const MAX_SOURCES: usize = 1024;

/// Sources that were recorded lately.
#[derive(Default)]
pub(crate) struct Strangers(Mutex<BTreeMap<Source, u64>>);

impl Strangers {
    /// Somebody is refused for where they come from. `kind`: as what they came.
    pub(crate) async fn refused(&self, shared: &Shared, from: Origin, kind: &'static str) {
        tracing::info!(source = %from.source, kind, "refused: not from this network");
        if !self.is_due(Source::of(from.source.ip()), unix_ms()) {
            return;
        }
        let event = Event::new("connection.source_refused", Level::Significant)
            .device(from.device.fingerprint().to_string())
            .source(from.source.to_string())
            .outcome("refused")
            .end_reason(failure::SOURCE_NOT_ALLOWED)
            .extra("kind", kind);
        let home = shared.home.clone();
        let written = shared
            .writer
            .write(move |tx| Box::pin(async move { tx.append(&home, event).await.map(|_| ()) }));
        if let Err(error) = written.await {
            tracing::error!(%error, "a refused source was not recorded");
        }
    }

    fn is_due(&self, source: Source, now_ms: u64) -> bool {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.retain(|_, at| now_ms.saturating_sub(*at) < ONCE_IN_MS);
        if table.len() >= MAX_SOURCES || table.contains_key(&source) {
            return false;
        }
        table.insert(source, now_ms);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_recorded_once_a_minute() {
        let strangers = Strangers::default();
        let source = |n: u8| Source::V4([192, 0, 2, n]);
        assert!(strangers.is_due(source(1), 0) && strangers.is_due(source(2), 0));
        assert!(!strangers.is_due(source(1), ONCE_IN_MS - 1));
        assert!(strangers.is_due(source(1), ONCE_IN_MS));
    }
}
