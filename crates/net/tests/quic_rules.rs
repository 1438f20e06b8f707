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
use rustls::{crypto::aws_lc_rs, quic::Version};
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

/// An Initial packet (RFC 9000 §17.2.2) of so many bytes, sealed as the standard says, with nothing
/// wrong about it.
fn initial(size: usize) -> Vec<u8> {
    const DESTINATION: [u8; 8] = [7; 8];
    const SOURCE: [u8; 8] = [9; 8];
    const TAG: usize = 16;
    let suite = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().unwrap();
    let keys = suite.quic_suite().unwrap().keys(&DESTINATION, rustls::Side::Client, Version::V1);
    // Long header with a packet number of two bytes, version 1, no token.
    let mut header = vec![0xc1, 0, 0, 0, 1, 8];
    header.extend(DESTINATION);
    header.push(8);
    header.extend(SOURCE);
    header.push(0);
    let number = header.len() + 2;
    let length = u16::try_from(size - number).unwrap() | 0x4000;
    header.extend(length.to_be_bytes());
    header.extend([0, 0]);
    // Some of a CRYPTO frame, then padding.
    let mut payload = vec![0; size - header.len() - TAG];
    payload[..7].copy_from_slice(&[0x06, 0, 4, 1, 0, 0, 0]);
    let tag = keys.local.packet.encrypt_in_place(0, &header, &mut payload).unwrap();
    let mut packet = [&header[..], &payload, tag.as_ref()].concat();
    let sample: [u8; TAG] = packet[number + 4..number + 4 + TAG].try_into().unwrap();
    let (first, rest) = packet.split_first_mut().unwrap();
    let number = &mut rest[number - 1..=number];
    keys.local.header.encrypt_in_place(&sample, first, number).unwrap();
    packet
}

#[tokio::test]
async fn an_initial_in_a_short_datagram_is_dropped() {
    let mut server = server();
    let raw = admitted(&server).await;
    for short in [60, 100, 600, SMALLEST_INITIAL - 1] {
        let got = answers(&mut server, &raw, &initial(short)).await;
        assert_eq!(got.len(), 0, "answers to an Initial of {short} bytes");
        assert!(
            timeout(MOMENT, server.endpoint.accept()).await.is_err(),
            "{short} bytes are taken"
        );
        assert_eq!(server.endpoint.open_connections(), 0);
    }
    // With enough bytes the same begins a handshake: nothing else was wrong with it.
    raw.send_to(&initial(SMALLEST_INITIAL), server.addr).await.unwrap();
    let begun = timeout(SOON, server.endpoint.accept()).await;
    assert!(begun.is_ok_and(|incoming| incoming.is_some()), "the long one begins no handshake");
}

#[tokio::test]
async fn what_nobody_reads_stops_at_the_windows() {
    const PER_STREAM: usize = 8 << 20;
    const PER_CONNECTION: usize = 64 << 20;
    /// Without progress for this long nothing more will be taken.
    const STUCK: Duration = Duration::from_secs(1);
    let server = server();
    let (near, config) = client(&server);
    let dialling = near.dial(server.addr, config).unwrap();
    let accept = async { server.endpoint.accept().await.unwrap().await.unwrap() };
    let (connected, _accepted) =
        timeout(SOON, async { tokio::join!(dialling, accept) }).await.unwrap();
    let connected = connected.unwrap();
    let (piece, mut all, mut streams) = (vec![0; 256 * 1024], 0, Vec::new());
    // More streams than the connection has room for.
    for _ in 0..10 {
        let (mut send, receive) = connected.open_bi().await.unwrap();
        let mut of_stream = 0;
        while let Ok(written) = timeout(STUCK, send.write(&piece)).await {
            of_stream += written.unwrap();
            assert!(of_stream <= PER_STREAM, "a stream takes {of_stream} bytes that nobody reads");
        }
        all += of_stream;
        assert!(all <= PER_CONNECTION, "{all} bytes are taken that nobody reads");
        streams.push((send, receive));
    }
    assert!(all > PER_STREAM, "{all}: this shows nothing");
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
