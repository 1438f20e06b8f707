//! Names of partners, clients, computers and users: one line of harmless text, without `/`.

use adit_runtime::cli::escape_text;

/// Characters of a name.
pub(crate) const MAX_NAME_CHARS: usize = 64;

/// Why a name is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidName {
    /// Empty or too long.
    #[error("a name has 1 to {MAX_NAME_CHARS} characters")]
    Length,
    /// A character that names must not have.
    #[error(
        "a name has no \"/\", no control or invisible characters, no spaces at its ends, does not begin with \"-\", and is not \".\" or \"..\""
    )]
    Characters,
    /// Not `PARTNER/CLIENT`.
    #[error("PARTNER/CLIENT is expected")]
    Path,
}

/// Checks a name.
pub(crate) fn check(name: &str) -> Result<(), InvalidName> {
    if name.is_empty() || name.chars().count() > MAX_NAME_CHARS {
        return Err(InvalidName::Length);
    }
    let harmless = escape_text(name) == name
        && name.trim() == name
        && !name.starts_with('-')
        // What paths of the API and of file systems go up by (R41).
        && ![".", ".."].contains(&name)
        && !name.contains(['/', '\\', '"']);
    if harmless { Ok(()) } else { Err(InvalidName::Characters) }
}

/// Splits and checks `PARTNER/CLIENT`.
pub(crate) fn client_path(path: &str) -> Result<(&str, &str), InvalidName> {
    let (partner, client) = path.split_once('/').ok_or(InvalidName::Path)?;
    check(partner)?;
    check(client)?;
    Ok((partner, client))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        let long = "x".repeat(65);
        for bad in ["", " a", "-rf", "a/b", "a\u{1b}[2J", "a\u{202e}b", "a\"b", &long]
            .into_iter()
            .chain([".", "..", "../a", "..\\a", "a\0b", "/a", "\\a"])
        {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "Büro 東京", "srv-01.example"] {
            assert!(check(good).is_ok(), "{good}");
        }
        assert_eq!(client_path("a/b"), Ok(("a", "b")));
        assert!(client_path("a").is_err() && client_path("a/b/c").is_err());
    }
}
