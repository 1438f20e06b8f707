//! `mediator audit …`: search, export, verification, retention, levels, forwarding.

use std::{
    collections::BTreeMap,
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use adit_ledger::{
    Anchor, Entry, Reconciler, SignedHead, Trust, read_heads,
    verify::{Fault, VerifyError},
    verify_export,
};
use adit_protocol::keys::Fingerprint;
use adit_runtime::{
    cli::{CliError, GlobalArgs, escape_text},
    config::parse_duration,
    datadir::Part,
    people,
    time::{format_ms, unix_ms},
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{ask, call, receipts as signed};
use crate::{
    admin::{
        AdminRequest,
        export::{self, Format, Selection},
    },
    audit::{
        acts::AuditAct,
        names,
        search::{self, Cursor, Filter, Page, Reach},
    },
    place::{MediatorDir, store_error},
    requests::{is_redirector, redirectors},
    store::{Mode, Store, audit},
};

#[derive(Subcommand)]
pub(super) enum AuditCommand {
    /// Find entries, newest first
    #[command(
        after_help = "Example: mediator audit search --user jane --computer pc-1 --since 24h\n\n\
        Several values of one filter mean any of them."
    )]
    Search {
        #[command(flatten)]
        filter: FilterArgs,
        /// Only this partner's log
        #[arg(long)]
        partner: Option<String>,
        /// At most so many entries
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Go on from what a search gave as `next`
        #[arg(long, value_name = "CURSOR")]
        after: Option<Cursor>,
    },
    /// Check that nothing was altered, dropped, reordered or rolled back
    #[command(after_help = "Example: mediator audit verify --key sha256:…\n\n\
        Without --key or --head it can only say that the log is consistent in itself: whoever can \
        write to it could have made another.")]
    Verify {
        /// An export instead of the database
        #[arg(long)]
        file: Option<PathBuf>,
        /// Fingerprint of the root or log key that is trusted
        #[arg(long, value_name = "FINGERPRINT")]
        key: Vec<Fingerprint>,
        /// File with signed heads seen earlier, one a line
        #[arg(long, value_name = "FILE")]
        head: Vec<PathBuf>,
        /// Receipts of either end or both, to compare with the log and with each other
        #[arg(long, value_name = "FILE")]
        receipts: Vec<PathBuf>,
    },
    /// Write the log, or a part of it, to stdout or a file
    #[command(
        after_help = "Example: mediator audit export --format csv --since 24h --output log.csv\n\n\
        With jsonl, hashes stand for what is left out, so that the rest can still be verified."
    )]
    Export {
        /// jsonl can be verified; csv, cef and ocsf are for other programs
        #[arg(long, value_enum, default_value_t = Format::Jsonl)]
        format: Format,
        #[command(flatten)]
        filter: FilterArgs,
        /// Only this partner's log
        #[arg(long)]
        partner: Option<String>,
        /// File with signed heads that readers hold, so that they can compare
        #[arg(long, value_name = "FILE")]
        head: Option<PathBuf>,
        /// File to write
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// How long contents are kept
    #[command(subcommand, after_help = "Example: mediator audit retention show")]
    Retention(RetentionCommand),
    /// Up to which level events of a user are kept: 0 to 5; security events always are
    #[command(after_help = "Example: mediator audit level jane 5")]
    Level {
        /// Name
        user: String,
        /// 0 nothing, 1 critical, 2 significant, 3 informational, 4 normal, 5 everything
        #[arg(value_parser = clap::value_parser!(u8).range(0..=5))]
        level: u8,
    },
    /// How far receivers of the log are
    #[command(after_help = "Example: mediator audit forwarding --json")]
    Forwarding,
}

#[derive(Subcommand)]
pub(super) enum RetentionCommand {
    /// Show how long each partner's log is kept
    #[command(after_help = "Example: mediator audit retention show --json")]
    Show,
    /// Keep a partner's log for so many days
    #[command(after_help = "Example: mediator audit retention set acme --days 365")]
    Set {
        /// Partner
        partner: String,
        /// Days, 120 or more; without it: as configured
        #[arg(long)]
        days: Option<u64>,
    },
    /// Delete and erase nothing of a partner until this hold, and each other one, is released
    #[command(
        after_help = "Example: mediator audit retention hold acme --reason 'case 7'\n\nEach case \
        has a hold of its own; the answer names it."
    )]
    Hold {
        /// Partner
        partner: String,
        /// Why: which case; shown by `show`, and for the audit record
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// End one legal hold
    #[command(
        after_help = "Example: mediator audit retention release acme HOLD\n\nWhere there is only \
        one, it need not be named: mediator audit retention release acme"
    )]
    Release {
        /// Partner
        partner: String,
        /// Id of the hold, as `mediator audit retention show` lists it
        hold: Option<String>,
    },
}

#[derive(Args)]
pub(super) struct FilterArgs {
    /// Who acted, or whom it was about
    #[arg(long, value_delimiter = ',')]
    user: Vec<String>,
    /// Name or id of a computer
    #[arg(long, value_delimiter = ',')]
    computer: Vec<String>,
    /// PARTNER/CLIENT
    #[arg(long, value_delimiter = ',')]
    client: Vec<String>,
    /// Name of a redirector
    #[arg(long, value_delimiter = ',')]
    redirector: Vec<String>,
    /// Session id
    #[arg(long, value_delimiter = ',')]
    session: Vec<String>,
    /// Name of an event, e.g. session.granted
    #[arg(long, value_delimiter = ',')]
    event: Vec<String>,
    /// From this time on: RFC 3339, or how long ago, e.g. 24h
    #[arg(long, value_parser = parse_when)]
    since: Option<u64>,
    /// Before this time
    #[arg(long, value_parser = parse_when)]
    until: Option<u64>,
}

impl FilterArgs {
    fn filter(self) -> Result<Filter, CliError> {
        let filter = Filter {
            persons: self.user,
            computers: self.computer,
            clients: self.client,
            redirectors: self.redirector,
            sessions: self.session,
            events: self.event,
            since_ms: self.since,
            until_ms: self.until,
        };
        filter.check().map_err(|error| CliError::usage("usage", error.to_string()))?;
        Ok(filter)
    }
}

pub(super) fn parse_when(text: &str) -> Result<u64, String> {
    if let Ok(ago) = parse_duration(text) {
        let ms = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        return Ok(unix_ms().saturating_sub(ms));
    }
    let time: jiff::Timestamp = text
        .parse()
        .map_err(|_| "a time like 2026-03-01T12:00:00Z or 24h is expected".to_owned())?;
    Ok(u64::try_from(time.as_millisecond()).unwrap_or(0))
}

pub(super) async fn run(global: &GlobalArgs, command: AuditCommand) -> Result<(), CliError> {
    let act = match command {
        AuditCommand::Search { filter, partner, limit, after } => {
            return find(global, filter.filter()?, partner, limit, after).await;
        }
        AuditCommand::Verify { file, key, head, receipts } => {
            let mut signed = match receipts.as_slice() {
                [] => None,
                files => Some(signed::read(files)?),
            };
            verify(global, file.as_deref(), (key, &head), signed.as_mut()).await?;
            let Some(signed) = signed else { return Ok(()) };
            return signed::compare(global, file.is_some(), signed).await;
        }
        AuditCommand::Export { format, filter, partner, head, output } => {
            let heads = head.map(|path| heads_of(&path)).transpose()?.unwrap_or_default();
            let heads = export::seen(&heads);
            let selection = Selection { format, filter: filter.filter()?, partner, heads };
            return export_to(global, &selection, output).await;
        }
        AuditCommand::Retention(RetentionCommand::Show) => AuditAct::Retention,
        AuditCommand::Retention(RetentionCommand::Set { partner, days }) => {
            AuditAct::SetRetention { partner, days }
        }
        AuditCommand::Retention(RetentionCommand::Hold { partner, reason }) => {
            AuditAct::Hold { partner, hold: true, reason, hold_id: None }
        }
        AuditCommand::Retention(RetentionCommand::Release { partner, hold }) => {
            AuditAct::Hold { partner, hold: false, reason: String::new(), hold_id: hold }
        }
        AuditCommand::Level { user, level } => AuditAct::SetLevel { user, level },
        AuditCommand::Forwarding => AuditAct::Forwarding,
    };
    ask(global, AdminRequest::Audit(act)).await
}

/// Records that the log is read; a damaged log must still come out, to be looked at.
async fn note_reading(global: &GlobalArgs, how: String) -> Result<(), CliError> {
    match call(global, AdminRequest::AuditRead { how }).await {
        Err(error) if error.code == "database_corrupt" => {
            eprintln!("warning: {error}");
            Ok(())
        }
        recorded => recorded.map(|_| ()),
    }
}

async fn find(
    global: &GlobalArgs,
    filter: Filter,
    partner: Option<String>,
    limit: u32,
    after: Option<Cursor>,
) -> Result<(), CliError> {
    let place = MediatorDir::open(global)?;
    note_reading(global, "search".to_owned()).await?;
    let store = place.store(Mode::Read).await?;
    let reach = match partner {
        None => Reach::installation(),
        Some(name) => Reach::whole(partner_id(&store, &name).await?),
    };
    known(&store, &reach, &filter).await?;
    let (mut after, mut left, mut none) = (after, limit, true);
    let output = global.output();
    while left > 0 {
        let page = Page { after, limit: left };
        let found =
            search::search(&store.readers, &reach, &filter, page).await.map_err(store_error)?;
        for hit in &found.hits {
            (left, none) = (left.saturating_sub(1), false);
            let line: Value = serde_json::from_str(&hit.line)
                .map_err(|error| CliError::failed("audit_corrupt", error.to_string()))?;
            output.emit(&line)?;
            output.human(human(&hit.line, &line))?;
        }
        after = found.next;
        if after.is_none() {
            break;
        }
    }
    if let Some(next) = after {
        output.emit(&json!({"next": next.to_string()}))?;
        if !global.json {
            eprintln!("there is more: add --after {next}");
        }
    } else if none {
        people::note("no entry matches");
        note_redirectors(&filter);
    }
    Ok(())
}

/// Nobody takes a mistyped event for one that never happened.
async fn known(store: &Store, reach: &Reach, filter: &Filter) -> Result<(), CliError> {
    let known = names::check(&store.readers, reach, filter).await.map_err(store_error)?;
    known.map_err(|error| CliError::usage("usage", error.to_string()).hint(error.hint()))
}

/// Not refused: people ask for what there is not, and that is recorded in their words.
fn note_redirectors(filter: &Filter) {
    for name in filter.redirectors.iter().filter(|name| !is_redirector(name)) {
        let known = redirectors().collect::<Vec<_>>().join(", ");
        people::note(&format!("no computer has a redirector \"{name}\"; there are {known}"));
    }
}

async fn partner_id(store: &Store, name: &str) -> Result<String, CliError> {
    let trees = audit::current(&store.readers).await.map_err(store_error)?;
    trees
        .into_iter()
        .find(|(_, partner, _)| partner.eq_ignore_ascii_case(name))
        .map(|(id, _, _)| id)
        .ok_or_else(|| CliError::not_there("not_found", "there is no such partner"))
}

/// What people look for first, on one line.
fn human(line: &str, value: &Value) -> String {
    let Ok(entry) = Entry::parse(line.as_bytes()) else { return escape_text(line).to_string() };
    let event = entry.event();
    let mut out = format!("{} {}", format_ms(entry.time_ms()), event.name);
    for (key, value) in [
        ("actor", &event.actor),
        ("client", &event.client),
        ("computer", &event.computer),
        ("redirector", &event.redirector),
        ("target", &event.target),
        ("outcome", &event.outcome),
        ("end", &event.end_reason),
        ("session", &event.session_id),
    ] {
        if let Some(value) = value {
            out.push_str(&format!("  {key} {}", escape_text(value)));
        }
    }
    // What an act was about. Of a session the fields above say it, but not which secret was used.
    if event.session_id.is_none() || event.name.starts_with("credential.") {
        let about = people::brief(&[value.get("extra_personal"), value.get("extra")]);
        out.push_str(if about.is_empty() { "" } else { "  " });
        out.push_str(&about);
    }
    out
}

/// An export is read once: receipts are compared with what was verified.
async fn verify(
    global: &GlobalArgs,
    file: Option<&Path>,
    (keys, head): (Vec<Fingerprint>, &[PathBuf]),
    signed: Option<&mut Reconciler>,
) -> Result<(), CliError> {
    let anchored = !keys.is_empty() || !head.is_empty();
    let mut heads = Vec::new();
    for path in head {
        heads.extend(heads_of(path)?);
    }
    let mut trust = Trust { keys, heads, complete: false };
    let mut place = None;
    // Whose log each is: the database says, an export does not.
    let mut partners = BTreeMap::new();
    let verified = match file {
        Some(path) => {
            let opened = open_export(path)?;
            match signed {
                None => verify_export(BufReader::new(opened), &trust),
                Some(signed) => verify_export(BufReader::new(signed.watching(opened)), &trust),
            }
        }
        None => {
            let opened = place.insert(MediatorDir::open(global)?);
            // Noted beside the database: they show that it was put back, they prove nothing.
            trust.heads.extend(opened.noted_heads()?);
            let store = opened.store(Mode::Read).await?;
            let trees = audit::trees(&store.readers).await.map_err(store_error)?;
            partners.extend(trees.into_iter().map(|tree| (tree.id, tree.partner)));
            export::verify_store(&store, trust).await?
        }
    };
    let mut report = verified.map_err(|error| unverified(file, &error))?;
    if place.is_some() {
        call(global, AdminRequest::AuditRead { how: "verify".to_owned() }).await?;
    }
    if !anchored {
        report.trees.iter_mut().for_each(|tree| tree.anchor = Anchor::None);
    }
    let mut told = report.describe();
    for tree in told.get_mut("trees").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(tree) = tree.as_object_mut() else { continue };
        let partner = tree.get("tree").and_then(Value::as_str).and_then(|id| partners.get(id));
        tree.insert("partner".to_owned(), json!(partner));
    }
    let output = global.output();
    output.emit(&told)?;
    let named = |told: String, (tree, partner): (&String, &String)| {
        told.replace(tree.as_str(), &format!("{} ({tree})", escape_text(partner)))
    };
    output.human(partners.iter().fold(report.to_string(), named))
}

/// Reading a directory would fail in words that name no file.
fn open_export(path: &Path) -> Result<File, CliError> {
    let unreadable = |what: &dyn std::fmt::Display| {
        CliError::failed("file_unreadable", format!("cannot read {}: {what}", path.display()))
            .hint("check path and permissions; mediator audit export --output FILE writes one")
    };
    let opened = File::open(path).map_err(|error| unreadable(&error))?;
    match opened.metadata().is_ok_and(|data| data.is_dir()) {
        true => Err(unreadable(&"it is a directory")),
        false => Ok(opened),
    }
}

/// What is wrong with an export, or the database.
fn unverified(file: Option<&Path>, error: &VerifyError) -> CliError {
    let altered = |text: String| {
        CliError::failed("audit_invalid", text)
            .hint("compare with an export or backup made earlier")
    };
    let failed = match (file, &error.fault) {
        (Some(_), Fault::Io(_)) => CliError::failed("file_unreadable", error.to_string()),
        (Some(_), Fault::NotAnExport(_)) => altered(error.to_string()),
        (None, Fault::NotAnExport(_)) => {
            // Nobody gave a wrong one: the log is gone.
            let text = "the audit log does not verify: the database holds none that can be read";
            return altered(text.to_owned());
        }
        _ => altered(format!("the audit log does not verify: {error}")),
    };
    match error.fault.advice() {
        Some(advice) => failed.hint(advice),
        None => failed,
    }
}

fn heads_of(path: &Path) -> Result<Vec<SignedHead>, CliError> {
    let bad = |reason: String| {
        let text = format!("{} holds no signed head: {reason}", path.display());
        CliError::usage("head_invalid", text).hint(
            "give a file with signed heads, e.g. an export in the format jsonl or its last line",
        )
    };
    let file = File::open(path).map_err(|error| bad(error.to_string()))?;
    read_heads(BufReader::new(file)).map_err(|error| bad(error.to_string()))
}

async fn export_to(
    global: &GlobalArgs,
    selection: &Selection,
    output: Option<PathBuf>,
) -> Result<(), CliError> {
    let place = MediatorDir::open(global)?;
    note_reading(global, format!("export {:?}", selection.format).to_lowercase()).await?;
    let store = place.store(Mode::Read).await?;
    known(&store, &Reach::installation(), &selection.filter).await?;
    note_redirectors(&selection.filter);
    let Some(path) = output else {
        return export_to_stdout(&store, selection).await;
    };
    let failed = |error: std::io::Error| {
        CliError::failed("output_failed", format!("cannot write {}: {error}", path.display()))
    };
    let mut file = Part::create(&path).map_err(failed)?;
    let shown = export::export(&store, selection, |piece: String| {
        file.write(piece.as_bytes()).map_err(failed)
    })
    .await?;
    file.finish().map_err(failed)?;
    global.output().emit(&json!({"file": path.display().to_string(), "entries": shown}))?;
    global.output().human(format_args!(
        "{shown} {} written to {}",
        if shown == 1 { "entry" } else { "entries" },
        path.display()
    ))
}

async fn export_to_stdout(store: &Store, selection: &Selection) -> Result<(), CliError> {
    use std::io::Write;
    let mut stdout = std::io::stdout();
    let mut gone = false;
    let exported = export::export(store, selection, |piece: String| {
        stdout.write_all(piece.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| {
            gone = error.kind() == std::io::ErrorKind::BrokenPipe;
            CliError::failed("output_failed", format!("cannot write to stdout: {error}"))
        })
    })
    .await;
    match exported {
        // Whoever reads has enough, as `head` does.
        Err(_) if gone => Ok(()),
        exported => exported.map(|_| ()),
    }
}
