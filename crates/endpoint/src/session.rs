//! A program's handle on one session.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use adit_core::resume::Resume;
use adit_protocol::{
    code::ChannelCode,
    grant::Grant,
    ids::{ChannelId, SessionId},
    target::Target,
    wire,
};
use bytes::Bytes;
use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    driver::Message,
    events::{SessionEvent, SessionInfo, Totals},
    explain::Explanation,
    local::{self, Watch},
    receipts::Receipts,
    shared::{ChannelTap, Progress, Shared},
};

/// A session that was granted.
pub struct Session {
    /// To use and end it.
    pub handle: SessionHandle,
    /// What was granted.
    pub grant: Grant,
    /// Console: how long the mediator took to make the audit record durable.
    pub audit: Duration,
    /// Console, at first contact: number and time (milliseconds since 1970) of the entry in the
    /// audit log that the agent's enrolment left, which was proved.
    pub enrolment: Option<(u64, u64)>,
    /// What happens in it.
    pub events: mpsc::Receiver<SessionEvent>,
}

pub(crate) struct HandleInner {
    pub(crate) grant: Grant,
    pub(crate) receipts: Arc<Receipts>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) messages: mpsc::Sender<Message>,
    pub(crate) totals: watch::Receiver<Totals>,
    pub(crate) started: Instant,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
    pub(crate) over: CancellationToken,
}

/// Uses and ends a session. Clones are the same session.
#[derive(Clone)]
pub struct SessionHandle(pub(crate) Arc<HandleInner>);

impl SessionHandle {
    /// Which session.
    pub fn id(&self) -> SessionId {
        self.0.grant.session
    }

    /// Console: asks for a channel. Bytes may flow before the target has answered.
    pub async fn open_tcp(&self, target: Target) -> Result<PendingChannel, ChannelCode> {
        let tap = self.open(target)?;
        Ok(PendingChannel { session: self.clone(), tap: Some(tap) })
    }

    /// Console: asks for a UDP flow.
    pub async fn open_udp(&self, target: Target) -> Result<UdpFlow, ChannelCode> {
        let tap = self.open(target)?;
        let incoming = self.0.shared.register_flow(tap.id);
        Ok(UdpFlow { session: self.clone(), tap, incoming })
    }

    fn open(&self, target: Target) -> Result<ChannelTap, ChannelCode> {
        if self.0.cancel.is_cancelled() {
            return Err(ChannelCode::SessionEnded);
        }
        if !self.0.grant.covers(&target) {
            return Err(ChannelCode::NotGranted);
        }
        let open = |resume: &mut Resume, now| resume.open(target.clone(), now).ok();
        let tap = self.0.shared.register(open).ok_or(ChannelCode::TooMany)?;
        self.0.receipts.begin(tap.id, &target);
        Ok(tap)
    }

    /// Ends the session on both sides.
    pub fn close(&self, reason: &str) {
        self.tell(Message::End(reason.to_owned()));
    }

    /// How it is doing.
    pub fn info(&self) -> SessionInfo {
        let totals = *self.0.totals.borrow();
        let grant = &self.0.grant;
        SessionInfo {
            id: grant.session,
            user: grant.user.clone(),
            redirector: grant.redirector.clone(),
            targets: grant.targets.clone(),
            carrier: totals.carrier,
            bytes_up: totals.bytes_up,
            bytes_down: totals.bytes_down,
            started: self.0.started,
        }
    }

    /// What its paths look like; `None` if it is over.
    pub async fn explain(&self) -> Option<Explanation> {
        let (answer, explanation) = oneshot::channel();
        self.0.messages.send(Message::Explain(answer)).await.ok()?;
        explanation.await.ok()
    }

    /// Waits until the session is over and everything about it was said.
    pub async fn ended(&self) {
        self.0.over.cancelled().await;
    }

    pub(crate) fn tell(&self, message: Message) {
        if let Err(mpsc::error::TrySendError::Full(Message::End(_))) =
            self.0.messages.try_send(message)
        {
            // The driver is drowned in messages; the end must get through.
            self.0.cancel.cancel();
        }
    }

    pub(crate) fn set_window_limit(&self, bytes: u64) {
        self.0.shared.with(|resume, _| resume.set_window_limit(bytes));
    }

    pub(crate) fn live(&self) -> wire::LiveSession {
        let totals = *self.0.totals.borrow();
        wire::LiveSession {
            session_id: self.id().to_bytes(),
            bytes_up: totals.bytes_up,
            bytes_down: totals.bytes_down,
            carrier: totals.carrier.map(|c| c.as_str().to_owned()).unwrap_or_default(),
        }
    }
}

/// A TCP channel without its local connection yet. Dropping it ends the channel.
pub struct PendingChannel {
    session: SessionHandle,
    tap: Option<ChannelTap>,
}

impl PendingChannel {
    /// Which channel.
    pub fn id(&self) -> ChannelId {
        self.tap.as_ref().map_or(ChannelId(0), |t| t.id)
    }

    /// Waits until the agent has connected the target.
    pub async fn connected(&mut self) -> Result<(), ChannelCode> {
        let Some(tap) = &mut self.tap else { return Err(ChannelCode::Unknown) };
        let progress = tap.progress.wait_for(|p| *p != Progress::Opening).await;
        match progress.as_deref() {
            Ok(Progress::Open) => Ok(()),
            Ok(over) => Err(over.code().unwrap_or(ChannelCode::SessionEnded)),
            Err(_) => Err(ChannelCode::SessionEnded),
        }
    }

    /// Hands over the local connection.
    pub fn attach(self, stream: TcpStream) {
        self.run(stream, None);
    }

    /// The same; what the local program sends is looked at on its way.
    pub fn attach_watched(self, stream: TcpStream, watch: Box<dyn Watch>) {
        self.run(stream, Some(watch));
    }

    fn run(mut self, stream: TcpStream, watch: Option<Box<dyn Watch>>) {
        let Some(tap) = self.tap.take() else { return };
        let inner = self.session.0.clone();
        let (receipts, id) = (inner.receipts.clone(), tap.id);
        let ready = async move { receipts.released(id).await };
        let run = local::run(inner.shared.clone(), tap, stream, watch, ready);
        let cancel = inner.cancel.clone();
        inner.tasks.spawn(async move { cancel.run_until_cancelled(run).await });
    }
}

impl Drop for PendingChannel {
    fn drop(&mut self) {
        if let Some(tap) = self.tap.take() {
            self.session.0.shared.with(|resume, _| resume.reset(tap.id, ChannelCode::LocalReset));
        }
    }
}

/// A UDP flow. Dropping it ends the flow.
pub struct UdpFlow {
    session: SessionHandle,
    tap: ChannelTap,
    incoming: mpsc::Receiver<Bytes>,
}

impl UdpFlow {
    /// Which channel.
    pub fn id(&self) -> ChannelId {
        self.tap.id
    }

    /// Sends a datagram; like in any network it may get lost.
    pub fn send(&self, datagram: Bytes) {
        let id = self.tap.id;
        self.session.0.shared.with(|resume, now| resume.handle_local_datagram(id, datagram, now));
    }

    /// The next datagram; `None` when the flow is over.
    pub async fn recv(&mut self) -> Option<Bytes> {
        self.session.0.receipts.released(self.tap.id).await.ok()?;
        self.incoming.recv().await
    }
}

impl Drop for UdpFlow {
    fn drop(&mut self) {
        let id = self.tap.id;
        self.session.0.shared.with(|resume, _| resume.reset(id, ChannelCode::Idle));
    }
}
