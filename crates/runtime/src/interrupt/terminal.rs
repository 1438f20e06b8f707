//! The terminal as it was before a command asked for a password on it.

#[cfg(unix)]
pub(super) use unix::Terminal;

#[cfg(not(unix))]
/// The console gives each program its own mode back.
pub(super) struct Terminal;

#[cfg(not(unix))]
impl Terminal {
    pub(super) fn remember() -> Self {
        Self
    }

    pub(super) fn restore(&self) {}
}

#[cfg(unix)]
mod unix {
    use std::{
        fs::{File, OpenOptions},
        io::Write,
    };

    use rustix::{
        process::getpgrp,
        termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr},
    };

    /// The terminal that this process belongs to, if it has one, and its modes.
    pub(in crate::interrupt) struct Terminal(Option<(File, Termios)>);

    impl Terminal {
        pub(in crate::interrupt) fn remember() -> Self {
            // Where passwords are asked for, whatever standard input is.
            let tty = OpenOptions::new().read(true).write(true).open("/dev/tty");
            Self(tty.ok().and_then(|tty| {
                let modes = tcgetattr(&tty).ok()?;
                Some((tty, modes))
            }))
        }

        /// Echoes again what is typed, if that was switched off.
        pub(in crate::interrupt) fn restore(&self) {
            let Some((tty, before)) = &self.0 else { return };
            let Ok(now) = tcgetattr(tty) else { return };
            let hidden = |modes: &Termios| !modes.local_modes.contains(LocalModes::ECHO);
            // A process in the background would be stopped for touching it.
            if hidden(before) || !hidden(&now) || tcgetpgrp(tty).ok() != Some(getpgrp()) {
                return;
            }
            if tcsetattr(tty, OptionalActions::Now, before).is_ok() {
                let mut tty: &File = tty;
                // The prompt's line has no end yet.
                let _ = tty.write_all(b"\n");
            }
        }
    }
}
