//! Receipts on their way to the mediator: from the files, in order, as long as it takes.
//!
//! What was written while the mediator could not be reached, or by a program that ended before
//! it was acknowledged, is sent by whoever runs next. Sending twice does no harm. Must never hold
//! up a session.

use std::{sync::Arc, time::Duration};

use adit_protocol::wire::{self, frame::Body};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    keeper::{KeepError, Keeper, Place},
    link::ControlLink,
};

/// Receipts in one message.
const BATCH: usize = 64;
/// Pause after a full message: the mediator takes 400 receipts a second for long, and a backlog is
/// in no hurry.
const PACE: Duration = Duration::from_millis(200);
/// Time for the mediator to make them durable.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// Time for the last ones when the program ends.
const FLUSH: Duration = Duration::from_millis(500);

/// Sends until cancelled.
pub(crate) async fn run(keeper: Arc<Keeper>, control: ControlLink, cancel: CancellationToken) {
    let _ = cancel.run_until_cancelled(send_all(keeper, control)).await;
}

async fn send_all(keeper: Arc<Keeper>, control: ControlLink) {
    let mut written = keeper.written.subscribe();
    let mut link = control.subscribe();
    loop {
        if link.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let Some(peer) = control.peer() else { continue };
        written.mark_unchanged();
        let (lines, place) = match read(&keeper).await {
            Ok(read) => read,
            Err(error) => {
                warn!(%error, "receipts cannot be sent");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        if lines.is_empty() {
            if written.changed().await.is_err() {
                return;
            }
            continue;
        }
        let full = lines.len() >= BATCH;
        let lines = lines.into_iter().map(Into::into).collect();
        match peer.request(Body::Receipts(wire::Receipts { lines }), ACK_TIMEOUT).await {
            Ok(_) => {
                if let Err(error) = keeper.acknowledged(place) {
                    warn!(%error, "receipts will be sent again");
                    tokio::time::sleep(RETRY).await;
                } else if full {
                    tokio::time::sleep(PACE).await;
                }
            }
            Err(error) => {
                debug!(%error, "receipts are not acknowledged");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn read(keeper: &Arc<Keeper>) -> Result<(Vec<String>, Place), KeepError> {
    let keeper = keeper.clone();
    match tokio::task::spawn_blocking(move || keeper.unsent(BATCH)).await {
        Ok(read) => read,
        Err(error) => Err(KeepError::new(std::path::Path::new("receipts"), error)),
    }
}

/// Waits a moment for what is left to be acknowledged.
pub(crate) async fn flush(keeper: &Arc<Keeper>) {
    let sent = async {
        while read(keeper).await.is_ok_and(|(lines, _)| !lines.is_empty()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // The next program to run here goes on.
    let _ = tokio::time::timeout(FLUSH, sent).await;
}
