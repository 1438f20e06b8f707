//! Open Cybersecurity Schema Framework 1.3, one JSON object an event. Does not verify.
//!
//! `login.*` becomes Authentication (3002), `session.*` Network Activity (4001), all else API
//! Activity (6003); the complete entry is under `unmapped`.

use super::split_address;
use crate::{Entry, Event, Level, json::Object};

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
        .optional("status", event.outcome.as_deref())
        .optional("status_detail", event.end_reason.as_deref())
        .string("message", &event.name)
        .raw("metadata", &metadata(entry, version))
        .raw("actor", &nested("user", "name", event.actor.as_deref()))
        .raw("api", &operation(event))
        .raw("src_endpoint", &endpoint(event.source.as_deref(), None))
        .raw("dst_endpoint", &endpoint(event.target.as_deref(), event.computer.as_deref()))
        .raw("unmapped", &entry.to_line());
    if class == 3002 {
        out.raw("user", &single("name", event.actor.as_deref()));
    }
    if let Some(duration) = event.duration_ms {
        out.integer("duration", duration);
    }
    if event.bytes_up.is_some() || event.bytes_down.is_some() {
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
        ("login", _) => (3, 3002, 1),
        ("logout", _) => (3, 3002, 2),
        ("session", "granted" | "started" | "opened") => (4, 4001, 1),
        ("session", "ended" | "closed") => (4, 4001, 2),
        ("session", "refused" | "denied") => (4, 4001, 5),
        ("session", _) => (4, 4001, 99),
        _ => (6, 6003, 99),
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

fn metadata(entry: &Entry, version: &str) -> String {
    let mut product = Object::new();
    product.string("name", "Adit").string("vendor_name", "Adit").string("version", version);
    let mut out = Object::new();
    out.string("version", "1.3.0")
        .raw("product", &product.finish())
        .integer("sequence", entry.seq())
        .string("uid", &entry.leaf().to_string())
        .optional("correlation_uid", entry.event().session_id.as_deref())
        .optional("tenant_uid", entry.event().partner.as_deref());
    out.finish()
}

fn operation(event: &Event) -> String {
    single("operation", Some(&event.name))
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
    if let Some(name) = name {
        out.string("name", name);
    }
    out.finish()
}

fn nested(outer: &str, key: &str, value: Option<&str>) -> String {
    let mut out = Object::new();
    out.raw(outer, &single(key, value));
    out.finish()
}

fn single(key: &str, value: Option<&str>) -> String {
    let mut out = Object::new();
    out.optional(key, value);
    out.finish()
}
