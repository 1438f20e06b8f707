//! What the QUIC port does with datagrams that abuse the protocol (RFC 9000 §14.1, §21).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops where it fails")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use adit_net::{
    quic::QuicEndpoint,
    stun::encode_binding_request,
    tls::{quic_client_config, quic_server_config},
    udp::{DemuxSocket, StunDatagram},
};
use adit_protocol::{keys::SigningKey, limits::MAX_CHANNELS_PER_SESSION};
use tokio::{net::UdpSocket, sync::mpsc, time::timeout};

const SOON: Duration = Duration::from_secs(10);
/// Waits for what must not come.
const MOMENT: Duration = Duration::from_millis(300);
/// Smallest datagram that may hold an Initial packet (RFC 9000 §14.1).
const SMALLEST_INITIAL: usize = 1_200;

struct Server {
    endpoint: QuicEndpoint,
    addr: SocketAddr,
    stun: mpsc::Receiver<StunDatagram>,
}

fn server_key() -> SigningKey {
    SigningKey::from_seed(&[1; 32]).unwrap()
}

fn server() -> Server {
    let (socket, stun) = DemuxSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr();
    let config = quic_server_config(&server_key(), Arc::new(|_: &[u8; 32]| true)).unwrap();
    Server { endpoint: QuicEndpoint::new(socket, Some(config)).unwrap(), addr, stun }
}

/// A client and its address, admitted at both ends.
fn client(server: &Server) -> (QuicEndpoint, quinn::ClientConfig) {
    let (socket, _) = DemuxSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    assert!(server.endpoint.socket().admit(socket.local_addr()) && socket.admit(server.addr));
    let key = SigningKey::from_seed(&[2; 32]).unwrap();
    let config = quic_client_config(&key, server_key().public().fingerprint().0).unwrap();
    (QuicEndpoint::new(socket, None).unwrap(), config)
}

/// What an admitted address is answered to one datagram; what the server says before the marker
/// it says because of the datagram.
async fn answers(server: &mut Server, raw: &UdpSocket, datagram: &[u8]) -> Vec<Vec<u8>> {
    raw.send_to(datagram, server.addr).await.unwrap();
    raw.send_to(&encode_binding_request([1; 12]), server.addr).await.unwrap();
    let from = timeout(SOON, server.stun.recv()).await.unwrap().unwrap().from;
    // quinn answers from a task of its own.
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(server.endpoint.socket().send_stun(from, b"marker"));
    let (mut buffer, mut answers) = ([0; 2_000], Vec::new());
    loop {
        let len = timeout(SOON, raw.recv(&mut buffer)).await.unwrap().unwrap();
        if &buffer[..len] == b"marker" {
            return answers;
        }
        answers.push(buffer[..len].to_vec());
    }
}

async fn admitted(server: &Server) -> UdpSocket {
    let raw = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    assert!(server.endpoint.socket().admit(raw.local_addr().unwrap()));
    raw
}

/// A packet of a connection that is over, with an id that the server gave out: to others it says
/// nothing. The connection runs through `raw`.
async fn stray(server: &Server, raw: &UdpSocket) -> Vec<u8> {
    let (near, config) = client(server);
    let (ours, theirs) = (raw.local_addr().unwrap(), near.socket().local_addr());
    assert!(near.socket().admit(ours));
    let mut last = Vec::new();
    let pass = async {
        let mut buffer = [0; 2_000];
        loop {
            let (len, from) = raw.recv_from(&mut buffer).await.unwrap();
            let packet = &buffer[..len];
            raw.send_to(packet, if from == theirs { server.addr } else { theirs }).await.unwrap();
            // Short header (RFC 9000 §17.3.1).
            if from == theirs && packet[0] & 0xc0 == 0x40 {
                last = packet.to_vec();
            }
        }
    };
    let used = async {
        let accept = async { server.endpoint.accept().await.unwrap().await.unwrap() };
        let dialling = near.dial(ours, config).unwrap();
        let (connected, accepted) = tokio::join!(dialling, accept);
        connected.unwrap().close(0_u32.into(), b"");
        accepted.closed().await;
        while server.endpoint.open_connections() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = pass => {}
        () = async { timeout(SOON, used).await.unwrap() } => {}
    }
    last
}

#[tokio::test]
async fn stateless_resets_are_smaller_than_what_provokes_them_and_make_no_loop() {
    let mut server = server();
    let raw = admitted(&server).await;
    let mut packet = stray(&server, &raw).await;
    packet.resize(1_200, 0x5a);
    let mut resets = 0;
    for len in [1_200, 500, 100, 60, 44, 43, 42, 38, 30, 22, 21, 20, 9, 1] {
        let got = answers(&mut server, &raw, &packet[..len]).await;
        assert!(got.len() <= 1, "{} answers to one packet", got.len());
        for reset in got {
            assert!(reset.len() < len, "{} bytes for {len}", reset.len());
            // Two ends that both lost their state: an answer provokes no other.
            assert!(answers(&mut server, &raw, &reset).await.is_empty(), "a loop of resets");
            resets += 1;
        }
    }
    assert!(resets > 0, "nothing was provoked: this shows nothing");
}

#[tokio::test]
async fn an_initial_in_a_short_datagram_is_dropped() {
    let mut server = server();
    let raw = admitted(&server).await;
    // What a real client sends first, recorded.
    let listener = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (near, config) = client(&server);
    assert!(near.socket().admit(listener.local_addr().unwrap()));
    let dialling = near.dial(listener.local_addr().unwrap(), config).unwrap();
    let mut buffer = [0; 2_000];
    let len = timeout(SOON, listener.recv(&mut buffer)).await.unwrap().unwrap();
    drop(dialling);
    assert!(len >= SMALLEST_INITIAL, "our own first datagram has {len} bytes");
    let first = &buffer[..len];
    for short in [len - 1, 1_199, 600, 100, 21] {
        let got = answers(&mut server, &raw, &first[..short.min(SMALLEST_INITIAL - 1)]).await;
        assert_eq!(got.len(), 0, "answers to an Initial of {short} bytes");
        assert_eq!(server.endpoint.open_connections(), 0);
    }
    // Whole, it is answered or begins a handshake.
    raw.send_to(first, server.addr).await.unwrap();
    let begun = timeout(SOON, server.endpoint.accept()).await;
    assert!(begun.is_ok_and(|incoming| incoming.is_some()), "the whole one begins no handshake");
}

#[tokio::test]
async fn early_data_is_never_possible_not_even_on_a_second_visit() {
    let server = server();
    let (near, config) = client(&server);
    for visit in 0..2 {
        let dialling = near.dial(server.addr, config.clone()).unwrap();
        let dialling = match dialling.into_0rtt() {
            Ok(_) => panic!("early data at visit {visit}"),
            Err(dialling) => dialling,
        };
        let accept = async { server.endpoint.accept().await.unwrap().await.unwrap() };
        let (connected, accepted) =
            timeout(SOON, async { tokio::join!(dialling, accept) }).await.unwrap();
        // Time for a ticket, if there were one.
        let closed = timeout(MOMENT, accepted.closed()).await;
        assert!(closed.is_err());
        connected.unwrap().close(0_u32.into(), b"");
        accepted.closed().await;
    }
}

#[tokio::test]
async fn streams_beyond_the_bound_are_not_opened() {
    let server = server();
    let (near, config) = client(&server);
    let dialling = near.dial(server.addr, config).unwrap();
    let accept = async { server.endpoint.accept().await.unwrap().await.unwrap() };
    let (connected, accepted) =
        timeout(SOON, async { tokio::join!(dialling, accept) }).await.unwrap();
    let connected = connected.unwrap();
    let mut streams = Vec::new();
    // One for each channel, and the carrier's own.
    for _ in 0..=MAX_CHANNELS_PER_SESSION {
        let (mut send, receive) = timeout(SOON, connected.open_bi()).await.unwrap().unwrap();
        send.write_all(b"x").await.unwrap();
        streams.push((send, receive));
    }
    assert!(timeout(MOMENT, connected.open_bi()).await.is_err(), "one stream too many");
    assert!(timeout(MOMENT, connected.open_uni()).await.is_err(), "a one-way stream");
    assert!(accepted.close_reason().is_none());
}
