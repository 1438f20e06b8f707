//! Dependencies that are declared but that no source of the package names.

use std::path::Path;

use anyhow::Result;

use super::{
    Findings,
    graph::{Declared, Graph, Kind},
    sources::{self, File},
};
use crate::process;

/// Dependencies that are needed without being named, with the reason.
const NEEDED: &[(&str, &str, &str)] = &[];

/// Checks every package of the workspace.
pub(crate) fn check_workspace() -> Result<Findings> {
    let files = sources::load()?;
    let mut findings = Vec::new();
    for (_, package) in Graph::load(None)?.members() {
        let dir = Path::new(&package.dir).strip_prefix(process::root())?;
        let dir = format!("{}/", dir.to_string_lossy().replace('\\', "/"));
        let own: Vec<_> =
            files.iter().filter(|f| f.is_rust() && f.path.starts_with(&dir)).collect();
        findings.extend(check(&package.name, &package.declared, &own, &dir, NEEDED));
    }
    Ok(findings)
}

fn check(
    package: &str,
    declared: &[Declared],
    files: &[&File],
    dir: &str,
    needed: &[(&str, &str, &str)],
) -> Findings {
    let mut findings = Vec::new();
    for dependency in declared {
        let word = dependency.name.replace('-', "_");
        let named = files.iter().any(|f| {
            let build = f.path.strip_prefix(dir) == Some("build.rs");
            build == (dependency.kind == Kind::Build) && names(&f.text, &word)
        });
        let excused = needed.iter().any(|(p, d, _)| *p == package && *d == dependency.name);
        let name = &dependency.name;
        match (named, excused) {
            (false, false) => {
                findings.push(format!("{package} declares {name} but does not use it"))
            }
            (true, true) => findings.push(format!("{package}: {name} is used: no excuse needed")),
            _ => {}
        }
    }
    findings
}

/// Whether a word occurs in code (comments do not count).
fn names(text: &str, word: &str) -> bool {
    text.lines().filter(|l| !l.trim_start().starts_with("//")).any(|line| {
        line.match_indices(word).any(|(at, _)| {
            let before = line.get(..at).and_then(|s| s.chars().next_back());
            let after = line.get(at + word.len()..).and_then(|s| s.chars().next());
            let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            !part(before) && !part(after)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{super::sources::file, *};

    fn findings(dependency: &str, kind: Kind, path: &str, text: &str) -> String {
        let declared = [Declared { name: dependency.into(), kind }];
        let file = file(path, text);
        check("adit-net", &declared, &[&file], "crates/net/", &[("adit-net", "excused", "why")])
            .join("\n")
    }

    #[test]
    fn finds_what_no_source_names() {
        let unused = "adit-net declares socket2 but does not use it";
        for (text, expected) in [
            ("use socket2::Socket;", ""),
            ("let s = socket2::Socket::new();", ""),
            ("use socket23::Socket;", unused),
            ("// use socket2::Socket;", unused),
            ("", unused),
        ] {
            let found = findings("socket2", Kind::Normal, "crates/net/src/lib.rs", text);
            assert_eq!(found, expected, "{text}");
        }
        let found = findings("n0-watcher", Kind::Normal, "crates/net/src/a.rs", "n0_watcher::W");
        assert_eq!(found, "");
    }

    #[test]
    fn build_scripts_and_sources_are_judged_apart() {
        let found = findings("protox", Kind::Build, "crates/net/src/lib.rs", "use protox::x;");
        assert!(found.contains("protox"));
        assert_eq!(findings("protox", Kind::Build, "crates/net/build.rs", "use protox::x;"), "");
    }

    #[test]
    fn an_excuse_must_be_needed() {
        let path = "crates/net/src/lib.rs";
        assert_eq!(findings("excused", Kind::Normal, path, ""), "");
        assert!(findings("excused", Kind::Normal, path, "use excused::A;").contains("no excuse"));
    }
}
