//! Where a release comes from: an in-toto statement (v1) with SLSA provenance (v1.0).
//!
//! Holds no time, no user, no machine and no path: who builds the same commit with the same tools
//! writes the same bytes, and a signature by the same key is the same too.

use std::{collections::BTreeMap, fs, io, path::Path};

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::digest;
use serde_json::{Value, json};

use crate::{build::Tools, key::hex};

const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const PREDICATE: &str = "https://slsa.dev/provenance/v1";
/// What the parameters mean: docs/release.md.
const BUILD_TYPE: &str = "urn:adit:release:v1";

/// Digests (SHA-256, hexadecimal) of files by name.
pub(crate) type Subjects = BTreeMap<String, String>;

/// All that a statement says besides the files.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) commit: &'a str,
    /// Digest of `Cargo.lock`, which names digests of all that was compiled.
    pub(crate) lock: String,
    pub(crate) target: &'a str,
    pub(crate) programs: &'a [String],
    pub(crate) builder: &'a str,
    pub(crate) tools: &'a Tools,
}

/// What a verifier tells people.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Claims {
    pub(crate) commit: String,
    pub(crate) target: String,
    pub(crate) builder: String,
    pub(crate) rustc: String,
    pub(crate) subjects: Subjects,
}

/// The statement, as it is signed.
pub(crate) fn statement(facts: &Facts<'_>, subjects: &Subjects) -> String {
    let subjects: Vec<_> = subjects
        .iter()
        .map(|(name, digest)| json!({"name": name, "digest": {"sha256": digest}}))
        .collect();
    let Facts { commit, lock, target, programs, builder, tools } = facts;
    let statement = json!({
        "_type": STATEMENT,
        "subject": subjects,
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "commit": commit,
                    "target": target,
                    "profile": "release",
                    "programs": programs,
                },
                "internalParameters": {},
                "resolvedDependencies": [
                    {"name": "source", "digest": {"gitCommit": commit}},
                    {"name": "Cargo.lock", "digest": {"sha256": lock}},
                ],
            },
            "runDetails": {
                "builder": {
                    "id": builder,
                    "version": {"rustc": tools.rustc, "cargo": tools.cargo, "cc": tools.cc},
                },
            },
        },
    });
    format!("{statement:#}\n")
}

/// Can this be shown on a terminal as it is, and means what it looks like?
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
}

/// Reads a statement of ours back; names must be those of files, not of paths. It must be what
/// [`statement`] makes of what is read: nothing else is said beside, or twice and differently.
pub(crate) fn read(bytes: &[u8]) -> Result<Claims> {
    let given: Value = serde_json::from_slice(bytes).context("the statement is no JSON")?;
    let text = |pointer: &str| -> Result<String> {
        let text = given.pointer(pointer).and_then(Value::as_str);
        let text = text.with_context(|| format!("the statement lacks {pointer}"))?;
        // Shown to whoever signs: nothing there may move a terminal's cursor, or turn its text.
        ensure!(is_plain(text), "{pointer} of the statement is no plain text");
        Ok(text.to_owned())
    };
    for (pointer, expected) in [
        ("/_type", STATEMENT),
        ("/predicateType", PREDICATE),
        ("/predicate/buildDefinition/buildType", BUILD_TYPE),
    ] {
        let told = text(pointer)?;
        ensure!(
            told == expected,
            "the statement is no provenance of a release: {pointer} is {told}"
        );
    }
    let list = given.get("subject").and_then(Value::as_array).context("subject is missing")?;
    let mut subjects = Subjects::new();
    for subject in list {
        let part = |pointer: &str| subject.pointer(pointer).and_then(Value::as_str);
        let pair = part("/name").zip(part("/digest/sha256"));
        let (name, digest) = pair.context("a subject lacks its name or digest")?;
        ensure!(
            !name.is_empty()
                && !name.starts_with('.')
                && is_plain(name)
                && !name.contains(['/', '\\']),
            "a subject's name is no file's: {name:?}"
        );
        ensure!(
            digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()),
            "the digest of {name} is none: {digest:?}"
        );
        let before = subjects.insert(name.to_owned(), digest.to_owned());
        ensure!(before.is_none(), "{name} is named twice");
    }
    ensure!(!subjects.is_empty(), "the statement is about nothing");
    let definition = "/predicate/buildDefinition";
    let parameters = format!("{definition}/externalParameters");
    let version = "/predicate/runDetails/builder/version";
    let programs = given.pointer(&format!("{parameters}/programs")).and_then(Value::as_array);
    let programs: Vec<String> = programs
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    let commit = text(&format!("{parameters}/commit"))?;
    let target = text(&format!("{parameters}/target"))?;
    let builder = text("/predicate/runDetails/builder/id")?;
    let tools = Tools {
        rustc: text(&format!("{version}/rustc"))?,
        cargo: text(&format!("{version}/cargo"))?,
        cc: text(&format!("{version}/cc"))?,
    };
    let facts = Facts {
        commit: &commit,
        lock: text(&format!("{definition}/resolvedDependencies/1/digest/sha256"))?,
        target: &target,
        programs: &programs,
        builder: &builder,
        tools: &tools,
    };
    ensure!(
        statement(&facts, &subjects).as_bytes() == bytes,
        "the statement says more than a release's, or says it otherwise"
    );
    Ok(Claims { commit, target, builder, rustc: tools.rustc, subjects })
}

/// SHA-256 of a file.
pub(crate) fn sha256(file: &Path) -> Result<String> {
    let mut open = fs::File::open(file).with_context(|| file.display().to_string())?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match io::Read::read(&mut open, &mut buffer) {
            Ok(0) => return Ok(hex(context.finish().as_ref())),
            Ok(count) => context.update(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| file.display().to_string()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn made(subjects: &Subjects) -> String {
        let tools = Tools { rustc: "rustc 1".into(), cargo: "cargo 1".into(), cc: "cc 1".into() };
        let facts = Facts {
            commit: "c0ffee",
            lock: "ab".repeat(32),
            target: "t",
            programs: &["relay".into()],
            builder: "urn:b",
            tools: &tools,
        };
        statement(&facts, subjects)
    }

    #[test]
    fn a_statement_reads_back_and_says_nothing_of_machine_or_time() {
        let subjects = Subjects::from([("relay".into(), "00".repeat(32))]);
        let text = made(&subjects);
        let claims = read(text.as_bytes()).unwrap();
        assert_eq!((claims.commit.as_str(), &claims.subjects), ("c0ffee", &subjects));
        // SLSA v1.0 demands these.
        let told: Value = serde_json::from_str(&text).unwrap();
        let fields = [
            "buildDefinition/buildType",
            "buildDefinition/externalParameters",
            "runDetails/builder/id",
        ];
        assert!(
            fields.iter().all(|field| told["predicate"].pointer(&format!("/{field}")).is_some())
        );
        assert!(!text.contains("startedOn") && text == made(&subjects));
    }

    #[test]
    fn statements_about_something_else_or_other_places_are_refused() {
        let text = made(&Subjects::from([("relay".into(), "00".repeat(32))]));
        for (from, to) in [
            (STATEMENT, "https://in-toto.io/Statement/v0.1"),
            (PREDICATE, "https://slsa.dev/provenance/v0.2"),
            (BUILD_TYPE, "urn:other"),
            ("\"name\": \"relay\"", "\"name\": \"../relay\""),
            ("\"name\": \"relay\"", "\"name\": \"/etc/passwd\""),
            ("\"sha256\": \"00", "\"sha1\": \"00"),
            ("\"commit\": \"c0ffee\"", "\"commits\": 1"),
            // What others read of it is what whoever signs it was shown.
            ("\"gitCommit\": \"c0ffee\"", "\"gitCommit\": \"decade\""),
            ("\"commit\": \"c0ffee\"", "\"commit\": \"decade\""),
            ("\"internalParameters\": {}", "\"internalParameters\": {\"more\": 1}"),
            ("\"urn:b\"", "\"urn:b\\u001b[2K\""),
            ("\"name\": \"relay\"", "\"name\": \"re\\u001blay\""),
            ("\"name\": \"relay\"", "\"name\": \"re\u{202e}yal\""),
            ("\"urn:b\"", "\"urn:\u{202e}b\""),
            ("\"sha256\": \"0000", "\"sha256\": \"\\u001b[2K"),
            ("\"sha256\": \"0000", "\"sha256\": \"00"),
        ] {
            assert!(
                text.contains(from) && read(text.replace(from, to).as_bytes()).is_err(),
                "{to}"
            );
        }
        assert!(read(made(&Subjects::new()).as_bytes()).is_err());
    }
}
