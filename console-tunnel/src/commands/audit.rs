//! `audit verify`: an export of the audit log, checked on this machine.
//!
//! Asks nobody: a verdict that depended on the mediator would be worth nothing.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use adit_ledger::{Reconciler, SignedHead, Trust, read_heads, verify::Fault, verify_export};
use adit_protocol::keys::Fingerprint;
use adit_runtime::{cli::CliError, output::Output};

use crate::cli::VerifyArgs;

/// What to do about a file that cannot be read.
const OPEN_HINT: &str =
    "check path and permissions; console-tunnel audit export --output FILE writes one";

/// `audit verify FILE`. The log is read once, so that receipts are compared with what was verified.
pub fn run(output: Output, args: VerifyArgs) -> Result<(), CliError> {
    let VerifyArgs { file, export, key, head, receipts, complete } = args;
    let file = file.or(export).unwrap_or_default();
    if receipts.is_empty() {
        return verify(output, BufReader::new(open_export(&file)?), key, &head, complete);
    }
    let mut reconciler = read_receipts(&receipts)?;
    let log = BufReader::new(reconciler.watching(open_export(&file)?));
    verify(output, log, key, &head, complete)?;
    tell(output, reconciler)
}

fn verify(
    output: Output,
    log: impl BufRead,
    keys: Vec<Fingerprint>,
    heads: &[PathBuf],
    complete: bool,
) -> Result<(), CliError> {
    let heads = heads.iter().map(|path| heads_of(path)).collect::<Result<Vec<_>, _>>()?.concat();
    let trust = Trust { keys, heads, complete };
    let report =
        verify_export(log, &trust).map_err(|error| {
            let failed = match error.fault {
                Fault::Io(_) => CliError::failed("file_unreadable", error.to_string()),
                _ => CliError::failed("audit_invalid", error.to_string()),
            };
            failed.hint(error.fault.advice().unwrap_or(
                "the export is not what the log holds: export again, or ask who changed it",
            ))
        })?;
    output.emit(&report.describe())?;
    output.human(&report)
}

/// What both ends signed.
fn read_receipts(files: &[PathBuf]) -> Result<Reconciler, CliError> {
    let mut reconciler = Reconciler::new();
    for path in files {
        let file = BufReader::new(open(path)?);
        reconciler.receipts(file).map_err(|error| {
            let text = format!("cannot read {}: {error}", path.display());
            CliError::failed("file_unreadable", text)
        })?;
    }
    Ok(reconciler)
}

/// Receipts against the export that was verified and against each other.
fn tell(output: Output, reconciler: Reconciler) -> Result<(), CliError> {
    let found = reconciler.finish();
    output.emit(&found.describe())?;
    output.human(&found)?;
    match found.findings.first() {
        None => Ok(()),
        Some(first) => Err(CliError::failed(
            "receipts_mismatch",
            format!("{} things do not fit; the first: {first}", found.findings.len()),
        )
        .hint("keep the receipts of both ends, and the heads that they saw")),
    }
}

/// Reading a directory would fail in words that name no file.
fn open_export(path: &Path) -> Result<File, CliError> {
    let opened = open(path)?;
    if opened.metadata().is_ok_and(|data| data.is_dir()) {
        let text = format!("cannot read {}: it is a directory", path.display());
        return Err(CliError::failed("file_unreadable", text).hint(OPEN_HINT));
    }
    Ok(opened)
}

fn open(path: &Path) -> Result<File, CliError> {
    File::open(path).map_err(|error| {
        CliError::not_there("file_unreadable", format!("cannot read {}: {error}", path.display()))
            .hint(OPEN_HINT)
    })
}

/// Of an export, which has one for each log, or of `witness show`.
pub fn heads_of(path: &Path) -> Result<Vec<SignedHead>, CliError> {
    read_heads(BufReader::new(open(path)?)).map_err(|error| {
        let text = format!("{} holds no signed head: {error}", path.display());
        CliError::usage("head_invalid", text)
            .hint("give an export in the format jsonl, its last line, or what witness show printed")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use adit_ledger::{
        Entry, Event, Hash, Level, MerkleTree, Receipt,
        export::jsonl::JsonlExport,
        receipt::{Role, Statement},
    };
    use adit_protocol::keys::SigningKey;

    /// A log of three entries and its key.
    fn exported(actor: &str) -> (String, SigningKey) {
        let key = SigningKey::generate().unwrap();
        let (mut tree, mut out) = (MerkleTree::new(), String::new());
        let mut export = JsonlExport::new(&[]);
        for seq in 0..3 {
            let event = Event::new("session.granted", Level::Significant).actor(actor);
            let entry = Entry::seal(seq, 1_000 + seq, event, [7; 16]);
            tree.append(entry.leaf());
            export.entry(&entry, &mut out).unwrap();
        }
        let head = SignedHead::sign(&key, "t", tree.size(), tree.root(), 2_000, None).unwrap();
        export.finish(&head, &mut out).unwrap();
        (out, key)
    }

    #[test]
    fn exports_verify_offline_and_altered_ones_do_not() {
        let verify = |output, path: &Path, keys, heads: &[PathBuf], complete| {
            verify(output, BufReader::new(open_export(path)?), keys, heads, complete)
        };
        let directory = tempfile::tempdir().unwrap();
        let (text, key) = exported("ann");
        let path = directory.path().join("audit.jsonl");
        std::fs::write(&path, &text).unwrap();
        let output = Output::new(false);
        let keys = vec![key.public().fingerprint()];
        verify(output, &path, keys.clone(), std::slice::from_ref(&path), true).unwrap();
        verify(output, &path, vec![], &[], false).unwrap();
        let trust = Trust { keys: keys.clone(), heads: Vec::new(), complete: false };
        let told = verify_export(text.as_bytes(), &trust).unwrap().describe();
        let names =
            |v: &serde_json::Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&told), ["valid", "internally_consistent_only", "trees"]);
        assert_eq!(told["internally_consistent_only"], false);
        assert_eq!(
            names(&told["trees"][0]).join(" "),
            "tree size root log_key entries erased pruned omitted anchor"
        );
        let other = vec![SigningKey::generate().unwrap().public().fingerprint()];
        let error = verify(output, &path, other, &[], false).unwrap_err();
        assert_eq!((error.code, error.exit.code()), ("audit_invalid", 1));
        assert!(error.message.contains("another installation's key"), "{}", error.message);

        // Each head of a file counts, not its last alone.
        let (stranger, _) = exported("eve");
        let heads = directory.path().join("heads.jsonl");
        let head = |text: &str| text.lines().last().unwrap().to_owned();
        std::fs::write(&heads, format!("{}\n{}\n", head(&stranger), head(&text))).unwrap();
        let both = std::slice::from_ref(&heads);
        let error = verify(output, &path, keys.clone(), both, false).unwrap_err();
        assert_eq!(error.code, "audit_invalid");
        std::fs::write(&heads, head(&text)).unwrap();
        verify(output, &path, keys.clone(), both, false).unwrap();

        std::fs::write(&path, text.replace("ann", "bob")).unwrap();
        let error = verify(output, &path, keys, &[], false).unwrap_err();
        assert_eq!((error.code, error.exit.code()), ("audit_invalid", 1));
        assert!(error.message.contains("line 1"), "{}", error.message);
        let missing = directory.path().join("none");
        assert_eq!(verify(output, &missing, vec![], &[], false).unwrap_err().exit.code(), 4);
        std::fs::write(&path, "x\n").unwrap();
        let heads = [path.clone()];
        let error = verify(output, &path, vec![], &heads, false).unwrap_err();
        assert!(error.code == "head_invalid" && error.hint.is_some(), "{error:?}");
        // Another file than an export is that, not one that somebody altered.
        for other in ["", "x\n", "{\"a\":1}", "seq,time\n0,1\n"] {
            std::fs::write(&path, other).unwrap();
            let error = verify(output, &path, vec![], &[], false).unwrap_err();
            assert_eq!((error.code, error.exit.code()), ("audit_invalid", 1), "{other}");
            assert!(error.message.contains("no audit export"), "{}", error.message);
            assert!(error.hint.as_ref().unwrap().contains("jsonl"), "{error:?}");
        }
        let error = verify(output, directory.path(), vec![], &[], false).unwrap_err();
        assert_eq!((error.code, error.exit.code()), ("file_unreadable", 1));
        assert!(error.message.contains("is a directory"), "{}", error.message);
        let head = [directory.path().to_owned()];
        let error = verify(output, &path, vec![], &head, false).unwrap_err();
        assert_eq!((error.code, error.exit.code()), ("head_invalid", 2));
    }

    /// Whoever can write the file shows what verifies, and then what receipts fit.
    #[cfg(unix)]
    #[test]
    fn receipts_are_compared_with_the_log_that_was_verified() {
        let directory = tempfile::tempdir().unwrap();
        let of = |name| directory.path().join(name);
        let (log, receipts) = (of("audit.jsonl"), of("receipts.jsonl"));
        let made = std::process::Command::new("mkfifo").arg(&log).status().unwrap();
        assert!(made.success());
        let key = SigningKey::generate().unwrap();
        let (session, own) = ([7; 16], key.public().fingerprint());
        let statement = Statement {
            role: Role::Console,
            session,
            grant_hash: Hash::of(b"grant"),
            handshake_hash: Hash::of(b"handshake"),
            console: own,
            agent: own,
            redirector: "ssh".into(),
            target: "127.0.0.1:22".into(),
            channel: 2,
            time_ms: 1,
            close: None,
        };
        std::fs::write(&receipts, Receipt::sign(&key, statement).to_line()).unwrap();
        let (verifies, _) = exported("ann");
        let granted = Event::new("session.granted", Level::Significant)
            .session_id(adit_protocol::ids::SessionId(session).to_string());
        let mut fits = String::new();
        let entry = Entry::seal(0, 1_000, granted, [7; 16]);
        JsonlExport::new(&[]).entry(&entry, &mut fits).unwrap();
        // Once somebody reads it, the name is another file's.
        let (name, other) = (log.clone(), of("other.jsonl"));
        std::fs::write(&other, fits).unwrap();
        let writer = std::thread::spawn(move || {
            let mut pipe = File::options().write(true).open(&name)?;
            std::fs::rename(&other, &name)?;
            std::io::Write::write_all(&mut pipe, verifies.as_bytes())
        });
        let args = VerifyArgs {
            file: Some(log),
            export: None,
            key: Vec::new(),
            head: Vec::new(),
            receipts: vec![receipts],
            complete: false,
        };
        let error = run(Output::new(false), args).unwrap_err();
        writer.join().unwrap().unwrap();
        assert_eq!(error.code, "receipts_mismatch");
        assert!(error.message.contains("not in the log"), "{}", error.message);
    }
}
