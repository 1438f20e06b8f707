//! From what mediator, network and certificates say to codes, exit codes and advice.
//!
//! The one place that maps; a code that this version does not know is still reported, as
//! `mediator_refused`.

use adit_control::{RequestError, client::ConnectError};
use adit_endpoint::{LOCKED, StartError};
use adit_net::{proxy::DialError, tls::TlsError};
use adit_protocol::{code::failure as codes, wire::Failure};
use adit_runtime::cli::{CliError, Exit};

/// Known codes of the mediator, their exit code and what to do if the mediator does not say.
const FAILURES: &[(&str, Exit, &str)] = &[
    (codes::LOGIN_FAILED, Exit::Refused, "check user, password and second factor"),
    (codes::NOT_LOGGED_IN, Exit::Refused, "console-tunnel login HOST --user USER"),
    (codes::NOT_PERMITTED, Exit::Refused, "ask your administrator for the permission"),
    (codes::SOURCE_NOT_ALLOWED, Exit::Refused, "connect from a permitted network"),
    (codes::OUTSIDE_HOURS, Exit::Refused, "try again within the permitted hours"),
    (codes::REASON_REQUIRED, Exit::Refused, "say why with --reason TEXT"),
    (codes::TICKET_REQUIRED, Exit::Refused, "name the ticket with --ticket ID"),
    (
        codes::MFA_REQUIRED,
        Exit::Refused,
        "console-tunnel mfa verify; without a second factor first: console-tunnel mfa totp enroll",
    ),
    (codes::MFA_SETUP_REQUIRED, Exit::Refused, "console-tunnel mfa totp enroll"),
    (codes::REAUTHENTICATION_REQUIRED, Exit::Refused, "console-tunnel mfa verify"),
    (codes::WEB_LOGIN_REQUIRED, Exit::Refused, "console-tunnel login HOST --web"),
    (codes::LOGIN_DENIED, Exit::Refused, "begin again, and say yes on the page"),
    (codes::DEVICE_CODE_EXPIRED, Exit::Refused, "console-tunnel login HOST --web"),
    (codes::NO_SUCH_FACTOR, Exit::NotThere, "console-tunnel mfa status"),
    (codes::CODE_WRONG, Exit::Refused, "wait for the next code and try again"),
    (codes::DEVICE_DISABLED, Exit::Refused, "ask your administrator"),
    (codes::CLIENT_LOCKED, Exit::Refused, "ask your administrator"),
    (
        codes::APPROVAL_REQUIRED,
        Exit::Refused,
        "console-tunnel requests make COMPUTER REDIRECTOR --reason TEXT",
    ),
    (codes::APPROVAL_NOT_NEEDED, Exit::Failed, "open it: console-tunnel open COMPUTER REDIRECTOR"),
    (codes::TIME_LIMIT, Exit::Refused, "open a new session"),
    (codes::NO_SUCH_REQUEST, Exit::NotThere, "console-tunnel requests list"),
    (codes::NO_SUCH_COMPUTER, Exit::NotThere, "console-tunnel computers"),
    (codes::AMBIGUOUS_COMPUTER, Exit::Failed, "give client/name or the id"),
    ("ambiguous_relay", Exit::Failed, "give the id: console-tunnel admin relay list"),
    (codes::AGENT_OFFLINE, Exit::NotThere, "check that the computer is on and agent-tunnel runs"),
    (codes::AGENT_TIMEOUT, Exit::NotThere, "try again; check that agent-tunnel runs well there"),
    (codes::AGENT_REFUSED, Exit::Refused, "see the log of agent-tunnel on that computer"),
    (codes::POLICY_REFUSED, Exit::Refused, OWNER_DECIDES),
    (codes::STALE_KEY, Exit::Refused, "try again"),
    (codes::STALE_DESCRIPTION, Exit::Refused, "try again"),
    (codes::NO_SUCH_CREDENTIAL, Exit::NotThere, "console-tunnel credentials list"),
    (codes::NO_SUCH_REDIRECTOR, Exit::NotThere, "console-tunnel computers shows what there is"),
    (codes::NO_SUCH_SESSION, Exit::NotThere, "console-tunnel sessions"),
    (codes::BAD_REQUEST, Exit::Failed, "ask for something else, or update what is older"),
    (codes::BUSY, Exit::Failed, "try again in a moment"),
    (codes::RATE_LIMITED, Exit::Failed, "wait a moment and try again"),
    (codes::IDEMPOTENCY_CONFLICT, Exit::Failed, "look whether it was done, and try again"),
    (codes::NAME_TAKEN, Exit::Failed, "choose another name, or another key"),
    (codes::REQUEST_PENDING, Exit::Failed, "console-tunnel requests list"),
    (codes::ALREADY_DECIDED, Exit::Refused, "ask anew: console-tunnel requests make"),
    (
        codes::LAST_MANAGER,
        Exit::Refused,
        "give somebody else such a role on the whole partner first",
    ),
    ("home_partner", Exit::Refused, "erase its clients one by one"),
    ("not_found", Exit::NotThere, "see the list commands"),
    ("legal_hold", Exit::Refused, "console-tunnel admin audit retention show"),
    ("ambiguous_hold", Exit::Failed, "console-tunnel admin audit retention show"),
    ("too_many_holds", Exit::Failed, "console-tunnel admin audit retention release"),
    ("erasure_under_way", Exit::Failed, "give the same command again when that is done"),
    ("erasure_unfinished", Exit::Failed, "nothing: the mediator goes on by itself"),
    ("tenant_key_missing", Exit::Failed, "the mediator's administrator must restore the key"),
    ("too_many_keys", Exit::Failed, "the mediator's administrator must take old keys away"),
    ("usage", Exit::Usage, "see --help"),
    ("tag_invalid", Exit::Usage, "a tag is written KEY=VALUE"),
    ("weak_password", Exit::Usage, "15 characters or more, several words"),
    (codes::AUDIT_UNAVAILABLE, Exit::Failed, "the mediator's administrator must see to its disk"),
    (codes::AUDIT_UNPROVEN, Exit::Refused, DISTRUST),
    (codes::AUDIT_FORKED, Exit::Refused, DISTRUST),
    (codes::AUDIT_FOREIGN, Exit::Refused, DISTRUST),
    (codes::INTERNAL, Exit::Failed, "see the mediator's log"),
    (codes::NOT_ENROLLED, Exit::Refused, "log in again"),
    (codes::UNSUPPORTED_VERSION, Exit::Failed, "install the version that the mediator speaks"),
    // What a user sees is always that there is no path; the message says what of it failed.
    (codes::NO_RELAY, Exit::NoPath, "the mediator's administrator must join a relay"),
];

/// What to do when the computer's owner allows it to nobody, or not now.
pub const OWNER_DECIDES: &str = "its owner decides there: policy.toml, agent-tunnel policy show";
/// The same while the kill switch is on.
const UNLOCK: &str = "its owner ends that there: agent-tunnel unlock";
/// What to do when the audit log is not what it should be.
const DISTRUST: &str = "do not go on; tell your administrator and whoever audits, and keep the \
                        data directory: console-tunnel witness show";

/// What this console does not believe of the audit log.
pub fn doubt(doubt: &adit_endpoint::Doubt) -> CliError {
    CliError::refused(doubt.code(), doubt.to_string()).hint(DISTRUST)
}

/// Why sessions cannot be prepared.
pub fn start(error: &StartError) -> CliError {
    let text = error.to_string();
    match error {
        StartError::Keep(error) if error.is_damage() => CliError::failed("state_damaged", text)
            .hint(
                "restore it from a backup; without one look into why first, then console-tunnel \
                 witness accept: the next head that is shown is believed",
            ),
        StartError::Keep(_) => CliError::failed("records_unreadable", text)
            .hint("check owner, mode and free space of the data directory"),
        StartError::Io(_) => CliError::failed("endpoint_failed", text)
            .hint("try --carrier relayed, which needs no UDP"),
        StartError::Key(_) | StartError::Quic(_) => {
            CliError::failed("crypto_failed", text).hint("try again; if it stays so, report it")
        }
    }
}

/// What the mediator answered.
pub fn refused(failure: &Failure) -> CliError {
    let known = FAILURES.iter().find(|(code, ..)| *code == failure.code);
    let (code, exit, advice) = match known {
        Some((codes::NO_RELAY, exit, advice)) => ("no_path", *exit, *advice),
        Some((code, exit, advice)) => (*code, *exit, *advice),
        None => ("mediator_refused", Exit::Failed, ""),
    };
    let message = match (failure.message.as_str(), known) {
        ("", _) => format!("mediator refused: {}", failure.code),
        (message, Some(_)) => message.to_owned(),
        (message, None) => format!("{message} ({})", failure.code),
    };
    let hint = match failure.hint.as_str() {
        "" if code == codes::POLICY_REFUSED && failure.message.contains(LOCKED) => UNLOCK,
        "" => advice,
        hint => hint,
    };
    let error = CliError::new(code, exit, message);
    if hint.is_empty() { error } else { error.hint(hint) }
}

/// Why a request on the control connection came to nothing.
pub fn request(error: &RequestError) -> CliError {
    match error {
        RequestError::Failed(failure) => refused(failure),
        RequestError::Timeout(_) | RequestError::Closed => {
            CliError::no_path("mediator_unreachable", format!("mediator: {error}"))
                .hint("try again; check the network")
        }
        RequestError::Busy => CliError::failed(codes::BUSY, error.to_string()),
        RequestError::TooLarge => CliError::usage("usage", error.to_string()),
        RequestError::UnknownAnswer => unexpected(),
    }
}

/// An answer of another kind than the question's.
pub fn unexpected() -> CliError {
    CliError::failed("unexpected_answer", "mediator gave an answer that does not fit the question")
        .hint("console and mediator may be of different versions")
}

/// Why there is no control connection.
pub fn connect(error: &ConnectError) -> CliError {
    let text = error.to_string();
    match error {
        ConnectError::NoHost => crate::state::account::not_logged_in(None),
        ConnectError::InvalidHost(_) => CliError::usage("address_invalid", text),
        ConnectError::Dial { error, .. } => dial(error, text),
        ConnectError::Tls { error, .. } => tls(error, text),
        ConnectError::Refused { failure, .. } => refused(failure),
        ConnectError::Closed { .. } | ConnectError::Timeout { .. } => {
            CliError::no_path("mediator_unreachable", text).hint("try again; check the network")
        }
        ConnectError::Keys { .. } => CliError::refused("mediator_untrusted", text)
            .hint("check this computer's clock; ask the mediator's administrator"),
        ConnectError::NoWelcome { .. } => {
            CliError::failed("not_a_mediator", text).hint("check host and port")
        }
    }
}

pub(crate) fn dial(error: &DialError, text: String) -> CliError {
    match error {
        DialError::ProxyAuth(_) | DialError::ProxyRefused { .. } | DialError::Proxy(_) => {
            CliError::no_path("proxy_failed", text).hint("check --proxy, HTTPS_PROXY and NO_PROXY")
        }
        _ => CliError::no_path("mediator_unreachable", text)
            .hint("check host, port and network; behind a proxy give --proxy URL"),
    }
}

pub(crate) fn tls(error: &TlsError, text: String) -> CliError {
    match error {
        TlsError::UnknownRoot { .. } => CliError::refused("mediator_key_changed", text).hint(
            "if the mediator was set up anew, compare the fingerprint with its administrator and \
             log in again with --fingerprint",
        ),
        error if error.is_trust() => CliError::refused("mediator_untrusted", text)
            .hint("ask the mediator's administrator; nothing was sent"),
        TlsError::Io(_) => CliError::no_path("mediator_unreachable", text)
            .hint("try again; check host, port and network"),
        TlsError::InvalidName(_) => CliError::usage("address_invalid", text),
        TlsError::Key(_) | TlsError::Config(_) => CliError::failed("internal", text),
        _ => CliError::failed("not_a_mediator", text).hint("check host and port"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: &str, message: &str) -> CliError {
        refused(&Failure { code: code.into(), message: message.into(), hint: String::new() })
    }

    /// What is refused over the network exits as it does on the mediator's machine.
    #[test]
    fn exit_codes_are_those_of_the_documentation() {
        let documented = include_str!("../../docs/errors.md");
        for (code, exit, _) in FAILURES.iter().filter(|(code, ..)| *code != codes::NO_RELAY) {
            let start = format!("| `{code}` |");
            let row = documented.lines().find(|line| line.starts_with(&start));
            let cell = row.and_then(|row| row.split('|').nth(2)).unwrap_or_default();
            assert!(cell.contains(&exit.code().to_string()), "{code}: {cell} and {exit:?}");
        }
        let known = |code: &str| FAILURES.iter().any(|(known, ..)| *known == code);
        assert!(known("legal_hold") && known("erasure_under_way") && known("erasure_unfinished"));
    }

    #[test]
    fn a_locked_computer_has_another_hint_than_a_policy() {
        let hint = |message: &str| failure(codes::POLICY_REFUSED, message).hint.unwrap();
        assert_eq!(hint(LOCKED), UNLOCK);
        assert!(!hint("port 22 is not allowed").contains("unlock"));
    }

    #[tokio::test]
    async fn damaged_heads_are_no_fault_of_the_network() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("witness"), "no head\n").unwrap();
        let config = adit_endpoint::EndpointConfig {
            role: adit_protocol::ticket::Role::Console,
            identity: std::sync::Arc::new(adit_net::identity::DeviceIdentity::generate(0).unwrap()),
            dialer: std::sync::Arc::new(adit_net::proxy::Dialer::direct()),
            direct: false,
            resume_window: std::time::Duration::from_secs(1),
            offline_grace: std::time::Duration::from_secs(1),
            relay_cache: None,
            records: Some(directory.path().to_owned()),
            mediator: String::new(),
            partner: None,
        };
        let started = adit_endpoint::Endpoint::start(
            config,
            adit_endpoint::ControlLink::new(),
            tokio_util::sync::CancellationToken::new(),
        );
        let error = start(&started.await.err().unwrap());
        assert_eq!((error.code, error.exit.code()), ("state_damaged", 1));
        assert!(error.hint.as_ref().unwrap().contains("witness accept"), "{error:?}");
        assert!(error.message.contains("witness is damaged: line 1"), "{error:?}");
    }

    #[test]
    fn failures_keep_their_code_and_get_their_exit_code() {
        for (code, exit) in [
            (codes::LOGIN_FAILED, 3),
            (codes::NOT_PERMITTED, 3),
            (codes::NO_SUCH_COMPUTER, 4),
            (codes::AGENT_OFFLINE, 4),
            (codes::POLICY_REFUSED, 3),
            (codes::BUSY, 1),
        ] {
            let error = failure(code, "m");
            assert_eq!((error.code, error.exit.code()), (code, exit));
            assert!(error.hint.is_some() && error.message == "m");
        }
        let no_relay = failure(codes::NO_RELAY, "no relay is registered");
        assert_eq!((no_relay.code, no_relay.exit.code()), ("no_path", 5));
        let unknown = failure("brand_new", "because");
        assert_eq!((unknown.code, unknown.exit.code()), ("mediator_refused", 1));
        assert_eq!(unknown.message, "because (brand_new)");
        assert_eq!(failure("brand_new", "").message, "mediator refused: brand_new");
    }
}
