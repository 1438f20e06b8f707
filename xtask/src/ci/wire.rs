//! The wire does not change without its description: a change of `adit.proto` or of the records
//! needs one of `docs/protocol.md`, in the last commit or in the work tree.

use std::{env, process::Command};

use anyhow::Result;

use super::Findings;
use crate::process;

/// What the other end sees.
const WIRE: &[&str] = &["crates/protocol/proto/", "crates/protocol/src/record.rs"];
const DESCRIPTION: &str = "docs/protocol.md";

/// Judges the range in `ADIT_WIRE_BASE` (a pull request's base, set by CI), or the last commit,
/// together with what is not committed yet.
pub(crate) fn check() -> Result<Findings> {
    let base = env::var("ADIT_WIRE_BASE").unwrap_or_else(|_| "HEAD~1".into());
    let known = git(&["rev-parse", "--verify", "--quiet", &format!("{base}^{{commit}}")]).is_ok();
    let mut changed = git(&["ls-files", "--others", "--exclude-standard"])?;
    // The first commit has nothing before it: all of it is judged by what is not committed.
    changed += &git(&["diff", "--name-only", if known { &base } else { "HEAD" }])?;
    Ok(judge(&changed.lines().map(str::to_owned).collect::<Vec<_>>()))
}

fn judge(changed: &[String]) -> Findings {
    let described = changed.iter().any(|p| p == DESCRIPTION);
    let wire = changed.iter().filter(|p| WIRE.iter().any(|w| p.starts_with(w)));
    wire.filter(|_| !described).map(|p| format!("{p} changed, but {DESCRIPTION} did not")).collect()
}

fn git(args: &[&str]) -> Result<String> {
    process::output(Command::new("git").current_dir(process::root()).args(args))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(changed: &[&str]) -> Findings {
        judge(&changed.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn wants_the_description_along() {
        assert_eq!(findings(&["crates/protocol/proto/adit.proto"]).len(), 1);
        assert_eq!(findings(&["crates/protocol/src/record.rs", "README.md"]).len(), 1);
        assert!(findings(&["crates/protocol/src/record.rs", DESCRIPTION]).is_empty());
        assert!(findings(&["crates/protocol/src/limits.rs"]).is_empty());
    }
}
