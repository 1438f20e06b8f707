//! What the records of a session say, whoever tells it.

use std::time::Duration;

use adit_ledger::{Event, Value};
use adit_protocol::{
    code::failure,
    ids::{ComputerId, SessionId},
    keys::{PublicKey, SigningKey},
    target::{Target, Transport},
    wire::{self, session_event},
};

use super::{Broker, ending::MEDIATOR_WORDS, revoke::RETRY, types::*};

pub(super) const AGENT: ConnectionId = ConnectionId(1);
pub(super) const CONSOLE: ConnectionId = ConnectionId(2);

/// A broker with one agent and one console; what it records is durable at once.
pub(super) struct Desk {
    pub(super) broker: Broker,
    pub(super) now: Now,
    events: Vec<Event>,
    pub(super) replies: Vec<Reply>,
    pub(super) transmits: Vec<Transmit>,
    requests: u64,
}

pub(super) fn key(n: u8) -> PublicKey {
    SigningKey::from_seed(&[n; 32]).unwrap().public()
}

pub(super) fn tcp(host: &str, port: u16) -> Target {
    Target::new(host, port, Transport::Tcp).unwrap()
}

impl Desk {
    pub(super) fn new() -> Self {
        let mut desk = Self {
            broker: Broker::default(),
            now: Now { mono: Duration::from_secs(1_000), unix_ms: 1_000_000 },
            events: Vec::new(),
            replies: Vec::new(),
            transmits: Vec::new(),
            requests: 0,
        };
        let agent = Device::Agent { computer: ComputerId([5; 16]), noise: [1; 32] };
        desk.broker.handle_connected(AGENT, agent, desk.now);
        let console = Device::Console { identity: key(2), noise: [2; 32] };
        desk.broker.handle_connected(CONSOLE, console, desk.now);
        desk
    }

    pub(super) fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    /// A session of the console at the agent, open.
    pub(super) fn open(&mut self, n: u8, targets: &[Target], any_target: bool) -> SessionId {
        let attempt = self.attempt(n, targets, any_target);
        let session = attempt.session;
        self.broker.handle_open(attempt, self.now);
        self.drain();
        self.broker.handle_answer(session, Ok(vec![1].into()), self.now);
        self.drain();
        session
    }

    pub(super) fn attempt(&mut self, n: u8, targets: &[Target], any_target: bool) -> Attempt {
        Attempt {
            request: self.request(),
            connection: CONSOLE,
            generation: 0,
            asked_ms: self.now.unix_ms,
            who: Who {
                account_id: "jane-id".into(),
                account: "jane".into(),
                partner_id: "p".into(),
                partner: "p".into(),
                login: [1; 32],
                device: key(2),
                source: "192.0.2.1:1".into(),
                mfa: String::new(),
            },
            session: SessionId([n; 16]),
            place: Some(Place {
                computer_id: ComputerId([5; 16]),
                computer: "pc".into(),
                client_id: "c".into(),
                client: "p/c".into(),
                agent: key(1),
            }),
            computer_id: String::new(),
            redirector: "tcp".into(),
            targets: targets.to_vec(),
            any_target,
            reason: String::new(),
            ticket: String::new(),
            viewer: String::new(),
            noise_msg1: vec![0; 100].into(),
            seen: None,
            enrolment: false,
            verdict: Ok("rule".into()),
        }
    }

    pub(super) fn drain(&mut self) {
        while let Some(output) = self.broker.poll_output() {
            match output {
                Output::Audit { id, events, .. } => {
                    self.events.extend(events);
                    let recorded = Recorded { seq: 1, ..Recorded::nothing() };
                    self.broker.handle_audit_committed(id, recorded, self.now);
                }
                Output::Reply { reply, .. } => self.replies.push(reply),
            }
        }
        while let Some(transmit) = self.broker.poll_transmit() {
            self.transmits.push(transmit);
        }
    }

    fn report(&mut self, by: ConnectionId, session: SessionId, events: Vec<session_event::Event>) {
        let events: Vec<_> = events
            .into_iter()
            .map(|event| wire::SessionEvent { at_ms: 1, event: Some(event) })
            .collect();
        let request = self.request();
        self.broker.handle_report(request, by, session, &events, self.now);
        self.drain();
    }

    fn named(&self, name: &str) -> Vec<&Event> {
        self.events.iter().filter(|event| event.name == name).collect()
    }
}

fn ended(reason: &str) -> session_event::Event {
    let reason = reason.to_owned();
    session_event::Event::End(wire::SessionEnd { reason, ..wire::SessionEnd::default() })
}

#[test]
fn no_end_of_a_session_speaks_with_the_mediators_words() {
    let mut desk = Desk::new();
    for (n, (by, name)) in (1..).zip([(AGENT, "agent"), (CONSOLE, "console")]) {
        for (m, word) in (0..).zip(MEDIATOR_WORDS) {
            let session = desk.open(20 * n + m, &[tcp("127.0.0.1", 22)], false);
            desk.report(by, session, vec![ended(word)]);
            let record = desk.events.last().unwrap();
            assert_eq!(record.end_reason, Some(format!("claimed_{word}")));
            assert_eq!(record.extra["reported_by"], Value::from(name));
        }
    }
    let session = desk.open(100, &[tcp("127.0.0.1", 22)], false);
    desk.report(AGENT, session, vec![ended("locked_by_owner")]);
    assert_eq!(desk.events.last().unwrap().end_reason.as_deref(), Some("locked_by_owner"));
}

#[test]
fn ends_name_who_decided_them() {
    let mut desk = Desk::new();
    let target = [tcp("127.0.0.1", 22)];
    let session = desk.open(1, &target, false);
    desk.broker.handle_ended_by_administrator(session, desk.now);
    desk.drain();
    // The agent repeats what it was told; the count of bytes is its own.
    let told = wire::SessionEnd {
        reason: "ended_by_administrator".into(),
        bytes_up: 7,
        ..wire::SessionEnd::default()
    };
    desk.report(AGENT, session, vec![session_event::Event::End(told)]);
    let by_person = desk.open(2, &target, false);
    let request = desk.request();
    let chief = EndAs::Account {
        partner_id: "p".into(),
        account_id: "chief-id".into(),
        account: "chief".into(),
        all: true,
    };
    desk.broker.handle_end(request, by_person, "user_disabled", &chief, desk.now);
    desk.drain();
    let ends: Vec<_> = desk
        .events
        .iter()
        .filter(|event| matches!(event.name.as_str(), "session.ended" | "session.accounted"))
        .map(|event| (event.end_reason.as_deref().unwrap(), event.extra["reported_by"].clone()))
        .collect();
    assert_eq!(
        ends,
        [
            ("ended_by_administrator", Value::from("mediator")),
            ("ended_by_administrator", Value::from("agent")),
            ("claimed_user_disabled", Value::from("mediator")),
        ]
    );
    let last = desk.events.last().unwrap();
    assert_eq!(last.extra_personal["ended_by"], Value::from("chief"));
    assert_eq!(last.actor.as_deref(), Some("jane"));
}

/// Its record is durable before anybody has acknowledged it.
#[test]
fn an_end_is_told_once_and_again_only_when_nothing_is_heard() {
    let mut desk = Desk::new();
    let session = desk.open(1, &[tcp("127.0.0.1", 22)], false);
    let told = |desk: &mut Desk| {
        let told = std::mem::take(&mut desk.transmits);
        let ends = told.into_iter().filter_map(|transmit| match transmit {
            Transmit::End { to, .. } => Some(to),
            _ => None,
        });
        ends.collect::<Vec<_>>()
    };
    desk.transmits.clear();
    desk.broker.handle_ended_by_administrator(session, desk.now);
    desk.drain();
    assert_eq!(told(&mut desk), [AGENT, CONSOLE]);
    desk.broker.handle_acknowledged(session, AGENT, desk.now);
    desk.now.mono += RETRY;
    desk.broker.handle_timeout(desk.now);
    desk.drain();
    assert_eq!(told(&mut desk), [CONSOLE]);
    desk.broker.handle_acknowledged(session, CONSOLE, desk.now);
    desk.now.mono += RETRY;
    desk.broker.handle_timeout(desk.now);
    desk.drain();
    assert_eq!(told(&mut desk), []);
}

#[test]
fn a_session_with_several_targets_names_the_first_and_lists_all() {
    let mut desk = Desk::new();
    desk.open(1, &[tcp("10.0.0.1", 80), tcp("::1", 443)], false);
    for name in ["session.requested", "session.granted"] {
        let record = desk.named(name).pop().unwrap();
        assert_eq!(record.target.as_deref(), Some("10.0.0.1:80"));
        assert_eq!(record.extra_personal["targets"], Value::from("10.0.0.1:80,[::1]:443"));
    }
    let socks = desk.open(2, &[], true);
    let record = desk.named("session.granted").pop().unwrap();
    assert_eq!((record.target.as_deref(), &record.extra["any_target"]), (None, &"yes".into()));
    let request = desk.request();
    desk.broker.handle_target(request, AGENT, socks, &tcp("10.0.0.9", 22));
    desk.drain();
    let record = desk.named("channel.requested").pop().unwrap();
    assert_eq!(record.target.as_deref(), Some("10.0.0.9:22"));
    assert!(!record.extra.contains_key("any_target"));
    // However many there are, none is lost.
    let many: Vec<_> =
        (0..64).map(|n| tcp(&format!("{}.example", "n".repeat(60)), 100 + n)).collect();
    desk.open(3, &many, false);
    let record = desk.named("session.granted").pop().unwrap();
    let listed: usize = record
        .extra_personal
        .iter()
        .filter(|(key, _)| key.starts_with("targets"))
        .map(|(_, list)| match list {
            Value::Text(list) => list.split(',').count(),
            Value::Integer(_) => 0,
        })
        .sum();
    assert_eq!(listed, 64);
}

#[test]
fn a_channel_that_the_policy_refuses_is_recorded_once() {
    let target = |port| Some(tcp("10.0.0.1", port).to_wire());
    let policy = |port| {
        let refusal = wire::PolicyRefusal { target: target(port), rule: "ports".into() };
        session_event::Event::Refusal(refusal)
    };
    let channel = |port| {
        session_event::Event::Channel(wire::ChannelEnd {
            target: target(port),
            outcome: "policy_refused".into(),
            refused: true,
            ..wire::ChannelEnd::default()
        })
    };
    let mut desk = Desk::new();
    let session = desk.open(1, &[], true);
    for (events, records) in [
        (vec![policy(1), channel(1)], 1),
        (vec![channel(2), policy(2)], 1),
        (vec![policy(3), policy(3), channel(3), channel(3)], 2),
        (vec![channel(4), channel(4)], 2),
        (vec![policy(5), channel(6)], 2),
    ] {
        let before = desk.named("channel.refused").len();
        desk.report(AGENT, session, events);
        assert_eq!(desk.named("channel.refused").len() - before, records);
    }
    // Much later it is another refusal.
    desk.report(AGENT, session, vec![policy(7)]);
    desk.now.mono += Duration::from_secs(60);
    let before = desk.named("channel.refused").len();
    desk.report(AGENT, session, vec![channel(7)]);
    assert_eq!(desk.named("channel.refused").len() - before, 1);
}

#[test]
fn a_carriers_record_has_its_pair_and_what_failed_but_no_other_address() {
    let mut desk = Desk::new();
    let session = desk.open(1, &[tcp("127.0.0.1", 22)], false);
    let mut told = |local: &str, detail: &str| {
        let change = wire::CarrierChange {
            kind: "direct".into(),
            state: "active".into(),
            local: local.into(),
            remote: "198.51.100.2:4000".into(),
            detail: detail.into(),
            ..wire::CarrierChange::default()
        };
        desk.report(CONSOLE, session, vec![session_event::Event::Carrier(change)]);
        let record = desk.named("session.carrier").pop().unwrap();
        (record.pair.clone(), record.extra["detail"].clone())
    };
    assert_eq!(
        told("192.0.2.1:5", "direct_failed:udp_blocked"),
        (Some("192.0.2.1:5 198.51.100.2:4000".into()), "direct_failed:udp_blocked".into())
    );
    assert_eq!(told("<b>", "tried 10.1.2.3:5 Twice"), (None, "tried_:_twice".into()));
}

#[test]
fn a_refused_session_names_the_target_that_was_refused_not_the_first() {
    let (allowed, refused) = (tcp("127.0.0.1", 19080), tcp("127.0.0.1", 19999));
    let mut desk = Desk::new();
    for (n, targets, message, told) in [
        (1, vec![allowed.clone(), refused.clone()], format!("no: {refused:?}"), "127.0.0.1:19999"),
        (2, vec![allowed.clone(), refused.clone()], "tcp:10.0.0.1:19999 and more".into(), ""),
        (3, vec![allowed.clone(), refused.clone()], "the owner locked the computer".into(), ""),
        (4, vec![allowed.clone()], "the owner locked the computer".into(), "127.0.0.1:19080"),
    ] {
        let attempt = desk.attempt(n, &targets, false);
        let session = attempt.session;
        desk.broker.handle_open(attempt, desk.now);
        desk.drain();
        let refusal = Refusal::new(failure::POLICY_REFUSED, message);
        desk.broker.handle_answer(session, Err(refusal), desk.now);
        desk.drain();
        let record = desk.named("session.refused").pop().unwrap();
        assert_eq!(record.target.as_deref().unwrap_or_default(), told);
        assert_eq!(record.extra_personal.contains_key("targets"), targets.len() > 1);
    }
}

/// As many as the log has ends of: sessions that are over are remembered for a while.
#[test]
fn what_an_act_ended_is_counted_without_what_was_over() {
    let mut desk = Desk::new();
    let target = [tcp("127.0.0.1", 22)];
    for n in 1..4 {
        let session = desk.open(n, &target, false);
        desk.report(CONSOLE, session, vec![ended("console_closed")]);
    }
    desk.open(4, &target, false);
    // Not open yet: that it was refused is recorded, not that it ended.
    let attempt = desk.attempt(5, &target, false);
    desk.broker.handle_open(attempt, desk.now);
    desk.drain();
    let before = desk.named("session.ended").len();
    let all = Affected::Client("c".into());
    assert_eq!(desk.broker.handle_revoked(&all, "client_locked", desk.now), 1);
    desk.drain();
    assert_eq!(desk.named("session.ended").len() - before, 1);
    assert_eq!(desk.broker.handle_revoked(&all, "client_locked", desk.now), 0);
}
