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
    sync::{Arc, mpsc::sync_channel},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    cli::{CliError, Exit, LAST_WORDS, report},
    shutdown::platform::{Signal, Signals},
};
use terminal::Terminal;

/// Time for the command to end by itself once it was asked to.
const GRACE: Duration = Duration::from_millis(300);

/// Runs a command, which may watch the token, and tells its outcome. A signal ends it as
/// `interrupted`.
pub fn run(json: bool, work: impl FnOnce(&CancellationToken) -> Result<(), CliError>) -> ExitCode {
    let token = CancellationToken::new();
    let terminal = Arc::new(Terminal::remember());
    let watched = watch(json, token.clone(), Arc::clone(&terminal));
    let result = watched.and_then(|()| work(&token));
    if token.is_cancelled() {
        terminal.restore();
    }
    report(result, json)
}

/// Starts the thread that waits for signals; it ends with the process. Returns when a signal
/// would be heard.
fn watch(json: bool, token: CancellationToken, terminal: Arc<Terminal>) -> Result<(), CliError> {
    let failed = |error: std::io::Error| {
        CliError::failed("signals_failed", format!("cannot listen to signals: {error}"))
    };
    let (ready, listening) = sync_channel(1);
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
            stop(&mut signals).await;
            token.cancel();
            tokio::select! {
                () = tokio::time::sleep(GRACE) => {}
                () = stop(&mut signals) => {}
            }
            give_up(json, &terminal);
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen).map_err(failed)?;
    let heard = listening.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()));
    heard.map_err(failed)
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
