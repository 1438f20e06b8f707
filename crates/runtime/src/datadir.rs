//! The data directory: private to its owner, written atomically, locked by the running program.
//! Never follows a name that leaves the directory, never leaves a half-written file behind.

mod access;
mod part;
mod platform;

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroizing;

use crate::cli::CliError;

pub use access::denied;
pub use part::Part;

/// Files that hold secrets are small; a larger one is not ours.
pub const MAX_SECRET_BYTES: u64 = 1024 * 1024;

/// Tells that a directory is ours, so that its mode may be tightened. Without it `--data-dir
/// /tmp` by root would close `/tmp` to everybody.
const MARKER: &str = ".adit";

/// End of the name of a file that has not its own yet.
const TEMPORARY_END: &str = ".tmp";

/// An opened data directory.
#[derive(Debug, Clone)]
pub struct DataDir {
    path: PathBuf,
}

impl DataDir {
    /// Opens the directory, made with mode 0700 if it is not there.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, CliError> {
        let path = absolute(path.into())?;
        let unusable = |error| denied(&path).unwrap_or_else(|| unwritable(&path, &error));
        platform::create_private(&path).map_err(unusable)?;
        platform::check_writable(&path).map_err(unusable)?;
        platform::check_private(&path, MARKER)?;
        let directory = Self { path };
        if !directory.path.join(MARKER).exists() {
            directory.write_atomic(MARKER, b"", 0o600)?;
        }
        Ok(directory)
    }

    /// Opens the directory if it is there; exit code 4 otherwise.
    pub fn open_existing(path: impl Into<PathBuf>) -> Result<Self, CliError> {
        let path = path.into();
        if !path.is_dir() {
            if let Some(error) = denied(&path) {
                return Err(error);
            }
            let message = format!("there is no data directory {}", path.display());
            return Err(CliError::not_there("data_dir_missing", message).hint(
                "give the right one with --data-dir; init, join, enroll or login makes a new one",
            ));
        }
        Self::open(path)
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of a file inside; `name` must be relative and free of `..`.
    pub fn file(&self, name: &str) -> Result<PathBuf, CliError> {
        let mut components = Path::new(name).components().peekable();
        let inside = components.peek().is_some()
            && components.all(|component| matches!(component, Component::Normal(_)));
        if !inside || name.contains('\0') {
            return Err(CliError::failed("internal", format!("not a name for a file: {name:?}")));
        }
        Ok(self.path.join(name))
    }

    /// Whether a file of this name is there.
    pub fn has(&self, name: &str) -> bool {
        self.file(name).is_ok_and(|path| path.exists())
    }

    /// Replaces a file so that a crash leaves the old or the new contents, never a mixture.
    /// `mode` counts on Unix.
    pub fn write_atomic(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), CliError> {
        let path = self.file(name)?;
        self.make_folder(&path)
            .and_then(|()| replace(&path, bytes, mode))
            .map_err(|error| unwritable(&path, &error))
    }

    /// Makes sure that a file that is there stays there: who gave it its name may have been killed
    /// before that was on disk.
    pub fn settle(&self, name: &str) -> Result<(), CliError> {
        let path = self.file(name)?;
        self.sync_folders(&path, 1).map_err(|error| unwritable(&path, &error))
    }

    /// The folder of a file, on disk before anything is put into it: without it the file is gone,
    /// however often it was synced itself.
    fn make_folder(&self, file: &Path) -> std::io::Result<()> {
        platform::create_private(file.parent().unwrap_or(&self.path))?;
        // Also where it was there: who made it may not have come this far.
        self.sync_folders(file, 2)
    }

    /// Syncs those above a file, from the nth on up to this directory.
    fn sync_folders(&self, file: &Path, nth: usize) -> std::io::Result<()> {
        let mut above = file.ancestors().skip(nth).take_while(|path| path.starts_with(&self.path));
        above.try_for_each(platform::sync_directory)
    }

    /// Destroys a secret: written over, then removed, on disk when this returns; with what is left
    /// of replacing it by somebody who was killed. False if there was none of that name.
    pub fn destroy(&self, name: &str) -> Result<bool, CliError> {
        let path = self.file(name)?;
        let was_there = path.exists();
        let failed = |error: std::io::Error| {
            CliError::failed("data_dir_unwritable", format!("cannot erase a key: {error}"))
        };
        let folder = path.parent().unwrap_or(&self.path);
        for copy in copies(folder, &path).map_err(failed)? {
            shred(&copy).map_err(failed)?;
        }
        // Also where nothing was left: who removed it may not have come this far.
        if folder.exists() {
            platform::sync_directory(folder).map_err(failed)?;
        }
        Ok(was_there)
    }

    /// Contents of a file, at most `max_bytes`; `None` if there is none.
    pub fn read(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, CliError> {
        let path = self.file(name)?;
        let Some(file) = open_file(&path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        read_limited(file, &path, max_bytes, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Contents of a file that only its owner may read; refused if others may.
    pub fn read_secret(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, CliError> {
        let path = self.file(name)?;
        let file = open_file(&path)?.ok_or_else(|| {
            CliError::failed("file_missing", format!("{} is missing", path.display()))
                .hint("restore it from a backup, or set this program up again")
        })?;
        let metadata = file.metadata().map_err(|error| unreadable(&path, &error))?;
        platform::check_secret(&path, &metadata)?;
        // Allocated once, so that growing leaves no copy behind.
        let size = metadata.len().min(MAX_SECRET_BYTES) + 1;
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or(0)));
        read_limited(file, &path, MAX_SECRET_BYTES, &mut bytes)?;
        Ok(bytes)
    }

    /// Takes the lock that lets one program at a time run here. Held until dropped.
    pub fn lock(&self, name: &str) -> Result<FileLock, CliError> {
        let path = self.file(&format!("{name}.lock"))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        platform::set_mode(&mut options, 0o600);
        // Root may run this on the directory of a service's user, who must not choose what root
        // empties.
        platform::never_follow(&mut options);
        let mut file = options.open(&path).map_err(|error| unwritable(&path, &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(self.already_running(name, file)),
            Err(TryLockError::Error(error)) => return Err(unwritable(&path, &error)),
        }
        // Only to make the message of the next one helpful.
        let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
        Ok(FileLock { _file: file })
    }

    fn already_running(&self, name: &str, holder: File) -> CliError {
        let mut pid = String::new();
        let _ = holder.take(20).read_to_string(&mut pid);
        let who = match pid.parse::<u32>() {
            Ok(pid) => format!("process {pid}"),
            Err(_) => "another process".to_owned(),
        };
        let message = format!("{name} already runs on {} ({who})", self.path.display());
        CliError::failed("already_running", message)
            .hint("stop it first, or use another --data-dir")
    }
}

/// A held lock; the system releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

fn absolute(path: PathBuf) -> Result<PathBuf, CliError> {
    std::path::absolute(&path).map_err(|error| {
        CliError::usage("data_dir_unknown", format!("{} is no path: {error}", path.display()))
    })
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let start = temporary_start(name);
    let temporary = parent.join(format!("{start}{}.{count}{TEMPORARY_END}", std::process::id()));
    // A process with this number died here before.
    let _ = std::fs::remove_file(&temporary);
    let written = write_new(&temporary, bytes, mode)
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| platform::sync_directory(parent));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn temporary_start(name: &OsStr) -> String {
    format!(".{}.", name.to_string_lossy())
}

/// A file, and what of it did not get its name.
fn copies(folder: &Path, path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let start = path.file_name().map(temporary_start).unwrap_or_default();
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?.path();
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        if entry == path || (name.starts_with(&start) && name.ends_with(TEMPORARY_END)) {
            found.push(entry);
        }
    }
    Ok(found)
}

/// What a copying file system keeps all the same is for its owner to seal.
fn shred(path: &Path) -> std::io::Result<()> {
    let length = std::fs::metadata(path)?.len().min(MAX_SECRET_BYTES);
    let mut options = OpenOptions::new();
    platform::never_follow(options.write(true));
    let mut file = options.open(path)?;
    file.write_all(&vec![0; usize::try_from(length).unwrap_or(0)])?;
    file.sync_all()?;
    drop(file);
    std::fs::remove_file(path)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    platform::set_mode(&mut options, mode);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn open_file(path: &Path) -> Result<Option<File>, CliError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn read_limited(file: File, path: &Path, max: u64, bytes: &mut Vec<u8>) -> Result<(), CliError> {
    let read = file.take(max.saturating_add(1)).read_to_end(bytes);
    let read = read.map_err(|error| unreadable(path, &error))?;
    if u64::try_from(read).unwrap_or(u64::MAX) > max {
        let message = format!("{} is larger than {max} bytes", path.display());
        return Err(CliError::failed("file_too_large", message));
    }
    Ok(())
}

fn unreadable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::failed("data_dir_unreadable", format!("cannot read {}: {error}", path.display()))
        .hint("check the owner and mode of the data directory")
}

fn unwritable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::failed("data_dir_unwritable", format!("cannot write {}: {error}", path.display()))
        .hint("check owner, mode and free space, or choose another --data-dir")
}

#[cfg(test)]
mod tests;
