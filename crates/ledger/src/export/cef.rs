//! ArcSight Common Event Format, one line an event, for SIEMs behind syslog. Does not verify.

use super::{fields, inert, split_address};
use crate::{Entry, Level};

/// One entry's line, without line end. `version` is the program's.
pub fn line(entry: &Entry, version: &str) -> String {
    let event = entry.event();
    let mut out = format!(
        "CEF:0|Adit|mediator|{}|{}|{}|{}|rt={}",
        header(version),
        header(&event.name),
        header(&event.name),
        severity(event.level),
        entry.time_ms()
    );
    let mut add = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            out.push_str(&format!(" {key}={}", extension(value)));
        }
    };
    let source = event.source.as_deref().map(split_address);
    let target = event.target.as_deref().map(split_address);
    let port = |address: Option<(&str, Option<u16>)>| {
        address.and_then(|(_, port)| port).map(|port| port.to_string())
    };
    add("externalId", Some(&entry.seq().to_string()));
    add("suser", event.actor.as_deref());
    add("src", source.map(|(host, _)| host));
    add("spt", port(source).as_deref());
    add("dhost", event.computer.as_deref().or(target.map(|(host, _)| host)));
    add("dpt", port(target).as_deref());
    add("outcome", event.outcome.as_deref());
    add("reason", event.end_reason.as_deref());
    add("out", event.bytes_up.map(|n| n.to_string()).as_deref());
    add("in", event.bytes_down.map(|n| n.to_string()).as_deref());
    // What CEF has no name for keeps ours, with a prefix.
    for (name, value) in fields(entry) {
        let known =
            ["seq", "time", "event", "actor", "source", "outcome", "bytes_up", "bytes_down"];
        let empty = value.as_deref().is_none_or(|value| value.is_empty() || value == "{}");
        if !known.contains(&name) && !empty {
            add(&format!("adit_{name}"), value.as_deref());
        }
    }
    out
}

fn severity(level: Level) -> u8 {
    match level {
        Level::Critical => 9,
        Level::Significant => 7,
        Level::Nothing | Level::Informational => 5,
        Level::Normal => 3,
        Level::Everything => 1,
    }
}

/// Escapes a header field.
fn header(text: &str) -> String {
    inert(text).replace('\\', "\\\\").replace('|', "\\|")
}

/// Escapes an extension value.
fn extension(text: &str) -> String {
    inert(text).replace('\\', "\\\\").replace('=', "\\=")
}
