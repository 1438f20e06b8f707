//! The data path of both ends in one process, over real TCP connections: what the driver is not
//! needed for.

use std::{sync::Arc, time::Duration};

use adit_core::resume::{Event, Pool, Shape};
use adit_net::noise::RelayedHandshake;
use adit_protocol::{
    ids::{CarrierNumber, SessionId},
    record::Record,
    target::{Target, Transport},
    ticket::Role,
};
use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::{
    carrier::Life,
    local::{self, Refusal, Watch},
    relayed::{self, Relayed, read_frame},
    shared::{DriverEvent, Shared},
};

const PSK: [u8; 32] = [7; 32];
const SESSION: SessionId = SessionId([1; 16]);

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dial = TcpStream::connect(listener.local_addr().unwrap());
    let (a, b) = tokio::join!(dial, listener.accept());
    (a.unwrap(), b.unwrap().0)
}

struct World {
    console: Arc<Shared>,
    agent: Arc<Shared>,
    tasks: JoinSet<()>,
    next: u64,
}

impl World {
    /// Both ends; the agent connects every channel to `target`.
    fn new(target: std::net::SocketAddr) -> Self {
        Self::released_by(target, watch::Sender::new(true).subscribe())
    }

    /// The same; the agent's channels are released with `released`.
    fn released_by(target: std::net::SocketAddr, released: watch::Receiver<bool>) -> Self {
        let (console, agent) = (
            Shared::new(Role::Console, Pool::default()),
            Shared::new(Role::Agent, Pool::default()),
        );
        let mut tasks = JoinSet::new();
        let shared = agent.clone();
        tasks.spawn(async move {
            let mut served = JoinSet::new();
            loop {
                if let DriverEvent::Machine(Event::Connect(id, _)) = shared.driver_event().await {
                    let tap = shared.register(|r, _| r.is_live(id).then_some(id));
                    let (shared, Some(tap)) = (shared.clone(), tap) else { continue };
                    let mut released = released.clone();
                    served.spawn(async move {
                        let stream = TcpStream::connect(target).await.unwrap();
                        shared.with(|r, now| r.connected(id, now));
                        let ready = async move {
                            let _ = released.wait_for(|released| *released).await;
                            Ok(())
                        };
                        local::run(shared, tap, stream, None, ready).await;
                    });
                }
            }
        });
        for shared in [console.clone(), agent.clone()] {
            tasks.spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    shared.with(|r, now| r.handle_timeout(now));
                }
            });
        }
        Self { console, agent, tasks, next: 1 }
    }

    /// A new carrier; aborting the handle kills it.
    async fn carrier(&mut self) -> (CarrierNumber, Vec<tokio::task::AbortHandle>) {
        let number = CarrierNumber(self.next);
        self.next += 1;
        let (mut a, mut b) = tcp_pair().await;
        relayed::tune(&a);
        relayed::tune(&b);
        let (hs, frame) = RelayedHandshake::initiate(&PSK, SESSION, number, &[]).unwrap();
        a.write_all(&frame).await.unwrap();
        let mut rest_b = BytesMut::new();
        let first = read_frame(&mut b, &mut rest_b).await.unwrap();
        let (hb, _) = RelayedHandshake::respond(&PSK, SESSION, &first).unwrap();
        let (reply, seal_b, open_b) = hb.reply(&[]).unwrap();
        b.write_all(&reply).await.unwrap();
        let mut rest_a = BytesMut::new();
        let second = read_frame(&mut a, &mut rest_a).await.unwrap();
        let (_, seal_a, open_a) = hs.finish(&second).unwrap();
        let mut handles = vec![];
        for (shared, stream, sealer, opener, received) in [
            (self.console.clone(), a, seal_a, open_a, rest_a),
            (self.agent.clone(), b, seal_b, open_b, rest_b),
        ] {
            let transmit = shared.register_carrier(number);
            shared.with(|r, _| assert!(r.carrier_up(number, Shape::Shared)));
            let life = Arc::new(Life::default());
            let carrier = Relayed { number, stream, sealer, opener, received, transmit, life };
            handles.push(self.tasks.spawn(async move {
                let _ = relayed::run(&shared, carrier).await;
            }));
        }
        self.console.with(|r, now| r.prefer(number, number, now));
        (number, handles)
    }

    fn kill(&self, number: CarrierNumber, handles: &[tokio::task::AbortHandle]) {
        handles.iter().for_each(tokio::task::AbortHandle::abort);
        for shared in [&self.console, &self.agent] {
            shared.with(|r, _| r.carrier_down(number));
            shared.forget_carrier(number);
        }
    }

    /// The application's end of a new channel.
    async fn open(&mut self) -> TcpStream {
        self.open_watched(None).await
    }

    async fn open_watched(&mut self, watch: Option<Box<dyn Watch>>) -> TcpStream {
        let (app, ours) = tcp_pair().await;
        let target = Target::parse("127.0.0.1:1", Transport::Tcp).unwrap();
        let tap = self.console.register(|r, now| r.open(target, now).ok()).unwrap();
        let shared = self.console.clone();
        self.tasks.spawn(local::run(shared, tap, ours, watch, async { Ok(()) }));
        app
    }
}

/// Echoes, and ends when the other side has ended.
async fn echo(listener: TcpListener) {
    let mut served = JoinSet::new();
    loop {
        let (mut s, _) = listener.accept().await.unwrap();
        served.spawn(async move {
            let (mut r, mut w) = s.split();
            let _ = tokio::io::copy(&mut r, &mut w).await;
            let _ = w.shutdown().await;
        });
    }
}

async fn echo_world() -> (World, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::new(listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(echo(listener));
    (world, server)
}

#[tokio::test]
async fn a_transfer_survives_the_death_of_its_carriers() {
    let (mut world, _server) = echo_world().await;
    let (mut number, mut handles) = world.carrier().await;
    let app = world.open().await;
    let (mut read, mut write) = app.into_split();
    let mut work = JoinSet::new();
    const LEN: usize = 48 << 20;
    let byte = |i: usize| u8::try_from(i * 31 % 251).unwrap();
    work.spawn(async move {
        let data: Vec<u8> = (0..LEN).map(byte).collect();
        write.write_all(&data).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let reader = work.spawn(async move {
        let mut got = Vec::new();
        read.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), LEN);
        assert!(got.iter().enumerate().all(|(i, b)| *b == byte(i)), "bytes changed");
    });
    let mut deaths = 0;
    while !reader.is_finished() {
        tokio::time::sleep(Duration::from_millis(6)).await;
        world.kill(number, &handles);
        deaths += 1;
        tokio::time::sleep(Duration::from_millis(3)).await;
        (number, handles) = world.carrier().await;
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    while let Some(done) = work.join_next().await {
        done.unwrap();
    }
    assert!(deaths > 2, "the carrier never died under the transfer");
}

#[tokio::test]
async fn a_reset_arrives_as_a_reset_and_an_end_as_an_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut world = World::new(listener.local_addr().unwrap());
    world.carrier().await;
    // An end in one direction leaves the other usable.
    let mut app = world.open().await;
    let (mut target, _) = listener.accept().await.unwrap();
    app.shutdown().await.unwrap();
    assert_eq!(target.read(&mut [0; 8]).await.unwrap(), 0);
    target.write_all(b"late").await.unwrap();
    let mut got = [0; 4];
    app.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"late");
    drop(target);
    assert_eq!(app.read(&mut [0; 8]).await.unwrap(), 0);
    // A reset of the target is a reset for the application.
    let mut app = world.open().await;
    let (mut target, _) = listener.accept().await.unwrap();
    target.write_all(b"x").await.unwrap();
    app.read_exact(&mut [0; 1]).await.unwrap();
    socket2::SockRef::from(&target).set_linger(Some(Duration::ZERO)).unwrap();
    drop(target);
    let end = tokio::time::timeout(Duration::from_secs(5), app.read(&mut [0; 8])).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    // And so is a session that ends.
    let mut app = world.open().await;
    let _target = listener.accept().await.unwrap();
    world.console.with(|r, _| r.close("closed"));
    let end = tokio::time::timeout(Duration::from_secs(5), app.read(&mut [0; 8])).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

/// A console that has signed nothing is sent nothing of what the target says by itself, and the
/// target gets nothing of the console's.
#[tokio::test]
async fn before_the_receipts_nothing_passes_the_agent_in_either_direction() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let release = watch::Sender::new(false);
    let mut world = World::released_by(listener.local_addr().unwrap(), release.subscribe());
    world.carrier().await;
    let mut app = world.open().await;
    app.write_all(b"hello").await.unwrap();
    let (mut target, _) = listener.accept().await.unwrap();
    target.write_all(b"banner").await.unwrap();
    let (mut up, mut down) = ([0; 5], [0; 6]);
    let silence = Duration::from_millis(300);
    let early = tokio::time::timeout(silence, async {
        tokio::select! {
            got = app.read(&mut down) => got,
            got = target.read(&mut up) => got,
        }
    });
    assert!(early.await.is_err(), "bytes passed before the channel was released");
    release.send_replace(true);
    app.read_exact(&mut down).await.unwrap();
    target.read_exact(&mut up).await.unwrap();
    assert_eq!((&up, &down), (b"hello", b"banner"));
}

/// What a peer asks of the driver waits in the connection, not in memory.
#[tokio::test]
async fn a_flood_of_requests_waits_in_the_connection() {
    const FLOOD: usize = 200_000;
    let shared = Shared::new(Role::Agent, Pool::default());
    let number = CarrierNumber(1);
    let (mut a, mut b) = tcp_pair().await;
    let (hs, frame) = RelayedHandshake::initiate(&PSK, SESSION, number, &[]).unwrap();
    a.write_all(&frame).await.unwrap();
    let mut received = BytesMut::new();
    let first = read_frame(&mut b, &mut received).await.unwrap();
    let (hb, _) = RelayedHandshake::respond(&PSK, SESSION, &first).unwrap();
    let (reply, sealer, opener) = hb.reply(&[]).unwrap();
    b.write_all(&reply).await.unwrap();
    let second = read_frame(&mut a, &mut BytesMut::new()).await.unwrap();
    let (_, mut seal, _open) = hs.finish(&second).unwrap();
    let transmit = shared.register_carrier(number);
    shared.with(|r, _| assert!(r.carrier_up(number, Shape::Shared)));
    let life = Arc::new(Life::default());
    let carrier = Relayed { number, stream: b, sealer, opener, received, transmit, life };
    let mut tasks = JoinSet::new();
    let served = shared.clone();
    tasks.spawn(async move {
        let _ = relayed::run(&served, carrier).await;
    });
    tasks.spawn(async move {
        for _ in 0..FLOOD / 100 {
            let mut records = BytesMut::new();
            for _ in 0..100 {
                Record::JoinRelay { relay: 0, slot: 0 }.encode(&mut records);
            }
            let mut frame = BytesMut::new();
            seal.seal(&records, &mut frame).unwrap();
            a.write_all(&frame).await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(shared.driver_waiting() <= 1024 + 100, "{} wait", shared.driver_waiting());
    // Nothing of it is lost once the driver has time.
    let all = async {
        for _ in 0..FLOOD {
            shared.driver_event().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.unwrap();
}

/// Holds a letter back until the next one comes, and takes no `!`.
struct OneBehind(Option<u8>);

impl Watch for OneBehind {
    fn pass(&mut self, bytes: Bytes) -> Result<Bytes, Refusal> {
        if bytes.contains(&b'!') {
            return Err(Refusal("no shouting".to_owned()));
        }
        let passed = bytes.iter().filter_map(|b| self.0.replace(*b)).collect::<Vec<u8>>();
        Ok(passed.into())
    }

    fn is_holding(&self) -> bool {
        self.0.is_some()
    }
}

#[tokio::test]
async fn a_stream_that_ends_before_all_was_passed_ends_in_a_reset() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut world = World::new(listener.local_addr().unwrap());
    world.carrier().await;
    for (sent, ends) in [("", Ok(0)), ("whisper", Err(std::io::ErrorKind::ConnectionReset))] {
        let mut app = world.open_watched(Some(Box::new(OneBehind(None)))).await;
        let (mut target, _) = listener.accept().await.unwrap();
        app.write_all(sent.as_bytes()).await.unwrap();
        let mut got = vec![0; sent.len().saturating_sub(1)];
        target.read_exact(&mut got).await.unwrap();
        app.shutdown().await.unwrap();
        let end = tokio::time::timeout(Duration::from_secs(5), target.read(&mut [0; 8])).await;
        assert_eq!(end.unwrap().map_err(|error| error.kind()), ends, "{sent}");
    }
}

#[tokio::test]
async fn a_watched_channel_has_what_was_passed_and_a_refusal_says_why() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut world = World::new(listener.local_addr().unwrap());
    world.carrier().await;
    let mut app = world.open_watched(Some(Box::new(OneBehind(None)))).await;
    let (mut target, _) = listener.accept().await.unwrap();
    app.write_all(b"whisper").await.unwrap();
    let mut got = [0; 6];
    target.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"whispe");
    app.write_all(b"r!").await.unwrap();
    let mut told = String::new();
    let end = tokio::time::timeout(Duration::from_secs(5), app.read_to_string(&mut told)).await;
    end.unwrap().unwrap();
    assert_eq!(told, "no shouting");
    // Nothing of the rest, and no regular end.
    let end = tokio::time::timeout(Duration::from_secs(5), target.read(&mut [0; 8])).await;
    assert_eq!(end.unwrap().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}
