//! Discovery of server-reflexive addresses and of the NAT's mapping behaviour, without IO.
//!
//! Asks several STUN addresses at once, repeats (RFC 8489 §6.2.1), and compares what they saw.
//! An answer counts only from the address that was asked, for the transaction that was asked:
//! whoever cannot see the requests cannot forge one.

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::codec::{StunClass, StunPacket, encode_binding_request};
use crate::udp::normalise;

/// First wait for an answer; RFC 8489 §6.2.1 has 500 ms, which is longer than a session may take
/// to open. Requests are 20 bytes: an early repetition costs nothing.
const FIRST_TIMEOUT: Duration = Duration::from_millis(200);
/// The wait doubles up to here.
const MAX_TIMEOUT: Duration = Duration::from_millis(1_600);
/// Requests to one server: at 0, 0.2, 0.6, 1.4, 3.0 s; given up at 4.6 s.
const MAX_TRANSMITS: u32 = 5;
/// Servers asked by one discovery.
pub const MAX_SERVERS: usize = 16;

/// How a NAT maps (RFC 4787 §4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MappingBehaviour {
    /// One mapping for all destinations.
    EndpointIndependent,
    /// One for each destination address.
    AddressDependent,
    /// One for each destination address and port.
    AddressAndPortDependent,
    /// Too few answers to tell.
    #[default]
    Unknown,
}

impl MappingBehaviour {
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

/// What one server saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Who was asked.
    pub server: SocketAddr,
    /// Where the request seemed to come from.
    pub mapped: SocketAddr,
    /// From the last request to the answer. Too short if an earlier request was answered late.
    pub rtt: Duration,
}

/// One discovery. Ask [`poll_transmit`](Self::poll_transmit), [`poll_event`](Self::poll_event)
/// and [`poll_timeout`](Self::poll_timeout) until they are empty after every input.
#[derive(Debug)]
pub struct StunClient {
    transactions: Vec<Transaction>,
    transmits: VecDeque<(SocketAddr, Vec<u8>)>,
    events: VecDeque<Mapping>,
}

#[derive(Debug)]
struct Transaction {
    server: SocketAddr,
    id: [u8; 12],
    sent: u32,
    sent_at: Instant,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Waiting { until: Instant },
    Answered { mapped: SocketAddr },
    GaveUp,
}

impl StunClient {
    /// Asks `servers` (the first [`MAX_SERVERS`]); `random` gives the transaction ids, which must
    /// be unpredictable.
    pub fn new(servers: &[SocketAddr], mut random: impl FnMut() -> [u8; 12], now: Instant) -> Self {
        let servers: BTreeSet<_> =
            servers.iter().take(MAX_SERVERS).copied().map(normalise).collect();
        let mut client =
            Self { transactions: Vec::new(), transmits: VecDeque::new(), events: VecDeque::new() };
        for server in servers {
            let id = random();
            client.transmits.push_back((server, encode_binding_request(id)));
            client.transactions.push(Transaction {
                server,
                id,
                sent: 1,
                sent_at: now,
                state: State::Waiting { until: now + FIRST_TIMEOUT },
            });
        }
        client
    }

    /// Takes an answer. `false`: it belongs to somebody else.
    pub fn handle_packet(&mut self, from: SocketAddr, packet: &StunPacket, now: Instant) -> bool {
        let asked = self
            .transactions
            .iter_mut()
            .find(|t| t.id == packet.transaction_id && t.server == from);
        let Some(transaction) = asked else { return false };
        let State::Waiting { .. } = transaction.state else { return true };
        match (packet.class, packet.mapped) {
            (StunClass::Success, Some(mapped)) => {
                transaction.state = State::Answered { mapped };
                let rtt = now.saturating_duration_since(transaction.sent_at);
                self.events.push_back(Mapping { server: from, mapped, rtt });
            }
            (StunClass::Error, _) => transaction.state = State::GaveUp,
            _ => return false,
        }
        true
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        for transaction in &mut self.transactions {
            let State::Waiting { until } = transaction.state else { continue };
            if now < until {
                continue;
            }
            if transaction.sent >= MAX_TRANSMITS {
                transaction.state = State::GaveUp;
                continue;
            }
            let timeout = (FIRST_TIMEOUT * (1 << transaction.sent)).min(MAX_TIMEOUT);
            transaction.sent += 1;
            transaction.sent_at = now;
            transaction.state = State::Waiting { until: now + timeout };
            self.transmits.push_back((transaction.server, encode_binding_request(transaction.id)));
        }
    }

    /// The next request to send.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// The next answer.
    pub fn poll_event(&mut self) -> Option<Mapping> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout); `None` once all is answered or
    /// given up.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.transactions
            .iter()
            .filter_map(|t| match t.state {
                State::Waiting { until } => Some(until),
                _ => None,
            })
            .min()
    }

    /// Whether nothing more will come.
    pub fn is_done(&self) -> bool {
        self.poll_timeout().is_none()
    }

    /// Addresses that the servers saw, each once, in a fixed order.
    pub fn mapped(&self) -> Vec<SocketAddr> {
        self.answers().map(|(_, mapped)| mapped).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// What the answers so far tell about the NAT; the answers should be of one address family,
    /// those of the other are left out if there are fewer of them.
    pub fn mapping_behaviour(&self) -> MappingBehaviour {
        let (v4, v6): (Vec<_>, Vec<_>) = self.answers().partition(|(s, _)| s.is_ipv4());
        classify(if v4.len() >= v6.len() { &v4 } else { &v6 })
    }

    /// The answers so far: server, and the address that it saw; in the order of asking.
    pub fn answers(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
        self.transactions.iter().filter_map(|t| match t.state {
            State::Answered { mapped } => Some((t.server, mapped)),
            _ => None,
        })
    }
}

/// RFC 5780 §4.3, on `(server, mapped)` pairs.
///
/// The same mapping at two ports of one address tells nothing: it may depend on the address.
/// Different mappings at two addresses of which only one port each is known count as the worse
/// case.
pub fn classify(answers: &[(SocketAddr, SocketAddr)]) -> MappingBehaviour {
    let mappings: BTreeSet<_> = answers.iter().map(|(_, mapped)| mapped).collect();
    let servers: BTreeSet<_> = answers.iter().map(|(server, _)| server).collect();
    if servers.len() < 2 {
        return MappingBehaviour::Unknown;
    }
    if mappings.len() == 1 {
        let addresses: BTreeSet<_> = servers.iter().map(|server| server.ip()).collect();
        return match addresses.len() {
            1 => MappingBehaviour::Unknown,
            _ => MappingBehaviour::EndpointIndependent,
        };
    }
    let same_address = |a: &&(SocketAddr, SocketAddr), b: &(SocketAddr, SocketAddr)| {
        a.0.ip() == b.0.ip() && a.0 != b.0
    };
    let mut pairs = answers
        .iter()
        .flat_map(|a| answers.iter().filter(move |b| same_address(b, a)).map(move |b| a.1 == b.1));
    match pairs.next() {
        Some(first) if first && pairs.all(|same| same) => MappingBehaviour::AddressDependent,
        _ => MappingBehaviour::AddressAndPortDependent,
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
