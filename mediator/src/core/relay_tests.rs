//! Which relays are offered.

use std::time::Duration;

use adit_protocol::{code::failure, ids::RelayId, ids::SessionId, wire};

use super::{
    Broker,
    record_tests::{AGENT, CONSOLE, Desk, key, tcp},
    types::*,
};

impl Desk {
    fn relay(&mut self, n: u8, region: &str, takes: bool) {
        let addresses = if takes { vec![format!("r{n}.example:443")] } else { Vec::new() };
        let info = wire::RelayInfo {
            relay_id: vec![n; 16].into(),
            region: region.into(),
            addresses,
            ..wire::RelayInfo::default()
        };
        let (id, setting) = (RelayId([n; 16]), self.broker.relay_setting(RelayId([n; 16])));
        let device = Device::Relay { id, identity: key(n), info, drains: !takes, setting };
        self.broker.handle_connected(ConnectionId(u64::from(n)), device, self.now);
        self.drain();
    }

    fn tickets(&mut self, by: ConnectionId, session: SessionId, not: &[u8]) -> Vec<u8> {
        let not: Vec<_> = not.iter().map(|n| RelayId([*n; 16])).collect();
        let request = self.request();
        self.broker.handle_tickets(request, by, session, &not, self.now);
        self.drain();
        match self.replies.pop() {
            Some(Reply::Tickets(choices)) => names(&choices),
            _ => Vec::new(),
        }
    }
}

fn names(choices: &[RelayChoice]) -> Vec<u8> {
    choices.iter().map(|choice| choice.relay.relay_id[0]).collect()
}

/// Seven relays of three regions; 20 drains, 21 has only just registered.
fn desk() -> Desk {
    let mut desk = Desk::new();
    for (n, region) in [(10, "eu"), (11, "eu"), (12, "eu"), (13, "us"), (14, "us")] {
        desk.relay(n, region, true);
    }
    desk.relay(20, "asia", false);
    desk.now.mono += Duration::from_secs(60);
    desk.relay(21, "eu", true);
    desk
}

#[test]
fn both_ends_get_the_same_relays_of_different_regions() {
    let mut desk = desk();
    let session = desk.open(1, &[tcp("127.0.0.1", 22)], false);
    let Some(Reply::Granted { relays, .. }) = desk.replies.pop() else { panic!() };
    assert_eq!(names(&relays), [10, 13, 11, 12]);
    assert_eq!(desk.tickets(AGENT, session, &[]), [10, 13, 11, 12]);
    // The next session finds them more loaded.
    desk.open(2, &[tcp("127.0.0.1", 22)], false);
    let Some(Reply::Granted { relays, .. }) = desk.replies.pop() else { panic!() };
    assert_eq!(names(&relays)[1], 10, "{relays:?}");
}

#[test]
fn a_relay_that_fails_or_is_gone_is_replaced_for_both_ends() {
    let mut desk = desk();
    let session = desk.open(1, &[tcp("127.0.0.1", 22)], false);
    // The console does not reach two of them.
    let console = desk.tickets(CONSOLE, session, &[10, 13]);
    assert_eq!(console, [11, 12, 14, 21]);
    // The agent learns of the new ones without saying anything.
    assert_eq!(desk.tickets(AGENT, session, &[]), [10, 13, 11, 12, 14, 21]);
    // Without its control connection a relay is not offered.
    desk.broker.handle_disconnected(ConnectionId(11), desk.now);
    assert_eq!(desk.tickets(AGENT, session, &[]), [10, 13, 12, 14, 21]);
    // Asking again and again does not grow the list.
    for _ in 0..20 {
        desk.tickets(CONSOLE, session, &[10, 12, 13, 14, 21]);
    }
    assert_eq!(desk.tickets(CONSOLE, session, &[]), [10, 13, 12, 14, 21]);
}

/// What was sent to the console and the relays, in this order.
fn sent(desk: &mut Desk) -> (Vec<u8>, bool, usize, usize) {
    let (mut early, mut offered, mut cuts, mut ends) = (Vec::new(), false, 0, 0);
    while let Some(transmit) = desk.broker.poll_transmit() {
        match transmit {
            Transmit::Tickets { to, relays, .. } => {
                assert_eq!(to, CONSOLE);
                early = names(&relays);
            }
            Transmit::Offer { .. } => offered = true,
            Transmit::Cut { .. } => cuts += 1,
            Transmit::End { .. } => ends += 1,
            Transmit::Signal { .. } | Transmit::Close { .. } => {}
        }
    }
    (early, offered, cuts, ends)
}

#[test]
fn the_console_gets_tickets_with_the_offer_and_never_before_the_record() {
    for (durable, answer) in [
        (false, None),
        (true, Some(Ok(vec![1].into()))),
        (true, Some(Err(Refusal::new(failure::POLICY_REFUSED, "no")))),
        (true, None),
    ] {
        let mut desk = desk();
        let attempt = desk.attempt(1, &[tcp("127.0.0.1", 22)], false);
        let (session, request) = (attempt.session, attempt.request);
        desk.broker.handle_open(attempt, desk.now);
        let Some(Output::Audit { id, .. }) = desk.broker.poll_output() else { panic!() };
        assert_eq!(sent(&mut desk), (vec![], false, 0, 0), "before the record is durable");
        if !durable {
            desk.broker.handle_audit_failed(id, desk.now);
            assert_eq!(sent(&mut desk), (vec![], false, 0, 0), "the record failed");
            continue;
        }
        let recorded = Recorded { seq: 1, ..Recorded::nothing() };
        desk.broker.handle_audit_committed(id, recorded, desk.now);
        assert_eq!(sent(&mut desk), (vec![10, 13, 11, 12], true, 0, 0));
        let refused = match answer {
            Some(answer) => {
                let refused = answer.is_err();
                desk.broker.handle_answer(session, answer, desk.now);
                refused
            }
            None => {
                desk.now.mono += adit_protocol::limits::OPEN_TIMEOUT;
                desk.broker.handle_timeout(desk.now);
                true
            }
        };
        if !refused {
            let Some(Output::Reply { reply: Reply::Granted { relays, .. }, .. }) =
                desk.broker.poll_output()
            else {
                panic!()
            };
            assert_eq!(names(&relays), [10, 13, 11, 12], "the same ones as before");
            continue;
        }
        // All relays that the console may have joined are told that nothing comes of it.
        let (early, offered, cuts, _) = sent(&mut desk);
        assert_eq!((early, offered, cuts), (vec![], false, 4));
        let more = desk.request();
        desk.broker.handle_tickets(more, CONSOLE, session, &[], desk.now);
        desk.drain();
        let refusals = desk.replies.iter().filter(|r| matches!(r, Reply::Refused(_))).count();
        assert_eq!(refusals, 2, "the attempt, and the wish for more tickets: {request:?}");
    }
}

/// What an operator wants may change while a relay's addresses are being tried, for seconds that
/// the relay chooses.
#[test]
fn a_relay_judged_by_another_setting_than_holds_has_to_connect_anew() {
    let connecting = |desk: &Desk, connection: u64| {
        let id = RelayId([10; 16]);
        let addresses = vec!["r.example:443".to_owned()];
        let info = wire::RelayInfo { addresses, ..wire::RelayInfo::default() };
        let setting = desk.broker.relay_setting(id);
        (
            ConnectionId(connection),
            Device::Relay { id, identity: key(10), info, drains: false, setting },
        )
    };
    let closed = |desk: &mut Desk| {
        let mut closed = Vec::new();
        while let Some(transmit) = desk.broker.poll_transmit() {
            if let Transmit::Close { to } = transmit {
                closed.push(to);
            }
        }
        closed
    };
    let acts: [fn(&mut Broker, RelayId); 2] =
        [Broker::handle_relay_drained, Broker::handle_relay_dropped];
    for act in acts {
        let mut desk = Desk::new();
        let (late, device) = connecting(&desk, 30);
        act(&mut desk.broker, RelayId([10; 16]));
        desk.broker.handle_connected(late, device, desk.now);
        assert_eq!(closed(&mut desk), [late]);
        assert!(desk.broker.relay_infos().is_empty(), "it is offered to nobody");
        desk.broker.handle_disconnected(late, desk.now);
        // Judged anew it is taken, and other relays' settings are nothing to it.
        let (again, device) = connecting(&desk, 31);
        act(&mut desk.broker, RelayId([11; 16]));
        desk.broker.handle_connected(again, device, desk.now);
        assert!(closed(&mut desk).is_empty());
        assert_eq!(desk.broker.relay_infos().len(), 1);
        // One that comes too late takes the place of nobody.
        let (late, device) = connecting(&desk, 32);
        act(&mut desk.broker, RelayId([10; 16]));
        desk.broker.handle_connected(late, device, desk.now);
        assert_eq!(closed(&mut desk), [again, late]);
    }
}
