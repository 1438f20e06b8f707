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

    /// Read of the list of users.
    const MAX_USERS_BYTES: u64 = 1024 * 1024;

    /// Makes the directory, and what is missing above it, with mode 0700. What was made is on disk
    /// when this returns.
    pub(in crate::datadir) fn create_private(path: &Path) -> io::Result<()> {
        let made: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        for parent in made.into_iter().filter_map(Path::parent) {
            match sync_directory(parent) {
                // One that others may pass through but not list; so it can only be hoped for.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                synced => synced?,
            }
        }
        Ok(())
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

    /// Does the system keep this user out of the directory? Above the data directory only
    /// passing through counts.
    pub(in crate::datadir) fn is_closed(path: &Path, whole: bool) -> bool {
        use rustix::fs::Access;
        let wanted = if whole {
            Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK
        } else {
            Access::EXEC_OK
        };
        path.is_dir() && rustix::fs::access(path, wanted) == Err(rustix::io::Errno::ACCESS)
    }

    /// A user of this machine.
    #[derive(Debug, PartialEq, Eq)]
    pub(in crate::datadir) struct User(u32);

    impl std::fmt::Display for User {
        fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            match user_name(self.0) {
                Some(name) => write!(formatter, "{name}"),
                None => write!(formatter, "user {}", self.0),
            }
        }
    }

    pub(in crate::datadir) fn owner(path: &Path) -> Option<User> {
        std::fs::metadata(path).ok().map(|metadata| User(metadata.uid()))
    }

    pub(in crate::datadir) fn this_user() -> User {
        User(rustix::process::geteuid().as_raw())
    }

    /// Users of directory services are not in the file: they are told by their number.
    fn user_name(user: u32) -> Option<String> {
        use std::io::Read;
        let mut text = String::new();
        File::open("/etc/passwd").ok()?.take(MAX_USERS_BYTES).read_to_string(&mut text).ok()?;
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, number) = (fields.next()?, fields.nth(1)?);
            (number.parse() == Ok(user)).then(|| name.to_owned())
        })
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

    /// Makes opening a symbolic link an error.
    pub(in crate::datadir) fn never_follow(options: &mut OpenOptions) {
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
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

    /// Access lists are the system's business: opening fails with the system's words.
    pub(in crate::datadir) fn is_closed(_path: &Path, _whole: bool) -> bool {
        false
    }

    pub(in crate::datadir) fn owner(_path: &Path) -> Option<&'static str> {
        None
    }

    pub(in crate::datadir) fn this_user() -> &'static str {
        "this user"
    }

    pub(in crate::datadir) fn check_secret(
        _path: &Path,
        _metadata: &Metadata,
    ) -> Result<(), CliError> {
        Ok(())
    }

    pub(in crate::datadir) fn set_mode(_options: &mut OpenOptions, _mode: u32) {}

    pub(in crate::datadir) fn never_follow(_options: &mut OpenOptions) {}

    pub(in crate::datadir) fn sync_directory(_path: &Path) -> io::Result<()> {
        Ok(())
    }
}
