//! The text files of the project, for the checks that read sources.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use crate::process;

/// One text file of the work tree.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// Relative to the root, with forward slashes.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl File {
    /// Whether the file holds Rust.
    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether it is part of natlab, a copy of a laboratory with a style of its own.
    pub(crate) fn is_natlab(&self) -> bool {
        self.path.starts_with("tests/natlab/")
    }

    /// The text before the unit tests.
    pub(crate) fn without_tests(&self) -> &str {
        self.text.split("#[cfg(test)]").next().unwrap_or_default()
    }
}

/// All text files that git knows or would add.
pub(crate) fn load() -> Result<Vec<File>> {
    let mut git = Command::new("git");
    git.current_dir(process::root());
    git.args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
    let list = process::output(&mut git).context("the checks on sources need the git work tree")?;
    let mut files = Vec::new();
    for path in list.split('\0').filter(|p| !p.is_empty()) {
        // Deleted but not committed yet, or not text: nothing to read.
        if let Ok(text) = fs::read_to_string(process::root().join(path)) {
            files.push(File { path: path.to_owned(), text });
        }
    }
    Ok(files)
}

#[cfg(test)]
pub(crate) fn file(path: &str, text: &str) -> File {
    File { path: path.into(), text: text.into() }
}
