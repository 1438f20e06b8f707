//! Tasks that are owned and whose failure is never lost: an error or a panic is logged with the
//! task's name, and can stop the program. Never swallows, never restarts by itself.

use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error};

use crate::shutdown::wait_within;

/// What a task may return: nothing, or a result whose error is logged.
pub trait TaskOutcome {
    /// The error's text, if it failed.
    fn failure(self) -> Option<String>;
}

impl TaskOutcome for () {
    fn failure(self) -> Option<String> {
        None
    }
}

impl<E: Display> TaskOutcome for Result<(), E> {
    fn failure(self) -> Option<String> {
        self.err().map(|error| error.to_string())
    }
}

/// A group of tasks with the token that stops them.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
    failures: Arc<AtomicUsize>,
}

impl Tasks {
    /// A group that stops when `token` is cancelled.
    pub fn new(token: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), token, failures: Arc::default() }
    }

    /// The token that stops this group.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// A group that is stopped and awaited with this one, and can be stopped alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token(), ..self.clone() }
    }

    /// Runs a task to its own end: it watches the token itself.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future + Send + 'static,
        F::Output: TaskOutcome,
    {
        let failures = Arc::clone(&self.failures);
        self.tracker.spawn(async move {
            if watch(name, task).await {
                failures.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// Runs a task that may be dropped at any of its waits when the group stops.
    pub fn spawn_until_stopped<F>(&self, name: &'static str, task: F)
    where
        F: Future + Send + 'static,
        F::Output: TaskOutcome,
    {
        let token = self.token.clone();
        self.spawn(name, async move {
            let outcome = token.run_until_cancelled_owned(task).await;
            outcome.and_then(TaskOutcome::failure).map_or(Ok(()), Err)
        });
    }

    /// Runs a task without which the program is useless: its failure stops the group.
    pub fn spawn_essential<F>(&self, name: &'static str, task: F)
    where
        F: Future + Send + 'static,
        F::Output: TaskOutcome,
    {
        let (failures, token) = (Arc::clone(&self.failures), self.token.clone());
        self.tracker.spawn(async move {
            if watch(name, task).await {
                failures.fetch_add(1, Ordering::Relaxed);
                token.cancel();
            }
        });
    }

    /// Tasks that failed or panicked so far, those of child groups too.
    pub fn failures(&self) -> usize {
        self.failures.load(Ordering::Relaxed)
    }

    /// Tasks that have not ended, those of child groups too.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether all tasks have ended.
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Stops the group and waits for all its tasks; `false` if some did not end in time.
    pub async fn stop_within(&self, limit: Duration) -> bool {
        self.token.cancel();
        wait_within(&self.tracker, limit).await
    }
}

/// Runs `task`, logs how it failed, and tells whether it did.
async fn watch<F>(name: &'static str, task: F) -> bool
where
    F: Future,
    F::Output: TaskOutcome,
{
    let mut task = Box::pin(task);
    let caught = poll_fn(|context| {
        // The future is not polled again after a panic, so nobody sees a broken state of it.
        match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(outcome)) => Poll::Ready(Ok(outcome)),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    })
    .await;
    match caught.map(TaskOutcome::failure) {
        Ok(None) => {
            debug!(task = name, "task ended");
            false
        }
        Ok(Some(reason)) => {
            error!(task = name, reason, "task failed");
            true
        }
        Err(panic) => {
            let reason = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned());
            error!(task = name, reason, "task panicked");
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn errors_and_panics_are_counted_and_do_not_stop_others() {
        let tasks = Tasks::default();
        tasks.spawn("fine", async {});
        tasks.spawn("error", async { Err::<(), _>("broken") });
        tasks.child().spawn("panic", async {
            panic!("broken");
            #[expect(unreachable_code, reason = "gives the future its type")]
            ()
        });
        while !tasks.is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(tasks.failures(), 2);
        assert!(!tasks.token().is_cancelled());
        assert!(tasks.stop_within(LIMIT).await);
    }

    #[tokio::test]
    async fn failure_of_an_essential_task_stops_the_group() {
        let tasks = Tasks::default();
        tasks.spawn_until_stopped("waits", std::future::pending::<()>());
        tasks.spawn_essential("essential", async { Err::<(), _>("broken") });
        tasks.token().cancelled().await;
        assert!(tasks.stop_within(LIMIT).await);
        assert_eq!(tasks.failures(), 1);
    }

    #[tokio::test]
    async fn a_child_group_stops_alone() {
        let tasks = Tasks::default();
        let child = tasks.child();
        child.token().cancel();
        assert!(!tasks.token().is_cancelled());
        tasks.token().cancel();
        assert!(tasks.child().token().is_cancelled());
    }
}
