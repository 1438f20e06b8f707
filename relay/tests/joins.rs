//! Who joins and who does not, over real sockets with the join client of the endpoints.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod support;

use std::time::{Duration, Instant};

use adit_net::{
    identity::{DeviceIdentity, NoiseKeypair},
    noise::join::{JoinError, begin_join},
};
use adit_protocol::{
    code::JoinStatus,
    handshake::join_prologue,
    keys::SigningKey,
    ticket::{Role, Ticket},
    wire,
};
use adit_relay::core::pairing::Limits;
use support::{NOW_MS, PATIENCE, TestRelay, limits, read_all, session};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

/// Is the connection closed without a byte for us? A reset says as little as an end.
async fn closed_silently(stream: &mut TcpStream) -> bool {
    match timeout(PATIENCE, stream.read(&mut [0; 64])).await.expect("still open") {
        Ok(n) => n == 0,
        Err(_) => true,
    }
}

async fn refusal(relay: &TestRelay, key: &NoiseKeypair, ticket: &wire::Signed) -> JoinStatus {
    let mut stream = relay.connect().await;
    match relay.join_over(&mut stream, key, ticket, 0).await {
        Err(JoinError::Refused(status)) => status,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn wrong_tickets_are_refused_with_the_reason_and_leave_nothing() {
    let relay = TestRelay::start(limits());
    let key = NoiseKeypair::generate().unwrap();
    let good = relay.ticket(session(1), Role::Agent, &key);
    let sign = |ticket: Ticket| ticket.sign(&relay.ticket_key);
    let stranger = SigningKey::generate().unwrap();

    let other_relay = Ticket { relay: stranger.public(), ..good };
    assert_eq!(refusal(&relay, &key, &sign(other_relay)).await, JoinStatus::BadTicket);
    let other_key = NoiseKeypair::generate().unwrap();
    assert_eq!(refusal(&relay, &other_key, &sign(good)).await, JoinStatus::BadTicket);
    let expired = Ticket { expires_ms: NOW_MS, ..good };
    assert_eq!(refusal(&relay, &key, &sign(expired)).await, JoinStatus::Expired);
    let future = Ticket { not_before_ms: NOW_MS + 60_000, ..good };
    assert_eq!(refusal(&relay, &key, &sign(future)).await, JoinStatus::Expired);
    assert_eq!(refusal(&relay, &key, &good.sign(&stranger)).await, JoinStatus::BadTicket);
    let mut altered = sign(good);
    altered.payload = [&altered.payload[..], &[0x18, 1]].concat().into();
    assert_eq!(refusal(&relay, &key, &altered).await, JoinStatus::BadTicket);
    assert_eq!(refusal(&relay, &key, &wire::Signed::default()).await, JoinStatus::BadTicket);
    let mut stream = relay.connect().await;
    let slot = relay.join_over(&mut stream, &key, &sign(good), 2).await;
    assert!(matches!(slot, Err(JoinError::Refused(JoinStatus::BadTicket))));

    relay.eventually("all gone", |hub| hub.counts().unjoined == 0).await;
    assert_eq!(relay.hub.counts().waiting, 0);
}

#[tokio::test]
async fn the_holder_may_use_a_ticket_again_and_the_newest_join_wins() {
    let relay = TestRelay::start(limits());
    let key = NoiseKeypair::generate().unwrap();
    let ticket = relay.ticket(session(1), Role::Console, &key).sign(&relay.ticket_key);
    let mut older = relay.connect().await;
    relay.join_over(&mut older, &key, &ticket, 0).await.unwrap();
    let mut agent = relay.join(session(1), Role::Agent).await;
    relay.eventually("a pair", |hub| hub.counts().pairs == 1).await;

    let mut newer = relay.connect().await;
    relay.join_over(&mut newer, &key, &ticket, 0).await.unwrap();
    assert!(read_all(&mut older).await.is_err(), "the older one must see a reset");
    assert!(read_all(&mut agent).await.is_err(), "and so must its peer");
    let mut agent = relay.join(session(1), Role::Agent).await;
    newer.write_all(b"new").await.unwrap();
    let mut got = [0; 3];
    agent.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"new");
}

#[tokio::test]
async fn refuses_joins_while_draining_and_keeps_the_pairs() {
    let relay = TestRelay::start(limits());
    let (mut console, mut agent) = relay.pair(session(1)).await;
    relay.eventually("a pair", |hub| hub.counts().pairs == 1).await;
    relay.hub.handle_drain();
    let key = NoiseKeypair::generate().unwrap();
    let ticket = relay.ticket(session(2), Role::Console, &key).sign(&relay.ticket_key);
    assert_eq!(refusal(&relay, &key, &ticket).await, JoinStatus::Draining);
    console.write_all(b"x").await.unwrap();
    agent.read_exact(&mut [0]).await.unwrap();
}

#[tokio::test]
async fn cut_session_is_reset_at_both_ends_and_stays_away() {
    let relay = TestRelay::start(limits());
    let (mut console, mut agent) = relay.pair(session(1)).await;
    let (mut other, _other_agent) = relay.pair(session(2)).await;
    relay.eventually("two pairs", |hub| hub.counts().pairs == 2).await;
    relay.hub.handle_cut(session(1));
    assert!(read_all(&mut console).await.is_err());
    assert!(read_all(&mut agent).await.is_err());
    let key = NoiseKeypair::generate().unwrap();
    let ticket = relay.ticket(session(1), Role::Console, &key).sign(&relay.ticket_key);
    assert_eq!(refusal(&relay, &key, &ticket).await, JoinStatus::BadTicket);
    other.write_all(b"x").await.unwrap();
}

#[tokio::test]
async fn garbage_gets_no_answer() {
    let relay = TestRelay::start(limits());
    let mut tls_garbage = vec![0x16, 3, 1, 2, 0];
    tls_garbage.extend(support::pattern(1, 600));
    let mut right_length = vec![1, 0];
    right_length.extend(support::pattern(2, 256));
    let sends: [&[u8]; 8] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0xff; 4096],
        &[0, 0],
        &[0, 95],
        &[3, 0xed, 0],
        &right_length,
        b"\x00",
        b"",
    ];
    for bytes in sends {
        let mut stream = relay.connect().await;
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        assert!(closed_silently(&mut stream).await, "{:?}", &bytes[..bytes.len().min(8)]);
    }
    // TLS answers with an alert, as TLS does; the connection ends all the same.
    let mut stream = relay.connect().await;
    stream.write_all(&tls_garbage).await.unwrap();
    let _ = read_all(&mut stream).await;
    relay.eventually("all gone", |hub| hub.counts().unjoined == 0).await;
}

#[tokio::test]
async fn join_to_another_relays_key_gets_no_answer() {
    let relay = TestRelay::start(limits());
    let other = DeviceIdentity::generate(NOW_MS).unwrap();
    let key = NoiseKeypair::generate().unwrap();
    let ticket = relay.ticket(session(1), Role::Agent, &key).sign(&relay.ticket_key);
    let mut stream = relay.connect().await;
    let result =
        adit_net::noise::join::join_relay(&mut stream, &other.noise.public, &key, &ticket, 0).await;
    assert!(matches!(result, Err(JoinError::Io(_))), "{result:?}");
}

#[tokio::test]
async fn slow_and_silent_connections_go_in_time() {
    let unjoined = Duration::from_millis(400);
    let relay = TestRelay::start(Limits { unjoined, unpaired: unjoined, ..limits() });
    let mut silent = relay.connect().await;
    let mut trickling = relay.connect().await;
    let mut unpaired = relay.join(session(1), Role::Console).await;
    let start = Instant::now();
    let trickle = async {
        let mut bytes = vec![1, 0];
        bytes.extend([7; 256]);
        for byte in bytes {
            if trickling.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        closed_silently(&mut trickling).await
    };
    let (silent, trickled, unpaired) =
        tokio::join!(closed_silently(&mut silent), trickle, closed_silently(&mut unpaired));
    assert!(silent && trickled && unpaired);
    assert!(start.elapsed() >= unjoined);
    relay.eventually("all gone", |hub| hub.counts() == Default::default()).await;
}

#[tokio::test]
async fn message_1_alone_is_no_join() {
    let relay = TestRelay::start(Limits { unjoined: Duration::from_millis(300), ..limits() });
    let mut console = relay.join(session(1), Role::Console).await;
    let key = NoiseKeypair::generate().unwrap();
    let message = message1(&relay, &key, Role::Agent);
    let mut agent = relay.connect().await;
    agent.write_all(&message).await.unwrap();
    let mut reply = vec![0; usize::from(agent.read_u16().await.unwrap())];
    agent.read_exact(&mut reply).await.unwrap();
    // A confirmation that does not authenticate ends it.
    agent.write_all(&[0, 16]).await.unwrap();
    agent.write_all(&[0; 16]).await.unwrap();
    assert!(closed_silently(&mut agent).await);
    assert_eq!((relay.hub.counts().waiting, relay.hub.counts().pairs), (1, 0));
    assert!(timeout(Duration::from_millis(50), console.read(&mut [0])).await.is_err());
}

/// An agent's join of session 1, and what it said on the wire.
async fn recorded_join(relay: &TestRelay) -> (TcpStream, Vec<u8>) {
    let key = NoiseKeypair::generate().unwrap();
    let (mut near, far) = tokio::io::duplex(4096);
    let mut upstream = relay.connect().await;
    // Records what the joiner says while passing it on.
    let recording = async {
        let (mut from, mut to) = tokio::io::split(far);
        let (mut relay_in, mut relay_out) = upstream.split();
        let mut recorded = Vec::new();
        let up = async {
            let mut buffer = [0; 1024];
            loop {
                let n = from.read(&mut buffer).await.unwrap();
                if n == 0 {
                    break;
                }
                recorded.extend(&buffer[..n]);
                relay_out.write_all(&buffer[..n]).await.unwrap();
            }
        };
        tokio::select! {
            () = up => {}
            _ = tokio::io::copy(&mut relay_in, &mut to) => {}
        }
        recorded
    };
    let ticket = relay.ticket(session(1), Role::Agent, &key).sign(&relay.ticket_key);
    let joining = async {
        relay.join_over(&mut near, &key, &ticket, 0).await.unwrap();
        drop(near);
    };
    let (recorded, ()) = tokio::join!(recording, joining);
    (upstream, recorded)
}

#[tokio::test]
async fn recorded_join_bytes_neither_join_nor_displace() {
    let relay = TestRelay::start(limits());
    let (mut upstream, recorded) = recorded_join(&relay).await;
    let mut console = relay.join(session(1), Role::Console).await;
    relay.eventually("a pair", |hub| hub.counts().pairs == 1).await;

    for _ in 0..20 {
        let mut replay = relay.connect().await;
        replay.write_all(&recorded).await.unwrap();
        assert!(closed_silently(&mut replay).await);
    }
    assert_eq!((relay.hub.counts().waiting, relay.hub.counts().pairs), (0, 1));
    console.write_all(b"still").await.unwrap();
    let mut got = [0; 5];
    upstream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"still");
}

#[tokio::test]
async fn recorded_join_bytes_and_old_tickets_are_worth_nothing_after_a_restart() {
    let relay = TestRelay::start(limits());
    let (_upstream, recorded) = recorded_join(&relay).await;
    relay.eventually("a join", |hub| hub.counts().waiting == 1).await;
    let relay = relay.restarted(limits()).await;
    let _console = relay.join(session(1), Role::Console).await;
    let mut replay = relay.connect().await;
    replay.write_all(&recorded).await.unwrap();
    // The relay answers with an ephemeral key of its own, so what follows does not authenticate.
    let _ = read_all(&mut replay).await;
    assert_eq!((relay.hub.counts().waiting, relay.hub.counts().pairs), (1, 0));

    let key = NoiseKeypair::generate().unwrap();
    let good = relay.ticket(session(2), Role::Agent, &key);
    let expired = Ticket { expires_ms: NOW_MS, ..good }.sign(&relay.ticket_key);
    assert_eq!(refusal(&relay, &key, &expired).await, JoinStatus::Expired);
    let thief = NoiseKeypair::generate().unwrap();
    let stolen = good.sign(&relay.ticket_key);
    assert_eq!(refusal(&relay, &thief, &stolen).await, JoinStatus::BadTicket);
    let forged = good.sign(&SigningKey::generate().unwrap());
    assert_eq!(refusal(&relay, &key, &forged).await, JoinStatus::BadTicket);
    // Its holder is served as before.
    relay.join_over(&mut relay.connect().await, &key, &stolen, 0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_joiners_are_served_in_a_flood_from_their_own_address() {
    let relay =
        TestRelay::start(Limits { max_unjoined: 256, max_unjoined_per_source: 128, ..limits() });
    let mut flood = JoinSet::new();
    for i in 0..4 {
        let address = relay.address;
        flood.spawn(async move {
            let mut held = std::collections::VecDeque::new();
            loop {
                let Ok(mut stream) = TcpStream::connect(address).await else { continue };
                if i % 2 == 0 {
                    // Half a frame, never finished.
                    let _ = stream.write_all(&[1, 0, 7, 7, 7]).await;
                }
                held.push_back(stream);
                if held.len() > 400 {
                    held.pop_front();
                }
            }
        });
    }
    relay.eventually("a flood", |hub| hub.counts().unjoined >= 128).await;
    for n in 0..20 {
        let joining = async {
            // A joiner that was evicted tries again, as endpoints do.
            let console = join_persistently(&relay, n, Role::Console).await;
            (console, join_persistently(&relay, n, Role::Agent).await)
        };
        let (mut console, mut agent) =
            timeout(Duration::from_secs(5), joining).await.expect("not served in the flood");
        console.write_all(b"x").await.unwrap();
        agent.read_exact(&mut [0]).await.unwrap();
        assert!(relay.hub.counts().unjoined <= 256 + 8);
    }
    flood.shutdown().await;
}

async fn join_persistently(relay: &TestRelay, n: u32, role: Role) -> TcpStream {
    loop {
        let (mut stream, key) = (relay.connect().await, NoiseKeypair::generate().unwrap());
        let ticket = relay.ticket(session(n), role, &key).sign(&relay.ticket_key);
        if relay.join_over(&mut stream, &key, &ticket, 0).await.is_ok() {
            return stream;
        }
    }
}

/// A framed message 1 with a good ticket for session 1.
fn message1(relay: &TestRelay, key: &NoiseKeypair, role: Role) -> Vec<u8> {
    use prost::Message;
    let ticket = relay.ticket(session(1), role, key).sign(&relay.ticket_key);
    let init = wire::JoinInit { ticket: Some(ticket), slot: 0 }.encode_to_vec();
    let mut state =
        adit_net::noise::ik_initiator(&join_prologue(), key, &relay.identity.noise.public).unwrap();
    let message = adit_net::noise::write_message(&mut state, &init).unwrap();
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat()
}

/// A round trip earlier than without; but only who confirms takes anything off the connection.
#[tokio::test]
async fn an_agent_gets_what_the_console_said_while_it_confirms() {
    let relay = TestRelay::start(limits());
    let mut console = relay.join(session(1), Role::Console).await;
    let begin = async || {
        let (mut stream, key) = (relay.connect().await, NoiseKeypair::generate().unwrap());
        let ticket = relay.ticket(session(1), Role::Agent, &key).sign(&relay.ticket_key);
        let to = &relay.identity.noise.public;
        let accepted = begin_join(&mut stream, to, &key, &ticket, 0).await.unwrap();
        (stream, accepted)
    };
    let read = async |stream: &mut TcpStream| {
        let mut got = [0; 5];
        timeout(PATIENCE, stream.read_exact(&mut got)).await.unwrap().unwrap();
        got
    };
    // One that is there before the console speaks, one that comes after, one that never confirms.
    let (mut early, accepted) = begin().await;
    console.write_all(b"first").await.unwrap();
    assert_eq!(&read(&mut early).await, b"first");
    let (mut lost, _) = begin().await;
    assert_eq!(&read(&mut lost).await, b"first");
    drop(lost);
    assert_eq!(relay.hub.counts().pairs, 0, "paired before its confirmation");
    accepted.confirm(&mut early).await.unwrap();
    console.write_all(b"again").await.unwrap();
    assert_eq!(&read(&mut early).await, b"again");
    early.write_all(b"reply").await.unwrap();
    assert_eq!(&read(&mut console).await, b"reply");
    // The newest join wins, and hears nothing twice.
    let (mut late, accepted) = begin().await;
    accepted.confirm(&mut late).await.unwrap();
    assert!(closed_silently(&mut early).await);
}
