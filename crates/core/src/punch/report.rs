//! What punching looks like from outside: for `explain` and the audit record.

use std::{net::SocketAddr, time::Duration};

use adit_protocol::candidate::CandidateKind;

use super::{Family, LocalSocket};

/// What punching looks like now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// All pairs, best first.
    pub pairs: Vec<PairReport>,
    /// Why there is no direct path; empty if there is one, or it is too early to say.
    pub failures: Vec<FailureClass>,
    /// How probing of a hard NAT stands.
    pub hard: HardReport,
}

/// Why no direct path was found, in stable words: for audit records and `explain`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FailureClass {
    /// No STUN server answered this end.
    UdpBlocked,
    /// No STUN server answered the peer.
    PeerUdpBlocked,
    /// The peer named no address.
    NoCandidates,
    /// One end has only IPv4, the other only IPv6.
    NoCommonFamily,
    /// All addresses of the peer are such that they must not be probed.
    NoUsableAddress,
    /// Both NATs map by destination.
    SymmetricBoth,
    /// This end's NAT maps by destination, the peer's lets in only whom it knows.
    SymmetricLocal,
    /// The peer's NAT maps by destination, this end's lets in only whom it knows.
    SymmetricPeer,
    /// Packets pass in one direction only.
    Filtered,
    /// Nothing was heard of the peer at any address.
    NoAnswer,
}

impl FailureClass {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::UdpBlocked,
        Self::PeerUdpBlocked,
        Self::NoCandidates,
        Self::NoCommonFamily,
        Self::NoUsableAddress,
        Self::SymmetricBoth,
        Self::SymmetricLocal,
        Self::SymmetricPeer,
        Self::Filtered,
        Self::NoAnswer,
    ];

    /// By its stable word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == word)
    }

    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UdpBlocked => "udp_blocked",
            Self::PeerUdpBlocked => "peer_udp_blocked",
            Self::NoCandidates => "no_candidates",
            Self::NoCommonFamily => "no_common_family",
            Self::NoUsableAddress => "no_usable_address",
            Self::SymmetricBoth => "symmetric_both",
            Self::SymmetricLocal => "symmetric_local",
            Self::SymmetricPeer => "symmetric_peer",
            Self::Filtered => "filtered",
            Self::NoAnswer => "no_answer",
        }
    }
}

/// How far probing of a hard NAT is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HardPhase {
    /// Not called for, or not known to be.
    #[default]
    Idle,
    /// Called for; waits for its time.
    Waiting,
    /// Predicted ports are tried.
    Predicting,
    /// Random ports are tried, or many sockets held open for the peer's tries.
    Birthday,
    /// All that was allowed has been tried.
    GivenUp,
    /// A pair was found so.
    Hit,
}

/// Probing of a hard NAT, in figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HardReport {
    /// How far it is.
    pub phase: HardPhase,
    /// Rounds begun.
    pub rounds: u32,
    /// Birthday sockets open now.
    pub sockets: usize,
    /// Checks sent to guessed ports, or from birthday sockets, in all.
    pub probes: u64,
}

/// How a pair is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PairState {
    /// No check was sent yet.
    Waiting,
    /// Checks are under way.
    Probing,
    /// A whole round went unanswered; the next one waits.
    Unanswered,
    /// It answers.
    Valid {
        /// Smoothed round trip.
        rtt: Duration,
    },
    /// It answered once, but not lately.
    Silent,
}

/// One pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PairReport {
    /// From this socket.
    pub socket: LocalSocket,
    /// To this address.
    pub remote: SocketAddr,
    /// How the address was learnt.
    pub kind: CandidateKind,
    /// How it is doing.
    pub state: PairState,
    /// The peer was heard from there.
    pub heard: bool,
    /// Checks sent.
    pub checks: u64,
    /// Answers received.
    pub answers: u64,
    /// The own address, as the peer saw it last.
    pub mapped: Option<SocketAddr>,
}

/// All pairs of one family and kind, none of which was answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FailedClass {
    /// Address family.
    pub family: Family,
    /// Kind of the remote candidates.
    pub kind: CandidateKind,
    /// Pairs in it.
    pub pairs: usize,
    /// The peer was heard from one of them: packets pass in one direction only.
    pub heard: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_class_is_found_by_its_word() {
        // The last one: a new one behind it changes this number.
        assert_eq!(FailureClass::ALL.len(), FailureClass::NoAnswer as usize + 1);
        for class in FailureClass::ALL {
            assert_eq!(FailureClass::from_word(class.as_str()), Some(class));
        }
        assert_eq!(FailureClass::from_word("brand_new"), None);
    }
}
