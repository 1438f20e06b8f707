//! CEF and OCSF by their published schemas, not by our code: whatever an event says or leaves out,
//! what is exported is what a collector expects.
//!
//! CEF: "Implementing ArcSight Common Event Format", CEF:0, with its dictionary. OCSF: the classes
//! and objects of the schema's release 1.3.0 (github.com/ocsf/ocsf-schema, tag 1.3.0).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

use std::{collections::BTreeMap, net::Ipv4Addr, net::Ipv6Addr};

use adit_ledger::{
    Entry, Event, Level,
    export::{cef, ocsf},
};
use proptest::prelude::*;
use serde_json::{Map, Value};

/// What text from outside may try: separators, escapes, keys of its own, ends of lines.
const HOSTILE: &str =
    "a|b=c\\d\\=e \\ src=6.6.6.6 \r\nCEF:0|x|y|1|2|3|4|rt=5\u{1b}[2J\u{202e}\u{2028}\",{}";

/// Names of all families, and one that no program has yet.
const EVENTS: [&str; 16] = [
    "login.succeeded",
    "login.failed",
    "login.second_factor_asked",
    "login.reauthenticated",
    "logout",
    "session.requested",
    "session.granted",
    "session.refused",
    "session.carrier",
    "session.ended",
    "user.added",
    "audit.read",
    "mediator.started",
    "clock.off",
    "relay.connected",
    "new.event",
];
const LEVELS: [Level; 5] =
    [Level::Critical, Level::Significant, Level::Informational, Level::Normal, Level::Everything];

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(HOSTILE.to_owned()), Just(" = ".to_owned()), "\\PC{1,20}", any::<String>()]
}

fn address() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("203.0.113.7:40000".to_owned()),
        Just("[2001:db8::1]:22".to_owned()),
        Just("db.internal:5432".to_owned()),
        Just("10.0.0.1".to_owned()),
    ]
}

/// Entries with and without each field.
fn entry() -> impl Strategy<Value = Entry> {
    let what = (0..EVENTS.len(), 0..LEVELS.len(), 0..4_000_000_000_000_u64);
    let outcome = prop_oneof![Just("granted"), Just("refused"), Just("failed"), Just("odd")];
    let said = (
        proptest::option::of(text()),
        proptest::option::of(text()),
        proptest::option::of(text()),
        proptest::option::of(address()),
        proptest::option::of(address()),
        proptest::option::of(outcome),
        proptest::option::of(text()),
        proptest::option::of((any::<u64>(), any::<u64>())),
    );
    (what, said).prop_map(|((name, level, time), said)| {
        let (actor, computer, partner, source, target, outcome, reason, bytes) = said;
        let mut event = Event::new(EVENTS[name], LEVELS[level]);
        if let Some(actor) = actor {
            event = event.actor(actor.clone()).extra_personal("note", actor);
        }
        if let Some(computer) = computer {
            event = event.computer(computer);
        }
        if let Some(partner) = partner {
            event = event.partner(partner);
        }
        if let Some(source) = source {
            event = event.source(source);
        }
        if let Some(target) = target {
            event = event.target(target);
        }
        if let Some(outcome) = outcome {
            event = event.outcome(outcome);
        }
        if let Some(reason) = reason {
            event = event.reason(reason.clone()).end_reason(reason.clone()).ticket(reason);
        }
        if let Some((up, down)) = bytes {
            event = event.bytes_up(up >> 1).bytes_down(down >> 1).duration_ms(up >> 8);
        }
        Entry::seal(7, time, event, [3; 16])
    })
}

/// CEF's header: seven fields, `\\` and `\|` escaped, nothing else; then the extension.
fn cef_header(line: &str) -> (Vec<String>, &str) {
    let (mut fields, mut field) = (Vec::new(), String::new());
    let mut chars = line.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => {
                let (_, escaped) = chars.next().unwrap();
                assert!("\\|".contains(escaped), "an escape that headers have not: {line}");
                field.push(escaped);
            }
            '|' => {
                fields.push(std::mem::take(&mut field));
                if fields.len() == 7 {
                    return (fields, &line[at + 1..]);
                }
            }
            c => field.push(c),
        }
    }
    panic!("{} fields: {line}", fields.len());
}

/// CEF's extension: `key=value` parted by single spaces, `\\`, `\=`, `\n` and `\r` escaped in values.
fn cef_extension(text: &str) -> BTreeMap<String, String> {
    // Where the equals signs are that are none of a value's.
    let (mut signs, mut escaped) = (Vec::new(), false);
    for (at, c) in text.char_indices() {
        match (escaped, c) {
            (true, c) => {
                assert!("\\=nr".contains(c), "an escape that values have not: {text}");
                escaped = false;
            }
            (false, '\\') => escaped = true,
            (false, '=') => signs.push(at),
            _ => {}
        }
    }
    assert!(!escaped, "{text}");
    let key_at = |sign: usize| text[..sign].rfind(' ').map_or(0, |space| space + 1);
    let mut all = BTreeMap::new();
    for (n, sign) in signs.iter().enumerate() {
        let end = signs.get(n + 1).map_or(text.len(), |next| key_at(*next) - 1);
        let key = &text[key_at(*sign)..*sign];
        let value = &text[sign + 1..end];
        assert!(all.insert(key.to_owned(), value.to_owned()).is_none(), "{key} twice: {text}");
    }
    all
}

/// Types and lengths of the dictionary's keys; others must have the form of vendors' own.
fn cef_value(key: &str, value: &str) {
    let is = match key {
        "rt" => value.parse::<u64>().is_ok(),
        "src" => value.parse::<Ipv4Addr>().is_ok(),
        "c6a2" => value.parse::<Ipv6Addr>().is_ok(),
        "spt" | "dpt" => value.parse::<u16>().is_ok(),
        "in" | "out" => value.parse::<u64>().is_ok(),
        "externalId" => !value.is_empty() && value.len() <= 40,
        "outcome" => !value.is_empty() && value.chars().count() <= 63,
        "suser" | "shost" | "dhost" | "c6a2Label" | "reason" => true,
        own => {
            let rest = own.strip_prefix("AditMediator").unwrap_or_default();
            rest.starts_with(|c: char| c.is_ascii_uppercase())
                && rest.chars().all(|c| c.is_ascii_alphanumeric())
        }
    };
    assert!(is, "{key}={value}");
}

/// What an object of the schema must have, one of which, and all that it may have.
struct Class {
    required: &'static [&'static str],
    one_of: &'static [&'static str],
    others: &'static [&'static str],
}

const BASE_REQUIRED: [&str; 7] =
    ["activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid"];
const BASE_OTHERS: [&str; 21] = [
    "activity_name",
    "category_name",
    "class_name",
    "count",
    "duration",
    "end_time",
    "enrichments",
    "message",
    "observables",
    "raw_data",
    "severity",
    "start_time",
    "status",
    "status_code",
    "status_detail",
    "status_id",
    "timezone_offset",
    "type_name",
    "unmapped",
    "src_endpoint",
    "dst_endpoint",
];

fn class(uid: u64) -> (u64, &'static [u64], Class) {
    match uid {
        3002 => {
            let class = Class {
                required: &["user"],
                one_of: &["service", "dst_endpoint"],
                others: &[
                    "actor",
                    "auth_factors",
                    "auth_protocol",
                    "auth_protocol_id",
                    "certificate",
                    "http_request",
                    "is_cleartext",
                    "is_mfa",
                    "is_new_logon",
                    "is_remote",
                    "logon_process",
                    "logon_type",
                    "logon_type_id",
                    "session",
                ],
            };
            (3, &[0, 1, 2, 3, 4, 5, 6, 99], class)
        }
        4001 => {
            let class = Class {
                required: &["dst_endpoint"],
                one_of: &["dst_endpoint"],
                // `actor` and `device` are of the profile `host`.
                others: &[
                    "app_name",
                    "connection_info",
                    "ja4_fingerprint_list",
                    "proxy",
                    "tls",
                    "traffic",
                    "url",
                    "actor",
                    "device",
                ],
            };
            (4, &[0, 1, 2, 3, 4, 5, 6, 7, 99], class)
        }
        6003 => {
            let class = Class {
                required: &["actor", "api", "src_endpoint"],
                one_of: &["api"],
                others: &["http_request", "resources"],
            };
            (6, &[0, 1, 2, 3, 4, 99], class)
        }
        other => panic!("no class of the schema's: {other}"),
    }
}

fn object(name: &str) -> Class {
    let (required, one_of, others): (&[&str], &[&str], &[&str]) = match name {
        "metadata" => (
            &["product", "version"],
            &["version"],
            &[
                "correlation_uid",
                "event_code",
                "log_name",
                "log_version",
                "logged_time",
                "original_time",
                "processed_time",
                "profiles",
                "sequence",
                "tenant_uid",
                "uid",
            ],
        ),
        "product" => (
            &["vendor_name"],
            &["name", "uid"],
            &["feature", "lang", "path", "url_string", "version"],
        ),
        "actor" => (
            &[],
            &["process", "user", "invoked_by", "session", "app_name", "app_uid"],
            &["authorizations", "idp"],
        ),
        "user" => (&[], &["account", "name", "uid"], &["domain", "email_addr", "type", "type_id"]),
        "api" => (&["operation"], &["operation"], &["group", "request", "response", "version"]),
        "src_endpoint" | "dst_endpoint" => (
            &[],
            &["ip", "uid", "name", "hostname", "svc_name", "instance_uid", "interface_uid"],
            &["port", "type", "type_id", "domain", "mac", "zone"],
        ),
        "traffic" => (&[], &["bytes", "bytes_in", "bytes_out"], &["packets", "chunks"]),
        other => panic!("no object of the schema's that is judged here: {other}"),
    };
    Class { required, one_of, others }
}

fn judge(what: &Map<String, Value>, class: &Class, beside: &[&str]) {
    for required in class.required {
        assert!(what.contains_key(*required), "no {required}: {what:?}");
    }
    assert!(class.one_of.iter().any(|one| what.contains_key(*one)), "{:?}: {what:?}", class.one_of);
    for (key, value) in what {
        let key = key.as_str();
        let known = [class.required, class.one_of, class.others, beside];
        assert!(known.iter().any(|names| names.contains(&key)), "{key} is not the schema's");
        match (key, value) {
            ("unmapped", value) => assert!(value.is_object()),
            ("profiles", value) => assert_eq!(value, &serde_json::json!(["host"])),
            (name, Value::Object(inner)) => judge(inner, &object(name), &[]),
            ("ip", value) => {
                assert!(value.as_str().unwrap().parse::<std::net::IpAddr>().is_ok(), "{value}");
            }
            ("port", value) => assert!(value.as_u64().is_some_and(|port| port <= 65_535)),
            (
                "time" | "duration" | "sequence" | "bytes_in" | "bytes_out" | "class_uid"
                | "category_uid" | "activity_id" | "type_uid" | "severity_id" | "status_id",
                value,
            ) => assert!(value.is_u64(), "{key}: {value}"),
            (key, value) => assert!(value.is_string(), "{key}: {value}"),
        }
    }
}

fn judge_ocsf(line: &str) -> Value {
    assert!(!line.chars().any(char::is_control), "{line}");
    let value: Value = serde_json::from_str(line).unwrap();
    let event = value.as_object().unwrap();
    let number = |key: &str| event[key].as_u64().unwrap();
    let (category, activities, mut class) = class(number("class_uid"));
    let required = [&BASE_REQUIRED[..], class.required].concat();
    class.required = &[];
    for required in &required {
        assert!(event.contains_key(*required), "no {required}: {line}");
    }
    let beside = [&required[..], &BASE_OTHERS[..]].concat();
    judge(event, &class, &beside);
    assert_eq!(number("category_uid"), category);
    assert!(activities.contains(&number("activity_id")), "{line}");
    assert_eq!(number("type_uid"), number("class_uid") * 100 + number("activity_id"));
    assert!([0, 1, 2, 3, 4, 5, 6, 99].contains(&number("severity_id")), "{line}");
    assert!([0, 1, 2, 99].contains(&number("status_id")), "{line}");
    if number("activity_id") == 99 {
        assert!(event["activity_name"].is_string(), "{line}");
    }
    assert_eq!(value["metadata"]["version"], "1.3.0");
    let of_host = event.contains_key("actor") && number("class_uid") == 4001;
    assert_eq!(value["metadata"].get("profiles").is_some(), of_host, "{line}");
    value
}

proptest! {
    #[test]
    fn cef_is_what_its_grammar_and_dictionary_say(entry in entry()) {
        let line = cef::line(&entry, "1.0|\\");
        prop_assert!(!line.chars().any(char::is_control), "{}", line);
        let (header, extension) = cef_header(&line);
        let [version, vendor, product, program, id, name, severity] = &header[..] else { panic!() };
        prop_assert_eq!(
            [version, vendor, product, program],
            ["CEF:0", "Adit", "mediator", "1.0|\\"]
        );
        prop_assert_eq!((id, name), (&entry.event().name, &entry.event().name));
        prop_assert!(severity.parse::<u8>().unwrap() <= 10);
        let said = cef_extension(extension);
        said.iter().for_each(|(key, value)| cef_value(key, value));
        prop_assert_eq!(&said["rt"], &entry.time_ms().to_string());
        // Nobody but the event itself says who and where it was.
        prop_assert_ne!(said.get("src").map(String::as_str), Some("6.6.6.6"));
        prop_assert_eq!(said.contains_key("suser"), entry.event().actor.is_some());
        prop_assert_eq!(said.contains_key("c6a2"), said.contains_key("c6a2Label"));
    }

    #[test]
    fn ocsf_is_what_release_1_3_0_of_the_schema_says(entry in entry()) {
        let value = judge_ocsf(&ocsf::line(&entry, "1.0"));
        prop_assert_eq!(value["time"].as_u64(), Some(entry.time_ms()));
        prop_assert_eq!(value["unmapped"]["seq"].as_u64(), Some(entry.seq()));
        if let Some(actor) = &entry.event().actor {
            prop_assert_eq!(value["actor"]["user"]["name"].as_str(), Some(actor.as_str()));
        }
    }
}
