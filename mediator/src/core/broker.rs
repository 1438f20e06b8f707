//! The broker: who is connected, which sessions there are, and what each may do next.
//!
//! One `handle_*` with the time, then drain `poll_output` and `poll_transmit`, then sleep until
//! `poll_timeout`. Must never grant, offer or give a ticket before the record of it is durable.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use adit_protocol::{
    code::failure,
    ids::{ComputerId, RelayId, SessionId},
    keys::PublicKey,
    limits::{LEASE, OFFLINE_GRACE, OPEN_TIMEOUT},
    ticket::Role,
    wire,
};
use bytes::Bytes;

use super::{
    ending::{ENDED_BY_ADMINISTRATOR, EndedBy, Ending, PERMISSION_WITHDRAWN},
    events,
    relays::{Registered, RelayState},
    session::{Phase, Session, lease_ms},
    tally::Tally,
    types::*,
};

/// Sessions of one console at a time.
pub(crate) const MAX_SESSIONS_PER_CONSOLE: usize = 128;
/// Sessions of the whole mediator. As all these bounds, of those that are not over.
pub(crate) const MAX_SESSIONS: usize = 200_000;
/// Sessions of one user, on whatever number of consoles: nobody takes all there are (R16).
pub(crate) const MAX_SESSIONS_PER_USER: usize = MAX_SESSIONS / 8;
/// Sessions of one partner's users, however many it has.
pub(crate) const MAX_SESSIONS_PER_PARTNER: usize = MAX_SESSIONS / 4;
/// A decision may be this old when it gets here; withdrawals are remembered as long.
const DECISION_LIFE_MS: u64 = 60_000;
/// Withdrawals remembered.
const MAX_WITHDRAWN: usize = 4096;
/// Relays named in a welcome, which must fit into a frame.
const MAX_RELAYS_TOLD: usize = 200;
/// A lease's end is judged this much later, since the last renewal may be under way.
const LEASE_SLACK: Duration = Duration::from_secs(15);
/// A record of an end that could not be written is tried again after this long.
const RECORD_RETRY: Duration = Duration::from_secs(2);

/// What an audit record stands for.
#[derive(Debug)]
pub(super) enum Purpose {
    Grant(SessionId),
    Refuse(RequestId, Refusal),
    End {
        session: SessionId,
        request: Option<RequestId>,
    },
    Done(RequestId),
    /// Records that nobody waits for.
    Nothing,
    Lease(RequestId, adit_protocol::grant::Lease),
}

/// The state machine.
#[derive(Debug, Default)]
pub(crate) struct Broker {
    pub(super) devices: BTreeMap<ConnectionId, Device>,
    pub(super) agents: BTreeMap<ComputerId, ConnectionId>,
    pub(super) relays: BTreeMap<RelayId, Registered>,
    /// How often operators changed what holds for a relay: one that is just connecting was judged
    /// by what held before.
    relay_settings: BTreeMap<RelayId, u64>,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    by_console: BTreeMap<PublicKey, BTreeSet<SessionId>>,
    /// How many each user and each partner has.
    pub(super) tally: Tally,
    pub(super) by_computer: BTreeMap<ComputerId, BTreeSet<SessionId>>,
    /// Rights withdrawn of late, and when: a decision that was under way does not know of them,
    /// and its session was not there yet to be ended.
    withdrawn: VecDeque<(Affected, u64)>,
    timers: BTreeSet<(Duration, SessionId)>,
    /// Of the rules that hold.
    pub(super) generation: u64,
    /// Sessions whose right must be judged anew.
    pub(super) reviews: BTreeSet<SessionId>,
    audits: BTreeMap<AuditId, Purpose>,
    next_audit: u64,
    outputs: VecDeque<Output>,
    pub(super) transmits: VecDeque<Transmit>,
}

impl Broker {
    /// What to make durable or answer.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What to send.
    pub(crate) fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// When to call [`Broker::handle_timeout`].
    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Whether a computer's agent is connected.
    pub(crate) fn is_online(&self, computer: ComputerId) -> bool {
        self.agents.contains_key(&computer)
    }

    /// The connection of a computer's agent.
    pub(crate) fn agent_connection(&self, computer: ComputerId) -> Option<ConnectionId> {
        self.agents.get(&computer).copied()
    }

    /// Registered relays, as clients learn of them.
    pub(crate) fn relay_infos(&self) -> Vec<wire::RelayInfo> {
        self.relays.values().take(MAX_RELAYS_TOLD).map(|relay| relay.info.clone()).collect()
    }

    /// Sessions that are open.
    pub(crate) fn open_sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values().filter(|session| session.is_open())
    }

    /// An open session.
    pub(crate) fn open_session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id).filter(|session| session.is_open())
    }

    /// A session that was open when the mediator stopped.
    pub(crate) fn handle_adopted(&mut self, row: SessionRow, now: Now) {
        let session = Session::adopted(row, now);
        let id = session.id;
        self.insert(session);
        // Rules may have changed, and ends come, while no mediator ran.
        self.reviews.insert(id);
        self.set_lease_timer(id);
    }

    /// A device proved who it is. The newest connection of an agent or relay wins; a relay that was
    /// judged by another setting than holds now has to connect anew.
    pub(crate) fn handle_connected(&mut self, id: ConnectionId, device: Device, now: Now) {
        let older = match &device {
            Device::Agent { computer, .. } => self.agents.insert(*computer, id),
            Device::Relay { id: relay, setting, .. } if self.relay_setting(*relay) != *setting => {
                self.transmits.push_back(Transmit::Close { to: id });
                return;
            }
            Device::Relay { id: relay, identity, info, drains, .. } => {
                let (identity, info, drains) = (*identity, info.clone(), *drains);
                let since = now.mono;
                let new = Registered { connection: id, identity, info, load: 0, since, drains };
                self.relays.insert(*relay, new).map(|relay| relay.connection)
            }
            Device::Console { .. } => None,
        };
        self.devices.insert(id, device.clone());
        if let Some(older) = older {
            self.devices.remove(&older);
            self.transmits.push_back(Transmit::Close { to: older });
        }
        for session in self.ended_of(&device) {
            self.push_revocation(session, now);
        }
    }

    /// A connection is gone.
    pub(crate) fn handle_disconnected(&mut self, id: ConnectionId, now: Now) {
        let Some(device) = self.devices.remove(&id) else { return };
        match &device {
            Device::Agent { computer, .. } => {
                self.agents.remove(computer);
                self.offers_lost(*computer, id, now);
            }
            Device::Relay { id: relay, .. } => {
                self.relays.remove(relay);
            }
            Device::Console { identity, .. } => self.console_gone(*identity, id, now),
        }
    }

    /// Someone wants a session. Everything about the attempt was checked and decided; what is
    /// left to find out is whether the agent is there.
    pub(crate) fn handle_open(&mut self, attempt: Attempt, now: Now) {
        let checked = attempt.verdict.clone().and_then(|allowed| {
            let refuse = |code, text: &str| Err((Refusal::new(code, text), allowed.rule.clone()));
            let Some(place) = attempt.place.clone() else {
                return refuse(failure::NO_SUCH_COMPUTER, "there is no such computer");
            };
            if self.was_withdrawn(&attempt, &place) {
                return refuse(failure::NOT_PERMITTED, "the right to this session was withdrawn");
            }
            let of_console = self.live_of_console(&attempt.who.device);
            if self.sessions.contains_key(&attempt.session) {
                refuse(failure::BAD_REQUEST, "the session id was used before")
            } else if of_console >= MAX_SESSIONS_PER_CONSOLE
                || self.tally.is_full(&attempt.who.account_id, &attempt.who.partner_id)
            {
                refuse(failure::BUSY, "too many sessions are open")
            } else if !self.is_online(place.computer_id) {
                refuse(failure::AGENT_OFFLINE, "the computer is not online")
            } else {
                Ok((place, allowed))
            }
        });
        let partner = attempt.who.partner_id.clone();
        let requested = events::requested(&attempt);
        match checked {
            Err((refusal, rule)) => {
                let refused = events::refused_attempt(&attempt, &refusal, &rule);
                let purpose = Purpose::Refuse(attempt.request, refusal);
                self.audit(partner, vec![requested, refused], Effect::None, purpose);
            }
            Ok((place, allowed)) => {
                let session = Session::new(&attempt, place, allowed, now);
                let row = session.row(now.unix_ms.saturating_add(lease_ms()));
                let events = vec![requested, events::granted(&session)];
                let id = session.id;
                self.insert(session);
                self.review_if_older(id, attempt.generation);
                self.audit(partner, events, Effect::Begin(Box::new(row)), Purpose::Grant(id));
            }
        }
    }

    /// Records are durable, in the order they were given.
    pub(crate) fn handle_audit_committed(&mut self, id: AuditId, last: Recorded, now: Now) {
        match self.audits.remove(&id) {
            None | Some(Purpose::Nothing) => {}
            Some(Purpose::Grant(session)) => self.offer(session, last, now),
            Some(Purpose::Refuse(request, refusal)) => {
                self.reply(request, Reply::Refused(refusal));
            }
            Some(Purpose::Done(request)) => self.reply(request, Reply::Done),
            Some(Purpose::Lease(request, lease)) => self.reply(request, Reply::Renewed(lease)),
            Some(Purpose::End { session, request }) => {
                if let Some(request) = request {
                    self.reply(request, Reply::Done);
                }
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.revocation.unrecorded = false;
                }
                // Everybody was told when it ended, and is told again when nothing is heard.
                self.settle_if_ended(session, now);
            }
        }
    }

    /// Records could not be made durable: nothing is granted. Ends are recorded later.
    pub(crate) fn handle_audit_failed(&mut self, id: AuditId, now: Now) {
        let text = "the audit record could not be written; nothing was granted";
        let refusal = Refusal::new(failure::AUDIT_UNAVAILABLE, text);
        match self.audits.remove(&id) {
            None | Some(Purpose::Nothing) => {}
            Some(Purpose::Grant(session)) => {
                if let Some(Phase::Auditing { request, .. }) =
                    self.sessions.get(&session).map(|session| &session.phase)
                {
                    let request = *request;
                    self.reply(request, Reply::Refused(refusal));
                }
                self.forget(session);
            }
            Some(
                Purpose::Refuse(request, _) | Purpose::Done(request) | Purpose::Lease(request, _),
            ) => self.reply(request, Reply::Refused(refusal)),
            Some(Purpose::End { session, request }) => {
                if let Some(request) = request {
                    self.reply(request, Reply::Done);
                }
                self.set_timer(session, now.mono + RECORD_RETRY);
            }
        }
    }

    fn offer(&mut self, id: SessionId, recorded: Recorded, now: Now) {
        let Some(session) = self.sessions.get(&id) else { return };
        let Phase::Auditing { request, asked, noise_msg1 } = &session.phase else { return };
        let (request, asked, noise_msg1) = (*request, *asked, noise_msg1.clone());
        let Some(agent) = self.agents.get(&session.place.computer_id).copied() else {
            let text = "the computer went offline";
            let refusal = Refusal::new(failure::AGENT_OFFLINE, text);
            return self.refuse(id, request, refusal, false, now);
        };
        let waited = now.mono.saturating_sub(asked).as_micros();
        let audit_us = u32::try_from(waited).unwrap_or(u32::MAX);
        let grant = Box::new(session.grant(&recorded, now));
        let (console, seen) = (session.console, session.seen.clone());
        let enrolment = session.enrolment;
        let relays = self.tickets(id, Role::Agent, &[], now);
        self.transmits.push_back(Transmit::Offer {
            to: agent,
            session: id,
            grant: grant.clone(),
            noise_msg1,
            relays,
            console,
            entry: recorded.line,
            seen,
            enrolment,
        });
        let relays = self.tickets(id, Role::Console, &[], now);
        if let Some(to) = console.filter(|_| !relays.is_empty()) {
            self.transmits.push_back(Transmit::Tickets { to, session: id, relays });
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            session.lease = now.mono + LEASE;
            session.offered_on = Some(agent);
            session.phase = Phase::Offered { request, agent, grant, audit_us };
        }
        self.set_timer(id, now.mono + OPEN_TIMEOUT);
    }

    /// The agent answered an offer, or the connection failed under it.
    pub(crate) fn handle_answer(
        &mut self,
        id: SessionId,
        answer: Result<Bytes, Refusal>,
        now: Now,
    ) {
        let Some(session) = self.sessions.get(&id) else { return };
        let Phase::Offered { request, agent, grant, audit_us } = &session.phase else { return };
        let (request, agent, grant, audit_us) = (*request, *agent, grant.clone(), *audit_us);
        match answer {
            Err(refusal) => {
                // Its own refusal is certain; silence is not.
                let uncertain = [failure::AGENT_TIMEOUT, failure::AGENT_OFFLINE, failure::INTERNAL];
                let agent_may_serve = uncertain.contains(&refusal.code);
                self.refuse(id, request, refusal, agent_may_serve, now);
            }
            Ok(noise_msg2) => {
                let relays = self.tickets(id, Role::Console, &[], now);
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.phase = Phase::Open;
                }
                self.set_lease_timer(id);
                self.reply(request, Reply::Granted { grant, noise_msg2, relays, audit_us, agent });
            }
        }
    }

    /// A session ends before it began; its record was already written as granted. The agent may
    /// have accepted without our hearing of it: then it must be told.
    fn refuse(
        &mut self,
        id: SessionId,
        request: RequestId,
        refusal: Refusal,
        agent_may_serve: bool,
        now: Now,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let event = events::refused(session, &refusal);
        let (partner, reason) = (session.who.partner_id.clone(), refusal.code.to_owned());
        session.phase = Phase::Ended { ending: Ending::decided(&reason) };
        let effect =
            Effect::End { session: id, reason, bytes_up: 0, bytes_down: 0, relay_bytes: 0 };
        self.audit(partner, vec![event], effect, Purpose::Refuse(request, refusal));
        self.begin_revocation(id, None, now);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.revocation.agent = agent_may_serve;
            session.revocation.console = false;
        }
        self.push_revocation(id, now);
    }

    /// Ends an open session, once. `told_by` is the end that knows already.
    pub(super) fn end(
        &mut self,
        id: SessionId,
        ending: Ending,
        duration_ms: Option<u64>,
        told_by: Option<ConnectionId>,
        request: Option<RequestId>,
        now: Now,
    ) {
        let Some(session) = self.sessions.get_mut(&id).filter(|session| session.is_open()) else {
            return;
        };
        session.phase = Phase::Ended { ending };
        self.begin_revocation(id, told_by, now);
        self.record_end(id, duration_ms, request, now);
        self.push_revocation(id, now);
    }

    fn record_end(
        &mut self,
        id: SessionId,
        duration_ms: Option<u64>,
        request: Option<RequestId>,
        now: Now,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Phase::Ended { ending } = &session.phase else { return };
        let lasted = now.mono.saturating_sub(session.started).as_millis();
        let duration = duration_ms.unwrap_or(u64::try_from(lasted).unwrap_or(u64::MAX));
        let event = events::ended(session, ending, duration);
        let effect = Effect::End {
            session: id,
            reason: ending.reason.clone(),
            bytes_up: session.bytes.0,
            bytes_down: session.bytes.1,
            relay_bytes: session.relayed(),
        };
        let partner = session.who.partner_id.clone();
        session.revocation.unrecorded = true;
        self.audit(partner, vec![event], effect, Purpose::End { session: id, request });
    }

    /// One end, or a technician, wants a session to end.
    pub(crate) fn handle_end(
        &mut self,
        request: RequestId,
        id: SessionId,
        reason: &str,
        by: &EndAs,
        now: Now,
    ) {
        let session = self.sessions.get(&id).filter(|session| session.is_open());
        let (told_by, ended_by) = match (by, session) {
            (_, None) => (None, None),
            (EndAs::End(connection), Some(_)) => {
                let role = self.role_of(*connection, id);
                (Some(*connection), role.map(|role| EndedBy::role(Some(role))))
            }
            (EndAs::Account { partner_id, account_id, account, all }, Some(session)) => {
                let own = session.who.account_id == *account_id;
                let allowed = session.who.partner_id == *partner_id && (own || *all);
                (None, allowed.then(|| EndedBy::Person(account.clone())))
            }
        };
        let Some(ended_by) = ended_by else {
            let refusal = Refusal::new(failure::NO_SUCH_SESSION, "there is no such session");
            return self.reply(request, Reply::Refused(refusal));
        };
        self.end(id, Ending::told(reason, ended_by), None, told_by, Some(request), now);
    }

    /// An administrator's act, a logout, a disabled account: live sessions end now. Their number.
    pub(crate) fn handle_revoked(&mut self, affected: &Affected, reason: &str, now: Now) -> usize {
        let new = |at: &u64| now.unix_ms.saturating_sub(*at) < DECISION_LIFE_MS;
        self.withdrawn.retain(|(_, at)| new(at));
        if self.withdrawn.len() >= MAX_WITHDRAWN {
            self.withdrawn.pop_front();
        }
        self.withdrawn.push_back((affected.clone(), now.unix_ms));
        let hit = |session: &&Session| affected.hits(&session.who, &session.place);
        let hits: Vec<(SessionId, bool)> =
            self.sessions.values().filter(hit).map(|hit| (hit.id, hit.is_open())).collect();
        for (id, _) in &hits {
            self.end_or_refuse(*id, reason, now);
        }
        // As many as have a record of their end: those that are over are only remembered, and of
        // those that did not begin the refusal is recorded.
        hits.iter().filter(|(_, open)| *open).count()
    }

    fn was_withdrawn(&self, attempt: &Attempt, place: &Place) -> bool {
        self.withdrawn
            .iter()
            .any(|(what, at)| *at >= attempt.asked_ms && what.hits(&attempt.who, place))
    }

    /// Ends a session in whatever phase it is.
    pub(super) fn end_or_refuse(&mut self, id: SessionId, reason: &str, now: Now) {
        let Some(session) = self.sessions.get(&id) else { return };
        match &session.phase {
            Phase::Auditing { request, .. } | Phase::Offered { request, .. } => {
                let request = *request;
                let text = format!("the right to this session was withdrawn ({reason})");
                self.refuse(id, request, Refusal::new(failure::NOT_PERMITTED, text), true, now);
            }
            Phase::Open => self.end(id, Ending::decided(reason), None, None, None, now),
            Phase::Ended { .. } => {}
        }
    }

    /// Computers that are no longer enrolled lose their connections.
    pub(crate) fn handle_unenrolled(&mut self, computers: &[ComputerId]) {
        for computer in computers {
            if let Some(to) = self.agents.get(computer) {
                self.transmits.push_back(Transmit::Close { to: *to });
            }
        }
    }

    /// The machine's administrator ends a session.
    pub(crate) fn handle_ended_by_administrator(&mut self, id: SessionId, now: Now) -> bool {
        let open = self.is_open(id);
        self.end_or_refuse(id, ENDED_BY_ADMINISTRATOR, now);
        open
    }

    /// Somebody who may, and is neither of its ends, ends an open session.
    pub(crate) fn handle_ended_by_person(&mut self, id: SessionId, name: String, now: Now) -> bool {
        let open = self.is_open(id);
        if open {
            let ending =
                Ending { reason: ENDED_BY_ADMINISTRATOR.to_owned(), by: EndedBy::Person(name) };
            self.end(id, ending, None, None, None, now);
        }
        open
    }

    /// An operator wants a relay to get nothing new. It registers again, and hears of it.
    pub(crate) fn handle_relay_drained(&mut self, id: RelayId) {
        if let Some(relay) = self.relays.get_mut(&id) {
            relay.info.addresses.clear();
        }
        self.handle_relay_dropped(id);
    }

    /// A relay has to connect anew: under another setting, or to be refused. So does one that is
    /// about to be connected.
    pub(crate) fn handle_relay_dropped(&mut self, id: RelayId) {
        // No more entries than relays are enrolled.
        let setting = self.relay_settings.entry(id).or_default();
        *setting = setting.wrapping_add(1);
        if let Some(relay) = self.relays.get(&id) {
            self.transmits.push_back(Transmit::Close { to: relay.connection });
        }
    }

    /// Which of its settings holds for a relay. Whoever judges one asks this first, reads the
    /// setting then, and hands this in with the relay.
    pub(crate) fn relay_setting(&self, id: RelayId) -> u64 {
        self.relay_settings.get(&id).copied().unwrap_or_default()
    }

    /// A relay's state, if it is registered.
    pub(crate) fn relay_state(&self, id: RelayId) -> Option<RelayState> {
        let state = |relay: &Registered| RelayState { load: relay.load, drains: relay.drains };
        self.relays.get(&id).map(state)
    }

    /// How much of everything there is.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts { agents: self.agents.len(), ..Counts::default() };
        counts.relays = self.relays.len();
        counts.consoles = self.devices.len().saturating_sub(counts.agents + counts.relays);
        for session in self.sessions.values() {
            counts.sessions += usize::from(session.is_open());
            counts.pending += usize::from(session.revocation.is_pending());
        }
        counts
    }

    /// An end wants its lease renewed; whether the technician may go on was decided anew.
    pub(crate) fn handle_renew(
        &mut self,
        request: RequestId,
        connection: ConnectionId,
        id: SessionId,
        allowed: bool,
        now: Now,
    ) {
        if self.role_of(connection, id).is_none() || !self.is_open(id) {
            let refusal = Refusal::new(failure::NO_SUCH_SESSION, "the session is over");
            return self.reply(request, Reply::Refused(refusal));
        }
        if !allowed {
            self.end(id, Ending::decided(PERMISSION_WITHDRAWN), None, None, None, now);
            let refusal = Refusal::new(failure::NOT_PERMITTED, "the lease is not renewed");
            return self.reply(request, Reply::Refused(refusal));
        }
        self.note_console(connection, id);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.lease = now.mono + LEASE;
        let expires_ms = now.unix_ms.saturating_add(lease_ms());
        let lease = adit_protocol::grant::Lease { session: id, issued_ms: now.unix_ms, expires_ms };
        let partner = session.who.partner_id.clone();
        self.set_lease_timer(id);
        let effect = Effect::Lease { session: id, lease_ms: expires_ms };
        self.audit(partner, Vec::new(), effect, Purpose::Lease(request, lease));
    }

    /// Passes a sealed message to the other end. It is lost if that end is not there: both ends
    /// repeat what matters.
    pub(crate) fn handle_signal(&mut self, connection: ConnectionId, signal: wire::Signal) {
        let Ok(id) = SessionId::from_slice(&signal.session_id) else { return };
        let Some(role) = self.role_of(connection, id) else { return };
        let Some(session) = self.sessions.get_mut(&id).filter(|session| !session.is_ended()) else {
            return;
        };
        let to = match role {
            Role::Console => {
                session.console = Some(connection);
                self.agents.get(&session.place.computer_id).copied()
            }
            Role::Agent => session.console,
        };
        if let Some(to) = to {
            self.transmits.push_back(Transmit::Signal { to, signal });
        }
    }

    /// An end of an open session wants fresh tickets, perhaps of other relays.
    pub(crate) fn handle_tickets(
        &mut self,
        request: RequestId,
        connection: ConnectionId,
        id: SessionId,
        not: &[RelayId],
        now: Now,
    ) {
        let role = self.role_of(connection, id).filter(|_| self.is_open(id));
        self.note_console(connection, id);
        let reply = match role {
            None => Reply::Refused(Refusal::new(failure::NO_SUCH_SESSION, "the session is over")),
            Some(role) => {
                let tickets = self.tickets(id, role, not, now);
                if tickets.is_empty() {
                    let text = "no relay is registered at the mediator";
                    Reply::Refused(Refusal::new(failure::NO_RELAY, text))
                } else {
                    Reply::Tickets(tickets)
                }
            }
        };
        self.reply(request, reply);
    }

    /// The time has come to look at some sessions.
    pub(crate) fn handle_timeout(&mut self, now: Now) {
        while let Some((at, id)) = self.timers.first().copied() {
            if at > now.mono {
                return;
            }
            self.timers.remove(&(at, id));
            if let Some(session) = self.sessions.get_mut(&id) {
                session.timer = None;
            }
            self.session_timeout(id, now);
        }
    }

    fn session_timeout(&mut self, id: SessionId, now: Now) {
        let Some(session) = self.sessions.get(&id) else { return };
        match &session.phase {
            // The store answers every record, with success or failure.
            Phase::Auditing { .. } => {}
            Phase::Offered { request, .. } => {
                let text = "the agent did not answer in time";
                let refusal = Refusal::new(failure::AGENT_TIMEOUT, text);
                let request = *request;
                self.refuse(id, request, refusal, true, now);
            }
            Phase::Open if now.mono >= self.lease_end(session) => {
                self.end(id, Ending::decided("lease_expired"), None, None, None, now);
            }
            Phase::Open if session.until.is_some_and(|until| now.mono >= until) => {
                self.right_ended(id, now);
            }
            Phase::Open => self.set_lease_timer(id),
            Phase::Ended { .. } => {
                let unrecorded = session.revocation.unrecorded;
                let under_way = self.audits.values().any(
                    |purpose| matches!(purpose, Purpose::End { session, .. } if *session == id),
                );
                if unrecorded && !under_way {
                    self.record_end(id, None, None, now);
                }
                self.push_revocation(id, now);
            }
        }
    }

    /// An agent that is connected must have renewed by now; one that is cut off may serve on for
    /// the grace.
    fn lease_end(&self, session: &Session) -> Duration {
        let grace =
            if self.is_online(session.place.computer_id) { Duration::ZERO } else { OFFLINE_GRACE };
        session.lease + LEASE_SLACK + grace
    }

    pub(super) fn set_lease_timer(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        let lease = self.lease_end(session);
        let at = session.until.map_or(lease, |until| until.min(lease));
        self.set_timer(id, at);
    }

    /// As which end of a session a connection may speak.
    pub(super) fn role_of(&self, connection: ConnectionId, id: SessionId) -> Option<Role> {
        let session = self.sessions.get(&id)?;
        match self.devices.get(&connection)? {
            Device::Agent { computer, .. } if *computer == session.place.computer_id => {
                Some(Role::Agent)
            }
            Device::Console { identity, .. } if *identity == session.who.device => {
                Some(Role::Console)
            }
            _ => None,
        }
    }

    /// Whether a connection speaks for the console of a session.
    pub(crate) fn speaks_for(&self, connection: ConnectionId, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(|session| session.console == Some(connection))
    }

    /// The Noise key that a console's identity certified.
    pub(crate) fn console_noise(&self, connection: ConnectionId) -> Option<[u8; 32]> {
        match self.devices.get(&connection)? {
            Device::Console { noise, .. } => Some(*noise),
            _ => None,
        }
    }

    fn is_open(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(Session::is_open)
    }

    fn console_gone(&mut self, identity: PublicKey, connection: ConnectionId, now: Now) {
        let sessions = self.by_console.get(&identity).cloned().unwrap_or_default();
        for id in sessions {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            if session.console == Some(connection) {
                session.console = None;
                if let Phase::Auditing { request, .. } | Phase::Offered { request, .. } =
                    &session.phase
                {
                    // Nobody is left to be answered: the agent must not wait for who asked.
                    let (request, text) = (*request, "the console went away");
                    let refusal = Refusal::new(failure::CONSOLE_GONE, text);
                    self.refuse(id, request, refusal, true, now);
                    continue;
                }
                // The agent enforces ends; a console that comes back learns it by renewing.
                session.revocation.console = false;
                self.settle_if_ended(id, now);
            }
        }
    }

    /// Looks at this computer's sessions only: whoever comes and goes must not cost more than
    /// what is theirs.
    fn offers_lost(&mut self, computer: ComputerId, connection: ConnectionId, now: Now) {
        let of_computer = self.by_computer.get(&computer).into_iter().flatten();
        let lost: Vec<_> = of_computer
            .filter_map(|id| self.sessions.get(id))
            .filter_map(|session| match &session.phase {
                Phase::Offered { request, agent, .. } if *agent == connection => {
                    Some((session.id, *request))
                }
                _ => None,
            })
            .collect();
        for (id, request) in lost {
            let refusal = Refusal::new(failure::AGENT_OFFLINE, "the computer went offline");
            self.refuse(id, request, refusal, true, now);
        }
    }

    fn ended_of(&self, device: &Device) -> Vec<SessionId> {
        match device {
            Device::Agent { computer, .. } => {
                self.by_computer.get(computer).into_iter().flatten().copied().collect()
            }
            Device::Console { .. } => Vec::new(),
            Device::Relay { id, .. } => self
                .sessions
                .values()
                .filter(|session| session.revocation.relays.contains(id))
                .map(|session| session.id)
                .collect(),
        }
    }

    fn live_of_console(&self, device: &PublicKey) -> usize {
        let sessions = self.by_console.get(device).into_iter().flatten();
        sessions.filter_map(|id| self.sessions.get(id)).filter(|s| !s.is_ended()).count()
    }

    /// The connection that speaks for a session's console now.
    pub(super) fn note_console(&mut self, connection: ConnectionId, id: SessionId) {
        if self.role_of(connection, id) == Some(Role::Console)
            && let Some(session) = self.sessions.get_mut(&id)
        {
            session.console = Some(connection);
        }
    }

    fn settle_if_ended(&mut self, id: SessionId, now: Now) {
        if self.sessions.get(&id).is_some_and(Session::is_ended) {
            self.settle(id, now);
        }
    }

    fn insert(&mut self, session: Session) {
        let id = session.id;
        self.by_console.entry(session.who.device).or_default().insert(id);
        self.by_computer.entry(session.place.computer_id).or_default().insert(id);
        self.tally.begin(&session);
        if let Some(replaced) = self.sessions.insert(id, session) {
            self.tally.forget(&replaced);
        }
    }

    pub(super) fn forget(&mut self, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else { return };
        self.tally.forget(&session);
        if let Some(at) = session.timer {
            self.timers.remove(&(at, id));
        }
        if let Some(set) = self.by_console.get_mut(&session.who.device) {
            set.remove(&id);
            if set.is_empty() {
                self.by_console.remove(&session.who.device);
            }
        }
        if let Some(set) = self.by_computer.get_mut(&session.place.computer_id) {
            set.remove(&id);
            if set.is_empty() {
                self.by_computer.remove(&session.place.computer_id);
            }
        }
    }

    pub(super) fn set_timer(&mut self, id: SessionId, at: Duration) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Some(old) = session.timer.replace(at) {
            self.timers.remove(&(old, id));
        }
        self.timers.insert((at, id));
    }

    pub(super) fn audit(
        &mut self,
        partner_id: String,
        events: Vec<adit_ledger::Event>,
        effect: Effect,
        purpose: Purpose,
    ) {
        self.next_audit += 1;
        let id = AuditId(self.next_audit);
        self.audits.insert(id, purpose);
        self.outputs.push_back(Output::Audit { id, partner_id, events, effect });
    }

    pub(super) fn reply(&mut self, request: RequestId, reply: Reply) {
        self.outputs.push_back(Output::Reply { request, reply });
    }
}
