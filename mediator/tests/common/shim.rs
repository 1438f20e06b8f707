//! A disk and a clock that misbehave: `tests/faults/shim.c`, compiled once and preloaded.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The shim with its controls.
pub struct Shim {
    dir: tempfile::TempDir,
    library: PathBuf,
}

/// Something that happened to a file or a name under the folder that is watched.
#[derive(Clone, Debug)]
pub struct Op {
    /// Below that folder; the folder itself is "".
    pub path: String,
    pub act: Act,
    /// Where the journal is after it.
    pub end: usize,
}

#[derive(Clone, Debug)]
pub enum Act {
    Write {
        offset: usize,
        bytes: Vec<u8>,
    },
    Truncate(usize),
    /// Of a file, or of the names in a folder.
    Sync,
    Made,
    FolderMade,
    Removed,
    Renamed(String),
}

impl Shim {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("shim.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/shim.c");
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .args(["-ldl", "-lpthread"])
            .status()
            .unwrap();
        assert!(made.success(), "the shim does not compile");
        Self { dir, library }
    }

    /// Makes a command run with it.
    pub fn on(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env("ADIT_FAULT", self.dir.path());
    }

    /// `n` nothing, `w` EIO on writes, `s` EIO on syncs, `f` no space.
    pub fn mode(&self, mode: &str) {
        self.set("mode", mode);
    }

    /// Seconds added to the time of day.
    pub fn clock(&self, seconds: i64) {
        self.set("clock", &seconds.to_string());
    }

    fn set(&self, name: &str, text: &str) {
        // Readers see the old or the new, never half of it.
        let part = self.dir.path().join(format!("{name}.part"));
        std::fs::write(&part, text).unwrap();
        std::fs::rename(part, self.dir.path().join(name)).unwrap();
    }

    fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    /// Begins to write down what happens on disk in that folder, in programs started from now on.
    pub fn record(&self, folder: &Path) {
        self.set("root", folder.to_str().unwrap());
        std::fs::write(self.journal(), b"").unwrap();
    }

    /// How much was written down.
    pub fn recorded(&self) -> usize {
        usize::try_from(std::fs::metadata(self.journal()).unwrap().len()).unwrap()
    }

    /// What was written down.
    pub fn ops(&self) -> Vec<Op> {
        let journal = std::fs::read(self.journal()).unwrap();
        let (mut at, mut ops) = (0, Vec::new());
        let number = |at: usize| {
            usize::try_from(u64::from_le_bytes(journal[at..at + 8].try_into().unwrap())).unwrap()
        };
        while at + 25 <= journal.len() {
            let act = journal[at];
            let (offset, named, length) = (number(at + 1), number(at + 9), number(at + 17));
            at += 25;
            // What it writes when it is killed may be half.
            let Some(path) = journal.get(at..at + named) else { break };
            let path = String::from_utf8(path.to_vec()).unwrap();
            at += named;
            let Some(bytes) = journal.get(at..at + length) else { break };
            at += length;
            let act = match act {
                b'w' => Act::Write { offset, bytes: bytes.to_vec() },
                b't' => Act::Truncate(offset),
                b's' => Act::Sync,
                b'c' => Act::Made,
                b'm' => Act::FolderMade,
                b'u' => Act::Removed,
                b'r' => Act::Renamed(String::from_utf8(bytes.to_vec()).unwrap()),
                other => panic!("{other}"),
            };
            ops.push(Op { path, act, end: at });
        }
        ops
    }
}
