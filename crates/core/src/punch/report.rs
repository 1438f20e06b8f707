//! What punching looks like from outside: for `explain` and the audit record.

use std::{net::SocketAddr, time::Duration};

use adit_protocol::candidate::CandidateKind;

use super::{Family, LocalSocket};

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
