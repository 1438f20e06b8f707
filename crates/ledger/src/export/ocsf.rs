//! Open Cybersecurity Schema Framework 1.3.0, one JSON object an event. Does not verify.
//!
//! `login.*` and `logout` become Authentication (3002), `session.*` Network Activity (4001), all else
//! API Activity (6003), with what their classes require; where an event does not say it, the mediator
//! itself stands for it. The complete entry is under `unmapped`.

use super::split_address;
use crate::{Entry, Event, Level, json::Object};

/// Schema of which this is.
const SCHEMA: &str = "1.3.0";
const AUTHENTICATION: u64 = 3002;
const NETWORK_ACTIVITY: u64 = 4001;
const API_ACTIVITY: u64 = 6003;
/// What the schema has no number for; the name says it.
const OTHER: u64 = 99;
/// Who acts, or is reached, if an event names nobody.
const MEDIATOR: &str = "Adit mediator";

/// One entry's line, without line end. `version` is the program's.
pub fn line(entry: &Entry, version: &str) -> String {
    let event = entry.event();
    let (category, class, activity) = classify(event);
    let (severity_id, severity) = severity(event.level);
    let mut out = Object::with_capacity(2048);
    out.integer("category_uid", category)
        .integer("class_uid", class)
        .integer("activity_id", activity)
        .integer("type_uid", class * 100 + activity)
        .integer("severity_id", severity_id)
        .string("severity", severity)
        .integer("time", entry.time_ms())
        .integer("status_id", status(event))
        .string("message", &event.name)
        .raw("metadata", &metadata(entry, version, class))
        .raw("actor", &actor(event))
        .raw("src_endpoint", &endpoint(event.source.as_deref(), None))
        .raw("dst_endpoint", &endpoint(event.target.as_deref(), event.computer.as_deref()))
        .raw("unmapped", &entry.to_line());
    if activity == OTHER {
        out.string("activity_name", &event.name);
    }
    told(&mut out, "status", event.outcome.as_deref());
    told(&mut out, "status_detail", event.end_reason.as_deref());
    match class {
        AUTHENTICATION => {
            out.raw("user", &single("name", event.actor.as_deref().unwrap_or_default()));
        }
        API_ACTIVITY => {
            out.raw("api", &single("operation", &event.name));
        }
        _ => {}
    }
    if let Some(duration) = event.duration_ms {
        out.integer("duration", duration);
    }
    if class == NETWORK_ACTIVITY && (event.bytes_up.is_some() || event.bytes_down.is_some()) {
        let mut traffic = Object::new();
        traffic
            .integer("bytes_out", event.bytes_up.unwrap_or(0))
            .integer("bytes_in", event.bytes_down.unwrap_or(0));
        out.raw("traffic", &traffic.finish());
    }
    out.finish()
}

fn classify(event: &Event) -> (u64, u64, u64) {
    let (family, act) = event.name.split_once('.').unwrap_or((&event.name, ""));
    match (family, act) {
        ("login", "succeeded" | "failed") => (3, AUTHENTICATION, 1),
        ("login", "second_factor_asked") => (3, AUTHENTICATION, 6),
        ("login", _) => (3, AUTHENTICATION, OTHER),
        ("logout", _) => (3, AUTHENTICATION, 2),
        ("session", "granted" | "started" | "opened") => (4, NETWORK_ACTIVITY, 1),
        ("session", "ended" | "closed") => (4, NETWORK_ACTIVITY, 2),
        ("session", "refused" | "denied") => (4, NETWORK_ACTIVITY, 5),
        ("session", _) => (4, NETWORK_ACTIVITY, OTHER),
        _ => (6, API_ACTIVITY, OTHER),
    }
}

fn status(event: &Event) -> u64 {
    match event.outcome.as_deref() {
        Some("granted" | "ok" | "success" | "done" | "allowed" | "ended") => 1,
        Some("refused" | "failed" | "failure" | "denied" | "error") => 2,
        Some(_) => 99,
        None => 0,
    }
}

fn severity(level: Level) -> (u64, &'static str) {
    match level {
        Level::Critical => (5, "Critical"),
        Level::Significant => (3, "Medium"),
        Level::Nothing | Level::Informational => (2, "Low"),
        Level::Normal | Level::Everything => (1, "Informational"),
    }
}

fn metadata(entry: &Entry, version: &str, class: u64) -> String {
    let mut product = Object::new();
    product.string("name", "Adit").string("vendor_name", "Adit").string("version", version);
    let mut out = Object::new();
    out.string("version", SCHEMA)
        .raw("product", &product.finish())
        .integer("sequence", entry.seq())
        .string("uid", &entry.leaf().to_string());
    told(&mut out, "correlation_uid", entry.event().session_id.as_deref());
    told(&mut out, "tenant_uid", entry.event().partner.as_deref());
    if class == NETWORK_ACTIVITY {
        // There an actor is part of this profile.
        out.raw("profiles", r#"["host"]"#);
    }
    out.finish()
}

fn actor(event: &Event) -> String {
    let mut out = Object::new();
    match event.actor.as_deref() {
        Some(name) => out.raw("user", &single("name", name)),
        None => out.string("app_name", MEDIATOR),
    };
    out.finish()
}

fn endpoint(address: Option<&str>, name: Option<&str>) -> String {
    let mut out = Object::new();
    if let Some((host, port)) = address.map(split_address) {
        let key = if host.parse::<std::net::IpAddr>().is_ok() { "ip" } else { "hostname" };
        out.string(key, host);
        if let Some(port) = port {
            out.integer("port", port.into());
        }
    }
    match (address, name) {
        (_, Some(name)) => out.string("name", name),
        // The schema asks for one of them.
        (None, None) => out.string("svc_name", MEDIATOR),
        (Some(_), None) => &mut out,
    };
    out.finish()
}

/// A member that is there or is not: the schema knows no null.
fn told(out: &mut Object, key: &str, value: Option<&str>) {
    if let Some(value) = value {
        out.string(key, value);
    }
}

fn single(key: &str, value: &str) -> String {
    let mut out = Object::new();
    out.string(key, value);
    out.finish()
}
