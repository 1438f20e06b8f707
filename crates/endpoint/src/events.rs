//! What a program learns of its sessions.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use adit_protocol::{
    code::ChannelCode,
    ids::{CarrierNumber, ChannelId, SessionId},
    target::Target,
};

/// What a carrier goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CarrierKind {
    /// Through a relay.
    Relayed,
    /// Straight to the peer.
    Direct,
}

impl CarrierKind {
    /// As in JSON and audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Relayed => "relayed",
            Self::Direct => "direct",
        }
    }
}

/// What a carrier is for just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CarrierState {
    /// Channels use it.
    Active,
    /// Ready, should the active one fail.
    Standby,
    /// Gone.
    Lost,
}

impl CarrierState {
    /// As in JSON and audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Standby => "standby",
            Self::Lost => "lost",
        }
    }
}

/// How far a channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelState {
    /// The target is connected.
    Open,
    /// It ended after having been open.
    Closed,
    /// It never came about.
    Refused,
}

impl ChannelState {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Refused => "refused",
        }
    }
}

/// An event of one session, in the order in which things happened.
#[derive(Debug, Clone)]
pub enum SessionEvent {
    /// A carrier came, changed its part, or went.
    Carrier {
        /// Which.
        number: CarrierNumber,
        /// Over what.
        kind: CarrierKind,
        /// What for.
        state: CarrierState,
        /// Round trip, if measured.
        rtt: Option<Duration>,
        /// Own address.
        local: Option<SocketAddr>,
        /// The peer's or relay's address.
        remote: Option<SocketAddr>,
        /// Name of the relay.
        relay: Option<String>,
    },
    /// A channel was connected, or ended.
    Channel {
        /// Which.
        id: ChannelId,
        /// Where it leads.
        target: Option<Target>,
        /// How far it is.
        state: ChannelState,
        /// Why it ended; `None`: regularly.
        reason: Option<ChannelCode>,
        /// Console to target, bytes delivered.
        bytes_up: u64,
        /// Target to console, bytes delivered.
        bytes_down: u64,
        /// How long it was there.
        duration: Duration,
    },
    /// The mediator renewed the grant.
    Lease {
        /// Mediator's time, milliseconds since 1970.
        expires_ms: u64,
    },
    /// The session is over. Nothing follows.
    Closed {
        /// Stable word, the same at both ends: `revoked`, `lease_expired`, `mediator_lost`,
        /// `no_carrier`, `no_path`, `stopped`, or that of whoever ended it.
        reason: String,
        /// Console to target, bytes delivered.
        bytes_up: u64,
        /// Target to console, bytes delivered.
        bytes_down: u64,
        /// How long it lasted.
        duration: Duration,
    },
}

/// Sums of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
    pub(crate) carrier: Option<CarrierKind>,
}

/// A session as `status` shows it.
#[derive(Debug, Clone)]
pub struct SessionInfo {
    /// Which.
    pub id: SessionId,
    /// The technician.
    pub user: String,
    /// Name of the redirector.
    pub redirector: String,
    /// What it was granted for.
    pub targets: Vec<Target>,
    /// What its channels use just now.
    pub carrier: Option<CarrierKind>,
    /// Console to target, bytes delivered by channels that are over.
    pub bytes_up: u64,
    /// Target to console, bytes delivered by channels that are over.
    pub bytes_down: u64,
    /// Since when.
    pub started: Instant,
}
