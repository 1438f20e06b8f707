//! What goes wrong with the mediator, in the words, codes and exit codes of the contract.

use adit_control::{RequestError, client::ConnectError};
use adit_net::identity::IdentityError;
use adit_protocol::{code::failure as codes, wire::Failure};
use adit_runtime::cli::CliError;

/// Why no mediator welcomed us.
pub fn connect_error(error: &ConnectError) -> CliError {
    let message = error.to_string();
    match error {
        ConnectError::Refused { failure, .. } => failure_error(failure),
        ConnectError::Tls { error, .. } if error.is_trust() => {
            CliError::refused("mediator_untrusted", message).hint(
                "check that the token is of this installation and that nothing intercepts TLS",
            )
        }
        ConnectError::Keys { .. } => CliError::refused("mediator_untrusted", message),
        ConnectError::NoHost | ConnectError::InvalidHost(_) => {
            CliError::failed("enrolment_damaged", message)
        }
        _ => CliError::no_path("mediator_unreachable", message)
            .hint("check the address, the network, a proxy, and that the mediator runs"),
    }
}

/// Why a request was not answered as wished.
pub fn request_error(error: &RequestError) -> CliError {
    match error {
        RequestError::Failed(failure) => failure_error(failure),
        _ => CliError::no_path("mediator_unreachable", error.to_string()),
    }
}

/// Why the relay's own keys cannot be used.
pub fn identity_error(error: &IdentityError) -> CliError {
    let text = error.to_string();
    match error {
        IdentityError::Io { what: "read", .. } => CliError::failed("data_dir_unreadable", text)
            .hint("check the owner and mode of the data directory"),
        IdentityError::Io { .. } => CliError::failed("data_dir_unwritable", text)
            .hint("check owner, mode and free space, or choose another --data-dir"),
        IdentityError::Damaged { .. } => CliError::failed("identity_damaged", text).hint(
            "restore identity.key and noise.key from a backup, or join again in another directory",
        ),
        IdentityError::Key(_) => CliError::failed("crypto_failed", text),
    }
}

/// A refusal by the mediator; its words are text from a peer and are escaped where printed.
fn failure_error(failure: &Failure) -> CliError {
    const REFUSALS: [&str; 8] = [
        codes::TOKEN_INVALID,
        codes::TOKEN_EXPIRED,
        codes::TOKEN_SPENT,
        codes::TOKEN_WRONG_ROLE,
        codes::NOT_ENROLLED,
        codes::NOT_PERMITTED,
        codes::NAME_TAKEN,
        codes::UNSUPPORTED_VERSION,
    ];
    let refusal = REFUSALS.into_iter().find(|code| *code == failure.code);
    let error = match refusal {
        Some(code) => CliError::refused(code, &failure.message),
        None => CliError::failed("mediator_failed", format!("mediator: {}", failure.message)),
    };
    let hint = match refusal {
        _ if !failure.hint.is_empty() => &failure.hint,
        Some(codes::TOKEN_INVALID | codes::TOKEN_EXPIRED | codes::TOKEN_SPENT) => {
            "make a new one with: mediator token relay"
        }
        Some(codes::TOKEN_WRONG_ROLE) => "a relay's token is made with: mediator token relay",
        Some(codes::NOT_ENROLLED) => "join again with a new token and data directory",
        _ => return error,
    };
    error.hint(hint)
}
