//! Stable codes: of failures on the control connection, and of closes and resets in a session.
//!
//! Codes of failures are the same strings that programs print with `--json` (docs/errors.md).

/// Failure codes on the control connection and in `--json` errors.
pub mod failure {
    /// Wrong user, password or second factor.
    pub const LOGIN_FAILED: &str = "login_failed";
    /// Session token unknown, expired, or of another device.
    pub const NOT_LOGGED_IN: &str = "not_logged_in";
    /// Not permitted.
    pub const NOT_PERMITTED: &str = "not_permitted";
    /// Not from this source address.
    pub const SOURCE_NOT_ALLOWED: &str = "source_not_allowed";
    /// Not at this time of the day or week.
    pub const OUTSIDE_HOURS: &str = "outside_hours";
    /// A reason must be given.
    pub const REASON_REQUIRED: &str = "reason_required";
    /// A ticket number must be given.
    pub const TICKET_REQUIRED: &str = "ticket_required";
    /// A fresh second factor must be shown.
    pub const MFA_REQUIRED: &str = "mfa_required";
    /// The login is good for setting up a second factor only.
    pub const MFA_SETUP_REQUIRED: &str = "mfa_setup_required";
    /// The person must show password and second factor again.
    pub const REAUTHENTICATION_REQUIRED: &str = "reauthentication_required";
    /// No such stored credential, or none that may be used or seen here.
    pub const NO_SUCH_CREDENTIAL: &str = "no_such_credential";
    /// What the account's login takes can be shown on the web page only.
    pub const WEB_LOGIN_REQUIRED: &str = "web_login_required";
    /// Somebody refused the login on the web page.
    pub const LOGIN_DENIED: &str = "login_denied";
    /// The code of a login on the web page is over, or was never there.
    pub const DEVICE_CODE_EXPIRED: &str = "device_code_expired";
    /// No such second factor.
    pub const NO_SUCH_FACTOR: &str = "no_such_factor";
    /// The code that confirms a second factor is wrong.
    pub const CODE_WRONG: &str = "code_wrong";
    /// An administrator disabled this device.
    pub const DEVICE_DISABLED: &str = "device_disabled";
    /// An administrator locked the client down.
    pub const CLIENT_LOCKED: &str = "client_locked";
    /// Somebody else must approve it first.
    pub const APPROVAL_REQUIRED: &str = "approval_required";
    /// What is asked for may be done without anybody's approval.
    pub const APPROVAL_NOT_NEEDED: &str = "approval_not_needed";
    /// The longest permitted time is over.
    pub const TIME_LIMIT: &str = "time_limit";
    /// No such request for access.
    pub const NO_SUCH_REQUEST: &str = "no_such_request";
    /// Not there, or not to be seen.
    pub const NO_SUCH_COMPUTER: &str = "no_such_computer";
    /// Several match.
    pub const AMBIGUOUS_COMPUTER: &str = "ambiguous_computer";
    /// The agent has no control connection.
    pub const AGENT_OFFLINE: &str = "agent_offline";
    /// The console that asked has no control connection any more.
    pub const CONSOLE_GONE: &str = "console_gone";
    /// The agent did not answer in time.
    pub const AGENT_TIMEOUT: &str = "agent_timeout";
    /// The agent's handshake or policy said no.
    pub const AGENT_REFUSED: &str = "agent_refused";
    /// The agent's policy does not allow the target or the console.
    pub const POLICY_REFUSED: &str = "policy_refused";
    /// The console used an outdated key of the agent.
    pub const STALE_KEY: &str = "stale_key";
    /// The computer was renamed or moved since the console had it described.
    pub const STALE_DESCRIPTION: &str = "stale_description";
    /// No such redirector.
    pub const NO_SUCH_REDIRECTOR: &str = "no_such_redirector";
    /// No such session.
    pub const NO_SUCH_SESSION: &str = "no_such_session";
    /// A message that cannot be read or does not belong here.
    pub const BAD_REQUEST: &str = "bad_request";
    /// Too many requests, sessions or connections.
    pub const BUSY: &str = "busy";
    /// Too much for too long on this connection.
    pub const RATE_LIMITED: &str = "rate_limited";
    /// An `Idempotency-Key` that is in use, or was used for another request.
    pub const IDEMPOTENCY_CONFLICT: &str = "idempotency_conflict";
    /// The audit record could not be written; nothing was granted.
    pub const AUDIT_UNAVAILABLE: &str = "audit_unavailable";
    /// Nothing proves that the grant, or the agent's enrolment, is in the audit log.
    pub const AUDIT_UNPROVEN: &str = "audit_unproven";
    /// The audit log shows another history than it showed before, or shows to others.
    pub const AUDIT_FORKED: &str = "audit_forked";
    /// The audit log that is shown is of another partner than this device belongs to.
    pub const AUDIT_FOREIGN: &str = "audit_foreign";
    /// Unexpected fault of the server.
    pub const INTERNAL: &str = "internal";
    /// Enrolment token unknown, of another installation, or mutilated.
    pub const TOKEN_INVALID: &str = "token_invalid";
    /// Enrolment token expired.
    pub const TOKEN_EXPIRED: &str = "token_expired";
    /// Enrolment token used up.
    pub const TOKEN_SPENT: &str = "token_spent";
    /// Enrolment token of another role.
    pub const TOKEN_WRONG_ROLE: &str = "token_wrong_role";
    /// This device is not enrolled here (any more).
    pub const NOT_ENROLLED: &str = "not_enrolled";
    /// Another program that runs connected with this device's identity.
    pub const IDENTITY_IN_USE: &str = "identity_in_use";
    /// A name is taken.
    pub const NAME_TAKEN: &str = "name_taken";
    /// Protocol version not spoken.
    pub const UNSUPPORTED_VERSION: &str = "unsupported_version";
    /// No relay is registered.
    pub const NO_RELAY: &str = "no_relay";
    /// The same was asked for before, in other words, and waits.
    pub const REQUEST_PENDING: &str = "request_pending";
    /// The request was decided before; nothing was changed.
    pub const ALREADY_DECIDED: &str = "already_decided";
    /// Nobody who manages the partner would be left.
    pub const LAST_MANAGER: &str = "last_manager";
}

/// Why a channel was refused or reset, one byte on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ChannelCode {
    /// The id is not of a live channel.
    Unknown = 1,
    /// The target refused the connection.
    TargetRefused = 2,
    /// The target cannot be reached or did not answer in time.
    TargetUnreachable = 3,
    /// The target's name does not resolve.
    TargetUnresolved = 4,
    /// The agent's policy does not allow the target.
    Policy = 5,
    /// The grant does not cover the target.
    NotGranted = 6,
    /// Too many channels.
    TooMany = 7,
    /// The local connection ended with a reset.
    LocalReset = 8,
    /// The peer broke a rule.
    Protocol = 9,
    /// The session ended.
    SessionEnded = 10,
    /// A flow without traffic ended.
    Idle = 11,
    /// The target's audit record could not be written.
    Audit = 12,
    /// The person at the computer refused.
    ConsentRefused = 13,
    /// The person at the computer did not answer in time.
    ConsentTimeout = 14,
    /// A receipt is missing, cannot be made durable, or tells another story.
    Receipt = 15,
}

impl ChannelCode {
    /// From the wire; unknown codes of later versions read as [`ChannelCode::Unknown`].
    pub fn from_u8(n: u8) -> Self {
        use ChannelCode::*;
        [
            TargetRefused,
            TargetUnreachable,
            TargetUnresolved,
            Policy,
            NotGranted,
            TooMany,
            LocalReset,
            Protocol,
            SessionEnded,
            Idle,
            Audit,
            ConsentRefused,
            ConsentTimeout,
            Receipt,
        ]
        .into_iter()
        .find(|c| *c as u8 == n)
        .unwrap_or(Unknown)
    }

    /// Stable name for JSON and audit.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown_channel",
            Self::TargetRefused => "target_refused",
            Self::TargetUnreachable => "target_unreachable",
            Self::TargetUnresolved => "target_unresolved",
            Self::Policy => "policy_refused",
            Self::NotGranted => "not_granted",
            Self::TooMany => "too_many_channels",
            Self::LocalReset => "local_reset",
            Self::Protocol => "protocol_error",
            Self::SessionEnded => "session_ended",
            Self::Idle => "idle",
            Self::Audit => "audit_unavailable",
            Self::ConsentRefused => "consent_refused",
            Self::ConsentTimeout => "consent_timeout",
            Self::Receipt => "receipt_missing",
        }
    }
}

/// How a relay answers a join, one byte in the encrypted reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum JoinStatus {
    /// Joined; the carrier's bytes may follow the confirmation.
    Accepted = 0,
    /// Ticket mutilated, of another relay, role or key, or not signed by the installation.
    BadTicket = 1,
    /// Ticket expired.
    Expired = 2,
    /// The relay is full.
    Full = 3,
    /// The relay drains.
    Draining = 4,
}

impl JoinStatus {
    /// From the wire; anything unknown is a refusal.
    pub fn from_u32(n: u32) -> Self {
        match n {
            0 => Self::Accepted,
            2 => Self::Expired,
            3 => Self::Full,
            4 => Self::Draining,
            _ => Self::BadTicket,
        }
    }
}
