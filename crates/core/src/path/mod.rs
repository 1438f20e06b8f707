//! Which carrier of a session to use, and which no longer answers.
//!
//! [`PathChooser`] watches all carriers of one session. The console's decides: direct before
//! relayed, then the lower smoothed round trip with hysteresis and a slight preference for IPv6;
//! bulk takes the second relayed connection where only relays are left. The agent's only says
//! which carriers it suspects.
//!
//! What counts as a sign of life: anything authenticated received over the carrier, acknowledged
//! data, answered checks. Lost checks alone prove nothing while data flow. Without any sign for
//! max(3 RTT, 500 ms) while data or a probe are outstanding a carrier is *left*: not used as long as there
//! is a better one, but not closed, because it may come back; it is *dead* only after
//! [`DEAD_AFTER`]. One that comes back repeatedly is used again only after a hold time that grows,
//! so that a path that flaps does not make the session flap.
//!
//! Long before it is left a carrier whose data are *late* is probed, so that a receiver who does
//! not read is not taken for a dead path; and so are the other carriers, for what kills one path
//! often kills all, and moving from one dead path to the next would take too long. If another
//! answers and a direct one does not, a round trip later its data are *overdue*: the session goes
//! on over the other, which costs what was under way a second time, and comes back with the next
//! sign of life. So a path that dies costs its user a tenth of a second or two; and one that only
//! paused costs little, less and less often.
//!
//! INVARIANTS:
//! - A silent carrier is never chosen while a live one exists.
//! - Nothing is closed here: `Dead` is advice, [`PathChooser::handle_carrier_down`] is the fact.
//! - A change of round trips alone moves traffic at most once in [`BETTER_FOR`].

mod carrier;
mod chooser;
#[cfg(test)]
mod tests;

use std::time::Duration;

use adit_protocol::ids::CarrierNumber;

pub use chooser::PathChooser;

use crate::punch::Family;

/// A carrier with outstanding data is left after this long without a sign of life, or after
/// [`SILENT_RTTS`] round trips if that is longer.
pub const SILENT_AFTER: Duration = Duration::from_millis(500);
/// See [`SILENT_AFTER`].
pub const SILENT_RTTS: u32 = 3;
/// What waits on a direct carrier for one and a quarter round trips and this (RFC 9000 §18.2: an
/// acknowledgement may be delayed by 25 ms) is late: it and the other carriers are probed.
pub const LATE_SLACK: Duration = Duration::from_millis(30);
/// A round trip and this later it is overdue: another carrier that has answered takes over.
pub const OVERDUE_SLACK: Duration = Duration::from_millis(20);
/// An answer of another carrier counts only after this, and what its round trip is shorter: what
/// holds both up must not make the quicker one win.
pub const OVERDUE_GRACE: Duration = Duration::from_millis(10);
/// Something is received, but nothing acknowledged: packets pass in one direction only. Slower
/// by this factor, since a queue at a bottleneck looks the same at first.
pub const ONE_WAY_FACTOR: u32 = 4;
/// With checks lost, a carrier that received nothing for so long is probed.
pub const CHECKS_GRACE: Duration = Duration::from_secs(2);
/// A carrier without any sign of life for so long is dead (RFC 7675 §5.1).
pub const DEAD_AFTER: Duration = Duration::from_secs(30);
/// Paths are compared by the least round trip of the last one to two of these: what is above it are
/// queues, mostly the session's own, which go wherever its data go.
pub const LEAST_OVER: Duration = Duration::from_secs(10);
/// Another path of the same kind must be better by this much ...
pub const RTT_HYSTERESIS: Duration = Duration::from_millis(5);
/// ... for this long.
pub const BETTER_FOR: Duration = Duration::from_secs(1);
/// IPv6 counts as if its round trip were shorter by this: no NAT can forget it.
pub const V6_PREFERENCE: Duration = Duration::from_millis(2);
/// A left carrier is probed so often, and so brought back once packets pass again.
pub const PROBE_LEFT: Duration = Duration::from_secs(1);
/// A carrier that came back for the second time waits this long, doubled each time, and is used
/// then if it answers ...
pub const HOLD_FIRST: Duration = Duration::from_millis(500);
/// ... up to this.
pub const HOLD_MAX: Duration = Duration::from_secs(60);
/// A carrier (or its kind of path) that did not lapse for so long is as good as new.
pub const TRUSTED_AFTER: Duration = Duration::from_secs(60);
/// Punching is not asked for more often than this, whatever happens.
pub const WANT_DIRECT_MIN: Duration = Duration::from_secs(5);
/// Without a direct carrier, punching is asked for after the first of these, and so on; the last
/// repeats.
pub const WANT_DIRECT_GAPS: [Duration; 5] = [
    Duration::from_secs(10),
    Duration::from_secs(20),
    Duration::from_secs(60),
    Duration::from_secs(120),
    Duration::from_secs(300),
];

/// What a carrier goes over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum CarrierKind {
    /// Straight to the peer.
    Direct {
        /// Family of the path.
        family: Family,
    },
    /// Through a relay.
    Relayed {
        /// 0 interactive, 1 bulk.
        slot: u32,
    },
}

/// What was seen of a carrier since one looked last.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Seen {
    /// The smoothed round trip, if measured.
    pub rtt: Option<Duration>,
    /// See [`Activity::Sent`].
    pub sent: bool,
    /// See [`Activity::Received`].
    pub received: bool,
    /// [`Activity::Acknowledged`] or [`Activity::Answered`].
    pub answer: Option<Activity>,
}

/// What happened on a carrier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activity {
    /// Something authenticated arrived.
    Received,
    /// The peer acknowledged data of channels.
    Acknowledged {
        /// More are outstanding.
        outstanding: bool,
    },
    /// It answered, but acknowledged nothing more of what channels sent (a `Pong` record, a QUIC
    /// acknowledgement): perhaps the receiver does not read.
    Answered {
        /// Data are outstanding.
        outstanding: bool,
    },
    /// Data that the peer must acknowledge were given to the carrier.
    Sent,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathEvent {
    /// Console only, on change only: send over these from now on.
    Use {
        /// For what a person waits for.
        interactive: CarrierNumber,
        /// For large transfers; often the same.
        bulk: CarrierNumber,
    },
    /// The carrier does not answer. The agent tells the console (`Move`); the console has
    /// already chosen another if there is one. It is not closed.
    Suspect(CarrierNumber),
    /// Agent only: what waits on the carrier is overdue while another answers. The console is told
    /// (`Move`), best over [`PathChooser::beside`]; nothing else follows yet, since it may be a short
    /// hold-up.
    Overdue(CarrierNumber),
    /// Send a `Ping` record over it: its data wait for an acknowledgement rather long (perhaps
    /// because their receiver does not read), or it was left. The `Pong` is
    /// [`Activity::Answered`].
    Probe(CarrierNumber),
    /// No sign of life for so long that it may be closed.
    Dead(CarrierNumber),
    /// Console only: no direct carrier is live; gather candidates again and punch.
    WantDirect,
    /// The last carrier is down.
    Stranded,
}
