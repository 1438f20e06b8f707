//! What goes in and out of the machine, besides the records of the protocol.

use adit_protocol::{
    code::ChannelCode,
    ids::{CarrierNumber, ChannelId},
    limits::MAX_CHANNELS_PER_SESSION,
    record::Record,
    target::Target,
};
use bytes::Bytes;

/// The peer broke a rule of the protocol: the carrier it came on is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("peer broke the protocol: {0}")]
pub struct Violation(pub &'static str);

/// No more channels can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many channels are open: at most {MAX_CHANNELS_PER_SESSION} in a session")]
pub struct TooManyChannels;

/// How a carrier transports records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// All records share one ordered connection.
    Shared,
    /// Each TCP channel has an ordered stream of its own, everything else shares one.
    Streams,
}

/// A record to be sent, with its payload if it is `Data` or `Datagram`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Header.
    pub record: Record,
    /// The bytes that the header announces.
    pub payload: Bytes,
}

/// What the shell is to do or to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Drain [`Resume::poll_transmit`](super::Resume::poll_transmit) for this carrier.
    Transmit(CarrierNumber),
    /// Drain [`Resume::poll_transmit_stream`](super::Resume::poll_transmit_stream) for this channel's stream on this carrier.
    TransmitStream(CarrierNumber, ChannelId),
    /// Agent: check and connect the target, then [`Resume::connected`](super::Resume::connected) or [`Resume::refuse`](super::Resume::refuse).
    Connect(ChannelId, Target),
    /// Console: the target is connected.
    Opened(ChannelId),
    /// Bytes or the end wait in [`Resume::take_deliverable`](super::Resume::take_deliverable), where
    /// nothing waited before: whoever takes them takes all.
    Deliver(ChannelId),
    /// The local socket may be read again.
    Capacity(ChannelId),
    /// A datagram of a UDP flow.
    Datagram(ChannelId, Bytes),
    /// The channel is over. With a code other than `None` the local socket is to be closed with a
    /// reset, so that a cut stream never looks complete.
    Closed(ChannelId, ChannelEnd),
    /// Agent asks to leave a carrier.
    MoveAsked(CarrierNumber),
    /// Answer to a ping sent with [`Resume::ping`](super::Resume::ping).
    Pong(CarrierNumber, u64),
    /// Console asks to join a relay slot.
    JoinRelay {
        /// First 4 bytes of its identity.
        relay: u32,
        /// Connection slot.
        slot: u32,
    },
    /// Console leaves a relay.
    LeaveRelay {
        /// First 4 bytes of its identity.
        relay: u32,
    },
    /// The peer ends the session, for this reason.
    PeerClosed(Box<str>),
}

/// How a channel ended and what it moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelEnd {
    /// Where it led.
    pub target: Target,
    /// Refused before it was connected, rather than ended after.
    pub refused: bool,
    /// `None`: both ways ended regularly.
    pub code: Option<ChannelCode>,
    /// Bytes that the local socket gave.
    pub bytes_given: u64,
    /// Bytes of ours that the peer has delivered.
    pub bytes_sent: u64,
    /// Bytes of the peer that were delivered here.
    pub bytes_received: u64,
}

/// What waits for the local socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deliverable {
    /// Write these, then call [`Resume::handle_delivered`](super::Resume::handle_delivered).
    Bytes(Bytes),
    /// Shut down the sending side, then call [`Resume::handle_fin_delivered`](super::Resume::handle_fin_delivered).
    Fin,
}
