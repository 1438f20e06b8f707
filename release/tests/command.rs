//! The command from beginning to end, on a small workspace that has the names of ours: a clean
//! clone, a signed release, its check by exit code, and the same release built again.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const PROGRAMS: [(&str, &str); 4] = [
    ("adit-mediator", "mediator"),
    ("adit-relay", "relay"),
    ("adit-agent", "agent-tunnel"),
    ("adit-console", "console-tunnel"),
];

struct Workspace(tempfile::TempDir);

impl Workspace {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let write = |name: &str, text: &str| {
            let file = root.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        let members = PROGRAMS.map(|(package, _)| format!("\"{package}\"")).join(", ");
        write("Cargo.toml", &format!("[workspace]\nresolver = \"3\"\nmembers = [{members}]\n"));
        for (package, program) in PROGRAMS {
            let manifest = format!(
                "[package]\nname = \"{package}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\
                 license = \"MIT\"\n[[bin]]\nname = \"{program}\"\npath = \"main.rs\"\n"
            );
            write(&format!("{package}/Cargo.toml"), &manifest);
            write(
                &format!("{package}/main.rs"),
                "fn main() {\n    println!(\"{}\", file!());\n}\n",
            );
        }
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let toolchain = fs::read_to_string(ours.join("rust-toolchain.toml")).unwrap();
        write("rust-toolchain.toml", &toolchain);
        write(".gitignore", "/target\n/xtask\n/key*\n");
        // Bills of materials are xtask's; asked by its own command, wherever it was built.
        let manifest = ours.join("Cargo.toml");
        let xtask = format!(
            "#!/bin/sh\ncd {} && exec cargo run --quiet --package adit-xtask --manifest-path {} -- \"$@\"\n",
            ours.display(),
            manifest.display()
        );
        write("xtask", &xtask);
        fs::set_permissions(root.join("xtask"), fs::Permissions::from_mode(0o755)).unwrap();
        let made = Self(dir);
        made.run("cargo", &["generate-lockfile", "--quiet", "--offline"]);
        made.run("git", &["init", "--quiet"]);
        made.commit();
        made
    }

    fn commit(&self) {
        self.run("git", &["add", "."]);
        let who = ["-c", "user.name=test", "-c", "user.email=test@example.com"];
        self.run("git", &[&who[..], &["commit", "--quiet", "--message", "test"]].concat());
    }

    fn run(&self, program: &str, args: &[&str]) {
        let status = Command::new(program).args(args).current_dir(self.0.path()).status();
        assert!(status.unwrap().success(), "{program} {args:?}");
    }

    /// What `cargo xtask release` says, and its exit code.
    fn release(&self, args: &[&str]) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_adit-release"));
        command
            .args(args)
            .current_dir(self.0.path())
            // As in a hook; what is cloned has a repository of its own.
            .env("GIT_DIR", self.0.path().join(".git"))
            .env("GIT_WORK_TREE", self.0.path())
            .env("ADIT_XTASK", self.0.path().join("xtask"));
        let Output { status, stdout, stderr } = command.output().unwrap();
        (status.code().unwrap(), String::from_utf8([stdout, stderr].concat()).unwrap())
    }

    fn head(&self) -> String {
        let mut git = Command::new("git");
        let told = git.args(["rev-parse", "HEAD"]).current_dir(self.0.path()).output().unwrap();
        String::from_utf8(told.stdout).unwrap().trim().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Names and contents of a release.
    fn files(&self, name: &str) -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(self.path(name)).unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        });
        let mut files: Vec<_> = entries.collect();
        files.sort();
        files
    }
}

#[test]
fn a_release_is_of_the_commit_signed_whole_and_the_same_when_made_again() {
    let workspace = Workspace::new();
    let (code, told) = workspace.release(&["keygen", "key"]);
    assert_eq!(code, 0, "{told}");
    let fingerprint = told.split_whitespace().find(|word| word.starts_with("sha256:")).unwrap();

    // What is not committed is not released, and not without asking.
    fs::write(workspace.path("adit-relay/main.rs"), "compile_error!(\"not committed\");").unwrap();
    let (code, told) = workspace.release(&[]);
    assert!(code == 2 && told.contains("the work tree has 1 changes"), "{told}");
    let (code, told) = workspace.release(&["--allow-dirty"]);
    assert!(code == 0 && told.contains("NOT SIGNED"), "{told}");
    // Whoever builds has no key at hand; whoever signs says what.
    assert_eq!(workspace.release(&["--allow-dirty", "--sign-key", "key"]).0, 2);
    let commit = workspace.head();
    let sign = |directory: &str, commit: &str| {
        workspace.release(&["sign", directory, "--commit", commit, "--sign-key", "key"])
    };
    let (code, told) = sign("target/dist", &commit.replace(|c| c < 'a', "0"));
    assert!(code == 1 && told.contains("refused: it is of commit"), "{told}");
    let (code, told) = sign("target/dist", &commit);
    assert!(code == 0 && told.contains(&commit), "{told}");
    let names: Vec<_> = workspace.files("target/dist").into_iter().map(|(name, _)| name).collect();
    let told = Command::new("rustc").arg("-vV").output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    let target = told.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let mut expected: Vec<_> =
        ["SHA256SUMS", "provenance.dsse.json", "release-key.pem"].map(String::from).into();
    for (_, program) in PROGRAMS {
        expected.extend([program.to_owned(), format!("{program}-{target}.cdx.json")]);
    }
    expected.sort();
    assert_eq!(names, expected);
    let verify = |key: &str| workspace.release(&["verify", "target/dist", "--key", key]);
    let (code, told) = verify(fingerprint);
    assert!(code == 0 && told.contains("all as signed"), "{told}");
    assert_eq!(verify("key.pub").0, 0);
    assert_eq!(verify("nowhere.pub").0, 2);

    // Made again, it is the same release.
    let (code, told) = workspace.release(&["--allow-dirty", "--output", "target/again"]);
    assert!(code == 0 && told.contains("NOT SIGNED"), "{told}");
    let (code, told) = workspace.release(&["verify", "target/again", "--key", "key.pub"]);
    assert!(code == 1 && told.contains("is not signed"), "{told}");
    assert_eq!(sign("target/again", &commit).0, 0);
    assert!(workspace.files("target/again") == workspace.files("target/dist"));

    // And by somebody who builds one program of it, elsewhere.
    let again = ["reproduce", "--allow-dirty", "--program", "relay", "--against", "target/dist"];
    let (code, told) = workspace.release(&again);
    assert!(code == 0 && told.contains("same bits: "), "{told}");

    // The next commit is another release.
    fs::write(workspace.path("adit-relay/main.rs"), "fn main() {}\n").unwrap();
    workspace.commit();
    let (code, told) = workspace.release(&["reproduce", "--against", "target/dist"]);
    assert!(
        code == 1 && told.contains("refused: relay has ") && told.contains("sections"),
        "{told}"
    );
    assert!(!told.contains("refused: mediator"), "{told}");
    fs::write(workspace.path("target/dist/relay"), "").unwrap();
    let (code, told) = verify(fingerprint);
    assert!(code == 1 && told.contains("refused: relay is not what was signed"), "{told}");
    // Nothing was checked out where it began.
    workspace.run("git", &["symbolic-ref", "--quiet", "HEAD"]);
}
