//! Sessions that are granted: serving local ports, telling events, waiting for the end.
//!
//! INVARIANT: events are told in the order in which they happened, each with its own time, also
//! while a further session is being opened.

use std::{collections::BTreeMap, time::Instant};

use adit_protocol::ids::SessionId;
use adit_runtime::{
    cli::{CliError, Exit},
    shutdown::Shutdown,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{ended, no_path, refusal::Refusal};
use crate::{
    cli::Carrier,
    events::{Event, Reporter},
    forward::Local,
    session::{
        ChannelState, Enrolment, Explanation, SHUTDOWN, Session, SessionEvent, SessionHandle,
        Sessions,
    },
    state::KnownComputer,
    viewer::{self, Choice, Ended, Launched, Values, Viewer, credential::Handover},
};

/// Events of all sessions that wait to be told.
const EVENTS: usize = 256;
/// How often a session that has no carrier yet is asked why.
const LOOK: std::time::Duration = std::time::Duration::from_secs(2);
/// Time for its answer.
const LOOK_LIMIT: std::time::Duration = std::time::Duration::from_millis(500);
/// Time for sessions to end when a further one was refused.
const WIND_DOWN: std::time::Duration = std::time::Duration::from_secs(2);
/// Time for all that follows Ctrl-C or a refusal, whoever does not answer: steps that come one after
/// another share it.
const STOP: std::time::Duration = std::time::Duration::from_secs(3);
/// What is left of it for the last step at least.
const LAST_STEP: std::time::Duration = std::time::Duration::from_millis(500);
/// Time for a refusal to be heard of whose reset the viewer felt already.
const REFUSAL: std::time::Duration = std::time::Duration::from_millis(500);
/// The user stopped the command.
const INTERRUPTED: &str = "interrupted";
/// The viewer's end is the session's end.
const VIEWER_EXITED: &str = "viewer_exited";

/// An event of a session, and when it happened.
struct Happened {
    session: SessionId,
    event: SessionEvent,
    at: Instant,
}

/// Granted sessions.
pub struct Running {
    handles: Vec<SessionHandle>,
    /// What was asked for with `--carrier`.
    carrier: Carrier,
    /// Sessions that had no carrier yet, and what they last said of why.
    pathless: BTreeMap<SessionId, Option<Explanation>>,
    /// Sessions whose last event was not told yet.
    open: usize,
    events: mpsc::Receiver<Happened>,
    event_in: mpsc::Sender<Happened>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    /// The user stops the command.
    interrupt: CancellationToken,
    /// Since when everything is to end.
    ending: Option<Instant>,
    viewer: Option<Viewer>,
    keep: bool,
    /// The computer's name, for messages.
    computer: String,
    /// A connection was made to a target.
    connected: bool,
    /// The last one that was refused.
    refused: Option<Refusal>,
}

/// Why to stop waiting.
enum Next {
    Tell(Happened),
    Close(&'static str),
    Look,
    ViewerGone(Ended),
}

impl Running {
    /// None yet.
    pub fn new(carrier: Carrier, shutdown: &Shutdown) -> Self {
        let (event_in, events) = mpsc::channel(EVENTS);
        Self {
            handles: Vec::new(),
            carrier,
            pathless: BTreeMap::new(),
            open: 0,
            events,
            event_in,
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
            interrupt: shutdown.token(),
            ending: None,
            viewer: None,
            keep: false,
            computer: String::new(),
            connected: false,
            refused: None,
        }
    }

    /// Waits for `work`, and tells what happens meanwhile in the sessions that there are. The end
    /// of one of them is an error; the user's wish to stop is its end, too, and `work` is for whoever
    /// gave it to cut short.
    pub async fn meanwhile<T>(
        &mut self,
        work: impl Future<Output = Result<T, CliError>>,
        reporter: &mut Reporter,
    ) -> Result<T, CliError> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                Some(happened) = self.events.recv() => {
                    let closed = self.tell(&happened, reporter)?;
                    if let (Some(reason), None) = (closed, self.ending) {
                        self.ended_by_others(happened.session, &reason)?;
                    }
                }
                () = self.interrupt.cancelled(), if self.ending.is_none() => {
                    self.end_all(INTERRUPTED);
                }
                result = &mut work => return result,
            }
        }
    }

    /// Tells that a session was granted, just now.
    pub fn granted(
        &mut self,
        session: Session,
        computer: &KnownComputer,
        first_contact: bool,
        reporter: &Reporter,
    ) -> Result<SessionHandle, CliError> {
        let at = Instant::now();
        let Session { handle, grant, audit, enrolment, events } = session;
        let id = grant.session;
        self.handles.push(handle.clone());
        self.open += 1;
        self.pathless.insert(id, None);
        self.computer.clone_from(&computer.name);
        self.tasks.spawn(pass_on(id, events, self.event_in.clone()));
        reporter.tell_at(
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
                enrolment: enrolment.map(Enrolment::from),
            },
            at,
        )?;
        Ok(handle)
    }

    /// Serves a session's local ends and tells of them.
    pub fn serve(
        &mut self,
        session: &SessionHandle,
        locals: Vec<Local>,
        reporter: &Reporter,
    ) -> Result<(), CliError> {
        for local in locals {
            let listening = Event::Listening {
                protocol: local.protocol().event_name(),
                local: local.address(),
                target: local.target(),
            };
            reporter.tell(session.id(), &listening)?;
            self.tasks.spawn(local.serve(session.clone(), self.stop.clone()));
        }
        Ok(())
    }

    /// Does something that waits for the disk.
    pub fn besides(&mut self, work: impl FnOnce() + Send + 'static) {
        self.tasks.spawn_blocking(work);
    }

    /// Does something by the way, for as long as sessions live.
    pub fn aside(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    /// Starts the viewer.
    pub fn launch(
        &mut self,
        choice: &Choice,
        values: &Values,
        handover: Option<Handover>,
        keep: bool,
        reporter: &mut Reporter,
    ) -> Result<(), CliError> {
        let mut command = choice.command(values)?;
        if let Some(handover) = &handover {
            handover.extend(&mut command);
        }
        let launched = viewer::launch(choice, command.clone(), handover);
        let pid = launched.as_ref().ok().map(|launched| launched.pid);
        let state = if launched.is_ok() { "started" } else { "failed" };
        let event = Event::Viewer { command: &command, pid, state, exit_status: None };
        reporter.tell(self.first_session(), &event)?;
        let Launched { viewer, .. } = launched?;
        reporter.set_quiet(viewer.in_terminal());
        self.viewer = Some(viewer);
        self.keep = keep;
        Ok(())
    }

    /// The only one if there is a viewer.
    pub fn first_session(&self) -> SessionId {
        self.handles.first().map_or(SessionId([0; 16]), SessionHandle::id)
    }

    /// Runs until the user, the viewer, or the other side ends it; not at all if it did not begin
    /// well, but then too both sides are told.
    pub async fn run(
        mut self,
        sessions: Sessions,
        begun: Result<(), CliError>,
        reporter: &mut Reporter,
    ) -> Result<(), CliError> {
        let result = match begun {
            Ok(()) => self.until_closed(reporter).await,
            Err(error) => self.wind_down(error, reporter).await,
        };
        self.stop.cancel();
        let reason = if result.is_ok() { "closed" } else { "failed" };
        let left = self.ending.map(|since| STOP.saturating_sub(since.elapsed()).max(LAST_STEP));
        sessions.shutdown(reason, left.unwrap_or(SHUTDOWN)).await;
        if let Some(viewer) = self.viewer.take() {
            viewer.leave().await;
        }
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        let written = reporter.finish();
        result.and(written)
    }

    /// Ends what was granted before something failed. Ctrl-C after a grant is no failure.
    async fn wind_down(
        &mut self,
        error: CliError,
        reporter: &mut Reporter,
    ) -> Result<(), CliError> {
        let interrupted = error.exit == Exit::Interrupted;
        let granted = !self.handles.is_empty();
        self.stop.cancel();
        self.end_all(if interrupted { INTERRUPTED } else { "failed" });
        let over = self.ending.map_or(WIND_DOWN, |since| WIND_DOWN.saturating_sub(since.elapsed()));
        let rest = async {
            while self.open > 0 {
                let Some(happened) = self.events.recv().await else { return };
                if self.tell(&happened, reporter).is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(over, rest).await.is_err() {
            tracing::debug!("a session did not end in time");
        }
        if interrupted && granted { Ok(()) } else { Err(error) }
    }

    async fn until_closed(&mut self, reporter: &mut Reporter) -> Result<(), CliError> {
        let interrupt = self.interrupt.clone();
        let mut asked: Option<&'static str> = None;
        let mut outcome = Ok(());
        while self.open > 0 {
            let next = tokio::select! {
                biased;
                () = interrupt.cancelled(), if asked.is_none() => Next::Close(INTERRUPTED),
                Some(happened) = self.events.recv() => Next::Tell(happened),
                how = viewer_ended(&mut self.viewer), if asked.is_none() => Next::ViewerGone(how),
                () = tokio::time::sleep(LOOK), if !self.pathless.is_empty() => Next::Look,
            };
            match next {
                Next::Tell(happened) => {
                    let closed = self.tell(&happened, reporter)?;
                    if let (Some(reason), None) = (closed, asked) {
                        outcome = self.ended_by_others(happened.session, &reason);
                        // One end is the end of all.
                        asked = Some(INTERRUPTED);
                        self.close_all("closed");
                    }
                }
                Next::Look => self.look().await,
                Next::Close(reason) => {
                    asked = Some(reason);
                    self.end_all(reason);
                }
                Next::ViewerGone(ended) => {
                    if ended.failed.is_some() {
                        self.hear_of_refusal(reporter).await?;
                    }
                    if let Some(end) = self.viewer_gone(ended, reporter)? {
                        // The record says of a session that came to nothing why it did.
                        let refused = self.refused.as_ref().filter(|_| !self.connected);
                        let reason = refused.map_or(VIEWER_EXITED, |refused| refused.code.name());
                        (asked, outcome) = (Some(reason), end);
                        self.close_all(reason);
                    }
                }
            }
        }
        outcome
    }

    /// A viewer that failed may have been faster than the news of why.
    async fn hear_of_refusal(&mut self, reporter: &mut Reporter) -> Result<(), CliError> {
        let deadline = tokio::time::Instant::now() + REFUSAL;
        while !self.connected && self.refused.is_none() && self.open > 0 {
            match tokio::time::timeout_at(deadline, self.events.recv()).await {
                Ok(Some(happened)) => _ = self.tell(&happened, reporter)?,
                Ok(None) | Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Tells that the viewer ended; gives the command's outcome unless the session goes on.
    fn viewer_gone(
        &mut self,
        ended: Ended,
        reporter: &mut Reporter,
    ) -> Result<Option<Result<(), CliError>>, CliError> {
        reporter.set_quiet(false);
        self.viewer = None;
        let Ended { command, pid, exit_status, how, failed } = ended;
        // What kept the viewer from its target says more than what the viewer made of it.
        let refused = self.refused.as_ref().filter(|_| !self.connected);
        let failed = refused.map(|refused| refused.error(&self.computer)).or(failed);
        let event =
            Event::Viewer { command: &command, pid: Some(pid), state: "exited", exit_status };
        reporter.tell(self.first_session(), &event)?;
        if self.keep {
            let how = failed.map_or(how, |error| error.message);
            reporter.remark(&format!("{how}; the session goes on until Ctrl-C"));
            return Ok(None);
        }
        if failed.is_none() {
            reporter.remark(&how);
        }
        Ok(Some(failed.map_or(Ok(()), Err)))
    }

    /// Tells an event; gives the reason if it is a session's last.
    fn tell(
        &mut self,
        happened: &Happened,
        reporter: &mut Reporter,
    ) -> Result<Option<String>, CliError> {
        let closed = match &happened.event {
            SessionEvent::Carrier { .. } => {
                self.pathless.remove(&happened.session);
                None
            }
            SessionEvent::Channel { state: ChannelState::Open, .. } => {
                self.connected = true;
                None
            }
            SessionEvent::Channel { state: ChannelState::Refused, target, reason, .. } => {
                let target = target.clone();
                self.refused = reason.map(|code| Refusal { target, code });
                None
            }
            SessionEvent::Closed { reason, .. } => {
                self.open = self.open.saturating_sub(1);
                reporter.set_quiet(false);
                Some(reason.clone())
            }
            _ => None,
        };
        if let Some(event) = told(&happened.event) {
            reporter.tell_at(happened.session, &event, happened.at)?;
        }
        Ok(closed)
    }

    /// Asks sessions without a carrier why, as long as they can say so.
    async fn look(&mut self) {
        for handle in &self.handles {
            if let Some(said) = self.pathless.get_mut(&handle.id())
                && let Ok(Some(now)) = tokio::time::timeout(LOOK_LIMIT, handle.explain()).await
            {
                *said = Some(now);
            }
        }
    }

    /// The outcome when neither user nor viewer ended a session.
    fn ended_by_others(&self, session: SessionId, reason: &str) -> Result<(), CliError> {
        match reason {
            "no_path" => {
                let said = self.pathless.get(&session).and_then(Option::as_ref);
                Err(no_path::error(self.carrier, said))
            }
            reason => Err(ended::by_others(reason)),
        }
    }

    /// Closes all, and what is left to do is to be done soon.
    fn end_all(&mut self, reason: &str) {
        self.ending.get_or_insert_with(Instant::now);
        self.close_all(reason);
    }

    fn close_all(&self, reason: &str) {
        self.handles.iter().for_each(|handle| handle.close(reason));
    }
}

/// What the user is told of a session's event.
fn told(event: &SessionEvent) -> Option<Event<'_>> {
    Some(match event {
        SessionEvent::Carrier { kind, state, rtt, local, remote, relay, .. } => Event::Carrier {
            kind: kind.as_str(),
            state: state.as_str(),
            rtt: *rtt,
            local: *local,
            remote: *remote,
            relay: relay.as_deref(),
        },
        SessionEvent::Channel { id, target, state, reason, bytes_up, bytes_down, duration } => {
            Event::Channel {
                id: *id,
                target: target.as_ref(),
                state: state.as_str(),
                reason: *reason,
                bytes_up: *bytes_up,
                bytes_down: *bytes_down,
                duration: *duration,
            }
        }
        SessionEvent::Lease { expires_ms } => {
            tracing::debug!(expires_ms, "grant renewed");
            return None;
        }
        SessionEvent::Closed { reason, bytes_up, bytes_down, duration } => Event::Closed {
            reason,
            bytes_up: *bytes_up,
            bytes_down: *bytes_down,
            duration: *duration,
        },
    })
}

async fn viewer_ended(viewer: &mut Option<Viewer>) -> Ended {
    match viewer {
        Some(viewer) => viewer.ended().await,
        None => std::future::pending().await,
    }
}

/// A session whose events end without a last one was lost; that is a last one too.
async fn pass_on(
    session: SessionId,
    mut events: mpsc::Receiver<SessionEvent>,
    to: mpsc::Sender<Happened>,
) {
    let mut closed = false;
    while let Some(event) = events.recv().await {
        closed |= matches!(event, SessionEvent::Closed { .. });
        if to.send(Happened { session, event, at: Instant::now() }).await.is_err() {
            return;
        }
    }
    if !closed {
        let event = SessionEvent::Closed {
            reason: "lost".to_owned(),
            bytes_up: 0,
            bytes_down: 0,
            duration: std::time::Duration::ZERO,
        };
        let _ = to.send(Happened { session, event, at: Instant::now() }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_that_stop_without_a_last_one_end_the_session() {
        let (sender, events) = mpsc::channel(1);
        let (out, mut told) = mpsc::channel(4);
        drop(sender);
        pass_on(SessionId([1; 16]), events, out).await;
        assert!(matches!(
            told.recv().await,
            Some(Happened { event: SessionEvent::Closed { reason, .. }, .. }) if reason == "lost"
        ));
    }
}
