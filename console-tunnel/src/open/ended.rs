//! What a command comes to when neither its user nor its viewer ended the session: code, exit code
//! and what to do, by the word of whoever ended it.

use adit_protocol::code::failure;
use adit_runtime::cli::{CliError, Exit};

/// The outcome for a reason of `SessionEvent::Closed`.
pub(super) fn by_others(reason: &str) -> CliError {
    if let Some(lost) = lost(reason) {
        return lost;
    }
    let hint = match reason {
        "lease_expired" => "the grant was not renewed: open it again, and see why if it is refused",
        failure::APPROVAL_REQUIRED => {
            "the approval was withdrawn or is over: console-tunnel requests make COMPUTER \
             REDIRECTOR --reason TEXT"
        }
        failure::TIME_LIMIT => "open a new session",
        failure::MFA_REQUIRED => "console-tunnel mfa verify, then open it again",
        failure::OUTSIDE_HOURS => "try again within the permitted hours",
        failure::SOURCE_NOT_ALLOWED => "connect from a permitted network",
        "logged_out" | "password_changed" => {
            "console-tunnel login HOST --user USER, then open it again"
        }
        "mfa_reset" => "log in again and set a second factor up: console-tunnel mfa totp enroll",
        "locked_by_owner" => "its owner ends that there: agent-tunnel unlock",
        "policy_changed" => crate::failure::OWNER_DECIDES,
        _ => "ask your administrator or the computer's owner",
    };
    let message = format!("session was ended: {}", reason.replace('_', " "));
    CliError::new("session_ended", Exit::Refused, message).hint(hint)
}

/// Ends that nobody wanted.
fn lost(reason: &str) -> Option<CliError> {
    let ended = format!("session was ended: {}", reason.replace('_', " "));
    let lost = |message: &str| CliError::failed("session_lost", message);
    Some(match reason {
        "no_carrier" | "mediator_lost" => CliError::no_path("connection_lost", ended)
            .hint("check the network, then open it again"),
        "lost" | "stopped" => lost(&ended).hint("open it again"),
        "agent_lost_session" => {
            lost("the agent does not know the session any more: it crashed, or was restarted")
                .hint("open it again")
        }
        "agent_stopped" => lost("agent-tunnel was stopped or restarted on that computer")
            .hint("open it again when it runs: console-tunnel computers shows it online"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_by_others_have_their_exit_code() {
        for (reason, code, exit) in [
            ("no_carrier", "connection_lost", 5),
            ("mediator_lost", "connection_lost", 5),
            ("revoked", "session_ended", 3),
            ("closed_by_peer", "session_ended", 3),
            ("ended by admin", "session_ended", 3),
            ("approval_required", "session_ended", 3),
            ("lost", "session_lost", 1),
            ("agent_lost_session", "session_lost", 1),
            ("agent_stopped", "session_lost", 1),
        ] {
            let error = by_others(reason);
            assert_eq!((error.code, error.exit.code()), (code, exit), "{reason}");
        }
    }

    #[test]
    fn nobody_is_asked_for_what_one_can_do_oneself() {
        for (reason, todo) in [
            ("agent_lost_session", "open it again"),
            ("agent_stopped", "open it again"),
            ("approval_required", "requests make"),
            ("time_limit", "open a new session"),
            ("mfa_required", "mfa verify"),
            ("logged_out", "login"),
            ("locked_by_owner", "agent-tunnel unlock"),
        ] {
            let hint = by_others(reason).hint.unwrap();
            assert!(hint.contains(todo) && !hint.contains("ask your administrator"), "{hint}");
        }
    }
}
