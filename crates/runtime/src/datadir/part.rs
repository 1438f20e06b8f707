//! A file that gets its name only when it is whole. Must never leave half a file under that name.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::platform;

/// A file in the making, readable by its owner alone. Named with `.part` added until
/// [`Part::finish`]; dropped before, it is removed.
#[derive(Debug)]
pub struct Part {
    file: File,
    part: PathBuf,
    path: PathBuf,
    done: bool,
}

impl Part {
    /// Begins the file that will be at `path`.
    ///
    /// # Errors
    ///
    /// If the path names no file, or the folder cannot be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        if path.file_name().is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no name of a file"));
        }
        // A device, a pipe or a link would be gone once the file takes its name.
        if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) {
            let why = "what has this name is no regular file, and is not replaced";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        let part = path.with_added_extension("part");
        // Anew, so that neither a link nor another's mode is taken over.
        match fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        platform::set_mode(&mut options, 0o600);
        let file = options.open(&part)?;
        Ok(Self { file, part, path: path.to_owned(), done: false })
    }

    /// Adds to it.
    ///
    /// # Errors
    ///
    /// As writing a file.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Makes it durable and gives it its name, in place of what was there.
    ///
    /// # Errors
    ///
    /// As writing a file; nothing has the name then that had not before.
    pub fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.part, &self.path)?;
        self.done = true;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        platform::sync_directory(folder.unwrap_or(Path::new(".")))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.done {
            // Best effort: what is left is named .part.
            let _ = fs::remove_file(&self.part);
        }
    }
}
