//! One connection: answers in any order, bounds, bad input, silence.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use adit_control::{CloseReason, Incoming, Options, Peer, RequestError, failure, server, start};
use adit_protocol::{
    code::failure as codes,
    limits::{MAX_CONTROL_FRAME, MAX_CONTROL_IN_FLIGHT},
    wire::{self, Done, Frame, Ping, Renew, frame::Body},
};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinSet,
};

const SOON: Duration = Duration::from_secs(5);

struct End {
    peer: Peer,
    incoming: Incoming,
    driver: JoinSet<CloseReason>,
}

impl End {
    fn new(stream: DuplexStream, options: Options) -> Self {
        let (peer, incoming, future) = start(stream, options);
        let mut driver = JoinSet::new();
        driver.spawn(future);
        Self { peer, incoming, driver }
    }

    async fn ended(&mut self) -> CloseReason {
        let ended = tokio::time::timeout(Duration::from_secs(600), self.driver.join_next()).await;
        ended.expect("never hangs").unwrap().unwrap()
    }
}

fn pair() -> (End, End) {
    let (near, far) = duplex(1024);
    (End::new(near, Options::client()), End::new(far, Options::server()))
}

fn renew(n: u8) -> Body {
    Body::Renew(Renew { session_id: vec![n].into() })
}

fn number(body: &Body) -> u8 {
    match body {
        Body::Renew(r) => r.session_id[0],
        other => panic!("{other:?}"),
    }
}

fn framed(frame: &Frame) -> Vec<u8> {
    let bytes = frame.encode_to_vec();
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat()
}

#[tokio::test]
async fn answers_in_any_order_reach_who_asked() {
    let (client, mut server) = pair();
    let asking = async {
        let ask = |n| client.peer.request(renew(n), SOON);
        tokio::join!(ask(1), ask(2), ask(3))
    };
    let answering = async {
        let mut requests = Vec::new();
        for _ in 0..3 {
            requests.push(server.incoming.recv().await.unwrap());
        }
        for request in requests.into_iter().rev() {
            let n = number(&request.body);
            match n {
                2 => request.fail(failure(codes::NO_SUCH_SESSION, "no")),
                3 => drop(request),
                n => request.reply(renew(n + 100)),
            }
        }
    };
    let ((one, two, three), ()) = tokio::join!(asking, answering);
    assert_eq!(number(&one.unwrap()), 101);
    let code = |r: Result<Body, RequestError>| match r {
        Err(RequestError::Failed(f)) => f.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(two), codes::NO_SUCH_SESSION);
    assert_eq!(code(three), codes::INTERNAL);
}

#[tokio::test]
async fn both_sides_ask_and_push_on_one_connection() {
    let (mut client, mut server) = pair();
    client.peer.push(renew(7)).unwrap();
    let push = server.incoming.recv().await.unwrap();
    assert!(push.is_push() && number(&push.body) == 7);
    push.reply(Body::Done(Done {})); // does nothing
    let (answer, ()) = tokio::join!(server.peer.request(renew(1), SOON), async {
        let request = client.incoming.recv().await.unwrap();
        assert!(!request.is_push());
        request.reply(Body::Done(Done {}));
    });
    assert_eq!(answer, Ok(Body::Done(Done {})));
}

#[tokio::test]
async fn closing_sends_what_is_queued_and_tells_both_ends() {
    let (mut client, mut server) = pair();
    for n in 0..50 {
        server.peer.push(renew(n)).unwrap();
    }
    server.peer.close();
    for n in 0..50 {
        assert_eq!(number(&client.incoming.recv().await.unwrap().body), n);
    }
    assert_eq!(server.ended().await, CloseReason::Local);
    assert_eq!(client.ended().await, CloseReason::Remote);
    assert!(client.incoming.recv().await.is_none());
    client.peer.closed().await;
    assert_eq!(client.peer.close_reason(), Some(CloseReason::Remote));
    assert_eq!(client.peer.push(renew(1)), Err(RequestError::Closed));
    assert_eq!(client.peer.request(renew(1), SOON).await, Err(RequestError::Closed));
}

#[tokio::test]
async fn dropped_driver_wakes_who_waits() {
    let (mut client, _server) = pair();
    let (answer, ()) = tokio::join!(client.peer.request(renew(1), SOON), async {
        tokio::task::yield_now().await;
        client.driver.shutdown().await;
    });
    assert_eq!(answer, Err(RequestError::Closed));
    assert_eq!(client.peer.close_reason(), Some(CloseReason::Dropped));
}

#[tokio::test(start_paused = true)]
async fn unanswered_request_times_out_and_a_late_answer_is_ignored() {
    let (client, mut server) = pair();
    let result = client.peer.request(renew(1), SOON).await;
    assert_eq!(result, Err(RequestError::Timeout(SOON)));
    server.incoming.recv().await.unwrap().reply(Body::Done(Done {}));
    let (answer, ()) = tokio::join!(client.peer.request(renew(2), SOON), async {
        server.incoming.recv().await.unwrap().reply(renew(2));
    });
    assert_eq!(number(&answer.unwrap()), 2);
}

#[tokio::test]
async fn bad_bytes_end_the_connection_with_a_reason() {
    let unreadable = [&8u32.to_be_bytes()[..], &[0xff; 8]].concat();
    let oversized = u32::try_from(MAX_CONTROL_FRAME + 1).unwrap().to_be_bytes().to_vec();
    let early = u32::try_from(adit_control::MAX_HELLO_FRAME + 1).unwrap().to_be_bytes().to_vec();
    let reply_to_nothing = framed(&Frame { id: 0, reply: true, body: None });
    let whole = framed(&Frame { id: 1, reply: false, body: Some(renew(1)) });
    for (bytes, reason) in [
        (unreadable, CloseReason::Garbage),
        (oversized, CloseReason::Oversized),
        (early, CloseReason::Oversized),
        (vec![0xff; 64], CloseReason::Oversized),
        (reply_to_nothing, CloseReason::Garbage),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), CloseReason::Oversized),
        (Vec::new(), CloseReason::Remote),
    ] {
        let (mut raw, far) = duplex(1024);
        let mut server = End::new(far, Options::server());
        raw.write_all(&bytes).await.unwrap();
        raw.shutdown().await.unwrap();
        assert_eq!(server.ended().await, reason, "{bytes:?}");
    }
    for cut in 1..whole.len() {
        let (mut raw, far) = duplex(1024);
        let mut server = End::new(far, Options::server());
        raw.write_all(&whole[..cut]).await.unwrap();
        raw.shutdown().await.unwrap();
        // The codec forgets a bare length, of which nothing was delivered either.
        let reason = if cut == 4 { CloseReason::Remote } else { CloseReason::Truncated };
        assert_eq!(server.ended().await, reason, "cut at {cut}");
        assert!(server.incoming.recv().await.is_none());
    }
}

#[tokio::test]
async fn unknown_messages_are_refused_and_unknown_fields_ignored() {
    let (mut raw, far) = duplex(4096);
    let mut server = End::new(far, Options::server());
    // Request 5 with a body of number 1000, which no version has yet.
    let unknown = [&[0, 0, 0, 5, 0x08, 5][..], &[0xc2, 0x3e, 0]].concat();
    raw.write_all(&unknown).await.unwrap();
    let len = raw.read_u32().await.unwrap();
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    raw.read_exact(&mut bytes).await.unwrap();
    let reply = Frame::decode(&bytes[..]).unwrap();
    let Some(Body::Failure(failure)) = reply.body else { panic!("{reply:?}") };
    assert_eq!((reply.id, reply.reply, failure.code.as_str()), (5, true, codes::BAD_REQUEST));
    // A known body with an unknown field is a known body.
    let ping = Frame { id: 6, reply: false, body: Some(Body::Renew(Renew::default())) };
    let extra = [&ping.encode_to_vec()[..], &[0xc2, 0x3e, 0]].concat();
    raw.write_all(&u32::try_from(extra.len()).unwrap().to_be_bytes()).await.unwrap();
    raw.write_all(&extra).await.unwrap();
    assert!(matches!(server.incoming.recv().await.unwrap().body, Body::Renew(_)));
}

#[tokio::test]
async fn requests_beyond_the_bound_are_refused_and_floods_end_the_connection() {
    let (mut raw, far) = duplex(64 * 1024);
    let mut server = End::new(far, Options::server());
    let over = MAX_CONTROL_IN_FLIGHT + 1;
    for id in 1..=over {
        let id = u64::try_from(id).unwrap();
        raw.write_all(&framed(&Frame { id, reply: false, body: Some(renew(1)) })).await.unwrap();
    }
    let len = raw.read_u32().await.unwrap();
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    raw.read_exact(&mut bytes).await.unwrap();
    let reply = Frame::decode(&bytes[..]).unwrap();
    assert_eq!(reply.id, u64::try_from(over).unwrap());
    assert!(matches!(reply.body, Some(Body::Failure(f)) if f.code == codes::BUSY));

    let push = framed(&Frame { id: 0, reply: false, body: Some(renew(1)) });
    let mut flood = JoinSet::new();
    flood.spawn(async move { while raw.write_all(&push).await.is_ok() {} });
    assert_eq!(server.ended().await, CloseReason::Flooded);
}

#[tokio::test(start_paused = true)]
async fn peer_that_does_not_read_is_dropped_and_pins_a_bounded_amount() {
    let (_raw, far) = duplex(1024);
    let mut server = End::new(far, Options::server());
    let chunk = Body::AuditChunk(wire::AuditChunk { lines: vec![0; 200_000].into(), next_seq: 0 });
    let accepted = (0..1000).take_while(|_| server.peer.push(chunk.clone()).is_ok()).count();
    assert!(accepted * 200_000 <= adit_control::QUEUE_BYTES, "{accepted}");
    assert_eq!(server.peer.push(chunk), Err(RequestError::Busy));
    assert_eq!(server.ended().await, CloseReason::Stalled);
}

#[tokio::test]
async fn message_larger_than_the_protocol_allows_is_an_error_here_not_there() {
    let (client, mut server) = pair();
    let huge = || wire::AuditChunk { lines: vec![0; MAX_CONTROL_FRAME].into(), next_seq: 0 };
    assert_eq!(client.peer.push(Body::AuditChunk(huge())), Err(RequestError::TooLarge));
    let (answer, ()) = tokio::join!(client.peer.request(renew(1), SOON), async {
        server.incoming.recv().await.unwrap().reply(Body::AuditChunk(huge()));
    });
    assert!(matches!(answer, Err(RequestError::Failed(f)) if f.code == codes::INTERNAL));
}

#[tokio::test(start_paused = true)]
async fn silent_peer_is_noticed_after_two_and_a_half_intervals() {
    let (_raw, far) = duplex(64 * 1024);
    let mut client = End::new(far, Options::client());
    let interval = Duration::from_secs(2);
    client.peer.set_keepalive(interval);
    let start = tokio::time::Instant::now();
    assert!(matches!(client.ended().await, CloseReason::Silent(_)));
    assert_eq!(start.elapsed(), interval.mul_f32(2.5));
}

#[tokio::test(start_paused = true)]
async fn keepalive_keeps_both_ends_up_and_measures_the_round_trip() {
    let (mut client, mut server) = pair();
    assert_eq!(client.peer.rtt(), None);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!client.peer.is_closed() && !server.peer.is_closed());
    assert!(client.peer.rtt().is_some());
    // A shorter interval does not count the silence before it.
    client.peer.set_keepalive(Duration::from_secs(1));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!client.peer.is_closed());
    assert!(client.driver.try_join_next().is_none() && server.driver.try_join_next().is_none());
}

#[tokio::test]
async fn ping_is_answered_although_nobody_serves_requests() {
    let (client, server) = pair();
    let answer = client.peer.request(Body::Ping(Ping {}), SOON).await;
    assert_eq!(answer, Ok(Body::Done(Done {})));
    drop(server.incoming);
    let answer = client.peer.request(renew(1), SOON).await;
    assert!(matches!(answer, Err(RequestError::Failed(f)) if f.code == codes::BAD_REQUEST));
}

#[tokio::test(start_paused = true)]
async fn connection_must_begin_with_hello() {
    use server::{HelloError, expect_hello};
    let hello = |protocol| Body::Hello(wire::Hello { protocol, ..Default::default() });
    for (body, error, code) in [
        (renew(1), HelloError::Unexpected, codes::BAD_REQUEST),
        (hello(9), HelloError::Version(9), codes::UNSUPPORTED_VERSION),
    ] {
        let (client, mut server) = pair();
        let (answer, outcome) =
            tokio::join!(client.peer.request(body, SOON), expect_hello(&mut server.incoming, SOON));
        assert_eq!(outcome.unwrap_err(), error);
        assert!(matches!(answer, Err(RequestError::Failed(f)) if f.code == code));
    }
    let (client, mut server) = pair();
    assert_eq!(expect_hello(&mut server.incoming, SOON).await.unwrap_err(), HelloError::Timeout);
    client.peer.close();
    assert_eq!(expect_hello(&mut server.incoming, SOON).await.unwrap_err(), HelloError::Closed);
}

/// A stranger must not fill the memory with requests that nobody has come to yet: what may wait
/// is counted in bytes, and few are allowed to those who have proved nothing.
#[tokio::test]
async fn strangers_may_leave_little_and_the_trusted_more() {
    let hello = |role| Frame {
        id: 1,
        reply: false,
        body: Some(Body::Hello(wire::Hello { role, ..wire::Hello::default() })),
    };
    for (role, trusted, frames) in [(1, false, 9), (2, false, 2), (2, true, 9), (3, false, 9)] {
        let (mut raw, far) = duplex(1024);
        let mut server = End::new(far, Options::server());
        raw.write_all(&framed(&hello(role))).await.unwrap();
        let request = server.incoming.recv().await.unwrap();
        request.reply(Body::Welcome(wire::Welcome::default()));
        if trusted {
            server.peer.trust();
        }
        let size = if trusted || role != 2 { MAX_CONTROL_FRAME } else { 16 * 1024 };
        let big = wire::Login { password: "x".repeat(size - 64), ..wire::Login::default() };
        let mut taken = 0;
        let write = async {
            let (mut read, mut write) = tokio::io::split(raw);
            let sink = async { while read.read_u8().await.is_ok() {} };
            let send = async {
                for id in 2..100 {
                    let body = Some(Body::Login(big.clone()));
                    if write.write_all(&framed(&Frame { id, reply: false, body })).await.is_err() {
                        return;
                    }
                }
            };
            tokio::join!(sink, send);
        };
        let (reason, ()) = tokio::join!(server.ended(), write);
        assert_eq!(reason, CloseReason::Flooded);
        while server.incoming.recv().await.is_some() {
            taken += 1;
        }
        assert!(taken <= frames, "role {role}: {taken} frames of {size} bytes waited");
    }
}

/// Empty elements of a list take two bytes each on the wire, and a hundred times that when read.
#[tokio::test]
async fn lists_count_by_what_they_take_in_memory() {
    let report = |n: usize| Frame {
        id: 0,
        reply: false,
        body: Some(Body::SessionReport(wire::SessionReport {
            events: vec![wire::SessionEvent::default(); n],
            ..wire::SessionReport::default()
        })),
    };
    let one = size_of::<wire::SessionEvent>();
    for (events, reason) in [
        (adit_control::MAX_IN_MEMORY / one + 1, CloseReason::Oversized),
        (adit_control::MAX_IN_MEMORY / one, CloseReason::Flooded),
    ] {
        let (mut raw, far) = duplex(MAX_CONTROL_FRAME);
        let mut server = End::new(far, Options::server());
        server.peer.trust();
        let frame = framed(&report(events));
        assert!(frame.len() < MAX_CONTROL_FRAME / 8, "{} bytes", frame.len());
        let write = async {
            for _ in 0..adit_control::INCOMING_LARGEST {
                if raw.write_all(&frame).await.is_err() {
                    return;
                }
            }
        };
        let (ended, ()) = tokio::join!(server.ended(), write);
        assert_eq!(ended, reason);
        let mut held = 0;
        while let Some(request) = server.incoming.recv().await {
            let Body::SessionReport(report) = request.body else { panic!("{:?}", request.body) };
            held += report.events.len() * one;
        }
        let most = adit_control::INCOMING_LARGEST * MAX_CONTROL_FRAME;
        assert!(held <= most + adit_control::MAX_IN_MEMORY, "{held} bytes waited");
    }
}
