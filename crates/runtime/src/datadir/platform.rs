//! Modes and owners of files: Unix has them, elsewhere the directory inherits its parent's
//! access list (a user profile is private to its user).

#[cfg(not(unix))]
pub(super) use other::*;
#[cfg(unix)]
pub(super) use unix::*;

#[cfg(unix)]
mod unix {
    use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
    use std::io;
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
    use std::path::Path;

    use crate::cli::CliError;

    /// Anything for group or others.
    const OTHERS: u32 = 0o077;

    /// Makes the directory, and what is missing above it, with mode 0700.
    pub(in crate::datadir) fn create_private(path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    /// Tightens a directory that others may enter if it is ours and new or marked, else refuses.
    pub(in crate::datadir) fn check_private(path: &Path, marker: &str) -> Result<(), CliError> {
        let unreadable = |error: io::Error| super::super::unreadable(path, &error);
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        if metadata.mode() & OTHERS == 0 {
            return Ok(());
        }
        let own = metadata.uid() == rustix::process::geteuid().as_raw();
        if own && (path.join(marker).exists() || is_new(path).map_err(unreadable)?) {
            let tightened = std::fs::set_permissions(path, Permissions::from_mode(0o700));
            return tightened.map_err(|error| super::super::unwritable(path, &error));
        }
        let message = format!("other users can enter the data directory {}", path.display());
        Err(CliError::failed("data_dir_exposed", message)
            .hint("choose a directory of its own, or chmod 700 it as its owner"))
    }

    /// Nothing inside but configuration that somebody prepared for the first start.
    fn is_new(path: &Path) -> io::Result<bool> {
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let configuration = entry.path().extension().is_some_and(|end| end == "toml");
            if !configuration || !entry.file_type()?.is_file() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(in crate::datadir) fn check_writable(path: &Path) -> io::Result<()> {
        use rustix::fs::Access;
        Ok(rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)?)
    }

    pub(in crate::datadir) fn check_secret(
        path: &Path,
        metadata: &Metadata,
    ) -> Result<(), CliError> {
        if metadata.mode() & OTHERS == 0 {
            return Ok(());
        }
        let message = format!("other users can read the secret {}", path.display());
        Err(CliError::failed("secret_exposed", message)
            .hint("treat it as leaked, or chmod 600 it if you know it is not"))
    }

    pub(in crate::datadir) fn set_mode(options: &mut OpenOptions, mode: u32) {
        options.mode(mode);
    }

    /// A rename is durable once its directory is.
    pub(in crate::datadir) fn sync_directory(path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

#[cfg(not(unix))]
mod other {
    use std::fs::{Metadata, OpenOptions};
    use std::io;
    use std::path::Path;

    use crate::cli::CliError;

    pub(in crate::datadir) fn create_private(path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    pub(in crate::datadir) fn check_private(_path: &Path, _marker: &str) -> Result<(), CliError> {
        Ok(())
    }

    pub(in crate::datadir) fn check_writable(_path: &Path) -> io::Result<()> {
        Ok(())
    }

    pub(in crate::datadir) fn check_secret(
        _path: &Path,
        _metadata: &Metadata,
    ) -> Result<(), CliError> {
        Ok(())
    }

    pub(in crate::datadir) fn set_mode(_options: &mut OpenOptions, _mode: u32) {}

    pub(in crate::datadir) fn sync_directory(_path: &Path) -> io::Result<()> {
        Ok(())
    }
}
