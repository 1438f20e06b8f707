//! Receipts of one session: what both ends sign about each channel, before its first byte and
//! after its last (design of the types: `adit_ledger::receipt`).
//!
//! The two ends exchange them on a channel of their own, the session's first, which leads nowhere
//! but here. Bytes of any other channel are delivered to the local socket only once this end's
//! open receipt is durable and the other end's has come and tells the same story: so that neither
//! end is served without having signed. Both travel with the channel's own opening, so this costs
//! no round trip, and the fsync runs beside it.
//!
//! Must never release a channel for which one of the two is missing.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use adit_core::resume::{ChannelEnd, Deliverable, Resume};
use adit_ledger::{
    Hash, Receipt,
    receipt::{Close, Role as Signer, Statement},
};
use adit_net::identity::DeviceIdentity;
use adit_protocol::{
    code::ChannelCode,
    grant::Grant,
    ids::ChannelId,
    limits::MAX_CHANNELS_PER_SESSION,
    target::{Target, Transport},
    ticket::Role,
};
use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::{
    keeper::Keeper,
    link::ControlLink,
    shared::{ChannelTap, Shared},
};

/// Where the receipts' own channel leads: a name that never resolves (RFC 6761 section 6.4).
const SERVICE_HOST: &str = "receipts.adit.invalid";
const SERVICE_PORT: u16 = 1;
/// Bytes of one receipt on the wire.
const MAX_LINE: usize = 8 * 1024;
/// Bytes of receipts that wait for the peer.
const MAX_WAITING: usize = 4 * 1024 * 1024;
/// How often it is looked whether the last ones were delivered.
const LOOK: Duration = Duration::from_millis(5);
/// Channels remembered, live and over.
const MAX_ENTRIES: usize = 4 * MAX_CHANNELS_PER_SESSION;

/// The target of the receipts' own channel.
pub(crate) fn service_target() -> Option<Target> {
    Target::new(SERVICE_HOST, SERVICE_PORT, Transport::Tcp).ok()
}

/// How far a channel's receipts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Release {
    Waiting,
    Released,
    Refused,
}

struct Entry {
    /// As this end knows it; `None` while only the peer's receipt has come.
    target: Option<String>,
    own_durable: bool,
    /// The target that the peer's open receipt names.
    peer: Option<String>,
    closed: bool,
    /// The own close receipt, until the peer's has come.
    unmatched: Option<String>,
    peer_closed: bool,
    release: watch::Sender<Release>,
}

#[derive(Default)]
struct State {
    channels: BTreeMap<ChannelId, Entry>,
    outgoing: VecDeque<Bytes>,
    waiting: usize,
    /// The channel that carries receipts.
    service: Option<ChannelId>,
}

/// What every receipt of the session says.
struct Facts {
    role: Role,
    session: [u8; 16],
    grant_hash: Hash,
    handshake_hash: Hash,
    grant: Grant,
}

/// The receipts of one session. Clones of the `Arc` share it.
pub(crate) struct Receipts {
    facts: Facts,
    identity: Arc<DeviceIdentity>,
    keeper: Arc<Keeper>,
    control: ControlLink,
    tasks: TaskTracker,
    state: Mutex<State>,
    /// Something is to be sent, or has come.
    news: Notify,
    progress: Notify,
}

impl Receipts {
    pub(crate) fn new(
        role: Role,
        grant: &Grant,
        (grant_hash, handshake_hash): ([u8; 32], [u8; 32]),
        (identity, keeper): (Arc<DeviceIdentity>, Arc<Keeper>),
        (control, tasks): (ControlLink, TaskTracker),
    ) -> Arc<Self> {
        let facts = Facts {
            role,
            session: grant.session.0,
            grant_hash: Hash(grant_hash),
            handshake_hash: Hash(handshake_hash),
            grant: grant.clone(),
        };
        let state = Mutex::default();
        let (news, progress) = (Notify::new(), Notify::new());
        Arc::new(Self { facts, identity, keeper, control, tasks, state, news, progress })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The channel that carries receipts; `false` if there is one already.
    pub(crate) fn set_service(&self, id: ChannelId) -> bool {
        let service = &mut self.state().service;
        let first = service.is_none();
        service.get_or_insert(id);
        first
    }

    /// Whether a channel carries receipts: nobody is told of it.
    pub(crate) fn is_service(&self, id: ChannelId) -> bool {
        self.state().service == Some(id)
    }

    fn sign(&self, channel: ChannelId, target: String, close: Option<Close>) -> String {
        let grant = &self.facts.grant;
        let statement = Statement {
            role: match self.facts.role {
                Role::Console => Signer::Console,
                Role::Agent => Signer::Agent,
            },
            session: self.facts.session,
            grant_hash: self.facts.grant_hash,
            handshake_hash: self.facts.handshake_hash,
            console: grant.console.fingerprint(),
            agent: grant.agent.fingerprint(),
            redirector: grant.redirector.clone(),
            target,
            channel: channel.0,
            time_ms: self.control.last().map_or(0, |(_, clock)| clock.now_ms()),
            close,
        };
        Receipt::sign(&self.identity.signing, statement).to_line()
    }

    /// A channel begins at this end: signs, sends, and makes it durable meanwhile.
    pub(crate) fn begin(self: &Arc<Self>, id: ChannelId, target: &Target) {
        let text = target.to_string();
        let line = self.sign(id, text.clone(), None);
        {
            let mut state = self.state();
            let entry = state.entry(id);
            entry.target = Some(text);
            state.send(&line);
            state.judge(id);
        }
        self.news.notify_one();
        let durable = self.keeper.receipt(line);
        let receipts = self.clone();
        self.tasks.spawn(async move {
            let durable = durable.await.unwrap_or(false);
            let mut state = receipts.state();
            if let Some(entry) = state.channels.get_mut(&id) {
                if durable {
                    entry.own_durable = true;
                } else {
                    entry.release.send_replace(Release::Refused);
                }
                state.judge(id);
            }
        });
    }

    /// Waits until bytes of the channel may be delivered here.
    pub(crate) async fn released(&self, id: ChannelId) -> Result<(), ChannelCode> {
        let mut release = match self.state().channels.get(&id) {
            Some(entry) => entry.release.subscribe(),
            None => return Err(ChannelCode::Receipt),
        };
        let decided = release.wait_for(|release| *release != Release::Waiting).await;
        match decided.as_deref() {
            Ok(Release::Released) => Ok(()),
            _ => Err(ChannelCode::Receipt),
        }
    }

    /// A channel that began here is over.
    pub(crate) fn end(&self, id: ChannelId, end: &ChannelEnd) {
        let target = {
            let mut state = self.state();
            let Some(entry) = state.channels.get_mut(&id) else { return };
            if entry.closed {
                return;
            }
            entry.closed = true;
            entry.target.clone()
        };
        let Some(target) = target else { return };
        let stream = end.target.transport() == Transport::Tcp;
        let close = Close {
            sent: end.bytes_given,
            // Datagrams are never acknowledged.
            acknowledged: if stream { end.bytes_sent } else { 0 },
            delivered: end.bytes_received,
            complete: stream && end.code.is_none() && !end.refused,
            reason: end.code.map_or("closed", ChannelCode::name).to_owned(),
        };
        let line = self.sign(id, target, Some(close));
        let mut state = self.state();
        state.send(&line);
        if let Some(entry) = state.channels.get_mut(&id).filter(|entry| !entry.peer_closed) {
            entry.unmatched = Some(line.clone());
        }
        state.forget_old();
        drop(state);
        self.news.notify_one();
        // Nobody waits for it but the end of the program.
        drop(self.keeper.receipt(line));
    }

    /// Channels that are live here.
    pub(crate) fn live(&self) -> Vec<ChannelId> {
        let state = self.state();
        let live = |entry: &Entry| entry.target.is_some() && !entry.closed;
        state.channels.iter().filter(|(_, entry)| live(entry)).map(|(id, _)| *id).collect()
    }

    /// Waits until the peer's close receipts have come for all channels that are over here, and the
    /// peer has all of ours; or nothing more can come.
    pub(crate) async fn settled(&self, shared: &Shared) {
        loop {
            let progress = self.progress.notified();
            let (service, owed) = {
                let state = self.state();
                let open = |entry: &Entry| entry.closed && !entry.peer_closed;
                let waits = state.channels.values().any(open) || !state.outgoing.is_empty();
                (state.service, waits)
            };
            let Some(service) = service else { return };
            let look =
                |resume: &mut Resume, _| (resume.is_live(service), resume.is_delivered(service));
            let (live, delivered) = shared.with(look);
            if !live || (!owed && delivered) {
                return;
            }
            tokio::select! {
                () = progress => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Own close receipts of channels that the peer opened, too, and whose close has not come.
    pub(crate) fn unmatched(&self) -> Vec<String> {
        let state = self.state();
        let known = state.channels.values().filter(|entry| entry.peer.is_some());
        known.filter_map(|entry| entry.unmatched.clone()).collect()
    }

    /// The program's files.
    pub(crate) fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// A receipt of the other end. An error is a story that cannot be true.
    fn handle(&self, line: &[u8]) -> Result<(), &'static str> {
        let receipt = Receipt::parse(line).map_err(|_| "it cannot be read")?;
        receipt.verify().map_err(|_| "it is not signed by the other end")?;
        let (said, facts) = (&receipt.statement, &self.facts);
        let other = match facts.role {
            Role::Console => Signer::Agent,
            Role::Agent => Signer::Console,
        };
        let grant = &facts.grant;
        let same = said.role == other
            && said.session == facts.session
            && said.grant_hash == facts.grant_hash
            && said.handshake_hash == facts.handshake_hash
            && said.console == grant.console.fingerprint()
            && said.agent == grant.agent.fingerprint()
            && said.redirector == grant.redirector;
        if !same {
            return Err("it tells of another session, grant, handshake or device");
        }
        let id = ChannelId(said.channel);
        let mut state = self.state();
        if state.channels.len() >= MAX_ENTRIES && !state.channels.contains_key(&id) {
            return Err("there are too many");
        }
        let entry = state.entry(id);
        match &said.close {
            None if entry.peer.is_some() => return Err("it came twice"),
            None => entry.peer = Some(said.target.clone()),
            Some(_) if entry.peer.as_ref() != Some(&said.target) || entry.peer_closed => {
                return Err("its channel was never opened, or led elsewhere");
            }
            Some(_) => {
                entry.peer_closed = true;
                entry.unmatched = None;
            }
        }
        if entry.target.as_ref().is_some_and(|target| *target != said.target) {
            return Err("it names another target");
        }
        state.judge(id);
        state.forget_old();
        drop(state);
        self.progress.notify_waiters();
        // The other end's word is kept beside one's own.
        drop(self.keeper.receipt(receipt.to_line()));
        Ok(())
    }

    /// Carries receipts on their channel until it is over. The text says what was wrong.
    pub(crate) async fn serve(
        self: Arc<Self>,
        shared: Arc<Shared>,
        tap: ChannelTap,
    ) -> Result<(), &'static str> {
        let ChannelTap { id, wake, mut progress } = tap;
        let last = progress.clone();
        let mut incoming = BytesMut::new();
        let exchange = async {
            loop {
                self.send(&shared, id);
                let taken = shared.with(|resume, _| resume.take_deliverable(id));
                match taken {
                    Some(Deliverable::Bytes(bytes)) => {
                        incoming.extend_from_slice(&bytes);
                        shared.with(|resume, now| resume.handle_delivered(id, bytes.len(), now));
                        self.read(&mut incoming)?;
                    }
                    Some(Deliverable::Fin) => return Err("the other end stopped sending them"),
                    None => tokio::select! {
                        () = wake.deliver.notified() => {}
                        () = wake.capacity.notified() => {}
                        () = self.news.notified() => {}
                    },
                }
            }
        };
        tokio::select! {
            biased;
            () = crate::local::wait_over(&mut progress) => match last.borrow().code() {
                Some(ChannelCode::SessionEnded) => Ok(()),
                _ => Err("the other end takes none"),
            },
            wrong = exchange => wrong,
        }
    }

    fn send(&self, shared: &Shared, id: ChannelId) {
        let mut state = self.state();
        while let Some(next) = state.outgoing.front_mut() {
            let room = shared.with(|resume, _| resume.local_capacity(id));
            if room == 0 {
                return;
            }
            let part = next.split_to(room.min(next.len()));
            if next.is_empty() {
                state.outgoing.pop_front();
            }
            state.waiting = state.waiting.saturating_sub(part.len());
            shared.with(|resume, now| resume.handle_local_data(id, part, now));
        }
    }

    fn read(&self, incoming: &mut BytesMut) -> Result<(), &'static str> {
        while let Some(head) = incoming.first_chunk::<2>() {
            let len = usize::from(u16::from_be_bytes(*head));
            if len > MAX_LINE {
                return Err("it is too long");
            }
            if incoming.len() < 2 + len {
                return Ok(());
            }
            let frame = incoming.split_to(2 + len);
            self.handle(frame.get(2..).unwrap_or_default())?;
        }
        Ok(())
    }
}

impl State {
    fn entry(&mut self, id: ChannelId) -> &mut Entry {
        self.channels.entry(id).or_insert_with(|| Entry {
            target: None,
            own_durable: false,
            peer: None,
            closed: false,
            unmatched: None,
            peer_closed: false,
            release: watch::Sender::new(Release::Waiting),
        })
    }

    /// Releases a channel whose two open receipts are there and agree.
    fn judge(&mut self, id: ChannelId) {
        let Some(entry) = self.channels.get(&id) else { return };
        let agree = match (&entry.target, &entry.peer) {
            (Some(own), Some(peer)) => own == peer,
            _ => return,
        };
        let release = match (agree, entry.own_durable) {
            (true, true) => Release::Released,
            (true, false) => return,
            (false, _) => Release::Refused,
        };
        entry.release.send_if_modified(|now| {
            *now == Release::Waiting && {
                *now = release;
                true
            }
        });
    }

    fn send(&mut self, line: &str) {
        let Ok(len) = u16::try_from(line.len()) else { return };
        if self.waiting > MAX_WAITING {
            warn!("the other end takes no receipts");
            return;
        }
        let mut frame = BytesMut::with_capacity(2 + line.len());
        frame.put_u16(len);
        frame.put_slice(line.as_bytes());
        self.waiting += frame.len();
        self.outgoing.push_back(frame.freeze());
    }

    /// Channels that both ends have closed need not be remembered for ever.
    fn forget_old(&mut self) {
        if self.channels.len() > MAX_ENTRIES / 2 {
            self.channels.retain(|_, entry| !(entry.closed && entry.peer_closed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_released_by_both_ends_receipts_that_agree_and_by_nothing_less() {
        const ID: ChannelId = ChannelId(4);
        let of = |own: Option<&str>, peer: Option<&str>, own_durable| {
            let mut state = State::default();
            let entry = state.entry(ID);
            entry.target = own.map(str::to_owned);
            entry.peer = peer.map(str::to_owned);
            entry.own_durable = own_durable;
            state.judge(ID);
            *state.entry(ID).release.borrow()
        };
        let (a, b) = (Some("127.0.0.1:22"), Some("127.0.0.1:80"));
        for (own, peer, durable, expected) in [
            (a, a, true, Release::Released),
            (a, a, false, Release::Waiting),
            (a, None, true, Release::Waiting),
            (None, a, true, Release::Waiting),
            (None, None, false, Release::Waiting),
            (a, b, true, Release::Refused),
            (a, b, false, Release::Refused),
        ] {
            assert_eq!(of(own, peer, durable), expected, "{own:?} {peer:?} {durable}");
        }
        // What was refused stays so, whatever comes afterwards.
        let mut state = State::default();
        let entry = state.entry(ID);
        (entry.target, entry.own_durable) = (a.map(str::to_owned), true);
        entry.release.send_replace(Release::Refused);
        entry.peer = a.map(str::to_owned);
        state.judge(ID);
        assert_eq!(*state.entry(ID).release.borrow(), Release::Refused);
    }
}
