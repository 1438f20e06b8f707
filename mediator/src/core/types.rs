//! What goes into the broker and what comes out.

use std::{sync::Arc, time::Duration};

use adit_ledger::{Event, Hash};
use adit_protocol::{
    grant::{Grant, Lease},
    ids::{ComputerId, RelayId, SessionId},
    keys::{Fingerprint, PublicKey},
    target::Target,
    ticket::Ticket,
    wire,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A control connection. Numbers only grow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(crate) struct ConnectionId(pub(crate) u64);

/// A peer's request that waits for its reply.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(crate) struct RequestId(pub(crate) u64);

/// Audit records that must become durable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(crate) struct AuditId(pub(crate) u64);

/// The time, twice: for deadlines and for signatures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// Never goes back; begins at the process's start with the time since 1970.
    pub(crate) mono: Duration,
    /// Milliseconds since 1970.
    pub(crate) unix_ms: u64,
}

/// A failure to tell a peer: code and message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Who asks, as login and TLS proved it.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub(crate) account_id: String,
    pub(crate) account: String,
    pub(crate) partner_id: String,
    pub(crate) partner: String,
    /// Hash of the session token.
    pub(crate) login: [u8; 32],
    pub(crate) device: PublicKey,
    pub(crate) source: String,
    /// How the second factor was shown: `none`, `totp`, `recovery`.
    pub(crate) mfa: String,
}

/// The computer asked for, as the store knows it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) computer_id: ComputerId,
    pub(crate) computer: String,
    pub(crate) client_id: String,
    /// `partner/client`.
    pub(crate) client: String,
    pub(crate) agent: PublicKey,
}

/// What a session's right rests on, so that it can be judged anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Basis {
    /// A reason was given.
    pub(crate) reason: bool,
    /// A ticket number was given.
    pub(crate) ticket: bool,
    /// When the second factor was shown, milliseconds since 1970.
    pub(crate) mfa_ms: Option<u64>,
}

/// What the record of a session's end says and nothing else needs: kept until then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Told {
    pub(crate) reason: String,
    pub(crate) ticket: String,
    pub(crate) viewer: String,
    pub(crate) rule: String,
    /// Kinds of carriers in the order of use, as the console told.
    pub(crate) by_console: Vec<String>,
    /// The same as the agent told.
    pub(crate) by_agent: Vec<String>,
}

/// Why an attempt is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Allowed {
    pub(crate) rule: String,
    /// Until when, milliseconds since 1970; `u64::MAX`: no limit.
    pub(crate) until_ms: u64,
    pub(crate) basis: Basis,
}

#[cfg(test)]
impl From<&str> for Allowed {
    /// By this rule, without an end.
    fn from(rule: &str) -> Self {
        Self { rule: rule.to_owned(), until_ms: u64::MAX, basis: Basis::default() }
    }
}

/// An attempt to open a session, decided already.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) request: RequestId,
    pub(crate) connection: ConnectionId,
    /// When the decision was begun: what was withdrawn since, it may not know of.
    pub(crate) asked_ms: u64,
    /// Of the rules that were asked.
    pub(crate) generation: u64,
    pub(crate) who: Who,
    pub(crate) session: SessionId,
    /// None if there is none that this technician may know of.
    pub(crate) place: Option<Place>,
    /// As asked, for the record.
    pub(crate) computer_id: String,
    pub(crate) redirector: String,
    pub(crate) targets: Vec<Target>,
    pub(crate) any_target: bool,
    pub(crate) reason: String,
    pub(crate) ticket: String,
    pub(crate) viewer: String,
    pub(crate) noise_msg1: Bytes,
    /// Head of the partner's log that the console holds.
    pub(crate) seen: Option<wire::SeenHead>,
    /// The console wants the agent's enrolment proved.
    pub(crate) enrolment: bool,
    /// The rule that allows, or why not and the rule that denies.
    pub(crate) verdict: Result<Allowed, (Refusal, String)>,
}

/// A connected device.
#[derive(Clone, Debug)]
pub(crate) enum Device {
    /// An agent.
    Agent { computer: ComputerId, noise: [u8; 32] },
    /// A console.
    Console { identity: PublicKey, noise: [u8; 32] },
    /// A relay.
    Relay {
        id: RelayId,
        identity: PublicKey,
        /// Without addresses it gets no new sessions.
        info: wire::RelayInfo,
        /// It named no address itself: it drains.
        drains: bool,
        /// [`Broker::relay_setting`](super::Broker::relay_setting) of before it was judged.
        setting: u64,
    },
}

/// Which sessions an administrator's act ends.
#[derive(Clone, Debug)]
pub(crate) enum Affected {
    /// All of an account.
    Account(String),
    /// All opened under a login.
    Login([u8; 32]),
    /// All of a client's computers.
    Client(String),
    /// All with a computer.
    Computer(ComputerId),
    /// All opened with a technician's device.
    Device(Fingerprint),
    /// The same of one partner's users.
    DeviceOf { device: Fingerprint, partner: String },
}

impl Affected {
    /// Does it concern this person's session with that computer?
    pub(crate) fn hits(&self, who: &Who, place: &Place) -> bool {
        match self {
            Self::Account(id) => who.account_id == *id,
            Self::Login(login) => who.login == *login,
            Self::Client(id) => place.client_id == *id,
            Self::Computer(id) => place.computer_id == *id,
            Self::Device(fingerprint) => who.device.fingerprint() == *fingerprint,
            Self::DeviceOf { device, partner } => {
                who.partner_id == *partner && who.device.fingerprint() == *device
            }
        }
    }
}

/// Who may end a session, and who asks.
#[derive(Clone, Debug)]
pub(crate) enum EndAs {
    /// One of the session's ends.
    End(ConnectionId),
    /// A technician: an own session, or with the right to, any of the partner.
    Account { partner_id: String, account_id: String, account: String, all: bool },
}

/// A row of the session table when it begins, or is read after a restart.
#[derive(Clone, Debug)]
pub(crate) struct SessionRow {
    pub(crate) id: SessionId,
    pub(crate) who: Who,
    pub(crate) place: Place,
    pub(crate) redirector: String,
    /// As in the audit record.
    pub(crate) target: String,
    pub(crate) any_target: bool,
    pub(crate) started_ms: u64,
    pub(crate) lease_ms: u64,
    pub(crate) basis: Basis,
    pub(crate) told: Told,
}

/// What changes in the store together with audit records.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// A session begins.
    Begin(Box<SessionRow>),
    /// There is more to tell at a session's end.
    Told { session: SessionId, told: Box<Told> },
    /// A session is over.
    End { session: SessionId, reason: String, bytes_up: u64, bytes_down: u64, relay_bytes: u64 },
    /// A session's lease was renewed.
    Lease { session: SessionId, lease_ms: u64 },
}

/// A relay and the ticket to join there.
#[derive(Clone, Debug)]
pub(crate) struct RelayChoice {
    pub(crate) relay: wire::RelayInfo,
    pub(crate) ticket: Ticket,
}

/// What a request is answered with.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// The session may begin.
    Granted {
        grant: Box<Grant>,
        noise_msg2: Bytes,
        relays: Vec<RelayChoice>,
        audit_us: u32,
        agent: ConnectionId,
    },
    /// The lease goes on.
    Renewed(Lease),
    /// Fresh tickets.
    Tickets(Vec<RelayChoice>),
    /// Sessions that are over.
    CheckedIn(Vec<SessionId>),
    /// Done.
    Done,
    /// No.
    Refused(Refusal),
}

/// What the shell must see to.
#[derive(Clone, Debug)]
pub(crate) enum Output {
    /// Make these records durable in the partner's log, in one transaction with the effect,
    /// then tell; in the order of these outputs.
    Audit { id: AuditId, partner_id: String, events: Vec<Event>, effect: Effect },
    /// Answer a request.
    Reply { request: RequestId, reply: Reply },
}

/// Messages to devices.
#[derive(Clone, Debug)]
pub(crate) enum Transmit {
    /// Ask the agent; its answer goes to [`super::Broker::handle_answer`].
    Offer {
        to: ConnectionId,
        session: SessionId,
        grant: Box<Grant>,
        noise_msg1: Bytes,
        relays: Vec<RelayChoice>,
        console: Option<ConnectionId>,
        /// The grant's entry in the log, and the head that the console holds.
        entry: Arc<str>,
        seen: Option<wire::SeenHead>,
        /// The console wants the agent's enrolment proved in the same head.
        enrolment: bool,
    },
    /// The console's tickets while the agent is asked: it may connect to relays meanwhile.
    Tickets { to: ConnectionId, session: SessionId, relays: Vec<RelayChoice> },
    /// Tell an end that its session is over; acknowledged to
    /// [`super::Broker::handle_acknowledged`].
    End { to: ConnectionId, session: SessionId, reason: String },
    /// Tell a relay to cut a session; acknowledged likewise.
    Cut { to: ConnectionId, session: SessionId },
    /// Pass a sealed message on.
    Signal { to: ConnectionId, signal: wire::Signal },
    /// The same device has connected anew.
    Close { to: ConnectionId },
}

/// Where an entry went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) seq: u64,
    pub(crate) leaf: Hash,
    /// As written.
    pub(crate) line: Arc<str>,
}

impl Recorded {
    /// Of an effect without entries.
    pub(crate) fn nothing() -> Self {
        Self { seq: 0, leaf: Hash([0; 32]), line: "".into() }
    }
}

/// How much of everything there is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) agents: usize,
    pub(crate) consoles: usize,
    pub(crate) relays: usize,
    pub(crate) sessions: usize,
    /// Ends that somebody has not acknowledged.
    pub(crate) pending: usize,
}
