//! Discovery of the NAT's filtering behaviour (RFC 5780 §4.4), without IO.
//!
//! Needs a server with two addresses, and a socket that has never sent to the second one: what
//! was sent there would have opened the filter, and the result would flatter the NAT.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::codec::{Change, StunClass, StunPacket, encode_behaviour_request};
use crate::udp::normalise;

/// First wait for an answer; it doubles.
const FIRST_TIMEOUT: Duration = Duration::from_millis(200);
/// Requests of each kind: at 0, 0.2, 0.6 s; given up at 1.4 s. Silence is a result here, so it
/// must not be one lost packet's.
const MAX_TRANSMITS: u32 = 3;

/// Whom a NAT lets in (RFC 4787 §5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FilteringBehaviour {
    /// Everybody.
    EndpointIndependent,
    /// Addresses that were sent to.
    AddressDependent,
    /// Addresses and ports that were sent to.
    AddressAndPortDependent,
    /// The server did not answer or has only one address.
    #[default]
    Unknown,
}

impl FilteringBehaviour {
    /// As outsiders read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
            Self::Unknown => "unknown",
        }
    }
}

/// One discovery: asks plainly, then asks to be answered from elsewhere.
#[derive(Debug)]
pub struct FilteringProbe {
    server: SocketAddr,
    plain: Question,
    /// From the other address, and from the other port; asked once `other` is known.
    moved: Option<(SocketAddr, Question, Question)>,
    ids: [[u8; 12]; 2],
    transmits: VecDeque<Vec<u8>>,
}

#[derive(Debug)]
struct Question {
    id: [u8; 12],
    change: Change,
    sent: u32,
    until: Instant,
    answered: bool,
}

impl FilteringProbe {
    /// Asks `server`; the ids must be unpredictable.
    pub fn new(server: SocketAddr, ids: [[u8; 12]; 3], now: Instant) -> Self {
        let [plain, first, second] = ids;
        let mut transmits = VecDeque::new();
        let plain = Question::ask(plain, Change::default(), now, &mut transmits);
        let server = normalise(server);
        Self { server, plain, moved: None, ids: [first, second], transmits }
    }

    /// Takes an answer. `false`: it belongs to somebody else.
    pub fn handle_packet(&mut self, from: SocketAddr, packet: &StunPacket, now: Instant) -> bool {
        if packet.class != StunClass::Success {
            return false;
        }
        let id = packet.transaction_id;
        if id == self.plain.id && from == self.server {
            let first = !std::mem::replace(&mut self.plain.answered, true);
            if let Some(other) = packet.other_address.filter(|_| first) {
                self.ask_elsewhere(other, now);
            }
            return true;
        }
        let Some((other, address, port)) = &mut self.moved else { return false };
        if id == address.id && from == *other {
            address.answered = true;
        } else if id == port.id && from.ip() == self.server.ip() && from != self.server {
            port.answered = true;
        } else {
            return false;
        }
        true
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let moved = self.moved.iter_mut().flat_map(|(_, a, b)| [a, b]);
        for question in std::iter::once(&mut self.plain).chain(moved) {
            question.repeat(now, &mut self.transmits);
        }
    }

    /// The next request, for the server.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmits.pop_front().map(|packet| (self.server, packet))
    }

    /// When to call [`handle_timeout`](Self::handle_timeout); `None` once there is a result.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.moved {
            // The best result needs no waiting for lesser ones.
            Some((_, address, _)) if address.answered => None,
            Some((_, address, port)) => address.due().into_iter().chain(port.due()).min(),
            None => self.plain.due(),
        }
    }

    /// The result; [`Unknown`](FilteringBehaviour::Unknown) while there is none.
    pub fn behaviour(&self) -> FilteringBehaviour {
        let waiting = self.poll_timeout().is_some();
        match &self.moved {
            Some((_, address, _)) if address.answered => FilteringBehaviour::EndpointIndependent,
            Some((_, _, port)) if port.answered && !waiting => FilteringBehaviour::AddressDependent,
            Some(_) if !waiting => FilteringBehaviour::AddressAndPortDependent,
            _ => FilteringBehaviour::Unknown,
        }
    }

    fn ask_elsewhere(&mut self, other: SocketAddr, now: Instant) {
        if other.ip() == self.server.ip() || other.is_ipv4() != self.server.is_ipv4() {
            return;
        }
        let [first, second] = self.ids;
        let both = Change { ip: true, port: true };
        let port = Change { ip: false, port: true };
        let address = Question::ask(first, both, now, &mut self.transmits);
        let port = Question::ask(second, port, now, &mut self.transmits);
        self.moved = Some((other, address, port));
    }
}

impl Question {
    fn ask(id: [u8; 12], change: Change, now: Instant, out: &mut VecDeque<Vec<u8>>) -> Self {
        out.push_back(encode_behaviour_request(id, change));
        Self { id, change, sent: 1, until: now + FIRST_TIMEOUT, answered: false }
    }

    fn due(&self) -> Option<Instant> {
        (!self.answered && self.sent <= MAX_TRANSMITS).then_some(self.until)
    }

    fn repeat(&mut self, now: Instant, out: &mut VecDeque<Vec<u8>>) {
        if self.due().is_none_or(|due| now < due) {
            return;
        }
        if self.sent < MAX_TRANSMITS {
            out.push_back(encode_behaviour_request(self.id, self.change));
        }
        self.until = now + FIRST_TIMEOUT * (1 << self.sent);
        self.sent += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stun::{encode_behaviour_response, parse};

    /// Probes through a NAT that admits by `lets_in` from a server with two addresses.
    fn probe(lets_in: impl Fn(SocketAddr) -> bool, lose: usize) -> FilteringBehaviour {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (server, other) = (at("192.0.2.1:3478"), at("192.0.2.2:3479"));
        let mapped = at("203.0.113.5:40000");
        let mut now = Instant::now();
        let mut probe = FilteringProbe::new(server, [[1; 12], [2; 12], [3; 12]], now);
        let mut count = 0;
        loop {
            while let Some((to, request)) = probe.poll_transmit() {
                assert_eq!(to, server);
                count += 1;
                let asked = parse(&request).unwrap();
                let change = asked.change.unwrap();
                let ip = if change.ip { other.ip() } else { server.ip() };
                let port = if change.port { other.port() } else { server.port() };
                let from = SocketAddr::new(ip, port);
                let id = asked.transaction_id;
                let answer = encode_behaviour_response(id, mapped, Some(from), Some(other));
                if (lose == 0 || count % lose != 0) && lets_in(from) {
                    assert!(probe.handle_packet(from, &parse(&answer).unwrap(), now));
                }
            }
            let Some(due) = probe.poll_timeout() else { return probe.behaviour() };
            now = due;
            probe.handle_timeout(now);
        }
    }

    #[test]
    fn tells_filtering_behaviours_apart_despite_loss() {
        for lose in [0, 2] {
            assert_eq!(probe(|_| true, lose), FilteringBehaviour::EndpointIndependent);
            let by_address = |from: SocketAddr| from.ip().to_string() == "192.0.2.1";
            assert_eq!(probe(by_address, lose), FilteringBehaviour::AddressDependent);
            let by_both = |from: SocketAddr| from.to_string() == "192.0.2.1:3478";
            assert_eq!(probe(by_both, lose), FilteringBehaviour::AddressAndPortDependent);
        }
        assert_eq!(probe(|_| false, 0), FilteringBehaviour::Unknown);
    }

    #[test]
    fn a_server_with_one_address_tells_nothing() {
        let now = Instant::now();
        let server: SocketAddr = "192.0.2.1:3478".parse().unwrap();
        let mut probe = FilteringProbe::new(server, [[1; 12], [2; 12], [3; 12]], now);
        let answer = encode_behaviour_response([1; 12], server, Some(server), None);
        assert!(probe.handle_packet(server, &parse(&answer).unwrap(), now));
        assert_eq!(probe.poll_timeout(), None);
        assert_eq!(probe.behaviour(), FilteringBehaviour::Unknown);
    }
}
