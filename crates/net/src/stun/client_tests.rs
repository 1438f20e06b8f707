//! Discovery against a made-up NAT.

use super::*;
use crate::stun::{encode_binding_response, parse};

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn counter() -> impl FnMut() -> [u8; 12] {
    let mut n = 0;
    move || {
        n += 1;
        [n; 12]
    }
}

fn servers() -> [SocketAddr; 4] {
    ["192.0.2.1:3478", "192.0.2.1:3479", "192.0.2.2:3478", "192.0.2.2:3479"].map(addr)
}

/// Runs a discovery behind a NAT that maps by `nat` and loses every `lose`-th request.
fn discover(nat: impl Fn(SocketAddr) -> SocketAddr, lose: usize) -> StunClient {
    let mut now = Instant::now();
    let mut client = StunClient::new(&servers(), counter(), now);
    let mut count = 0;
    while !client.is_done() {
        while let Some((to, packet)) = client.poll_transmit() {
            count += 1;
            if lose != 0 && count % lose == 0 {
                continue;
            }
            let id = parse(&packet).unwrap().transaction_id;
            let answer = parse(&encode_binding_response(id, nat(to))).unwrap();
            assert!(client.handle_packet(to, &answer, now + Duration::from_millis(30)));
        }
        if let Some(at) = client.poll_timeout() {
            now = at;
            client.handle_timeout(now);
        }
    }
    client
}

#[test]
fn tells_mapping_behaviours_apart_despite_loss() {
    let outside = |port| SocketAddr::new("203.0.113.5".parse().unwrap(), port);
    for lose in [0, 2, 3] {
        let client = discover(|_| outside(40_000), lose);
        assert_eq!(client.mapping_behaviour(), MappingBehaviour::EndpointIndependent);
        assert_eq!(client.mapped(), [outside(40_000)]);
        let by_ip = |to: SocketAddr| outside(if to.ip() == servers()[0].ip() { 1 } else { 2 });
        let client = discover(by_ip, lose);
        assert_eq!(client.mapping_behaviour(), MappingBehaviour::AddressDependent);
        let by_both =
            |to: SocketAddr| outside(to.port() + if to.ip() == servers()[0].ip() { 0 } else { 9 });
        let client = discover(by_both, lose);
        assert_eq!(client.mapping_behaviour(), MappingBehaviour::AddressAndPortDependent);
        assert_eq!(client.mapped().len(), 4);
    }
}

#[test]
fn one_answer_tells_nothing_about_the_nat() {
    assert_eq!(
        classify(&[(addr("192.0.2.1:3478"), addr("203.0.113.5:1"))]),
        MappingBehaviour::Unknown
    );
}

#[test]
fn two_ports_of_one_server_do_not_make_a_mapping_independent_of_addresses() {
    let mapped = addr("203.0.113.5:1");
    let mut answers = vec![(addr("192.0.2.1:3478"), mapped), (addr("192.0.2.1:443"), mapped)];
    assert_eq!(classify(&answers), MappingBehaviour::Unknown);
    answers.push((addr("192.0.2.2:3478"), mapped));
    assert_eq!(classify(&answers), MappingBehaviour::EndpointIndependent);
}

#[test]
fn ignores_answers_from_elsewhere_and_to_unknown_transactions() {
    let now = Instant::now();
    let mut client = StunClient::new(&servers(), counter(), now);
    let evil = addr("198.51.100.66:6");
    let answer = |id| parse(&encode_binding_response(id, evil)).unwrap();
    assert!(!client.handle_packet(evil, &answer([1; 12]), now));
    assert!(!client.handle_packet(servers()[0], &answer([77; 12]), now));
    assert!(!client.handle_packet(servers()[1], &answer([1; 12]), now));
    assert_eq!(client.poll_event(), None);
    assert!(client.handle_packet(servers()[0], &answer([1; 12]), now));
    // The second answer to the same request changes nothing.
    let other = parse(&encode_binding_response([1; 12], addr("198.51.100.1:1"))).unwrap();
    assert!(client.handle_packet(servers()[0], &other, now));
    assert_eq!(client.mapped(), [evil]);
}

#[test]
fn gives_up_on_silent_servers_after_a_bounded_number_of_requests() {
    let start = Instant::now();
    let mut client = StunClient::new(&servers(), counter(), start);
    let (mut now, mut sent) = (start, 0);
    loop {
        while client.poll_transmit().is_some() {
            sent += 1;
        }
        let Some(at) = client.poll_timeout() else { break };
        now = at;
        client.handle_timeout(now);
    }
    assert_eq!(sent, 4 * MAX_TRANSMITS);
    assert!(now - start < Duration::from_secs(5));
    assert_eq!(client.mapping_behaviour(), MappingBehaviour::Unknown);
}
