//! The dependency graph as cargo resolved it, reduced to what the checks look at.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context as _, Result};
use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::process;

/// A package's identity in the graph.
pub(crate) type Id = String;

/// How one package depends on another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    Normal,
    Build,
    Dev,
}

/// One resolved package.
#[derive(Clone, Default, Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Registry or repository; none for packages of the workspace.
    pub(crate) source: Option<String>,
    pub(crate) license: Option<String>,
    pub(crate) member: bool,
    /// Directory of the manifest.
    pub(crate) dir: String,
    /// What the manifest declares, by the name that sources use.
    pub(crate) declared: Vec<Declared>,
    /// What cargo resolved.
    pub(crate) edges: BTreeSet<(Id, Kind)>,
}

/// A dependency as the manifest declares it.
#[derive(Clone, Debug)]
pub(crate) struct Declared {
    /// Name in the manifest (the new one, if renamed).
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

/// All packages that the workspace reaches.
#[derive(Clone, Default, Debug)]
pub(crate) struct Graph {
    pub(crate) packages: BTreeMap<Id, Package>,
}

impl Graph {
    /// Of this workspace; with a target, only what is compiled for it.
    pub(crate) fn load(target: Option<&str>) -> Result<Self> {
        Self::load_in(&process::root(), target)
    }

    /// From `cargo metadata` in the root of a workspace.
    pub(crate) fn load_in(root: &Path, target: Option<&str>) -> Result<Self> {
        let mut options = vec!["--locked".to_owned()];
        if let Some(target) = target {
            options.extend(["--filter-platform".to_owned(), target.to_owned()]);
        }
        let metadata = MetadataCommand::new()
            .manifest_path(root.join("Cargo.toml"))
            .current_dir(root)
            .other_options(options)
            .exec()
            .context("cargo metadata failed: is Cargo.lock up to date and committed?")?;
        let members: BTreeSet<_> = metadata.workspace_members.iter().cloned().collect();
        let mut packages = BTreeMap::new();
        for package in &metadata.packages {
            let declared = package.dependencies.iter().map(|d| Declared {
                name: d.rename.clone().unwrap_or_else(|| d.name.clone()),
                kind: kind(d.kind),
            });
            packages.insert(
                package.id.repr.clone(),
                Package {
                    name: package.name.to_string(),
                    version: package.version.to_string(),
                    source: package.source.as_ref().map(ToString::to_string),
                    license: package.license.clone(),
                    member: members.contains(&package.id),
                    dir: package
                        .manifest_path
                        .parent()
                        .map(ToString::to_string)
                        .unwrap_or_default(),
                    declared: declared.collect(),
                    edges: BTreeSet::new(),
                },
            );
        }
        for node in metadata.resolve.context("cargo metadata resolved nothing")?.nodes {
            let Some(package) = packages.get_mut(&node.id.repr) else { continue };
            for dep in node.deps {
                for k in &dep.dep_kinds {
                    package.edges.insert((dep.pkg.repr.clone(), kind(k.kind)));
                }
            }
        }
        let compiled = compiled(root, target.unwrap_or("all"))?;
        packages.retain(|_, p| compiled.contains(&format!("{} v{}", p.name, p.version)));
        Ok(Self { packages }.reachable())
    }

    /// Packages of the workspace.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&Id, &Package)> {
        self.packages.iter().filter(|(_, p)| p.member)
    }

    /// The shortest way from a package to one whose name `wanted` accepts, over normal and build
    /// dependencies: names from the first to the last.
    pub(crate) fn way(&self, from: &Id, wanted: impl Fn(&str) -> bool) -> Option<Vec<String>> {
        let mut came: BTreeMap<&Id, &Id> = BTreeMap::new();
        let mut queue = std::collections::VecDeque::from([from]);
        while let Some(id) = queue.pop_front() {
            for (next, kind) in self.packages.get(id).into_iter().flat_map(|p| &p.edges) {
                if *kind == Kind::Dev || next == from || came.contains_key(next) {
                    continue;
                }
                came.insert(next, id);
                if self.packages.get(next).is_some_and(|p| wanted(&p.name)) {
                    let mut way = vec![next];
                    while let Some(before) = way.last().and_then(|id| came.get(id)) {
                        way.push(before);
                    }
                    let name = |id: &&Id| self.packages.get(*id).map(|p| p.name.clone());
                    return Some(way.iter().rev().filter_map(name).collect());
                }
                queue.push_back(next);
            }
        }
        None
    }

    /// Without packages that only left-out ones depend on.
    fn reachable(mut self) -> Self {
        let mut seen = BTreeSet::new();
        let mut stack: Vec<Id> = self.members().map(|(id, _)| id.clone()).collect();
        while let Some(id) = stack.pop() {
            if seen.insert(id.clone()) {
                let edges = self.packages.get(&id).into_iter().flat_map(|p| &p.edges);
                stack.extend(edges.map(|(next, _)| next.clone()));
            }
        }
        self.packages.retain(|id, _| seen.contains(id));
        self
    }

    /// Adds what another graph has (for the union over targets).
    pub(crate) fn merge(&mut self, other: Self) {
        for (id, package) in other.packages {
            self.packages.entry(id).or_insert(package);
        }
    }
}

/// What the feature resolver really compiles, as `name vVERSION`: metadata also names optional
/// dependencies that are off but mentioned by a weak feature (`ring?/std`).
fn compiled(root: &Path, target: &str) -> Result<BTreeSet<String>> {
    let mut tree = process::cargo_command();
    tree.current_dir(root);
    tree.args(["tree", "--locked", "--workspace", "--prefix", "none", "--format", "{p}"]);
    let list = process::output(tree.args(["--edges", "normal,build,dev", "--target", target]))?;
    Ok(list
        .lines()
        .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
        .collect())
}

fn kind(kind: DependencyKind) -> Kind {
    match kind {
        DependencyKind::Development => Kind::Dev,
        DependencyKind::Build => Kind::Build,
        _ => Kind::Normal,
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    use super::*;

    /// A graph of `name -> dependencies`; a leading `dev:` makes a dev-dependency. Names that
    /// begin with `adit-` are members.
    pub(crate) fn graph(spec: &[(&str, &[&str])]) -> Graph {
        let mut graph = Graph::default();
        let mut add = |name: &str| {
            let member = name.starts_with("adit-");
            let source = "registry+https://github.com/rust-lang/crates.io-index".to_owned();
            graph.packages.entry(name.into()).or_insert_with(|| Package {
                name: name.into(),
                version: "1.0.0".into(),
                source: (!member).then_some(source),
                license: Some("MIT OR Apache-2.0".into()),
                member,
                ..Package::default()
            });
        };
        for (name, deps) in spec {
            add(name);
            deps.iter().for_each(|d| add(d.trim_start_matches("dev:")));
        }
        for (name, deps) in spec {
            let edges = deps.iter().map(|d| match d.strip_prefix("dev:") {
                Some(d) => (d.to_owned(), Kind::Dev),
                None => ((*d).to_owned(), Kind::Normal),
            });
            graph.packages.get_mut(*name).unwrap().edges.extend(edges);
        }
        graph
    }
}
