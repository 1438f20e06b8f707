//! A small repository for tests, whose program has what makes bits of ours differ: panics that tell
//! their place, generated code, a macro crate of its own, and optionally a culprit.

use std::{fs, path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    Findings,
    build::{self, DEFAULT_TARGET, Recipe},
    reproduce,
};

const MANIFEST: &str = "[package]\nname = \"fixture\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\
    [workspace]\nmembers = [\"macros\"]\n[dependencies]\nfixture-macros = { path = \"macros\" }\n\
    [profile.release]\nopt-level = 0\n";
const MACROS: &str = "[package]\nname = \"fixture-macros\"\nversion = \"0.1.0\"\n\
    edition = \"2024\"\n[lib]\nproc-macro = true\n";
const MACRO: &str = "#[proc_macro]\npub fn made(_: proc_macro::TokenStream) -> proc_macro::TokenStream \
    {\n    \"fn made() -> usize { panic!() }\".parse().unwrap()\n}\n";
const MAIN: &str = "include!(concat!(env!(\"OUT_DIR\"), \"/generated.rs\"));\n\
    fixture_macros::made!();\nfn main() {\n    println!(\"{:?} {}\", option_env!(\"CULPRIT\"), \
    env!(\"COMMIT\"));\n    let at: usize = std::env::args().count();\n    if at > 9 { \
    [0, 1][at]; generated(at); made(); }\n}\n";

/// The repository, committed.
pub(crate) struct Fixture {
    directory: tempfile::TempDir,
    commit: String,
}

impl Fixture {
    /// With a line more in its build script.
    pub(crate) fn new(culprit: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let script = format!(
            "fn main() {{\n    let out = std::env::var(\"OUT_DIR\").unwrap();\n    \
             std::fs::write(out + \"/generated.rs\", \
             \"fn generated(at: usize) -> usize {{ [1, 2][at] }}\").unwrap();\n    \
             println!(\"cargo:rustc-env=COMMIT={{}}\", std::env::var(\"ADIT_COMMIT\").unwrap());\n    \
             {culprit}\n}}\n"
        );
        let toolchain = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../rust-toolchain.toml");
        for (name, text) in [
            ("Cargo.toml", MANIFEST),
            ("build.rs", &script),
            ("src/main.rs", MAIN),
            ("macros/Cargo.toml", MACROS),
            ("macros/src/lib.rs", MACRO),
            ("rust-toolchain.toml", &fs::read_to_string(toolchain).unwrap()),
        ] {
            let file = root.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let run = |program: &str, args: &[&str]| {
            build::run(Command::new(program).args(args).current_dir(root)).unwrap();
        };
        run("cargo", &["generate-lockfile", "--quiet", "--offline"]);
        run("git", &["init", "--quiet"]);
        run("git", &["add", "."]);
        let who = ["-c", "user.name=fixture", "-c", "user.email=fixture@example.com"];
        run("git", &[&who[..], &["commit", "--quiet", "--message", "fixture"]].concat());
        let commit = build::git(root, &["rev-parse", "HEAD"]).unwrap();
        Self { directory, commit }
    }

    /// Both builds, and what differs.
    pub(crate) fn twice(&self) -> Result<Findings> {
        let recipe = Recipe {
            repository: self.directory.path().to_owned(),
            commit: self.commit.clone(),
            target: DEFAULT_TARGET.to_owned(),
            release: true,
            packages: vec!["fixture".to_owned()],
            programs: vec!["fixture".to_owned()],
            jobs: None,
        };
        let work = tempfile::tempdir().unwrap();
        reproduce::twice(&recipe, work.path())
    }
}
