//! Failures of the mediator connection in the words and exit codes of the contract. The only
//! place where they are mapped; text of the mediator is passed on escaped by whoever prints it.

use adit_control::{
    RequestError,
    client::{ConnectError, DownReason},
};
use adit_endpoint::StartError;
use adit_net::{identity::IdentityError, tls::TlsError};
use adit_protocol::{code::failure, limits::MAX_TEXT, wire};
use adit_runtime::cli::{CliError, Exit};

/// Codes of the mediator that a command passes on, with exit code and hint.
const KNOWN: &[(&str, Exit, &str)] = &[
    (failure::TOKEN_INVALID, Exit::Refused, "ask the mediator's administrator for a new token"),
    (failure::TOKEN_EXPIRED, Exit::Refused, "ask the mediator's administrator for a new token"),
    (
        failure::TOKEN_SPENT,
        Exit::Refused,
        "ask the mediator's administrator for a new token; one may be made for several computers",
    ),
    (failure::TOKEN_WRONG_ROLE, Exit::Refused, "ask for a token made by mediator token agent"),
    (failure::NOT_ENROLLED, Exit::Refused, "the mediator removed this computer: enrol it again"),
    (
        failure::IDENTITY_IN_USE,
        Exit::Refused,
        "was the data directory copied, with a disk image for instance? enrol one of the two \
         computers anew: there stop the agent, remove the data directory, agent-tunnel enroll with \
         a new token",
    ),
    (failure::NAME_TAKEN, Exit::Failed, "choose another name with --name"),
    (failure::NOT_PERMITTED, Exit::Refused, "ask the mediator's administrator"),
    (failure::BUSY, Exit::Failed, "try again in a minute"),
    (
        failure::AUDIT_UNAVAILABLE,
        Exit::Failed,
        "the mediator cannot write its audit: tell its administrator",
    ),
    (failure::UNSUPPORTED_VERSION, Exit::Failed, "install a version that the mediator speaks"),
    (failure::BAD_REQUEST, Exit::Failed, "install matching versions of agent and mediator"),
    (failure::INTERNAL, Exit::Failed, "look into the mediator's log"),
];

/// A refusal of the mediator.
pub fn refused(failure: &wire::Failure) -> CliError {
    let message: String = failure.message.chars().take(MAX_TEXT).collect();
    match KNOWN.iter().find(|(code, ..)| *code == failure.code) {
        Some((code, exit, hint)) => CliError::new(code, *exit, message).hint(*hint),
        None => CliError::refused("mediator_refused", format!("{message} ({})", failure.code))
            .hint("install the mediator's version; see its log"),
    }
}

/// No connection to the mediator.
pub fn connect(error: &ConnectError) -> CliError {
    let text = error.to_string();
    match error {
        ConnectError::Refused { failure, .. } => refused(failure),
        // The right installation, perhaps, but not with this certificate at this time.
        ConnectError::Tls {
            error:
                TlsError::Expired
                | TlsError::NotYetValid
                | TlsError::WrongName(_)
                | TlsError::WrongUsage,
            ..
        } => CliError::refused("mediator_untrusted", text)
            .hint("check this computer's clock; ask the mediator's administrator"),
        ConnectError::Tls { error, .. } if error.is_trust() => {
            CliError::refused("wrong_mediator_key", text)
                .hint("another installation answers there, or somebody is in between: compare fingerprints with the mediator's administrator")
        }
        ConnectError::Keys { .. } => CliError::refused("wrong_mediator_key", text)
            .hint("tell the mediator's administrator"),
        ConnectError::NoHost | ConnectError::InvalidHost(_) => {
            CliError::usage("mediator_address_invalid", text)
        }
        ConnectError::Dial { .. }
        | ConnectError::Tls { .. }
        | ConnectError::Closed { .. }
        | ConnectError::Timeout { .. }
        | ConnectError::NoWelcome { .. } => CliError::no_path("mediator_unreachable", text)
            .hint("check address, firewall and proxy (--proxy), and that the mediator runs"),
    }
}

/// The kept-up connection is down.
pub fn down(reason: &DownReason) -> CliError {
    match reason {
        DownReason::Connect(error) => connect(error),
        DownReason::Closed(closed) => CliError::no_path("mediator_unreachable", closed.to_string())
            .hint(
                "it is tried again by itself; if it ends every few seconds, see whether a second \
                 agent runs with a copy of this data directory",
            ),
    }
}

/// A request to the mediator that got no good answer.
pub fn request(error: &RequestError) -> CliError {
    match error {
        RequestError::Failed(failure) => refused(failure),
        other => CliError::no_path("mediator_unreachable", format!("mediator: {other}"))
            .hint("try again"),
    }
}

/// Sessions cannot be prepared.
pub fn start(error: &StartError) -> CliError {
    let text = format!("cannot prepare sessions: {error}");
    match error {
        StartError::Keep(error) if error.is_damage() => CliError::failed("state_damaged", text)
            .hint(
                "restore it from a backup; without one look into why first, then agent-tunnel \
                 witness accept: the next head that is shown is believed",
            ),
        StartError::Keep(_) => CliError::failed("records_unreadable", text)
            .hint("check owner, mode and free space of the data directory"),
        StartError::Io(_) => CliError::failed("sessions_failed", text)
            .hint("see that UDP sockets may be opened, or set network.direct = false"),
        StartError::Key(_) | StartError::Quic(_) => {
            CliError::failed("sessions_failed", text).hint("try again; if it stays so, report it")
        }
    }
}

/// The device's keys cannot be used.
pub fn identity(error: &IdentityError) -> CliError {
    let text = error.to_string();
    match error {
        IdentityError::Io { what: "read", .. } => CliError::failed("data_dir_unreadable", text)
            .hint("check the owner and mode of the data directory"),
        IdentityError::Io { .. } => CliError::failed("data_dir_unwritable", text)
            .hint("check owner, mode and free space, or choose another --data-dir"),
        IdentityError::Damaged { .. } => CliError::failed("identity_damaged", text).hint(
            "without a backup: an empty data directory, a new token, agent-tunnel enroll; consoles \
             are then told of another key",
        ),
        IdentityError::Key(_) => {
            CliError::failed("crypto_failed", text).hint("try again; if it stays so, report it")
        }
    }
}
