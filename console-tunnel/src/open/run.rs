//! Sessions that are granted: serving local ports, telling events, waiting for the end.

use adit_protocol::ids::SessionId;
use adit_runtime::{
    cli::{CliError, Exit},
    shutdown::Shutdown,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    events::{Event, Reporter},
    forward::Local,
    session::{Session, SessionEvent, SessionHandle, Sessions},
    state::KnownComputer,
    viewer::{self, Choice, Launched, Values, Viewer},
};

/// Events of all sessions that wait to be told.
const EVENTS: usize = 256;
/// The user stopped the command.
const INTERRUPTED: &str = "interrupted";
/// The viewer's end is the session's end.
const VIEWER_EXITED: &str = "viewer_exited";

/// Granted sessions.
pub struct Running {
    sessions: Sessions,
    handles: Vec<SessionHandle>,
    events: mpsc::Receiver<(SessionId, SessionEvent)>,
    event_in: mpsc::Sender<(SessionId, SessionEvent)>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    viewer: Option<Viewer>,
    keep: bool,
}

/// Why to stop waiting.
enum Next {
    Tell(SessionId, SessionEvent),
    Close(&'static str),
    ViewerGone(String),
}

impl Running {
    /// None yet.
    pub fn new(sessions: Sessions) -> Self {
        let (event_in, events) = mpsc::channel(EVENTS);
        Self {
            sessions,
            handles: Vec::new(),
            events,
            event_in,
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
            viewer: None,
            keep: false,
        }
    }

    /// Tells that a session was granted and serves its local ends.
    pub fn granted(
        &mut self,
        session: Session,
        locals: Vec<Local>,
        computer: &KnownComputer,
        first_contact: bool,
        reporter: &Reporter,
    ) -> Result<(), CliError> {
        let Session { handle, grant, audit, events } = session;
        let id = grant.session;
        reporter.tell(
            id,
            &Event::Granted {
                computer: &computer.name,
                client: &computer.client,
                computer_id: computer.id,
                redirector: &grant.redirector,
                expires_ms: grant.expires_ms,
                audit,
                agent_key: grant.agent.fingerprint(),
                first_contact,
            },
        )?;
        for local in locals {
            reporter.tell(
                id,
                &Event::Listening {
                    protocol: local.protocol().event_name(),
                    local: local.address(),
                    target: local.target(),
                },
            )?;
            self.tasks.spawn(local.serve(handle.clone(), self.stop.clone()));
        }
        self.tasks.spawn(pass_on(id, events, self.event_in.clone()));
        self.handles.push(handle);
        Ok(())
    }

    /// Starts the viewer.
    pub fn launch(
        &mut self,
        choice: &Choice,
        values: &Values,
        keep: bool,
        reporter: &mut Reporter,
    ) -> Result<(), CliError> {
        let Launched { command, pid, viewer } = viewer::launch(choice, values)?;
        let session = self.handles.first().map_or(SessionId([0; 16]), SessionHandle::id);
        reporter.tell(session, &Event::Viewer { command: &command, pid })?;
        reporter.set_quiet(viewer.in_terminal());
        self.viewer = Some(viewer);
        self.keep = keep;
        Ok(())
    }

    /// Runs until the user, the viewer, or the other side ends it; not at all if it did not begin
    /// well, but then too both sides are told.
    pub async fn run(
        mut self,
        begun: Result<(), CliError>,
        shutdown: &Shutdown,
        reporter: &mut Reporter,
    ) -> Result<(), CliError> {
        let result = match begun {
            Ok(()) => self.until_closed(shutdown, reporter).await,
            Err(error) => Err(error),
        };
        self.stop.cancel();
        let reason = if result.is_ok() { "closed" } else { "failed" };
        self.sessions.shutdown(reason).await;
        if let Some(viewer) = self.viewer.take() {
            viewer.leave().await;
        }
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        let written = reporter.finish();
        result.and(written)
    }

    async fn until_closed(
        &mut self,
        shutdown: &Shutdown,
        reporter: &mut Reporter,
    ) -> Result<(), CliError> {
        let interrupt = shutdown.token();
        let mut asked: Option<&'static str> = None;
        let mut outcome = Ok(());
        let mut open = self.handles.len();
        while open > 0 {
            let next = tokio::select! {
                biased;
                () = interrupt.cancelled(), if asked.is_none() => Next::Close(INTERRUPTED),
                Some((id, event)) = self.events.recv() => Next::Tell(id, event),
                how = viewer_ended(&mut self.viewer), if asked.is_none() => Next::ViewerGone(how),
            };
            match next {
                Next::Tell(id, event) => {
                    let closed = tell(id, &event, reporter)?;
                    if let Some(reason) = closed {
                        open -= 1;
                        if asked.is_none() {
                            outcome = ended_by_others(&reason);
                            // One end is the end of all.
                            asked = Some(INTERRUPTED);
                            self.close_all("closed");
                        }
                    }
                }
                Next::Close(reason) => {
                    asked = Some(reason);
                    self.close_all(reason);
                }
                Next::ViewerGone(how) => {
                    reporter.set_quiet(false);
                    self.viewer = None;
                    if self.keep {
                        reporter.remark(&format!("{how}; the session goes on until Ctrl-C"));
                    } else {
                        reporter.remark(&how);
                        asked = Some(VIEWER_EXITED);
                        self.close_all(VIEWER_EXITED);
                    }
                }
            }
        }
        outcome
    }

    fn close_all(&self, reason: &str) {
        self.handles.iter().for_each(|handle| handle.close(reason));
    }
}

/// Tells an event; gives the reason if it is a session's last.
fn tell(
    session: SessionId,
    event: &SessionEvent,
    reporter: &mut Reporter,
) -> Result<Option<String>, CliError> {
    match event {
        SessionEvent::Carrier { kind, state, rtt, local, remote, relay, .. } => {
            reporter.tell(
                session,
                &Event::Carrier {
                    kind: kind.as_str(),
                    state: state.as_str(),
                    rtt: *rtt,
                    local: *local,
                    remote: *remote,
                    relay: relay.as_deref(),
                },
            )?;
        }
        SessionEvent::Channel { id, target, state, reason, bytes_up, bytes_down, duration } => {
            reporter.tell(
                session,
                &Event::Channel {
                    id: *id,
                    target: target.as_ref(),
                    state: state.as_str(),
                    reason: *reason,
                    bytes_up: *bytes_up,
                    bytes_down: *bytes_down,
                    duration: *duration,
                },
            )?
        }
        SessionEvent::Lease { expires_ms } => tracing::debug!(expires_ms, "grant renewed"),
        SessionEvent::Closed { reason, bytes_up, bytes_down, duration } => {
            reporter.set_quiet(false);
            reporter.tell(
                session,
                &Event::Closed {
                    reason,
                    bytes_up: *bytes_up,
                    bytes_down: *bytes_down,
                    duration: *duration,
                },
            )?;
            return Ok(Some(reason.clone()));
        }
    }
    Ok(None)
}

async fn viewer_ended(viewer: &mut Option<Viewer>) -> String {
    match viewer {
        Some(viewer) => viewer.ended().await,
        None => std::future::pending().await,
    }
}

/// A session whose events end without a last one was lost; that is a last one too.
async fn pass_on(
    id: SessionId,
    mut events: mpsc::Receiver<SessionEvent>,
    to: mpsc::Sender<(SessionId, SessionEvent)>,
) {
    let mut closed = false;
    while let Some(event) = events.recv().await {
        closed |= matches!(event, SessionEvent::Closed { .. });
        if to.send((id, event)).await.is_err() {
            return;
        }
    }
    if !closed {
        let lost = SessionEvent::Closed {
            reason: "lost".to_owned(),
            bytes_up: 0,
            bytes_down: 0,
            duration: std::time::Duration::ZERO,
        };
        let _ = to.send((id, lost)).await;
    }
}

/// What the command's outcome is when neither user nor viewer ended the session.
fn ended_by_others(reason: &str) -> Result<(), CliError> {
    let (code, exit, hint) = match reason {
        "no_path" => ("no_path", Exit::NoPath, "neither a relay nor a direct path came about"),
        "no_carrier" | "mediator_lost" => {
            ("connection_lost", Exit::NoPath, "check the network, then open it again")
        }
        "lost" | "stopped" => ("session_lost", Exit::Failed, "open it again"),
        "lease_expired" => ("session_ended", Exit::Refused, "the grant was not renewed"),
        _ => ("session_ended", Exit::Refused, "ask your administrator or the computer's owner"),
    };
    let message = format!("session was ended: {}", reason.replace('_', " "));
    Err(CliError::new(code, exit, message).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_by_others_have_their_exit_code() {
        for (reason, code, exit) in [
            ("no_path", "no_path", 5),
            ("no_carrier", "connection_lost", 5),
            ("mediator_lost", "connection_lost", 5),
            ("revoked", "session_ended", 3),
            ("closed_by_peer", "session_ended", 3),
            ("ended by admin", "session_ended", 3),
            ("lost", "session_lost", 1),
        ] {
            let error = ended_by_others(reason).unwrap_err();
            assert_eq!((error.code, error.exit.code()), (code, exit), "{reason}");
        }
    }

    #[tokio::test]
    async fn events_that_stop_without_a_last_one_end_the_session() {
        let (sender, events) = mpsc::channel(1);
        let (out, mut told) = mpsc::channel(4);
        drop(sender);
        pass_on(SessionId([1; 16]), events, out).await;
        assert!(matches!(
            told.recv().await,
            Some((_, SessionEvent::Closed { reason, .. })) if reason == "lost"
        ));
    }
}
