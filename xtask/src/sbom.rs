//! `cargo xtask sbom`: a bill of materials for each program, CycloneDX 1.6 as JSON.
//!
//! Made of what cargo resolves for one target and of the hashes in `Cargo.lock`: the same commit
//! gives the same bytes, wherever and whenever it is made. What only tests need is left out. A
//! component without a hash or a licence is an error, not a gap.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    ci::graph::{Graph, Id, Kind, Package},
    process,
};

/// Packages of the programs, and how the programs are called.
const PROGRAMS: [(&str, &str); 4] = [
    ("adit-mediator", "mediator"),
    ("adit-relay", "relay"),
    ("adit-agent", "agent-tunnel"),
    ("adit-console", "console-tunnel"),
];
const DEFAULT_TARGET: &str = "x86_64-unknown-linux-gnu";
/// What a source from crates.io begins with.
const REGISTRY: &str = "registry+";

/// Writes one file for each program.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let (mut target, mut output) = (DEFAULT_TARGET, PathBuf::from("target/sbom"));
    let mut root = process::root();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--target" => target = value,
            "--output" => output = value.into(),
            // Another checkout: releases are made of a clean one.
            "--root" => root = value.into(),
            _ => bail!("usage: cargo xtask sbom [--target TRIPLE] [--output DIR] [--root DIR]"),
        }
    }
    let output = process::root().join(output);
    fs::create_dir_all(&output)?;
    for (program, bill) in bills(&root, target)? {
        let file = output.join(format!("{program}-{target}.cdx.json"));
        fs::write(&file, format!("{bill:#}\n"))?;
        let count = bill.get("components").and_then(Value::as_array).map_or(0, Vec::len);
        println!("{}: {count} components", file.display());
    }
    Ok(())
}

/// Whether they can be made of what the workspace depends on now.
pub(crate) fn check() -> Result<Vec<String>> {
    let made = bills(&process::root(), DEFAULT_TARGET);
    Ok(made.err().map(|error| format!("bill of materials: {error:#}")).into_iter().collect())
}

fn bills(root: &Path, target: &str) -> Result<Vec<(&'static str, Value)>> {
    let graph = Graph::load_in(root, Some(target))?;
    let lock = fs::read_to_string(root.join("Cargo.lock"))?;
    let hashes = hashes(&lock)?;
    let of = |names: (&str, &'static str)| Ok((names.1, bill(&graph, &hashes, names, target)?));
    PROGRAMS.into_iter().map(of).collect()
}

/// SHA-256 of what was fetched, by name and version.
fn hashes(lock: &str) -> Result<BTreeMap<(String, String), String>> {
    let lock: toml::Table = toml::from_str(lock).context("Cargo.lock")?;
    let packages = lock.get("package").and_then(toml::Value::as_array);
    let text = |package: &toml::Value, key: &str| Some(package.get(key)?.as_str()?.to_owned());
    let of = |package: &toml::Value| {
        Some(((text(package, "name")?, text(package, "version")?), text(package, "checksum")?))
    };
    Ok(packages.into_iter().flatten().filter_map(of).collect())
}

/// What a program is made of. What runs only while it is built is marked as such.
fn bill(
    graph: &Graph,
    hashes: &BTreeMap<(String, String), String>,
    (package, program): (&str, &str),
    target: &str,
) -> Result<Value> {
    let root = graph.members().find(|(_, member)| member.name == package);
    let (root, own) = root.with_context(|| format!("there is no package {package}"))?;
    let shipped = reach(graph, root, |kind| kind == Kind::Normal);
    let all = reach(graph, root, |kind| kind != Kind::Dev);
    let (mut components, mut dependencies) = (Vec::new(), Vec::new());
    for (id, found) in all.iter().filter_map(|id| Some((*id, graph.packages.get(*id)?))) {
        if id != root {
            components.push(component(found, hashes, shipped.contains(id))?);
        }
        let next = found.edges.iter().filter(|(_, kind)| *kind != Kind::Dev);
        let next: BTreeSet<String> =
            next.filter_map(|(id, _)| graph.packages.get(id)).map(reference).collect();
        dependencies.push(json!({"ref": reference(found), "dependsOn": next}));
    }
    Ok(json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": reference(own),
                "name": program,
                "version": own.version,
                "licenses": [{"expression": licence(own)?}],
            },
            "properties": [{"name": "adit:target", "value": target}],
        },
        "components": components,
        "dependencies": dependencies,
    }))
}

fn component(
    package: &Package,
    hashes: &BTreeMap<(String, String), String>,
    shipped: bool,
) -> Result<Value> {
    let mut told = json!({
        "type": "library",
        "bom-ref": reference(package),
        "name": package.name,
        "version": package.version,
        "scope": if shipped { "required" } else { "excluded" },
        "licenses": [{"expression": licence(package)?}],
    });
    let Some(source) = &package.source else { return Ok(told) };
    ensure!(source.starts_with(REGISTRY), "{} comes from {source}", package.name);
    let hash = hashes.get(&(package.name.clone(), package.version.clone()));
    let hash = hash.with_context(|| format!("Cargo.lock has no hash of {}", package.name))?;
    if let Some(told) = told.as_object_mut() {
        told.insert("hashes".into(), json!([{"alg": "SHA-256", "content": hash}]));
        told.insert("purl".into(), reference(package).into());
    }
    Ok(told)
}

fn licence(package: &Package) -> Result<String> {
    let licence = package.license.as_ref();
    let licence = licence.with_context(|| format!("{} names no licence", package.name))?;
    // As cargo once had it; not SPDX.
    Ok(licence.replace('/', " OR "))
}

fn reference(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version.replace('+', "%2B"))
}

/// What can be reached over edges of some kinds, the beginning included.
fn reach<'a>(graph: &'a Graph, root: &'a Id, follow: impl Fn(Kind) -> bool) -> BTreeSet<&'a Id> {
    let (mut seen, mut stack) = (BTreeSet::new(), vec![root]);
    while let Some(id) = stack.pop() {
        if seen.insert(id) {
            let edges = graph.packages.get(id).into_iter().flat_map(|package| &package.edges);
            stack.extend(edges.filter(|(_, kind)| follow(*kind)).map(|(next, _)| next));
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ci::graph::fixture::graph;

    fn locked(names: &[&str]) -> BTreeMap<(String, String), String> {
        let of = |name: &&str| (((*name).to_owned(), "1.0.0".to_owned()), "ab".repeat(32));
        names.iter().map(of).collect()
    }

    const RELAY: (&str, &str) = ("adit-relay", "relay");

    #[test]
    fn a_bill_lists_what_is_shipped_and_built_with_and_nothing_of_tests() {
        let mut graph = graph(&[
            ("adit-relay", &["adit-net", "tokio", "dev:proptest"]),
            ("adit-net", &["rustls"]),
            ("adit-console", &["ratatui"]),
            ("rustls", &["aws-lc"]),
        ]);
        graph.packages.get_mut("aws-lc").unwrap().edges.insert(("cc".into(), Kind::Build));
        let cc = Package {
            name: "cc".into(),
            version: "1.0.0".into(),
            ..graph.packages["tokio"].clone()
        };
        graph.packages.insert("cc".into(), cc);
        let hashes = locked(&["tokio", "rustls", "aws-lc", "cc"]);
        let made = bill(&graph, &hashes, RELAY, "t").unwrap();
        let list = made["components"].as_array().unwrap();
        let named: Vec<_> = list
            .iter()
            .map(|c| (c["name"].as_str().unwrap(), c["scope"].as_str().unwrap()))
            .collect();
        assert_eq!(
            named,
            [
                ("adit-net", "required"),
                ("aws-lc", "required"),
                ("cc", "excluded"),
                ("rustls", "required"),
                ("tokio", "required"),
            ]
        );
        assert!(list.iter().all(|c| c["hashes"].is_array() == (c["name"] != "adit-net")));
        let refs: BTreeSet<_> = list.iter().map(|c| c["bom-ref"].as_str().unwrap()).collect();
        for told in made["dependencies"].as_array().unwrap() {
            for next in told["dependsOn"].as_array().unwrap() {
                assert!(refs.contains(next.as_str().unwrap()), "{next} is no component");
            }
        }
        assert_eq!(made, bill(&graph, &hashes, RELAY, "t").unwrap());
    }

    #[test]
    fn what_has_no_hash_licence_or_registry_is_an_error() {
        let spec: &[(&str, &[&str])] = &[("adit-relay", &["tokio"])];
        assert!(bill(&graph(spec), &locked(&["tokio"]), RELAY, "t").is_ok());
        assert!(bill(&graph(spec), &locked(&[]), RELAY, "t").is_err());
        for spoil in [
            |package: &mut Package| package.license = None,
            |package: &mut Package| package.source = Some("git+https://example.com/tokio".into()),
        ] {
            let mut graph = graph(spec);
            spoil(graph.packages.get_mut("tokio").unwrap());
            assert!(bill(&graph, &locked(&["tokio"]), RELAY, "t").is_err());
        }
    }

    #[test]
    fn hashes_are_read_of_the_lock() {
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nchecksum = \"ff\"\n\
                    [[package]]\nname = \"adit-x\"\nversion = \"0.1.0\"\n";
        let found = hashes(lock).unwrap();
        assert_eq!(found, BTreeMap::from([(("a".into(), "1.0.0".into()), "ff".into())]));
    }
}
