//! House rules that no other tool checks: file length, headers, left-overs, clocks in pure
//! crates, files that must be there.

use super::{Findings, sources::File};

/// Above 600 lines think where the seam is; this is where it must be.
const MAX_LINES: usize = 1_000;

/// What the repository's root must hold.
const REQUIRED: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "deny.toml",
    "docs/errors.md",
    "docs/protocol.md",
    "rust-toolchain.toml",
];

/// Left-overs; written in two halves, or this file would be its own finding.
const LEFT_OVERS: &[&str] =
    &[concat!("to", "do!("), concat!("unimple", "mented!("), concat!("db", "g!(")];

/// Marks of work to do, which need an issue's number.
const MARKS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];

/// Crates whose functions are given time and randomness and touch no outside world.
const PURE: &[&str] = &["crates/protocol/src/", "crates/ledger/src/", "crates/core/src/"];

/// What pure crates must not call.
const IMPURE: &[&str] = &[
    "Instant::now(",
    "SystemTime::now(",
    "std::fs",
    "std::thread",
    "std::process",
    "net::UdpSocket",
    "net::TcpStream",
    "net::TcpListener",
    "rand::rng()",
    "thread_rng()",
];

/// All findings in the given files.
pub(crate) fn check(files: &[File]) -> Findings {
    let mut findings = Vec::new();
    for required in REQUIRED {
        if !files.iter().any(|f| f.path == *required && !f.text.trim().is_empty()) {
            findings.push(format!("{required} is missing or empty"));
        }
    }
    for file in files.iter().filter(|f| !f.is_natlab()) {
        marks(file, &mut findings);
        if file.is_rust() {
            rust(file, &mut findings);
        }
    }
    findings
}

fn rust(file: &File, findings: &mut Findings) {
    let path = &file.path;
    let lines = file.text.lines().count();
    if lines > MAX_LINES {
        findings.push(format!("{path} has {lines} lines, more than {MAX_LINES}: find the seam"));
    }
    if !file.text.starts_with("//! ") {
        findings.push(format!("{path} does not begin with //! and what it is for"));
    }
    for (number, line) in numbered(&file.text) {
        for what in LEFT_OVERS.iter().filter(|w| line.contains(**w)) {
            findings.push(format!("{path}:{number} has a left-over {what}…)"));
        }
    }
    if PURE.iter().any(|p| path.starts_with(p)) && !path.contains("/tests") {
        for (number, line) in numbered(file.without_tests()) {
            let code = line.split("//").next().unwrap_or_default();
            for what in IMPURE.iter().filter(|w| code.contains(**w)) {
                findings.push(format!("{path}:{number} uses {what}: this crate is pure"));
            }
        }
    }
}

fn marks(file: &File, findings: &mut Findings) {
    for (number, line) in numbered(&file.text) {
        for mark in MARKS {
            let Some((before, after)) = line.split_once(mark) else { continue };
            let word = before.chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '_');
            let ends = after.chars().next().is_none_or(|c| !c.is_alphanumeric() && c != '_');
            let issue = after
                .split_once('#')
                .is_some_and(|(_, n)| n.starts_with(|c: char| c.is_ascii_digit()));
            if word && ends && !issue {
                let path = &file.path;
                findings.push(format!("{path}:{number}: {mark} without the issue's number (#n)"));
            }
        }
    }
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(at, line)| (at + 1, line))
}

#[cfg(test)]
mod tests {
    use super::{super::sources::file, *};

    fn findings(path: &str, text: &str) -> String {
        let mut files: Vec<_> = REQUIRED.iter().map(|r| file(r, "there")).collect();
        files.push(file(path, text));
        check(&files).join("\n")
    }

    #[test]
    fn accepts_tidy_files() {
        assert_eq!(findings("relay/src/a.rs", "//! What it is for.\nfn a() {}\n"), "");
        let tests = "//! Pure.\n#[cfg(test)]\nfn t() { Instant::now(); }\n";
        assert_eq!(findings("crates/core/src/a.rs", tests), "");
    }

    #[test]
    fn finds_long_files() {
        let text = format!("//! Long.\n{}", "\n".repeat(MAX_LINES));
        assert!(findings("a.rs", &text).contains("1001 lines"));
        assert_eq!(findings("tests/natlab/usernat.rs", &text), "");
    }

    #[test]
    fn finds_missing_headers() {
        assert!(findings("a.rs", "fn a() {}\n").contains("does not begin with //!"));
    }

    #[test]
    fn finds_left_overs() {
        for what in LEFT_OVERS {
            let text = format!("//! A.\nfn a() {{ {what}) }}\n");
            assert!(findings("a.rs", &text).contains("a.rs:2 has a left-over"), "{what}");
        }
    }

    #[test]
    fn finds_marks_without_an_issue() {
        for mark in MARKS {
            assert!(findings("a.md", &format!("x\n{mark} later")).contains("a.md:2"), "{mark}");
        }
        assert_eq!(findings("a.md", &format!("{} (#12): later", MARKS[0])), "");
        assert_eq!(findings("a.md", &format!("no{}s here", MARKS[0])), "");
    }

    #[test]
    fn finds_clocks_and_sockets_in_pure_crates() {
        for what in IMPURE {
            let text = format!("//! A.\nfn a() {{ {what} }}\n");
            assert!(findings("crates/core/src/a.rs", &text).contains("is pure"), "{what}");
            assert_eq!(findings("crates/net/src/a.rs", &text), "");
        }
    }

    #[test]
    fn finds_missing_files() {
        let found = check(&[file("README.md", "there"), file("CHANGELOG.md", " ")]).join("\n");
        assert!(found.contains("LICENSE-MIT is missing") && found.contains("CHANGELOG.md is"));
        assert!(!found.contains("README.md"));
    }
}
