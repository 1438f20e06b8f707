//! The generated parts of `docs/paths.md`: what stands between `<!-- NAME -->` and
//! `<!-- end NAME -->` is replaced, everything else is left alone.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// Replaces one part of a file.
pub fn replace(file: &Path, name: &str, with: &str) -> Result<()> {
    let old = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let new = replaced(&old, name, with)
        .with_context(|| format!("{} has no part {name}", file.display()))?;
    fs::write(file, new)?;
    Ok(())
}

fn replaced(text: &str, name: &str, with: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end {name} -->"));
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}{}\n{end}{after}", with.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_only_what_is_between_the_marks() {
        let text = "a\n<!-- x -->\nold\n<!-- end x -->\nb\n";
        let new = replaced(text, "x", "new\n").unwrap();
        assert_eq!(new, "a\n<!-- x -->\nnew\n<!-- end x -->\nb\n");
        assert_eq!(replaced(text, "y", "new"), None);
    }
}
