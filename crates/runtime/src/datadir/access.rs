//! Whether a data directory is closed to this user, and whose it is. Never changes anything.

use std::path::{Path, PathBuf};

use super::platform;
use crate::cli::CliError;

/// The error for a path that this user may not use, because it or a directory above it belongs
/// to somebody else; `None` if it may be used, is not there, or is this user's own.
pub fn denied(path: &Path) -> Option<CliError> {
    let closed = closed_directory(path)?;
    let (owner, us) = (platform::owner(&closed)?, platform::this_user());
    if owner == us {
        return None;
    }
    let shown = path.display();
    let whose = if closed == path {
        format!("the data directory {shown} belongs to {owner}")
    } else {
        format!(
            "the data directory {shown} is out of reach: {} belongs to {owner}",
            closed.display()
        )
    };
    let message = format!("{whose}, and this runs as {us}");
    let hint = format!("run it as {owner}, or give a --data-dir of your own");
    Some(CliError::failed("data_dir_denied", message).hint(hint))
}

/// The outermost directory on the way to `path`, itself included, that is closed to this user.
fn closed_directory(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    let mut ways: Vec<&Path> = path.ancestors().collect();
    ways.reverse();
    let last = ways.len().saturating_sub(1);
    ways.into_iter()
        .enumerate()
        .find(|(index, way)| platform::is_closed(way, *index == last))
        .map(|(_, way)| way.to_owned())
}
