//! Reports to the mediator's audit: kept, in order and bounded, until they are acknowledged.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use adit_protocol::{ids::SessionId, wire};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::link::ControlLink;

/// Events kept while the mediator is unreachable. The oldest of channels and carriers go first;
/// the mediator learns of every session's end from its lease at the latest.
const MAX_SPOOLED: usize = 4096;
/// Events sent in one report.
const BATCH: usize = 64;
/// Time for the mediator to make a report durable.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// The spool of one process.
#[derive(Default)]
pub(crate) struct Reports {
    queue: Mutex<VecDeque<(SessionId, wire::SessionEvent)>>,
    more: Notify,
    drained: Notify,
}

impl Reports {
    pub(crate) fn push(&self, session: SessionId, event: wire::session_event::Event, at_ms: u64) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() >= MAX_SPOOLED {
            queue.pop_front();
            warn!("report spool is full: oldest event dropped");
        }
        queue.push_back((session, wire::SessionEvent { at_ms, event: Some(event) }));
        drop(queue);
        self.more.notify_one();
    }

    fn batch(&self) -> Option<(SessionId, Vec<wire::SessionEvent>)> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let session = queue.front()?.0;
        let same = queue.iter().take(BATCH).take_while(|(s, _)| *s == session);
        Some((session, same.map(|(_, e)| e.clone()).collect()))
    }

    fn done(&self, count: usize) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let count = count.min(queue.len());
        queue.drain(..count);
        if queue.is_empty() {
            self.drained.notify_waiters();
        }
    }

    fn is_empty(&self) -> bool {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Waits until everything is acknowledged, or until the deadline.
    pub(crate) async fn flush(&self, deadline: Duration) {
        let drained = async {
            loop {
                let waiting = self.drained.notified();
                if self.is_empty() {
                    return;
                }
                waiting.await;
            }
        };
        // What is left then, the mediator learns from the other end or from the lease.
        let _ = tokio::time::timeout(deadline, drained).await;
    }

    /// Sends until cancelled.
    pub(crate) async fn run(&self, control: ControlLink, cancel: CancellationToken) {
        let _ = cancel.run_until_cancelled(self.send_all(control)).await;
    }

    async fn send_all(&self, control: ControlLink) {
        let mut link = control.subscribe();
        loop {
            let Some((session, events)) = self.batch() else {
                self.more.notified().await;
                continue;
            };
            let Some(peer) = control.peer() else {
                if link.wait_for(Option::is_some).await.is_err() {
                    return;
                }
                continue;
            };
            let count = events.len();
            let report = wire::SessionReport { session_id: session.to_bytes(), events };
            let body = wire::frame::Body::SessionReport(report);
            match peer.request(body, ACK_TIMEOUT).await {
                Ok(_) => self.done(count),
                Err(adit_control::RequestError::Failed(failure)) => {
                    // Said again it would be refused again, and hold up all after it.
                    if failure.code == adit_protocol::code::failure::AUDIT_UNAVAILABLE {
                        tokio::time::sleep(RETRY).await;
                    } else {
                        warn!(%session, code = failure.code, "mediator refused a report");
                        self.done(count);
                    }
                }
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }
}
