//! A policy as text and JSON, for `policy show`.

use adit_protocol::target::Transport;
use adit_runtime::config::format_duration;
use serde_json::{Value, json};

use super::{Allow, Policy};

impl Policy {
    /// As a file that reads back to the same policy.
    pub fn to_toml(&self) -> String {
        let mut text = format!("offline_grace = \"{}\"\n", format_duration(self.offline_grace));
        if let Some(consoles) = &self.consoles {
            let consoles: Vec<Value> = consoles.iter().map(|c| json!(c.to_string())).collect();
            text.push_str(&format!("\n[trust]\nconsoles = {}\n", list(&consoles)));
        }
        for allow in &self.allow {
            text.push_str("\n[[allow]]\n");
            for (key, values) in [
                ("targets", allow.targets()),
                ("ports", allow.ports()),
                ("protocols", allow.transports()),
            ] {
                text.push_str(&format!("{key} = {}\n", list(&values)));
            }
            if let Some(hours) = &allow.hours {
                text.push_str(&format!("hours = \"{hours}\"\n"));
            }
            if allow.consent {
                text.push_str("consent = true\n");
            }
        }
        text
    }

    /// For scripts.
    pub fn to_json(&self) -> Value {
        let consoles = self.consoles.as_ref();
        let grace_ms = u64::try_from(self.offline_grace.as_millis()).unwrap_or(u64::MAX);
        json!({
            "offline_grace_ms": grace_ms,
            "trust": {
                "consoles": consoles.map(|c| c.iter().map(ToString::to_string).collect::<Vec<_>>()),
            },
            "allow": self.allow.iter().map(Allow::to_json).collect::<Vec<_>>(),
        })
    }
}

impl Allow {
    fn to_json(&self) -> Value {
        json!({
            "targets": self.targets(),
            "ports": self.ports(),
            "protocols": self.transports(),
            "hours": self.hours.as_ref().map(ToString::to_string),
            "consent": self.consent,
        })
    }

    fn targets(&self) -> Vec<Value> {
        self.targets.iter().map(|rule| json!(rule.to_string())).collect()
    }

    fn ports(&self) -> Vec<Value> {
        let one = |range: &super::PortRange| match range.as_single() {
            Some(port) => json!(port),
            None => json!(range.to_string()),
        };
        self.ports.iter().map(one).collect()
    }

    fn transports(&self) -> Vec<Value> {
        self.transports.iter().map(|t: &Transport| json!(t.to_string())).collect()
    }
}

/// Strings and numbers of a validated policy look the same in TOML and JSON.
fn list(values: &[Value]) -> String {
    let items: Vec<String> = values.iter().map(ToString::to_string).collect();
    format!("[{}]", items.join(", "))
}
