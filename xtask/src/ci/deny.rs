//! Licences, bans, duplicates and sources of everything we compile, by the rules in `deny.toml`.
//!
//! The file is in cargo-deny's format. Where cargo-deny is installed it runs too (it also knows
//! advisories); this check needs nothing but cargo and reads the same file, so that the rules hold
//! on every machine. An allowance that nothing needs any more is a finding.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use cargo_metadata::semver::{Version, VersionReq};
use toml::Value;

use super::{
    Findings,
    graph::{Graph, Package},
    spdx,
};
use crate::process;

/// `deny.toml`, as far as this check goes.
#[derive(Debug)]
struct Config {
    targets: Vec<String>,
    licences: BTreeSet<String>,
    /// Licences allowed for one crate only.
    exceptions: Vec<(Spec, BTreeSet<String>)>,
    bans: Vec<Spec>,
    /// Duplicates that are known.
    skip: Vec<Spec>,
    registries: Vec<String>,
}

/// `name` or `name@requirement`, with the reason.
#[derive(Debug)]
struct Spec {
    name: String,
    version: VersionReq,
    reason: String,
}

/// Checks the workspace on all targets that `deny.toml` names.
pub(crate) fn check_workspace() -> Result<Findings> {
    let file = process::root().join("deny.toml");
    let config = Config::parse(&std::fs::read_to_string(file).context("deny.toml")?)?;
    let mut graph = Graph::default();
    for target in &config.targets {
        graph.merge(Graph::load(Some(target))?);
    }
    let findings = check(&graph, &config);
    if process::on_path("cargo-deny") {
        process::cargo(&["deny", "--offline", "check", "licenses", "bans", "sources"])?;
    }
    Ok(findings)
}

fn check(graph: &Graph, config: &Config) -> Findings {
    let mut findings = licences(graph, config);
    findings.extend(bans(graph, config));
    findings.extend(duplicates(graph, config));
    findings.extend(sources(graph, config));
    findings
}

fn licences(graph: &Graph, config: &Config) -> Findings {
    let mut findings = Vec::new();
    let mut used = BTreeSet::new();
    let mut excepted = BTreeSet::new();
    for package in graph.packages.values() {
        let Some(expression) = &package.license else {
            findings.push(format!("{} states no licence", of(package)));
            continue;
        };
        let mut ok = spdx::allowed(expression, &config.licences, &mut used);
        if matches!(ok, Ok(false)) {
            for (spec, more) in config.exceptions.iter().filter(|(s, _)| s.covers(package)) {
                let list = config.licences.union(more).cloned().collect();
                ok = spdx::allowed(expression, &list, &mut used);
                excepted.insert(spec.name.clone());
            }
        }
        match ok {
            Ok(true) => {}
            Ok(false) => {
                findings.push(format!("{}: licence not allowed: {expression}", of(package)));
            }
            Err(error) => findings.push(format!("{}: licence unreadable: {error:#}", of(package))),
        }
    }
    for unused in config.licences.difference(&used) {
        findings.push(format!("deny.toml allows the licence {unused}, which nothing needs"));
    }
    for (spec, _) in config.exceptions.iter().filter(|(s, _)| !excepted.contains(&s.name)) {
        findings.push(format!("deny.toml excepts {}, which does not need it", spec.name));
    }
    findings
}

fn bans(graph: &Graph, config: &Config) -> Findings {
    let mut findings = Vec::new();
    for spec in &config.bans {
        for (id, package) in graph.packages.iter().filter(|(_, p)| spec.covers(p)) {
            // Which of ours brought it, and on which way.
            let ways = graph.members().filter_map(|(m, _)| {
                graph.way(m, |n| n == package.name).filter(|_| graph.packages.contains_key(id))
            });
            let way = ways.min_by_key(Vec::len).unwrap_or_default().join(" → ");
            findings.push(format!("{} is banned: {} ({way})", of(package), spec.reason));
        }
    }
    findings
}

fn duplicates(graph: &Graph, config: &Config) -> Findings {
    let mut versions: BTreeMap<&str, Vec<&Package>> = BTreeMap::new();
    for package in graph.packages.values() {
        versions.entry(&package.name).or_default().push(package);
    }
    let mut findings = Vec::new();
    let mut needed = BTreeSet::new();
    for (name, packages) in versions.iter().filter(|(_, p)| p.len() > 1) {
        let kept = packages.iter().filter(|package| {
            let skip = config.skip.iter().position(|s| s.covers(package));
            needed.extend(skip);
            skip.is_none()
        });
        if kept.count() > 1 {
            let list: Vec<_> = packages.iter().map(|p| p.version.as_str()).collect();
            findings.push(format!("{name} is there {} times: {}", list.len(), list.join(", ")));
        }
    }
    for (at, spec) in config.skip.iter().enumerate() {
        if !needed.contains(&at) {
            let Spec { name, version, .. } = spec;
            findings.push(format!("deny.toml skips {name}@{version}, which is no duplicate"));
        }
    }
    findings
}

fn sources(graph: &Graph, config: &Config) -> Findings {
    let mut findings = Vec::new();
    for package in graph.packages.values() {
        match &package.source {
            None if !package.member => {
                findings.push(format!("{} is a path outside the workspace", of(package)));
            }
            Some(source)
                if !config.registries.iter().any(|r| source == &format!("registry+{r}")) =>
            {
                findings.push(format!("{} comes from {source}", of(package)));
            }
            _ => {}
        }
    }
    findings
}

fn of(package: &Package) -> String {
    format!("{} {}", package.name, package.version)
}

impl Spec {
    fn covers(&self, package: &Package) -> bool {
        self.name == package.name
            && Version::parse(&package.version).is_ok_and(|v| self.version.matches(&v))
    }

    /// From a table with `crate` and, so that nobody has to guess later, `reason`.
    fn parse(value: &Value) -> Result<Self> {
        let text = |key| value.get(key).and_then(Value::as_str);
        let spec = text("crate").with_context(|| format!("{value}: \"crate\" is missing"))?;
        let (name, version) = spec.split_once('@').unwrap_or((spec, "*"));
        Ok(Self {
            name: name.to_owned(),
            version: VersionReq::parse(version).with_context(|| spec.to_owned())?,
            reason: text("reason").with_context(|| format!("{spec}: state a reason"))?.to_owned(),
        })
    }
}

impl Config {
    fn parse(text: &str) -> Result<Self> {
        let file: toml::Table = text.parse().context("deny.toml is not TOML")?;
        let get = |section: &str, key: &str| -> Result<Vec<Value>> {
            let value = file.get(section).and_then(|s| s.get(key)).and_then(Value::as_array);
            value.cloned().with_context(|| format!("deny.toml: [{section}] {key} is missing"))
        };
        let exceptions = get("licenses", "exceptions")?;
        Ok(Self {
            targets: strings(&get("graph", "targets")?),
            licences: strings(&get("licenses", "allow")?).into_iter().collect(),
            exceptions: exceptions
                .iter()
                .map(|e| {
                    let allow = e.get("allow").and_then(Value::as_array);
                    let list = strings(allow.map_or(&[][..], Vec::as_slice));
                    Ok((Spec::parse_plain(e)?, list.into_iter().collect()))
                })
                .collect::<Result<_>>()?,
            bans: get("bans", "deny")?.iter().map(Spec::parse).collect::<Result<_>>()?,
            skip: get("bans", "skip")?.iter().map(Spec::parse).collect::<Result<_>>()?,
            registries: strings(&get("sources", "allow-registry")?),
        })
    }
}

impl Spec {
    /// Licence exceptions have no reason in cargo-deny's format.
    fn parse_plain(value: &Value) -> Result<Self> {
        let mut table = value.as_table().cloned().context("exceptions are tables")?;
        table.insert("reason".into(), Value::String(String::new()));
        Self::parse(&Value::Table(table))
    }
}

fn strings(values: &[Value]) -> Vec<String> {
    values.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::graph::fixture::graph, *};

    const CONFIG: &str = r#"
        [graph]
        targets = ["x86_64-unknown-linux-gnu"]
        [licenses]
        allow = ["MIT"]
        exceptions = [{ crate = "roots", allow = ["CDLA-Permissive-2.0"] }]
        [bans]
        deny = [
            { crate = "ring", reason = "one crypto stack" },
            { crate = "quinn-proto@<0.11.15", reason = "RUSTSEC-2026-0185" },
        ]
        skip = [{ crate = "old@1", reason = "known" }]
        [sources]
        allow-registry = ["https://github.com/rust-lang/crates.io-index"]
    "#;

    /// A graph on which everything holds.
    fn sound() -> Graph {
        let mut graph = graph(&[("adit-net", &["quinn-proto", "roots", "old", "old2"])]);
        let set = |graph: &mut Graph, id: &str, name: &str, version: &str| {
            let package = graph.packages.get_mut(id).unwrap();
            package.name = name.into();
            package.version = version.into();
        };
        set(&mut graph, "quinn-proto", "quinn-proto", "0.11.15");
        set(&mut graph, "old2", "old", "2.0.0");
        graph.packages.get_mut("roots").unwrap().license = Some("CDLA-Permissive-2.0".into());
        graph
    }

    fn findings(change: impl FnOnce(&mut Graph)) -> String {
        let mut graph = sound();
        change(&mut graph);
        check(&graph, &Config::parse(CONFIG).unwrap()).join("\n")
    }

    fn package<'a>(graph: &'a mut Graph, id: &str) -> &'a mut Package {
        graph.packages.get_mut(id).unwrap()
    }

    #[test]
    fn accepts_a_sound_graph() {
        assert_eq!(findings(|_| {}), "");
    }

    #[test]
    fn finds_licences_that_are_not_allowed_or_missing() {
        let found = findings(|g| package(g, "old").license = Some("GPL-3.0-only".into()));
        assert!(found.contains("old 1.0.0: licence not allowed: GPL-3.0-only"), "{found}");
        let found = findings(|g| package(g, "old").license = None);
        assert!(found.contains("old 1.0.0 states no licence"), "{found}");
        let found = findings(|g| package(g, "old").license = Some("Look/(".into()));
        assert!(found.contains("unreadable"), "{found}");
    }

    #[test]
    fn finds_banned_crates_and_versions() {
        let found = findings(|g| package(g, "old2").name = "ring".into());
        assert!(found.contains("ring 2.0.0 is banned: one crypto stack (adit-net → ring)"));
        let found = findings(|g| package(g, "quinn-proto").version = "0.11.14".into());
        assert!(found.contains("RUSTSEC-2026-0185"), "{found}");
    }

    #[test]
    fn finds_duplicates_that_nobody_has_judged() {
        let found = findings(|g| package(g, "old").version = "3.0.0".into());
        assert!(found.contains("old is there 2 times: 3.0.0, 2.0.0"), "{found}");
    }

    #[test]
    fn finds_other_sources() {
        let found = findings(|g| package(g, "old").source = Some("git+https://a.example".into()));
        assert!(found.contains("old 1.0.0 comes from git+https://a.example"), "{found}");
        let found = findings(|g| package(g, "old").source = None);
        assert!(found.contains("outside the workspace"), "{found}");
    }

    #[test]
    fn finds_allowances_that_nothing_needs() {
        let found = findings(|g| package(g, "roots").license = Some("MIT".into()));
        assert!(found.contains("excepts roots"), "{found}");
        let found = findings(|g| package(g, "old2").name = "new".into());
        assert!(found.contains("skips old@^1, which is no duplicate"), "{found}");
        let text = CONFIG.replace(r#"["MIT"]"#, r#"["MIT", "ISC"]"#);
        let found = check(&sound(), &Config::parse(&text).unwrap()).join("\n");
        assert!(found.contains("licence ISC, which nothing needs"), "{found}");
    }

    #[test]
    fn wants_a_reason_for_each_ban() {
        let text = CONFIG.replace(", reason = \"one crypto stack\"", "");
        let error = format!("{:#}", Config::parse(&text).unwrap_err());
        assert!(error.contains("ring: state a reason"), "{error}");
    }
}
