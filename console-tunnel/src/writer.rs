//! Writes lines without ever holding up a session: whoever reads our output may stop reading
//! while connections go on.
//!
//! A thread of its own writes, in order. When its queue is full, lines are dropped, never waited
//! for. What went wrong is told at the next line.

use std::{
    io::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use adit_runtime::{cli::CliError, output::Output};
use serde_json::Value;

/// Lines that wait to be written.
const QUEUE: usize = 1024;
/// Time for the last lines to be read, when all is over.
const LAST_LINES: Duration = Duration::from_secs(1);

/// A line and where it goes.
#[derive(Debug)]
pub enum Line {
    /// An object on stdout.
    Json(Value),
    /// Text on stdout.
    Stdout(String),
    /// Text on stderr.
    Stderr(String),
}

/// Writes lines in a thread of its own.
#[derive(Debug)]
pub struct Writer {
    queue: Option<SyncSender<Line>>,
    done: Receiver<()>,
    failed: Arc<Mutex<Option<CliError>>>,
}

impl Writer {
    /// Starts the thread.
    pub fn start(output: Output) -> Result<Self, CliError> {
        let (queue, lines) = sync_channel(QUEUE);
        let (ended, done) = sync_channel(1);
        let failed = Arc::new(Mutex::new(None));
        let failure = Arc::clone(&failed);
        let thread = std::thread::Builder::new().name("output".to_owned()).spawn(move || {
            for line in lines {
                if let Err(error) = write(output, line) {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    break;
                }
            }
            // Nobody waits any more if the deadline is over.
            let _ = ended.send(());
        });
        match thread {
            // It ends when the queue is closed, or with the process.
            Ok(_) => Ok(Self { queue: Some(queue), done, failed }),
            Err(error) => Err(CliError::failed(
                "output_failed",
                format!("cannot start the thread that writes: {error}"),
            )),
        }
    }

    /// Queues a line. An error is that of an earlier line.
    pub fn line(&self, line: Line) -> Result<(), CliError> {
        if let Some(error) = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        if let Some(queue) = &self.queue
            && queue.try_send(line).is_err()
        {
            tracing::debug!("an event was dropped: nobody reads the output");
        }
        Ok(())
    }

    /// Waits until all is written, or nobody seems to read it.
    pub fn finish(&mut self) -> Result<(), CliError> {
        self.queue = None;
        let _ = self.done.recv_timeout(LAST_LINES);
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        failed.map_or(Ok(()), Err)
    }
}

fn write(output: Output, line: Line) -> Result<(), CliError> {
    match line {
        Line::Json(value) => output.emit(&value),
        Line::Stdout(text) => output.human(text),
        Line::Stderr(text) => {
            // If nobody can read it, nobody misses it.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
            Ok(())
        }
    }
}
