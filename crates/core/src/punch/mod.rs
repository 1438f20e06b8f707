//! Hole punching: which pairs of a local socket and a remote address carry packets both ways.
//!
//! [`Punch`] is one end of one session. It sends authenticated STUN requests ("checks") to the
//! peer's candidate addresses, answers the peer's, and reports every pair on which an own check
//! was answered. Both ends do the same at the same time, so that each opens its own NAT for the
//! other (simultaneous open, RFC 8445 §6.1.4); nothing depends on who is first.
//!
//! The algorithm:
//!
//! - Pairs are ordered class by class in turn (family × kind of candidate), so that no number of
//!   junk addresses of one class delays the best of another. What the peer was heard from is first.
//! - A *round* is at most [`CHECKS_PER_ROUND`] checks at growing gaps; rounds follow each other at
//!   growing gaps as long as the session lives, and start afresh when the network changes.
//! - Candidates announced again start the rounds anew, at most every [`REANNOUNCE_GAP`], and make
//!   this end announce its own again, gathered afresh ([`Event::WantAddresses`]). So an end that
//!   wants to try again announces its candidates: both ends then know what has changed, and send
//!   at the same time, which some NATs need. An announcement that answers an own one ends there.
//! - A request from an address that is not verified yet makes the next check go there.
//! - The first packet over a new pair to a public IPv4 address is an *opener*: it is sent at once
//!   with a TTL of [`OPENER_TTL`], opens the own NATs, and dies before the peer's router sees it.
//!   Ordinary checks follow when the peer has had time to do the same.
//! - Where simultaneous open cannot work (see `hard.rs`) ports are predicted or guessed, and where
//!   a router may have been irritated by the peer's packet coming first, or a NAT forgets mappings
//!   after a fixed time, another socket is tried (see `fresh.rs`).
//! - Answered pairs are checked on for liveness, round trip and the NAT's memory; silence is
//!   reported quickly, consent (RFC 7675) ends after [`CONSENT_EXPIRY`].
//!
//! INVARIANTS:
//! - Nothing is sent to an address that [`AddressFilter`] does not admit.
//! - An address is admitted only by an answer to an own outstanding check from exactly there.
//! - Checks to addresses that never answered are bounded per round, and in all by a token bucket.
//! - No clock, socket or unseeded randomness. Integrity has been verified before a packet gets here.

mod bucket;
mod filter;
mod follow;
mod fresh;
mod hard;
mod machine;
mod pair;
mod ports;
mod replay;
mod report;
mod table;
mod watch;
mod why;

use std::{net::SocketAddr, time::Duration};

use adit_protocol::candidate::CandidateKind;

pub use filter::{AddressFilter, OwnSubnet};
pub use machine::Punch;
pub use report::{FailedClass, FailureClass, HardPhase, HardReport, PairReport, PairState, Report};
pub use watch::{UdpWatch, WATCH_INTERVAL, WATCH_SILENCE, WatchEvent};

/// TTL of openers, packets that are to open the own NATs and never to arrive: some routers take a
/// packet that comes before their own side has sent one for theirs, and then give their own side
/// another port. Passes a home's NAT and a carrier's close by.
pub const OPENER_TTL: u8 = 3;
/// Least time between two checks (RFC 8445 §14.2 allows down to 5 ms).
pub const PACE: Duration = Duration::from_millis(5);
/// Unanswered checks to one address in one round.
pub const CHECKS_PER_ROUND: u8 = 5;
/// Further checks in one round, each called for by an authenticated request from that address.
pub const TRIGGERED_PER_ROUND: u8 = 5;
/// Pairs of a session.
pub const MAX_PAIRS: usize = 100;
/// Unverified pairs that the peer was heard from but did not announce.
pub const MAX_PEER_REFLEXIVE: usize = 16;
/// Unverified pairs with one remote IP address.
pub const MAX_PORTS_PER_ADDRESS: usize = 8;
/// Local sockets of a session, birthday sockets not counted.
pub const MAX_SOCKETS: usize = 8;
/// Numbers of sockets opened on [`Event::WantFreshSocket`] start here.
pub const FRESH_BASE: usize = 16;
/// Numbers of birthday sockets start here; those below belong to ordinary ones.
pub const BIRTHDAY_BASE: usize = 1000;
/// Sockets that the end with the symmetric NAT opens for birthday probing.
pub const BIRTHDAY_SOCKETS: usize = 256;
/// Checks to unverified addresses that may be sent at once: two rounds to 32 candidates, and
/// openers.
pub const UNVERIFIED_BURST: u32 = 384;
/// And afterwards one in this time.
pub const UNVERIFIED_INTERVAL: Duration = Duration::from_millis(125);
/// So many are kept for first rounds of the best pairs of each class: however many addresses a peer
/// names, a path that opens after some time in vain finds checks left.
pub const UNVERIFIED_RESERVE: u32 = 128;
/// Requests of one source that are answered at once.
pub const ANSWER_BURST: u32 = 20;
/// And afterwards one in this time.
pub const ANSWER_INTERVAL: Duration = Duration::from_millis(50);
/// Packets waiting for `poll_transmit`; answers beyond it are dropped.
pub const MAX_QUEUED: usize = 64;
/// Requests of unverified sources, all together, that are answered at once.
pub const STRANGER_BURST: u32 = 64;
/// And afterwards one in this time.
pub const STRANGER_INTERVAL: Duration = Duration::from_millis(50);
/// Requests of the peer that may overtake each other. Their transaction ids begin with a counter;
/// each is taken once, and none that is so far behind: recorded ones are worth nothing, ever.
pub const REPLAY_MEMORY: u32 = 1024;
/// How often a verified pair is checked (RFC 7675 §5.1: 5 s, randomised by a fifth).
pub const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The shortest that the interval adapts to when a NAT forgets its mappings.
pub const MIN_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A pair without any answer for so long loses its consent (RFC 7675 §5.1).
pub const CONSENT_EXPIRY: Duration = Duration::from_secs(30);
/// An address that worked is checked so often once its consent is over, as long as nothing else
/// works, by one check each time ...
pub const LOST_INTERVAL: Duration = Duration::from_secs(3);
/// ... and for so long; then it is an address like any other.
pub const LOST_FOR: Duration = Duration::from_secs(600);
/// A birthday round: P's tries, and S's sockets, last so long.
pub const BIRTHDAY_ROUND: Duration = Duration::from_secs(9);
/// Ports that P tries in one round.
pub const BIRTHDAY_PROBES: usize = 2048;
/// Time between two packets of such probing: 300 in a second.
pub const PROBE_INTERVAL: Duration = Duration::from_micros(3333);
/// Time that may be made up for if an end is woken late: 7 packets at once.
pub const PROBE_BURST: Duration = Duration::from_millis(20);
/// S sends from all its sockets after these times. The first makes the mappings by openers, the
/// second is heard where P was quicker, packets were lost, or S's NAT is further away. Then come other sockets: their ports, as far as P has tried
/// them already, were tried before P's router saw any packet from there (see
/// [`Event::WantFreshSocket`] for routers that mind).
pub const BIRTHDAY_PASSES: [(Duration, BirthdayPass); 4] = [
    (Duration::ZERO, BirthdayPass::Fresh),
    (Duration::from_millis(2000), BirthdayPass::Again),
    (Duration::from_millis(5500), BirthdayPass::Fresh),
    (Duration::from_millis(7000), BirthdayPass::Again),
];
/// All packets of such probing in one session, by each end.
pub const BIRTHDAY_TOTAL_PROBES: u64 = 16_384;
/// Rounds in vain are followed by the next after these times, from start to start; no more after
/// the last unless a network changed.
pub const HARD_ROUND_GAPS: [Duration; 3] =
    [Duration::from_secs(60), Duration::from_secs(300), Duration::from_secs(900)];
/// And never sooner.
pub const HARD_ROUND_MIN_GAP: Duration = Duration::from_secs(15);
/// Birthday probing waits so long for ordinary checks where nothing else is known to work ...
pub const HARD_DELAY_SURE: Duration = Duration::from_millis(300);
/// ... and where they may do.
pub const HARD_DELAY_UNSURE: Duration = Duration::from_millis(1500);
/// Birthday probing waits so long for prediction.
pub const PREDICTION_TIME: Duration = Duration::from_secs(1);
/// Predicted ports beyond the last known one.
pub const PREDICTION_AHEAD: i32 = 40;
/// And before the first known one: the mapping may be older than the observation.
pub const PREDICTION_BEHIND: i32 = 5;
/// Ports between first and last known one that are tried at most.
pub const PREDICTED_PORTS: i32 = 64;
/// Fresh observations of the peer that start prediction again, in one round.
pub const PREDICTIONS_PER_ROUND: u32 = 3;
/// One more socket is tried after these times without a path: what the first one met on its way
/// (a router that saw the peer's packet first and now gives out another port) it has not met.
pub const FRESH_TRIES: [Duration; 3] =
    [Duration::from_millis(1200), Duration::from_millis(2600), Duration::from_millis(5000)];
/// Checks from a fresh socket wait so long for the peer to hear of it: a server is asked, and its
/// answer goes through the mediator. What the peer sends is answered at once.
pub const FRESH_HOLD: Duration = Duration::from_millis(400);
/// A fresh socket that found no path is of no use after this long.
pub const FRESH_LIFE: Duration = Duration::from_secs(15);
/// Fresh sockets are not asked for more often than this to replace a mapping.
pub const FRESH_GAP: Duration = Duration::from_secs(5);
/// Lives of mappings that are believed: shorter ones are short idle timeouts, and met by checks.
pub const MAPPING_LIFE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(5)..=Duration::from_secs(600);
/// Pairs to one address that work for so long before another does are older mappings.
pub const RETIRING_AGE: Duration = Duration::from_secs(3);
/// A port of the peer's NAT that was silent for so long answers for another mapping: before, checks
/// may have been lost.
pub const REUSED_AFTER: Duration = Duration::from_secs(10);
/// What comes to work so much later than another pair to the same address is a younger mapping, not
/// one of several that there were from the start.
pub const SUCCESSOR_GAP: Duration = Duration::from_millis(500);
/// Starts in vain that begin with dense rounds; later ones begin with ever sparser ones.
pub const EAGER_STARTS: u32 = 3;
/// Longest that one end waits for the other's start, see [`Punch::handle_hold`].
pub const MAX_HOLD: Duration = Duration::from_millis(300);
/// Candidates announced again start new rounds, but not more often than this.
pub const REANNOUNCE_GAP: Duration = Duration::from_secs(5);

/// From which sockets S sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BirthdayPass {
    /// From new ones.
    Fresh,
    /// From the same.
    Again,
}

/// A UDP socket of this session, as the owner of the sockets numbers them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LocalSocket(pub usize);

/// Address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Of an address.
    pub fn of(addr: SocketAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// STUN transaction id (RFC 8489 §5): a counter of 32 bits, big-endian, and 64 bits of chance.
pub type TransactionId = [u8; 12];

/// A STUN message of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// Binding request.
    Request {
        /// Fresh for each request.
        id: TransactionId,
        /// The priority that the sender would have as peer-reflexive candidate (RFC 8445 §7.1.1).
        priority: u32,
    },
    /// Binding success response.
    Response {
        /// Of the request.
        id: TransactionId,
        /// The request's source address (XOR-MAPPED-ADDRESS).
        mapped: SocketAddr,
    },
}

/// A received check, whose tag and integrity have been verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Where it arrived.
    pub socket: LocalSocket,
    /// Its source address.
    pub from: SocketAddr,
    /// What it says.
    pub message: Message,
}

/// A check to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transmit {
    /// From this socket.
    pub socket: LocalSocket,
    /// To this address.
    pub to: SocketAddr,
    /// What to say.
    pub message: Message,
    /// An opener: with this TTL, so that it passes the own NATs and not much more. Where the
    /// system cannot do that it is not sent; from a birthday socket, which sends nothing else at
    /// first, it is sent as usual.
    pub ttl: Option<u8>,
}

/// How to punch.
#[derive(Clone, Debug)]
pub struct PunchConfig {
    /// Fresh random bytes, for transaction ids and jitter.
    pub seed: [u8; 32],
    /// Which addresses may be probed and answered.
    pub filter: AddressFilter,
    /// How often a verified pair is checked; [`CHECK_INTERVAL`] unless there is a reason.
    pub check_interval: Duration,
}

/// What has been found out. Addresses are remote ones unless said otherwise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The address answered an own check for the first time: let its other packets in.
    AddressAdmitted(SocketAddr),
    /// The pair works both ways: for the first time, or again after silence.
    Validated {
        /// From this socket.
        socket: LocalSocket,
        /// To this address.
        remote: SocketAddr,
        /// How the address was learnt.
        kind: CandidateKind,
        /// Round trip of the answered check.
        rtt: Duration,
    },
    /// The verified pair still works, but the NAT gave this end another address: a connection
    /// over it that cannot migrate is dead, a new one will work.
    Rebound {
        /// From this socket.
        socket: LocalSocket,
        /// To this address.
        remote: SocketAddr,
        /// The own address, as the peer sees it now.
        mapped: SocketAddr,
    },
    /// The verified pair answered again.
    Rtt {
        /// From this socket.
        socket: LocalSocket,
        /// To this address.
        remote: SocketAddr,
        /// Round trip.
        rtt: Duration,
    },
    /// The peer sees this end at an address that is none of its candidates.
    PeerReflexive {
        /// The socket that is seen there.
        socket: LocalSocket,
        /// The own address, as the peer sees it.
        mapped: SocketAddr,
    },
    /// A verified pair answered none of a series of checks. Data may still flow.
    Silent {
        /// From this socket.
        socket: LocalSocket,
        /// To this address.
        remote: SocketAddr,
    },
    /// A verified pair lost its consent: nothing more may be sent there but checks.
    Expired {
        /// From this socket.
        socket: LocalSocket,
        /// To this address.
        remote: SocketAddr,
        /// No other pair with this address is left: stop letting its packets in.
        revoked: bool,
    },
    /// Gather own addresses afresh (ask STUN servers from each ordinary socket), hand them in
    /// with [`Punch::handle_local_candidates`], and announce all of them to the peer: a direct
    /// path is sought again, and a NAT may have changed its mind.
    WantAddresses,
    /// Observe own NAT anew, from a throw-away socket (mappings that exist say nothing of the
    /// port that comes next), hand it in with [`Punch::handle_local_nat`], and trickle it: the
    /// peer is about to predict ports.
    WantNatSummary,
    /// Open so many fresh sockets for birthday probing, hand each in with
    /// [`Punch::handle_birthday_socket`], numbered from [`BIRTHDAY_BASE`] and never reusing the
    /// number of one that was kept; fewer, or none, is all right.
    WantSockets {
        /// At most.
        count: usize,
        /// Of this family.
        family: Family,
    },
    /// Close all birthday sockets but this one, which has become an ordinary one: it is named by
    /// a `Validated` event, and stays until [`Event::SocketUnneeded`].
    ReleaseSockets {
        /// The one with the hit.
        keep: Option<LocalSocket>,
    },
    /// Open one more ordinary socket, numbered from [`FRESH_BASE`], never reusing a number; hand
    /// it in at once with [`Punch::handle_local_candidates`], and again, with a trickle to the
    /// peer, when a STUN server told its external address.
    WantFreshSocket {
        /// Of this family.
        family: Family,
    },
    /// Another pair will take over from this one, whose NAT is about to forget it: tell
    /// [`crate::path::PathChooser::handle_retiring`] of its carrier. Comes after the other's
    /// `Validated`.
    Retiring {
        /// From this socket.
        socket: LocalSocket,
        /// To this address.
        remote: SocketAddr,
    },
    /// A socket opened for this session has no use any more: close what still runs over it, and
    /// the socket, then call [`Punch::handle_socket_closed`].
    SocketUnneeded(LocalSocket),
    /// The first rounds went unanswered; later ones follow at growing intervals. Once for each
    /// start of punching.
    Exhausted {
        /// What was tried, by class.
        failed: Vec<FailedClass>,
    },
}

/// A candidate's priority (RFC 8445 §5.1.2.1). `local_preference`: higher is better; junk
/// interfaces get a low one.
pub fn candidate_priority(kind: CandidateKind, local_preference: u16) -> u32 {
    // Type preferences as recommended in RFC 8445 §5.1.2.2; a mapped address is as good as a
    // peer-reflexive one, since the gateway forwards it without having been punched.
    let kind: u32 = match kind {
        CandidateKind::Host => 126,
        CandidateKind::PeerReflexive | CandidateKind::Mapped => 110,
        CandidateKind::ServerReflexive => 100,
    };
    (kind << 24) + (u32::from(local_preference) << 8) + 255
}
