//! Candidate addresses for direct paths (RFC 8445 §5.1).

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;

use crate::{limits::MAX_CANDIDATES, wire};

/// How an address was learnt (RFC 8445 §5.1.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum CandidateKind {
    /// An address of an own interface.
    Host = 1,
    /// Seen by a STUN server.
    ServerReflexive = 2,
    /// Seen by the peer in a check.
    PeerReflexive = 3,
    /// Given by the gateway: UPnP, NAT-PMP, PCP.
    Mapped = 4,
}

/// An address worth probing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Candidate {
    /// How it was learnt.
    pub kind: CandidateKind,
    /// Where.
    pub addr: SocketAddr,
    /// Higher first.
    pub priority: u32,
}

/// A candidate that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed candidate")]
pub struct InvalidCandidate;

impl Candidate {
    /// For a message field.
    pub fn to_wire(&self) -> wire::Candidate {
        let mut addr = match self.addr.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        addr.extend(self.addr.port().to_be_bytes());
        wire::Candidate { kind: self.kind as u32, addr: Bytes::from(addr), priority: self.priority }
    }

    /// From a message field. IPv4-mapped addresses become IPv4.
    pub fn from_wire(w: &wire::Candidate) -> Result<Self, InvalidCandidate> {
        let kind = match w.kind {
            1 => CandidateKind::Host,
            2 => CandidateKind::ServerReflexive,
            3 => CandidateKind::PeerReflexive,
            4 => CandidateKind::Mapped,
            _ => return Err(InvalidCandidate),
        };
        let (ip, port) =
            w.addr.split_at_checked(w.addr.len().wrapping_sub(2)).ok_or(InvalidCandidate)?;
        let port = u16::from_be_bytes(port.try_into().map_err(|_| InvalidCandidate)?);
        let ip = match ip.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(ip).map_err(|_| InvalidCandidate)?),
            16 => IpAddr::from(<[u8; 16]>::try_from(ip).map_err(|_| InvalidCandidate)?),
            _ => return Err(InvalidCandidate),
        };
        if port == 0 {
            return Err(InvalidCandidate);
        }
        Ok(Self { kind, addr: SocketAddr::new(ip.to_canonical(), port), priority: w.priority })
    }

    /// A peer's list: unreadable entries are dropped, and all beyond [`MAX_CANDIDATES`].
    pub fn list_from_wire(list: &[wire::Candidate]) -> Vec<Self> {
        list.iter().filter_map(|c| Self::from_wire(c).ok()).take(MAX_CANDIDATES).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_and_refuses_garbage() {
        for addr in ["192.0.2.1:9", "[2001:db8::1]:9"] {
            let c =
                Candidate { kind: CandidateKind::Host, addr: addr.parse().unwrap(), priority: 7 };
            assert_eq!(Candidate::from_wire(&c.to_wire()), Ok(c));
        }
        for len in 0..40 {
            let w = wire::Candidate { kind: 1, addr: vec![0; len].into(), priority: 0 };
            assert!(Candidate::from_wire(&w).is_err());
        }
    }
}
