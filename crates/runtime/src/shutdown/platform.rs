//! Which signals mean what on each platform.

#[cfg(unix)]
pub(super) use unix::Signals;
#[cfg(windows)]
pub(super) use windows::Signals;

/// What a signal asks for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Signal {
    /// SIGTERM, Ctrl-C, and their like.
    Stop,
    /// SIGHUP; Windows has none.
    #[cfg_attr(windows, expect(dead_code, reason = "Windows has no signal for it"))]
    Reload,
}

#[cfg(unix)]
mod unix {
    use tokio::signal::unix::{SignalKind, signal};

    use super::Signal;

    pub(in crate::shutdown) struct Signals {
        terminate: tokio::signal::unix::Signal,
        interrupt: tokio::signal::unix::Signal,
        hangup: tokio::signal::unix::Signal,
    }

    impl Signals {
        pub(in crate::shutdown) fn new() -> std::io::Result<Self> {
            Ok(Self {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
                hangup: signal(SignalKind::hangup())?,
            })
        }

        pub(in crate::shutdown) async fn next(&mut self) -> Signal {
            tokio::select! {
                Some(()) = self.terminate.recv() => Signal::Stop,
                Some(()) = self.interrupt.recv() => Signal::Stop,
                Some(()) = self.hangup.recv() => Signal::Reload,
                else => std::future::pending().await,
            }
        }
    }
}

#[cfg(windows)]
mod windows {
    use tokio::signal::windows::{
        CtrlBreak, CtrlC, CtrlClose, CtrlShutdown, ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown,
    };

    use super::Signal;

    pub(in crate::shutdown) struct Signals {
        interrupt: CtrlC,
        terminate: CtrlBreak,
        close: CtrlClose,
        shutdown: CtrlShutdown,
    }

    impl Signals {
        pub(in crate::shutdown) fn new() -> std::io::Result<Self> {
            Ok(Self {
                interrupt: ctrl_c()?,
                terminate: ctrl_break()?,
                close: ctrl_close()?,
                shutdown: ctrl_shutdown()?,
            })
        }

        pub(in crate::shutdown) async fn next(&mut self) -> Signal {
            tokio::select! {
                Some(()) = self.interrupt.recv() => Signal::Stop,
                Some(()) = self.terminate.recv() => Signal::Stop,
                Some(()) = self.close.recv() => Signal::Stop,
                Some(()) = self.shutdown.recv() => Signal::Stop,
                else => std::future::pending().await,
            }
        }
    }
}
