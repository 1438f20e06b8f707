//! A small repository for tests, whose program has what makes bits of ours differ: panics that tell
//! their place, generated code, C that tells its file, a macro crate of its own, and optionally a
//! culprit.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::{fs, path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    Findings,
    build::{self, Recipe},
    reproduce,
};

const MANIFEST: &str = "[package]\nname = \"fixture\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\
    [workspace]\nmembers = [\"macros\"]\n[dependencies]\nfixture-macros = { path = \"macros\" }\n\
    [profile.release]\nopt-level = 0\n";
const MACROS: &str = "[package]\nname = \"fixture-macros\"\nversion = \"0.1.0\"\n\
    edition = \"2024\"\n[lib]\nproc-macro = true\n";
const MACRO: &str = "#[proc_macro]\npub fn made(_: proc_macro::TokenStream) -> proc_macro::TokenStream \
    {\n    \"fn made() -> usize { panic!() }\".parse().unwrap()\n}\n";
const MAIN: &str = r#"include!(concat!(env!("OUT_DIR"), "/generated.rs"));
fixture_macros::made!();
unsafe extern "C" {
    safe fn place() -> *const std::ffi::c_char;
}
fn main() {
    println!("{:?} {} {:?}", option_env!("CULPRIT"), env!("COMMIT"), place());
    let at: usize = std::env::args().count();
    if at > 9 {
        [0, 1][at];
        generated(at);
        made();
    }
}
"#;
const PLACE: &str = "const char *place(void) { return __FILE__; }\n";
/// Compiles C by an absolute path and with the flags of the environment, as `cc` does.
const SCRIPT: &str = r#"use std::{env::var, process::Command};
fn main() {
    let (out, here) = (var("OUT_DIR").unwrap(), var("CARGO_MANIFEST_DIR").unwrap());
    let code = "fn generated(at: usize) -> usize { [1, 2][at] }";
    std::fs::write(format!("{out}/generated.rs"), code).unwrap();
    let (object, library) = (format!("{out}/place.o"), format!("{out}/libplace.a"));
    let mut cc = Command::new("cc");
    cc.args(var("CFLAGS").unwrap().split(' ')).args(["-c", "-o", &object]);
    assert!(cc.arg(format!("{here}/src/place.c")).status().unwrap().success());
    assert!(Command::new("ar").args(["crs", &library, &object]).status().unwrap().success());
    println!("cargo:rustc-link-search=native={out}\ncargo:rustc-link-lib=static=place");
    println!("cargo:rustc-env=COMMIT={}", var("ADIT_COMMIT").unwrap());
    // culprit
}
"#;

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
        let script = SCRIPT.replace("// culprit", culprit);
        let toolchain = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../rust-toolchain.toml");
        for (name, text) in [
            ("Cargo.toml", MANIFEST),
            ("build.rs", &script),
            ("src/main.rs", MAIN),
            ("src/place.c", PLACE),
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
            target: build::host().unwrap(),
            release: true,
            packages: vec!["fixture".to_owned()],
            programs: vec!["fixture".to_owned()],
            jobs: None,
        };
        let work = tempfile::tempdir().unwrap();
        reproduce::twice(&recipe, work.path())
    }
}
