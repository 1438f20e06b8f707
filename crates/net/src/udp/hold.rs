//! Packets of addresses that are not admitted yet, kept for a moment.
//!
//! A peer's first QUIC packet often overtakes the answer that proves its address; dropping it
//! would cost the handshake a retransmission, a second. Bounded per address, in time, and in all:
//! whoever floods fills this and nothing else.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use quinn::udp::RecvMeta;

/// Packets kept for one address: a client's first flight and its repetition.
const MAX_PER_ADDRESS: usize = 8;
/// Addresses that packets are kept for.
const MAX_ADDRESSES: usize = 64;
/// How long; a check's answer that takes longer has come too late for this flight.
const MAX_AGE: Duration = Duration::from_millis(100);
/// Largest packet kept: an Ethernet frame's worth. First flights are 1,200 bytes.
const MAX_PACKET: usize = 1_500;

/// A packet for quinn.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) packet: Box<[u8]>,
    pub(super) meta: RecvMeta,
}

/// Packets kept, and those let go but not yet taken.
#[derive(Debug, Default)]
pub(super) struct Hold {
    kept: HashMap<SocketAddr, Vec<(Instant, Held)>>,
    released: VecDeque<Held>,
}

impl Hold {
    /// Keeps a packet of `addr`; `false` if there is no room.
    pub(super) fn hold(
        &mut self,
        addr: SocketAddr,
        packet: &[u8],
        meta: &RecvMeta,
        now: Instant,
    ) -> bool {
        if packet.is_empty() || packet.len() > MAX_PACKET {
            return false;
        }
        if self.kept.len() >= MAX_ADDRESSES && !self.kept.contains_key(&addr) {
            self.kept.retain(|_, packets| packets.iter().any(|(at, _)| fresh(*at, now)));
            if self.kept.len() >= MAX_ADDRESSES {
                return false;
            }
        }
        let packets = self.kept.entry(addr).or_default();
        packets.retain(|(at, _)| fresh(*at, now));
        if packets.len() >= MAX_PER_ADDRESS {
            return false;
        }
        let meta = RecvMeta { len: packet.len(), stride: packet.len(), ..*meta };
        packets.push((now, Held { packet: packet.into(), meta }));
        true
    }

    /// Lets go what is kept for `addr` and not stale; whether there was any.
    pub(super) fn release(&mut self, addr: SocketAddr, now: Instant) -> bool {
        let packets = self.kept.remove(&addr).unwrap_or_default();
        let before = self.released.len();
        let packets = packets.into_iter().filter(|(at, _)| fresh(*at, now)).map(|(_, held)| held);
        let room = (MAX_PER_ADDRESS * MAX_ADDRESSES).saturating_sub(before);
        self.released.extend(packets.take(room));
        self.released.len() > before
    }

    pub(super) fn next_released(&mut self) -> Option<Held> {
        self.released.pop_front()
    }

    #[cfg(test)]
    pub(super) fn addresses(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn has_released(&self) -> bool {
        !self.released.is_empty()
    }
}

fn fresh(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) <= MAX_AGE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(n: u16) -> SocketAddr {
        SocketAddr::new([192, 0, 2, 1].into(), n)
    }

    #[test]
    fn gives_back_in_order_what_is_fresh_and_only_to_its_address() {
        let (now, meta) = (Instant::now(), RecvMeta::default());
        let mut hold = Hold::default();
        assert!(hold.hold(addr(1), b"stale", &meta, now));
        let later = now + MAX_AGE + Duration::from_millis(1);
        assert!(hold.hold(addr(1), b"a", &meta, later));
        assert!(hold.hold(addr(1), b"b", &meta, later));
        assert!(hold.hold(addr(2), b"c", &meta, later));
        assert!(!hold.release(addr(3), later));
        assert!(hold.release(addr(1), later));
        let taken: Vec<_> = std::iter::from_fn(|| hold.next_released()).collect();
        let packets: Vec<_> = taken.iter().map(|h| &*h.packet).collect();
        assert_eq!(packets, [b"a", b"b"]);
        assert!(taken.iter().all(|h| h.meta.len == 1 && h.meta.stride == 1));
        assert!(!hold.release(addr(2), later + MAX_AGE * 2));
    }

    #[test]
    fn is_bounded_whatever_arrives() {
        let (now, meta) = (Instant::now(), RecvMeta::default());
        let mut hold = Hold::default();
        let mut kept = 0;
        for round in 0..3 {
            for n in 1..1_000 {
                for _ in 0..20 {
                    kept += usize::from(hold.hold(addr(n), &[0xC0; 1200], &meta, now));
                }
            }
            assert_eq!(kept, MAX_ADDRESSES * MAX_PER_ADDRESS, "round {round}");
        }
        assert!(!hold.hold(addr(1), &[0; MAX_PACKET + 1], &meta, now));
        let later = now + MAX_AGE * 2;
        assert!(hold.hold(addr(2_000), b"x", &meta, later));
        assert_eq!(hold.kept.len(), 1);
    }
}
