//! Why nothing came of a viewer: its connections were refused at the other end.
//!
//! A viewer says of that only that its connection was reset; who refused and why is known here.

use adit_protocol::{code::ChannelCode, target::Target};
use adit_runtime::cli::{CliError, Exit, escape_text};

use crate::failure::OWNER_DECIDES;

/// The last connection that was refused.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    /// Where it was to lead.
    pub(super) target: Option<Target>,
    /// Why it did not.
    pub(super) code: ChannelCode,
}

impl Refusal {
    /// What the command ends with; `computer` is where the agent runs.
    pub(super) fn error(&self, computer: &str) -> CliError {
        let target = self.target.as_ref().map_or_else(|| "target".to_owned(), Target::to_string);
        let computer = escape_text(computer);
        let (exit, what, hint) = match self.code {
            ChannelCode::TargetRefused => (
                Exit::NotThere,
                format!("nothing listens at {target} of {computer}: it refused the connection"),
                "see that the service runs there, and on that port",
            ),
            ChannelCode::TargetUnreachable => (
                Exit::NotThere,
                format!("{computer} cannot reach {target}, or it did not answer in time"),
                "check it from that computer",
            ),
            ChannelCode::TargetUnresolved => (
                Exit::NotThere,
                format!("{computer} cannot resolve the name of {target}"),
                "check the name from that computer",
            ),
            ChannelCode::Policy | ChannelCode::NotGranted => (
                Exit::Refused,
                format!("the owner of {computer} does not allow {target}"),
                OWNER_DECIDES,
            ),
            ChannelCode::ConsentRefused => (
                Exit::Refused,
                format!("the person at {computer} did not allow {target}"),
                "ask them",
            ),
            ChannelCode::ConsentTimeout => (
                Exit::Refused,
                format!("the person at {computer} did not answer whether {target} is allowed"),
                "ask them, and try again",
            ),
            other => (
                Exit::Failed,
                format!("no connection to {target}: {}", other.name().replace('_', " ")),
                "open it again; see the log of agent-tunnel there",
            ),
        };
        CliError::new(self.code.name(), exit, what).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use adit_protocol::target::Transport;

    use super::*;

    #[test]
    fn refusals_name_the_target_and_have_the_exit_code_of_their_kind() {
        for (code, name, exit) in [
            (ChannelCode::TargetRefused, "target_refused", 4),
            (ChannelCode::TargetUnreachable, "target_unreachable", 4),
            (ChannelCode::TargetUnresolved, "target_unresolved", 4),
            (ChannelCode::Policy, "policy_refused", 3),
            (ChannelCode::ConsentTimeout, "consent_timeout", 3),
            (ChannelCode::Audit, "audit_unavailable", 1),
        ] {
            let target = Target::parse("127.0.0.1:22", Transport::Tcp).ok();
            let error = Refusal { target, code }.error("web01\u{1b}");
            assert_eq!((error.code, error.exit.code()), (name, exit));
            assert!(error.message.contains("127.0.0.1:22"), "{}", error.message);
            assert!(!error.message.contains('\u{1b}') && error.hint.is_some());
        }
    }
}
