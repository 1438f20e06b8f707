//! Direct connections of a session: dialled by the console, accepted by the agent.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use adit_core::{
    path::CarrierKind as PathKind,
    punch::{Family, LocalSocket},
    resume::Shape,
};
use adit_net::tls::quic_client_config;
use adit_protocol::ids::CarrierNumber;
use quinn::{Connection, RecvStream, SendStream};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::{
    carrier::{CarrierEnd, Life},
    carriers::CarrierUp,
    direct::{self, Direct, GREETING},
    driver::{Driver, Message},
    punching::Validated,
    shared::Shared,
    udp::Accepted,
};

/// Connections of a session that may be greeting at once; each may hold a window of data.
pub(crate) const MAX_GREETINGS: usize = 2;
/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// What a connection's task needs.
struct Runner {
    shared: Arc<Shared>,
    driver: mpsc::Sender<Message>,
    tasks: TaskTracker,
    stop: CancellationToken,
    socket: LocalSocket,
    local_port: u16,
}

/// Which own address the system uses towards the peer; asking sends nothing.
fn local_address(
    connection: &Connection,
    remote: SocketAddr,
    local_port: u16,
) -> Option<SocketAddr> {
    let ip = connection.local_ip().or_else(|| {
        let any: IpAddr = match remote {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
        socket.connect(remote).ok()?;
        Some(socket.local_addr().ok()?.ip())
    })?;
    Some(SocketAddr::new(ip, local_port))
}

impl Driver {
    fn runner(&self, socket: LocalSocket, remote: SocketAddr) -> Runner {
        let local_port = self.punching.port(&self.p, socket, remote);
        Runner {
            socket,
            shared: self.p.shared.clone(),
            driver: self.p.message_in.clone(),
            tasks: self.p.tasks.clone(),
            stop: self.p.cancel.child_token(),
            local_port,
        }
    }

    /// Console: a pair works both ways.
    pub(crate) fn dial_direct(&mut self, pair: Validated) {
        let now = Instant::now();
        if !self.has_direct_room() {
            self.punching.dial_failed(pair, now);
            return;
        }
        let Some(key) = &self.p.quic_key else { return };
        let Ok(config) = quic_client_config(key, self.p.peer_quic_sha256) else { return };
        let Some(connecting) = self.punching.dial(&self.p, pair, config) else {
            self.punching.dial_failed(pair, now);
            return;
        };
        let runner = self.runner(pair.socket, pair.remote);
        let number = self.numbers().next();
        let stop = runner.stop.clone();
        self.p.tasks.spawn(async move {
            let dial = async {
                let connection = timeout(HANDSHAKE, connecting).await.ok()?.ok()?;
                let greeting = timeout(GREETING, direct::greet(&connection, number));
                let (send, recv) = greeting.await.ok()?.ok()?;
                Some((connection, send, recv))
            };
            match stop.run_until_cancelled(dial).await {
                Some(Some((connection, send, recv))) => {
                    runner.run(number, connection, send, recv).await;
                }
                Some(None) => {
                    debug!(remote = %pair.remote, "direct dial failed");
                    let _ = runner.driver.send(Message::DialFailed(pair)).await;
                }
                None => {}
            }
        });
    }

    /// Agent: a connection that presented this session's key.
    pub(crate) fn accept_direct(&mut self, (socket, connection): Accepted) {
        if !self.has_direct_room() {
            connection.close(quinn::VarInt::from_u32(2), b"too many");
            return;
        }
        let Ok(turn) = self.greetings.clone().try_acquire_owned() else {
            connection.close(quinn::VarInt::from_u32(2), b"too many");
            return;
        };
        let runner = self.runner(socket, connection.remote_address());
        let numbers = self.numbers();
        let stop = runner.stop.clone();
        self.p.tasks.spawn(async move {
            let greeting =
                timeout(GREETING, direct::be_greeted(&connection, |n| numbers.accept(n)));
            let greeted = stop.run_until_cancelled(greeting).await;
            drop(turn);
            match greeted {
                Some(Ok(Ok((number, send, recv)))) => {
                    runner.run(number, connection, send, recv).await;
                }
                _ => connection.close(quinn::VarInt::from_u32(1), b"greeting"),
            }
        });
    }
}

impl Runner {
    async fn run(
        self,
        number: CarrierNumber,
        connection: Connection,
        send: SendStream,
        recv: RecvStream,
    ) {
        let remote = connection.remote_address();
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        let transmit = self.shared.register_carrier(number);
        if !self.shared.with(|resume, _| resume.carrier_up(number, Shape::Streams)) {
            self.shared.forget_carrier(number);
            connection.close(quinn::VarInt::from_u32(2), b"too many");
            return;
        }
        transmit.notify_one(); // last words may be waiting
        let life = Arc::new(Life::default());
        let tasks = self.tasks.clone();
        let socket = self.socket;
        let direct =
            Direct { number, socket, connection: connection.clone(), life: life.clone(), tasks };
        let up = CarrierUp {
            number,
            kind: PathKind::Direct { family: Family::of(remote) },
            rtt: connection.rtt(),
            local: local_address(&connection, remote, self.local_port),
            remote: Some(remote),
            relay: None,
            life,
            direct: Some(direct.clone()),
            stop: self.stop.clone(),
        };
        let _ = self.driver.send(Message::Up(Box::new(up))).await;
        let run = direct::run(&self.shared, direct, send, recv, transmit);
        let end = self.stop.run_until_cancelled(run).await.unwrap_or(CarrierEnd::Stopped);
        // What was given to the connection last gets a moment to leave.
        connection.close(quinn::VarInt::from_u32(0), b"");
        self.shared.with(|resume, _| resume.carrier_down(number));
        self.shared.forget_carrier(number);
        let _ = self.driver.send(Message::Down(number, (end.word(), end.to_string()))).await;
    }
}
