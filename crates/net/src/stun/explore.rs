//! What STUN servers tell of a NAT beyond its mapping: filtering (RFC 5780 §4.4), hairpinning
//! (RFC 4787 §6), and how it counts ports.
//!
//! Each question has sockets of its own, closed afterwards: asking from the session's socket
//! would open its filter and flatter the NAT. Every question is bounded in packets and in time,
//! and none of them is ever waited for by a session.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::{
    net::UdpSocket,
    time::{sleep, sleep_until, timeout},
};

use super::{
    FilteringBehaviour, FilteringProbe, MAX_STUN, StunClass, StunPacket,
    codec::{encode_binding_request, parse},
};
use crate::udp::normalise;

/// Sockets opened to see how a NAT counts.
const COUNTING_SOCKETS: usize = 5;
/// Between two of their requests, so that they pass the NAT in order.
const COUNTING_PACE: Duration = Duration::from_millis(4);
/// Time for their answers. What is missing by then was lost: a repetition would be out of order.
const COUNTING_WAIT: Duration = Duration::from_millis(400);
/// Waits for one answer: 0, 0.2, 0.6 s; given up at 1.4 s.
const WAITS_MS: [u64; 3] = [200, 400, 800];
/// Ports needed to believe in a step: three distances that agree.
const MIN_OBSERVATIONS: usize = 4;
/// Mappings of others between two of ours that are believed in.
const MAX_SKIPPED: i32 = 6;

/// Transaction ids; `None` ends the question, for without randomness answers could be forged.
pub trait Ids: FnMut() -> Option<[u8; 12]> + Send {}
impl<F: FnMut() -> Option<[u8; 12]> + Send> Ids for F {}

/// Asks a server with two addresses whom the NAT lets in; others lead to `Unknown`.
pub async fn filtering(server: SocketAddr, mut ids: impl Ids) -> FilteringBehaviour {
    let ids = [(); 3].map(|()| ids());
    let [Some(first), Some(second), Some(third)] = ids else { return FilteringBehaviour::Unknown };
    let Ok(socket) = bind(server).await else { return FilteringBehaviour::Unknown };
    let mut probe = FilteringProbe::new(server, [first, second, third], Instant::now());
    loop {
        while let Some((to, packet)) = probe.poll_transmit() {
            // What is not sent is lost: it is repeated.
            let _ = socket.send_to(&packet, to).await;
        }
        let Some(due) = probe.poll_timeout() else { return probe.behaviour() };
        tokio::select! {
            (from, packet) = receive(&socket) => {
                probe.handle_packet(from, &packet, Instant::now());
            }
            () = sleep_until(due.into()) => probe.handle_timeout(Instant::now()),
        }
    }
}

/// Whether two sockets behind the NAT reach each other by their outside addresses. `None`: the
/// server did not answer, or there is no NAT to go through.
pub async fn hairpin(server: SocketAddr, mut ids: impl Ids) -> Option<bool> {
    let (inner, outer) = (bind(server).await.ok()?, bind(server).await.ok()?);
    let mapped = ask(&inner, server, &mut ids).await?;
    if is_own(&inner, server, mapped).await {
        return None;
    }
    let back = ask(&outer, server, &mut ids).await?;
    let (opener, id) = (ids()?, ids()?);
    let request = encode_binding_request(id);
    for wait in WAITS_MS {
        // As in punching: the inner one lets in only whom it sent to.
        let _ = inner.send_to(&encode_binding_request(opener), back).await;
        let _ = outer.send_to(&request, mapped).await;
        let heard = async {
            loop {
                let (_, packet) = receive(&inner).await;
                if packet.class == StunClass::Request && packet.transaction_id == id {
                    return;
                }
            }
        };
        if timeout(Duration::from_millis(wait), heard).await.is_ok() {
            return Some(true);
        }
    }
    Some(false)
}

/// External ports of fresh mappings, in the order in which they were made.
pub async fn observe_ports(servers: &[SocketAddr], mut ids: impl Ids) -> Vec<u16> {
    let Some(server) = servers.first().copied() else { return Vec::new() };
    let mut asked = Vec::new();
    for _ in 0..COUNTING_SOCKETS {
        let (Ok(socket), Some(id)) = (bind(server).await, ids()) else { break };
        if socket.send_to(&encode_binding_request(id), server).await.is_ok() {
            asked.push((socket, id));
        }
        sleep(COUNTING_PACE).await;
    }
    let until = tokio::time::Instant::now() + COUNTING_WAIT;
    let mut ports = Vec::new();
    for (socket, id) in &asked {
        let answer = tokio::time::timeout_at(until, answer(socket, server, *id)).await;
        ports.extend(answer.ok().map(|mapped| mapped.port()));
    }
    ports
}

/// The distance between successive mappings, if the NAT counts; 0 if it does not.
pub fn port_step(observed: &[u16]) -> i32 {
    if observed.len() < MIN_OBSERVATIONS {
        return 0;
    }
    let gaps: Vec<i32> = observed
        .iter()
        .zip(observed.iter().skip(1))
        .map(|(a, b)| i32::from(*b) - i32::from(*a))
        .collect();
    let Some(step) = gaps.iter().copied().min_by_key(|gap| gap.abs()) else { return 0 };
    let fits =
        |gap: &i32| step != 0 && gap % step == 0 && gap / step > 0 && gap / step <= MAX_SKIPPED;
    let small = step.abs() <= adit_protocol::nat::MAX_PORT_STEP;
    if small && gaps.iter().all(fits) { step } else { 0 }
}

async fn bind(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0)).await
}

async fn ask(socket: &UdpSocket, server: SocketAddr, ids: &mut impl Ids) -> Option<SocketAddr> {
    let id = ids()?;
    for wait in WAITS_MS {
        let _ = socket.send_to(&encode_binding_request(id), server).await;
        let answered = timeout(Duration::from_millis(wait), answer(socket, server, id)).await;
        if let Ok(mapped) = answered {
            return Some(mapped);
        }
    }
    None
}

async fn answer(socket: &UdpSocket, server: SocketAddr, id: [u8; 12]) -> SocketAddr {
    loop {
        let (from, packet) = receive(socket).await;
        if from == normalise(server)
            && packet.transaction_id == id
            && packet.class == StunClass::Success
            && let Some(mapped) = packet.mapped
        {
            return mapped;
        }
    }
}

/// The next STUN message; errors are some peer's news (ICMP) and end nothing.
async fn receive(socket: &UdpSocket) -> (SocketAddr, StunPacket) {
    let mut buffer = [0; MAX_STUN];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((len, from)) => {
                if let Some(packet) = buffer.get(..len).and_then(parse) {
                    return (normalise(from), packet);
                }
            }
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Whether `mapped` is the machine's own address.
async fn is_own(socket: &UdpSocket, server: SocketAddr, mapped: SocketAddr) -> bool {
    let Ok(port) = socket.local_addr().map(|a| a.port()) else { return false };
    let Ok(towards) = bind(server).await else { return false };
    let connected = towards.connect(server).await.and_then(|()| towards.local_addr());
    connected.is_ok_and(|own| own.ip() == mapped.ip() && port == mapped.port())
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::stun::{StunSockets, serve};

    fn ids() -> impl Ids {
        let mut n = 0u8;
        move || {
            n += 1;
            Some([n; 12])
        }
    }

    #[test]
    fn believes_in_counting_only_when_all_distances_agree() {
        for (ports, step) in [
            (&[1000, 1001, 1002, 1003][..], 1),
            (&[1000, 1002, 1004, 1010, 1012], 2),
            (&[4000, 3999, 3998, 3996], -1),
            (&[1000, 1001, 1002], 0),
            (&[1000, 1001, 1001, 1002], 0),
            (&[1000, 1001, 1002, 5000], 0),
            (&[1000, 1001, 1000, 1001], 0),
            (&[50_000, 3000, 41_000, 12_000], 0),
            (&[1000, 1300, 1600, 1900], 0),
            (&[], 0),
        ] {
            assert_eq!(port_step(ports), step, "{ports:?}");
        }
    }

    #[tokio::test]
    async fn without_a_nat_everybody_gets_in_and_nothing_turns_back() {
        let ip = [Ipv4Addr::new(127, 0, 0, 1).into(), Ipv4Addr::new(127, 0, 0, 2).into()];
        let sockets = StunSockets::bind(&ip, 0).unwrap();
        let server = sockets.local_addrs()[0];
        let cancel = CancellationToken::new();
        let serving = tokio::task::JoinSet::from_iter([serve(sockets, cancel.clone())]);
        assert_eq!(filtering(server, ids()).await, FilteringBehaviour::EndpointIndependent);
        assert_eq!(hairpin(server, ids()).await, None);
        assert_eq!(observe_ports(&[server], ids()).await.len(), COUNTING_SOCKETS);
        cancel.cancel();
        serving.join_all().await;
        assert_eq!(filtering(server, ids()).await, FilteringBehaviour::Unknown);
    }
}
