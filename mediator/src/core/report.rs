//! What devices tell of sessions: check-ins, reports of use, targets about to be dialled, bytes
//! through relays.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use adit_ledger::{Event, Level};
use adit_protocol::{
    code::failure,
    ids::{ComputerId, RelayId, SessionId},
    target::Target,
    ticket::Role,
    wire::{self, session_event},
};

use super::{
    broker::{Broker, Purpose},
    ending::{AGENT_LOST_SESSION, EndedBy, Ending, claim},
    events,
    fold::Telling,
    session::{Phase, Session},
    types::*,
};

/// Events in one report.
pub(crate) const MAX_EVENTS_PER_REPORT: usize = 64;
/// A session this young may be missing in a check-in that was on its way, if it was offered on
/// the same connection.
const CHECK_IN_SLACK: Duration = Duration::from_secs(30);
/// Characters of the classes of failures that a peer gives.
const MAX_CLASSES: usize = 256;
/// Bytes of a code that a peer gives.
const MAX_CODE: usize = 64;

impl Broker {
    /// An agent lists the sessions it serves: those that are over are named in the reply, those
    /// that it lost (a restart) are ended here.
    pub(crate) fn handle_check_in(
        &mut self,
        request: RequestId,
        connection: ConnectionId,
        live: &[wire::LiveSession],
        now: Now,
    ) {
        let Some(Device::Agent { computer, .. }) = self.devices.get(&connection) else {
            return self.refuse_report(request, failure::BAD_REQUEST, "only agents check in");
        };
        let computer = *computer;
        let listed: BTreeSet<SessionId> =
            live.iter().filter_map(|l| SessionId::from_slice(&l.session_id).ok()).collect();
        for entry in live {
            let Ok(id) = SessionId::from_slice(&entry.session_id) else { continue };
            let Some(session) = self.of_computer(id, computer) else { continue };
            if session.is_open() {
                session.bytes =
                    (session.bytes.0.max(entry.bytes_up), session.bytes.1.max(entry.bytes_down));
            }
        }
        let over: Vec<SessionId> = listed
            .iter()
            .copied()
            .filter(|id| self.of_computer(*id, computer).is_none_or(|session| session.is_ended()))
            .collect();
        let mine = self.by_computer.get(&computer).cloned().unwrap_or_default();
        for id in mine.difference(&listed) {
            let lost = self.sessions.get(id).is_some_and(|session| {
                let old = now.mono.saturating_sub(session.started) > CHECK_IN_SLACK;
                session.is_open() && (old || session.offered_on != Some(connection))
            });
            if lost {
                let ending = Ending::decided(AGENT_LOST_SESSION);
                self.end(*id, ending, None, Some(connection), None, now);
            }
        }
        self.reply(request, Reply::CheckedIn(over));
    }

    /// One end tells what happened in a session.
    pub(crate) fn handle_report(
        &mut self,
        request: RequestId,
        connection: ConnectionId,
        id: SessionId,
        report: &[wire::SessionEvent],
        now: Now,
    ) {
        if report.len() > MAX_EVENTS_PER_REPORT {
            return self.refuse_report(request, failure::BAD_REQUEST, "too many events at once");
        }
        let Some(role) = self.role_of(connection, id) else {
            return self.refuse_report(request, failure::NO_SUCH_SESSION, "no such session");
        };
        self.note_console(connection, id);
        let mut records = Vec::new();
        let mut end = None;
        for event in report {
            let Some(session) = self.sessions.get_mut(&id) else { break };
            match &event.event {
                Some(session_event::Event::End(told)) => end = Some(told.clone()),
                Some(other) => records.extend(record(session, role, event.at_ms, other, now)),
                None => {}
            }
        }
        let partner = self.sessions.get(&id).map(|session| session.who.partner_id.clone());
        if let (Some(partner), false) = (partner, records.is_empty()) {
            let purpose = match end {
                // The reply comes with the end's record, which is written after these.
                Some(_) => Purpose::Nothing,
                None => Purpose::Done(request),
            };
            let effect = match self.sessions.get_mut(&id) {
                // Of one that is over nothing is to be told any more.
                Some(session) if !session.is_ended() => session.unwritten(),
                _ => Effect::None,
            };
            self.audit(partner, records, effect, purpose);
        } else if end.is_none() {
            self.reply(request, Reply::Done);
        }
        if let Some(told) = end {
            self.end_told(request, connection, id, &told, now);
        }
    }

    fn end_told(
        &mut self,
        request: RequestId,
        connection: ConnectionId,
        id: SessionId,
        told: &wire::SessionEnd,
        now: Now,
    ) {
        let by = EndedBy::role(self.role_of(connection, id));
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if !session.is_open() {
            // Ended from here, before its ends could say what they had moved: that follows.
            let reason = code_text(&told.reason);
            let reason = match &session.phase {
                // It repeats what it was told.
                Phase::Ended { ending } if ending.reason == reason => reason,
                _ => claim(&reason).into_owned(),
            };
            let known = session.bytes;
            session.bytes = (known.0.max(told.bytes_up), known.1.max(told.bytes_down));
            let accounted = (session.bytes != known).then(|| {
                let event = events::of_session("session.accounted", Level::Significant, session)
                    .outcome("reported")
                    .end_reason(reason)
                    .extra("reported_by", by.name())
                    .bytes_up(session.bytes.0)
                    .bytes_down(session.bytes.1)
                    .duration_ms(told.duration_ms);
                (session.who.partner_id.clone(), event)
            });
            self.handle_acknowledged(id, connection, now);
            return match accounted {
                Some((partner, event)) => {
                    self.audit(partner, vec![event], Effect::None, Purpose::Done(request));
                }
                None => self.reply(request, Reply::Done),
            };
        }
        session.bytes = (session.bytes.0.max(told.bytes_up), session.bytes.1.max(told.bytes_down));
        let ending = Ending::told(&code_text(&told.reason), by);
        let duration = (told.duration_ms > 0).then_some(told.duration_ms);
        self.end(id, ending, duration, Some(connection), Some(request), now);
    }

    /// The agent is about to dial a target that the grant does not name (SOCKS).
    pub(crate) fn handle_target(
        &mut self,
        request: RequestId,
        connection: ConnectionId,
        id: SessionId,
        target: &Target,
    ) {
        let session = match self.role_of(connection, id) {
            Some(Role::Agent) => self.sessions.get(&id).filter(|session| session.is_open()),
            _ => None,
        };
        let Some(session) = session else {
            return self.refuse_report(request, failure::NO_SUCH_SESSION, "the session is over");
        };
        let covered = session.any_target || session.targets.contains(target);
        let name = if covered { "channel.requested" } else { "channel.refused" };
        let event = events::of_session(name, Level::Informational, session);
        let event = events::with_targets(event, &target.to_string())
            .extra("transport", target.transport().to_string())
            .outcome(if covered { "granted" } else { "refused" });
        let partner = session.who.partner_id.clone();
        let purpose = if covered {
            Purpose::Done(request)
        } else {
            let refusal =
                Refusal::new(failure::NOT_PERMITTED, "the grant does not cover the target");
            Purpose::Refuse(request, refusal)
        };
        self.audit(partner, vec![event], Effect::None, purpose);
    }

    /// A relay reports load and bytes.
    pub(crate) fn handle_relay_report(
        &mut self,
        request: Option<RequestId>,
        connection: ConnectionId,
        report: &wire::RelayReport,
    ) {
        let relay = match self.devices.get(&connection) {
            Some(Device::Relay { id, .. }) => *id,
            _ => {
                if let Some(request) = request {
                    let text = "only relays report load";
                    self.refuse_report(request, failure::BAD_REQUEST, text);
                }
                return;
            }
        };
        if let Some(registered) = self.relays.get_mut(&relay) {
            registered.load = u64::from(report.pairs) + u64::from(report.waiting);
        }
        for told in &report.sessions {
            self.note_relayed(relay, told);
        }
        if let Some(request) = request {
            self.reply(request, Reply::Done);
        }
    }

    fn note_relayed(&mut self, relay: RelayId, told: &wire::RelaySession) {
        let Ok(id) = SessionId::from_slice(&told.session_id) else { return };
        // A relay may only tell of sessions for which it got tickets.
        if let Some(session) = self.sessions.get_mut(&id)
            && session.relays.contains(&relay)
        {
            let bytes = session.relay_bytes.entry(relay).or_default();
            *bytes = (*bytes).max(told.bytes_up.saturating_add(told.bytes_down));
        }
    }

    fn of_computer(&mut self, id: SessionId, computer: ComputerId) -> Option<&mut Session> {
        self.sessions.get_mut(&id).filter(|session| session.place.computer_id == computer)
    }

    fn refuse_report(&mut self, request: RequestId, code: &'static str, text: &str) {
        self.reply(request, Reply::Refused(Refusal::new(code, text)));
    }
}

/// The record of one event; what makes no sense is left out.
fn record(
    session: &mut Session,
    by: Role,
    at_ms: u64,
    event: &session_event::Event,
    now: Now,
) -> Option<Event> {
    let reported_by = match by {
        Role::Console => "console",
        Role::Agent => "agent",
    };
    let told = |event: Event| event.extra("reported_by", reported_by).extra("reported_ms", at_ms);
    match event {
        session_event::Event::Carrier(change) => {
            let kind = ["relayed", "direct"].into_iter().find(|kind| *kind == change.kind)?;
            let state =
                ["active", "standby", "lost"].into_iter().find(|state| *state == change.state)?;
            if state == "active" {
                session.note_carrier(by, kind);
            }
            let mut record = events::of_session("session.carrier", Level::Informational, session)
                .outcome(state)
                .carrier(kind)
                .optional();
            if let Ok(relay) = RelayId::from_slice(&change.relay_id) {
                record = record.relay(relay.to_string());
            }
            if let Some(pair) = pair(&change.local, &change.remote) {
                record = record.pair(pair);
            }
            if !change.detail.is_empty() {
                record = record.extra("detail", classes(&change.detail));
            }
            Some(told(record))
        }
        session_event::Event::Channel(end) => {
            let outcome = code_text(&end.outcome);
            if end.refused && outcome == failure::POLICY_REFUSED {
                once(session, end.target.as_ref(), Telling::Channel, now)?;
            }
            let (name, word) = match end.refused {
                true => ("channel.refused", "refused"),
                false => ("channel.closed", "ended"),
            };
            let record = events::of_session(name, Level::Normal, session)
                .outcome(word)
                .end_reason(outcome)
                .bytes_up(end.bytes_up)
                .bytes_down(end.bytes_down)
                .duration_ms(end.duration_ms)
                .extra("channel", end.channel);
            Some(told(one_target(record, end.target.as_ref())))
        }
        session_event::Event::Refusal(refusal) => {
            once(session, refusal.target.as_ref(), Telling::Policy, now)?;
            let record = events::of_session("channel.refused", Level::Significant, session)
                .outcome("refused")
                .end_reason(failure::POLICY_REFUSED)
                .extra_personal("policy", refusal.rule.as_str());
            Some(told(one_target(record, refusal.target.as_ref())))
        }
        session_event::Event::End(_) => None,
    }
}

/// None if the other telling of this refusal was recorded.
fn once(
    session: &mut Session,
    target: Option<&wire::Target>,
    telling: Telling,
    now: Now,
) -> Option<()> {
    let Some(target) = target.and_then(|target| Target::from_wire(target).ok()) else {
        return Some(());
    };
    session.refusals.is_new(&target, telling, now.mono).then_some(())
}

fn one_target(record: Event, target: Option<&wire::Target>) -> Event {
    match target.and_then(|target| Target::from_wire(target).ok()) {
        Some(target) => events::with_targets(record, &target.to_string()),
        None => record,
    }
}

/// The address pair in use, if that is what is told.
fn pair(local: &str, remote: &str) -> Option<String> {
    let address = |text: &str| match text {
        "" => Some(String::new()),
        text => text.parse::<SocketAddr>().ok().map(|address| address.to_string()),
    };
    let (local, remote) = (address(local)?, address(remote)?);
    (!local.is_empty() || !remote.is_empty()).then(|| format!("{local} {remote}"))
}

/// What failed, in words like `direct_failed:udp_blocked,no_check_answered`: without digits, so
/// that no private address of an end gets into the log with them.
fn classes(detail: &str) -> String {
    let mut out = String::new();
    for c in detail.chars().take(MAX_CLASSES).map(|c| c.to_ascii_lowercase()) {
        if c.is_ascii_lowercase() || matches!(c, ':' | ',') {
            out.push(c);
        } else if !out.ends_with('_') {
            out.push('_');
        }
    }
    out
}

/// A code as peers should give it; anything else becomes `other`.
pub(crate) fn code_text(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !text.is_empty() && text.len() <= MAX_CODE && text.bytes().all(plain) {
        text.to_owned()
    } else {
        "other".to_owned()
    }
}
