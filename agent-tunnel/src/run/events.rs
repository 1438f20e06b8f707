//! What `run --json` prints, a line for each change. A reader that went away does not stop the
//! agent: its job is elsewhere.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use adit_runtime::output::Output;
use serde_json::Value;
use tracing::warn;

/// The stream of events. Clones write to the same.
#[derive(Debug, Clone)]
pub struct Events {
    output: Output,
    ready: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
}

impl Events {
    /// Events on stdout, if it is to be JSON.
    pub fn new(output: Output) -> Self {
        Self { output, ready: Arc::default(), broken: Arc::default() }
    }

    /// Prints one.
    pub fn emit(&self, event: &Value) {
        if self.broken.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.output.emit(event) {
            self.broken.store(true, Ordering::Relaxed);
            warn!(%error, "events are no longer printed");
        }
    }

    /// Is this the first time that the agent is ready?
    pub fn first_ready(&self) -> bool {
        !self.ready.swap(true, Ordering::Relaxed)
    }
}
