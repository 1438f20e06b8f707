//! `audit search` and `audit export`: the mediator's log, within what one's roles cover.
//!
//! What comes is untrusted text: nothing in it acts on a terminal. Whether it is the whole truth,
//! `audit verify` says.

use std::{
    collections::BTreeSet,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use adit_ledger::SignedHead;
use adit_protocol::target::{BUILTIN_REDIRECTORS, FORWARD_REDIRECTORS};
use adit_runtime::{
    cli::{CliError, escape_text},
    config::parse_duration,
    datadir::Part,
    people,
    time::{format_ms, unix_ms},
};
use hyper::Method;
use serde_json::{Value, json};

use crate::{
    api::{ANSWER_TIMEOUT, Api, Ask, part},
    cli::AuditFilter,
    commands::{audit::heads_of, note},
    config::Context,
    failure,
};

/// Entries of a page.
const PAGE: u32 = 500;
/// Heads that the mediator takes for one export.
const MAX_HEADS: usize = 32;
/// Pages that may be empty one after another: each reads a part of the log.
const MAX_EMPTY: u32 = 10_000;

/// `audit search`.
pub async fn search(context: &Context, filter: &AuditFilter, limit: u32) -> Result<(), CliError> {
    let mut api = Api::open(context).await?;
    let output = context.global.output();
    let query = query(filter)?;
    let (mut left, mut cursor, mut empty, mut found) = (limit, String::new(), 0, false);
    while left > 0 {
        let size = left.min(PAGE);
        let target = format!("/api/v1/audit/events?limit={size}{query}{cursor}");
        let page = api.ask(&Ask { method: Method::GET, target, body: None }).await?;
        let items = page.get("items").and_then(Value::as_array).ok_or_else(failure::unexpected)?;
        for item in items.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            let entry = item.get("entry").ok_or_else(failure::unexpected)?;
            output.emit(entry)?;
            output.human(line(entry))?;
            found = true;
            left = left.saturating_sub(1);
        }
        empty = if items.is_empty() { empty + 1 } else { 0 };
        match page.get("next").and_then(Value::as_str) {
            Some(next) if empty < MAX_EMPTY => cursor = format!("&cursor={}", part(next)),
            _ if found => return Ok(()),
            _ => {
                note("no entry matches, within what your roles cover");
                note_redirectors(filter);
                return Ok(());
            }
        }
    }
    note("there may be more: raise --limit, or narrow it with --until");
    Ok(())
}

/// `audit export`.
pub async fn export(
    context: &Context,
    (format, filter, heads): (&str, &AuditFilter, &[PathBuf]),
    output: Option<&Path>,
) -> Result<(), CliError> {
    let heads = heads.iter().map(|path| heads_of(path)).collect::<Result<Vec<_>, _>>()?.concat();
    let (query, heads) = (query(filter)?, held(&heads)?);
    note_redirectors(filter);
    let target = format!("/api/v1/audit/export?format={format}{query}{heads}");
    let ask = Ask { method: Method::GET, target, body: None };
    let Some(path) = output else {
        let mut api = Api::open(context).await?;
        let mut stdout = std::io::stdout().lock();
        return api
            .download(&ask, ANSWER_TIMEOUT, |piece| {
                stdout.write_all(piece).and_then(|()| stdout.flush()).map_err(|error| {
                    CliError::failed("output_failed", format!("cannot write to stdout: {error}"))
                })
            })
            .await;
    };
    let failed = |error: std::io::Error| {
        CliError::failed("output_failed", format!("cannot write {}: {error}", path.display()))
    };
    // Before anything is asked for: an export is recorded.
    let mut file = Part::create(path).map_err(failed)?;
    let mut api = Api::open(context).await?;
    let mut bytes = 0_u64;
    api.download(&ask, ANSWER_TIMEOUT, |piece| {
        bytes = bytes.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        file.write(piece).map_err(failed)
    })
    .await?;
    file.finish().map_err(failed)?;
    let output = context.global.output();
    output.emit(&json!({"file": path.display().to_string(), "bytes": bytes}))?;
    output.human(format_args!("{bytes} bytes written to {}", path.display()))
}

/// Not refused: people ask for what there is not, and that is recorded in their words.
fn note_redirectors(filter: &AuditFilter) {
    let known: Vec<_> =
        BUILTIN_REDIRECTORS.iter().map(|known| known.name).chain(FORWARD_REDIRECTORS).collect();
    for name in filter.redirector.iter().filter(|name| !known.contains(&name.as_str())) {
        let known = known.join(", ");
        note(&format!("no computer has a redirector \"{name}\"; there are {known}"));
    }
}

/// Heads that somebody has, as a further part of a query.
fn held(heads: &[SignedHead]) -> Result<String, CliError> {
    let held: BTreeSet<_> =
        heads.iter().map(|head| format!("{}:{}", head.tree, head.size)).collect();
    if held.len() > MAX_HEADS {
        let text = format!("{} different heads, where at most {MAX_HEADS} fit", held.len());
        return Err(CliError::usage("usage", text).hint(
            "keep those of the logs to be exported: audit verify compares with each of them",
        ));
    }
    let held: Vec<_> = held.into_iter().collect();
    Ok(if held.is_empty() { String::new() } else { format!("&heads={}", part(&held.join(","))) })
}

/// The filter as the rest of a query.
fn query(filter: &AuditFilter) -> Result<String, CliError> {
    let (since, until) = (moment(filter.since.as_deref())?, moment(filter.until.as_deref())?);
    let mut query = String::new();
    for (name, values) in [
        ("person", &filter.person[..]),
        ("computer", &filter.computer),
        ("client", &filter.client),
        ("redirector", &filter.redirector),
        ("session", &filter.session),
        ("event", &filter.event),
        ("since", since.as_slice()),
        ("until", until.as_slice()),
    ] {
        if !values.is_empty() {
            query.push_str(&format!("&{name}={}", part(&values.join(","))));
        }
    }
    Ok(query)
}

/// A time as it is, or how long ago as a time.
fn moment(text: Option<&str>) -> Result<Option<String>, CliError> {
    let Some(text) = text else { return Ok(None) };
    if text.parse::<jiff::Timestamp>().is_ok() {
        return Ok(Some(text.to_owned()));
    }
    let ago: Duration = parse_duration(text).map_err(|_| {
        let text =
            format!("{}: a time (2026-01-31T08:00:00Z) or how long ago (24h)", escape_text(text));
        CliError::usage("usage", text)
    })?;
    let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
    Ok(Some(format_ms(unix_ms().saturating_sub(ago))))
}

/// What people look for first, on one line.
fn line(entry: &Value) -> String {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut line = format!("{} {}", text("time"), text("event"));
    for (label, name) in [
        ("actor", "actor"),
        ("client", "client"),
        ("computer", "computer"),
        ("redirector", "redirector"),
        ("target", "target"),
        ("outcome", "outcome"),
        ("end", "end_reason"),
        ("session", "session_id"),
    ] {
        if !text(name).is_empty() {
            line.push_str(&format!("  {label}={}", text(name)));
        }
    }
    let mut line = escape_text(&line).to_string();
    // What an act was about. Of a session the fields above say it, but not which secret was used.
    if text("session_id").is_empty() || text("event").starts_with("credential.") {
        let about = people::brief(&[entry.get("extra_personal"), entry.get("extra")]);
        line.push_str(if about.is_empty() { "" } else { "  " });
        line.push_str(&about);
    }
    line
}

#[cfg(test)]
mod tests {
    use adit_ledger::Hash;
    use adit_protocol::keys::SigningKey;

    use super::*;

    #[test]
    fn filters_become_queries_that_cannot_be_broken_out_of() {
        let filter = AuditFilter {
            person: vec!["a&format=csv#".into()],
            event: vec!["login.failed".into(), "session.refused".into()],
            since: Some("2026-01-31T08:00:00Z".into()),
            ..AuditFilter::default()
        };
        assert_eq!(
            query(&filter).unwrap(),
            "&person=a%26format%3Dcsv%23&event=login.failed%2Csession.refused&since=2026-01-31T08%3A00%3A00Z"
        );
        assert!(moment(Some("24h")).unwrap().unwrap().ends_with('Z'));
        assert_eq!(moment(Some("soon")).unwrap_err().exit.code(), 2);
    }

    #[test]
    fn heads_are_told_by_tree_and_size_and_each_once() {
        let key = SigningKey::generate().unwrap();
        let head = |size| SignedHead::sign(&key, "a:b&c", size, Hash::of(b""), 1, None).unwrap();
        assert_eq!(held(&[]).unwrap(), "");
        let told = held(&[head(9), head(7), head(9)]).unwrap();
        assert_eq!(told, "&heads=a%3Ab%26c%3A7%2Ca%3Ab%26c%3A9");
        let many: Vec<_> = (0..=MAX_HEADS).map(|size| head(size as u64)).collect();
        let error = held(&many).unwrap_err();
        assert!(error.exit.code() == 2 && error.hint.is_some(), "{error:?}");
    }

    #[test]
    fn entries_do_not_act_on_a_terminal() {
        let entry = json!({"time": "t", "event": "session.granted", "actor": "\u{1b}[2J"});
        assert!(!line(&entry).contains('\u{1b}'));
        let entry = json!({
            "time": "t", "event": "role.bound", "session_id": null,
            "extra": {"role": "auditor", "scope": "\u{1b}[2J"}, "extra_personal": {"user": "jane"},
        });
        let told = line(&entry);
        assert!(told.contains("user=jane") && told.contains("role=auditor"), "{told}");
        assert!(!told.contains('\u{1b}'), "{told}");
    }
}
