//! Which package may depend on which: the picture in ARCHITECTURE.md, as a table.
//!
//! Direct edges between packages of the workspace are listed; what must not be reached even over
//! others is forbidden by name. Dev-dependencies do not ship, so only the rules about programs and
//! tools hold for them.

use super::{
    Findings,
    graph::{Graph, Kind},
};

struct Rule {
    package: &'static str,
    /// Packages of the workspace it may depend on.
    may_use: &'static [&'static str],
    /// Crates it must not reach, directly or over others.
    never_reaches: &'static [&'static str],
}

const RUNTIMES: &[&str] =
    &["tokio", "mio", "socket2", "quinn", "quinn-proto", "rustls", "async-std"];
const SESSION_CODE: &[&str] = &["adit-core", "adit-endpoint"];

const RULES: &[Rule] = &[
    // Pure: wire and audit formats.
    Rule { package: "adit-protocol", may_use: &[], never_reaches: RUNTIMES },
    Rule { package: "adit-ledger", may_use: &["adit-protocol"], never_reaches: RUNTIMES },
    // Sans-IO.
    Rule { package: "adit-core", may_use: &["adit-protocol"], never_reaches: RUNTIMES },
    Rule { package: "adit-net", may_use: &["adit-protocol"], never_reaches: SESSION_CODE },
    Rule {
        package: "adit-control",
        may_use: &["adit-net", "adit-protocol"],
        never_reaches: SESSION_CODE,
    },
    Rule {
        package: "adit-endpoint",
        may_use: &["adit-control", "adit-core", "adit-ledger", "adit-net", "adit-protocol"],
        never_reaches: &[],
    },
    Rule { package: "adit-runtime", may_use: &["adit-protocol"], never_reaches: SESSION_CODE },
    // They contain no code that handles session plaintext.
    Rule {
        package: "adit-mediator",
        may_use: &["adit-control", "adit-ledger", "adit-net", "adit-protocol", "adit-runtime"],
        never_reaches: SESSION_CODE,
    },
    Rule {
        package: "adit-relay",
        may_use: &["adit-control", "adit-net", "adit-protocol", "adit-runtime"],
        never_reaches: SESSION_CODE,
    },
    Rule { package: "adit-agent", may_use: ENDS, never_reaches: &[] },
    Rule { package: "adit-console", may_use: ENDS, never_reaches: &[] },
    Rule { package: "adit-tests", may_use: &["*"], never_reaches: &[] },
    Rule { package: "adit-benches", may_use: &["*"], never_reaches: &[] },
    // What builds and signs releases shares nothing with what it builds.
    Rule { package: "adit-release", may_use: &[], never_reaches: &["tokio"] },
    // Compiled before anything else: none of ours.
    Rule { package: "adit-xtask", may_use: &[], never_reaches: &["tokio"] },
];

const ENDS: &[&str] = &[
    "adit-control",
    "adit-core",
    "adit-endpoint",
    "adit-ledger",
    "adit-net",
    "adit-protocol",
    "adit-runtime",
];
const PROGRAMS: &[&str] = &["adit-mediator", "adit-relay", "adit-agent", "adit-console"];
const TOOLS: &[&str] = &["adit-tests", "adit-benches", "adit-release", "adit-xtask"];

/// Every edge that the table does not allow.
pub(crate) fn check(graph: &Graph) -> Findings {
    let mut findings = Vec::new();
    for (id, package) in graph.members() {
        let name = package.name.as_str();
        let Some(rule) = RULES.iter().find(|r| r.package == name) else {
            findings.push(format!("{name} is not in the table of edges (xtask/src/ci/edges.rs)"));
            continue;
        };
        for (to, kind) in &package.edges {
            let Some(to) = graph.packages.get(to).filter(|p| p.member) else { continue };
            let to = to.name.as_str();
            if TOOLS.contains(&to) {
                findings.push(format!(
                    "{name} imports {to}: nothing imports tests, benches, release, xtask"
                ));
            } else if PROGRAMS.contains(&name) && PROGRAMS.contains(&to) {
                findings.push(format!("{name} imports {to}: programs never import each other"));
            } else if *kind != Kind::Dev && !rule.may_use.iter().any(|m| *m == "*" || *m == to) {
                findings.push(format!("{name} imports {to}: not an edge of the design"));
            }
        }
        for never in rule.never_reaches {
            if let Some(way) = graph.way(id, |n| n == *never) {
                findings.push(format!("{name} must never reach {never}: {}", way.join(" → ")));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{super::graph::fixture::graph, *};

    fn findings(spec: &[(&str, &[&str])]) -> String {
        check(&graph(spec)).join("\n")
    }

    #[test]
    fn accepts_the_design() {
        let found = findings(&[
            ("adit-ledger", &["adit-protocol", "sha2"]),
            ("adit-relay", &["adit-control", "tokio", "dev:adit-endpoint"]),
            ("adit-control", &["adit-net", "tokio"]),
            ("adit-console", &["adit-endpoint"]),
            ("adit-endpoint", &["adit-core", "quinn"]),
            ("adit-tests", &["adit-mediator"]),
        ]);
        assert_eq!(found, "");
    }

    #[test]
    fn finds_forbidden_edges_also_over_others() {
        for (spec, expected) in [
            (&[("adit-core", &["tokio"][..])][..], "adit-core must never reach tokio"),
            (&[("adit-core", &["x"]), ("x", &["quinn"])], "adit-core → x → quinn"),
            (&[("adit-protocol", &["mio"])], "adit-protocol must never reach mio"),
            (&[("adit-ledger", &["adit-net"])], "not an edge of the design"),
            (&[("adit-mediator", &["glue"]), ("glue", &["adit-core"])], "glue → adit-core"),
            (&[("adit-relay", &["adit-endpoint"])], "must never reach adit-endpoint"),
            (&[("adit-agent", &["dev:adit-console"])], "programs never import each other"),
            (
                &[("adit-net", &["dev:adit-xtask"])],
                "nothing imports tests, benches, release, xtask",
            ),
            (&[("adit-new", &[])], "adit-new is not in the table"),
        ] {
            let found = findings(spec);
            assert!(found.contains(expected), "{spec:?}: {found:?} lacks {expected:?}");
        }
    }
}
