//! Reads secrets from stdin, files and the environment. Never prompts, never prints, keeps no
//! copy: what is read is zeroized when dropped.

use std::io::Read;
use std::path::Path;

use zeroize::Zeroizing;

use crate::{cli::CliError, people};

/// Longest secret, without its newline.
pub const MAX_SECRET_BYTES: usize = 4096;

/// Variable that may hold a token.
pub const TOKEN_VARIABLE: &str = "ADIT_TOKEN";

/// Reads one line from stdin and nothing after it, so that several secrets can follow each
/// other. `what` names it in errors: `password`.
pub fn from_stdin(what: &str) -> Result<Zeroizing<String>, CliError> {
    read_line(&mut platform::stdin(), what)
}

/// Warns on stderr if others may read a file with a secret that a command was given. Files of the
/// data directory are refused then; these are their owner's business.
pub fn warn_if_exposed(path: &Path) {
    if platform::is_exposed(path) {
        people::note(&format!(
            "other users can read the secret in {0}: chmod 600 {0}, and replace it if they may have",
            path.display()
        ));
    }
}

/// Reads the first line of a file.
pub fn from_file(path: &Path, what: &str) -> Result<Zeroizing<String>, CliError> {
    warn_if_exposed(path);
    let mut file = std::fs::File::open(path).map_err(|error| {
        let message = format!("cannot read the {what} from {}: {error}", path.display());
        CliError::usage("secret_unreadable", message)
    })?;
    read_line(&mut file, what)
}

/// Reads an environment variable; `None` if it is not set or empty.
pub fn from_env(variable: &str, what: &str) -> Result<Option<Zeroizing<String>>, CliError> {
    let Some(value) = std::env::var_os(variable).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let mut bytes = Zeroizing::new(value.into_encoded_bytes());
    check(&mut bytes, what).map(Some)
}

/// Reads stdin to its end, at most `max` bytes.
pub fn all_of_stdin(max: usize, what: &str) -> Result<Zeroizing<String>, CliError> {
    read_all(platform::stdin(), max, what)
}

/// Reads a file, at most `max` bytes.
pub fn all_of_file(path: &Path, max: usize, what: &str) -> Result<Zeroizing<String>, CliError> {
    let file = std::fs::File::open(path).map_err(|error| {
        let message = format!("cannot read the {what} from {}: {error}", path.display());
        CliError::usage("secret_unreadable", message)
    })?;
    read_all(file, max, what)
}

/// A token given as argument, as `-` on stdin, or in `ADIT_TOKEN` if there is no argument.
pub fn token(argument: Option<&str>) -> Result<Zeroizing<String>, CliError> {
    match argument {
        Some("-") => from_stdin("token"),
        Some(token) => check(&mut Zeroizing::new(token.as_bytes().to_vec()), "token"),
        None => from_env(TOKEN_VARIABLE, "token")?.ok_or_else(|| {
            CliError::usage("secret_missing", "there is no token")
                .hint("give it as argument, as - on stdin, or in ADIT_TOKEN")
        }),
    }
}

/// Byte by byte: a buffered read would take the next secret along.
fn read_line(reader: &mut impl Read, what: &str) -> Result<Zeroizing<String>, CliError> {
    // Room for "\r" and one byte too many: the buffer never moves and leaves no copy.
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES + 2));
    let mut byte = Zeroizing::new([0_u8; 1]);
    while line.len() < MAX_SECRET_BYTES + 2 {
        match reader.read(byte.as_mut_slice()) {
            Ok(0) => break,
            Ok(_) if *byte == [b'\n'] => break,
            Ok(_) => line.extend_from_slice(byte.as_slice()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                let message = format!("cannot read the {what}: {error}");
                return Err(CliError::usage("secret_unreadable", message));
            }
        }
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    check(&mut line, what)
}

fn read_all(from: impl Read, max: usize, what: &str) -> Result<Zeroizing<String>, CliError> {
    // Room for all of it: a buffer that moved would leave a copy.
    let mut bytes = Zeroizing::new(Vec::with_capacity(max.saturating_add(2)));
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    from.take(limit).read_to_end(&mut bytes).map_err(|error| {
        CliError::usage("secret_unreadable", format!("cannot read the {what}: {error}"))
    })?;
    check_within(&mut bytes, max, what)
}

fn check(bytes: &mut Zeroizing<Vec<u8>>, what: &str) -> Result<Zeroizing<String>, CliError> {
    check_within(bytes, MAX_SECRET_BYTES, what)
}

fn check_within(
    bytes: &mut Zeroizing<Vec<u8>>,
    max: usize,
    what: &str,
) -> Result<Zeroizing<String>, CliError> {
    if bytes.is_empty() {
        return Err(CliError::usage("secret_missing", format!("the {what} is empty"))
            .hint(format!("see that what should give the {what} printed or holds it")));
    }
    if bytes.len() > max {
        let message = format!("the {what} is longer than {max} bytes");
        return Err(CliError::usage("secret_invalid", message));
    }
    String::from_utf8(std::mem::take(&mut **bytes)).map(Zeroizing::new).map_err(|error| {
        drop(Zeroizing::new(error.into_bytes()));
        CliError::usage("secret_invalid", format!("the {what} is not UTF-8"))
    })
}

#[cfg(unix)]
mod platform {
    use std::{io::Read, path::Path};

    /// Standard input without the process-wide buffer, which would keep a copy.
    pub(super) struct Stdin(std::io::Stdin);

    pub(super) fn stdin() -> Stdin {
        Stdin(std::io::stdin())
    }

    /// May group or others do anything with the file? Pipes are whose they are.
    pub(super) fn is_exposed(path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).is_ok_and(|data| data.is_file() && data.mode() & 0o077 != 0)
    }

    impl Read for Stdin {
        fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
            Ok(rustix::io::read(&self.0, bytes)?)
        }
    }
}

#[cfg(not(unix))]
mod platform {
    pub(super) fn stdin() -> std::io::StdinLock<'static> {
        std::io::stdin().lock()
    }

    /// Access lists are the system's business.
    pub(super) fn is_exposed(_path: &std::path::Path) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_one_line_and_leaves_the_next() {
        let mut input: &[u8] = b" pass word \r\n123456\n";
        assert_eq!(read_line(&mut input, "password").unwrap().as_str(), " pass word ");
        assert_eq!(read_line(&mut input, "code").unwrap().as_str(), "123456");
        assert_eq!(read_line(&mut input, "code").unwrap_err().code, "secret_missing");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_may_read_is_seen_and_still_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "x\n").unwrap();
        for (mode, exposed) in [(0o600, false), (0o400, false), (0o640, true), (0o644, true)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(platform::is_exposed(&file), exposed, "{mode:o}");
            assert_eq!(from_file(&file, "password").unwrap().as_str(), "x");
        }
        assert!(!platform::is_exposed(Path::new("/dev/null")));
        assert!(!platform::is_exposed(&folder.path().join("none")));
    }

    #[test]
    fn refuses_what_is_too_long_or_no_text() {
        let longest = "x".repeat(MAX_SECRET_BYTES);
        assert!(read_line(&mut format!("{longest}\r\n").as_bytes(), "p").is_ok());
        let error = read_line(&mut format!("{longest}x\n").as_bytes(), "p").unwrap_err();
        assert_eq!(error.code, "secret_invalid");
        let error = read_line(&mut &b"secret\xff\n"[..], "p").unwrap_err();
        assert!(!format!("{error:?}").contains("115"), "bytes of the secret in {error:?}");
    }
}
