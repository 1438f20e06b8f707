//! The service over loopback sockets.

use std::time::Duration;

use tokio::{net::UdpSocket, time::timeout};

use super::*;
use crate::stun::{encode_behaviour_request, encode_binding_request};

struct Running {
    addrs: Vec<SocketAddr>,
    cancel: CancellationToken,
    tasks: JoinSet<()>,
}

fn start(addresses: &[&str]) -> Running {
    let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
    let sockets = StunSockets::bind(&addresses, 0).unwrap();
    let (addrs, cancel, mut tasks) =
        (sockets.local_addrs(), CancellationToken::new(), JoinSet::new());
    tasks.spawn(serve(sockets, cancel.clone()));
    Running { addrs, cancel, tasks }
}

async fn ask(client: &UdpSocket, to: SocketAddr, packet: &[u8]) -> (Vec<u8>, SocketAddr) {
    client.send_to(packet, to).await.unwrap();
    let mut buffer = [0; 1500];
    let (len, from) = timeout(Duration::from_secs(5), client.recv_from(&mut buffer))
        .await
        .expect("an answer")
        .unwrap();
    (buffer[..len].to_vec(), from)
}

#[tokio::test]
async fn answers_plain_requests_with_the_mapped_address_only() {
    let mut server = start(&["::"]);
    for (bind, host) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
        let client = UdpSocket::bind(bind).await.unwrap();
        for served in &server.addrs {
            let to = SocketAddr::new(host.parse().unwrap(), served.port());
            let (answer, from) = ask(&client, to, &encode_binding_request([9; 12])).await;
            // The header and one attribute, XOR-MAPPED-ADDRESS (RFC 8489 §14.2): no name of any
            // software (§14.14), nothing that would make the answer larger.
            assert_eq!(answer.len(), if to.is_ipv4() { 32 } else { 44 });
            assert_eq!(answer[20..22], [0x00, 0x20]);
            assert_eq!(usize::from(answer[23]), answer.len() - 24);
            let answer = parse(&answer).unwrap();
            assert_eq!((from, answer.transaction_id), (to, [9; 12]));
            assert_eq!(answer.mapped, Some(client.local_addr().unwrap()));
            assert_eq!((answer.response_origin, answer.other_address), (None, None));
        }
        // One answer to each.
        let more = timeout(Duration::from_millis(100), client.recv(&mut [0; 1500])).await;
        assert!(more.is_err(), "{more:?}");
    }
    server.cancel.cancel();
    server.tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn padded_requests_learn_the_other_address_and_move_the_answer() {
    let server = start(&["127.0.0.1", "127.0.0.2"]);
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for (change, via) in
        [((false, false), 0), ((false, true), 1), ((true, false), 2), ((true, true), 3)]
    {
        let request = encode_behaviour_request([3; 12], Change { ip: change.0, port: change.1 });
        let (answer, from) = ask(&client, server.addrs[0], &request).await;
        assert!(answer.len() <= request.len());
        let answer = parse(&answer).unwrap();
        assert_eq!(from, server.addrs[via]);
        assert_eq!(answer.response_origin, Some(from));
        assert_eq!(answer.other_address, Some(server.addrs[3]));
    }
}

/// What must stay silent is followed by a good request; its answer must be the first.
#[tokio::test]
async fn is_silent_to_malformed_and_unpadded_change_requests() {
    let server = start(&["127.0.0.1"]);
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let good = encode_binding_request([1; 12]);
    let mut no_cookie = good.clone();
    no_cookie[4] ^= 1;
    let mut indication = good.clone();
    indication[1] = 0x11;
    let mut response = good.clone();
    response[0] = 1;
    let mut other_method = good.clone();
    other_method[1] = 3;
    let mut unknown = good.clone();
    unknown[3] = 4;
    unknown.extend([0x7F, 0x01, 0, 0]);
    let mut unpadded_change = good.clone();
    unpadded_change[3] = 8;
    unpadded_change.extend([0, 3, 0, 4, 0, 0, 0, 2]);
    let impossible = encode_behaviour_request([2; 12], Change { ip: true, port: false });
    let bad = [
        no_cookie,
        indication,
        response,
        other_method,
        unknown,
        unpadded_change,
        impossible,
        good[..19].to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xC0; 1200],
    ];
    for packet in bad {
        client.send_to(&packet, server.addrs[0]).await.unwrap();
    }
    let (answer, _) = ask(&client, server.addrs[0], &encode_binding_request([8; 12])).await;
    assert_eq!(parse(&answer).unwrap().transaction_id, [8; 12]);
}
