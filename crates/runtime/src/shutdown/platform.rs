//! Which signals mean what on each platform.

#[cfg(unix)]
pub(crate) use unix::Signals;
#[cfg(windows)]
pub(crate) use windows::Signals;

/// What a signal asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Signal {
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

    pub(crate) struct Signals {
        terminate: tokio::signal::unix::Signal,
        interrupt: tokio::signal::unix::Signal,
        hangup: Option<tokio::signal::unix::Signal>,
    }

    impl Signals {
        pub(in crate::shutdown) fn new() -> std::io::Result<Self> {
            let hangup = Some(signal(SignalKind::hangup())?);
            Ok(Self { hangup, ..Self::stopping()? })
        }

        /// Leaves SIGHUP as it is, which `nohup` may have set.
        pub(crate) fn stopping() -> std::io::Result<Self> {
            Ok(Self {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
                hangup: None,
            })
        }

        pub(crate) async fn next(&mut self) -> Signal {
            let hangup = async {
                match &mut self.hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(()) = self.terminate.recv() => Signal::Stop,
                Some(()) = self.interrupt.recv() => Signal::Stop,
                Some(()) = hangup => Signal::Reload,
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

    pub(crate) struct Signals {
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

        /// The same: there is nothing like SIGHUP.
        pub(crate) fn stopping() -> std::io::Result<Self> {
            Self::new()
        }

        pub(crate) async fn next(&mut self) -> Signal {
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
