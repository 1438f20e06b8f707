//! Ctrl-C and SIGTERM for commands that are over by themselves, whatever they wait for: an answer
//! of the network, a line of standard input, a person at a password prompt.
//!
//! The command is asked to end and given a moment. What sits in a system call that nothing ends
//! is left there: the terminal gets its echo back, the outcome is told in the contract's form,
//! and the process ends with 130. Must never be used by what has to clean up after itself:
//! servers and sessions have [`crate::shutdown`].

mod terminal;

use std::{
    process::ExitCode,
    sync::{Arc, OnceLock, mpsc::sync_channel},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    cli::{CliError, Exit, LAST_WORDS, report, wants_json},
    shutdown::platform::{Signal, Signals},
};
use terminal::Terminal;

/// Time for the command to end by itself once it was asked to.
const GRACE: Duration = Duration::from_millis(300);

/// What listens to signals until somebody takes over.
#[derive(Clone)]
struct Watch {
    /// An end was asked for.
    asked: CancellationToken,
    /// Somebody else listens.
    taken: CancellationToken,
    terminal: Arc<Terminal>,
}

static WATCH: OnceLock<Watch> = OnceLock::new();

/// Listens to signals from now on, before the command line is read: whoever presses Ctrl-C then is
/// told the same as a moment later. The first thing that a program does. Where that does not work,
/// [`run`] tries again and says so.
pub fn from_the_start() {
    let json = wants_json(std::env::args_os());
    if let Ok(watch) = watch(json) {
        // A second call changes nothing.
        let _ = WATCH.set(watch);
    }
}

/// Somebody listens to signals from now on who stops in their own way. True if one came before.
pub(crate) fn take_over() -> bool {
    WATCH.get().is_some_and(|watch| {
        watch.taken.cancel();
        watch.asked.is_cancelled()
    })
}

/// Runs a command, which may watch the token, and tells its outcome. A signal ends it as
/// `interrupted`.
pub fn run(json: bool, work: impl FnOnce(&CancellationToken) -> Result<(), CliError>) -> ExitCode {
    let watched = WATCH.get().cloned().map_or_else(|| watch(json), Ok);
    let watch = match watched {
        Ok(watch) => watch,
        Err(error) => {
            let text = format!("cannot listen to signals: {error}");
            return report(Err(CliError::failed("signals_failed", text)), json);
        }
    };
    let result = match watch.asked.is_cancelled() {
        true => Err(CliError::interrupted()),
        false => work(&watch.asked),
    };
    if watch.asked.is_cancelled() {
        watch.terminal.restore();
    }
    report(result, json)
}

/// Starts the thread that waits for signals; it ends with the process, or when somebody takes over.
/// Returns when a signal would be heard.
fn watch(json: bool) -> std::io::Result<Watch> {
    let (asked, taken) = (CancellationToken::new(), CancellationToken::new());
    let watch = Watch { asked, taken, terminal: Arc::new(Terminal::remember()) };
    let (ready, listening) = sync_channel(1);
    let own = watch.clone();
    let listen = move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(error))),
        };
        runtime.block_on(async {
            let mut signals = match Signals::stopping() {
                Ok(signals) => signals,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            let given_up = async {
                stop(&mut signals).await;
                own.asked.cancel();
                tokio::select! {
                    () = tokio::time::sleep(GRACE) => {}
                    () = stop(&mut signals) => {}
                }
            };
            if own.taken.run_until_cancelled(given_up).await.is_some() {
                give_up(json, &own.terminal);
            }
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen)?;
    listening.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()))?;
    Ok(watch)
}

async fn stop(signals: &mut Signals) {
    while !matches!(signals.next().await, Signal::Stop) {}
}

/// The command does not end by itself.
fn give_up(json: bool, terminal: &Terminal) {
    terminal.restore();
    // Whoever reads our output may have stopped: that must not keep us here.
    let told = std::thread::Builder::new().name("last words".to_owned()).spawn(move || {
        let _ = report(Err(CliError::interrupted()), json);
        std::process::exit(i32::from(Exit::Interrupted.code()));
    });
    if told.is_ok() {
        std::thread::park_timeout(LAST_WORDS);
    }
    std::process::exit(i32::from(Exit::Interrupted.code()));
}
