//! Ctrl-C and SIGTERM: a flag that every wait looks at, so that clean-up always runs.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// Set once the user asked to stop.
#[derive(Clone)]
pub(crate) struct Stop(Arc<Inner>);

struct Inner {
    asked: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Stop {
    /// Begins to listen.
    pub(crate) fn listen() -> Result<Self> {
        let inner =
            Inner { asked: AtomicBool::new(false), lock: Mutex::new(()), changed: Condvar::new() };
        let stop = Self(Arc::new(inner));
        let handler = stop.clone();
        ctrlc::set_handler(move || {
            handler.0.asked.store(true, Ordering::SeqCst);
            handler.0.changed.notify_all();
        })
        .context("cannot listen to Ctrl-C")?;
        Ok(stop)
    }

    /// Whether the user asked.
    pub(crate) fn asked(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// An error once the user asked: ends whatever is under way.
    pub(crate) fn check(&self) -> Result<()> {
        if self.asked() {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Sleeps, but not on after the user asked.
    pub(crate) fn pause(&self, time: Duration) {
        let guard = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.asked() {
            let _ = self.0.changed.wait_timeout(guard, time);
        }
    }
}
