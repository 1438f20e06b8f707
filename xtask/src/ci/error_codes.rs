//! Every failure code that a program can print stands in `docs/errors.md`, and nothing else does.

use std::collections::BTreeMap;

use super::{Findings, sources::File};

const TABLE: &str = "docs/errors.md";
/// Codes of control failures, channels and joins.
const CODES: &str = "crates/protocol/src/code.rs";
/// Constructors of command-line errors whose first argument is the code.
const CONSTRUCTORS: &[&str] = &["failed", "usage", "refused", "not_there", "no_path", "new"];

/// Compares what the sources use with what the table lists.
pub(crate) fn check(files: &[File]) -> Findings {
    let mut used = BTreeMap::new();
    for file in files.iter().filter(|f| f.is_rust() && is_product(&f.path)) {
        for code in codes(file) {
            used.entry(code).or_insert_with(|| file.path.clone());
        }
    }
    let table = files.iter().find(|f| f.path == TABLE).map_or("", |f| f.text.as_str());
    let listed: Vec<_> = table.lines().filter_map(row).collect();
    let missing = used.iter().filter(|(code, _)| !listed.contains(&code.as_str()));
    let mut findings: Findings =
        missing.map(|(code, path)| format!("{TABLE} lacks {code}, used in {path}")).collect();
    let spare = listed.iter().filter(|code| !used.contains_key(**code));
    findings.extend(spare.map(|code| format!("{TABLE} lists {code}, which nothing uses")));
    findings
}

fn is_product(path: &str) -> bool {
    let programs = ["mediator/", "relay/", "agent-tunnel/", "console-tunnel/", "crates/"];
    programs.iter().any(|p| path.starts_with(p))
        && path.contains("/src/")
        && !path.contains("tests")
}

/// The code in a table row: `| `code` | …`.
fn row(line: &str) -> Option<&str> {
    let code = line.strip_prefix("| `")?.split('`').next()?;
    is_code(code).then_some(code)
}

fn codes(file: &File) -> Vec<String> {
    let text = file.without_tests();
    let mut found = Vec::new();
    // Conversions into the error call it `Self`.
    let own = text.contains("for CliError {") || text.contains("impl CliError {");
    for kind in ["CliError::", "Self::"].into_iter().take(if own { 2 } else { 1 }) {
        for (at, _) in text.match_indices(kind) {
            let rest = text.get(at + kind.len()..).unwrap_or_default();
            let Some((name, arguments)) = rest.split_once('(') else { continue };
            if CONSTRUCTORS.contains(&name) {
                found.extend(literal(arguments.trim_start()));
            }
        }
    }
    if file.path == CODES {
        for line in text.lines() {
            let value = line.split_once("&str = ").or_else(|| line.split_once("=> "));
            found.extend(value.and_then(|(_, v)| literal(v)));
        }
    }
    found
}

/// The string literal at the beginning of the text, if it looks like a code.
fn literal(text: &str) -> Option<String> {
    let code = text.strip_prefix('"')?.split('"').next()?;
    is_code(code).then(|| code.to_owned())
}

fn is_code(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::{super::sources::file, *};

    const SOURCE: &str = "//! A.\nfn a() { CliError::failed(\n  \"port_in_use\", x); \
        CliError::interrupted(); self.report(\"other\") }\n\
        #[cfg(test)]\nfn t() { CliError::usage(\"only_in_tests\", x) }\n";

    fn findings(table: &str) -> String {
        let codes = "pub const BUSY: &str = \"busy\";\nSelf::Idle => \"idle\",";
        let conversion = "impl From<X> for CliError {\n Self::refused(\"converted\", x) }";
        let files = [
            file("relay/src/a.rs", SOURCE),
            file("crates/runtime/src/local/client.rs", conversion),
            file("relay/src/b.rs", "impl Relay { fn a() { Self::new(\"not_a_code\") } }"),
            file("xtask/src/a.rs", "CliError::failed(\"not_ours\")"),
            file(CODES, codes),
            file(TABLE, table),
        ];
        check(&files).join("\n")
    }

    #[test]
    fn compares_sources_and_table() {
        let rows = "| `port_in_use` | 1 |\n| `busy` | 1 |\n| `idle` | – |\n| `converted` | 3 |\n";
        assert_eq!(findings(rows), "");
        let found = findings(&rows.replace("port_in_use", "gone"));
        assert!(found.contains("lacks port_in_use, used in relay/src/a.rs"), "{found}");
        assert!(found.contains("lists gone, which nothing uses"), "{found}");
        assert!(findings("").contains("lacks idle") && findings("").contains("lacks converted"));
    }
}
