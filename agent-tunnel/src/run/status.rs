//! What `status` tells of a running agent, and of the files of one that does not run.

use std::time::Instant;

use adit_runtime::cli::{CliError, escape_text};
use serde_json::{Value, json};

use super::Agent;
use crate::{enrollment::Enrollment, kill_switch::KillSwitch, policy::Loaded, sessions::Sessions};

/// The control connection as last seen.
#[derive(Debug, Clone, Default)]
pub enum LinkState {
    /// The first attempt is under way.
    #[default]
    Connecting,
    /// Welcomed.
    Online {
        /// By this entry of the hosts.
        host: String,
        /// Whether a proxy is in between.
        via_proxy: bool,
        /// Since then.
        since: Instant,
    },
    /// Between attempts.
    Offline {
        /// Why, and what to do.
        problem: CliError,
        /// When the next attempt is due.
        retry_at: Instant,
    },
}

impl LinkState {
    /// Stable name for JSON.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Online { .. } => "online",
            Self::Offline { .. } => "offline",
        }
    }
}

/// Of the running agent.
pub(crate) async fn running(agent: &Agent, sessions: &Sessions) -> Value {
    let list = sessions.list().await;
    let link = agent.link().clone();
    let (host, via_proxy, online_ms) = match &link {
        LinkState::Online { host, via_proxy, since } => {
            (Some(host.clone()), Some(*via_proxy), Some(millis(*since)))
        }
        LinkState::Offline { .. } | LinkState::Connecting => (None, None, None),
    };
    let offline = match &link {
        LinkState::Offline { problem, retry_at } => {
            let left = retry_at.saturating_duration_since(Instant::now());
            Some((problem, u64::try_from(left.as_millis()).unwrap_or(u64::MAX)))
        }
        _ => None,
    };
    let problem = offline.map(|(problem, _)| problem.clone()).or_else(|| agent.lately_twin());
    let problem = problem.as_ref();
    let host = host.or_else(|| agent.enrollment.hosts.first().cloned());
    let nat = sessions.nat();
    let mut status = json!({
        "state": link.as_str(),
        "mediator": host,
        "via_proxy": via_proxy,
        "nat": {"mapping": nat.0, "filtering": nat.1},
        "port_mapping": sessions.port_mapping(),
        "sessions": list,
        "consent_waiting": agent.rules.consent().list().len(),
        "online_ms": online_ms,
        "problem": problem.map(|problem| problem.message.as_str()),
        "problem_code": problem.map(|problem| problem.code),
        "hint": problem.and_then(|problem| problem.hint.as_deref()),
        "retry_in_ms": offline.map(|(_, left)| left),
        "uptime_ms": millis(agent.started),
        "audit_alerts": sessions.alerts(),
        "audit_alert": sessions.standing_alert(),
    });
    add_common(&mut status, &agent.enrollment, agent.rules.kill_switch(), &agent.rules.loaded());
    status
}

/// Of an agent that does not run.
pub(crate) fn stopped(enrollment: &Enrollment, kill_switch: &KillSwitch, loaded: &Loaded) -> Value {
    let mut status = json!({
        "state": "stopped",
        "mediator": enrollment.hosts.first(),
        "via_proxy": null,
        "nat": {"mapping": "unknown", "filtering": "unknown"},
        "port_mapping": [],
        "sessions": [],
    });
    add_common(&mut status, enrollment, kill_switch, loaded);
    status
}

fn add_common(
    status: &mut Value,
    enrollment: &Enrollment,
    kill_switch: &KillSwitch,
    loaded: &Loaded,
) {
    let Value::Object(fields) = status else { return };
    let problem = loaded.problem.as_ref().map(ToString::to_string);
    let common = json!({
        "locked": kill_switch.is_locked(),
        "policy": {"source": loaded.source.as_str(), "error": problem},
        "computer_id": enrollment.computer.to_string(),
        "name": enrollment.name,
        "client": enrollment.client,
        "agent_key": enrollment.agent_key.to_string(),
        "fingerprint": enrollment.root.to_string(),
    });
    if let Value::Object(common) = common {
        fields.extend(common);
    }
}

/// The same for people.
pub(crate) fn human(status: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => escape_text(text),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let field = |name: &str| text(status.get(name).unwrap_or(&Value::Null));
    let inner = |name: &str, key: &str| {
        text(status.get(name).and_then(|v| v.get(key)).unwrap_or(&Value::Null))
    };
    let mut lines = vec![
        format!("State:     {}", field("state")),
        format!("Computer:  {} of {} ({})", field("name"), field("client"), field("computer_id")),
        format!("Key:       {}", field("agent_key")),
        format!("Mediator:  {} ({})", field("mediator"), field("fingerprint")),
    ];
    if status.get("via_proxy") == Some(&Value::Bool(true)) {
        lines.push("           through a proxy".to_owned());
    }
    lines.push(format!("NAT:       {}", nat_text(status)));
    lines.push(format!("Policy:    {}", inner("policy", "source")));
    if status.get("problem").is_some_and(Value::is_string) {
        lines.push(format!("Problem:   {} ({})", field("problem"), field("problem_code")));
        if status.get("hint").is_some_and(Value::is_string) {
            lines.push(format!("           try: {}", field("hint")));
        }
        if let Some(left) = status.get("retry_in_ms").and_then(Value::as_u64) {
            lines.push(format!("           next attempt in {} s", left.div_ceil(1000)));
        }
    }
    if status.pointer("/policy/error").is_some_and(Value::is_string) {
        let error = inner("policy", "error");
        lines.push(format!("           policy.toml is invalid and not in force: {error}"));
    }
    if status.get("locked") == Some(&Value::Bool(true)) {
        lines.push("LOCKED by the endpoint owner: every session is refused".to_owned());
    }
    if status.get("consent_waiting").and_then(Value::as_u64).is_some_and(|waiting| waiting > 0) {
        lines.push(format!("Consent:   {} wait: agent-tunnel consent", field("consent_waiting")));
    }
    if let Some(alert) = status.get("audit_alert").filter(|alert| alert.is_object()) {
        let field = |name: &str| text(alert.get(name).unwrap_or(&Value::Null));
        lines.push(format!("AUDIT:     {} ({})", field("message"), field("code")));
        lines.push("           see agent-tunnel witness show".to_owned());
    }
    let sessions = status.get("sessions").and_then(Value::as_array);
    for session in sessions.into_iter().flatten() {
        let field = |name: &str| text(session.get(name).unwrap_or(&Value::Null));
        lines.push(format!(
            "Session:   {} {} by {}, {} bytes up, {} bytes down",
            field("session_id"),
            field("redirector"),
            field("user"),
            field("bytes_up"),
            field("bytes_down")
        ));
        lines.push(format!("           {}", path_text(session)));
    }
    lines.join("\n")
}

/// The kind of NAT, and how ports are mapped on request.
fn nat_text(status: &Value) -> String {
    let word = |key: &str| match status.pointer(&format!("/nat/{key}")).and_then(Value::as_str) {
        None | Some("unknown") => "not known".to_owned(),
        Some(word) => word.to_owned(),
    };
    let protocols = status.get("port_mapping").and_then(Value::as_array);
    let protocols: Vec<_> = protocols.into_iter().flatten().filter_map(Value::as_str).collect();
    let mapped = match protocols.as_slice() {
        [] => String::new(),
        some => format!(", ports on request by {}", some.join(", ")),
    };
    match (word("mapping"), word("filtering")) {
        (mapping, filtering) if mapping == filtering && mapping == "not known" => {
            format!("not known before the first session{mapped}")
        }
        (mapping, filtering) => format!("mapping {mapping}, filtering {filtering}{mapped}"),
    }
}

/// By which carrier a session goes, and why through a relay if it does.
fn path_text(session: &Value) -> String {
    let text = |key: &str| session.get(key).and_then(Value::as_str).map(escape_text);
    let carrier = text("carrier").unwrap_or_else(|| "without a path".to_owned());
    let by = match (text("relay"), text("remote")) {
        (Some(relay), _) => format!(" through {relay}"),
        (None, Some(remote)) => format!(" with {remote}"),
        (None, None) => String::new(),
    };
    let rtt = session.get("rtt_ms").and_then(Value::as_f64);
    let rtt = rtt.map(|rtt| format!(", round trip {rtt:.0} ms")).unwrap_or_default();
    let reasons = session.get("relay_reason").and_then(Value::as_array);
    let reasons: Vec<_> = reasons.into_iter().flatten().filter_map(Value::as_str).collect();
    let why = match reasons.as_slice() {
        [] => String::new(),
        some => format!(", no direct path: {}", some.join(", ").replace('_', " ")),
    };
    format!("{carrier}{by}{rtt}{why}")
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_says_by_which_path_sessions_go_and_why() {
        let session = json!({
            "carrier": "relayed", "relay": "r\u{1b}:443", "rtt_ms": 12.3,
            "relay_reason": ["symmetric_both"],
        });
        let status = json!({
            "state": "online", "via_proxy": true, "port_mapping": ["upnp"],
            "nat": {"mapping": "endpoint-independent", "filtering": "unknown"},
            "sessions": [session],
        });
        let text = human(&status);
        for part in [
            "through a proxy",
            "mapping endpoint-independent, filtering not known, ports on request by upnp",
            "round trip 12 ms, no direct path: symmetric both",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
        let none = json!({"carrier": null, "relay_reason": null});
        assert_eq!(path_text(&none), "without a path");
    }

    #[test]
    fn a_copied_identity_is_told_though_the_agent_is_online_again() {
        let told = adit_control::failure(adit_protocol::code::failure::IDENTITY_IN_USE, "twice");
        let problem = crate::failure::refused(&told);
        let status = json!({
            "state": "online",
            "problem": problem.message,
            "problem_code": problem.code,
            "hint": problem.hint,
            "retry_in_ms": null,
        });
        let text = human(&status);
        for part in ["twice (identity_in_use)", "copied", "enrol one"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("next attempt"), "{text}");
    }
}
