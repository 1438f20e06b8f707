//! ArcSight Common Event Format (CEF:0), one line an event, for SIEMs behind syslog. Does not verify.
//!
//! Keys are those of CEF's dictionary, with its types; what that has no name for gets one of the
//! form that CEF prescribes for vendors' own: `AditMediatorComputerId`.

use std::net::IpAddr;

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
    // In CEF:0 `src` is an IPv4 address; others have a place of their own.
    match source.map(|(host, _)| (host, host.parse::<IpAddr>())) {
        Some((host, Ok(IpAddr::V4(_)))) => add("src", Some(host)),
        Some((host, Ok(IpAddr::V6(_)))) => {
            add("c6a2", Some(host));
            add("c6a2Label", Some("Source IPv6 Address"));
        }
        Some((host, Err(_))) => add("shost", Some(host)),
        None => {}
    }
    add("spt", port(source).as_deref());
    add("dhost", event.computer.as_deref().or(target.map(|(host, _)| host)));
    add("dpt", port(target).as_deref());
    add("outcome", event.outcome.as_deref());
    add("reason", event.end_reason.as_deref());
    add("out", event.bytes_up.map(|n| n.to_string()).as_deref());
    add("in", event.bytes_down.map(|n| n.to_string()).as_deref());
    for (name, value) in fields(entry) {
        let known =
            ["seq", "time", "event", "actor", "source", "outcome", "bytes_up", "bytes_down"];
        let empty = value.as_deref().is_none_or(|value| value.is_empty() || value == "{}");
        if !known.contains(&name) && !empty {
            add(&own(name), value.as_deref());
        }
    }
    out
}

/// A name of the vendor's own: one word of letters and digits.
fn own(name: &str) -> String {
    let mut out = String::from("AditMediator");
    for word in name.split('_') {
        let mut letters = word.chars();
        out.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        out.push_str(letters.as_str());
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
