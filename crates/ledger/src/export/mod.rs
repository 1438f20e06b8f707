//! Forms in which entries leave the log.
//!
//! [`jsonl`] carries all that verification needs. [`csv`], [`cef`] and [`ocsf`] are for other
//! programs to read and do not verify. Must never let a field's text act: as a formula in a
//! spreadsheet, as a separator, a new record, or a terminal's command.

pub mod cef;
pub mod csv;
pub mod jsonl;
pub mod ocsf;

use std::fmt::Write as _;

use crate::{Entry, entry::extras, json, time::format_time};

/// All fields by name, as plain inert text.
pub(crate) fn fields(entry: &Entry) -> Vec<(&'static str, Option<String>)> {
    let event = entry.event();
    let text = |value: &Option<String>| value.as_deref().map(inert);
    let number = |value: Option<u64>| value.map(|n| n.to_string());
    vec![
        ("seq", Some(entry.seq().to_string())),
        ("time", Some(format_time(entry.time_ms()))),
        ("level", Some((event.level as u8).to_string())),
        ("event", Some(event.name.clone())),
        ("actor", text(&event.actor)),
        ("device", text(&event.device)),
        ("source", text(&event.source)),
        ("partner", text(&event.partner)),
        ("client", text(&event.client)),
        ("computer", text(&event.computer)),
        ("computer_id", text(&event.computer_id)),
        ("session_id", text(&event.session_id)),
        ("redirector", text(&event.redirector)),
        ("target", text(&event.target)),
        ("viewer", text(&event.viewer)),
        ("reason", text(&event.reason)),
        ("ticket", text(&event.ticket)),
        ("outcome", text(&event.outcome)),
        ("end_reason", text(&event.end_reason)),
        ("rule", text(&event.rule)),
        ("mfa", text(&event.mfa)),
        ("credential_id", text(&event.credential_id)),
        ("bytes_up", number(event.bytes_up)),
        ("bytes_down", number(event.bytes_down)),
        ("duration_ms", number(event.duration_ms)),
        ("carriers", Some(inert(&event.carriers.join(" ")))),
        ("relay", text(&event.relay)),
        ("pair", text(&event.pair)),
        ("extra", Some(extras(&event.extra))),
        ("extra_personal", Some(extras(&event.extra_personal))),
        ("leaf", Some(entry.leaf().to_string())),
    ]
}

/// Spells out characters that would act on a terminal or a line-based reader.
pub(crate) fn inert(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if json::is_active(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// `host:port` or `[ip]:port` in two; all as host if there is no port.
pub(crate) fn split_address(text: &str) -> (&str, Option<u16>) {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse() {
            Ok(port) => (host.trim_start_matches('[').trim_end_matches(']'), Some(port)),
            Err(_) => (text, None),
        },
        _ => (text, None),
    }
}
