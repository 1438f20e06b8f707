//! Audit records of sessions. Every record names person, device, computer and redirector, so
//! that each can be understood alone.

use adit_ledger::{Event, Level};
use adit_protocol::target::Transport;

use super::{
    ending::{EndedBy, Ending},
    session::{ANY, Session, target_text},
    types::{Attempt, Refusal},
};

/// Bytes of one list of targets: the ledger keeps as much of a detail.
const MAX_LIST: usize = 1024;
/// All targets of a session with several, comma-separated; what does not fit goes on under the
/// same name with a number.
const TARGETS: &str = "targets";
/// The grant names no targets: each is recorded when it is dialled.
const ANY_TARGET: &str = "any_target";

/// The attempt, whatever becomes of it.
pub(super) fn requested(attempt: &Attempt) -> Event {
    of_attempt("session.requested", Level::Informational, attempt).outcome("requested")
}

/// Refused before there was a session.
pub(super) fn refused_attempt(attempt: &Attempt, refusal: &Refusal, rule: &str) -> Event {
    let event = of_attempt("session.refused", Level::Significant, attempt)
        .outcome("refused")
        .end_reason(refusal.code);
    if rule.is_empty() { event } else { event.rule(rule) }
}

fn of_attempt(name: &str, level: Level, attempt: &Attempt) -> Event {
    let mut event = Event::new(name, level)
        .partner(&attempt.who.partner)
        .session_id(attempt.session.to_string())
        .redirector(&attempt.redirector)
        .actor(&attempt.who.account)
        .device(attempt.who.device.fingerprint().to_string())
        .source(&attempt.who.source);
    event = with_targets(event, &target_text(&attempt.targets, attempt.any_target));
    event.mfa = some(&attempt.who.mfa);
    event.viewer = some(&attempt.viewer);
    event.reason = some(&attempt.reason);
    event.ticket = some(&attempt.ticket);
    match &attempt.place {
        Some(place) => event
            .client(&place.client)
            .computer(&place.computer)
            .computer_id(place.computer_id.to_string()),
        // Not even a hint whether it exists elsewhere: what was asked for, nothing else.
        None => event.computer_id(&attempt.computer_id),
    }
}

/// Names what a session or channel may reach, given as [`target_text`] writes it: `target` is the
/// first, or none where the technician says later (SOCKS); of several all are listed beside it.
pub(super) fn with_targets(mut event: Event, text: &str) -> Event {
    event.extra.remove(ANY_TARGET);
    event.extra_personal.retain(|key, _| !key.starts_with(TARGETS));
    let (any, named): (Vec<&str>, Vec<&str>) =
        text.split(',').filter(|part| !part.is_empty()).partition(|part| *part == ANY);
    event.target = named.first().map(|first| (*first).to_owned());
    if !any.is_empty() {
        event = event.extra(ANY_TARGET, "yes");
    }
    if named.len() < 2 {
        return event;
    }
    let mut lists: Vec<String> = Vec::new();
    for target in named {
        match lists.last_mut() {
            Some(list) if list.len() + 1 + target.len() <= MAX_LIST => {
                list.push(',');
                list.push_str(target);
            }
            _ => lists.push(target.to_owned()),
        }
    }
    for (n, list) in (1..).zip(lists) {
        let key = if n == 1 { TARGETS.to_owned() } else { format!("{TARGETS}_{n}") };
        event = event.extra_personal(key, list);
    }
    event
}

/// An event about a session.
pub(super) fn of_session(name: &str, level: Level, session: &Session) -> Event {
    let mut event = Event::new(name, level)
        .partner(&session.who.partner)
        .client(&session.place.client)
        .computer(&session.place.computer)
        .computer_id(session.place.computer_id.to_string())
        .session_id(session.id.to_string())
        .redirector(&session.redirector)
        .actor(&session.who.account)
        .device(session.who.device.fingerprint().to_string())
        .source(&session.who.source);
    event = with_targets(event, &session.target);
    event.mfa = some(&session.who.mfa);
    event.viewer = some(&session.viewer);
    event.reason = some(&session.reason);
    event.ticket = some(&session.ticket);
    event.rule = some(&session.rule);
    event
}

pub(super) fn granted(session: &Session) -> Event {
    of_session("session.granted", Level::Significant, session)
        .outcome("granted")
        .extra("agent", session.place.agent.fingerprint().to_string())
}

pub(super) fn refused(session: &Session, refusal: &Refusal) -> Event {
    let event = of_session("session.refused", Level::Significant, session)
        .outcome("refused")
        .end_reason(refusal.code)
        .extra_personal("message", refusal.message.as_str());
    name_refused(event, &session.target, &refusal.message)
}

/// Of several targets, `target` is the first that was refused, by the agent's words (`tcp:HOST:PORT`
/// in them); where they name none it is none, since the session's first may be one that is allowed.
/// `targets` lists all.
fn name_refused(mut event: Event, targets: &str, message: &str) -> Event {
    let named: Vec<&str> = targets.split(',').filter(|part| *part != ANY).collect();
    if named.len() > 1 {
        let words = message.split(|c: char| c.is_whitespace() || matches!(c, ',' | ';'));
        let plain = |word: &'_ str| -> String {
            let of = [Transport::Tcp, Transport::Udp].map(|transport| format!("{transport}:"));
            let rest = of.iter().find_map(|transport| word.strip_prefix(transport.as_str()));
            rest.unwrap_or(word).to_owned()
        };
        event.target = words.map(plain).find(|word| named.contains(&word.as_str()));
    }
    event
}

pub(super) fn ended(session: &Session, ending: &Ending, duration_ms: u64) -> Event {
    let mut event = of_session("session.ended", Level::Significant, session)
        .outcome("ended")
        .end_reason(&ending.reason)
        .extra("reported_by", ending.by.name())
        .bytes_up(session.bytes.0)
        .bytes_down(session.bytes.1)
        .duration_ms(duration_ms);
    event.carriers = session.kinds().to_vec();
    match &ending.by {
        EndedBy::Person(name) => event.extra_personal("ended_by", name.as_str()),
        _ => event,
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
