//! Whatever is done to an export is found, and named for what it is.

#![expect(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test's helpers may fail like the test"
)]

use std::collections::BTreeMap;

use adit_ledger::{
    Anchor, Entry, Event, Gap, GapKind, Hash, HeadsError, Level, MerkleTree, OtherFile, Receipt,
    RootCert, SignedHead, Trust,
    entry::LineError,
    export::{cef, csv, jsonl::JsonlExport, ocsf},
    fuzz_line,
    receipt::{Role, Statement},
    tree::CompactRange,
    verify::{Fault, VerifyError},
    verify_export,
};
use adit_protocol::keys::{KeyCert, Purpose, SigningKey};
use proptest::prelude::*;

const TIME: u64 = 1_760_000_000_000;

fn key(number: u8) -> SigningKey {
    SigningKey::from_seed(&[number; 32]).unwrap()
}

/// A certificate of `log_key` by root key 9.
fn cert(log_key: &SigningKey) -> RootCert {
    let body =
        KeyCert { key: log_key.public(), not_before_ms: TIME - 1000, not_after_ms: TIME + 1000 };
    let root = key(9);
    RootCert { root: root.public(), cert: KeyCert::issue(&root, Purpose::Log, &body) }
}

struct Log {
    name: &'static str,
    entries: Vec<Entry>,
}

impl Log {
    fn new(name: &'static str, size: u64) -> Self {
        let names = ["session.requested", "session.granted", "session.ended", "login.failed"];
        let entries = (0..size).map(|seq| {
            let event = Event::new(names[seq as usize % 4], Level::Significant)
                .partner(name)
                .actor("älice \"the\u{202e} admin\"\n")
                .source("198.51.100.7:40123")
                .computer_id(format!("c-{seq}"))
                .target("127.0.0.1:3389")
                .reason("=cmd|' /C calc'!A0")
                .carrier("relayed")
                .carrier("direct")
                .bytes_up(seq * 1000)
                .extra("agent", "sha256:00")
                .extra_personal("local", seq);
            Entry::seal(seq, TIME + seq, event, [seq as u8; 16])
        });
        Self { name, entries: entries.collect() }
    }

    fn tree(&self, size: usize) -> MerkleTree {
        let mut tree = MerkleTree::new();
        self.entries[..size].iter().for_each(|entry| {
            tree.append(entry.leaf());
        });
        tree
    }

    fn head(&self, size: usize, key_number: u8) -> SignedHead {
        let (log_key, tree) = (key(key_number), self.tree(size));
        let cert = Some(cert(&log_key));
        SignedHead::sign(&log_key, self.name, tree.size(), tree.root(), TIME, cert).unwrap()
    }

    /// Lines of an export of the first `size` entries, head last.
    fn lines(&self, size: usize) -> Vec<String> {
        let mut lines: Vec<_> = self.entries[..size].iter().map(Entry::to_line).collect();
        lines.push(self.head(size, 1).to_line());
        lines
    }
}

fn check(lines: &[String], trust: &Trust) -> Result<adit_ledger::Report, VerifyError> {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    verify_export(text.as_bytes(), trust)
}

fn fault(lines: &[String], trust: &Trust) -> (u64, Option<u64>, Fault) {
    let error = check(lines, trust).unwrap_err();
    (error.line, error.seq, error.fault)
}

fn by_key() -> Trust {
    Trust { keys: vec![key(9).public().fingerprint()], ..Trust::default() }
}

fn by_head(head: SignedHead) -> Trust {
    Trust { heads: vec![head], ..Trust::default() }
}

#[test]
fn intact_export_is_verified_as_far_as_trust_goes() {
    let log = Log::new("p1", 9);
    let lines = log.lines(9);
    let anchor = |trust: &Trust| check(&lines, trust).unwrap().trees[0].anchor;
    assert_eq!(anchor(&Trust::default()), Anchor::None);
    assert_eq!(anchor(&by_key()), Anchor::Key);
    let log_key = Trust { keys: vec![key(1).public().fingerprint()], ..Trust::default() };
    assert_eq!(anchor(&log_key), Anchor::Key);
    for size in 0..=9 {
        assert_eq!(anchor(&by_head(log.head(size, 1))), Anchor::Head);
        // A rotated log key is linked by the root.
        assert_eq!(anchor(&by_head(log.head(size, 2))), Anchor::Head);
    }
    let report = check(&lines, &Trust::default()).unwrap();
    assert!(report.is_internally_consistent_only());
    assert!(report.to_string().contains("internally consistent only"), "{report}");
    // The empty log has a head too.
    assert!(check(&Log::new("p1", 0).lines(0), &by_key()).is_ok());
}

#[test]
fn each_manipulation_is_named() {
    let log = Log::new("p1", 9);
    let lines = log.lines(9);
    let none = Trust::default();
    let mut altered = lines.clone();
    altered[3] = altered[3].replace("\"bytes_up\":3000", "\"bytes_up\":4000");
    let (line, seq, what) = fault(&altered, &none);
    assert_eq!((line, seq), (4, Some(3)));
    assert!(matches!(what, Fault::Altered(LineError::LeafMismatch)), "{what}");

    let mut dropped = lines.clone();
    dropped.remove(3);
    assert!(matches!(fault(&dropped, &none), (4, Some(3), Fault::Dropped { expected: 3 })));

    let mut swapped = lines.clone();
    swapped.swap(3, 5);
    assert!(matches!(fault(&swapped, &none), (4, Some(3), Fault::Reordered { expected: 3 })));

    let mut doubled = lines.clone();
    doubled.insert(4, lines[3].clone());
    assert!(matches!(fault(&doubled, &none), (5, Some(3), Fault::Inserted { expected: 4 })));

    let mut longer = Log::new("p1", 10).lines(10);
    longer[10] = lines[9].clone();
    assert!(matches!(fault(&longer, &none), (11, None, Fault::Inserted { expected: 9 })));

    assert!(matches!(fault(&lines[..9], &none), (9, None, Fault::Truncated(_))));
    let mut shorter = lines.clone();
    shorter.remove(8);
    assert!(matches!(fault(&shorter, &none), (9, None, Fault::Truncated(_))));
    assert!(matches!(fault(&lines[..1], &none), (1, None, Fault::Truncated(_))));

    // Contents and leaf rewritten together.
    let mut rewritten = lines.clone();
    let event = Event::new("session.granted", Level::Normal);
    rewritten[3] = Entry::seal(3, TIME, event, [0; 16]).to_line();
    assert!(matches!(fault(&rewritten, &none).2, Fault::RootMismatch));

    // A short log in place of a longer one.
    let trust = by_head(log.head(9, 1));
    let rolled = fault(&log.lines(7), &trust).2;
    assert!(matches!(rolled, Fault::RolledBack { trusted: 9, size: 7 }));
    // Another history, signed by the right key.
    let mut other = Log::new("p1", 12);
    other.entries[5] = Entry::seal(5, TIME, Event::new("x", Level::Normal), [0; 16]);
    let split = fault(&other.lines(12), &trust).2;
    assert!(matches!(split, Fault::SplitView { trusted: 9 }));
    assert!(check(&other.lines(12), &by_head(log.head(5, 1))).is_ok());
    // The same, seen from the two heads alone.
    let both = Trust { heads: vec![log.head(9, 1), other.head(9, 1)], ..Trust::default() };
    assert!(matches!(fault(&lines, &both), (0, None, Fault::SplitView { trusted: 9 })));

    let wrong = Trust { keys: vec![key(7).public().fingerprint()], ..Trust::default() };
    assert!(matches!(fault(&lines, &wrong).2, Fault::WrongKey { .. }));
    // A stranger signs the whole log, certified by nobody or by its own root.
    let mut forged = lines.clone();
    let tree = log.tree(9);
    let head = SignedHead::sign(&key(3), "p1", 9, tree.root(), TIME, None).unwrap();
    forged[9] = head.to_line();
    assert!(matches!(fault(&forged, &by_key()).2, Fault::WrongKey { .. }));
    assert!(matches!(fault(&forged, &trust).2, Fault::WrongKey { .. }));
    // A certificate of another key, and one outside its time.
    let head = SignedHead { key_cert: Some(cert(&key(1))), ..head };
    forged[9] = head.to_line();
    assert!(matches!(fault(&forged, &by_key()).2, Fault::HeadForged(_)));
    let late = SignedHead::sign(&key(1), "p1", 9, tree.root(), TIME + 1000, Some(cert(&key(1))));
    forged[9] = late.unwrap().to_line();
    assert!(matches!(fault(&forged, &by_key()).2, Fault::HeadForged(_)));
}

#[test]
fn several_trees_are_verified_and_none_may_go_missing() {
    let (a, b) = (Log::new("p1", 5), Log::new("p2", 6));
    let lines = [a.lines(5), b.lines(6)].concat();
    let trust = Trust { heads: vec![a.head(4, 1), b.head(6, 1)], ..by_key() };
    let report = check(&lines, &trust).unwrap();
    assert_eq!(report.trees.iter().map(|t| t.entries).collect::<Vec<_>>(), [5, 6]);
    assert!(matches!(fault(&a.lines(5), &trust).2, Fault::MissingTree));
    let twice = [a.lines(5), a.lines(5)].concat();
    assert!(matches!(fault(&twice, &by_key()).2, Fault::DuplicateTree));
}

#[test]
fn erased_entries_verify_and_hold_nothing_personal() {
    let mut log = Log::new("p1", 6);
    let trust = by_head(log.head(6, 1));
    let whole = log.entries[2].to_line();
    log.entries[2].erase();
    log.entries[2].erase();
    let lines = log.lines(6);
    for gone in ["lice", "198.51", "3389", "cmd"] {
        assert!(whole.contains(gone) && !lines[2].contains(gone), "{gone}");
    }
    assert!(lines[2].contains("\"actor\":null") && lines[2].contains("\"salt\":null"));
    let report = check(&lines, &trust).unwrap();
    assert_eq!((report.trees[0].entries, report.trees[0].erased), (6, 1));
    // Nobody can write other personal fields into an erased entry.
    let mut filled = lines.clone();
    filled[2] = filled[2].replace("\"actor\":null", "\"actor\":\"bob\"");
    assert!(matches!(fault(&filled, &trust).2, Fault::Altered(LineError::NotCanonical)));
}

#[test]
fn filtered_exports_prove_what_they_leave_out() {
    let log = Log::new("p1", 40);
    let export = |shown: &[u64], pruned_below: u64, splits: &[u64]| {
        let (mut export, mut out) = (JsonlExport::new(splits), String::new());
        for entry in &log.entries {
            if shown.contains(&entry.seq()) {
                export.entry(entry, &mut out).unwrap();
            } else {
                let pruned = entry.seq() < pruned_below;
                let kind = if pruned { GapKind::Pruned } else { GapKind::Omitted };
                export.skip(kind, entry.leaf(), &mut out);
            }
        }
        export.finish(&log.head(40, 1), &mut out).unwrap();
        out
    };
    let text = export(&[13, 14, 30], 7, &[]);
    let report = verify_export(text.as_bytes(), &by_key()).unwrap();
    let tree = &report.trees[0];
    assert_eq!((tree.entries, tree.pruned, tree.omitted), (3, 7, 30));
    let complete = Trust { complete: true, ..by_key() };
    let incomplete = verify_export(text.as_bytes(), &complete).unwrap_err();
    assert!(matches!(incomplete.fault, Fault::Incomplete));
    // A head that ends inside a gap can be compared only if the gap was split there.
    let trust = by_head(log.head(21, 1));
    let error = verify_export(text.as_bytes(), &trust).unwrap_err();
    assert!(matches!(error.fault, Fault::NotComparable { trusted: 21 }));
    let text = export(&[13, 14, 30], 7, &[21]);
    assert!(verify_export(text.as_bytes(), &trust).is_ok());
    // A gap that hides more or less than it says does not verify.
    let line = text.lines().position(|line| line.contains("\"from\":15")).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.remove(line);
    assert!(matches!(fault(&lines, &by_key()).2, Fault::Dropped { expected: 15 }));
    let mut range = CompactRange::new(15);
    (15..21).for_each(|_| range.push_leaf(Hash::of(b"other"), |_, _| ()));
    lines.insert(line, Gap { kind: GapKind::Omitted, range }.to_line());
    assert!(matches!(fault(&lines, &by_key()).2, Fault::RootMismatch));
}

#[test]
fn a_restored_log_names_the_head_it_follows() {
    let head = Log::new("p1", 9).head(9, 1);
    let line = Entry::seal(0, TIME, Event::tree_started(Some(&head)), [1; 16]).to_line();
    assert!(line.contains("\"previous_size\":9") && line.contains(&head.root.to_string()));
}

#[test]
fn oversized_and_hostile_fields_are_bounded_and_inert() {
    let evil = "\u{1b}[2J\r\n{\"seq\":0}\u{9b}31m\u{202e}".repeat(900);
    let mut event = Event::new(evil.clone(), Level::Critical)
        .outcome(evil.clone())
        .partner(evil.clone())
        .client(evil.clone())
        .computer_id(evil.clone())
        .session_id(evil.clone())
        .redirector(evil.clone())
        .viewer(evil.clone())
        .rule(evil.clone())
        .mfa(evil.clone())
        .credential_id(evil.clone())
        .relay(evil.clone())
        .end_reason(evil.clone())
        .actor(evil.clone())
        .device(evil.clone())
        .source(evil.clone())
        .computer(evil.clone())
        .target(evil.clone())
        .reason(evil.clone())
        .ticket(evil.clone())
        .pair(evil.clone())
        .bytes_up(u64::MAX);
    for index in 0..99 {
        event = event
            .carrier(evil.clone())
            .extra(format!("{index}{evil}"), evil.clone())
            .extra_personal(format!("{index}{evil}"), evil.clone());
    }
    let entry = Entry::seal(u64::MAX, u64::MAX, event, [0xff; 16]);
    let line = entry.to_line();
    assert!(line.len() <= adit_ledger::MAX_LINE_LEN, "{}", line.len());
    assert!(!line.chars().any(|c| c.is_control() || c == '\u{202e}'));
    assert_eq!(Entry::parse(line.as_bytes()).unwrap(), entry);
}

#[test]
fn lines_without_end_are_refused_in_bounded_memory() {
    struct Endless;
    impl std::io::Read for Endless {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            out.fill(b'{');
            Ok(out.len())
        }
    }
    let error = verify_export(std::io::BufReader::new(Endless), &by_key()).unwrap_err();
    assert!(matches!(error.fault, Fault::NotAnExport(_)), "{error}");
    // After a line of an export it is that export which was altered.
    let line = Log::new("p1", 1).lines(1).swap_remove(0) + "\n";
    let after = std::io::Read::chain(line.as_bytes(), std::io::BufReader::new(Endless));
    let error = verify_export(after, &by_key()).unwrap_err();
    assert!(matches!(error.fault, Fault::Altered(LineError::TooLong)), "{error}");
}

#[test]
fn what_is_no_export_is_not_called_altered_and_what_is_one_is() {
    let told = |bytes: &[u8]| verify_export(bytes, &by_key()).unwrap_err();
    let jpeg = [b"\xff\xd8\xff\xe0\x00\x10JFIF\n".as_slice(), &[0x80; 70_000], b"\nx\n"].concat();
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(200_000));
    for other in [
        &b""[..],
        b"x",
        b"x\n",
        b"\n\n\n",
        b"{\"a\":1}\n",
        b"{\n  \"v\": 1\n}\n",
        b"seq,time,event\n1,2,3\n",
        b"CEF:0|Adit|Mediator|0.1|x|x|5|\n",
        long.as_bytes(),
        &jpeg,
    ] {
        let error = told(other);
        assert!(matches!(error.fault, Fault::NotAnExport(_)), "{error}");
        assert!(!error.to_string().contains("altered") && error.fault.advice().is_some());
    }
    // Whatever was done to the first lines of one.
    let lines = Log::new("p1", 9).lines(9);
    for first in ["x", "", "{\"a\":1}", &"x".repeat(100_000), "\u{ff}\u{d8}"] {
        for count in [1, 5, 9] {
            let mut altered = lines.clone();
            altered.iter_mut().take(count).for_each(|line| *line = first.to_owned());
            let (line, _, what) = fault(&altered, &by_key());
            assert!(line == 1 && matches!(what, Fault::Altered(_)), "{count}: {what}");
        }
    }
    let cut = &lines[0].as_bytes()[..40];
    assert!(matches!(told(cut).fault, Fault::Truncated(_)));
}

/// Each with what it is and what it is for; none of them is valid, or called altered.
#[test]
fn files_that_are_taken_for_an_export_are_named() {
    let (log, signer) = (Log::new("p1", 2), key(1));
    let statement = Statement {
        role: Role::Agent,
        session: [7; 16],
        grant_hash: Hash::of(b"grant"),
        handshake_hash: Hash::of(b"handshake"),
        console: key(2).public().fingerprint(),
        agent: signer.public().fingerprint(),
        redirector: "ssh".into(),
        target: "127.0.0.1:22".into(),
        channel: 2,
        time_ms: TIME,
        close: None,
    };
    let receipt = Receipt::sign(&signer, statement).to_line();
    let heads = format!("{}\n{}\n", log.head(1, 1).to_line(), log.head(2, 1).to_line());
    for (file, other, advice) in [
        (String::new(), OtherFile::Empty, "jsonl"),
        (format!("{receipt}\n{receipt}\n"), OtherFile::Receipts, "--receipts"),
        (receipt.clone(), OtherFile::Receipts, "--receipts"),
        (heads, OtherFile::Heads, "--head"),
        (log.head(2, 1).to_line(), OtherFile::Heads, "--head"),
        (csv::header() + &csv::row(&log.entries[0]), OtherFile::Format("csv"), "jsonl"),
        (cef::line(&log.entries[0], "1") + "\n", OtherFile::Format("cef"), "jsonl"),
        (ocsf::line(&log.entries[0], "1") + "\n", OtherFile::Format("ocsf"), "jsonl"),
        ("{\"destruction\":{}}\n".into(), OtherFile::Certificate, "certificate verify"),
        ("age-encryption.org/v1\n-> X25519 a\n".into(), OtherFile::Backup, "restore"),
        ("{}\n".into(), OtherFile::Unknown, "jsonl"),
    ] {
        let error = verify_export(file.as_bytes(), &by_key()).unwrap_err();
        assert!(
            matches!(error.fault, Fault::NotAnExport(told) if told == other),
            "{file}: {error}"
        );
        assert!(error.fault.advice().unwrap().contains(advice), "{file}: {error}");
    }
    // An export whose beginning was replaced is none of them.
    let lines = log.lines(2);
    for first in [receipt, csv::header(), "{\"destruction\":{}}".into()] {
        let altered = format!("{}\n{}\n{}\n", first.trim_end(), lines[1], lines[2]);
        let error = verify_export(altered.as_bytes(), &by_key()).unwrap_err();
        assert!(matches!(error.fault, Fault::Altered(_)), "{error}");
    }
}

/// Small deterministic generator, so that a failing round can be run again by its number.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}

/// What somebody may do to a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Change,
    Insert,
    Remove,
    Reorder,
    Truncate,
    /// By whoever holds the log key: what was the whole log once.
    Rollback,
    /// By the same: another history, with another head.
    Rewrite,
}

/// One random change of the log's own kind, by whoever holds the log key.
fn rewrite(log: &Log, rng: &mut Rng) -> (Kind, Vec<u8>) {
    let size = log.entries.len();
    let mut log = Log { name: log.name, entries: log.entries.clone() };
    let at = rng.below(size);
    let forged = |seq: usize, rng: &mut Rng| {
        let event = Event::new("session.granted", Level::Normal).actor("mallory");
        Entry::seal(seq as u64, TIME, event, [rng.below(256) as u8; 16])
    };
    let again = |entries: Vec<Entry>| -> Vec<Entry> {
        let entries = entries.into_iter().enumerate();
        entries
            .map(|(n, e)| Entry::seal(n as u64, TIME, e.event().clone(), [n as u8; 16]))
            .collect()
    };
    let kind = match rng.below(6) {
        0 => {
            log.entries.truncate(at);
            Kind::Rollback
        }
        1 => {
            log.entries[at] = forged(at, rng);
            Kind::Change
        }
        2 => {
            let new = forged(at, rng);
            log.entries.insert(at, new);
            log.entries = again(log.entries);
            Kind::Insert
        }
        3 => {
            log.entries.remove(at);
            log.entries = again(log.entries);
            Kind::Remove
        }
        4 => {
            let other = (at + 1 + rng.below(size - 1)) % size;
            log.entries.swap(at, other);
            log.entries = again(log.entries);
            Kind::Reorder
        }
        _ => {
            // Goes on from a point in another way, and becomes longer.
            log.entries.truncate(at);
            for seq in at..size + rng.below(4) {
                let new = forged(seq, rng);
                log.entries.push(new);
            }
            Kind::Rewrite
        }
    };
    let mut lines: Vec<_> = log.entries.iter().map(Entry::to_line).collect();
    lines.push(log.head(log.entries.len(), 1).to_line());
    (kind, lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect())
}

/// One random change of the file; may give back the same bytes.
fn mutate(text: &[u8], rng: &mut Rng) -> Vec<u8> {
    mutate_as(text, rng).1
}

fn mutate_as(text: &[u8], rng: &mut Rng) -> (Kind, Vec<u8>) {
    let mut bytes = text.to_vec();
    let mut lines: Vec<&[u8]> = text.split_inclusive(|b| *b == b'\n').collect();
    let (at, line, other) =
        (rng.below(bytes.len()), rng.below(lines.len()), rng.below(lines.len()));
    let kind = match rng.below(11) {
        0 => {
            bytes[at] ^= 1 << rng.below(8);
            Kind::Change
        }
        1 => {
            bytes[at] = rng.below(256) as u8;
            Kind::Change
        }
        2 => {
            bytes.insert(at, rng.below(256) as u8);
            Kind::Insert
        }
        3 => {
            bytes.remove(at);
            Kind::Remove
        }
        4 => {
            bytes.truncate(at);
            Kind::Truncate
        }
        5 => {
            // A digit for a digit: stays well-formed most often.
            if let Some(p) = bytes[at..].iter().position(u8::is_ascii_hexdigit) {
                bytes[at + p] = b"0123456789abcdef"[rng.below(16)];
            }
            Kind::Change
        }
        6 => {
            lines.remove(line);
            return (Kind::Remove, lines.concat());
        }
        7 => {
            lines.swap(line, other);
            return (Kind::Reorder, lines.concat());
        }
        8 => {
            lines.insert(other, lines[line]);
            return (Kind::Insert, lines.concat());
        }
        9 => {
            lines.truncate(line);
            return (Kind::Truncate, lines.concat());
        }
        _ if lines.len() < 2 => Kind::Change,
        _ => {
            // A new entry in place of an old one, with a fitting leaf.
            let seq = line.min(lines.len() - 2);
            let event = Event::new("session.granted", Level::Normal).actor("mallory");
            let forged = Entry::seal(seq as u64, TIME, event, [9; 16]).to_line() + "\n";
            lines[line] = forged.as_bytes();
            return (Kind::Change, lines.concat());
        }
    };
    (kind, bytes)
}

/// Each is judged by the newest head alone, and again by the key alone.
#[test]
fn twelve_thousand_random_mutations_are_found() {
    /// By those who do not hold the log key, and of all.
    const BY_STRANGERS: u32 = 10_000;
    const IN_ALL: u32 = 12_000;
    let mut log = Log::new("p1", 12);
    let newest = by_head(log.head(12, 1));
    log.entries[4].erase();
    let (mut export, mut part) = (JsonlExport::new(&[7, 12]), String::new());
    for entry in &log.entries {
        match entry.seq() {
            0 | 1 => export.skip(GapKind::Pruned, entry.leaf(), &mut part),
            8..=10 => export.skip(GapKind::Omitted, entry.leaf(), &mut part),
            _ => export.entry(entry, &mut part).unwrap(),
        }
    }
    export.finish(&log.head(12, 1), &mut part).unwrap();
    let whole: String = log.lines(12).iter().map(|line| format!("{line}\n")).collect();
    let earlier = Trust { heads: vec![log.head(7, 1), log.head(12, 1)], ..by_key() };
    for text in [&part, &whole] {
        for trust in [&newest, &by_key(), &earlier] {
            assert!(verify_export(text.as_bytes(), trust).is_ok());
        }
    }
    let mut counts = BTreeMap::<(bool, Kind), u32>::new();
    let (mut by_strangers, mut by_holders, mut believed) = (0, 0, 0);
    for round in 0.. {
        let mut rng = Rng(round);
        let by_holder = round % 6 == 0;
        let text = if round % 2 == 0 { &part } else { &whole };
        let (kind, mutated) =
            if by_holder { rewrite(&log, &mut rng) } else { mutate_as(text.as_bytes(), &mut rng) };
        if mutated == text.as_bytes() {
            continue;
        }
        *counts.entry((by_holder, kind)).or_default() += 1;
        // The certificate is not part of the log: the same head without one, or with a renewed
        // one, is the same head. Everything else must be found.
        let found = |trust: &Trust| verify_export(&mutated[..], trust).is_err();
        assert!(found(&newest), "round {round}: {}", String::from_utf8_lossy(&mutated));
        if by_holder {
            by_holders += 1;
            believed += u32::from(!found(&by_key()));
        } else {
            by_strangers += 1;
            assert!(found(&by_key()), "round {round}: {}", String::from_utf8_lossy(&mutated));
        }
        if by_strangers >= BY_STRANGERS && by_strangers + by_holders >= IN_ALL {
            break;
        }
    }
    // Each kind many times.
    use Kind::{Change, Insert, Remove, Reorder, Rewrite, Rollback, Truncate};
    for kind in [Change, Insert, Remove, Reorder, Truncate] {
        assert!(counts[&(false, kind)] > 600, "{kind:?}: {counts:?}");
    }
    for kind in [Change, Insert, Remove, Reorder, Rollback, Rewrite] {
        assert!(counts[&(true, kind)] > 250, "{kind:?}: {counts:?}");
    }
    // What the log key signs, an earlier state included, the key alone believes, as
    // docs/threat-model.md says: that it is found is the head's doing.
    assert_eq!(believed, by_holders);
}

fn texts() -> impl Strategy<Value = Option<String>> {
    proptest::option::of("\\PC{0,40}|[\\x00-\\x20\"\\\\\u{80}-\u{9f}\u{2028}]{0,9}|x{2000}")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_event_reads_back_and_every_changed_byte_is_found(
        texts in proptest::collection::vec(texts(), 6),
        level in 0_u64..6, seq in 0..=adit_ledger::MAX_INTEGER, time: u64, salt: [u8; 16],
        number: i64, erase: bool, at: prop::sample::Index, bit in 0..8,
    ) {
        let mut event = Event::new("x.y", Level::from_number(level).unwrap());
        event.actor = texts[0].clone();
        event.partner = texts[1].clone();
        event.reason = texts[2].clone();
        event.end_reason = texts[3].clone();
        let text = |i: usize| texts[i].clone().unwrap_or_default();
        let event = event.carrier(text(4)).extra(text(5), text(4)).extra_personal("n", number);
        let mut entry = Entry::seal(seq, time, event, salt);
        let leaf = entry.leaf();
        if erase {
            entry.erase();
        }
        let line = entry.to_line();
        let read = Entry::parse(line.as_bytes()).unwrap();
        prop_assert_eq!(&read, &entry);
        prop_assert_eq!(read.leaf(), leaf);
        let mut changed = line.into_bytes();
        let at = at.index(changed.len());
        changed[at] ^= 1_u8 << bit;
        let found = Entry::parse(&changed).map_or(true, |read| read.leaf() != leaf);
        prop_assert!(found);
    }

    #[test]
    fn decoders_accept_one_spelling_and_never_panic(
        data in proptest::collection::vec(any::<u8>(), 0..300), cut: prop::sample::Index,
        seed: u64,
    ) {
        prop_assert!(fuzz_line(&data));
        let log = Log::new("p1", 3);
        let mut export = log.lines(3).join("\n");
        export.push('\n');
        prop_assert!(fuzz_line(&mutate(export.as_bytes(), &mut Rng(seed))));
        for line in log.lines(3) {
            prop_assert!(fuzz_line(&mutate(line.as_bytes(), &mut Rng(seed))));
            prop_assert!(fuzz_line(&line.as_bytes()[..cut.index(line.len())]));
        }
    }
}

#[test]
fn heads_of_a_file_are_all_read_and_a_damaged_one_is_no_other_line() {
    let (one, other) = (Log::new("p1", 9), Log::new("p2", 5));
    // What stands between them may be anything, also longer than a line.
    let noise = "x".repeat(3 * adit_ledger::MAX_LINE_LEN);
    let text = [one.lines(9).join("\n"), noise, other.lines(5).join("\r\n")].join("\n");
    let heads = adit_ledger::read_heads(text.as_bytes()).unwrap();
    assert_eq!(heads, [one.head(9, 1), other.head(5, 1)]);
    let damaged = text.replace("\"tree\":\"p2\"", "\"tree\":\"p3\",");
    assert!(matches!(adit_ledger::read_heads(damaged.as_bytes()), Err(HeadsError::Line(_))));
    let entries = one.lines(9)[..9].join("\n");
    assert!(matches!(adit_ledger::read_heads(entries.as_bytes()), Err(HeadsError::Missing)));
}
