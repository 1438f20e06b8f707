//! Signals: the first SIGTERM or Ctrl-C asks everything to stop, the second ends the process at
//! once, SIGHUP asks to reload. Nothing here stops a task by force while it may still clean up.

pub(crate) mod platform;

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::cli::{CliError, Exit};
use platform::{Signal, Signals};

/// A clean stop is over within this time.
pub const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Listens to signals as long as it lives.
#[derive(Debug)]
pub struct Shutdown {
    token: CancellationToken,
    reloads: watch::Receiver<u64>,
    _listener: JoinSet<()>,
}

impl Shutdown {
    /// Takes over the process's signals. Needs a tokio runtime.
    pub fn install() -> Result<Self, CliError> {
        let signals = Signals::new().map_err(|error| {
            CliError::failed("signals_failed", format!("cannot listen to signals: {error}"))
        })?;
        let token = CancellationToken::new();
        // A signal that came before counts.
        if crate::interrupt::take_over() {
            token.cancel();
        }
        let (sender, reloads) = watch::channel(0);
        let mut listener = JoinSet::new();
        listener.spawn(listen(signals, token.clone(), sender));
        Ok(Self { token, reloads, _listener: listener })
    }

    /// Cancelled when the program is to stop. Tasks take children of it.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Requests to reload from now on.
    pub fn reload(&self) -> Reloads {
        let mut changes = self.reloads.clone();
        changes.mark_unchanged();
        Reloads { changes }
    }

    /// Stops everything and waits for `tasks`; `false` if some did not end within `limit`.
    pub async fn run_within(&self, tasks: &TaskTracker, limit: Duration) -> bool {
        self.token.cancel();
        wait_within(tasks, limit).await
    }
}

/// Waits for the tasks to end, at most `limit`; `false` if some did not.
pub async fn wait_within(tasks: &TaskTracker, limit: Duration) -> bool {
    tasks.close();
    let ended = tokio::time::timeout(limit, tasks.wait()).await.is_ok();
    if !ended {
        warn!(tasks = tasks.len(), ?limit, "tasks did not stop in time");
    }
    ended
}

/// Requests to reload; several that come together count as one.
#[derive(Debug, Clone)]
pub struct Reloads {
    changes: watch::Receiver<u64>,
}

impl Reloads {
    /// Waits for the next request; for ever if none can come any more. May be dropped and
    /// called again without losing one.
    pub async fn next(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

async fn listen(mut signals: Signals, token: CancellationToken, reloads: watch::Sender<u64>) {
    loop {
        match signals.next().await {
            Signal::Reload => {
                info!("reloading");
                reloads.send_modify(|count| *count = count.wrapping_add(1));
            }
            Signal::Stop if token.is_cancelled() => {
                warn!("stopped at once by a second signal");
                std::process::exit(i32::from(Exit::Interrupted.code()));
            }
            Signal::Stop => {
                info!("stopping");
                token.cancel();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_for_tasks_has_an_end() {
        let tasks = TaskTracker::new();
        let token = CancellationToken::new();
        tasks.spawn(token.clone().cancelled_owned());
        assert!(!wait_within(&tasks, STOP_DEADLINE).await);
        token.cancel();
        assert!(wait_within(&tasks, STOP_DEADLINE).await);
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn hangup_reloads_and_terminate_stops() {
        use rustix::process::{Signal, getpid, kill_process};
        let shutdown = Shutdown::install().unwrap();
        let mut reloads = shutdown.reload();
        kill_process(getpid(), Signal::HUP).unwrap();
        reloads.next().await;
        assert!(!shutdown.token().is_cancelled());
        kill_process(getpid(), Signal::TERM).unwrap();
        shutdown.token().cancelled().await;
        assert!(shutdown.run_within(&TaskTracker::new(), STOP_DEADLINE).await);
    }
}
